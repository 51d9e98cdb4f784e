"""Pack: rows and pictures become WebDataset tars, with a Parquet index beside each.

    <key>.jpg   or <key>.0.jpg, <key>.1.jpg, … when a record has several pictures
    <key>.txt   the caption of an image-text pair
    <key>.json  the record (datakit/record.py)

A shard of the step before becomes the tars of the same number, so shards that are fetched later are packed
beside what is there, and nothing is packed twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from datakit import archives, images
from datakit.errors import ArchiveError, BadImage, Incomplete
from datakit.manifest import Manifest
from datakit.record import Message, Record, decode_messages, encode
from datakit.stage import Out, Stage, Work
from datakit.store import Store
from datakit.tables import CORE, PACKED, Rows, as_batches, failures, with_images

SAMPLES_PER_TAR = 5_000  # some 500 MB of photographs at 100 KB: large enough to read fast, small enough to shuffle
_HIDDEN = {"file", "offset", "stored_bytes", "method", "crc32", "checked", "outcome", "size_bytes", "ext", "status"}


@dataclass(frozen=True, kw_only=True)
class Pack(Stage):
    """Writes each row's pictures and record, in row order; rows with a picture that can't be had are dropped.

    Pictures that `fetch` has not decoded are decoded here, once, to know that they are whole. JPEG and PNG
    that every decoder reads alike keep their bytes; others are written as JPEG of `quality`.
    """

    version: ClassVar[int] = 1
    rows_per_part: ClassVar[int | None] = SAMPLES_PER_TAR
    tars: ClassVar[bool] = True
    max_short_side_px: int | None = None
    quality: int = 95

    def identity(self, manifest: Manifest) -> dict[str, Any]:
        return {**super().identity(manifest), "source": manifest.name}

    def schema(self, rows: Rows, manifest: Manifest) -> pa.Schema:
        kept = with_images(rows.schema(), PACKED)
        kept = kept.remove(kept.get_field_index("messages"))
        for name in ("json_offset", "json_bytes", "text_chars"):
            kept = kept.append(pa.field(name, pa.int64()))
        return kept

    def rows(self, rows: Rows, work: Work, out: Out) -> Iterator[pa.RecordBatch]:
        with ExitStack() as stack:
            files = _Files(work.store, stack)
            yield from as_batches(self._samples(rows, files, work, out), self.schema(rows, work.manifest), size=512)

    def _samples(self, rows: Rows, files: _Files, work: Work, out: Out) -> Iterator[dict[str, Any]]:
        for batch in rows.batches(size=512):
            for row in batch.to_pylist():
                if failed := failures(row["images"]):
                    out.drop(failed[0])  # its fault was counted by fetch
                    continue
                try:
                    pictures = [self._picture(image, files) for image in row["images"]]
                except BadImage as error:
                    out.reject(error.reason)
                    continue
                yield self._write(row, pictures, work, out)

    def _picture(self, image: dict[str, Any], files: _Files) -> images.Picture:
        data = files.read(image)
        if image["checked"]:
            return images.Picture(data, image["ext"], image["width"], image["height"], False)
        return images.normalise(data, max_short_side_px=self.max_short_side_px, quality=self.quality)

    def _write(self, row: dict[str, Any], pictures: list[images.Picture], work: Work, out: Out) -> dict[str, Any]:
        key, messages = row["key"], decode_messages(row["messages"])
        attrs = {name: value for name, value in row.items() if name not in CORE and value is not None}
        facts, places = [], []
        for at, (image, picture) in enumerate(zip(row["images"], pictures, strict=True)):
            kept = {name: value for name, value in image.items() if name not in _HIDDEN and value is not None}
            facts.append({**kept, "width": picture.width, "height": picture.height})
            if picture.changed:
                facts[-1]["changed"] = True
            name = f"{key}.{picture.ext}" if len(pictures) == 1 else f"{key}.{at}.{picture.ext}"
            offset = out.tar.add(name, picture.data)
            places.append(
                {
                    "offset": offset,
                    "size_bytes": len(picture.data),
                    "ext": picture.ext,
                    "width": picture.width,
                    "height": picture.height,
                }
            )
        caption = _caption(messages)
        if caption is not None and pictures:
            out.tar.add(f"{key}.txt", caption.encode())
        record = encode(Record(key=key, source=work.manifest.name, messages=messages, images=facts, attrs=attrs))
        work.tell(work.step, "bytes", sum(len(p.data) for p in pictures) + len(record))
        return {
            **{name: value for name, value in row.items() if name != "messages"},
            "images": places,
            "json_offset": out.tar.add(f"{key}.json", record),
            "json_bytes": len(record),
            "text_chars": sum(len(p.text or "") for m in messages for p in m.content),
        }


def _caption(messages: list[Message]) -> str | None:
    """The caption of an image-text pair: one assistant message of one picture and one text."""
    if len(messages) != 1 or [p.type for p in messages[0].content] != ["image", "text"]:
        return None
    return messages[0].content[1].text


class _Files:
    """The archives and tars that pictures are read from, opened once a part."""

    def __init__(self, store: Store, stack: ExitStack) -> None:
        self._store, self._stack = store, stack
        self._open: dict[str, Any] = {}

    def read(self, image: dict[str, Any]) -> bytes:
        """The bytes of a located picture. Raises BadImage when the archive's word on it was wrong."""
        name = image["file"]
        if name not in self._open:
            self._open[name] = self._stack.enter_context(self._file(name))
        file = self._open[name]
        if not (self._store.local or name.startswith("downloads/")):
            file.seek(image["offset"])  # a tar of ours in a bucket, read in its own order
            data = bytes(file.read(image["size_bytes"]))
            if len(data) != image["size_bytes"]:
                raise BadImage("damaged_member", f"{name} is cut short")
            return data
        member = archives.Member(
            image["ref"],
            image["offset"],
            image["stored_bytes"],
            image["size_bytes"],
            image["method"],
            image["crc32"],
        )
        try:
            return archives.read(file, member)
        except ArchiveError as error:
            raise BadImage("damaged_member", str(error)) from error

    def _file(self, name: str) -> Any:
        if not name.startswith("downloads/"):
            return self._store.open(name)
        path = self._store.downloads / name.removeprefix("downloads/")
        try:
            return path.open("rb")
        except FileNotFoundError as error:
            raise Incomplete(f"{path} is gone: run `datakit fetch` again to have it back") from error
