"""The loop: micro batches in, a checkpoint and a log line out, on every process alike."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from datakit.errors import UsageError
from datakit.stream.reader import Stream
from trainer import data, folder, processes, resume
from trainer.batch import Batch, Collate
from trainer.chat import Chat
from trainer.config import Training
from trainer.model import build, loss_sum

log = logging.getLogger(__name__)


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
    if start:
        resume.check(out, start)
    if rank == 0:
        folder.clean(out, start)
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
        counts = _counts(engine, micro_batches)
        if not counts["tokens"]:
            raise UsageError(
                f"step {step + 1} has no token to learn; {counts['cut_samples']} of its {training.global_batch} "
                f"samples were cut to max_length={training.max_length}, a picture being {vlm.image_tokens} tokens. "
                "Raise max_length, or see whether the template shows what the samples say"
            )
        line = {"step": step + 1, "lr": lr, "loss": _update(engine, micro_batches, lr, counts["tokens"]), **counts}
        keys = processes.gather([key for batch in micro_batches for key in batch.keys])
        if rank == 0:
            folder.append(out, line, {"step": step + 1, "keys": keys})
        pace = training.global_batch / (time.monotonic() - began)
        log.info("step %d/%d: loss %.4f, lr %.2e, %.1f samples/s", step + 1, steps, line["loss"], lr, pace)
        if (step + 1) % training.save_every_steps == 0 or step + 1 == last:
            position = stream.state((step + 1) * training.global_batch)
            state = {"zero_stage": training.zero_stage(), "stream": position, "identity": identity}
            resume.save(engine, out, step + 1, state)

    resume.save_model(engine, vlm.processor, out, last, identity)
    stream.close()
    processes.leave()


def _counts(engine: Any, micro_batches: list[Batch]) -> dict[str, int]:
    """The tokens that a step learns and the samples and pictures that were cut, summed over all processes."""
    names = ("n_learned", "cut_samples", "cut_images")
    mine = [sum(getattr(batch, name) for batch in micro_batches) for name in names]
    tokens, cut_samples, cut_images = (int(n) for n in processes.sum_over_processes(mine, engine.device))
    return {"tokens": tokens, "cut_samples": cut_samples, "cut_images": cut_images}


def _update(engine: Any, micro_batches: list[Batch], lr: float, tokens: int) -> float:
    """Updates the weights by the mean loss over the `tokens` of the global batch; returns that mean."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    losses = 0.0
    for batch in micro_batches:
        loss = loss_sum(engine, batch.to(engine.device))
        # DeepSpeed takes the mean over processes, and, when not told otherwise, over micro batches.
        engine.backward(loss * engine.world_size / tokens, scale_wrt_gas=False)
        engine.step()
        losses += loss.item()
    return processes.sum_over_processes([losses], engine.device)[0] / tokens
