"""Ledger: which shards of a step are done, by the commit files beside them.

    recipe.json             what the folder is made by; written first, and compared by every later run
    00042.parquet, .tar     data, published before the commit
    00042.commit.json       written last: the recipe, the inputs, rows, drops by reason, every file's hash

A shard is done when its commit exists, names this recipe and these inputs, and its files have the size that the commit
states. Otherwise it is missing (never finished) or stale (made from other inputs), and is made again. Two workers on
one shard take turns: see datakit/storage/claims.py.

A commit isn't trusted: its seal must match its contents, and the files that it names must be named as files of a shard
are, so that none of them lies outside the folder.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from typing import Any, Literal

import msgspec
import xxhash

from datakit.errors import RecipeChanged, shortlist
from datakit.storage.fingerprint import changes, fingerprint
from datakit.storage.shards import shard_of
from datakit.storage.store import Store
from datakit.storage.store import xxh3 as hash_of

log = logging.getLogger(__name__)

State = Literal["done", "stale", "missing"]

_PART = re.compile(r"\d{5,9}(-\d{5,9})?")
_FILE = re.compile(r"(\d{5,9}(?:-\d{5,9})?)(?:\.r\d{1,9})?\.(?:parquet|tar)")


class File(msgspec.Struct, frozen=True):
    """A published file of a commit."""

    name: str
    size_bytes: int
    xxh3: str  # of 128 bits


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One table of a shard, and the tar beside it when there is one."""

    name: str  # 00042, or 00042-00007
    rows: int
    table: File
    tar: File | None = None
    patches: list[File] = []  # tars with the pictures that retries got
    tries: int = 0  # how often failed URLs were retried

    def files(self) -> list[File]:
        return [self.table, *([self.tar] if self.tar else []), *self.patches]


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """A finished shard, or a finished part of one that is still being made."""

    recipe: str  # fingerprint of recipe.json
    inputs: dict[str, str]  # upstream step or file -> fingerprint or sha256
    rows: int
    dropped: dict[str, int] = {}  # by reason
    faults: dict[str, int] = {}  # dropped or kept rows that count against the step's ceiling, by reason
    parts: list[Part] = []
    made_by: str = ""
    seal: str = ""  # hash of all the other fields; commits of earlier versions have none

    def digest(self) -> str:
        """What the next step records as its input: a hash of the data, whoever made it."""
        return fingerprint([self.recipe, self.rows, [[f.xxh3 for f in p.files()] for p in self.parts]])

    def with_seal(self) -> Commit:
        """The same commit with the seal of its contents."""
        return msgspec.structs.replace(self, seal=_seal(msgspec.to_builtins(self)))

    def problem(self) -> str | None:
        """Why a commit that was read can't be right, or None."""
        if not self.parts or sum(part.rows for part in self.parts) != self.rows:
            return "its rows aren't those of its parts"
        for part in self.parts:
            names = [match[1] if (match := _FILE.fullmatch(file.name)) else "" for file in part.files()]
            if not _PART.fullmatch(part.name) or any(name != part.name for name in names):
                return f"it names files that aren't those of a shard: {shortlist(f.name for f in part.files())}"
        return None


def _seal(fields: dict[str, Any]) -> str:
    """The hash of a commit's fields as they are in the file: other versions may have other fields."""
    without_seal = {name: value for name, value in fields.items() if name != "seal"}
    return xxhash.xxh3_128(msgspec.json.encode(without_seal, order="sorted")).hexdigest()


def decode_commit(data: bytes) -> Commit:
    """The commit in a `.commit.json`. Raises ValueError when it is damaged, or names files outside its folder."""
    try:
        commit = msgspec.json.decode(data, type=Commit)
    except UnicodeDecodeError as error:
        raise ValueError(str(error)) from error
    if wrong := commit.problem():
        raise ValueError(wrong)
    if commit.seal and commit.seal != _seal(msgspec.json.decode(data)):
        raise ValueError("its contents were changed")
    return commit


class Ledger:
    """The commits of one step folder of a store.

    With `snapshot` it lists the folder once and answers from that list: for reading about many shards, especially in a
    bucket. Code that makes shards uses a ledger without, which asks the store each time.
    """

    def __init__(self, store: Store, folder: str, *, snapshot: bool = False) -> None:
        self.store, self.folder = store, folder
        self._sizes = store.sizes(folder) if snapshot else None
        self._known: dict[str, Commit | None] = {}
        self._cleaned: set[str] | None = None

    def recipe(self) -> dict[str, Any] | None:
        """The recipe that the folder was made by; None when there is none or it is damaged."""
        data = self.store.read(f"{self.folder}/recipe.json")
        try:
            found = msgspec.json.decode(data) if data else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return found if isinstance(found, dict) else None

    def claim(self, recipe: dict[str, Any], again: str = "make it again with --rebuild") -> str:
        """Writes recipe.json unless it is there, and returns the recipe's fingerprint.

        Raises RecipeChanged when the folder was made by another recipe: the message lists the fields, and `again` is
        what it proposes.
        """
        old = self.recipe()
        if old is None:
            if self.commits():
                log.warning("%s/recipe.json is unreadable; commits are checked one by one", self.folder)
            self.store.write(f"{self.folder}/recipe.json", _pretty(recipe))
        elif (differ := changes(by_step(old), by_step(recipe))) and not self._has_commits():
            self.store.write(f"{self.folder}/recipe.json", _pretty(recipe))  # nothing was ever made by the old one
        elif differ:
            raise RecipeChanged(
                f"{self.store.root}/{self.folder} was made by another recipe:\n  "
                + "\n  ".join(differ)
                + f"\nUse another --root, or {again} (this removes what is there)."
            )
        return fingerprint(recipe)

    def _has_commits(self) -> bool:
        """Whether a shard or a part of one was ever committed here."""
        return any(name.endswith(".commit.json") for name in self.store.names(self.folder))

    def size(self, name: str) -> int | None:
        """Size of a file of the folder, None when it isn't there."""
        return self.store.size(f"{self.folder}/{name}") if self._sizes is None else self._sizes.get(name)

    def read(self, name: str) -> Commit | None:
        """The commit of a shard or part; None when there is none, or when it was cut short."""
        if self._sizes is None:
            return self._load_commit(name)
        if name not in self._known:
            self._known[name] = self._load_commit(name) if f"{name}.commit.json" in self._sizes else None
        return self._known[name]

    def _load_commit(self, name: str) -> Commit | None:
        data = self.store.read(f"{self.folder}/{name}.commit.json")
        if data is None:
            return None
        try:
            return decode_commit(data)
        except ValueError as error:  # msgspec's DecodeError is one
            log.warning("%s/%s.commit.json is damaged (%s): made again", self.folder, name, error)
            return None

    def write(self, name: str, commit: Commit) -> None:
        """Commits a shard or part, after removing the files that only an earlier commit of it has."""
        old = self._load_commit(name)
        if old is not None:
            kept = {file.name for part in commit.parts for file in part.files()}
            names = {part.name for part in commit.parts}
            for part in old.parts:
                if part.name not in names:
                    self.remove(part.name)
                    self.store.remove(f"{self.folder}/log/{part.name}.parquet")
                self._drop(file.name for file in part.files() if file.name not in kept)
        self.put(name, commit)

    def patch(self, old: Commit, names: dict[str, Commit]) -> None:
        """Replaces the commits of a part and of its shard, then removes the files that only `old` names."""
        for name, commit in names.items():
            self.put(name, commit)
        kept = {file.name for commit in names.values() for part in commit.parts for file in part.files()}
        self._drop(file.name for part in old.parts for file in part.files() if file.name not in kept)

    def put(self, name: str, commit: Commit) -> None:
        """Publishes a commit with its seal, and changes no other file."""
        self.store.write(f"{self.folder}/{name}.commit.json", _pretty(commit.with_seal()))

    def remove(self, name: str) -> None:
        """Removes the commit of a shard or part; its data stays."""
        self.store.remove(f"{self.folder}/{name}.commit.json")

    def discard(self, shard: str, part: str | None = None) -> None:
        """Removes a shard, or one part of it, so that it is made again. Safe to kill, and to run again, at any point.

        Files are found by their names in the folder, not by what a commit says. Of a whole shard the commits go first,
        those of parts before the shard's, since parts with a commit would be joined to the shard again. Of one part,
        whose files may be damaged, the shard's commit goes last: as long as a damaged file is there, `verify` finds it.
        The other parts keep theirs, so that only this one is made again.
        """
        ours = (f"{shard}.", f"{shard}-") if part in (None, shard) else (f"{part}.",)
        names = [name for name in self.store.names(self.folder) if name.startswith(ours)]
        commits = [name for name in names if name.endswith(".commit.json") and name != f"{shard}.commit.json"]
        files = [name for name in names if not name.endswith(".commit.json")]
        logs = [f"log/{name}" for name in self.store.names(f"{self.folder}/log") if name.startswith(ours)]
        last = [f"{shard}.commit.json"]
        self._drop([*commits, *last, *files, *logs] if part is None else [*commits, *files, *logs, *last])

    def _drop(self, names: Iterable[str]) -> None:
        for name in names:
            self.store.remove(f"{self.folder}/{name}")

    def commits(self) -> dict[int, Commit]:
        """Readable commits by shard."""
        found = {}
        for name in self.shard_names():
            if commit := self.read(name):
                found[int(name)] = commit
        return found

    def file_names(self) -> list[str]:
        """Names of the folder's files."""
        return self.store.names(self.folder) if self._sizes is None else sorted(self._sizes)

    def shard_names(self) -> list[str]:
        """Names of the shards that have a commit, readable or not."""
        return [stem for stem in self.committed_names() if "-" not in stem]

    def committed_names(self) -> list[str]:
        """Names of the shards and of the parts that have a commit, readable or not."""
        stems = (name.removesuffix(".commit.json") for name in self.file_names() if name.endswith(".commit.json"))
        return [stem for stem in stems if _PART.fullmatch(stem)]

    def file_problem(self, file: File) -> str | None:
        """What is wrong with a file of a commit; None when it has the committed bytes."""
        return bytes_problem(self.store, f"{self.folder}/{file.name}", file.size_bytes, file.xxh3)

    def cleaned_names(self) -> set[str]:
        """Names of files that `datakit clean` removed after they had served."""
        if self._cleaned is None or self._sizes is None:
            data = self.store.read(f"{self.folder}/cleaned.json")
            try:
                self._cleaned = set(msgspec.json.decode(data, type=list[str])) if data else set()
            except (msgspec.DecodeError, UnicodeDecodeError):
                log.warning("%s/cleaned.json is damaged: what was cleaned counts as lost", self.folder)
                self._cleaned = set()
        return self._cleaned

    def mark_cleaned(self, names: set[str]) -> None:
        """Adds files to those recorded as cleaned."""
        self._change_cleaned(lambda cleaned: cleaned | names)

    def unmark_cleaned(self, shards: set[str]) -> None:
        """Removes the files of some shards from those recorded as cleaned, since the shards are made again."""
        self._change_cleaned(lambda cleaned: {name for name in cleaned if shard_of(name) not in shards})

    def _change_cleaned(self, change: Callable[[set[str]], set[str]]) -> None:
        """Rewrites cleaned.json if it changes, under a lock from reading to writing."""
        if change(self.cleaned_names()) == self.cleaned_names():
            return
        with self.store.lock(f"{self.folder}/.cleaned.lock"):
            self.store.write(f"{self.folder}/cleaned.json", _pretty(sorted(change(self.cleaned_names()))))

    def state(self, name: str, recipe: str, inputs: dict[str, str], *, gone_is_fine: bool = False) -> State:
        """Whether a shard or part is done. Files that `datakit clean` removed count as there if `gone_is_fine`."""
        commit = self.read(name)
        if commit is None:
            return "missing"
        if commit.recipe != recipe or commit.inputs != inputs:
            return "stale"
        for file in (file for part in commit.parts for file in part.files()):
            size = self.size(file.name)
            cleaned = size is None and gone_is_fine and file.name in self.cleaned_names()
            if size != file.size_bytes and not cleaned:
                return "missing"
        return "done"


def bytes_problem(store: Store, name: str, size_bytes: int | None, xxh3: str) -> str | None:
    """What is wrong with a file of the root; None when it has that hash, and that size if one is given."""
    found = store.size(name)
    if found is None:
        return "the file is missing"
    if size_bytes is not None and found != size_bytes:
        return f"the file has {found:,} bytes, its commit says {size_bytes:,}"
    with store.open(name) as file:
        same = hash_of(file) == xxh3
    return None if same else "the bytes aren't those that were committed"


def _pretty(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=1) + b"\n"


def by_step(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe with the nested recipes of earlier steps side by side, so that a diff shows an added step as one."""
    found = {name: value for name, value in recipe.items() if name != "after"}
    before: list[str] = []
    while isinstance(recipe := recipe.get("after") or {}, dict) and recipe:
        before.append(str(recipe.get("step")))
        found[f"step {before[-1]}"] = {name: value for name, value in recipe.items() if name != "after"}
    if before:
        found["steps before"] = " > ".join(reversed(before))
    kept = {name: value for name, value in found.items() if not name.startswith("step ")}
    return kept | {name: value for name, value in found.items() if name.startswith("step ")}
