"""Adopt: a file that the user has stands for one that would be downloaded."""

from __future__ import annotations

import posixpath
from pathlib import Path

from datakit.engine.build import Build
from datakit.engine.work import Progress
from datakit.errors import UsageError, nearest, shortlist
from datakit.web import downloads
from datakit.web.downloads import Downloaded


def adopt(build: Build, file: Path, wanted: str | None, progress: Progress | None = None) -> tuple[str, Downloaded]:
    """Takes a file that the user has for one that would be downloaded. Raises UsageError when it isn't clear which."""
    known = build.manifest.addresses()
    if wanted is None:
        named = list({a: n for n, a in known.items() if posixpath.basename(a) == file.name}.values())
        if len(named) != 1:
            which = f"{file.name!r} may be {' or '.join(named)}" if named else f"nothing is named {file.name!r}"
            raise UsageError(f"{which} in {build.manifest.name!r}. Say with --as which it is: {shortlist(known, 12)}")
        (wanted,) = named
    if wanted not in known:
        raise UsageError(f"{build.manifest.name!r} has no {wanted!r}. {nearest(wanted, known)}")

    def report_progress(done: int, total: int | None) -> None:
        if progress is not None:
            progress.download(known[wanted], done, total)

    return known[wanted], downloads.bring(file, known[wanted], build.store.downloads, tell=report_progress)
