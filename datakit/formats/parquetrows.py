"""Parquet rows of untrusted files, read in a child process (datakit/formats/parquetchild.py).

A damaged file can make the Parquet library abort, which no `except` catches. So a child process opens the file and
sends its rows through a pipe; if the child crashes, that is a SourceError like any other damage.
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
_REMEDY = "If it was damaged on this disk, remove it and the next fetch downloads it again"


class UnreadableRow(NamedTuple):
    """Stands for a row that can't be read; it is dropped for `reason`."""

    reason: str


class OpenFile:
    """A Parquet file that the child has open: its schema, number of rows, and the batches of each request in turn."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pa.PythonFile(pipe, mode="r")
        with pa.ipc.open_stream(self._pipe) as head:
            self.schema: pa.Schema = head.schema.remove_metadata()
            self.rows = int(head.schema.metadata[ROWS])
            head.read_all()  # its end, so that the next stream begins where this one stops

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The batches of the next request; read all of them before you ask for those of another."""
        with pa.ipc.open_stream(self._pipe) as stream:
            yield from stream


@contextmanager
def open_file(
    path: Path | str, *requests: tuple[list[str] | None, int | None], remedy: str = _REMEDY
) -> Iterator[OpenFile]:
    """Opens a file for requests of (columns, rows of a batch); None for all columns, or as many rows as memory allows.

    Raises SourceError for a file that isn't Parquet or is damaged, also while the block reads batches; `remedy` is the
    message's last sentence.
    """
    request_texts = [json.dumps({"columns": columns, "rows": rows}) for columns, rows in requests]
    ours, theirs = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):  # a user may have no more of it
            fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 1 << 20)
    with tempfile.TemporaryFile() as stderr, os.fdopen(ours, "rb", buffering=1 << 20) as pipe:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "datakit.formats.parquetchild", str(theirs), os.fspath(path), *request_texts],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=(theirs,),
        )
        os.close(theirs)
        try:
            yield OpenFile(pipe)
        except (pa.ArrowException, OSError) as error:
            ended = not pipe.closed and not pipe.read(1)
            why = _why_it_ended(child.wait(), stderr) if ended else ""
            raise SourceError(f"{path} {why or f'{_DAMAGED}: {error}'}. {remedy}") from error
        finally:
            child.kill()
            child.wait()


def _why_it_ended(code: int, stderr: IO[bytes]) -> str:
    """Why the child ended before its work was done, or "" when that isn't known."""
    if code == WONT_DO:
        stderr.seek(0)
        return f"{_DAMAGED}: {stderr.read().decode('utf-8', 'replace').strip().rstrip('.')}"
    if code == -signal.SIGKILL:
        return "was too much to read: its reader was killed, perhaps for want of memory"
    return f"{_DAMAGED}: the Parquet library crashed on it ({signal.Signals(-code).name})" if code < 0 else ""


def rows(path: Path | str) -> Iterator[dict[str, Any] | UnreadableRow]:
    """Every row of a file, in order. Raises SourceError for a damaged file or one with two columns of one name."""
    with open_file(path, (None, None)) as file:
        names = file.schema.names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise SourceError(f"{path} has column {shortlist(twice)} twice: its rows would be ambiguous")
        for batch in file.batches():
            yield from batch_rows(batch)


def batch_rows(batch: pa.RecordBatch) -> list[dict[str, Any] | UnreadableRow]:
    """The rows of a batch; one whose values Python can't represent is an UnreadableRow."""
    try:
        return list(batch.to_pylist())
    except (ValueError, OverflowError) as error:  # a text that isn't UTF-8, a date that Python doesn't have
        if batch.num_rows == 1:
            return [UnreadableRow("not_utf8" if isinstance(error, UnicodeDecodeError) else "malformed")]
        return [row for at in range(batch.num_rows) for row in batch_rows(batch.slice(at, 1))]


def utf8_rows(batch: pa.RecordBatch, columns: tuple[str, ...]) -> pa.Array | None:
    """One boolean per row: whether its texts in the given columns are UTF-8. None when all of them are."""
    good: pa.Array | None = None
    for name in columns:
        texts = batch[name]
        try:
            texts.validate(full=True)
            continue
        except pa.ArrowInvalid:
            if pa.types.is_dictionary(texts.type):
                texts = texts.dictionary_decode()
        marks = pa.array([_is_utf8(text) for text in texts.view(_BYTES[str(texts.type)]).to_pylist()])
        good = marks if good is None else pc.and_(good, marks)
    return good


_BYTES = {"string": pa.binary(), "large_string": pa.large_binary()}


def _is_utf8(value: bytes | None) -> bool:
    try:
        return value is None or bool(value.decode()) or not value
    except UnicodeDecodeError:
        return False
