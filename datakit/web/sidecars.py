"""Sidecars: what stands beside a download, and says what it is.

X                     the file, under its name only when it is whole
X.download.json       its size, hash, commit and address; written last
X.part, X.part.json   what has come so far, and of which version of the file
X.index.parquet, X.inside.*    what was made of it
.X.source.json, .X.link        of a file of the user's own (datakit/web/own.py)
"""

from __future__ import annotations

import glob
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datakit.errors import DownloadError
from datakit.store import publish_file


@dataclass(frozen=True, kw_only=True)
class Expect:
    """What a `.sums` file knows about a download."""

    size_bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """A finished file."""

    path: Path
    size_bytes: int
    sha256: str
    revision: str | None
    """The commit of a hub file."""
    etag: str | None


def finished(path: Path, expect: Expect) -> Downloaded | None:
    """What the sidecar says, when it is there and the file has the size that it says."""
    said = said_of(path)
    try:
        if said is None or path.stat().st_size != said["size_bytes"] or _between(path):
            return None
        done = Downloaded(path=path, **{k: said[k] for k in ("size_bytes", "sha256", "revision", "etag")})
    except (OSError, KeyError, TypeError):
        return None
    check(path, expect, size_bytes=done.size_bytes, sha256=done.sha256)
    return done


def _between(path: Path) -> bool:
    """Whether a kill came after a new file had got its name, and before its sidecar was there."""
    return note_of(path).exists() and not part_of(path).exists()


def said_of(path: Path) -> dict[str, Any] | None:
    """What the sidecar says; None when there is none that can be read."""
    try:
        said = json.loads(_sidecar(path).read_bytes())
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) and isinstance(said.get("sha256"), str) else None


def part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def note_of(path: Path) -> Path:
    """Says what the part is a part of."""
    return path.with_name(path.name + ".part.json")


def forget_part(path: Path) -> None:
    """Removes what an interrupted download left, which a finished file makes needless."""
    note_of(path).unlink(missing_ok=True)
    part_of(path).unlink(missing_ok=True)


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".download.json")


def made_of(path: Path) -> list[Path]:
    """What stands beside a download because it was made of it: an archive's index, a JSON that was taken out."""
    inside = path.parent.glob(f"{glob.escape(path.name)}.inside.*")
    return [path.with_name(f"{path.name}.index.parquet"), *(one for one in inside if one.suffix != ".lock")]


def declare(done: Downloaded, address: str) -> None:
    """Writes the sidecar: from now on the file is finished, and what was made of another in its place goes."""
    for left in made_of(done.path):
        left.unlink(missing_ok=True)
    said = {**asdict(done), "url": address}
    del said["path"]
    publish_file(_sidecar(done.path), json.dumps(said, indent=2).encode() + b"\n")


def check(name: object, expect: Expect, *, size_bytes: int | None = None, sha256: str | None = None) -> None:
    for what, got, due in (("size", size_bytes, expect.size_bytes), ("sha256", sha256, expect.sha256)):
        if got is not None and due is not None and got != due:
            raise DownloadError(
                f"{str(name)!r} has {what} {got!r}, and {due!r} was expected: upstream has changed, or the "
                ".sums is for another file. If the change is right, `datakit pin` writes it down"
            )
