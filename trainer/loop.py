"""The loop: micro batches in, a checkpoint and a log line out, on every process alike."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from datakit.stream import Stream
from trainer import data, processes, resume
from trainer.batch import Batch, Collate
from trainer.chat import Chat
from trainer.config import Training
from trainer.model import build, loss_sum

log = logging.getLogger(__name__)

LOGS = ("log.jsonl", "samples.jsonl")


def run(
    training: Training,
    stream: Stream,
    out: Path,
    *,
    start: int,
    last: int,
    steps: int,
    saved_by: int,
    identity: dict[str, Any],
    workers: int,
) -> None:
    """Trains from step `start` (0, or a checkpoint of `saved_by` processes) to `last` of `steps`."""
    processes.join()
    rank, n_processes = dist.get_rank(), dist.get_world_size()
    universal = start > 0 and saved_by != n_processes
    if rank == 0:
        resume.clean(out, start, LOGS)
        if universal:
            log.info("converting step %d, saved by %d processes, for %d", start, saved_by, n_processes)
            resume.convert(out, start)
    dist.barrier()

    vlm = build(training)
    engine = processes.start_engine(vlm.model, training, universal=universal)
    if start:
        resume.load(engine, out, start, universal=universal)
        log.info("going on after step %d of %d", start, steps)

    tokenizer = vlm.processor.tokenizer
    chat = Chat(tokenizer, template=training.template, image_tokens=vlm.image_tokens, max_length=training.max_length)
    share = data.Share(
        first_step=start,
        last_step=last,
        rank=rank,
        processes=n_processes,
        micro_batch=training.micro_batch,
        accumulation=training.accumulation(n_processes),
    )
    examples = data.Examples(stream, chat, vlm.pictures)
    collate = Collate(tokenizer.pad_token_id, chat.image_id, chat.image_tokens)
    batches = iter(data.loader(examples, share, collate=collate, workers=workers))

    for step in range(start, last):
        began = time.monotonic()
        # What is random in a step depends on the step alone, so a checkpoint needs no state of it.
        torch.manual_seed(training.seed + step * n_processes + rank)
        lr = training.lr_at(step, steps)
        micro_batches = [next(batches) for _ in range(share.accumulation)]
        line = {"step": step + 1, "lr": lr, **_update(engine, micro_batches, lr)}
        keys = processes.joined([key for batch in micro_batches for key in batch.keys])
        if rank == 0:
            _append(out, line, {"step": step + 1, "keys": keys})
        pace = training.global_batch / (time.monotonic() - began)
        log.info("step %d/%d: loss %.4f, lr %.2e, %.1f samples/s", step + 1, steps, line["loss"], lr, pace)
        if (step + 1) % training.save_every_steps == 0 or step + 1 == last:
            position = (step + 1) * training.global_batch
            resume.save(engine, out, step + 1, stream.state(position), identity, LOGS)

    resume.save_model(engine, vlm.processor, out)
    stream.close()
    processes.leave()


def _update(engine: Any, micro_batches: list[Batch], lr: float) -> dict[str, float]:
    """One update of the weights by the mean over the tokens of the global batch; what to log of it."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    names = ("n_learned", "cut_samples", "cut_images")
    mine = [sum(getattr(batch, name) for batch in micro_batches) for name in names]
    tokens, cut_samples, cut_images = (int(n) for n in processes.summed(mine, engine.device))
    losses = 0.0
    for batch in micro_batches:
        loss = loss_sum(engine, batch.to(engine.device))
        # DeepSpeed takes the mean over processes, and, when not told otherwise, over micro batches.
        engine.backward(loss * engine.world_size / max(1, tokens), scale_wrt_gas=False)
        engine.step()
        losses += loss.item()
    mean = processes.summed([losses], engine.device)[0] / max(1, tokens)
    return {"loss": mean, "tokens": tokens, "cut_samples": cut_samples, "cut_images": cut_images}


def _append(out: Path, *lines: dict[str, Any]) -> None:
    """One line to each of the logs."""
    for name, line in zip(LOGS, lines, strict=True):
        with (out / name).open("a") as file:
            file.write(json.dumps(line) + "\n")
