"""Draws the pictures of the miniature by code, whole ones and broken ones; the same bytes every time."""

from __future__ import annotations

import io
import random
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

COLOURS = {
    "red": (200, 40, 40),
    "green": (40, 150, 60),
    "blue": (40, 80, 200),
    "yellow": (230, 200, 40),
    "purple": (130, 50, 160),
    "orange": (235, 130, 30),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
GROUNDS = {
    "grey": ((90, 90, 95), (180, 180, 185)),
    "sandy": ((200, 170, 120), (240, 220, 180)),
    "sky-blue": ((120, 180, 230), (215, 235, 250)),
    "grass-green": ((70, 120, 60), (160, 200, 120)),
    "pink": ((220, 150, 160), (250, 215, 220)),
}
SHAPES = ("circle", "square", "triangle", "diamond", "ring", "cross")
WORDS = ("MILK", "EXIT", "OPEN", "TAXI", "CAFE", "NORTH", "SALE", "BUS 42", "HOTEL", "POST")
FLAWS = ("", "blurred", "noisy", "dark")
HTML = (
    b"<!DOCTYPE html>\n<html><head><title>Sorry</title></head>"
    b"<body><h1>This picture is no longer here.</h1></body></html>\n"
)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A shape with a word on a shaded ground: all that a question about it needs to know."""

    shape: str
    colour: str
    ground: str
    word: str
    width: int
    height: int
    box: tuple[float, float, float, float]  # left, top, right, bottom, each 0 to 1
    flaw: str  # of FLAWS
    seed: int  # of the noise

    @property
    def named(self) -> str:
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.shape}"

    def image(self) -> Image.Image:
        noise = np.random.default_rng(self.seed)
        dark, light = (np.array(c, np.float32) for c in GROUNDS[self.ground])
        across = np.linspace(0, 0.4, self.width, dtype=np.float32)[None, :, None]
        down = np.linspace(0, 0.6, self.height, dtype=np.float32)[:, None, None]
        pixels = dark + (light - dark) * (across + down)
        picture = Image.fromarray(pixels.astype(np.uint8))
        self._shape(ImageDraw.Draw(picture))
        spread = 40 if self.flaw == "noisy" else 9
        if self.flaw == "blurred":
            picture = picture.filter(ImageFilter.GaussianBlur(4))
            spread = 2
        grain = noise.integers(-spread, spread + 1, (self.height, self.width, 1), np.int16)
        grey = np.asarray(picture).astype(np.int16) // (4 if self.flaw == "dark" else 1)
        return Image.fromarray(np.clip(grey + grain, 0, 255).astype(np.uint8))

    def _shape(self, draw: ImageDraw.ImageDraw) -> None:
        left, right = self.box[0] * self.width, self.box[2] * self.width
        top, bottom = self.box[1] * self.height, self.box[3] * self.height
        middle, centre = (left + right) / 2, (top + bottom) / 2
        colour = COLOURS[self.colour]
        if self.shape == "circle":
            draw.ellipse((left, top, right, bottom), fill=colour)
        elif self.shape == "ring":
            draw.ellipse((left, top, right, bottom), outline=colour, width=max(3, self.width // 20))
        elif self.shape == "square":
            draw.rectangle((left, top, right, bottom), fill=colour)
        elif self.shape == "triangle":
            draw.polygon([(middle, top), (right, bottom), (left, bottom)], fill=colour)
        elif self.shape == "diamond":
            draw.polygon([(middle, top), (right, centre), (middle, bottom), (left, centre)], fill=colour)
        else:
            third = (right - left) / 3
            draw.rectangle((left + third, top, right - third, bottom), fill=colour)
            draw.rectangle((left, centre - third / 2, right, centre + third / 2), fill=colour)
        draw.text((3, 2), self.word, fill=(20, 20, 20), font=ImageFont.load_default())

    def jpeg(self, quality: int = 88) -> bytes:
        return encode(self.image(), "JPEG", quality=quality)


def drawing(chance: random.Random, *, least_px: int = 40, most_px: int = 400, flaw: str = "") -> Drawing:
    """A drawing whose sides lie between `least_px` and `most_px`; few are small, as on the web."""
    width, height = (most_px - int(chance.random() ** 2 * (most_px - least_px + 1)) for _ in "wh")
    left, top = chance.uniform(0.05, 0.45), chance.uniform(0.15, 0.45)
    return Drawing(
        shape=chance.choice(SHAPES),
        colour=chance.choice(sorted(COLOURS)),
        ground=chance.choice(sorted(GROUNDS)),
        word=chance.choice(WORDS),
        width=width,
        height=height,
        box=(round(left, 2), round(top, 2), round(left + 0.45, 2), round(top + 0.45, 2)),
        flaw=flaw,
        seed=chance.getrandbits(32),
    )


def encode(picture: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def truncated_jpeg(of: Drawing) -> bytes:
    """The first half of a JPEG, as an interrupted upload leaves it."""
    jpeg = of.jpeg()
    return jpeg[: len(jpeg) // 2]


def gif(of: Drawing) -> bytes:
    return encode(of.image().quantize(64), "GIF")


def cmyk(of: Drawing) -> bytes:
    return encode(of.image().convert("CMYK"), "JPEG", quality=88)


def jpeg_with_exif_turn(of: Drawing) -> bytes:
    """A JPEG that lies on its side, with the EXIF orientation 6 that a camera writes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(of.image().transpose(Image.Transpose.ROTATE_90), "JPEG", quality=88, exif=exif)


def palette_png(of: Drawing) -> bytes:
    return encode(of.image().quantize(32), "PNG")


def deep_png(of: Drawing) -> bytes:
    """A grey PNG with 16 bits a pixel."""
    grey = np.asarray(of.image().convert("L")).astype(np.uint16) * 257
    return encode(Image.fromarray(grey), "PNG")


def huge_png(side_px: int = 50_000) -> bytes:
    """A kilobyte that says it is a picture of 50,000 by 50,000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side_px, side_px, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 4096))
    note = b"Comment\0" + b"x" * (1024 - len(start) - 12 - 12 - 8)
    return start + chunk(b"tEXt", note) + chunk(b"IEND", b"")
