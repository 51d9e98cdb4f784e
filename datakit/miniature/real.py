"""Photographs, clip art and texts that the miniature did not draw, read from a folder when one is given."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from datakit.errors import UsageError


class Real:
    """A folder: images/photo, images/clipart, llava_qa_30x3.jsonl, coco_caps_80.jsonl, coyo_rows.jsonl."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.photos = sorted((folder / "images/photo").glob("*.jpg"))
        self.cliparts = sorted((folder / "images/clipart").glob("*.png"))
        if not self.photos or not self.cliparts:
            raise UsageError(
                f"The folder {str(folder)!r} has no images/photo/*.jpg or no images/clipart/*.png."
                " Leave `real` out to have drawings only."
            )

    def photo(self, nth: int) -> bytes:
        return self.photos[nth % len(self.photos)].read_bytes()

    def clipart(self, nth: int) -> bytes:
        return self.cliparts[nth % len(self.cliparts)].read_bytes()

    def questions(self, nth: int) -> list[tuple[str, str]]:
        """The questions and answers on one picture."""
        return self._questions[nth % len(self._questions)]

    def caption(self, nth: int) -> str:
        return self._captions[nth % len(self._captions)]

    @functools.cached_property
    def coyo_rows(self) -> list[dict[str, Any]]:
        """The preview rows of COYO, all 17 columns."""
        return self._lines("coyo_rows.jsonl")

    @functools.cached_property
    def _questions(self) -> list[list[tuple[str, str]]]:
        by_image: dict[str, list[tuple[str, str]]] = {}
        for line in self._lines("llava_qa_30x3.jsonl"):
            by_image.setdefault(line["image"], []).append((line["instruction"], line["output"]))
        return list(by_image.values())

    @functools.cached_property
    def _captions(self) -> list[str]:
        return [" ".join(c.split()) for line in self._lines("coco_caps_80.jsonl") for c in line["captions"]]

    def _lines(self, name: str) -> list[dict[str, Any]]:
        with open(self.folder / name, encoding="utf-8") as lines:
            return [json.loads(line) for line in lines if line.strip()]
