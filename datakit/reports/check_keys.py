"""The keys of rows that are kept as attributes, or could be: values of another type, and keys that nobody named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from datakit.catalogue.manifest import Manifest
from datakit.records import attributes

SHOWN = 20  # keys for which a note says how to keep them
FEW = 5  # values of each key that may become examples


class Keys:
    """Counts the keys of a dataset's rows that aren't kept."""

    def __init__(self, manifest: Manifest) -> None:
        rows = manifest.annotations
        self._kinds = rows.attributes
        self._taken = attributes.used_keys(manifest.reader, rows.columns)
        self._known = self._taken | self._kinds.keys()
        self._looks = manifest.reader in attributes.READERS
        self._unkept: Counter[str] = Counter()
        self._beyond = 0  # rows of keys that came when there were too many to remember

    def findings(self, row: Any) -> Iterator[tuple[str, object]]:
        """(finding, key and value) of a row that is kept."""
        if not self._looks:
            return
        for name, value in attributes.misfits(row, self._kinds):
            yield "attribute", f"{name}, {self._kinds[name]}: {value!r}"
        for name in row:
            if name in self._known:
                continue
            if name in self._unkept or len(self._unkept) < attributes.MOST_SEEN:
                self._unkept[name] += 1
            else:
                self._beyond += 1
            few = self._unkept[name] <= FEW  # a value may be a picture, which takes long to write out
            yield "unkept_key", f"{name}: {row[name]!r}" if few else name

    def notes(self) -> list[str]:
        """How each key can be kept, the most frequent first."""
        said = []
        for name, count in self._unkept.most_common(SHOWN):
            why = attributes.why_refused(name, self._taken)
            then = f"it can't be under its name, {why}" if why else "name it in annotations.attributes"
            said.append(f"key {name!r} isn't kept, in {count:,} rows: {then}")
        more = len(self._unkept) - SHOWN
        if more > 0:
            said.append(f"{'more than ' if self._beyond else ''}{more:,} other keys aren't kept either")
        return said
