"""Readers: one module for each upstream format. Adding a format is adding a file.

A module has `VERSION`, raised when its rows change, and one of

    read(row, number) -> Row | str                   one object of a JSON file; a str is the reason to drop it
    batches(path, stop, dataset, reject) -> RecordBatches    a Parquet file by columns
    SCHEMA                                           of the table that comes out
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from datakit.errors import ManifestError
from datakit.manifest import Manifest


def load(about: Manifest) -> ModuleType:
    """The reader module of a manifest. Raises ManifestError when it reads another format."""
    module = import_module(f"datakit.readers.{about.reader}")
    does, wanted = {"json": ("read", "JSON"), "parquet": ("batches", "Parquet")}[about.annotations.format]
    if not hasattr(module, does):
        raise ManifestError(
            f"manifest {about.name!r}: reader {about.reader!r} doesn't read {wanted}; choose another reader or format"
        )
    return module
