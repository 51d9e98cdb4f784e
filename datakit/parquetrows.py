"""Parquet rows: a file's rows as dictionaries, a few at a time, for rows that hold their pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datakit.errors import SourceError, shortlist

BATCH = 16  # rows in memory; one may hold several photographs
BATCH_BYTES, MOST_BYTES = 1 << 30, 4 << 30  # of one column of a row group: one value of a dictionary may be all of it
_ANEW = "If it was damaged on this disk, remove it and the next fetch has it again"


def rows(path: Path | str) -> Iterator[dict[str, Any]]:
    """Every row of a file, in order. Raises SourceError for no Parquet, damage or a column that is there twice."""
    try:
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            names = file.schema_arrow.names
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise SourceError(f"{path} has column {shortlist(twice)} twice: a row of it can't be told")
            biggest = _biggest(file)
            if biggest > MOST_BYTES:
                raise SourceError(
                    f"{path} has {biggest} bytes in one column of a row group, at most {MOST_BYTES} are read: "
                    "write it anew with smaller row groups"
                )
            for batch in file.iter_batches(max(1, min(BATCH, BATCH_BYTES // biggest)), use_threads=False):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} is no Parquet, is cut short or is damaged: {error}. {_ANEW}") from error


def _biggest(file: pq.ParquetFile) -> int:
    """Bytes of the largest column of a row group, before compression."""
    groups = [file.metadata.row_group(k) for k in range(file.metadata.num_row_groups)]
    return max((g.column(c).total_uncompressed_size for g in groups for c in range(g.num_columns)), default=1) or 1
