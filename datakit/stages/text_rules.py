"""DropText: rules on what is said of a picture, for captions that name files or repeat themselves.

VILA cleaned ShareGPT4V's captions of these two (its README: file names `(sa_XXXX)` and repetitive responses) by a
script that isn't published. The rules here are our own reading of that sentence; their counts need not be upstream's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datakit.engine.stage import Filter
from datakit.errors import UsageError, nearest
from datakit.records.record import decode_messages

# Nobody who describes a picture says a sentence this long three times; "It is red." may come so often.
SENTENCE_WORDS, SENTENCE_TIMES = 4, 3
# A run of words that repeats one phrase, also without a full stop between.
LOOP_WORDS, LOOP_TIMES = 24, 3
MAX_PHRASE = 1_000  # words; bounds the work on a text of any length

_SAM = re.compile(r"\bsa_\d", re.IGNORECASE)
_END = re.compile(r"[.!?]+[\"')\]]*(?:\s+|$)|\n+")
_WORD = re.compile(r"\w+")


def sa_id(text: str) -> bool:
    """Whether a text names a file of SA-1B, whose pictures are called `sa_545504.jpg`."""
    return "_" in text and _SAM.search(text) is not None


def repetition(text: str) -> bool:
    """Whether a text repeats itself.

    Either a sentence of at least 4 words is in it 3 times or more; or a run of at least 24 words is one phrase of at
    most 1,000 words, 3 times or more without a break. Case is ignored, and so is punctuation in a run.
    """
    text = text.lower()
    return _repeats_a_sentence(text) or _has_a_loop(_WORD.findall(text))


def _repeats_a_sentence(text: str) -> bool:
    sentences = _END.split(text)
    if len(sentences) - len(set(sentences)) < SENTENCE_TIMES - 1:
        return False
    times = Counter(sentences)
    return any(n >= SENTENCE_TIMES and len(_WORD.findall(s)) >= SENTENCE_WORDS for s, n in times.items())


def _has_a_loop(words: list[str]) -> bool:
    # In such a run of n words at most a third of the 4-grams are new, so at least this many are repeated.
    repeated = LOOP_WORDS - LOOP_WORDS // LOOP_TIMES - 3
    if len(words) < LOOP_WORDS or len(words) - 3 - len(set(zip(words, words[1:], words[2:], words[3:]))) < repeated:
        return False
    numbers: dict[str, int] = {}
    ids = np.array([numbers.setdefault(word, len(numbers)) for word in words], np.int32)
    for phrase in range(1, min(len(words) // LOOP_TIMES, MAX_PHRASE) + 1):
        same = ids[phrase:] == ids[:-phrase]
        long = max(LOOP_WORDS, LOOP_TIMES * phrase) - phrase
        if np.count_nonzero(same) >= long:
            breaks = np.flatnonzero(np.concatenate([[True], ~same, [True]]))
            if int(np.diff(breaks).max()) > long:
                return True
    return False


RULES: dict[str, Callable[[str], bool]] = {"sa_id": sa_id, "repetition": repetition}


@dataclass(frozen=True, kw_only=True)
class DropText(Filter):
    """Drops rows with a picture and an answer that breaks a rule; the reason is the first rule that it breaks.

    Rows without a picture pass: verse and code repeat lines on purpose, and may name any file.
    """

    version: ClassVar[int] = 1
    rules: tuple[str, ...] = ("sa_id", "repetition")

    def __post_init__(self) -> None:
        for name in self.rules:
            if name not in RULES:
                raise UsageError(f"{name!r} isn't a rule of datakit/stages/text_rules.py. {nearest(name, RULES)}")

    def reasons(self, batch: pa.RecordBatch) -> list[str | None]:
        pictures = pc.fill_null(pc.list_value_length(batch["images"]), 0).to_pylist()
        return [
            self._broken_rule(messages) if n else None
            for n, messages in zip(pictures, batch["messages"].to_pylist(), strict=True)
        ]

    def _broken_rule(self, messages: str) -> str | None:
        """The first rule that an answer breaks."""
        answers = [
            " ".join(part.text for part in message.content if part.text)
            for message in decode_messages(messages)
            if message.role == "assistant"
        ]
        return next((name for name in self.rules if any(RULES[name](text) for text in answers)), None)
