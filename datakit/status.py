"""Status: what is done of a build, step by step, and what was dropped or went wrong; reads commits, no data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from datakit.build import Build
from datakit.done import Done
from datakit.fingerprint import changes
from datakit.shards import ranges


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


def status(build: Build) -> list[StepStatus]:
    """Each step of a dataset by its commits; reads no data."""
    found = []
    done = Done(build, snapshot=True)
    known = done.known_shards()
    for step in build.steps:
        one = StepStatus(build.folder, step.name, by_url=step.stage.by_url)
        ledger, before = done.ledger(step), build.path_to(step)[:-1]
        old = ledger.recipe()
        one.differs = changes(old, build.step_recipe(step)) if old is not None else []
        for shard, commit in ledger.commits().items():
            fresh = done.has(step, shard) and not any(done.stale(earlier, shard) for earlier in before)
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
