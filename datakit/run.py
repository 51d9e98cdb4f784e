"""Run: a pipeline over one dataset in one root, and what of it is still to be done."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import msgspec
from msgspec import structs

from datakit.errors import DownloadError, Incomplete, UsageError
from datakit.fingerprint import fingerprint
from datakit.holdings import typed, write_manifest
from datakit.ledger import Ledger
from datakit.manifest import Manifest
from datakit.shards import shard_name
from datakit.stage import Step, Tell, Work, intact, silent
from datakit.store import Store, sweep
from datakit.web.hosts import Hosts
from datakit.web.pacing import Limits

log = logging.getLogger(__name__)


CHOICES = "choices.json"


def folder_of(dataset: str, limit: int | None) -> str:
    """A dataset's folder below the root. A trial has its own, so that it never stands for the whole."""
    return dataset if limit is None else f"{dataset}@limit-{limit}"


class Choices(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was chosen for a dataset in a root, so that later commands need not be told again."""

    recipe: str = ""  # if it isn't the manifest's
    without: tuple[str, ...] = ()  # sources of pictures that are given up
    repairs: tuple[str, ...] = ()  # that `datakit check --repair` turned on
    accepted: str = ""  # the terms that a person has accepted


def choices(store: Store, folder: str) -> Choices:
    """What was chosen for a folder; nothing where nothing is written, or it can't be read."""
    try:
        return msgspec.json.decode(store.read(f"{folder}/{CHOICES}") or b"{}", type=Choices)
    except (msgspec.DecodeError, UnicodeDecodeError):
        log.warning(
            "%s/%s can't be read, so the manifest's recipe is taken: name another with --recipe", folder, CHOICES
        )
        return Choices()


def choose(store: Store, folder: str, **chosen: Any) -> None:
    """Writes down what was chosen, if it differs; what isn't named stays as it is by then, whoever chose it."""
    if not _differs(choices(store, folder), chosen):
        return
    with store.held(f"{folder}/.choices.lock"):
        now = structs.replace(choices(store, folder), **chosen)
        store.write(f"{folder}/{CHOICES}", msgspec.json.encode(now) + b"\n")


def _differs(choices: Choices, chosen: dict[str, Any]) -> bool:
    return any(getattr(choices, name) != value for name, value in chosen.items())


@dataclass(frozen=True, kw_only=True)
class Run:
    """A pipeline over one dataset in one root."""

    store: Store
    manifest: Manifest
    recipe: str  # the pipeline's name, for messages
    steps: tuple[Step, ...]
    hosts: Hosts
    limits: Limits = field(default_factory=Limits)
    tolerates: float | None = None  # share of faults, instead of what each step says
    books: dict[str, Ledger] = field(default_factory=dict, compare=False, repr=False)  # snapshots, by step
    limit: int | None = None
    imports: str | None = None  # an output folder of img2dataset, from which fetch takes the pictures
    choices: Choices = field(default_factory=Choices)
    before: Choices = field(default_factory=Choices)  # what was chosen before this command

    @property
    def folder(self) -> str:
        """The dataset's folder below the root."""
        return folder_of(self.manifest.name, self.limit)

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

    def ledger(self, step: Step) -> Ledger:
        return self.books.get(step.name) or Ledger(self.store, f"{self.folder}/{step.name}")

    def snapshot(self) -> Run:
        """This run with its folders listed once, to look at many shards; not to make any."""
        # The last step first: what another job makes meanwhile is then seen with what it was made from.
        steps = reversed(self.steps)
        books = {step.name: Ledger(self.store, f"{self.folder}/{step.name}", snapshot=True) for step in steps}
        return replace(self, books=books)

    def work(self, step: Step, tell: Tell = silent) -> Work:
        place = (self.store, self.manifest, self.folder, step.name, self.hosts, self.limits, self.limit)
        return Work(*place, imports=self.imports, tell=tell)

    def step_recipe(self, step: Step) -> dict[str, Any]:
        """What recipe.json of a step says."""
        recipe = {"dataset": self.manifest.name, "step": step.name, **step.stage.identity(self.manifest)}
        place = [s.name for s in self.steps].index(step.name)
        if place:  # what came of other steps before isn't the same thing, under whatever name
            recipe["after"] = self.step_recipe(self.steps[place - 1])
        return recipe if self.limit is None else {**recipe, "limit": self.limit}

    @cached_property
    def recipes(self) -> list[str]:
        """The fingerprint of each step's recipe."""
        return [fingerprint(self.step_recipe(step)) for step in self.steps]

    def known_shards(self) -> list[int]:
        """The shards that the dataset has; empty when it isn't listed yet, so that nobody knows."""
        try:
            return self.steps[0].stage.shards(self.work(self.steps[0]))
        except Incomplete:
            return []

    def upto(self, name: str) -> tuple[Step, ...]:
        """The steps up to and with that one. Raises UsageError when the recipe has none of that name."""
        for place, step in enumerate(self.steps):
            if step.name == name:
                return self.steps[: place + 1]
        raise UsageError(f"recipe {self.recipe!r} has no step {name!r}; it has {', '.join(s.name for s in self.steps)}")

    def claim(self, start: int, last: int, *, rebuild: bool = False) -> None:
        """Takes the step folders for this recipe; those before `start` are only compared.

        Raises RecipeChanged. With `rebuild` it removes what another recipe made, and all that came of it.
        """
        sweep(self.store.downloads, below=True)
        self.store.sweep(self.folder)
        removing = False
        for place, step in enumerate(self.steps[: last + 1]):
            ledger, recipe = self.ledger(step), self.step_recipe(step)
            old = ledger.recipe()
            removing = removing or (old is not None and fingerprint(old) != fingerprint(recipe))
            if rebuild and removing and place >= start:
                log.warning("removing %s, made by another recipe", ledger.folder)
                self.store.remove_folder(ledger.folder)
            if place >= start:
                ledger.claim(recipe)
            elif old is not None:
                name = typed(self.manifest.name, self.limit)
                ledger.claim(recipe, f"run `datakit fetch {name} --rebuild` before this")
        if rebuild and removing:
            self._remove_what_came_of_it(last)
        self.remember()
        write_manifest(self.store, self.folder, self.manifest)

    def remember(self) -> None:
        """Writes down what this command chose otherwise than it was."""
        chosen = {name: getattr(self.choices, name) for name in Choices.__struct_fields__}
        choose(self.store, self.folder, **{k: v for k, v in chosen.items() if v != getattr(self.before, k)})

    def _remove_what_came_of_it(self, last: int) -> None:
        """Removes the folders of later steps, and of steps that the recipe doesn't have."""
        ours = {step.name for step in self.steps[: last + 1]}
        for name in self.store.names(self.folder):
            folder = f"{self.folder}/{name}"
            if name not in ours and self.store.read(f"{folder}/recipe.json") is not None:
                log.warning("removing %s, which came of another recipe", folder)
                self.store.remove_folder(folder)

    def inputs(self, place: int, shard: int, *, made: bool = False) -> dict[str, str] | None:
        """What a shard's step is made from, as its commit names it; None when the step before isn't done.

        With `made` what it was made from just now, although a file of the user's may be another one since.
        """
        step = self.steps[place]
        found = step.stage.inputs(replace(self.work(step), made=made), shard)
        commit = self.ledger(step).read(shard_name(shard))
        if found is None:  # the files aren't here any more: trust what was committed
            if commit is None:
                return None
            found = {k: v for k, v in commit.inputs.items() if place == 0 or k != self.steps[place - 1].name}
        if place == 0:
            return found
        before = self.ledger(self.steps[place - 1]).read(shard_name(shard))
        return None if before is None else {self.steps[place - 1].name: before.digest(), **found}

    def done(self, place: int, shard: int, *, files: bool = False) -> bool:
        """Whether a step of a shard is done. With `files`, its files must be there too, not cleaned away."""
        inputs = self.inputs(place, shard)
        if inputs is None:
            return False
        ledger = self.ledger(self.steps[place])
        if ledger.state(shard_name(shard), self.recipes[place], inputs, gone_is_fine=not files) != "done":
            return False
        needs = self.steps[place].stage.needs(self.work(self.steps[place])) if files else []
        return all(intact(path) for path in needs)

    def stale(self, place: int, shard: int) -> bool:
        """Whether a step of a shard was made from other inputs than there are now."""
        commit = self.ledger(self.steps[place]).read(shard_name(shard))
        return commit is not None and commit.inputs != self.inputs(place, shard)

    def pending(self, last: int, shard: int) -> list[int]:
        """The steps, up to place `last`, that a shard still has to go through.

        It begins with the first that isn't done, or earlier when files that it reads were cleaned away.
        """
        n = len(self.steps)
        first = next((place for place in range(n) if not self.done(place, shard)), n)
        if first == n or first > last + 1:
            return []
        while first > 0 and not self.done(first - 1, shard, files=True):
            first -= 1
        return list(range(first, last + 1))
