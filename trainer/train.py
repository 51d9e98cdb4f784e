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
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datakit.errors import DatakitError, UsageError
from datakit.stream import Stream
from trainer import config, resume

log = logging.getLogger(__name__)


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
    """Checks all that a user can get wrong, then trains."""
    recipe, training = config.load(args.recipe)
    training = dataclasses.replace(training, micro_batch=args.micro_batch or training.micro_batch)
    training.accumulation(int(os.environ.get("WORLD_SIZE", "1")))
    training.zero_settings()
    stream = Stream(args.mix, seed=training.seed)
    steps = training.steps(len(stream))
    last = min(steps, args.max_steps or steps)
    identity = {"recipe": recipe, **training.identity(), "mix": stream.fingerprint}
    lock = resume.claim(args.out) if os.environ.get("RANK", "0") == "0" else None
    start, saved_by = _where_to_start(args, identity, stream)
    if start >= last and (args.out / "model").is_dir():
        log.info("nothing to do: %s is at step %d of %d", args.out, start, steps)
        return

    from trainer.loop import run  # slow to import: transformers and DeepSpeed

    run(
        training,
        stream,
        args.out,
        start=start,
        last=last,
        steps=steps,
        saved_by=saved_by,
        identity=identity,
        workers=args.data_workers,
    )
    if lock:
        lock.close()


def _where_to_start(args: argparse.Namespace, identity: dict[str, Any], stream: Stream) -> tuple[int, int]:
    """The step that is done, and by how many processes. Raises RecipeChanged when another run did it."""
    start, saved_by = resume.newest(args.out) or 0, 0
    if start:
        if args.resume == "never":
            raise UsageError(f"{args.out} holds a run up to step {start}. Give another --out, or --resume auto")
        kept = resume.read(args.out, start)
        resume.check_identity(args.out, kept["identity"], identity)
        stream.check_state(kept["stream"])
        saved_by = kept["processes"]
    return start, saved_by


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
