"""Repair: takes back what `verify` found broken, and whatever was made of it, so that the next run makes it again.

1. What was made from a damaged thing can't be trusted: every later step of a damaged shard, and of a damaged download
   (or of its index, or of the JSON that was taken out of it) every shard of every dataset that was made from it.
2. It goes from the last step to the first, and the damaged thing itself goes last: killed anywhere and run again,
   `verify` finds the damage again and the rest goes, too.
3. What can be made again is removed. A download that a person has put there is put aside as `<name>.bad`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from datakit.engine.holdings import Holding, holdings, roots_sharing_downloads
from datakit.storage import claims
from datakit.storage.refusals import store_errors
from datakit.storage.shards import shard_of
from datakit.storage.store import Store
from datakit.upkeep.verify import PLAN, Broken, StepOutput
from datakit.web import derived
from datakit.web.sidecars import read_sidecar, sidecar_path

Seeds = dict[str, dict[str, set[str | None]]]  # step -> shard -> its parts, None for all of it


def repair(store: Store, broken: list[Broken]) -> list[str]:
    """Takes back what is broken and what was made of it; returns the names of what was removed, below the root."""
    downloads = [store.downloads / file.download for file in broken if file.download is not None]
    hashes = {said["sha256"] for path in downloads if (said := read_sidecar(_download_of(path))) is not None}
    names = []
    for sharer in roots_sharing_downloads(store) if hashes else [store]:
        prefix = "" if sharer is store else f"{sharer.root}/"
        for holding in holdings(sharer):
            mine = [file for file in broken if sharer is store and file.made and file.made.folder == holding.folder]
            names += [prefix + name for name in _take_back(holding, mine, hashes)]
    for path in sorted(downloads, key=lambda path: path == _download_of(path)):
        with store_errors(path, "remove"):
            names.append(_remove_download(path, store))
    return list(dict.fromkeys(names))


def _take_back(holding: Holding, broken: list[Broken], hashes: Collection[str]) -> list[str]:
    """Discards the shards of a dataset that are broken, or were made from what is; from the last step to the first."""
    seeds = _seeds(holding, [file.made for file in broken if file.made], hashes)
    names = []
    for step in reversed(list(holding.before)):
        ledger = holding.ledger(step)
        there = set(map(shard_of, ledger.store.names(ledger.folder)))
        for shard, parts in sorted(seeds[step].items()):
            if shard not in there:
                continue
            with claims.shard_lock(ledger, shard):
                for part in [None] if None in parts else sorted(parts, key=str):
                    ledger.discard(shard, part)
                    names.append(f"{ledger.folder}/{part or shard}")
    of_steps = [file.where for file in broken if file.made and file.made.shard is None]
    for where in dict.fromkeys(_plans(holding, hashes) + of_steps):
        holding.store.remove(where)
        names.append(where)
    return names


def _seeds(holding: Holding, broken: list[StepOutput], hashes: Collection[str]) -> Seeds:
    """The shards and parts to discard, by step."""
    seeds: Seeds = defaultdict(lambda: defaultdict(set))
    for made in broken:
        if made.shard is not None:
            seeds[made.step][made.shard].add(made.part)
    for step in holding.before if hashes else ():
        for shard in holding.shards_made_from(step, hashes):
            seeds[step][shard].add(None)
    for step in list(seeds):
        for later in holding.steps_after(step):
            for shard in seeds[step]:
                seeds[later][shard].add(None)
    return seeds


def _plans(holding: Holding, hashes: Collection[str]) -> list[str]:
    """The plans that were made of downloads with those hashes."""
    paths = [f"{holding.folder}/{step}/{PLAN}" for step in holding.before]
    plans = {path: holding.store.read(path) or b"" for path in paths}
    return [path for path, plan in plans.items() if any(digest.encode() in plan for digest in hashes)]


def _download_of(path: Path) -> Path:
    """The download of which a derived file was made, or the file itself."""
    candidates = (path.with_name(path.name[:at]) for at in range(1, len(path.name)) if path.name[at] == ".")
    return next((candidate for candidate in candidates if path in derived.derived_files(candidate)), path)


def _remove_download(path: Path, store: Store) -> str:
    """Removes a damaged download, or a derived file; returns its name and what became of it."""
    name = f"downloads/{path.relative_to(store.downloads).as_posix()}"
    if _download_of(path) != path:
        derived.remove(path)
        return name
    said = read_sidecar(path)
    for made in derived.derived_files(path):
        derived.remove(made)
    sidecar = sidecar_path(path)
    if said is None:  # only the sidecar is damaged: who put it there by hand can adopt it again
        sidecar.unlink(missing_ok=True)
        return f"downloads/{sidecar.relative_to(store.downloads).as_posix()}"
    if not said.get("by_hand"):  # upstream gave it and can again, or it is a copy of a file of the user's or a link
        path.unlink(missing_ok=True)
        sidecar.unlink(missing_ok=True)
        return name
    bad = path.with_name(f"{path.name}.bad")
    path.replace(bad)
    sidecar.unlink(missing_ok=True)
    return f"{name} (put aside as {bad.name}, for it was put there by hand)"
