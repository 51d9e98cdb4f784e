"""Locate: finds each picture inside the archives it came in, and copies nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from datakit import archives
from datakit.errors import ArchiveError
from datakit.fingerprint import plain
from datakit.manifest import Manifest, Source
from datakit.stage import Out, Stage, Work
from datakit.store import locked
from datakit.tables import LOCATED, Rows, failures, with_images, with_places

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Locate(Stage):
    """Resolves `image` references to (archive, offset, size) by the manifest's [images.sources].

    Archives are downloaded once, indexed once, and never unpacked. Every row is kept; a picture that no
    archive holds has the outcome `missing`, one under no known prefix `no_source`, and `pack` drops such rows.
    """

    version: ClassVar[int] = 1

    def identity(self, manifest: Manifest) -> dict[str, Any]:
        rules = {
            name: {k: v for k, v in plain_source(source).items() if k in ("prefix", "inside", "any_extension")}
            for name, source in manifest.images.sources.items()
        }
        return {**super().identity(manifest), "sources": rules}

    def prepare(self, work: Work) -> None:
        for source in work.manifest.images.sources.values():
            path = work.download(source.archive).path
            index = archives.index_path(path)
            with locked(index.with_name(f"{index.name}.lock")):
                if not _fits(index, path):
                    open_index.cache_clear()
                    try:
                        archives.write_index(path, index)
                    except ArchiveError as error:
                        raise work.distrust(source.archive, error) from error
            skipped = open_index(index).skipped
            if skipped:
                log.warning("%s: members left out: %s", path.name, ", ".join(f"{k} {n}" for k, n in skipped.items()))

    def inputs(self, work: Work, shard: int) -> dict[str, str] | None:
        found = {}
        for name, source in work.manifest.images.sources.items():
            known = work.known(source.archive)
            if known is None:
                return None
            found[f"archive {name}"] = known["sha256"]
        return found

    def needs(self, work: Work) -> list[Path]:
        return [work.local(source.archive) for source in work.manifest.images.sources.values()]

    def schema(self, rows: Rows, manifest: Manifest) -> pa.Schema:
        return with_images(rows.schema(), LOCATED)

    def rows(self, rows: Rows, work: Work, out: Out) -> Iterator[pa.RecordBatch]:
        schema = self.schema(rows, work.manifest)
        # The longest prefix wins: vg/VG_100K_2/ is not vg/VG_100K/.
        sources = sorted(work.manifest.images.sources.values(), key=lambda s: -len(s.prefix))
        for batch in rows.batches():
            places = [
                [self._place(image["ref"], sources, work) for image in row] for row in batch["images"].to_pylist()
            ]
            for row in places:
                out.fail(failures(row))
            yield with_places(batch, places, schema)

    def _place(self, ref: str, sources: list[Source], work: Work) -> dict[str, Any]:
        place: dict[str, Any] = {**dict.fromkeys(LOCATED.value_type.names), "ref": ref}
        source = next((s for s in sources if ref.startswith(s.prefix)), None)
        if source is None:
            return {**place, "outcome": "no_source"}
        path = work.local(source.archive)
        member = find(open_index(archives.index_path(path)), source, ref)
        if member is None:
            return {**place, "outcome": "missing"}
        return {
            **place,
            "outcome": "ok",
            "file": f"downloads/{path.relative_to(work.store.downloads).as_posix()}",
            "offset": member.offset,
            "stored_bytes": member.stored_bytes,
            "size_bytes": member.size_bytes,
            "method": member.method,
            "crc32": member.crc32,
            "checked": False,
        }


_ENDINGS = (".jpg", ".png", ".gif", ".jpeg", ".webp", ".JPG", ".PNG", ".GIF")


def plain_source(source: Source) -> dict[str, Any]:
    return {name: plain(getattr(source, name)) for name in source.__struct_fields__}


def _fits(index: Path, archive: Path) -> bool:
    """Whether an index is there, can be read, and is of this archive."""
    try:
        return index.exists() and open_index(index).archive_bytes == archive.stat().st_size
    except ArchiveError:
        return False


@lru_cache(maxsize=16)  # a mix has up to 15 sources
def open_index(path: Path) -> archives.Index:
    return archives.Index.open(path)


def find(index: archives.Index, source: Source, ref: str) -> archives.Member | None:
    """The member that a reference means, by the source's rules."""
    rest = ref.removeprefix(source.prefix)
    if source.inside == "*/":
        stem = rest.rpartition(".")[0]
        others = [f"{stem}{ending}" for ending in _ENDINGS] if source.any_extension else []
        found = (index.find_any_folder(name) for name in [rest, *others])
        return next((member for member in found if member is not None), None)
    name = source.inside + rest
    member = index.find(name)
    if member is None and source.any_extension:
        member = index.find_stem(name.rpartition(".")[0])
    return member
