"""Pictures: from bytes that nobody vouches for to bytes that every decoder reads the same.

1. `sniff` says by content what the bytes are; `size` reads width and height from the header alone.
2. `normalise` refuses too many pixels, proves that the picture is whole, and keeps plain JPEG and PNG bytes.
3. All else is decoded, laid over white, brought to 8-bit sRGB, shrunk, turned upright and written as JPEG.

Every refusal is a BadImage of one reason: `not_an_image`, `unsupported`, `pixels`, `truncated`, `corrupt`.
"""

from __future__ import annotations

import io
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from datakit.errors import BadImage

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = npt.NDArray[np.uint8]  # (height, width) grey or (height, width, 3) RGB

MAX_PIXELS = 89_478_485  # where Pillow starts to warn; 0.25 GiB of RGB
MAX_SIDE_PX = 65_500  # libjpeg's JPEG_MAX_DIMENSION
_MAX_PROFILE_BYTES = 4 << 20
_MAX_SCANS = 100  # a progressive JPEG has about ten; thousands keep a decoder busy for minutes
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
_UNREADABLE = {"heic", "ico", "psd", "jp2", "jxl"}
# What Pillow's plugins are known to raise for bytes that lie; MemoryError is not among them.
_PILLOW_FAULTS = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, LookupError,
    ArithmeticError, RuntimeError, AssertionError, struct.error, zlib.error, Warning,
)  # fmt: skip
_tiff_lock = threading.Lock()  # warnings can only be silenced for one thread at a time


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture ready to be stored: 8-bit grey or RGB, upright, opaque, whole."""

    data: bytes
    ext: str  # "jpg" or "png"
    width: int
    height: int
    changed: bool  # False: these are the bytes that came in


def sniff(data: bytes) -> str | None:
    """The type of bytes by their content, or None when nothing is known that starts so."""
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


def size(data: bytes) -> tuple[str, int, int]:
    """Type, width and height as the header states them; nothing is decoded.

    The first kilobytes of a file will do, unless a JPEG carries much before its frame. Raises BadImage.
    """
    kind = sniff(data)
    if kind in (None, "html", "svg"):
        raise BadImage("not_an_image", kind or ("no known header" if data else "no bytes"))
    if kind in _UNREADABLE:
        raise BadImage("unsupported", str(kind))
    try:
        width, height = _SIZES[str(kind)](data)
    except (struct.error, IndexError) as error:
        raise BadImage("truncated", f"the {kind} header is cut short") from error
    if width <= 0 or height <= 0:
        raise BadImage("not_an_image", f"{kind} of {width} x {height} pixels")
    return str(kind), width, height


def normalise(
    data: bytes, *, max_short_side_px: int | None = None, quality: int = 95, max_pixels: int = MAX_PIXELS
) -> Picture:
    """The picture of `data` as it is stored; the same input gives the same bytes.

    JPEG is written 4:2:0 (as img2dataset and OpenCV do), accurate DCT, no metadata. A shorter side above
    `max_short_side_px` is brought to it, the aspect is kept, nothing is enlarged. Raises BadImage.
    """
    if not 1 <= max_pixels <= MAX_PIXELS or not 1 <= quality <= 100:
        raise ValueError(f"max_pixels is 1 to {MAX_PIXELS}, quality 1 to 100, not {max_pixels!r} and {quality!r}")
    if max_short_side_px is not None and max_short_side_px < 1:
        raise ValueError(f"max_short_side_px is at least 1, not {max_short_side_px!r}")
    data = bytes(data)
    kind, width, height = size(data)
    if width * height > max_pixels:
        raise BadImage("pixels", f"{kind} of {width} x {height} pixels, at most {max_pixels}")
    wanted = _shrunk(width, height, max_short_side_px)
    if kind == "jpg":
        found = _jpeg(data, wanted, max_pixels)
    elif kind == "png":
        found = _png(data, wanted, max_pixels)
    else:
        found = _by_pillow(kind, data, max_pixels)
    if found is None:
        return Picture(data, kind, width, height, changed=False)
    pixels, turn = found
    wanted = wanted if kind == "jpg" else _shrunk(pixels.shape[1], pixels.shape[0], max_short_side_px)
    if wanted is not None and wanted != (pixels.shape[1], pixels.shape[0]):
        pixels = cv2.resize(pixels, wanted, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    pixels = np.ascontiguousarray(_TURNS[turn](pixels))
    if max(pixels.shape[:2]) > MAX_SIDE_PX:
        raise BadImage("unsupported", f"a side of {max(pixels.shape[:2])} pixels; JPEG ends at {MAX_SIDE_PX}")
    grey = pixels.ndim == 2
    written: bytes = simplejpeg.encode_jpeg(
        pixels[:, :, None] if grey else pixels,
        quality=quality,
        colorspace="GRAY" if grey else "RGB",
        colorsubsampling="Gray" if grey else "420",
    )
    return Picture(written, "jpg", pixels.shape[1], pixels.shape[0], changed=True)


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


def _shrunk(width: int, height: int, short_px: int | None) -> tuple[int, int] | None:
    """Width and height with the shorter side at its limit, or None when nothing is to be done."""
    short = min(width, height)
    if short_px is None or short <= short_px:
        return None
    return max(1, round(width * short_px / short)), max(1, round(height * short_px / short))


# JPEG


class _Frame(NamedTuple):
    process: int  # the SOF marker's second byte
    bits: int
    height: int
    width: int
    components: int


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, first byte of its body, end) of every segment up to and with the first SOS."""
    at = 2
    while True:
        if at + 4 > len(data):
            raise BadImage("truncated", f"JPEG headers end at byte {len(data)}")
        marker = data[at + 1]
        if data[at] != 0xFF or marker in (0x00, 0xD8, 0xD9):
            raise BadImage("corrupt", f"no JPEG marker at byte {at}")
        if marker == 0xFF:  # a fill byte
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


def _frame(data: bytes) -> _Frame:
    for marker, start, _end in _segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return _Frame(marker, *struct.unpack_from(">BHHB", data, start))
    raise BadImage("corrupt", "a JPEG without a frame")


def _jpeg(data: bytes, wanted: tuple[int, int] | None, max_pixels: int) -> tuple[Pixels, int] | None:
    """Pixels and EXIF turn of a JPEG; None when its bytes can stay."""
    frame = _frame(data)
    exif: list[bytes] = []
    profile: dict[int, bytes] = {}
    bare = [data[:2]]  # the same picture without what only confuses: EXIF, previews, comments
    xmp_turn = False
    end = 0
    for marker, start, end in _segments(data):
        body = data[start:end]
        if marker == 0xE1 and body.startswith(b"Exif\0"):
            exif.append(body)
        elif marker == 0xE1:
            xmp_turn = xmp_turn or _XMP_TURN.search(body) is not None
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) >= 14:
            profile[body[12]] = body[14:]
        if marker in (0xE0, 0xEE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            bare.append(data[start - 4 : end])
    if frame.process not in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA) or frame.bits != 8 or frame.components not in (1, 3, 4):
        raise BadImage("unsupported", f"JPEG process {frame.process:#x}, {frame.bits} bits, {frame.components} planes")
    if frame.process in (0xC2, 0xCA) and data.count(b"\xff\xda", end) > _MAX_SCANS:
        raise BadImage("corrupt", f"a JPEG of more than {_MAX_SCANS} scans")
    if data.rfind(b"\xff\xd9", end) < 0:
        raise BadImage("truncated", f"JPEG ends at byte {len(data)} without an end mark")
    icc = b"".join(profile[n] for n in sorted(profile))
    effect = _profile_effect(icc, "L" if frame.components == 1 else "RGB") if frame.components != 4 else "differs"
    turn = _orientation(exif[0]) if exif else 1
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:  # libjpeg-turbo's simple interface has no odd subsamplings; Pillow has
        if "subsampling" not in str(error):
            raise _jpeg_fault(error) from error
        height, width, space = frame.height, frame.width, "odd"
    if (height, width) != (frame.height, frame.width):
        raise BadImage("corrupt", f"two JPEG sizes, {frame.width} x {frame.height} and {width} x {height}")
    upright = turn == 1 and len(exif) <= 1 and not xmp_turn
    # Arithmetic coding and RGB planes are legal, but not every decoder reads them.
    keep = upright and effect == "same" and frame.process in (0xC0, 0xC1, 0xC2) and space in ("Gray", "YCbCr")
    if space in ("CMYK", "YCCK", "odd"):
        if space != "odd":
            _decode(data, "CMYK", (1, 1))
        pixels, _ = _by_pillow("jpg", b"".join([*bare, data[end:]]), max_pixels, icc)
        return pixels, turn
    colours = "GRAY" if frame.components == 1 else "RGB"
    if keep and wanted is None:
        _decode(data, colours, (1, 1))  # all of the entropy coding is read, an eighth of the pixels is made
        return None
    pixels = _decode(data, colours, wanted or (0, 0))
    if effect == "differs":
        from PIL import Image

        pixels = _apply_profile(Image.fromarray(pixels), icc)
    return pixels, turn


def _decode(data: bytes, colours: str, at_least: tuple[int, int]) -> Pixels:
    """Pixels at the smallest DCT scale that is at least so (wide, high); (0, 0) for full size."""
    width, height = at_least
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, colours, min_width=width, min_height=height, strict=True)
    except ValueError as error:
        raise _jpeg_fault(error) from error
    return pixels[:, :, 0] if colours == "GRAY" else pixels


def _jpeg_fault(error: ValueError) -> BadImage:
    said = str(error)
    if "Premature end" in said:
        return BadImage("truncated", said)
    return BadImage("unsupported" if "nsupported" in said else "corrupt", said)


# PNG

_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PNG_PLANES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))


def _png(data: bytes, wanted: tuple[int, int] | None, max_pixels: int) -> tuple[Pixels, int] | None:
    """Pixels and EXIF turn of a PNG; None when its bytes can stay."""
    chunks = list(_chunks(data))
    rows = b"".join(data[start - 8 : end + 4] for name, start, end in chunks if name == b"IDAT")
    width, height, depth, colour, packing, filtering, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    if depth not in _PNG_DEPTHS.get(colour, ()) or packing or filtering or interlace > 1:
        raise BadImage("corrupt", f"PNG of colour type {colour} with {depth} bits")
    _check_rows(data, chunks, width, height, depth * _PNG_PLANES[colour], bool(interlace))
    found: dict[bytes, bytes] = {name: data[start:end] for name, start, end in chunks if name != b"IDAT"}
    icc = _png_profile(found.get(b"iCCP"))
    turn = _orientation(found[b"eXIf"]) if b"eXIf" in found else 1
    plain = depth == 8 and colour in (0, 2) and turn == 1 and not found.keys() & {b"tRNS", b"acTL", b"fcTL"}
    plain = plain and _profile_effect(icc, "RGB" if colour == 2 else "L") == "same"
    plain = plain and all(_harmless(name, data[start:end]) for name, start, end in chunks)
    if plain and wanted is None and not interlace:
        return None  # _check_rows has inflated all of it
    if depth == 16 and colour == 2 and b"tRNS" in found:  # Pillow brings such pixels to 8 bits, but not this
        found[b"tRNS"] = bytes(b for high in found[b"tRNS"][::2] for b in (0, high))
    bare = [data[:33]]
    for name in (b"PLTE", b"tRNS"):
        if name in found:
            bare.append(_chunk(name, found[name]))
    pixels, _ = _by_pillow("png", b"".join([*bare, rows, _chunk(b"IEND", b"")]), max_pixels, icc)
    return None if plain and wanted is None else (pixels, turn)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, end of its body) of every chunk, each checked against its CRC, up to and with IEND."""
    at, view, name = 8, memoryview(data), b""
    while name != b"IEND":
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


def _chunk(name: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4)


def _check_rows(
    data: bytes, chunks: list[tuple[bytes, int, int]], width: int, height: int, bits: int, interlaced: bool
) -> None:
    """Inflates all pixel data, a mebibyte at a time, and counts; Pillow alone would not miss a row."""
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


def _harmless(name: bytes, body: bytes) -> bool:
    """False for text that other decoders take a turn from, or that could inflate beyond their patience."""
    if name in (b"tEXt", b"zTXt") and body.startswith(b"Raw profile type"):
        return False
    if name == b"zTXt" or (name == b"iTXt" and body.partition(b"\0")[2][:1] != b"\0"):
        return len(body) <= 1000  # deflate gains 1032 to 1 at most, and Pillow reads 1 MiB
    return name != b"iTXt" or _XMP_TURN.search(body) is None


def _png_profile(body: bytes | None) -> bytes:
    if body is None:
        return b""
    try:
        return zlib.decompressobj().decompress(body.partition(b"\0")[2][1:], _MAX_PROFILE_BYTES)
    except zlib.error:
        return b"broken"


# Everything else, and odd JPEG and PNG, through Pillow


def _by_pillow(kind: str, data: bytes, max_pixels: int, icc: bytes | None = None) -> tuple[Pixels, int]:
    """First frame as 8-bit sRGB over white, and its EXIF turn. `icc` goes before the profile found inside."""
    from PIL import Image, features

    if kind == "avif" and not features.check("avif"):
        raise BadImage("unsupported", "this Pillow reads no AVIF")
    if kind == "webp" and int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise BadImage("truncated", f"WebP of {int.from_bytes(data[4:8], 'little') + 8} bytes, there are {len(data)}")
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
    return _flat(image, found_icc if icc is None else icc), _orientation(exif)


def _flat(image: Image, icc: bytes) -> Pixels:
    """8-bit grey or RGB of an open image, laid over white."""
    from PIL import Image

    clear = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        deep = np.asarray(image)
        pixels = (deep >> 8).astype(np.uint8)
        if isinstance(clear, int):
            pixels[deep == clear] = 255
        return _apply_profile(Image.fromarray(pixels), icc)
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if image.mode == "CMYK":
        return _apply_profile(image, icc)
    if image.mode not in ("1", "L", "P", "RGB", "YCbCr", "LA", "PA", "RGBA"):
        raise BadImage("unsupported", f"pixels of mode {image.mode}")
    flat = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.mode in ("LA", "PA", "RGBA") or clear is not None:
        try:
            sheer = image.convert("RGBA")
        except _PILLOW_FAULTS as error:  # a transparent colour that the mode doesn't have
            raise BadImage("corrupt", f"transparency {clear!r} in mode {image.mode}") from error
        image = Image.new(flat, sheer.size, "white")
        image.paste(sheer.convert(flat), mask=sheer.getchannel("A"))
    return _apply_profile(image.convert(flat), icc)


def _orientation(exif: bytes) -> int:
    """The EXIF turn, 1 to 8; 0 for EXIF that can't be read, which Pillow warns of, so that it can't stay."""
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
    except struct.error:
        return 0
    return (turn if 1 <= turn <= 8 else 1) if order else 0


_TIFF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}


def _entries(tiff: bytes, order: str) -> Iterator[tuple[int, int, int, int]]:
    """(tag, type, count, where its value stands) of a TIFF's first folder."""
    start: int = struct.unpack_from(f"{order}I", tiff, 4)[0]
    for at in range(start + 2, start + 2 + 12 * struct.unpack_from(f"{order}H", tiff, start)[0], 12):
        tag, kind, count, _ = struct.unpack_from(f"{order}HHII", tiff, at)
        yield tag, kind, count, at + 8


# Colour profiles


def _profile_effect(icc: bytes, mode: str) -> str:
    """`same` (none, or it means sRGB), `differs`, or `broken`, which is as good as none but can't stay."""
    if not icc:
        return "same"
    return _measured(icc, mode) if len(icc) <= 1 << 16 else _measured.__wrapped__(icc, mode)


@lru_cache(maxsize=64)  # most pictures carry one of a few profiles
def _measured(icc: bytes, mode: str) -> str:
    from PIL import Image

    ramp = np.arange(0, 256, 17 if mode == "RGB" else 1, dtype=np.uint8)
    colours = np.array(np.meshgrid(ramp, ramp, ramp)).T.reshape(-1, 1, 3) if mode == "RGB" else ramp[:, None]
    turned = _transformed(Image.fromarray(np.ascontiguousarray(colours)), icc)
    if turned is None:
        return "broken"
    return "same" if np.abs(turned.astype(int) - colours).max() <= 3 else "differs"


def _apply_profile(image: Image, icc: bytes) -> Pixels:
    """sRGB, or grey, of an L, RGB or CMYK image; a profile that is broken or means sRGB changes nothing."""
    needed = bool(icc) if image.mode == "CMYK" else _profile_effect(icc, image.mode) == "differs"
    turned = _transformed(image, icc) if needed else None
    if turned is not None:
        return turned
    return np.asarray(image.convert("RGB") if image.mode == "CMYK" else image)


def _transformed(image: Image, icc: bytes) -> Pixels | None:
    """Pixels brought to sRGB (perceptual), grey staying grey; None for a profile that does not fit."""
    from PIL import ImageCms

    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        change = ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), image.mode, "RGB")
        turned = np.asarray(ImageCms.applyTransform(image, change))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return turned[:, :, 1] if image.mode == "L" else turned


# Sizes of the formats that need no walk


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + struct.unpack_from("<HB", data, 27)[0]
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
    found = [struct.unpack(">II", m[1]) for m in re.finditer(rb"ispe\0{4}(.{8})", data[: 1 << 20], re.DOTALL)]
    if not found:
        raise IndexError("no ispe")
    return max(found, key=lambda wh: wh[0] * wh[1])


_SIZES: dict[str, Any] = {
    "jpg": lambda data: (_frame(data).width, _frame(data).height),
    "png": lambda data: struct.unpack_from(">II", data, 16),
    "gif": lambda data: struct.unpack_from("<HH", data, 6),
    "webp": _webp_size,
    "bmp": _bmp_size,
    "tiff": _tiff_size,
    "avif": _avif_size,
}
