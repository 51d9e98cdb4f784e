"""Mini-Gemini's pretraining and instruction sets: pictures of a dozen other datasets below roots of its own."""

from __future__ import annotations

import random
from collections.abc import Mapping

from datakit.miniature import pool, questions, texts
from datakit.miniature.instruct import zip_archive
from datakit.miniature.sheet import Dataset, Sheet, conversation
from datakit.miniature.world import Maker, Places, World

PRETRAIN_REPO, PRETRAIN = "YanweiLi/MGM-Pretrain", "mgm_pretrain.json"
REPO, INSTRUCTION, PURE_TEXT = "YanweiLi/MGM-Instruction", "mgm_instruction.json", "mgm_generation_pure_text.json"
PRETRAIN_ROOTS = {
    "lcs": "images/",
    "allava_laion": "ALLaVA-4V/allava_laion/images/",
    "allava_vflan": "ALLaVA-4V/allava_vflan/images/images_191task_1k/",
}
ROOTS = {
    "lcs": "llava/LLaVA-Pretrain/images/",
    "coco": "coco/train2017/",
    "gqa": "gqa/images/",
    "ocr_vqa": "ocr_vqa/images/",
    "vg": "vg/VG_100K/",
    "vg2": "vg/VG_100K_2/",
    "sam": "sam/images/",
    "share_textvqa": "share_textvqa/images/",
    "wikiart": "wikiart/images/",
    "web_celebrity": "web-celebrity/images/",
    "web_landmark": "web-landmark/images/",
    "gpt4v": "gpt4v-dataset/images/",
    "allava_laion": "ALLaVA-4V/allava_laion/images/",
    "docvqa": "docvqa/train/",
    "chartqa": "chartqa/train/png/",
    "dvqa": "dvqa/images/",
    "ai2d": "ai2d/images/",
}
BY_HAND = {  # archive that a person packs -> its source, and the folder in it
    "https://huggingface.co/datasets/laion/gpt4v-dataset/gpt4v-dataset.zip": ("gpt4v", "images/"),
    "https://rrc.cvc.uab.es/docvqa.zip": ("docvqa", "train/"),
    "https://github.com/vis-nlp/ChartQA/chartqa.zip": ("chartqa", "train/png/"),
    "https://github.com/kushalkafle/DVQA_dataset/dvqa.zip": ("dvqa", "images/"),
    "https://allenai.org/data/diagrams/ai2d.zip": ("ai2d", "images/"),
}


def mgm(world: World) -> Dataset:
    return Dataset(
        name="mgm",
        sheets={
            PRETRAIN: _rows(world, PRETRAIN, PRETRAIN_ROOTS, captions=True),
            INSTRUCTION: _rows(world, INSTRUCTION, ROOTS, captions=False),
        },
        subsets={"pretrain": (PRETRAIN,), "instruction": (INSTRUCTION,)},
    )


def _rows(world: World, file: str, roots: Mapping[str, str], *, captions: bool) -> Sheet:
    sheet, chance = Sheet(), random.Random(f"{file}/{world.seed}")
    sources = [*roots] if captions else [*roots, ""]
    for row in range(world.file_rows):
        source = sources[row % len(sources)]
        if not source:  # what to draw, for a picture generator: text only
            sheet.add({"id": f"gen_{row:06d}", "conversations": conversation(questions.CHATS[row % 4])})
            continue
        shared, nth = pool.shared_pictures(world, source), row // len(sources)
        lost = row == len(sources) + 1
        picture = pool.lost_picture(world, source) if lost else shared[-1] if nth == 0 else shared[nth % len(shared)]
        odd, reason = picture.flaw, picture.reason
        asked = (
            [(chance.choice(texts.SHORT_PROMPTS), texts.paragraph(picture.drawing))]
            if captions
            else texts.instruction(picture.drawing, chance)
        )
        if row == len(sources) + 2:
            odd = reason = "empty_answer"
            asked[-1] = (asked[-1][0], "")
        turns = conversation(asked, image_first=chance.random() < 0.8)
        sheet.add(
            {"id": f"{source}_{row}", "image": roots[source] + picture.name, "conversations": turns},
            source,
            odd,
            reason,
        )
    return sheet


def places(world: World) -> Places:
    def pure_text() -> bytes:
        """A part of mgm_instruction.json, as upstream says; merged with it, those rows are there twice."""
        records = world.make_once(mgm).sheets[INSTRUCTION].records
        return Sheet(records=[record for record in records if "image" not in record]).array()

    return Places(
        hub={
            PRETRAIN_REPO: {PRETRAIN: lambda: world.make_once(mgm).sheets[PRETRAIN].array()},
            REPO: {INSTRUCTION: lambda: world.make_once(mgm).sheets[INSTRUCTION].array(), PURE_TEXT: pure_text},
        },
        web={url: _by_hand(world, *of) for url, of in BY_HAND.items()},
    )


def _by_hand(world: World, source: str, folder: str) -> Maker:
    return lambda: zip_archive(pool.members(world, source, folder))
