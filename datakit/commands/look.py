"""Commands that only look: list, info, status, verify. Each prints JSON when asked to."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from datakit.commands.options import load_settings, open_build, paced, placed
from datakit.errors import ManifestError
from datakit.terminal import one_line, say, say_json

if TYPE_CHECKING:
    from datakit.build import Build
    from datakit.forecast import Forecast


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """The datasets of the catalogue, and the recipes for `datakit run`."""
    from datakit import catalogue, manifest

    found, wrong = [], False
    for name in catalogue.names("manifests"):
        try:
            found.append(manifest.load(name))
        except ManifestError as error:  # one mistake doesn't hide the others
            wrong = True
            say(error, err=True, label="error:")
    if as_json:
        say_json([{"name": m.name, "title": m.title, "recipe": m.recipe, "licence": m.licence} for m in found])
        sys.exit(int(wrong))
    wide = max((len(m.name) for m in found), default=4)
    for one in found:
        licence = one.licence.partition("(")[0].partition(";")[0].strip()
        note = "  LOST" if one.lost else "  TERMS" if one.accept else ""
        say(f"{one.name:{wide}}  {one_line(one.title)}  [{one_line(licence)}]{note}")
    say("\nRecipes for `datakit run`:")
    for name in catalogue.names("pipelines"):
        try:
            told = catalogue.mixes(name)
        except ManifestError as error:
            wrong = True
            say(error, err=True, label="error:")
            continue
        if told is not None:
            say(f"{name:{wide}}  {told}")
    sys.exit(int(wrong))


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(name: str, as_json: bool) -> None:
    """What a dataset is: licence, files, steps, problems."""
    from datakit import manifest, pipeline
    from datakit.fingerprint import plain

    about = manifest.load(name)
    steps = pipeline.steps(about.recipe, about)
    described = [{"step": s.name, **s.stage.identity(about)} for s in steps]
    if as_json:
        import msgspec

        say_json({**msgspec.to_builtins(about), "steps": plain(described)})
        return
    say("\n".join(filter(None, [about.title, about.homepage, about.citation])) + "\n")
    say(f"licence   {one_line(about.licence)}")
    for label, text in (("accept", about.accept), ("lost", about.lost), ("instead", about.fallback)):
        if text:
            say(f"{label:9} {text}")
    pinned = about.pinned.commits.get(about.hub)
    note = "" if pinned or about.revision != "main" else "  (not pinned; `datakit pin` pins it)"
    if about.hub:
        say(f"hub       {about.hub} at {pinned or about.revision}{note}")
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
    for step in described:
        fields = {k: v for k, v in step.items() if k not in ("step", "stage", "version", "sources") and v is not None}
        say(f"  {step['step']:6}  {step['stage']} " + ", ".join(f"{k} {v}" for k, v in fields.items()))


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@placed
def status(name: str | None, as_json: bool, **place: Any) -> None:
    """What is done in the root, what was lost, and why."""
    from datakit.opening import builds
    from datakit.shards import ranges
    from datakit.status import status as status_of
    from datakit.store import Store
    from datakit.web.outcomes import may_pass

    settings = load_settings(**place)
    if name:
        open_build(settings, name.partition("@")[0])  # an unknown name is refused
    store = Store(settings.root)
    store.check()
    found = [one for build in builds(store, name) for one in status_of(build)]
    if as_json:
        say_json([one.plain() for one in found])
        return
    if not found:
        say(f"nothing in {settings.root!r} yet; start with `datakit fetch {name or 'NAME'}`")
    for one in found:
        line = f"{one.dataset}/{one.step}: {len(one.done)} done"
        if one.stale:
            line += f", {len(one.stale)} stale ({ranges(one.stale)})"
        if one.missing:
            line += f", {len(one.missing)} missing"
        say(f"{line}; {one.rows:,} rows")
        for field in one.differs:
            say(f"    made by another recipe: {field}")
        came = max(1, one.rows + sum(one.dropped.values()))
        failed = Counter({reason: n for reason, n in one.faults.items() if reason not in one.dropped})
        for what, counts in (("dropped", one.dropped), ("failed", failed)):
            for reason, n in counts.most_common():
                again = "  --retry may help" if what == "failed" and one.by_url and may_pass(reason) else ""
                say(f"    {what:8} {reason:18} {n:>12,}  {n / came:6.1%}{again}")


@click.command()
@click.argument("name")
@click.option("--sample", type=click.IntRange(1), default=1000, metavar="N", help="Rows to try. [1000]")
@click.option("--shards", metavar="RANGE", help="Draw them from these. [those that are listed, else 0]")
@click.option("--seed", type=int, default=0, help="Of the draw. [0]")
@click.option("--recipe", metavar="NAME", help="Another recipe than the manifest's.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@paced
@placed
def doctor(
    name: str, sample: int, shards: str | None, seed: int, recipe: str | None, as_json: bool, **flags: Any
) -> None:
    """Forecast a fetch from a sample, before days are spent.

    Tries some URLs and says which share can be had, why the others can't, and what time and disk all of them will
    take. For a dataset in archives it asks upstream for each file and its size.
    """
    from datakit.progress import ProgressBars
    from datakit.shards import parse_shards

    settings = load_settings(**flags)
    build = open_build(settings, name, recipe=recipe)
    if build.manifest.images.by != "url":
        _archives(build, as_json)
        return
    from datakit.forecast import forecast

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
        say_json(found.plain())
        return
    _show_forecast(build, found, settings.jobs)


def _show_forecast(build: Build, found: Forecast, jobs: int) -> None:
    from datakit.progress import size_text, time_text
    from datakit.shards import ranges

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
        short = "  NOT ENOUGH" if found.free_bytes < 2 * disk.value else ""
        say(f"    free      {size_text(found.free_bytes)}{short}")
    if found.per_s.value:
        low, high = time_text(time_s.low), time_text(time_s.high)
        line = f"    time      {time_text(time_s.value)}" + (f"  ({low} to {high})" if low != high else "")
        say(f"{line} at {found.per_s.value:,.0f} URLs/s, held up by {found.held_by.rstrip(',')}")
    say("More machines: --slice I/N. What a sample can't show: how the network bears the load of days.")


def _archives(build: Build, as_json: bool) -> None:
    """What upstream says of each file of a dataset in archives, and whether there is room for them."""
    import posixpath

    from datakit.errors import DownloadError, shortlist
    from datakit.progress import size_text
    from datakit.stages.locate import by_hand
    from datakit.store import free_bytes
    from datakit.web import downloads
    from datakit.work import intact

    work, sources = build.work(build.steps[0]), build.manifest.images.sources
    given_up = {build.manifest.at_commit(a) for name in build.choices.without for a in sources[name].archives()}
    found: list[dict[str, Any]] = []
    for name, source, archives in by_hand(sources, work):
        if name not in build.choices.without:
            text = f"{shortlist(posixpath.basename(a) for a in archives)}. {source.obtain}"
            found.append({"name": name, "address": source.archive, "here": False, "problem": text})
        given_up |= {build.manifest.at_commit(archive) for archive in archives}
    for label, address in build.manifest.addresses().items():
        if address in given_up:
            continue
        path = work.local(address)
        one: dict[str, Any] = {"name": label, "address": address, "here": intact(path)}
        if one["here"]:
            one["bytes"] = path.stat().st_size
        else:
            try:
                one["bytes"] = downloads.head(address, hosts=build.hosts).size_bytes
            except DownloadError as error:
                one["problem"] = str(error)
        found.append(one)
    rows = build.manifest.annotations
    missing = sum({one["address"]: one.get("bytes") or 0 for one in found if not one["here"]}.values())
    free = free_bytes(build.store.downloads)
    if as_json:
        say_json({"files": found, "terms": build.terms, "bytes_to_download": missing, "free_bytes": free})
    else:
        for one in found:
            size = size_text(one["bytes"]) if one.get("bytes") is not None else "size unknown"
            state = one.get("problem") or ("here" if one["here"] else "can be had")
            say(f"    {one['name']:24} {size:>12}  {state}")
        if build.terms:
            say(f"    terms: {build.terms}; --accept-licence accepts them")
        if rows.glob:
            whole = build.manifest.expected.get("bytes_about")
            most = f" of {size_text(whole)}" if whole else ""
            say(f"    {rows.files}: parts{most} are read, by ranges, and not kept")
        short = "  NOT ENOUGH" if free < 2 * missing else ""
        say(f"to download {size_text(missing)}, and about as much again for `build-mix`; free {size_text(free)}{short}")
    if build.terms or any("problem" in one for one in found):
        sys.exit(1)


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--repair", is_flag=True, help="Forget broken shards, so that the next run makes them again.")
@placed
def verify(name: str | None, as_json: bool, repair: bool, **place: Any) -> None:
    """Read every file and compare it with its commit."""
    from datakit import holdings
    from datakit import repair as repairing
    from datakit import verify as verifying
    from datakit.progress import ProgressBars
    from datakit.store import Store

    settings = load_settings(**place)
    store = Store(settings.root)
    store.check()
    if name and not any(name in (one.folder, one.dataset) for one in holdings.holdings(store)):
        open_build(settings, name.partition("@")[0])  # an unknown name is refused
    found = []
    with ProgressBars(settings.root, noun="files") as progress:
        for one in verifying.verify(store, name):
            found.append(one)
            progress.rows("verify", 1)
    broken = [one for one in found if isinstance(one, verifying.Broken)]
    whole = len(found) - len(broken)
    forgotten = repairing.repair(store, broken) if repair and broken else []
    if as_json:
        listed = [{"file": b.where, "problem": b.what, "cure": " && ".join(b.cures)} for b in broken]
        say_json({"whole": whole, "broken": listed, "forgotten": forgotten})
    else:
        for one in broken:
            say(f"{one.where}: {one.what}")
        for shard in forgotten:
            say(f"forgotten: {shard}")
        say(f"{whole} files are whole, {len(broken)} are not")
        if broken:
            ours = any(not b.where.startswith("mixes/") for b in broken)
            first = ["datakit verify --repair"] if ours and not repair else []
            cures = dict.fromkeys(cure for b in broken for cure in b.cures)
            ordered = sorted(cures, key=lambda cure: not cure.startswith("datakit fetch"))
            if place["root"]:  # as it was typed; a root of the environment or the file needs no word
                first, ordered = (
                    [f"{one} --root {shlex.quote(place['root'])}" for one in lot] for lot in (first, ordered)
                )
            say("To mend it, build, one after the other:\n  " + "\n  ".join([*first, *ordered]))
    if broken:
        sys.exit(1)
