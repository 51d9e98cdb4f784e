"""Commands that only look: list, info, status, verify. Each prints JSON when asked to."""

from __future__ import annotations

import sys
from typing import Any

import click

from datakit.commands.options import load_settings, open_run, placed
from datakit.errors import ManifestError


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """The datasets of the catalogue."""
    from datakit import catalogue, manifest

    found, wrong = [], False
    for name in catalogue.names("manifests"):
        try:
            found.append(manifest.load(name))
        except ManifestError as error:  # one mistake doesn't hide the others
            wrong = True
            click.echo(f"error: {error}", err=True)
    if as_json:
        _json([{"name": m.name, "title": m.title, "recipe": m.recipe, "licence": m.licence} for m in found])
        sys.exit(int(wrong))
    wide = max((len(m.name) for m in found), default=4)
    for one in found:
        click.echo(f"{one.name:{wide}}  {one.title}  [{one.licence.partition('(')[0].partition(';')[0].strip()}]")
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


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@placed
def status(name: str | None, as_json: bool, **place: Any) -> None:
    """What is done in the root, what was lost, and why."""
    from datakit import audit
    from datakit.shards import ranges
    from datakit.store import Store

    settings = load_settings(**place)
    if name:
        open_run(settings, name.partition("@")[0])  # an unknown name is refused
    store = Store(settings.root)
    store.check()
    found = [one for run in audit.runs(store, name) for one in audit.status(run)]
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


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--repair", is_flag=True, help="Forget broken shards, so that the next run makes them again.")
@placed
def verify(name: str | None, as_json: bool, repair: bool, **place: Any) -> None:
    """Read every file and compare it with its commit."""
    from itertools import chain

    from datakit import audit
    from datakit.progress import Progress
    from datakit.store import Store

    settings = load_settings(**place)
    store = Store(settings.root)
    store.check()
    if name:
        open_run(settings, name.partition("@")[0])
    whole, broken, forgotten = 0, [], []
    for run in audit.runs(store, name):
        found = []
        with Progress(run.folder, noun="files") as progress:
            for one in chain(audit.verify(run), audit.verify_downloads(run)):
                found.append(one)
                progress.tell("verify", "rows", 1)
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
            ours = any(not b.where.startswith("mixes/") for b in broken)
            step = "run `datakit verify --repair`, then" if ours and not repair else "run"
            click.echo(f"To mend it, {step} " + " and ".join(sorted({f"`{b.cure}`" for b in broken})))
    if broken:
        sys.exit(1)


def _json(value: Any) -> None:
    import json

    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
