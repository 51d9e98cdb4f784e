from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the `train` extra")

from datakit.errors import RecipeChanged, StorageError
from trainer import resume

LOG = "log.jsonl"


def checkpoint(out: Path, step: int, name: str = "step-{:08d}") -> Path:
    folder = out / "checkpoints" / name.format(step)
    folder.mkdir(parents=True)
    (folder / "stream.json").write_text(json.dumps({"step": step}))
    return folder


def lines(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert resume.newest(tmp_path) is None


def test_the_newest_whole_checkpoint_is_found_and_half_ones_are_not(tmp_path):
    checkpoint(tmp_path, 9)
    checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 11, ".step-{:08d}.part")

    assert resume.newest(tmp_path) == 10
    assert resume.read(tmp_path, 10) == {"step": 10}


def test_what_a_kill_left_half_written_is_removed_and_the_rest_stays(tmp_path):
    whole = checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 11, ".step-{:08d}.part")
    checkpoint(tmp_path, 10, ".universal-{:08d}.part")
    (tmp_path / ".model.part").mkdir()

    resume.clean(tmp_path, 10, (LOG,))

    assert list((tmp_path / "checkpoints").iterdir()) == [whole]
    assert list(tmp_path.iterdir()) == [tmp_path / "checkpoints"]


def test_a_checkpoint_that_cannot_be_read_says_so(tmp_path):
    (checkpoint(tmp_path, 10) / "stream.json").write_text("{")

    with pytest.raises(StorageError, match="Remove its folder to go on from the one before"):
        resume.read(tmp_path, 10)


@pytest.mark.parametrize(("step", "left"), [(0, []), (2, [1, 2]), (3, [1, 2, 3]), (9, [1, 2, 3])])
def test_a_log_loses_the_lines_after_the_checkpoint_and_a_half_one(tmp_path, step, left):
    (tmp_path / LOG).write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')

    resume.clean(tmp_path, step, (LOG,))

    assert lines(tmp_path / LOG) == left


def test_every_field_that_differs_is_named(tmp_path):
    kept = {"recipe": "toy", "mix": "aaa", "seed": 0, "global_batch": 8, "lr": 0.1}

    with pytest.raises(RecipeChanged) as caught:
        resume.check_identity(tmp_path, kept, {**kept, "mix": "bbb", "seed": 1, "global_batch": 16})

    assert str(caught.value).splitlines()[1:] == [
        "  global_batch: 8 -> 16",
        '  mix: "aaa" -> "bbb"',
        "  seed: 0 -> 1",
        "Give another --out, or train as it was begun.",
    ]
    resume.check_identity(tmp_path, kept, kept)
