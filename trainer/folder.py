"""Folder: what a run keeps under --out, as far as that needs no torch.

    <out>/run.json                                 identity of the run, written when it begins
    <out>/log.jsonl, samples.jsonl                 a line per step
    <out>/checkpoints/step-00000010/stream.json    step, processes, ZeRO stage, hashes, state of the stream, identity
                                    engine/...     DeepSpeed's own files: weights, optimizer
    <out>/model/                                   at the end: opens with LlavaForConditionalGeneration
                training.json                      the step that these weights are of, identity of the run

Everything but the logs is written under a name that begins with a dot and renamed when it is whole, so a
kill at any moment leaves the one before. Half-written logs are cut at the next start.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from datakit.errors import RecipeChanged, StorageError, UsageError

LOGS = ("log.jsonl", "samples.jsonl")
_NAME = re.compile(r"step-(\d{8})")
# torch and safetensors raise errors of their own when the system refuses a write.
_NO_WRITE = re.compile(r"PytorchStreamWriter|inline_container|write\(\): fd|os error \d+", re.IGNORECASE)


@contextmanager
def claim(out: Path) -> Iterator[TextIO]:
    """Holds a lock on the folder. Raises UsageError when another run has it."""
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        file = (out / ".lock").open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"another process trains into {str(out)!r}. Wait for it, stop it, or give another --out"
            ) from error
        yield file


def write_identity(out: Path, identity: dict[str, Any]) -> None:
    """Writes run.json, the identity of this run. Raises RecipeChanged when the folder holds steps of another run."""
    path = out / "run.json"
    if path.exists() and (newest_step(out) is not None or any(_has_lines(out / name) for name in LOGS)):
        try:
            kept = json.loads(path.read_text())["identity"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"can't read {str(path)!r}, which says what run this folder is of: {error!r}. Give another "
                "--out, or remove this file when the folder is this recipe's"
            ) from error
        check_identity(out, kept, identity)
    part = out / ".run.json.new"
    with storage_errors(path):
        part.write_text(json.dumps({"identity": identity}, indent=1) + "\n")
        sync(part)
        part.rename(path)
        sync(out)


def newest_step(out: Path) -> int | None:
    """The step of the newest whole checkpoint."""
    return max(checkpoint_steps(out), default=None)


def checkpoint_steps(out: Path) -> list[int]:
    """The steps of all whole checkpoints, in no order."""
    folders = (out / "checkpoints").glob("step-*")
    return [int(name[1]) for path in folders if (name := _NAME.fullmatch(path.name))]


def checkpoint_folder(out: Path, step: int) -> Path:
    """The folder of a step's checkpoint, whether it exists or not."""
    return out / "checkpoints" / f"step-{step:08d}"


def read_state(out: Path, step: int) -> dict[str, Any]:
    """The stream.json of a checkpoint."""
    path = checkpoint_folder(out, step) / "stream.json"
    try:
        kept: dict[str, Any] = json.loads(path.read_text())
        missing = {"processes", "stream", "identity"} - kept.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise damage_error(out, step, f"can't read stream.json: {error}") from error
    if missing:
        raise damage_error(out, step, f"stream.json lacks {', '.join(sorted(missing))}")
    return kept


def damage_error(out: Path, step: int, what: str) -> StorageError:
    """The error for a checkpoint that isn't what was written."""
    folder = str(checkpoint_folder(out, step))
    return StorageError(
        f"checkpoint {folder!r} is damaged: {what}. Remove folder {folder!r} to go on from the one before"
    )


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


def model_step(out: Path) -> int | None:
    """The step that the weights in `<out>/model` are of. None when there is no model, or none that says so."""
    try:
        step = json.loads((out / "model" / "training.json").read_text())["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it is saved again
    return step if isinstance(step, int) else None


def clean(out: Path, step: int) -> None:
    """Removes what a killed run left half written or logged after `step`. One process calls it, at first."""
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    for name in LOGS:
        cut_log(out / name, step)
    for path in [*out.glob(".*.part"), *(out / "checkpoints").glob(".*.part")]:
        remove(path)


def cut_log(path: Path, step: int) -> None:
    """Drops the lines of later steps, and a last line that a kill cut off."""
    if not path.exists():
        return
    whole = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
            whole += len(line)
    os.truncate(path, whole)


def append(out: Path, *lines: dict[str, Any]) -> None:
    """Appends one line to each of the logs."""
    for name, line in zip(LOGS, lines, strict=True):
        with storage_errors(out / name), (out / name).open("a") as file:
            file.write(json.dumps(line) + "\n")


def publish(part: Path, final: Path) -> None:
    """Writes a folder through to the disk, then gives it its final name; removes what had that name before."""
    for path in [*part.rglob("*"), part]:
        sync(path)
    if final.exists():
        remove(final)
    part.rename(final)
    sync(final.parent)


def remove(folder: Path) -> None:
    """Removes a folder; renames it first, so that nobody sees it half removed."""
    doomed = folder.with_name(f".{folder.name.strip('.')}.gone.part")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def sync(path: Path) -> None:
    """Has the system write a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def storage_errors(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """Turns what a full disk raises, as OSError or as one of `errors`, into a StorageError of one sentence."""
    caught: tuple[type[Exception], ...] = (OSError, *errors)
    try:
        yield
    except caught as error:
        if not isinstance(error, OSError) and not _NO_WRITE.search(str(error)):
            raise
        why = (str(error).splitlines() or [repr(error)])[0]
        if not isinstance(error, OSError):
            why = f"it was stopped in the middle, as on a full disk ({why})"
        raise StorageError(
            f"can't write {str(path)!r}: {why}. The checkpoint before, if any, is kept: make room there, and the "
            "same line again goes on from it"
        ) from error


def _has_lines(log: Path) -> bool:
    return log.exists() and log.stat().st_size > 0
