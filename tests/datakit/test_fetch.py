"""What fetch makes of a body, before anything is stored."""

import io

import pytest
from PIL import Image

from datakit import images
from datakit.errors import BadImage
from datakit.stages import fetch


def encoded(kind: str, size: tuple[int, int]) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", size, (200, 30, 90)).save(sink, kind)
    return sink.getvalue()


@pytest.mark.parametrize(("kind", "ext"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif")])
def test_without_a_limit_the_bytes_stay_as_they_came_whatever_they_are(kind, ext):
    data = encoded(kind, (900, 700))

    got = fetch.prepare_picture(data, max_short_side_px=None, quality=95, resize="area")

    assert (got.data, got.ext, got.width, got.height) == (data, ext, 900, 700)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_with_a_limit_every_picture_is_shrunk_and_decoded_once(kind):
    got = fetch.prepare_picture(encoded(kind, (900, 700)), max_short_side_px=336, quality=95, resize="linear")

    assert (got.ext, got.width, got.height) == ("jpg", 432, 336)
    assert images.inspect(got.data) == ("jpg", 432, 336)


def test_a_huge_png_is_refused_where_a_huge_jpeg_isn_t(monkeypatch):
    monkeypatch.setattr(fetch, "OTHERS_PIXELS", 100_000)

    with pytest.raises(BadImage, match="pixels"):
        fetch.prepare_picture(encoded("PNG", (900, 700)), max_short_side_px=336, quality=95, resize="area")
    assert (
        fetch.prepare_picture(encoded("JPEG", (900, 700)), max_short_side_px=336, quality=95, resize="area").height
        == 336
    )
    assert (
        fetch.prepare_picture(encoded("PNG", (900, 700)), max_short_side_px=None, quality=95, resize="area").height
        == 700
    )


def test_html_and_what_is_cut_short_is_refused_even_when_bytes_are_kept():
    for data, reason in ((b"<html>no</html>", "not_an_image"), (encoded("JPEG", (90, 70))[:-20], "truncated")):
        with pytest.raises(BadImage, match=reason):
            fetch.prepare_picture(data, max_short_side_px=None, quality=95, resize="area")
