"""JSON files too large for memory: an array of objects, or JSON Lines, a chunk of whole rows at a time.

1. A block of about `chunk_bytes` is read; it starts at an element.
2. It is cut where the next element seems to start: bytes that a past boundary had (`}, {"id"`) are looked for from
   the end. If what is before decodes as a whole array, it is a run of whole elements: a cut inside a string or a
   nested object can't decode. If not, a scan that counts brackets finds the last boundary.
3. What is left starts the next block. At the end the closing bracket must be there: fewer rows are never silent.

Lines are cut at line feeds. Every block is decoded at most four times and scanned once, so the time is linear.
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
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


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

    @property
    def n_shards(self) -> int:
        return -(-self.n_rows // self.rows_per_shard)


def chunks(path: Path | str, *, chunk_bytes: int = 1 << 20) -> Iterator[tuple[Chunk, list[Any]]]:
    """Every row of a file, in chunks of about `chunk_bytes`. Raises SourceError for anything but whole objects."""
    if chunk_bytes < 1:
        raise ValueError(f"chunk_bytes is at least 1, not {chunk_bytes!r}")
    path = Path(path)
    with path.open("rb", buffering=0) as file:
        source = _Source(path, file, chunk_bytes)
        first_row = 0
        for offset, size_bytes, rows in (
            _line_runs(source) if source.starts() == b"{" else _array_runs(source)
        ):
            yield Chunk(offset, size_bytes, first_row, len(rows)), rows
            first_row += len(rows)


def plan(path: Path | str, *, rows_per_shard: int, chunk_bytes: int = 1 << 20) -> Plan:
    """Reads the whole file once, and so proves that it is whole and well-formed."""
    if rows_per_shard < 1:
        raise ValueError(f"rows_per_shard is at least 1, not {rows_per_shard!r}")
    path = Path(path)
    with path.open("rb", buffering=0) as file:
        lines = _Source(path, file, chunk_bytes).starts() == b"{"
    places = []
    n_rows = 0
    for chunk, rows in chunks(path, chunk_bytes=chunk_bytes):
        places.append((chunk.offset, chunk.size_bytes, chunk.first_row))
        n_rows += len(rows)
    return Plan(path.stat().st_size, lines, n_rows, rows_per_shard, tuple(places))


def read_rows(path: Path | str, plan: Plan, start_row: int, stop_row: int) -> Iterator[tuple[int, Any]]:
    """(row number, object) of the rows from `start_row` up to `stop_row`; only their chunks are read."""
    path = Path(path)
    start_row, stop_row = max(0, start_row), min(stop_row, plan.n_rows)
    if start_row >= stop_row:
        return
    with path.open("rb", buffering=0) as file:
        source = _Source(path, file, 1 << 20)
        if source.size != plan.file_bytes:
            source.fail(
                0, f"the file has {source.size} bytes, it had {plan.file_bytes} when it was planned", _AGAIN
            )
        first = bisect_right(plan.chunks, start_row, key=lambda place: place[2]) - 1
        for at, (offset, size_bytes, row) in enumerate(plan.chunks[first:], first):
            if row >= stop_row:
                return
            file.seek(offset)
            run = source.read(size_bytes)
            rows = _decoded_lines(source, run, offset) if plan.lines else _decoded(source, run, offset)
            due = (plan.chunks[at + 1][2] if at + 1 < len(plan.chunks) else plan.n_rows) - row
            if len(rows) != due:
                source.fail(offset, f"{len(rows)} rows where {due} were planned", _AGAIN)
            for number, value in enumerate(rows[: stop_row - row], row):
                if number >= start_row:
                    yield number, value


_AGAIN = "It changed since then: remove the plan and run the command again"
_FETCH = "Fetch the file again"


class _Source:
    """A file being read, and how its faults are told."""

    def __init__(self, path: Path, file: BinaryIO, chunk_bytes: int) -> None:
        self.path = path
        self.file = file
        self.chunk_bytes = chunk_bytes
        self.size = path.stat().st_size

    def fail(self, at: int, what: str, then: str = _FETCH, cause: Exception | None = None) -> NoReturn:
        raise SourceError(f"{str(self.path)!r}, byte {at}: {what}. {then}.") from cause

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
        if len(block) > MAX_ELEMENT_BYTES:
            self.fail(offset, f"a row of more than {MAX_ELEMENT_BYTES} bytes", _NOT_ROWS)
        added = self.read(max(self.chunk_bytes, len(block)))
        return block + added if added else block

    def starts(self) -> bytes:
        """Moves to the first byte that means something, `[` or `{`, and returns it."""
        at = 0
        head = self.read(4096)
        if head.startswith(b"\xef\xbb\xbf"):
            head, at = head[3:], 3
        while head and not head.lstrip(_SPACE):
            at += len(head)
            head = self.read(1 << 20)
        at += len(head) - len(head.lstrip(_SPACE))
        head = head.lstrip(_SPACE)
        if not head:
            self.fail(at, "cut short, or empty: there is no JSON in it")
        if head[:1] == b"<":
            self.fail(
                at,
                "an HTML page came instead of JSON",
                "Is the link a `blob/` one? `resolve/` gives the file",
            )
        if head.startswith(b"version https://git-lfs"):
            self.fail(at, "a Git LFS pointer came instead of JSON", "`resolve/` links give the file itself")
        if head[:1] not in (b"[", b"{"):
            self.fail(at, f"not JSON, it starts with {head[:12]!r}", _NOT_ROWS)
        self.file.seek(at)
        return head[:1]


_NOT_ROWS = "An array of objects or JSON Lines was expected"


# An array


def _array_runs(source: _Source) -> Iterator[tuple[int, int, list[Any]]]:
    """(offset, size, rows) of runs of whole elements, up to the closing bracket."""
    offset = source.file.tell() + 1
    source.read(1)
    block = b""
    seam = b""  # what stood between two elements: `}`, the comma, and the next one's first key
    while True:
        whole = source.more(block, offset) if len(block) < source.chunk_bytes else block
        ended, block = whole is block and len(block) < source.chunk_bytes, whole
        lead = len(block) - len(block.lstrip(_SPACE))
        offset, block = offset + lead, block[lead:]
        if not block and not ended:
            continue
        run, rows, next_at = b"", None, 0
        for cut, start in _seams(block, seam):
            rows = _rows_of(block[:cut])
            if rows is not None:
                run, next_at = block[:cut], start
                break
        while rows is None:  # the block is scanned, and read on until it holds a boundary
            scan = _scan(source, block, offset)
            if scan.cut or scan.closed is not None:
                run, next_at = block[: scan.cut], scan.next_at
                if scan.closed is not None:
                    _nothing_after(source, block, offset, scan.closed)
                    run = block[: scan.closed]
                    if run.rstrip(_SPACE):
                        run = run.rstrip(_SPACE)
                        yield offset, len(run), _decoded(source, run, offset)
                    return
                seam = scan.seam
                rows = _decoded(source, run, offset)
            elif (longer := source.more(block, offset)) is not block:
                block = longer
            else:
                source.cut_short(
                    f"the row that starts at byte {offset} has no end" if block else "without its `]`"
                )
        yield offset, len(run), rows
        offset, block = offset + next_at, block[next_at:]


def _seams(block: bytes, seam: bytes) -> Iterator[tuple[int, int]]:
    """The last two places where a known seam stands: (end of an element, start of the next)."""
    end = len(block)
    for _ in range(2):
        end = block.rfind(seam, 0, end) if seam else -1
        if end < 0:
            return
        yield end + 1, end + seam.index(b"{")


@dataclass
class _Scan:
    cut: int = 0  # where the last element that another one follows ends
    next_at: int = 0
    seam: bytes = b""
    closed: int | None = None  # where the array's own bracket closes


def _scan(source: _Source, block: bytes, offset: int) -> _Scan:
    """Counts brackets outside of strings from an element's start."""
    found = _Scan()
    depth = end = 0
    for token in _TOKEN.finditer(block):
        at = token.start()
        byte = block[at]
        if depth == 0:
            between = block[end:at].strip(_SPACE)
            if byte == 0x5D:  # ]
                if between:
                    source.fail(offset + end, f"{between[:20]!r} before the closing bracket", _NOT_ROWS)
                found.closed = at
                return found
            if byte != 0x7B or between != (b"," if end else b""):
                source.fail(
                    offset + end, f"an array of objects was expected, not {block[end : at + 12]!r}", _NOT_ROWS
                )
            if end:
                key = _FIRST_KEY.match(block, at)
                found.cut, found.next_at = end, at
                found.seam = block[end - 1 : key.end() if key else at + 1]
        if byte in b"{[":
            depth += 1
        elif byte in b"}]":
            depth -= 1
            end = token.end()
    if depth == 0 and len(block) - end > len(b",") and block[end:].strip(_SPACE) not in (b"", b","):
        source.fail(
            offset + end, f"an array of objects was expected, not {block[end : end + 20]!r}", _NOT_ROWS
        )
    return found


def _nothing_after(source: _Source, block: bytes, offset: int, closed: int) -> None:
    """Raises SourceError when anything but space follows the closing bracket."""
    at, rest = offset + closed + 1, block[closed + 1 :]
    while rest:
        if left := rest.lstrip(_SPACE):
            where = at + len(rest) - len(left)
            source.fail(where, f"{left[:20]!r} after the closing bracket", "One array was expected")
        at += len(rest)
        rest = source.read(1 << 20)


# JSON Lines


def _line_runs(source: _Source) -> Iterator[tuple[int, int, list[Any]]]:
    """(offset, size, rows) of runs of whole lines."""
    offset = source.file.tell()
    block = source.more(b"", offset)
    alone = source.path.suffix not in _LINE_SUFFIXES  # until a second object comes
    while block:
        cut = block.rfind(b"\n") + 1
        if not cut:
            longer = source.more(block, offset)
            if longer is not block:
                block = longer
                continue
            cut = len(block)
        run, block = block[:cut], block[cut:]
        rows = _decoded_lines(source, run, offset)
        block = block if b"\n" in block else source.more(block, offset + cut)
        if alone and len(rows) == 1 and not block.strip(_SPACE):
            _one_object(source, run, offset)
        if rows:
            alone = False
            yield offset, cut, rows
        offset += cut


def _one_object(source: _Source, run: bytes, offset: int, cause: Exception | None = None) -> NoReturn:
    key = _FIRST_KEY.match(run.lstrip(_SPACE))
    named = f", its first key is {key[0][1:].strip(_SPACE).decode(errors='replace')}" if key else ""
    then = "An array of objects was expected, or JSON Lines in a file named .jsonl"
    source.fail(offset, f"the file is one JSON object{named}", then, cause)


def _decoded_lines(source: _Source, run: bytes, offset: int) -> list[Any]:
    """The objects of whole lines; each line is one."""
    try:
        rows = _line_rows.decode_lines(run)
        if len(rows) == run.count(b"\n") + (not run.endswith(b"\n")):
            return rows
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    rows = []
    at = offset
    for line in run.split(b"\n"):
        if line.strip(_SPACE):
            try:
                rows += _decoded(source, line, at)
                if len(rows) and not line.lstrip(_SPACE).startswith(b"{"):
                    source.fail(at, f"a line that isn't an object, {line[:20]!r}", _NOT_ROWS)
            except SourceError as error:
                if at + len(line) == source.size:
                    what = f"cut short: {error}"
                    raise SourceError(f"{str(source.path)!r}, byte {source.size}: {what}") from error
                if at == offset and not rows and line.strip(_SPACE) == b"{":
                    _one_object(source, run, offset, error)
                raise
        at += len(line) + 1
    return rows


# Decoding


def _rows_of(run: bytes) -> list[Any] | None:
    """The objects of a run, or None when it isn't whole (or isn't well-formed; the caller finds out)."""
    try:
        return _rows.decode(b"[" + run + b"]")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _decoded(source: _Source, run: bytes, offset: int) -> list[Any]:
    """The objects of a run that is known to be whole elements. Raises SourceError with the byte that is wrong.

    What Python's own `json` writes but no standard allows is read too: NaN and Infinity as they are, half of a
    surrogate pair as U+FFFD, because it could never be written again.
    """
    rows = _rows_of(run)
    if rows is not None:
        return rows
    try:
        run.decode()
    except UnicodeDecodeError as error:
        source.fail(
            offset + error.start, f"invalid UTF-8, {run[error.start : error.start + 8]!r}", cause=error
        )
    text = _ESCAPE.sub(lambda m: b"\\ufffd" if m[1] else m[0], run).decode()
    try:
        rows = json.loads(f"[{text}]")
    except json.JSONDecodeError as error:
        at = offset + len(text[: max(0, error.pos - 1)].encode())
        source.fail(at, f"not JSON ({error.msg}), {text[max(0, error.pos - 1) :][:20]!r}", cause=error)
    except RecursionError as error:
        source.fail(offset, "nested too deeply", _NOT_ROWS, error)
    except ValueError as error:  # a number of thousands of digits
        source.fail(offset, f"not JSON ({error})", _NOT_ROWS, error)
    strange = next((row for row in rows if not isinstance(row, dict)), None)
    if strange is not None or None in rows:
        source.fail(offset, f"an array of objects was expected, not {str(strange)[:20]!r} inside", _NOT_ROWS)
    return list(rows)
