"""Verify: reads every file of a root and reports those that aren't as they were made. Writes nothing; repair.py does.

Everything is found from the root alone (datakit/engine/holdings.py), whatever today's catalogue is.

    recipe.json          has the fingerprint that the commits of its folder name
    plan.json            has its own digest
    <shard>.commit.json  has its seal; those of the parts of an unfinished shard, too
    tables and tars      have the hashes that their commits say
    packed pictures      have the sha256 that their records say, unless they were written anew
    downloads            have the sha256 that was taken when they came
    what is made of them an archive's index, a JSON that was taken out: have the hash that was taken then
    mixes                name tars by the hashes of their commits
"""

from __future__ import annotations

import hashlib
import logging
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq

from datakit.engine.holdings import MANIFEST, Holding, holdings
from datakit.engine.work import Progress
from datakit.errors import MixError, SourceError
from datakit.records.record import decode
from datakit.storage import claims, sealed
from datakit.storage.fingerprint import fingerprint
from datakit.storage.ledger import File, Ledger, Part
from datakit.storage.shards import shard_of
from datakit.storage.store import Store
from datakit.stream import mixfile as mix
from datakit.web import derived
from datakit.web.sidecars import read_sidecar

PLAN, CHOICES = "plan.json", "choices.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Broken:
    """A file that isn't as it was made."""

    where: str  # below the root
    what: str
    cures: tuple[str, ...] = ()  # commands that make it again once it was repaired, in order
    made: StepOutput | None = None  # for what a step made

    @property
    def download(self) -> str | None:
        """Its name below the downloads folder, None for anything else."""
        return self.where.removeprefix("downloads/") if self.where.startswith("downloads/") else None


@dataclass(frozen=True)
class StepOutput:
    """What a step has made: a shard, a part of a shard, or, without `shard`, a file of the whole step."""

    folder: str
    step: str
    shard: str | None = None
    part: str | None = None


@dataclass(frozen=True)
class Findings:
    """How many files of a root are whole, and which are broken."""

    whole: int  # files
    broken: list[Broken]

    def cures(self, *, repaired: bool, root: str | None = None) -> list[str]:
        """The commands that mend what is broken, in the order to run them in; `root` is typed with each.

        What isn't `repaired` yet has to be forgotten first, but for mixes, which are only written anew.
        """
        forget = not repaired and any(not file.where.startswith("mixes/") for file in self.broken)
        known = dict.fromkeys(cure for file in self.broken for cure in file.cures)
        ordered = sorted(known, key=lambda cure: not cure.startswith("datakit fetch"))
        every = ["datakit verify --repair"] * forget + ordered
        return [f"{cure} --root {shlex.quote(root)}" for cure in every] if root else every

    def json_object(self) -> dict[str, Any]:
        broken = [{"file": file.where, "problem": file.what, "cure": " && ".join(file.cures)} for file in self.broken]
        return {"whole": self.whole, "broken": broken}


def findings(store: Store, name: str | None = None, *, progress: Progress | None = None) -> Findings:
    """Reads the files of a root, or of one dataset; returns how many are whole, and what is wrong with the others."""
    whole, broken = 0, []
    for result in verify(store, name):
        if isinstance(result, Broken):
            broken.append(result)
        else:
            whole += 1
        if progress is not None:
            progress.rows("verify", 1)
    return Findings(whole, broken)


def verify(store: Store, name: str | None = None) -> Iterator[str | Broken]:
    """Reads the files of a root, or of one dataset; yields the name of each that is whole, else what is wrong with it.

    Mixes are looked at when all of the root is. Writes nothing.
    """
    every, commands = holdings(store), _mix_commands(store)
    ours = [holding for holding in every if name in (None, holding.folder, holding.dataset)]
    for holding in ours:
        cures = cures_of(holding, commands)
        yield from _verify_notes(holding, cures)
        for step in holding.before:
            yield from _verify_step(holding, step, cures)
    users = _holdings_by_input(every)
    for path, sha256 in _downloads(store):
        found = users.get(sha256 or "", [])
        if sha256 is None and name is None:
            where = f"downloads/{path.relative_to(store.downloads).as_posix()}"
            yield Broken(
                where, "its .download.json can't be read", tuple({c: 0 for o in every for c in cures_of(o, {})})
            )
        elif sha256 is not None and (name is None or any(holding in ours for holding in found)):
            cures = tuple({cure: None for holding in found for cure in cures_of(holding, commands)})
            yield from _verify_download(store, path, sha256, cures)
    if name is None:
        for mixed in store.names("mixes"):
            yield _verify_mix(store, mixed)


def _verify_notes(holding: Holding, cures: tuple[str, ...]) -> Iterator[str | Broken]:
    """Reads the files beside the steps: the manifest, and what was chosen."""
    for name in (MANIFEST, CHOICES):
        where = f"{holding.folder}/{name}"
        if (data := holding.store.read(where)) is not None:
            try:
                good = isinstance(msgspec.json.decode(data), dict)
            except (msgspec.DecodeError, UnicodeDecodeError):
                good = False
            again = "" if name == MANIFEST else "; give the next command its --recipe and --without again"
            yield where if good else Broken(where, f"it can't be read{again}", cures, StepOutput(holding.folder, ""))


def _verify_step(holding: Holding, step: str, cures: tuple[str, ...]) -> Iterator[str | Broken]:
    ledger = holding.ledger(step)
    names = ledger.committed_names()
    read = {name: ledger.read(name) for name in names}
    commits = {name: commit for name, commit in read.items() if commit is not None}
    recipe = ledger.recipe()
    where = f"{ledger.folder}/recipe.json"
    if commits and (recipe is None or fingerprint(recipe) not in {commit.recipe for commit in commits.values()}):
        yield Broken(where, "it isn't the recipe that its folder was made by", cures, StepOutput(holding.folder, step))
    elif recipe is not None:
        yield where
    if (data := holding.store.read(f"{ledger.folder}/{PLAN}")) is not None:
        where = f"{ledger.folder}/{PLAN}"
        yield (
            where
            if sealed.is_whole(data)
            else Broken(where, "the plan is damaged", cures, StepOutput(holding.folder, step))
        )
    cleaned = ledger.cleaned_names()
    for name in names:
        shard = shard_of(name)
        if (commit := commits.get(name)) is None:
            where = f"{ledger.folder}/{name}.commit.json"
            if holding.store.size(where) is None:
                continue  # removed meanwhile
            part = name if "-" in name else None
            yield Broken(where, "the commit is damaged", cures, StepOutput(holding.folder, step, shard, part))
        elif name == shard or shard not in commits:  # the parts of a finished shard are in its commit
            for part_of in commit.parts:
                yield from _verify_part(holding, step, shard, part_of, cleaned, cures)


def _verify_part(
    holding: Holding, step: str, shard: str, part: Part, cleaned: set[str], cures: tuple[str, ...]
) -> Iterator[str | Broken]:
    """The files of a part, and when they are whole the pictures in its tar."""
    ledger, whole = holding.ledger(step), True
    for file in part.files():
        where = f"{ledger.folder}/{file.name}"
        if file.name in cleaned and holding.store.size(where) is None:
            whole = False
            continue
        if ledger.file_problem(file) and (wrong := _still_wrong(ledger, shard, part.name, file)):
            whole = False
            yield Broken(where, wrong, cures, StepOutput(holding.folder, step, shard, part.name))
        else:
            yield where
    if whole and part.tar is not None and (wrong := _wrong_pictures(holding.store, ledger.folder, part)):
        where = f"{ledger.folder}/{part.tar.name}"
        yield Broken(where, wrong, cures, StepOutput(holding.folder, step, shard, part.name))


def _still_wrong(ledger: Ledger, shard: str, part: str, file: File) -> str | None:
    """What is wrong with a committed file, looked at once more while no other job works on its shard."""
    with claims.shard_lock(ledger, shard, wait=False) as ours:
        commit = ledger.read(shard) or ledger.read(part)
        if not ours or commit is None or file not in (f for committed in commit.parts for f in committed.files()):
            log.warning("%s/%s isn't checked: another job works on it", ledger.folder, file.name)
            return None
        return None if file.name in ledger.cleaned_names() else ledger.file_problem(file)


def _wrong_pictures(store: Store, folder: str, part: Part) -> str | None:
    """What differs between the records of a packed tar and the pictures beside them; None for other tars, too."""
    assert part.tar is not None  # the caller has looked
    with store.open(f"{folder}/{part.table.name}") as raw:
        table = pq.ParquetFile(raw)
        if "json_offset" not in table.schema_arrow.names:
            return None
        wrong: list[str] = []
        with store.open(f"{folder}/{part.tar.name}") as tar:
            for batch in table.iter_batches(512, columns=["key", "json_offset", "json_bytes", "images"]):
                wrong += [row["key"] for row in batch.to_pylist() if not _record_agrees(tar, row)]
    more = f" and {len(wrong) - 1} others" if len(wrong) > 1 else ""
    return f"the pictures of {wrong[0]}{more} aren't those that their records say" if wrong else None


def _record_agrees(tar: Any, row: dict[str, Any]) -> bool:
    """Whether a packed record is its row's, with pictures that have the sha256 that it says."""
    try:
        record = decode(_read_at(tar, row["json_offset"], row["json_bytes"]))
    except SourceError:
        return False
    if record.key != row["key"] or len(record.images) != len(row["images"]):
        return False
    return all(
        about.get("changed")
        or hashlib.sha256(_read_at(tar, place["offset"], place["size_bytes"])).hexdigest() == sha256
        for about, place in zip(record.images, row["images"], strict=True)
        if (sha256 := about.get("sha256")) is not None
    )


def _read_at(file: Any, offset: int, size: int) -> bytes:
    file.seek(offset)
    return bytes(file.read(size))


def cures_of(holding: Holding, commands: dict[str, list[str]]) -> tuple[str, ...]:
    """The commands that make what a dataset lacks, and what is made of it; `commands` are those of mixes.

    What is there isn't fetched again; what `pack` reads may have been cleaned away.
    """
    fetch = f"datakit fetch {holding.options}"
    if "pack" not in holding.before:
        return (fetch,)
    return (fetch, *commands.get(holding.folder, [f"datakit build-mix {holding.options}"]))


def _mix_commands(store: Store) -> dict[str, list[str]]:
    """The commands that make the mixes again, by the folders of the datasets in them."""
    found: dict[str, list[str]] = {}
    for name in store.names("mixes"):
        limit = name.partition("@limit-")[2]
        terms, command = mix.terms_and_command(store.read(f"mixes/{name}/mix.json") or b"", name)
        for dataset, _ in terms:
            found.setdefault(f"{dataset}@limit-{limit}" if limit else dataset, []).append(command)
    return found


def _mix_path(store: Store, name: str) -> str:
    return f"{store.root if '://' in store.root else store.path('')}/mixes/{name}/mix.json"


def _holdings_by_input(every: Iterable[Holding]) -> dict[str, list[Holding]]:
    """The datasets by the hashes of what their shards were made from, such as the sha256 of a download."""
    found: dict[str, list[Holding]] = {}
    for holding in every:
        commits = (commit for step in holding.before for commit in holding.commits(step).values())
        for digest in {digest for commit in commits for digest in commit.inputs.values()}:
            found.setdefault(digest, []).append(holding)
    return found


def _downloads(store: Store) -> Iterator[tuple[Path, str | None]]:
    """The downloads that are there with the sha256 taken when they came; None where the sidecar can't be read."""
    for sidecar in sorted(store.downloads.rglob("*.download.json")):
        path = sidecar.with_name(sidecar.name.removesuffix(".download.json"))
        said = read_sidecar(path)
        if path.is_file():
            yield path, said["sha256"] if said is not None else None


def _verify_download(store: Store, path: Path, sha256: str, cures: tuple[str, ...]) -> Iterator[str | Broken]:
    """Reads a download and what was made of it."""
    with path.open("rb") as file:
        same = hashlib.file_digest(file, "sha256").hexdigest() == sha256
    where = f"downloads/{path.relative_to(store.downloads).as_posix()}"
    wrong = "the file that it links to was edited since" if path.is_symlink() else "the bytes aren't those that came"
    yield where if same else Broken(where, wrong, cures)
    for made in filter(derived.has_declaration, derived.derived_files(path)):
        where = f"downloads/{made.relative_to(store.downloads).as_posix()}"
        damage = derived.damage(made)
        yield Broken(where, damage, cures) if damage else where


def _verify_mix(store: Store, name: str) -> str | Broken:
    """A mix, which must name packed tars as their commits have them."""
    where = f"mixes/{name}/mix.json"
    cure = (mix.terms_and_command(store.read(where) or b"", name)[1],)
    try:
        found, base = mix.read(_mix_path(store, name))
        if found.name != name:
            return Broken(where, f"it says that its name is {found.name!r}", cure)
        mix.check(found, base)
    except MixError as error:
        return Broken(where, str(error), cure)
    for part in found.parts:
        for shard in part.shards:
            for file, size in ((shard.tar, shard.size_bytes), (shard.index, None)):
                there = store.size(mix.locate(f"mixes/{name}", file))
                if there is None or (size is not None and there != size):
                    return Broken(where, f"{file} isn't there, or isn't the one that the mix was made from", cure)
    return where
