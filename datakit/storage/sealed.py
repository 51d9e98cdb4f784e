"""Sealed files: a value as JSON beside its fingerprint, so that it is read as it was written or not at all.

    {"plan": {…}, "digest": "<fingerprint of the plan>"}

The name before the value is its file's own. What can be made again, such as a plan, is kept so beside the shards.
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
    """Publishes a value of dataclasses, structs and what JSON has, sealed under a name."""
    plain = msgspec.to_builtins(value)
    store.write(path, msgspec.json.encode({name: plain, _DIGEST: fingerprint(plain)}))


def read(store: Store, path: str, name: str, kind: type[Value]) -> Value | None:
    """The value that was sealed under a name, which is shared and not to be changed; None when there is none.

    There is none in a file that is damaged, was edited, or holds something else.
    """
    data = store.read(path)
    value: Value | None = _value(data, name, kind) if data else None  # type: ignore[arg-type]  # a type has a hash
    return value


@lru_cache(maxsize=8)  # plans are asked for each shard
def _value(data: bytes, name: str, kind: Any) -> Any:
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
    """Whether the bytes of a sealed file, whatever its value is called, are as they were written."""
    try:
        fields = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    digest, values = fields.pop(_DIGEST, None), list(fields.values())
    return len(values) == 1 and digest == fingerprint(values[0])
