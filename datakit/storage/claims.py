"""Claims: how two jobs that work in one root keep out of each other's shards.

In a folder, local or on a shared file system with locks, a job that makes, patches or removes a shard of a step holds
that shard's lock, and a job that reads it for the next step shares the lock: the second waits for the first, and then
uses what the first made.

A bucket has no locks. There a job checks before each part whether another job has committed it meanwhile, and if so
takes that part over. After committing a shard it checks that all files it wrote are still those that it wrote; a file
that another job has overwritten is read whole, and made again unless it is what its commit says. So two jobs that both
run to their end leave a commit that agrees with its files. Two cases are not covered: a job killed while it overwrites
the files of another leaves a part that differs from its commit, which `datakit verify` finds; and two retries at once.
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


def shard_lock(ledger: Ledger, shard: str, *, shared: bool = False, wait: bool = True) -> AbstractContextManager[bool]:
    """The lock of a shard of a step, exclusive or shared; logs when it has to wait, and yields whether it is held."""
    where = f"{ledger.folder} {shard}"

    def on_wait() -> None:
        log.warning("waiting for another job, which works on %s", where)

    return ledger.store.lock(f"{ledger.folder}/.{shard}.lock", shared=shared, wait=wait, on_wait=on_wait)


def check_recipe(ledger: Ledger, recipe: dict[str, Any]) -> None:
    """Raises RecipeChanged when another job has removed a folder or rebuilt it by another recipe."""
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
    """The current stamp of each file: it changes when the file is written again, and is None without a file."""
    return {name: ledger.store.stamp(f"{ledger.folder}/{name}") for name in names}


def withdraw_unless_whole(ledger: Ledger, name: str) -> None:
    """Removes a part's commit unless its files, read whole, are what it says."""
    commit = ledger.read(name)
    if commit and any(ledger.file_problem(file) for part in commit.parts for file in part.files()):
        ledger.remove(name)


def sweep(snapshot: Ledger, shards: Iterable[int] | None = None) -> None:
    """Removes tables and tars that no commit names, which a killed job left; of the given shards, or of all.

    The ledger is a snapshot, so that the folder is listed once. Files of shards that another job holds stay, and in a
    bucket, which has no locks, those written within the last day.
    """
    ledger = Ledger(snapshot.store, snapshot.folder)
    wanted = None if shards is None else set(map(shard_name, shards))
    leftovers = defaultdict(list)
    for name in snapshot.file_names():
        if (of := _OF_A_SHARD.fullmatch(name)) and (wanted is None or of[1] in wanted) and not _is_named(snapshot, of):
            leftovers[of[1]].append(of)
    for shard, files in leftovers.items():
        with shard_lock(ledger, shard, wait=False) as ours:
            for of in files if ours else ():
                where = f"{ledger.folder}/{of[0]}"
                if not _is_named(ledger, of) and (ledger.store.local or ledger.store.is_quiet(where)):
                    log.info("removing %s, which a killed job left", where)
                    ledger.store.remove(where)


def _is_named(ledger: Ledger, of: re.Match[str]) -> bool:
    """Whether a commit names a file, or may name it: a damaged commit counts as one that does."""
    for name in dict.fromkeys((of[1], of[1] + (of[2] or ""))):
        commit = ledger.read(name)
        if commit is None and ledger.size(f"{name}.commit.json") is not None:
            return True
        if commit is not None and any(of[0] == file.name for part in commit.parts for file in part.files()):
            return True
    return False
