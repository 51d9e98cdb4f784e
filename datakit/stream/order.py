"""Order: which sample is at which position, computed by arithmetic alone.

An epoch permutes the shards of a mix, groups consecutive shards into windows of at least `WINDOW` samples, and
permutes the samples of each window, so that reading stays local and only one window is in memory. The order doesn't
depend on the number of processes, and no state is carried from one position to the next.

The permutations sort a 64-bit mix of (seed, epoch, window, index), and do not use a random-number library:
an order must not change when a library does. `tests/datakit/test_order.py` pins the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

WINDOW = 50_000  # samples; ten tars of 5,000: enough to mix, few enough to keep their index in memory


def _splitmix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection that looks random."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def permutation(n: int, *path: int) -> npt.NDArray[np.int64]:
    """The numbers 0..n-1, (n,) int64, in an order that is a pure function of n and the path of integers."""
    state = np.zeros(1, np.uint64)
    for step in path:
        state = _splitmix64(state ^ _splitmix64(np.array([step & 0xFFFFFFFFFFFFFFFF], np.uint64)))
    keys = _splitmix64(np.arange(n, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95) ^ state)
    return np.argsort(keys, kind="stable").astype(np.int64)


@dataclass(frozen=True)
class Window:
    """Consecutive shards of an epoch, and the shuffled samples in them."""

    start: int  # position of its first sample in the epoch
    shards: npt.NDArray[np.int64]  # entries of the mix, in the epoch's order
    entry: npt.NDArray[np.int32]  # for each sample in order: which entry of the mix
    row: npt.NDArray[np.int32]  # and which row in it


class Order:
    """The order of one mix under one seed. `sizes` are the samples of each of `Mix.entries()`."""

    def __init__(self, sizes: list[int], *, seed: int, window: int = WINDOW) -> None:
        self.sizes = np.array(sizes, np.int64)
        self.seed = seed
        self.window_samples = window
        self.n_samples = int(self.sizes.sum())
        self._epoch: tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None

    def _layout(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The entries in the epoch's order, and the window number of each."""
        if self._epoch is None or self._epoch[0] != epoch:
            entries = permutation(len(self.sizes), self.seed, epoch)
            # A window is closed by the entry with which it reaches its size.
            windows = np.zeros(len(entries), np.int64)
            number, held = 0, 0
            for place, size in enumerate(self.sizes[entries].tolist()):
                windows[place] = number
                held += size
                if held >= self.window_samples:
                    number, held = number + 1, 0
            self._epoch = (epoch, entries, windows)
        return self._epoch[1], self._epoch[2]

    def window_at(self, position: int) -> Window:
        """The window that holds a position; positions count on through the epochs without end."""
        epoch, offset = divmod(position, self.n_samples)
        entries, windows = self._layout(epoch)
        ends = np.cumsum(self.sizes[entries])
        place = int(np.searchsorted(ends, offset, side="right"))
        number = int(windows[place])
        first, last = np.searchsorted(windows, [number, number + 1])
        mine = entries[first:last]
        start = int(ends[first] - self.sizes[entries[first]])
        sizes = self.sizes[mine]
        entry = np.repeat(mine, sizes).astype(np.int32)
        row = np.concatenate([np.arange(n, dtype=np.int32) for n in sizes])
        shuffled = permutation(len(entry), self.seed, epoch, number)
        return Window(start, mine, entry[shuffled], row[shuffled])
