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

from datakit.engine.holdings import Holding, holdings, sharing
from datakit.storage import claims
from datakit.storage.refusals import store_errors
from datakit.storage.shards import shard_of
from datakit.storage.store import Store
from datakit.upkeep.verify import PLAN, Broken, Made
from datakit.web import derived
from datakit.web.sidecars import read_sidecar, sidecar_path

Seeds = dict[str, dict[str, set[str | None]]]  # step -> shard -> its parts, None for all of it


def repair(store: Store, broken: list[Broken]) -> list[str]:
    """Takes back what is broken and what was made of it; returns the names of what went, below the root."""
    downloads = [store.downloads / one.download for one in broken if one.download is not None]
    hashes = {said["sha256"] for path in downloads if (said := read_sidecar(_download_of(path))) is not None}
    names = []
    for place in sharing(store) if hashes else [store]:
        prefix = "" if place is store else f"{place.root}/"
        for holding in holdings(place):
            mine = [one for one in broken if place is store and one.made and one.made.folder == holding.folder]
            names += [prefix + name for name in _take_back(holding, mine, hashes)]
    for path in sorted(downloads, key=lambda path: path == _download_of(path)):
        with store_errors(path, "remove"):
            names.append(_remove_download(path, store))
    return list(dict.fromkeys(names))


def _take_back(holding: Holding, broken: list[Broken], hashes: Collection[str]) -> list[str]:
    """Discards the shards of a dataset that are broken, or were made from what is; from the last step to the first."""
    seeds = _seeds(holding, [one.made for one in broken if one.made], hashes)
    names = []
    for step in reversed(list(holding.before)):
        ledger = holding.ledger(step)
        there = set(map(shard_of, ledger.store.names(ledger.folder)))
        for shard, parts in sorted(seeds[step].items()):
            if shard not in there:
                continue
            with claims.held(ledger, shard):
                for part in [None] if None in parts else sorted(parts, key=str):
                    ledger.discard(shard, part)
                    names.append(f"{ledger.folder}/{part or shard}")
    of_steps = [one.where for one in broken if one.made and one.made.shard is None]
    for where in dict.fromkeys(_plans(holding, hashes) + of_steps):
        holding.store.remove(where)
        names.append(where)
    return names


def _seeds(holding: Holding, broken: list[Made], hashes: Collection[str]) -> Seeds:
    """The shards and parts that go, by step."""
    seeds: Seeds = defaultdict(lambda: defaultdict(set))
    for one in broken:
        if one.shard is not None:
            seeds[one.step][one.shard].add(one.part)
    for step in holding.before if hashes else ():
        for shard in holding.made_from(step, hashes):
            seeds[step][shard].add(None)
    for step in list(seeds):
        for later in holding.after(step):
            for shard in seeds[step]:
                seeds[later][shard].add(None)
    return seeds


def _plans(holding: Holding, hashes: Collection[str]) -> list[str]:
    """The plans that were made of downloads with those hashes."""
    places = [f"{holding.folder}/{step}/{PLAN}" for step in holding.before]
    plans = {place: holding.store.read(place) or b"" for place in places}
    return [place for place, plan in plans.items() if any(digest.encode() in plan for digest in hashes)]


def _download_of(path: Path) -> Path:
    """The download of which a derived file was made, or the file itself."""
    found = (path.with_name(path.name[:at]) for at in range(1, len(path.name)) if path.name[at] == ".")
    return next((one for one in found if path in derived.derived_files(one)), path)


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
    if said is None:  # only what is said of it is damaged: who put it there by hand can adopt it again
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
