"""M3IT: JSON Lines with base64 pictures in the rows, and a file of instructions beside them."""

from __future__ import annotations

import base64
import functools
import json
import random
from collections.abc import Mapping
from typing import Any

from datakit.miniature import texts
from datakit.miniature.pictures import Drawing
from datakit.miniature.sheet import FLAWS, Dataset, Sheet, small
from datakit.miniature.world import Maker, Places, World

REPO = "MMInstruction/M3IT"
CONFIGS: Mapping[str, int] = {  # folder -> pictures in a row; VILA's fourteen, data_prepare/sft/preprocess_m3it.py
    "captioning/image_paragraph_captioning": 1,
    "captioning/textcap": 1,
    "generation/multi30k": 1,
    "generation/visual_dialog": 1,
    "reasoning/clevr": 1,
    "reasoning/nlvr": 2,
    "reasoning/visual_mrc": 1,
    "vqa/docvqa": 1,
    "vqa/gqa": 1,
    "vqa/ivqa": 8,  # frames of a video
    "vqa/ocr-vqa": 1,
    "vqa/st-vqa": 1,
    "vqa/viquae": 1,
    "vqa/vqav2": 1,
}
# These have instruction.json, the others instructions.json.
SINGULAR = ("captioning/image_paragraph_captioning", "vqa/gqa", "vqa/ocr-vqa", "vqa/st-vqa")
ROWS = 8
FLAWED = {  # (folder, row) -> what is odd about it, and the reason it is dropped for
    ("vqa/gqa", 2): ("broken_base64", "not_an_image"),
    ("reasoning/clevr", 3): ("empty_answer", "empty_answer"),
    ("captioning/textcap", 5): ("truncated", "truncated"),
    ("reasoning/nlvr", 4): ("html", "not_an_image"),
    ("vqa/vqav2", 1): ("gif_named_jpg", None),
}


def path(folder: str) -> str:
    name = "image_paragraph_captioning_train" if folder.endswith("image_paragraph_captioning") else "train"
    return f"data/{folder}/{name}.jsonl"


def m3it(world: World) -> Dataset:
    dataset = Dataset(name="m3it", sheets={path(folder): Sheet() for folder in CONFIGS})
    for folder, count in CONFIGS.items():
        chance, sheet = random.Random(f"m3it/{world.seed}/{folder}"), dataset.sheets[path(folder)]
        for row in range(ROWS):
            odd, reason = FLAWED.get((folder, row), ("", None))
            drawn = [small(chance) for _ in range(count)]
            encoded = [base64.b64encode(_bytes(of, odd if of is drawn[0] else "")).decode() for of in drawn]
            if odd == "broken_base64":
                encoded[0] = "data:" + encoded[0][:-7]
            asked, answer = (
                _dialog(drawn[0], 1 + row % 3) if "dialog" in folder else _question(drawn[0], folder, chance)
            )
            record: dict[str, Any] = {
                "inputs": asked,
                "outputs": "" if odd == "empty_answer" else answer,
                # One picture is a string in some files and a list of one in others.
                "image_str": encoded if count > 1 or folder in ("vqa/docvqa", "reasoning/visual_mrc") else encoded[0],
            }
            if folder.startswith("vqa") and row % 2:
                record["meta"] = {"img_id": f"{row:012d}", "dataset": folder.rpartition("/")[2]}
            sheet.add(record, "inline", odd, reason)
    return dataset


def _bytes(of: Drawing, odd: str) -> bytes:
    make = FLAWS[odd][0] if odd in FLAWS else None
    return (make or Drawing.jpeg)(of)


def _question(of: Drawing, folder: str, chance: random.Random) -> tuple[str, str]:
    if folder.startswith("captioning"):
        return "", texts.paragraph(of)
    if folder == "generation/multi30k":
        return f"{of.named.capitalize()} with a word on it.", f"Ein Bild: {of.shape}, {of.colour}, „{of.word}“."
    question, answer = texts.instruction(of, chance)[0]
    return question, answer


def _dialog(of: Drawing, rounds: int) -> tuple[str, str]:
    """Earlier rounds stand in the inputs behind a description of the picture; the last question has no answer."""
    said = [
        ("what shape is it?", of.shape),
        ("what colour is it?", of.colour),
        ("is there any writing?", f"yes, it says {of.word.lower()}"),
    ][:rounds]
    asked = "".join(f"\nQuestion: {question}\nAnswer: {answer}" for question, answer in said[:-1])
    return f"Image Descriptions: {of.named} on a sign.{asked}\nQuestion: {said[-1][0]}", said[-1][1]


def instructions(folder: str) -> bytes:
    """The sentences of which one is put before a row's inputs."""
    task = folder.rpartition("/")[2].replace("_", " ").replace("-", " ")
    wordings = (
        f"Look at the picture and solve this {task} task.",
        f"This is a {task} task: answer from what you see.",
        "Use the picture to give a short and true answer.",
    )
    return json.dumps(wordings, indent=2).encode()


def places(world: World) -> Places:
    def rows(folder: str) -> bytes:
        return world.make_once(m3it).sheets[path(folder)].lines()

    files: dict[str, Maker] = {path(folder): functools.partial(rows, folder) for folder in CONFIGS}
    for folder in CONFIGS:
        name = "instruction.json" if folder in SINGULAR else "instructions.json"
        files[f"data/{folder}/{name}"] = functools.partial(instructions, folder)
        files[f"data/{folder}/val.jsonl"] = functools.partial(_validation, folder)
    files["M3IT.py"] = lambda: b"raise SystemExit('a loader script: read the JSON Lines instead')\n"
    return Places(hub={REPO: files})


def _validation(folder: str) -> bytes:
    return json.dumps({"inputs": "", "outputs": f"{folder}: not for training", "image_str": ""}).encode() + b"\n"
