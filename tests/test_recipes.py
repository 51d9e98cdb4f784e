"""The recipes: what each makes is a golden file, and every number has its source."""

import ast
import json
import os
from pathlib import Path

import pytest

from datakit import catalogue
from datakit.catalogue import manifest
from datakit.engine import pipeline
from datakit.storage.fingerprint import canonical_json, json_value
from datakit.stream import mixfile as mix

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests/golden"
REWRITE = "DATAKIT_GOLDEN=write python -m pytest tests/test_recipes.py"
FILES = sorted((ROOT / "pipelines").glob("[a-z]*.py"))


def table(name, what):
    return getattr(pipeline.load(name), what, {})


DATA = [path.stem for path in FILES if table(path.stem, "STEPS") or table(path.stem, "MIXES")]
PAPERS = [name for name in DATA if table(name, "MIXES")]


def datasets(recipe):
    """The datasets that a recipe has steps for: those of its mixes, and those that its STEPS name."""
    if set(table(recipe, "STEPS")) == {"*"}:  # for any: what the catalogue makes by it, else one such dataset
        return [name for name in catalogue.names("manifests") if manifest.load(name).recipe == recipe] or ["m3it"]
    named = [name for name in table(recipe, "STEPS") if name != "*"]
    mixed = [
        name
        for expression in (pipeline.mixes(recipe) if recipe in PAPERS else {}).values()
        for name, _ in mix.parse(expression, catalogue.names("manifests"))
    ]
    return sorted({*mixed, *(name for name in named if not any(m.partition(".")[0] == name for m in mixed))})


def described(recipe):
    """What a golden file says: the identity of every step of every dataset, and the mixes."""
    steps = {}
    for name in datasets(recipe):
        about = manifest.load(name)
        steps[name] = {step.name: json_value(step.stage.identity(about)) for step in pipeline.steps(recipe, about)}
    return {"mixes": pipeline.mixes(recipe) if recipe in PAPERS else {}, "steps": steps}


@pytest.mark.parametrize("recipe", DATA)
def test_a_recipe_is_what_its_golden_file_says(recipe):
    path = GOLDEN / f"{recipe}.json"
    found = json.loads(canonical_json(described(recipe)))
    if os.environ.get("DATAKIT_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n")

    assert path.exists(), f"{path} isn't there yet. Write it with\n  {REWRITE}"
    expected = json.loads(path.read_text())

    assert found == expected, f"{recipe} makes something else than before. If that is meant:\n  {REWRITE}"


def test_no_golden_file_is_left_of_a_recipe_that_went():
    assert {path.stem for path in GOLDEN.glob("*.json")} <= set(DATA)


def test_every_guide_is_a_recipe():
    assert {
        "vila",
        "libmoe",
        "qinstruct_mix",
        "qinstruct_after",
        "icm_msft",
        "icm_csft",
        "dense_connector",
        "llava15",
    } <= set(PAPERS)


@pytest.mark.parametrize("recipe", PAPERS)
def test_every_dataset_of_a_mix_can_be_had_or_names_what_stands_for_it_and_has_steps(recipe):
    for name in datasets(recipe):
        about = manifest.load(name)

        assert pipeline.steps(recipe, about)
        if about.lost:
            assert pipeline.steps(recipe, manifest.load(about.fallback))


@pytest.mark.parametrize("name", catalogue.names("manifests"))
def test_the_recipe_that_a_manifest_names_is_there_and_has_steps_for_it(name):
    about = manifest.load(name)

    assert pipeline.steps(about.recipe, about)
    for subset in about.annotations.subsets:
        assert pipeline.steps(about.recipe, manifest.load(f"{name}.{subset}"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_file_has_no_loop_no_path_and_a_source_for_every_number(path):
    lines = path.read_text().splitlines()
    tree = ast.parse(path.read_text())

    for node in ast.walk(tree):
        assert not isinstance(node, (ast.For, ast.While, ast.comprehension, ast.FunctionDef, ast.Lambda))
        if not isinstance(node, ast.Constant):
            continue
        assert not (isinstance(node.value, str) and node.value.startswith(("/", "~")))
        if path.stem != "toy" and type(node.value) in (int, float):  # every number of the toy is ours, as it says
            line, above = lines[node.lineno - 1], lines[node.lineno - 2].strip()
            assert "#" in line or above.startswith("#"), f"{path.name}:{node.lineno} says {node.value}; who says so?"


@pytest.mark.parametrize("recipe", PAPERS)
def test_a_papers_docstring_names_its_stages_in_order(recipe):
    told = pipeline.load(recipe).__doc__

    places = [told.find(f"`{stage}`") for stage in pipeline.mixes(recipe)]

    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize("recipe", PAPERS)
def test_steps_of_a_paper_say_nothing_that_the_manifests_own_recipe_says_already(recipe):
    for name in table(recipe, "STEPS"):
        about = manifest.load(name)

        assert about.recipe == recipe or pipeline.steps(recipe, about) != pipeline.steps(about.recipe, about)


# What one recipe made, another takes as it is


@pytest.mark.parametrize("name", ["llava558k", "llava665k", "qinstruct"])
def test_recipes_that_share_a_dataset_share_what_is_made_of_it(name):
    about = manifest.load(name)

    made = {
        canonical_json([(s.name, s.stage.identity(about)) for s in pipeline.steps(recipe, about)])
        for recipe in [*(p for p in PAPERS if name in datasets(p)), about.recipe]
    }

    assert len(made) == 1


def test_coyo_in_vila_is_the_recipe_coyo25m():
    about = manifest.load("coyo")

    assert pipeline.steps("vila", about) == pipeline.steps("coyo25m", about)


def test_m3it_and_mmc4_differ_from_their_other_forms_in_one_field():
    for recipe, other, name, step, field in (
        ("vila", "m3it_glued", "m3it", "list", "separator"),
        ("vila", "mmc4_keep", "mmc4", "pack", "missing"),
    ):
        about = manifest.load(name)
        one, two = ({s.name: json_value(s.stage) for s in pipeline.steps(which, about)} for which in (recipe, other))

        assert one[step].pop(field) != two[step].pop(field)
        assert one == two


def test_25_million_of_coyo_are_25_million():
    (choice,) = [step.stage for step in pipeline.steps("coyo25m", manifest.load("coyo")) if step.name == "top25m"]

    assert round(choice.share * manifest.load("coyo").expected["rows"]) == 25_000_000


def test_mmc4_has_23_085_shards_less_those_that_core_ff_lacks():
    rows = manifest.load("mmc4").annotations

    assert rows.shards == 23_099
    assert len(rows.absent) == 16  # the 14 that never were, and two more that core-ff lacks (docs/upstreams.md U72)
    assert len(rows.numbers()) == 23_083
