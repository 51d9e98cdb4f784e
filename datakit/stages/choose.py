"""Choosing rows: reads columns, writes columns, never touches a picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from datakit.errors import SourceError
from datakit.stage import Out, Stage, Work
from datakit.tables import Rows


@dataclass(frozen=True, kw_only=True)
class ClipTop(Stage):
    """Keeps the rows of a shard whose caption fits its picture best, in the order they came in.

    Reads the attribute clip_sim. Rows at or below `floor` never pass; of the others the best
    int(share * rows of the shard) do. Ties are broken by key, so the choice never depends on order of arrival.
    """

    version: ClassVar[int] = 1
    share: float  # of the rows that came in, 0 to 1
    floor: float  # similarity

    def rows(self, rows: Rows, work: Work, out: Out) -> Iterator[pa.RecordBatch]:
        if "clip_sim" not in rows.schema().names:
            raise SourceError(f"{work.path('')}: the rows have no clip_sim to choose by; the reader must give it")
        chosen = self._choice(rows, out)
        at = 0
        for batch in rows.batches():
            mask = pa.array(chosen[at : at + batch.num_rows])
            at += batch.num_rows
            kept = batch.filter(mask)
            if kept.num_rows:
                yield kept

    def _choice(self, rows: Rows, out: Out) -> npt.NDArray[np.bool_]:
        """A mark for each row: memory is 5 bytes a row, not the rows."""
        sims = [b["clip_sim"].to_numpy(zero_copy_only=False) for b in rows.batches(["clip_sim"], size=1 << 20)]
        sim = np.concatenate(sims) if sims else np.zeros(0, np.float32)
        passes: npt.NDArray[np.bool_] = sim > np.float32(self.floor)  # False for NaN and null
        quota = int(len(sim) * self.share)
        n_passes = int(passes.sum())
        out.drop("below_floor", len(sim) - n_passes)
        if n_passes <= quota:
            return passes
        out.drop("below_quota", n_passes - quota)
        if quota == 0:
            return np.zeros(len(sim), np.bool_)
        cut = np.partition(sim[passes], n_passes - quota)[n_passes - quota]  # the quota-th best
        chosen: npt.NDArray[np.bool_] = passes & (sim > cut)
        ties = np.flatnonzero(passes & (sim == cut))
        room = quota - int(chosen.sum())
        if room < len(ties):
            ties = ties[np.argsort(self._keys(rows, ties), kind="stable")]
        chosen[ties[:room]] = True
        return chosen

    def _keys(self, rows: Rows, places: npt.NDArray[np.int64]) -> npt.NDArray[np.str_]:
        """The keys at sorted places."""
        found: list[str] = []
        at = 0
        for batch in rows.batches(["key"], size=1 << 18):
            first, last = np.searchsorted(places, [at, at + batch.num_rows])
            found += pc.take(batch["key"], pa.array(places[first:last] - at)).to_pylist()
            at += batch.num_rows
        return np.array(found)
