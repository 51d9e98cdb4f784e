"""Readers: one module for each upstream format. Adding a format is adding a file.

A module has `VERSION`, raised when its rows change, and one of

    read(row, number) -> Row | str                   one object of a JSON file; a str is the reason to drop it
    batches(path, stop, dataset) -> RecordBatches    a Parquet file by columns
    SCHEMA                                           of the table that comes out
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def load(name: str) -> ModuleType:
    """The reader module of a manifest; the manifest was checked to name one that exists."""
    return import_module(f"datakit.readers.{name}")
