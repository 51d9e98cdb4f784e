"""Annotations: upstream's rows as they are in its files, before a reader makes records of them.

    json, cut       each file is planned in one pass, then read by runs of rows; rows are numbered through all files
    json            one file, or one member of a zip, is a shard
    parquet         one file is a shard (datakit/formats/parquetrows.py)
    webdataset      one tar is a shard (datakit/formats/webdataset.py)

The plans are in plan.json of the step `list`. A trial of `limit` rows takes that many of each file.
"""

from __future__ import annotations

import os
import posixpath
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from datakit.catalogue.manifest import Manifest
from datakit.engine.work import Work
from datakit.errors import DownloadError, Incomplete, ManifestError, NoSuchFile, SourceError, shortlist
from datakit.formats import archives, jsonfile
from datakit.readers import About
from datakit.storage import sealed
from datakit.storage.refusals import storage_errors
from datakit.storage.store import Sink, atomic_file, file_lock, sweep, temporary_file
from datakit.web import derived
from datakit.web.sidecars import Downloaded

_PLAN = "list/plan.json"
_MAX_JSON_BYTES = 16 << 30  # of a JSON inside an archive
INSIDE = ".inside"  # suffix of the file that such a JSON is extracted to, after the archive's name


class _PlannedFile(msgspec.Struct, frozen=True):
    """The plan of a file, and the sha256 of the bytes that it was made from."""

    sha256: str
    plan: jsonfile.Plan


def prepare(work: Work) -> None:
    """Downloads and plans JSON that is cut, and the files beside others. Raises SourceError for a broken file."""
    rows = work.manifest.annotations
    if rows.cut:
        plans = _read_plans(work)
        for file in rows.file_list():
            sha256 = _download(work, file).sha256
            if file not in plans or plans[file].sha256 != sha256:
                plans[file] = _plan_file(work, file, sha256)
        ours = {file: plans[file] for file in rows.file_list()}
        if _read_plans(work) != ours:
            sealed.write(work.store, f"{work.folder}/{_PLAN}", "files", ours)
    if rows.beside:
        for file in rows.file_list():
            _download_beside(work, file)


def shards(work: Work) -> list[int]:
    """The dataset's shards. Raises Incomplete before the files are planned."""
    rows = work.manifest.annotations
    if not rows.cut:
        return rows.numbers()
    return list(range(sum(_n_shards(work, n) for n in row_counts(work).values())))


def row_counts(work: Work) -> dict[str, int]:
    """The number of rows of each file, for JSON that is cut. Raises Incomplete before the files are planned."""
    return {file: kept.plan.n_rows for file, kept in _planned_files(work).items()}


def file_of(work: Work, shard: int) -> str:
    """The file that a shard is read from."""
    return _cut_of(work, shard).file if work.manifest.annotations.cut else work.manifest.file_of(shard)


def inputs(work: Work, shard: int) -> dict[str, str] | None:
    """The sha256 of each file of a shard; None when that isn't known without the network."""
    rows = work.manifest.annotations
    if rows.cut:
        try:
            cut = _cut_of(work, shard)
        except Incomplete:
            return None
        file = cut.file
        here = work.sidecar(
            work.manifest.address(file)
        )  # None, or the file as it is now, which may not be the one that was planned
        found = {file: here["sha256"] if here else cut.kept.sha256}
        if cut.rows_before:  # rows are numbered through all files
            found["rows before"] = str(cut.rows_before)
    else:
        file = work.manifest.file_of(shard)
        known = work.sidecar(work.manifest.address(file))
        if known is None:
            return None
        found = {file: known["sha256"]}
    if rows.beside:
        near = ((name, work.sidecar(work.manifest.address(name))) for name in names_beside(work.manifest, file))
        beside = next(((name, known["sha256"]) for name, known in near if known), None)
        if beside is None:
            return None
        found |= [beside]
    return found


def about(work: Work, shard: int, separator: str = "\n") -> About:
    """What a reader is told about a shard's file."""
    rows = work.manifest.annotations
    file = file_of(work, shard)
    beside = _download_beside(work, file).read_bytes() if rows.beside else None
    return About(work.manifest.name, file, beside, rows.columns, separator)


def numbered_rows(work: Work, shard: int) -> Iterator[tuple[int, Any]]:
    """(number, row) of a shard: its number in the dataset where JSON is cut, else in the shard."""
    rows = work.manifest.annotations
    if rows.cut:
        yield from _cut_rows(work, shard)
        return
    file = work.manifest.file_of(shard)
    path = _download(work, file).path
    found: Iterator[Any]
    try:
        if rows.format == "json":
            with _open_json(work, path) as json:
                yield from islice(enumerate(row for _, run in jsonfile.chunks(json) for row in run), work.limit)
            return
        if rows.format == "parquet":
            from datakit.formats import parquetrows

            found = parquetrows.rows(path)
        else:
            from datakit.formats import webdataset

            found = webdataset.rows(path)
        yield from islice(enumerate(found), work.limit)
    except SourceError as error:
        raise work.distrust(work.manifest.address(file), error) from error


def _cut_rows(work: Work, shard: int) -> Iterator[tuple[int, Any]]:
    cut = _cut_of(work, shard)
    plan = cut.kept.plan
    done = _download(work, cut.file)
    if done.sha256 != cut.kept.sha256:
        raise Incomplete(f"{cut.file} was changed since it was planned: run the same command again")
    path = _json_path(work, done.path, done.sha256)
    per_shard = work.manifest.annotations.rows_per_shard or 1
    start, stop = cut.within * per_shard, min((cut.within + 1) * per_shard, _within_limit(work, plan.n_rows))
    for number, row in jsonfile.read_rows(path, plan, start, stop):
        yield cut.rows_before + number, row


class _Cut(NamedTuple):
    """A shard of JSON that is cut: its file, its number within that file, and the rows of the files before."""

    file: str
    kept: _PlannedFile
    rows_before: int
    within: int


def _cut_of(work: Work, shard: int) -> _Cut:
    first = 0
    for file, kept in _planned_files(work).items():
        here = _n_shards(work, kept.plan.n_rows)
        if shard < here:
            return _Cut(file, kept, first, shard)
        shard -= here
        first += kept.plan.n_rows
    raise Incomplete(f"{work.manifest.name!r} has no shard {shard!r} any more: upstream's files have fewer rows now")


def _planned_files(work: Work) -> dict[str, _PlannedFile]:
    """The plans of all files, in their order. Raises Incomplete while one isn't planned."""
    plans, files = _read_plans(work), work.manifest.annotations.file_list()
    if any(file not in plans for file in files):
        raise Incomplete(f"{work.manifest.name!r} isn't listed yet: run `datakit fetch {work.manifest.name}`")
    return {file: plans[file] for file in files}


def _n_shards(work: Work, n_rows: int) -> int:
    return -(-_within_limit(work, n_rows) // (work.manifest.annotations.rows_per_shard or 1))


def _within_limit(work: Work, n_rows: int) -> int:
    return n_rows if work.limit is None else min(n_rows, work.limit)


def _download(work: Work, file: str) -> Downloaded:
    try:
        return work.download(work.manifest.address(file))
    except NoSuchFile as error:
        if work.manifest.annotations.shards is None:
            raise
        said = str(error).removesuffix(".")
        raise NoSuchFile(
            f"{said}{'' if said.endswith('?') else '.'} If upstream never had it, leave it out with --shards, or write "
            "its number into annotations.absent of the manifest"
        ) from error


def _plan_file(work: Work, file: str, sha256: str) -> _PlannedFile:
    address = work.manifest.address(file)
    try:
        path = _json_path(work, work.local(address), sha256)
        return _PlannedFile(sha256, jsonfile.plan(path, rows_per_shard=work.manifest.annotations.rows_per_shard or 1))
    except SourceError as error:
        raise work.distrust(address, error) from error


def _read_plans(work: Work) -> dict[str, _PlannedFile]:
    """The plans by file; empty when plan.json is missing or damaged."""
    return dict(sealed.read(work.store, f"{work.folder}/{_PLAN}", "files", dict[str, _PlannedFile]) or {})


# JSON inside an archive, and files beside a file


def _json_path(work: Work, path: Path, sha256: str) -> Path:
    """The JSON of a download: itself, or the member of it that the manifest names, taken out once."""
    inside = work.manifest.annotations.inside
    if not inside:
        return path
    out = path.with_name(f"{path.name}{INSIDE}{Path(inside).suffix}")
    with file_lock(out.with_name(f"{out.name}.lock")):
        if not derived.fits(out, sha256):
            derived.remove(out)
            with atomic_file(out) as sink:
                _extract_member(path, inside, sink)
            derived.declare(out, sha256)
    return out


@contextmanager
def _open_json(work: Work, path: Path) -> Iterator[Path]:
    """The JSON of a download, for a file that is read only once."""
    inside = work.manifest.annotations.inside
    if not inside:
        yield path
        return
    folder = path.parent
    if not os.access(folder, os.W_OK):  # a root that can only be read
        folder = Path(tempfile.gettempdir())
        sweep(folder)
    with temporary_file(folder / f"{path.name}{INSIDE}", suffix=Path(inside).suffix) as (raw, out):
        _extract_member(path, inside, Sink(raw, out))
        with storage_errors(out):
            raw.flush()
        yield out


def _extract_member(path: Path, inside: str, sink: Sink) -> None:
    """Writes a member of an archive to a file. Raises ManifestError unless exactly one has that name."""
    ending = inside.removeprefix("*") if inside.startswith("*") else None
    named = [member for member in archives.members(path) if ".json" in member.name or member.name == inside]
    found = [member for member in named if member.name == inside or (ending and member.name.endswith(ending))]
    if len(found) != 1:
        there = shortlist(member.name for member in named) or "none"
        raise ManifestError(
            f"{str(path)!r} has {len(found)} members {inside!r} where one was expected; of JSON it has {there}. "
            "Name the one that is meant in annotations.inside of the manifest"
        )
    with path.open("rb", buffering=0) as file:
        for piece in archives.pieces(file, found[0], max_bytes=_MAX_JSON_BYTES):
            sink.write(piece)


def names_beside(manifest: Manifest, file: str) -> list[str]:
    """The files that may be beside a file, in the order in which they are tried."""
    return [posixpath.join(posixpath.dirname(file), name) for name in manifest.annotations.beside]


def _download_beside(work: Work, file: str) -> Path:
    """The first of the files beside a file that can be downloaded. Raises DownloadError with the error of each."""
    near = [work.manifest.address(name) for name in names_beside(work.manifest, file)]
    if known := next((address for address in near if work.sidecar(address)), None):
        near = [known]
    refusals = []
    for address in near:
        try:
            return work.download(address).path
        except DownloadError as error:
            refusals.append(str(error))
    raise DownloadError("; ".join(refusals))
