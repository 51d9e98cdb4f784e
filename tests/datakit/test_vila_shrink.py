"""VILA's shrink and ours: the same sizes to the pixel, and how far the filters are apart."""

import io

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from users import REAL

from datakit import images
from datakit.catalogue.manifest import load
from datakit.engine import pipeline
from datakit.images import normalise
from datakit.stages.fetch import Fetch

sides = st.integers(1, 65_500)


def vilas(picture: Image.Image, short_px: int = 336) -> Image.Image:
    """NVlabs/VILA data_prepare/mmc4/mmc4_downloader.py: the shorter side to 336, the other one by int()."""
    width, height = picture.size
    if min(width, height) <= short_px:
        return picture
    if width < height:
        return picture.resize((short_px, int(short_px * height / width)))
    return picture.resize((int(short_px * width / height), short_px))


def jpeg(picture: Image.Image, **how) -> bytes:
    sink = io.BytesIO()
    picture.convert("RGB").save(sink, "JPEG", **how)
    return sink.getvalue()


def luma(data: bytes) -> np.ndarray:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2GRAY)


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004): a Gaussian of 11 pixels and sigma 1.5, over luma, mean."""
    a, b = a.astype(np.float64), b.astype(np.float64)

    def blur(x):
        return cv2.GaussianBlur(x, (11, 11), 1.5)

    mean_a, mean_b = blur(a), blur(b)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    spread = blur(a * a) - mean_a**2 + blur(b * b) - mean_b**2
    together = blur(a * b) - mean_a * mean_b
    map_ = ((2 * mean_a * mean_b + c1) * (2 * together + c2)) / ((mean_a**2 + mean_b**2 + c1) * (spread + c2))
    return float(map_.mean())


@given(sides, sides, st.sampled_from([336, 224, 100, 7]))
def test_the_sizes_of_whole_numbers_are_those_of_vilas_int_of_a_float(width, height, short_px):
    ours = images.shrunk_size(short_px, "down", width, height) or (width, height)

    long, short = max(width, height), min(width, height)
    theirs = long if short <= short_px else int(short_px * long / short)
    assert (max(ours), min(ours)) == (theirs, min(short, short_px))


def test_a_shrunk_picture_has_the_size_that_pillow_gives_it_by_vilas_script():
    rng = np.random.default_rng(0)
    for width, height in rng.integers(320, 900, (150, 2)).tolist():
        drawn = Image.new("RGB", (width, height), (200, 30, 90))

        made = normalise(jpeg(drawn), max_short_side_px=336, quality=75, rounding="down")

        assert (made.width, made.height) == vilas(drawn).size


@pytest.mark.parametrize("resize", ["area", "linear"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_kind_is_rounded_down_where_that_is_asked_for(kind, resize):
    sink = io.BytesIO()
    Image.new("RGB", (501, 400), (200, 30, 90)).save(sink, kind)

    sizes = [
        normalise(sink.getvalue(), max_short_side_px=336, resize=resize, rounding=rounding).width
        for rounding in ("nearest", "down")
    ]

    assert sizes == [421, 420]  # of 420.84


def test_another_rounding_is_refused():
    with pytest.raises(ValueError, match="rounding is 'nearest' or 'down'"):
        normalise(b"", rounding="up")


@pytest.mark.parametrize(
    ("recipe", "dataset"),
    [
        ("coyo_vila", "coyo"),
        ("coyo25m", "coyo"),
        ("vila", "coyo"),
        ("vila", "mmc4"),
        ("vila", "mmc4_core"),
        ("mmc4_keep", "mmc4"),
    ],
)
def test_vilas_recipes_round_as_vila_does(recipe, dataset):
    (fetch,) = (step.stage for step in pipeline.steps(recipe, load(dataset)) if isinstance(step.stage, Fetch))

    assert (fetch.rounding, fetch.max_short_side_px, fetch.quality) == ("down", 336, 75)


def test_a_recipe_that_rounds_as_before_is_the_recipe_that_it_was():
    about = load("coyo")

    assert "rounding" not in Fetch(max_short_side_px=336).identity(about)
    assert Fetch(max_short_side_px=336, rounding="down").identity(about)["rounding"] == "down"


@pytest.mark.skipif(not (REAL / "images/photo").is_dir(), reason="the real pictures of ../shared/real aren't here")
def test_the_similarity_to_vilas_pictures_is_what_the_recipes_say():
    found = {}
    for path in sorted((REAL / "images/photo").glob("*.jpg")):
        with Image.open(path) as opened:
            theirs = jpeg(vilas(opened.convert("RGB")))
            if min(opened.size) <= 336:
                continue
        ours = normalise(path.read_bytes(), max_short_side_px=336, quality=75, rounding="down")
        found[path.stem] = ssim(luma(theirs), luma(ours.data))

    told = pipeline.load("coyo_vila").__doc__
    mean, least = sum(found.values()) / len(found), min(found.values())
    assert f"on four photographs, both written as JPEG of quality 75, the SSIM on luma is {mean:.2f} on" in told
    assert f"and {least:.2f} at least" in told
    assert len(found) == 4
    assert f"SSIM {mean:.2f}, see `coyo_vila`" in pipeline.load("vila").__doc__
