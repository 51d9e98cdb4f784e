"""JSON files too large for memory: an array of objects, or JSON Lines, a chunk of whole rows at a time.

1. A block of about `chunk_bytes` is read; it starts at an element.
2. It is cut at the last place that looks like a boundary met before (`}, {"id"`). If what is before decodes
   as an array, it is a run of whole elements: a cut inside a string or a nested object can't decode.
3. If it doesn't, a scan that counts brackets outside of strings finds the last boundary.
4. What is left starts the next block. At the end the closing bracket must be there: no row is lost silently.

Lines are cut at line feeds. A block is scanned once and decoded at most four times, so the time is linear.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import msgspec

from datakit.errors import SourceError

MAX_ELEMENT_BYTES = 64 << 20
_SPACE = b" \t\r\n"
_LINE_SUFFIXES = {".jsonl", ".ndjson", ".jsonlines"}
_rows = msgspec.json.Decoder(list[dict[str, Any]])
_line_rows = msgspec.json.Decoder(dict[str, Any])
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[{}\[\]]', re.DOTALL)
_FIRST_KEY = re.compile(rb'\{\s*+"[^"\\]{0,64}"')
_SURROGATE = re.compile("[\ud800-\udfff]")


class RepairedRow(dict[str, Any]):
    """A row in which U+FFFD replaces halves of surrogate pairs, which couldn't be written as UTF-8 again."""


class _Object(msgspec.Struct):
    """Any object, without its fields: counting rows so takes a sixth of the time of decoding them."""


_objects = msgspec.json.Decoder(list[_Object])
_line_objects = msgspec.json.Decoder(_Object)


@dataclass(frozen=True)
class Chunk:
    """A run of whole rows in a file."""

    offset: int  # of its first byte, which starts a row
    size_bytes: int
    first_row: int
    n_rows: int


@dataclass(frozen=True)
class Plan:
    """Where the rows of a file are: one pass over it, kept as JSON."""

    file_bytes: int
    lines: bool  # JSON Lines, not an array
    n_rows: int
    rows_per_shard: int
    chunks: tuple[tuple[int, int, int], ...]  # (offset, size in bytes, first row)


def chunks(path: Path | str, *, chunk_bytes: int = 1 << 20) -> Iterator[tuple[Chunk, list[Any]]]:
    """Every row of a file, in chunks of about `chunk_bytes`. Raises SourceError for anything but whole objects."""
    if chunk_bytes < 1:
        raise ValueError(f"chunk_bytes is at least 1, not {chunk_bytes!r}")
    yield from _chunks(Path(path), chunk_bytes, counting=False)


def _chunks(path: Path, chunk_bytes: int, *, counting: bool) -> Iterator[tuple[Chunk, list[Any]]]:
    """Chunks with their rows, or with as many empty objects."""
    with path.open("rb", buffering=0) as file:
        source = _Source(path, file, chunk_bytes, counting=counting)
        start, opening = source.find_start()
        first_row = 0
        for offset, size_bytes, rows in (_array_runs if opening == b"[" else _line_runs)(source, start):
            yield Chunk(offset, size_bytes, first_row, len(rows)), rows
            first_row += len(rows)


def plan(path: Path | str, *, rows_per_shard: int, chunk_bytes: int = 1 << 18) -> Plan:
    """The plan of a file. Reads all of it once; raises SourceError when it is cut short or malformed."""
    if rows_per_shard < 1:
        raise ValueError(f"rows_per_shard is at least 1, not {rows_per_shard!r}")
    path = Path(path)
    with path.open("rb", buffering=0) as file:
        lines = _Source(path, file, chunk_bytes).find_start()[1] == b"{"
    chunk_places = []
    n_rows = 0
    for chunk, rows in _chunks(path, chunk_bytes, counting=True):
        chunk_places.append((chunk.offset, chunk.size_bytes, chunk.first_row))
        n_rows += len(rows)
    return Plan(path.stat().st_size, lines, n_rows, rows_per_shard, tuple(chunk_places))


def read_rows(path: Path | str, plan: Plan, start_row: int, stop_row: int) -> Iterator[tuple[int, Any]]:
    """(row number, object) of the rows from `start_row` up to `stop_row`; only their chunks are read."""
    path = Path(path)
    start_row, stop_row = max(0, start_row), min(stop_row, plan.n_rows)
    if start_row >= stop_row:
        return
    with path.open("rb", buffering=0) as file:
        source = _Source(path, file, 1 << 20)
        if source.size != plan.file_bytes:
            source.fail(0, f"the file has {source.size} bytes, it had {plan.file_bytes} when it was planned", _AGAIN)
        first = bisect_right(plan.chunks, start_row, key=lambda place: place[2]) - 1
        for at, (offset, size_bytes, row) in enumerate(plan.chunks[first:], first):
            if row >= stop_row:
                return
            file.seek(offset)
            run = source.read(size_bytes)
            rows = _decode_lines(source, run, offset) if plan.lines else _decode_run(source, run, offset)
            due = (plan.chunks[at + 1][2] if at + 1 < len(plan.chunks) else plan.n_rows) - row
            if len(rows) != due:
                source.fail(offset, f"{len(rows)} rows where {due} were planned", _AGAIN)
            for number, value in enumerate(rows[: stop_row - row], row):
                if number >= start_row:
                    yield number, value


_AGAIN = "It changed since then: remove the plan and run the command again"
_FETCH = "Fetch the file again"


class _Source:
    """A file being read, and the errors that name its path and byte."""

    def __init__(self, path: Path, file: BinaryIO, chunk_bytes: int, *, counting: bool = False) -> None:
        self.path = path
        self.file = file
        self.chunk_bytes = chunk_bytes
        self.rows_of = _empty_objects_of if counting else _rows_of
        self.lines_of = _empty_objects_of_lines if counting else _line_rows.decode_lines
        self.size = path.stat().st_size

    def fail(self, at: int, what: str, then: str = _FETCH, cause: Exception | None = None) -> NoReturn:
        end = "" if then.endswith("?") else "."
        raise SourceError(f"{str(self.path)!r}, byte {at}: {what}. {then}{end}") from cause

    def cut_short(self, doing: str) -> NoReturn:
        self.fail(self.size, f"cut short, {doing}")

    def read(self, n: int) -> bytes:
        """Up to n bytes; fewer only at the end of the file."""
        parts = []
        while n > 0 and (part := self.file.read(n)):
            parts.append(part)
            n -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def more(self, block: bytes, offset: int) -> bytes:
        """The block with as many bytes again; the same object at the end of the file."""
        if len(block) >= MAX_ELEMENT_BYTES:
            self.fail(offset, f"a row of more than {MAX_ELEMENT_BYTES} bytes", _NOT_ROWS)
        added = self.read(max(self.chunk_bytes, len(block)))
        return block + added if added else block

    def text_from(self, at: int) -> tuple[int, bytes]:
        """Offset of the first byte from `at` on that isn't white space, and a block from there; empty at the end."""
        self.file.seek(at)
        while block := self.read(self.chunk_bytes):
            text = block.lstrip(_SPACE)
            if text:
                return at + len(block) - len(text), text
            at += len(block)
        return at, b""

    def find_start(self) -> tuple[int, bytes]:
        """Offset of the first byte of the JSON, and that byte: `[` or `{`. Raises SourceError for any other."""
        marked = self.read(3) == b"\xef\xbb\xbf"
        at, _ = self.text_from(3 if marked else 0)
        self.file.seek(at)
        head = self.read(64)
        if not head:
            self.fail(at, "the file is empty")
        if head.startswith(b"<"):
            self.fail(
                at,
                "an HTML page came instead of JSON",
                "Is the link a `blob/` one? `resolve/` gives the file",
            )
        if head.startswith(b"version https://git-lfs"):
            self.fail(at, "a Git LFS pointer came instead of JSON", "A `resolve/` link gives the file itself")
        if head[:1] not in (b"[", b"{"):
            self.fail(at, f"not JSON, it starts with {head[:12]!r}", _NOT_ROWS)
        return at, head[:1]


_NOT_ROWS = "An array of objects or JSON Lines was expected"


# An array


def _array_runs(source: _Source, start: int) -> Iterator[tuple[int, int, list[Any]]]:
    """(offset, size, rows) of runs of whole elements, up to the closing bracket."""
    offset, block = source.text_from(start + 1)
    seam = b""  # what stood between two elements: `}`, the comma, and the next one's first key
    while True:
        if len(block) < source.chunk_bytes:
            block = source.more(block, offset)
        cut, next_at, rows = _quick_cut(source, block, seam)
        if rows is None:
            scan = _scan(source, block, offset)
            while not scan.cut and scan.closed is None:  # a row larger than the block
                longer = source.more(block, offset)
                if longer is block:
                    source.cut_short(f"the row at byte {offset} has no end" if block else "there is no closing `]`")
                block = longer
                scan = _scan(source, block, offset)
            if scan.closed is not None:
                _check_end(source, offset + scan.closed + 1)
                if last := block[: scan.closed].rstrip(_SPACE):
                    yield offset, len(last), _decode_run(source, last, offset)
                return
            cut, next_at, seam = scan.cut, scan.next_at, scan.seam
            rows = _decode_run(source, block[:cut], offset)
        yield offset, cut, rows
        offset, block = offset + next_at, block[next_at:]


def _quick_cut(source: _Source, block: bytes, seam: bytes) -> tuple[int, int, list[Any] | None]:
    """(end of the run, start of the next, rows), cut at one of the last two seams; rows is None if neither works."""
    end = len(block)
    for _ in range(2 if seam else 0):
        end = block.rfind(seam, 0, end)
        if end < 0:
            break
        rows = source.rows_of(block[: end + 1])
        if rows is not None:
            return end + 1, end + seam.index(b"{"), rows
    return 0, 0, None


@dataclass
class _Scan:
    cut: int = 0  # where the last element that another one follows ends
    next_at: int = 0
    seam: bytes = b""
    closed: int | None = None  # where the array's own bracket closes


def _scan(source: _Source, block: bytes, offset: int) -> _Scan:
    """Finds the last boundary by counting brackets outside of strings; `block` starts at an element.

    Raises SourceError when there is anything but a comma between two objects.
    """
    found = _Scan()
    depth = end = 0
    for token in _TOKEN.finditer(block):
        at = token.start()
        byte = block[at]
        if depth == 0:
            between = block[end:at].strip(_SPACE)
            if byte == 0x5D and not between:  # ]
                found.closed = at
                return found
            if byte != 0x7B or between != (b"," if end else b""):  # {
                source.fail(offset + end, f"an array of objects was expected, not {block[end : at + 12]!r}", _NOT_ROWS)
            if end:
                key = _FIRST_KEY.match(block, at)
                found.cut, found.next_at = end, at
                found.seam = block[end - 1 : key.end() if key else at + 1]
        if byte in b"{[":
            depth += 1
        elif byte in b"}]":
            depth -= 1
            end = token.end()
    rest = block[end:].strip(_SPACE)
    if depth == 0 and rest not in (b"", b","):
        source.fail(offset + end, f"an array of objects was expected, not {rest[:20]!r}", _NOT_ROWS)
    return found


def _check_end(source: _Source, at: int) -> None:
    """Raises SourceError when anything but space follows the closing bracket."""
    where, rest = source.text_from(at)
    if rest:
        source.fail(where, f"{rest[:20]!r} after the closing bracket", "One array was expected")


# JSON Lines


def _line_runs(source: _Source, start: int) -> Iterator[tuple[int, int, list[Any]]]:
    """(offset, size, rows) of runs of whole lines."""
    offset, block = source.text_from(start)
    alone = source.path.suffix not in _LINE_SUFFIXES  # so far, the file may be one object
    while block:
        if len(block) < source.chunk_bytes:
            block = source.more(block, offset)
        cut = block.rfind(b"\n") + 1
        if not cut:
            if alone and len(block) >= MAX_ELEMENT_BYTES:
                _one_object(source, block, offset)
            longer = source.more(block, offset)
            if longer is not block:
                block = longer
                continue
            cut = len(block)
        run, block = block[:cut], block[cut:] or source.read(source.chunk_bytes)
        rows = _decode_lines(source, run, offset, first=offset == start)
        while alone and len(rows) == 1 and not block.strip(_SPACE):
            longer = source.more(block, offset)
            if longer is block:
                _one_object(source, run, offset)
            block = longer
        if rows:
            alone = False
            yield offset, cut, rows
        offset += cut


def _one_object(source: _Source, run: bytes, offset: int, cause: Exception | None = None) -> NoReturn:
    key = _FIRST_KEY.match(run)
    named = f", its first key is {key[0][1:].strip(_SPACE).decode(errors='replace')}" if key else ""
    then = "An array of objects was expected, or JSON Lines in a file named .jsonl"
    source.fail(offset, f"the file is one JSON object{named}", then, cause)


def _decode_lines(source: _Source, run: bytes, offset: int, *, first: bool = False) -> list[Any]:
    """The objects of whole lines, one a line; `first`: the run starts the file."""
    try:
        rows = source.lines_of(run)
        if len(rows) == run.count(b"\n") + (not run.endswith(b"\n")):
            return rows
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # line by line, it is known which one it is
    rows = []
    at = offset
    for line in run.split(b"\n"):
        try:
            found = _decode_run(source, line, at)
        except SourceError as error:
            if first and at == offset and line.strip(_SPACE)[-1:] in (b"{", b"[", b","):
                _one_object(source, run, offset, error)
            if at + len(line) == source.size:
                source.fail(source.size, f"cut short: {error}", cause=error)
            raise
        if len(found) > 1:
            source.fail(at, f"{len(found)} objects in one line", _NOT_ROWS)
        rows += found
        at += len(line) + 1
    return rows


# Decoding


def _rows_of(run: bytes) -> list[Any] | None:
    """The objects of a run, or None when it isn't whole (or isn't well-formed; the caller finds out)."""
    try:
        return _rows.decode(b"[" + run + b"]")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _empty_objects_of(run: bytes) -> list[Any] | None:
    """As many empty objects as `_rows_of` would find. Decoded first: msgspec skips text without checking UTF-8."""
    try:
        return _objects.decode(f"[{run.decode()}]")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _empty_objects_of_lines(run: bytes) -> list[Any]:
    return _line_objects.decode_lines(run.decode())


def _decode_run(source: _Source, run: bytes, offset: int) -> list[Any]:
    """The objects of a run of whole elements. Raises SourceError with the byte that is wrong.

    Also reads what Python's `json` writes against the standard: NaN and Infinity as they are, a row with half of a
    surrogate pair as RepairedRow.
    """
    rows = source.rows_of(run)
    if rows is not None:
        return rows
    try:
        text = run.decode()
    except UnicodeDecodeError as error:
        source.fail(offset + error.start, f"invalid UTF-8, {run[error.start : error.start + 8]!r}", cause=error)
    try:
        rows = [_repair_row(row) for row in json.loads(f"[{text}]")]
    except json.JSONDecodeError as error:
        at = offset + len(text[: max(0, error.pos - 1)].encode())
        source.fail(at, f"not JSON ({error.msg}), {text[max(0, error.pos - 1) :][:20]!r}", cause=error)
    except RecursionError as error:
        source.fail(offset, "nested too deeply", _NOT_ROWS, error)
    except ValueError as error:  # a number of thousands of digits
        source.fail(offset, f"not JSON ({error})", _NOT_ROWS, error)
    for row in rows:
        if not isinstance(row, dict):
            source.fail(offset, f"an array of objects was expected, not {str(row)[:20]!r} in it", _NOT_ROWS)
    return rows


def _repair_row(row: Any) -> Any:
    """The row as it is, or a RepairedRow if it held half of a surrogate pair."""
    repaired = _replace_half_surrogates(row)
    return RepairedRow(repaired) if isinstance(row, dict) and repaired != row else repaired


def _replace_half_surrogates(value: Any) -> Any:
    """A value with U+FFFD for each half of a surrogate pair."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_replace_half_surrogates(element) for element in value]
    if isinstance(value, dict):
        return {_replace_half_surrogates(key): _replace_half_surrogates(element) for key, element in value.items()}
    return value
