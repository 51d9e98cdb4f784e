"""MMC4: web pages as sentences and images, with the CLIP similarity of each image to each sentence.

An image goes before the sentence that its `matched_text_index` names, as in VILA's loader. Where a document lacks one
of them, or one names no sentence, its images are matched by `similarity_matrix`, from which upstream made the indexes.

`sentences` and `similarity` are kept in the table, to match again when an image is lost
(datakit/records/interleaved.py), the matrix with its rows in the order of the images; null when upstream's has another
shape or isn't numbers. `interleaved` is true: one image and one sentence are a document here, not a pair.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from datakit.errors import SourceError
from datakit.readers.llava import Row
from datakit.records.interleaved import INTERLEAVED, SENTENCES, SIMILARITY, document, lay_out, similarity_matrix
from datakit.records.record import problem
from datakit.records.tables import REFS

VERSION = 2
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("messages", pa.string()),
        ("images", REFS),
        (SENTENCES, pa.list_(pa.string())),
        (SIMILARITY, pa.list_(pa.list_(pa.float32()))),
        (INTERLEAVED, pa.bool_()),
        ("url", pa.string()),
        ("could_have_url_duplicate", pa.bool_()),  # Common Crawl may have kept this page twice
        ("repairs", pa.list_(pa.string())),
    ]
)


def read(row: Any, number: int) -> Row | str:
    """One document, a line of the file, or the reason for which it is dropped."""
    if not isinstance(row, dict):
        return "malformed"
    sentences, found = row.get("text_list"), row.get("image_info")
    if not isinstance(sentences, list) or not all(isinstance(s, str) for s in sentences):
        return "malformed"
    if not isinstance(found, list) or not all(isinstance(image, dict) for image in found):
        return "malformed"
    refs = [image.get("raw_url") for image in found]
    if not all(isinstance(ref, str) and ref for ref in refs):
        return "malformed"
    if not refs:
        return "no_images"  # VILA leaves these out as well
    if not any(sentence.strip() for sentence in sentences):
        return "empty_answer"
    matrix, indexes = _matrix(row, len(refs), len(sentences)), _sentence_indexes(found, len(sentences))
    if indexes is not None:
        messages, order = lay_out(sentences, indexes)
    elif matrix is not None:
        messages, order = document(sentences, matrix, len(refs))
    else:
        return "similarity"
    wrong = problem(messages, len(refs))
    if wrong:
        return wrong
    url, twice = row.get("url"), row.get("could_have_url_duplicate")
    attrs = {
        SENTENCES: sentences,
        SIMILARITY: None if matrix is None else [[float(sim) for sim in matrix[image]] for image in order],
        INTERLEAVED: True,
        "url": url if isinstance(url, str) else None,
        "could_have_url_duplicate": bool(twice) if isinstance(twice, int) else None,
    }
    return Row(messages, [refs[image] for image in order], attrs)


def _matrix(row: dict[str, Any], n_images: int, n_sentences: int) -> Any:
    """Upstream's similarity matrix, None when it has another shape or isn't numbers."""
    try:
        similarity_matrix(row.get("similarity_matrix"), n_images, n_sentences)
    except SourceError:
        return None
    return row["similarity_matrix"]


def _sentence_indexes(found: list[dict[str, Any]], n_sentences: int) -> list[int] | None:
    """The index of each image's sentence, as upstream gives it; None unless all images have one."""
    indexes: list[Any] = [image.get("matched_text_index") for image in found]
    return indexes if all(type(index) is int and 0 <= index < n_sentences for index in indexes) else None
