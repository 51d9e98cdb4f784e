"""Options that commands share, and what they make of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from datakit.errors import UsageError

if TYPE_CHECKING:
    from datakit.commands.settings import Settings
    from datakit.engine.build import Build

F = TypeVar("F", bound=Callable[..., Any])
ROOT_FLAGS = ("root", "mirrors", "allow_hosts")
PACE = ("jobs", "timeout_s", "in_flight", "per_host", "per_host_per_s", "robots")

WITHOUT = click.option(
    "--without",
    metavar="SOURCE,…",
    help="Sources of pictures to give up, e.g. sam,wikiart; '' for none. [as before]",
)
ACCEPT = click.option("--accept-licence", "accept", is_flag=True, help="You accept the terms that a dataset has.")


def root_options(command: F) -> F:
    """Options that say where the root is and who may be connected to."""
    for option in (
        click.option("--root", metavar="DIR", help="Folder, or s3://… and its like. [DATAKIT_ROOT, else ./data]"),
        click.option(
            "--mirror",
            "mirrors",
            multiple=True,
            metavar="FROM=TO",
            help="Replace a URL prefix. [DATAKIT_MIRRORS]",
        ),
        click.option(
            "--allow-host",
            "allow_hosts",
            multiple=True,
            metavar="HOST[:PORT]",
            help="Permit a private address. [DATAKIT_ALLOW_HOSTS]",
        ),
    ):
        command = option(command)
    return command


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the options of a command that makes shards say."""

    settings: Settings
    slice_of: str | None
    limit: int | None
    rebuild: bool
    recipe: str | None
    tolerates: float | None
    without: tuple[str, ...] | None
    accept: bool

    def build(self, name: str, **choices: Any) -> Build:
        said = {"recipe": self.recipe, "tolerates": self.tolerates, "without": self.without, "accept": self.accept}
        return open_build(self.settings, name, limit=self.limit, **{**said, **choices})


def work_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of commands that make shards, given to the command as one `task`."""

    @functools.wraps(command)
    def with_task(
        *args: Any,
        slice_of: str | None,
        limit: int | None,
        rebuild: bool,
        recipe: str | None,
        tolerates: float | None,
        without: str | None,
        accept: bool,
        **rest: Any,
    ) -> Any:
        settings = load_settings(**{name: rest.pop(name) for name in (*ROOT_FLAGS, *PACE)})
        if tolerates is not None and math.isnan(tolerates):
            raise UsageError("--tolerate should be a share from 0 to 1, not nan")
        if rebuild and slice_of:
            raise UsageError("--rebuild with --slice would remove what another slice makes: rebuild first, then slice")
        choices: dict[str, Any] = {"slice_of": slice_of, "limit": limit, "rebuild": rebuild, "recipe": recipe}
        task = Task(settings=settings, tolerates=tolerates, without=names_of(without), accept=accept, **choices)
        return command(*args, task=task, **rest)

    for option in (
        click.option("--slice", "slice_of", metavar="I/N", help="Every Nth shard from the Ith on, from 0."),
        click.option("--limit", type=click.IntRange(1), metavar="N", help="A trial: N rows of each annotation file."),
        click.option(
            "--tolerate",
            "tolerates",
            type=click.FloatRange(0, 1),
            metavar="SHARE",
            help="Failures that a shard may have, 0 to 1, instead of what the recipe says.",
        ),
        click.option("--rebuild", is_flag=True, help="Remove what another recipe made, and make it again."),
        click.option("--recipe", metavar="NAME", help="Another recipe than the manifest's. [what was chosen before]"),
        WITHOUT,
        ACCEPT,
    ):
        with_task = option(with_task)
    return root_options(pace_options(with_task))


def names_of(text: str | None) -> tuple[str, ...] | None:
    """The names of a list with commas; None when none was given, which isn't the same as an empty one."""
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def pace_options(command: F) -> F:
    """Options that say how much is done at once."""
    for option in (
        click.option("--jobs", type=int, help="Processes. [DATAKIT_JOBS, else one a core]"),
        click.option("--timeout", "timeout_s", type=int, metavar="S", help="Seconds for one picture. [30]"),
        click.option("--in-flight", type=int, metavar="N", help="URLs of a process at once, at most. [2048]"),
        click.option("--per-host", type=int, metavar="N", help="Requests of a process to one host at once. [8]"),
        click.option(
            "--rate",
            "per_host_per_s",
            type=int,
            metavar="N",
            help="Requests of a process to one host in a second. [50]",
        ),
        click.option("--robots", is_flag=True, help="Ask each host for its robots.txt, and obey."),
    ):
        command = option(command)
    return command


def load_settings(**flags: Any) -> Settings:
    """Flags over environment over datakit.toml."""
    from datakit.commands import settings

    return settings.load(**flags)


def open_build(settings: Settings, name: str, **choices: Any) -> Build:
    """The build of a dataset in the root and under the policy of the settings."""
    from datakit.engine import opening
    from datakit.storage.store import Store

    store = Store(settings.root)
    store.check()
    return opening.open_build(store, name, hosts=settings.hosts, limits=settings.limits, **choices)
