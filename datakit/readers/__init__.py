"""Readers: one module for each upstream format. Adding a format is adding a file.

A module has `VERSION`, raised when its rows change, `SCHEMA` of the table that comes out, and one of

    read(row, number) -> Row | str             one object of upstream's; a str is the reason to drop it
    reading(about) -> read                     such a function, made for one file, when there is more to know
    batches(path, stop, dataset, reject) -> RecordBatches    a Parquet file by columns

One whose rows hold their pictures also has

    pictures(row, about) -> list[bytes | str]  as many as the Row has images; a str is base64
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

from datakit.errors import ManifestError
from datakit.jsonfile import Mended
from datakit.manifest import Manifest


class About(NamedTuple):
    """What a reader may want to know of the file that it reads."""

    dataset: str
    file: str  # as the manifest names it
    beside: bytes | None  # the file beside it that the manifest asks for
    columns: dict[str, str]  # [annotations.columns]
    separator: str = "\n"  # Listing's


def load(manifest: Manifest) -> ModuleType:
    """The reader module of a manifest. Raises ManifestError when it reads another format."""
    module = import_module(f"datakit.readers.{manifest.reader}")
    by_row = hasattr(module, "read") or hasattr(module, "reading")
    if not (by_row or (manifest.annotations.format == "parquet" and hasattr(module, "batches"))):
        raise ManifestError(
            f"manifest {manifest.name!r}: reader {manifest.reader!r} doesn't read {manifest.annotations.format!r}; "
            "choose another reader or format"
        )
    return module


def reading(manifest: Manifest, about: About) -> Callable[[Any, int], Any]:
    """The function that reads the rows of a file; what it repaired of one is in its attribute `repairs`.

    surrogate    half of a surrogate pair became U+FFFD, for it could never be written again
    """
    module = load(manifest)
    read: Callable[[Any, int], Any] = module.reading(about) if hasattr(module, "reading") else module.read

    def noted(row: Any, number: int) -> Any:
        record = read(row, number)
        if isinstance(row, Mended) and not isinstance(record, str):
            record.attrs["repairs"] = [*(record.attrs.get("repairs") or []), "surrogate"]
        return record

    return noted
