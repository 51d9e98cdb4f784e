"""Listing: upstream's annotations as tables of records, one shard after the other, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pyarrow as pa

from datakit import jsonfile, readers
from datakit.errors import Incomplete, SourceError, UsageError
from datakit.fingerprint import fingerprint
from datakit.manifest import Manifest
from datakit.record import encode
from datakit.stage import Out, Stage, Work
from datakit.tables import Rows, as_batches

_PLAN = "plan.json"


class _Kept(msgspec.Struct, frozen=True):
    """plan.json: the plan of a JSON file, of which file, and its own fingerprint."""

    sha256: str
    plan: jsonfile.Plan
    digest: str


@dataclass(frozen=True, kw_only=True)
class Listing(Stage):
    """Rows of a dataset as its manifest and reader say. A Parquet file is a shard; a JSON is cut into shards.

    Keys are `<dataset>-<id>` where upstream's ids are unique, else `<dataset>-<row number>`.
    """

    version: ClassVar[int] = 1

    def identity(self, manifest: Manifest) -> dict[str, Any]:
        reader = {"reader": manifest.reader, "reader_version": readers.load(manifest).VERSION}
        rows = manifest.annotations
        return {
            **super().identity(manifest),
            **reader,
            "files": rows.files,
            "rows_per_shard": rows.rows_per_shard,
        }

    def prepare(self, work: Work) -> None:
        if work.manifest.annotations.format == "json":
            self._plan(work, self._fetch(work, 0))

    def shards(self, work: Work) -> list[int]:
        rows = work.manifest.annotations
        if rows.format == "parquet":
            return list(range(rows.shards or 0))
        plan = self._kept_plan(work)
        if plan is None:
            raise Incomplete(f"{work.manifest.name!r} isn't listed yet: run `datakit fetch {work.manifest.name}`")
        total = plan.plan.n_rows if work.limit is None else min(plan.plan.n_rows, work.limit)
        per_shard = rows.rows_per_shard or 1
        return list(range(-(-total // per_shard)))

    def inputs(self, work: Work, shard: int) -> dict[str, str] | None:
        rows = work.manifest.annotations
        if rows.format == "json":
            plan = self._kept_plan(work)
            return None if plan is None else {rows.files: plan.sha256}
        file = work.manifest.file_of(shard)
        known = work.known(work.manifest.address(file))
        return None if known is None else {file: known["sha256"]}

    def schema(self, rows: Rows, manifest: Manifest) -> pa.Schema:
        schema: pa.Schema = readers.load(manifest).SCHEMA
        return schema

    def rows(self, rows: Rows, work: Work, out: Out) -> Iterator[pa.RecordBatch]:
        reader = readers.load(work.manifest)
        path = self._fetch(work, rows.shard)
        if work.manifest.annotations.format == "parquet":
            yield from reader.batches(path, work.limit, work.manifest.name, out.reject)
        else:
            yield from as_batches(self._objects(reader, path, rows.shard, work, out), reader.SCHEMA)

    def _objects(self, reader: Any, path: Path, shard: int, work: Work, out: Out) -> Iterator[dict[str, Any]]:
        plan = self._plan(work, path)
        per_shard = work.manifest.annotations.rows_per_shard or 1
        total = plan.n_rows if work.limit is None else min(plan.n_rows, work.limit)
        start = shard * per_shard
        for number, row in jsonfile.read_rows(path, plan, start, min(start + per_shard, total)):
            record = reader.read(row, number)
            if isinstance(record, str):
                out.reject(record)
                continue
            yield {
                "key": f"{work.manifest.name}-{number:09d}",
                "messages": encode(record.messages).decode(),
                "images": [{"ref": ref} for ref in record.images],
                **record.attrs,
            }

    def _fetch(self, work: Work, shard: int) -> Path:
        return work.download(work.manifest.address(work.manifest.file_of(shard))).path

    def _plan(self, work: Work, path: Path) -> jsonfile.Plan:
        """Where the rows of the JSON stand; found in one pass over it, and kept beside the shards."""
        address = work.manifest.address(work.manifest.annotations.files)
        sha256 = (work.known(address) or {}).get("sha256", "")
        kept = self._kept_plan(work)
        if kept is not None and kept.sha256 == sha256:
            return kept.plan
        per_shard = work.manifest.annotations.rows_per_shard
        if per_shard is None:
            raise UsageError(f"the manifest of {work.manifest.name!r} has no rows_per_shard")
        try:
            plan = jsonfile.plan(path, rows_per_shard=per_shard)
        except SourceError as error:
            raise work.distrust(address, error) from error
        body = _Kept(sha256=sha256, plan=plan, digest=fingerprint(plan))
        work.store.write(work.path(_PLAN), msgspec.json.encode(body))
        return plan

    def _kept_plan(self, work: Work) -> _Kept | None:
        """The plan beside the shards; None when there is none, or it isn't as it was written."""
        data = work.store.read(work.path(_PLAN))
        try:
            kept = msgspec.json.decode(data, type=_Kept) if data else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return kept if kept is not None and kept.digest == fingerprint(kept.plan) else None
