"""Members of archives: where a file's bytes are inside a zip or tar, and how they are read.

Nothing in an archive is trusted: `read` never makes more bytes than are stated, and checks them. Names are only looked
up, never written to; `clean_name` nevertheless rejects those that could leave a folder.
"""

from __future__ import annotations

import io
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from datakit.errors import ArchiveError

STORED, DEFLATED = 0, 8
MAX_MEMBER_BYTES = 256 << 20
_PIECE = 1 << 20
_HOSTILE = re.compile(r"^/|^[A-Za-z]:|\\|[\x00-\x1f\x7f]|(?:^|/)\.\.(?:/|$)")


class Member(NamedTuple):
    """Where a file's bytes are inside an archive."""

    name: str
    offset: int  # of the first byte of the data itself
    stored_bytes: int
    size_bytes: int  # as it was before it was compressed
    method: int  # 0 stored, 8 deflate
    crc32: int | None = None  # None: the archive has none


def read(file: int | IO[bytes], member: Member, *, max_bytes: int = MAX_MEMBER_BYTES) -> bytes:
    """The bytes of a member of an open archive; safe from several threads at once.

    Never makes more than the size the archive states. Raises ArchiveError for another size or checksum.
    """
    fd = file if isinstance(file, int) else file.fileno()
    if member.size_bytes > max_bytes or member.stored_bytes > max_bytes + (max_bytes >> 4) + 4096:
        _fail_member(
            member, f"{member.size_bytes} bytes, {member.stored_bytes} stored, above the ceiling of {max_bytes}"
        )
    data = pread(fd, member.stored_bytes, member.offset)
    if len(data) < member.stored_bytes:
        _fail_member(member, f"the archive is cut short, {len(data)} of {member.stored_bytes} bytes are there")
    if member.method == DEFLATED:
        inflate = zlib.decompressobj(-15)
        try:
            data = inflate.decompress(data, member.size_bytes + 1)
        except zlib.error as error:
            raise ArchiveError(f"member {member.name!r}: {error}. Fetch the archive again.") from error
        if not inflate.eof and len(data) <= member.size_bytes:
            _fail_member(member, "the compressed data is cut short")
    elif member.method != STORED:
        _fail_member(member, f"method {member.method!r} is neither stored (0) nor deflate (8)")
    if len(data) != member.size_bytes:
        more = "more than " if len(data) > member.size_bytes else ""
        _fail_member(member, f"{more}{min(len(data), member.size_bytes)} bytes where {member.size_bytes} are stated")
    if member.crc32 is not None and zlib.crc32(data) != member.crc32:
        _fail_member(member, "its checksum differs")
    return data


def pieces(file: IO[bytes], member: Member, *, max_bytes: int) -> Iterator[bytes]:
    """The bytes of a large member, a piece at a time; they are verified only once the last piece has come.

    Raises ArchiveError as `read` does.
    """
    if member.size_bytes > max_bytes:
        _fail_member(member, f"{member.size_bytes} bytes, above the ceiling of {max_bytes}")
    if member.method not in (STORED, DEFLATED):
        _fail_member(member, f"method {member.method!r} is neither stored (0) nor deflate (8)")
    inflate = zlib.decompressobj(-15) if member.method == DEFLATED else None
    at, end, size, crc = member.offset, member.offset + member.stored_bytes, 0, 0
    while at < end:
        data = pread(file.fileno(), min(_PIECE, end - at), at)
        if not data:
            _fail_member(member, "the archive is cut short")
        at += len(data)
        for piece in [data] if inflate is None else _inflate(inflate, data, member):
            size, crc = size + len(piece), zlib.crc32(piece, crc)
            if size > member.size_bytes:
                _fail_member(member, f"more than the {member.size_bytes} bytes that are stated")
            yield piece
    if size != member.size_bytes or (inflate is not None and not inflate.eof):
        _fail_member(member, f"{size} bytes where {member.size_bytes} are stated")
    if member.crc32 is not None and crc != member.crc32:
        _fail_member(member, "its checksum differs")


def _inflate(inflate: Any, data: bytes, member: Member) -> Iterator[bytes]:
    """The next compressed bytes, decompressed, in pieces of at most _PIECE."""
    while True:
        try:
            piece = inflate.decompress(data, _PIECE)
        except zlib.error as error:
            raise ArchiveError(f"member {member.name!r}: {error}. Fetch the archive again.") from error
        data = inflate.unconsumed_tail
        if not piece and not data:
            return
        yield piece


def _fail_member(member: Member, what: str) -> NoReturn:
    raise ArchiveError(f"member {member.name!r} at byte {member.offset}: {what}. Fetch the archive again.")


def pread(fd: int, n: int, at: int) -> bytes:
    """`n` bytes from byte `at` of a file, fewer only at its end: the system may return less than there is."""
    data = os.pread(fd, n, at)
    if len(data) == n or not data:
        return data
    parts = [data]
    while n > (have := sum(map(len, parts))) and (data := os.pread(fd, n - have, at + have)):
        parts.append(data)
    return b"".join(parts)


class ArchiveFile:
    """An archive being indexed, and the errors that name its path and byte."""

    def __init__(self, path: Path, file: io.FileIO) -> None:
        self.path = path
        self.fd = file.fileno()
        self.size = os.fstat(self.fd).st_size

    def at(self, offset: int, n: int) -> bytes:
        return pread(self.fd, n, offset)

    def fail(self, at: int, what: str, then: str = "Fetch it again") -> NoReturn:
        end = "" if then.endswith("?") else "."
        raise ArchiveError(f"{str(self.path)!r}, byte {at}: {what}. {then}{end}")


def clean_name(raw: bytes | str, skipped: Counter[str]) -> str | None:
    """A member's name without `./`; None for an unsafe one, which `skipped` counts."""
    try:
        name = raw if isinstance(raw, str) else raw.decode()
    except UnicodeDecodeError:
        skipped["name_not_utf8"] += 1
        return None
    if _HOSTILE.search(name):
        skipped["unsafe_name"] += 1
        return None
    if "//" in name or "./" in name:
        name = "/".join(part for part in name.split("/") if part not in ("", "."))
    if name in ("", "."):
        skipped["unsafe_name"] += 1
        return None
    return name
