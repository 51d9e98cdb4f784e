"""Fetch: downloads pictures by URL into tars, with one outcome for every URL."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from datakit import images
from datakit.catalogue.manifest import Manifest
from datakit.engine.stage import ENGINES, Chosen, Cost, Engine, Role, Stage
from datakit.engine.work import Out, Work
from datakit.errors import BadImage
from datakit.records.tables import (
    LOCATED,
    LocatedPicture,
    Rows,
    failures,
    located_picture,
    refs_of,
    with_images,
    with_pictures,
)
from datakit.web.crawl import Fetched, crawl

if TYPE_CHECKING:
    from datakit.interop.img2dataset import Output

OTHERS_PIXELS = 16 << 20  # of a PNG or WebP to shrink: its decoder needs 20 bytes a pixel, a JPEG's 3
THREADS = 2  # that decode and encode in each process, so that one can read while another writes its result
KEPT_PER_S = 1450 / 2  # URLs, a core: benchmarks/RESULTS.md, web-like, two cores
SHRUNK_PER_S = {"area": 527 / 2, "linear": 864 / 2}  # benchmarks/RESULTS.md, short side to 336, two cores
KEPT_BYTES = 86 << 10  # a picture: benchmarks/RESULTS.md, those of its server
SHRUNK_BYTES = 30_000  # not measured: 336 x 386 pixels, the mean shape of COYO, at 1.8 bits each


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """A picture as it will be stored, with its hash."""

    data: bytes
    ext: str
    width: int
    height: int
    sha256: str

    @property
    def nbytes(self) -> int:
        return len(self.data)


@dataclass(frozen=True, kw_only=True)
class Fetch(Stage):
    """Downloads the pictures of each row, shrinks them and writes them in row order.

    Every row is kept; a picture that couldn't be downloaded has its outcome instead of an offset in the tar, and `pack`
    drops such rows. Time-outs and concurrency are not part of the recipe: they change which servers answer, not what is
    made of an answer. What differs from run to run, such as milliseconds, is in a log beside the table.
    """

    role: ClassVar[Role] = "fetch"
    version: ClassVar[int] = 1
    by_url: ClassVar[bool] = True
    rows_per_part: ClassVar[int | None] = 10_000  # a killed job loses little more than this, about 20 s of crawl
    tars: ClassVar[bool] = True
    max_short_side_px: int | None = None  # larger pictures are shrunk; None keeps the bytes as they came, for `pack`
    quality: int = 95  # of the JPEG when a picture has to be encoded again
    resize: images.Resize = "area"  # see images.normalise: "area" gives img2dataset's pixels, "linear" is faster
    rounding: images.Rounding = "nearest"  # of the longer side of what is shrunk: "down" is VILA's
    engine: Engine = (
        "datakit"  # "img2dataset": the package itself crawls, and shrinks when rounding is to the nearest pixel
    )

    def identity(self, manifest: Manifest) -> dict[str, Any]:
        identity = super().identity(manifest)
        return identity if self.rounding != "nearest" else {k: v for k, v in identity.items() if k != "rounding"}

    def as_chosen(self, chosen: Chosen, recorded: dict[str, Any]) -> Fetch:
        began = next((engine for engine in ENGINES if engine == recorded.get("engine")), self.engine)
        return replace(self, engine=chosen.engine or began)

    def costs(self, rows: int | None, size_bytes: float, jobs: int, manifest: Manifest) -> Cost:
        if manifest.lost or rows is None:
            return Cost(urls=None, passed_bytes=0.0)
        images, documents = manifest.count("images"), manifest.count("rows")
        urls = round(rows * (images / documents if images and documents else 1.0))
        shrinks = self.max_short_side_px is not None
        per_s = (SHRUNK_PER_S[self.resize] if shrinks else KEPT_PER_S) * min(jobs, os.cpu_count() or 1)
        written_bytes = urls * (SHRUNK_BYTES if shrinks else KEPT_BYTES)
        return Cost(urls=urls, seconds=urls / per_s, written_bytes=written_bytes, passed_bytes=written_bytes)

    def schema(self, rows: Rows, manifest: Manifest) -> pa.Schema:
        return with_images(rows.schema(), LOCATED)

    @contextmanager
    def shared_source(self, parts: list[Rows], work: Work) -> Iterator[Generator[Fetched[StoredPicture]]]:
        """One crawl for all the parts: the next part's URLs are fetched while the slow ones of this part still run."""
        urls = (ref for rows in parts for batch in rows.batches(["images"]) for ref in refs_of(batch))
        fetched = self.crawl_urls(urls, work)
        try:
            yield fetched
        finally:
            fetched.close()

    def crawl_urls(self, urls: Iterable[str], work: Work) -> Generator[Fetched[StoredPicture]]:
        """The outcome and the picture of each URL, in their order."""
        prepare = partial(
            prepare_picture,
            max_short_side_px=self.max_short_side_px,
            quality=self.quality,
            resize=self.resize,
            rounding=self.rounding,
        )
        if work.imports is not None:
            from datakit.interop import img2dataset

            return img2dataset.look_up_urls(urls, _open_output(work.imports), prepare, threads=THREADS)
        if self.engine == "img2dataset":
            from datakit.interop import img2dataset

            return img2dataset.crawl_by_img2dataset(
                urls,
                scratch=work.scratch,
                hosts=work.hosts,
                limits=work.limits,
                work=prepare,
                # img2dataset rounds to the nearest pixel; for any other rounding we shrink.
                max_short_side_px=self.max_short_side_px if self.rounding == "nearest" else None,
                quality=self.quality,
                threads=THREADS,
            )
        return crawl(
            urls,
            hosts=work.hosts,
            limits=work.limits,
            work=prepare,
            threads=THREADS,
            light=self.max_short_side_px is None,
            scratch=work.scratch,
        )

    def rows(self, rows: Rows, work: Work, out: Out) -> Iterator[pa.RecordBatch]:
        schema = self.schema(rows, work.manifest)
        for batch in rows.batches(size=256):
            located = [
                [self.write_picture(next(out.source), key, at, len(refs), out) for at in range(len(refs))]
                for key, refs in zip(batch["key"].to_pylist(), batch["images"].to_pylist(), strict=True)
            ]
            for row in located:
                out.fail(failures(row))
            work.progress.bytes(work.step, sum(p["size_bytes"] or 0 for row in located for p in row))
            yield with_pictures(batch, located, schema)

    def write_picture(self, got: Fetched[StoredPicture], key: str, at: int, n: int, out: Out) -> LocatedPicture:
        """Writes picture `at` of a row's `n` into the tar; returns where it is, or its outcome."""
        out.log.append({"key": key, "url": got.url, "outcome": got.outcome, "status": got.status, "ms": got.ms})
        picture = got.value
        final_url = got.final_url if got.final_url != got.url else None  # only after a redirect
        if got.outcome != "ok" or picture is None:
            return located_picture(got.url, got.outcome, final_url=final_url, status=got.status)
        name = f"{key}.{picture.ext}" if n == 1 else f"{key}.{at}.{picture.ext}"
        return located_picture(
            got.url,
            got.outcome,
            **out.add(name, picture.data),
            checked=self.max_short_side_px is not None,
            ext=picture.ext,
            width=picture.width,
            height=picture.height,
            sha256=picture.sha256,
            final_url=final_url,
            status=got.status,
        )


@lru_cache(maxsize=1)  # a process reads many shards from one folder, and its index is slow to make
def _open_output(folder: str) -> Output:
    from datakit.interop.img2dataset import Output

    return Output.open(Path(folder))


def prepare_picture(
    data: bytes,
    *,
    max_short_side_px: int | None,
    quality: int,
    resize: images.Resize,
    rounding: images.Rounding = "nearest",
) -> StoredPicture:
    """A response's body as it will be stored. Raises BadImage."""
    kind, width, height = images.inspect(data)
    if max_short_side_px is None:
        return StoredPicture(data, kind, width, height, sha256(data).hexdigest())
    if kind != "jpg" and width * height > OTHERS_PIXELS:
        raise BadImage("pixels", f"{kind} of {width} x {height} pixels, at most {OTHERS_PIXELS} in a crawl")
    picture = images.normalise(
        data, max_short_side_px=max_short_side_px, quality=quality, resize=resize, rounding=rounding
    )
    return StoredPicture(picture.data, picture.ext, picture.width, picture.height, sha256(picture.data).hexdigest())
