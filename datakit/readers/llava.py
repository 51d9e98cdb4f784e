"""LLaVA's instruction JSON: `id`, optional `image`, and `conversations` of `from` and `value`.

`<image>` in what the human says is where the picture stands; the line break beside it belongs to the mark
and goes with it. An answer's own `<image>` is text. A record with a picture and no mark gets it at the start
of the first question, as LLaVA's and VILA's loaders do. Everything that can't be trained on has a reason.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pyarrow as pa

from datakit.record import Message, Part, problem
from datakit.tables import REFS

VERSION = 1
MARK = "<image>"
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
SCHEMA = pa.schema([("key", pa.string()), ("messages", pa.string()), ("images", REFS), ("id", pa.string())])


class Row(NamedTuple):
    messages: list[Message]
    images: list[str]  # references, as upstream has them
    attrs: dict[str, Any]


def read(row: Any, number: int) -> Row | str:
    """One object of the file, or the reason for which it is dropped."""
    if not isinstance(row, dict) or not isinstance(row.get("conversations"), list):
        return "malformed"
    image = row.get("image")
    refs = [image] if isinstance(image, str) else image if isinstance(image, list) else []
    if (image is not None and not refs) or not all(isinstance(r, str) and r for r in refs):
        return "malformed"
    messages = []
    for turn in row["conversations"]:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            return "malformed"
        role = ROLES.get(str(turn.get("from")))
        if role is None:
            return "unknown_role"
        marks = role == "user" and bool(refs)
        messages.append(Message(role=role, content=_parts(turn["value"], marks)))  # type: ignore[arg-type]
    if not _alternate(messages):
        return "roles"
    if refs and not any(p.type == "image" for m in messages for p in m.content):
        first = next(i for i, m in enumerate(messages) if m.role == "user")
        content = [Part(type="image") for _ in refs] + messages[first].content
        messages[first] = Message(role="user", content=content)
    wrong = problem(messages, len(refs))
    if wrong:
        return wrong
    return Row(messages, refs, {"id": str(row.get("id", number))})


def _alternate(messages: list[Message]) -> bool:
    """A system message at most at the start, then user and assistant in turns, an answer last."""
    roles = [m.role for m in messages]
    if roles[:1] == ["system"]:
        roles = roles[1:]
    return (
        len(roles) >= 2
        and len(roles) % 2 == 0
        and all(role == ("user", "assistant")[place % 2] for place, role in enumerate(roles))
    )


def _parts(value: str, marks: bool) -> list[Part]:
    """Text and image parts of a turn."""
    if not marks or MARK not in value:
        return [Part(type="text", text=value)]
    parts: list[Part] = []
    pieces = value.split(MARK)
    for place, piece in enumerate(pieces):
        if place > 0:
            parts.append(Part(type="image"))
            piece = piece.removeprefix("\n")
        if place < len(pieces) - 1:
            piece = piece.removesuffix("\n")
        if piece:
            parts.append(Part(type="text", text=piece))
    return parts
