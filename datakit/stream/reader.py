"""Stream: the samples of a mix by position, read straight from plain tars.

    stream = Stream("data/mixes/llava665k+qinstruct/mix.json", seed=0)
    stream[0]              # the first sample of the first epoch
    stream[len(stream)]    # the first of the second

A sample is a pure function of (mix, seed, position). A trainer keeps one integer, the next position, and can go on
with any number of processes or workers. `state` stores that integer with what identifies the stream, and `check_state`
verifies it.

A Stream does no batching, no sharding between ranks and no decoding; `trainer/data.py` does these in a few lines.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from datakit.errors import MixError
from datakit.records.record import Record, decode
from datakit.storage.fingerprint import changes
from datakit.storage.refusals import store_errors
from datakit.stream import mixfile as mixes
from datakit.stream.order import WINDOW, Order, Window

_OPEN_TARS = 64  # file handles kept; a window holds about ten


@dataclass(frozen=True, slots=True)
class Sample:
    """One record and its encoded pictures (JPEG or PNG bytes), as many as its messages have image parts."""

    key: str
    record: Record
    images: list[bytes]


@dataclass(frozen=True, slots=True)
class _Index:
    """Where a tar's members are: json[n, 2] and image[m, 2] are (offset, size).

    Sample i has image[first[i] : first[i + 1]].
    """

    json: npt.NDArray[np.int64]
    image: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]


class Stream:
    """Random access to an endless, shuffled, reproducible sequence of samples. Safe to pickle.

    Raises MixError when a tar was packed again since the mix was made, according to the commits beside the tars; a
    pickled copy doesn't check them again.
    """

    def __init__(self, mix: str | Path, seed: int = 0, *, window: int = WINDOW, checked: bool = False) -> None:
        self.mix, self._folder = mixes.read(mix)
        if not checked:
            mixes.check(self.mix, self._folder)
        self._path, self.seed, self._window_samples = str(mix), seed, window
        self._entries = [shard for shard in self.mix.entries() if shard.samples]
        self._order = Order([shard.samples for shard in self._entries], seed=seed, window=window)
        self._indexes: dict[int, _Index] = {}
        self._files: OrderedDict[str, int] = OrderedDict()
        self._fs: Any = None
        self._window: tuple[range, Window] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._path, self.seed, self._window_samples)

    def __len__(self) -> int:
        """Samples in one epoch."""
        return self._order.n_samples

    @property
    def fingerprint(self) -> str:
        return self.mix.fingerprint

    def __getitem__(self, position: int) -> Sample:
        """The sample at a position, counted through all epochs.

        Raises MixError if a tar isn't what the mix says, StorageError if a bucket can't be read.
        """
        if position < 0:
            raise IndexError(f"a stream starts at position 0, not {position}")
        entry, row = self._entry_and_row(position)
        shard, index = self._entries[entry], self._index(entry)
        first, last = index.first[row], index.first[row + 1]
        data, *images = self._read(shard, np.concatenate([index.json[row : row + 1], index.image[first:last]]))
        record = decode(data)
        return Sample(record.key, record, images)

    def state(self, position: int) -> dict[str, Any]:
        """What a trainer stores to go on at a position: a few integers and the mix's fingerprint."""
        epoch, offset = divmod(position, len(self))
        return {
            "mix": self.fingerprint,
            "seed": self.seed,
            "window": self._window_samples,
            "epoch": epoch,
            "offset": offset,
            "position": position,
        }

    def check_state(self, state: dict[str, Any]) -> int:
        """The position in a stored state. Raises MixError, naming the fields, when it is of another stream."""
        position = state.get("position")
        if not isinstance(position, int) or position < 0:
            raise MixError(f"not the state of a stream: {state!r}")
        mine = self.state(position)
        differ = changes({k: state.get(k) for k in mine}, mine)
        if differ:
            raise MixError(
                "this state belongs to another stream:\n  "
                + "\n  ".join(differ)
                + "\nUse the mix and seed it was kept with."
            )
        return position

    def close(self) -> None:
        """Closes the tars; reading another sample opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()

    def _entry_and_row(self, position: int) -> tuple[int, int]:
        """The entry of the mix and the row in it that hold the sample at a position."""
        if self._window is None or position not in self._window[0]:
            window = self._order.window_at(position)
            start = position // len(self) * len(self) + window.start
            self._window = range(start, start + len(window.entry)), window
            self._indexes = {e: i for e, i in self._indexes.items() if e in window.shards}
        span, window = self._window
        at = position - span.start
        return int(window.entry[at]), int(window.row[at])

    def _index(self, entry: int) -> _Index:
        if entry not in self._indexes:
            self._indexes[entry] = self._load(entry)
        return self._indexes[entry]

    def _load(self, entry: int) -> _Index:
        shard = self._entries[entry]
        where = mixes.locate(self._folder, shard.index)
        data = self._fetch(where) if "://" in where else _read_file(where)
        if xxhash.xxh3_128(data).hexdigest() != shard.index_xxh3:
            raise MixError(self._changed_message(where))
        table = pq.read_table(pa.BufferReader(data), columns=["json_offset", "json_bytes", "images"])
        images = table["images"].combine_chunks()
        flat = images.flatten()
        lengths = images.value_lengths().to_numpy(zero_copy_only=False)
        return _Index(
            json=np.stack([table["json_offset"].to_numpy(), table["json_bytes"].to_numpy()], axis=1),
            image=np.stack([flat.field("offset").to_numpy(), flat.field("size_bytes").to_numpy()], axis=1),
            first=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        )

    def _read(self, shard: mixes.MixShard, extents: npt.NDArray[np.int64]) -> list[bytes]:
        """The bytes at each (offset, size) of a tar; a sample's members are adjacent, so one read gets them all."""
        first, last = int(extents[:, 0].min()), int(extents.sum(axis=1).max())
        where = mixes.locate(self._folder, shard.tar)
        if "://" in where:
            data = self._fetch(where, first, last)
        else:
            data = os.pread(self._open(where, shard.size_bytes), last - first, first)
        if len(data) != last - first:
            raise MixError(self._changed_message(where))
        return [bytes(data[at - first : at - first + size]) for at, size in extents.tolist()]

    def _open(self, where: str, size_bytes: int) -> int:
        handle = self._files.get(where)
        if handle is not None:
            self._files.move_to_end(where)
            return handle
        try:
            handle = os.open(where, os.O_RDONLY)
        except OSError as error:
            raise MixError(f"can't open {where!r}: {error}. `datakit verify` says what is whole") from error
        if os.fstat(handle).st_size != size_bytes:
            os.close(handle)
            raise MixError(self._changed_message(where))
        self._files[where] = handle
        if len(self._files) > _OPEN_TARS:
            os.close(self._files.popitem(last=False)[1])
        return handle

    def _changed_message(self, where: str) -> str:
        return mixes.CHANGED.format(where, mixes.command(self.mix))

    def _fetch(self, where: str, start: int | None = None, end: int | None = None) -> bytes:
        """A file of a bucket, or a range of one. Raises StorageError for any error of the bucket."""
        with store_errors(where, "read"):
            if self._fs is None:
                import fsspec

                self._fs = fsspec.core.url_to_fs(where)[0]
            return bytes(self._fs.cat_file(where, start=start, end=end))


def _restore(path: str, seed: int, window: int) -> Stream:
    return Stream(path, seed, window=window, checked=True)


def _read_file(where: str) -> bytes:
    try:
        return Path(where).read_bytes()
    except OSError as error:
        raise MixError(f"can't read {where!r}: {error}. `datakit verify` says what is whole") from error
