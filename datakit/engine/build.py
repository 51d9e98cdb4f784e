"""Build: a recipe over one dataset in one root. datakit/engine/done.py tells which of its shards are done."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from datakit.catalogue.manifest import Manifest
from datakit.engine.choices import Choices, write_choices
from datakit.engine.holdings import as_argument, write_manifest
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
    """A recipe over one dataset in one root: which steps are made, of which dataset, and where."""

    store: Store
    manifest: Manifest
    recipe: str  # its name, for messages
    steps: tuple[Step, ...]  # in the order of the recipe
    hosts: Hosts
    limits: Limits = field(default_factory=Limits)
    tolerates: float | None = None  # share of faults, instead of what each step says
    limit: int | None = None  # rows of each annotation file, for a trial
    imports: str | None = None  # an output folder of img2dataset that fetch takes the pictures from
    choices: Choices = field(default_factory=Choices)
    before: Choices = field(default_factory=Choices)  # the choices before this command

    @property
    def folder(self) -> str:
        """The dataset's folder below the root."""
        return folder_of(self.manifest.name, self.limit)

    @property
    def as_argument(self) -> str:
        """The dataset as a command takes it, with a trial's limit."""
        return as_argument(self.manifest.name, self.limit)

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
        """The step whose rows this one takes, None for the first; each score after pack takes those of pack."""
        names = [s.name for s in self.steps]
        at = names.index(step.name) - 1
        while at >= 0 and step.role == self.steps[at].role == "score" and "pack" in {s.role for s in self.steps[:at]}:
            at -= 1
        return self.steps[at] if at >= 0 else None

    def steps_after(self, step: Step) -> list[Step]:
        """The steps that take this step's rows."""
        return [s for s in self.steps if (before := self.step_before(s)) is not None and before.name == step.name]

    def path_to(self, step: Step) -> tuple[Step, ...]:
        """The steps that lead to this step, first to last, and the step itself."""
        before = self.step_before(step)
        return (step,) if before is None else (*self.path_to(before), step)

    def ledger(self, step: Step, *, snapshot: bool = False) -> Ledger:
        """The commits of a step's folder."""
        return Ledger(self.store, f"{self.folder}/{step.name}", snapshot=snapshot)

    def work(self, step: Step, progress: Progress | None = None) -> Work:
        """The Work of a step's stage."""
        return Work(
            store=self.store,
            manifest=self.manifest,
            folder=self.folder,
            step=step.name,
            hosts=self.hosts,
            limits=self.limits,
            limit=self.limit,
            imports=self.imports,
            progress=progress or Progress(),
        )

    # Identity.

    def step_recipe(self, step: Step) -> dict[str, Any]:
        """What recipe.json of a step says."""
        recipe = {"dataset": self.manifest.name, "step": step.name, **step.stage.identity(self.manifest)}
        before = self.step_before(step)
        if before is not None:  # rows that came through other steps aren't the same, whatever the step is called
            recipe["after"] = self.step_recipe(before)
        return recipe if self.limit is None else {**recipe, "limit": self.limit}

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of each step's recipe, by its name."""
        return {step.name: fingerprint(self.step_recipe(step)) for step in self.steps}

    # Whether it may be made.

    @property
    def terms(self) -> str:
        """The terms that the user still has to accept; empty when there are none."""
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

    # What it writes into its folder.

    def claim(self, steps: tuple[Step, ...], path: tuple[Step, ...], *, rebuild: bool = False) -> None:
        """Claims the folders of `steps` for this recipe; those of other steps on the path are only compared.

        Raises RecipeChanged. With `rebuild` it removes what another recipe made, and what was made from that.
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
                ledger.claim(recipe, f"run `datakit fetch {self.as_argument} --rebuild` before this")
        if rebuild and removing:
            self._remove_later_steps(path)
        self.remember()
        write_manifest(self.store, self.folder, self.manifest)

    def remember(self) -> None:
        """Writes the choices that this command changed."""
        chosen = {name: getattr(self.choices, name) for name in Choices.__struct_fields__}
        write_choices(self.store, self.folder, **{k: v for k, v in chosen.items() if v != getattr(self.before, k)})

    def _remove_later_steps(self, path: tuple[Step, ...]) -> None:
        """Removes the folders of later steps, and of steps that the recipe doesn't have."""
        ours = {step.name for step in path}
        for name in self.store.names(self.folder):
            folder = f"{self.folder}/{name}"
            if name not in ours and self.store.read(f"{folder}/recipe.json") is not None:
                log.warning("removing %s, which came of another recipe", folder)
                self.store.remove_folder(folder)
