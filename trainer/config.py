"""Training: every number of a training recipe, and how a recipe is found.

    TRAINING = Training(model="toy", template="v1", lr=1e-3, global_batch=8, ...)    # in pipelines/toy.py

Fields of the recipe are its identity: a run refuses to go on under another one. Those in `EXECUTION` can't
change what is learned (but for the order in which numbers are added) and may change between two starts.
"""

from __future__ import annotations

import dataclasses
import json
import math
import runpy
from pathlib import Path
from typing import Any, Literal

from datakit.catalogue import find
from datakit.errors import UsageError, nearest

EXECUTION = ("micro_batch", "zero", "save_every_steps")
PARTS = ("connector", "llm", "vision")
CONNECTORS = ("mlp2x_gelu",)  # transformers' own projector: linear, GELU, linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained, on how much, and how. One recipe has one of these, named TRAINING."""

    model: str  # "toy", or the hub id or path of a model that LlavaForConditionalGeneration opens
    template: str  # a name in trainer.chat.TEMPLATES
    connector: str = "mlp2x_gelu"
    trains: tuple[str, ...]  # of "connector", "llm", "vision"; the rest stays as it was
    lr: float
    warmup_ratio: float = 0.03  # of all steps
    schedule: Literal["cosine", "constant"] = "cosine"  # after the warm-up
    weight_decay: float = 0.0  # never on biases and norms
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0  # the HF Trainer's default; 0 switches clipping off
    epochs: float = 1.0
    max_steps: int | None = None  # ends (and stretches the schedule) there instead of after `epochs`
    global_batch: int  # samples per step, on however many processes
    micro_batch: int  # samples per process at a time
    max_length: int  # tokens of a sample, pictures included
    image_size: int  # side in pixels, as the vision tower wants it
    image_aspect: Literal["pad", "square", "resize"]  # see trainer.batch.Pictures
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    seed: int = 0
    zero: str = "zero2.json"  # DeepSpeed's ZeRO settings: a file beside this one, or a path
    save_every_steps: int

    def __post_init__(self) -> None:
        for field, known in (("connector", CONNECTORS), ("precision", ("bf16", "fp16", "fp32"))):
            _check_known(field, getattr(self, field), known)
        _check_known("image_aspect", self.image_aspect, ("pad", "square", "resize"))
        _check_known("schedule", self.schedule, ("cosine", "constant"))
        for part in self.trains:
            _check_known("trains", part, PARTS)
        if not self.trains:
            raise UsageError(f"this recipe trains nothing: name one or more of {', '.join(PARTS)} in `trains`")
        for field in (
            "global_batch",
            "micro_batch",
            "max_length",
            "image_size",
            "save_every_steps",
            "epochs",
        ):
            if getattr(self, field) <= 0:
                raise UsageError(f"{field} of a recipe must be above 0, not {getattr(self, field)!r}")

    def identity(self) -> dict[str, Any]:
        """The fields under which a run may go on, as JSON knows them."""
        fields = dataclasses.asdict(self)
        return json.loads(json.dumps({k: v for k, v in fields.items() if k not in EXECUTION}))

    def accumulation(self, processes: int) -> int:
        """Micro batches per step and process. Raises UsageError when the global batch doesn't divide."""
        at_once = self.micro_batch * processes
        if self.global_batch % at_once:
            raise UsageError(
                f"a global batch of {self.global_batch} can't be shared by {processes} processes in micro "
                f"batches of {self.micro_batch}, {at_once} samples at a time. Choose --micro-batch or the "
                f"number of processes so that their product divides {self.global_batch}"
            )
        return self.global_batch // at_once

    def steps(self, n_samples: int) -> int:
        """Steps over a mix. The last one runs on into the next epoch, so that every step is a whole batch."""
        return self.max_steps or math.ceil(self.epochs * n_samples / self.global_batch)

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of a step, counted from 0: linear warm-up, cosine to 0, as the HF Trainer."""
        warmup = math.ceil(steps * self.warmup_ratio)
        if step < warmup:
            return self.lr * step / warmup
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    def zero_settings(self) -> dict[str, Any]:
        """The ZeRO part of DeepSpeed's settings. Raises UsageError when the file can't be used."""
        beside = Path(__file__).parent / self.zero
        path = beside if beside.is_file() else Path(self.zero)
        try:
            text = path.read_text()
            settings = json.loads(text)
        except (OSError, ValueError) as error:
            known = sorted(p.name for p in Path(__file__).parent.glob("zero*.json"))
            raise UsageError(f"can't read ZeRO settings {self.zero!r}: {error}. {nearest(self.zero, known)}") from error
        if '"auto"' in text:
            raise UsageError(f'{str(path)!r} says "auto", which only the HF Trainer resolves: write numbers')
        return settings


def load(recipe: str) -> tuple[str, Training]:
    """Name and TRAINING of a recipe: a name in `pipelines/`, or a path to a .py file. Raises UsageError."""
    path = Path(recipe) if recipe.endswith(".py") else find("pipelines", f"{recipe}.py")
    if not path.is_file():
        raise UsageError(f"no recipe file {recipe!r}. Give the name of one in pipelines/, or a path that exists")
    training = runpy.run_path(str(path)).get("TRAINING")
    if not isinstance(training, Training):
        raise UsageError(f"recipe {recipe!r} at {str(path)!r} only makes data: it has no TRAINING = Training(...)")
    return path.stem, training


def _check_known(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"unknown {field} {value!r} in a recipe's TRAINING. {nearest(value, known)}")
