"""Claims: what keeps two jobs of one root from spoiling each other's shards.

In a folder, the local one or a shared one with locks, whoever makes, patches or removes a step of a shard holds that
shard's lock, and whoever reads it for the next step shares it: the second waits for the first, and takes what it made.

A bucket has no locks. There a job looks before each part whether another has committed it meanwhile, and takes it; and
when it has committed the shard, whether all that it wrote is still there as it wrote it. What another wrote over in
between is read whole, and made anew unless it is as its commit says. So two jobs end with a commit that agrees with
its files as long as both come to their end. What is left: a job that is killed while it writes over the files of
another leaves a part that isn't what its commit says, which `datakit verify` finds; and two retries at once.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

from datakit.errors import RecipeChanged
from datakit.storage.fingerprint import changes
from datakit.storage.ledger import Ledger, by_step
from datakit.storage.shards import shard_name

log = logging.getLogger(__name__)

_OF_A_SHARD = re.compile(r"(\d+)(-\d+)?(\.r\d+)?\.(parquet|tar)")


def held(ledger: Ledger, shard: str, *, shared: bool = False, wait: bool = True) -> AbstractContextManager[bool]:
    """Holds a step of a shard, or shares it, and says so when it waits; yields whether it is held."""
    where = f"{ledger.folder} {shard}"

    def waiting() -> None:
        log.warning("waiting for another job, which works on %s", where)

    return ledger.store.held(f"{ledger.folder}/.{shard}.lock", shared=shared, wait=wait, waiting=waiting)


def hold_to(ledger: Ledger, recipe: dict[str, Any]) -> None:
    """Raises RecipeChanged when a folder isn't a recipe's any more, because another job rebuilt or removed it."""
    now = ledger.recipe()
    differ = ["it is gone"] if now is None else changes(by_step(now), by_step(recipe))
    if differ:
        raise RecipeChanged(
            f"{ledger.store.root}/{ledger.folder} was taken away by another job while this one worked in it:\n  "
            + "\n  ".join(differ)
            + "\nLet one of the two work here, or give the other another --root."
        )


Stamps = dict[str, str | None]


def stamps(ledger: Ledger, names: Iterable[str]) -> Stamps:
    """What tells whether files of a folder are still those that stand there now."""
    return {name: ledger.store.stamp(f"{ledger.folder}/{name}") for name in names}


def settle(ledger: Ledger, name: str) -> None:
    """Takes a part's commit back unless its files, read whole, are as it says."""
    commit = ledger.read(name)
    if commit and any(ledger.wrong(file) for part in commit.parts for file in part.files()):
        ledger.remove(name)


def sweep(seen: Ledger, shards: Iterable[int] | None = None) -> None:
    """Removes tables and tars that no commit names, which a killed job left; of some shards, or of all.

    `seen` is a snapshot, so that the folder is listed once. What another job holds stays, and in a bucket, where
    nobody can tell, what was written within a day.
    """
    ledger = Ledger(seen.store, seen.folder)
    wanted = None if shards is None else set(map(shard_name, shards))
    left = defaultdict(list)
    for name in seen.listed():
        if (of := _OF_A_SHARD.fullmatch(name)) and (wanted is None or of[1] in wanted) and not _named(seen, of):
            left[of[1]].append(of)
    for shard, files in left.items():
        with held(ledger, shard, wait=False) as ours:
            for of in files if ours else ():
                where = f"{ledger.folder}/{of[0]}"
                if not _named(ledger, of) and (ledger.store.local or ledger.store.quiet(where)):
                    log.info("removing %s, which a killed job left", where)
                    ledger.store.remove(where)


def _named(ledger: Ledger, of: re.Match[str]) -> bool:
    """Whether a commit names a file, or may: one that can't be read doesn't say."""
    for name in dict.fromkeys((of[1], of[1] + (of[2] or ""))):
        commit = ledger.read(name)
        if commit is None and ledger.size(f"{name}.commit.json") is not None:
            return True
        if commit is not None and any(of[0] == file.name for part in commit.parts for file in part.files()):
            return True
    return False
