"""Rows of Hugging Face datasets and similar tables: the manifest says what each column is.

    [annotations.columns]
    messages = "texts"                        turns, as chat templates, LLaVA or The Cauldron have them
    question = "query", answer = "label"      one turn of each
    text     = "caption"                      the caption of the row's pictures
    image    = "image" or "images"            a picture or a list of them; their bytes, or their paths
    id       = "uid"

Turns have `role` or `from`, and `content` or `value`, which is a text or a list of parts; or `user` and `assistant`.
`<image>` in a user's text marks a picture, as in LLaVA's JSON, unless the content is a list of parts; pictures without
any mark go to the start of the first question.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from datakit.errors import ManifestError, shortlist
from datakit.readers import About, llava
from datakit.readers.llava import MARK, ROLES, Row, parts_of, roles_alternate
from datakit.records.record import Message, Part, problem

VERSION = 2
SCHEMA = llava.SCHEMA  # the same columns
_KNOWN = {"messages", "question", "answer", "text", "image", "id"}
_PICTURE = Part(type="image")


def reading(about: About) -> Callable[[Any, int], Row | str]:
    """The function that reads a file's rows by its columns. Raises ManifestError for unknown or missing columns."""
    columns = about.columns
    kinds = [name for name in ("messages", "question", "text") if name in columns]
    if set(columns) - _KNOWN or len(kinds) != 1 or ("question" in columns) != ("answer" in columns):
        raise ManifestError(
            f"manifest {about.dataset!r}: key 'annotations.columns' should have 'messages', or 'question' and "
            f"'answer', or 'text'; beside them 'image' and 'id'. It has {shortlist(columns, 9) or 'nothing'}"
        )

    def read(row: Any, number: int) -> Row | str:
        found = pictures_or_none(row, about)
        if found is None:
            return "malformed"
        messages = _messages_of(row, columns, kinds[0], len(found))
        if isinstance(messages, str):
            return messages
        wrong = problem(messages, len(found))
        if wrong:
            return wrong
        refs = [picture if isinstance(picture, str) else str(nth) for nth, picture in enumerate(found)]
        name = row.get(columns.get("id", ""))
        return Row(messages, refs, {"id": str(number if name is None else name)})

    return read


def pictures(row: Any, about: About) -> list[bytes | str]:
    """The pictures of a row, each as bytes or base64; empty where only its path is known."""
    return pictures_or_none(row, about) or []


def pictures_or_none(row: Any, about: About) -> list[bytes | str] | None:
    """The pictures of a row, None when the column holds something else."""
    if not isinstance(row, dict):
        return None
    value = row.get(about.columns.get("image", ""))
    found: list[bytes | str] = []
    for picture in value if isinstance(value, list) else [] if value is None else [value]:
        if isinstance(picture, dict):  # the hub's Image feature
            picture = picture.get("bytes") or b""
        if not isinstance(picture, bytes | str):
            return None
        found.append(picture)
    return found


def conversation(turns: Any, n_pictures: int) -> list[Message] | str:
    """The messages of turns in any of the known forms, or the reason to drop the row."""
    if isinstance(turns, str):
        try:
            turns = msgspec.json.decode(turns)
        except (msgspec.DecodeError, RecursionError):
            return "malformed"
    if not isinstance(turns, list):
        return "malformed"
    messages: list[Message] = []
    for turn in turns:
        if not isinstance(turn, dict):
            return "malformed"
        if turn.get("role") is None and turn.get("from") is None and {"user", "assistant"} <= turn.keys():
            sides = [(side, turn[side]) for side in ("user", "assistant")]
        else:
            sides = [(_first_given(turn, "role", "from"), _first_given(turn, "content", "value"))]
        for side, value in sides:
            role = ROLES.get(str(side))
            if role is None:
                return "unknown_role"
            content = _content(value, role == "user" and n_pictures > 0)
            if content is None:
                return "malformed"
            messages.append(Message(role=role, content=content))  # type: ignore[arg-type]
    is_pair_or_document = [message.role for message in messages] == ["assistant"]
    if not is_pair_or_document and not roles_alternate(messages):
        return "roles"
    return _with_marks(messages, n_pictures)


def caption(text: str, n_pictures: int) -> list[Message]:
    """One assistant message: the pictures, then their caption."""
    return [Message(role="assistant", content=[_PICTURE] * n_pictures + [Part(type="text", text=text)])]


def _messages_of(row: dict[str, Any], columns: dict[str, str], kind: str, n_pictures: int) -> list[Message] | str:
    if kind == "messages":
        return conversation(row.get(columns["messages"]), n_pictures)
    texts = [row.get(columns[name]) for name in (("question", "answer") if kind == "question" else ("text",))]
    if any(text is None for text in texts):
        return "empty_question" if len(texts) == 2 and texts[0] is None else "empty_answer"
    if not all(isinstance(text, str) for text in texts):
        return "malformed"
    if kind == "text":
        return caption(str(texts[0]), n_pictures)
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=True)]
    return conversation(turns, n_pictures)


def _first_given(turn: dict[str, Any], *names: str) -> Any:
    return next((turn[name] for name in names if turn.get(name) is not None), None)


def _content(value: Any, marks: bool) -> list[Part] | None:
    """The parts of a turn; None for what is neither a text nor a list of parts."""
    if isinstance(value, str):
        return parts_of(value) if marks and MARK in value else [Part(type="text", text=value)]
    if not isinstance(value, list):
        return None
    parts: list[Part] = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image" or kind == "image_url":
            parts.append(_PICTURE)
        elif kind == "text" and isinstance(part.get("text"), str):
            parts.append(Part(type="text", text=part["text"]))
        else:
            return None
    return parts


def _with_marks(messages: list[Message], n_pictures: int) -> list[Message]:
    """Messages that have their pictures at the start of the first question, or of the caption, if they have no mark."""
    if n_pictures and not any(part.type == "image" for message in messages for part in message.content):
        first = next((at for at, message in enumerate(messages) if message.role == "user"), 0)
        marked = [_PICTURE] * n_pictures + messages[first].content
        messages[first] = Message(role=messages[first].role, content=marked)
    return messages
