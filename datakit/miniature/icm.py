"""ICM-Instruct: one zip with its JSON and its pictures. Only form is copied: drawings, and texts on their quality.

Upstream's converter cut a path's ends off once for each line of a text, so nearly half of its paths lead nowhere.
"""

from __future__ import annotations

import random

from datakit.miniature import pictures
from datakit.miniature.instruct import zip_archive
from datakit.miniature.pictures import Drawing, drawing
from datakit.miniature.sheet import Dataset, Sheet, conversation
from datakit.miniature.world import Places, World

REPO, ZIP = "wumengyangok/ICM-Instruct", "icm-instruct-train.zip"
JSON, FOLDER = "icm_llava_train.json", "sexy_check_all/"
ENDINGS = (".JPEG", ".jpg", ".png", ".JPG", ".PNG", ".jpeg", ".GIF")


def icm(world: World) -> Dataset:
    """Three kinds of row for each picture: questions on it one by one, one with choices, and a description."""
    dataset = Dataset(name="icm", sheets={JSON: Sheet()})
    chance, sheet = random.Random(f"icm/{world.seed}"), dataset.sheets[JSON]
    for nth in range(max(7, world.file_rows // 5)):
        of = drawing(chance, least_px=64, most_px=160, flaw=chance.choice(pictures.FLAWS))
        name = f"{chance.randrange(35):02d}_collected_{nth:05d}{ENDINGS[nth % len(ENDINGS)]}"
        flaw = {4: "truncated", 5: "missing"}.get(nth, "")
        usual = {".GIF": "gif_named_jpg", ".png": "png_palette", ".PNG": "png_palette"}
        reason = dataset.draw("all", FOLDER + name, of, flaw or usual.get(name[name.rfind(".") :], ""))
        id, path = f"icm_{nth:05d}", FOLDER + name
        for turn, (question, answer) in enumerate(_questions(of)):
            cut = name[5 * turn : len(name) - 4 * turn]  # sliced anew for each line
            odd, why = ("broken_path", "missing") if turn else (flaw, reason)
            _add(sheet, id, FOLDER + cut, question, answer, odd, why)
        answer = {2: ".", 3: "TH."}.get(nth, "AB"[of.flaw == "dark"] + ".")
        question = "Is the picture bright enough? A. Yes B. No"
        _add(sheet, f"{id}_mc", path, question, answer, flaw or ("odd_choice" if len(answer) != 2 else ""), reason)
        _add(sheet, f"{id}_reason", path, "Describe how good the picture is.", _description(of), flaw, reason)
    return dataset


def _questions(of: Drawing) -> list[tuple[str, str]]:
    return [
        ("What is drawn in the picture?", f"It is {of.named}."),
        ("Is the picture sharp?", "No." if of.flaw == "blurred" else "Yes."),
        ("Which colour has the ground?", f"It is {of.ground}."),
    ]


def _description(of: Drawing) -> str:
    return f"The picture shows {of.named} and is {of.flaw or 'clear'}; the word “{of.word}” can be read."


def _add(sheet: Sheet, id: str, image: str, question: str, answer: str, odd: str, reason: str | None) -> None:
    record = {"id": id, "image": image, "conversations": conversation([(question, answer)], image_first=False)}
    sheet.add(record, "all", odd, reason)


def places(world: World) -> Places:
    def archive() -> bytes:
        dataset = world.make_once(icm)
        return zip_archive([(JSON, dataset.sheets[JSON].array), *dataset.members["all"]])

    return Places(hub={REPO: {ZIP: archive}})
