"""Runner: walks shards through the steps of a pipeline, in a pool of processes.

For each shard and step: is it done? If not, open the upstream tables, run the stage, publish its table and
tar, and write the commit last. A shard goes through all its steps before the worker takes the next one, so
pictures are being fetched while later annotations still download.
"""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from datakit import __version__
from datakit.errors import CeilingExceeded, DatakitError, Incomplete, SourceError, UsageError
from datakit.ledger import Commit, File, Ledger, Part
from datakit.pool import pooled
from datakit.run import Run
from datakit.shards import ranges, shard_name
from datakit.stage import Out, Step, Tell, Work, batches, silent
from datakit.store import Sink
from datakit.tables import Rows, TableWriter, write_log

log = logging.getLogger(__name__)

FEW = 20  # faults that a part may always have, whatever its share, but not in more than half of its rows


@dataclass(frozen=True)
class Report:
    """What a run did: shards by number, and counters over the shards it made."""

    made: list[int]
    kept: list[int]  # were done before
    rows: int
    dropped: Counter[str]
    faults: Counter[str]


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
    # Asked anew after each step: one that was lost and made again as it was leaves the next ones done.
    while todo := run.pending(last, shard):
        place = todo[0]
        if place < start:
            raise Incomplete(
                f"shard {shard} of {run.manifest.name!r} must go through {run.steps[place].name!r} again: "
                f"run `datakit fetch {run.manifest.name} --shards {shard}`"
            )
        if place in made:
            raise DatakitError(
                f"{run.folder}/{run.steps[place].name} shard {shard} was made and isn't done: "
                "does another job remove or change what is in this root?"
            )
        made[place] = _make_step(run, place, shard, tell)
    return list(made.values())


def _make_step(run: Run, place: int, shard: int, tell: Tell) -> Commit:
    step = run.steps[place]
    ledger, work = run.ledger(step), run.work(step, tell)
    recipe = run.recipes[place]
    upstream = run.ledger(run.steps[place - 1]).read(shard_name(shard)) if place else None
    rows = _upstream_rows(run, place, shard, upstream)
    tolerates = step.tolerates if run.tolerates is None else run.tolerates
    per_part = step.stage.rows_per_part or max(1, len(rows))
    n_parts = max(1, -(-len(rows) // per_part))
    spans = [
        replace(rows, start=at, stop=min(at + per_part, len(rows))) for at in range(0, max(1, len(rows)), per_part)
    ]
    names = [shard_name(shard, part if n_parts > 1 else None) for part in range(n_parts)]
    inputs = run.inputs(place, shard)
    finished: dict[str, Commit] = {}
    if n_parts > 1 and inputs:
        finished = {
            name: commit
            for name in names
            if ledger.state(name, recipe, inputs) == "done" and (commit := ledger.read(name)) is not None
        }
    todo = [span for name, span in zip(names, spans, strict=True) if name not in finished]
    commits = []
    with step.stage.opened(todo, work) as source:
        for name, span in zip(names, spans, strict=True):
            if name in finished:
                commits.append(finished[name])
                tell(step.name, "rows", finished[name].rows)
                continue
            tell(step.name, "total", len(span))
            made = _make_part(step, span, work, ledger, name, tolerates, source)
            tell(step.name, "total", made["rows"] - len(span))  # what was dropped is done, too
            before, inputs = inputs, run.inputs(place, shard)  # a listing learns its file's hash while it reads it
            if inputs is None or (place and before is not None and before != inputs):
                raise Incomplete(f"what {ledger.folder}/{name} was made from was changed meanwhile: run again")
            commits.append(Commit(recipe=recipe, inputs=inputs, made_by=maker(), **made))
            if n_parts > 1:
                ledger.write(name, commits[-1])
    whole = commits[0] if n_parts == 1 else _joined(commits)
    ledger.write(shard_name(shard), whole)
    log.info(
        "%s/%s: %d rows, dropped %s",
        ledger.folder,
        shard_name(shard),
        whole.rows,
        dict(whole.dropped) or "none",
    )
    return whole


def _upstream_rows(run: Run, place: int, shard: int, upstream: Commit | None) -> Rows:
    if upstream is None:
        return Rows(run.store, shard, (), 0, 0)
    return committed_rows(run, run.steps[place - 1], shard, upstream.parts)


def committed_rows(run: Run, step: Step, shard: int, parts: list[Part]) -> Rows:
    """The rows that parts of a shard hold after a step."""
    folder = run.ledger(step).folder
    files = tuple((f"{folder}/{part.table.name}", part.rows) for part in parts)
    return Rows(run.store, shard, files, 0, sum(part.rows for part in parts))


def _make_part(
    step: Step, rows: Rows, work: Work, ledger: Ledger, name: str, tolerates: float, source: Any
) -> dict[str, Any]:
    """Runs the stage over some rows and publishes tar, then table; the commit is the caller's."""
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
        _hold_ceiling(out, writer.rows, tolerates, f"{ledger.folder}/{name}", work.manifest.name)
        writer.close()
        out.close()
        if out.log:
            write_log(work.store, work.path(f"log/{name}.parquet"), out.log)
    files: dict[str, Any] = {}
    for kind, sink in (("table", table), ("tar", out.sink)):
        if sink is not None and sink.written is not None:
            ending = "parquet" if kind == "table" else "tar"
            files[kind] = File(f"{name}.{ending}", sink.written.size_bytes, sink.written.xxh3)
    part = Part(name=name, rows=writer.rows, **files)
    return {
        "rows": writer.rows,
        "dropped": dict(sorted(out.dropped.items())),
        "faults": dict(sorted(out.faults.items())),
        "parts": [part],
    }


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
