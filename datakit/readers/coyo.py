"""COYO-700M: 17 columns of Parquet, read by columns; nothing is ever a Python object, for 5.8 M rows a shard.

clip_sim is the sum of the two CLIP similarities in float32, so it reaches 2 in theory and 1.1 in practice;
VILA's choice is by this sum (NVlabs/VILA data_prepare/coyo/coyo_downloader.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datakit.errors import SourceError, shortlist
from datakit.tables import REFS

VERSION = 1
BATCH = 32_768  # rows; some 10 MB of text

# Columns that are kept as attributes, under upstream's names.
KEPT = {
    "image_phash": pa.string(),
    "num_faces": pa.int32(),
    "clip_similarity_vitb32": pa.float32(),
    "clip_similarity_vitl14": pa.float32(),
    "nsfw_score_opennsfw2": pa.float32(),
    "watermark_score": pa.float32(),
    "aesthetic_score_laion_v2": pa.float32(),
}
NEEDED = ("id", "url", "text", *KEPT)
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("messages", pa.string()),
        ("images", REFS),
        ("clip_sim", pa.float32()),
        *KEPT.items(),
    ]
)

_BEFORE = '[{"role":"assistant","content":[{"type":"image"},{"type":"text","text":'
_AFTER = "}]}]"
_ESCAPED = '["\\\\\\x00-\\x1f]'  # what JSON wants written with a backslash


def quoted(text: pa.Array) -> pa.Array:
    """Strings as JSON strings. Only the rows that need an escape go through Python."""
    plain = pc.binary_join_element_wise('"', text, '"', "")
    odd = pc.match_substring_regex(text, _ESCAPED)
    if not pc.any(odd).as_py():
        return plain
    escaped = pa.array([orjson.dumps(t).decode() for t in text.filter(odd).to_pylist()], pa.string())
    return pc.replace_with_mask(plain, odd, escaped)


def batches(path: Path, stop: int | None, dataset: str) -> Iterator[pa.RecordBatch]:
    """The first `stop` rows of a file (all for None) as records. Raises SourceError for a missing column."""
    try:
        file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(f"{path} is not Parquet or is cut short: {error}. Remove it to fetch it again") from error
    missing = [name for name in NEEDED if name not in file.schema_arrow.names]
    if missing:
        raise SourceError(
            f"{path} has no column {shortlist(missing)}; it has {shortlist(file.schema_arrow.names, 20)}. "
            "Upstream changed its format: pin the revision that had it"
        )
    left = file.metadata.num_rows if stop is None else min(stop, file.metadata.num_rows)
    try:
        for batch in file.iter_batches(BATCH, columns=list(NEEDED), use_threads=False):
            if left <= 0:
                return
            yield _records(batch.slice(0, left), dataset)
            left -= batch.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(f"{path} is damaged: {error}. Remove it to fetch it again") from error


def _records(batch: pa.RecordBatch, dataset: str) -> pa.RecordBatch:
    key = pc.binary_join_element_wise(dataset + "-", batch["id"].cast(pa.string()), "")
    text = pc.fill_null(batch["text"], "")
    messages = pc.binary_join_element_wise(_BEFORE, quoted(text), _AFTER, "")
    refs = pa.StructArray.from_arrays([pc.fill_null(batch["url"], "")], ["ref"])
    images = pa.ListArray.from_arrays(pa.array(range(batch.num_rows + 1), pa.int32()), refs)
    sim = pc.add(batch["clip_similarity_vitb32"].cast(pa.float32()), batch["clip_similarity_vitl14"].cast(pa.float32()))
    kept = [batch[name].cast(kind) for name, kind in KEPT.items()]
    return pa.RecordBatch.from_arrays([key, messages, images, sim, *kept], schema=SCHEMA)
