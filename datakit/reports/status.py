"""Status: what is done of a build, step by step, and what was dropped or went wrong; reads commits, no data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from datakit.engine.build import Build
from datakit.engine.done import Done
from datakit.storage.fingerprint import changes
from datakit.storage.shards import ranges
from datakit.web.outcomes import may_pass


@dataclass(frozen=True)
class Loss:
    """Rows that a step dropped, or pictures that it couldn't have, for one reason."""

    what: str  # "dropped" or "failed"
    reason: str
    rows: int
    share: float  # of the rows that came into the step, 0 to 1
    may_pass: bool  # whether `fetch --retry` may help


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

    def losses(self) -> list[Loss]:
        """What was lost, and why: rows that were dropped, then faults of rows that were kept, each by number."""
        came = max(1, self.rows + self.dropped.total())
        failed = Counter({reason: n for reason, n in self.faults.items() if reason not in self.dropped})
        return [Loss("dropped", reason, n, n / came, False) for reason, n in self.dropped.most_common()] + [
            Loss("failed", reason, n, n / came, self.by_url and may_pass(reason)) for reason, n in failed.most_common()
        ]

    def json_object(self) -> dict[str, Any]:
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


def status(build: Build) -> list[StepStatus]:
    """Each step of a dataset by its commits; reads no data."""
    found = []
    done = Done(build, snapshot=True)
    known = done.known_shards()
    for step in build.steps:
        step_status = StepStatus(build.folder, step.name, by_url=step.stage.by_url)
        ledger, before = done.ledger(step), build.path_to(step)[:-1]
        old = ledger.recipe()
        step_status.differs = changes(old, build.step_recipe(step)) if old is not None else []
        for shard, commit in ledger.commits().items():
            fresh = done.has(step, shard) and not any(done.stale(earlier, shard) for earlier in before)
            fresh = fresh and (not known or shard in known)
            (step_status.done if fresh else step_status.stale).append(shard)
            step_status.rows += commit.rows
            step_status.size_bytes += sum(f.size_bytes for p in commit.parts for f in p.files())
            step_status.dropped.update(commit.dropped)
            step_status.faults.update(commit.faults)
        if known:
            step_status.missing = sorted(set(known) - set(step_status.done) - set(step_status.stale))
        found.append(step_status)
    return found
