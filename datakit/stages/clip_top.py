"""ClipTop: the rows whose caption fits its picture best, by CLIP similarity; pictures are never read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from datakit.engine.stage import KEPT, Filter, Reasons, reasons_in_order
from datakit.errors import SourceError
from datakit.records.tables import Rows


@dataclass(frozen=True, kw_only=True)
class ClipTop(Filter):
    """Keeps the rows of a shard whose caption fits its picture best, in the order they came in.

    Reads the attribute clip_sim. Rows at or below `floor` never pass; of the others the best
    int(share * rows of the shard) do. Ties are broken by key, so the choice never depends on order of arrival.
    """

    version: ClassVar[int] = 1
    share: float  # of the rows that came in, 0 to 1
    floor: float  # similarity

    def expects(self, rows: int | None) -> int | None:
        return None if rows is None else round(rows * self.share)

    def judge(self, rows: Rows) -> Callable[[pa.RecordBatch], Reasons]:
        return reasons_in_order(self._reason_numbers(rows), ("below_floor", "below_quota"))

    def _reason_numbers(self, rows: Rows) -> npt.NDArray[np.int8]:
        """The index of a reason for each row, or KEPT. Memory is 5 bytes a row."""
        if "clip_sim" not in rows.schema().names:
            raise SourceError(f"shard {rows.shard}: the rows have no clip_sim to choose by; the reader must give it")
        sims = [b["clip_sim"].to_numpy(zero_copy_only=False) for b in rows.batches(["clip_sim"], size=1 << 20)]
        sim = np.concatenate(sims) if sims else np.zeros(0, np.float32)
        passes: npt.NDArray[np.bool_] = sim > np.float32(self.floor)  # False for NaN and null
        quota, n_passes = int(len(sim) * self.share), int(passes.sum())
        chosen = passes if n_passes <= quota else self._mark_best(rows, sim, passes, quota)
        reasons = np.full(len(sim), KEPT, np.int8)
        reasons[~passes] = 0
        reasons[passes & ~chosen] = 1
        return reasons

    def _mark_best(
        self, rows: Rows, sim: npt.NDArray[np.float32], passes: npt.NDArray[np.bool_], quota: int
    ) -> npt.NDArray[np.bool_]:
        """A mark for each of the `quota` best of the rows that pass, of which there are more than `quota`."""
        if quota == 0:
            return np.zeros(len(sim), np.bool_)
        n_passes = int(passes.sum())
        cut = np.partition(sim[passes], n_passes - quota)[n_passes - quota]  # the quota-th best
        chosen: npt.NDArray[np.bool_] = passes & (sim > cut)
        ties = np.flatnonzero(passes & (sim == cut))
        room = quota - int(chosen.sum())
        if room < len(ties):
            ties = ties[np.argsort(self._keys_at(rows, ties), kind="stable")]
        chosen[ties[:room]] = True
        return chosen

    def _keys_at(self, rows: Rows, row_numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.str_]:
        """The keys of rows, by their numbers in rising order."""
        keys: list[str] = []
        at = 0
        for batch in rows.batches(["key"], size=1 << 18):
            first, last = np.searchsorted(row_numbers, [at, at + batch.num_rows])
            keys += pc.take(batch["key"], pa.array(row_numbers[first:last] - at)).to_pylist()
            at += batch.num_rows
        return np.array(keys)
