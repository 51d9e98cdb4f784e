"""Pictures: untrusted bytes checked, and normalised to bytes that every decoder reads the same.

1. `sniff` finds the type by content, without decoding anything.
2. `inspect` walks the file's structure: a supported type, not too many pixels or frames, not truncated.
3. `normalise` checks that the pixels are whole too, and keeps the bytes of plain JPEG and PNG files.
4. Anything else is decoded, laid over white, converted to 8-bit sRGB, shrunk, turned upright and written as JPEG.

A JPEG that decoders warn about, such as one with junk before its end marker, is written anew too, so that no stored
picture causes a warning. Of an animation the first frame is taken; one of more than MAX_FRAMES frames is rejected.

Every rejection is a BadImage with one of the reasons `not_an_image`, `unsupported`, `pixels`, `frames`, `truncated`
and `corrupt`.
"""

from __future__ import annotations

import io
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
import simplejpeg

from datakit.errors import BadImage
from datakit.images import jpegs
from datakit.images.colours import Pixels, apply_profile, profile_effect
from datakit.images.headers import jpeg_sof, orientation, sniff
from datakit.images.structure import MAX_FRAMES, Structure, walk

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["MAX_FRAMES", "MAX_PIXELS", "Picture", "Resize", "Rounding", "inspect", "normalise", "sniff"]

Resize = Literal["area", "linear"]
Rounding = Literal["nearest", "down"]

MAX_PIXELS = 89_478_485  # where Pillow starts to warn; 0.25 GiB of RGB
MAX_SIDE_PX = 65_500  # libjpeg's JPEG_MAX_DIMENSION
_MAX_PROFILE_BYTES = 4 << 20
_XMP_TURN = re.compile(rb"tiff:Orientation(?:=[\"']|>)\s*[2-8]")
_PILLOW = {
    "jpg": "JPEG",
    "png": "PNG",
    "gif": "GIF",
    "webp": "WEBP",
    "bmp": "BMP",
    "tiff": "TIFF",
    "avif": "AVIF",
}
# What Pillow's plugins are known to raise for bytes that lie; MemoryError is not among them.
_PILLOW_FAULTS = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, LookupError,
    ArithmeticError, RuntimeError, AssertionError, struct.error, zlib.error, Warning,
)  # fmt: skip
_BIG_PIXELS = 12 << 20  # from there on pictures are decoded one at a time, so that memory stays small
_big_lock = threading.Lock()
_tiff_lock = threading.Lock()  # warnings can only be silenced for one thread at a time


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture ready to be stored: 8-bit grey or RGB, upright, opaque, whole."""

    data: bytes
    ext: str  # "jpg" or "png"
    width: int
    height: int
    changed: bool  # False: these are the bytes that came in


def inspect(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[str, int, int]:
    """Type, width and height of a picture whose file is whole as far as can be checked without decoding it.

    Takes 5 microseconds for a JPEG, 30 for a progressive one of 97 kB. Damage inside the pixel data is found only by
    `normalise`; width and height are those before any EXIF rotation. Raises BadImage.
    """
    return walk(data, max_pixels)[:3]


def normalise(
    data: bytes,
    *,
    max_short_side_px: int | None = None,
    quality: int = 95,
    max_pixels: int = MAX_PIXELS,
    resize: Resize = "area",
    rounding: Rounding = "nearest",
) -> Picture:
    """The picture of `data` as it is stored; the same input gives the same bytes.

    A shorter side above `max_short_side_px` is reduced to it and the aspect ratio kept; nothing is enlarged. `area`
    gives the bytes of img2dataset: the full-size picture through an area filter, written as OpenCV does (4:2:0,
    accurate DCT, no metadata). `linear` takes half the time: the picture is first reduced to a half, quarter or eighth
    if that is large enough, which a JPEG decoder does by itself, and from there by bilinear interpolation. `rounding`
    says how the longer side becomes a whole number of pixels: `nearest` as img2dataset does, `down` as VILA does.
    Raises BadImage.
    """
    if not 1 <= max_pixels <= MAX_PIXELS or not 1 <= quality <= 100:
        raise ValueError(f"max_pixels is 1 to {MAX_PIXELS}, quality 1 to 100, not {max_pixels!r} and {quality!r}")
    if max_short_side_px is not None and max_short_side_px < 1:
        raise ValueError(f"max_short_side_px is at least 1, not {max_short_side_px!r}")
    if resize not in ("area", "linear"):
        raise ValueError(f"resize is 'area' or 'linear', not {resize!r}")
    if rounding not in ("nearest", "down"):
        raise ValueError(f"rounding is 'nearest' or 'down', not {rounding!r}")
    data = bytes(data)
    structure = walk(data, max_pixels)
    with _big_lock if structure.width * structure.height > _BIG_PIXELS else nullcontext():
        return _normalise_structure(
            data, structure, partial(shrunk_size, max_short_side_px, rounding), quality, max_pixels, resize
        )


def _normalise_structure(
    data: bytes,
    structure: Structure,
    shrunk: Callable[[int, int], tuple[int, int] | None],
    quality: int,
    max_pixels: int,
    resize: Resize,
) -> Picture:
    wanted = shrunk(structure.width, structure.height)
    if structure.kind == "jpg":
        found = _jpeg_pixels(data, structure, wanted, resize, max_pixels)
    elif structure.kind == "png":
        found = _png_pixels(data, structure, wanted, max_pixels)
    else:
        found = _decode_by_pillow(structure.kind, data, max_pixels)
    if found is None:
        return Picture(data, structure.kind, structure.width, structure.height, changed=False)
    pixels, turn = found
    del found  # a big picture is in memory once, not twice
    wanted = wanted if structure.kind == "jpg" else shrunk(pixels.shape[1], pixels.shape[0])
    pixels = _resize(pixels, wanted, resize)
    pixels = np.ascontiguousarray(_TURNS[turn](pixels))
    if max(pixels.shape[:2]) > MAX_SIDE_PX:
        raise BadImage("unsupported", f"a side of {max(pixels.shape[:2])} pixels; JPEG ends at {MAX_SIDE_PX}")
    height, width = pixels.shape[:2]
    bgr = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    del pixels
    written = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    return Picture(written, "jpg", width, height, changed=True)


_TURNS: dict[int, Any] = {  # EXIF orientation -> how to bring the picture upright
    0: lambda a: a,
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def shrunk_size(short_px: int | None, rounding: Rounding, width: int, height: int) -> tuple[int, int] | None:
    """Width and height with the shorter side at its limit, or None when the picture needn't shrink."""
    short = min(width, height)
    if short_px is None or short <= short_px:
        return None
    if rounding == "down":
        return width * short_px // short, height * short_px // short
    return max(1, round(width * short_px / short)), max(1, round(height * short_px / short))


def _resize(pixels: Pixels, wanted: tuple[int, int] | None, resize: Resize) -> Pixels:
    height, width = pixels.shape[:2]
    if wanted is None or wanted == (width, height):
        return pixels
    if resize == "linear":  # from no more than twice the size: bilinear passes over the pixels between
        half = _halved_size(width, height, wanted)
        if half != (width, height):
            pixels = cv2.resize(pixels, half, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    how = cv2.INTER_AREA if resize == "area" else cv2.INTER_LINEAR
    return cv2.resize(pixels, wanted, interpolation=how).astype(np.uint8, copy=False)


def _halved_size(width: int, height: int, wanted: tuple[int, int], most: int = 1 << 16) -> tuple[int, int]:
    """Width and height halved as often as they stay at least `wanted`, at most to one `most`th."""
    parts = 1
    while parts < most and -(-width // (2 * parts)) >= wanted[0] and -(-height // (2 * parts)) >= wanted[1]:
        parts *= 2
    return -(-width // parts), -(-height // parts)


# JPEG


def _jpeg_pixels(
    data: bytes, structure: Structure, wanted: tuple[int, int] | None, resize: Resize, max_pixels: int
) -> tuple[Pixels, int] | None:
    """Pixels and EXIF orientation of a JPEG; None when its bytes can be stored as they are."""
    frame = next(frame for segment in structure.parts if (frame := jpeg_sof(data, segment)) is not None)
    exif: list[bytes] = []
    profile: dict[int, bytes] = {}
    xmp_turn = False
    for marker, start, end in structure.parts:
        body = data[start:end]
        if marker == 0xE1 and body.startswith(b"Exif\0"):
            exif.append(body)
        elif marker == 0xE1:
            xmp_turn = xmp_turn or _XMP_TURN.search(body) is not None
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) >= 14:
            profile[body[12]] = body[14:]
    icc = b"".join(profile[n] for n in sorted(profile))
    effect = profile_effect(icc, "L" if frame.components == 1 else "RGB") if frame.components != 4 else "differs"
    turn = orientation(exif[0]) if exif else 1
    head = jpegs.bare_head(data, structure.parts, frame)
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(head)
    except ValueError as error:  # libjpeg-turbo's simple interface has no odd subsamplings; Pillow has
        if "subsampling" not in str(error):
            raise jpegs.decoder_error(str(error)) from error
        height, width, space = frame.height, frame.width, "odd"
    if (height, width) != (frame.height, frame.width):
        raise BadImage("corrupt", f"two JPEG sizes, {frame.width} x {frame.height} and {width} x {height}")
    upright = turn == 1 and len(exif) <= 1 and not xmp_turn
    # Arithmetic coding and RGB planes are legal, but not every decoder reads them.
    keep = upright and effect == "same" and frame.process in (0xC0, 0xC1, 0xC2) and space in ("Gray", "YCbCr")
    if space in ("CMYK", "YCCK", "odd"):
        if space != "odd":
            jpegs.decode(data, "CMYK", (1, 1))
        pixels, _ = _decode_by_pillow("jpg", head + data[structure.parts[-1][2] :], max_pixels, icc)
        return pixels, turn
    colours = "GRAY" if frame.components == 1 else "RGB"
    # Scales other than these have no fast code in libjpeg-turbo: a full decode takes less time.
    at_least = _halved_size(structure.width, structure.height, wanted, 8) if wanted and resize == "linear" else (0, 0)
    if keep and wanted is None and not jpegs.first_complaint(data, colours):
        return None
    pixels = jpegs.decode(data, colours, at_least)
    if effect == "differs":
        from PIL import Image

        pixels = apply_profile(Image.fromarray(pixels), icc)
    return pixels, turn


# PNG

_PNG_PLANES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))


def _png_pixels(
    data: bytes, structure: Structure, wanted: tuple[int, int] | None, max_pixels: int
) -> tuple[Pixels, int] | None:
    """Pixels and EXIF orientation of a PNG; None when its bytes can be stored as they are."""
    chunks, width, height = structure.parts, structure.width, structure.height
    rows = b"".join(data[start - 8 : end + 4] for name, start, end in chunks if name == b"IDAT")
    depth, colour, interlace = data[24], data[25], data[28]
    _check_rows(data, chunks, width, height, depth * _PNG_PLANES[colour], bool(interlace))
    found: dict[bytes, bytes] = {name: data[start:end] for name, start, end in chunks if name != b"IDAT"}
    icc = _png_icc(found.get(b"iCCP"))
    turn = orientation(found[b"eXIf"]) if b"eXIf" in found else 1
    plain = depth == 8 and colour in (0, 2) and turn == 1 and not found.keys() & {b"tRNS", b"acTL", b"fcTL"}
    plain = plain and profile_effect(icc, "RGB" if colour == 2 else "L") == "same"
    plain = plain and all(_is_harmless(name, data[start:end]) for name, start, end in chunks)
    if plain and wanted is None and not interlace:
        return None  # _check_rows has inflated all of it
    if depth == 16 and colour == 2 and b"tRNS" in found:  # Pillow brings such pixels to 8 bits, but not this
        found[b"tRNS"] = bytes(b for high in found[b"tRNS"][::2] for b in (0, high))
    bare = [data[:33]]
    for name in (b"PLTE", b"tRNS"):
        if name in found:
            bare.append(_png_chunk(name, found[name]))
    pixels, _ = _decode_by_pillow("png", b"".join([*bare, rows, _png_chunk(b"IEND", b"")]), max_pixels, icc)
    return None if plain and wanted is None else (pixels, turn)


def _png_chunk(name: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4)


def _check_rows(
    data: bytes, chunks: list[tuple[bytes, int, int]], width: int, height: int, bits: int, interlaced: bool
) -> None:
    """Inflates all pixel data, a mebibyte at a time, and checks its length: Pillow doesn't notice a missing row."""
    passes = _ADAM7 if interlaced else ((0, 1, 0, 1),)
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, dx, y, dy in passes]
    due = sum(h * (1 + (w * bits + 7) // 8) for w, h in sizes if w > 0 and h > 0)
    stride = 1 + (width * bits + 7) // 8
    inflate, got = zlib.decompressobj(), 0
    try:
        for start, end in [*((s, e) for name, s, e in chunks if name == b"IDAT"), (0, 0)]:
            piece = data[start:end]
            while got <= due and not inflate.eof:
                out = inflate.decompress(piece, 1 << 20)
                if not interlaced and out and max(out[-got % stride :: stride], default=0) > 4:
                    raise BadImage("corrupt", "a PNG row with an unknown filter")
                got, piece = got + len(out), inflate.unconsumed_tail
                if not out and not piece:
                    break
    except zlib.error as error:
        raise BadImage("corrupt", f"PNG pixel data: {error}") from error
    if got != due or not inflate.eof:
        raise BadImage("corrupt" if got > due else "truncated", f"{got} bytes of PNG pixel data, {due} are due")


def _is_harmless(name: bytes, body: bytes) -> bool:
    """False for text from which other decoders take an orientation, or that could inflate beyond their limits."""
    if name in (b"tEXt", b"zTXt") and body.startswith(b"Raw profile type"):
        return False
    if name == b"zTXt" or (name == b"iTXt" and body.partition(b"\0")[2][:1] != b"\0"):
        return len(body) <= 1000  # deflate gains 1032 to 1 at most, and Pillow reads 1 MiB
    return name != b"iTXt" or _XMP_TURN.search(body) is None


def _png_icc(body: bytes | None) -> bytes:
    if body is None:
        return b""
    try:
        return zlib.decompressobj().decompress(body.partition(b"\0")[2][1:], _MAX_PROFILE_BYTES)
    except zlib.error:
        return b"broken"


# Everything else, and odd JPEG and PNG, through Pillow


def _decode_by_pillow(kind: str, data: bytes, max_pixels: int, icc: bytes | None = None) -> tuple[Pixels, int]:
    """First frame as 8-bit sRGB over white, and its EXIF orientation. `icc`, if given, replaces the file's profile."""
    from PIL import Image, features

    if kind == "avif" and not features.check("avif"):
        raise BadImage("unsupported", "this Pillow reads no AVIF")
    try:
        with ExitStack() as stack:
            if kind == "tiff":
                stack.enter_context(_tiff_lock)
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
            image = stack.enter_context(Image.open(io.BytesIO(data), formats=(_PILLOW[kind],)))
            if image.width * image.height <= max_pixels:
                image.load()
            exif = b"" if kind == "tiff" else image.info.get("exif", b"")  # Pillow has turned a TIFF by itself
            found_icc = image.info.get("icc_profile") or b""
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("pixels", str(error)) from error
    except _PILLOW_FAULTS as error:
        reason = "truncated" if "truncated" in str(error).lower() or isinstance(error, EOFError) else "corrupt"
        raise BadImage(reason, f"{kind}: {error}") from error
    if image.width * image.height > max_pixels:
        raise BadImage("pixels", f"{kind} of {image.width} x {image.height} pixels, at most {max_pixels}")
    return _flatten(image, found_icc if icc is None else icc), orientation(exif)


def _flatten(image: Image, icc: bytes) -> Pixels:
    """8-bit grey or RGB of an open image, laid over white."""
    from PIL import Image

    transparency = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        deep = np.asarray(image)
        pixels = (deep >> 8).astype(np.uint8)
        if isinstance(transparency, int):
            pixels[deep == transparency] = 255
        return apply_profile(Image.fromarray(pixels), icc)
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if image.mode == "CMYK":
        return apply_profile(image, icc)
    if image.mode not in ("1", "L", "P", "RGB", "YCbCr", "LA", "PA", "RGBA"):
        raise BadImage("unsupported", f"pixels of mode {image.mode}")
    flat = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.mode in ("LA", "PA", "RGBA") or transparency is not None:
        try:
            with_alpha = image.convert("RGBA")
        except _PILLOW_FAULTS as error:  # a transparent colour that the mode doesn't have
            raise BadImage("corrupt", f"transparency {transparency!r} in mode {image.mode}") from error
        image = Image.new(flat, with_alpha.size, "white")
        image.paste(with_alpha.convert(flat), mask=with_alpha.getchannel("A"))
    return apply_profile(image.convert(flat), icc)
