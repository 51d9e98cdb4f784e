"""Structure: whether a picture's file is whole, walked from block to block; no pixel is decoded.

Every picture passes `walk`, whether its bytes are kept or decoded. The number of steps of a walk is bounded
(`walk_steps`), whatever lengths a file states, and each step goes forward.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from datakit.errors import BadImage
from datakit.images.headers import SIZES, jpeg_segments, jpeg_sof, png_chunks, readable_type, walk_steps

MAX_FRAMES = 1000  # of an animation: more is a film, or made to keep a decoder busy
_MAX_SCANS = 100  # a progressive JPEG has about ten; thousands keep a decoder busy for minutes

_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_SCAN = re.compile(rb"\xff\xda")  # takes a third of the time of bytes.count
_GIF_MARK = re.compile(rb"[!,;]")
_AVIF_BOXES = frozenset({b"ftyp", b"meta", b"mdat", b"moov", b"free", b"skip"})
_SAMPLES = re.compile(rb"stsz\0{4}.{4}(.{4})", re.DOTALL)


class Structure(NamedTuple):
    """What a walk through a picture's file has found."""

    kind: str
    width: int
    height: int
    parts: list[tuple[Any, int, int]]
    """(marker or name, first byte, end) of a JPEG's segments up to its first scan, or of a PNG's chunks."""


def walk(data: bytes, max_pixels: int) -> Structure:
    """The structure of a picture's file. Raises BadImage for an unsupported type, damage, or too many pixels."""
    kind = readable_type(data)
    try:
        if kind == "jpg":  # its headers hold the size, and are walked once
            return _walk_jpeg(data, max_pixels)
        width, height = SIZES[kind](data)
        check_size(kind, width, height, max_pixels)
        if kind == "png":
            return Structure(kind, width, height, _walk_png(data))
        if kind == "gif":
            width, height = _walk_gif(data, width, height, max_pixels)
        elif kind == "webp":
            _walk_webp(data)
        elif kind == "bmp":
            _check_bmp_rows(data, width, height)
        elif kind == "avif":
            _walk_avif(data)
    except (struct.error, IndexError) as error:
        raise BadImage("truncated", f"the {kind} headers are cut short") from error
    return Structure(kind, width, height, [])


def check_size(kind: str, width: int, height: int, max_pixels: int) -> None:
    """Raises BadImage for a picture without pixels, or with too many."""
    if width <= 0 or height <= 0:
        raise BadImage("not_an_image", f"{kind} of {width} x {height} pixels")
    if width * height > max_pixels:
        raise BadImage("pixels", f"{kind} of {width} x {height} pixels, at most {max_pixels}")


def _check_frames(kind: str, n_frames: int) -> None:
    if n_frames > MAX_FRAMES:
        raise BadImage("frames", f"{kind} of {n_frames} frames or more, at most {MAX_FRAMES}")


def _walk_jpeg(data: bytes, max_pixels: int) -> Structure:
    """Checks headers, size, coding process, number of scans and end marker."""
    frame, segments = None, []
    for segment in jpeg_segments(data):
        segments.append(segment)
        if (found := jpeg_sof(data, segment)) is not None:
            if frame is not None:
                raise BadImage("corrupt", "a JPEG with two frames")
            frame = found
            check_size("jpg", frame.width, frame.height, max_pixels)
    if frame is None:
        raise BadImage("corrupt", "a JPEG without a frame")
    if frame.process not in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA) or frame.bits != 8 or frame.components not in (1, 3, 4):
        raise BadImage("unsupported", f"JPEG process {frame.process:#x}, {frame.bits} bits, {frame.components} planes")
    end = segments[-1][2]
    if frame.process in (0xC2, 0xCA) and _n_more_scans(data, end) > _MAX_SCANS:
        raise BadImage("corrupt", f"a JPEG of more than {_MAX_SCANS} scans")
    if data.rfind(b"\xff\xd9", end) < 0:
        raise BadImage("truncated", f"JPEG ends at byte {len(data)} without an end mark")
    return Structure("jpg", frame.width, frame.height, segments)


def _n_more_scans(data: bytes, at: int) -> int:
    """Number of scans after the first one; counting stops just above _MAX_SCANS."""
    return sum(1 for _ in islice(_SCAN.finditer(data, at), _MAX_SCANS + 1))


def _walk_png(data: bytes) -> list[tuple[bytes, int, int]]:
    """The chunks, after checking their checksums, the header's fields, and the stated and actual number of frames."""
    chunks = list(png_chunks(data))
    if chunks[0][2] - chunks[0][1] != 13:
        raise BadImage("corrupt", f"a PNG header of {chunks[0][2] - chunks[0][1]} bytes")
    depth, colour, packing, filtering, interlace = data[24:29]
    if depth not in _PNG_DEPTHS.get(colour, ()) or packing or filtering or interlace > 1:
        raise BadImage("corrupt", f"PNG of colour type {colour} with {depth} bits")
    names = [name for name, _, _ in chunks]
    if b"IDAT" not in names:
        raise BadImage("truncated", "a PNG without pixel data")
    stated = (int.from_bytes(data[start : min(start + 4, end)]) for name, start, end in chunks if name == b"acTL")
    _check_frames("png", max(names.count(b"fcTL"), *stated, 0))
    return chunks


def _walk_gif(data: bytes, width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """Walks every block up to the trailer and returns width and height; a first frame beyond the screen enlarges it."""
    at, n_frames, remaining_steps = 13 + _colour_table_bytes(data[10]), 0, walk_steps("gif")
    for _ in remaining_steps:
        mark = _GIF_MARK.search(data, at)  # decoders skip anything else between blocks
        if mark is None:
            raise BadImage("truncated", f"GIF ends at byte {len(data)} without a trailer")
        at = mark.end()
        if mark[0] == b";":
            break
        if mark[0] == b",":
            left, top, wide, high, flags = struct.unpack_from("<HHHHB", data, at)
            check_size("gif", left + wide, top + high, max_pixels)
            if not n_frames:
                width, height = max(width, left + wide), max(height, top + high)
                check_size("gif", width, height, max_pixels)
            n_frames += 1
            _check_frames("gif", n_frames)
            at += 9 + _colour_table_bytes(flags)
        at = _end_of_blocks(data, at + 1, remaining_steps)  # after an extension's label, or the pixels' code size
    if not n_frames:
        raise BadImage("truncated", "a GIF without a picture")
    return width, height


def _colour_table_bytes(flags: int) -> int:
    """Bytes of the colour table that a GIF's flags announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _end_of_blocks(data: bytes, at: int, remaining_steps: Iterator[int]) -> int:
    """The offset after a GIF's data blocks (each a length and as many bytes) and the empty block that ends them."""
    while length := data[at]:
        at += 1 + length
        next(remaining_steps)
    return at + 1


def _walk_webp(data: bytes) -> None:
    """Walks the chunks up to the end that the header states."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise BadImage("truncated", f"WebP of {end} bytes, there are {len(data)}")
    at, n_frames = 12, 0
    for _ in walk_steps("webp"):
        if at + 8 > end:
            return
        name, length = struct.unpack_from("<4sI", data, at)
        at += 8 + length + (length & 1)
        if at > end + 1:  # the last one's fill byte is often left out
            raise BadImage("truncated", f"a WebP chunk needs bytes up to {at}, the picture ends at {end}")
        n_frames += name == b"ANMF"
        _check_frames("webp", n_frames)


def _check_bmp_rows(data: bytes, width: int, height: int) -> None:
    """Raises BadImage when rows of an uncompressed BMP are missing."""
    old = data[14] == 12
    bits = struct.unpack_from("<H", data, 24 if old else 28)[0]
    if not old and struct.unpack_from("<I", data, 30)[0] not in (0, 3, 6):
        return
    rows = (height - 1) * ((width * bits + 31) // 32 * 4) + (width * bits + 7) // 8
    due = int.from_bytes(data[10:14], "little") + rows
    if due > len(data):
        raise BadImage("truncated", f"BMP of {due} bytes, there are {len(data)}")


def _walk_avif(data: bytes) -> None:
    """Walks the boxes of a file, and checks the number of frames that a sequence states."""
    at, pixels = 0, data.find(b"idat", 0, 1 << 20) >= 0  # pixels may be in the `meta` box too
    for _ in walk_steps("avif"):
        name = data[at + 4 : at + 8]
        if name not in _AVIF_BOXES:  # the end, or bytes after the picture
            break
        pixels = pixels or name == b"mdat"
        length, head = int.from_bytes(data[at : at + 4]), 8
        if length == 0:  # up to the end
            break
        if length == 1:
            length, head = struct.unpack_from(">Q", data, at + 8)[0], 16
        if length < head:
            raise BadImage("corrupt", f"an AVIF box of {length} bytes at byte {at}")
        at += length
        if at > len(data):
            raise BadImage("truncated", f"an AVIF box needs bytes up to {at}, there are {len(data)}")
    if not pixels:
        raise BadImage("truncated", f"an AVIF of {len(data)} bytes without pixels")
    for found in _SAMPLES.finditer(data, 0, 1 << 20):
        _check_frames("avif", int.from_bytes(found[1]))
