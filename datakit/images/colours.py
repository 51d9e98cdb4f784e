"""Colour profiles: what an ICC profile changes, and pixels brought to sRGB by it."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = npt.NDArray[np.uint8]  # (height, width) grey or (height, width, 3) RGB


def profile_effect(icc: bytes, mode: str) -> str:
    """`same` (no profile, or one like sRGB), `differs`, or `broken`: ignored, but it can't stay in a stored picture."""
    if not icc:
        return "same"
    return _measure_effect(icc, mode) if len(icc) <= 1 << 16 else _measure_effect.__wrapped__(icc, mode)


@lru_cache(maxsize=64)  # most pictures carry one of a few profiles
def _measure_effect(icc: bytes, mode: str) -> str:
    from PIL import Image

    ramp = np.arange(0, 256, 17 if mode == "RGB" else 1, dtype=np.uint8)
    colours = np.array(np.meshgrid(ramp, ramp, ramp)).T.reshape(-1, 1, 3) if mode == "RGB" else ramp[:, None]
    turned = _transform(Image.fromarray(np.ascontiguousarray(colours)), icc)
    if turned is None:
        return "broken"
    return "same" if np.abs(turned.astype(int) - colours).max() <= 3 else "differs"


def apply_profile(image: Image, icc: bytes) -> Pixels:
    """sRGB, or grey, of an L, RGB or CMYK image; a profile that is broken or means sRGB changes nothing."""
    needed = bool(icc) if image.mode == "CMYK" else profile_effect(icc, image.mode) == "differs"
    turned = _transform(image, icc) if needed else None
    if turned is not None:
        return turned
    return np.asarray(image.convert("RGB") if image.mode == "CMYK" else image)


def _transform(image: Image, icc: bytes) -> Pixels | None:
    """Pixels brought to sRGB (perceptual), grey staying grey; None for a profile that does not fit."""
    from PIL import ImageCms

    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        change = ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), image.mode, "RGB")
        turned = np.asarray(ImageCms.applyTransform(image, change))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return turned[:, :, 1] if image.mode == "L" else turned
