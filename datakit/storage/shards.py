"""Shard numbers: the ranges a user types, the slice of a job, the names of files."""

from __future__ import annotations

import re
from collections.abc import Iterable

from datakit.errors import UsageError

_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


def shard_name(shard: int, part: int | None = None) -> str:
    """`00042`, or `00042-00007` for the eighth part of that shard."""
    return f"{shard:05d}" if part is None else f"{shard:05d}-{part:05d}"


def shard_of(name: str) -> str:
    """The shard that a part or a file belongs to: `00042` for `00042-00007.r1.tar`."""
    return re.split(r"[-.]", name, maxsplit=1)[0]


def parse_shards(text: str) -> list[int]:
    """`0-127`, `3` or `0,4-6` as sorted numbers. Raises UsageError on anything else."""
    numbers: set[int] = set()
    for piece in text.split(","):
        match = _RANGE.fullmatch(piece.strip())
        if not match:
            raise UsageError(f"bad shard range {text!r} at {piece!r}: expected e.g. 0-127, 5 or 0,4-6")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UsageError(f"bad shard range {text!r}: {first} comes after {last}. Did you mean {last}-{first}?")
        if last - first >= 10_000_000:
            raise UsageError(f"bad shard range {text!r}: more than ten million shards")
        numbers.update(range(first, last + 1))
    return sorted(numbers)


def parse_slice(text: str) -> tuple[int, int]:
    """`3/8`: the fourth of eight jobs, as (3, 8). Raises UsageError on anything else."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if not match or int(match[2]) == 0 or int(match[1]) >= int(match[2]):
        raise UsageError(f"bad slice {text!r}: expected I/N with I from 0 to N-1, e.g. 3/8")
    return int(match[1]), int(match[2])


def ranges(shards: Iterable[int]) -> str:
    """Shard numbers in the form that `parse_shards` reads: `0-3,7`."""
    runs: list[list[int]] = []
    for shard in sorted(shards):
        if runs and shard == runs[-1][1] + 1:
            runs[-1][1] = shard
        else:
            runs.append([shard, shard])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
