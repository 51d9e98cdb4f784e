"""MMC4's shards: zipped JSON Lines of web pages, and the web that their pictures were on.

A picture's URL carries its shard, document and place, so the web needs no table of URLs.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datakit.errors import UsageError
from datakit.miniature import coyo, pictures
from datakit.miniature.instruct import zip_archive
from datakit.miniature.pictures import Drawing
from datakit.miniature.server import Answer, Request
from datakit.miniature.sheet import small
from datakit.miniature.world import Places, World

REPO = "jmhessel/mmc4-core-ff"
FILES = "data_core/docs_no_face_shard_{shard}_v3.jsonl.zip"
SHARDS = (0, 1, 2, 10)  # of the 23,099; the others are lost
ROWS = 12
PICTURE = re.compile(r"/pages/(\d+)/(\d+)-(\d+)\.(?:jpg|png)")
HOSTS = ("www.garden-notes.example", "blog.tin-kettle.example", "img.slow-trains.example")

# Row -> images, sentences, what the web does at its second image, the reason the reader drops it for.
# Twelve kinds of document, the same in each shard.
KINDS: Mapping[int, tuple[int, int, str, str | None]] = {
    0: (2, 5, "", None),
    1: (3, 6, "gone_404", None),
    2: (5, 3, "", None),  # more images than sentences
    3: (0, 5, "", "no_images"),
    4: (2, 4, "", None),  # could_have_url_duplicate
    5: (2, 4, "html", None),
    6: (3, 4, "", None),  # two images fit the same sentence best
    7: (1, 4, "gif_named_jpg", None),
    8: (2, 2, "", "empty_answer"),  # its sentences are blank
    9: (1, 4, "gone_410", None),  # nothing is left
    10: (4, 8, "redirect_good", None),
    11: (2, 4, "", None),  # a sentence that says <image>, and a picture that is there twice
}


@dataclass(frozen=True, kw_only=True)
class MMC4Expected:
    """What a correct tool finds in one shard."""

    rows: int
    kept: tuple[str, ...]  # documents all of whose images can be had, and that can be read
    partly: Mapping[str, tuple[str, ...]]  # those with a dead image -> the urls that can be had, if any
    dropped: Mapping[str, str]  # those the reader turns down -> its reason
    images: Mapping[str, tuple[str, ...]]  # document -> urls, as upstream orders them
    outcomes: Mapping[str, tuple[str, ...]]  # url -> the outcomes that are right


def document(world: World, shard: int, row: int) -> dict[str, Any]:
    """A line of a shard, with the fields of upstream's (allenai/mmc4, README)."""
    n_images, n_sentences, _, reason = KINDS[row]
    chance = random.Random(f"mmc4/{world.seed}/{shard}/{row}")
    host = HOSTS[(shard + row) % len(HOSTS)]
    drawn = [drawing(world, shard, row, image) for image in range(n_images)]
    sentences = [
        f"Step {n + 1}: look for {drawn[n].named if n < n_images else 'the next sign'}. "
        + chance.choice(("It stands by the gate.", "Mind the wet paint!", "It says “Café” — do not ask why."))
        for n in range(n_sentences)
    ]
    chance.shuffle(sentences)
    if reason == "empty_answer":
        sentences = [" "] * n_sentences
    if row == 11:
        sentences[1] = "In HTML you write <image> or rather <img>."
    sims = [[round(chance.uniform(0.12, 0.24), 6) for _ in sentences] for _ in drawn]
    for image, row_sims in enumerate(sims):
        row_sims[1 if row == 6 else (2 * image) % n_sentences] = round(0.26 + 0.02 * image, 6)
    found = []
    for image, row_sims in enumerate(sims):
        ending = "png" if image % 3 == 2 else "jpg"
        name = 0 if row == 11 else image
        query = "?w=800" if image == 1 and row == 4 else ""
        found.append(
            {
                "image_name": f"{chance.getrandbits(48):012x}.{ending}",
                "raw_url": f"http://{host}/pages/{shard}/{row}-{name}.{ending}{query}",
                "matched_text_index": (2 * image) % n_sentences,
                "matched_sim": max(row_sims),
                "face_detections": None,
            }
        )
    return {
        "text_list": sentences,
        "url": f"http://{host}/{shard}/{row}.html",
        "image_info": found,
        "similarity_matrix": sims,
        "could_have_url_duplicate": int(row == 4),
    }


def drawing(world: World, shard: int, row: int, image: int) -> Drawing:
    return small(random.Random(f"mmc4/{world.seed}/{shard}/{row}/{image}"))


def fault(row: int, image: int) -> str:
    """What the web does at an image: the second of a document, or the only one, is the one that is spoilt."""
    n_images, _, spoilt, _ = KINDS[row]
    return spoilt if image == min(1, n_images - 1) else ""


def shard_file(world: World, shard: int) -> bytes:
    lines = b"".join(json.dumps(document(world, shard, row)).encode() + b"\n" for row in range(ROWS))
    return zip_archive(
        [(FILES.format(shard=shard).rpartition("/")[2].removesuffix(".zip"), lambda: lines)], deflate=True
    )


def expected(world: World, shard: int, dataset: str = "mmc4") -> MMC4Expected:
    if shard not in SHARDS:
        raise UsageError(f"The miniature of mmc4 has no shard {shard!r}; its shards are {SHARDS}.")
    images: dict[str, tuple[str, ...]] = {}
    outcomes: dict[str, tuple[str, ...]] = {}
    partly: dict[str, tuple[str, ...]] = {}
    dropped: dict[str, str] = {}
    kept = []
    for row in range(ROWS):
        key = f"{dataset}-{shard:05d}-{row:06d}"
        urls = tuple(info["raw_url"] for info in document(world, shard, row)["image_info"])
        images[key] = urls
        spoilt = [fault(row, image) for image in range(len(urls))]
        came = {url: coyo.FAULTS[what] if what else ("ok",) for url, what in zip(urls, spoilt, strict=True)}
        outcomes |= came
        reason = KINDS[row][3]
        if reason:
            dropped[key] = reason
        elif all(outcome == ("ok",) for outcome in came.values()):
            kept.append(key)
        else:
            partly[key] = tuple(url for url in urls if came[url] == ("ok",))
    return MMC4Expected(rows=ROWS, kept=tuple(kept), partly=partly, dropped=dropped, images=images, outcomes=outcomes)


def places(world: World) -> Places:
    def pages(request: Request, path: str) -> Answer | None:
        named = PICTURE.search(path)
        shard, row, image = (int(number) for number in named.groups()) if named else (-1, 0, 0)
        if shard not in SHARDS or row >= ROWS or image >= KINDS[row][0]:
            return None
        of, spoilt = drawing(world, shard, row, image), fault(row, image)
        make = {"gif_named_jpg": pictures.gif}.get(spoilt) or (
            pictures.palette_png if path.endswith(".png") else Drawing.jpeg
        )
        site = coyo.Row(columns={}, drawing=of, fault=spoilt)
        return coyo.answer(site, request.path, world.keep(("mmc4", shard, row, image), functools.partial(make, of)))

    files = {FILES.format(shard=shard): functools.partial(shard_file, world, shard) for shard in SHARDS}
    return Places(hub={REPO: files}, pages=pages)
