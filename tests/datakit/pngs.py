"""PNG files whose checksums are right, whatever else is wrong with them."""

import zlib


def resealed(data: bytes) -> bytes:
    """A PNG whose checksums are right again, so that what was changed gets past them."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at : at + 4])
        if end + 4 > len(out):
            break
        out[end : end + 4] = zlib.crc32(out[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(out)
