"""What the benchmark of annotations reads, made by code in upstream's schema."""

from __future__ import annotations

import json
import random
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from webserver import pictures

from datakit.miniature.flan import SCHEMA as FLAN_SCHEMA

COYO_GROUP = 800_000  # rows of a row group, as Spark's 128 MB blocks give
FLAN_GROUP = 20_000
DISTINCT = 400  # pictures; the others differ by a comment
WORDS = (
    "a the of in on with red blue green old new small large wooden house boat river mountain street people "
    "standing near white black photo vintage design for sale free summer winter night day city park garden"
).split()


def make_coyo(path: Path, rows: int) -> None:
    """A Parquet file with upstream's 17 columns, snappy, captions of 68 characters and URLs of 90 on average."""
    rng = np.random.default_rng(0)
    pool = np.array([" ".join(rng.choice(WORDS, size=rng.integers(5, 20))) for _ in range(20_000)], dtype=object)
    means = {
        **{"clip_similarity_vitb32": 0.30, "clip_similarity_vitl14": 0.27, "nsfw_score_opennsfw2": 0.02},
        **{"nsfw_score_gantman": 0.02, "watermark_score": 0.18, "aesthetic_score_laion_v2": 4.8},
    }
    most = {
        **{"width": 2000, "height": 2000, "text_length": 1000, "word_count": 200},
        **{"num_tokens_bert": 200, "num_tokens_gpt": 200, "num_faces": 5},
    }
    writer = None
    for start in range(0, rows, COYO_GROUP):
        n = min(COYO_GROUP, rows - start)
        ids = np.arange(start, start + n, dtype=np.int64) + (7 << 33)
        tail = pa.array([f"{h:016x}" for h in rng.integers(0, 2**63, n)])
        url = pc.binary_join_element_wise(
            "https://cdn.example-", pc.utf8_slice_codeunits(tail, 0, 2), ".org/wp-content/uploads/2017/", tail,
            "/photograph-large.jpg?v=", pa.array(ids).cast(pa.string()), "",
        )  # fmt: skip
        text = pc.binary_join_element_wise(pa.array(pool[rng.integers(0, len(pool), n)], pa.string()), tail, " ")
        ints = {name: pa.array(rng.integers(0, top, n).astype(np.int32)) for name, top in most.items()}
        floats = {name: pa.array(rng.normal(mean, 0.07, n).astype(np.float32)) for name, mean in means.items()}
        table = pa.table({"id": pa.array(ids), "url": url, "text": text, "image_phash": tail, **ints, **floats})
        writer = writer or pq.ParquetWriter(path, table.schema, compression="snappy")
        writer.write_table(table, row_group_size=COYO_GROUP)
    if writer is not None:
        writer.close()


def make_rows(path: Path, dataset: str, *, size: int = 0, rows: int = 0) -> int:
    """An array of LLaVA records until the file has that size, or that many; returns how many there are.

    Indented as LLaVA's files are. Those of its mix have 1.5 kB and 5 rounds on average, most of short answers
    (docs/upstreams.md, `llava665k`); those of Q-Instruct have 0.4 kB and one round.
    """
    chance = random.Random(0)
    texts = [
        [json.dumps(" ".join(chance.choices(WORDS, k=k)) + ' "so" it.\n') for _ in range(500)] for k in (2, 10, 40)
    ]
    done = 0
    with path.open("w", encoding="ascii") as file:
        file.write("[")
        while file.tell() < size or done < rows:
            name, n, long = f"{done:012d}", 1, 1
            if dataset == "llava665k":
                long = 2 if chance.random() < 0.3 else 0
                n = 3 if long else chance.randint(1, 11)
            turns = []
            for k in range(2 * n):
                text = chance.choice(texts[long if k % 2 else 1])
                said = text if k else f'"<image>\\n{text[1:]}'
                who = "gpt" if k % 2 else "human"
                turns.append(f'\n      {{\n        "from": "{who}",\n        "value": {said}\n      }}')
            image = f"coco/train2017/{name}.jpg" if dataset == "llava665k" else f"{name[3:8]}/{name}.jpg"
            head = f'  {{\n    "id": "{name}",\n    "image": "{image}",\n    "conversations": ['
            file.write(f"{',' if done else ''}\n{head}{','.join(turns)}\n    ]\n  }}")
            done += 1
        file.write("\n]\n")
    return done


def make_flan(path: Path, rows: int, seed: int) -> int:
    """A Parquet file of FLAN_SCHEMA's columns; returns the bytes of its `inputs` and `targets`."""
    rng = np.random.default_rng(seed)
    asked = pa.array([" ".join(rng.choice(WORDS, size=20)) + "?" for _ in range(20_000)])
    said = pa.array([" ".join(rng.choice(WORDS, size=3)) for _ in range(2_000)])
    with pq.ParquetWriter(path, FLAN_SCHEMA, compression="snappy") as writer:
        for start in range(0, rows, FLAN_GROUP):
            n = min(FLAN_GROUP, rows - start)
            number = pa.array(np.arange(start, start + n)).cast(pa.string())
            inputs = pc.binary_join_element_wise(number, asked.take(pa.array(rng.integers(0, len(asked), n))), " ")
            targets = said.take(pa.array(rng.integers(0, len(said), n)))
            kinds = pa.array(["zs_opt"]).take(pa.array(np.zeros(n, np.int32)))
            task = pa.array(rng.integers(0, 10, n))
            columns = [inputs, targets, task, kinds, task.cast(pa.string()), kinds]
            writer.write_table(pa.table(columns, FLAN_SCHEMA), row_group_size=FLAN_GROUP)
    about = pq.read_metadata(path)
    groups = [about.row_group(k) for k in range(about.num_row_groups)]
    return sum(group.column(place).total_compressed_size for group in groups for place in (0, 1))


def make_zip(path: Path, n: int) -> list[bytes]:
    """Stored JPEGs of about 340 pixels' height and 49 kB, as LLaVA-Pretrain's 558,128 in 27.4 GB; all different.

    Returns some of them.
    """
    bodies = pictures(DISTINCT, width=(475, 560), grain=4.0)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for k in range(n):
            name, body = f"{k:012d}", bodies[k % DISTINCT]
            comment = b"\xff\xfe\0\x0e" + name.encode()
            archive.writestr(f"{name[3:8]}/{name}.jpg", body[:2] + comment + body[2:])
    return bodies
