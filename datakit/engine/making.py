"""Making: one step of a shard, part by part: its tables and tars, and the commits that declare them done."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Collection
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import pyarrow as pa

from datakit import __version__
from datakit.engine.build import Build
from datakit.engine.done import Done
from datakit.engine.partfiles import PartFiles, part_files
from datakit.engine.stage import Step, checked_batches
from datakit.engine.work import Out, Progress
from datakit.errors import CeilingExceeded, DatakitError, Incomplete, SourceError
from datakit.records.tables import Rows
from datakit.storage import claims
from datakit.storage.ledger import Commit, Ledger, Part
from datakit.storage.shards import shard_name

log = logging.getLogger(__name__)

TRIES = 3  # to make a step of a shard, if other jobs write to it
FEW = 20  # faulty rows that a part may always have, whatever `tolerates` says, up to half of its rows


class Changed(Incomplete):
    """An input of a step was changed while the step was made."""


class _MadeElsewhere(Exception):
    """Another job has committed the part that this one was making."""


class ShardStep:
    """One step of a shard while it is made, part by part."""

    def __init__(
        self, done: Done, step: Step, shard: int, progress: Progress, written: dict[str, claims.Stamps]
    ) -> None:
        self.done, self.build, self.step, self.shard = done, done.build, step, shard
        self.progress = progress
        self.ledger, self.work = self.build.ledger(step), self.build.work(step, progress)
        self.written = dict(written)  # by part: the files that this job wrote
        self._commits: dict[str, Commit] = {}
        self.parts = self._parts()
        self._counted = set(self.parts if written else ())  # parts whose rows were reported

    def _parts(self) -> dict[str, Rows]:
        """The parts by name, and the rows that each is made from."""
        before = self.build.step_before(self.step)
        if before is None:
            return {shard_name(self.shard): Rows(self.build.store, self.shard, (), 0, 0)}
        ledger = self.build.ledger(before)
        upstream = ledger.read(shard_name(self.shard))
        parts = upstream.parts if upstream else []
        check_tables(ledger, parts)
        if self.step.stage.keeps_parts:
            return {part.name: committed_rows(self.build, before, self.shard, [part]) for part in parts}
        rows = committed_rows(self.build, before, self.shard, parts)
        per_part = self.step.stage.rows_per_part or max(1, len(rows))
        starts = range(0, max(1, len(rows)), per_part)
        return {
            shard_name(self.shard, nth if len(starts) > 1 else None): replace(
                rows, start=at, stop=min(at + per_part, len(rows))
            )
            for nth, at in enumerate(starts)
        }

    def undone_parts(self) -> list[str]:
        """The parts that aren't done."""
        return [name for name in self.parts if not self._is_done(name)]

    def commit(self) -> Commit:
        """Makes the parts that aren't done, and commits the shard; again, if another job wrote to it meanwhile."""
        name = shard_name(self.shard)
        for _ in range(TRIES):
            self.make_parts(list(self.parts), alone=True)
            commits = [self._commits[part] for part in self.parts]
            whole = commits[0] if list(self.parts) == [name] else _join_commits(commits)
            self._write_commit(name, whole)
            lost = [part for part, files in self.written.items() if claims.stamps(self.ledger, files) != files]
            if not lost:
                log.info(
                    "%s/%s: %d rows, dropped %s", self.ledger.folder, name, whole.rows, dict(whole.dropped) or "none"
                )
                return whole
            where = ", ".join(f"{self.ledger.folder}/{part}" for part in lost)
            log.warning("another job wrote %s at the same time", where)
            for part in self.parts.keys() & lost:
                claims.withdraw_unless_whole(self.ledger, part)
            self._commits, self.written = {}, {}
        raise DatakitError(
            f"another job keeps writing to {self.ledger.folder}/{name}: let only one of them work on a shard, "
            "by --slice"
        )

    def make_parts(self, names: Collection[str], *, alone: bool) -> None:
        """Makes and commits those of some parts that aren't done, and that no other job commits meanwhile.

        With `alone` this process already holds the shard; else it holds each part while it makes it.
        """
        while todo := [name for name in names if not self._is_done(name)]:
            with self.step.stage.shared_source([self.parts[name] for name in todo], self.work) as source:
                for name in todo:
                    with ExitStack() as claimed:
                        if not alone:
                            claimed.enter_context(claims.shard_lock(self.ledger, name))
                        if (name != todo[0] or not alone) and self._is_done(name):
                            break  # what is opened begins anew without it
                        with suppress(_MadeElsewhere):
                            self._make_part(name, source)

    def _is_done(self, name: str) -> bool:
        """Whether a part is done, by this job or by another."""
        if name in self._commits or (commit := self.ledger.read(name)) is None:
            return name in self._commits
        inputs = self.done.inputs(self.step, self.shard)
        recipe = self.build.fingerprints[self.step.name]
        if inputs is not None and self.ledger.state(name, recipe, inputs) == "done":
            self._commits[name] = commit
            if name not in self._counted:
                self._counted.add(name)
                self.progress.rows(self.step.name, commit.rows)
        return name in self._commits

    def _make_part(self, name: str, source: Any) -> None:
        """Makes a part and commits it, unless it is the shard's only one. Raises _MadeElsewhere."""

        def check_still_ours() -> None:
            claims.check_recipe(self.ledger, self.build.step_recipe(self.step))
            if self._is_done(name):
                raise _MadeElsewhere

        before = self.done.inputs(self.step, self.shard)
        rows = self.parts[name]
        self.progress.rows_to_come(self.step.name, len(rows))
        tolerates = self.step.tolerates if self.build.tolerates is None else self.build.tolerates
        schema = self.step.stage.schema(rows, self.build.manifest)
        with part_files(self.work, name, schema, source=source) as files:
            self._write_rows(files, rows)
            _check_rows_accounted(self.step, rows, files.rows, files.out)
            where = f"{self.ledger.folder}/{name}"
            _check_ceiling(files.out, files.rows, tolerates, where, self.build.manifest.name)
            check_still_ours()
        self.progress.rows_to_come(self.step.name, files.rows - len(rows))  # what was dropped is done, too
        # A listing learns its file's hash while it reads it.
        inputs = self.done.inputs(self.step, self.shard, made=True)
        first = self.build.step_before(self.step) is None
        if inputs is None or (not first and before is not None and before != inputs):
            raise Changed(f"what {self.ledger.folder}/{name} was made from was changed meanwhile: run again")
        commit = Commit(
            recipe=self.build.fingerprints[self.step.name],
            inputs=inputs,
            rows=files.rows,
            dropped=dict(sorted(files.out.dropped.items())),
            faults=dict(sorted(files.out.faults.items())),
            parts=[Part(name=name, rows=files.rows, table=files.table, tar=files.tar)],
            made_by=maker(),
        )
        self._commits[name], self.written[name] = commit, files.stamps
        self._counted.add(name)
        if list(self.parts) != [shard_name(self.shard)]:
            self._write_commit(name, commit)

    def _write_rows(self, files: PartFiles, rows: Rows) -> None:
        """Runs the stage over some rows."""
        out = files.out
        if self.step.stage.tars:
            _ = out.tar
        stream = checked_batches(self.step.stage, rows, self.work, out)
        try:
            for batch in stream:
                files.write(batch)
                self.progress.rows(self.step.name, batch.num_rows)
        finally:
            stream.close()
        for reason, n in out.faults.items():
            self.progress.faults(self.step.name, reason, n)

    def _write_commit(self, name: str, commit: Commit) -> None:
        self.ledger.write(name, commit)
        self.written.setdefault(name, {}).update(claims.stamps(self.ledger, [f"{name}.commit.json"]))


def committed_rows(build: Build, step: Step, shard: int, parts: list[Part]) -> Rows:
    """The rows that parts of a shard hold after a step."""
    folder = build.ledger(step).folder
    files = tuple((f"{folder}/{part.table.name}", part.rows) for part in parts)
    return Rows(build.store, shard, files, 0, sum(part.rows for part in parts))


def check_tables(ledger: Ledger, parts: list[Part]) -> None:
    """Raises SourceError when a table that is about to be read isn't as it was committed. Tars check their pictures."""
    for part in parts:
        if wrong := ledger.file_problem(part.table):
            raise SourceError(
                f"{ledger.store.root}/{ledger.folder}/{part.table.name} can't be used: {wrong}. Run "
                "`datakit verify --repair`, which says how to have it again"
            )


def _check_rows_accounted(step: Step, came: Rows, kept: int, out: Out) -> None:
    """Raises DatakitError unless a stage has kept or counted each row that it was given; a listing is given none."""
    dropped = out.dropped.total()
    if came.files and kept + dropped != len(came):
        kind = type(step.stage)
        raise DatakitError(
            f"stage {kind.__name__} of step {step.name!r} ({sys.modules[kind.__module__].__file__}) was given "
            f"{len(came)} rows, has given back {kept} and dropped {dropped}. Each row is given back once, or counted "
            "with `out.drop` or `out.reject`. Nothing of it was committed"
        )


def _check_ceiling(out: Out, kept: int, tolerates: float, where: str, dataset: str) -> None:
    came, wrong = kept + sum(out.dropped.values()), out.bad_rows
    if wrong > max(tolerates * came, min(FEW, max(1, came // 2))):
        causes = ", ".join(f"{reason} {n}" for reason, n in out.faults.most_common(5))
        raise CeilingExceeded(
            f"{where}: {wrong} of {came} rows went wrong ({causes}), more than the {tolerates:.0%} that this "
            f"step tolerates. Nothing of it was committed. `datakit check {dataset}` shows examples; if that is how "
            f"the data is, run again with --tolerate {min(1.0, wrong / came + 0.05):.2f}"
        )


def _join_commits(commits: list[Commit]) -> Commit:
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
    """The versions that a commit is made by."""
    return f"datakit {__version__}, pyarrow {pa.__version__}"
