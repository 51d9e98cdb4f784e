"""Attributes: keys of a dataset's rows that its reader doesn't use, kept with the types that the manifest names.

    [annotations.attributes]
    label = "string"         or integer, number, boolean
    tags  = "string[]"       a list of them; its items and any value may be null
    meta  = "json"           anything: text in tables, the value itself in a record's attrs

A value that doesn't fit its type becomes null, and its row has `attribute` among its repairs. So do integers beyond
64 bits, and NaN and infinities, which JSON doesn't have. `SeenKeys` finds the types of a dataset's keys.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datakit.errors import shortlist

if TYPE_CHECKING:
    import pyarrow as pa

SCALARS = ("string", "integer", "number", "boolean")
KINDS = (*SCALARS, *(f"{kind}[]" for kind in SCALARS), "json")
READERS = {"llava": frozenset({"id", "idx", "image", "conversations"}), "hf": frozenset[str]()}  # keys that they use
MOST = 100  # keys that `add` names; rows with more have values for keys
MOST_SEEN = 10_000  # different keys that are remembered
_NAME_CHARS = 100
_EXACT = 1 << 53  # up to where every integer is a float64
_OURS = {
    *("key", "messages", "images", "id", "repairs"),
    *("json_offset", "json_bytes", "text_chars", "images_dropped", "sentences", "similarity", "interleaved"),
}


def used_keys(reader: str, columns: Mapping[str, str]) -> set[str]:
    """The keys of a row from which its reader makes the record."""
    return {*READERS.get(reader, ()), *columns.values()}


def why_refused(name: str, taken: Collection[str]) -> str | None:
    """Why a key can't be kept under its name; None when it can. `taken` are the keys that the reader uses."""
    if name in taken:
        return "the reader makes the record of it"
    if name.partition(".")[0] in _OURS:
        return "datakit has a column of that name: give it another one in the rows"
    if not name or len(name) > _NAME_CHARS or not name.isprintable():
        return f"a name has 1 to {_NAME_CHARS} characters that can be printed"
    return None


def arrow_type(kind: str) -> pa.DataType:
    """The Arrow type of a kind's column; `json` is a string column."""
    import pyarrow as pa

    types = {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
    scalar, many, _ = kind.partition("[]")
    return pa.list_(types[scalar]) if many else types.get(scalar, pa.string())


def kind_of_arrow(kind: pa.DataType) -> str | None:
    """The kind under which a Parquet column is kept; None when JSON has no such type, as for dates."""
    import pyarrow as pa

    is_ = pa.types
    if is_.is_dictionary(kind):
        kind = kind.value_type
    if is_.is_list(kind) or is_.is_large_list(kind) or is_.is_fixed_size_list(kind):
        inner = kind_of_arrow(kind.value_type)
        return f"{inner}[]" if inner in SCALARS else inner and "json"
    if is_.is_struct(kind):
        return "json" if all(kind_of_arrow(field.type) for field in kind) else None
    tests = {
        "string": is_.is_string(kind) or is_.is_large_string(kind),
        "integer": is_.is_integer(kind),
        "number": is_.is_floating(kind),
        "boolean": is_.is_boolean(kind),
    }
    return next((name for name, fits in tests.items() if fits), None)


# Values


def values(row: Any, kinds: Mapping[str, str]) -> tuple[dict[str, Any], bool]:
    """A row's attributes as their columns hold them, and whether any value doesn't fit its type."""
    found, misfit = {}, False
    for name, kind in kinds.items():
        try:
            found[name] = column_value(row.get(name), kind)
        except ValueError:
            found[name], misfit = None, True
    return found, misfit


def misfits(row: Any, kinds: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """(key, value) of those that don't fit their types."""
    for name, kind in kinds.items():
        try:
            column_value(row.get(name), kind)
        except ValueError:
            yield name, row[name]


def column_value(value: Any, kind: str) -> Any:
    """A value as its column holds it. Raises ValueError when it doesn't fit."""
    if value is None:
        return None
    if kind == "json":
        return text(value)
    scalar, many, _ = kind.partition("[]")
    if not many:
        return _scalar(value, scalar)
    if not isinstance(value, list):
        raise ValueError(f"{type(value).__name__} is no list")
    return [None if item is None else _scalar(item, scalar) for item in value]


def text(value: Any) -> str:
    """A value as JSON, with its keys in their order. Raises ValueError when JSON can't express something in it."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _scalar(value: Any, kind: str) -> Any:
    found = _kind(value)
    if kind == "number" and found == "integer":
        return float(value)
    if found == "wide":
        found = "integer"
    if found != kind or (kind == "number" and not math.isfinite(value)):
        raise ValueError(f"{type(value).__name__} is no {kind}")
    return value


def _kind(value: Any) -> str:
    """The kind of a single value: one of SCALARS, "wide" for an integer beyond float64's exact ones, or "json"."""
    if isinstance(value, str):
        return "string"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer" if abs(value) <= _EXACT else "wide" if -(1 << 63) <= value < 1 << 63 else "json"
    return "number" if isinstance(value, float) else "json"


# Types


@dataclass
class _Key:
    rows: int = 0
    kind: str = ""  # "" for nothing but null so far, "[]" for lists of nothing else


class SeenKeys:
    """The keys of the rows seen so far, and for each the type that holds all its values; bounded in memory."""

    def __init__(self) -> None:
        self._keys: dict[str, _Key] = {}
        self._more_keys = False  # whether there were more keys than are remembered

    def add(self, row: Any) -> None:
        """Takes the keys and types of one more row into account."""
        for name, value in row.items() if isinstance(row, dict) else ():
            key = self._keys.get(name)
            if key is None:
                if len(self._keys) == MOST_SEEN:
                    self._more_keys = True
                    continue
                key = self._keys[name] = _Key()
            key.rows += 1
            if key.kind != "json":
                key.kind = _wider_kind(key.kind, _kind_of(value))

    def kinds(self, taken: Collection[str]) -> tuple[dict[str, str], list[str]]:
        """Types by key, without the keys that the reader uses, and sentences about keys that can't be kept."""
        others = {name: key for name, key in self._keys.items() if name not in taken}
        reasons = {name: why for name in others if (why := why_refused(name, taken))}
        sentences = [f"key {name!r} isn't kept: {why}" for name, why in list(reasons.items())[:5]]
        if len(reasons) > 5:
            sentences.append(f"{len(reasons) - 5:,} more keys aren't kept for such reasons")
        names = [name for name in others if name not in reasons]
        kept = set(sorted(names, key=lambda name: -others[name].rows)[:MOST])
        if left := [name for name in names if name not in kept]:
            n = f"{len(left):,}" if not self._more_keys else f"more than {len(left):,}"
            sentences.append(
                f"{n} keys aren't kept, such as {shortlist(left, 3)}: rows have too many different ones, so only the "
                f"{MOST} that most rows have are named. Put them into one object, which is kept as json"
            )
        return {name: _kind_name(others[name].kind) for name in names if name in kept}, sentences


def _kind_of(value: Any) -> str:
    """The narrowest type of a value; "" for null, "[]" for a list without any value."""
    if value is None:
        return ""
    if not isinstance(value, list):
        return _kind(value)
    inner = ""
    for item in value:
        inner = _wider_kind(inner, "" if item is None else _kind(item))
        if inner == "json":
            return inner
    return f"{inner}[]"


def _wider_kind(a: str, b: str) -> str:
    """The narrowest type that holds the values of both."""
    if a == b or not b:
        return a
    if not a:
        return b
    many = "[]" if a.endswith("[]") and b.endswith("[]") else ""
    if many:
        a, b = a.removesuffix("[]"), b.removesuffix("[]")
        if not a or not b:
            return f"{a or b}[]"
    both = {a, b}
    if both == {"integer", "wide"}:
        return f"wide{many}"
    return f"number{many}" if both == {"integer", "number"} else "json"


def _kind_name(kind: str) -> str:
    return kind.replace("wide", "integer") if kind.replace("wide", "integer") in KINDS else "json"
