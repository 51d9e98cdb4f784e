"""What is wrong or odd in a row of LLaVA's form, and what LLaVA's own trainer does with it (docs/upstreams.md U2).

An empty value masks the whole sample, roles that don't alternate stop the training (U6), several marks of a turn
become one (U4), and a sample without a word stops the sampler (U7).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from datakit.readers.llava import MARK, NAMES, ROLES

# The reason by which the reader drops a row -> the findings that say the same in more words.
EXPLAINS = {
    "roles": {"roles", "first_turn"},
    "empty_answer": {"empty_value"},
    "empty_question": {"empty_value"},
}


def id_of(row: Any) -> str | None:
    """What a row is called, as text; None when it has no name."""
    if not isinstance(row, dict):
        return None
    found = row.get("id")
    found = row.get("idx") if found is None else found
    return None if found is None else str(found)


def findings(row: Any) -> Iterator[tuple[str, object]]:
    """(finding, offending value) of a row; none for a row of another form, which its reader judges."""
    if not isinstance(row, dict) or not isinstance(row.get("conversations"), list):
        return
    yield from _names(row)
    turns = row["conversations"]
    if not all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns):
        return
    said_by = [str(turn.get("from")) for turn in turns]
    values: list[str] = [turn["value"] for turn in turns]
    if not set(said_by) <= ROLES.keys():
        return
    roles = [NAMES[ROLES[name]] for name in said_by]
    if roles != said_by:
        yield "role_name", " ".join(said_by[:6])
    image = row.get("image")
    n_images = len(image) if isinstance(image, list) else int(isinstance(image, str))
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if spoken[:1] not in ([], ["human"]):
        yield "first_turn", " ".join(roles[:6])
    if spoken[-1:] != ["gpt"] or "system" in spoken or any(a == b for a, b in pairwise(spoken)):
        yield "roles", " ".join(roles) or "no turn"
    asked = [value.count(MARK) for role, value in zip(roles, values, strict=True) if role == "human"]
    yield from _marks(roles, values, asked, n_images)
    marked_later = roles.index("human") if n_images and not any(asked) and "human" in roles else None
    for place, (role, value) in enumerate(zip(roles, values, strict=True)):
        if not value.strip() and place != marked_later:  # that one gets the picture's mark
            yield "empty_value", f"turn {place}, of {role}"
            break
    if not any(value.split() for value in values):
        yield "zero_words", f"{len(values)} turns"


def _names(row: dict[str, Any]) -> Iterator[tuple[str, object]]:
    found = row.get("id")
    if found is None:
        found = row.get("idx")
        yield ("id_missing", "") if found is None else ("id_key", found)
    if found is not None and not isinstance(found, str):
        yield "id_type", found


def _marks(roles: list[str], values: list[str], asked: list[int], n_images: int) -> Iterator[tuple[str, object]]:
    if n_images and not any(asked):
        yield "no_mark", next((value for role, value in zip(roles, values, strict=True) if role == "human"), "")
    elif n_images and sum(asked) != n_images:
        yield "image_marks", f"marks {sum(asked)}, images {n_images}"
    elif n_images and max(asked) > 1:
        yield "several_marks", f"{max(asked)} in a turn"
    elif not n_images and any(asked):
        yield "mark_without_picture", next(value for value in values if MARK in value)
    for role, value in zip(roles, values, strict=True):
        if role == "gpt" and MARK in value:
            yield "mark_in_answer", value
            break
