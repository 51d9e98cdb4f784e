"""Training: every number of a training recipe, and how a recipe is found.

    TRAINING = Training(model="toy", template="v1", lr=1e-3, global_batch=8, ...)    # in pipelines/toy.py

Fields of the recipe are its identity: a run refuses to go on under another one. Those in `EXECUTION` can't
change what is learned (but for the order in which numbers are added) and may change between two starts; of
ZeRO, stage 1 to 2 and back. (Stage 0 trains other numbers under bf16: DeepSpeed keeps no fp32 weights there.)
"""

from __future__ import annotations

import dataclasses
import json
import math
import runpy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from datakit.catalogue import find
from datakit.errors import UsageError, nearest
from trainer.templates import TEMPLATES

TOY_PATCH = 8  # side in pixels of what one image token of the toy stands for
EXECUTION = ("micro_batch", "zero", "save_every_steps")
PARTS = ("connector", "llm", "vision")
_NAMES = {
    "template": tuple(TEMPLATES),
    "connector": ("mlp2x_gelu",),  # transformers' own projector: linear, GELU, linear
    "precision": ("bf16", "fp16", "fp32"),
    "image_aspect": ("pad", "square", "resize"),
    "schedule": ("cosine", "constant"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained, on how much, and how. One recipe has one of these, named TRAINING."""

    model: str  # "toy", or the hub id or path of a model that LlavaForConditionalGeneration opens
    template: str  # a name in trainer.templates.TEMPLATES
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
    zero: str = "zero2.json"  # DeepSpeed's ZeRO settings, stage 0 to 2: a file beside this one, or a path
    save_every_steps: int

    def __post_init__(self) -> None:
        for field, known in _NAMES.items():
            _check_known(field, getattr(self, field), known)
        for field in ("model", "zero"):
            if not isinstance(getattr(self, field), str) or not getattr(self, field):
                raise UsageError(f"{field} of a recipe must be a name or a path, not {getattr(self, field)!r}")
        if not isinstance(self.trains, tuple):
            raise UsageError(f"trains of a recipe must be a tuple of names, not {self.trains!r}")
        for part in self.trains:
            _check_known("trains", part, PARTS)
        if not self.trains:
            raise UsageError(f"this recipe trains nothing: name one or more of {', '.join(PARTS)} in `trains`")
        for field in ("global_batch", "micro_batch", "max_length", "image_size", "save_every_steps"):
            _check_whole(field, getattr(self, field), least=1)
        _check_whole("seed", self.seed, least=0, most=2**63 - 1)
        if self.max_steps is not None:
            _check_whole("max_steps", self.max_steps, least=1)
        for field in ("lr", "epochs"):
            _check_number(field, getattr(self, field), "above 0", lambda n: n > 0)
        for field in ("weight_decay", "max_grad_norm"):
            _check_number(field, getattr(self, field), "0 or more", lambda n: n >= 0)
        _check_number("warmup_ratio", self.warmup_ratio, "from 0 to 1", lambda n: 0 <= n <= 1)
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise UsageError(f"betas of a recipe must be two numbers, such as (0.9, 0.999), not {self.betas!r}")
        for beta in self.betas:
            _check_number("betas", beta, "from 0 up to, but not, 1", lambda n: 0 <= n < 1)
        if self.model == "toy" and self.image_size % TOY_PATCH:
            raise UsageError(f"image_size of the toy must be a multiple of {TOY_PATCH}, not {self.image_size!r}")

    def identity(self) -> dict[str, Any]:
        """The fields under which a run may go on, as JSON knows them."""
        fields = dataclasses.asdict(self)
        identity: dict[str, Any] = json.loads(json.dumps({k: v for k, v in fields.items() if k not in EXECUTION}))
        return identity

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
        if self.max_steps is not None:
            return self.max_steps
        return math.ceil(self.epochs * n_samples / self.global_batch)

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
            settings: dict[str, Any] = json.loads(text)  # if it is an object, which is checked below
        except (OSError, ValueError) as error:
            known = sorted(p.name for p in Path(__file__).parent.glob("zero*.json"))
            raise UsageError(f"can't read ZeRO settings {self.zero!r}: {error}. {nearest(self.zero, known)}") from error
        if '"auto"' in text:
            raise UsageError(f'{str(path)!r} says "auto", which only the HF Trainer resolves: write numbers')
        zero = settings.get("zero_optimization", {}) if isinstance(settings, dict) else None
        if not isinstance(zero, dict):
            raise UsageError(f'{str(path)!r} must be a JSON object with "zero_optimization": {{"stage": 2, ...}}')
        stage = zero.get("stage", 0)
        if stage == 3:
            raise UsageError(
                f"{str(path)!r} is of ZeRO stage 3, which isn't there yet: the weights lie in pieces that nothing "
                "gathers for <out>/model. Use stage 2, such as zero='zero2.json'"
            )
        if isinstance(stage, bool) or stage not in (0, 1, 2):
            raise UsageError(f"{str(path)!r} is of ZeRO stage {stage!r}. There are 0, 1 and 2")
        return settings

    def zero_stage(self) -> int:
        """0, 1 or 2."""
        return int(self.zero_settings().get("zero_optimization", {}).get("stage", 0))


def load(recipe: str) -> tuple[str, Training]:
    """Name and TRAINING of a recipe: a name in `pipelines/`, or a path to a .py file. Raises UsageError."""
    path = Path(recipe) if recipe.endswith(".py") else find("pipelines", f"{recipe}.py")
    if not path.is_file():
        raise UsageError(f"no recipe file {recipe!r}. Give the name of one in pipelines/, or a path that exists")
    try:
        training = runpy.run_path(str(path)).get("TRAINING")
    except (SyntaxError, NameError, TypeError, ImportError) as error:
        raise UsageError(f"recipe {recipe!r} at {str(path)!r} can't be read: {error}") from error
    if not isinstance(training, Training):
        raise UsageError(f"recipe {recipe!r} at {str(path)!r} only makes data: it has no TRAINING = Training(...)")
    return path.stem, training


def _check_known(field: str, value: object, known: Iterable[str]) -> None:
    if not isinstance(value, str) or value not in known:
        raise UsageError(f"unknown {field} {value!r} in a recipe's TRAINING. {nearest(str(value), known)}")


def _check_whole(field: str, value: object, least: int, most: int = 2**63) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UsageError(f"{field} of a recipe must be a whole number, {least} or more, not {value!r}")


def _check_number(field: str, value: object, bounds: str, fits: Callable[[float], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not fits(value):
        raise UsageError(f"{field} of a recipe must be a number {bounds}, not {value!r}")
