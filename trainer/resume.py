"""Resume: checkpoints that are whole when seen, and going on from one on any number of processes.

    <out>/checkpoints/step-00000010/stream.json    step, state of the stream, identity of the run
                                    engine/...     DeepSpeed's own files: weights, optimizer
    <out>/model/                                   at the end: opens with LlavaForConditionalGeneration

A checkpoint is written under a name that begins with a dot and renamed when every process is done, so a
kill at any moment leaves the one before. On as many processes as before, DeepSpeed's files are loaded as
they are, bit by bit. On another number, the first process converts them to DeepSpeed's universal
format, which knows no processes; that copy is removed after loading.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

import torch.distributed as dist

from datakit.errors import RecipeChanged, StorageError, UsageError

KEEP = 2  # the newest, and one more in case the disk fails under it
_NAME = re.compile(r"step-(\d{8})")


def newest(out: Path) -> int | None:
    """The step of the newest whole checkpoint."""
    return max(_steps(out), default=None)


def read(out: Path, step: int) -> dict[str, Any]:
    """The stream.json of a checkpoint."""
    path = _folder(out, step) / "stream.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StorageError(
            f"can't read {str(path)!r}: {error}. Remove its folder to go on from the one before"
        ) from error


def check_identity(out: Path, kept: dict[str, Any], mine: dict[str, Any]) -> None:
    """Raises RecipeChanged, naming every field in which this run differs from the one that `out` holds."""
    differ = [
        f"  {field}: {json.dumps(kept.get(field))} -> {json.dumps(mine.get(field))}"
        for field in sorted(kept.keys() | mine.keys())
        if kept.get(field) != mine.get(field)
    ]
    if differ:
        lines = "\n".join(differ)
        raise RecipeChanged(
            f"{out} holds a run that was begun otherwise:\n{lines}\nGive another --out, or train as it was begun."
        )


def save(
    engine: Any,
    out: Path,
    step: int,
    stream: dict[str, Any],
    identity: dict[str, Any],
    logs: Sequence[str],
) -> None:
    """Publishes a checkpoint, the logs on disk before it. All processes call it; it is whole on return."""
    final = _folder(out, step)
    part = final.with_name(f".{final.name}.part")
    engine.save_checkpoint(str(part), tag="engine")
    dist.barrier()
    if dist.get_rank() == 0:
        state = {"step": step, "processes": dist.get_world_size(), "stream": stream, "identity": identity}
        (part / "stream.json").write_text(json.dumps(state, indent=1) + "\n")
        for name in logs:
            _sync(out / name)
        _publish(part, final)
        for old in sorted(_steps(out))[:-KEEP]:
            _remove(_folder(out, old))
    dist.barrier()


def convert(out: Path, step: int) -> None:
    """Makes the copy that loads on any number of processes. One process calls it."""
    from deepspeed.checkpoint.ds_to_universal import main as to_universal

    target = _universal(out, step)
    settings = argparse.Namespace(
        input_folder=str(_folder(out, step) / "engine"),
        output_folder=str(target / "engine"),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    # The converter prints and draws progress bars.
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        to_universal(settings)


def load(engine: Any, out: Path, step: int, *, universal: bool) -> None:
    """Weights and optimizer of a checkpoint into the engine. All processes call it."""
    folder = _universal(out, step) if universal else _folder(out, step)
    path, _ = engine.load_checkpoint(str(folder), tag="engine", load_lr_scheduler_states=False)
    if path is None:
        raise StorageError(f"DeepSpeed found nothing to load in {str(folder)!r}. Remove that folder")
    dist.barrier()
    if universal and dist.get_rank() == 0:
        _remove(folder)


def claim(out: Path) -> TextIO:
    """A lock on the folder that lasts until the file is closed. Raises UsageError when another run has it."""
    out.mkdir(parents=True, exist_ok=True)
    file = (out / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UsageError(
            f"another process trains into {str(out)!r}. Wait for it, stop it, or give another --out"
        ) from error
    return file


def clean(out: Path, step: int, logs: Sequence[str]) -> None:
    """Removes what a killed run left half written or logged after `step`. One process calls it, at first."""
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    for name in logs:
        cut_log(out / name, step)
    for path in [*out.glob(".*.part"), *(out / "checkpoints").glob(".*.part")]:
        _remove(path)


def cut_log(path: Path, step: int) -> None:
    """Drops the lines of later steps, and a last line that a kill cut through."""
    if not path.exists():
        return
    whole = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
            whole += len(line)
    os.truncate(path, whole)


def save_model(engine: Any, processor: Any, out: Path) -> None:
    """Publishes `<out>/model`, as transformers writes it. All processes call it."""
    if dist.get_rank() == 0:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        part, final = out / ".model.part", out / "model"
        engine.module.save_pretrained(part)
        processor.save_pretrained(part)
        if final.exists():
            _remove(final)
        _publish(part, final)
    dist.barrier()


def _folder(out: Path, step: int) -> Path:
    return out / "checkpoints" / f"step-{step:08d}"


def _universal(out: Path, step: int) -> Path:
    return out / "checkpoints" / f".universal-{step:08d}.part"


def _steps(out: Path) -> list[int]:
    folders = (out / "checkpoints").glob("step-*")
    return [int(name[1]) for path in folders if (name := _NAME.fullmatch(path.name))]


def _publish(part: Path, final: Path) -> None:
    """On disk first, under its name then."""
    for path in [*part.rglob("*"), part]:
        _sync(path)
    part.rename(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(folder: Path) -> None:
    """Takes the name away first, so that nobody sees a folder that is half removed."""
    doomed = folder.with_name(f".{folder.name.strip('.')}.gone.part")
    folder.rename(doomed)
    shutil.rmtree(doomed)
