"""JPEG pixels, decoded so that no damage goes unnoticed.

1. `decode` has libjpeg-turbo stop at every warning, so that a picture it returns is whole.
2. If the warning doesn't concern the pixels, its cause is removed first: junk before a marker, an unknown JFIF
   version or Adobe transform, scan parameters that a sequential JPEG doesn't have.
3. All others raise BadImage: `truncated` where entropy-coded data is missing, which leaves grey; else `corrupt`.

A JPEG has no checksum. Damage inside a scan is noticed when it makes an impossible code (`corrupt`) or consumes what
follows (`truncated`). When it only leaves bytes over, it looks like junk at the end, and the picture is accepted, as
Pillow, OpenCV and img2dataset accept it.
"""

from __future__ import annotations

import re
from bisect import bisect_left

import simplejpeg

from datakit.errors import BadImage
from datakit.images.colours import Pixels
from datakit.images.headers import Frame, jpeg_frame, jpeg_segments

_MAX_JUNK = 3  # places within the scans; each costs several decodes to find
_JUNK = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
_END = b"\xff\xd9"


def decode(data: bytes, colours: str, at_least: tuple[int, int] = (0, 0)) -> Pixels:
    """Pixels at the smallest DCT scale that gives at least (width, height); (0, 0) for full size. Raises BadImage.

    `colours` is GRAY, RGB or CMYK, the last only for a CMYK JPEG.
    """
    try:
        return _decode_strictly(data, colours, at_least)
    except ValueError:
        return _decode_strictly(_repair(data, colours), colours, at_least)


def first_complaint(data: bytes, colours: str) -> str:
    """libjpeg's first warning or error about a JPEG, or "". Reads all of it, and decodes at an eighth of the size."""
    try:
        _decode_strictly(data, colours, (1, 1))
    except ValueError as error:
        return str(error)
    return ""


def decoder_error(message: str) -> BadImage:
    """The BadImage for a message of libjpeg."""
    if "remature end" in message or "found marker 0xd9 instead" in message:
        return BadImage("truncated", message)
    return BadImage("unsupported" if "nsupported" in message else "corrupt", message)


def bare_head(data: bytes, segments: list[tuple[int, int, int]], frame: Frame) -> bytes:
    """A JPEG up to its first scan's data, without EXIF, profiles, previews, comments and junk."""
    kept = [data[:2]]
    for marker, start, end in segments:
        if marker in (0xE0, 0xEE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept += data[start - 4 : start], _usual_body(marker, data[start:end], frame)
    return b"".join(kept)


def _decode_strictly(data: bytes, colours: str, at_least: tuple[int, int]) -> Pixels:
    width, height = at_least
    pixels: Pixels = simplejpeg.decode_jpeg(data, colours, min_width=width, min_height=height, strict=True)
    return pixels[:, :, 0] if colours == "GRAY" else pixels


def _repair(data: bytes, colours: str) -> bytes:
    """The same picture as a JPEG that no decoder warns about. Raises BadImage when it can't be made."""
    segments = list(jpeg_segments(data))
    head, scans = bare_head(data, segments, jpeg_frame(data)), data[segments[-1][2] :]
    for _ in range(_MAX_JUNK + 1):
        message = first_complaint(head + scans, colours)
        if not message:
            return head + scans
        found = _JUNK.search(message)
        if found is None:
            raise decoder_error(message)
        scans = _without_junk(head, scans, colours, int(found[1]), bytes.fromhex(found[2]))
    raise decoder_error(message)


def _without_junk(head: bytes, scans: bytes, colours: str, n_bytes: int, marker: bytes) -> bytes:
    """The scans without as many bytes before the first marker of this kind that has too many before it.

    libjpeg reports only its first warning, and not where. It reports the same for a JPEG cut before that marker or
    later, so the marker is found by bisection.
    """

    def has_junk(at: int) -> bool:
        return _JUNK.search(first_complaint(head + scans[:at] + _END, colours)) is not None

    places = [m.start() for m in re.finditer(b"\xff" + re.escape(marker), scans)]
    if marker == _END[1:]:
        del places[1:]  # no decoder reads what follows
    which = bisect_left(places, True, key=has_junk) if len(places) > 1 else 0
    if which == len(places) or places[which] < n_bytes:
        raise BadImage("corrupt", f"{n_bytes} bytes too many before a JPEG marker 0x{marker.hex()}")
    return scans[: places[which] - n_bytes] + scans[places[which] :]


def _usual_body(marker: int, body: bytes, frame: Frame) -> bytes:
    """A segment's body in which unknown values are replaced by those that decoders assume."""
    if marker == 0xE0 and body.startswith(b"JFIF\0") and body[5:6] != b"\1":
        return body[:5] + b"\1" + body[6:]
    if marker == 0xEE and body.startswith(b"Adobe") and body[11:12] not in (b"\0", b"\1", b"\2"):
        return body[:11] + (b"\2" if frame.components == 4 else b"\1") + body[12:]
    if marker == 0xDA and frame.process in (0xC0, 0xC1):
        return body[:-3] + b"\0\x3f\0"
    return body
