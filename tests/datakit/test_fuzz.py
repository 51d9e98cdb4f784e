"""Hostile input: thousands of damaged pictures, bytes that are none, and headers of servers that mean no good.

Deterministic: every case follows from the name and number of its test. A hang or a crash ends the process.
"""

from __future__ import annotations

import faulthandler
import io
import math
import random
import re
import zlib
from collections.abc import Iterator
from urllib.parse import urlsplit

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, features
from pngs import resealed

from datakit.errors import BadImage
from datakit.images import inspect, normalise, sniff
from datakit.web.hosts import Hosts, RefusedUrl, is_opted_out, retry_after_s
from datakit.web.outcomes import Stop, redirect_target

REASONS = {"not_an_image", "unsupported", "pixels", "frames", "truncated", "corrupt"}
FAULTS = (OSError, SyntaxError, ValueError, RuntimeError, LookupError, TypeError, EOFError, Warning)  # Pillow's own
MAX_PIXELS = 40_000  # so that a size that was made larger costs no time
CASES = 200  # of each seed in each of its parts
PARTS = 2


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """Ends the process, with a traceback, when a test hangs; a thousand times as long as one takes."""
    faulthandler.dump_traceback_later(300, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def drawing(mode: str = "RGB", shift: int = 0) -> Image.Image:
    y, x = np.mgrid[0:16, 0:24].astype(float)
    planes = [255 * x / 24, 255 * y / 16, 127 + 100 * np.sin((x + shift) / 3), 255 * (x + y > 14)]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8), "RGBA").convert(mode)


def saved(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    out = io.BytesIO()
    (image or drawing()).save(out, kind, **options)
    return out.getvalue()


def moving(mode: str = "RGB") -> dict[str, object]:
    return {"save_all": True, "append_images": [drawing(mode, n) for n in (3, 6)]}


EXIF = Image.Exif()
EXIF[0x112] = 6
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
DEEP = Image.fromarray(np.arange(0, 24 * 16 * 100, 100, dtype=np.uint16).reshape(16, 24))
TAGS = {"exif": EXIF.tobytes(), "icc_profile": SRGB}


def interlaced() -> bytes:
    """A grey PNG in Adam7, which Pillow doesn't write."""
    sizes = ((3, 2), (3, 2), (6, 2), (6, 4), (12, 4), (12, 8), (24, 8))
    rows = b"".join((b"\0" + bytes(range(w))) * h for w, h in sizes)
    whole = bytearray(saved("PNG", drawing("L")))
    whole[28] = 1
    body = b"IDAT" + zlib.compress(rows)
    idat = len(body[4:]).to_bytes(4) + body + b"\0\0\0\0"
    return resealed(bytes(whole[:33]) + idat + b"\0\0\0\0IEND\0\0\0\0")


SEEDS = {
    "jpeg": saved("JPEG"),
    "jpeg of good quality": saved("JPEG", quality=98, subsampling=0),
    "jpeg with restarts": saved("JPEG", restart_marker_rows=1),
    "jpeg with odd planes": simplejpeg.encode_jpeg(np.asarray(drawing()), colorsubsampling="440"),
    "progressive jpeg": saved("JPEG", progressive=True),
    "tagged jpeg": saved("JPEG", **TAGS),
    "tagged progressive jpeg": saved("JPEG", progressive=True, comment=b"seen", **TAGS),
    "grey jpeg": saved("JPEG", drawing("L")),
    "cmyk jpeg": saved("JPEG", drawing("CMYK")),
    "rgb jpeg": saved("JPEG", keep_rgb=True),
    "png": saved("PNG"),
    "png of bits": saved("PNG", drawing("1")),
    "grey png": saved("PNG", drawing("L")),
    "grey png of 16 bits": saved("PNG", DEEP),
    "clear grey png": saved("PNG", drawing("LA")),
    "palette png": saved("PNG", drawing().quantize(16), transparency=3),
    "clear png": saved("PNG", drawing("RGBA")),
    "interlaced png": interlaced(),
    "tagged png": saved("PNG", **TAGS),
    "moving png": saved("PNG", **moving()),
    "gif": saved("GIF"),
    "clear gif": saved("GIF", drawing("RGBA")),
    "gif of bits": saved("GIF", drawing("1")),
    "moving gif": saved("GIF", **moving()),
    "webp": saved("WEBP"),
    "lossless webp": saved("WEBP", drawing("RGBA"), lossless=True),
    "tagged webp": saved("WEBP", drawing("RGBA"), **TAGS),
    "moving webp": saved("WEBP", **moving()),
    "bmp": saved("BMP"),
    "palette bmp": saved("BMP", drawing().quantize(16)),
    "clear bmp": saved("BMP", drawing("RGBA")),
    "tiff": saved("TIFF"),
    "packed tiff": saved("TIFF", compression="tiff_lzw", icc_profile=SRGB),
    "tiff of jpeg": saved("TIFF", compression="jpeg"),
    "cmyk tiff": saved("TIFF", drawing("CMYK"), compression="tiff_adobe_deflate"),
}
if features.check("avif"):
    SEEDS["avif"] = saved("AVIF")
    SEEDS["clear avif"] = saved("AVIF", drawing("RGBA"))
    SEEDS["moving avif"] = saved("AVIF", **moving())

# What stands before or behind the fields that say how large, how many and how long.
MARKS = re.compile(
    rb"IHDR|IDAT|acTL|fcTL|fdAT|PLTE|tRNS|iCCP|eXIf|RIFF|VP8.|ANIM|ANMF|ALPH|ICCP|ftyp|meta|iloc|ispe|stsz|mdat"
    rb"|\xff[\xc0-\xc4\xda-\xe2]|\x2c\0\0\0\0|\x21[\xf9\xff]|[\0\x01][\x00-\x17][\0\x01][\x02-\x04]\0\0",
    re.DOTALL,
)
EXTREMES = [n.to_bytes(w, o) for w in (1, 2, 3, 4) for o in ("little", "big") for n in
            (0, 1, 2, 255, 1 << 8 * w - 1, (1 << 8 * w) - 1, (1 << 8 * w - 1) - 1, (1 << 8 * w) - 8)]  # fmt: skip


def mutated(seed: bytes, rng: random.Random) -> bytes:
    """The seed with one to three things done to it."""
    out = bytearray(seed)
    marks = [m.span() for m in MARKS.finditer(seed)] or [(8, 8)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(max(1, min(len(out), rng.choice((40, 300, 1 << 20)))))
        match rng.randrange(24):
            case 0 | 1 | 2 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 3 | 4 | 5 if out:
                out[at % len(out)] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)))
            case 6 | 7:
                del out[at : at + rng.choice((1, 2, 3, 8, 40))]
            case 8 | 9:
                out[at:at] = rng.randbytes(rng.choice((1, 2, 3, 8, 40)))
            case 10:
                del out[at:]
            case 11 | 12:
                other = rng.choice(list(SEEDS.values()))
                out[at:] = other[rng.randrange(len(other)) :]
            case 13:
                out[at:at] = out[rng.randrange(len(out) + 1) :]
            case _:
                start, end = rng.choice(marks)
                at = max(0, rng.choice((start - 4, start - 2, end, end, end + 1, end + 3, end + 4, end + 8, end + 12)))
                extreme = rng.choice(EXTREMES)
                out[at : at + len(extreme)] = extreme
    return resealed(bytes(out)) if rng.random() < 0.8 and out.startswith(b"\x89PNG") else bytes(out)


def inspected(data: bytes) -> tuple[str, int, int] | None:
    """What `inspect` says; None when it refuses."""
    try:
        kind, width, height = inspect(data, max_pixels=MAX_PIXELS)
    except BadImage as error:
        assert error.reason in REASONS
        return None
    assert (kind, type(width), type(height)) == (sniff(data), int, int)
    assert 0 < width * height <= MAX_PIXELS
    return kind, width, height


def check(data: bytes, rng: random.Random) -> str:
    """What became of bytes; whatever they are, it is one of what is promised."""
    seen = inspected(data)
    short_px = rng.choice((None, 3, 8, 11))
    try:
        picture = normalise(
            data, max_short_side_px=short_px, max_pixels=MAX_PIXELS, resize=rng.choice(("area", "linear"))
        )
    except BadImage as error:
        assert error.reason in REASONS
        return error.reason
    assert seen is not None
    assert picture.changed or (picture.data == data and (picture.ext, picture.width, picture.height) == seen)
    with Image.open(io.BytesIO(picture.data)) as image:
        image.load()
        assert (image.size, image.mode in ("L", "RGB")) == ((picture.width, picture.height), True)
    assert image.width * image.height <= MAX_PIXELS
    assert short_px is None or min(image.size) <= short_px
    assert not normalise(picture.data).changed
    return "kept" if not picture.changed else "made"


def test_there_are_ten_thousand_cases():
    assert len(SEEDS) * PARTS * CASES >= 10_000


@pytest.mark.parametrize("name", SEEDS)
def test_every_seed_is_a_picture(name):
    became = check(SEEDS[name], random.Random(0))

    assert became in {"kept", "made"}


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", SEEDS)
def test_a_damaged_picture_is_a_whole_picture_or_a_bad_image(name, part):
    rng = random.Random(f"{name} {part}")

    became = [check(mutated(SEEDS[name], rng), rng) for _ in range(CASES)]

    assert len(set(became)) > 1


@pytest.mark.parametrize("name", SEEDS)
def test_what_passes_by_its_structure_has_no_more_pixels_than_it_says(name):
    rng = random.Random(name)

    for _ in range(CASES):
        data = mutated(SEEDS[name], rng)
        seen = inspected(data)
        if seen is None:
            continue
        try:
            with Image.open(io.BytesIO(data)) as image:
                pixels = image.width * image.height
        except FAULTS:
            continue
        except Image.DecompressionBombError:
            pixels = MAX_PIXELS + 1
        assert pixels <= MAX_PIXELS, (name, seen)


@pytest.mark.parametrize("part", range(4))
def test_bytes_that_are_no_picture_are_bad_images(part):
    rng = random.Random(part)
    heads = [b"", *(seed[:n] for seed in SEEDS.values() for n in (4, 12, 16, 26))]

    became = {check(rng.choice(heads) + rng.randbytes(rng.randrange(60)), rng) for _ in range(3000)}

    assert became <= REASONS


# What servers and lists of URLs say

PIECES = st.sampled_from([
    "http://", "https://", "HTTP://", "ftp://", "//", "/", "?", "#", "@", ":", "\\", "%", "%2", "%00", ".", "..",
    "example.org", "127.0.0.1", "[::1]", "[", "]", "0x7f.1", "2130706433", "localhost", "[::ffff:10.0.0.1]", "xn--",
    ":80", ":0", ":99999", ":\u0663", "user:pass@", "\r\n", "\0", "\t", " ", "\u2028", "\u00ad", "\u200d", "\udcff",
    "a" * 64, "a" * 300, "9" * 40, "\uff11\uff12\uff17.0.0.1", "\u3002", "%zz", "?a=b&c", "/pic.jpg", "fe80::1%e", "é",
])  # fmt: skip
ALL_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=40)
HOSTILE = st.lists(PIECES | ALL_TEXT, max_size=7).map("".join)
URLS = HOSTILE | HOSTILE.map("http://".__add__) | HOSTILE.map("https://example.org/".__add__)
RAW = st.binary(max_size=60) | HOSTILE.map(lambda s: s.encode("utf-8", "surrogatepass"))
HEADERS = RAW.map(lambda raw: raw.decode("utf-8", "surrogateescape"))  # as aiohttp reads them


@pytest.mark.slow
@settings(max_examples=300, derandomize=True)
@given(URLS)
def test_any_url_is_refused_or_brought_to_one_spelling(url):
    try:
        checked = Hosts().check_url(url)
    except RefusedUrl as error:
        assert error.outcome in {"refused_url", "refused_address"}
        return

    assert checked.isascii()
    assert not re.search(r"[\s\x00-\x20\x7f]", checked)
    assert urlsplit(checked).scheme in {"http", "https"}
    assert "@" not in urlsplit(checked).netloc
    assert Hosts().check_url(checked) == checked


@pytest.mark.slow
@settings(max_examples=300, derandomize=True)
@given(st.lists(HEADERS | st.sampled_from(["noai", "bot: noai", "unavailable_after: x", ",:,"])), HEADERS)
def test_any_robots_header_is_an_opt_out_or_none(robots, reservation):
    assert is_opted_out(robots, reservation) in (True, False)
    assert is_opted_out(robots, None) <= is_opted_out(robots, reservation)
    assert is_opted_out([*robots, "noai"], reservation) is True


DATES = st.builds(
    "{}, {} {} {} {}:{}:{} {}".format,
    st.sampled_from(["Mon", "Xxx", ""]),
    *[st.integers(-1, 100_000) | st.integers(0, 31)] * 1,
    st.sampled_from(["Jan", "Feb", "Dec", "Foo"]),
    *[st.integers(-1, 100_000) | st.integers(0, 60)] * 4,
    st.sampled_from(["GMT", "-0000", "+9999", "EST", "", "\udcff"]),
)


@pytest.mark.parametrize(
    "text", ["Mon, 1 Jan 99999999999 0:0:0 GMT", "1 Jan 2029 99999999999:0:0", "1 Jan 2029 0:0:0 +999999999999999999"]
)
def test_a_retry_after_beyond_all_calendars_is_none(text):
    assert retry_after_s(text) is None


@pytest.mark.slow
@settings(max_examples=300, derandomize=True)
@given(HEADERS | DATES | st.integers().map(str) | st.sampled_from(["1e9", "nan", "inf", "-1", "٣", "²", "9" * 5000]))
def test_any_retry_after_is_a_time_from_now_or_none(text):
    seconds = retry_after_s(text)

    assert seconds is None or (type(seconds) is float and math.isfinite(seconds) and seconds >= 0)


@pytest.mark.slow
@settings(max_examples=300, derandomize=True)
@given(st.sampled_from(["http://example.org/a/b?c", "https://[2606:4700::1]:8443/", "http://example.org"]), HEADERS)
def test_any_location_leads_to_a_url_that_is_checked_or_refused(url, location):
    try:
        checked = Hosts().check_url(redirect_target(url, location))
    except Stop as stop:
        assert stop.outcome == "refused_url"
    except RefusedUrl as error:
        assert error.outcome in {"refused_url", "refused_address"}
    else:
        assert checked.isascii()
