"""JPEG pixels, decoded so that no fault passes unseen.

1. `decode` has libjpeg-turbo stop at every warning, so that a picture it returns is whole.
2. A file with a warning that means nothing for the picture is decoded without its cause: junk before a marker,
   an unknown JFIF version or Adobe transform, scan parameters that a sequential JPEG doesn't have.
3. All others raise BadImage: `truncated` where entropy data is missing, which leaves grey; else `corrupt`.

A JPEG has no checksum. Damage inside a scan is seen when it makes an impossible code (`corrupt`) or eats up what
follows (`truncated`); when it only leaves bytes over, it looks like junk at the end, and the picture is taken, as
Pillow, OpenCV and img2dataset take it.
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
    """Pixels at the smallest DCT scale that is at least so (wide, high); (0, 0) for full size. Raises BadImage.

    `colours` is GRAY, RGB or CMYK; a JPEG turns to CMYK only from CMYK.
    """
    try:
        return _strict(data, colours, at_least)
    except ValueError:
        return _strict(_mended(data, colours), colours, at_least)


def complaint(data: bytes, colours: str) -> str:
    """libjpeg's first warning or error about a JPEG, or nothing. All is read, an eighth of the pixels is made."""
    try:
        _strict(data, colours, (1, 1))
    except ValueError as error:
        return str(error)
    return ""


def fault(said: str) -> BadImage:
    """What libjpeg said, as the outcome that is counted."""
    if "remature end" in said or "found marker 0xd9 instead" in said:
        return BadImage("truncated", said)
    return BadImage("unsupported" if "nsupported" in said else "corrupt", said)


def bare_head(data: bytes, segments: list[tuple[int, int, int]], frame: Frame) -> bytes:
    """A JPEG up to its first scan's data without what only confuses: EXIF, profiles, previews, comments, junk."""
    kept = [data[:2]]
    for marker, start, end in segments:
        if marker in (0xE0, 0xEE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept += data[start - 4 : start], _usual(marker, data[start:end], frame)
    return b"".join(kept)


def _strict(data: bytes, colours: str, at_least: tuple[int, int]) -> Pixels:
    width, height = at_least
    pixels: Pixels = simplejpeg.decode_jpeg(data, colours, min_width=width, min_height=height, strict=True)
    return pixels[:, :, 0] if colours == "GRAY" else pixels


def _mended(data: bytes, colours: str) -> bytes:
    """The same picture in a JPEG that no decoder warns of. Raises BadImage when there is none."""
    segments = list(jpeg_segments(data))
    head, scans = bare_head(data, segments, jpeg_frame(data)), data[segments[-1][2] :]
    for _ in range(_MAX_JUNK + 1):
        said = complaint(head + scans, colours)
        if not said:
            return head + scans
        found = _JUNK.search(said)
        if found is None:
            raise fault(said)
        scans = _without_junk(head, scans, colours, int(found[1]), bytes.fromhex(found[2]))
    raise fault(said)


def _without_junk(head: bytes, scans: bytes, colours: str, n_bytes: int, marker: bytes) -> bytes:
    """The scans without as many bytes before the first marker of this kind that has too many before it.

    libjpeg tells only its first warning, and not where. In a JPEG cut before that marker or later it tells the same.
    """

    def has_junk(at: int) -> bool:
        return _JUNK.search(complaint(head + scans[:at] + _END, colours)) is not None

    places = [m.start() for m in re.finditer(b"\xff" + re.escape(marker), scans)]
    if marker == _END[1:]:
        del places[1:]  # what follows, nobody reads
    which = bisect_left(places, True, key=has_junk) if len(places) > 1 else 0
    if which == len(places) or places[which] < n_bytes:
        raise BadImage("corrupt", f"{n_bytes} bytes too many before a JPEG marker 0x{marker.hex()}")
    return scans[: places[which] - n_bytes] + scans[places[which] :]


def _usual(marker: int, body: bytes, frame: Frame) -> bytes:
    """A segment's body with what decoders assume in the place of what they don't know."""
    if marker == 0xE0 and body.startswith(b"JFIF\0") and body[5:6] != b"\1":
        return body[:5] + b"\1" + body[6:]
    if marker == 0xEE and body.startswith(b"Adobe") and body[11:12] not in (b"\0", b"\1", b"\2"):
        return body[:11] + (b"\2" if frame.components == 4 else b"\1") + body[12:]
    if marker == 0xDA and frame.process in (0xC0, 0xC1):
        return body[:-3] + b"\0\x3f\0"
    return body
