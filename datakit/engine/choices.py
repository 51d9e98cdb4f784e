"""Choices: what a user has chosen for a dataset in a root, kept beside it so that later commands use it too."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from msgspec import structs

from datakit.storage.store import Store

log = logging.getLogger(__name__)

_FILE = "choices.json"


class Choices(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was chosen for a dataset in a root."""

    recipe: str = ""  # if it isn't the manifest's
    without: tuple[str, ...] = ()  # sources of pictures that are given up
    repairs: tuple[str, ...] = ()  # that `datakit check --repair` turned on
    accepted: str = ""  # the terms that a person has accepted


def read_choices(store: Store, folder: str) -> Choices:
    """The choices for a dataset's folder; the defaults where there is no file, or one that can't be read."""
    try:
        return msgspec.json.decode(store.read(f"{folder}/{_FILE}") or b"{}", type=Choices)
    except (msgspec.DecodeError, UnicodeDecodeError):
        log.warning("%s/%s can't be read, so the manifest's recipe is taken: name another with --recipe", folder, _FILE)
        return Choices()


def write_choices(store: Store, folder: str, **chosen: Any) -> None:
    """Writes these choices if they differ; the others stay as they are in the file."""
    if not _differ(read_choices(store, folder), chosen):
        return
    with store.lock(f"{folder}/.choices.lock"):
        now = structs.replace(read_choices(store, folder), **chosen)
        store.write(f"{folder}/{_FILE}", msgspec.json.encode(now) + b"\n")


def _differ(choices: Choices, chosen: dict[str, Any]) -> bool:
    return any(getattr(choices, name) != value for name, value in chosen.items())
