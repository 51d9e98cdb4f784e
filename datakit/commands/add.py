"""The command that adds a dataset of the user's own to the catalogue."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from datakit.commands.options import load_settings
from datakit.errors import UsageError
from datakit.process.terminal import say


@click.command()
@click.argument("name")
@click.option("--hub", metavar="OWNER/REPO[@REV]", help="A dataset repository of the Hugging Face hub.")
@click.option("--file", "pattern", metavar="PATTERN", help="Which of its files hold the rows, e.g. 'data/train-*'.")
@click.option(
    "--json", "json_file", type=click.Path(exists=True, dir_okay=False), metavar="FILE", help="A JSON of your own."
)
@click.option("--images", type=click.Path(exists=True), metavar="DIR|ARCHIVE", help="Where its pictures are.")
@click.option("--catalogue", "folder", metavar="DIR", help="Where to write. [DATAKIT_CATALOGUE, else ./catalogue]")
@click.option("--force", is_flag=True, help="Write over a manifest that is there.")
def add(
    name: str,
    hub: str | None,
    pattern: str | None,
    json_file: str | None,
    images: str | None,
    folder: str | None,
    force: bool,
) -> None:
    """Describe a dataset that isn't in the catalogue.

    Looks into a repository of the hub, or at a JSON and its pictures, writes the manifest, and says what it found:
    conversations in JSON, Parquet with pictures, or WebDataset tars.
    """
    from datakit import add as adding
    from datakit.add import files
    from datakit.add import hub as repository

    if (hub is None) == (json_file is None):
        raise UsageError("say what to add: either --hub OWNER/REPO, or --json FILE with --images DIR")
    if (hub is None and pattern is not None) or (json_file is None and images is not None):
        raise UsageError("--file goes with --hub, and --images with --json")
    catalogue, seen = adding.catalogue_folder(folder)
    adding.check(name, catalogue, force=force)
    if hub is not None:
        draft = repository.look(hub, pattern, load_settings().hosts)
    else:
        draft = files.look(Path(str(json_file)), Path(images) if images else None)
    path = adding.write(name, draft, catalogue, force=force)
    say(f"{path}: {draft.title}")
    for what, text in draft.notes_by_kind():
        say(f"  {what:9} {text}")
    say("Look it over, then run")
    if not seen:
        say(f"  export DATAKIT_CATALOGUE={shlex.quote(str(catalogue.absolute()))}")
    say(f"  datakit fetch {name}\n  datakit build-mix {name}")
