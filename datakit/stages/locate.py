"""Locate: finds each picture inside the archives it came in, and copies nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from datakit.catalogue.manifest import Manifest, Source, check_sources
from datakit.engine.stage import Chosen, Cost, Role, Stage
from datakit.engine.work import Out, Work
from datakit.errors import ArchiveError, DownloadError, Incomplete
from datakit.formats import archives
from datakit.records.tables import LOCATED, LocatedPicture, Rows, failures, located_picture, with_images, with_places
from datakit.storage.fingerprint import plain
from datakit.storage.store import locked
from datakit.upstream.finder import Finder, Found, asked_for, by_hand, open_index, sources_with
from datakit.web import derived
from datakit.web.downloads import check_unedited

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Locate(Stage):
    """Resolves `image` references to (archive, offset, size) by the manifest's [images.sources].

    Archives are downloaded once, indexed once, and never unpacked. Every row is kept; a picture that no archive
    holds has the outcome `missing`, one under no known prefix `no_source`, one of a source that is done `without`
    has `left_out`, and `pack` drops such rows. One that was found under another extension than the reference has,
    where the manifest doesn't say that this is so, is in the row's `repairs`.
    """

    role: ClassVar[Role] = "fetch"
    finds: ClassVar[tuple[str, ...]] = ("path",)
    version: ClassVar[int] = 1
    without: tuple[str, ...] = ()  # sources whose pictures are given up
    any_extension: bool = False  # of all sources: what `datakit check --repair` turns on

    def identity(self, manifest: Manifest) -> dict[str, Any]:
        rules = {
            name: {
                k: v
                for k, v in plain_source(source).items()
                if k in ("prefix", "inside", "any_extension") or (k == "parts" and v)
            }
            for name, source in manifest.images.sources.items()
        }
        said = super().identity(manifest)
        for name in ("without", "any_extension"):  # what isn't chosen isn't said
            if not said[name]:
                del said[name]
        return {**said, "sources": rules}

    def sources(self, manifest: Manifest) -> dict[str, Source]:
        """The sources whose pictures are looked for."""
        return sources_with(manifest, self.without)

    def as_chosen(self, chosen: Chosen, recorded: dict[str, Any]) -> Locate:
        return replace(self, without=chosen.without, any_extension="extension" in chosen.repairs)

    def costs(self, rows: int | None, size_bytes: float, jobs: int, manifest: Manifest) -> Cost:
        return Cost(passed_bytes=size_bytes)  # pack writes about as much as the archives hold

    def check(self, work: Work) -> None:
        """Raises UsageError for a source that isn't there, DownloadError for archives that a person has to get."""
        check_sources(work.manifest, self.without)
        absent = by_hand(self.sources(work.manifest), work)
        if absent:
            raise DownloadError(asked_for(work.manifest.name, absent, self.without))

    def prepare(self, work: Work) -> None:
        self.check(work)
        for source in self.sources(work.manifest).values():
            for archive in source.archives():
                self._index(archive, work)

    def _index(self, archive: str, work: Work) -> None:
        done = work.download(archive, in_place=True)  # of one's own, 200 GB aren't there twice
        path = done.path
        index = archives.index_path(path)
        with locked(index.with_name(f"{index.name}.lock")):
            if not _fits(index, path, done.sha256):
                open_index.cache_clear()
                derived.remove(index)
                try:
                    archives.write_index(path, index)
                except ArchiveError as error:
                    raise work.distrust(archive, error) from error
                try:
                    check_unedited(path)
                except Incomplete:
                    derived.remove(index)
                    raise
                derived.declare(index, done.sha256)
        skipped = open_index(index).skipped
        if skipped:
            log.warning("%s: members left out: %s", path.name, ", ".join(f"{k} {n}" for k, n in skipped.items()))

    def inputs(self, work: Work, shard: int) -> dict[str, str] | None:
        found = {}
        for name, source in self.sources(work.manifest).items():
            for part, archive in enumerate(source.archives()):
                known = work.known(archive)
                if known is None:
                    return None
                found[f"archive {name}" if source.parts is None else f"archive {name} {part}"] = known["sha256"]
        return found

    def needs(self, work: Work) -> list[Path]:
        return [work.local(a) for source in self.sources(work.manifest).values() for a in source.archives()]

    def schema(self, rows: Rows, manifest: Manifest) -> pa.Schema:
        return with_images(rows.schema(), LOCATED)

    def rows(self, rows: Rows, work: Work, out: Out) -> Iterator[pa.RecordBatch]:
        schema = self.schema(rows, work.manifest)
        finder = Finder(work, without=self.without, repair=self.any_extension)
        for batch in rows.batches():
            places, mended = [], []
            for row in batch["images"].to_pylist():
                found = [(image["ref"], finder(image["ref"])) for image in row]
                places.append([_place(ref, one) for ref, one in found])
                mended.append(any(isinstance(one, Found) and one.repaired for _, one in found))
                out.fail([why for why in failures(places[-1]) if why != "left_out"])  # a choice, not a fault
            yield with_places(with_repair(batch, mended), places, schema)


def _place(ref: str, found: Found | str) -> LocatedPicture:
    """Where a picture stands, or why it doesn't."""
    if isinstance(found, str):
        return located_picture(ref, found)
    member = found.member
    return located_picture(
        ref,
        "ok",
        file=found.file,
        offset=member.offset,
        stored_bytes=member.stored_bytes,
        size_bytes=member.size_bytes,
        method=member.method,
        crc32=member.crc32,
        checked=False,
    )


def with_repair(batch: pa.RecordBatch, mended: list[bool]) -> pa.RecordBatch:
    """The batch with `extension` among the repairs of some of its rows."""
    if not any(mended) or "repairs" not in batch.schema.names:
        return batch
    repairs = [
        [*(old or []), "extension"] if new else old
        for old, new in zip(batch["repairs"].to_pylist(), mended, strict=True)
    ]
    at = batch.schema.get_field_index("repairs")
    return batch.set_column(at, batch.schema.field(at), pa.array(repairs, batch.schema.field(at).type))


def plain_source(source: Source) -> dict[str, Any]:
    """The fields of a source as values that JSON knows."""
    return {name: plain(getattr(source, name)) for name in source.__struct_fields__}


def _fits(index: Path, archive: Path, sha256: str) -> bool:
    """Whether an index is there, is whole, and is of this archive."""
    try:
        same = derived.fits(index, sha256, whole=True)
        return same and open_index(index).archive_bytes == archive.stat().st_size
    except ArchiveError:
        return False
