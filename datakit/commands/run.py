"""The command that makes all that a paper's recipe trains on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from datakit.commands.options import Task, work_options
from datakit.errors import UsageError
from datakit.process.terminal import say, say_json

if TYPE_CHECKING:
    from datakit.engine.build import Build
    from datakit.reports.plan import Plan, PlannedDataset


@click.command()
@click.argument("name", metavar="RECIPE")
@click.option("--phase", "only", metavar="NAME", help="Only what this phase of training needs. [all phases]")
@click.option("--shards", metavar="RANGE", help="Of datasets that are one file a shard, such as coyo and mmc4. [all]")
@click.option("--fallback", is_flag=True, help="Take what may stand for a dataset that upstream has lost.")
@click.option("--dry-run", is_flag=True, help="Only print the plan: files, sizes, rows, licences, time and disk.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@work_options
def run(
    name: str, only: str | None, shards: str | None, fallback: bool, dry_run: bool, as_json: bool, task: Task
) -> None:
    """Everything a paper trains on, by its recipe.

    Downloads, lists, chooses, fetches and packs each dataset of the recipe once, and writes a mix for each phase of
    training. Run it again to go on after a kill.
    """
    from datakit.reports import plan
    from datakit.storage.shards import parse_shards

    if task.recipe:
        raise UsageError(f"`datakit run` takes its recipe as the argument, so give {task.recipe!r} there or {name!r}")
    if as_json and not dry_run:
        raise UsageError("--json prints the plan, so it needs --dry-run")
    terms, stand_ins = plan.phases(name, only=only, fallback=fallback)
    wanted = parse_shards(shards) if shards is not None else None
    task = replace(task, recipe=name)
    datasets = [dataset for some in terms.values() for dataset, _ in some]
    without = plan.without_by_dataset(name, datasets, task.without)
    builds = {dataset: task.build(dataset, without=sources) for dataset, sources in without.items()}
    chosen = {dataset: plan.shards_of(build, wanted) for dataset, build in builds.items()}
    if dry_run:
        found = plan.make(
            name, terms, builds, stand_ins=stand_ins, wanted=wanted, jobs=task.settings.jobs, rebuild=task.rebuild
        )
        say_json(found.json_object()) if as_json else _show(found)
        return
    plan.require_no_obstacles(name, builds.values(), rebuild=task.rebuild)
    _make(name, terms, builds, chosen, task)


def _make(
    name: str,
    terms: dict[str, list[tuple[str, int]]],
    builds: dict[str, Build],
    shards: dict[str, list[int] | None],
    task: Task,
) -> None:
    from datakit.commands.make import make_shards
    from datakit.mixing import assembly
    from datakit.process.terminal import size_text

    for build in builds.values():  # before the first of them, so that running again needs no flags
        build.remember()
    for dataset, build in builds.items():
        make_shards(build, task, upto=build.step_of("pack"), shards=shards[dataset])
    if task.slice_of:
        say(f"slice {task.slice_of} is packed; when all are, run this without --slice to write the mixes")
        return
    store = next(iter(builds.values())).store
    for build in builds.values():
        if left_out := assembly.unpacked_shards(build):
            say(f"{build.folder}: {len(left_out):,} of its shards are not packed, so they are in no mix")
    for phase, some in terms.items():
        mix_name = assembly.mix_name(f"{name}-{phase}", task.limit)
        mix, where = assembly.write(store, mix_name, [(builds[dataset], times) for dataset, times in some])
        parts = " + ".join(f"{p.dataset} {p.samples:,}{f' x {p.repeats}' * (p.repeats > 1)}" for p in mix.parts)
        say(f"{phase}: {mix.samples:,} samples an epoch ({parts}), {size_text(mix.size_bytes)} in {mix.n_tars} tars")
        say(f"  {where}")


def _show(found: Plan) -> None:
    from datakit.process.terminal import size_text, time_text
    from datakit.reports.plan import RATES

    say(f"recipe {found.recipe}")
    wide = max(len(phase) for phase in found.mixes)
    for phase, expression in found.mixes.items():
        say(f"  {phase:{wide}}  {expression}  ->  mixes/{found.recipe}-{phase}")
    for dataset in found.datasets:
        _show_dataset(dataset)
    say("\nin all")
    say(f"  download  {size_text(found.to_download)}")
    short = "  NOT ENOUGH" if found.free_bytes < found.disk_bytes else ""
    say(f"  disk      {size_text(found.disk_bytes)} at the most; free {size_text(found.free_bytes)}{short}")
    say(f"  time      {time_text(found.seconds)}")
    say(f"            {RATES}")
    if found.incomplete:
        say(f"  unknown   something of {', '.join(found.incomplete)}, which isn't in these sums")
    for obstacle in found.obstacles:
        say("  first     " + obstacle.replace("\n", "\n            "))


def _show_dataset(dataset: PlannedDataset) -> None:
    from datakit.process.terminal import size_text

    instead = f" (in place of {dataset.stands_for})" if dataset.stands_for else ""
    say(f"\n{dataset.name}{instead}: {dataset.title}")
    say(f"  licence   {dataset.licence}")
    if dataset.accept:
        say(f"  terms     {dataset.accept}")
    for source, licence in dataset.licences.items():
        say(f"            {source}: {licence}")
    for step in dataset.steps:
        said = {k: v for k, v in step.items() if k not in ("step", "stage") and v not in (None, [], "", False)}
        fields = ", ".join(f"{k} {v!r}" for k, v in said.items())
        say(f"  {step['step']:9} {step['stage']} {fields}".rstrip())
    number = "unknown" if dataset.n_files is None else f"{dataset.n_files:,}"
    size = "of unknown size" if dataset.size_bytes is None else size_text(dataset.size_bytes)
    unknown = f", and {dataset.unknown_files:,} files of unknown size" if dataset.unknown_files else ""
    here = f"; {size_text(dataset.here_bytes)} of it is here or was read" if dataset.here_bytes else ""
    say(f"  files     {number}, {size}{unknown}{here}")
    rows = "unknown" if dataset.rows is None else f"{dataset.rows:,} by the authors' word"
    chosen = f", {dataset.chosen_rows:,} chosen at the most" if dataset.chosen_rows not in (None, dataset.rows) else ""
    say(f"  rows      {rows}{chosen}")
    if dataset.urls != 0:
        say(f"  URLs      {'unknown' if dataset.urls is None else f'{dataset.urls:,}'} to try")
    whole = "an unknown number of" if dataset.shards is None else f"{dataset.shards:,}"
    say(f"  done      {dataset.shards_done:,} of {whole} shards are packed")
    if dataset.problems:
        say(f"  known     {len(dataset.problems)} problems: see `datakit info {dataset.name}`")
