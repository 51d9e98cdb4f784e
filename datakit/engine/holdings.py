"""Holdings: what a root holds, read from the root alone.

A dataset that isn't in today's catalogue is there all the same: its folder has step folders, whose recipe.json names
the steps before, and `manifest.json`, the manifest as it was when the dataset was last worked on. So archives that it
needs aren't taken for superfluous, and its files are verified, whoever asks.
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
        """What a command about it is typed with: its name, and a trial's limit."""
        return typed(self.dataset, self.limit)

    @cached_property
    def before(self) -> dict[str, list[str]]:
        """The steps that are there, first to last, each with the names of those before it."""
        found = {name: self._chain(name) for name in self.store.names(self.folder)}
        known = {name: before for name, before in found.items() if before is not None}
        for name, before in known.items():
            if not before:  # the first step, or one whose recipe.json is damaged: a later one knows its place
                later = [chain for chain in known.values() if name in chain]
                before += later[0][: later[0].index(name)] if later else []
        return dict(sorted(known.items(), key=lambda item: (len(item[1]), item[0])))

    def _chain(self, name: str) -> list[str] | None:
        """The steps before one, by its recipe.json; None for a folder that isn't a step's."""
        names = self.store.names(f"{self.folder}/{name}")
        if "recipe.json" not in names and not any(one.endswith(".commit.json") for one in names):
            return None
        chain: list[str] = []
        recipe: Any = self.ledger(name).recipe()
        while isinstance(recipe, dict) and isinstance(recipe := recipe.get("after"), dict):
            chain.insert(0, str(recipe.get("step")))
        return chain

    def ledger(self, step: str) -> Ledger:
        return Ledger(self.store, f"{self.folder}/{step}")

    def after(self, step: str) -> list[str]:
        """The steps that are made from a step's shards, the last one first."""
        return [name for name, before in reversed(self.before.items()) if step in before]

    def commits(self, step: str) -> dict[str, Commit]:
        """The commits of a step that can be read, by the names of its shards and their parts."""
        ledger = self.ledger(step)
        return {name: commit for name in ledger.committed_names() if (commit := ledger.read(name)) is not None}

    def made_from(self, step: str, hashes: Collection[str]) -> list[str]:
        """The shards of a step that were made from downloads with those sha256."""
        found = (name for name, one in self.commits(step).items() if not set(hashes).isdisjoint(one.inputs.values()))
        return sorted({shard_of(name) for name in found})

    def manifest(self) -> Manifest | None:
        """The manifest by which it was last worked on; None in a root of an earlier version."""
        data = self.store.read(f"{self.folder}/{MANIFEST}")
        try:
            return msgspec.json.decode(data, type=Manifest) if data else None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("%s/%s can't be read: %s", self.folder, MANIFEST, error)
            return None


def typed(dataset: str, limit: int | None) -> str:
    """A dataset, or a trial of it, as a command takes it."""
    return dataset + (f" --limit {limit}" if limit else "")


def holdings(store: Store) -> list[Holding]:
    """The datasets of a root, and the trials."""
    names = [name for name in store.names("") if name not in _NOT_DATASETS and _FOLDER.fullmatch(name)]
    found = [Holding(store, name) for name in names]
    return [one for one in found if one.before or store.size(f"{one.folder}/{MANIFEST}") is not None]


def holds(store: Store, name: str) -> bool:
    """Whether a root holds a dataset, or a trial, of that name."""
    return any(name in (one.folder, one.dataset) for one in holdings(store))


def write_manifest(store: Store, folder: str, manifest: Manifest) -> None:
    """Notes by which manifest a dataset's folder is worked on."""
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    if store.read(f"{folder}/{MANIFEST}") != data:
        store.write(f"{folder}/{MANIFEST}", data)
    if not store.local:
        _note_root(store)


# A cache of downloads is shared by all the buckets that are roots.


def _note_root(store: Store) -> None:
    """Notes beside the cache that this bucket is fed from it."""
    name = hashlib.sha256(store.root.encode()).hexdigest()[:32]
    path = _roots(store) / f"{name}.root"
    if not path.exists():
        publish_file(path, store.root.encode() + b"\n")


def _roots(store: Store) -> Path:
    return store.downloads.parent / "roots"


def sharing(store: Store) -> Iterator[Store]:
    """This root, and the others whose downloads stand in the same folder.

    Raises DatakitError for one that can't be reached: nobody knows what it needs then.
    """
    yield store
    if store.local or not _roots(store).is_dir():
        return
    for entry in sorted(os.scandir(_roots(store)), key=lambda entry: entry.name):
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
