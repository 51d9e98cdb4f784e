"""Writes the pages of docs/ that are generated: `make docs`, or `python docs/generate.py`.

commands.md is what `--help` prints, datasets.md what manifests/*.toml say, and recipes.md what pipelines/*.py make of
the datasets. To change a page, change what it is read from; tests/test_docs.py compares them.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import pkgutil
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from datakit import catalogue, errors, stages
from datakit.catalogue import manifest as manifests
from datakit.catalogue.manifest import Manifest, Source
from datakit.cli import cli
from datakit.commands import settings
from datakit.engine import pipeline
from datakit.engine.stage import Stage, Step
from datakit.process.terminal import size_text
from datakit.stream import mixfile

DOCS = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py from {source}. Change that, and run `make docs`. -->\n"
WIDTH = 118  # of help texts, in characters
manifest_of = functools.cache(manifests.load)

EXIT_CODES = """\
## Exit codes

| code | when |
|---|---|
| 0 | Done. |
| 1 | The data or the recipe is wrong or incomplete, or the machine stood in the way. What was committed is kept. |
| 2 | The command itself is wrong: an unknown name, option or value. |
| 130 | Interrupted, by Ctrl-C or SIGTERM. What was committed is kept, and the command that goes on is printed. |

A message says what happened, where, and what to do; it goes to standard error. These commands also end with 1 when what
they looked for is what they found:

| command | ends with 1 when |
|---|---|
| `check` | rows would be dropped as things are |
| `doctor` | the dataset is in archives, and one of its files can't be had |
| `list` | a manifest or a recipe can't be read; the others are listed |
| `verify` | a file isn't what its commit says, also when `--repair` has dealt with it |

In Python each kind of trouble is an exception of `datakit.errors`:

"""


def commands_page() -> str:
    """docs/commands.md: what every command prints for `--help`, the settings, and the exit codes."""
    top = click.Context(cli, info_name="datakit", terminal_width=WIDTH, max_content_width=WIDTH, **cli.context_settings)
    short = [
        [f"[`{name}`](#datakit-{name})", prose(command.get_short_help_str(limit=200))]
        for name, command in cli.commands.items()
    ]
    helps = [
        f"## datakit {name}\n\n{code(click.Context(command, info_name=name, parent=top).get_help())}"
        for name, command in cli.commands.items()
    ]
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.DatakitError)]
    parts = [
        NOTE.format(source="the help texts of datakit/commands"),
        "# Commands\n\nEvery command, as `datakit COMMAND --help` prints it. [Exit codes](#exit-codes) and "
        "[settings](#settings) are at the end.\n",
        table(["command", "what it does"], short),
        "## datakit\n\n" + code(top.get_help()),
        *helps,
        "## Settings\n\n" + code(settings.__doc__ or ""),
        EXIT_CODES
        + table(
            ["exception", "a kind of", "exit code", "what it means"],
            [
                [f"`{kind.__name__}`", f"`{kind.__base__.__name__}`", str(kind.exit_code), prose(first_lines(kind))]
                for kind in kinds
                if kind.__base__ is not None
            ],
        ),
    ]
    return "\n".join(parts)


# Datasets


def datasets_page() -> str:
    """docs/datasets.md: what each manifest says."""
    every = [manifests.read(catalogue.find("manifests", f"{name}.toml")) for name in catalogue.names("manifests")]
    rows = [
        [
            f"[`{about.name}`](#{about.name})",
            prose(about.title) + " (lost)" * bool(about.lost),
            amount(about, "rows"),
            amount(about, "bytes"),
            PICTURES[about.images.by].partition(",")[0],
            recipe_link(about.recipe),
        ]
        for about in every
    ]
    parts = [
        NOTE.format(source="manifests/*.toml"),
        "# Datasets\n\n`datakit info NAME` prints what stands here, `datakit fetch NAME` fetches it. Rows and sizes "
        "are by the authors' word. Where that is from, and each defect with its source, is in "
        "[docs/upstreams.md](upstreams.md).\n",
        table(["dataset", "title", "rows", "size", "pictures", "recipe"], rows),
        *map(dataset_section, every),
    ]
    return "\n".join(parts)


PICTURES = {
    "url": "by URL, crawled",
    "path": "in archives, which are read by their indexes and not unpacked",
    "inline": "in the rows, beside their text",
    "folder": "in a folder, as loose files",
    "none": "none, it is text only",
}


def dataset_section(about: Manifest) -> str:
    """What a manifest says, as a section of the page."""
    rows = about.annotations
    facts = [
        ("homepage", about.homepage),
        ("licence", prose(about.licence)),
        ("terms", f"{prose(about.accept)} (`--accept-licence` accepts them)" if about.accept else ""),
        ("lost", prose(about.lost)),
        ("in its place", f"[`{about.fallback}`](#{about.fallback}), with `--fallback`" if about.fallback else ""),
        ("size", "; ".join(expected(about, key, count) for key, count in about.expected.items())),
        ("rows", rows_from(about)),
        ("parts", ", ".join(f"`{about.name}.{subset}`" for subset in rows.subsets)),
        ("kept keys", ", ".join(f"`{name}` ({kind})" for name, kind in rows.attributes.items())),
        ("pictures", PICTURES[about.images.by]),
        ("recipe", recipe_link(about.recipe)),
        ("citation", prose(about.citation)),
        ("more", f"[docs/upstreams.md](upstreams.md#{about.name}), {source_link('manifests', f'{about.name}.toml')}"),
    ]
    parts = [f"## `{about.name}`\n\n{prose(about.title)}.\n", table(["", ""], [[k, v] for k, v in facts if v])]
    if sources := about.images.sources:
        head = ["pictures", "named in rows as", "archive", "licence"]
        parts.append(table(head, [source_row(name, source) for name, source in sources.items()]))
    if by_hand := [f"- `{name}`: {prose(source.obtain)}" for name, source in sources.items() if source.obtain]:
        parts.append(
            "No program can get these. Bring them with `datakit adopt`, or go `--without` them:\n\n"
            + "\n".join(by_hand)
            + "\n"
        )
    if about.problems:
        parts.append("Known problems:\n\n" + "".join(f"- {prose(problem)}\n" for problem in about.problems))
    return "\n".join(parts)


def rows_from(about: Manifest) -> str:
    """Where the annotations are, and in which form."""
    rows = about.annotations
    files = [f"`{file}`" for file in (rows.files if isinstance(rows.files, list) else [rows.files])]
    if rows.shards:
        files[0] += f", {len(rows.numbers()):,} of them"
    if rows.inside:
        files[0] += f", in it `{rows.inside}`"
    where = ""
    if about.hub:
        commit = about.pinned.commits.get(about.hub)
        revision = f"commit `{commit}`" if commit else f"`{about.revision}`, not pinned"
        where = f", from [{about.hub}](https://huggingface.co/datasets/{about.hub}) at {revision}"
    return f"{rows.format}, {' and '.join([', '.join(files[:-1]), files[-1]] if files[1:] else files)}{where}"


def source_row(name: str, source: Source) -> list[str]:
    """A row of the table of a dataset's pictures."""
    number = f", {source.parts} parts" if source.parts else ""
    whose = f" (only for {', '.join(source.subsets)})" if source.subsets else ""
    prefix = f"`{source.prefix}…`" if source.prefix else "any path"
    return [f"`{name}`{whose}", prefix, f"`{source.archive}`{number}", prose(source.licence)]


UNITS = {"rows": "rows", "images": "pictures", "with_image": "rows with a picture", "shards": "shards", "bytes": ""}


def expected(about: Manifest, key: str, count: int) -> str:
    """A number of [expected] in words: `about 558,128 rows`, `143,000 rows of allava.text`."""
    what = next(unit for unit in sorted(UNITS, key=len, reverse=True) if key.startswith(unit))
    rest = key.removeprefix(what).split("_")[1:]
    roughly = "about " if rest[:1] == ["about"] else ""
    subset = "_".join(rest[bool(roughly) :])
    number = size_text(count).replace(".0 ", " ") if what == "bytes" else f"{count:,} {UNITS[what]}"
    return f"{roughly}{number}" + (f" of `{about.name}.{subset}`" if subset else "")


def amount(about: Manifest, what: str) -> str:
    """How many rows or bytes a whole dataset has; "" where the authors don't say."""
    key = next((key for key in (what, f"{what}_about") if key in about.expected), None)
    return expected(about, key, about.expected[key]).removesuffix(" rows") if key else ""


# Recipes


def recipes_page() -> str:
    """docs/recipes.md: each recipe's docstring, its mixes, and its steps for each dataset."""
    names = catalogue.names("pipelines")
    rows = [[recipe_link(name, page=""), prose(docstring(name).partition("\n")[0])] for name in names]
    parts = [
        NOTE.format(source="pipelines/*.py and the docstrings of datakit/stages"),
        "# Recipes\n\n`datakit run RECIPE` makes all that a recipe with mixes trains on, `datakit fetch DATASET "
        "--recipe RECIPE` fetches a dataset by another recipe than its manifest's. Of each step only the fields are "
        "shown that differ from the default.\n",
        table(["recipe", "what it is"], rows),
        *map(recipe_section, names),
        "## Stages\n\nWhat a step may be; one of your own is a class in your recipe file, see "
        "[docs/adding.md](adding.md).\n",
        table(
            ["stage", "role", "fields", "what it does"],
            [[stage_link(kind), kind.role, fields_of(kind), prose(first_lines(kind))] for kind in stage_classes()],
        ),
    ]
    return "\n".join(parts)


def recipe_section(name: str) -> str:
    """A recipe as a section of the page."""
    parts = [f"## `{name}`\n\n{prose(docstring(name))}\n\nIn {source_link('pipelines', f'{name}.py')}.\n"]
    if mixes := mixes_of(name):
        parts.append(code(f"datakit run {name}"))
        parts.append(table(["phase", "mix"], [[f"`{phase}`", f"`{mix}`"] for phase, mix in mixes.items()]))
    named_by = [f"[`{d}`](datasets.md#{d})" for d in catalogue.names("manifests") if manifest_of(d).recipe == name]
    if named_by:
        parts.append(f"Made by it unless another recipe is asked for: {', '.join(named_by)}.\n")
    for whose, steps in steps_by_datasets(name):
        parts += [f"{whose}:\n", table(["step", "role", "stage", "fields"], [step_row(step) for step in steps])]
    if training := getattr(pipeline.load(name), "TRAINING", None):
        parts.append(f"What the trainer reads: {', '.join(f'`{field}`' for field in changed(training))}.\n")
    return "\n".join(parts)


def mixes_of(name: str) -> dict[str, str]:
    """What the phases of a recipe train on; nothing for one without mixes."""
    return pipeline.mixes(name) if hasattr(pipeline.load(name), "MIXES") else {}


def steps_by_datasets(name: str) -> list[tuple[str, tuple[Step, ...]]]:
    """The steps of a recipe, with the datasets that they are for; those that share all their steps stand together."""
    said = getattr(pipeline.load(name), "STEPS", {})
    known = catalogue.names("manifests")
    mixed = [term for mix in mixes_of(name).values() for term, _ in mixfile.parse(mix, known)]
    datasets = list(dict.fromkeys([*mixed, *(dataset for dataset in said if dataset != "*")]))
    shared: dict[tuple[Step, ...], list[str]] = {}
    for dataset in datasets:
        shared.setdefault(pipeline.steps(name, manifest_of(dataset)), []).append(dataset)
    found = [
        (", ".join(f"[`{d}`](datasets.md#{d.partition('.')[0]})" for d in some), steps)
        for steps, some in shared.items()
    ]
    if "*" in said:
        whoever = next(dataset for dataset in known if dataset not in said)
        found.append(("Any other dataset" if found else "Any dataset", pipeline.steps(name, manifest_of(whoever))))
    return found


def step_row(step: Step) -> list[str]:
    """A row of the table of a recipe's steps."""
    fields = changed(step.stage) + [text for text in changed(step) if text.startswith("tolerates=")]
    return [f"`{step.name}`", step.role, stage_link(type(step.stage)), ", ".join(f"`{field}`" for field in fields)]


def changed(thing: Any) -> list[str]:
    """The fields of a dataclass that differ from their defaults, as they would be typed: `share=0.2`."""
    values = {field: getattr(thing, field.name) for field in dataclasses.fields(thing)}
    return [f"{field.name}={value!r}" for field, value in values.items() if value != field.default]


def stage_classes() -> list[type[Stage]]:
    """The stages that datakit has, in the order in which steps stand."""
    found = [
        kind
        for module in pkgutil.iter_modules(stages.__path__)
        for kind in vars(importlib.import_module(f"{stages.__name__}.{module.name}")).values()
        if isinstance(kind, type) and issubclass(kind, Stage) and kind.__module__.endswith(f".{module.name}")
    ]
    order = ["list", "choose", "fetch", "pack", "score"]
    return sorted(found, key=lambda kind: (order.index(kind.role), kind.__name__))


def fields_of(kind: type[Stage]) -> str:
    """The fields that a stage takes, with their defaults."""
    fields = dataclasses.fields(kind)
    return ", ".join(
        f"`{field.name}`" if field.default is dataclasses.MISSING else f"`{field.name}={field.default!r}`"
        for field in fields
    )


def stage_link(kind: type[Stage]) -> str:
    """A link to the source of a stage."""
    return f"[`{kind.__name__}`](../{kind.__module__.replace('.', '/')}.py)"


def recipe_link(name: str, page: str = "recipes.md") -> str:
    """A link to the section of a recipe."""
    return f"[`{name}`]({page}#{name})"


def source_link(folder: str, name: str) -> str:
    """A link to a file of the repository."""
    return f"[{folder}/{name}](../{folder}/{name})"


def docstring(recipe: str) -> str:
    """What a recipe says of itself."""
    return (pipeline.load(recipe).__doc__ or "").strip()


# Markdown


def prose(text: str) -> str:
    """Plain text as Markdown: signs that would mean something are escaped, papers and docs/upstreams.md are links."""
    pieces = re.split(r"(`[^`]*`)", text)
    pieces[::2] = [re.sub(r"([<*])", r"\\\1", piece) for piece in pieces[::2]]
    linked = re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", "".join(pieces))
    return re.sub(r"docs/upstreams\.md", "[docs/upstreams.md](upstreams.md)", linked)


def first_lines(kind: type) -> str:
    """The first paragraph of a class's docstring, on one line."""
    return " ".join((kind.__doc__ or "").partition("\n\n")[0].split())


def code(text: str) -> str:
    """A fenced block."""
    return f"```\n{text.strip()}\n```\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


PAGES: dict[str, Callable[[], str]] = {
    "commands.md": commands_page,
    "datasets.md": datasets_page,
    "recipes.md": recipes_page,
}


if __name__ == "__main__":
    os.environ["DATAKIT_CATALOGUE"] = ""  # only what comes with datakit
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), "utf-8")
