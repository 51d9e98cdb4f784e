from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from toymix import png

pytest.importorskip("torch", reason="needs the `train` extra")
pytest.importorskip("transformers", reason="needs the `train` extra")

import torch

from datakit.errors import BadImage
from trainer.batch import Collate, Example, Pictures, pad_batch
from trainer.chat import IGNORE
from trainer.model import load_torchvision

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP


def pictures(aspect: str, size: int = 32) -> Pictures:
    return Pictures(size=size, aspect=aspect, mean=MEAN, std=STD)


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def colours(pixels: np.ndarray) -> np.ndarray:
    """Back to 0..255, (H, W, 3)."""
    back = pixels.transpose(1, 2, 0) * np.float32(STD) + np.float32(MEAN)
    return (back * 255).round().astype(int)


def example(ids: list[int], labels: list[int], n_images: int = 0) -> Example:
    pixels = np.ones((n_images, 3, 8, 8), np.float32)
    return Example("k", np.array(ids), np.array(labels), pixels, cut_tokens=0, cut_images=0)


@pytest.mark.parametrize("size", [(50, 40), (33, 47), (32, 32), (20, 90)])
def test_square_pixels_are_those_of_clips_own_processor(size):
    image = noise(*size)
    load_torchvision()
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    theirs = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})

    mine = pictures("square").pixels(png(image))

    expected = np.asarray(theirs(images=image)["pixel_values"][0])
    np.testing.assert_allclose(mine, expected, atol=1e-5)


def test_pad_lays_a_picture_in_the_middle_of_the_mean_colour():
    wide = Image.new("RGB", (32, 15), (200, 10, 30))

    seen = colours(pictures("pad").pixels(png(wide)))

    assert (seen[:8] == (122, 116, 104)).all()  # as LLaVA has it for CLIP
    assert (seen[8:23] == (200, 10, 30)).all()
    assert (seen[23:] == (122, 116, 104)).all()  # the odd row is at the bottom


def test_resize_stretches():
    image = noise(50, 40)

    mine = pictures("resize").pixels(png(image))

    expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
    assert (colours(mine) == expected).all()


def test_transparency_lies_over_white_and_palettes_become_colours():
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    palette = Image.new("RGB", (8, 8), (10, 200, 30)).quantize(2)

    assert (colours(pictures("resize").pixels(png(clear))) == 255).all()
    assert (colours(pictures("resize").pixels(png(palette))) == (10, 200, 30)).all()


def test_a_turn_in_the_exif_is_applied():
    lying = Image.new("RGB", (32, 16), "red")
    lying.paste("blue", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter clockwise
    file = io.BytesIO()
    lying.save(file, "PNG", exif=exif)

    seen = colours(pictures("resize").pixels(file.getvalue()))

    assert (seen[0] == (0, 0, 255)).all()
    assert (seen[-1] == (255, 0, 0)).all()


@pytest.mark.parametrize("data", [b"", b"<html>", png(noise(50, 50))[:-700]])
def test_bytes_that_are_no_picture_are_a_bad_image(data):
    with pytest.raises(BadImage):
        pictures("pad").pixels(data)


def test_padding_goes_to_the_right_and_is_neither_seen_nor_learned():
    ids, labels = [np.array([1, 2, 3]), np.array([4])], [np.array([IGNORE, 2, 3]), np.array([4])]

    ids_BT, labels_BT, mask_BT = pad_batch(ids, labels, pad_id=9)

    assert ids_BT.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert labels_BT.tolist() == [[IGNORE, 2, 3], [4, IGNORE, IGNORE]]
    assert mask_BT.tolist() == [[True, True, True], [True, False, False]]


def test_a_batch_has_the_pictures_of_its_samples_in_order():
    collate = Collate(pad_id=0, image_id=7, image_tokens=2)

    batch = collate([example([1, 7, 7, 2], [IGNORE, IGNORE, IGNORE, 2], 1), example([7, 7, 7, 7], [IGNORE] * 4, 2)])

    assert batch.pixels_NCHW.shape == (3, 3, 8, 8)
    assert batch.ids_BT.dtype == batch.labels_BT.dtype == torch.int64
    assert batch.mask_BT.dtype == torch.bool
    assert batch.n_learned == 1


def test_the_first_token_of_a_sample_does_not_count_as_learned():
    batch = Collate(pad_id=0, image_id=7, image_tokens=2)([example([5, 6], [5, 6])])

    assert batch.n_learned == 1


def test_a_batch_without_pictures_gets_one_behind_its_shortest_sample():
    batch = Collate(pad_id=0, image_id=7, image_tokens=2)([example([1, 2, 3, 4], [1, 2, 3, 4]), example([5], [5])])

    assert batch.ids_BT.tolist() == [[1, 2, 3, 4], [5, 7, 7, 0]]
    assert batch.labels_BT.tolist() == [[1, 2, 3, 4], [5, IGNORE, IGNORE, IGNORE]]
    assert batch.pixels_NCHW.shape == (1, 3, 8, 8)
