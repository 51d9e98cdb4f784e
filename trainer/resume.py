"""Resume: checkpoints and models that are whole when seen, and going on on any number of processes.

`folder` says what lies where. A checkpoint keeps the SHA-256 of each of DeepSpeed's files, and nothing is
loaded from one that was cut short or changed. On as many processes as before, DeepSpeed's files are loaded
as they are, bit by bit. On another number, the first process converts them to DeepSpeed's universal format,
which knows no processes; that copy is removed after loading. ZeRO 1 and 2 write the same files; those of
ZeRO 0 can't be converted, so a run under it stays under it, and on its number of processes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError

from datakit.errors import StorageError
from trainer import folder
from trainer.processes import gather

log = logging.getLogger(__name__)

KEEP = 2  # the newest, and one more in case the disk fails under it


def save(engine: Any, out: Path, step: int, state: dict[str, Any]) -> None:
    """Publishes a checkpoint, the logs on disk before it. All processes call it; it is whole on return.

    `state` is what stream.json says beside the step, the number of processes and the hashes.
    """
    final = folder.checkpoint_folder(out, step)
    part = final.with_name(f".{final.name}.part")
    with folder.storage_errors(part, RuntimeError):
        engine.save_checkpoint(str(part), tag="engine")
    dist.barrier()
    hashes = dict(gather(_my_hashes(part)))
    if dist.get_rank() == 0:
        kept = {"step": step, "processes": dist.get_world_size(), "sha256": dict(sorted(hashes.items())), **state}
        with folder.storage_errors(part):
            (part / "stream.json").write_text(json.dumps(kept, indent=1) + "\n")
            for name in folder.LOGS:
                folder.sync(out / name)
            folder.publish(part, final)
            for old in sorted(folder.checkpoint_steps(out))[:-KEEP]:
                folder.remove(folder.checkpoint_folder(out, old))
    dist.barrier()


def check(out: Path, step: int) -> None:
    """Raises StorageError, naming the checkpoint, when its files aren't what was written. All processes call it."""
    kept = folder.read_state(out, step).get("sha256", {})
    found = dict(gather(_my_hashes(folder.checkpoint_folder(out, step))))
    wrong = sorted(name for name, sha256 in kept.items() if found.get(name) != sha256)
    if wrong:
        words = {name: "was changed or cut short" if name in found else "is gone" for name in wrong}
        raise folder.damage_error(out, step, f"{wrong[0]!r} {words[wrong[0]]} since it was written")


def convert(out: Path, step: int) -> None:
    """Converts a checkpoint into a copy that loads on any number of processes. One process calls it."""
    from deepspeed.checkpoint.ds_to_universal import main as to_universal

    target = _universal(out, step)
    settings = argparse.Namespace(
        input_folder=str(folder.checkpoint_folder(out, step) / "engine"),
        output_folder=str(target / "engine"),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with (
        folder.storage_errors(target, RuntimeError),
        open(os.devnull, "w") as nowhere,  # the converter prints and draws progress bars
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        to_universal(settings)


def load(engine: Any, out: Path, step: int, *, universal: bool) -> None:
    """Loads weights and optimizer of a checkpoint into the engine. All processes call it."""
    source = _universal(out, step) if universal else folder.checkpoint_folder(out, step)
    path, _ = engine.load_checkpoint(str(source), tag="engine", load_lr_scheduler_states=False)
    if path is None:
        raise StorageError(f"DeepSpeed found nothing to load in {str(source)!r}. Remove that folder")
    dist.barrier()
    if universal and dist.get_rank() == 0:
        folder.remove(source)


def save_model(engine: Any, processor: Any, out: Path, step: int, identity: dict[str, Any]) -> None:
    """Publishes `<out>/model`, as transformers writes it, and the step it is of. All processes call it.

    Its processor prepares pictures as training did, but for what `trainer.model.image_processor_of` says.
    """
    if dist.get_rank() == 0:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        part = out / ".model.part"
        with folder.storage_errors(part, RuntimeError, SafetensorError):
            engine.module.save_pretrained(part)
            processor.save_pretrained(part)
            about = {"step": step, "identity": identity}
            (part / "training.json").write_text(json.dumps(about, indent=1) + "\n")
            folder.publish(part, out / "model")
        log.info("%s is of step %d. Its processor doesn't turn photos by their EXIF; training did", out / "model", step)
    dist.barrier()


def _my_hashes(checkpoint: Path) -> list[tuple[str, str]]:
    """Name and SHA-256 of this process's share of a checkpoint's files: they are large, so all processes hash."""
    files = sorted(path for path in (checkpoint / "engine").rglob("*") if path.is_file())
    return [
        (path.relative_to(checkpoint).as_posix(), _sha256(path))
        for path in files[dist.get_rank() :: dist.get_world_size()]
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _universal(out: Path, step: int) -> Path:
    return out / "checkpoints" / f".universal-{step:08d}.part"
