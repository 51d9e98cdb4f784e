"""Holdings: what a root holds, read from the root alone.

A dataset may have left the catalogue and still be in the root. Its folder has step folders, whose recipe.json names the
steps before, and `manifest.json`, the manifest as it was when the dataset was last worked on. So the archives that it
needs are kept, and its files are verified, whatever today's catalogue says.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from datakit.catalogue.manifest import Manifest
from datakit.errors import DatakitError
from datakit.storage.ledger import Commit, Ledger
from datakit.storage.shards import shard_of
from datakit.storage.store import Store, publish_file

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_FOLDER = re.compile(r"([a-z0-9_-]+(?:\.[a-z0-9_-]+)?)(?:@limit-(\d{1,18}))?")
_NOT_DATASETS = {"downloads", "mixes"}


@dataclass(frozen=True)
class Holding:
    """A dataset's folder of a root, or a trial's."""

    store: Store
    folder: str

    @property
    def dataset(self) -> str:
        """Its name, which may not be in the catalogue."""
        match = _FOLDER.fullmatch(self.folder)
        return match[1] if match else self.folder

    @property
    def limit(self) -> int | None:
        """Rows of each annotation file that a trial reads."""
        match = _FOLDER.fullmatch(self.folder)
        return int(match[2]) if match and match[2] else None

    @property
    def options(self) -> str:
        """The arguments that name it in a command: its name, and a trial's limit."""
        return as_argument(self.dataset, self.limit)

    @cached_property
    def before(self) -> dict[str, list[str]]:
        """The steps that have a folder, first to last, each with the names of the steps before it."""
        found = {name: self._steps_before(name) for name in self.store.names(self.folder)}
        known = {name: before for name, before in found.items() if before is not None}
        for name, before in known.items():
            if not before:  # the first step, or one whose recipe.json is damaged: a later one names what is before it
                later = [chain for chain in known.values() if name in chain]
                before += later[0][: later[0].index(name)] if later else []
        return dict(sorted(known.items(), key=lambda item: (len(item[1]), item[0])))

    def _steps_before(self, name: str) -> list[str] | None:
        """The steps before a step, by its recipe.json; None for a folder that isn't a step's."""
        names = self.store.names(f"{self.folder}/{name}")
        if "recipe.json" not in names and not any(file.endswith(".commit.json") for file in names):
            return None
        chain: list[str] = []
        recipe: Any = self.ledger(name).recipe()
        while isinstance(recipe, dict) and isinstance(recipe := recipe.get("after"), dict):
            chain.insert(0, str(recipe.get("step")))
        return chain

    def ledger(self, step: str) -> Ledger:
        return Ledger(self.store, f"{self.folder}/{step}")

    def steps_after(self, step: str) -> list[str]:
        """The steps that are made from a step's shards, the last one first."""
        return [name for name, before in reversed(self.before.items()) if step in before]

    def commits(self, step: str) -> dict[str, Commit]:
        """The commits of a step that can be read, by the names of its shards and their parts."""
        ledger = self.ledger(step)
        return {name: commit for name in ledger.committed_names() if (commit := ledger.read(name)) is not None}

    def shards_made_from(self, step: str, hashes: Collection[str]) -> list[str]:
        """The shards of a step that were made from downloads with those sha256."""
        found = (
            name for name, commit in self.commits(step).items() if not set(hashes).isdisjoint(commit.inputs.values())
        )
        return sorted({shard_of(name) for name in found})

    def manifest(self) -> Manifest | None:
        """The manifest that it was last worked on with; None in a root of an earlier version."""
        data = self.store.read(f"{self.folder}/{MANIFEST}")
        try:
            return msgspec.json.decode(data, type=Manifest) if data else None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("%s/%s can't be read: %s", self.folder, MANIFEST, error)
            return None


def as_argument(dataset: str, limit: int | None) -> str:
    """A dataset, or a trial of it, as a command takes it."""
    return dataset + (f" --limit {limit}" if limit else "")


def holdings(store: Store) -> list[Holding]:
    """The datasets of a root, and the trials."""
    names = [name for name in store.names("") if name not in _NOT_DATASETS and _FOLDER.fullmatch(name)]
    found = [Holding(store, name) for name in names]
    return [holding for holding in found if holding.before or store.size(f"{holding.folder}/{MANIFEST}") is not None]


def holds(store: Store, name: str) -> bool:
    """Whether a root holds a dataset, or a trial, of that name."""
    return any(name in (holding.folder, holding.dataset) for holding in holdings(store))


def write_manifest(store: Store, folder: str, manifest: Manifest) -> None:
    """Writes the manifest that a dataset's folder is worked on with."""
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    if store.read(f"{folder}/{MANIFEST}") != data:
        store.write(f"{folder}/{MANIFEST}", data)
    if not store.local:
        _record_root(store)


# All the buckets that are roots share one cache of downloads.


def _record_root(store: Store) -> None:
    """Records beside the cache that this bucket uses it."""
    name = hashlib.sha256(store.root.encode()).hexdigest()[:32]
    path = _roots_folder(store) / f"{name}.root"
    if not path.exists():
        publish_file(path, store.root.encode() + b"\n")


def _roots_folder(store: Store) -> Path:
    return store.downloads.parent / "roots"


def roots_sharing_downloads(store: Store) -> Iterator[Store]:
    """This root, and the others whose downloads stand in the same folder.

    Raises DatakitError for a root that can't be reached, since then what it needs isn't known.
    """
    yield store
    if store.local or not _roots_folder(store).is_dir():
        return
    for entry in sorted(os.scandir(_roots_folder(store)), key=lambda entry: entry.name):
        if entry.name.endswith(".root"):
            root = Path(entry.path).read_text("utf-8", "replace").strip()
            if root != store.root:
                try:
                    other = Store(root)
                    other.check()
                except DatakitError as error:
                    raise type(error)(
                        f"{error}. Its downloads are in the same cache, so nobody knows what of it {root!r} needs: "
                        f"bring it back, or remove {entry.path} if it is gone for good"
                    ) from error
                yield other
