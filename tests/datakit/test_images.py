from __future__ import annotations

import io
import pickle
import random
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps
from pngs import resealed

from datakit.errors import BadImage
from datakit.images import MAX_FRAMES, MAX_PIXELS, Picture, inspect, normalise, sniff

REAL = Path(__file__).parents[2].parent / "shared" / "real" / "images"


def drawing(width: int = 48, height: int = 32) -> Image.Image:
    """A soft picture whose corners all differ."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    planes = [255 * x / width, 255 * y / height, 127 + 100 * np.sin(x / 9) * np.cos(y / 7)]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def opened(picture: Picture) -> Image.Image:
    image = Image.open(io.BytesIO(picture.data))
    image.load()
    return image


def far(a: Image.Image, b: Image.Image) -> float:
    """Mean difference of two pictures, 0 to 255."""
    assert a.size == b.size
    return float(np.abs(np.asarray(a.convert("RGB"), int) - np.asarray(b.convert("RGB"), int)).mean())


def reason(data: bytes, **options: int) -> str:
    with pytest.raises(BadImage) as caught:
        normalise(data, **options)
    return caught.value.reason


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: bytes, interlace: int = 0) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def exif(turn: int, order: str = "<") -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + mark + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x112, 3, 1, turn, 0, 0)


def wide_profile() -> bytes:
    """An ICC profile whose colours are far from sRGB: the primaries of sRGB, red and blue exchanged."""
    made = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for at in range(132, 132 + 12 * int.from_bytes(made[128:132]), 12):
        made[at : at + 4] = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}.get(bytes(made[at : at + 4]), made[at : at + 4])
    return bytes(made)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (saved(drawing(), "JPEG"), "jpg"),
        (saved(drawing(), "PNG"), "png"),
        (saved(drawing(), "GIF"), "gif"),
        (saved(drawing(), "WEBP"), "webp"),
        (saved(drawing(), "BMP"), "bmp"),
        (saved(drawing(), "TIFF"), "tiff"),
        (saved(drawing(), "AVIF"), "avif"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "heic"),
        (b"\n <!DOCTYPE html><html>", "html"),
        (b"<Error><Code>AccessDenied</Code></Error>", "html"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x">', "svg"),
        (b"BMW is not a bitmap, nor is this sentence", None),
        (b"", None),
        (b"nothing of the kind", None),
    ],
)
def test_a_type_is_told_by_content(data, kind):
    assert sniff(data) == kind


@pytest.mark.parametrize("options", [{"lossless": True}, {"exif": exif(1)}, {"save_all": True}])
def test_every_kind_of_webp_header_gives_a_size(options):
    assert inspect(saved(drawing(61, 35), "WEBP", **options)) == ("webp", 61, 35)


@pytest.mark.parametrize(
    "data",
    [
        saved(drawing(), "JPEG"),
        saved(drawing(), "JPEG", progressive=True, quality=80),
        saved(drawing().convert("L"), "JPEG"),
        saved(drawing(), "JPEG", exif=exif(1)),
        saved(drawing(), "JPEG", exif=exif(0)),
        saved(drawing(), "JPEG", icc_profile=SRGB),
        saved(drawing(), "JPEG", comment=b"made by hand"),
        saved(drawing(), "JPEG") + b"trailing bytes that nobody reads",
        saved(drawing(), "PNG"),
        saved(drawing().convert("L"), "PNG"),
        saved(drawing(), "PNG", icc_profile=SRGB, dpi=(72, 72)),
        saved(drawing(1, 1), "PNG"),
        saved(drawing(1, 1), "JPEG"),
    ],
)
def test_plain_bytes_are_kept(data):
    picture = normalise(data, max_short_side_px=32)

    assert (picture.data, picture.changed) == (data, False)
    assert picture.ext == sniff(data)
    assert opened(picture).size == (picture.width, picture.height)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("turn", range(2, 9))
def test_every_exif_turn_is_applied(kind, turn):
    options = {} if kind == "PNG" else {"quality": 95}
    data = saved(drawing(), kind, exif=exif(turn), **options)

    picture = normalise(data)

    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert picture.changed
    assert far(opened(picture), upright) < 3
    assert not opened(picture).getexif()


def test_a_tiff_is_turned_once():
    data = saved(drawing(), "TIFF", tiffinfo={0x112: 6})

    picture = normalise(data)

    assert far(opened(picture), drawing().rotate(-90, expand=True)) < 3


def test_exif_of_either_byte_order_is_read():
    sizes = {normalise(saved(drawing(), "JPEG", exif=exif(6, order))).height for order in "<>"}

    assert sizes == {48}


@pytest.mark.parametrize("broken", [b"", b"II*\0\xff\xff\xff\xff", b"garbage", exif(1)[6:-4]])
def test_exif_that_makes_no_sense_turns_nothing_and_does_not_stay(broken):
    picture = normalise(saved(drawing(), "JPEG", exif=b"Exif\0\0" + broken))

    assert picture.changed
    assert (picture.width, picture.height) == (48, 32)


def test_a_turn_that_only_some_decoders_see_leaves_with_the_metadata():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'

    picture = normalise(saved(drawing(), "JPEG", xmp=xmp))

    assert picture.changed
    assert (picture.width, picture.height) == (48, 32)


def test_transparent_pixels_become_white():
    clear = drawing().convert("RGBA")
    clear.putalpha(Image.new("L", clear.size, 0))
    palette = drawing().quantize(8)
    pictures = [
        normalise(saved(clear, "PNG")),
        normalise(saved(clear.convert("LA"), "PNG")),
        normalise(saved(clear, "WEBP", lossless=True)),
        normalise(saved(palette, "PNG", transparency=bytes(256))),
        normalise(png(2, 2, 16, 0, (b"\0" + b"\x12\x34" * 2) * 2, chunk(b"tRNS", b"\x12\x34"))),
        normalise(png(2, 2, 8, 2, (b"\0" + b"abc" * 2) * 2, chunk(b"tRNS", b"\0a\0b\0c"))),
        normalise(png(2, 2, 16, 2, (b"\0" + b"a1b2c3" * 2) * 2, chunk(b"tRNS", b"a1b2c3"))),
        normalise(png(2, 2, 8, 0, (b"\0" + b"aa") * 2, chunk(b"tRNS", b"\0a"))),
        normalise(png(2, 2, 1, 0, b"\0\0" * 2, chunk(b"tRNS", b"\0\0"))),
    ]

    assert [np.asarray(opened(p)).min() >= 254 for p in pictures] == [True] * len(pictures)


def test_half_transparent_black_is_grey():
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))

    assert np.asarray(opened(normalise(saved(half, "PNG")))).mean() == pytest.approx(127, abs=1)


@pytest.mark.parametrize(
    "data",
    [
        saved(drawing().convert("CMYK"), "JPEG", quality=95),
        saved(drawing().quantize(256), "PNG"),
        saved(drawing().quantize(256), "GIF"),
        saved(drawing(), "BMP"),
        saved(drawing(), "TIFF", compression="tiff_lzw"),
        saved(drawing().convert("CMYK"), "TIFF"),
        saved(drawing(), "WEBP", quality=95),
        saved(drawing(), "AVIF", quality=95),
        saved(drawing(), "JPEG", quality=95, icc_profile=wide_profile()[:100]),
        simplejpeg.encode_jpeg(np.asarray(drawing()), quality=95, colorsubsampling="440"),
    ],
)
def test_other_colours_become_plain_rgb(data):
    picture = normalise(data)

    assert opened(picture).mode == "RGB"
    assert far(opened(picture), drawing()) < 6
    assert picture.data.startswith(b"\xff\xd8") or not picture.changed


def test_sixteen_bits_become_eight():
    deep = normalise(png(2, 2, 16, 0, (b"\0" + b"\x80\x34" * 2) * 2))

    assert np.asarray(opened(deep)).tolist() == [[128, 128], [128, 128]]
    assert opened(deep).mode == "L"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_colour_profile_is_applied_and_left_out(kind):
    data = saved(Image.new("RGB", (16, 16), (200, 30, 30)), kind, icc_profile=wide_profile())

    picture = normalise(data)

    red, _, blue = np.asarray(opened(picture)).mean(axis=(0, 1))
    assert blue > 150 > red  # the profile exchanges red and blue
    assert "icc_profile" not in opened(picture).info


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "AVIF"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])

        picture = normalise(data)

        assert picture.changed
        assert far(opened(picture), frames[0]) < 6


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (201, 201), (1000, 101)])
def test_the_shorter_side_is_brought_to_its_limit(kind, width, height):
    data = saved(drawing(width, height), kind, quality=95)

    picture = normalise(data, max_short_side_px=100)

    assert min(picture.width, picture.height) == 100
    assert max(picture.width, picture.height) == round(max(width, height) * 100 / min(width, height))
    assert far(opened(picture), drawing(width, height).resize((picture.width, picture.height), Image.BOX)) < 3


def test_a_turned_picture_is_shrunk_by_its_shorter_side_too():
    picture = normalise(saved(drawing(300, 200), "JPEG", exif=exif(6)), max_short_side_px=100)

    assert (picture.width, picture.height) == (100, 150)


def test_nothing_is_enlarged():
    picture = normalise(saved(drawing(), "WEBP"), max_short_side_px=33)

    assert (picture.width, picture.height) == (48, 32)


def test_the_same_input_gives_the_same_bytes_in_every_thread():
    inputs = [saved(drawing(120, 90), k) for k in ("WEBP", "PNG", "JPEG", "GIF", "TIFF", "BMP")] * 4

    with ThreadPoolExecutor(8) as pool:
        threaded = list(pool.map(lambda d: normalise(d, max_short_side_px=40), inputs))

    assert threaded == [normalise(d, max_short_side_px=40) for d in inputs]
    assert pickle.loads(pickle.dumps(threaded[0])) == threaded[0]  # noqa: S301


@pytest.mark.parametrize("interlaced", [False, True])
def test_every_cut_of_a_png_is_noticed(interlaced):
    rows = b"".join(b"\0" * 5 for _ in range(1)) if interlaced else b"\0abcabc" * 2
    # Adam7 of 2 x 2: pass 1 has one pixel, pass 6 one, pass 7 a row of two.
    rows = b"\0abc" + b"\0abc" + b"\0abcabc" if interlaced else rows
    whole = png(2, 2, 8, 2, rows, interlace=int(interlaced))

    reasons = {reason(whole[:n]) for n in range(8, len(whole))}

    assert normalise(whole).changed is False
    assert reasons == {"truncated"}


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_every_cut_of_a_jpeg_is_noticed(options):
    whole = saved(drawing(24, 24), "JPEG", **options)

    reasons = {reason(whole[:n]) for n in range(3, len(whole))}

    assert reasons == {"truncated"}


def junk(n_bytes: int, seed: int = 0) -> bytes:
    """Bytes without a marker among them."""
    return bytes(random.Random(seed).choices(range(255), k=n_bytes))


def with_junk(data: bytes, *marks: bytes, n_bytes: int = 40) -> bytes:
    """A JPEG with junk before the last of each of these markers."""
    for mark in marks:
        at = data.rindex(mark)
        data = data[:at] + junk(n_bytes) + data[at:]
    return data


def warning(data: bytes) -> str:
    """libjpeg's first warning about a JPEG."""
    colours = "CMYK" if Image.open(io.BytesIO(data)).mode == "CMYK" else "RGB"
    try:
        simplejpeg.decode_jpeg(data, colours, strict=True)
    except ValueError as error:
        return str(error)
    return ""


PLAIN = saved(drawing(200, 120), "JPEG", quality=95)
PROGRESSIVE = saved(drawing(200, 120), "JPEG", quality=95, progressive=True)
RESTARTING = saved(drawing(200, 120), "JPEG", quality=95, restart_marker_rows=1)
INVERTED = saved(drawing(200, 120).convert("CMYK"), "JPEG", quality=95)
HARMLESS = {
    "junk before the end": with_junk(PLAIN, b"\xff\xd9"),
    "much junk before the end": with_junk(PLAIN, b"\xff\xd9", n_bytes=50_000),
    "junk before the end of a grey one": with_junk(saved(drawing(200, 120).convert("L"), "JPEG"), b"\xff\xd9"),
    "junk before the end of a CMYK one": with_junk(INVERTED, b"\xff\xd9"),
    "junk before the end of a progressive one": with_junk(PROGRESSIVE, b"\xff\xd9"),
    "junk between scans": with_junk(PROGRESSIVE, b"\xff\xda", b"\xff\xc4", b"\xff\xd9"),
    "junk before a restart": with_junk(RESTARTING, b"\xff\xd2", b"\xff\xd5"),
    "junk between headers": with_junk(PLAIN, b"\xff\xc0", b"\xff\xda"),
    "an unknown JFIF version": PLAIN[:11] + b"\x07" + PLAIN[12:],
    "an unknown Adobe transform": INVERTED.replace(b"Adobe\0\x64\0\0\0\0\0", b"Adobe\0\x64\0\0\0\0\x09"),
    "scan parameters of another process": PLAIN.replace(b"\x03\x11\x00\x3f\x00", b"\x03\x11\x00\x00\x00"),
}


@pytest.mark.parametrize("data", HARMLESS.values(), ids=HARMLESS.keys())
@pytest.mark.parametrize("short_px", [None, 60])
def test_a_jpeg_that_decoders_only_warn_of_is_written_anew(data, short_px):
    picture = normalise(data, max_short_side_px=short_px)

    with Image.open(io.BytesIO(data)) as given:
        theirs = given.convert("RGB").resize((picture.width, picture.height), Image.BOX)
    assert picture.changed
    assert min(picture.width, picture.height) == (short_px or 120)
    assert not warning(picture.data)
    assert far(opened(picture), theirs) < 4


def test_these_jpegs_are_what_libjpeg_warns_of():
    unwarned = {name for name, data in HARMLESS.items() if not warning(data)}

    assert not unwarned


@pytest.mark.parametrize("whole", [PLAIN, PROGRESSIVE, RESTARTING, INVERTED])
@pytest.mark.parametrize("more", [b"", b"\xff\xd9", junk(3) + b"\xff\xd9"])
def test_a_cut_jpeg_is_truncated_though_an_end_mark_was_put_behind_it(whole, more):
    assert reason(whole[: len(whole) * 2 // 3] + more) == "truncated"


def test_a_cut_after_junk_is_still_seen():
    faulty = with_junk(PROGRESSIVE, b"\xff\xda")
    half = len(faulty) - len(faulty[faulty.rindex(b"\xff\xda") :]) // 2

    assert "extraneous" in warning(faulty[:half] + b"\xff\xd9")
    assert reason(faulty[:half] + b"\xff\xd9") == "truncated"


def test_junk_in_a_scan_is_corrupt_where_it_makes_an_impossible_code_and_else_looks_like_junk_at_the_end():
    start = PLAIN.rindex(b"\xff\xda") + 14
    middle = (start + len(PLAIN)) // 2
    while PLAIN[middle - 1] == 0xFF:
        middle += 1
    impossible = PLAIN[:middle] + b"\xff\0" * 40 + PLAIN[middle:]
    shifted = PLAIN[:middle] + junk(400) + PLAIN[middle:]

    assert "extraneous" in warning(shifted)
    assert reason(impossible) == "corrupt"
    assert normalise(shifted).changed  # there is no checksum to tell it by; Pillow and OpenCV take it too
    assert not warning(normalise(shifted).data)


def test_a_jpeg_with_junk_everywhere_is_corrupt():
    faulty = with_junk(RESTARTING, *(b"\xff" + bytes([0xD0 + n]) for n in range(7)))

    assert reason(faulty) == "corrupt"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_a_picture_cut_in_half_is_no_picture(kind):
    whole = saved(drawing(), kind)

    assert reason(whole[: len(whole) // 2]) in {"truncated", "corrupt"}


def test_rows_that_are_missing_inside_a_whole_png_are_noticed():
    assert reason(png(4, 4, 8, 2, (b"\0" + b"abc" * 4) * 3)) == "truncated"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "not_an_image"),
        (b"\0" * 100, "not_an_image"),
        (b"<html><body>404</body></html>", "not_an_image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not_an_image"),
        (png(0, 4, 8, 2, b""), "not_an_image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "unsupported"),
        (b"8BPS" + b"\0" * 30, "unsupported"),
        (png(1, 1, 8, 2, b"\x07abc"), "corrupt"),
        (png(1, 1, 8, 2, b"\0abc" * 9), "corrupt"),
        (png(1, 1, 3, 2, b"\0abc"), "corrupt"),
        (png(1, 1, 8, 2, b"\0abc", chunk(b"CgBI", b"")), "unsupported"),
        (saved(drawing(), "PNG").replace(b"IDAT", b"IDAT", 1)[:-20] + b"x" * 20, "corrupt"),
        (saved(Image.new("F", (4, 4)), "TIFF"), "unsupported"),
    ],
)
def test_what_is_no_picture_has_a_reason(data, expected):
    assert reason(data) == expected


def test_a_flipped_bit_of_a_png_is_noticed():
    whole = bytearray(saved(drawing(), "PNG"))
    whole[len(whole) // 2] ^= 1

    assert reason(bytes(whole)) == "corrupt"


@pytest.mark.parametrize(
    "bomb",
    [
        png(50_000, 50_000, 1, 0, b"\0" * 10_000),
        png(50_000, 50_000, 8, 2, b""),
        saved(drawing(), "GIF")[:6] + struct.pack("<HH", 65_535, 65_535) + saved(drawing(), "GIF")[10:],
        saved(drawing(), "BMP")[:18] + struct.pack("<ii", 50_000, -50_000) + saved(drawing(), "BMP")[26:],
        b"RIFF\xff\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\xff" * 2,
        b"RIFF\xff\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\0\0" + b"\xff\0\x80",
        b"II*\0\x08\0\0\0\x02\0" + struct.pack("<HHIIHHII", 256, 4, 1, 50_000, 257, 4, 1, 50_000),
        b"\xff\xd8\xff\xc0\0\x11\x08" + struct.pack(">HH", 50_000, 50_000) + b"\x03\1\x11\0\2\x11\0\3\x11\0",
        b"\0\0\0\x1cftypavif\0\0\0\0avifmif1\0\0\0\x14ispe\0\0\0\0" + struct.pack(">II", 50_000, 50_000),
    ],
)
def test_a_bomb_is_refused_by_its_header(bomb):
    assert reason(bomb) == "pixels"


def test_a_frame_larger_than_its_gif_says_is_refused_before_it_is_decoded():
    small = bytearray(saved(drawing(), "GIF"))
    at = small.index(b",\0\0\0\0")
    small[at + 5 : at + 9] = struct.pack("<HH", 60_000, 60_000)

    assert reason(bytes(small)) == "pixels"


def test_the_pixel_ceiling_can_be_lowered_but_not_raised():
    data = saved(drawing(), "JPEG")

    assert reason(data, max_pixels=48 * 32 - 1) == "pixels"
    assert normalise(data, max_pixels=48 * 32).changed is False
    with pytest.raises(ValueError, match="max_pixels"):
        normalise(data, max_pixels=MAX_PIXELS + 1)


def test_text_that_would_inflate_without_end_does_not_stay_in_a_png():
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000)))

    picture = normalise(png(1, 1, 8, 2, b"\0abc", bomb))

    assert picture.changed
    assert len(picture.data) < 1000


def test_a_picture_too_long_for_jpeg_is_unsupported():
    assert reason(png(70_000, 1, 8, 6, b"\0" + b"abcd" * 70_000)) == "unsupported"
    assert normalise(png(70_000, 1, 8, 2, b"\0" + b"abc" * 70_000)).changed is False


def test_a_jpeg_of_thousands_of_scans_is_refused():
    whole = saved(drawing(), "JPEG", progressive=True)
    start = whole.index(b"\xff\xda")

    assert reason(whole[:start] + whole[start:-2] * 200 + whole[-2:]) == "corrupt"


def theirs(data: bytes, short_px: int) -> bytes:
    """img2dataset's recipe: decoded, shrunk under an area filter and written, all by OpenCV."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    high, wide = pixels.shape[:2]
    size_px = (round(wide * short_px / min(high, wide)), round(high * short_px / min(high, wide)))
    shrunk = cv2.resize(pixels, size_px, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", shrunk, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


@pytest.mark.parametrize(
    "data",
    [
        saved(drawing(331, 200), "JPEG", quality=85),
        saved(drawing(331, 200), "JPEG", quality=98, subsampling=0),
        saved(drawing(200, 1001), "JPEG", progressive=True),
        saved(drawing(331, 200).convert("L"), "JPEG"),
        saved(drawing(331, 200), "PNG"),
        saved(drawing(331, 200).convert("L"), "PNG"),
        saved(drawing(331, 200), "BMP"),
    ],
)
@pytest.mark.parametrize("short_px", [199, 100, 61])
def test_area_gives_the_bytes_that_img2dataset_writes(data, short_px):
    assert normalise(data, max_short_side_px=short_px, resize="area").data == theirs(data, short_px)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 301), (201, 201), (1601, 803)])
@pytest.mark.parametrize("short_px", [199, 100, 33])
def test_linear_is_the_same_picture_of_the_same_size(kind, width, height, short_px):
    data = saved(drawing(30, 20).resize((width, height), Image.BICUBIC), kind, quality=95)

    picture, area = (normalise(data, max_short_side_px=short_px, resize=how) for how in ("linear", "area"))

    assert (picture.width, picture.height) == (area.width, area.height)
    assert far(opened(picture), opened(area)) < 2


def test_linear_does_not_pass_over_pixels():
    dots = Image.fromarray(np.tile(np.array([[0, 0, 0, 255]], np.uint8), (400, 100)))  # a quarter is white

    for kind in ("JPEG", "PNG"):
        data = saved(dots, kind, quality=100) if kind == "JPEG" else saved(dots, kind)
        shrunk = np.asarray(opened(normalise(data, max_short_side_px=100, resize="linear")))

        assert shrunk.mean() == pytest.approx(64, abs=2)
        assert shrunk.std() < 3


def test_another_filter_is_refused():
    with pytest.raises(ValueError, match="'area' or 'linear', not 'cubic'"):
        normalise(PLAIN, resize="cubic")


@pytest.mark.parametrize("how", ["area", "linear"])
def test_damage_is_seen_by_either_filter(how):
    middle = (PLAIN.rindex(b"\xff\xda") + 14 + len(PLAIN)) // 2
    while PLAIN[middle - 1] == 0xFF:
        middle += 1
    impossible = PLAIN[:middle] + b"\xff\0" * 40 + PLAIN[middle:]

    assert reason(PLAIN[: len(PLAIN) * 2 // 3] + b"\xff\xd9", max_short_side_px=60, resize=how) == "truncated"
    assert reason(impossible, max_short_side_px=60, resize=how) == "corrupt"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_a_whole_file_passes_inspection_and_keeps_its_size(kind):
    data = saved(drawing(61, 35), kind)

    assert inspect(data) == (sniff(data), 61, 35)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "AVIF"])
def test_every_cut_of_a_file_fails_inspection(kind):
    whole = saved(drawing(), kind, **({"save_all": True, "append_images": [drawing()]} if kind == "WEBP" else {}))
    passed = set()

    for n in range(len(whole)):
        try:
            passed.add((n, inspect(whole[:n])))
        except BadImage as error:
            assert error.reason in {"not_an_image", "truncated"}

    assert not passed


def test_inspection_decodes_nothing():
    whole = saved(drawing(), "JPEG")
    start = whole.rindex(b"\xff\xda") + 14
    blank = whole[:start] + bytes(len(whole) - start - 2) + whole[-2:]

    assert inspect(blank) == ("jpg", 48, 32)
    assert reason(blank) in {"truncated", "corrupt"}


def test_a_first_frame_beyond_the_screen_makes_a_gif_larger():
    larger = bytearray(saved(drawing(), "GIF"))
    at = larger.index(b",\0\0\0\0")
    larger[at + 1 : at + 5] = struct.pack("<HH", 10, 20)

    assert inspect(bytes(larger)) == ("gif", 58, 52)
    assert Image.open(io.BytesIO(bytes(larger))).size == (58, 52)


def film(kind: str, n_frames: int) -> bytes:
    """An animation of so many frames, each of one pixel's worth of bytes."""
    if kind == "gif":
        frame = b",\0\0\0\0\1\0\1\0\0\2\2\x44\1\0"
        return b"GIF89a\1\0\1\0\x80\0\0" + bytes(6) + frame * n_frames + b";"
    if kind == "webp":
        still = saved(drawing(1, 1), "WEBP")[12:]
        head = b"VP8X\x0a\0\0\0\2" + bytes(9) + b"ANIM\6\0\0\0" + bytes(6)
        frames = (b"ANMF" + struct.pack("<I", 16 + len(still)) + bytes(12) + b"\1\0\0\0" + still) * n_frames
        return b"RIFF" + struct.pack("<I", 4 + len(head + frames)) + b"WEBP" + head + frames
    if kind == "avif":
        moving = saved(drawing(8, 8), "AVIF", save_all=True, append_images=[drawing(8, 8)])
        at = moving.index(b"stsz") + 12
        return moving[:at] + struct.pack(">I", n_frames) + moving[at + 4 :]
    stated = chunk(b"acTL", struct.pack(">II", n_frames, 0))
    return png(1, 1, 8, 2, b"\0abc", *([stated] if kind == "png" else [chunk(b"fcTL", bytes(26))] * n_frames))


@pytest.mark.parametrize("kind", ["gif", "webp", "avif", "png", "png that doesn't say so"])
def test_an_animation_of_too_many_frames_is_refused(kind):
    most, more = film(kind, MAX_FRAMES), film(kind, MAX_FRAMES + 1)

    assert inspect(most)[0] == kind[:4].strip()
    assert reason(more) == "frames"
    with pytest.raises(BadImage, match="at most 1000"):
        inspect(more)


@pytest.mark.parametrize(
    "endless",
    [
        b"GIF89a\1\0\1\0\0\0\0!\xfe" + b"\1x" * 600_000 + b"\0;",
        b"GIF89a\1\0\1\0\0\0\0" + b"!\xfe\0" * 300_000 + b";",
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"\0\0\0\1\0\0\0\1\x08\2\0\0\0") + chunk(b"teXt", b"") * 300_000,
        b"RIFF\0\0\x40\0WEBPVP8X\x0a\0\0\0" + bytes(10) + b"EXIF\0\0\0\0" * 600_000,
        b"\xff\xd8" + b"\xff" * 600_000,
        b"\xff\xd8" + b"\xff\x01" * 600_000,
        b"\0\0\0\x2cftypavif\0\0\0\0avifmif1\0\0\0\x14ispe\0\0\0\0\0\0\0\1\0\0\0\1" + b"\0\0\0\x08free" * 300_000,
    ],
)
def test_a_walk_through_endless_blocks_ends(endless):
    assert reason(endless) == "corrupt"


SEEDS = [
    saved(drawing(24, 16), "JPEG"),
    saved(drawing(24, 16), "JPEG", progressive=True, exif=exif(6), icc_profile=wide_profile()),
    saved(drawing(24, 16).convert("CMYK"), "JPEG"),
    saved(drawing(24, 16), "PNG"),
    saved(drawing(24, 16).quantize(16), "PNG", transparency=3),
    saved(drawing(24, 16).convert("LA"), "PNG", exif=exif(3)),
    saved(drawing(24, 16), "GIF"),
    saved(drawing(24, 16), "WEBP"),
    saved(drawing(24, 16).convert("RGBA"), "WEBP", exif=exif(8), lossless=True),
    saved(drawing(24, 16), "BMP"),
    saved(drawing(24, 16).quantize(16), "BMP"),
    saved(drawing(24, 16), "TIFF"),
    saved(drawing(24, 16), "TIFF", compression="tiff_lzw", icc_profile=SRGB),
    saved(drawing(24, 16), "AVIF"),
]


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.data())
def test_mutated_pictures_raise_nothing_but_bad_image(data):
    mutated = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, min(len(mutated) - 1, data.draw(st.sampled_from([40, 300, 1 << 20]))))))
        what = data.draw(st.sampled_from(["flip", "set", "cut", "insert", "drop"]))
        if what == "flip" and mutated:
            mutated[at] ^= 1 << data.draw(st.integers(0, 7))
        elif what == "set" and mutated:
            mutated[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        elif what == "cut":
            del mutated[at:]
        elif what == "drop":
            del mutated[at : at + data.draw(st.integers(1, 8))]
        else:
            mutated[at:at] = data.draw(st.binary(min_size=1, max_size=8))
    candidate = bytes(mutated)
    if data.draw(st.booleans()) and candidate.startswith(b"\x89PNG"):
        candidate = resealed(candidate)

    try:
        picture = normalise(candidate, max_short_side_px=data.draw(st.sampled_from([None, 8])))
    except BadImage as error:
        assert error.reason in {"not_an_image", "unsupported", "pixels", "frames", "truncated", "corrupt"}
    else:
        assert opened(picture).size == (picture.width, picture.height)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=200), st.sampled_from([b"", *(seed[:16] for seed in SEEDS)]))
def test_any_bytes_raise_nothing_but_bad_image(tail, head):
    try:
        normalise(head + tail)
    except BadImage as error:
        assert error.reason


@pytest.mark.skipif(not (REAL / "clipart").is_dir(), reason=f"the real pictures are not in {str(REAL)!r}")
def test_real_cliparts_become_opaque_pictures_of_their_size():
    paths = sorted((REAL / "clipart").glob("*.png"))

    for path in paths:
        picture = normalise(path.read_bytes())
        with Image.open(path) as given:
            clear = given.convert("RGBA")
        white = Image.new("RGBA", clear.size, "white")
        assert opened(picture).mode in ("RGB", "L")
        assert far(opened(picture), Image.alpha_composite(white, clear)) < 7, path.name  # 4:2:0

    assert len(paths) == 160


@pytest.mark.skipif(not (REAL / "photo").is_dir(), reason=f"the real pictures are not in {str(REAL)!r}")
def test_real_photographs_are_kept_or_shrunk():
    for path in sorted((REAL / "photo").glob("*.jpg")):
        data = path.read_bytes()

        kept, shrunk = normalise(data), normalise(data, max_short_side_px=224)

        assert kept.data == data or kept.changed
        assert min(shrunk.width, shrunk.height) == 224
        assert len(shrunk.data) < len(data)
