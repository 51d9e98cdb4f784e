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
from datakit.records.tables import LOCATED, LocatedPicture, Rows, failures, located_picture, with_images, with_pictures
from datakit.storage.fingerprint import json_value
from datakit.storage.store import file_lock
from datakit.upstream.finder import Finder, Found, archives_to_get, get_archives_message, open_index, sources_with
from datakit.web import derived
from datakit.web.downloads import check_unedited

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Locate(Stage):
    """Resolves `image` references to (archive, offset, size) by the manifest's [images.sources].

    Archives are downloaded once, indexed once, and never unpacked. Every row is kept; a picture that no archive
    holds has the outcome `missing`, a picture under no known prefix `no_source`, a picture of a source in `without`
    `left_out`, and `pack` drops such rows. When a picture was found under another extension than its reference has, and
    the manifest doesn't allow that, the row's `repairs` say so.
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
        identity = super().identity(manifest)
        for name in ("without", "any_extension"):  # the defaults aren't part of the identity
            if not identity[name]:
                del identity[name]
        return {**identity, "sources": rules}

    def sources(self, manifest: Manifest) -> dict[str, Source]:
        """The sources whose pictures are looked for."""
        return sources_with(manifest, self.without)

    def as_chosen(self, chosen: Chosen, recorded: dict[str, Any]) -> Locate:
        return replace(self, without=chosen.without, any_extension="extension" in chosen.repairs)

    def costs(self, rows: int | None, size_bytes: float, jobs: int, manifest: Manifest) -> Cost:
        return Cost(passed_bytes=size_bytes)  # pack writes about as much as the archives hold

    def check(self, work: Work) -> None:
        """Raises UsageError for an unknown source, DownloadError for archives that the user has to get."""
        check_sources(work.manifest, self.without)
        absent = archives_to_get(self.sources(work.manifest), work)
        if absent:
            raise DownloadError(get_archives_message(work.manifest.name, absent, self.without))

    def prepare(self, work: Work) -> None:
        self.check(work)
        for source in self.sources(work.manifest).values():
            for archive in source.archives():
                self._index_archive(archive, work)

    def _index_archive(self, archive: str, work: Work) -> None:
        done = work.download(archive, in_place=True)  # so that 200 GB of the user's aren't copied
        path = done.path
        index = archives.index_path(path)
        with file_lock(index.with_name(f"{index.name}.lock")):
            if not _index_fits(index, path, done.sha256):
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
                known = work.sidecar(archive)
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
            located, mended = [], []
            for row in batch["images"].to_pylist():
                found = [(image["ref"], finder(image["ref"])) for image in row]
                located.append([_with_place(ref, match) for ref, match in found])
                mended.append(any(isinstance(match, Found) and match.repaired for _, match in found))
                out.fail([why for why in failures(located[-1]) if why != "left_out"])  # a choice, not a fault
            yield with_pictures(with_repair(batch, mended), located, schema)


def _with_place(ref: str, found: Found | str) -> LocatedPicture:
    """Where a picture is, or its outcome."""
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
    """The fields of a source as JSON values."""
    return {name: json_value(getattr(source, name)) for name in source.__struct_fields__}


def _index_fits(index: Path, archive: Path, sha256: str) -> bool:
    """Whether an index is there, complete, and of this archive."""
    try:
        same = derived.fits(index, sha256, whole=True)
        return same and open_index(index).archive_bytes == archive.stat().st_size
    except ArchiveError:
        return False
