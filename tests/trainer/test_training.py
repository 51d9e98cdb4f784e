from __future__ import annotations

import dataclasses
import math

import pytest

from datakit.catalogue import find
from datakit.errors import UsageError
from trainer.config import Training, load

TOY = load("toy")[1]


def recipe(**changes: object) -> Training:
    return dataclasses.replace(TOY, **changes)


def test_a_recipe_is_found_by_name_and_by_path(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(find("pipelines", "toy.py").read_text().replace("lr=1e-3", "lr=2e-3"))

    assert load("toy") == ("toy", TOY)
    assert load(str(path)) == ("mine", recipe(lr=2e-3))


def test_an_unknown_recipe_is_answered_with_the_nearest_name():
    with pytest.raises(UsageError, match="Did you mean 'toy'"):
        load("toyy")


def test_a_file_without_training_says_what_it_lacks(tmp_path):
    (tmp_path / "data.py").write_text("STEPS = ()\n")

    with pytest.raises(UsageError, match="has no TRAINING"):
        load(str(tmp_path / "data.py"))
    with pytest.raises(UsageError, match="no recipe file"):
        load(str(tmp_path / "absent.py"))


@pytest.mark.parametrize("text", ["TRAINING =", "Training()", "from trainer.config import Training\nTraining(lrr=1)"])
def test_a_file_that_is_no_python_or_no_training_says_so(tmp_path, text):
    (tmp_path / "mine.py").write_text(text)

    with pytest.raises(UsageError, match=r"mine\.py' can't be read: "):
        load(str(tmp_path / "mine.py"))


@pytest.mark.parametrize(("processes", "micro_batch", "accumulation"), [(1, 8, 1), (2, 2, 2), (8, 1, 1)])
def test_accumulation_follows_from_the_global_batch(processes, micro_batch, accumulation):
    assert recipe(global_batch=8, micro_batch=micro_batch).accumulation(processes) == accumulation


def test_a_global_batch_that_cannot_be_shared_is_refused_with_its_numbers():
    with pytest.raises(UsageError, match="global batch of 8 can't be shared by 3 processes in micro batches of 2"):
        recipe(global_batch=8, micro_batch=2).accumulation(3)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image_aspect", "padd", "Did you mean 'pad'"),
        ("precision", "bf17", "Did you mean 'bf16'"),
        ("connector", "mlp", "unknown connector"),
        ("schedule", "linear", "unknown schedule"),
        ("trains", ("connector", "visoin"), "Did you mean 'vision'"),
        ("trains", (), "trains nothing"),
        ("template", "plane", "Did you mean 'plain'"),
        ("template", None, "unknown template None"),
        ("model", None, "model of a recipe must be a name or a path"),
        ("zero", None, "zero of a recipe must be a name or a path"),
        ("trains", "llm", "must be a tuple"),
        ("micro_batch", 0, "micro_batch of a recipe must be a whole number, 1 or more, not 0"),
        ("global_batch", 8.0, "global_batch of a recipe must be a whole number, 1 or more, not 8.0"),
        ("save_every_steps", 2.5, "save_every_steps of a recipe must be a whole number"),
        ("max_length", True, "max_length of a recipe must be a whole number"),
        ("image_size", 30, "image_size of the toy must be a multiple of 8"),
        ("max_steps", 0, "max_steps of a recipe must be a whole number, 1 or more, not 0"),
        ("max_steps", -3, "max_steps of a recipe must be a whole number, 1 or more, not -3"),
        ("seed", None, "seed of a recipe must be a whole number, 0 or more, not None"),
        ("seed", 10**30, "seed of a recipe must be"),
        ("epochs", math.nan, "epochs of a recipe must be a number above 0, not nan"),
        ("epochs", math.inf, "epochs of a recipe must be a number above 0, not inf"),
        ("epochs", "1", "epochs of a recipe must be a number above 0, not '1'"),
        ("lr", "1e-3", "lr of a recipe must be a number above 0, not '1e-3'"),
        ("lr", -1, "lr of a recipe must be a number above 0, not -1"),
        ("warmup_ratio", 2.0, "warmup_ratio of a recipe must be a number from 0 to 1, not 2.0"),
        ("warmup_ratio", -1, "warmup_ratio of a recipe must be a number from 0 to 1"),
        ("weight_decay", -1, "weight_decay of a recipe must be a number 0 or more"),
        ("max_grad_norm", -1, "max_grad_norm of a recipe must be a number 0 or more"),
        ("betas", (0.9,), "betas of a recipe must be two numbers"),
        ("betas", (0.9, 1.0), "betas of a recipe must be a number from 0 up to, but not, 1"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused_by_name(field, value, message):
    with pytest.raises(UsageError, match=message):
        recipe(**{field: value})


def test_the_last_step_runs_on_into_the_next_epoch():
    assert recipe(global_batch=8, epochs=1).steps(22) == 3
    assert recipe(global_batch=8, epochs=1).steps(24) == 3
    assert recipe(global_batch=8, epochs=1.5).steps(22) == 5
    assert recipe(global_batch=8, max_steps=2).steps(22) == 2


def test_the_learning_rate_warms_up_and_falls_to_nothing():
    rates = [recipe(lr=1.0, warmup_ratio=0.1).lr_at(step, 20) for step in range(21)]

    assert rates[:3] == [0.0, 0.5, 1.0]
    assert rates[11] == pytest.approx(0.5)
    assert rates[20] == pytest.approx(0.0)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert recipe(lr=1.0, schedule="constant").lr_at(15, 20) == 1.0
    assert math.isfinite(recipe(warmup_ratio=1.0).lr_at(1, 1))


def test_what_only_changes_how_a_run_is_carried_out_is_not_its_identity():
    faster = recipe(micro_batch=4, save_every_steps=1)

    assert faster.identity() == TOY.identity()
    assert recipe(lr=2e-3).identity() != TOY.identity()


def test_zero_settings_are_numbers(tmp_path):
    auto = tmp_path / "auto.json"
    auto.write_text('{"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}')

    assert TOY.zero_settings()["zero_optimization"]["stage"] == 2
    with pytest.raises(UsageError, match="only the HF Trainer resolves"):
        recipe(zero=str(auto)).zero_settings()
    with pytest.raises(UsageError, match=r"Did you mean 'zero2\.json'"):
        recipe(zero="zero22.json").zero_settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"zero_optimization": {"stage": 3}}', "ZeRO stage 3, which isn't there yet"),
        ('{"zero_optimization": {"stage": "2"}}', "There are 0, 1 and 2"),
        ('{"zero_optimization": true}', "must be a JSON object"),
        ("[]", "must be a JSON object"),
    ],
)
def test_zero_settings_that_cannot_be_trained_under_are_refused(tmp_path, text, message):
    path = tmp_path / "zero.json"
    path.write_text(text)

    with pytest.raises(UsageError, match=message):
        recipe(zero=str(path)).zero_settings()


def test_the_stage_of_zero_is_the_files(tmp_path):
    (tmp_path / "none.json").write_text("{}")

    assert TOY.zero_stage() == 2
    assert recipe(zero=str(tmp_path / "none.json")).zero_stage() == 0
