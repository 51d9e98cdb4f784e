"""A recipe with a filter of one's own: rows whose answers all are of a word or two are left out.

A recipe is a file pipelines/NAME.py in a folder that DATAKIT_CATALOGUE names, here examples/pipelines/answers.py.

    export DATAKIT_CATALOGUE=shapes:examples
    datakit run answers
"""

import json
from dataclasses import dataclass

import pyarrow as pa

from datakit import Filter, Step, like


@dataclass(frozen=True, kw_only=True)
class LongAnswers(Filter):
    """Drops rows without an answer of at least `least_words` words, counted as `short_answers`."""

    # Fields are written to recipe.json. With another number, the folder that was made is refused, with the difference.
    least_words: int

    def reasons(self, batch: pa.RecordBatch) -> list[str | None]:
        """Called with some thousand rows at a time: for each, why it is dropped, or None to keep it."""
        return [None if self._says_enough(text) else "short_answers" for text in batch["messages"].to_pylist()]

    def _says_enough(self, messages: str) -> bool:
        # [{"role": "assistant", "content": [{"type": "text", "text": "A red disc."}]}, …]
        for message in json.loads(messages):
            if message["role"] == "assistant":
                text = " ".join(part.get("text", "") for part in message["content"])
                if len(text.split()) >= self.least_words:
                    return True
        return False


# The steps that the recipe `inline` has for the dataset, and one more: a choice goes just before the fetch, so that no
# picture is fetched for a row that is dropped.
STEPS = {"shapes": like("inline", Step(name="long-answers", stage=LongAnswers(least_words=3)))}

# What is trained on, by phase: `datakit run answers` ends with mixes/answers-train/mix.json.
MIXES = {"train": "shapes"}
