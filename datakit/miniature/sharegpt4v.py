"""ShareGPT4V, and the cut of it that VILA trained on.

The upstreams' pictures are those of other datasets, and a few sets that are given out by hand.
Some captions name a file of Segment Anything, and some repeat a sentence until they are cut off; of the
pretraining captions VILA's cut has none of these but the ones that its authors overlooked.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence

from datakit.miniature import pool, questions, texts
from datakit.miniature.instruct import Member, tar_archive, zip_archive
from datakit.miniature.pool import SharedPicture
from datakit.miniature.sheet import Dataset, Sheet, conversation
from datakit.miniature.world import Maker, Places, World

REPO, VILA = "Lin-Chen/ShareGPT4V", "mit-han-lab/ShareGPT4V"
CAPTIONS = "sharegpt4v_instruct_gpt4-vision_cap100k.json"
PRETRAIN = "share-captioner_coco_lcs_sam_1246k_1107.json"
SFT = "sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.json"
VILA_PRETRAIN = "filter-share-captioner_coco_lcs_sam_1246k_1107.json"
VILA_SFT = "sharegpt4v_mix738k_remove_sa.json"
SAM_TARS, MASKS = 51, b'{"annotations": []}'
# Neither can be fetched by a program; what a person got there has these names.
SAM = "https://ai.meta.com/datasets/segment-anything-downloads/sa_{part:06d}.tar"
SAM_9K = "https://drive.google.com/file/d/1dKumdOKSXtV7lIXdrG7jsIK_z2vZv2gs/sam_images_share-sft.zip"
DRIVE = "https://drive.google.com/drive/folders/1tCUQ-sq6vdshZVkF0ZeF3K4eztkXJgax/{name}.zip"
PREFIXES = {
    "coco": "coco/train2017/",
    "lcs": "llava/llava_pretrain/images/",
    "sam": "sam/images/",
    "share_textvqa": "share_textvqa/images/",
    "web_celebrity": "web-celebrity/images/",
    "web_landmark": "web-landmark/images/",
    "wikiart": "wikiart/images/",
    "gqa": "gqa/images/",
    "ocr_vqa": "ocr_vqa/images/",
    "textvqa": "textvqa/train_images/",
    "vg": "vg/VG_100K/",
    "vg2": "vg/VG_100K_2/",
}
CAPTIONED = ("coco", "lcs", "sam", "share_textvqa", "web_celebrity", "web_landmark", "wikiart")
BY_HAND = ("share_textvqa", "web_celebrity", "web_landmark", "wikiart")


def sharegpt4v(world: World) -> Dataset:
    sheets = {
        CAPTIONS: _captions(world, CAPTIONS, CAPTIONED),
        PRETRAIN: _captions(world, PRETRAIN, ("coco", "lcs", "sam", "sam")),
        SFT: _mix(world, SFT),
    }
    return Dataset(
        name="sharegpt4v",
        sheets=sheets,
        subsets={"captions": (CAPTIONS,), "pretrain": (PRETRAIN,), "sft": (SFT,)},
    )


def sharegpt4v_vila(world: World) -> Dataset:
    before, cut = world.make_once(sharegpt4v).sheets[PRETRAIN], Sheet()
    overlooked = {next(row for row, (odd, _) in before.odd.items() if odd == kind) for kind in ("sa_id", "repetition")}
    for row, record in enumerate(before.records):
        odd, reason = before.odd.get(row, ("", None))
        if odd not in ("sa_id", "repetition") or row in overlooked:
            cut.add(record, before.sources[row], odd, reason)
    sheets = {VILA_PRETRAIN: cut, VILA_SFT: _mix(world, VILA_SFT)}
    return Dataset(name="sharegpt4v_vila", sheets=sheets, subsets={"pretrain": (VILA_PRETRAIN,), "sft": (VILA_SFT,)})


def _captions(world: World, file: str, sources: Sequence[str]) -> Sheet:
    sheet, chance = Sheet(), random.Random(f"{file}/{world.seed}")
    for row in range(world.file_rows):
        # The first pictures of every source come first, so that small files have a row of each.
        source = sources[row % len(sources)]
        nth = row // len(sources)
        if row == 2 * len(sources) + sources.index("sam"):
            picture = pool.lost_picture(world, "sam")
        else:
            shared = pool.shared_pictures(world, source)
            picture = shared[-1] if nth == 1 else shared[nth % len(shared)]
        odd, caption = "", texts.paragraph(picture.drawing)
        if not picture.flaw and row % 13 == 12:
            odd, caption = "sa_id", texts.caption_with_file_name(picture.drawing, chance.randrange(10**5, 10**6))
        elif not picture.flaw and row % 11 == 10:
            odd, caption = "repetition", texts.repetitive_caption(picture.drawing)
        turns = [(chance.choice(texts.LONG_PROMPTS), caption)]
        _add(sheet, picture, turns, chance, odd)
    return sheet


def _mix(world: World, file: str) -> Sheet:
    """The instruction mix: captions in place of LLaVA's, every other source, and text."""
    sheet, chance = Sheet(), random.Random(f"{file}/{world.seed}")
    sources = (*PREFIXES, "")
    for row in range(world.file_rows):
        source = sources[row % len(sources)]
        if not source:
            chat = {"id": f"t{row:06d}", "model": "", "conversations": conversation(questions.CHATS[row % 4])}
            sheet.add(chat)
            continue
        shared = pool.shared_pictures(world, source)
        picture = (
            pool.lost_picture(world, "vg2")
            if row == len(sources) + 11
            else shared[row // len(sources) % (len(shared) - 1)]
        )
        turns = texts.instruction(picture.drawing, chance)
        if source in BY_HAND:
            turns = [(chance.choice(texts.LONG_PROMPTS), texts.paragraph(picture.drawing))]
        if row == len(sources):
            turns[-1] = (turns[-1][0], "")
            _add(sheet, picture, turns, chance, "empty_answer", "empty_answer")
        else:
            _add(sheet, picture, turns, chance)
    return sheet


def _add(
    sheet: Sheet,
    picture: SharedPicture,
    turns: questions.Turns,
    chance: random.Random,
    odd: str = "",
    reason: str | None = None,
) -> None:
    stem = picture.name.rpartition("/")[2].rpartition(".")[0]
    record = {
        "id": stem,
        "image": PREFIXES[picture.source] + picture.name,
        "conversations": conversation(turns, image_first=chance.random() < 0.3),
    }
    sheet.add(record, picture.source, odd or picture.flaw, reason or picture.reason)


def sam_tar(world: World, part: int) -> bytes:
    """A tar of Segment Anything: pictures, and a JSON of masks beside each."""
    members: list[Member] = [(f"./sa_{part}.json", lambda: MASKS)]  # of a picture that was taken out
    for nth, (name, data) in enumerate(pool.members(world, "sam")):
        if nth * 6 % SAM_TARS == part:
            members += [(f"./{name}", data), (f"./{name.removesuffix('.jpg')}.json", lambda: MASKS)]
    return tar_archive(members)


def places(world: World) -> Places:
    def sheet(make: Callable[[World], Dataset], file: str) -> bytes:
        return world.make_once(make).sheets[file].array(indent=2)

    web: dict[str, Maker] = {SAM.format(part=part): functools.partial(sam_tar, world, part) for part in range(SAM_TARS)}
    return Places(
        hub={
            REPO: {file: functools.partial(sheet, sharegpt4v, file) for file in (CAPTIONS, PRETRAIN, SFT)},
            VILA: {file: functools.partial(sheet, sharegpt4v_vila, file) for file in (VILA_PRETRAIN, VILA_SFT)},
        },
        web=web
        | {SAM_9K: lambda: zip_archive(pool.members(world, "sam"))}
        | {DRIVE.format(name=PREFIXES[source].partition("/")[0]): _by_hand(world, source) for source in BY_HAND},
    )


def _by_hand(world: World, source: str) -> Maker:
    return lambda: zip_archive(pool.members(world, source, f"data/{PREFIXES[source]}"))
