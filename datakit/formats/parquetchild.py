"""Parquet child: the process that reads one untrusted Parquet file, so that a crash harms nobody else.

Run as `python -m datakit.formats.parquetchild FD PATH [REQUEST…]` by datakit/formats/parquetrows.py. To the pipe FD it
writes one Arrow stream after the other: first the file's schema without rows, its metadata naming the number of rows;
then the batches of each request, a JSON of `columns` (null: all) and `rows` of a batch (null: as many as memory
allows). Exits with 3 and one sentence on standard error when the file can't be read.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = b"datakit.rows"
WONT_DO = 3
BATCH = 16  # rows in memory; one may hold several photographs
BATCH_BYTES, MOST_BYTES = 1 << 30, 4 << 30  # of one column of a row group: one value of a dictionary may be all of it


def main(pipe: int, path: str, *requests: str) -> None:
    """Writes the batches of all requests. Raises ValueError for a file that can't be read within the memory limit."""
    with os.fdopen(pipe, "wb", buffering=1 << 20) as raw, pq.ParquetFile(path, **_LOW_MEMORY) as file:
        head = file.schema_arrow
        with pa.ipc.new_stream(raw, head.with_metadata({ROWS: str(file.metadata.num_rows)})):
            raw.flush()
        for request in requests:
            fields = json.loads(request)
            rows = fields["rows"] or _rows_in_memory(file)
            batches = file.iter_batches(rows, columns=fields["columns"], use_threads=False)
            first = next(batches, None)
            with pa.ipc.new_stream(raw, first.schema if first is not None else head) as sink:
                if first is not None:
                    sink.write_batch(first)
                for batch in batches:
                    sink.write_batch(batch)
            raw.flush()


_LOW_MEMORY = {"buffer_size": 1 << 20, "pre_buffer": False}


def _rows_in_memory(file: pq.ParquetFile) -> int:
    """How many rows may be in memory, by the largest column of a row group before compression."""
    groups = [file.metadata.row_group(k) for k in range(file.metadata.num_row_groups)]
    biggest = max((g.column(c).total_uncompressed_size for g in groups for c in range(g.num_columns)), default=1)
    if biggest > MOST_BYTES:
        raise ValueError(
            f"it has {biggest} bytes in one column of a row group, at most {MOST_BYTES} are read: "
            "write it anew with smaller row groups"
        )
    return max(1, min(BATCH, BATCH_BYTES // max(1, biggest)))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent closes the pipe
    try:
        main(int(sys.argv[1]), *sys.argv[2:])
    except BrokenPipeError:
        os._exit(0)
    except Exception as error:  # noqa: BLE001 - the parent reports it
        os.write(2, f"{error}"[:2000].encode("utf-8", "backslashreplace"))
        os._exit(WONT_DO)
