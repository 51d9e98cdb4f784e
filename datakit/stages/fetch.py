"""Fetch: pictures by URL into tars, one outcome for every URL that was tried."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any, ClassVar

import pyarrow as pa

from datakit import images
from datakit.manifest import Manifest
from datakit.stage import Out, Stage, Work
from datakit.tables import LOCATED, Rows, failures, with_images
from datakit.web.crawl import Fetched, crawl


@dataclass(frozen=True, kw_only=True)
class Fetch(Stage):
    """Downloads the pictures of each row, shrinks them and writes them in row order.

    Every row is kept; a picture that couldn't be had has its outcome instead of a place in the tar, and `pack`
    leaves such rows out. Time-outs and concurrency are not part of the recipe: they change who answers, not
    what a byte means.
    """

    version: ClassVar[int] = 1
    rows_per_part: ClassVar[int | None] = 10_000  # a killed job loses at most this much, about 20 s of crawl
    tars: ClassVar[bool] = True
    max_short_side_px: int | None = None  # longer ones are shrunk; None keeps the bytes as they came
    quality: int = 95  # of the JPEG when a picture has to be written anew

    def schema(self, rows: Rows, manifest: Manifest) -> pa.Schema:
        return with_images(rows.schema(), LOCATED)

    def rows(self, rows: Rows, work: Work, out: Out) -> Iterator[pa.RecordBatch]:
        schema = self.schema(rows, work.manifest)
        prepare = partial(images.normalise, max_short_side_px=self.max_short_side_px, quality=self.quality)
        urls = (ref for batch in rows.batches(["images"]) for ref in _refs(batch))
        fetched = crawl(urls, hosts=work.hosts, limits=work.limits, work=prepare)
        try:
            for batch in rows.batches(size=256):
                places = [
                    [self._place(next(fetched), key, at, len(refs), out, work) for at, _ in enumerate(refs)]
                    for key, refs in zip(batch["key"].to_pylist(), batch["images"].to_pylist(), strict=True)
                ]
                for row in places:
                    out.fail(failures(row))
                column = pa.array(places, LOCATED)
                work.tell(work.step, "bytes", sum(p["size_bytes"] or 0 for row in places for p in row))
                yield pa.RecordBatch.from_arrays(
                    [column if name == "images" else batch[name] for name in schema.names], schema=schema
                )
        finally:
            fetched.close()

    def _place(self, got: Fetched[images.Picture], key: str, at: int, n: int, out: Out, work: Work) -> dict[str, Any]:
        place: dict[str, Any] = {
            "ref": got.url,
            "outcome": got.outcome,
            "final_url": got.final_url if got.final_url != got.url else None,  # so only a redirect's
            "status": got.status,
        }
        picture = got.value
        if got.outcome != "ok" or picture is None:
            return {**dict.fromkeys(LOCATED.value_type.names), **place}
        name = f"{key}.{picture.ext}" if n == 1 else f"{key}.{at}.{picture.ext}"
        offset = out.tar.add(name, picture.data)
        return {
            **place,
            "file": out.tar_name,
            "offset": offset,
            "stored_bytes": len(picture.data),
            "size_bytes": len(picture.data),
            "method": 0,
            "checked": True,
            "ext": picture.ext,
            "width": picture.width,
            "height": picture.height,
            "sha256": sha256(picture.data).hexdigest(),
        }


def _refs(batch: pa.RecordBatch) -> Iterator[str]:
    yield from batch["images"].flatten().field("ref").to_pylist()
