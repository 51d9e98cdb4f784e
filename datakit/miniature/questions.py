"""What is asked and answered about a drawing, in the wordings of the upstreams' prompts."""

from __future__ import annotations

import random

from datakit.miniature.pictures import SHAPES, WORDS, Drawing

Turns = list[tuple[str, str]]

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
AUTHORS = ("José Ñandú", "Zoë O'Hara", "李小龙", "Søren Kjær", "A. B. Clark", "Анна Ким")
GENRES = ("Cookbooks, Food & Wine", "Travel", "Children's Books", "Science & Math")


def about_coco(of: Drawing, chance: random.Random) -> Turns:
    """One of the five components that use COCO pictures: LLaVA's own, VQAv2, OKVQA, A-OKVQA, RefCOCO."""
    style = chance.randrange(5)
    if style == 0:
        return [
            ("What shape is in the picture?", f"The picture shows {of.named}."),
            ("What does the writing say?", f"In the upper left corner it says “{of.word}”."),
            ("Describe the background.", f"It is {of.ground} and gets lighter towards the lower right."),
        ]
    if style == 1:
        return [
            (f"What colour is the {of.shape}?" + SHORT, of.colour.capitalize()),
            ("What is written?", of.word.capitalize()),
            (f"Is there a {chance.choice(SHAPES)}?", chance.choice(["Yes", "No"])),
        ]
    if style == 2:
        return [(f"Where could you read the word {of.word.lower()}?" + SHORT, "Street")]
    if style == 3:
        options = [of.shape, *[s for s in SHAPES if s != of.shape][:3]]
        chance.shuffle(options)
        listed = "".join(f"\n{letter}. {option}" for letter, option in zip("ABCD", options))
        return [("Which shape is drawn here?" + listed + LETTER, "ABCD"[options.index(of.shape)])]
    return boxes(of, chance)


def boxes(of: Drawing, chance: random.Random) -> Turns:
    """A region for a sentence and a sentence for a region, as RefCOCO and Visual Genome ask for them."""
    region, sentence = box(of), of.named
    ask = "Please provide the bounding box coordinate of the region this sentence describes: "
    turns = [(ask + sentence + ".", region)]
    if chance.random() < 0.6:
        turns.append((f"Please provide a short description for this region: {region}.", sentence.capitalize() + "."))
    return turns


def box(of: Drawing) -> str:
    """The drawing's box relative to the picture padded to a square, as upstream's boxes are."""
    side = max(of.width, of.height)
    left, top = (side - of.width) / 2, (side - of.height) / 2
    x0, x1 = ((left + x * of.width) / side for x in of.box[::2])
    y0, y1 = ((top + y * of.height) / side for y in of.box[1::2])
    return f"[{x0:.2f}, {y0:.2f}, {x1:.2f}, {y1:.2f}]"


def about_gqa(of: Drawing, chance: random.Random) -> Turns:
    other = chance.choice(SHAPES)
    return [
        (f"What is the colour of the {of.shape}?" + SHORT, of.colour.capitalize()),
        (f"Is the {of.shape} in front of a {of.ground} wall?" + SHORT, "Yes"),
        (f"Do you see a {other} there?" + SHORT, "Yes" if other == of.shape else "No"),
    ]


def about_book(of: Drawing, chance: random.Random) -> Turns:
    author, genre = chance.choice(AUTHORS), chance.choice(GENRES)
    return [
        ("Who is the author of this book?" + SHORT, author),
        (
            "What is the title of this book?" + SHORT,
            f"{of.word.title()}: The {of.colour.title()} {of.shape.title()}",
        ),
        ("What is the genre of this book?" + SHORT, genre),
        (f"Is this a {genre} book?" + SHORT, "Yes"),
    ]


def about_text(of: Drawing, chance: random.Random) -> Turns:
    tokens = ", ".join([of.word, *chance.sample(WORDS, chance.randrange(3))])
    return [
        (
            f"Provide a one-sentence caption for the provided image.\nReference OCR token: {tokens}",
            f"{of.named.capitalize()} on a {of.ground} sign that says {of.word}.",
        )
    ]


def about_quality(of: Drawing, chance: random.Random) -> Turns:
    """Q-Instruct's low-level questions; the answers are true of the drawing's flaw."""
    sharp = "blurred" if of.flaw == "blurred" else "sharp"
    light = "dark" if of.flaw == "dark" else "well lit"
    grain = "strong" if of.flaw == "noisy" else "hardly visible"
    whole = "poor" if of.flaw else "good"
    asked: Turns = [
        ("How is the sharpness of this image?", f"The {of.shape} is {sharp}."),
        (
            "Is the lighting of this image sufficient?\nA. Yes\nB. No" + LETTER,
            "B" if of.flaw == "dark" else "A",
        ),
        (
            "Describe and evaluate the quality of the image.",
            f"The {of.colour} {of.shape} is {sharp} and {light}; noise is {grain}. The quality is {whole}.",
        ),
        ("Rate the quality of the image." + SHORT, whole.capitalize()),
    ]
    return [chance.choice(asked)]


CHATS: tuple[Turns, ...] = (
    [
        (
            "Write a haiku about a kettle.",
            "Steam lifts the small lid,\na whistle in the grey dawn —\ntwo cups, no hurry.",
        ),
        (
            "Now in German, please.",
            "Dampf hebt den Deckel,\nein Pfiff im grauen Morgen —\nzwei Tassen, kein Muss. ☕",
        ),
    ],
    [
        (
            "How do I reverse a list in Python?",
            "Use a slice:\n\n```python\nbackwards = values[::-1]\n```\n\nor `values.reverse()` in place.",
        )
    ],
    [
        ("请用一句话介绍长城。", "长城是中国古代修建的防御工程。"),
        (
            "And in English?",
            "The Great Wall is a line of fortifications that runs for thousands of kilometres.",
        ),
        ("Merci !", "Avec plaisir — n'hésitez pas."),
    ],
    [("Is 91 a prime number?", "No: 91 = 7 · 13.")],
)
