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

import pyarrow as pa

from datakit import attributes
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


def schema(manifest: Manifest) -> pa.Schema:
    """The columns of a listing: the reader's, and the attributes that the manifest names."""
    found: pa.Schema = load(manifest).SCHEMA
    for name, kind in manifest.annotations.attributes.items():
        found = found.append(pa.field(name, attributes.arrow(kind)))
    return found


def reading(manifest: Manifest, about: About) -> Callable[[Any, int], Any]:
    """The function that reads the rows of a file, with the attributes that the manifest names.

    What was repaired of a row is named in its attribute `repairs`; besides what the reader has:

    surrogate    half of a surrogate pair became U+FFFD, for it could never be written again
    attribute    a value of another type than the manifest says became null
    null_key     a key of JSON is there with null, which is kept as if it weren't
    """
    module = load(manifest)
    kinds, is_json = manifest.annotations.attributes, manifest.annotations.format == "json"
    read: Callable[[Any, int], Any] = module.reading(about) if hasattr(module, "reading") else module.read

    def noted(row: Any, number: int) -> Any:
        record = read(row, number)
        if isinstance(record, str):
            return record
        repairs = ["surrogate"] if isinstance(row, Mended) else []
        if kinds:
            found, misfit = attributes.values(row, kinds)
            record.attrs.update(found)
            if misfit:
                repairs.append("attribute")
            if is_json and any(row.get(name, "") is None for name in kinds):
                repairs.append("null_key")
        if repairs:
            record.attrs["repairs"] = [*(record.attrs.get("repairs") or []), *repairs]
        return record

    return noted
