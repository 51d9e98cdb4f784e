"""Build: a recipe over one dataset in one root. Which of its shards are done is asked of datakit/engine/done.py."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from datakit.catalogue.manifest import Manifest
from datakit.engine.choices import Choices, write_choices
from datakit.engine.holdings import typed, write_manifest
from datakit.engine.stage import Role, Step
from datakit.engine.work import Progress, Work
from datakit.errors import DownloadError, UsageError
from datakit.storage.fingerprint import fingerprint
from datakit.storage.ledger import Ledger
from datakit.storage.store import Store, sweep
from datakit.web.hosts import Hosts
from datakit.web.pacing import Limits

log = logging.getLogger(__name__)


def folder_of(dataset: str, limit: int | None) -> str:
    """A dataset's folder below the root. A trial has its own, so that it never stands for the whole."""
    return dataset if limit is None else f"{dataset}@limit-{limit}"


@dataclass(frozen=True, kw_only=True)
class Build:
    """A recipe over one dataset in one root: what is to be made, of what, and where."""

    store: Store
    manifest: Manifest
    recipe: str  # its name, for messages
    steps: tuple[Step, ...]  # in the order of the recipe
    hosts: Hosts
    limits: Limits = field(default_factory=Limits)
    tolerates: float | None = None  # share of faults, instead of what each step says
    limit: int | None = None  # rows of each annotation file, for a trial
    imports: str | None = None  # an output folder of img2dataset, from which fetch takes the pictures
    choices: Choices = field(default_factory=Choices)
    before: Choices = field(default_factory=Choices)  # what was chosen before this command

    @property
    def folder(self) -> str:
        """The dataset's folder below the root."""
        return folder_of(self.manifest.name, self.limit)

    @property
    def typed(self) -> str:
        """The dataset as a command takes it, with a trial's limit."""
        return typed(self.manifest.name, self.limit)

    # Steps.

    def step(self, name: str) -> Step:
        """The step of that name. Raises UsageError when the recipe has none."""
        for step in self.steps:
            if step.name == name:
                return step
        raise UsageError(f"recipe {self.recipe!r} has no step {name!r}; it has {', '.join(s.name for s in self.steps)}")

    def step_of(self, role: Role) -> Step:
        """The step of a role, the first if there are several. Raises UsageError when there is none."""
        for step in self.steps:
            if step.role == role:
                return step
        raise UsageError(f"recipe {self.recipe!r} has no step of role {role!r}")

    def step_before(self, step: Step) -> Step | None:
        """The step whose rows it takes: of a score of packed tars always the one that packs them."""
        names = [s.name for s in self.steps]
        at = names.index(step.name) - 1
        while at >= 0 and step.role == self.steps[at].role == "score" and "pack" in {s.role for s in self.steps[:at]}:
            at -= 1
        return self.steps[at] if at >= 0 else None

    def steps_after(self, step: Step) -> list[Step]:
        """The steps that take its rows."""
        return [s for s in self.steps if (before := self.step_before(s)) is not None and before.name == step.name]

    def path_to(self, step: Step) -> tuple[Step, ...]:
        """The steps that lead to it, first to last, and itself."""
        before = self.step_before(step)
        return (step,) if before is None else (*self.path_to(before), step)

    def ledger(self, step: Step, *, snapshot: bool = False) -> Ledger:
        """The commits of a step's folder."""
        return Ledger(self.store, f"{self.folder}/{step.name}", snapshot=snapshot)

    def work(self, step: Step, progress: Progress | None = None) -> Work:
        """What a step's stage may use."""
        place = (self.store, self.manifest, self.folder, step.name, self.hosts, self.limits, self.limit)
        return Work(*place, imports=self.imports, progress=progress or Progress())

    # Identity.

    def step_recipe(self, step: Step) -> dict[str, Any]:
        """What recipe.json of a step says."""
        recipe = {"dataset": self.manifest.name, "step": step.name, **step.stage.identity(self.manifest)}
        before = self.step_before(step)
        if before is not None:  # what came of other steps before isn't the same thing, under whatever name
            recipe["after"] = self.step_recipe(before)
        return recipe if self.limit is None else {**recipe, "limit": self.limit}

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of each step's recipe, by its name."""
        return {step.name: fingerprint(self.step_recipe(step)) for step in self.steps}

    # What keeps it from being made.

    @property
    def terms(self) -> str:
        """The terms that a person still has to accept, or nothing."""
        accept = self.manifest.accept
        return accept.rstrip(".") if accept != self.choices.accepted else ""

    def permit(self) -> None:
        """Raises DownloadError when the dataset is lost, or its terms aren't accepted yet."""
        about = self.manifest
        if about.lost:
            instead = (
                f"{about.fallback!r} may stand for it: `datakit fetch {about.fallback}`. " if about.fallback else ""
            )
            raise DownloadError(
                f"{about.name!r} can't be had any more: {about.lost.rstrip('.')}. {instead}"
                "If you have a copy, write a manifest of your own that names where it is"
            )
        if self.terms:
            raise DownloadError(
                f"{about.name!r} has terms that must be accepted first: {self.terms}. See {about.homepage}, then run "
                "the same command with --accept-licence"
            )

    # What it writes down of itself.

    def claim(self, steps: tuple[Step, ...], path: tuple[Step, ...], *, rebuild: bool = False) -> None:
        """Takes the folders of `steps` for this recipe; the others on the path to them are only compared.

        Raises RecipeChanged. With `rebuild` it removes what another recipe made, and all that came of it.
        """
        sweep(self.store.downloads, below=True)
        self.store.sweep(self.folder)
        removing = False
        for step in path:
            ledger, recipe = self.ledger(step), self.step_recipe(step)
            old = ledger.recipe()
            removing = removing or (old is not None and fingerprint(old) != fingerprint(recipe))
            if rebuild and removing and step in steps:
                log.warning("removing %s, made by another recipe", ledger.folder)
                self.store.remove_folder(ledger.folder)
            if step in steps:
                ledger.claim(recipe)
            elif old is not None:
                ledger.claim(recipe, f"run `datakit fetch {self.typed} --rebuild` before this")
        if rebuild and removing:
            self._remove_what_came_of_it(path)
        self.remember()
        write_manifest(self.store, self.folder, self.manifest)

    def remember(self) -> None:
        """Writes down what this command chose otherwise than it was."""
        chosen = {name: getattr(self.choices, name) for name in Choices.__struct_fields__}
        write_choices(self.store, self.folder, **{k: v for k, v in chosen.items() if v != getattr(self.before, k)})

    def _remove_what_came_of_it(self, path: tuple[Step, ...]) -> None:
        """Removes the folders of later steps, and of steps that the recipe doesn't have."""
        ours = {step.name for step in path}
        for name in self.store.names(self.folder):
            folder = f"{self.folder}/{name}"
            if name not in ours and self.store.read(f"{folder}/recipe.json") is not None:
                log.warning("removing %s, which came of another recipe", folder)
                self.store.remove_folder(folder)
