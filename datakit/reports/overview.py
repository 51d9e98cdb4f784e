"""Overview: the datasets and recipes that the catalogue offers, and what is wrong with those that can't be read."""

from __future__ import annotations

from typing import Any

from datakit import catalogue
from datakit.catalogue import manifest
from datakit.catalogue.manifest import Manifest
from datakit.errors import ManifestError


def datasets() -> tuple[list[Manifest], list[ManifestError]]:
    """The manifests of the catalogue by name, and what is wrong with others: one mistake doesn't hide the rest."""
    good, wrong = [], []
    for name in catalogue.names("manifests"):
        try:
            good.append(manifest.load(name))
        except ManifestError as error:
            wrong.append(error)
    return good, wrong


def recipes() -> tuple[dict[str, str], list[ManifestError]]:
    """What a recipe for `datakit run` says in its first line, by name; and what is wrong with others."""
    good: dict[str, str] = {}
    wrong = []
    for name in catalogue.names("pipelines"):
        try:
            first_line = catalogue.mixes_summary(name)
        except ManifestError as error:
            wrong.append(error)
            continue
        if first_line is not None:
            good[name] = first_line
    return good, wrong


def datasets_json(manifests: list[Manifest]) -> list[dict[str, Any]]:
    """Manifests in short, as JSON knows them."""
    return [{"name": m.name, "title": m.title, "recipe": m.recipe, "licence": m.licence} for m in manifests]
