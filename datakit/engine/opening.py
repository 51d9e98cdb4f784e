"""Opening: the build of a dataset in a root, under the recipe and with the choices that were made for it before."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from datakit import catalogue
from datakit.catalogue import manifest
from datakit.catalogue.manifest import Manifest, check_sources
from datakit.engine import pipeline
from datakit.engine.build import Build, folder_of
from datakit.engine.choices import Choices, read_choices
from datakit.engine.holdings import holdings
from datakit.engine.stage import Chosen, Engine
from datakit.errors import ManifestError, UsageError
from datakit.storage.store import Store
from datakit.web.hosts import Hosts

log = logging.getLogger(__name__)


def open_build(
    store: Store,
    name: str,
    *,
    recipe: str | None = None,
    limit: int | None = None,
    engine: Engine | None = None,
    without: tuple[str, ...] | None = None,
    accept: bool = False,
    about: Manifest | None = None,
    **rest: Any,
) -> Build:
    """The build of a dataset under the recipe that was chosen for it before, else its own; or another.

    Pictures that were fetched by another engine stay that engine's, unless `engine` names one; sources that were
    done without stay left out, unless `without` says otherwise; terms that were accepted stay so. `about` is the
    manifest, if not the catalogue's. Raises UsageError.
    """
    about = about or manifest.load(name)
    check_sources(about, without or ())
    before = read_choices(store, folder_of(name, limit))
    chosen = recipe or before.recipe or about.recipe
    build = Build(
        store=store,
        manifest=about,
        recipe=chosen,
        steps=pipeline.steps(chosen, about),
        limit=limit,
        choices=Choices(
            recipe="" if chosen == about.recipe else chosen,
            without=before.without if without is None else tuple(sorted(set(without))),
            repairs=before.repairs,
            accepted=about.accept if accept else before.accepted,
        ),
        before=before,
        **rest,
    )
    choice = Chosen(without=build.choices.without, repairs=build.choices.repairs, engine=engine)
    steps = (
        replace(step, stage=step.stage.as_chosen(choice, build.ledger(step).recipe() or {})) for step in build.steps
    )
    return replace(build, steps=tuple(steps))


def builds(store: Store, name: str | None = None) -> Iterator[Build]:
    """A build for each dataset that the root holds, trials too.

    One that isn't in the catalogue goes by the manifest that the root keeps. One whose manifest or recipe can't be read
    is passed over with a warning.
    """
    known = set(catalogue.names("manifests"))
    for holding in holdings(store):
        if name in (None, holding.dataset, holding.folder):
            about = None if holding.dataset.partition(".")[0] in known else holding.manifest()
            try:
                yield open_build(store, holding.dataset, limit=holding.limit, about=about, hosts=Hosts())
            except (UsageError, ManifestError) as error:
                log.warning("%s is passed over: %s", holding.folder, error)
