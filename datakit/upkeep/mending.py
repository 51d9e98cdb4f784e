"""Mending: a check of a dataset that also turns its repairs on or off, for it and all that is made from then on."""

from __future__ import annotations

from dataclasses import dataclass

from datakit.engine.build import Build
from datakit.engine.choices import write_choices
from datakit.engine.opening import open_build
from datakit.engine.work import Progress
from datakit.reports.check import Report, check

MENDED = "extension"  # the one finding that can be mended without guessing


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What a check found, and what became of its repairs."""

    report: Report  # as things are from now on
    mended: int | None  # rows that are kept from now on; None when no repair was turned on
    needs_rebuild: bool  # whether the dataset was fetched without the repairs

    @property
    def turned_on(self) -> bool:
        return self.mended is not None


def check_and_mend(
    build: Build,
    *,
    repair: bool | None = None,
    full: bool = False,
    shards: list[int] | None = None,
    progress: Progress | None = None,
) -> CheckResult:
    """Checks a dataset. `repair` turns its repairs on (True) or off (False), and leaves them as they are (None).

    Remembers that its terms were accepted, but not what the run does without. Raises DownloadError when the dataset is
    lost or has terms that aren't accepted, else what `check` raises.
    """
    build.permit()
    write_choices(build.store, build.folder, accepted=build.choices.accepted)
    if repair is False and build.choices.repairs:
        write_choices(build.store, build.folder, repairs=())
        build = open_build(
            build.store,
            build.manifest.name,
            limit=build.limit,
            without=build.choices.without,
            hosts=build.hosts,
            limits=build.limits,
        )
    report = check(build, full=full, shards=shards, progress=progress)
    if not repair or MENDED not in report.found:
        return CheckResult(report=report, mended=None, needs_rebuild=False)
    mended = report.mend()
    write_choices(build.store, build.folder, repairs=tuple(sorted({*build.choices.repairs, MENDED})))
    fetched = any(build.ledger(step).commits() for step in build.steps[1:])
    return CheckResult(report=report, mended=mended, needs_rebuild=fetched)
