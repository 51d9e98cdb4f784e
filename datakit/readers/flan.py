"""FLAN's Parquet: a question in `inputs`, its answer in `targets`, text only.

Both lose the white space at their end, as in VILA's LazyVFlanDataset. An `<image>` in them is text: there is no
picture.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from datakit.readers.llava import Row
from datakit.records.record import Message, Part, problem
from datakit.records.tables import REFS

VERSION = 1
COLUMNS = ("inputs", "targets")  # what is read of a file
SCHEMA = pa.schema([("key", pa.string()), ("messages", pa.string()), ("images", REFS), ("id", pa.string())])


def read(row: Any, number: int) -> Row | str:
    """One row of the file, or the reason for which it is dropped."""
    turns = [row.get(name) for name in COLUMNS] if isinstance(row, dict) else []
    texts = [Part(type="text", text=text.rstrip()) for text in turns if isinstance(text, str)]
    if len(texts) != len(COLUMNS):
        return "malformed"
    messages = [Message(role="user", content=texts[:1]), Message(role="assistant", content=texts[1:])]
    wrong = problem(messages, 0)
    # The id is that of sft/preprocess_flan.py, which counts the rows that it chose.
    return wrong or Row(messages, [], {"id": f"text_flan_{number:08d}"})
