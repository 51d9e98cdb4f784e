"""Builder: from packed shards to mix.json, and from what upstream says today to a `.sums` file."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from datakit import catalogue, manifest
from datakit import mix as mixes
from datakit.build import Build
from datakit.done import Done
from datakit.errors import Incomplete, UsageError, nearest, shortlist
from datakit.manifest import Manifest, Pinned
from datakit.mix import Mix, MixPart, MixShard
from datakit.shards import ranges
from datakit.store import Store, publish_file
from datakit.web import downloads
from datakit.web.downloads import Downloaded
from datakit.web.transfers import hub_files
from datakit.work import Progress

_NAME = re.compile(r"[a-z0-9][a-z0-9_+:@.-]{0,99}")


def mix_name(text: str, limit: int | None) -> str:
    """The folder of a mix: what the user typed, and for a trial its limit. Raises UsageError."""
    name = "".join(text.split())
    if not _NAME.fullmatch(name):
        raise UsageError(f"bad mix name {text!r}: use a-z, 0-9, _-.+ (100 at the most), a letter or digit first")
    return name if limit is None else f"{name}@limit-{limit}"


def check_fetched(builds: list[Build]) -> None:
    """Raises Incomplete, naming the commands, when nothing of a dataset has been fetched, or can be."""
    missing = [
        build for build in builds if not any(build.ledger(build.step_of(role)).commits() for role in ("fetch", "pack"))
    ]
    for build in missing:
        build.permit()
    if missing:
        commands = " ; ".join(f"datakit fetch {build.typed}" for build in missing)
        raise Incomplete(
            f"nothing of {', '.join(repr(build.manifest.name) for build in missing)} is fetched yet. Build\n"
            f"  {commands}\n"
            "or `datakit build-mix` with --fetch, which downloads, too"
        )


def part(build: Build, repeats: int) -> MixPart:
    """A dataset's packed shards as part of a mix."""
    pack, done = build.step_of("pack"), Done(build, snapshot=True)
    ledger = done.ledger(pack)
    known = set(done.known_shards())
    ours = {shard: commit for shard, commit in ledger.commits().items() if not known or shard in known}
    # Asked anew, for another job may have changed a shard while the folders were listed.
    undone = [shard for shard in ours if not done.has(pack, shard) and not Done(build).has(pack, shard)]
    if undone:
        raise Incomplete(
            f"shards {ranges(undone)} of {build.manifest.name!r} are packed, but what they were packed from was lost "
            f"or changed. Build `datakit fetch {build.manifest.name} --shards {ranges(undone)}`, then this again"
        )
    shards = [
        MixShard(
            tar=f"../../{ledger.folder}/{one.tar.name}",
            index=f"../../{ledger.folder}/{one.table.name}",
            samples=one.rows,
            size_bytes=one.tar.size_bytes,
            xxh3=one.tar.xxh3,
            index_xxh3=one.table.xxh3,
        )
        for _, commit in sorted(ours.items())
        for one in commit.parts
        if one.tar is not None and one.rows
    ]
    return MixPart(
        dataset=build.manifest.name,
        repeats=repeats,
        recipe=build.fingerprints[pack.name],
        samples=sum(s.samples for s in shards),
        shards=shards,
    )


def not_packed(build: Build) -> list[int]:
    """Shards that the dataset has and a mix of it doesn't."""
    packed = build.ledger(build.step_of("pack")).commits()
    return [shard for shard in Done(build).known_shards() if shard not in packed]


def write(store: Store, name: str, builds: list[tuple[Build, int]]) -> tuple[Mix, str]:
    """Makes the mix of packed datasets and publishes it; returns it and where it stands."""
    mix = mixes.make(name, [part(build, repeats) for build, repeats in builds])
    where = posixpath.join("mixes", name, "mix.json")
    store.sweep(posixpath.join("mixes", name))
    store.write(where, mixes.encode(mix))
    return mix, f"{store.root}/{where}"


def adopt(build: Build, file: Path, wanted: str | None, progress: Progress | None = None) -> tuple[str, Downloaded]:
    """Takes a file that the user has for one that would be downloaded. Raises UsageError when it isn't clear which."""
    known = build.manifest.addresses()
    if wanted is None:
        named = list({a: n for n, a in known.items() if posixpath.basename(a) == file.name}.values())
        if len(named) != 1:
            which = f"{file.name!r} may be {' or '.join(named)}" if named else f"nothing is named {file.name!r}"
            raise UsageError(f"{which} in {build.manifest.name!r}. Say with --as which it is: {shortlist(known, 12)}")
        (wanted,) = named
    if wanted not in known:
        raise UsageError(f"{build.manifest.name!r} has no {wanted!r}. {nearest(wanted, known)}")

    def grown(done: int, total: int | None) -> None:
        if progress is not None:
            progress.download(known[wanted], done, total)

    return known[wanted], downloads.bring(file, known[wanted], build.store.downloads, tell=grown)


def pin(build: Build) -> Pinned:
    """Asks upstream for the commit of every repository and the size and hash of every file.

    Of a repository with more than a thousand files of ours only the commit, which stands for all of them.
    """
    pinned = Pinned()
    work = build.work(build.steps[0])
    about = build.manifest
    if about.annotations.glob:  # only the tree knows the files, and the listing keeps their hashes
        commit, _ = downloads.tried(lambda: hub_files(about.hub, about.revision, build.hosts), about.hub)
        pinned.commits[about.hub] = commit
    for address in _pinnable(build.manifest):
        head = downloads.head(address, hosts=build.hosts)
        fixed = address
        if head.repo and head.revision:
            pinned.commits[head.repo] = head.revision
            fixed = re.sub(r"@[^/]+/", f"@{head.revision}/", address, count=1)
        known = work.known(address) or {}
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
    publish_file(path, manifest.sums(name, pinned).encode())
    return path, pinned


def _pinnable(about: Manifest) -> list[str]:
    """The addresses that upstream is asked about; not those that only a person can get."""
    rows = [] if about.annotations.glob else [about.address(file) for file in about.shard_files()]
    sources = [about.at_commit(a) for s in about.images.sources.values() if not s.obtain for a in s.archives()]
    return [address for address in (rows[:1] if len(rows) > _MANY else rows) + sources if "file://" not in address]


_MANY = 1000
