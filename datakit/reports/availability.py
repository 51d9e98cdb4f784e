"""Availability: what upstream says of each file of a dataset in archives, and whether there is room for them."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import Any

from datakit.engine.build import Build
from datakit.engine.work import intact
from datakit.errors import DownloadError, shortlist
from datakit.storage.store import free_bytes
from datakit.upstream.finder import archives_to_get
from datakit.web import downloads


@dataclass(frozen=True, kw_only=True)
class UpstreamFile:
    """A file of a dataset as upstream describes it, or the archives of a source that a person has to bring."""

    name: str
    address: str
    here: bool
    size_bytes: int | None = None  # None where upstream doesn't say
    problem: str = ""  # why it can't be downloaded

    def json_object(self) -> dict[str, Any]:
        known = {"problem": self.problem} if self.problem else {"bytes": self.size_bytes}
        return {"name": self.name, "address": self.address, "here": self.here, **known}


@dataclass(frozen=True, kw_only=True)
class Availability:
    """Whether the files of a dataset can be downloaded, how many bytes that is, and whether there is room."""

    files: list[UpstreamFile]
    terms: str  # that still have to be accepted; empty when there are none
    free_bytes: int

    @property
    def to_download(self) -> int:
        """Bytes of the files that aren't here and whose size is known; a file under several names counts once."""
        return sum({file.address: file.size_bytes or 0 for file in self.files if not file.here}.values())

    @property
    def fits(self) -> bool:
        """Whether there is room for the downloads, and about as much again for the packed tars."""
        return self.free_bytes >= 2 * self.to_download

    @property
    def obtainable(self) -> bool:
        """Whether every file can be downloaded and no terms have to be accepted first."""
        return not self.terms and not any(file.problem for file in self.files)

    def json_object(self) -> dict[str, Any]:
        return {
            "files": [file.json_object() for file in self.files],
            "terms": self.terms,
            "bytes_to_download": self.to_download,
            "free_bytes": self.free_bytes,
        }


def availability(build: Build) -> Availability:
    """Asks upstream about each file of a dataset that isn't here; downloads none.

    Sources that the build does without are left out. Upstream isn't asked about a source that a person has to bring.
    """
    about, work = build.manifest, build.work(build.steps[0])
    sources = about.images.sources
    left_out = {about.at_commit(archive) for name in build.choices.without for archive in sources[name].archives()}
    files = []
    for name, source, archives in archives_to_get(sources, work):
        if name not in build.choices.without:
            text = f"{shortlist(posixpath.basename(archive) for archive in archives)}. {source.obtain}"
            files.append(UpstreamFile(name=name, address=source.archive, here=False, problem=text))
        left_out |= {about.at_commit(archive) for archive in archives}
    files += [
        _upstream_file(build, name, address) for name, address in about.addresses().items() if address not in left_out
    ]
    return Availability(files=files, terms=build.terms, free_bytes=free_bytes(build.store.downloads))


def _upstream_file(build: Build, name: str, address: str) -> UpstreamFile:
    path = build.work(build.steps[0]).local(address)
    if intact(path):
        return UpstreamFile(name=name, address=address, here=True, size_bytes=path.stat().st_size)
    try:
        size_bytes = downloads.head(address, hosts=build.hosts).size_bytes
    except DownloadError as error:
        return UpstreamFile(name=name, address=address, here=False, problem=str(error))
    return UpstreamFile(name=name, address=address, here=False, size_bytes=size_bytes)
