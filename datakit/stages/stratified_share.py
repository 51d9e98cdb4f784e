"""StratifiedShare: a share of the rows, the same for each folder of pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from datakit.engine.stage import KEPT, Filter, Reasons, reasons_in_order
from datakit.errors import UsageError
from datakit.records.tables import Rows


@dataclass(frozen=True, kw_only=True)
class StratifiedShare(Filter):
    """Keeps a share of each shard's rows, by their keys alone, in the order they came in.

    Strata are the folders of the first pictures (`vg/VG_100K`), and the rows without one. A shard with n rows keeps
    share * n of them, half a row rounded up; each stratum keeps share times its own rows, rounded down, and those
    with the largest remainder keep one row more. Within a stratum it keeps the rows with the lowest XXH3 of their key.

    So in each shard a stratum is off by less than one row. No paper published this choice: how LibMoE drew its 332K
    rows isn't documented.
    """

    version: ClassVar[int] = 1
    share: float  # of the rows that came in, 0 to 1

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UsageError(f"a share of {self.share!r} isn't between 0 and 1: give 0.5 for half of the rows")

    def expects(self, rows: int | None) -> int | None:
        return None if rows is None else round(rows * self.share)

    def judge(self, rows: Rows) -> Callable[[pa.RecordBatch], Reasons]:
        return reasons_in_order(self._reason_numbers(rows), ("not_in_share",))

    def _reason_numbers(self, rows: Rows) -> npt.NDArray[np.int8]:
        """The index of a reason for each row, or KEPT. Memory is some 40 bytes a row."""
        hashes, strata = _hashes_and_strata(rows)
        # By stratum, then by hash; of two keys with one hash the first row comes first.
        order = np.lexsort((hashes, strata))
        sizes = np.bincount(strata)
        starts = np.cumsum(sizes) - sizes
        share = Fraction(str(self.share))  # 0.29 of 100 is 29, which it isn't in floating point
        exact = [share * int(size) for size in sizes]
        quotas = [int(wanted) for wanted in exact]
        spare = int(share * len(hashes) + Fraction(1, 2)) - sum(quotas)
        # Equal remainders, such as all halves, go by the hash of the row that would be next: no stratum is favoured.
        after = {}
        for stratum, (start, quota) in enumerate(zip(starts, quotas)):
            after[stratum] = hashes[order[start + quota]] if quota < exact[stratum] else 0
        by_remainder = sorted(range(len(sizes)), key=lambda s: (quotas[s] - exact[s], after[s]))
        for stratum in by_remainder[:spare]:
            quotas[stratum] += 1
        reasons = np.zeros(len(hashes), np.int8)
        for start, quota in zip(starts, quotas):
            reasons[order[start : start + quota]] = KEPT
        return reasons


def _hashes_and_strata(rows: Rows) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """For each row the hash of its key, and the number of its stratum."""
    numbers: dict[str | None, int] = {}
    hashes, strata = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for batch in rows.batches(["key", "images"], size=1 << 16):
        keys = batch["key"].cast(pa.binary()).to_pylist()
        hashes.append(np.array([xxhash.xxh3_64_intdigest(key) for key in keys], np.uint64))
        folders = _folders(batch["images"]).to_pylist()
        strata.append(np.array([numbers.setdefault(folder, len(numbers)) for folder in folders], np.int64))
    return np.concatenate(hashes), np.concatenate(strata)


def _folders(images: pa.Array) -> pa.Array:
    """The folder of each row's first picture: its reference up to the last slash, null without a picture."""
    counts = pc.fill_null(pc.list_value_length(images), 0)
    starts = pc.subtract(pc.cumulative_sum(counts), counts)
    starts = pc.if_else(pc.greater(counts, 0), starts, pa.scalar(None, starts.type))
    first = pc.take(pc.struct_field(pc.list_flatten(images), "ref"), starts)
    return pc.replace_substring_regex(first, r"(?s)/?[^/]*$", "")
