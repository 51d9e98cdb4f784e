"""Batch: encoded pictures to pixels, and samples to padded tensors.

Names of arrays end in their dimensions: B samples, T tokens, N pictures, C colours, H and W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

from datakit.errors import BadImage
from trainer.chat import IGNORE


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """How pictures become pixels: one shape, one normalisation."""

    size: int  # side in pixels
    aspect: Literal["pad", "square", "resize"]
    """`pad`: to a square, on the mean colour (LLaVA expand2square). `square`: the middle square (CLIP's own
    cut). `resize`: stretched (VILA)."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def pixels(self, data: bytes) -> np.ndarray:
        """One JPEG or PNG as (3, size, size) float32. Raises BadImage."""
        try:
            with Image.open(io.BytesIO(data)) as file:
                image = _rgb(ImageOps.exif_transpose(file))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise BadImage("decode", str(error)) from error
        if self.aspect == "pad":
            image = self._on_square(image)
        if self.aspect == "square":
            image = self._middle(image)
        elif image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        pixels_HWC: npt.NDArray[np.float32] = np.asarray(image, np.float32) / np.float32(255)
        pixels_HWC = (pixels_HWC - mean) / std
        return np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1))

    def _on_square(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        side = max(width, height)
        square = Image.new("RGB", (side, side), tuple(int(c * 255) for c in self.mean))
        square.paste(image, ((side - width) // 2, (side - height) // 2))  # an odd row goes to the bottom
        return square

    def _middle(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        short = min(width, height)
        # CLIP's image processor rounds the long side down.
        width, height = int(self.size * width / short), int(self.size * height / short)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        return resized.crop((left, top, left + self.size, top + self.size))


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB, transparency laid over white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


@dataclass(frozen=True)
class Example:
    """One sample as arrays, ready to be batched: ids and labels (T,), pixels (N, 3, H, W)."""

    key: str
    ids: np.ndarray
    labels: np.ndarray
    pixels: np.ndarray
    cut_tokens: int
    cut_images: int


@dataclass(frozen=True)
class Batch:
    """A micro batch, as tensors."""

    keys: tuple[str, ...]
    ids_BT: torch.Tensor
    labels_BT: torch.Tensor
    mask_BT: torch.Tensor
    pixels_NCHW: torch.Tensor
    cut_samples: int
    cut_images: int

    @property
    def n_learned(self) -> int:
        """Tokens that count in the loss; the first of a sample is never predicted."""
        return int((self.labels_BT[:, 1:] != IGNORE).sum())

    def to(self, device: torch.device) -> Batch:
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in memory that a GPU can copy from; DataLoader calls it by this name."""
        return self._with_tensors(torch.Tensor.pin_memory)

    def _with_tensors(self, of: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return replace(
            self,
            ids_BT=of(self.ids_BT),
            labels_BT=of(self.labels_BT),
            mask_BT=of(self.mask_BT),
            pixels_NCHW=of(self.pixels_NCHW),
        )


def pad_batch(
    ids: Sequence[np.ndarray], labels: Sequence[np.ndarray], pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right-pad samples to the longest one.

    Shapes: ids[b], labels[b]: (T_b,) int64 -> ids_BT, labels_BT, mask_BT with T = max(T_b).
    mask_BT is True on real tokens; labels_BT is IGNORE on padding and on what the user said.
    """
    length = max(len(row) for row in ids)
    ids_BT = np.full((len(ids), length), pad_id, np.int64)
    labels_BT = np.full((len(ids), length), IGNORE, np.int64)
    mask_BT = np.zeros((len(ids), length), bool)
    for b, (row, label) in enumerate(zip(ids, labels, strict=True)):
        ids_BT[b, : len(row)] = row
        labels_BT[b, : len(row)] = label
        mask_BT[b, : len(row)] = True
    return ids_BT, labels_BT, mask_BT


@dataclass(frozen=True)
class Collate:
    """Samples to one micro batch, their pictures one after the other in the order of the marks.

    When no sample has a picture, an empty one is put behind the shortest: its tokens are never learned and
    nothing before them can see them. ZeRO adds up gradients in the order in which they arrive, so every
    process has to go through tower and connector in every micro batch, and by the same way.
    """

    pad_id: int
    image_id: int
    image_tokens: int  # per picture

    def __call__(self, examples: Sequence[Example]) -> Batch:
        ids, labels = [e.ids for e in examples], [e.labels for e in examples]
        pixels_NCHW = np.concatenate([e.pixels for e in examples])
        if not len(pixels_NCHW):
            pixels_NCHW = np.zeros((1, *pixels_NCHW.shape[1:]), np.float32)
            b = min(range(len(ids)), key=lambda b: len(ids[b]))
            ids[b] = np.append(ids[b], np.full(self.image_tokens, self.image_id))
            labels[b] = np.append(labels[b], np.full(self.image_tokens, IGNORE))
        ids_BT, labels_BT, mask_BT = pad_batch(ids, labels, self.pad_id)
        return Batch(
            keys=tuple(e.key for e in examples),
            ids_BT=torch.from_numpy(ids_BT),
            labels_BT=torch.from_numpy(labels_BT),
            mask_BT=torch.from_numpy(mask_BT),
            pixels_NCHW=torch.from_numpy(pixels_NCHW),
            cut_samples=sum(e.cut_tokens > 0 for e in examples),
            cut_images=sum(e.cut_images for e in examples),
        )
