"""WebDataset samples: pictures, and their conversation or caption in `json` or `txt`.

`json` may hold `messages` or `conversations` (datakit/readers/hf.py says in which forms) or a `caption`; without
them the caption is `txt`. A picture is `jpg`, `jpeg`, `png`, `webp` or `gif`, and `0.jpg`, `1.jpg`, … where there are
several. So datakit's own packed tars can be read again, and img2dataset's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from datakit.formats.webdataset import KEY
from datakit.readers import About
from datakit.readers.hf import SCHEMA, caption, conversation
from datakit.readers.llava import Row
from datakit.records.record import problem

__all__ = ["PICTURE", "SCHEMA", "VERSION", "pictures", "reading"]

VERSION = 2
PICTURE = re.compile(r"(?:(\d{1,18})\.)?(?:jpe?g|png|webp|gif)")


def reading(about: About) -> Callable[[Any, int], Row | str]:
    """The function that reads a sample: `read`, which depends on nothing in the manifest."""
    return read


def read(row: dict[str, Any], number: int) -> Row | str:
    """One sample, or the reason for which it is dropped."""
    kinds = _picture_names(row)
    try:
        described = msgspec.json.decode(row["json"]) if "json" in row else {}
        text = row["txt"].decode() if "txt" in row else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "malformed"
    if not isinstance(described, dict):
        return "malformed"
    turns = next((described[name] for name in ("messages", "conversations") if described.get(name) is not None), None)
    said = described["caption"] if isinstance(described.get("caption"), str) else text
    if turns is not None:
        messages = conversation(turns, len(kinds))
    elif said is not None:
        messages = caption(said, len(kinds))
    else:
        return "empty_answer"
    if isinstance(messages, str):
        return messages
    wrong = problem(messages, len(kinds))
    return wrong or Row(messages, kinds, {"id": row[KEY]})


def pictures(row: dict[str, Any], about: About) -> list[bytes | str]:
    """The pictures of a sample, by their numbers."""
    return [row[kind] for kind in _picture_names(row)]


def _picture_names(row: dict[str, Any]) -> list[str]:
    found = [(int(match[1] or 0), kind) for kind in row if (match := PICTURE.fullmatch(kind))]
    return [kind for _, kind in sorted(found)]
