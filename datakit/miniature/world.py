"""One miniature's world: its size, its seed, and a cache of what was made from them.

An upstream is a function `places(world)` that says what stands where; `upstreams.py` has the table of them.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import unquote

from datakit.miniature.real import Real
from datakit.miniature.server import Answer, Request

Made = TypeVar("Made")
Maker = Callable[[], bytes]


class World:
    """`keep` and `make_once` call what makes something once; the rest are the arguments of `Miniature`."""

    def __init__(self, *, rows: int, seed: int, real: Real | None, coyo_shards: int, coyo_rows: int) -> None:
        self.rows, self.seed, self.real = rows, seed, real
        self.coyo_shards, self.coyo_rows = coyo_shards, coyo_rows
        self._kept: dict[object, object] = {}
        self._lock = threading.RLock()

    @property
    def file_rows(self) -> int:
        """Rows of one file of a dataset that isn't llava665k: 60 where that has 240."""
        return max(24, self.rows // 4)

    @property
    def edition(self) -> str:
        return f"{self.rows} {self.seed} {self.real is not None} {self.coyo_shards} {self.coyo_rows}"

    def keep(self, key: object, make: Callable[[], Made]) -> Made:
        """What `make` returned for a key the first time; calls it only then."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
            return self._kept[key]  # type: ignore[return-value]

    def make_once(self, make: Callable[[World], Made]) -> Made:
        """What a function makes of this world; it is called once."""
        return self.keep(make, lambda: make(self))


@dataclass(frozen=True, kw_only=True)
class Places:
    """What an upstream has, and where."""

    hub: Mapping[str, Mapping[str, Maker]] = field(default_factory=dict)  # repository -> file -> its bytes
    web: Mapping[str, Maker] = field(default_factory=dict)  # url, as upstream has it -> an archive's bytes
    pages: Callable[[Request, str], Answer | None] | None = None  # of places that are too many for a table


def canonical_path(url: str) -> str:
    """The form of a URL by which files are looked up: `/host/path`, no scheme, query or percent signs."""
    path = unquote(re.sub(r"^https?://", "/", url).partition("?")[0])
    return "/" + re.sub(r"/{2,}", "/", path).strip("/")
