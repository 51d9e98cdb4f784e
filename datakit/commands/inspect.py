"""Commands that look into a dataset, or take one out of datakit's form: check, export."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from datakit.commands.options import ACCEPT, WITHOUT, load_settings, names_of, open_build, root_options
from datakit.process.terminal import say, say_json

if TYPE_CHECKING:
    from datakit.reports.check import Report
    from datakit.upkeep.export import ExportReport, Format


@click.command()
@click.argument("name")
@click.option("--repair/--no-repair", default=None, help="Keep rows whose only fault can be mended without guessing.")
@click.option("--full", is_flag=True, help="Read every picture whole, not only its first bytes.")
@click.option("--shards", metavar="RANGE", help="Only these, e.g. 0-127 or 0,4-6. [all]")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="N rows of each annotation file.")
@WITHOUT
@ACCEPT
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@root_options
def check(
    name: str,
    repair: bool | None,
    full: bool,
    shards: str | None,
    limit: int | None,
    without: str | None,
    accept: bool,
    as_json: bool,
    **root_flags: Any,
) -> None:
    """What is wrong with a dataset, before it is made.

    Reads the annotations and the archives' indexes, which are downloaded if they aren't here, and counts what is
    wrong or odd, with five examples each. Exit code 1 says that rows would be lost to faults as things are.

    --repair turns on what can be mended surely: a picture that is there under another extension is found by the
    rest of its name, and its row says so in `repairs`. --no-repair turns it off.
    """
    from datakit.commands.progress import ProgressBars
    from datakit.storage.shards import parse_shards
    from datakit.upkeep.mending import check_and_mend

    build = open_build(load_settings(**root_flags), name, limit=limit, without=names_of(without), accept=accept)
    with ProgressBars(build.folder) as progress:
        chosen = parse_shards(shards) if shards is not None else None
        checked = check_and_mend(build, repair=repair, full=full, shards=chosen, progress=progress)
    report = checked.report
    if as_json:
        say_json({**report.json_object(), "repaired": repair and checked.turned_on})
    else:
        _show(report)
        if checked.mended is not None:
            _show_repair(name, checked.mended, needs_rebuild=checked.needs_rebuild)
        elif repair:
            say("there is nothing that --repair would mend")
        elif report.repairable:
            say(f"`datakit check {name} --repair` keeps {report.repairable:,} of them")
    if report.dropped:
        sys.exit(1)


def _show(report: Report) -> None:
    say(f"{report.dataset}: {report.rows:,} rows, {report.kept:,} are kept as things are")
    found = report.findings()
    wide = max((len(finding.what) for finding in found), default=0)
    for finding in found:
        say(f"{finding.count:>12,}  {finding.what:{wide}}  {finding.effect}")
        for example in finding.examples:
            called = f" id {example.id}" if example.id else ""
            say(f"{'':14}  {example.where}{called}: {example.value}".rstrip(": "))
    for note in report.notes:
        say(f"note: {note}")
    if not found:
        say("nothing is wrong with it")


def _show_repair(name: str, rows: int, *, needs_rebuild: bool) -> None:
    """What the repair does, and how to have it."""
    again = " --rebuild, for it was fetched without" if needs_rebuild else ""
    say(
        f"repair extension is on: a picture that is there under another extension is found, and its row says so "
        f"in `repairs`. That keeps {rows:,} rows more, from the next `datakit fetch {name}` on{again}"
    )


@click.command()
@click.argument("name")
@click.option("--format", "form", type=click.Choice(["llava", "hf"]), required=True, help="LLaVA's JSON, or datasets.")
@click.option("--out", type=click.Path(), required=True, metavar="DIR", help="A new folder, or s3://… and its like.")
@click.option("--no-images", is_flag=True, help="llava: only the JSON, with upstream's references.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Of the trial with that limit.")
@root_options
def export(name: str, form: Format, out: str, no_images: bool, limit: int | None, **root_flags: Any) -> None:
    """Write a packed dataset as other tools read it.

    llava: an array of id, image, conversations and the keys that annotations.attributes of the manifest names, and
    pictures below DIR/images. It equals upstream's up to the repairs that it counts; other keys aren't in it. hf: a
    folder for datasets.load_dataset with the columns messages and images, as TRL reads them, and one for each of those
    keys.
    """
    from datakit.commands.progress import ProgressBars
    from datakit.mixing import assembly
    from datakit.storage.shards import ranges
    from datakit.storage.store import Store
    from datakit.upkeep.export import export as write

    build = open_build(load_settings(**root_flags), name, limit=limit)
    assembly.require_fetched([build])
    part = assembly.mix_part(build, 1)
    with ProgressBars(build.folder) as progress:
        own = build.manifest.annotations.attributes
        done = write(
            build.store, part, Store(out), form=form, attributes=own, pictures=not no_images, progress=progress
        )
    if left_out := assembly.unpacked_shards(build):
        more = f"`datakit build-mix {name} --fetch` adds them"
        say(f"  shards {ranges(left_out)} aren't packed, and not in it; {more}")
    _show_export(done)
    if form == "llava":
        kept = ", ".join(["id", "image", "conversations", *own])
        say(f"  keys other than {kept} aren't in it; `datakit check {name}` lists them")
    say(f"{out}: {done.rows:,} rows of {build.folder}, {done.pictures:,} pictures")


def _show_export(done: ExportReport) -> None:
    """What differs from upstream, and what couldn't be written."""
    for reason, n in done.left_out.most_common():
        say(f"  left out: {n:,} rows that LLaVA has no form for ({reason})")
    if done.pairs:
        say(f"  {done.pairs:,} pairs: the caption answers a question of only the picture")
    if done.renamed:
        say(f"  {done.renamed:,} pictures stand below by-key/, for what upstream calls them is no path of its own")
    if done.repairs:
        said = ", ".join(f"{name} {n:,}" for name, n in done.repairs.most_common())
        say(f"  differs from upstream's by these repairs: {said}")
