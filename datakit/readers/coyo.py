"""COYO-700M: 17 columns of Parquet, read by columns, without Python objects, since a shard has 5.8 M rows.

clip_sim is the sum of the two CLIP similarities in float32, so it reaches 2 in theory and 1.1 in practice;
VILA's choice is by this sum (NVlabs/VILA data_prepare/coyo/coyo_downloader.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from datakit.errors import SourceError, shortlist
from datakit.formats import parquetrows
from datakit.records.tables import REFS

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
TEXTS = ("url", "text", "image_phash")
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("messages", pa.string()),
        ("images", REFS),
        ("clip_sim", pa.float32()),
        *KEPT.items(),
    ]
)

Reject = Callable[[str, int], None]  # (reason, rows)

_NO_ID = -(1 << 63)  # in place of null, where numbers are compared
_ANEW = "If it was damaged on this disk, `datakit verify --repair` removes it and the next fetch has it again"
_CHANGED = "Upstream changed its format: pin the revision that datakit reads"
_BEFORE = '[{"role":"assistant","content":[{"type":"image"},{"type":"text","text":'
_AFTER = "}]}]"
_ESCAPED = '["\\\\\\x00-\\x1f]'  # what JSON wants written with a backslash


def quote_json(text: pa.Array) -> pa.Array:
    """Strings as JSON strings. Only the rows that need an escape go through Python."""
    plain = pc.binary_join_element_wise('"', text, '"', "")
    odd = pc.match_substring_regex(text, _ESCAPED)
    if not pc.any(odd).as_py():
        return plain
    escaped = pa.array([orjson.dumps(t).decode() for t in text.filter(odd).to_pylist()], pa.string())
    return pc.replace_with_mask(plain, odd, escaped)


def batches(path: Path, stop: int | None, dataset: str, reject: Reject) -> Iterator[pa.RecordBatch]:
    """The first `stop` rows of a file (all for None) as records. Raises SourceError for a missing or unusable column.

    A row whose url, text or hash isn't UTF-8 is rejected as `not_utf8`, a row without an id as `no_id`; of several rows
    with one id the first is kept, the others are `same_id`; a row without a caption is `empty_answer`.
    """
    with parquetrows.open_file(path, (["id"], 1 << 20), (list(NEEDED), BATCH), remedy=_ANEW) as file:
        _check_schema(file.schema, path)
        left = file.rows if stop is None else min(stop, file.rows)
        again = _repeated_ids(file, left)
        at = 0
        for batch in file.batches():
            batch = batch.slice(0, left - at)
            if not batch.num_rows:
                return
            same = None if again is None else pa.array(again[at : at + batch.num_rows])
            at += batch.num_rows
            if (utf8_rows := parquetrows.utf8_rows(batch, TEXTS)) is not None:
                reject("not_utf8", pc.sum(pc.invert(utf8_rows)).as_py())
                batch, same = batch.filter(utf8_rows), None if same is None else same.filter(utf8_rows)
            good = pc.is_valid(batch["id"])
            if same is not None:
                reject("same_id", pc.sum(pc.and_(good, same)).as_py() or 0)
                good = pc.and_not(good, same)
            reject("no_id", batch["id"].null_count)
            has_text = pc.not_equal(pc.utf8_trim_whitespace(pc.fill_null(batch["text"].cast(pa.string()), "")), "")
            reject("empty_answer", pc.sum(pc.and_not(good, has_text)).as_py() or 0)
            good = pc.and_(good, has_text)
            yield _records(batch.filter(good), dataset)


def _check_schema(schema: pa.Schema, path: Path) -> None:
    """Raises SourceError for a column that is missing, there twice, or of another type than expected."""
    missing = [name for name in NEEDED if name not in schema.names]
    if missing:
        raise SourceError(
            f"{path} has no column {shortlist(missing)}; it has {shortlist(schema.names, 20)}. {_CHANGED}"
        )
    for name in NEEDED:
        if schema.names.count(name) > 1:
            raise SourceError(f"{path} has column {name!r} twice. {_CHANGED}")
        kind = schema.field(name).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        text, whole = name in TEXTS, name in ("id", "num_faces")
        fits = (
            pa.types.is_string(kind) or pa.types.is_large_string(kind)
            if text
            else pa.types.is_integer(kind) or (not whole and pa.types.is_floating(kind))
        )
        if not fits:
            raise SourceError(f"{path}: column {name!r} is of type {schema.field(name).type}. {_CHANGED}")


def _repeated_ids(file: parquetrows.OpenFile, rows: int) -> npt.NDArray[np.bool_] | None:
    """A mark for each row whose id an earlier one has; None when the ids rise, as Spark gives them."""
    columns = [b["id"] for b in file.batches()]
    filled = [pc.fill_null(c.cast(pa.int64()), _NO_ID).to_numpy(zero_copy_only=False) for c in columns]
    ids = np.concatenate([np.zeros(0, np.int64), *filled])
    ids = ids[:rows]
    if len(ids) < 2 or bool(np.all(ids[1:] > ids[:-1])):
        return None
    first = np.zeros(len(ids), np.bool_)
    first[np.unique(ids, return_index=True)[1]] = True
    return ~first


def _records(batch: pa.RecordBatch, dataset: str) -> pa.RecordBatch:
    key = pc.binary_join_element_wise(dataset + "-", batch["id"].cast(pa.string()), "")
    text = pc.fill_null(batch["text"].cast(pa.string()), "")
    messages = pc.binary_join_element_wise(_BEFORE, quote_json(text), _AFTER, "")
    refs = pa.StructArray.from_arrays([pc.fill_null(batch["url"].cast(pa.string()), "")], ["ref"])
    images = pa.ListArray.from_arrays(pa.array(range(batch.num_rows + 1), pa.int32()), refs)
    sim = pc.add(batch["clip_similarity_vitb32"].cast(pa.float32()), batch["clip_similarity_vitl14"].cast(pa.float32()))
    kept = [batch[name].cast(kind) for name, kind in KEPT.items()]
    return pa.RecordBatch.from_arrays([key, messages, images, sim, *kept], schema=SCHEMA)
