"""Sealed files: a value as JSON with its fingerprint, so that a damaged or edited file is noticed.

    {"plan": {…}, "digest": "<fingerprint of the plan>"}

Each kind of file has its own key for the value, here `plan`. They hold what can be computed again, such as plans.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from datakit.storage.fingerprint import fingerprint
from datakit.storage.store import Store

Value = TypeVar("Value")
_DIGEST = "digest"


def write(store: Store, path: str, name: str, value: object) -> None:
    """Publishes a value of dataclasses, structs and JSON types under the key `name`, with its fingerprint."""
    plain = msgspec.to_builtins(value)
    store.write(path, msgspec.json.encode({name: plain, _DIGEST: fingerprint(plain)}))


def read(store: Store, path: str, name: str, kind: type[Value]) -> Value | None:
    """The value under the key `name`; None when the file is missing, damaged, edited, or holds something else.

    The value is cached and shared: don't change it.
    """
    data = store.read(path)
    value: Value | None = _decode_value(data, name, kind) if data else None  # type: ignore[arg-type]  # a type has a hash
    return value


@lru_cache(maxsize=8)  # plans are asked for each shard
def _decode_value(data: bytes, name: str, kind: Any) -> Any:
    try:
        fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        if not {name, _DIGEST} <= fields.keys():
            return None
        value = msgspec.json.decode(fields[name], type=kind)
        digest = msgspec.json.decode(fields[_DIGEST])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return value if digest == fingerprint(msgspec.to_builtins(value)) else None


def is_whole(data: bytes) -> bool:
    """Whether the bytes of a sealed file, whatever key its value has, match their fingerprint."""
    try:
        fields = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    digest, values = fields.pop(_DIGEST, None), list(fields.values())
    return len(values) == 1 and digest == fingerprint(values[0])
