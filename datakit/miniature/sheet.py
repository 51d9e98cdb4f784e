"""The JSON datasets of the miniature: rows by file, what is odd about some of them, and their pictures."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from datakit.errors import UsageError, nearest
from datakit.miniature import pictures
from datakit.miniature.instruct import InstructExpected, Member
from datakit.miniature.pictures import Drawing, drawing
from datakit.miniature.questions import Turns

# What is wrong with a picture, and the reason its row is dropped for, if it is.
FLAWS: Mapping[str, tuple[Callable[[Drawing], bytes] | None, str | None]] = {
    "missing": (None, "missing"),
    "truncated": (pictures.truncated_jpeg, "truncated"),
    "zero_bytes": (lambda of: b"", "not_an_image"),
    "html": (lambda of: pictures.HTML, "not_an_image"),
    "huge": (lambda of: pictures.huge_png(), "pixels"),
    "gif_named_jpg": (pictures.gif, None),
    "cmyk": (pictures.cmyk, None),
    "png_palette": (pictures.palette_png, None),
}


@dataclass(kw_only=True)
class Sheet:
    """The rows of one file."""

    records: list[dict[str, Any]] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)  # of each row's picture, "" without one
    odd: dict[int, tuple[str, str | None]] = field(default_factory=dict)  # row -> what is odd, why it is dropped

    def add(self, record: dict[str, Any], source: str = "", odd: str = "", reason: str | None = None) -> None:
        if odd:
            self.odd[len(self.records)] = (odd, reason)
        self.records.append(record)
        self.sources.append(source)

    def array(self, *, indent: int | None = None) -> bytes:
        return json.dumps(self.records, indent=indent, ensure_ascii=False).encode()

    def lines(self) -> bytes:
        return b"".join(json.dumps(record).encode() + b"\n" for record in self.records)


@dataclass(kw_only=True)
class Dataset:
    """The files of a dataset in the order in which its rows are numbered, and members for its archives."""

    name: str
    sheets: dict[str, Sheet] = field(default_factory=dict)
    subsets: dict[str, tuple[str, ...]] = field(default_factory=dict)  # name -> files
    members: dict[str, list[Member]] = field(default_factory=dict)  # by source

    def expected(self, subset: str = "") -> InstructExpected:
        """What a correct tool finds in the dataset, or in a part of it; keys number the rows of that part."""
        if subset and subset not in self.subsets:
            raise UsageError(f"The miniature of {self.name} has no subset {subset!r}; {nearest(subset, self.subsets)}")
        files = self.subsets[subset] if subset else tuple(self.sheets)
        key = f"{self.name}-{subset}" if subset else self.name
        return expected_from(key, [self.sheets[file] for file in files])

    def draw(self, source: str, name: str, of: Drawing, flaw: str = "") -> str | None:
        """Adds a picture, unless it is to be missing, to a source's members; returns why its row is dropped or None."""
        make, reason = FLAWS[flaw] if flaw else (Drawing.jpeg, None)
        if make is not None:
            self.members.setdefault(source, []).append((name, functools.partial(make, of)))
        return reason


def expected_from(key: str, sheets: Iterable[Sheet]) -> InstructExpected:
    rows, faults, dropped, sources = 0, {}, {}, {}
    for sheet in sheets:
        for row, source in enumerate(sheet.sources):
            name = f"{key}-{rows + row:09d}"
            sources[name] = source
            if row in sheet.odd:
                faults[name], reason = sheet.odd[row]
                if reason:
                    dropped[name] = reason
        rows += len(sheet.records)
    kept = tuple(name for name in sources if name not in dropped)
    return InstructExpected(rows=rows, kept=kept, dropped=dropped, faults=faults, sources=sources)


def small(chance: random.Random) -> Drawing:
    """A small drawing, which is quickly made: for most datasets the texts matter, not the pixels."""
    return drawing(chance, least_px=48, most_px=144)


def conversation(turns: Turns, *, image_first: bool | None = None) -> list[dict[str, str]]:
    """Turns as LLaVA's files have them, with `<image>` before or after the first question, or without."""
    conversations = [
        {"from": role, "value": value} for turn in turns for role, value in zip(("human", "gpt"), turn, strict=True)
    ]
    if image_first is not None:
        first = conversations[0]["value"]
        conversations[0]["value"] = f"<image>\n{first}" if image_first else f"{first}\n<image>"
    return conversations
