"""A small packed mix, made by code: pairs, questions, interleaved documents, text without a picture."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from PIL import Image

from datakit.formats.tars import TarWriter
from datakit.records.record import Message, Part, Record, encode
from datakit.storage import ledger
from datakit.storage.store import Store
from datakit.stream import mixfile as mix

PICTURE = Part(type="image")
_PLACE = pa.struct([("offset", pa.int64()), ("size_bytes", pa.int64())])
_INDEX = pa.schema([("json_offset", pa.int64()), ("json_bytes", pa.int64()), ("images", pa.list_(_PLACE))])


def text(said: str) -> Part:
    return Part(type="text", text=said)


def record(*messages: tuple[str, list[Part]], key: str = "toy-000000000") -> Record:
    return Record(key=key, source="toy", messages=[Message(role, parts) for role, parts in messages])


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def sample(number: int) -> Record:
    """Of numbers that follow each other: a pair, two questions, a document, a text."""
    key = f"toy-{number:09d}"
    if number % 4 == 0:
        return record(("assistant", [PICTURE, text(f"Boat number {number}.")]), key=key)
    if number % 4 == 1:
        return record(
            ("user", [PICTURE, text(f"Which boat is it, {number}?")]),
            ("assistant", [text("It is red.")]),
            ("user", [text("Sure?")]),
            ("assistant", [text("Yes.")]),
            key=key,
        )
    if number % 4 == 2:
        parts = [text("First."), PICTURE, text("Then."), PICTURE, text(f"At last {number}.")]
        return record(("assistant", parts), key=key)
    return record(("user", [text(f"What is {number} + 1?")]), ("assistant", [text(str(number + 1))]), key=key)


def write_mix(folder: Path, samples: range = range(22), per_tar: int = 6) -> Path:
    """Packed tars and their indexes under `folder`, and the mix.json over them."""
    pack = folder / "toy" / "pack"
    pack.mkdir(parents=True)
    shards = [
        _write_shard(pack / f"{shard:05d}.tar", samples[start : start + per_tar])
        for shard, start in enumerate(range(0, len(samples), per_tar))
    ]
    part = mix.MixPart(dataset="toy", repeats=1, recipe="0" * 64, samples=len(samples), shards=shards)
    path = folder / "mixes" / "toy" / "mix.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(mix.encode(mix.make("toy", [part])))
    return path


def _write_shard(path: Path, samples: range) -> mix.MixShard:
    rows = []
    with path.open("wb") as file:
        tar = TarWriter(file)
        for number in samples:
            one = sample(number)
            images = []
            for n in range(one.n_marks):
                colour = ((number + n) * 37 % 256, (number + n) * 91 % 256, 128)
                data = png(Image.new("RGB", (40, 30), colour))
                offset = tar.add(f"{one.key}.{n}.png" if one.n_marks > 1 else f"{one.key}.png", data)
                images.append({"offset": offset, "size_bytes": len(data)})
            body = encode(one)
            offset = tar.add(f"{one.key}.json", body)
            rows.append({"json_offset": offset, "json_bytes": len(body), "images": images})
        tar.close()
    pq.write_table(pa.Table.from_pylist(rows, _INDEX), path.with_suffix(".parquet"))
    table, file = (
        ledger.File(one.name, one.stat().st_size, xxhash.xxh3_128(one.read_bytes()).hexdigest())
        for one in (path.with_suffix(".parquet"), path)
    )
    parts = [ledger.Part(name=path.stem, rows=len(rows), table=table, tar=file)]
    ledger.Ledger(Store(str(path.parents[2])), "toy/pack").put(
        path.stem, ledger.Commit(recipe="0" * 64, inputs={}, rows=len(rows), parts=parts)
    )
    return mix.MixShard(
        tar=f"../../toy/pack/{path.name}",
        index=f"../../toy/pack/{path.stem}.parquet",
        samples=len(rows),
        size_bytes=file.size_bytes,
        xxh3=file.xxh3,
        index_xxh3=table.xxh3,
    )
