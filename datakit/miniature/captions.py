"""The pretraining captions: LLaVA-Pretrain 558K and LLaVA-CC3M-Pretrain-595K."""

from __future__ import annotations

import json
import random

from datakit.miniature import pool, texts
from datakit.miniature.instruct import zip_archive
from datakit.miniature.sheet import Dataset, Sheet, conversation, small
from datakit.miniature.world import Places, World

LCS, CC3M = "liuhaotian/LLaVA-Pretrain", "liuhaotian/LLaVA-CC3M-Pretrain-595K"
LCS_JSON, CC3M_JSON = "blip_laion_cc_sbu_558k.json", "chat.json"
LCS_FLAWS = {5: "missing", 9: "truncated", 13: "gif_named_jpg", 17: "zero_bytes"}
CC3M_FLAWS = {4: "missing", 8: "truncated", 12: "html", 16: "cmyk"}


def llava558k(world: World) -> Dataset:
    dataset = Dataset(name="llava558k", sheets={LCS_JSON: Sheet()})
    chance = random.Random(f"llava558k/{world.seed}")
    for row in range(world.file_rows):
        id = f"{chance.randrange(600):05d}{row:04d}"
        _caption(dataset, LCS_JSON, row, id, f"{id[:5]}/{id}.jpg", LCS_FLAWS.get(row, ""), chance)
    return dataset


def cc3m595k(world: World) -> Dataset:
    dataset = Dataset(name="cc3m595k", sheets={CC3M_JSON: Sheet()})
    chance = random.Random(f"cc3m595k/{world.seed}")
    for row in range(world.file_rows):
        id = f"GCC_train_{row * 31 + chance.randrange(31):09d}"
        _caption(dataset, CC3M_JSON, row, id, f"{id}.jpg", CC3M_FLAWS.get(row, ""), chance)
    return dataset


def _caption(dataset: Dataset, file: str, row: int, id: str, name: str, flaw: str, chance: random.Random) -> None:
    of = small(chance)
    turns = [(chance.choice(texts.SHORT_PROMPTS), texts.line(of, chance))]
    record = {"id": id, "image": name, "conversations": conversation(turns, image_first=chance.random() < 0.5)}
    reason = dataset.draw("all", name, of, flaw)
    if row == 21:
        flaw = reason = "empty_answer"
        record["conversations"] = conversation([(turns[0][0], "")], image_first=True)
    dataset.sheets[file].add(record, "all", flaw, reason)


def places(world: World) -> Places:
    def lcs_meta() -> bytes:
        records = world.make_once(llava558k).sheets[LCS_JSON].records
        told = [
            {
                "id": record["id"],
                "image": record["image"],
                "blip_caption": record["conversations"][1]["value"],
                "url": f"https://pictures.example/{record['id']}.jpg",
            }
            for record in records
        ]
        return json.dumps(told).encode()

    def cc3m_meta() -> bytes:
        records = world.make_once(cc3m595k).sheets[CC3M_JSON].records
        told = [
            {"id": record["id"], "image": record["image"], "caption": record["conversations"][1]["value"]}
            | ({"blip_caption": record["conversations"][1]["value"]} if row % 10 else {})  # a tenth has none upstream
            for row, record in enumerate(records)
        ]
        return json.dumps(told).encode()

    return Places(
        hub={
            LCS: {
                LCS_JSON: lambda: world.make_once(llava558k).sheets[LCS_JSON].array(indent=2),
                "blip_laion_cc_sbu_558k_meta.json": lcs_meta,
                "images.zip": lambda: zip_archive(
                    [*world.make_once(llava558k).members["all"], *pool.members(world, "lcs")]
                ),
            },
            CC3M: {
                CC3M_JSON: lambda: world.make_once(cc3m595k).sheets[CC3M_JSON].array(),
                "metadata.json": cc3m_meta,
                "images.zip": lambda: zip_archive(world.make_once(cc3m595k).members["all"], deflate=True),
            },
        }
    )
