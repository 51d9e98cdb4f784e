"""The examples do what their README says, one after the other, and each stays short enough to be read at once."""

import shutil
from pathlib import Path

import pytest
from pages import Reader
from users import typed

from datakit.catalogue import manifest

EXAMPLES = Path(__file__).parents[1] / "examples"
LOOP = "python examples/own_loop.py"


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """Somebody who has the examples and has followed their README up to the training loop."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EXAMPLES, "examples", ignore=shutil.ignore_patterns("__pycache__"))
    reader = Reader({"DATAKIT_JOBS": "1"}, left_out=(LOOP,))
    reader.reads(EXAMPLES / "README.md")
    return reader


def test_an_own_dataset_goes_through_an_own_filter_into_a_mix(reader):
    about = manifest.read(Path("shapes/manifests/shapes.toml"))

    assert about.expected == {} and about.licence == "CC0-1.0"
    assert Path("data/mixes/answers-train/mix.json").is_file()


@pytest.mark.torch
def test_an_own_loop_that_is_stopped_and_run_again_ends_with_the_weights_of_one_that_is_not(reader, capsys):
    torch = pytest.importorskip("torch", reason="needs the `train` extra")
    lines = [command for command in reader.commands if command.startswith(LOOP)]
    mix, checkpoint = lines[0].split()[2:4]

    for line in lines:
        reader.runs(line.split()[1:])
    reader.runs(["examples/own_loop.py", mix, "whole.pt", lines[-1].split()[-1]])

    stopped, whole = (torch.load(path, weights_only=True) for path in (checkpoint, "whole.pt"))
    assert len(lines) == 2 and stopped["stream"] == whole["stream"]
    assert all(torch.equal(stopped["model"][name], weights) for name, weights in whole["model"].items())


@pytest.mark.torch
def test_an_own_loop_says_in_one_line_that_a_checkpoint_is_of_another_mix(reader):
    pytest.importorskip("torch", reason="needs the `train` extra")
    mix = "data/mixes/answers-train/mix.json"
    reader.runs(["examples/own_loop.py", mix, "loop.pt", "1"])
    typed("build-mix shapes:2 --name other", reader.env)

    with pytest.raises(SystemExit, match="error: this state belongs to another stream"):
        reader.runs(["examples/own_loop.py", "data/mixes/other/mix.json", "loop.pt", "2"])


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: path.name)
def test_an_example_is_read_in_one_look(path):
    assert len(path.read_text().splitlines()) <= 75
