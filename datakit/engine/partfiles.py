"""Part files: the table, the tar and the log of a part of a shard, written together and published together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow as pa

from datakit.engine.work import Out, Work
from datakit.records.tables import TableWriter, write_log
from datakit.storage.claims import Stamps
from datakit.storage.ledger import File
from datakit.storage.store import Sink


class PartFiles:
    """The files of a part while they are written, under temporary names."""

    def __init__(self, name: str, table: Sink, schema: pa.Schema, out: Out) -> None:
        self.name, self.out = name, out
        self._table, self._writer = table, TableWriter(table, schema)

    @property
    def rows(self) -> int:
        """The rows that were written so far."""
        return self._writer.rows

    def write(self, batch: pa.RecordBatch) -> None:
        """Adds rows to the table."""
        self._writer.write(batch)

    def close(self) -> None:
        """Ends the table and the tar."""
        self._writer.close()
        self.out.close()

    @property
    def table(self) -> File:
        """The published table."""
        return _file(f"{self.name}.parquet", self._table)

    @property
    def tar(self) -> File | None:
        """The published tar; None when nothing was written into one."""
        return None if self.out.sink is None else _file(f"{self.name}.tar", self.out.sink)

    @property
    def stamps(self) -> Stamps:
        """Stamps that tell whether the published files are still those that were written here."""
        sinks = {"parquet": self._table} if self.out.sink is None else {"parquet": self._table, "tar": self.out.sink}
        return {f"{self.name}.{ending}": sink.stamp for ending, sink in sinks.items()}


@contextmanager
def part_files(work: Work, name: str, schema: pa.Schema, *, source: Any = None) -> Iterator[PartFiles]:
    """Files to write a part into, `<name>.parquet` and, once a stage asks for one, `<name>.tar`.

    They are published when the block ends without an error, the tar before the table; else neither is.
    """
    with ExitStack() as published:
        table = published.enter_context(work.store.publish(work.path(f"{name}.parquet")))
        tar_name = work.path(f"{name}.tar")

        def open_tar() -> Sink:
            # Entered after the table, so left before it: the tar is there when the table is.
            return published.enter_context(work.store.publish(tar_name))

        files = PartFiles(name, table, schema, Out(open_tar, tar_name, source))
        yield files
        files.close()
        if files.out.log:
            write_log(work.store, work.path(f"log/{name}.parquet"), files.out.log)


def _file(name: str, sink: Sink) -> File:
    assert sink.written is not None  # set by publish
    return File(name, sink.written.size_bytes, sink.written.xxh3)
