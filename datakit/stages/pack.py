"""Pack: rows and pictures become WebDataset tars, with a Parquet index beside each.

    <key>.jpg   or <key>.0.jpg, <key>.1.jpg, … when a record has several pictures
    <key>.txt   the caption of an image-text pair; a document is none, be it one picture and one text
    <key>.json  the record (datakit/records/record.py)

An interleaved document can lose pictures and be kept: two working columns have its sentences and the similarity of
each picture to each of them (datakit/readers/mmc4.py). Packed tables don't have these columns.

A shard of the step before becomes the tars of the same number, so shards that are fetched later add tars, and nothing
is packed twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import pyarrow as pa
from msgspec import Raw

from datakit import images
from datakit.catalogue.manifest import Manifest
from datakit.engine.stage import Cost, Role, Stage
from datakit.engine.work import Out, Work
from datakit.errors import ArchiveError, BadImage, Incomplete, SourceError, UsageError, nearest
from datakit.formats import archives
from datakit.images.extensions import TYPES_IN_REPAIRS
from datakit.records import interleaved
from datakit.records.record import Message, Record, decode_messages, encode
from datakit.records.tables import (
    CORE,
    PACKED,
    Extent,
    LocatedPicture,
    PackedPicture,
    Rows,
    as_batches,
    extent_of,
    failures,
    with_images,
)
from datakit.storage.store import Store
from datakit.web.downloads import check_unedited

SAMPLES_PER_TAR = 5_000  # some 500 MB of photographs at 100 KB: large enough to read fast, small enough to shuffle
Missing = Literal["drop_sample", "drop_image"]
_HIDDEN = {"file", "offset", "stored_bytes", "method", "crc32", "checked", "outcome", "size_bytes", "ext", "status"}
_DROPPED = "images_dropped"  # the attribute of a document that lost pictures


class _Sample(NamedTuple):
    """A row that is written, and its pictures in the order of their marks."""

    row: dict[str, Any]
    pictures: list[images.Picture]


@dataclass(frozen=True, kw_only=True)
class Pack(Stage):
    """Writes each row's pictures and record, in row order.

    With `missing="drop_sample"` a row is dropped when one of its pictures is missing: all or nothing, VILA's policy.
    With "drop_image" an interleaved document loses only the picture: its row of the similarity matrix is removed, the
    sentences are matched again (without a matrix the other pictures keep their positions), and the attribute
    images_dropped counts the lost pictures. A document without any picture left is dropped, and so is every row that is
    no document: a conversation's question would change its meaning with its mark.

    Pictures that `fetch` has not decoded are decoded here, once, to find broken ones. JPEG and PNG that every decoder
    reads alike keep their bytes; others are written as JPEG of `quality`.
    """

    role: ClassVar[Role] = "pack"
    version: ClassVar[int] = 1
    rows_per_part: ClassVar[int | None] = SAMPLES_PER_TAR
    tars: ClassVar[bool] = True
    max_short_side_px: int | None = None
    quality: int = 95
    missing: Missing = "drop_sample"

    def __post_init__(self) -> None:
        if self.missing not in get_args(Missing):
            raise UsageError(f"Pack(missing={self.missing!r}): {nearest(self.missing, get_args(Missing))}")

    def identity(self, manifest: Manifest) -> dict[str, Any]:
        return {**super().identity(manifest), "source": manifest.name}

    def costs(self, rows: int | None, size_bytes: float, jobs: int, manifest: Manifest) -> Cost:
        return Cost(written_bytes=size_bytes)

    def schema(self, rows: Rows, manifest: Manifest) -> pa.Schema:
        kept = with_images(rows.schema(), PACKED)
        working = _working_columns(kept)
        for name in ("messages", *working):
            kept = kept.remove(kept.get_field_index(name))
        if working and self.missing == "drop_image":
            kept = kept.append(pa.field(_DROPPED, pa.int32()))
        for name in ("json_offset", "json_bytes", "text_chars"):
            kept = kept.append(pa.field(name, pa.int64()))
        return kept

    def rows(self, rows: Rows, work: Work, out: Out) -> Iterator[pa.RecordBatch]:
        with ExitStack() as stack:
            files = PictureFiles(work.store, stack)
            yield from as_batches(self._samples(rows, files, work, out), self.schema(rows, work.manifest), size=512)
            files.check()

    def _samples(self, rows: Rows, files: PictureFiles, work: Work, out: Out) -> Iterator[dict[str, Any]]:
        working = _working_columns(rows.schema())
        for batch in rows.batches(size=512):
            n_bytes = 0
            for row in batch.to_pylist():
                about = {name: row.pop(name) for name in working}
                if self.missing == "drop_image" and about.get(interleaved.SENTENCES) is not None:
                    kept = self._remaining_document(row, about, files, out)
                else:
                    kept = self._whole_row(row, files, out)
                if kept is not None:
                    yield (packed := self._write(*kept, work, out))
                    n_bytes += packed["json_bytes"] + sum(image["size_bytes"] for image in packed["images"])
            work.progress.bytes(work.step, n_bytes)

    def _whole_row(self, row: dict[str, Any], files: PictureFiles, out: Out) -> _Sample | None:
        if failed := failures(row["images"]):
            out.drop(failed[0])  # its fault was counted by fetch
            return None
        try:
            pictures = [self._picture(image, files) for image in row["images"]]
        except BadImage as error:
            out.reject(error.reason)
            return None
        repairs = row.get("repairs") or []
        if "repairs" in row and "extension" not in repairs and any(misnamed for _, misnamed in pictures):
            row = {**row, "repairs": [*repairs, "content_type"]}
        return _Sample(row, [picture for picture, _ in pictures])

    def _remaining_document(
        self, row: dict[str, Any], about: dict[str, Any], files: PictureFiles, out: Out
    ) -> _Sample | None:
        """A document with the pictures that can be read, matched again if some can't; None when it is dropped."""
        pictures: dict[int, images.Picture] = {}
        gone: dict[int, str] = {}
        faults = []
        for at, image in enumerate(row["images"]):
            if image["outcome"] != "ok":
                gone[at] = image["outcome"]  # its fault was counted by fetch
                continue
            try:
                pictures[at], _ = self._picture(image, files)
            except BadImage as error:
                gone[at] = error.reason
                faults.append(error.reason)
        order, reason = list(pictures), None
        if gone and not pictures:
            reason = next(iter(gone.values()))
        elif gone:
            try:
                messages, order = _match_again(row, about, gone)
            except SourceError:
                reason = "similarity"
                faults.append(reason)
            else:
                row = {**row, "messages": encode(messages).decode(), _DROPPED: len(gone)}
        out.fail(faults)
        if reason is not None:
            out.drop(reason)
            return None
        return _Sample({**row, "images": [row["images"][at] for at in order]}, [pictures[at] for at in order])

    def _picture(self, image: LocatedPicture, files: PictureFiles) -> tuple[images.Picture, bool]:
        """A picture as it is stored, and whether its extension names another type than it has."""
        data = files.read(image)
        ext, width, height = image["ext"], image["width"], image["height"]
        if image["checked"] and ext is not None and width is not None and height is not None:
            return images.Picture(data, ext, width, height, False), False
        picture = images.normalise(data, max_short_side_px=self.max_short_side_px, quality=self.quality)
        by_name = TYPES_IN_REPAIRS.get(image["ref"].rpartition(".")[2].lower())
        return picture, by_name is not None and by_name != images.sniff(data)

    def _write(self, row: dict[str, Any], pictures: list[images.Picture], work: Work, out: Out) -> dict[str, Any]:
        key, messages = row["key"], decode_messages(row["messages"])
        attrs = {name: value for name, value in row.items() if name not in CORE and value is not None}
        for name, kind in work.manifest.annotations.attributes.items():
            if kind == "json" and name in attrs:
                attrs[name] = Raw(attrs[name].encode())
        facts, packed = [], list[PackedPicture]()
        for at, (image, picture) in enumerate(zip(row["images"], pictures, strict=True)):
            kept = {name: value for name, value in image.items() if name not in _HIDDEN and value is not None}
            facts.append({**kept, "width": picture.width, "height": picture.height})
            if picture.changed:
                facts[-1]["changed"] = True
            name = f"{key}.{picture.ext}" if len(pictures) == 1 else f"{key}.{at}.{picture.ext}"
            offset = out.tar.add(name, picture.data)
            packed.append(
                PackedPicture(
                    offset=offset,
                    size_bytes=len(picture.data),
                    ext=picture.ext,
                    width=picture.width,
                    height=picture.height,
                )
            )
        caption = None if row.get(interleaved.INTERLEAVED) else _caption(messages)
        if caption is not None and pictures:
            out.tar.add(f"{key}.txt", caption.encode())
        record = encode(Record(key=key, source=work.manifest.name, messages=messages, images=facts, attrs=attrs))
        return {
            **{name: value for name, value in row.items() if name != "messages"},
            "images": packed,
            "json_offset": out.tar.add(f"{key}.json", record),
            "json_bytes": len(record),
            "text_chars": sum(len(p.text or "") for m in messages for p in m.content),
        }


def _working_columns(schema: pa.Schema) -> tuple[str, ...]:
    """The working columns, by which documents are matched again; none when the rows aren't documents."""
    names = (interleaved.SENTENCES, interleaved.SIMILARITY)
    if not set(names) <= set(schema.names):
        return ()
    sentences, similarity = (schema.field(name).type for name in names)
    return names if pa.types.is_list(sentences) and pa.types.is_list(similarity) else ()


def _match_again(row: dict[str, Any], about: dict[str, Any], gone: Collection[int]) -> interleaved.Document:
    """A document without the pictures that are gone. Raises SourceError when its matrix isn't of its pictures."""
    n_images, similarity = len(row["images"]), about[interleaved.SIMILARITY]
    if similarity is not None:
        return interleaved.document(about[interleaved.SENTENCES], similarity, n_images, gone)
    messages = interleaved.without_images(decode_messages(row["messages"]), gone)
    return interleaved.Document(messages, [at for at in range(n_images) if at not in gone])


def _caption(messages: list[Message]) -> str | None:
    """The caption of an image-text pair: one assistant message of one picture and one text."""
    if len(messages) != 1 or [p.type for p in messages[0].content] != ["image", "text"]:
        return None
    return messages[0].content[1].text


class PictureFiles:
    """The archives and tars that pictures are read from, each opened once for a part."""

    def __init__(self, store: Store, stack: ExitStack) -> None:
        self._store, self._stack = store, stack
        self._open: dict[str, Any] = {}

    def read(self, image: LocatedPicture) -> bytes:
        """The bytes of a located picture. Raises BadImage when it is damaged in its archive.

        Raises SourceError when a picture that fetch wrote has another hash by now.
        """
        extent = extent_of(image)
        name = extent["file"]
        if name not in self._open:
            self._open[name] = self._stack.enter_context(self._open_file(name))
        try:
            data = self._read_bytes(self._open[name], image, extent)
        except ArchiveError as error:
            if name.startswith("downloads/"):
                raise BadImage("damaged_member", str(error)) from error
            raise self._damage_error(image, error) from error
        if image["sha256"] is not None and sha256(data).hexdigest() != image["sha256"]:
            raise self._damage_error(image, "its bytes aren't those that were fetched")
        return data

    def _read_bytes(self, file: Any, image: LocatedPicture, extent: Extent) -> bytes:
        if not (self._store.local or extent["file"].startswith("downloads/")):
            file.seek(extent["offset"])  # a tar of ours in a bucket, read in its own order
            return bytes(file.read(extent["size_bytes"]))
        member = (extent["offset"], extent["stored_bytes"], extent["size_bytes"], extent["method"], image["crc32"])
        return archives.read(file, archives.Member(image["ref"], *member))

    def _damage_error(self, image: LocatedPicture, why: object) -> SourceError:
        return SourceError(
            f"{self._store.root}/{image['file']} is damaged, at the picture {image['ref']!r}: {why}. Run "
            "`datakit verify --repair`, which says how to have it again"
        )

    def check(self) -> None:
        """Raises Incomplete when the user edited an archive meanwhile that is read in place."""
        for name in self._open:
            if name.startswith("downloads/"):
                check_unedited(self._store.downloads / name.removeprefix("downloads/"))

    def _open_file(self, name: str) -> Any:
        if "\0" in name or {"", ".", ".."} & set(name.split("/")):
            raise SourceError(f"a table says that a picture is in {name!r}, which isn't in this root: nothing was read")
        if not name.startswith("downloads/"):
            return self._store.open(name)
        path = self._store.downloads / name.removeprefix("downloads/")
        try:
            return path.open("rb")
        except FileNotFoundError as error:
            raise Incomplete(f"{path} is gone: run `datakit fetch` again to have it back") from error
