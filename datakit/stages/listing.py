"""Listing: upstream's annotations as tables of records, one shard after the other, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from datakit import readers
from datakit.catalogue.manifest import Manifest
from datakit.engine.stage import Role, Stage
from datakit.engine.work import Out, Work
from datakit.records.record import encode
from datakit.records.tables import Rows, as_batches
from datakit.upstream.annotations import about, inputs, numbered_rows, prepare, shards


@dataclass(frozen=True, kw_only=True)
class Listing(Stage):
    """Rows of a dataset as its manifest and reader say. A file is a shard; a JSON may be cut into shards.

    Keys are `<dataset>-<id>` where a reader takes columns, whose ids are unique; `<dataset>-<number of the row>` where
    JSON is cut; otherwise `<dataset>-<shard>-<row>`. Pictures that the rows hold are called `<row>.<nth>`.
    """

    role: ClassVar[Role] = "list"
    version: ClassVar[int] = 1
    separator: str = "\n"  # between an instruction and its input, where upstream has them apart (M3IT)

    def identity(self, manifest: Manifest) -> dict[str, Any]:
        rows = manifest.annotations
        said = super().identity(manifest)
        if self.separator == "\n":  # so that datasets without instructions keep their identity
            del said["separator"]
        inline = manifest.images.by == "inline"  # which changes the pictures' references
        optional = {"inside": rows.inside, "beside": rows.beside, "columns": rows.columns, "inline": inline}
        optional["attributes"] = rows.attributes
        return {
            **said,
            "reader": manifest.reader,
            "reader_version": readers.load(manifest).VERSION,
            "files": rows.files,
            "rows_per_shard": rows.rows_per_shard,
            **{name: value for name, value in optional.items() if value},
        }

    def prepare(self, work: Work) -> None:
        prepare(work)

    def shards(self, work: Work) -> list[int]:
        return shards(work)

    def inputs(self, work: Work, shard: int) -> dict[str, str] | None:
        return inputs(work, shard)

    def schema(self, rows: Rows, manifest: Manifest) -> pa.Schema:
        return readers.schema(manifest)

    def rows(self, rows: Rows, work: Work, out: Out) -> Iterator[pa.RecordBatch]:
        reader = readers.load(work.manifest)
        if hasattr(reader, "batches"):
            path = work.download(work.manifest.address(work.manifest.file_of(rows.shard))).path
            yield from reader.batches(path, work.limit, work.manifest.key, out.reject)
        else:
            yield from as_batches(self._records(rows.shard, work, out), readers.schema(work.manifest))

    def _records(self, shard: int, work: Work, out: Out) -> Iterator[dict[str, Any]]:
        read = readers.reading(work.manifest, about(work, shard, self.separator))
        key = work.manifest.key if work.manifest.annotations.cut else f"{work.manifest.key}-{shard:05d}"
        width = 9 if work.manifest.annotations.cut else 6
        inline = work.manifest.images.by == "inline"
        for number, row in numbered_rows(work, shard):
            record = read(row, number)
            if isinstance(record, str):
                out.reject(record)
                continue
            refs = [f"{number}.{nth}" for nth in range(len(record.images))] if inline else record.images
            yield {
                "key": f"{key}-{number:0{width}d}",
                "messages": encode(record.messages).decode(),
                "images": [{"ref": ref} for ref in refs],
                **record.attrs,
            }
