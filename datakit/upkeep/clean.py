"""Clean: what later steps, and other datasets, don't need any more, and its removal.

A table or tar can go when the next step of its shard is done, a download when nothing is still to be made from it: not
of its own dataset, nor of any other that the root holds (datakit/engine/holdings.py), nor of a bucket that shares the
cache.
"""

from __future__ import annotations

import logging
import posixpath
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from datakit.catalogue import manifest
from datakit.catalogue.manifest import Manifest
from datakit.engine.build import Build
from datakit.engine.done import Done
from datakit.engine.holdings import Holding, holdings, roots_sharing_downloads
from datakit.engine.opening import open_build
from datakit.engine.stage import Step
from datakit.errors import ManifestError, NoSpace, UsageError
from datakit.storage import claims
from datakit.storage.refusals import store_errors
from datakit.storage.shards import shard_of
from datakit.storage.store import sweep
from datakit.upstream.annotations import INSIDE, file_of, names_beside
from datakit.web import downloads
from datakit.web.hosts import Hosts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class File:
    """A file that nothing needs any more."""

    name: str  # below the root, or downloads/…
    size_bytes: int


@dataclass
class SuperfluousFiles:
    """What can go, and why something else can't."""

    files: list[File] = field(default_factory=list)  # downloads last, tables and tars by step
    notes: list[str] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def superfluous_files(build: Build) -> SuperfluousFiles:
    """What can go of a dataset: tables and tars whose next step is done, and downloads that nothing needs any more.

    Raises StorageError when a bucket that shares the cache of downloads can't be reached.
    """
    found = SuperfluousFiles()
    done = Done(build, snapshot=True)
    for step in _intermediate_steps(build):
        ledger = done.ledger(step)
        for shard, commit in ledger.commits().items():
            if _is_consumed(done, step, shard):
                for file in (f for part in commit.parts for f in part.files()):
                    size = ledger.size(file.name)
                    if size is not None:
                        found.files.append(File(f"{ledger.folder}/{file.name}", size))
    kept = _needed_downloads(build)
    for other in _other_holdings(build):
        needed = _downloads_needed_by(other)
        if needed is None:
            found.notes.append(
                f"no download goes: {other.folder!r} of {other.store.root!r} isn't in this catalogue, so nobody knows "
                "what it needs; name the folder that has its manifest in DATAKIT_CATALOGUE"
            )
            return found
        kept |= needed
    for path in sorted(_downloads(build.manifest) - kept):
        local = build.store.downloads / path
        if local.is_file() or local.is_symlink():  # a link frees nothing: the file is the user's
            found.files.append(File(f"downloads/{path}", local.lstat().st_size))
    for address in build.manifest.addresses().values():
        for left in downloads.abandoned_parts(build.manifest.at_commit(address), build.store.downloads):
            name = left.relative_to(build.store.downloads).as_posix()
            found.files.append(File(f"downloads/{name}", left.stat().st_size))
    return found


def _intermediate_steps(build: Build) -> tuple[Step, ...]:
    """The steps whose tables and tars only the next step reads: those before the packed tars."""
    return build.path_to(build.step_of("pack"))[:-1]


def _is_consumed(done: Done, step: Step, shard: int) -> bool:
    """Whether every step that reads a step's rows of this shard is done with them."""
    return all(done.has(after, shard) and not done.stale(after, shard) for after in done.build.steps_after(step))


def _other_holdings(build: Build) -> Iterator[Holding]:
    """The other datasets whose downloads stand in the same folder."""
    for store in roots_sharing_downloads(build.store):
        for holding in holdings(store):
            if (store.root, holding.folder) != (build.store.root, build.folder):
                yield holding


def _downloads_needed_by(holding: Holding) -> set[str] | None:
    """The downloads that a dataset still needs, or all its downloads when its build can't be opened.

    None when no manifest says which they are.
    """
    about = holding.manifest()
    try:
        about = about or manifest.load(holding.dataset)  # a root of an earlier version
    except (UsageError, ManifestError):
        return None
    try:
        return _needed_downloads(
            open_build(holding.store, holding.dataset, limit=holding.limit, about=about, hosts=Hosts())
        )
    except (UsageError, ManifestError) as error:
        log.warning("all downloads of %s stay: %s", holding.folder, error)
        return _downloads(about)


def _downloads(about: Manifest) -> set[str]:
    """The files that a dataset downloads, and what was taken out of them, below the downloads folder."""
    rows = about.annotations
    found = {_download_path(about, address) for address in about.addresses().values()}
    if rows.inside:
        ending = f"{INSIDE}{Path(rows.inside).suffix}"
        taken = [f"{_download_path(about, about.address(file))}{ending}" for file in about.shard_files()]
        found |= {*taken, *(f"{name}.of" for name in taken)}
    if rows.beside:
        near = {name for file in about.shard_files() for name in names_beside(about, file)}
        found |= {_download_path(about, about.address(name)) for name in near}
    return found


def _download_path(about: Manifest, address: str) -> str:
    """Where a download lands, below the downloads folder."""
    return Path(downloads.parse(about.at_commit(address)).folder).as_posix()


def _needed_downloads(build: Build) -> set[str]:
    """The downloads from which a step that isn't done yet is made."""
    done = Done(build, snapshot=True)
    known = done.known_shards()
    if not known:
        return _downloads(build.manifest)
    needed: set[str] = set()
    listing, fetch, pack = build.step_of("list"), build.step_of("fetch"), build.step_of("pack")
    for shard in known:
        # Pictures that stand in the rows are read again by fetch.
        if not done.has(listing, shard) or (fetch.stage.reads_annotations and not done.has(fetch, shard)):
            file = file_of(build.work(listing), shard)
            files = (file, *names_beside(build.manifest, file))
            needed |= {_download_path(build.manifest, build.manifest.address(name)) for name in files}
    if not all(done.has(pack, shard) for shard in known):
        for source in build.manifest.images.sources.values():
            needed |= {_download_path(build.manifest, archive) for archive in source.archives()}
    if build.manifest.annotations.inside:
        needed |= {name for name in _downloads(build.manifest) if name.rpartition(INSIDE)[0] in needed}
    return needed


def clean(build: Build, files: list[File]) -> list[File]:
    """Removes superfluous files and what killed jobs left, but nothing another job works on; returns what it removed.

    The ledger notes tables and tars before they go, so that they don't count as lost. Downloads go first, which needs
    no room. On a disk so full that nothing can be noted, files go before they are noted until it can be: those of the
    first steps first, which cost least to make again if this is killed meanwhile.
    """
    _sweep(build)
    removed = [file for file in files if file.name.startswith("downloads/")]
    for file in removed:
        path = build.store.downloads / file.name.removeprefix("downloads/")
        with store_errors(path, "remove"):
            path.unlink(missing_ok=True)
    groups = _by_shard(build, files)
    shards = deque(groups)
    for step in build.steps:
        ledger = build.ledger(step)
        names = {posixpath.basename(file.name) for of, _, some in groups if of is step for file in some}
        while names:
            try:
                ledger.mark_cleaned(names)
                break
            except NoSpace:
                if not shards:
                    raise
                log.warning("no space to note what goes: files of %s go first, to make room", shards[0][2][0].name)
                removed += _remove(build, *shards.popleft())
    for group in shards:
        removed += _remove(build, *group)
    return removed


def _by_shard(build: Build, files: list[File]) -> list[tuple[Step, str, list[File]]]:
    """Tables and tars by their steps, in their order, and by their shards."""
    found: dict[tuple[int, str], list[File]] = {}
    places = {build.ledger(step).folder: place for place, step in enumerate(build.steps)}
    for file in files:
        folder, name = posixpath.split(file.name)
        if folder in places:
            found.setdefault((places[folder], shard_of(name)), []).append(file)
    return [(build.steps[place], shard, some) for (place, shard), some in sorted(found.items())]


def _remove(build: Build, step: Step, shard: str, files: list[File]) -> list[File]:
    """Removes files of a shard unless another job works on it, or has made them needed again; returns those removed."""
    with claims.shard_lock(build.ledger(step), shard, wait=False) as ours:
        if not ours or not _is_consumed(Done(build), step, int(shard)):
            return []
        for file in files:
            build.store.remove(file.name)
    return files


def _sweep(build: Build) -> None:
    """Removes what killed jobs left of this dataset."""
    build.store.sweep(build.folder)
    sweep(build.store.downloads, below=True)
    for folder in {(build.store.downloads / name).parent for name in _downloads(build.manifest)}:
        downloads.sweep(folder)
    for step in build.steps:
        claims.sweep(build.ledger(step, snapshot=True))
