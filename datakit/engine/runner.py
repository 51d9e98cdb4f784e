"""Runner: takes the shards of a build through its steps, in one process or in many.

For each shard and step that isn't done it opens the tables of the step before, runs the stage, publishes the stage's
table and tar, and writes the commit last. A shard goes through all its steps before the next one begins, so pictures
are fetched while later annotations still download.

The unit of work is a part of a shard. While there are shards enough, each goes to one process, which makes all its
parts; for the last shards, the parts of a step are divided among the processes that would be idle. The bytes are the
same, for a part doesn't depend on who makes the others. Jobs that work on one shard take turns, and each takes over
what the other committed: see datakit/storage/claims.py.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from datakit.engine.build import Build
from datakit.engine.done import Done
from datakit.engine.making import TRIES, Changed, ShardStep
from datakit.engine.pool import Call, run_calls
from datakit.engine.stage import Step
from datakit.engine.work import Progress
from datakit.errors import DatakitError, Incomplete, SourceError, UsageError
from datakit.storage import claims
from datakit.storage.ledger import Commit
from datakit.storage.shards import ranges, shard_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What a run did: shards by number, and counters over the shards it made."""

    made: list[int]
    kept: list[int]  # those that were done before
    rows: int
    dropped: Counter[str]
    faults: Counter[str]

    @property
    def failed(self) -> Counter[str]:
        """The faults of rows that were kept all the same."""
        return Counter({reason: n for reason, n in self.faults.items() if reason not in self.dropped})


def execute(
    build: Build,
    *,
    upto: Step,
    first: Step | None = None,
    shards: list[int] | None = None,
    slice_of: tuple[int, int] = (0, 1),
    jobs: int = 1,
    rebuild: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Makes the shards of a build up to a step, and returns when all are done.

    With `first` it starts at a later step, on shards that have gone through the step before; nothing is downloaded.
    Raises what the first failing shard raised; the others that were under way are finished and kept.
    """
    progress = progress or Progress()
    path = build.path_to(upto)
    start = path.index(first) if first else 0
    steps, before = path[start:], path[start - 1] if start else None
    if before is None:
        build.permit()
    if rebuild:  # what would stop `prepare` stops it here, before anything is removed
        for step in steps:
            step.stage.check(build.work(step))
    build.claim(steps, path, rebuild=rebuild)
    done = Done(build, snapshot=True)
    known = _listed_shards(build, done, progress) if before is None else _committed_shards(build, done, before)
    chosen = [k for k in _chosen_shards(build, known, shards) if k % slice_of[1] == slice_of[0]]
    todo = {k: [step for step in done.pending_steps(upto, k) if step in steps] for k in chosen}
    waiting = [k for k in chosen if todo[k]]
    for step in steps:
        ours = {shard_name(k) for k in waiting if step in todo[k]}
        build.ledger(step).unmark_cleaned(ours)
        if ours and step is not path[0]:
            step.stage.prepare(build.work(step, progress))
    progress.shards(len(chosen))
    progress.shards_done(len(chosen) - len(waiting))
    making = _Making(build, steps, jobs, progress)
    making.make_all(waiting)
    if waiting and build.store.local:  # in a bucket only `datakit clean` asks for every commit once more
        done = Done(build, snapshot=True)
        for step in steps:
            claims.sweep(done.ledger(step), waiting)
    kept = [k for k in chosen if not todo[k]]
    return Report(waiting, kept, making.rows, making.dropped, making.faults)


def _listed_shards(build: Build, done: Done, progress: Progress) -> list[int]:
    """The shards that the dataset has; plans the listing if it isn't done."""
    first = build.steps[0]
    listed = done.known_shards()
    if not listed or not all(done.has(first, k) for k in listed):
        first.stage.prepare(build.work(first, progress))
    known = first.stage.shards(build.work(first))
    if not known:
        raise SourceError(
            f"the annotations of {build.manifest.name!r} hold no rows: see whether upstream's files are empty"
        )
    return known


def _committed_shards(build: Build, done: Done, before: Step) -> list[int]:
    """The shards that have gone through a step."""
    commits, name = done.ledger(before).commits(), build.manifest.name
    known = [k for k in sorted(commits) if done.has(before, k)]
    if not known and commits:
        raise Incomplete(
            f"what {name!r} was made from has changed since it went through {before.name!r}: "
            f"run `datakit fetch {name}` first"
        )
    if not known:
        raise Incomplete(f"nothing of {name!r} has gone through {before.name!r} yet: run `datakit fetch {name}` first")
    return known


def _chosen_shards(build: Build, known: list[int], shards: list[int] | None) -> list[int]:
    if shards is None:
        return known
    unknown = sorted(set(shards) - set(known))
    if unknown:
        there = ranges(known) or "(none)"
        if len(there) > 80:
            there = f"{len(known)} shards of {known[0]} to {known[-1]}"
        raise UsageError(f"{build.manifest.name!r} has shards {there}, so there is no {ranges(unknown)}")
    return shards


class Walked(NamedTuple):
    """How far a shard has come: its new commits, and the parts that processes may share; none when it is done."""

    shard: int
    made: list[Commit]
    step: str = ""
    parts: Sequence[str] = ()  # of this step, that aren't done


class PartsMade(NamedTuple):
    """Parts that are done now, and the stamps of the files that a process wrote for each of them."""

    shard: int
    written: dict[str, claims.Stamps]  # by part


@dataclass
class _Shard:
    """A shard that is being made."""

    groups: int = 0  # of parts that are being made by processes
    written: dict[str, claims.Stamps] = field(default_factory=dict)
    divided: Counter[str] = field(default_factory=Counter)  # how often each step was
    made: list[Commit] = field(default_factory=list)


class _Making:
    """Takes shards through the steps, and counts the rows, drops and faults of those that are done."""

    def __init__(self, build: Build, steps: tuple[Step, ...], jobs: int, progress: Progress) -> None:
        self.build, self.steps, self.jobs, self.progress = build, steps, jobs, progress
        self.rows, self.dropped, self.faults = 0, Counter[str](), Counter[str]()
        self._begun: dict[int, _Shard] = {}
        self._waiting = deque[int]()

    def make_all(self, shards: Iterable[int]) -> None:
        """Makes shards; in this process while there is no work for a second one."""
        self._waiting.extend(shards)
        if self.jobs > 1 and len(self._waiting) > 1:
            run_calls(self._walk_calls(), self.jobs, progress=self.progress, then=self._next_calls)
            return
        for call in self._walk_calls():
            following = [call]
            while following:
                if len(following) > 1:
                    run_calls(following, self.jobs, progress=self.progress, then=self._next_calls)
                    break
                function, arguments = following.pop()
                following = self._next_calls(function(*arguments, self.progress))

    def _walk_calls(self) -> Iterator[Call]:
        while self._waiting:
            shard = self._waiting.popleft()
            self._begun[shard] = _Shard()
            yield self._walk_call(shard, {})

    def _walk_call(self, shard: int, written: dict[str, claims.Stamps]) -> Call:
        # Whole shards need the least coordination, so none is divided while every process has one.
        divide = self.jobs > 1 and len(self._waiting) < self.jobs
        names = tuple(step.name for step in self.steps)
        return Call(walk, (self.build, shard, names[0], names[-1], divide, written))

    def _next_calls(self, result: Walked | PartsMade) -> list[Call]:
        shard = self._begun[result.shard]
        if isinstance(result, PartsMade):
            shard.written |= result.written
            shard.groups -= 1
            return [self._walk_call(result.shard, shard.written)] if shard.groups == 0 else []
        shard.made += result.made
        shard.written = {}
        if not result.parts:
            del self._begun[result.shard]
            self._add_to_report(shard.made)
            return []
        shard.divided[result.step] += 1
        if shard.divided[result.step] > TRIES:
            raise _never_done_error(self.build, result.step, result.shard)
        groups = _split_parts(result.parts, -(-self.jobs // len(self._begun)))
        shard.groups = len(groups)
        return [Call(make_parts, (self.build, result.step, result.shard, group)) for group in groups]

    def _add_to_report(self, made: list[Commit]) -> None:
        self.progress.shards_done(1)
        for commit in made:
            self.dropped.update(commit.dropped)
            self.faults.update(commit.faults)
        self.rows += made[-1].rows if made else 0


def _split_parts(parts: Sequence[str], n: int) -> list[Sequence[str]]:
    """Parts in up to `n` runs of about equal length."""
    n = min(n, len(parts))
    ends = [len(parts) * nth // n for nth in range(n + 1)]
    return [parts[begin:end] for begin, end in pairwise(ends)]


def _never_done_error(build: Build, step: str, shard: int) -> DatakitError:
    return DatakitError(
        f"{build.folder}/{step} shard {shard} was made and isn't done: "
        "does another job remove or change what is in this root?"
    )


def walk(
    build: Build,
    shard: int,
    first: str,
    last: str,
    divide: bool,
    written: dict[str, claims.Stamps],
    progress: Progress,
) -> Walked:
    """Takes one shard through those of its steps `first` to `last` that aren't done.

    With `divide` it stops before a step that has several parts to make. `written` has the files of that step's parts
    that other processes made since.
    """
    made: dict[str, Commit] = {}
    tries: Counter[str] = Counter()
    done = Done(build)
    steps = build.path_to(build.step(last))
    ours = steps[steps.index(build.step(first)) :]
    # Asked again after each step: a lost step that is made again with the same bytes leaves the later ones done.
    while todo := done.pending_steps(steps[-1], shard):
        step = todo[0]
        if step not in ours:
            raise Incomplete(
                f"shard {shard} of {build.manifest.name!r} must go through {step.name!r} again: "
                f"run `datakit fetch {build.manifest.name} --shards {shard}`"
            )
        with _hold_step(build, step, shard):
            if done.pending_steps(steps[-1], shard)[:1] != (step,):
                continue  # another job has made it meanwhile
            tries[step.name] += 1
            if tries[step.name] > TRIES:
                raise _never_done_error(build, step.name, shard)
            try:
                claims.check_recipe(build.ledger(step), build.step_recipe(step))
                making = ShardStep(done, step, shard, progress, written)
                if divide and len(left := making.undone_parts()) > 1:
                    return Walked(shard, list(made.values()), step.name, left)
                made[step.name] = making.commit()
                written = {}
            except (OSError, DatakitError) as error:
                claims.check_recipe(build.ledger(step), build.step_recipe(step))
                if not isinstance(error, Changed) or tries[step.name] == TRIES:
                    raise
    return Walked(shard, list(made.values()))


def make_parts(build: Build, step_name: str, shard: int, names: Sequence[str], progress: Progress) -> PartsMade:
    """Makes some parts of a step of a shard and commits each of them; the shard's own commit is `walk`'s."""
    step = build.step(step_name)
    done = Done(build)
    with _hold_step(build, step, shard, shared=True):
        claims.check_recipe(build.ledger(step), build.step_recipe(step))
        making = ShardStep(done, step, shard, progress, {})
        making.make_parts(names, alone=False)
        return PartsMade(shard, {name: making.written.get(name, {}) for name in names})


@contextmanager
def _hold_step(build: Build, step: Step, shard: int, *, shared: bool = False) -> Iterator[None]:
    """Claims a step of a shard, alone or shared, and keeps others from changing its inputs."""
    with ExitStack() as claimed:
        before = build.step_before(step)
        if before is not None:
            claimed.enter_context(claims.shard_lock(build.ledger(before), shard_name(shard), shared=True))
        claimed.enter_context(claims.shard_lock(build.ledger(step), shard_name(shard), shared=shared))
        yield
