"""Interleaved documents: sentences with pictures between them, laid out as one assistant message.

    similarity (images x sentences)  ->  match_images: the sentence before which each image goes
                                     ->  lay_out: the document

MMC4 assigns each image its own sentence so that the sum of similarities is the largest
(allenai/mmc4 scripts/compute_assignments.py); an image left over when there are more images than sentences goes to the
sentence that it fits best. The result is in MMC4's files. When an image wasn't got, its row of the matrix is removed
and the others are matched again, since one of them may fit the freed sentence. Without a matrix the others stay where
they are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from datakit.errors import SourceError
from datakit.records.record import Message, Part

# Columns of a table of documents from which `pack` matches again; they aren't attributes of a record.
SENTENCES, SIMILARITY = "sentences", "similarity"
INTERLEAVED = "interleaved"  # the attribute that marks a document, even one that looks like an image-text pair


class Document(NamedTuple):
    """A document laid out as messages, and the images of its marks."""

    messages: list[Message]
    order: list[int]  # the image of each mark, as its row in the matrix that was given


def document(sentences: Sequence[str], similarity: Any, n_images: int, gone: Collection[int] = ()) -> Document:
    """The document of some sentences and of the images that are not gone, matched and laid out.

    Raises SourceError for a matrix that `similarity_matrix` rejects, or when no image is left.
    """
    fits = similarity_matrix(similarity, n_images, len(sentences))
    left = [image for image in range(n_images) if image not in gone]
    laid_out = lay_out(sentences, match_images(fits[left]))
    return Document(laid_out.messages, [left[at] for at in laid_out.order])


def lay_out(sentences: Sequence[str], places: Sequence[int]) -> Document:
    """The document with each image before the sentence that `places` gives for it.

    Images before the same sentence stay in upstream's order; VILA's argsort leaves it open (docs/upstreams.md U79).
    """
    order = sorted(range(len(places)), key=places.__getitem__)
    return Document(messages(sentences, places), order)


def without_images(document: Sequence[Message], gone: Collection[int]) -> list[Message]:
    """A document without some of its images, numbered in the order of their marks; a space replaces each."""
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


def similarity_matrix(similarity: Any, n_images: int, n_sentences: int) -> npt.NDArray[np.float32]:
    """The matrix in float32, of shape (images, sentences). Raises SourceError for any other shape."""
    fits = _numbers(similarity)
    if fits.shape != (n_images, n_sentences):
        raise SourceError(
            f"a similarity matrix has the shape {fits.shape} where a document has {n_images} images and "
            f"{n_sentences} sentences: leave the document out"
        )
    return fits


def match_images(similarity: Any) -> list[int]:
    """The index of the sentence before which each image (a row of the matrix) goes.

    Raises SourceError when `similarity` isn't a matrix of numbers.
    """
    from scipy.optimize import linear_sum_assignment  # a third of a second, for documents only

    fits = _numbers(similarity)
    images, sentences = linear_sum_assignment(-fits)
    places = fits.argmax(axis=1)  # for what is left over when there are more images than sentences
    places[images] = sentences
    return [int(place) for place in places]


def messages(sentences: Sequence[str], places: Sequence[int]) -> list[Message]:
    """One assistant message: an image part before the sentence of each place, and text between.

    Sentences are joined by a space, or by an image in its place, as in VILA's LazyMMC4Dataset.
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
    """The matrix in float32, the type of its table column, so that listing and pack break ties alike."""
    try:
        raw = np.asarray(similarity)
        with np.errstate(over="ignore"):
            numbers = raw.astype(np.float32)
    except (ValueError, TypeError) as error:
        raise SourceError(f"a similarity matrix isn't one of numbers: {error}. Leave its document out") from error
    if raw.dtype.kind not in "fiu" or numbers.ndim != 2 or not numbers.size or not np.isfinite(numbers).all():
        raise SourceError(
            f"a similarity matrix of shape {raw.shape} is empty or isn't all numbers: leave its document out"
        )
    return numbers
