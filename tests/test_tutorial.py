"""The tutorial is followed from top to bottom, and then the page on the library, which goes on where it ends."""

import json
import os
import shlex
from pathlib import Path

import pytest
from forks import TRAIN
from pages import Reader

ROOT = Path(__file__).parents[1]
TRAINING = "python -m trainer.train"


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Somebody who has followed the tutorial up to the training, and the folder where."""
    place = tmp_path_factory.mktemp("tutorial")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        reader = Reader({"DATAKIT_JOBS": "1"}, left_out=(TRAINING,))
        reader.reads(ROOT / "docs/tutorial.md")
        yield reader


def test_every_command_of_the_tutorial_does_what_it_says(reader):
    commands = [command.split()[1] for command in reader.commands if command.startswith("datakit ")]

    assert commands == ["add", "info", "check", "check", "fetch", "build-mix", "status", "verify"]
    assert len(reader.names["stream"]) == 12


def test_the_examples_of_the_library_page_work(reader):
    reader.reads(ROOT / "docs/library.md")

    assert json.loads(Path("loud/mixes/loud-train/mix.json").read_text())["samples"] == 11


def test_the_training_line_of_the_tutorial_trains(reader, trainers):
    (line,) = (command for command in reader.commands if command.startswith(TRAINING))
    words = [*shlex.split(line.removeprefix(TRAINING)), "--max-steps", "1", "--data-workers", "0"]

    run = trainers.start(TRAIN, *words, env={**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)})

    err = run.communicate()[1]
    assert run.returncode == 0, err[-3000:]
    assert len(Path("runs/holiday/log.jsonl").read_text().splitlines()) == 1
    assert Path("runs/holiday/model/config.json").is_file()
