"""Tars as WebDataset reads them: USTAR, no time, no owner, so that the same samples give the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from datakit.errors import SourceError

BLOCK = 512
_ZEROS = bytes(BLOCK)


def header(name: str, size: int) -> bytes:
    """The 512 bytes before a member's data. Names are ASCII, up to 100 characters; sizes below 8 GiB."""
    encoded = name.encode("ascii")
    if len(encoded) > 100 or size >= 8 << 30:
        raise ValueError(f"a tar member of {size} bytes named {name!r} doesn't fit a USTAR header")
    fields = b"%-100b0000644\0000000000\0000000000\000%011o\00000000000000\000        0" % (
        encoded.ljust(100, b"\0"),
        size,
    )
    block = (fields.ljust(257, b"\0") + b"ustar\00000").ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


class TarWriter:
    """Appends members to a file that only needs `write`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._at = 0

    def add(self, name: str, data: bytes) -> int:
        """Writes one member and returns the offset of its first byte."""
        pad = -len(data) % BLOCK
        self._file.write(header(name, len(data)))
        self._file.write(data)
        if pad:
            self._file.write(_ZEROS[:pad])
        offset = self._at + BLOCK
        self._at = offset + len(data) + pad
        return offset

    def close(self) -> None:
        """Writes the end mark; the file stays the caller's."""
        self._file.write(_ZEROS + _ZEROS)
        self._at += 2 * BLOCK


class Member(NamedTuple):
    name: str
    offset: int
    size: int


def members(file: BinaryIO) -> Iterator[Member]:
    """The members of a tar that datakit wrote. Raises SourceError when the tar is cut short or damaged."""
    at = 0
    while True:
        file.seek(at)
        block = file.read(BLOCK)
        if block == _ZEROS:
            if file.read(BLOCK) != _ZEROS:
                raise SourceError(f"tar cut short at byte {at}: the end mark is incomplete")
            return
        if len(block) < BLOCK or block[257:262] != b"ustar":
            raise SourceError(f"tar cut short or damaged at byte {at}")
        total = sum(block[:148]) + 8 * 32 + sum(block[156:])
        if int(block[148:154], 8) != total:
            raise SourceError(f"tar header at byte {at} has a wrong checksum")
        size = int(block[124:135], 8)
        yield Member(block[:100].rstrip(b"\0").decode("ascii"), at + BLOCK, size)
        at += BLOCK + size + -size % BLOCK
