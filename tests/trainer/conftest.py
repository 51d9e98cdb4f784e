"""A small mix on disk, made by code: pairs, questions, an interleaved document, text without a picture."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datakit import mix
from datakit.record import Message, Part, Record, encode
from datakit.tars import TarWriter


def text(said: str) -> Part:
    return Part(type="text", text=said)


PICTURE = Part(type="image")


def record(key: str, *messages: tuple[str, list[Part]]) -> Record:
    return Record(key=key, source="toy", messages=[Message(role, parts) for role, parts in messages])


def picture(number: int, width: int = 40, height: int = 30) -> bytes:
    image = Image.new("RGB", (width, height), (number * 37 % 256, number * 91 % 256, 128))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def sample(number: int) -> Record:
    key = f"toy-{number:09d}"
    if number % 4 == 0:
        return record(key, ("assistant", [PICTURE, text(f"Boat number {number}.")]))
    if number % 4 == 1:
        return record(
            key,
            ("user", [PICTURE, text(f"Which boat is it, {number}?")]),
            ("assistant", [text("It is red.")]),
            ("user", [text("Sure?")]),
            ("assistant", [text("Yes.")]),
        )
    if number % 4 == 2:
        parts = [text("First."), PICTURE, text("Then."), PICTURE, text(f"At last {number}.")]
        return record(key, ("assistant", parts))
    return record(key, ("user", [text(f"What is {number} + 1?")]), ("assistant", [text(str(number + 1))]))


def write_mix(folder: Path, n_samples: int = 22, per_tar: int = 6, first: int = 0) -> Path:
    """Packed tars and their indexes under `folder`, and the mix.json over them."""
    shards = []
    for shard, start in enumerate(range(first, first + n_samples, per_tar)):
        file, rows = io.BytesIO(), []
        tar = TarWriter(file)
        for number in range(start, min(start + per_tar, first + n_samples)):
            one = sample(number)
            images = []
            for n in range(one.n_marks):
                data = picture(number + n)
                name = f"{one.key}.{n}.png" if one.n_marks > 1 else f"{one.key}.png"
                images.append({"offset": tar.add(name, data), "size_bytes": len(data)})
            body = encode(one)
            rows.append(
                {"json_offset": tar.add(f"{one.key}.json", body), "json_bytes": len(body), "images": images}
            )
        tar.close()
        pack = folder / "toy" / "pack"
        pack.mkdir(parents=True, exist_ok=True)
        (pack / f"{shard:05d}.tar").write_bytes(file.getvalue())
        where = pa.struct([("offset", pa.int64()), ("size_bytes", pa.int64())])
        schema = pa.schema(
            [("json_offset", pa.int64()), ("json_bytes", pa.int64()), ("images", pa.list_(where))]
        )
        pq.write_table(pa.Table.from_pylist(rows, schema), pack / f"{shard:05d}.parquet")
        shards.append(
            mix.MixShard(
                tar=f"../../toy/pack/{shard:05d}.tar",
                index=f"../../toy/pack/{shard:05d}.parquet",
                samples=len(rows),
                size_bytes=len(file.getvalue()),
                sha256=hashlib.sha256(file.getvalue()).hexdigest(),
            )
        )
    part = mix.MixPart(dataset="toy", repeats=1, recipe="0" * 64, samples=n_samples, shards=shards)
    path = folder / "mixes" / "toy" / "mix.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(mix.encode(mix.make("toy", [part])))
    return path


@pytest.fixture(scope="session")
def toy_mix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mix(tmp_path_factory.mktemp("mix"))
