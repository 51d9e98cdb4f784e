"""Record: one training sample, the same from the first table to the last tar.

`messages` follow the Hugging Face convention, so that chat templates read them as they are:

    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
     {"role": "assistant", "content": [{"type": "text", "text": "A boat."}]}]

An image-text pair is one assistant message with an image and a caption; an interleaved document is one
assistant message whose content alternates; a text-only sample has no image. One invariant holds:
there are as many image parts as there are images.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from datakit.errors import SourceError

KEY = re.compile(r"[a-z0-9_-]+")  # WebDataset cuts a member's name at its first dot
Role = Literal["system", "user", "assistant"]


class Part(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One piece of a message: a text, or the mark of the next image."""

    type: Literal["text", "image"]
    text: str | None = None


class Message(msgspec.Struct, frozen=True, gc=False):  # neither can be in a cycle
    """What one side says in one turn, texts and images in their order."""

    role: Role
    content: list[Part]


class Record(msgspec.Struct, frozen=True):
    """A sample as it is in `<key>.json` of a packed tar; its pictures are members beside it."""

    key: str
    source: str  # the dataset's name
    messages: list[Message]
    images: list[dict[str, Any]] = []  # one per picture: ref, width, height, sha256
    attrs: dict[str, Any] = {}  # scores, provenance, and keys of the dataset's own rows

    @property
    def n_marks(self) -> int:
        """Image parts in the messages."""
        return sum(part.type == "image" for message in self.messages for part in message.content)


def problem(messages: list[Message], n_images: int) -> str | None:
    """The reason to drop a sample with these messages, or None when it can be trained on."""
    if not messages:
        return "no_messages"
    if not any(m.role == "assistant" for m in messages):
        return "no_answer"
    marks = 0
    for message in messages:
        has_content = False
        for part in message.content:
            if part.type == "image":
                marks += 1
                has_content = True
            elif not has_content:
                has_content = part.text is not None and part.text != "" and not part.text.isspace()
        if not has_content:
            return "empty_answer" if message.role == "assistant" else "empty_question"
    return "image_marks" if marks != n_images else None


_encoder = msgspec.json.Encoder()
_messages = msgspec.json.Decoder(list[Message])
_record = msgspec.json.Decoder(Record)


def encode(value: Any) -> bytes:
    """Compact JSON of records, messages and plain values; dictionaries keep their order."""
    return _encoder.encode(value)


def decode_messages(data: bytes | str) -> list[Message]:
    """The messages in a JSON text. Raises msgspec.DecodeError when it isn't a list of messages."""
    return _messages.decode(data)


def decode(data: bytes) -> Record:
    """The record in a `<key>.json`. Raises SourceError when the bytes aren't a record."""
    try:
        return _record.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"not a datakit record: {error}") from error
