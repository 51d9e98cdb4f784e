"""Headers of pictures: type, size and orientation, read without decoding any pixel.

`jpeg_segments` and `png_chunks` walk a file for callers that go on to decode it.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from datakit.errors import BadImage

_MAX_STEPS = 1 << 18  # of a walk; a PNG of 2 GiB in chunks of 8 KiB, 0.1 s
_EXTENT = re.compile(rb"ispe\0{4}(.{8})", re.DOTALL)
_UNREADABLE = {"heic", "ico", "psd", "jp2", "jxl"}


def sniff(data: bytes) -> str | None:
    """The type of a file by its first bytes, or None when they are of no known type."""
    head = bytes(data[:32])
    if head.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp":
        brands = bytes(data[8:64])
        if b"avif" in brands or b"avis" in brands:
            return "avif"
        return "heic" if re.match(rb"hei|hev|mif1|msf1", brands) else None
    if head.startswith(b"BM") and head[14:18] in {bytes([n, 0, 0, 0]) for n in (12, 40, 52, 56, 64, 108, 124)}:
        return "bmp"
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    text = bytes(data[:4096]).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<"):
        return "svg" if b"<svg" in text and b"<html" not in text else "html"
    return None


_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "png", b"GIF87a": "gif", b"GIF89a": "gif", b"II*\0": "tiff", b"MM\0*": "tiff",
    b"\0\0\1\0": "ico", b"8BPS": "psd", b"\0\0\0\x0cjP  ": "jp2", b"\xff\x4f\xff\x51": "jp2",
    b"\xff\x0a": "jxl", b"\0\0\0\x0cJXL ": "jxl",
}  # fmt: skip


def readable_type(data: bytes) -> str:
    """The type of a picture that datakit can read. Raises BadImage for all other bytes."""
    kind = sniff(data)
    if kind in (None, "html", "svg"):
        raise BadImage("not_an_image", kind or ("no known header" if data else "no bytes"))
    if kind in _UNREADABLE:
        raise BadImage("unsupported", str(kind))
    return str(kind)


def walk_steps(kind: str) -> Iterator[int]:
    """The steps that a walk through a file may take, whatever lengths it states; one more raises BadImage."""
    yield from range(_MAX_STEPS)
    raise BadImage("corrupt", f"{kind} of more than {_MAX_STEPS} blocks")


# JPEG


class Frame(NamedTuple):
    """How a JPEG is coded, and its size."""

    process: int  # the SOF marker's second byte
    bits: int
    height: int
    width: int
    components: int


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, first byte of its body, end) of every segment of a JPEG up to and with the first SOS."""
    at = 2
    for _ in walk_steps("jpg"):
        if at + 4 > len(data):
            raise BadImage("truncated", f"JPEG headers end at byte {len(data)}")
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0x00:  # junk, which libjpeg warns of and skips
            at = data.find(b"\xff", at + 1)
            if at < 0:
                raise BadImage("truncated", f"JPEG headers end at byte {len(data)}")
        elif marker in (0xD8, 0xD9):
            raise BadImage("corrupt", f"a JPEG marker {marker:#x} at byte {at}, before any picture")
        elif marker == 0xFF:  # a fill byte
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a body
            at += 2
        else:
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
            if end < at + 4:
                raise BadImage("corrupt", f"a JPEG segment without length at byte {at}")
            if end > len(data):
                raise BadImage("truncated", f"a JPEG segment needs bytes up to {end}, there are {len(data)}")
            yield marker, at + 4, end
            if marker == 0xDA:
                return
            at = end


def jpeg_sof(data: bytes, segment: tuple[int, int, int]) -> Frame | None:
    """What a segment says about the frame; None when it is of another kind."""
    marker, start, _ = segment
    if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
        return Frame(marker, *struct.unpack_from(">BHHB", data, start))
    return None


def jpeg_frame(data: bytes) -> Frame:
    """What the first SOF segment says. Raises BadImage."""
    for segment in jpeg_segments(data):
        if (frame := jpeg_sof(data, segment)) is not None:
            return frame
    raise BadImage("corrupt", "a JPEG without a frame")


# PNG


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, end of its body) of every chunk of a PNG, each checked against its CRC, up to and with IEND."""
    at, view, name, remaining_steps = 8, memoryview(data), b"", walk_steps("png")
    while name != b"IEND":
        next(remaining_steps)
        if at + 12 > len(data):
            raise BadImage("truncated", f"PNG ends at byte {len(data)} without an end mark")
        length = int.from_bytes(view[at : at + 4])
        end = at + 8 + length
        if end + 4 > len(data):
            raise BadImage("truncated", f"a PNG chunk needs bytes up to {end + 4}, there are {len(data)}")
        name = data[at + 4 : at + 8]
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise BadImage("corrupt", f"checksum of the PNG chunk at byte {at}")
        if (name == b"IHDR") != (at == 8):
            raise BadImage("corrupt", f"PNG header at byte {at}")
        if not name[0] & 0x20 and name not in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            raise BadImage("unsupported", f"PNG with a critical chunk {name!r}")
        yield name, at + 8, end
        at = end + 4


# EXIF, which is a small TIFF


def orientation(exif: bytes) -> int:
    """The EXIF orientation, 1 to 8; 0 for EXIF that can't be read: Pillow warns of it, so it can't be stored."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4], "")
    turn = 1
    try:
        for tag, kind, count, at in _entries(tiff, order) if order else ():
            if tag == 0x112:
                turn = struct.unpack_from(order + ("I" if kind == 4 else "H"), tiff, at)[0]
            need = _TIFF_BYTES.get(kind, 0) * count
            if need > 4 and struct.unpack_from(f"{order}I", tiff, at)[0] + need > len(tiff):
                return 0
        if order:  # where the next folder is; Pillow warns when it is cut off
            start = struct.unpack_from(f"{order}I", tiff, 4)[0]
            struct.unpack_from(f"{order}I", tiff, start + 2 + 12 * struct.unpack_from(f"{order}H", tiff, start)[0])
    except struct.error:
        return 0
    return (turn if 1 <= turn <= 8 else 1) if order else 0


_TIFF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}


def _entries(tiff: bytes, order: str) -> Iterator[tuple[int, int, int, int]]:
    """(tag, type, count, offset of the value) of each entry of a TIFF's first folder."""
    start: int = struct.unpack_from(f"{order}I", tiff, 4)[0]
    for at in range(start + 2, start + 2 + 12 * struct.unpack_from(f"{order}H", tiff, start)[0], 12):
        tag, kind, count, _ = struct.unpack_from(f"{order}HHII", tiff, at)
        yield tag, kind, count, at + 8


# Sizes of the other formats


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        wide, high = struct.unpack_from("<3s3s", data, 24)
        return 1 + int.from_bytes(wide, "little"), 1 + int.from_bytes(high, "little")
    if kind == b"VP8L":
        bits: int = struct.unpack_from("<I", data, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _bmp_size(data: bytes) -> tuple[int, int]:
    if data[14] == 12:
        return struct.unpack_from("<HH", data, 18)
    width, height = struct.unpack_from("<ii", data, 18)
    return width, abs(height)  # a negative height: rows from top to bottom


def _tiff_size(data: bytes) -> tuple[int, int]:
    order = "<" if data[:2] == b"II" else ">"
    found = {256: 0, 257: 0}
    for tag, kind, _, at in _entries(data, order):
        if tag in found:
            found[tag] = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, at)[0]
    return found[256], found[257]


def _avif_size(data: bytes) -> tuple[int, int]:
    """The largest of the sizes that the `ispe` properties state: the whole, not a tile or a preview."""
    found = [struct.unpack(">II", m[1]) for m in _EXTENT.finditer(data, 0, 1 << 20)]
    if not found:
        raise IndexError("no ispe")
    return max(found, key=lambda wh: wh[0] * wh[1])


SIZES: dict[str, Any] = {  # of a JPEG, `jpeg_sof` says it
    "png": lambda data: struct.unpack_from(">II", data, 16),
    "gif": lambda data: struct.unpack_from("<HH", data, 6),
    "webp": _webp_size,
    "bmp": _bmp_size,
    "tiff": _tiff_size,
    "avif": _avif_size,
}
