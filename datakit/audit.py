"""Looking after a root: what is there (status), whether it is whole (verify), what can go (clean)."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import xxhash

from datakit import catalogue, claims, manifest, mix, pipeline
from datakit.annotations import INSIDE, file_of, near_by
from datakit.errors import ManifestError, MixError, UsageError
from datakit.fingerprint import changes
from datakit.ledger import File, Ledger
from datakit.run import Choices, Run, choices, choose, folder_of
from datakit.shards import ranges, shard_name
from datakit.stage import Step, known_file
from datakit.stages.extract import Extract
from datakit.stages.fetch import ENGINES, Engine, Fetch
from datakit.stages.locate import Locate, known_sources
from datakit.store import Store, sweep
from datakit.web import downloads
from datakit.web.hosts import Hosts

log = logging.getLogger(__name__)

_TRIAL = re.compile(r"([a-z0-9_.-]+)@limit-(\d+)")


def open_run(
    store: Store,
    name: str,
    *,
    recipe: str | None = None,
    limit: int | None = None,
    engine: Engine | None = None,
    without: tuple[str, ...] | None = None,
    accept: bool = False,
    **rest: Any,
) -> Run:
    """The run of a dataset under the recipe that was chosen for it before, else its own; or another.

    Pictures that were fetched by another engine stay that engine's, unless `engine` names one; sources that were
    done without stay left out, unless `without` says otherwise; terms that were accepted stay so. Raises UsageError.
    """
    about = manifest.load(name)
    known_sources(about, without or ())
    before = choices(store, folder_of(name, limit))
    chosen = recipe or before.recipe or about.recipe
    run = Run(
        store=store,
        manifest=about,
        recipe=chosen,
        steps=pipeline.steps(chosen, about),
        limit=limit,
        choices=Choices(
            recipe="" if chosen == about.recipe else chosen,
            without=before.without if without is None else tuple(sorted(set(without))),
            repairs=before.repairs,
            accepted=about.accept if accept else before.accepted,
        ),
        before=before,
        **rest,
    )
    return replace(run, steps=tuple(_as_chosen(run, step, engine) for step in run.steps))


def _as_chosen(run: Run, step: Step, engine: Engine | None) -> Step:
    stage = step.stage
    mends = "extension" in run.choices.repairs
    if isinstance(stage, Extract):
        return replace(step, stage=replace(stage, any_extension=mends))
    if isinstance(stage, Locate):
        return replace(step, stage=replace(stage, without=run.choices.without, any_extension=mends))
    if not isinstance(stage, Fetch):
        return step
    recorded = (run.ledger(step).recipe() or {}).get("engine")
    known = next((one for one in ENGINES if one == recorded), stage.engine)
    return replace(step, stage=replace(stage, engine=engine or known))


def note(run: Run, **chosen: Any) -> None:
    """Adds to what is chosen for a dataset, as it is written down by now."""
    choose(run.store, run.folder, **chosen)


def runs(store: Store, name: str | None = None, *, strict: bool = False) -> Iterator[Run]:
    """A run for each dataset of the catalogue that the root holds, trials too.

    One whose manifest or recipe can't be read is passed over with a warning, or raises what is wrong if `strict`.
    """
    known = set(catalogue.names("manifests"))
    for folder in store.names(""):
        trial = _TRIAL.fullmatch(folder)
        dataset = trial[1] if trial else folder
        if dataset.partition(".")[0] in known and name in (None, dataset, folder):
            try:
                run = open_run(store, dataset, limit=int(trial[2]) if trial else None, hosts=Hosts())
            except (UsageError, ManifestError) as error:
                if strict:
                    raise
                log.warning("%s is passed over: %s", folder, error)
                continue
            yield run


@dataclass
class StepStatus:
    """One step of one dataset: shards by state, rows, and what was dropped or went wrong, by reason."""

    dataset: str
    step: str
    done: list[int] = field(default_factory=list)
    stale: list[int] = field(default_factory=list)
    missing: list[int] | None = None  # None: how many there are isn't known yet
    rows: int = 0
    size_bytes: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    by_url: bool = False  # so that `fetch --retry` may help
    differs: list[str] = field(default_factory=list)  # fields in which the folder's recipe isn't today's

    def plain(self) -> dict[str, Any]:
        missing = None if self.missing is None else ranges(self.missing)
        return {
            "dataset": self.dataset,
            "step": self.step,
            "done": ranges(self.done),
            "stale": ranges(self.stale),
            "missing": missing,
            "rows": self.rows,
            "bytes": self.size_bytes,
            "dropped": dict(self.dropped),
            "faults": dict(self.faults),
            "recipe_differs": self.differs,
        }


def status(run: Run) -> list[StepStatus]:
    """Each step of a dataset by its commits; reads no data."""
    found = []
    run = run.snapshot()
    known = run.known_shards()
    for place, step in enumerate(run.steps):
        one = StepStatus(run.folder, step.name, by_url=isinstance(step.stage, Fetch))
        ledger = run.ledger(step)
        old = ledger.recipe()
        one.differs = changes(old, run.step_recipe(step)) if old is not None else []
        for shard, commit in ledger.commits().items():
            fresh = run.done(place, shard) and not any(run.stale(p, shard) for p in range(place))
            fresh = fresh and (not known or shard in known)
            (one.done if fresh else one.stale).append(shard)
            one.rows += commit.rows
            one.size_bytes += sum(f.size_bytes for p in commit.parts for f in p.files())
            one.dropped.update(commit.dropped)
            one.faults.update(commit.faults)
        if known:
            one.missing = sorted(set(known) - set(one.done) - set(one.stale))
        found.append(one)
    return found


@dataclass(frozen=True)
class Broken:
    """A file that isn't what its commit or mix says."""

    where: str
    what: str
    cure: str
    step: str = ""
    shard: int | None = None
    part: str | None = None


def verify(run: Run) -> Iterator[str | Broken]:
    """Reads every committed file; yields its name when whole, else what is wrong with it."""
    for step in run.steps:
        ledger = run.ledger(step)
        cleaned = ledger.cleaned()
        cure = f"datakit fetch {run.manifest.name}" if step.name != "pack" else f"datakit build-mix {run.manifest.name}"
        for shard in ledger.shard_names():
            commit = ledger.read(shard)
            if commit is None:
                if run.store.size(f"{ledger.folder}/{shard}.commit.json") is None:
                    continue  # removed meanwhile
                yield Broken(
                    f"{ledger.folder}/{shard}.commit.json", "the commit is damaged", cure, step.name, int(shard)
                )
                continue
            for part, file in ((p.name, f) for p in commit.parts for f in p.files()):
                where = f"{ledger.folder}/{file.name}"
                if file.name in cleaned and run.store.size(where) is None:
                    continue
                wrong = _wrong(run.store, where, file.size_bytes, file.xxh3)
                wrong = wrong and _still_wrong(ledger, shard, file)
                yield Broken(where, wrong, cure, step.name, int(shard), part) if wrong else where


def _still_wrong(ledger: Ledger, shard: str, file: File) -> str | None:
    """What is wrong with a committed file, looked at once more while no other job works on its shard."""
    with claims.held(ledger, shard, wait=False) as ours:
        commit = ledger.read(shard)
        if not ours or commit is None or file not in (f for part in commit.parts for f in part.files()):
            log.warning("%s/%s isn't checked: another job works on it", ledger.folder, file.name)
            return None
        if file.name in ledger.cleaned():
            return None
        return _wrong(ledger.store, f"{ledger.folder}/{file.name}", file.size_bytes, file.xxh3)


def verify_downloads(run: Run) -> Iterator[str | Broken]:
    """Compares what a dataset downloaded with the hash that was taken when it came."""
    cure = f"datakit fetch {run.manifest.name}"
    for name in sorted(_downloads(run)):
        path = run.store.downloads / name
        said = known_file(path)
        if said is None or not path.is_file():
            continue
        with path.open("rb") as file:
            same = _digest(file, hashlib.sha256()) == said["sha256"]
        if not same:
            yield Broken(f"downloads/{name}", "the bytes aren't those that were downloaded", cure)
        else:
            yield f"downloads/{name}"


def _wrong(store: Store, name: str, size: int, xxh3: str) -> str | None:
    found = store.size(name)
    if found is None:
        return "the file is missing"
    if found != size:
        return f"the file has {found:,} bytes, its commit says {size:,}"
    with store.open(name) as file:
        same = _digest(file, xxhash.xxh3_128()) == xxh3
    return None if same else "the bytes aren't those that were committed"


def _digest(file: Any, digest: Any) -> str:
    while block := file.read(1 << 20):
        digest.update(block)
    return str(digest.hexdigest())


def verify_mixes(store: Store) -> Iterator[str | Broken]:
    """Checks that every mix names tars that are there and are those it was made from."""
    for name in store.names("mixes"):
        where = f"mixes/{name}/mix.json"
        cure = f"datakit build-mix {name}"
        try:
            found, _ = mix.read(f"{store.root if '://' in store.root else store.path('')}/{where}")
        except MixError as error:
            yield Broken(where, str(error), cure)
            continue
        wrong = None
        for part in found.parts:
            for shard in part.shards:
                tar = mix.locate(f"mixes/{name}", shard.tar)
                if store.size(tar) != shard.size_bytes:
                    wrong = f"{tar} isn't there, or isn't the one that the mix was made from"
        yield Broken(where, wrong, cure) if wrong else where


def repair(run: Run, broken: list[Broken]) -> list[str]:
    """Removes the commits and files of broken parts, so that the next run makes these again. Returns their names."""
    names = []
    for one in broken:
        if one.where.startswith("downloads/"):
            path = run.store.downloads / one.where.removeprefix("downloads/")
            for left in (path.with_name(f"{path.name}.download.json"), *downloads.made_of(path), path):
                left.unlink(missing_ok=True)
            names.append(one.where)
            for step in run.steps:  # what was made of its bytes can't be trusted either
                if step is run.steps[-1] or step.stage.reads_annotations:
                    for shard in run.ledger(step).commits():
                        with claims.held(run.ledger(step), shard_name(shard)):
                            run.ledger(step).discard(shard_name(shard))
        if one.shard is None or not one.where.startswith(f"{run.folder}/"):
            continue
        step = next(s for s in run.steps if s.name == one.step)
        with claims.held(run.ledger(step), shard_name(one.shard)):
            run.ledger(step).discard(shard_name(one.shard), one.part)
        names.append(f"{run.folder}/{step.name}/{one.part or shard_name(one.shard)}")
    return sorted(set(names))


@dataclass(frozen=True)
class Superfluous:
    """A file that a later step has made superfluous."""

    name: str  # below the root, or downloads/…
    size_bytes: int


def superfluous(run: Run, others: list[Run]) -> list[Superfluous]:
    """What can go: tables and tars whose next step is done, and downloads that nothing needs any more.

    `others` are the root's other datasets: an archive stays while one of them still has to be packed from it.
    """
    found = []
    run = run.snapshot()
    for place, step in enumerate(run.steps[:-1]):
        ledger = run.ledger(step)
        for shard, commit in ledger.commits().items():
            if run.done(place + 1, shard) and not run.stale(place + 1, shard):
                for file in (f for part in commit.parts for f in part.files()):
                    size = ledger.size(file.name)
                    if size is not None:
                        found.append(Superfluous(f"{ledger.folder}/{file.name}", size))
    kept = {path for other in others for path in _still_needed(other)} | _still_needed(run)
    for path in sorted(_downloads(run) - kept):
        local = run.store.downloads / path
        if local.is_file():
            found.append(Superfluous(f"downloads/{path}", local.stat().st_size))
    return found


def _downloads(run: Run) -> set[str]:
    """The files that a dataset downloads, and what was taken out of them, below the downloads folder."""
    found = {_below(run, address) for address in run.manifest.addresses().values()}
    work, rows = run.work(run.steps[0]), run.manifest.annotations
    if rows.inside:
        ending = f"{INSIDE}{Path(rows.inside).suffix}"
        taken = [f"{_below(run, run.manifest.address(file))}{ending}" for file in run.manifest.shard_files()]
        found |= {*taken, *(f"{name}.of" for name in taken)}
    if rows.beside:
        near = {name for file in run.manifest.shard_files() for name in near_by(work, file)}
        found |= {_below(run, run.manifest.address(name)) for name in near}
    return found


def _below(run: Run, address: str) -> str:
    return run.work(run.steps[0]).local(address).relative_to(run.store.downloads).as_posix()


def _still_needed(run: Run) -> set[str]:
    """Those downloads that a step which isn't done yet is made from."""
    run = run.snapshot()
    known = run.known_shards()
    if not known:
        return _downloads(run)
    needed: set[str] = set()
    last, fetch = len(run.steps) - 1, run.steps[-2].stage
    for shard in known:
        # Pictures that stand in the rows are read again by fetch.
        if not run.done(0, shard) or (fetch.reads_annotations and not run.done(last - 1, shard)):
            work = run.work(run.steps[0])
            file = file_of(work, shard)
            needed |= {_below(run, run.manifest.address(name)) for name in (file, *near_by(work, file))}
    if not all(run.done(last, shard) for shard in known):
        for source in run.manifest.images.sources.values():
            needed |= {_below(run, archive) for archive in source.archives()}
    if run.manifest.annotations.inside:
        needed |= {one for one in _downloads(run) if one.rpartition(INSIDE)[0] in needed}
    return needed


def clean(run: Run, files: list[Superfluous]) -> list[Superfluous]:
    """Removes superfluous files, and what killed jobs left; the ledger remembers them first, so that they don't count
    as lost. What another job works on stays. Returns what it removed.
    """
    run.store.sweep(run.folder)
    sweep(run.store.downloads, below=True)
    removed, seen = [], run.snapshot()
    for place, step in enumerate(run.steps):
        ledger = run.ledger(step)
        claims.sweep(seen.ledger(step))
        ours = [f for f in files if f.name.startswith(f"{ledger.folder}/")]
        names = {f.name.removeprefix(f"{ledger.folder}/"): f for f in ours}
        if names:
            ledger.mark_cleaned(set(names))
        for shard, some in groupby(sorted(names), lambda name: re.split(r"[-.]", name, maxsplit=1)[0]):
            with claims.held(ledger, shard, wait=False) as held:
                if held and run.done(place + 1, int(shard)) and not run.stale(place + 1, int(shard)):
                    for name in some:
                        run.store.remove(names[name].name)
                        removed.append(names[name])
    for file in files:
        if file.name.startswith("downloads/"):
            (run.store.downloads / file.name.removeprefix("downloads/")).unlink(missing_ok=True)
            removed.append(file)
    return removed
