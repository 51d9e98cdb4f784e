"""Annotations: upstream's rows as they stand in its files, before a reader makes records of them.

    json, cut       each file is planned in one pass, then read by runs of rows; rows are numbered through all files
    json            one file, or one member of a zip, is a shard
    parquet         one file is a shard (datakit/formats/parquetrows.py)
    webdataset      one tar is a shard (datakit/formats/webdataset.py)

Plans stand beside the listing in plan.json. A trial of `limit` rows takes as many of each file.
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
from datakit.storage.store import Sink, locked, published, sweep, temporary
from datakit.web import derived
from datakit.web.sidecars import Downloaded

_PLAN = "list/plan.json"
_MAX_JSON_BYTES = 16 << 30  # of a JSON inside an archive
INSIDE = ".inside"  # what the name of such a JSON adds to its archive's


class _Kept(msgspec.Struct, frozen=True):
    """The plan of a file, and of which bytes."""

    sha256: str
    plan: jsonfile.Plan


def prepare(work: Work) -> None:
    """Downloads and plans JSON that is cut, and what stands beside files. Raises SourceError for what isn't whole."""
    rows = work.manifest.annotations
    if rows.cut:
        plans = _kept(work)
        for file in rows.file_list():
            sha256 = _download(work, file).sha256
            if file not in plans or plans[file].sha256 != sha256:
                plans[file] = _planned(work, file, sha256)
        ours = {file: plans[file] for file in rows.file_list()}
        if _kept(work) != ours:
            sealed.write(work.store, f"{work.folder}/{_PLAN}", "files", ours)
    if rows.beside:
        for file in rows.file_list():
            _beside(work, file)


def shards(work: Work) -> list[int]:
    """The shards there are. Raises Incomplete while nobody knows."""
    rows = work.manifest.annotations
    if not rows.cut:
        return rows.numbers()
    return list(range(sum(_shards(work, n) for n in counts(work).values())))


def counts(work: Work) -> dict[str, int]:
    """Rows by file of JSON that is cut. Raises Incomplete while nobody knows."""
    return {file: kept.plan.n_rows for file, kept in _planned_files(work).items()}


def file_of(work: Work, shard: int) -> str:
    """The file that a shard is read from."""
    return _cut(work, shard).file if work.manifest.annotations.cut else work.manifest.file_of(shard)


def inputs(work: Work, shard: int) -> dict[str, str] | None:
    """The files of a shard by sha256; None when that isn't known without the network."""
    rows = work.manifest.annotations
    if rows.cut:
        try:
            cut = _cut(work, shard)
        except Incomplete:
            return None
        file = cut.file
        here = work.known(work.manifest.address(file))  # another file by now than the one that was planned?
        found = {file: here["sha256"] if here else cut.kept.sha256}
        if cut.rows_before:  # rows are numbered through all files
            found["rows before"] = str(cut.rows_before)
    else:
        file = work.manifest.file_of(shard)
        known = work.known(work.manifest.address(file))
        if known is None:
            return None
        found = {file: known["sha256"]}
    if rows.beside:
        near = ((name, work.known(work.manifest.address(name))) for name in near_by(work.manifest, file))
        beside = next(((name, known["sha256"]) for name, known in near if known), None)
        if beside is None:
            return None
        found |= [beside]
    return found


def about(work: Work, shard: int, separator: str = "\n") -> About:
    """What a reader may know of a shard's file."""
    rows = work.manifest.annotations
    file = file_of(work, shard)
    beside = _beside(work, file).read_bytes() if rows.beside else None
    return About(work.manifest.name, file, beside, rows.columns, separator)


def numbered(work: Work, shard: int) -> Iterator[tuple[int, Any]]:
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
            with _json(work, path) as json:
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
    cut = _cut(work, shard)
    plan = cut.kept.plan
    done = _download(work, cut.file)
    if done.sha256 != cut.kept.sha256:
        raise Incomplete(f"{cut.file} was changed since it was planned: run the same command again")
    path = _member(work, done.path, done.sha256)
    per_shard = work.manifest.annotations.rows_per_shard or 1
    start, stop = cut.within * per_shard, min((cut.within + 1) * per_shard, _limited(work, plan.n_rows))
    for number, row in jsonfile.read_rows(path, plan, start, stop):
        yield cut.rows_before + number, row


class _Cut(NamedTuple):
    """A shard of files that are cut: which of its file's shards it is, and how many rows the files before have."""

    file: str
    kept: _Kept
    rows_before: int
    within: int


def _cut(work: Work, shard: int) -> _Cut:
    first = 0
    for file, kept in _planned_files(work).items():
        here = _shards(work, kept.plan.n_rows)
        if shard < here:
            return _Cut(file, kept, first, shard)
        shard -= here
        first += kept.plan.n_rows
    raise Incomplete(f"{work.manifest.name!r} has no shard {shard!r} any more: upstream's files have fewer rows now")


def _planned_files(work: Work) -> dict[str, _Kept]:
    """The plans of all files, in their order. Raises Incomplete while one isn't planned."""
    plans, files = _kept(work), work.manifest.annotations.file_list()
    if any(file not in plans for file in files):
        raise Incomplete(f"{work.manifest.name!r} isn't listed yet: run `datakit fetch {work.manifest.name}`")
    return {file: plans[file] for file in files}


def _shards(work: Work, n_rows: int) -> int:
    return -(-_limited(work, n_rows) // (work.manifest.annotations.rows_per_shard or 1))


def _limited(work: Work, n_rows: int) -> int:
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


def _planned(work: Work, file: str, sha256: str) -> _Kept:
    address = work.manifest.address(file)
    try:
        path = _member(work, work.local(address), sha256)
        return _Kept(sha256, jsonfile.plan(path, rows_per_shard=work.manifest.annotations.rows_per_shard or 1))
    except SourceError as error:
        raise work.distrust(address, error) from error


def _kept(work: Work) -> dict[str, _Kept]:
    """The plans beside the listing; none when they aren't as they were written."""
    return dict(sealed.read(work.store, f"{work.folder}/{_PLAN}", "files", dict[str, _Kept]) or {})


# What stands inside an archive, and beside a file


def _member(work: Work, path: Path, sha256: str) -> Path:
    """The JSON of a download: itself, or the member of it that the manifest names, taken out once."""
    inside = work.manifest.annotations.inside
    if not inside:
        return path
    out = path.with_name(f"{path.name}{INSIDE}{Path(inside).suffix}")
    with locked(out.with_name(f"{out.name}.lock")):
        if not derived.fits(out, sha256):
            derived.remove(out)
            with published(out) as sink:
                _take_out(path, inside, sink)
            derived.declare(out, sha256)
    return out


@contextmanager
def _json(work: Work, path: Path) -> Iterator[Path]:
    """The JSON of a download that is read once."""
    inside = work.manifest.annotations.inside
    if not inside:
        yield path
        return
    folder = path.parent
    if not os.access(folder, os.W_OK):  # a root that can only be read
        folder = Path(tempfile.gettempdir())
        sweep(folder)
    with temporary(folder / f"{path.name}{INSIDE}", suffix=Path(inside).suffix) as (raw, out):
        _take_out(path, inside, Sink(raw, out))
        with storage_errors(out):
            raw.flush()
        yield out


def _take_out(path: Path, inside: str, sink: Sink) -> None:
    """Writes the member of an archive to a file. Raises ManifestError when there is none of that name, or two."""
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


def near_by(manifest: Manifest, file: str) -> list[str]:
    """What may stand beside a file, in the order in which it is asked for."""
    return [posixpath.join(posixpath.dirname(file), name) for name in manifest.annotations.beside]


def _beside(work: Work, file: str) -> Path:
    """The first file beside it that is there. Raises DownloadError with what each of them answered."""
    near = [work.manifest.address(name) for name in near_by(work.manifest, file)]
    if known := next((address for address in near if work.known(address)), None):
        near = [known]
    refused = []
    for address in near:
        try:
            return work.download(address).path
        except DownloadError as error:
            refused.append(str(error))
    raise DownloadError("; ".join(refused))
