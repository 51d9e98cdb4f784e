"""Processes: joining the others of a launcher, the DeepSpeed engine over them, and sums across them."""

from __future__ import annotations

import datetime
import logging
import os
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from trainer.config import Training
from trainer.model import weight_groups

TIMEOUT = datetime.timedelta(hours=1)  # converting a checkpoint for another number of processes takes long


def join() -> None:
    """Joins the other processes of the launcher, or makes a group of one when there is no launcher."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")  # a free one
    import deepspeed  # after DS_ACCELERATOR is set, which it reads when imported

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed 0.19 calls it at every step.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.all_gather_into_tensor`", FutureWarning)
    if deepspeed.get_accelerator().device_name() == "cpu":
        # Else DeepSpeed compiles a shared-memory all-reduce with whatever compiler there is. Gloo will do.
        deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(auto_mpi_discovery=False, timeout=TIMEOUT)


def leave() -> None:
    """Leaves the group that `join` joined."""
    dist.destroy_process_group()


def start_engine(model: torch.nn.Module, training: Training, *, universal: bool) -> Any:
    """A DeepSpeed engine for the recipe. `universal`: a converted checkpoint is going to be loaded."""
    import deepspeed

    adam = {"lr": training.lr, "betas": list(training.betas), "eps": 1e-8, "torch_adam": True}
    settings = {
        **training.zero_settings(),
        "train_batch_size": training.global_batch,
        "train_micro_batch_size_per_gpu": training.micro_batch,
        "gradient_accumulation_steps": training.accumulation(dist.get_world_size()),
        "gradient_clipping": training.max_grad_norm,
        "optimizer": {"type": "AdamW", "params": adam},
        "bf16": {"enabled": training.precision == "bf16"},
        "fp16": {"enabled": training.precision == "fp16"},
        "checkpoint": {"load_universal": universal},
    }
    model.train()
    groups = weight_groups(model, training.weight_decay)
    return deepspeed.initialize(model=model, model_parameters=groups, config=settings)[0]


def sum_over_processes(values: Sequence[float], device: torch.device) -> list[float]:
    """The sum of each value over all processes."""
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return sums.tolist()


def gather(mine: list[Any]) -> list[Any]:
    """The lists of all processes, concatenated by rank."""
    every: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(every, mine)
    return [item for theirs in every for item in theirs]
