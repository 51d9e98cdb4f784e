"""Runner: walks shards through the steps of a pipeline, in a pool of processes.

For each shard and step: is it done? If not, open the upstream tables, run the stage, publish its table and
tar, and write the commit last. A shard goes through all its steps before the worker takes the next one, so
pictures are being fetched while later annotations still download. Jobs that work on one shard take turns, and take
what the other made: see datakit/claims.py.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from datakit import __version__, claims
from datakit.errors import CeilingExceeded, DatakitError, Incomplete, SourceError, UsageError
from datakit.ledger import Commit, File, Ledger, Part
from datakit.pool import pooled
from datakit.run import Run
from datakit.shards import ranges, shard_name
from datakit.stage import Out, Step, Tell, Work, batches, silent
from datakit.store import Sink
from datakit.tables import Rows, TableWriter, write_log

log = logging.getLogger(__name__)

TRIES = 3  # to make a step of a shard, if other jobs write to it
FEW = 20  # faults that a part may always have, whatever its share, but not in more than half of its rows


@dataclass(frozen=True)
class Report:
    """What a run did: shards by number, and counters over the shards it made."""

    made: list[int]
    kept: list[int]  # were done before
    rows: int
    dropped: Counter[str]
    faults: Counter[str]

    @property
    def failed(self) -> Counter[str]:
        """The faults of rows that were kept all the same."""
        return Counter({reason: n for reason, n in self.faults.items() if reason not in self.dropped})


def execute(
    run: Run,
    *,
    upto: str,
    first: str | None = None,
    shards: list[int] | None = None,
    slice_of: tuple[int, int] = (0, 1),
    jobs: int = 1,
    rebuild: bool = False,
    tell: Tell = silent,
) -> Report:
    """Makes the shards of a pipeline up to a step, and returns when all are done.

    `first` starts at a later step and takes only what the step before has done, so nothing is downloaded.
    Raises what the first failing shard raised; the others that were under way are finished and kept.
    """
    steps = run.upto(upto)
    last = len(steps) - 1
    start = len(run.upto(first)) - 1 if first else 0
    if start == 0:
        run.permit()
    if rebuild:  # what would stop it later stops it before anything is removed
        for step in steps[start:]:
            step.stage.check(run.work(step))
    run.claim(start, last, rebuild=rebuild)
    seen = run.snapshot()
    if start == 0:
        listed = seen.known_shards()
        if not listed or not all(seen.done(0, k) for k in listed):
            steps[0].stage.prepare(run.work(steps[0], tell))
        known = steps[0].stage.shards(run.work(steps[0]))
        if not known:
            raise SourceError(f"the annotations of {run.manifest.name!r} hold no rows: is upstream well?")
    else:
        known = [k for k in sorted(seen.ledger(steps[start - 1]).commits()) if seen.done(start - 1, k)]
        if not known and seen.ledger(steps[start - 1]).commits():
            raise Incomplete(
                f"what {run.manifest.name!r} was made from has changed since it went through "
                f"{steps[start - 1].name!r}: run `datakit fetch {run.manifest.name}` first"
            )
        if not known:
            raise Incomplete(
                f"nothing of {run.manifest.name!r} has gone through {steps[start - 1].name!r} yet: "
                f"run `datakit fetch {run.manifest.name}` first"
            )
    chosen = [k for k in _chosen(run, known, shards) if k % slice_of[1] == slice_of[0]]
    todo = {k: [p for p in seen.pending(last, k) if p >= start] for k in chosen}
    waiting = [k for k in chosen if todo[k]]
    for place in range(start, last + 1):
        run.ledger(steps[place]).unmark_cleaned({shard_name(k) for k in waiting if place in todo[k]})
    for place in range(max(start, 1), last + 1):
        if any(place in todo[k] for k in waiting):
            steps[place].stage.prepare(run.work(steps[place], tell))
    tell("", "shards", len(chosen))
    tell("", "done", len(chosen) - len(waiting))
    total: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    faults: Counter[str] = Counter()

    def note(made: list[Commit]) -> None:
        tell("", "done", 1)
        for commit in made:
            dropped.update(commit.dropped)
            faults.update(commit.faults)
        total["rows"] += made[-1].rows if made else 0

    tasks = [(run, k, start, last) for k in waiting]
    if jobs <= 1 or len(tasks) <= 1:
        for task in tasks:
            note(make_shard(*task, tell))
    else:
        pooled(make_shard, tasks, min(jobs, len(tasks)), tell=tell, note=note)
    if waiting and run.store.local:  # in a bucket only `datakit clean` asks for every commit once more
        seen = run.snapshot()
        for step in steps[start:]:
            claims.sweep(seen.ledger(step), waiting)
    return Report(waiting, [k for k in chosen if not todo[k]], total["rows"], dropped, faults)


def _chosen(run: Run, known: list[int], shards: list[int] | None) -> list[int]:
    if shards is None:
        return known
    unknown = sorted(set(shards) - set(known))
    if unknown:
        there = ranges(known) or "(none)"
        if len(there) > 80:
            there = f"{len(known)} shards of {known[0]} to {known[-1]}"
        raise UsageError(f"{run.manifest.name!r} has shards {there}, so there is no {ranges(unknown)}")
    return shards


def make_shard(run: Run, shard: int, start: int, last: int, tell: Tell = silent) -> list[Commit]:
    """Takes one shard through the steps it still has to go through; returns the commits that were made."""
    made: dict[int, Commit] = {}
    tries: Counter[int] = Counter()
    # Asked anew after each step: one that was lost and made again as it was leaves the next ones done.
    while todo := run.pending(last, shard):
        place = todo[0]
        if place < start:
            raise Incomplete(
                f"shard {shard} of {run.manifest.name!r} must go through {run.steps[place].name!r} again: "
                f"run `datakit fetch {run.manifest.name} --shards {shard}`"
            )
        with _alone(run, place, shard):
            if run.pending(last, shard)[:1] != [place]:
                continue  # another job has made it meanwhile
            tries[place] += 1
            if tries[place] > TRIES:
                raise DatakitError(
                    f"{run.folder}/{run.steps[place].name} shard {shard} was made and isn't done: "
                    "does another job remove or change what is in this root?"
                )
            try:
                claims.hold_to(run.ledger(run.steps[place]), run.step_recipe(run.steps[place]))
                made[place] = _make_step(run, place, shard, tell)
            except (OSError, DatakitError) as error:
                claims.hold_to(run.ledger(run.steps[place]), run.step_recipe(run.steps[place]))
                if not isinstance(error, _Changed) or tries[place] == TRIES:
                    raise
    return list(made.values())


@contextmanager
def _alone(run: Run, place: int, shard: int) -> Iterator[None]:
    """Holds a step of a shard, and keeps others from changing what it is made from."""
    with ExitStack() as claimed:
        if place:
            before = run.ledger(run.steps[place - 1])
            claimed.enter_context(claims.held(before, shard_name(shard), shared=True))
        claimed.enter_context(claims.held(run.ledger(run.steps[place]), shard_name(shard)))
        yield


class _Changed(Incomplete):
    """What a step is made from was changed while it was made."""


class _Taken(Exception):
    """Another job has committed a part while this one made it."""


def _make_step(run: Run, place: int, shard: int, tell: Tell) -> Commit:
    """Makes a step of a shard and commits it; again, if another job wrote to it at the same time, as in a bucket."""
    ledger, name = run.ledger(run.steps[place]), shard_name(shard)
    for _ in range(TRIES):
        making = _Making(run, place, shard, tell)
        whole = making.whole()
        making.commit(whole)
        lost = making.lost()
        if not lost:
            log.info("%s/%s: %d rows, dropped %s", ledger.folder, name, whole.rows, dict(whole.dropped) or "none")
            return whole
        log.warning("another job wrote %s at the same time", ", ".join(f"{ledger.folder}/{part}" for part in lost))
        for part in making.parts.keys() & lost:
            claims.settle(ledger, part)
    raise DatakitError(
        f"another job keeps writing to {ledger.folder}/{name}: let only one of them work on a shard, by --slice"
    )


class _Making:
    """One step of a shard while it is made, part by part."""

    def __init__(self, run: Run, place: int, shard: int, tell: Tell) -> None:
        self.run, self.place, self.shard, self.tell = run, place, shard, tell
        self.step = run.steps[place]
        self.ledger, self.work = run.ledger(self.step), run.work(self.step, tell)
        self.parts = self._parts()
        self._found: dict[str, Commit] = {}
        self._written: dict[str, claims.Stamps] = {}  # by part: the files that this job wrote

    def _parts(self) -> dict[str, Rows]:
        """The parts by name, and the rows that each is made from."""
        upstream = None
        if self.place:
            before = self.run.ledger(self.run.steps[self.place - 1])
            upstream = before.read(shard_name(self.shard))
            check_tables(before, upstream.parts if upstream else [])
        rows = _upstream_rows(self.run, self.place, self.shard, upstream)
        per_part = self.step.stage.rows_per_part or max(1, len(rows))
        starts = range(0, max(1, len(rows)), per_part)
        return {
            shard_name(self.shard, nth if len(starts) > 1 else None): replace(
                rows, start=at, stop=min(at + per_part, len(rows))
            )
            for nth, at in enumerate(starts)
        }

    def whole(self) -> Commit:
        """The commit of the shard. Parts that are done are kept; those that another job commits meanwhile are taken."""
        for name in self.parts:
            self._take(name)
        while todo := [name for name in self.parts if name not in self._found]:
            with self.step.stage.opened([self.parts[name] for name in todo], self.work) as source:
                for name in todo:
                    if name != todo[0] and self._take(name):
                        break  # what is opened begins anew without it
                    with suppress(_Taken):
                        self._make(name, source)
        commits = [self._found[name] for name in self.parts]
        return commits[0] if len(commits) == 1 else _joined(commits)

    def _take(self, name: str) -> bool:
        """Whether a part is done, by this job or by another."""
        if name in self._found or (commit := self.ledger.read(name)) is None:
            return name in self._found
        inputs = self.run.inputs(self.place, self.shard)
        if inputs is not None and self.ledger.state(name, self.run.recipes[self.place], inputs) == "done":
            self._found[name] = commit
            self.tell(self.step.name, "rows", commit.rows)
        return name in self._found

    def _make(self, name: str, source: Any) -> None:
        """Makes a part and commits it, unless it is the shard's only one. Raises _Taken."""

        def last_look() -> None:
            claims.hold_to(self.ledger, self.run.step_recipe(self.step))
            if self._take(name):
                raise _Taken

        before = self.run.inputs(self.place, self.shard)
        rows = self.parts[name]
        self.tell(self.step.name, "total", len(rows))
        tolerates = self.step.tolerates if self.run.tolerates is None else self.run.tolerates
        made, written = _make_part(self.step, rows, self.work, self.ledger, name, tolerates, source, last_look)
        self.tell(self.step.name, "total", made["rows"] - len(rows))  # what was dropped is done, too
        # A listing learns its file's hash while it reads it.
        inputs = self.run.inputs(self.place, self.shard, made=True)
        if inputs is None or (self.place and before is not None and before != inputs):
            raise _Changed(f"what {self.ledger.folder}/{name} was made from was changed meanwhile: run again")
        commit = Commit(recipe=self.run.recipes[self.place], inputs=inputs, made_by=maker(), **made)
        self._found[name], self._written[name] = commit, written
        if len(self.parts) > 1:
            self._commit(name, commit)

    def commit(self, whole: Commit) -> None:
        """Declares the shard done."""
        self._commit(shard_name(self.shard), whole)

    def _commit(self, name: str, commit: Commit) -> None:
        self.ledger.write(name, commit)
        self._written.setdefault(name, {}).update(claims.stamps(self.ledger, [f"{name}.commit.json"]))

    def lost(self) -> list[str]:
        """The parts of which a file isn't any more as this job wrote it, once the shard is committed."""
        return [name for name, files in self._written.items() if claims.stamps(self.ledger, files) != files]


def _upstream_rows(run: Run, place: int, shard: int, upstream: Commit | None) -> Rows:
    if upstream is None:
        return Rows(run.store, shard, (), 0, 0)
    return committed_rows(run, run.steps[place - 1], shard, upstream.parts)


def committed_rows(run: Run, step: Step, shard: int, parts: list[Part]) -> Rows:
    """The rows that parts of a shard hold after a step."""
    folder = run.ledger(step).folder
    files = tuple((f"{folder}/{part.table.name}", part.rows) for part in parts)
    return Rows(run.store, shard, files, 0, sum(part.rows for part in parts))


def check_tables(ledger: Ledger, parts: list[Part]) -> None:
    """Raises SourceError when a table that is about to be read isn't as it was committed. Tars check their pictures."""
    for part in parts:
        if wrong := ledger.wrong(part.table):
            raise SourceError(
                f"{ledger.store.root}/{ledger.folder}/{part.table.name} can't be used: {wrong}. Run "
                "`datakit verify --repair`, which says how to have it again"
            )


def _make_part(
    step: Step,
    rows: Rows,
    work: Work,
    ledger: Ledger,
    name: str,
    tolerates: float,
    source: Any,
    last_look: Callable[[], None],
) -> tuple[dict[str, Any], claims.Stamps]:
    """Runs the stage over some rows and publishes tar, then table; the commit is the caller's.

    Nothing is published if `last_look` raises, once all is made.
    """
    with ExitStack() as published:
        table = published.enter_context(work.store.publish(work.path(f"{name}.parquet")))
        tar_name = f"{ledger.folder}/{name}.tar"

        def open_tar() -> Sink:
            # Entered after the table, so left before it: the tar is there when the table is.
            return published.enter_context(work.store.publish(tar_name))

        out = Out(open_tar, tar_name, source)
        if step.stage.tars:
            _ = out.tar
        writer = TableWriter(table, step.stage.schema(rows, work.manifest))
        stream = batches(step.stage, rows, work, out)
        try:
            for batch in stream:
                writer.write(batch)
                work.tell(step.name, "rows", batch.num_rows)
        finally:
            stream.close()
        for reason, n in out.faults.items():
            work.tell(step.name, f"fault {reason}", n)
        _account(step, rows, writer.rows, out)
        _hold_ceiling(out, writer.rows, tolerates, f"{ledger.folder}/{name}", work.manifest.name)
        writer.close()
        out.close()
        last_look()
        if out.log:
            write_log(work.store, work.path(f"log/{name}.parquet"), out.log)
    files: dict[str, File] = {}
    stamps: claims.Stamps = {}
    for kind, sink in (("table", table), ("tar", out.sink)):
        if sink is not None and sink.written is not None:
            ending = "parquet" if kind == "table" else "tar"
            files[kind] = File(f"{name}.{ending}", sink.written.size_bytes, sink.written.xxh3)
            stamps[files[kind].name] = sink.stamp
    part = Part(name=name, rows=writer.rows, table=files["table"], tar=files.get("tar"))
    made = {
        "rows": writer.rows,
        "dropped": dict(sorted(out.dropped.items())),
        "faults": dict(sorted(out.faults.items())),
        "parts": [part],
    }
    return made, stamps


def _account(step: Step, came: Rows, kept: int, out: Out) -> None:
    """Raises DatakitError unless a stage has kept or counted each row that came; a listing makes its own."""
    dropped = out.dropped.total()
    if came.files and kept + dropped != len(came):
        kind = type(step.stage)
        raise DatakitError(
            f"stage {kind.__name__} of step {step.name!r} ({sys.modules[kind.__module__].__file__}) was given "
            f"{len(came)} rows, has given back {kept} and dropped {dropped}. Each row is given back once, or counted "
            "with `out.drop` or `out.reject`. Nothing of it was committed"
        )


def _hold_ceiling(out: Out, kept: int, tolerates: float, where: str, dataset: str) -> None:
    came, wrong = kept + sum(out.dropped.values()), out.bad_rows
    if wrong > max(tolerates * came, min(FEW, max(1, came // 2))):
        causes = ", ".join(f"{reason} {n}" for reason, n in out.faults.most_common(5))
        raise CeilingExceeded(
            f"{where}: {wrong} of {came} rows went wrong ({causes}), more than the {tolerates:.0%} that this "
            f"step tolerates. Nothing of it was committed. `datakit check {dataset}` shows examples; if that is how "
            f"the data is, run again with --tolerate {min(1.0, wrong / came + 0.05):.2f}"
        )


def _joined(commits: list[Commit]) -> Commit:
    dropped: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for commit in commits:
        dropped.update(commit.dropped)
        faults.update(commit.faults)
    return Commit(
        recipe=commits[0].recipe,
        inputs=commits[0].inputs,
        rows=sum(c.rows for c in commits),
        dropped=dict(sorted(dropped.items())),
        faults=dict(sorted(faults.items())),
        parts=[part for commit in commits for part in commit.parts],
        made_by=commits[0].made_by,
    )


def maker() -> str:
    return f"datakit {__version__}, pyarrow {pa.__version__}"
