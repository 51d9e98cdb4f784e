"""Chat: messages to token ids and labels, by Jinja templates with {% generation %} marks.

A label is learned where the assistant speaks, its end mark included; everything else, and every image token,
is IGNORE. The whole conversation is tokenized in one piece, as at inference, and a token that reaches into
what the assistant says is learned.

A record without a user, such as an image-text pair or an interleaved document, is a text to be continued:
no system prompt, no roles. Each image part becomes the image token, repeated for its patches, in its place.

The text of a special token that stands in what people wrote, such as "<image>" or "</s>", gets a space
after its first character: it stays a text and can't pass for a picture or an end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from datakit.errors import SourceError, UsageError, nearest
from datakit.records.record import Record
from trainer.templates import TEMPLATES

IGNORE = -100
IMAGE = "<image>"


@dataclass(frozen=True)
class Encoded:
    """Token ids and labels of one sample, both (T,) int64, and what was cut to fit."""

    ids: np.ndarray
    labels: np.ndarray
    n_images: int  # the first so many pictures belong to these ids
    cut_tokens: int
    cut_images: int


class Chat:
    """Renders and tokenizes records by one template. Safe to pickle.

    A sample of more than `max_length` tokens loses its end, by whole pictures: one that would be cut
    through is left out. What was cut is counted in `Encoded`.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, template: str, image_tokens: int, max_length: int
    ) -> None:
        if template not in TEMPLATES:
            raise UsageError(f"unknown template {template!r}. {nearest(template, TEMPLATES)}")
        special = {IMAGE, *tokenizer.all_special_tokens}
        special |= {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        self.tokenizer = tokenizer
        self.template = TEMPLATES[template]
        self.image_id = tokenizer.convert_tokens_to_ids(IMAGE)
        self.image_tokens = image_tokens  # per picture
        self.max_length = max_length
        if self.image_id in (None, tokenizer.unk_token_id):
            raise UsageError(f"the tokenizer has no {IMAGE!r} token; a Llava model's own tokenizer has one")
        # Longest first, so that of two that begin alike the whole one is broken.
        self._special = re.compile("|".join(re.escape(s) for s in sorted(special, key=len, reverse=True) if s))

    def render(self, record: Record) -> tuple[str, list[tuple[int, int]]]:
        """The conversation as text, each picture one `<image>`, and the spans that the assistant says."""
        texts, spans = render_jinja_template(
            conversations=[self._messages(record)],
            chat_template=self.template,
            return_assistant_tokens_mask=True,
        )
        return texts[0], [tuple(span) for span in spans[0]]

    def encode(self, record: Record) -> Encoded:
        """Ids and labels of a record. Raises SourceError when its marks don't fit its pictures."""
        text, spans = self.render(record)
        tokens = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        ids = np.array(tokens["input_ids"], np.int64)
        start, end = np.array(tokens["offset_mapping"], np.int64).reshape(-1, 2).T
        is_image = ids == self.image_id
        if is_image.sum() != record.n_marks:
            raise SourceError(
                f"sample {record.key!r} of {record.source!r} has {record.n_marks} image parts, but this "
                f"template shows {is_image.sum()}. They can stand in messages of users and assistants"
            )

        learned = np.zeros(len(ids), bool)
        for first, last in spans:
            learned |= (start < last) & (end > first) & (end > start)
        labels = np.where(learned & ~is_image, ids, IGNORE)

        times = np.where(is_image, self.image_tokens, 1)
        ids, labels = np.repeat(ids, times), np.repeat(labels, times)
        keep = min(len(ids), self.max_length)
        n_images, cut_through = divmod(int((ids[:keep] == self.image_id).sum()), self.image_tokens)
        keep -= cut_through
        return Encoded(
            ids[:keep],
            labels[:keep],
            n_images,
            cut_tokens=len(ids) - keep,
            cut_images=record.n_marks - n_images,
        )

    def _messages(self, record: Record) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = msgspec.to_builtins(record.messages)
        for message in messages:
            for part in message["content"]:
                if part["type"] == "text":
                    part["text"] = self._special.sub(_split_mark, part.get("text") or "")
        return messages


def _split_mark(found: re.Match[str]) -> str:
    return f"{found[0][0]} {found[0][1:]}"
