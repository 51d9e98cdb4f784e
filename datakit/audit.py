"""Audit: the runs of a root's datasets, as each was chosen, and what is done of them (status)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from datakit import catalogue, manifest, pipeline
from datakit.errors import ManifestError, UsageError
from datakit.fingerprint import changes
from datakit.holdings import holdings
from datakit.manifest import Manifest
from datakit.run import Choices, Run, choices, choose, folder_of
from datakit.shards import ranges
from datakit.stage import Step
from datakit.stages.extract import Extract
from datakit.stages.fetch import ENGINES, Engine, Fetch
from datakit.stages.locate import Locate, known_sources
from datakit.store import Store
from datakit.web.hosts import Hosts
from datakit.web.outcomes import may_pass

log = logging.getLogger(__name__)


def open_run(
    store: Store,
    name: str,
    *,
    recipe: str | None = None,
    limit: int | None = None,
    engine: Engine | None = None,
    without: tuple[str, ...] | None = None,
    accept: bool = False,
    about: Manifest | None = None,
    **rest: Any,
) -> Run:
    """The run of a dataset under the recipe that was chosen for it before, else its own; or another.

    Pictures that were fetched by another engine stay that engine's, unless `engine` names one; sources that were
    done without stay left out, unless `without` says otherwise; terms that were accepted stay so. `about` is the
    manifest, if not the catalogue's. Raises UsageError.
    """
    about = about or manifest.load(name)
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


def runs(store: Store, name: str | None = None) -> Iterator[Run]:
    """A run for each dataset that the root holds, trials too.

    One that isn't in the catalogue goes by the manifest that the root keeps. One whose manifest or recipe can't be read
    is passed over with a warning.
    """
    known = set(catalogue.names("manifests"))
    for one in holdings(store):
        if name in (None, one.dataset, one.folder):
            about = None if one.dataset.partition(".")[0] in known else one.manifest()
            try:
                yield open_run(store, one.dataset, limit=one.limit, about=about, hosts=Hosts())
            except (UsageError, ManifestError) as error:
                log.warning("%s is passed over: %s", one.folder, error)


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
