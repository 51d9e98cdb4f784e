"""WebDataset: a plain tar's members, grouped into samples.

A member's key is its name up to the first dot of the base name, and its kind is the rest in lower case, as the
webdataset library cuts them: `a/0001.seg.PNG` is the `seg.png` of `a/0001`. Members of a sample are looked up by the
tar's headers, so they needn't be adjacent; only one sample's bytes are in memory.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datakit.formats import archives
from datakit.formats.archives import Member

log = logging.getLogger(__name__)

KEY = "__key__"


def rows(path: Path | str, counted: Counter[str] | None = None) -> Iterator[dict[str, Any]]:
    """The samples of a tar, {"__key__": "0001", "jpg": bytes, "json": bytes}, in the order of their first members.

    `counted` counts what is unusual: members without a kind, members that are there twice (the first is taken),
    samples joined from members that weren't adjacent, and further samples of the same key. Raises ArchiveError for a
    damaged tar before it gives any sample.
    """
    path = Path(path)
    counted = Counter() if counted is None else counted
    samples = _group_members(path, counted)
    if counted:
        log.warning("%s: %s", path.name, ", ".join(f"{what} {n}" for what, n in sorted(counted.items())))
    with path.open("rb", buffering=0) as file:
        for key, members in samples:
            yield {KEY: key} | {kind: archives.read(file, member) for kind, member in members.items()}


def split(name: str) -> tuple[str, str]:
    """(key, kind) of a member's name; no kind when the name has no dot."""
    folder, slash, base = name.rpartition("/")
    stem, _, kind = base.partition(".")
    return f"{folder}{slash}{stem}", kind.lower()


def _group_members(path: Path, counted: Counter[str]) -> list[tuple[str, dict[str, Member]]]:
    """The (key, members by kind) of each sample; takes about 300 bytes of memory per member."""
    samples: list[tuple[str, dict[str, Member]]] = []
    latest: dict[str, dict[str, Member]] = {}  # of each key, the sample that its next member may belong to
    before = None
    for member in archives.members(path, counted):
        key, kind = split(member.name)
        if not kind or key.endswith("/") or not key:
            counted["no_kind"] += 1
            continue
        sample = latest.get(key)
        if sample is not None and key != before:
            if kind in sample:
                counted["same_key"] += 1
                sample = None
            else:
                counted["apart"] += 1
        if sample is None:
            sample = latest[key] = {}
            samples.append((key, sample))
        if kind in sample:
            counted["same_member"] += 1
        else:
            sample[kind] = member
        before = key
    return samples
