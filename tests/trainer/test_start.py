"""What is checked and decided before anything slow is loaded: `run` stands for the training itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the `train` extra")
pytest.importorskip("transformers", reason="needs the `train` extra")

from datakit.stream.reader import Stream
from trainer import loop, train
from trainer.config import load

RECIPE = """
import dataclasses
from trainer.config import load

TRAINING = dataclasses.replace(load("toy")[1], epochs=4.0{more})
"""
LAST = 11  # steps: 4 epochs of 22 samples, 8 at a time


@pytest.fixture
def runs(monkeypatch) -> list[dict]:
    """What `run` was called with, each time."""
    calls: list[dict] = []
    monkeypatch.setattr(loop, "run", lambda training, stream, out, **more: calls.append({"training": training, **more}))
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.fixture
def start(runs, toy_mix, tmp_path):
    """Starts the trainer in this process: `start("--max-steps", "2", more=", lr=2e-3")`."""

    def starts(*line: str, more: str = "") -> int:
        path = tmp_path / "mine.py"
        path.write_text(RECIPE.format(more=more))
        return train.main(["--recipe", str(path), "--mix", str(toy_mix), "--out", str(tmp_path / "run"), *line])

    return starts


@pytest.fixture
def trained(toy_mix, tmp_path):
    """Writes what a run leaves: a checkpoint, a model of some step, a ZeRO stage, a number of processes."""

    def leaves(step: int, model: int | None = None, zero_stage: int = 2, processes: int = 1) -> Path:
        path = tmp_path / "mine.py"
        path.write_text(RECIPE.format(more=""))
        name, training = load(str(path))
        stream = Stream(toy_mix, seed=training.seed)
        kept = {
            "step": step,
            "processes": processes,
            "zero_stage": zero_stage,
            "stream": stream.state(step * 8),
            "identity": {"recipe": name, **training.identity(), "mix": stream.fingerprint},
        }
        folder = tmp_path / "run" / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "stream.json").write_text(json.dumps(kept))
        if model is not None:
            (tmp_path / "run" / "model").mkdir()
            (tmp_path / "run" / "model" / "training.json").write_text(json.dumps({"step": model}))
        return tmp_path / "run"

    return leaves


def zero(folder: Path, stage: int) -> str:
    """More of a recipe: a file of that ZeRO stage."""
    path = folder / f"stage{stage}.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    return f", zero={str(path)!r}"


def test_a_run_of_which_the_model_is_there_has_nothing_to_do(start, runs, trained):
    trained(8, model=8)

    assert start("--max-steps", "8") == 0
    assert not runs


@pytest.mark.parametrize("model", [2, None])
def test_a_model_older_than_the_checkpoint_is_saved_again(start, runs, trained, model):
    trained(8, model=model)

    assert start("--max-steps", "8") == 0
    assert [(run["start"], run["last"], run["steps"]) for run in runs] == [(8, 8, LAST)]


def test_fewer_steps_than_are_done_save_the_model_of_what_is_done(start, runs, trained):
    trained(8, model=2)

    assert start("--max-steps", "2") == 0
    assert [(run["start"], run["last"]) for run in runs] == [(8, 8)]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-steps", "0"),
        ("--max-steps", "-1"),
        ("--max-steps", "2.5"),
        ("--micro-batch", "0"),
        ("--data-workers", "-1"),
    ],
)
def test_a_number_that_makes_no_sense_is_a_usage_error(start, runs, capsys, option, value):
    with pytest.raises(SystemExit) as caught:
        start(f"{option}={value}")

    assert caught.value.code == 2
    assert f"{option}: a whole number, " in capsys.readouterr().err
    assert not runs


def test_options_of_a_run_are_taken_as_they_are(start, runs):
    assert start("--max-steps", "3", "--micro-batch", "4", "--data-workers", "0") == 0

    assert [(run["last"], run["training"].micro_batch, run["workers"]) for run in runs] == [(3, 4, 0)]


def test_a_world_size_without_a_rank_is_nobodys(start, runs, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "16")

    assert start() == 0
    assert runs


def test_a_run_that_only_logged_is_not_emptied_by_another_recipe(start, runs, tmp_path, caplog):
    assert start() == 0
    (tmp_path / "run" / "log.jsonl").write_text('{"step": 1}\n')

    assert start(more=", lr=2e-3") == 1
    assert start("--resume", "never", more=", lr=2e-3") == 1
    assert start() == 0

    assert "lr: 0.001 -> 0.002" in caplog.text
    assert (tmp_path / "run" / "log.jsonl").read_text() == '{"step": 1}\n'
    assert len(runs) == 2


def test_a_recipe_may_be_mended_as_long_as_no_step_was_done(start, runs, tmp_path):
    assert start(more=", lr=2e-3") == 0

    assert start() == 0

    assert len(runs) == 2
    assert json.loads((tmp_path / "run" / "run.json").read_text())["identity"]["lr"] == 1e-3


def test_a_damaged_identity_is_no_free_pass(start, runs, tmp_path, caplog):
    assert start() == 0
    (tmp_path / "run" / "log.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "run" / "run.json").write_text("{")

    assert start() == 1
    assert "remove this file" in caplog.text
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("saved", "stage", "words"),
    [(2, 0, "saved under ZeRO stage 2, and stage 0"), (0, 1, "saved under ZeRO stage 0, and stage 1")],
)
def test_zero_0_and_the_others_do_not_go_on_with_each_other(
    start, runs, trained, tmp_path, caplog, saved, stage, words
):
    trained(4, zero_stage=saved)

    assert start(more=zero(tmp_path, stage)) == 2
    assert words in caplog.text
    assert not runs


def test_zero_0_stays_on_its_number_of_processes(start, runs, trained, tmp_path, caplog):
    trained(4, zero_stage=0, processes=2)

    assert start(more=zero(tmp_path, 0)) == 2
    assert "saved under ZeRO stage 0 by 2 processes" in caplog.text
    assert not runs


@pytest.mark.parametrize(("saved", "stage", "processes"), [(2, 1, 1), (1, 2, 2), (0, 0, 1)])
def test_other_changes_of_zero_go_on(start, runs, trained, tmp_path, saved, stage, processes):
    trained(4, zero_stage=saved, processes=processes)

    assert start(more=zero(tmp_path, stage)) == 0
    assert [(run["start"], run["saved_by"]) for run in runs] == [(4, processes)]


def test_a_folder_that_cannot_be_made_says_so(runs, toy_mix, tmp_path, caplog):
    (tmp_path / "file").write_text("")

    assert train.main(["--recipe", "toy", "--mix", str(toy_mix), "--out", str(tmp_path / "file" / "run")]) == 1
    assert "can't write" in caplog.text


def test_a_mistake_in_a_recipe_is_told_before_torch_is_loaded(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(RECIPE.format(more=", template='nope'"))
    code = (
        "import sys\nfrom trainer import train\n"
        f"status = train.main(['--recipe', {str(path)!r}, '--mix', 'x', '--out', 'x'])\n"
        "assert not {'torch', 'transformers', 'deepspeed'} & set(sys.modules)\n"
        "sys.exit(status)\n"
    )

    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert told.returncode == 2, told.stderr
    assert "unknown template 'nope'" in told.stderr
    assert "Traceback" not in told.stderr
