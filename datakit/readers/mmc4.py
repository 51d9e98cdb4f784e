"""MMC4: web pages as sentences and images, with the CLIP similarity of each image to each sentence.

`matched_text_index`, which VILA's loader goes by, isn't read: upstream made it from `similarity_matrix`, and so
does datakit/interleaved.py, that it can be made again when an image of the document is lost.
`sentences` and `similarity` stay in the table for that, the matrix with its rows in the order of the images.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from datakit.errors import SourceError
from datakit.interleaved import SENTENCES, SIMILARITY, document
from datakit.readers.llava import Row
from datakit.record import problem
from datakit.tables import REFS

VERSION = 2
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("messages", pa.string()),
        ("images", REFS),
        (SENTENCES, pa.list_(pa.string())),
        (SIMILARITY, pa.list_(pa.list_(pa.float32()))),
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
    matrix: Any = row.get("similarity_matrix")
    try:
        messages, order = document(sentences, matrix, len(refs))
    except SourceError:
        return "similarity"
    wrong = problem(messages, len(refs))
    if wrong:
        return wrong
    url, twice = row.get("url"), row.get("could_have_url_duplicate")
    attrs = {
        SENTENCES: sentences,
        SIMILARITY: [[float(sim) for sim in matrix[image]] for image in order],
        "url": url if isinstance(url, str) else None,
        "could_have_url_duplicate": bool(twice) if isinstance(twice, int) else None,
    }
    return Row(messages, [refs[image] for image in order], attrs)
