"""Export: packed tars in the forms that other tools read.

    llava   <name>.json, one array of `id`, `image`, `conversations` and the attributes that the manifest names, and the
            pictures as files below images/
    hf      data/train-00000-of-00004.parquet, …: a folder for `datasets.load_dataset`, with the columns `key`,
            `messages` and `images` that TRL's SFTTrainer reads, and one for each attribute that the manifest names,
            json as text; as many image parts as images, in their order

What went into the tars comes out again, a file at a time, in bounded memory, and the same tars give the same bytes.
Pictures are as `pack` stored them: a GIF called x.jpg is a JPEG now, under the name that its rows have for it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from datakit.engine.work import Progress
from datakit.errors import Incomplete, MixError, UsageError, shortlist
from datakit.formats.members import clean_name
from datakit.images.extensions import is_exported
from datakit.readers.llava import MARK, NAMES, turn_value
from datakit.records.attributes import arrow_type, column_value
from datakit.records.interleaved import INTERLEAVED
from datakit.records.record import Record, decode, encode
from datakit.records.tables import Rows
from datakit.storage.fingerprint import changes
from datakit.storage.ledger import bytes_problem
from datakit.storage.store import Store
from datakit.stream import mixfile as mixes
from datakit.stream.mixfile import MixPart, MixShard

Format = Literal["llava", "hf"]
ABOUT = "DATAKIT.json"  # what an export is of; written first. No dataset is called so
_BY_KEY = "by-key"  # where pictures stand whose reference can't be a path
_GROUP_ROWS, _GROUP_BYTES = 100, 64 << 20  # of a row group; what the hub's viewer likes for rows with pictures
_NAME_BYTES = 150  # of a file or folder; file systems allow 255, and a file that is being written has a longer one

HF_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        (
            "messages",
            pa.list_(
                pa.struct(
                    [
                        ("role", pa.string()),
                        ("content", pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())]))),
                    ]
                )
            ),
        ),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
    ]
)
_DTYPES = {"integer": "int64", "number": "float64", "boolean": "bool"}  # of attributes; others are string
_TEXT = {"dtype": "string", "_type": "Value"}
HF_FEATURES = {  # what datasets.Features of these columns writes; in the form that datasets before 4 read too
    "key": _TEXT,
    "messages": [{"role": _TEXT, "content": [{"type": _TEXT, "text": _TEXT}]}],
    "images": [{"_type": "Image"}],
}


@dataclass
class ExportReport:
    """What an export wrote, and what it left out or changed."""

    rows: int = 0
    pictures: int = 0
    renamed: int = 0  # pictures whose reference can't be a path below the folder, or stands for two pictures
    pairs: int = 0  # captions that got a question of only the picture
    left_out: Counter[str] = field(default_factory=Counter)  # rows, by reason
    repairs: Counter[str] = field(default_factory=Counter)  # rows that differ from upstream's, by what was repaired


def export(
    store: Store,
    part: MixPart,
    out: Store,
    *,
    form: Format,
    attributes: dict[str, str],
    pictures: bool = True,
    progress: Progress | None = None,
) -> ExportReport:
    """Writes a dataset's packed tars into a folder, with the attributes that its manifest names as keys or columns.

    Raises UsageError when something else is in the folder, Incomplete when nothing of the dataset is packed.
    """
    if not part.samples:
        raise Incomplete(f"nothing of {part.dataset!r} is packed yet: run `datakit build-mix {part.dataset}`")
    if form == "hf" and not pictures:
        raise UsageError("--no-images is for --format llava: rows of a datasets folder hold their pictures")
    tars = [shard for shard in part.shards if shard.samples]
    _claim(out, part, form, pictures)
    progress = progress or Progress()
    progress.rows_to_come("export", part.samples)
    done = ExportReport()
    if form == "hf":
        for nth, shard in enumerate(tars):
            with out.publish(f"data/train-{nth:05d}-of-{len(tars):05d}.parquet") as sink:
                write_parquet(_samples(store, shard, progress), sink, attributes, done)
    else:
        with out.publish(f"{part.dataset}.json") as sink:
            sink.write(b"[")
            for shard in tars:
                for record, held in _samples(store, shard, progress):
                    row = _llava_row(record, held, attributes, out if pictures else None, done)
                    if row is not None:
                        sink.write((b",\n" if done.rows else b"\n") + encode(row))
                        done.rows += 1
            sink.write(b"\n]\n")
    return done


def _claim(out: Store, part: MixPart, form: Format, pictures: bool) -> None:
    """Marks a folder as this export's, or goes on with an earlier export of the same tars. Raises UsageError."""
    about = {
        "dataset": part.dataset,
        "format": form,
        "images": pictures,
        "tars": mixes.make(part.dataset, [part]).fingerprint,
    }
    out.sweep("")  # what a killed export left
    data = out.read(ABOUT)
    if data is None:
        if found := out.names(""):
            raise UsageError(f"{out.root!r} isn't empty, it holds {shortlist(found)}: give --out another folder")
        out.write(ABOUT, encode(about) + b"\n")
        return
    try:
        before = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        before = None
    if before != about:
        differ = changes(before, about) if isinstance(before, dict) else [f"{ABOUT} can't be read"]
        raise UsageError(
            f"{out.root!r} holds another export:\n  "
            + "\n  ".join(differ)
            + "\nGive --out another folder, or remove it"
        )


Held = list[tuple[bytes, str]]  # a record's pictures: bytes and extension


def _samples(store: Store, shard: MixShard, progress: Progress) -> Iterator[tuple[Record, Held]]:
    """Records of a tar with their pictures, in its order."""
    tar, index = (mixes.locate("mixes/export", name) for name in (shard.tar, shard.index))
    for name, size, xxh3 in ((tar, shard.size_bytes, shard.xxh3), (index, None, shard.index_xxh3)):
        if wrong := bytes_problem(store, name, size, xxh3):
            raise MixError(f"{name!r} can't be used: {wrong}. `datakit verify --repair` says how to have it again")
    rows = Rows(store, 0, ((index, shard.samples),), 0, shard.samples)
    with store.open(tar) as file:
        for batch in rows.batches(["json_offset", "json_bytes", "images"], size=256):
            for row in batch.to_pylist():
                held = [
                    (_bytes(file, tar, picture["offset"], picture["size_bytes"]), picture["ext"])
                    for picture in row["images"]
                ]
                yield decode(_bytes(file, tar, row["json_offset"], row["json_bytes"])), held
            progress.rows("export", batch.num_rows)


def _bytes(file: Any, tar: str, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = bytes(file.read(size))
    if len(data) != size:
        raise MixError(f"{tar!r} is cut short: `datakit verify --repair`, then `datakit build-mix`")
    return data


# LLaVA


def conversations(record: Record) -> list[dict[str, str]] | str:
    """A record's turns as LLaVA has them, or the reason for which they can't be had so.

    The caption of a pair answers a question of only the picture. A document's pictures stand among its sentences,
    for which LLaVA has no form.
    """
    if [m.role for m in record.messages] == ["assistant"]:
        (message,) = record.messages
        if record.attrs.get(INTERLEAVED) or [p.type for p in message.content] != ["image", "text"]:
            return "document"
        return [{"from": "human", "value": MARK}, {"from": "gpt", "value": turn_value(message.content[1:])}]
    spoken = record.messages[1:] if record.messages[0].role == "system" else record.messages
    if not spoken or [m.role for m in spoken] != ["user", "assistant"] * (len(spoken) // 2):
        return "roles"
    for message in record.messages:
        for piece in message.content:
            if piece.type == "image" and message.role != "user":
                return "picture_in_answer"
            if record.images and message.role == "user" and MARK in (piece.text or ""):
                return "mark_in_text"  # it would be read as a picture
    return [{"from": NAMES[m.role], "value": turn_value(m.content)} for m in record.messages]


def _llava_row(
    record: Record, held: Held, attributes: dict[str, str], out: Store | None, done: ExportReport
) -> dict[str, Any] | None:
    """One object of the array, its pictures written to `out`; None when LLaVA has no form for it."""
    turns = conversations(record)
    if isinstance(turns, str):
        done.left_out[turns] += 1
        return None
    done.pairs += len(record.messages) == 1
    done.repairs.update(record.attrs.get("repairs") or ())
    refs = [str(about.get("ref") or "") for about in record.images]
    if out is not None:
        refs = [write_picture(out, record.key, at, ref, *held[at], done) for at, ref in enumerate(refs)]
    image = {"image": refs[0] if len(refs) == 1 else refs} if refs else {}
    own = {name: record.attrs[name] for name in attributes if name in record.attrs}
    return {"id": record.attrs.get("id") or record.key, **image, "conversations": turns, **own}


def write_picture(out: Store, key: str, at: int, ref: str, data: bytes, ext: str, done: ExportReport) -> str:
    """Writes a picture under its reference, or under its row's key where that won't do; returns which."""
    done.pictures += 1
    if is_path(ref):
        name = f"images/{ref}"
        size = out.size(name)
        if size is None:
            out.write(name, data)
            return ref
        if size == len(data) and out.read(name) == data:
            return ref
    done.renamed += 1
    own = f"{_BY_KEY}/{key}.{at}.{ext}"
    if out.read(f"images/{own}") != data:
        out.write(f"images/{own}", data)
    return own


def is_path(ref: str) -> bool:
    """Whether a reference is a file's path that stays in its folder on any system, and can't also be a folder."""
    *folders, file = ref.split("/")
    return (
        clean_name(ref, Counter()) == ref
        and ":" not in ref
        and folders[:1] != [_BY_KEY]
        and all(len(name.encode()) <= _NAME_BYTES and name[0] != "." for name in [*folders, file])
        and is_exported(file)
        and not any(is_exported(name) for name in folders)
    )


# datasets


def write_parquet(
    samples: Iterator[tuple[Record, Held]], sink: Any, attributes: dict[str, str], done: ExportReport
) -> None:
    """Rows with their pictures, in row groups small enough to hold in memory."""
    about = json.dumps(
        {"info": {"features": HF_FEATURES | {name: _feature(kind) for name, kind in attributes.items()}}}
    )
    schema = HF_SCHEMA.with_metadata({"huggingface": about})
    for name, kind in attributes.items():
        schema = schema.append(pa.field(name, arrow_type(kind)))
    rows: list[dict[str, Any]] = []
    size = 0
    with pq.ParquetWriter(sink, schema, compression="zstd", compression_level=1) as writer:
        for record, held in samples:
            messages = [
                {"role": m.role, "content": [{"type": p.type, "text": p.text} for p in m.content]}
                for m in record.messages
            ]
            pictures = [{"bytes": data, "path": f"{record.key}.{at}.{ext}"} for at, (data, ext) in enumerate(held)]
            own = {name: column_value(record.attrs.get(name), kind) for name, kind in attributes.items()}
            rows.append({"key": record.key, "messages": messages, "images": pictures, **own})
            size += sum(len(data) for data, _ in held)
            done.rows += 1
            done.pictures += len(held)
            done.repairs.update(record.attrs.get("repairs") or ())
            if len(rows) == _GROUP_ROWS or size > _GROUP_BYTES:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))
                rows, size = [], 0
        if rows:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))


def _feature(kind: str) -> Any:
    """An attribute's column as datasets.Features writes it."""
    scalar, many, _ = kind.partition("[]")
    feature = {"dtype": _DTYPES.get(scalar, "string"), "_type": "Value"}
    return [feature] if many else feature
