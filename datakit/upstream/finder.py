"""Finder: finds the pictures that rows refer to in upstream's archives. Nothing is copied or unpacked."""

from __future__ import annotations

import posixpath
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from msgspec import structs

from datakit.catalogue.manifest import Manifest, Source
from datakit.engine.work import Work, intact
from datakit.errors import shortlist
from datakit.formats import archives
from datakit.images.extensions import ENDINGS_IN_ARCHIVES, EXTENSIONS_OF_A_STEM


def sources_with(manifest: Manifest, without: tuple[str, ...]) -> dict[str, Source]:
    """The sources of a dataset's pictures, except those in `without`."""
    return {name: source for name, source in manifest.images.sources.items() if name not in without}


class Found(NamedTuple):
    """The archive member that a reference means."""

    source: str
    file: str  # the archive, by its name in tables
    member: archives.Member
    repaired: bool  # found under another extension, although the manifest doesn't allow any


class Finder:
    """Finds references in a dataset's archives; with `repair` also under another extension, if the name isn't there."""

    def __init__(self, work: Work, *, without: tuple[str, ...], repair: bool) -> None:
        # The longest prefix wins: vg/VG_100K_2/ is not vg/VG_100K/.
        self._sources = sorted(work.manifest.images.sources.items(), key=lambda named: -len(named[1].prefix))
        self._archives = {
            name: [(source, table_name(work, archive), index_of(work, archive)) for archive in source.archives()]
            for name, source in sources_with(work.manifest, without).items()
        }
        self._rules = (find, find_other_extension) if repair else (find,)

    def sources(self, ref: str) -> list[str]:
        """The names of the sources whose prefix a reference has; of several prefixes the longest counts."""
        ref = ref.removeprefix("./")
        fit = [(name, len(source.prefix)) for name, source in self._sources if ref.startswith(source.prefix)]
        return [name for name, length in fit if length == fit[0][1]]

    def __call__(self, ref: str) -> Found | str:
        """The member that a reference means, or the outcome: no_source, left_out, missing."""
        names = self.sources(ref)
        ours = [name for name in names if name in self._archives]
        if not ours:
            return "left_out" if names else "no_source"
        for rule in self._rules:  # the exact name in all archives comes before another extension in any
            for name in ours:
                for source, file, index in self._archives[name]:
                    if (member := rule(index, source, ref.removeprefix("./"))) is not None:
                        return Found(name, file, member, rule is not find)
        return "missing"


def get_archives_message(dataset: str, absent: list[tuple[str, Source, list[str]]], without: tuple[str, ...]) -> str:
    """The message that names archives to get by hand, and the commands to go on with or without them."""
    files = {name: [posixpath.basename(archive) for archive in archives] for name, _, archives in absent}
    lines = [f"  {name}: {shortlist(files[name])}. {source.obtain}" for name, source, _ in absent]
    return "\n".join(
        [
            f"some archives of {dataset!r} can't be downloaded by a program:",
            *lines,
            f"Get them and run `datakit adopt {dataset} …/{files[absent[0][0]][0]}` for each, "
            f"or give up their pictures with --without {','.join([*without, *files])}",
        ]
    )


def archives_to_get(sources: dict[str, Source], work: Work) -> list[tuple[str, Source, list[str]]]:
    """Sources that no program can download and that aren't here, with their archives."""
    found = []
    for name, source in sources.items():
        absent = [a for a in source.archives() if source.obtain and not intact(work.local(a))]
        if absent:
            found.append((name, source, absent))
    return found


def index_of(work: Work, archive: str) -> archives.Index:
    """The index of a downloaded archive."""
    return open_index(archives.index_path(work.local(archive)))


def table_name(work: Work, archive: str) -> str:
    """An archive's name in tables."""
    return f"downloads/{work.local(archive).relative_to(work.store.downloads).as_posix()}"


@lru_cache(maxsize=128)  # ShareGPT4V has 61 archives
def open_index(path: Path) -> archives.Index:
    """The index of an archive, opened once in a process and kept. Raises ArchiveError."""
    return archives.Index.open(path)


def find_other_extension(index: archives.Index, source: Source, ref: str) -> archives.Member | None:
    """The one member that differs from a reference in its extension; None when there are two: it would be a guess."""
    stem = ref.rpartition(".")[0]
    exact = structs.replace(source, any_extension=False)
    found = [member for ending in ENDINGS_IN_ARCHIVES if (member := find(index, exact, stem + ending)) is not None]
    return found[0] if stem and len(found) == 1 else None


def find(index: archives.Index, source: Source, ref: str) -> archives.Member | None:
    """The member that a reference means, by the source's rules."""
    rest = ref.removeprefix(source.prefix)
    if source.inside == "*/":
        stem = rest.rpartition(".")[0]
        others = [f"{stem}{ending}" for ending in ENDINGS_IN_ARCHIVES] if source.any_extension else []
        found = (index.find_any_folder(name) for name in [rest, *others])
        return next((member for member in found if member is not None), None)
    name = source.inside + rest
    member = index.find(name)
    if member is None and source.any_extension:
        member = index.find_stem(name.rpartition(".")[0], EXTENSIONS_OF_A_STEM)
    return member
