"""Assembly: from packed shards to mix.json."""

from __future__ import annotations

import posixpath
import re

from datakit.engine.build import Build
from datakit.engine.done import Done
from datakit.errors import Incomplete, UsageError
from datakit.storage.shards import ranges
from datakit.storage.store import Store
from datakit.stream import mixfile as mixes
from datakit.stream.mixfile import Mix, MixPart, MixShard

_NAME = re.compile(r"[a-z0-9][a-z0-9_+:@.-]{0,99}")


def mix_name(text: str, limit: int | None) -> str:
    """The folder of a mix: what the user typed, and for a trial its limit. Raises UsageError."""
    name = "".join(text.split())
    if not _NAME.fullmatch(name):
        raise UsageError(f"bad mix name {text!r}: use a-z, 0-9, _-.+ (100 at the most), a letter or digit first")
    return name if limit is None else f"{name}@limit-{limit}"


def require_fetched(builds: list[Build]) -> None:
    """Raises Incomplete, naming the commands, when nothing of a dataset has been fetched, or can be."""
    missing = [
        build for build in builds if not any(build.ledger(build.step_of(role)).commits() for role in ("fetch", "pack"))
    ]
    for build in missing:
        build.permit()
    if missing:
        commands = " ; ".join(f"datakit fetch {build.as_argument}" for build in missing)
        raise Incomplete(
            f"nothing of {', '.join(repr(build.manifest.name) for build in missing)} is fetched yet. Run\n"
            f"  {commands}\n"
            "or `datakit build-mix` with --fetch, which downloads, too"
        )


def mix_part(build: Build, repeats: int) -> MixPart:
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
            f"or changed. Run `datakit fetch {build.manifest.name} --shards {ranges(undone)}`, then this again"
        )
    shards = [
        MixShard(
            tar=f"../../{ledger.folder}/{part.tar.name}",
            index=f"../../{ledger.folder}/{part.table.name}",
            samples=part.rows,
            size_bytes=part.tar.size_bytes,
            xxh3=part.tar.xxh3,
            index_xxh3=part.table.xxh3,
        )
        for _, commit in sorted(ours.items())
        for part in commit.parts
        if part.tar is not None and part.rows
    ]
    return MixPart(
        dataset=build.manifest.name,
        repeats=repeats,
        recipe=build.fingerprints[pack.name],
        samples=sum(s.samples for s in shards),
        shards=shards,
    )


def unpacked_shards(build: Build) -> list[int]:
    """Shards that the dataset has and a mix of it doesn't."""
    packed = build.ledger(build.step_of("pack")).commits()
    return [shard for shard in Done(build).known_shards() if shard not in packed]


def write(store: Store, name: str, builds: list[tuple[Build, int]]) -> tuple[Mix, str]:
    """Makes the mix of packed datasets and publishes it; returns it and where it stands."""
    mix = mixes.make(name, [mix_part(build, repeats) for build, repeats in builds])
    where = posixpath.join("mixes", name, "mix.json")
    store.sweep(posixpath.join("mixes", name))
    store.write(where, mixes.encode(mix))
    return mix, f"{store.root}/{where}"
