"""Spool: values that came before their turn, kept on disk instead of in memory.

Files without a name, so that nothing is left when the process dies. A file is closed when all its values were taken.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import threading
from pathlib import Path
from typing import Any

from datakit.storage.refusals import storage_errors

SEGMENT_BYTES = 256 << 20


class _Segment:
    def __init__(self, folder: Path | None) -> None:
        self.file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - outlives this call
        self.size = 0
        self.held = 0
        self.full = False


class Spooled:
    """Where in the spool a value is."""

    __slots__ = ("n_bytes", "offset", "segment")

    def __init__(self, segment: _Segment, offset: int, n_bytes: int) -> None:
        self.segment, self.offset, self.n_bytes = segment, offset, n_bytes


class Spool:
    """Takes and gives back values; any thread may call it."""

    def __init__(self, folder: Path | None, most_bytes: int) -> None:
        self.used = 0
        self._folder, self._most = folder, most_bytes
        self._lock = threading.Lock()
        self._segment: _Segment | None = None
        self._open: set[_Segment] = set()

    @property
    def full(self) -> bool:
        return self.used >= self._most

    def put(self, value: Any) -> Spooled:
        """Writes a value. Raises StorageError when the disk is full."""
        data = pickle.dumps(value, protocol=5)  # our own bytes in a file that nobody else can open
        with self._lock:
            if self._segment is None:
                with storage_errors(self._folder or tempfile.gettempdir()):
                    if self._folder is not None:
                        self._folder.mkdir(parents=True, exist_ok=True)
                    self._segment = _Segment(self._folder)
                self._open.add(self._segment)
            segment = self._segment
            at = segment.size
            segment.size += len(data)
            segment.held += len(data)
            self.used += len(data)
            if segment.size >= SEGMENT_BYTES:
                segment.full, self._segment = True, None
        with storage_errors(self._folder or tempfile.gettempdir()):
            written, view = 0, memoryview(data)
            while written < len(data):
                written += os.pwrite(segment.file.fileno(), view[written:], at + written)
        return Spooled(segment, at, len(data))

    def take(self, spooled: Spooled) -> Any:
        """Reads a value back, once."""
        data = os.pread(spooled.segment.file.fileno(), spooled.n_bytes, spooled.offset)
        with self._lock:
            segment = spooled.segment
            segment.held -= spooled.n_bytes
            self.used -= spooled.n_bytes
            if segment.full and not segment.held:
                segment.file.close()
                self._open.discard(segment)
        return pickle.loads(data)  # noqa: S301 - written by `put`

    def close(self) -> None:
        with self._lock:
            for segment in self._open:
                segment.file.close()
            self._open.clear()
