"""Description: what a dataset is, by its manifest and the recipe that it names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from datakit.catalogue import manifest
from datakit.catalogue.manifest import Manifest
from datakit.engine import pipeline
from datakit.storage.fingerprint import json_value


@dataclass(frozen=True, kw_only=True)
class Description:
    """A dataset's manifest, and what each step of its recipe is."""

    manifest: Manifest
    steps: list[dict[str, Any]]  # "step", its name, and the identity of its stage

    @property
    def hub_revision(self) -> str:
        """What is taken from the hub: the commit that was pinned, else what the manifest says."""
        return self.manifest.pinned.commits.get(self.manifest.hub) or self.manifest.revision

    @property
    def hub_moves(self) -> bool:
        """Whether a fetch takes whatever the main branch of the repository is by then."""
        return self.hub_revision == "main"

    def json_object(self) -> dict[str, Any]:
        return {**msgspec.to_builtins(self.manifest), "steps": json_value(self.steps)}


def describe(name: str) -> Description:
    """What a dataset of the catalogue is. Raises UsageError for an unknown name, ManifestError for a wrong file."""
    about = manifest.load(name)
    steps = [{"step": s.name, **s.stage.identity(about)} for s in pipeline.steps(about.recipe, about)]
    return Description(manifest=about, steps=steps)
