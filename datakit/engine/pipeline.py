"""Pipeline: what we make of a dataset, one Python file in `pipelines/` for each paper's recipe.

A recipe file may have `MIXES`, mix expressions by phase in the order of training; `STEPS`, the steps of datasets that
aren't made by their manifests' own recipes; and `TRAINING`, which the trainer reads. The steps of a dataset, say
`allava.captions`, are the first of these that the recipe has:

1. `STEPS["allava.captions"]`, for this part of the dataset only;
2. `STEPS["allava"]`, for the dataset and for each part of it that STEPS doesn't name;
3. `STEPS["*"]`, for any other dataset, also one that MIXES doesn't name;
4. the steps of the recipe that the dataset's manifest names (`recipe = "instruct"`), if MIXES names the dataset or a
   part of it, or a lost dataset that it stands for.

For any other dataset the recipe has no steps.

Steps are a tuple of Step, or what differs from another recipe's steps: `like("instruct", Step(...))`.
The first step lists; one step fetches, and after it one step packs. Steps that choose stand before or after the fetch;
steps that score stand between fetch and pack, or after pack, where each takes the rows of the pack step.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from types import ModuleType

from datakit import catalogue
from datakit.catalogue import manifest as manifests
from datakit.catalogue.manifest import Manifest
from datakit.engine.stage import Stage, Step
from datakit.errors import ManifestError, UsageError, nearest, shortlist
from datakit.process import usercode
from datakit.records.record import KEY
from datakit.storage.fingerprint import json_value
from datakit.stream import mixfile as mix


@dataclass(frozen=True)
class Like:
    """The steps of another recipe and what differs from them, as `like` takes them."""

    recipe: str
    but: tuple[Step, ...] = ()
    without: tuple[str, ...] = ()


def like(recipe: str, *but: Step, without: tuple[str, ...] = ()) -> Like:
    """The steps that another recipe has for the same dataset, except for the steps given here.

    A step replaces the one of its name; one that lists, fetches or packs replaces the one of its role. Any other is
    added: one that chooses just before the fetch, one that scores at the end. `without` names steps to leave out.

        like("instruct", Step(name="half", stage=StratifiedShare(share=0.5)))    one more choice
        like("vila", Step(name="pack", stage=Pack(missing="drop_image")))        packed in another way
    """
    return Like(recipe, but, without)


def load(name: str) -> ModuleType:
    """The module of a recipe. Raises UsageError for an unknown name, ManifestError for a file that can't be run."""
    return usercode.load(catalogue.find("pipelines", f"{name}.py"))


def steps(recipe: str, manifest: Manifest, *, via: tuple[str, ...] = ()) -> tuple[Step, ...]:
    """The steps that a recipe has for a dataset; `via` are the recipes that lead to this one by `like`, first to last.

    Raises UsageError when it has none, ManifestError for steps that can't be run.
    """
    found = _entry(recipe, manifest)
    if isinstance(found, Like):
        found = _steps_like(found, manifest, (*via, recipe))
    if not isinstance(found, tuple) or not all(isinstance(step, Step) for step in found):
        raise ManifestError(
            f"recipe {recipe!r}: STEPS of {manifest.name!r} should be a tuple of Step or like(...), not {found!r}"
        )
    for step in found:
        _check_step(recipe, step)
    _check_order(recipe, manifest, found)
    return found


def _check_step(recipe: str, step: Step) -> None:
    """Raises ManifestError for a step that couldn't be told from another by what its recipe.json says."""
    where = f"recipe {recipe!r}, step {step.name!r}"
    if not isinstance(step.stage, Stage):
        called = f": is it `{step.stage.__name__}(...)`?" if isinstance(step.stage, type) else ""
        raise ManifestError(f"{where}: stage should be an object of a stage's class, not {step.stage!r:.80}{called}")
    if not isinstance(step.tolerates, (int, float)) or not 0 <= step.tolerates <= 1:
        raise ManifestError(f"{where}: tolerates is a share from 0 to 1, not {step.tolerates!r:.80}")
    for kind in type(step.stage).__mro__:
        fields = [name for name, said in inspect.get_annotations(kind).items() if "ClassVar" not in str(said)]
        if fields and "__dataclass_fields__" not in vars(kind):
            raise ManifestError(
                f"{where}: {kind.__name__} has {shortlist(fields)} and no @dataclass(frozen=True, kw_only=True) above "
                "its class, so a change there would go unnoticed"
            )
    try:
        json_value(step.stage)
    except ManifestError as error:
        raise ManifestError(f"{where}: {error}") from error


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


def _entry(recipe: str, manifest: Manifest) -> object:
    """What a recipe file has for a dataset, by the rules above. Raises UsageError when that is nothing."""
    module = load(recipe)
    if not hasattr(module, "STEPS") and not hasattr(module, "MIXES"):
        raise UsageError(f"recipe {recipe!r} has no data steps (it may be one for the trainer)")
    table = getattr(module, "STEPS", {})
    if not isinstance(table, dict):
        raise ManifestError(f"recipe {recipe!r}: STEPS should be a dictionary from datasets to steps, not {table!r}")
    whole = manifest.name.partition(".")[0]
    _check_datasets(recipe, table, whole)
    for name in (manifest.name, whole, "*"):
        if name in table:
            return table[name]
    mixed = _datasets_of_mixes(recipe) if hasattr(module, "MIXES") else set()
    if whole in mixed or whole in map(_stand_in, mixed):
        return Like(manifest.recipe)
    raise UsageError(
        f"recipe {recipe!r} has no steps for {manifest.name!r}. {nearest(manifest.name, {*table, *mixed})}"
    )


def _check_datasets(recipe: str, table: dict[object, object], whole: str) -> None:
    """Raises ManifestError for a key of STEPS that is no dataset, nor the one that is asked for."""
    known = {*catalogue.names("manifests"), whole}
    for name in table:
        if name != "*" and (not isinstance(name, str) or name.partition(".")[0] not in known):
            raise ManifestError(
                f"recipe {recipe!r}: STEPS has {name!r}, which is no dataset. {nearest(str(name), known)}"
            )


def _datasets_of_mixes(recipe: str) -> set[str]:
    """The datasets that the mixes of a recipe name, whole or in part."""
    known = catalogue.names("manifests")
    return {name.partition(".")[0] for text in mixes(recipe).values() for name, _ in mix.parse(text, known)}


def _stand_in(dataset: str) -> str:
    """The dataset that may be taken in place of a lost one; "" when there is none."""
    about = manifests.load(dataset)
    return about.fallback if about.lost else ""


def _steps_like(entry: Like, manifest: Manifest, via: tuple[str, ...]) -> tuple[Step, ...]:
    """The steps of another recipe with what `via[-1]` has otherwise. Raises ManifestError when they can't be had."""
    whose = f"recipe {via[-1]!r}: the steps of {manifest.name!r}"
    if (
        not isinstance(entry.recipe, str)
        or not isinstance(entry.without, tuple)
        or not all(isinstance(step, Step) for step in entry.but)
    ):
        raise ManifestError(f'{whose} should be like("RECIPE", Step(...), without=("STEP",)), not {entry!r}')
    if entry.recipe in via:
        circle = " -> ".join([*via, entry.recipe])
        raise ManifestError(
            f"{whose} are written out nowhere, for each recipe points to the next: {circle}. Write them out in one"
        )
    try:
        usual = steps(entry.recipe, manifest, via=via)
    except UsageError as error:
        raise ManifestError(f"{whose} are like those of {entry.recipe!r}, but {error}") from error
    names = [step.name for step in usual]
    if unknown := [name for name in entry.without if name not in names]:
        raise ManifestError(
            f"{whose}: {entry.recipe!r} has no step {unknown[0]!r} to leave out. {nearest(unknown[0], names)}"
        )
    kept = [step for step in usual if step.name not in entry.without]
    more = [step for step in entry.but if not any(_replaces(step, usual_step) for usual_step in kept)]
    merged: list[Step] = []
    for step in kept:
        merged += [choice for choice in more if choice.role == "choose"] if step.role == "fetch" else []
        merged += [other for other in entry.but if _replaces(other, step)] or [step]
    return (*merged, *(step for step in more if step.role != "choose"))


def _replaces(step: Step, usual: Step) -> bool:
    """Whether a step of `like(...)` replaces one of the other recipe's steps."""
    return step.name == usual.name or (step.role == usual.role and step.role in ("list", "fetch", "pack"))


def mixes(recipe: str) -> dict[str, str]:
    """What a recipe trains on: mix expressions by phase, in the order of training.

    Raises UsageError when it has none, ManifestError for an expression that names a dataset outside the catalogue.
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
        raise ManifestError(f"recipe {recipe!r}: MIXES should be a dictionary from phases to mixes, not {table!r}")
    for phase, expression in table.items():
        if not isinstance(phase, str) or not KEY.fullmatch(phase):
            raise ManifestError(f"recipe {recipe!r}: the name of a phase may hold a-z, 0-9, _ and -, not {phase!r}")
        try:
            for name, _ in mix.parse(expression, catalogue.names("manifests")):
                manifests.load(name)
        except UsageError as error:
            raise ManifestError(f"recipe {recipe!r}, phase {phase!r}: {error}") from error
    return dict(table)
