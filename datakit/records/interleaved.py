"""Interleaved documents: sentences with pictures between them, laid out as one assistant message.

    similarity (images x sentences)  ->  matched: the sentence each image stands before  ->  laid_out: the document

MMC4 gives each image a sentence of its own so that the sum of similarities is the largest
(allenai/mmc4 scripts/compute_assignments.py); an image that finds no free sentence goes to the one it fits best.
What it found is in its files. When an image can't be had its row goes and the others are matched again: one of them may
fit the freed sentence. Without a matrix the others stay where they are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from datakit.errors import SourceError
from datakit.records.record import Message, Part

# Working columns of a table of documents. `pack` matches again by them; they are no attributes of a record.
SENTENCES, SIMILARITY = "sentences", "similarity"
INTERLEAVED = "interleaved"  # the attribute that tells a document from a pair, whatever its shape


class Document(NamedTuple):
    """A document laid out as messages, with the images that its marks stand for."""

    messages: list[Message]
    order: list[int]  # the image of each mark, as its row in the matrix that was given


def document(sentences: Sequence[str], similarity: Any, n_images: int, gone: Collection[int] = ()) -> Document:
    """Sentences and the images that are not gone, matched and laid out.

    Raises SourceError when the matrix isn't `fitting`, or no image is left.
    """
    fits = fitting(similarity, n_images, len(sentences))
    left = [image for image in range(n_images) if image not in gone]
    made = laid_out(sentences, matched(fits[left]))
    return Document(made.messages, [left[at] for at in made.order])


def laid_out(sentences: Sequence[str], places: Sequence[int]) -> Document:
    """The document with each image before the sentence of its place.

    Images before one sentence stay in upstream's order; VILA's argsort leaves it open (docs/upstreams.md U79).
    """
    order = sorted(range(len(places)), key=places.__getitem__)
    return Document(messages(sentences, places), order)


def without(document: Sequence[Message], gone: Collection[int]) -> list[Message]:
    """A document without some of its images, counted in the order of their marks; a space takes the place of each."""
    (message,) = document
    content: list[Part] = []
    image = -1
    for part in message.content:
        image += part.type == "image"
        if part.type == "image" and image in gone:
            continue
        if part.type == "text" and content and content[-1].type == "text":
            part = Part(type="text", text=f"{content.pop().text} {part.text}")
        content.append(part)
    return [Message(role=message.role, content=content)]


def fitting(similarity: Any, n_images: int, n_sentences: int) -> npt.NDArray[np.float32]:
    """The matrix in float32. Raises SourceError when it isn't a row for each image and a column for each sentence."""
    fits = _numbers(similarity)
    if fits.shape != (n_images, n_sentences):
        raise SourceError(
            f"a similarity matrix has the shape {fits.shape} where a document has {n_images} images and "
            f"{n_sentences} sentences: leave the document out"
        )
    return fits


def matched(similarity: Any) -> list[int]:
    """The sentence that each image, a row of the matrix, stands before. Raises SourceError for no matrix of numbers."""
    from scipy.optimize import linear_sum_assignment  # a third of a second, for documents only

    fits = _numbers(similarity)
    images, sentences = linear_sum_assignment(-fits)
    places = fits.argmax(axis=1)  # for what is left over when there are more images than sentences
    places[images] = sentences
    return [int(place) for place in places]


def messages(sentences: Sequence[str], places: Sequence[int]) -> list[Message]:
    """One assistant message: an image part before the sentence of each place, and text between.

    Sentences are joined by a space, which an image takes the place of, as in VILA's LazyMMC4Dataset.
    """
    content: list[Part] = []
    for at, (start, stop) in enumerate(pairwise([0, *sorted(places), len(sentences)])):
        text = " ".join(sentences[start:stop])
        if at:
            content.append(Part(type="image"))
            text = text.removeprefix(" ")
        if text:
            content.append(Part(type="text", text=text))
    return [Message(role="assistant", content=content)]


def _numbers(similarity: Any) -> npt.NDArray[np.float32]:
    """The matrix in float32, as tables keep it: matched at listing and matched at pack, ties fall alike."""
    try:
        given = np.asarray(similarity)
        with np.errstate(over="ignore"):
            numbers = given.astype(np.float32)
    except (ValueError, TypeError) as error:
        raise SourceError(f"a similarity matrix isn't one of numbers: {error}. Leave its document out") from error
    if given.dtype.kind not in "fiu" or numbers.ndim != 2 or not numbers.size or not np.isfinite(numbers).all():
        raise SourceError(
            f"a similarity matrix of shape {given.shape} is empty or isn't all numbers: leave its document out"
        )
    return numbers
