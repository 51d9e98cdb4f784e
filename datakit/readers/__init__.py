"""Readers: one module for each upstream format. Adding a format is adding a file, here or to `readers/` of a catalogue.

A file in a user's catalogue comes before ours of the same name; datakit/process/usercode.py says what it may import.
A module has `VERSION`, raised when its rows change, `SCHEMA` of the table that comes out, and one of

    read(row, number) -> Row | str             one object of upstream's; a str is the reason to drop it
    reading(about) -> read                     returns such a function for one file, when it depends on the file
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

from datakit.catalogue.manifest import Manifest
from datakit.errors import ManifestError, shortlist
from datakit.formats.jsonfile import RepairedRow
from datakit.formats.parquetrows import UnreadableRow
from datakit.records import attributes
from datakit.records.record import Message


class About(NamedTuple):
    """What a reader is told about the file that it reads."""

    dataset: str
    file: str  # as the manifest names it
    beside: bytes | None  # the file beside it that the manifest asks for
    columns: dict[str, str]  # [annotations.columns]
    separator: str = "\n"  # Listing's


def load(manifest: Manifest) -> ModuleType:
    """The reader module of a manifest. Raises ManifestError when it reads another format, or isn't a reader."""
    module = import_module(manifest.reader_module or f"datakit.readers.{manifest.reader}")
    by_row = hasattr(module, "read") or hasattr(module, "reading")
    if not (by_row or (manifest.annotations.format == "parquet" and hasattr(module, "batches"))):
        raise ManifestError(
            f"manifest {manifest.name!r}: reader {manifest.reader!r} doesn't read {manifest.annotations.format!r}; "
            "choose another reader or format"
        )
    if manifest.reader_module:
        _check(module)
    return module


def schema(manifest: Manifest) -> pa.Schema:
    """The columns of a listing: the reader's, and the attributes that the manifest names."""
    found: pa.Schema = load(manifest).SCHEMA
    for name, kind in manifest.annotations.attributes.items():
        found = found.append(pa.field(name, attributes.arrow_type(kind)))
    return found


def reading(manifest: Manifest, about: About) -> Callable[[Any, int], Any]:
    """The function that reads the rows of a file, with the attributes that the manifest names.

    Each repair of a row is named in its attribute `repairs`; to the reader's own these are added:

    surrogate    half of a surrogate pair became U+FFFD, because it can't be encoded as UTF-8
    attribute    a value of another type than the manifest says became null
    null_key     a key of the JSON has the value null, and is taken for absent
    """
    module = load(manifest)
    kinds, is_json = manifest.annotations.attributes, manifest.annotations.format == "json"
    read: Callable[[Any, int], Any] = module.reading(about) if hasattr(module, "reading") else module.read
    if manifest.reader_module:
        read = _check_answers(read, module)

    def read_with_repairs(row: Any, number: int) -> Any:
        if isinstance(row, UnreadableRow):
            return row.reason
        record = read(row, number)
        if isinstance(record, str):
            return record
        repairs = ["surrogate"] if isinstance(row, RepairedRow) and "repairs" in module.SCHEMA.names else []
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

    return read_with_repairs


def _check(module: ModuleType) -> None:
    """Raises ManifestError for a user's reader without a valid VERSION and SCHEMA."""
    version, schema = getattr(module, "VERSION", None), getattr(module, "SCHEMA", None)
    if not isinstance(version, int):
        raise ManifestError(f"{module.__file__}: a reader has VERSION, a whole number, not {version!r}")
    names = schema.names if isinstance(schema, pa.Schema) else []
    if names[:2] != ["key", "messages"] or "images" not in names:
        raise ManifestError(
            f"{module.__file__}: a reader has SCHEMA, a pyarrow.schema whose columns are key, messages, images "
            f"(datakit.records.tables.REFS) and its own, not {shortlist(names) or repr(schema)}"
        )


def _check_answers(read: Callable[[Any, int], Any], module: ModuleType) -> Callable[[Any, int], Any]:
    """A user's `read`, with its answers checked."""
    own = set(module.SCHEMA.names) - {"key", "messages", "images"}

    def checked_read(row: Any, number: int) -> Any:
        found = read(row, number)
        if isinstance(found, str):
            return found
        messages, images, attrs = (getattr(found, name, None) for name in ("messages", "images", "attrs"))
        if not (_is_list_of(messages, Message) and _is_list_of(images, str) and isinstance(attrs, dict)):
            raise ManifestError(
                f"{module.__file__}: row {number}: a reader answers with a Row of messages, images and attrs "
                f"(datakit.readers.llava), or with a reason to drop it, not {found!r:.100}"
            )
        if odd := set(attrs) - own:
            raise ManifestError(f"{module.__file__}: row {number}: attribute {min(odd)!r} is no column of SCHEMA")
        return found

    return checked_read


def _is_list_of(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)
