"""Commands that make something in the root, or take something away: fetch, build-mix, adopt, clean, pin, demo."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from datakit.commands.options import Task, load_settings, open_build, root_options, work_options
from datakit.errors import UsageError
from datakit.process.terminal import say

if TYPE_CHECKING:
    from datakit.engine.build import Build
    from datakit.engine.runner import Report
    from datakit.engine.stage import Engine, Step
    from datakit.stream.mixfile import Mix


ENGINE = click.Choice(["datakit", "img2dataset"])


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--shards", metavar="RANGE", help="Which shards, e.g. 0-127 or 0,4-6. [all]")
@click.option("--retry", is_flag=True, help="Try failed URLs of fetched shards again, and patch these.")
@click.option("--where", multiple=True, metavar="KEY=VALUE", help="Retry only these: outcome=dns,timeout_*, host=NAME.")
@click.option("--engine", type=ENGINE, help="Who fetches pictures by URL. [who began, else datakit]")
@work_options
def fetch(
    names: tuple[str, ...],
    shards: str | None,
    retry: bool,
    where: tuple[str, ...],
    engine: Engine | None,
    task: Task,
) -> None:
    """Download datasets: list, choose, fetch pictures.

    Annotations are listed, chosen from, and their pictures fetched or found. Run it again to go on after a
    kill; what is done is not done twice.
    """
    from datakit.storage.shards import parse_shards

    if where and not retry:
        raise UsageError("--where chooses among failed URLs, so it needs --retry")
    if retry and task.rebuild:
        raise UsageError("--retry keeps what there is and --rebuild removes it: give one of them")
    chosen = parse_shards(shards) if shards is not None else None
    # A retry leaves the recipe as it is, whoever tries.
    builds = [task.build(name, engine=None if retry else engine) for name in names]
    for build in builds:
        if engine:
            _require_urls(build)
    for build in builds:
        if retry:
            _retry(build, task, where=where, engine=engine, shards=chosen)
        else:
            make_shards(build, task, upto=build.step_of("fetch"), shards=chosen)


def _require_urls(build: Build) -> None:
    """Raises UsageError for a dataset to which engines mean nothing."""
    if build.manifest.images.by != "url":
        raise UsageError(f"the pictures of {build.manifest.name!r} don't come by URL: no engine crawls for them")


def _retry(
    build: Build, task: Task, *, where: tuple[str, ...], engine: Engine | None, shards: list[int] | None
) -> None:
    from datakit.commands.progress import ProgressBars
    from datakit.process import memory
    from datakit.storage.shards import parse_slice, ranges
    from datakit.upkeep.retry import parse_where, retry

    memory.reduce_overhead()
    with ProgressBars(build.folder, noun="URLs") as progress:
        report = retry(
            build,
            where=parse_where(where),
            engine=engine,
            shards=shards,
            slice_of=parse_slice(task.slice_of) if task.slice_of else (0, 1),
            jobs=task.settings.jobs,
            progress=progress,
        )
    tried, got = report.before.total(), report.after["ok"]
    say(f"{build.folder}: tried {tried:,} URLs again, {got:,} are ok now ({got / max(1, tried):.1%})")
    for outcome, n in report.after.most_common():
        if outcome != "ok":
            say(f"    failed   {outcome:18} {n:>12,}")
    if report.left:
        left = ", ".join(f"{outcome} {n:,}" for outcome, n in report.left.most_common())
        say(f"  not tried: {left} (--where 'outcome=*' tries all)")
    if report.behind:
        say(
            f"  not tried: shards {ranges(report.behind)}, which were tried more often than the others; "
            "run again to try all"
        )
    if got:
        say(f"  `datakit build-mix {build.manifest.name}` packs the patched shards anew")


@click.command("import")
@click.argument("engine", type=click.Choice(["img2dataset"]))
@click.argument("folder", type=click.Path(exists=True, file_okay=False), metavar="DIR")
@click.argument("name")
@click.option("--shards", metavar="RANGE", help="Which shards, e.g. 0-127 or 0,4-6. [all]")
@work_options
def import_(engine: Engine, folder: str, name: str, shards: str | None, task: Task) -> None:
    """Take over what img2dataset has downloaded.

    Pictures of DIR become those of dataset NAME, found by their URL; no picture is downloaded. URLs that DIR
    doesn't have get the outcome not_imported, which another import or `fetch --retry` then tries.
    """
    from pathlib import Path

    from datakit.storage.shards import parse_shards

    build = task.build(name, engine=engine, imports=str(Path(folder).absolute()), tolerates=1.0)
    _require_urls(build)
    chosen = parse_shards(shards) if shards is not None else None
    kept = make_shards(build, task, upto=build.step_of("fetch"), shards=chosen).kept
    if kept:
        _retry(build, task, where=("outcome=not_imported",), engine=engine, shards=kept)


@click.command("build-mix")
@click.argument("expression", metavar="A+B:2")
@click.option("--name", help="Name of the mix. [the expression]")
@click.option("--fetch", "with_fetch", is_flag=True, help="Also fetch what isn't there yet.")
@work_options
def build_mix(expression: str, name: str | None, with_fetch: bool, task: Task) -> None:
    """Pack what is fetched, and write a mix.

    A+B takes both datasets, B:2 takes one twice an epoch. Never starts a download unless --fetch says so.
    """
    from datakit import catalogue
    from datakit.mixing import assembly
    from datakit.stream import mixfile as mixes

    terms = mixes.parse(expression, catalogue.names("manifests"))
    mix_name = assembly.mix_name(name or expression, task.limit)
    builds = [(task.build(dataset), times) for dataset, times in terms]
    pack_and_mix(task, builds, mix_name, with_fetch=with_fetch)


def pack_and_mix(task: Task, builds: list[tuple[Build, int]], name: str, *, with_fetch: bool) -> None:
    """Packs datasets and writes the mix of them; with `with_fetch` what isn't there is fetched before."""
    from datakit.mixing import assembly
    from datakit.storage.shards import ranges
    from datakit.storage.store import Store

    if not with_fetch:
        assembly.require_fetched([build for build, _ in builds])
    for build, _ in builds:
        fetch, pack = build.step_of("fetch"), build.step_of("pack")
        first = None if with_fetch else build.path_to(pack)[len(build.path_to(fetch))]
        make_shards(build, task, upto=pack, first=first)
    if task.slice_of:
        say(f"slice {task.slice_of} is packed; when all are, run this without --slice to write the mix")
        return
    mix, where = assembly.write(Store(task.settings.root), name, builds)
    for build, _ in builds:
        if left_out := assembly.unpacked_shards(build):
            cure = f"`datakit fetch {build.manifest.name}` gets them"
            say(f"  {build.folder}: shards {ranges(left_out)} are not in it; {cure}")
    _show_mix(mix, where)


def make_shards(
    build: Build, task: Task, *, upto: Step, first: Step | None = None, shards: list[int] | None = None
) -> Report:
    """Makes the shards of a dataset up to a step, with a progress bar, and says what came of it."""
    from datakit.commands.progress import ProgressBars
    from datakit.engine.runner import execute
    from datakit.process import memory
    from datakit.storage.shards import parse_slice

    memory.reduce_overhead()
    if build.choices.recipe and task.recipe is None:
        say(f"{build.folder}: recipe {build.recipe!r}, as it was chosen before")
    if build.choices.without and task.without is None:
        say(f"{build.folder}: without {', '.join(build.choices.without)}, as it was chosen before")
    with ProgressBars(build.folder) as progress:
        report = execute(
            build,
            upto=upto,
            first=first,
            shards=shards,
            slice_of=parse_slice(task.slice_of) if task.slice_of else (0, 1),
            jobs=task.settings.jobs,
            rebuild=task.rebuild,
            progress=progress,
        )
    _show_report(build, report, upto.name)
    return report


def _show_report(build: Build, report: Report, upto: str) -> None:
    from datakit.storage.shards import ranges

    done = f"{build.folder}: {upto} done"
    if report.made:
        done += f" for shards {ranges(report.made)}, {report.rows:,} rows"
    if report.kept:
        done += f"; {len(report.kept)} shards were done before"
    say(done)
    for what, counts in (("dropped", report.dropped), ("failed", report.failed)):
        if counts:
            say(f"  {what}: " + ", ".join(f"{reason} {n:,}" for reason, n in counts.most_common()))


def _show_mix(mix: Mix, where: str) -> None:
    from datakit.process.terminal import size_text

    for part in mix.parts:
        times = f" x {part.repeats}" if part.repeats > 1 else ""
        size = size_text(part.size_bytes)
        say(f"  {part.dataset}{times}: {part.samples:,} samples in {len(part.shards)} tars, {size}")
    say(f"{where}: {mix.samples:,} samples an epoch, fingerprint {mix.fingerprint[:12]}")


@click.command()
@click.argument("name")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Of the trial with that limit.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@root_options
def clean(name: str, limit: int | None, dry_run: bool, **root_flags: Any) -> None:
    """Remove what later steps have made superfluous.

    Tables and tars whose next step is done, and downloads that nothing needs any more; says how much, and never builds
    by itself.
    """
    from datakit.process.terminal import size_text
    from datakit.upkeep import clean as cleaning

    settings = load_settings(**root_flags)
    build = open_build(settings, name, limit=limit)
    found = cleaning.superfluous_files(build)
    if not dry_run:
        found.files = cleaning.clean(build, found.files)
    for file in found.files:
        say(f"{file.name}  {size_text(file.size_bytes)}")
    for note in found.notes:
        say(f"note: {note}")
    say(f"{'would remove' if dry_run else 'removed'} {len(found.files)} files, {size_text(found.size_bytes)}")


@click.command()
@click.argument("name")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--as", "wanted", metavar="SOURCE", help="Which of the dataset's files it is, when its name doesn't say.")
@root_options
def adopt(name: str, file: str, wanted: str | None, **root_flags: Any) -> None:
    """Use a file you have instead of downloading it.

    For example COCO's train2017.zip. On the root's file system it is read where it is, so leave it there; from another
    one it is copied.
    """
    from pathlib import Path

    from datakit.commands.progress import ProgressBars
    from datakit.process.terminal import size_text
    from datakit.upkeep.adopt import adopt as adopt_file

    build = open_build(load_settings(**root_flags), name)
    with ProgressBars(name) as progress:
        address, done = adopt_file(build, Path(file), wanted, progress)
    say(f"{done.path} stands for {address}: {size_text(done.size_bytes)}, sha256 {done.sha256}")
    if done.path.is_symlink():
        say(f"it is read from {done.path.resolve()}: leave it there until the dataset is packed")
    without = build.choices.without
    if given_up := [source for source in build.manifest.sources_of(address) if source in without]:
        left = ",".join(source for source in without if source not in given_up)
        say(f"{given_up[0]} was given up: `datakit fetch {name} --without '{left}' --rebuild` takes it up again")


@click.command()
@click.argument("name")
@click.option("--out", type=click.Path(), help="File to write. [beside the manifest]")
@root_options
def pin(name: str, out: str | None, **root_flags: Any) -> None:
    """Write upstream's commits and hashes to a .sums file.

    From then on a fetch takes these commits, and refuses a file with another size or hash.
    """
    from pathlib import Path

    from datakit.upkeep.pin import write_pins

    build = open_build(load_settings(**root_flags), name)
    path, pinned = write_pins(build, Path(out) if out else None)
    say(f"{path}: {len(pinned.commits)} commits, {len(pinned.files)} files")
    if pinned.n_unhashed:
        say(f"{pinned.n_unhashed} of them have no hash yet: upstream gives none; pin again once they are downloaded")


@click.command()
@click.option("--root", metavar="DIR", help="Keep the result there. [a temporary folder, removed]")
@click.option("--no-train", is_flag=True, help="Leave the training steps out.")
def demo(root: str | None, no_train: bool) -> None:
    """The whole chain on a small copy of the upstreams.

    On this machine, without the internet, in a minute or so.
    """
    from datakit.miniature.demo import play

    sys.exit(play(root, train=not no_train))
