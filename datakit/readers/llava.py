"""LLaVA's instruction JSON: `id`, optional `image`, and `conversations` of `from` and `value`.

`<image>` in a human turn marks the position of a picture; the line break beside it belongs to the mark and is
removed with it. Several marks in a turn stay several. An answer's own `<image>` is text. A record with a picture
and no mark gets it at the start of the first question, as LLaVA's and VILA's loaders do. Every row that can't be
trained on is dropped with a reason.

`turn_value` is the inverse, from parts to a `value`. Where its result, or the rest of a row, would differ from
upstream's row, the attribute `repairs` names the difference:

    id_key       upstream calls it `idx` (ALLaVA's text)
    id_type      upstream's id is no string
    id_missing   there is none; it is the row's number
    image_form   one picture in a list, or `image: null`
    mark_added   the picture had no mark
    line_breaks  a mark without a line break on either side, or with one too many
    turn_keys    a turn has more than `from` and `value`
    role_name    a turn is `from` a synonym of human, gpt or system, such as user or assistant

Repairs of any reader's rows, such as `surrogate`, are added by datakit/readers/__init__.py, and later steps add
`extension` (datakit/stages/locate.py) and `content_type`, for a picture whose name says that it is of another type
than it is (datakit/stages/pack.py).

Other keys of a row, such as `model`, are kept when the manifest names them (datakit/records/attributes.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pyarrow as pa

from datakit.records.record import Message, Part, problem
from datakit.records.tables import REFS

VERSION = 3
MARK = "<image>"
NAMES = {"user": "human", "assistant": "gpt", "system": "system"}  # what LLaVA calls the roles
ROLES = {  # what anybody calls them
    **{role: "user" for role in ("human", "user")},
    **{role: "assistant" for role in ("gpt", "assistant", "model", "bot")},
    "system": "system",
}
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("messages", pa.string()),
        ("images", REFS),
        ("id", pa.string()),
        ("repairs", pa.list_(pa.string())),
    ]
)
_PICTURE = Part(type="image")


class Row(NamedTuple):
    """A row of the file as messages, before its pictures are looked up."""

    messages: list[Message]
    images: list[str]  # references, as upstream has them
    attrs: dict[str, Any]


def read(row: Any, number: int) -> Row | str:
    """One object of the file, or the reason for which it is dropped."""
    if not isinstance(row, dict) or not isinstance(row.get("conversations"), list):
        return "malformed"
    image = row.get("image")
    refs = [image] if isinstance(image, str) else image if isinstance(image, list) else []
    if (image is not None and not refs) or not all([isinstance(r, str) and r for r in refs]):
        return "malformed"
    name, repairs = _id(row, number)
    if not isinstance(image, str) and "image" in row and len(refs) < 2:
        repairs.append("image_form")
    messages, marked = [], False
    for turn in row["conversations"]:
        if not isinstance(turn, dict) or not isinstance(value := turn.get("value"), str):
            return "malformed"
        said_by = str(turn.get("from"))
        role = ROLES.get(said_by)
        if role is None:
            return "unknown_role"
        if NAMES[role] != said_by:
            repairs.append("role_name")
        if refs and role == "user" and MARK in value:
            content, marked = parts_of(value), True
            if turn_value(content) != value:
                repairs.append("line_breaks")
        else:
            content = [Part("text", value)]  # positional, which is faster: most of a listing's time is spent here
        if len(turn) > 2:
            repairs.append("turn_keys")
        messages.append(Message(role, content))  # type: ignore[arg-type]
    if not roles_alternate(messages):
        return "roles"
    if refs and not marked:
        first = next(i for i, m in enumerate(messages) if m.role == "user")
        messages[first] = Message(role="user", content=[_PICTURE] * len(refs) + messages[first].content)
        repairs.append("mark_added")
    wrong = problem(messages, len(refs))
    if wrong:
        return wrong
    return Row(messages, refs, {"id": name, "repairs": list(dict.fromkeys(repairs)) if repairs else None})


def turn_value(content: list[Part]) -> str:
    """The `value` that is read as these parts: a mark for each picture, and a line break between the parts."""
    return "\n".join([MARK if part.type == "image" else part.text or "" for part in content])


def _id(row: dict[str, Any], number: int) -> tuple[str, list[str]]:
    """A row's own id as text, and the repairs that this took."""
    found, repairs = row.get("id"), []
    if found is None and (found := row.get("idx")) is not None:
        repairs.append("id_key")
    if found is None:
        return str(number), ["id_missing"]
    if not isinstance(found, str):
        repairs.append("id_type")
    return str(found), repairs


def roles_alternate(messages: list[Message]) -> bool:
    """Whether user and assistant take turns, an answer last; a system message may come first."""
    roles = [m.role for m in messages]
    if roles[:1] == ["system"]:
        roles = roles[1:]
    return bool(roles) and roles == ["user", "assistant"] * (len(roles) // 2)


def parts_of(value: str) -> list[Part]:
    """Text and image parts of a turn with marks."""
    parts: list[Part] = []
    pieces = value.split(MARK)
    for at, piece in enumerate(pieces):
        if at > 0:
            parts.append(_PICTURE)
            piece = piece.removeprefix("\n")
        if at < len(pieces) - 1:
            piece = piece.removesuffix("\n")
        if piece:
            parts.append(Part(type="text", text=piece))
    return parts
