"""Clean: what later steps, and other datasets, don't need any more, and how it goes.

A table or tar can go when the next step of its shard is done, a download when nothing is still to be made from it: not
of its own dataset, nor of any other that the root holds (datakit/holdings.py), nor of a bucket that shares the cache.
"""

from __future__ import annotations

import logging
import posixpath
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from datakit import claims, manifest
from datakit.annotations import INSIDE, file_of, near_by
from datakit.audit import open_run
from datakit.errors import ManifestError, NoSpace, UsageError
from datakit.holdings import Holding, holdings, sharing
from datakit.manifest import Manifest
from datakit.refusals import store_errors
from datakit.run import Run
from datakit.shards import shard_of
from datakit.store import sweep
from datakit.web import downloads
from datakit.web.hosts import Hosts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class File:
    """A file that has become superfluous."""

    name: str  # below the root, or downloads/…
    size_bytes: int


@dataclass
class Superfluous:
    """What can go, and why something else can't."""

    files: list[File] = field(default_factory=list)  # downloads last, tables and tars by step
    notes: list[str] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def superfluous(run: Run) -> Superfluous:
    """What can go of a dataset: tables and tars whose next step is done, and downloads that nothing needs any more.

    Raises StorageError when a bucket that shares the cache of downloads can't be reached.
    """
    found = Superfluous()
    run = run.snapshot()
    for place, step in enumerate(run.steps[:-1]):
        ledger = run.ledger(step)
        for shard, commit in ledger.commits().items():
            if run.done(place + 1, shard) and not run.stale(place + 1, shard):
                for file in (f for part in commit.parts for f in part.files()):
                    size = ledger.size(file.name)
                    if size is not None:
                        found.files.append(File(f"{ledger.folder}/{file.name}", size))
    kept = _still_needed(run)
    for other in _others(run):
        needed = _needed_by(other)
        if needed is None:
            found.notes.append(
                f"no download goes: {other.folder!r} of {other.store.root!r} isn't in this catalogue, so nobody knows "
                "what it needs; name the folder that has its manifest in DATAKIT_CATALOGUE"
            )
            return found
        kept |= needed
    for path in sorted(_downloads(run.manifest) - kept):
        local = run.store.downloads / path
        if local.is_file() or local.is_symlink():  # a link frees nothing: the file is the user's
            found.files.append(File(f"downloads/{path}", local.lstat().st_size))
    for address in run.manifest.addresses().values():
        for left in downloads.abandoned(run.manifest.at_commit(address), run.store.downloads):
            name = left.relative_to(run.store.downloads).as_posix()
            found.files.append(File(f"downloads/{name}", left.stat().st_size))
    return found


def _others(run: Run) -> Iterator[Holding]:
    """The other datasets whose downloads stand in the same folder."""
    for store in sharing(run.store):
        for one in holdings(store):
            if (store.root, one.folder) != (run.store.root, run.folder):
                yield one


def _needed_by(one: Holding) -> set[str] | None:
    """The downloads that a dataset still needs, all of its when that can't be told; None when they aren't known."""
    about = one.manifest()
    try:
        about = about or manifest.load(one.dataset)  # a root of an earlier version
    except (UsageError, ManifestError):
        return None
    try:
        return _still_needed(open_run(one.store, one.dataset, limit=one.limit, about=about, hosts=Hosts()))
    except (UsageError, ManifestError) as error:
        log.warning("all downloads of %s stay: %s", one.folder, error)
        return _downloads(about)


def _downloads(about: Manifest) -> set[str]:
    """The files that a dataset downloads, and what was taken out of them, below the downloads folder."""
    rows = about.annotations
    found = {_below(about, address) for address in about.addresses().values()}
    if rows.inside:
        ending = f"{INSIDE}{Path(rows.inside).suffix}"
        taken = [f"{_below(about, about.address(file))}{ending}" for file in about.shard_files()]
        found |= {*taken, *(f"{name}.of" for name in taken)}
    if rows.beside:
        near = {name for file in about.shard_files() for name in near_by(about, file)}
        found |= {_below(about, about.address(name)) for name in near}
    return found


def _below(about: Manifest, address: str) -> str:
    """Where a download lands, below the downloads folder."""
    return Path(downloads.parse(about.at_commit(address)).folder).as_posix()


def _still_needed(run: Run) -> set[str]:
    """Those downloads that a step which isn't done yet is made from."""
    run = run.snapshot()
    known = run.known_shards()
    if not known:
        return _downloads(run.manifest)
    needed: set[str] = set()
    last, fetch = len(run.steps) - 1, run.steps[-2].stage
    for shard in known:
        # Pictures that stand in the rows are read again by fetch.
        if not run.done(0, shard) or (fetch.reads_annotations and not run.done(last - 1, shard)):
            file = file_of(run.work(run.steps[0]), shard)
            files = (file, *near_by(run.manifest, file))
            needed |= {_below(run.manifest, run.manifest.address(name)) for name in files}
    if not all(run.done(last, shard) for shard in known):
        for source in run.manifest.images.sources.values():
            needed |= {_below(run.manifest, archive) for archive in source.archives()}
    if run.manifest.annotations.inside:
        needed |= {one for one in _downloads(run.manifest) if one.rpartition(INSIDE)[0] in needed}
    return needed


def clean(run: Run, files: list[File]) -> list[File]:
    """Removes superfluous files, and what killed jobs left; what another job works on stays. Returns what it removed.

    The ledger notes tables and tars before they go, so that they don't count as lost. Downloads go first, which needs
    no room. On a disk so full that nothing can be noted, files go before they are noted until it can be: those of the
    first steps first, which cost least to make again if this is killed meanwhile.
    """
    _sweep(run)
    removed = [file for file in files if file.name.startswith("downloads/")]
    for file in removed:
        path = run.store.downloads / file.name.removeprefix("downloads/")
        with store_errors(path, "remove"):
            path.unlink(missing_ok=True)
    groups = _by_shard(run, files)
    shards = deque(groups)
    for place, step in enumerate(run.steps):
        ledger = run.ledger(step)
        names = {posixpath.basename(one.name) for at, _, some in groups if at == place for one in some}
        while names:
            try:
                ledger.mark_cleaned(names)
                break
            except NoSpace:
                if not shards:
                    raise
                log.warning("no space to note what goes: files of %s go first, to make room", shards[0][2][0].name)
                removed += _remove(run, *shards.popleft())
    for one in shards:
        removed += _remove(run, *one)
    return removed


def _by_shard(run: Run, files: list[File]) -> list[tuple[int, str, list[File]]]:
    """Tables and tars by the places of their steps and by their shards."""
    found: dict[tuple[int, str], list[File]] = {}
    places = {run.ledger(step).folder: place for place, step in enumerate(run.steps)}
    for file in files:
        folder, name = posixpath.split(file.name)
        if folder in places:
            found.setdefault((places[folder], shard_of(name)), []).append(file)
    return [(place, shard, some) for (place, shard), some in sorted(found.items())]


def _remove(run: Run, place: int, shard: str, files: list[File]) -> list[File]:
    """Removes files of a shard unless another job works on it, or has made them needed again. Returns what went."""
    with claims.held(run.ledger(run.steps[place]), shard, wait=False) as ours:
        if not ours or not run.done(place + 1, int(shard)) or run.stale(place + 1, int(shard)):
            return []
        for file in files:
            run.store.remove(file.name)
    return files


def _sweep(run: Run) -> None:
    """Removes what killed jobs left of this dataset."""
    run.store.sweep(run.folder)
    sweep(run.store.downloads, below=True)
    for folder in {(run.store.downloads / name).parent for name in _downloads(run.manifest)}:
        downloads.sweep(folder)
    seen = run.snapshot()
    for step in run.steps:
        claims.sweep(seen.ledger(step))
