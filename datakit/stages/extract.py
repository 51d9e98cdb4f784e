"""Extract: writes pictures that are in the rows themselves, or loose files of a folder, into tars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from datakit import images, readers
from datakit.catalogue.manifest import Manifest
from datakit.engine.stage import Chosen, Cost, Role, Stage
from datakit.engine.work import Out, Work
from datakit.errors import BadImage, SourceError
from datakit.records.tables import LOCATED, LocatedPicture, Rows, failures, located_picture, with_images, with_pictures
from datakit.stages.locate import with_repair
from datakit.upstream.annotations import about, numbered_rows
from datakit.upstream.loose import Find, Folder, decode_picture, folder_state


@dataclass(frozen=True, kw_only=True)
class Extract(Stage):
    """Reads each row's pictures from upstream's rows or from a folder, and writes their bytes unchanged, in row order.

    Every row is kept; a picture that can't be used has its outcome instead of an offset in the tar, and `pack` drops
    such rows. Outcomes are `missing` when there are no bytes, `outside` for a path that leaves the folder, and those of
    `images.inspect`.
    """

    role: ClassVar[Role] = "fetch"
    finds: ClassVar[tuple[str, ...]] = ("folder", "inline")
    version: ClassVar[int] = 2
    rows_per_part: ClassVar[int | None] = 10_000  # some GB of photographs
    tars: ClassVar[bool] = True
    reads_annotations: ClassVar[bool] = True
    any_extension: bool = False  # of loose files: what `datakit check --repair` turns on

    def identity(self, manifest: Manifest) -> dict[str, Any]:
        identity = super().identity(manifest)
        return identity if self.any_extension else {k: v for k, v in identity.items() if k != "any_extension"}

    def as_chosen(self, chosen: Chosen, recorded: dict[str, Any]) -> Extract:
        return replace(self, any_extension="extension" in chosen.repairs)

    def costs(self, rows: int | None, size_bytes: float, jobs: int, manifest: Manifest) -> Cost:
        decoded_bytes = 0.75 * size_bytes  # out of base64
        return Cost(written_bytes=decoded_bytes, passed_bytes=decoded_bytes)

    def prepare(self, work: Work) -> None:
        source = work.manifest.images
        if source.by == "folder" and not Path(source.folder).is_dir():
            raise SourceError(
                f"the folder of pictures of {work.manifest.name!r}, {source.folder!r}, isn't there: "
                "bring it back, or write where it is now into images.folder of its manifest"
            )

    def inputs(self, work: Work, shard: int) -> dict[str, str] | None:
        if work.manifest.images.by != "folder":
            return {}  # the pictures come from the files of the listing
        state = folder_state(work.manifest.images.folder, work.scratch)
        return None if state is None else {"folder": state}

    def schema(self, rows: Rows, manifest: Manifest) -> pa.Schema:
        return with_images(rows.schema(), LOCATED)

    @contextmanager
    def shared_source(self, parts: list[Rows], work: Work) -> Iterator[Find]:
        """The function that finds a picture's bytes; all parts of a shard share one pass over upstream's rows."""
        if work.manifest.images.by == "folder":
            yield Folder(work.manifest.images.folder, repair=self.any_extension)
        elif work.manifest.images.by == "inline" and parts:
            yield _Inline(numbered_rows(work, parts[0].shard), work, parts[0].shard)
        else:
            yield _no_picture

    def rows(self, rows: Rows, work: Work, out: Out) -> Iterator[pa.RecordBatch]:
        schema = self.schema(rows, work.manifest)
        for batch in rows.batches(size=256):
            located, mended = [], []
            for key, refs in zip(batch["key"].to_pylist(), batch["images"].to_pylist(), strict=True):
                written = [_write_picture(key, at, len(refs), picture["ref"], out) for at, picture in enumerate(refs)]
                located.append([picture for picture, _ in written])
                mended.append(any(repaired for _, repaired in written))
                out.fail(failures(located[-1]))
            work.progress.bytes(work.step, sum(p["size_bytes"] or 0 for row in located for p in row))
            yield with_pictures(with_repair(batch, mended), located, schema)


def _write_picture(key: str, at: int, n: int, ref: str, out: Out) -> tuple[LocatedPicture, bool]:
    """Writes picture `at` of a row's `n`; returns where it is or its outcome, and whether it was found by a repair."""
    try:
        data, repaired = out.source(ref)
        ext, width, height = images.inspect(data)
    except BadImage as error:
        return located_picture(ref, error.reason), False
    name = f"{key}.{ext}" if n == 1 else f"{key}.{at}.{ext}"
    digest, extent = sha256(data).hexdigest(), out.add(name, data)
    written = located_picture(ref, "ok", **extent, checked=False, ext=ext, width=width, height=height, sha256=digest)
    return written, repaired


class _Inline:
    """Pictures by `<number of the row>.<nth>`; references must come in the order of the rows."""

    def __init__(self, rows: Iterator[tuple[int, Any]], work: Work, shard: int) -> None:
        self._rows = rows
        self._reader = readers.load(work.manifest)
        self._about = about(work, shard)
        self._dataset = work.manifest.name
        self._number = -1
        self._pictures: list[bytes | str] = []

    def __call__(self, ref: str) -> tuple[bytes, bool]:
        number, _, nth = ref.partition(".")
        if self._number != int(number):
            self._pictures = self._reader.pictures(self._row(int(number)), self._about)
        return decode_picture(self._pictures[int(nth)] if int(nth) < len(self._pictures) else b""), False

    def _row(self, wanted: int) -> Any:
        for number, row in self._rows:
            if number == wanted:
                self._number = number
                return row
        raise SourceError(
            f"row {wanted} of {self._dataset!r} was listed and isn't there any more, or rows are out of order: "
            f"make the listing again with --rebuild"
        )


def _no_picture(ref: str) -> tuple[bytes, bool]:
    raise BadImage("missing", ref)
