"""Pin: from what upstream says today to a `.sums` file, which holds a manifest to these commits and hashes."""

from __future__ import annotations

import re
from pathlib import Path

from datakit import catalogue
from datakit.catalogue import manifest
from datakit.catalogue.manifest import Manifest, Pinned
from datakit.engine.build import Build
from datakit.storage.store import publish_file
from datakit.web import downloads
from datakit.web.transfers import hub_files

_MANY = 1000  # annotation files, beyond which only the first is asked about: its commit stands for all


def pin(build: Build) -> Pinned:
    """Asks upstream for the commit of every repository and the size and hash of every file.

    Of a repository with more than a thousand files of ours only the commit, which stands for all of them.
    """
    pinned = Pinned()
    work = build.work(build.steps[0])
    about = build.manifest
    if about.annotations.glob:  # only the tree knows the files, and the listing keeps their hashes
        commit, _ = downloads.with_retries(lambda: hub_files(about.hub, about.revision, build.hosts), about.hub)
        pinned.commits[about.hub] = commit
    for address in _pinnable_addresses(build.manifest):
        head = downloads.head(address, hosts=build.hosts)
        fixed = address
        if head.repo and head.revision:
            pinned.commits[head.repo] = head.revision
            fixed = re.sub(r"@[^/]+/", f"@{head.revision}/", address, count=1)
        known = work.sidecar(address) or {}
        same = head.size_bytes in (None, known.get("size_bytes"))
        pinned.files[fixed] = (head.size_bytes, head.sha256 or (known.get("sha256") if same else None))
    return pinned


def write_pins(build: Build, path: Path | None = None) -> tuple[Path, Pinned]:
    """Pins a dataset in a `.sums` file, the one beside its manifest unless another is named; returns it and the pins.

    Raises DownloadError when the dataset is lost.
    """
    if build.manifest.lost:
        build.permit()
    pinned = pin(build)
    name = build.manifest.name
    path = path or catalogue.find("manifests", f"{name}.toml").with_suffix(".sums")
    publish_file(path, manifest.sums_text(name, pinned).encode())
    return path, pinned


def _pinnable_addresses(about: Manifest) -> list[str]:
    """The addresses that upstream is asked about; not those that only a person can get."""
    rows = [] if about.annotations.glob else [about.address(file) for file in about.shard_files()]
    sources = [about.at_commit(a) for s in about.images.sources.values() if not s.obtain for a in s.archives()]
    return [address for address in (rows[:1] if len(rows) > _MANY else rows) + sources if "file://" not in address]
