"""Tars as WebDataset reads them: USTAR, no time, no owner, so that the same samples give the same bytes."""

from __future__ import annotations

from typing import BinaryIO

BLOCK = 512
_ZEROS = bytes(BLOCK)
_OWNER = b"0000644\0" + 2 * b"0000000\0"  # mode, user, group
_TIME = b"\0" + b"00000000000\0"  # after the end of the size
_REST = (b"0" + 100 * b"\0" + b"ustar\0" + b"00").ljust(BLOCK - 156, b"\0")  # a plain file
_SUM = sum(_OWNER + _TIME + 8 * b" " + _REST)
_BUFFER_BYTES = 256 << 10  # small writes are gathered, since each call costs more than its bytes


def header(name: str, size: int) -> bytes:
    """The 512 bytes before a member's data. Names are ASCII, up to 100 characters; sizes below 8 GiB."""
    encoded = name.encode("ascii")
    if len(encoded) > 100 or size >= 8 << 30:
        raise ValueError(f"a tar member of {size} bytes named {name!r} doesn't fit a USTAR header")
    stated = b"%011o" % size
    checksum = b"%06o\0 " % (_SUM + sum(encoded) + sum(stated))
    return b"".join((encoded.ljust(100, b"\0"), _OWNER, stated, _TIME, checksum, _REST))


class TarWriter:
    """Appends members to a file that only needs `write`. Members are buffered: the last are written by `close`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._at = 0
        self._buffer: list[bytes] = []
        self._written = 0

    def add(self, name: str, data: bytes) -> int:
        """Writes one member and returns the offset of its first byte."""
        pad = -len(data) % BLOCK
        offset = self._at + BLOCK
        self._at = offset + len(data) + pad
        self._buffer.append(header(name, len(data)))
        if len(data) >= _BUFFER_BYTES:  # not copied once more
            self._flush()
            self._file.write(data)
        else:
            self._buffer.append(data)
        self._buffer.append(_ZEROS[:pad])
        if self._at - self._written >= _BUFFER_BYTES:
            self._flush()
        return offset

    def _flush(self) -> None:
        self._file.write(b"".join(self._buffer))
        self._buffer.clear()
        self._written = self._at

    def close(self) -> None:
        """Writes what is left and the end mark; the file stays the caller's."""
        self._buffer.append(_ZEROS + _ZEROS)
        self._at += 2 * BLOCK
        self._flush()
