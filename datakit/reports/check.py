"""Checks: what is wrong, or only odd, in a dataset's rows and pictures, before anything is made of them.

1. each row as upstream has it goes through the dataset's reader, which says whether it is kept (`turns` says why not);
2. each picture of a kept row is looked up in the indexes of the archives, and its first bytes are read (`pictures`);
3. each thing found is counted under one name, with five examples.

Memory is bounded: ids are kept as 64-bit hashes, and nothing else grows with the rows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from datakit import readers
from datakit.engine.build import Build
from datakit.engine.work import Progress, Work
from datakit.errors import UsageError
from datakit.reports.check_keys import Keys
from datakit.reports.check_pictures import Pictures, pictures_of
from datakit.reports.check_turns import EXPLAINS, findings, id_of
from datakit.upstream.annotations import about as about_shard
from datakit.upstream.annotations import numbered_rows, row_counts

EXAMPLES = 5
_BLOCK = 1 << 16  # rows whose ids are compared at once
_SHORT = 100  # characters of a value in an example

# name -> what it is, and what becomes of the row: "dropped", "repairable" (dropped until --repair), "left out" by
# choice, or how it is kept
FINDINGS: dict[str, tuple[str, str]] = {
    "malformed": ("row of another form", "dropped"),
    "unknown_role": ("turn of no role that is known", "dropped"),
    "first_turn": ("first turn isn't human", "dropped"),
    "roles": ("roles that don't alternate", "dropped"),
    "empty_value": ("empty value", "dropped"),
    "zero_words": ("no word in any turn", "dropped"),
    "image_marks": ("<image> marks aren't as many as images", "dropped"),
    "missing": ("missing picture", "dropped"),
    "no_source": ("picture under no known prefix", "dropped"),
    "outside": ("path that leaves the folder of pictures", "dropped"),
    "left_out": ("picture of a source that --without gives up", "left out"),
    "wrong_zip": ("wrong archive: it has few of its pictures or none", "dropped"),
    "html": ("HTML instead of a picture", "dropped"),
    "unreadable": ("unreadable picture", "dropped"),
    "extension": ("wrong extension: the picture is there under another", "repairable"),
    "extension_known": ("wrong extension: the picture is there under another", "kept, found by its stem"),
    "gif_named_jpg": ("GIF named .jpg", "kept, packed as JPEG"),
    "other_type": ("wrong extension: the content is of another type", "kept, read by content"),
    "no_mark": ("picture without a mark", "kept, mark put first"),
    "several_marks": ("several <image> in a turn", "kept, as several"),
    "mark_in_answer": ("<image> in an answer", "kept, as text"),
    "mark_without_picture": ("<image> in a row without picture", "kept, as text"),
    "duplicate_id": ("duplicate id", "kept, keys are by row"),
    "id_missing": ("missing id", "kept, id is the row's number"),
    "id_key": ("idx for id", "kept, read as id"),
    "id_type": ("id isn't a string", "kept, id as text"),
    "surrogate": ("half of a surrogate pair", "kept, as U+FFFD"),
    "role_name": ("role by another name, such as user for human", "kept, read as human or gpt"),
    "attribute": ("value of another type than the manifest says", "kept, without it"),
    "null_key": ("key whose value is null", "kept, without it"),
    "unkept_key": ("key that isn't kept", "kept, without it"),
}

SHOWN_BY_REPAIRS = ("surrogate", "null_key")  # findings that only the `repairs` of a row's record show


@dataclass(frozen=True)
class Example:
    """A row in which a thing was found, and the value that shows it."""

    where: str  # row 17, or shard 3 row 17
    id: str
    value: str


@dataclass
class Finding:
    """One kind of thing found: how often, and the first examples."""

    name: str
    count: int = 0
    examples: list[Example] = field(default_factory=list)

    @property
    def what(self) -> str:
        return FINDINGS.get(self.name, (self.name.replace("_", " "), ""))[0]

    @property
    def effect(self) -> str:
        return FINDINGS.get(self.name, ("", "dropped"))[1]


@dataclass
class Report:
    """What was found in a dataset. `dropped` are rows that would be lost to faults, as things are."""

    dataset: str
    rows: int = 0
    dropped: int = 0
    repairable: int = 0  # of the dropped, rows that --repair would keep
    left_out: int = 0  # rows without a fault whose pictures are of a source that was given up
    found: dict[str, Finding] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, count: int = 1, *, where: str = "", id: str = "", value: object = "") -> None:
        finding = self.found.setdefault(name, Finding(name))
        finding.count += count
        if where and len(finding.examples) < EXAMPLES:
            finding.examples.append(Example(where, shorten(id), shorten(value)))

    def findings(self) -> list[Finding]:
        """The findings: first those that cost rows, then by count."""
        order = ["dropped", "repairable", "left out"]
        return sorted(
            self.found.values(), key=lambda f: (order.index(f.effect) if f.effect in order else 3, -f.count, f.name)
        )

    @property
    def kept(self) -> int:
        """Rows that are kept as things are."""
        return self.rows - self.dropped - self.left_out

    def mend(self) -> int:
        """Counts the repairable rows as kept, for --repair keeps them; returns how many there were."""
        rows, self.repairable = self.repairable, 0
        self.dropped -= rows
        if (before := self.found.pop("extension", None)) is not None:
            after = self.found.setdefault("extension_known", Finding("extension_known"))
            after.count += before.count
            after.examples = [*after.examples, *before.examples][:EXAMPLES]
        return rows

    def json_object(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "rows": self.rows,
            "dropped": self.dropped,
            "repairable": self.repairable,
            "left_out": self.left_out,
            "findings": [
                {
                    "name": f.name,
                    "what": f.what,
                    "effect": f.effect,
                    "count": f.count,
                    "examples": [vars(example) for example in f.examples],
                }
                for f in self.findings()
            ],
            "notes": self.notes,
        }


def shorten(value: object) -> str:
    """A value in one line, not too long to print."""
    text = " ".join(value.split()) if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 1]}…"


def check(
    build: Build, *, full: bool = False, shards: list[int] | None = None, progress: Progress | None = None
) -> Report:
    """Reads a dataset's rows and the first bytes of its pictures (with `full`, all bytes); returns what is wrong.

    Downloads what isn't here. Raises UsageError for a dataset whose files only its repository lists, and for unknown
    shards.
    """
    if build.manifest.annotations.glob:
        raise UsageError(
            f"{build.manifest.name!r} is chosen from files that only its repository lists, so there is nothing to "
            f"check before the choice: `datakit fetch {build.manifest.name}` counts what it drops"
        )
    build.permit()
    for step in build.steps:
        step.stage.check(build.work(step))  # what a person has to get is said before anything is downloaded
    first = build.steps[0]
    work = build.work(first, progress)
    first.stage.prepare(work)
    known = first.stage.shards(work)
    report = Report(build.manifest.name)
    if shards is not None and not set(shards) <= set(known):
        raise UsageError(f"{build.manifest.name!r} has no shards {sorted(set(shards) - set(known))[:5]}")
    if build.manifest.annotations.cut and shards is None:
        limit = build.limit
        work.progress.rows_to_come("check", sum(min(n, limit or n) for n in row_counts(work).values()))
    with pictures_of(build, full=full, progress=work.progress) as pictures:
        checking = _Checking(work, report, pictures)
        separator = first.stage.identity(build.manifest).get("separator", "\n")  # named where it isn't the usual one
        for shard in known if shards is None else shards:
            if hasattr(readers.load(build.manifest), "batches"):
                checking.check_columns(shard)
            else:
                checking.check_shard(shard, about_shard(work, shard, separator))
        checking.close()
    report.notes += pictures.notes
    return report


class _Checking:
    """The rows of a dataset on their way through a check."""

    def __init__(self, work: Work, report: Report, pictures: Pictures) -> None:
        self._work, self._report, self._pictures = work, report, pictures
        self._seen = np.empty(0, np.uint64)  # hashes of ids, sorted
        self._ids: list[tuple[str, str]] = []  # (where, id) of the rows since
        self._keys = Keys(work.manifest)

    def check_columns(self, shard: int) -> None:
        """Checks a shard whose reader works by columns: counts findings, without examples."""
        work, rejected = self._work, Counter[str]()
        path = work.download(work.manifest.address(work.manifest.file_of(shard))).path

        def reject(reason: str, n: int) -> None:
            rejected[reason] += n

        kept = 0
        for batch in readers.load(work.manifest).batches(path, work.limit, work.manifest.key, reject):
            kept += batch.num_rows
            work.progress.rows("check", batch.num_rows)
        for reason, n in rejected.items():
            if n:
                self._report.add(reason, n)
        self._report.rows += kept + rejected.total()
        self._report.dropped += rejected.total()

    def check_shard(self, shard: int, about: readers.About) -> None:
        cut, unreported = self._work.manifest.annotations.cut, 0
        read = readers.reading(self._work.manifest, about)
        for number, row in numbered_rows(self._work, shard):
            self._row(f"row {number}" if cut else f"shard {shard} row {number}", row, read(row, number), about)
            unreported += 1
            if unreported == 1000:
                self._work.progress.rows("check", unreported)
                unreported = 0
        self._work.progress.rows("check", unreported)

    def _row(self, where: str, row: Any, record: Any, about: readers.About) -> None:
        self._report.rows += 1
        id = id_of(row)
        found = list(findings(row))
        if isinstance(record, str):
            # The other findings are of rows that are kept.
            found = [(name, value) for name, value in found if FINDINGS[name][1] == "dropped"]
            if EXPLAINS.get(record, {record}).isdisjoint(name for name, _ in found):
                found.append((record, ""))
            self._report.dropped += 1
        else:
            seen = list(self._pictures.of_row(row, record.images, about))
            effects = {FINDINGS[name][1] for name, _ in seen}
            if "dropped" in effects:
                self._report.dropped += 1
            elif "left out" in effects:
                self._report.left_out += 1
            elif "repairable" in effects:
                self._report.dropped += 1
                self._report.repairable += 1
            found += seen
            found += self._keys.findings(row)
            repairs = record.attrs.get("repairs") or ()
            found += [(name, "") for name in SHOWN_BY_REPAIRS if name in repairs]
        for name, value in found:
            self._report.add(name, where=where, id=id or "", value=value)
        if id is not None:
            self._ids.append((where, id))
            if len(self._ids) == _BLOCK:
                self._compare()

    def _compare(self) -> None:
        """Finds the ids of the last block that came before, and forgets all but their hashes."""
        hashes = np.array([xxhash.xxh3_64_intdigest(id.encode("utf-8", "replace")) for _, id in self._ids], np.uint64)
        fresh, first = np.unique(hashes, return_index=True)
        again = np.ones(len(hashes), bool)
        again[first] = _is_among(fresh, self._seen)
        for place in np.flatnonzero(again).tolist():
            where, id = self._ids[place]
            self._report.add("duplicate_id", where=where, id=id, value=id)
        self._seen = np.union1d(self._seen, fresh)
        self._ids.clear()

    def close(self) -> None:
        self._compare()
        self._report.notes += self._keys.notes()
        for name, count, value in self._pictures.wrong_archives():
            self._report.add("wrong_zip", count, where=f"source {name}", value=value)


def _is_among(values: npt.NDArray[np.uint64], ordered: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which values are in a sorted array."""
    if not len(ordered):
        return np.zeros(len(values), bool)
    place = np.searchsorted(ordered, values)
    return np.asarray(ordered[np.minimum(place, len(ordered) - 1)] == values)
