"""Tables: Parquet files of records, written and read in batches so that memory stays small.

Every table has these columns, and any other column is an attribute of the record (but the `sentences` and
`similarity` of interleaved documents, which pack may have to match again):

    key       string
    messages  string, JSON (datakit/records/record.py)
    images    list of struct: {ref} after listing; LOCATED after fetch; PACKED after pack
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datakit.errors import SourceError
from datakit.storage.store import Store

CORE = ("key", "messages", "images")
ROW_GROUP = 20_000  # rows; a listing of 5.8 M rows has 290 groups, each a few MB

REFS = pa.list_(pa.struct([("ref", pa.string())]))

# One picture after fetch. `file` is relative to the root (`downloads/…` for an archive); `outcome` is "ok" or
# the reason for which there are no bytes; method 0 is plain bytes, 8 is deflate.
LOCATED = pa.list_(
    pa.struct(
        [
            ("ref", pa.string()),
            ("outcome", pa.string()),
            ("file", pa.string()),
            ("offset", pa.int64()),
            ("stored_bytes", pa.int64()),
            ("size_bytes", pa.int64()),
            ("method", pa.int8()),
            ("crc32", pa.int64()),
            ("checked", pa.bool_()),  # decoded whole and brought to one form at fetch
            ("ext", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("sha256", pa.string()),
            ("final_url", pa.string()),
            ("status", pa.int16()),
        ]
    )
)


class LocatedPicture(TypedDict):
    """One picture after fetch, as LOCATED has it."""

    ref: str
    outcome: str
    file: str | None
    offset: int | None
    stored_bytes: int | None
    size_bytes: int | None
    method: int | None
    crc32: int | None
    checked: bool | None
    ext: str | None
    width: int | None
    height: int | None
    sha256: str | None
    final_url: str | None
    status: int | None


class Extent(TypedDict):
    """Where the bytes of a picture are in a file; the fields are LocatedPicture's."""

    file: str
    offset: int
    stored_bytes: int
    size_bytes: int
    method: int


def located_picture(
    ref: str,
    outcome: str,
    *,
    file: str | None = None,
    offset: int | None = None,
    stored_bytes: int | None = None,
    size_bytes: int | None = None,
    method: int | None = None,
    crc32: int | None = None,
    checked: bool | None = None,
    ext: str | None = None,
    width: int | None = None,
    height: int | None = None,
    sha256: str | None = None,
    final_url: str | None = None,
    status: int | None = None,
) -> LocatedPicture:
    """A LocatedPicture; fields that aren't given are None."""
    return {
        "ref": ref,
        "outcome": outcome,
        "file": file,
        "offset": offset,
        "stored_bytes": stored_bytes,
        "size_bytes": size_bytes,
        "method": method,
        "crc32": crc32,
        "checked": checked,
        "ext": ext,
        "width": width,
        "height": height,
        "sha256": sha256,
        "final_url": final_url,
        "status": status,
    }


def extent_of(picture: LocatedPicture) -> Extent:
    """Where the bytes of a picture with outcome "ok" are. Raises SourceError when its table doesn't say."""
    file, offset, method = picture["file"], picture["offset"], picture["method"]
    stored_bytes, size_bytes = picture["stored_bytes"], picture["size_bytes"]
    if file is None or offset is None or stored_bytes is None or size_bytes is None or method is None:
        raise SourceError(
            f"a table says that the picture {picture['ref']!r} is there, and not where its bytes are: the stage that "
            f"wrote it should give {', '.join(Extent.__annotations__)}"
        )
    return {
        "file": file, "offset": offset, "stored_bytes": stored_bytes, "size_bytes": size_bytes, "method": method
    }  # fmt: skip


# The log beside a table of fetch. It differs from run to run, so its hash isn't part of the commit.
LOG = pa.schema(
    [
        ("key", pa.string()),
        ("url", pa.string()),
        ("outcome", pa.string()),
        ("status", pa.int16()),
        ("ms", pa.int32()),  # from the first request to the picture, redirects and retries included
    ]
)

# One picture in a packed tar.
PACKED = pa.list_(
    pa.struct(
        [
            ("offset", pa.int64()),
            ("size_bytes", pa.int64()),
            ("ext", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
        ]
    )
)


class PackedPicture(TypedDict):
    """One picture in a packed tar, as PACKED has it."""

    offset: int
    size_bytes: int
    ext: str
    width: int
    height: int


def with_images(schema: pa.Schema, images: pa.DataType) -> pa.Schema:
    """The schema with another type in its `images` column."""
    return schema.set(schema.get_field_index("images"), pa.field("images", images))


def with_pictures(batch: pa.RecordBatch, pictures: list[list[LocatedPicture]], schema: pa.Schema) -> pa.RecordBatch:
    """The batch with the located pictures of each of its rows in the column `images`."""
    column = pa.array(pictures, LOCATED)
    return pa.RecordBatch.from_arrays(
        [column if name == "images" else batch[name] for name in schema.names], schema=schema
    )


def refs_of(batch: pa.RecordBatch) -> list[str]:
    """The refs (URLs) of all pictures of a batch, in order."""
    return batch["images"].flatten().field("ref").to_pylist()  # type: ignore[no-any-return]


def failures(pictures: list[LocatedPicture]) -> list[str]:
    """The outcomes of those of a row's pictures that weren't got."""
    return [picture["outcome"] for picture in pictures if picture["outcome"] != "ok"]


class TableWriter:
    """Writes batches to a Parquet file; the same batches give the same bytes under one pyarrow."""

    def __init__(self, file: Any, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(file, schema, compression="zstd", compression_level=1, version="2.6")
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self.rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Adds rows; whole groups of `ROW_GROUP` rows go to the file, however the batches were cut."""
        self._pending.append(batch)
        self._pending_rows += batch.num_rows
        self.rows += batch.num_rows
        while self._pending_rows >= ROW_GROUP:
            self._flush(ROW_GROUP)

    def _flush(self, rows: int) -> None:
        table = pa.Table.from_batches(self._pending)
        self._writer.write_table(table.slice(0, rows), row_group_size=ROW_GROUP)
        self._pending = table.slice(rows).to_batches()
        self._pending_rows -= rows

    def close(self) -> None:
        if self._pending_rows:
            self._flush(self._pending_rows)
        self._writer.close()


def write_log(store: Store, name: str, rows: list[dict[str, Any]]) -> None:
    """Publishes a fetch log; the keys of its rows are LOG's columns."""
    with store.publish(name) as sink:
        writer = TableWriter(sink, LOG)
        writer.write(pa.RecordBatch.from_pylist(rows, LOG))
        writer.close()


@dataclass(frozen=True)
class Rows:
    """The rows from `start` to `stop` of a shard's tables in one step folder, read when asked for."""

    store: Store
    shard: int
    files: tuple[tuple[str, int], ...]  # name below the root, rows
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def schema(self) -> pa.Schema:
        with self._open(self.files[0][0]) as file:
            return file.schema_arrow

    def batches(self, columns: list[str] | None = None, *, size: int = 8192) -> Iterator[pa.RecordBatch]:
        """The rows in order, in batches of at most `size`. Raises SourceError for a damaged table."""
        at = 0
        for name, rows in self.files:
            first, last = max(self.start - at, 0), min(self.stop - at, rows)
            at += rows
            if first >= last:
                continue
            with self._open(name) as file:
                found = _read_rows(file, first, last, columns, size)
                while (batch := self._next(found, name)) is not None:
                    yield batch

    @contextmanager
    def _open(self, name: str) -> Iterator[pq.ParquetFile]:
        with self.store.open(name) as raw:
            try:
                file = pq.ParquetFile(raw, buffer_size=1 << 20, pre_buffer=False)
            except (pa.ArrowException, OSError) as error:
                raise _damage_error(name, error) from error
            yield file

    def _next(self, batches: Iterator[pa.RecordBatch], name: str) -> pa.RecordBatch | None:
        try:
            return next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise _damage_error(name, error) from error


def _damage_error(name: str, error: Exception) -> SourceError:
    return SourceError(f"{name} is damaged: {error}. `datakit verify --repair`, then the same command, makes it again")


def _read_rows(
    file: pq.ParquetFile, first: int, last: int, columns: list[str] | None, size: int
) -> Iterator[pa.RecordBatch]:
    """Rows first..last of a Parquet file, reading only the row groups that hold them."""
    groups, starts, at = [], [], 0
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if at < last and at + rows > first:
            groups.append(group)
            starts.append(at)
        at += rows
    place = starts[0] if starts else 0
    for batch in file.iter_batches(size, row_groups=groups, columns=columns, use_threads=False):
        begin, end = max(first - place, 0), min(last - place, batch.num_rows)
        place += batch.num_rows
        if begin < end:
            yield batch.slice(begin, end - begin)


def as_batches(rows: Iterable[dict[str, Any]], schema: pa.Schema, *, size: int = 4096) -> Iterator[pa.RecordBatch]:
    """Python rows as batches of a schema."""
    held: list[dict[str, Any]] = []
    for row in rows:
        held.append(row)
        if len(held) == size:
            yield _batch(held, schema)
            held = []
    if held:
        yield _batch(held, schema)


def _batch(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    columns = []
    for field in schema:
        try:
            columns.append(column([row.get(field.name) for row in rows], field.type))
        except (pa.ArrowException, TypeError, ValueError, AttributeError) as error:  # of a reader that isn't ours
            raise SourceError(
                f"a row's {field.name!r} is not of type {field.type}, as its reader says: {error}"
            ) from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def column(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Python values as an array.

    Texts, and lists and structs of them, are laid out here, because pa.array loads pandas where it is installed:
    70 MB and a fifth of a second in each process.
    """
    there = [value is not None for value in values]
    bits = None if all(there) else pa.py_buffer(np.packbits(there, bitorder="little"))
    if pa.types.is_string(kind):
        texts = [b"" if value is None else value.encode() for value in values]
        return pa.Array.from_buffers(kind, len(values), [bits, _ends(texts), pa.py_buffer(b"".join(texts))])
    if pa.types.is_list(kind):
        lists = [value or () for value in values]
        inner = column([item for items in lists for item in items], kind.value_type)
        return pa.Array.from_buffers(kind, len(values), [bits, _ends(lists)], children=[inner])
    if pa.types.is_struct(kind):
        structs = [value or {} for value in values]
        fields = [column([struct.get(field.name) for struct in structs], field.type) for field in kind]
        return pa.Array.from_buffers(kind, len(values), [bits], children=fields)
    return pa.array(values, kind)


def _ends(values: list[Any]) -> pa.Buffer:
    """Where each value starts, one after the other, and where the last one ends."""
    return pa.py_buffer(array("i", accumulate(map(len, values), initial=0)))
