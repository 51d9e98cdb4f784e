"""How the steps and the mixes of a recipe are found, and what a user's own recipe is told."""

import re

import pytest

from datakit.catalogue import manifest
from datakit.engine import pipeline
from datakit.errors import ManifestError, UsageError

RECIPE = """
from datakit.engine.stage import Step
from datakit.stages.clip_top import ClipTop
from datakit.stages.listing import Listing
from datakit.stages.locate import Locate
from datakit.stages.pack import Pack

def steps(share):
    return (
        Step(name="list", stage=Listing()),
        Step(name="top", stage=ClipTop(share=share, floor=0)),
        Step(name="fetch", stage=Locate()),
        Step(name="pack", stage=Pack()),
    )
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a recipe of the user's own, `mine`."""
    (tmp_path / "pipelines").mkdir()
    monkeypatch.setenv("DATAKIT_CATALOGUE", str(tmp_path))
    return lambda text: (tmp_path / "pipelines/mine.py").write_text(RECIPE + text)


def test_a_part_of_a_dataset_has_its_own_steps_before_the_datasets_before_any(own):
    own('STEPS = {"allava.captions": steps(0.1), "allava": steps(0.2), "*": steps(0.3)}')

    found = {
        name: pipeline.steps("mine", manifest.load(name))[1].stage.share
        for name in ("allava.captions", "allava.text", "allava", "qinstruct")
    }

    assert found == {"allava.captions": 0.1, "allava.text": 0.2, "allava": 0.2, "qinstruct": 0.3}


def test_a_dataset_of_a_mix_that_steps_do_not_name_goes_by_its_manifests_recipe(own):
    own('STEPS = {"llava665k": steps(0.1)}\nMIXES = {"sft": "coyo+llava665k", "more": "allava.captions"}')

    for name, recipe in (("coyo", "coyo_vila"), ("allava.captions", "instruct"), ("allava", "instruct")):
        about = manifest.load(name)

        assert pipeline.steps("mine", about) == pipeline.steps(recipe, about)
    assert pipeline.steps("mine", manifest.load("llava665k"))[1].name == "top"


def test_a_recipe_may_have_mixes_only(tmp_path, own):
    own("")
    (tmp_path / "pipelines/mine.py").write_text('MIXES = {"sft": "qinstruct"}')
    about = manifest.load("qinstruct")

    assert pipeline.steps("mine", about) == pipeline.steps("instruct", about)


def test_what_stands_for_a_lost_dataset_of_a_mix_goes_by_its_manifests_recipe(own):
    own('MIXES = {"pretrain": "mmc4_core"}')

    lost, instead = manifest.load("mmc4_core"), manifest.load("mmc4")

    assert lost.fallback == "mmc4"
    assert pipeline.steps("mine", instead) == pipeline.steps("vila", instead)


def test_steps_for_any_dataset_come_before_the_manifests_recipe(own):
    own('STEPS = {"*": steps(0.3)}\nMIXES = {"sft": "qinstruct"}')

    assert [pipeline.steps("mine", manifest.load(name))[1].name for name in ("qinstruct", "coyo")] == ["top", "top"]


def test_a_dataset_that_a_recipe_names_nowhere_has_no_steps_and_the_nearest_is_told(own):
    own('STEPS = {"coyo": steps(0.1)}\nMIXES = {"sft": "llava665k"}')

    with pytest.raises(UsageError, match=r"no steps for 'llava558k'\. Did you mean 'llava665k'"):
        pipeline.steps("mine", manifest.load("llava558k"))


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ('like("instruct")', "list fetch pack"),
        ('like("instruct", *steps(0.1)[1:2])', "list top fetch pack"),
        ('like("coyo_vila", *steps(0.1)[1:2])', "list top20 top fetch pack"),
        ('like("coyo_vila", *steps(0.1)[1:2], without=("top20",))', "list top fetch pack"),
        ('like("coyo_vila", without=("top20",))', "list fetch pack"),
        ('like("instruct", *(Step(name=name, stage=steps(1)[1].stage) for name in "ab"))', "list a b fetch pack"),
        ('like("instruct", Step(name="tars", stage=Pack(quality=1)))', "list fetch tars"),
    ],
)
def test_one_step_more_comes_before_the_fetch_and_one_can_be_left_out(own, written, names):
    own(f'from datakit.engine.pipeline import like\nSTEPS = {{"coyo": {written}}}')

    assert [step.name for step in pipeline.steps("mine", manifest.load("coyo"))] == names.split()


@pytest.mark.parametrize("name", ["list", "top20", "fetch", "pack"])
def test_a_step_of_the_same_name_takes_the_place_of_the_other_and_the_rest_stays(own, name):
    stage = {"list": "Listing()", "top20": "ClipTop(share=1, floor=0)", "fetch": "Locate()", "pack": "Pack(quality=1)"}
    step = f'Step(name="{name}", stage={stage[name]}, tolerates=0.5)'
    own(f'from datakit.engine.pipeline import like\nSTEPS = {{"*": like("coyo_vila", {step})}}')
    about = manifest.load("coyo")

    usual, ours = pipeline.steps("coyo_vila", about), pipeline.steps("mine", about)

    assert [s.name for s in ours] == [s.name for s in usual]
    assert [s.name for s, other in zip(ours, usual, strict=True) if s != other] == [name]


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ('like("instrukt")', "'instrukt'. Did you mean 'instruct'"),
        ('like("vila")', "'vila' has no steps for 'qinstruct'"),
        ('like("mine")', "each recipe points to the next: mine -> mine"),
        ('like("instruct", without=("fetsch",))', "no step 'fetsch' to leave out. Did you mean 'fetch'"),
        ('like("instruct", without=("fetch",))', "one to fetch and one to pack; they are: list (list), pack (pack)"),
        ('like("instruct", without="fetch")', 'should be like("RECIPE", Step(...), without=("STEP",))'),
        ('like("instruct", Pack())', 'should be like("RECIPE", Step(...), without=("STEP",))'),
        ("like(steps(0.1)[1])", 'should be like("RECIPE", Step(...), without=("STEP",))'),
        ('like("instruct", *steps(1)[1:2], *steps(2)[1:2])', "have one name: ['list', 'top', 'top', 'fetch', 'pack']"),
        ('"instruct"', "should be a tuple of Step or like(...)"),
    ],
)
def test_steps_that_cannot_be_had_are_told_with_recipe_and_dataset_or_order(own, written, says):
    own(f'from datakit.engine.pipeline import like\nSTEPS = {{"qinstruct": {written}}}')

    with pytest.raises(ManifestError, match=re.escape(says)) as caught:
        pipeline.steps("mine", manifest.load("qinstruct"))

    assert "recipe 'mine'" in str(caught.value)


def test_recipes_that_point_to_each_other_are_told_as_a_circle(own, tmp_path):
    own('from datakit.engine.pipeline import like\nSTEPS = {"*": like("other")}')
    other = 'from datakit.engine.pipeline import like\nSTEPS = {"*": like("mine")}'
    (tmp_path / "pipelines/other.py").write_text(other)

    with pytest.raises(ManifestError, match="mine -> other -> mine"):
        pipeline.steps("mine", manifest.load("qinstruct"))


def test_steps_that_are_no_dictionary_are_told_as_such(own):
    own("STEPS = ()")

    with pytest.raises(ManifestError, match="STEPS should be a dictionary from datasets to steps"):
        pipeline.steps("mine", manifest.load("qinstruct"))


@pytest.mark.parametrize(
    ("mixes", "kind", "says"),
    [
        ("", UsageError, "names no mixes"),
        ("MIXES = {}", ManifestError, "should be a dictionary"),
        ("MIXES = 'coyo'", ManifestError, "should be a dictionary"),
        ("MIXES = {'a': 1}", ManifestError, "should be a dictionary"),
        ("MIXES = {'Stage 1': 'coyo'}", ManifestError, "name of a phase"),
        ("MIXES = {'sft': 'qinstrukt'}", ManifestError, "Did you mean 'qinstruct'"),
        ("MIXES = {'sft': 'allava.caption'}", ManifestError, "Did you mean 'captions'"),
        ("MIXES = {'sft': 'coyo+coyo'}", ManifestError, "stands twice"),
    ],
)
def test_mixes_that_cannot_be_made_are_told_with_recipe_and_name(own, mixes, kind, says):
    own(f"STEPS = {{'*': steps(1)}}\n{mixes}")

    with pytest.raises(kind, match=re.escape(says)) as caught:
        pipeline.mixes("mine")

    assert "'mine'" in str(caught.value)


CHOICE = """
from dataclasses import dataclass
from datakit.engine.pipeline import like
from datakit.engine.stage import Filter

class Bare(Filter):
    n: int = 100

@dataclass(frozen=True, kw_only=True)
class Few(Filter):
    n: object = 100

def mine(stage, tolerates=0.05):
    return like("coyo_vila", Step(name="few", stage=stage, tolerates=tolerates))
"""


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ('{"coyoo": mine(Few())}', "STEPS has 'coyoo', which is no dataset. Did you mean 'coyo'"),
        ('{"coyo": mine(Few)}', "step 'few': stage should be an object of a stage's class"),
        ('{"coyo": mine(Few(), tolerates=5)}', "step 'few': tolerates is a share from 0 to 1, not 5"),
        ('{"coyo": mine(Few(n=print))}', "recipe 'mine', step 'few': <built-in function print>"),
        ('{"coyo": mine(Bare())}', "Bare has n and no @dataclass"),
    ],
)
def test_a_step_that_its_recipe_could_not_tell_of_is_refused(own, steps, told):
    own(f'{CHOICE}\nSTEPS = {steps}\nMIXES = {{"train": "coyo"}}')

    with pytest.raises(ManifestError, match=re.escape(told)):
        pipeline.steps("mine", manifest.load("coyo"))
