"""The command line. Each command loads what it needs and nothing else, so `--help` answers at once.

Exit codes: 0 done, 1 data or recipe wrong or incomplete, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from datakit import __version__
from datakit.errors import DatakitError

if TYPE_CHECKING:
    from datakit.mix import Mix
    from datakit.runner import Report, Run
    from datakit.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])


def main() -> NoReturn:
    """The entry point: runs a command and turns what it raises into one message and an exit code."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # Slurm's way to say stop
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        again = " ".join(shlex.quote(a) for a in ["datakit", *sys.argv[1:]])
        click.echo(f"\nInterrupted. What was committed is kept; to go on, run:\n  {again}", err=True)
        sys.stderr.flush()
        os._exit(130)  # threads of a download may still wait for the network
    except DatakitError as error:
        click.echo(f"{click.style('error:', fg='red')} {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os._exit(0)
    sys.exit(0)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="datakit")
@click.option("-v", "--verbose", is_flag=True, help="One line per shard, and what libraries say.")
def cli(verbose: bool) -> None:
    """Public vision-language data, turned into training batches.

    Each command can be killed at any moment and run again; it goes on where it was.

    \b
    datakit fetch coyo --shards 0-127         annotations, VILA's choice, pictures
    datakit fetch llava665k qinstruct         annotations and archives
    datakit build-mix llava665k+qinstruct     packed WebDataset tars of both, one mix
    """
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s", stream=sys.stderr)


def _place(command: F) -> F:
    """Options that say where the root is and who may be connected to."""
    for option in (
        click.option("--root", metavar="DIR", help="Folder or fsspec URL. [DATAKIT_ROOT, else ./data]"),
        click.option(
            "--mirror",
            "mirrors",
            multiple=True,
            metavar="FROM=TO",
            help="Replace a URL prefix. [DATAKIT_MIRRORS]",
        ),
        click.option(
            "--allow-host",
            "allow_hosts",
            multiple=True,
            metavar="HOST[:PORT]",
            help="Permit a private address. [DATAKIT_ALLOW_HOSTS]",
        ),
    ):
        command = option(command)
    return command


def _work(command: F) -> F:
    """Options of commands that make shards."""
    for option in (
        click.option("--jobs", type=int, help="Processes. [DATAKIT_JOBS, else one a core]"),
        click.option("--timeout", "timeout_s", type=int, metavar="S", help="Seconds for one picture. [30]"),
        click.option(
            "--slice",
            "slice_of",
            metavar="I/N",
            help="Every Nth shard from the Ith on, from 0; for job arrays.",
        ),
        click.option("--limit", type=click.IntRange(1), metavar="N", help="A trial: N rows of each annotation file."),
        click.option("--rebuild", is_flag=True, help="Remove what another recipe made, and make it again."),
        click.option("--recipe", metavar="NAME", help="Another recipe than the manifest's."),
    ):
        command = option(command)
    return _place(command)


def _settings(**flags: Any) -> Settings:
    from datakit import settings

    return settings.load(**flags)


def _run(settings: Settings, name: str, recipe: str | None = None, limit: int | None = None) -> Run:
    from datakit.audit import open_run
    from datakit.store import Store

    return open_run(
        Store(settings.root), name, recipe=recipe, limit=limit, hosts=settings.hosts, limits=settings.limits
    )


@cli.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--shards", metavar="RANGE", help="Which shards, e.g. 0-127 or 0,4-6. [all]")
@_work
def fetch(
    names: tuple[str, ...],
    shards: str | None,
    jobs: int | None,
    timeout_s: int | None,
    slice_of: str | None,
    limit: int | None,
    rebuild: bool,
    recipe: str | None,
    **place: Any,
) -> None:
    """Download datasets: their recipe's steps up to `fetch`.

    Annotations are listed, chosen from, and their pictures fetched or found. Run it again to go on after a
    kill; what is done is not done twice.
    """
    from datakit.shards import parse_shards

    settings = _settings(jobs=jobs, timeout_s=timeout_s, **place)
    chosen = parse_shards(shards) if shards else None
    runs = [_run(settings, name, recipe, limit) for name in names]
    for run in runs:
        _execute(run, settings, upto="fetch", shards=chosen, slice_of=slice_of, rebuild=rebuild)


@cli.command("build-mix")
@click.argument("expression", metavar="A+B:2")
@click.option("--name", help="Name of the mix. [the expression]")
@click.option("--fetch", "with_fetch", is_flag=True, help="Also fetch what isn't there yet.")
@_work
def build_mix(
    expression: str,
    name: str | None,
    with_fetch: bool,
    jobs: int | None,
    timeout_s: int | None,
    slice_of: str | None,
    limit: int | None,
    rebuild: bool,
    recipe: str | None,
    **place: Any,
) -> None:
    """Pack what is fetched, and write the mix: A+B takes both, B:2 twice an epoch.

    Never starts a download unless --fetch says so.
    """
    from datakit import builder, catalogue
    from datakit import mix as mixes
    from datakit.store import Store

    settings = _settings(jobs=jobs, timeout_s=timeout_s, **place)
    terms = mixes.parse(expression, catalogue.names("manifests"))
    mix_name = builder.mix_name(name or expression, limit)
    runs = [(_run(settings, dataset, recipe, limit), times) for dataset, times in terms]
    if not with_fetch:
        builder.check_fetched([run for run, _ in runs])
    for run, _ in runs:
        first = None if with_fetch else "pack"
        _execute(run, settings, upto="pack", first=first, slice_of=slice_of, rebuild=rebuild)
    if slice_of:
        click.echo(f"slice {slice_of} is packed; when all are, run this without --slice to write the mix")
        return
    mix, where = builder.write(Store(settings.root), mix_name, runs)
    _show_mix(mix, where)


def _execute(
    run: Run,
    settings: Settings,
    *,
    upto: str,
    rebuild: bool,
    first: str | None = None,
    shards: list[int] | None = None,
    slice_of: str | None = None,
) -> None:
    from datakit.progress import Progress
    from datakit.runner import execute
    from datakit.shards import parse_slice

    with Progress(run.folder) as progress:
        report = execute(
            run,
            upto=upto,
            first=first,
            shards=shards,
            slice_of=parse_slice(slice_of) if slice_of else (0, 1),
            jobs=settings.jobs,
            rebuild=rebuild,
            tell=progress.tell,
        )
    _show_report(run, report, upto)


def _show_report(run: Run, report: Report, upto: str) -> None:
    from datakit.shards import ranges

    done = f"{run.folder}: {upto} done"
    if report.made:
        done += f" for shards {ranges(report.made)}, {report.rows:,} rows"
    if report.kept:
        done += f"; {len(report.kept)} shards were done before"
    click.echo(done)
    for what, counts in (("dropped", report.dropped), ("failed", report.faults)):
        if counts:
            click.echo(f"  {what}: " + ", ".join(f"{reason} {n:,}" for reason, n in counts.most_common()))


def _show_mix(mix: Mix, where: str) -> None:
    from datakit.progress import size_text

    for part in mix.parts:
        size = sum(shard.size_bytes for shard in part.shards)
        times = f" x {part.repeats}" if part.repeats > 1 else ""
        click.echo(f"  {part.dataset}{times}: {part.samples:,} samples in {len(part.shards)} tars, {size_text(size)}")
    click.echo(f"{where}: {mix.samples:,} samples an epoch, fingerprint {mix.fingerprint[:12]}")


@cli.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """The datasets of the catalogue."""
    from datakit import catalogue, manifest

    found = [manifest.load(name) for name in catalogue.names("manifests")]
    if as_json:
        _json([{"name": m.name, "title": m.title, "recipe": m.recipe, "licence": m.licence} for m in found])
        return
    wide = max((len(m.name) for m in found), default=4)
    for one in found:
        click.echo(f"{one.name:{wide}}  {one.title}  [{one.licence.partition('(')[0].partition(';')[0].strip()}]")


@cli.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(name: str, as_json: bool) -> None:
    """What a dataset is: licence, files, counts, steps, known problems."""
    from datakit import manifest, pipeline
    from datakit.fingerprint import plain

    about = manifest.load(name)
    steps = pipeline.steps(about.recipe, about)
    described = [{"step": s.name, **s.stage.identity(about)} for s in steps]
    if as_json:
        import msgspec

        _json({**msgspec.to_builtins(about), "steps": plain(described)})
        return
    click.echo(f"{about.title}\n{about.homepage}\n{about.citation}\n")
    click.echo(f"licence   {about.licence}")
    pinned = about.pinned.commits.get(about.hub)
    note = "" if pinned or about.revision != "main" else "  (not pinned; `datakit pin` pins it)"
    click.echo(f"hub       {about.hub} at {pinned or about.revision}{note}")
    click.echo(
        f"files     {about.annotations.files}" + (f" x {about.annotations.shards}" if about.annotations.shards else "")
    )
    for key, source in about.images.sources.items():
        click.echo(f"pictures  {key}: {source.prefix or '(all)'} in {source.archive}")
    if about.images.by == "url":
        click.echo("pictures  by URL")
    for key, count in about.expected.items():
        click.echo(f"expected  {count:,} {key.replace('_', ' ')}")
    for problem in about.problems:
        click.echo(f"known     {problem}")
    click.echo(f"recipe    {about.recipe}")
    for step in described:
        fields = {k: v for k, v in step.items() if k not in ("step", "stage", "version", "sources") and v is not None}
        click.echo(f"  {step['step']:6}  {step['stage']} " + ", ".join(f"{k} {v}" for k, v in fields.items()))


@cli.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_place
def status(name: str | None, as_json: bool, **place: Any) -> None:
    """What is done, stale and missing in the root, step by step, with the causes of what was lost."""
    from datakit import audit
    from datakit.shards import ranges
    from datakit.store import Store

    settings = _settings(**place)
    if name:
        _run(settings, name.partition("@")[0])  # an unknown name is refused
    found = [one for run in audit.runs(Store(settings.root), name) for one in audit.status(run)]
    if as_json:
        _json([one.plain() for one in found])
        return
    if not found:
        click.echo(f"nothing in {settings.root!r} yet; start with `datakit fetch {name or 'NAME'}`")
    for one in found:
        line = f"{one.dataset}/{one.step}: {len(one.done)} done"
        if one.stale:
            line += f", {len(one.stale)} stale ({ranges(one.stale)})"
        if one.missing:
            line += f", {len(one.missing)} missing"
        click.echo(f"{line}; {one.rows:,} rows")
        for field in one.differs:
            click.echo(f"    made by another recipe: {field}")
        for what, counts in (("dropped", one.dropped), ("failed", one.faults)):
            for reason, n in counts.most_common():
                click.echo(
                    f"    {what:8} {reason:18} {n:>12,}  {n / max(1, one.rows + sum(one.dropped.values())):6.1%}"
                )


@cli.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--repair", is_flag=True, help="Forget broken shards, so that the next run makes them again.")
@_place
def verify(name: str | None, as_json: bool, repair: bool, **place: Any) -> None:
    """Read every file of the root and compare it with what was committed."""
    from datakit import audit
    from datakit.store import Store

    settings = _settings(**place)
    store = Store(settings.root)
    if name:
        _run(settings, name.partition("@")[0])
    whole, broken, forgotten = 0, [], []
    for run in audit.runs(store, name):
        found = list(audit.verify(run))
        wrong = [one for one in found if isinstance(one, audit.Broken)]
        whole += len(found) - len(wrong)
        broken += wrong
        if repair:
            forgotten += audit.repair(run, wrong)
    if name is None:
        mixes = list(audit.verify_mixes(store))
        broken += [one for one in mixes if isinstance(one, audit.Broken)]
        whole += len(mixes) - sum(isinstance(one, audit.Broken) for one in mixes)
    if as_json:
        listed = [{"file": b.where, "problem": b.what, "cure": b.cure} for b in broken]
        _json({"whole": whole, "broken": listed, "forgotten": forgotten})
    else:
        for one in broken:
            click.echo(f"{one.where}: {one.what}")
        for shard in forgotten:
            click.echo(f"forgotten: {shard}")
        click.echo(f"{whole} files are whole, {len(broken)} are not")
        if broken:
            step = "run" if repair else "run `datakit verify --repair`, then"
            click.echo(f"To mend it, {step} " + " and ".join(sorted({f"`{b.cure}`" for b in broken})))
    if broken:
        sys.exit(1)


@cli.command()
@click.argument("name")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Of the trial with that limit.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@_place
def clean(name: str, limit: int | None, dry_run: bool, **place: Any) -> None:
    """Remove what later steps have made superfluous: archives and tables once they are packed."""
    from datakit import audit
    from datakit.progress import size_text

    settings = _settings(**place)
    run = _run(settings, name, limit=limit)
    others = [other for other in audit.runs(run.store) if other.folder != run.folder]
    files = audit.superfluous(run, others)
    if not dry_run:
        audit.clean(run, files)
    for file in files:
        click.echo(f"{file.name}  {size_text(file.size_bytes)}")
    total = size_text(sum(file.size_bytes for file in files))
    click.echo(f"{'would remove' if dry_run else 'removed'} {len(files)} files, {total}")


@cli.command()
@click.argument("name")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--as", "wanted", metavar="SOURCE", help="Which of the dataset's files it is, when its name doesn't say.")
@_place
def adopt(name: str, file: str, wanted: str | None, **place: Any) -> None:
    """Use a file that you have already, such as COCO's train2017.zip, instead of downloading it."""
    from pathlib import Path

    from datakit import builder
    from datakit.progress import size_text

    run = _run(_settings(**place), name)
    address, done = builder.adopt(run, Path(file), wanted)
    click.echo(f"{done.path} stands for {address}: {size_text(done.size_bytes)}, sha256 {done.sha256}")


@cli.command()
@click.argument("name")
@click.option("--out", type=click.Path(), help="File to write. [beside the manifest]")
@_place
def pin(name: str, out: str | None, **place: Any) -> None:
    """Write the commits, sizes and hashes that upstream has today beside the manifest."""
    from pathlib import Path

    from datakit import builder, catalogue, manifest
    from datakit.store import publish_file

    run = _run(_settings(**place), name)
    pinned = builder.pin(run)
    path = Path(out) if out else catalogue.find("manifests", f"{name}.toml").with_suffix(".sums")
    publish_file(path, manifest.sums(name, pinned).encode())
    unhashed = sum(digest is None for _, digest in pinned.files.values())
    click.echo(f"{path}: {len(pinned.commits)} commits, {len(pinned.files)} files")
    if unhashed:
        click.echo(f"{unhashed} of them have no hash yet: upstream gives none; pin again once they are downloaded")


@cli.command()
@click.option("--root", metavar="DIR", help="Keep the result there. [a temporary folder, removed]")
@click.option("--no-train", is_flag=True, help="Leave the training steps out.")
def demo(root: str | None, no_train: bool) -> None:
    """The whole chain on a miniature of the upstreams, on this machine, in a minute or two."""
    from datakit.demo import play

    sys.exit(play(root, train=not no_train))


def _json(value: Any) -> None:
    import json

    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
