"""Train a recipe on a mix, on any number of processes. Run the same line again to go on after a stop.

On all GPUs of this machine:

    deepspeed --module trainer.train --recipe toy --mix data/mixes/NAME/mix.json --out runs/x

On CPU, two processes. DeepSpeed counts sockets and not cores, so the number has to be said; without
`--bind_cores_to_rank` it needs no numactl. Runs side by side need a `--master_port` each.

    DS_ACCELERATOR=cpu deepspeed --num_accelerators 2 --module trainer.train --recipe toy --mix ... --out ...

The same by `torchrun --standalone --nproc-per-node 2 -m trainer.train ...`; or one process, without a
launcher, by `python -m trainer.train ...`.

<out>/run.json says what run it is, <out>/log.jsonl gets a line per step (loss, tokens, lr),
<out>/samples.jsonl the keys that it has seen, <out>/checkpoints/ the state, <out>/model/ the result, and
its training.json the step that it is of. A stop, by a signal or a crash, never leaves a
checkpoint half written. Stop a launch by Ctrl-C, or by SIGTERM to its process group: the first process of
`deepspeed` doesn't pass SIGTERM on.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from datakit.errors import DatakitError, UsageError
from datakit.stream.reader import Stream
from trainer import config, folder

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
    if args.micro_batch is not None:
        training = dataclasses.replace(training, micro_batch=args.micro_batch)
    rank, n_processes = _rank_and_size()
    training.accumulation(n_processes)
    training.zero_settings()
    stream = Stream(args.mix, seed=training.seed)
    steps = training.steps(len(stream))
    identity = {"recipe": recipe, **training.identity(), "mix": stream.fingerprint}
    # One process speaks for all: the others would see what it has just written.
    with folder.claim(args.out) if rank == 0 else nullcontext():
        start, kept = _where_to_start(args, identity, stream)
        if start:
            _check_zero(args.out, kept, training.zero_stage(), n_processes)
        if rank == 0:
            folder.write_identity(args.out, identity)
        last = max(start, steps if args.max_steps is None else min(steps, args.max_steps))
        if start == last and folder.model_step(args.out) == start:
            log.info("nothing to do: %s is at step %d of %d", args.out, start, steps)
            return

        from trainer.loop import run  # slow to import: torch, transformers and DeepSpeed

        run(
            training,
            stream,
            args.out,
            start=start,
            last=last,
            steps=steps,
            saved_by=kept.get("processes", 0),
            identity=identity,
            workers=args.data_workers,
        )


def _rank_and_size() -> tuple[int, int]:
    """Rank and number of processes. WORLD_SIZE without a RANK is left over from another launch."""
    if "RANK" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ.get("WORLD_SIZE", "1"))


def _where_to_start(args: argparse.Namespace, identity: dict[str, Any], stream: Stream) -> tuple[int, dict[str, Any]]:
    """The step that is done, and its stream.json. Raises RecipeChanged when another run did it."""
    start, kept = folder.newest_step(args.out) or 0, {}
    if start:
        if args.resume == "never":
            raise UsageError(f"{args.out} holds a run up to step {start}. Give another --out, or --resume auto")
        kept = folder.read_state(args.out, start)
        folder.check_identity(args.out, kept["identity"], identity)
        stream.check_state(kept["stream"])
    return start, kept


def _check_zero(out: Path, kept: dict[str, Any], stage: int, n_processes: int) -> None:
    """Raises UsageError when DeepSpeed can't load the checkpoint under this ZeRO stage on so many processes."""
    saved, saved_by = kept.get("zero_stage", stage), kept["processes"]
    if (stage == 0) != (saved == 0):
        raise UsageError(
            f"{out} was saved under ZeRO stage {saved}, and stage {stage} can't go on with it: stage 0 keeps the "
            f"optimizer in another form. Set zero to a file of stage {'0' if saved == 0 else '1 or 2'}"
        )
    if stage == 0 and saved_by != n_processes:
        raise UsageError(
            f"{out} was saved under ZeRO stage 0 by {saved_by} processes, and only as many can go on with it, not "
            f"{n_processes}. Start {saved_by}; ZeRO stages 1 and 2 go on with any number"
        )


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
    parser.add_argument("--max-steps", type=_at_least(1), help="stop after this step; the schedule stays the recipe's")
    parser.add_argument("--micro-batch", type=_at_least(1), help="samples per process at a time, not the recipe's")
    parser.add_argument(
        "--data-workers", type=_at_least(0), default=2, help="loading processes beside each process; 0: none"
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # the launcher's
    return parser.parse_args(argv)


def _at_least(least: int) -> Callable[[str], int]:
    """What argparse calls for a whole number with a lower bound; it exits with 2."""

    def whole(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"a whole number, {least} or more, is wanted, not {text!r}")
        return number

    return whole


if __name__ == "__main__":
    sys.exit(main())
