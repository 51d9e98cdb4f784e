"""Commands that only look: list, info, status, verify. Each prints JSON when asked to."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from datakit.commands.options import load_settings, open_build, pace_options, root_options
from datakit.process.terminal import one_line, say, say_json

if TYPE_CHECKING:
    from datakit.catalogue.manifest import Manifest
    from datakit.engine.build import Build
    from datakit.reports.availability import Availability
    from datakit.reports.forecast import Forecast


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """The datasets of the catalogue, and the recipes for `datakit run`."""
    from datakit.reports import overview

    datasets, wrong = overview.datasets()
    for error in wrong:
        say(error, err=True, label="error:")
    if as_json:
        say_json(overview.datasets_json(datasets))
        sys.exit(int(bool(wrong)))
    wide = max((len(dataset.name) for dataset in datasets), default=4)
    for dataset in datasets:
        licence = dataset.licence.partition("(")[0].partition(";")[0].strip()
        note = "  LOST" if dataset.lost else "  TERMS" if dataset.accept else ""
        say(f"{dataset.name:{wide}}  {one_line(dataset.title)}  [{one_line(licence)}]{note}")
    say("\nRecipes for `datakit run`:")
    recipes, unread = overview.recipes()
    for error in unread:
        say(error, err=True, label="error:")
    for name, first_line in recipes.items():
        say(f"{name:{wide}}  {first_line}")
    sys.exit(int(bool(wrong or unread)))


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(name: str, as_json: bool) -> None:
    """What a dataset is: licence, files, steps, problems."""
    from datakit.reports.description import describe

    found = describe(name)
    if as_json:
        say_json(found.json_object())
        return
    about = found.manifest
    say("\n".join(filter(None, [about.title, about.homepage, about.citation])) + "\n")
    say(f"licence   {one_line(about.licence)}")
    for label, text in (("accept", about.accept), ("lost", about.lost), ("instead", about.fallback)):
        if text:
            say(f"{label:9} {text}")
    if about.hub:
        note = "  (not pinned; `datakit pin` pins it)" if found.hub_moves else ""
        say(f"hub       {about.hub} at {found.hub_revision}{note}")
    rows = about.annotations
    for file in rows.files if isinstance(rows.files, list) else [rows.files]:
        number = f" x {len(rows.numbers())}" if rows.shards else ""
        say(f"files     {file}{number}{f', {rows.inside} in it' if rows.inside else ''}")
    for key, files in rows.subsets.items():
        say(f"subset    {about.name}.{key}: {len(files)} of the files")
    for key, source in about.images.sources.items():
        number = f" x {source.parts}" if source.parts else ""
        say(f"pictures  {key}: {source.prefix or '(all)'} in {source.archive}{number}")
        if source.obtain:
            say(f"          by hand: {source.obtain}")
    if about.images.by != "path":
        where = {"url": "by URL", "inline": "in the rows", "folder": about.images.folder, "none": "none"}
        say(f"pictures  {where[about.images.by]}")
    for key, count in about.expected.items():
        say(f"expected  {count:,} {key.replace('_', ' ')}")
    for problem in about.problems:
        say(f"known     {problem}")
    say(f"recipe    {about.recipe}")
    for step in found.steps:
        fields = {k: v for k, v in step.items() if k not in ("step", "stage", "version", "sources") and v is not None}
        say(f"  {step['step']:6}  {step['stage']} " + ", ".join(f"{k} {v}" for k, v in fields.items()))


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@root_options
def status(name: str | None, as_json: bool, **root_flags: Any) -> None:
    """What is done in the root, what was lost, and why."""
    from datakit.engine.opening import builds
    from datakit.reports.status import status as status_of
    from datakit.storage.shards import ranges
    from datakit.storage.store import Store

    settings = load_settings(**root_flags)
    if name:
        open_build(settings, name.partition("@")[0])  # an unknown name is refused
    store = Store(settings.root)
    store.check()
    found = [step_status for build in builds(store, name) for step_status in status_of(build)]
    if as_json:
        say_json([step_status.json_object() for step_status in found])
        return
    if not found:
        say(f"nothing in {settings.root!r} yet; start with `datakit fetch {name or 'NAME'}`")
    for step_status in found:
        line = f"{step_status.dataset}/{step_status.step}: {len(step_status.done)} done"
        if step_status.stale:
            line += f", {len(step_status.stale)} stale ({ranges(step_status.stale)})"
        if step_status.missing:
            line += f", {len(step_status.missing)} missing"
        say(f"{line}; {step_status.rows:,} rows")
        for field in step_status.differs:
            say(f"    made by another recipe: {field}")
        for loss in step_status.losses():
            again = "  --retry may help" if loss.may_pass else ""
            say(f"    {loss.what:8} {loss.reason:18} {loss.rows:>12,}  {loss.share:6.1%}{again}")


@click.command()
@click.argument("name")
@click.option("--sample", type=click.IntRange(1), default=1000, metavar="N", help="Rows to try. [1000]")
@click.option("--shards", metavar="RANGE", help="Draw them from these. [those that are listed, else 0]")
@click.option("--seed", type=int, default=0, help="Of the draw. [0]")
@click.option("--recipe", metavar="NAME", help="Another recipe than the manifest's.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pace_options
@root_options
def doctor(
    name: str, sample: int, shards: str | None, seed: int, recipe: str | None, as_json: bool, **flags: Any
) -> None:
    """Forecast a fetch from a sample, before days are spent.

    Tries some URLs and says which share can be had, why the others can't, and what time and disk all of them will
    take. For a dataset in archives it asks upstream for each file and its size.
    """
    from datakit.commands.progress import ProgressBars
    from datakit.storage.shards import parse_shards

    settings = load_settings(**flags)
    build = open_build(settings, name, recipe=recipe)
    if build.manifest.images.by != "url":
        from datakit.reports.availability import availability

        files = availability(build)
        say_json(files.json_object()) if as_json else _show_availability(build.manifest, files)
        sys.exit(int(not files.obtainable))
    from datakit.reports.forecast import forecast

    with ProgressBars(build.folder, noun="URLs") as progress:
        found = forecast(
            build,
            sample=sample,
            jobs=settings.jobs,
            shards=parse_shards(shards) if shards is not None else None,
            seed=seed,
            progress=progress,
        )
    if as_json:
        say_json(found.json_object())
        return
    _show_forecast(build, found, settings.jobs)


def _show_forecast(build: Build, found: Forecast, jobs: int) -> None:
    from datakit.process.terminal import size_text, time_text
    from datakit.storage.shards import ranges

    every = "all " if found.all_rows else ""
    where = f"{every}{found.sampled:,} URLs of shards {ranges(found.shards)}"
    more = ", which have no more; name others with --shards" if found.all_rows else ""
    say(f"{build.folder}: tried {where} in {found.spent_s:.0f} s{more}")
    for outcome, n in found.outcomes.most_common():
        interval = f"  (95 %: {found.ok.low:.1%} to {found.ok.high:.1%})" if outcome == "ok" else ""
        say(f"    {outcome:18} {n:>8,}  {n / found.sampled:6.1%}{interval}")
    of = f"{found.n_shards} shards" if found.n_shards > 1 else "the shard"
    say(f"forecast for {of}, about {found.urls:,.0f} URLs, on this machine with --jobs {jobs}:")
    pictures, disk, time_s = found.pictures, found.disk_bytes, found.seconds
    say(f"    pictures  {pictures.value:,.0f}  ({pictures.low:,.0f} to {pictures.high:,.0f})")
    line = f"    disk      {size_text(disk.value)}  ({size_text(disk.low)} to {size_text(disk.high)})"
    say(f"{line}, and as much again for `build-mix` until `clean`")
    if found.free_bytes is not None:
        say(f"    free      {size_text(found.free_bytes)}{'' if found.fits else '  NOT ENOUGH'}")
    if found.per_s.value:
        low, high = time_text(time_s.low), time_text(time_s.high)
        line = f"    time      {time_text(time_s.value)}" + (f"  ({low} to {high})" if low != high else "")
        say(f"{line} at {found.per_s.value:,.0f} URLs/s, held up by {found.held_by.rstrip(',')}")
    say("More machines: --slice I/N. What a sample can't show: how the network bears the load of days.")


def _show_availability(about: Manifest, found: Availability) -> None:
    from datakit.process.terminal import size_text

    for file in found.files:
        size = size_text(file.size_bytes) if file.size_bytes is not None else "size unknown"
        state = file.problem or ("here" if file.here else "can be had")
        say(f"    {file.name:24} {size:>12}  {state}")
    if found.terms:
        say(f"    terms: {found.terms}; --accept-licence accepts them")
    if about.annotations.glob:
        whole = about.expected.get("bytes_about")
        most = f" of {size_text(whole)}" if whole else ""
        say(f"    {about.annotations.files}: parts{most} are read, by ranges, and not kept")
    room = f"free {size_text(found.free_bytes)}{'' if found.fits else '  NOT ENOUGH'}"
    say(f"to download {size_text(found.to_download)}, and about as much again for `build-mix`; {room}")


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--repair", is_flag=True, help="Forget broken shards, so that the next run makes them again.")
@root_options
def verify(name: str | None, as_json: bool, repair: bool, **root_flags: Any) -> None:
    """Read every file and compare it with its commit."""
    from datakit.commands.progress import ProgressBars
    from datakit.engine import holdings
    from datakit.storage.store import Store
    from datakit.upkeep import repair as repairing
    from datakit.upkeep import verify as verifying

    settings = load_settings(**root_flags)
    store = Store(settings.root)
    store.check()
    if name and not holdings.holds(store, name):
        open_build(settings, name.partition("@")[0])  # an unknown name is refused
    with ProgressBars(settings.root, noun="files") as progress:
        found = verifying.findings(store, name, progress=progress)
    forgotten = repairing.repair(store, found.broken) if repair and found.broken else []
    if as_json:
        say_json({**found.json_object(), "forgotten": forgotten})
    else:
        for file in found.broken:
            say(f"{file.where}: {file.what}")
        for shard in forgotten:
            say(f"forgotten: {shard}")
        say(f"{found.whole} files are whole, {len(found.broken)} are not")
        if found.broken:
            # The root as it was typed; one of the environment or the file needs no word.
            cures = found.cures(repaired=repair, root=root_flags["root"])
            say("To mend it, run, one after the other:\n  " + "\n  ".join(cures))
    if found.broken:
        sys.exit(1)
