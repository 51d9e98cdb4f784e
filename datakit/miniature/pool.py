"""Pictures that several datasets of the miniature refer to, as the upstreams share COCO, SAM or LAION's.

A source's pictures are the same whoever asks first, so an archive can be made without the datasets that use it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import NamedTuple

from datakit.miniature import pictures
from datakit.miniature.instruct import Member
from datakit.miniature.pictures import Drawing
from datakit.miniature.sheet import FLAWS, small
from datakit.miniature.world import Maker, World


class SharedPicture(NamedTuple):
    """A picture that rows may refer to."""

    source: str
    name: str  # below the source's folder
    drawing: Drawing
    flaw: str = ""  # of sheet.FLAWS

    @property
    def reason(self) -> str | None:
        """The reason for which a row with this picture is dropped."""
        return FLAWS[self.flaw][1] if self.flaw else None


def _lcs(n: int) -> str:
    return f"{900 + n % 3:05d}/{900 + n % 3:05d}{n:04d}.jpg"


# How many there are, and their names: unlike those of the rows that llava665k and llava558k draw for themselves.
SOURCES: Mapping[str, tuple[int, Callable[[int], str]]] = {
    "coco": (8, lambda n: f"{500_000 + 7 * n:012d}.jpg"),
    "gqa": (4, lambda n: f"{1_000_000 + n}.jpg"),
    "ocr_vqa": (4, lambda n: f"B00{n:05d}K2.jpg"),
    "textvqa": (4, lambda n: f"{0xE00 + n:016x}.jpg"),
    "vg": (4, lambda n: f"{1_100_000 + n}.jpg"),
    "vg2": (4, lambda n: f"{1_200_000 + n}.jpg"),
    "lcs": (12, _lcs),
    "allava_laion": (10, lambda n: f"{100_900_000 + 311 * n}.jpeg"),
    "allava_vflan": (4, lambda n: f"PACS+dog_{n}_image_{n}.png"),
    "sam": (9, lambda n: f"sa_{540_000 + 1111 * n}.jpg"),
    "share_textvqa": (4, lambda n: f"{0xABC0 + n:016x}.jpg"),
    "web_celebrity": (4, lambda n: f"{('Ada Byron', 'Émilie du Châtelet')[n % 2]}_{n}.jpg"),
    "web_landmark": (4, lambda n: f"{('Old Mill', 'Glass Bridge')[n % 2]}_{n}.jpg"),
    "wikiart": (4, lambda n: f"{17 * n + 5}.jpg"),
    "gpt4v": (3, lambda n: f"{n:08d}.jpg"),
    "docvqa": (3, lambda n: f"xnbl{n:04d}_1.png"),
    "chartqa": (3, lambda n: f"two_col_{100 + n}.png"),
    "dvqa": (3, lambda n: f"bar_train_{n:08d}.png"),
    "ai2d": (3, lambda n: f"{n * 13}.png"),
}

LAST = {"sam": "truncated", "wikiart": "zero_bytes", "web_landmark": "gif_named_jpg"}  # of a source's last picture


def shared_pictures(world: World, source: str) -> list[SharedPicture]:
    """All pictures of a source."""
    count, name = SOURCES[source]

    def make() -> list[SharedPicture]:
        chance = random.Random(f"pool/{world.seed}/{source}")
        flaws = [*[""] * (count - 1), LAST.get(source, "")]
        return [SharedPicture(source, name(n), small(chance), flaw) for n, flaw in enumerate(flaws)]

    return world.keep(("pool", source), make)


def lost_picture(world: World, source: str) -> SharedPicture:
    """A picture that rows refer to and no archive has."""
    name = SOURCES[source][1](9_999)
    return SharedPicture(source, name, shared_pictures(world, source)[0].drawing, "missing")


def members(world: World, source: str, folder: str = "") -> list[Member]:
    """A source's pictures as members of an archive, under a folder of it."""
    return [(folder + picture.name, _maker(picture)) for picture in shared_pictures(world, source)]


def _maker(picture: SharedPicture) -> Maker:
    usual = pictures.palette_png if picture.name.endswith(".png") else Drawing.jpeg
    make = (FLAWS[picture.flaw][0] if picture.flaw else None) or usual
    return lambda: make(picture.drawing)
