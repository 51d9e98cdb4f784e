"""Real runs in processes of their own: trained, killed, gone on with, on one process and on two."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forks import TRAIN, Forked, Forks
from toymix import write_mix

pytest.importorskip("torch", reason="needs the `train` extra")
pytest.importorskip("transformers", reason="needs the `train` extra")
if importlib.util.find_spec("deepspeed") is None:
    pytest.skip("needs deepspeed of the `train` extra", allow_module_level=True)

import torch

from datakit.stream.reader import Stream
from trainer import data
from trainer.batch import Collate
from trainer.chat import Chat
from trainer.config import Training, load
from trainer.model import build, load_torchvision, loss_sum, weight_groups

ROOT = Path(__file__).parents[2]
RECIPE = """
import dataclasses
from trainer.config import load

TRAINING = dataclasses.replace(load("toy")[1], epochs=6.0, save_every_steps=4, weight_decay=0.1, seed=5{more})
"""
LAST = 17  # steps: 6 epochs of 22 samples, 8 at a time


def recipe(folder: Path, more: str = "", name: str = "short") -> Path:
    path = folder / f"{name}.py"
    path.write_text(RECIPE.format(more=more))
    return path


class Launch:
    """One launch of the trainer and all processes that came of it."""

    def __init__(self, trainers: Forks, *line: str | Path, ranks: int = 1) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        self.processes: list[subprocess.Popen[str] | Forked]
        if line[0] == TRAIN:
            group: list[dict[str, str]] = [{}]  # without a launcher
            if ranks > 1:
                all_of_them = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
                group = [{**all_of_them, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
            self.processes = [trainers.start(*line, env={**env, **ids}, new_session=True) for ids in group]
        else:
            process = subprocess.Popen(
                [str(part) for part in line],
                env=env,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            self.processes = [process]
        self.process = self.processes[0]
        self.told: list[str] = []

    def until(self, words: str) -> None:
        """Reads what it says up to a line with these words."""
        for line in self.process.stderr:
            self.told.append(line)
            if words in line:
                return
        pytest.fail(f"ended without saying {words!r}:\n" + "".join(self.told))

    def signal(self, number: int) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def end(self) -> int:
        """The exit status, once the last process that came of it is gone and stderr with it."""
        for process in self.processes:
            self.told.append(process.communicate(timeout=120)[1])
        return self.process.returncode

    def __str__(self) -> str:
        return "".join(self.told)


@pytest.fixture
def launch(trainers: Forks) -> Iterator[Callable[..., Launch]]:
    """Starts the trainer; nothing of it is left when the test is over."""
    started: list[Launch] = []

    def start(*line: str | Path, ranks: int = 1) -> Launch:
        started.append(Launch(trainers, *line, ranks=ranks))
        return started[-1]

    yield start
    for run in started:
        run.signal(signal.SIGKILL)
        run.end()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def forked(*more: str | Path) -> list[str | Path]:
    return [TRAIN, "--data-workers", "0", *more]


def two_by_torchrun(*more: str | Path) -> list[str | Path]:
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*line, "-m", "trainer.train", "--data-workers", "0", *more]


def lines(out: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    load_torchvision()
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration.from_pretrained(out / "model").state_dict()


def assert_close(out: Path, other: Path) -> None:
    expected = weights(other)
    for name, weight in weights(out).items():
        torch.testing.assert_close(weight, expected[name], atol=2e-4, rtol=1e-3, msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, toy_mix, trainers) -> Path:
    """The run that nobody disturbed, on one process."""
    folder = tmp_path_factory.mktemp("whole")
    run = Launch(trainers, *forked("--recipe", recipe(folder), "--mix", toy_mix, "--out", folder / "run"))
    assert run.end() == 0, run
    return folder / "run"


def reference(training: Training, mix: Path) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The same training in plain torch, each global batch in one piece: weights, and losses by step."""
    vlm = build(training)
    stream = Stream(mix, seed=training.seed)
    tokenizer = vlm.processor.tokenizer
    chat = Chat(tokenizer, template=training.template, image_tokens=vlm.image_tokens, max_length=training.max_length)
    examples = data.Examples(stream, chat, vlm.pictures)
    collate = Collate(tokenizer.pad_token_id, chat.image_id, chat.image_tokens)
    optimizer = torch.optim.AdamW(weight_groups(vlm.model, training.weight_decay), lr=training.lr)
    steps, size, losses = training.steps(len(stream)), training.global_batch, []
    for step in range(steps):
        batch = collate([examples[p] for p in range(step * size, (step + 1) * size)])
        loss = loss_sum(vlm.model, batch) / batch.n_learned
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vlm.model.parameters(), training.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = training.lr_at(step, steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return vlm.model.state_dict(), losses


def test_a_run_is_a_true_token_mean_over_the_global_batch(whole, toy_mix):
    training = load(str(whole.parent / "short.py"))[1]

    expected, losses = reference(training, toy_mix)

    log = lines(whole, "log.jsonl")
    assert [line["step"] for line in log] == list(range(1, LAST + 1))
    assert [line["loss"] for line in log] == pytest.approx(losses, rel=1e-4)
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weight, expected[name], atol=2e-4, rtol=1e-3, msg=name)


def test_the_samples_of_a_run_are_those_of_the_stream(whole, toy_mix):
    stream = Stream(toy_mix, seed=5)

    seen = [key for line in lines(whole, "samples.jsonl") for key in line["keys"]]

    assert seen == [stream[position].key for position in range(LAST * 8)]


def test_the_newest_two_checkpoints_are_kept_and_nothing_half(whole):
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == ["step-00000016", "step-00000017"]
    assert {p.name for p in whole.iterdir()} == {
        ".lock",
        "checkpoints",
        "log.jsonl",
        "model",
        "run.json",
        "samples.jsonl",
    }


def test_the_model_that_comes_out_answers(whole):
    load_torchvision()
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    model = LlavaForConditionalGeneration.from_pretrained(whole / "model")
    processor = LlavaProcessor.from_pretrained(whole / "model")
    asked = [{"role": "user", "content": [{"type": "text", "text": "What is 3 + 1?"}]}]
    prompt = processor.apply_chat_template(asked, add_generation_prompt=True)

    ids = processor.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    answer = model.generate(input_ids=ids, max_new_tokens=2, do_sample=False)

    assert prompt.startswith("<s>A chat between a curious user") and prompt.endswith("? ASSISTANT:")
    assert answer.shape[1] > ids.shape[1]


def test_a_run_stopped_and_gone_on_with_has_the_same_bytes(whole, toy_mix, tmp_path, launch):
    line = forked("--recipe", recipe(tmp_path), "--mix", toy_mix, "--out", tmp_path / "run")
    first = launch(*line, "--max-steps", "6")
    assert first.end() == 0, first

    second = launch(*line)

    assert second.end() == 0, second
    assert "going on after step 6" in str(second)
    for name in ("log.jsonl", "samples.jsonl", "model/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_run_of_two_killed_and_gone_on_with_by_one_sees_the_same_samples(whole, toy_mix, tmp_path, launch):
    what = ("--recipe", recipe(tmp_path), "--mix", toy_mix, "--out", tmp_path / "run")
    killed = launch(*forked(*what), ranks=2)
    killed.until("step 6/17")
    killed.signal(signal.SIGKILL)
    assert killed.end() == -signal.SIGKILL
    assert not (tmp_path / "run" / "model").exists()

    resumed = launch(*forked(*what))

    assert resumed.end() == 0, resumed
    assert "saved by 2 processes, for 1" in str(resumed)
    assert lines(tmp_path / "run", "samples.jsonl") == lines(whole, "samples.jsonl")
    assert_close(tmp_path / "run", whole)


def test_a_run_of_one_killed_and_gone_on_with_by_two_sees_the_same_samples(whole, toy_mix, tmp_path, launch):
    what = ("--recipe", recipe(tmp_path), "--mix", toy_mix, "--out", tmp_path / "run")
    killed = launch(*forked(*what))
    killed.until("step 6/17")
    killed.signal(signal.SIGKILL)
    assert killed.end() == -signal.SIGKILL

    resumed = launch(*two_by_torchrun(*what))

    assert resumed.end() == 0, resumed
    assert "saved by 1 processes, for 2" in str(resumed)
    assert lines(tmp_path / "run", "samples.jsonl") == lines(whole, "samples.jsonl")
    assert_close(tmp_path / "run", whole)
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_a_signal_ends_all_processes_and_leaves_whole_checkpoints(toy_mix, tmp_path, launch, number, status):
    line = [TRAIN, "--data-workers", "1", "--recipe", recipe(tmp_path)]
    run = launch(*line, "--mix", toy_mix, "--out", tmp_path / "run")
    run.until("step 5/17")

    run.process.send_signal(number)  # to the first process only: the others must notice

    assert run.end() == status, run
    found = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert found and all((folder / "stream.json").exists() for folder in found)


def test_another_mix_or_recipe_is_refused_with_what_differs(whole, tmp_path, launch):
    other = write_mix(tmp_path / "other", range(100, 122))
    changed = recipe(tmp_path, ", lr=2e-3, global_batch=16")

    run = launch(*forked("--recipe", changed, "--mix", other, "--out", whole))

    assert run.end() == 1, run
    for field in ("mix: ", "lr: 0.001 -> 0.002", "global_batch: 8 -> 16"):
        assert field in str(run)
    assert "Traceback" not in str(run)


def test_a_run_that_must_not_go_on_refuses_a_folder_that_holds_one(whole, toy_mix, launch):
    run = launch(*forked("--recipe", whole.parent / "short.py", "--mix", toy_mix, "--out", whole, "--resume", "never"))

    assert run.end() == 2, run
    assert "holds a run up to step 17" in str(run)


def test_a_damaged_checkpoint_is_named_and_the_one_before_takes_its_place(whole, toy_mix, tmp_path, launch):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    newest = out / "checkpoints" / f"step-{LAST:08d}"
    (out / "model" / "training.json").write_text('{"step": 16}')  # so that there is something to do
    optimizer = next(newest.glob("engine/*optim_states.pt"))
    os.truncate(optimizer, optimizer.stat().st_size // 2)
    line = forked("--recipe", whole.parent / "short.py", "--mix", toy_mix, "--out", out)

    damaged = launch(*line)
    assert damaged.end() == 1, damaged
    shutil.rmtree(newest)
    mended = launch(*line)

    assert f"Remove folder '{newest}' to go on from the one before" in str(damaged)
    assert "Traceback" not in str(damaged)
    assert mended.end() == 0, mended
    for name in ("log.jsonl", "samples.jsonl", "model/model.safetensors", "model/training.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_step_without_a_token_to_learn_stops_the_run(toy_mix, tmp_path, launch):
    short = recipe(tmp_path, ", max_length=1")

    run = launch(*forked("--recipe", short, "--mix", toy_mix, "--out", tmp_path / "run"))

    assert run.end() == 2, run
    assert "step 1 has no token to learn; 8 of its 8 samples were cut to max_length=1" in str(run)
    assert "Traceback" not in str(run)
    assert not (tmp_path / "run" / "model").exists()


def test_two_runs_never_write_into_one_folder(toy_mix, tmp_path, launch):
    line = forked("--recipe", recipe(tmp_path), "--mix", toy_mix, "--out", tmp_path / "run")
    first = launch(*line)
    first.until("step 1/17")
    first.signal(signal.SIGSTOP)

    second = launch(*line)

    assert second.end() == 2, second
    assert "another process trains into" in str(second)


def test_the_toy_says_the_same_by_its_name_as_by_its_file():
    by_name, training = load("toy")

    assert by_name == "toy"
    assert dataclasses.replace(training) == load(str(ROOT / "pipelines" / "toy.py"))[1]
