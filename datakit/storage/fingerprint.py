"""Fingerprints: the sha256 of an object's canonical JSON, and the fields in which two objects differ."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from datakit.errors import ManifestError


def json_value(value: Any) -> Any:
    """A value in the types of JSON: dataclasses become their fields, enums their values, tuples lists.

    Raises ManifestError for a value without a JSON form, such as a function.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: json_value(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): json_value(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(v) for v in value]
    if isinstance(value, enum.Enum):
        return json_value(value.value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise ManifestError(
        f"{value!r:.100} of type {type(value).__name__} can't be part of a recipe: its fields are texts, numbers, "
        "lists, dictionaries, enums and dataclasses of these"
    )


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces, the same bytes for equal values."""
    return json.dumps(json_value(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def fingerprint(value: Any) -> str:
    """The sha256 of the canonical JSON of a value, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def changes(old: Any, new: Any, name: str = "") -> list[str]:
    """Lines such as `share: 0.2 -> 0.3`, one for each field in which two recipes differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(old.keys() | new.keys()):
            lines += changes(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        return lines
    return [] if json_value(old) == json_value(new) else [f"{name}: {_as_text(old)} -> {_as_text(new)}"]


def _as_text(value: Any) -> str:
    return "(nothing)" if value is None else json.dumps(json_value(value), ensure_ascii=False)
