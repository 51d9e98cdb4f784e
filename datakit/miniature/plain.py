"""Two datasets in forms that the hub knows, for `datakit add`: Parquet with pictures in it, and WebDataset."""

from __future__ import annotations

import functools
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq

from datakit.miniature import pictures, questions, texts
from datakit.miniature.instruct import InstructExpected, Member, tar_archive
from datakit.miniature.pictures import Drawing
from datakit.miniature.sheet import FLAWS, small
from datakit.miniature.world import Maker, Places, World

PARQUET_REPO, TARS_REPO = "example/pictures-parquet", "example/wds"
PARQUETS = tuple(f"data/train-{n:05d}-of-00002.parquet" for n in range(2))
TARS = tuple(f"train-{n:06d}.tar" for n in range(2))
ROWS = 12
FLAWED = {(0, 4): ("truncated", "truncated"), (1, 2): ("empty_answer", "empty_answer"), (1, 5): ("cmyk", None)}
LONE = (1, 3)  # the sample without its picture, which leaves a text: file, row
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema([("image", IMAGE), ("question", pa.string()), ("answer", pa.string())])
FEATURES = {
    "image": {"_type": "Image"},
    "question": {"dtype": "string", "_type": "Value"},
    "answer": {"dtype": "string", "_type": "Value"},
}


def parquet(world: World, part: int) -> bytes:
    """A file as `datasets` writes it, its features in the schema's metadata."""
    chance = random.Random(f"{PARQUET_REPO}/{world.seed}/{part}")
    rows = []
    for row in range(ROWS):
        of, odd = small(chance), FLAWED.get((part, row), ("", None))[0]
        make = (FLAWS[odd][0] if odd in FLAWS else None) or Drawing.jpeg
        question, answer = questions.about_gqa(of, chance)[0]
        image = {"bytes": make(of), "path": f"{part}_{row}.jpg"}
        rows.append({"image": image, "question": question, "answer": "" if odd == "empty_answer" else answer})
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata)), sink, row_group_size=5)
    return bytes(sink.getvalue().to_pybytes())


def tar(world: World, part: int) -> bytes:
    """A WebDataset tar: a picture and its caption under each key, and one caption alone."""
    chance = random.Random(f"{TARS_REPO}/{world.seed}/{part}")
    members: list[Member] = []
    for row in range(ROWS):
        of, key = small(chance), f"{part * ROWS + row:09d}"
        if (part, row) != LONE:
            members.append((f"{key}.jpg", functools.partial(pictures.cmyk if row == 7 else Drawing.jpeg, of)))
        members.append((f"{key}.txt", functools.partial(texts.line(of, chance).encode, "utf-8")))
    return tar_archive(members)


def expected(repo: str, key: str) -> InstructExpected:
    """Both files, one after the other. Keys are `<key>-<file:05d>-<row:06d>`."""
    flawed = FLAWED if repo == PARQUET_REPO else {LONE: ("no_picture", None)}
    keys = {(part, row): f"{key}-{part:05d}-{row:06d}" for part in range(2) for row in range(ROWS)}
    dropped = {keys[at]: reason for at, (_, reason) in flawed.items() if reason}
    return InstructExpected(
        rows=len(keys),
        kept=tuple(name for name in keys.values() if name not in dropped),
        dropped=dropped,
        faults={keys[at]: fault for at, (fault, _) in flawed.items()},
    )


def places(world: World) -> Places:
    files: dict[str, Maker] = {name: functools.partial(parquet, world, n) for n, name in enumerate(PARQUETS)}
    tars: dict[str, Maker] = {name: functools.partial(tar, world, n) for n, name in enumerate(TARS)}
    return Places(hub={PARQUET_REPO: files, TARS_REPO: tars})
