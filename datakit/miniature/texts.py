"""What the captioning and chat datasets of the miniature say about a drawing, worded by code."""

from __future__ import annotations

import random

from datakit.miniature.pictures import Drawing
from datakit.miniature.questions import Turns

SHORT_PROMPTS = (  # of LLaVA's pretraining sets
    "Render a clear and concise summary of the photo.",
    "Provide a brief description of the given image.",
    "Write a terse but informative summary of the picture.",
    "What is this?",
)
LONG_PROMPTS = (  # of ShareGPT4V
    "What do you see happening in this image?",
    "What are the key elements in this picture?",
    "Can you describe the main features of this image for me?",
)
LOOP = "The image does not contain any other objects."


def line(of: Drawing, chance: random.Random) -> str:
    """A caption in lower case, as web captions are."""
    return chance.choice(
        (
            f"{of.named} on a {of.ground} background",
            f"a sketch of {of.named}",
            f"{of.word.lower()} sign with {of.named}, stock photo",
        )
    )


def paragraph(of: Drawing) -> str:
    """A caption of several sentences, true of the drawing."""
    left, top, right, bottom = of.box
    return (
        f"The image shows {of.named} against a {of.ground} background that gets lighter towards the lower right. "
        f"In the upper left corner stands the word “{of.word}” in small dark letters. "
        f"The {of.shape} takes up the region from {left:.2f}, {top:.2f} to {right:.2f}, {bottom:.2f} of the picture. "
        f"The overall impression is that of a plain {of.colour} sign."
    )


def caption_with_file_name(of: Drawing, number: int) -> str:
    """A caption that names a file of Segment Anything, as some of a captioner's do."""
    return paragraph(of).replace("The image shows", f"The image titled “sa_{number}” shows", 1)


def repetitive_caption(of: Drawing) -> str:
    """A caption whose writer could not stop."""
    return f"The image shows {of.named}. " + " ".join([LOOP] * 12)


def instruction(of: Drawing, chance: random.Random) -> Turns:
    """A short instruction and its answer."""
    return [
        (f"Where would a {of.colour} {of.shape} be used, and why?", f"On a sign: {of.named} is seen from far away."),
        ("What should a reader of this sign do?", f"Follow what “{of.word}” says."),
    ][: chance.randrange(1, 3)]
