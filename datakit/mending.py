"""Mending: a check of a dataset that also turns its repairs on or off, for it and all that is made from then on."""

from __future__ import annotations

from dataclasses import dataclass

from datakit import audit
from datakit.checks import Report, check
from datakit.run import Run
from datakit.stage import Tell, silent

MENDED = "extension"  # the one finding that can be mended without guessing


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What a check found, and what became of its repairs."""

    report: Report  # as things are from now on
    mended: int | None  # rows that are kept from now on; None when no repair was turned on
    needs_rebuild: bool  # whether the dataset was fetched without the repairs

    @property
    def turned_on(self) -> bool:
        return self.mended is not None


def check_and_mend(
    run: Run,
    *,
    repair: bool | None = None,
    full: bool = False,
    shards: list[int] | None = None,
    tell: Tell = silent,
) -> Checked:
    """Checks a dataset; `repair` turns on what can be mended surely, or off when it is False, and None leaves it.

    Remembers that its terms were accepted, but not what the run does without. Raises DownloadError when the dataset is
    lost or has terms that aren't accepted, else what `checks.check` raises.
    """
    run.permit()
    audit.note(run, accepted=run.choices.accepted)
    if repair is False and run.choices.repairs:
        audit.note(run, repairs=())
        run = audit.open_run(
            run.store,
            run.manifest.name,
            limit=run.limit,
            without=run.choices.without,
            hosts=run.hosts,
            limits=run.limits,
        )
    report = check(run, full=full, shards=shards, tell=tell)
    if not repair or MENDED not in report.found:
        return Checked(report=report, mended=None, needs_rebuild=False)
    mended = report.mend()
    audit.note(run, repairs=tuple(sorted({*run.choices.repairs, MENDED})))
    fetched = any(run.ledger(step).commits() for step in run.steps[1:])
    return Checked(report=report, mended=mended, needs_rebuild=fetched)
