"""The LLaVA-1.5 mix, LibMoE's half of it, Q-Instruct, and the archives that hold the mix's pictures."""

from __future__ import annotations

import functools
import random

from datakit.miniature import instruct, pool
from datakit.miniature.instruct import Instruct
from datakit.miniature.sheet import Dataset, Sheet
from datakit.miniature.world import Maker, Places, World

LLAVA, HALF, QINSTRUCT = "liuhaotian/LLaVA-Instruct-150K", "DavidNguyen/LLAVAHALF", "teowu/Q-Instruct"
OCR_VQA = "weizhiwang/llava_v15_instruction_images"
HALF_JSON = "llava_v1_5_mix665k_half.json"
ARCHIVES = {  # address -> source of llava665k
    "http://images.cocodataset.org/zips/train2017.zip": "coco",
    "https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip": "gqa",
    "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip": "textvqa",
    "https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip": "vg",
    "https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip": "vg2",
}


def llava665k(world: World) -> Instruct:
    return instruct.llava665k(world.rows, world.seed, world.real)


def qinstruct(world: World) -> Instruct:
    return instruct.qinstruct(max(2, world.rows // 2), world.seed)


def llava332k(world: World) -> Dataset:
    """Half of the mix, in its order: how upstream drew it is written nowhere. Every other odd row is in it."""
    whole = world.make_once(llava665k)
    chance = random.Random(f"llava332k/{world.seed}")
    chosen = set(sorted(whole.faults)[::2])
    plain = [row for row in range(len(whole.records)) if row not in whole.faults]
    chosen.update(chance.sample(plain, len(whole.records) // 2 - len(chosen)))
    half = Sheet()
    for row in sorted(chosen):
        image = str(whole.records[row].get("image", ""))
        source = next(
            (name for name, of in instruct.SOURCES.items() if image.rpartition("/")[0] + "/" == of.prefix), ""
        )
        half.add(whole.records[row], source, *whole.faults.get(row, ("", None)))
    return Dataset(name="llava332k", sheets={HALF_JSON: half})


def places(world: World) -> Places:
    def archive(source: str) -> bytes:
        """What llava665k has of a source, and behind it what only others refer to."""
        members = [
            *world.make_once(llava665k).members[source],
            *pool.members(world, source, instruct.SOURCES[source].inside),
        ]
        return instruct.zip_archive(members, deflate=source == "gqa")

    def mix() -> bytes:
        return instruct.array(world.make_once(llava665k).records, indent=2, ascii_only=False)

    def labels() -> bytes:
        return instruct.array(world.make_once(qinstruct).records, indent=None, ascii_only=True)

    web: dict[str, Maker] = {url: functools.partial(archive, source) for url, source in ARCHIVES.items()}
    return Places(
        hub={
            LLAVA: {"llava_v1_5_mix665k.json": mix},
            HALF: {HALF_JSON: lambda: world.make_once(llava332k).sheets[HALF_JSON].array(indent=2)},
            QINSTRUCT: {
                "cleaned_labels.json": labels,
                "q-instruct-images.tar": lambda: instruct.tar_archive(world.make_once(qinstruct).members["all"]),
            },
            OCR_VQA: {"ocr_vqa_images_llava_v15.zip": functools.partial(archive, "ocr_vqa")},
        },
        web=web,
    )
