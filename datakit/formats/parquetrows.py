"""Parquet rows: other people's files, read in a process that may die of them (datakit/formats/parquetchild.py).

A damaged file can make the Parquet library abort, which no `except` catches. So a child of this process opens it and
sends what it holds through a pipe; if the child dies, that is a SourceError like any other damage.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from datakit.errors import SourceError, shortlist
from datakit.formats.parquetchild import ROWS, WONT_DO

_DAMAGED = "is no Parquet, is cut short or is damaged"
_ANEW = "If it was damaged on this disk, remove it and the next fetch has it again"


class Unreadable(NamedTuple):
    """What stands for a row that can't be had; `reason` is what it is counted as."""

    reason: str


class Opened:
    """A file that is being read: its schema, its number of rows, then the batches of each request in turn."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pa.PythonFile(pipe, mode="r")
        with pa.ipc.open_stream(self._pipe) as head:
            self.schema: pa.Schema = head.schema.remove_metadata()
            self.rows = int(head.schema.metadata[ROWS])
            head.read_all()  # its end, so that the next stream begins where this one stops

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The batches of the next request; all of them are to be taken before those of another."""
        with pa.ipc.open_stream(self._pipe) as stream:
            yield from stream


@contextmanager
def opened(path: Path | str, *requests: tuple[list[str] | None, int | None], anew: str = _ANEW) -> Iterator[Opened]:
    """Opens a file for requests of (columns, rows of a batch); None for all columns, or as many rows as memory allows.

    Raises SourceError for no Parquet and for damage, also while batches are taken in the block.
    """
    asked = [json.dumps({"columns": columns, "rows": rows}) for columns, rows in requests]
    ours, theirs = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):  # a user may have no more of it
            fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 1 << 20)
    with tempfile.TemporaryFile() as said, os.fdopen(ours, "rb", buffering=1 << 20) as pipe:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "datakit.formats.parquetchild", str(theirs), os.fspath(path), *asked],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            pass_fds=(theirs,),
        )
        os.close(theirs)
        try:
            yield Opened(pipe)
        except (pa.ArrowException, OSError) as error:
            ended = not pipe.closed and not pipe.read(1)
            why = _end(child.wait(), said) if ended else ""
            raise SourceError(f"{path} {why or f'{_DAMAGED}: {error}'}. {anew}") from error
        finally:
            child.kill()
            child.wait()


def _end(code: int, said: IO[bytes]) -> str:
    """Why the child ended before its work was done; nothing when it doesn't say."""
    if code == WONT_DO:
        said.seek(0)
        return f"{_DAMAGED}: {said.read().decode('utf-8', 'replace').strip().rstrip('.')}"
    if code == -signal.SIGKILL:
        return "was too much to read: its reader was killed, perhaps for want of memory"
    return f"{_DAMAGED}: the Parquet library crashed on it ({signal.Signals(-code).name})" if code < 0 else ""


def rows(path: Path | str) -> Iterator[dict[str, Any] | Unreadable]:
    """Every row of a file, in order. Raises SourceError for no Parquet, damage or a column that is there twice."""
    with opened(path, (None, None)) as file:
        names = file.schema.names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise SourceError(f"{path} has column {shortlist(twice)} twice: a row of it can't be told")
        for batch in file.batches():
            yield from values(batch)


def values(batch: pa.RecordBatch) -> list[dict[str, Any] | Unreadable]:
    """The rows of a batch; one that Python has no values for is Unreadable."""
    try:
        return list(batch.to_pylist())
    except (ValueError, OverflowError) as error:  # a text that isn't UTF-8, a date that Python doesn't have
        if batch.num_rows == 1:
            return [Unreadable("not_utf8" if isinstance(error, UnicodeDecodeError) else "malformed")]
        return [value for at in range(batch.num_rows) for value in values(batch.slice(at, 1))]


def readable(batch: pa.RecordBatch, columns: tuple[str, ...]) -> pa.Array | None:
    """A mark for each row whose texts in some columns are UTF-8; None when all are."""
    good: pa.Array | None = None
    for name in columns:
        texts = batch[name]
        try:
            texts.validate(full=True)
            continue
        except pa.ArrowInvalid:
            if pa.types.is_dictionary(texts.type):
                texts = texts.dictionary_decode()
        marks = pa.array([_is_text(text) for text in texts.view(_BYTES[str(texts.type)]).to_pylist()])
        good = marks if good is None else pc.and_(good, marks)
    return good


_BYTES = {"string": pa.binary(), "large_string": pa.large_binary()}


def _is_text(value: bytes | None) -> bool:
    try:
        return value is None or bool(value.decode()) or not value
    except UnicodeDecodeError:
        return False
