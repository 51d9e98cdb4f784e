"""ALLaVA-4V: five JSON files, LAION's pictures in ten chunks, and Vision-Flan's in another repository."""

from __future__ import annotations

import functools
import random
from typing import Any

from datakit.miniature import pool, questions, texts
from datakit.miniature.instruct import zip_archive
from datakit.miniature.pictures import Drawing
from datakit.miniature.sheet import Dataset, Sheet, conversation, small
from datakit.miniature.world import Places, World

REPO, VFLAN = "FreedomIntelligence/ALLaVA-4V", "Vision-Flan/vision-flan_191-task_1k"
VFLAN_ZIP = "image_191-task_1k.zip"
CHUNKS = 10
LAION_CAPTIONS = "allava_laion/ALLaVA-Caption-LAION-4V.json"
LAION_ASKED = "allava_laion/ALLaVA-Instruct-LAION-4V.json"
VFLAN_CAPTIONS = "allava_vflan/ALLaVA-Caption-VFLAN-4V.json"
VFLAN_ASKED = "allava_vflan/ALLaVA-Instruct-VFLAN-4V.json"
TEXT = "allava_text/Evol-Instruct-GPT4-Turbo-143K.json"
LAION_FLAWS = {3: "missing", 11: "truncated", 19: "cmyk"}  # a picture's, so of its caption and its question alike
VFLAN_FLAWS = {4: "missing", 10: "zero_bytes"}


def allava(world: World) -> Dataset:
    dataset = Dataset(
        name="allava",
        sheets={file: Sheet() for file in (LAION_CAPTIONS, LAION_ASKED, VFLAN_CAPTIONS, VFLAN_ASKED, TEXT)},
        subsets={
            "captions": (LAION_CAPTIONS, VFLAN_CAPTIONS),
            "instructions": (LAION_ASKED, VFLAN_ASKED),
            "text": (TEXT,),
        },
    )
    chance = random.Random(f"allava/{world.seed}")
    for row in range(world.file_rows):
        number, of = 100_000_000 + 977 * row + chance.randrange(977), small(chance)
        flaw = LAION_FLAWS.get(row, "")
        reason = dataset.draw(f"laion{number % CHUNKS}", f"images_{number % CHUNKS}/{number}.jpeg", of, flaw)
        image = f"allava_laion/images/{number}.jpeg"
        for file, word in ((LAION_CAPTIONS, "cap"), (LAION_ASKED, "inst")):
            record = _record(f"allava_laion_{word}_{number}", image, of, chance, captioned=word == "cap")
            told = {"original_caption": texts.line(of, chance), "url": f"https://laion.example/{number}.jpg"}
            dataset.sheets[file].add(record | told, "laion", flaw, reason)
    for row in range(world.file_rows // 2):
        task, of = ("PACS+guitar", "Office-Home+Clipart", "image text, yes or no")[row % 3], small(chance)
        name, flaw = f"{task}_{row}_{chance.randrange(10**6)}.png", VFLAN_FLAWS.get(row, "")
        reason = dataset.draw("vflan", f"images_191task_1k/{name}", of, flaw or "png_palette")
        image = f"allava_vflan/images/images_191task_1k/{name}"
        for file, word in ((VFLAN_CAPTIONS, "cap"), (VFLAN_ASKED, "inst")):
            record, odd = _record(f"allava_vflan_{word}_{row}", image, of, chance, captioned=word == "cap"), flaw
            why = reason
            if word == "inst" and row == 7:
                odd = why = "empty_answer"
                record["conversations"][-1]["value"] = ""
            dataset.sheets[file].add(record, "vflan", odd, why)
    for row in range(world.file_rows // 2):
        chat: dict[str, Any] = {
            "idx": row,
            "conversations": conversation(questions.CHATS[row % len(questions.CHATS)][:1]),
        }
        if row == 6:
            chat["conversations"][1]["value"] = " \n"
        dataset.sheets[TEXT].add(chat, "", *(("empty_answer", "empty_answer") if row == 6 else ()))
    return dataset


def _record(id: str, image: str, of: Drawing, chance: random.Random, *, captioned: bool) -> dict[str, Any]:
    turns = [("Please depict the image in words.", texts.paragraph(of))] if captioned else texts.instruction(of, chance)
    return {"id": id, "image": image, "conversations": conversation(turns, image_first=True)}


def places(world: World) -> Places:
    def sheet(file: str) -> bytes:
        return world.make_once(allava).sheets[file].array(indent=4 if file == TEXT else None)

    def chunk(part: int) -> bytes:
        own = world.make_once(allava).members.get(f"laion{part}", [])
        # The pool has a picture for each chunk; some of the others it finds in a chunk that isn't its last digit's.
        shared = pool.members(world, "allava_laion", f"images_{part}/")[part::CHUNKS]
        return zip_archive([*own, *shared], deflate=part % 3 == 0)

    def vflan() -> bytes:
        shared = pool.members(world, "allava_vflan", "images_191task_1k/")
        return zip_archive([*world.make_once(allava).members["vflan"], *shared])

    chunks = {f"allava_laion/image_chunks/images_{n}.zip": functools.partial(chunk, n) for n in range(CHUNKS)}
    files = (LAION_CAPTIONS, LAION_ASKED, VFLAN_CAPTIONS, VFLAN_ASKED, TEXT)
    return Places(
        hub={REPO: {file: functools.partial(sheet, file) for file in files} | chunks, VFLAN: {VFLAN_ZIP: vflan}}
    )
