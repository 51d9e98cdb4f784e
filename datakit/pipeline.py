"""Pipeline: what we make of a dataset, one Python file in `pipelines/` for each paper's recipe.

A recipe file has `STEPS`, a dictionary from dataset names to tuples of Step. A part of a dataset, `allava.captions`,
has the steps under its own name, else those under `allava`; `"*"` stands for any other dataset. It may have `MIXES`,
what a paper's stages train on, as mix expressions in the order of training; and `TRAINING`, which the trainer reads.
The first step lists, then there are one that fetches and one that packs, in this order. Steps that choose stand before
or after the fetch; steps that score stand between fetch and pack, or after pack, beside one another.
"""

from __future__ import annotations

import re
from types import ModuleType

from datakit import catalogue, mix, usercode
from datakit import manifest as manifests
from datakit.errors import ManifestError, UsageError, nearest
from datakit.manifest import Manifest
from datakit.record import KEY
from datakit.stage import Step


def load(name: str) -> ModuleType:
    """The module of a recipe. Raises UsageError for an unknown name, ManifestError for a file that can't be run."""
    return usercode.load(catalogue.find("pipelines", f"{name}.py"))


def steps(recipe: str, manifest: Manifest) -> tuple[Step, ...]:
    """The steps that a recipe has for a dataset. Raises UsageError when it has none."""
    table = getattr(load(recipe), "STEPS", None)
    if not isinstance(table, dict):
        raise UsageError(f"recipe {recipe!r} has no data steps (it may be one for the trainer)")
    names = (manifest.name, manifest.name.partition(".")[0], "*")
    found = next((table[name] for name in names if name in table), None)
    if found is None:
        raise UsageError(f"recipe {recipe!r} has no steps for {manifest.name!r}. {nearest(manifest.name, table)}")
    if not isinstance(found, tuple) or not all(isinstance(step, Step) for step in found):
        raise ManifestError(f"recipe {recipe!r}: STEPS of {manifest.name!r} should be a tuple of Step, not {found!r}")
    _check_order(recipe, manifest, found)
    return found


# l, c, f, p, s: the roles of steps by their first letters.
_ORDER = re.compile(r"lc*f[cs]*ps*")


def _check_order(recipe: str, manifest: Manifest, steps: tuple[Step, ...]) -> None:
    """Raises ManifestError for steps of one name, or in an order that makes no sense."""
    names = [step.name for step in steps]
    if odd := next((name for name in names if not KEY.fullmatch(name)), None):
        raise ManifestError(f"recipe {recipe!r}: the name of a step may hold a-z, 0-9, _ and -, not {odd!r}")
    if len(set(names)) != len(names):
        raise ManifestError(f"recipe {recipe!r}: two steps of {manifest.name!r} have one name: {names}")
    if not _ORDER.fullmatch("".join(step.role[0] for step in steps)):
        shown = ", ".join(f"{step.name} ({step.role})" for step in steps)
        raise ManifestError(
            f"recipe {recipe!r}: the steps of {manifest.name!r} should list, choose, fetch, choose or score, pack and "
            f"score, with one to list, one to fetch and one to pack; they are: {shown}"
        )


def mixes(recipe: str) -> dict[str, str]:
    """What the stages of a recipe train on: mix expressions by stage, in the order of training.

    Raises UsageError when it has none, ManifestError for one that names what isn't in the catalogue.
    """
    module = load(recipe)
    table = getattr(module, "MIXES", None)
    if table is None:
        of = next((name for name in getattr(module, "STEPS", {}) if name != "*"), "NAME")
        raise UsageError(
            f"recipe {recipe!r} names no mixes, so there is nothing to run. Its steps are used by "
            f"`datakit fetch {of} --recipe {recipe}`"
        )
    if not isinstance(table, dict) or not table or not all(isinstance(text, str) for text in table.values()):
        raise ManifestError(f"recipe {recipe!r}: MIXES should be a dictionary from stages to mixes, not {table!r}")
    for stage, expression in table.items():
        if not isinstance(stage, str) or not KEY.fullmatch(stage):
            raise ManifestError(f"recipe {recipe!r}: the name of a stage may hold a-z, 0-9, _ and -, not {stage!r}")
        try:
            for name, _ in mix.parse(expression, catalogue.names("manifests")):
                manifests.load(name)
        except UsageError as error:
            raise ManifestError(f"recipe {recipe!r}, stage {stage!r}: {error}") from error
    return dict(table)
