from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the `train` extra")
pytest.importorskip("transformers", reason="needs the `train` extra")

import torch
import torch.distributed as dist

from datakit.errors import RecipeChanged, StorageError
from trainer import folder, resume

LOG = "log.jsonl"
STATE = {"processes": 1, "stream": {}, "identity": {}}


def checkpoint(out: Path, step: int, name: str = "step-{:08d}") -> Path:
    path = out / "checkpoints" / name.format(step)
    path.mkdir(parents=True)
    (path / "stream.json").write_text(json.dumps({"step": step, **STATE}))
    return path


class Engine:
    """Saves as DeepSpeed's does, in its folder and with torch; a full disk is a link to /dev/full."""

    def __init__(self, *, full: bool = False, zipped: bool = True, module: object = None) -> None:
        self.full, self.zipped, self.module = full, zipped, module

    def save_checkpoint(self, path: str, tag: str) -> None:
        file = Path(path) / tag / "optimizer.pt"
        file.parent.mkdir(parents=True)
        if self.full:
            file.symlink_to("/dev/full")
        torch.save({"weights": torch.zeros(100_000)}, file, _use_new_zipfile_serialization=self.zipped)


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def saved(out: Path, step: int, **engine: bool) -> Path:
    """The optimizer file of a checkpoint that was just saved."""
    for name in folder.LOGS:
        (out / name).touch()
    resume.save(Engine(**engine), out, step, {"stream": {}, "identity": {}})
    return folder.checkpoint_folder(out, step) / "engine" / "optimizer.pt"


def lines(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert folder.newest_step(tmp_path) is None


def test_the_newest_whole_checkpoint_is_found_and_half_ones_are_not(tmp_path):
    checkpoint(tmp_path, 9)
    checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 11, ".step-{:08d}.part")

    assert folder.newest_step(tmp_path) == 10
    assert folder.read_state(tmp_path, 10) == {"step": 10, **STATE}


def test_what_a_kill_left_half_written_is_removed_and_the_rest_stays(tmp_path):
    whole = checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 11, ".step-{:08d}.part")
    checkpoint(tmp_path, 10, ".universal-{:08d}.part")
    (tmp_path / ".model.part").mkdir()

    folder.clean(tmp_path, 10)

    assert list((tmp_path / "checkpoints").iterdir()) == [whole]
    assert list(tmp_path.iterdir()) == [tmp_path / "checkpoints"]


def test_a_checkpoint_that_cannot_be_read_says_so(tmp_path):
    (checkpoint(tmp_path, 10) / "stream.json").write_text("{")

    with pytest.raises(StorageError, match=r"Remove folder .*step-00000010' to go on from the one before"):
        folder.read_state(tmp_path, 10)


@pytest.mark.parametrize(("step", "left"), [(0, []), (2, [1, 2]), (3, [1, 2, 3]), (9, [1, 2, 3])])
def test_a_log_loses_the_lines_after_the_checkpoint_and_a_half_one(tmp_path, step, left):
    (tmp_path / LOG).write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')

    folder.clean(tmp_path, step)

    assert lines(tmp_path / LOG) == left


def test_every_field_that_differs_is_named(tmp_path):
    kept = {"recipe": "toy", "mix": "aaa", "seed": 0, "global_batch": 8, "lr": 0.1}

    with pytest.raises(RecipeChanged) as caught:
        folder.check_identity(tmp_path, kept, {**kept, "mix": "bbb", "seed": 1, "global_batch": 16})

    assert str(caught.value).splitlines()[1:] == [
        "  global_batch: 8 -> 16",
        '  mix: "aaa" -> "bbb"',
        "  seed: 0 -> 1",
        "Give another --out, or train as it was begun.",
    ]
    folder.check_identity(tmp_path, kept, kept)


def test_a_checkpoint_is_loaded_as_it_was_written(tmp_path, alone):
    saved(tmp_path, 4)

    resume.check(tmp_path, 4)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda whole: whole[:-9], "was changed or cut short"),
        (lambda whole: whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:], "was changed or cut short"),
        (None, "is gone"),
    ],
)
def test_a_checkpoint_that_was_cut_or_changed_is_named(tmp_path, alone, harm, words):
    file = saved(tmp_path, 4)
    whole = file.read_bytes()
    file.unlink()
    if harm:
        file.write_bytes(harm(whole))

    with pytest.raises(
        StorageError, match=f"'engine/optimizer.pt' {words} .* Remove folder '.*step-00000004' to go on"
    ):
        resume.check(tmp_path, 4)


@pytest.mark.parametrize("zipped", [True, False])  # DeepSpeed can do both
def test_a_full_disk_is_one_sentence_and_leaves_the_checkpoint_before(tmp_path, alone, zipped):
    saved(tmp_path, 4)

    with pytest.raises(StorageError, match=r"can't write .*(full disk|No space left).* make room there") as caught:
        saved(tmp_path, 8, full=True, zipped=zipped)

    assert "\n" not in str(caught.value)
    assert folder.newest_step(tmp_path) == 4
    resume.check(tmp_path, 4)


def test_a_full_disk_leaves_the_model_before(tmp_path, alone):
    class Full:
        def save_pretrained(self, path: Path) -> None:
            path.mkdir()
            raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "training.json").write_text('{"step": 4}')

    with pytest.raises(StorageError, match="No space left on device"):
        resume.save_model(Engine(module=Full()), None, tmp_path, 8, {})

    assert folder.model_step(tmp_path) == 4


def test_an_error_that_is_none_of_the_disk_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"), folder.storage_errors(tmp_path, RuntimeError):
        raise RuntimeError("CUDA out of memory")


def test_a_model_that_does_not_say_its_step_has_none(tmp_path):
    (tmp_path / "model").mkdir()

    assert folder.model_step(tmp_path) is None
