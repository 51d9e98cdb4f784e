"""Plan: what running a recipe takes, before anything is downloaded, and everything that would stop it on the way.

1. `phases` lists the datasets of each phase of a paper's training, and what replaces a lost one.
2. `obstacles` lists what a person has to do first: accept terms, bring an archive, name a fallback.
3. `make` asks upstream for the size of each file and reckons with stated rates. It never fails because upstream
   doesn't answer: such a size is reported as unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import MISSING, dataclass, fields
from typing import Any

from datakit import catalogue
from datakit.catalogue import manifest
from datakit.engine import pipeline
from datakit.engine.build import Build
from datakit.engine.done import Done
from datakit.engine.stage import Cost, Step
from datakit.engine.work import intact
from datakit.errors import DatakitError, DownloadError, Incomplete, UsageError, nearest
from datakit.storage.fingerprint import changes, json_value
from datakit.storage.ledger import by_step
from datakit.storage.store import free_bytes
from datakit.stream import mixfile as mix
from datakit.web import downloads
from datakit.web.hosts import Hosts

DOWNLOAD_BYTES_PER_S = 50e6  # not measured: a line of 400 Mbit/s
RATES = (
    f"downloads at {DOWNLOAD_BYTES_PER_S / 1e6:.0f} MB/s (an assumption); URLs at the rates of benchmarks/RESULTS.md on"
    " these cores, all of them alive (`datakit doctor NAME` measures the share that is, and the time)"
)
MANY = 1000  # files of one dataset, beyond which its manifest is asked for their size, not upstream
ASKED_AT_ONCE = 16
ASK_S = 60.0  # seconds; the size of a file that upstream hasn't answered for by then is unknown


@dataclass(frozen=True, kw_only=True)
class PlannedDataset:
    """One dataset of a plan. Bytes and rows are None where they aren't known."""

    name: str
    title: str
    licence: str
    accept: str  # terms that a person must accept
    licences: dict[str, str]  # of its sources of pictures
    stands_for: str  # the lost dataset in whose place it is, or ""
    steps: list[dict[str, Any]]
    n_files: int | None
    size_bytes: int | None  # of the files whose size is known
    unknown_files: int
    to_come: dict[str, int]  # files that have to be downloaded, and their bytes
    more_bytes: int  # that have to be downloaded of files that weren't asked about one by one
    here_bytes: int
    rows: int | None  # by the authors' word
    chosen_rows: int | None  # that the recipe's choices leave, at the most
    urls: int | None  # to crawl; 0 when pictures don't come by URL
    url_s: float  # to crawl all of them
    made_bytes: int  # that the steps write, at the most
    streamed: bool  # what is downloaded isn't kept
    shards_done: int
    shards: int | None
    problems: list[str]

    @property
    def to_download(self) -> int:
        return self.more_bytes + sum(self.to_come.values())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `datakit run RECIPE --dry-run` prints."""

    recipe: str
    mixes: dict[str, str]
    datasets: list[PlannedDataset]
    obstacles: list[str]
    free_bytes: int

    @property
    def to_download(self) -> int:
        """Bytes; an archive that several datasets share counts once."""
        files = {address: n for dataset in self.datasets for address, n in dataset.to_come.items()}
        return sum(files.values()) + sum(dataset.more_bytes for dataset in self.datasets)

    @property
    def disk_bytes(self) -> int:
        passing = sum(dataset.more_bytes for dataset in self.datasets if dataset.streamed)
        return self.to_download - passing + sum(dataset.made_bytes for dataset in self.datasets)

    @property
    def seconds(self) -> float:
        return self.to_download / DOWNLOAD_BYTES_PER_S + sum(dataset.url_s for dataset in self.datasets)

    @property
    def incomplete(self) -> list[str]:
        """Datasets of which something isn't known, so that the sums are too small."""
        return [
            dataset.name
            for dataset in self.datasets
            if dataset.unknown_files or dataset.size_bytes is None or dataset.urls is None
        ]

    def json_object(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe,
            "mixes": self.mixes,
            "datasets": [json_value(dataset) for dataset in self.datasets],
            "obstacles": self.obstacles,
            "bytes_to_download": self.to_download,
            "disk_bytes": self.disk_bytes,
            "free_bytes": self.free_bytes,
            "seconds": round(self.seconds),
            "rates": RATES,
            "not_in_the_sums": self.incomplete,
        }


Terms = dict[str, list[tuple[str, int]]]


def phases(recipe: str, *, only: str | None = None, fallback: bool = False) -> tuple[Terms, dict[str, str]]:
    """The datasets of each phase of training with their repeats; and by the name of a stand-in the lost dataset.

    Raises UsageError for a phase that the recipe doesn't have.
    """
    mixes = pipeline.mixes(recipe)
    if only is not None and only not in mixes:
        raise UsageError(f"recipe {recipe!r} has no phase {only!r}. {nearest(only, mixes)}")
    found: Terms = {}
    stand_ins: dict[str, str] = {}
    for phase, expression in mixes.items():
        if only not in (None, phase):
            continue
        times: dict[str, int] = {}
        for name, n in mix.parse(expression, catalogue.names("manifests")):
            about = manifest.load(name)
            taken = about.fallback if about.lost and fallback and about.fallback else name
            if taken != name:
                stand_ins[taken] = name
            times[taken] = times.get(taken, 0) + n
        found[phase] = list(times.items())
    return found, stand_ins


def expression(terms: list[tuple[str, int]]) -> str:
    """Terms as the expression that `datakit build-mix` takes."""
    return "+".join(name if times == 1 else f"{name}:{times}" for name, times in terms)


def shards_of(build: Build, wanted: list[int] | None) -> list[int] | None:
    """Those of the wanted shards that a dataset has, if upstream has a file for each; else None, which is all.

    Raises UsageError when it has none of them.
    """
    rows = build.manifest.annotations
    if wanted is None or rows.shards is None:
        return None
    numbers = set(rows.numbers())
    found = [shard for shard in wanted if shard in numbers]
    if not found:
        raise UsageError(f"{build.manifest.name!r} has none of these shards; its numbers run from 0 to {max(numbers)}")
    return found


def without_by_dataset(
    recipe: str, datasets: Iterable[str], without: tuple[str, ...] | None
) -> dict[str, tuple[str, ...] | None]:
    """For each dataset of a recipe, its own sources among those to do without; None for each when `without` is None.

    Raises UsageError for a source that none of the datasets has.
    """
    sources = {dataset: manifest.load(dataset).images.sources for dataset in dict.fromkeys(datasets)}
    if without is None:
        return dict.fromkeys(sources)
    every = {source for names in sources.values() for source in names}
    if unknown := set(without) - every:
        raise UsageError(f"no dataset of {recipe!r} has a source {min(unknown)!r}. {nearest(min(unknown), every)}")
    return {dataset: tuple(source for source in without if source in names) for dataset, names in sources.items()}


def require_no_obstacles(recipe: str, builds: Iterable[Build], *, rebuild: bool = False) -> None:
    """Raises Incomplete, listing everything that would stop a run of these datasets."""
    if found := obstacles(builds, rebuild=rebuild):
        lines = [obstacle.replace("\n", "\n    ") for obstacle in found]
        raise Incomplete("\n  - ".join([f"recipe {recipe!r} can't be run yet, and nothing was downloaded:", *lines]))


def obstacles(builds: Iterable[Build], *, rebuild: bool = False) -> list[str]:
    """What would stop a run of these datasets, each with what to do about it; looks at this machine only."""
    found = []
    for build in builds:
        about = build.manifest
        if about.lost:
            cure = (
                f"--fallback takes {about.fallback!r} in its place"
                if about.fallback
                else "No other dataset replaces it"
            )
            found.append(f"{about.name!r} can't be had any more: {about.lost.rstrip('.')}. {cure}")
            continue
        if build.terms:
            found.append(
                f"{about.name!r} has terms: {build.terms}. See {about.homepage}; --accept-licence accepts them"
            )
        if not _is_packed(build):
            found += _missing_by_hand(build)
        if not rebuild and (differs := _first_difference(build)):
            found.append(f"{build.folder} was made by another recipe ({differs}). Take another --root, or --rebuild")
    return found


def _missing_by_hand(build: Build) -> Iterator[str]:
    """What a person has to bring before the steps can run, as each step says it."""
    for step in build.steps:
        try:
            step.stage.check(build.work(step))
        except DownloadError as error:
            yield str(error)


def _is_packed(build: Build) -> bool:
    """Whether all of a dataset is packed, so that its archives may be gone."""
    done, pack = Done(build, snapshot=True), build.step_of("pack")
    known = done.known_shards()
    return bool(known) and all(done.has(pack, shard) for shard in known)


def _first_difference(build: Build) -> str:
    """The first field in which the recipe of what is in the root differs from this one; empty when none does."""
    for step in build.steps:
        old = build.ledger(step).recipe()
        if old is not None and (lines := changes(by_step(old), by_step(build.step_recipe(step)))):
            return f"{step.name}: {max(lines, key=lambda line: line.startswith('steps before'))}"
    return ""


def make(
    recipe: str,
    terms: Terms,
    builds: dict[str, Build],
    *,
    stand_ins: dict[str, str],
    wanted: list[int] | None = None,
    jobs: int = 1,
    rebuild: bool = False,
) -> Plan:
    """The plan of a recipe for these datasets."""
    planned = [
        _plan_dataset(build, stand_ins.get(name, ""), shards_of(build, wanted), jobs) for name, build in builds.items()
    ]
    return Plan(
        recipe=recipe,
        mixes={phase: expression(some) for phase, some in terms.items()},
        datasets=planned,
        obstacles=obstacles(builds.values(), rebuild=rebuild),
        free_bytes=free_bytes(next(iter(builds.values())).store.downloads),
    )


def _plan_dataset(build: Build, stands_for: str, shards: list[int] | None, jobs: int) -> PlannedDataset:
    about, pack = build.manifest, build.step_of("pack")
    done = Done(build, snapshot=True)
    known = shards if shards is not None else done.known_shards()
    ours = set(known)
    packed = [k for k in done.ledger(pack).commits() if (not ours or k in ours) and done.has(pack, k)]
    left = 1.0 - len(packed) / len(known) if known else 1.0
    part = 1.0 if shards is None else len(shards) / len(about.annotations.numbers())
    n_files, size, to_come, more, unknown = _files_to_download(build, shards, part, left)
    rows = about.count("rows")
    rows = None if rows is None else round(rows * part)
    chosen, cost = _expected_rows_and_cost(build, rows, size or 0, jobs)
    return PlannedDataset(
        name=about.name,
        title=about.title,
        licence=about.licence,
        accept=about.accept,
        licences={name: source.licence for name, source in about.images.sources.items() if source.licence},
        stands_for=stands_for,
        steps=[_step_summary(step) for step in build.steps],
        n_files=n_files,
        size_bytes=size,
        unknown_files=unknown,
        to_come=to_come,
        more_bytes=more,
        here_bytes=max(0, (size or 0) - more - sum(to_come.values())),
        rows=rows,
        chosen_rows=chosen,
        urls=None if cost.urls is None else round(cost.urls * left),
        url_s=cost.seconds * left,
        made_bytes=round(cost.written_bytes * left),
        streamed=build.steps[0].stage.streams,
        shards_done=len(packed),
        shards=len(known) or None,
        problems=about.problems,
    )


def _expected_rows_and_cost(build: Build, rows: int | None, size_bytes: float, jobs: int) -> tuple[int | None, Cost]:
    """The rows that the choices of a recipe leave, at the most, and what all its steps cost."""
    urls: int | None = 0
    seconds = written_bytes = 0.0
    for step in build.steps:
        cost = step.stage.costs(rows, size_bytes, jobs, build.manifest)
        urls = None if urls is None or cost.urls is None else urls + cost.urls
        seconds += cost.seconds
        written_bytes += cost.written_bytes
        left = step.stage.expects(rows)
        if cost.passed_bytes is not None:
            size_bytes = cost.passed_bytes
        elif rows and left is not None:
            size_bytes *= left / rows
        rows = left
    return rows, Cost(urls=urls, seconds=seconds, written_bytes=written_bytes)


def _step_summary(step: Step) -> dict[str, Any]:
    chosen = {f.name: json_value(getattr(step.stage, f.name)) for f in fields(step.stage)}
    usual = {f.name: json_value(f.default) for f in fields(step.stage) if f.default is not MISSING}
    told = {name: value for name, value in chosen.items() if name not in usual or value != usual[name]}
    return {"step": step.name, "stage": type(step.stage).__name__, **told}


def _files_to_download(
    build: Build, shards: list[int] | None, part: float, left: float
) -> tuple[int | None, int | None, dict[str, int], int, int]:
    """What a dataset has to download, as five values.

    The number of all its files; the bytes of those whose size is known; the bytes of each file still to be downloaded,
    by address; the bytes of those among them that weren't asked about one by one; the number of files of unknown size.
    """
    about = build.manifest
    work = build.work(build.steps[0])
    if about.lost:
        return None, None, {}, 0, 0
    rows = [about.address(about.file_of(k)) for k in shards] if shards is not None else _annotation_addresses(build)
    sources = {n: s for n, s in about.images.sources.items() if n not in build.choices.without}
    archives = [about.at_commit(a) for source in sources.values() for a in source.archives()]
    brought = {about.at_commit(a) for source in sources.values() if source.obtain for a in source.archives()}
    n_files = None if rows is None else len({*rows, *archives})
    size = more = 0
    if rows is None or len(rows) > MANY:
        listed = about.count("bytes")
        if listed is None:
            return n_files, None, {}, 0, 0
        size, more, rows = round(listed * part), round(listed * part * left), []
    addresses = list(dict.fromkeys([*rows, *archives]))
    here = {a: work.local(a).stat().st_size for a in addresses if intact(work.local(a))}
    asked = sizes([a for a in addresses if a not in here and a not in brought], build.hosts)
    to_come = {address: n for address, n in asked.items() if n is not None}
    unknown = len(addresses) - len(here) - len(to_come)
    return n_files, size + sum(here.values()) + sum(to_come.values()), to_come, more, unknown


def _annotation_addresses(build: Build) -> list[str] | None:
    """The addresses of all annotation files; None when only the repository knows them."""
    about = build.manifest
    return None if about.annotations.glob else [about.address(file) for file in about.shard_files()]


def sizes(addresses: list[str], hosts: Hosts) -> dict[str, int | None]:
    """The size in bytes of each file as upstream states it; None where it doesn't, or can't be reached."""
    pool = ThreadPoolExecutor(ASKED_AT_ONCE)
    asked = {address: pool.submit(downloads.head, address, hosts=hosts) for address in addresses}
    done, _ = wait(asked.values(), timeout=ASK_S)
    pool.shutdown(wait=False, cancel_futures=True)
    found: dict[str, int | None] = {}
    for address, future in asked.items():
        error = future.exception() if future in done else None
        if error is not None and not isinstance(error, DatakitError):
            raise error
        found[address] = future.result().size_bytes if future in done and error is None else None
    return found
