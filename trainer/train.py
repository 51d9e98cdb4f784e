"""Train a recipe on a mix, on any number of processes. Run the same line again to go on after a stop.

On all GPUs of this machine:

    deepspeed --module trainer.train --recipe toy --mix data/mixes/NAME/mix.json --out runs/x

On CPU, two processes. DeepSpeed counts sockets and not cores, so the number has to be said; without
`--bind_cores_to_rank` it needs no numactl. Runs side by side need a `--master_port` each.

    DS_ACCELERATOR=cpu deepspeed --num_accelerators 2 --module trainer.train --recipe toy --mix ... --out ...

The same by `torchrun --standalone --nproc-per-node 2 -m trainer.train ...`; or one process, without a
launcher, by `python -m trainer.train ...`.

<out>/log.jsonl gets a line per step (loss, tokens, lr), <out>/samples.jsonl the keys that it has seen,
<out>/checkpoints/ the state, <out>/model/ the result. A stop, by a signal or a crash, never leaves a
checkpoint half written. Stop a launch by Ctrl-C, or by SIGTERM to its process group: the first process of
`deepspeed` doesn't pass SIGTERM on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datakit.errors import DatakitError, UsageError
from datakit.stream import Stream
from trainer import config, resume

if TYPE_CHECKING:
    from trainer.batch import Batch

log = logging.getLogger(__name__)

LOGS = ("log.jsonl", "samples.jsonl")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    args = _parse(argv)
    rank = os.environ.get("RANK", "0")
    level = logging.INFO if rank == "0" else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format=f"%(asctime)s rank {rank}: %(message)s")
    try:
        train(args)
    except DatakitError as error:
        log.error("%s", error)
        return error.exit_code
    except KeyboardInterrupt:
        log.error("stopped. The same line again goes on from the newest checkpoint")
        return 130
    return 0


def train(args: argparse.Namespace) -> None:
    """From the command line to <out>/model."""
    recipe, training = config.load(args.recipe)
    training = dataclasses.replace(training, micro_batch=args.micro_batch or training.micro_batch)
    training.accumulation(int(os.environ.get("WORLD_SIZE", "1")))  # refuse before the slow imports
    stream = Stream(args.mix, seed=training.seed)
    steps = training.steps(len(stream))
    last = min(steps, args.max_steps or steps)
    identity = {"recipe": recipe, **training.identity(), "mix": stream.fingerprint}
    lock = resume.claim(args.out) if os.environ.get("RANK", "0") == "0" else None
    start, saved_by = _where_to_start(args, identity)

    import torch
    import torch.distributed as dist

    from trainer import data, processes
    from trainer.batch import Collate
    from trainer.chat import Chat
    from trainer.model import build

    processes.join()
    rank, n_processes = dist.get_rank(), dist.get_world_size()
    universal = start > 0 and saved_by != n_processes
    if rank == 0:
        resume.clean(args.out, start, LOGS)
        if universal:
            log.info("converting step %d, saved by %d processes, for %d", start, saved_by, n_processes)
            resume.convert(args.out, start)
    dist.barrier()

    vlm = build(training)
    engine = processes.start_engine(vlm.model, training, universal=universal)
    if start:
        resume.load(engine, args.out, start, universal=universal)
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
    batches = iter(
        data.loader(
            data.Examples(stream, chat, vlm.pictures),
            share,
            collate=Collate(tokenizer.pad_token_id, chat.image_id, chat.image_tokens),
            workers=args.data_workers,
        )
    )

    for step in range(start, last):
        began = time.monotonic()
        # What is random in a step depends on the step alone, so a checkpoint needs no state of it.
        torch.manual_seed(training.seed + step * n_processes + rank)
        lr = training.lr_at(step, steps)
        micro_batches = [next(batches) for _ in range(share.accumulation)]
        line = {"step": step + 1, "lr": lr, **_step(engine, micro_batches, lr)}
        keys = processes.joined([key for batch in micro_batches for key in batch.keys])
        if rank == 0:
            _append(args.out, line, {"step": step + 1, "keys": keys})
        pace = training.global_batch / (time.monotonic() - began)
        log.info("step %d/%d: loss %.4f, lr %.2e, %.1f samples/s", step + 1, steps, line["loss"], lr, pace)
        if (step + 1) % training.save_every_steps == 0 or step + 1 == last:
            position = (step + 1) * training.global_batch
            resume.save(engine, args.out, step + 1, stream.state(position), identity, LOGS)

    resume.save_model(engine, vlm.processor, args.out)
    stream.close()
    processes.leave()
    if lock:
        lock.close()


def _step(engine: Any, micro_batches: list[Batch], lr: float) -> dict[str, float]:
    """One update of the weights by the mean over the tokens of the global batch; what to log of it."""
    from trainer.model import loss_sum
    from trainer.processes import summed

    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    names = ("n_learned", "cut_samples", "cut_images")
    mine = [sum(getattr(batch, name) for batch in micro_batches) for name in names]
    tokens, cut_samples, cut_images = (int(n) for n in summed(mine, engine.device))
    losses = 0.0
    for batch in micro_batches:
        loss = loss_sum(engine, batch.to(engine.device))
        # DeepSpeed takes the mean over processes, and, when not told otherwise, over micro batches.
        engine.backward(loss * engine.world_size / max(1, tokens), scale_wrt_gas=False)
        engine.step()
        losses += loss.item()
    mean = summed([losses], engine.device)[0] / max(1, tokens)
    return {"loss": mean, "tokens": tokens, "cut_samples": cut_samples, "cut_images": cut_images}


def _where_to_start(args: argparse.Namespace, identity: dict[str, Any]) -> tuple[int, int]:
    """The step that is done, and by how many processes. Raises RecipeChanged when another run did it."""
    start, saved_by = resume.newest(args.out) or 0, 0
    if start:
        if args.resume == "never":
            raise UsageError(f"{args.out} holds a run up to step {start}. Give another --out, or --resume auto")
        kept = resume.read(args.out, start)
        resume.check_identity(args.out, kept["identity"], identity)
        saved_by = kept["processes"]
    return start, saved_by


def _append(out: Path, *lines: dict[str, Any]) -> None:
    """One line to each of the logs."""
    for name, line in zip(LOGS, lines, strict=True):
        with (out / name).open("a") as file:
            file.write(json.dumps(line) + "\n")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="trainer.train", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", required=True, help="a name in pipelines/, or a path to a .py file")
    parser.add_argument("--mix", required=True, help="the mix.json that `datakit build-mix` wrote")
    parser.add_argument("--out", required=True, type=Path, help="folder of the run; made if it isn't there")
    parser.add_argument(
        "--resume",
        choices=("auto", "never"),
        default="auto",
        help="auto: go on from the newest checkpoint in --out; never: refuse if there is one",
    )
    parser.add_argument("--max-steps", type=int, help="stop after this step; the schedule stays the recipe's")
    parser.add_argument("--micro-batch", type=int, help="samples per process at a time, not the recipe's")
    parser.add_argument("--data-workers", type=int, default=2, help="loading processes beside each process")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # the launcher's
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
