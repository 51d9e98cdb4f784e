"""SampledListing: a fixed number of rows of a big Parquet dataset, at even steps; the files are never downloaded whole.

1. `prepare` lists the hub repository at one commit, and reads how many rows each matching file has, from its footer.
   plan.json keeps both: from then on the dataset is what it was at that commit, whatever upstream does.
2. Shard k is made of the chosen rows k * rows_per_shard and following. Of each file it reads, by HTTP Range, the
   columns that the reader needs of the row groups that hold a chosen row.
"""

from __future__ import annotations

import logging
import re
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate, groupby
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from datakit import readers
from datakit.catalogue.manifest import Manifest
from datakit.engine.stage import Role, Stage
from datakit.engine.work import Out, Work
from datakit.errors import Incomplete, ManifestError, SourceError
from datakit.formats.parquetrows import UnreadableRow, batch_rows
from datakit.records.record import encode
from datakit.records.tables import Rows, as_batches
from datakit.storage import sealed
from datakit.storage.fingerprint import fingerprint
from datakit.web.addresses import HubFile
from datakit.web.downloads import with_retries
from datakit.web.ranged import Changed, RangedFile
from datakit.web.transfers import hub_files

log = logging.getLogger(__name__)

_PLAN, _BEGUN = "plan.json", "plan.part.json"
CONNECTIONS = 8  # that read footers
SAVED_EVERY = 64  # footers; a killed job loses at most as many
TAIL_BYTES = 64 << 10  # of a file's end, which most often hold its whole footer
BATCH = 4096  # rows that are decoded at once
_MAGIC = b"PAR1"


@dataclass(frozen=True)
class _File:
    """A file of the plan: what the hub and its footer say of it."""

    path: str
    size_bytes: int
    etag: str
    rows: int
    footer_bytes: int


@dataclass(frozen=True)
class _Plan:
    """The files that are sampled, in the order in which their rows are counted."""

    hub: str
    commit: str
    glob: str
    files: list[_File]


@dataclass(frozen=True, kw_only=True)
class SampledListing(Stage):
    """Lists `n_rows` rows of a dataset of Parquet files, the first, the last, and others at even steps between them.

    The manifest's `files` is a glob in the hub repository. Keys are `<dataset>-<number among the chosen>`; the
    attributes `file` and `row` say where a row stands. A trial of N rows chooses N at the most, of the first N rows of
    each file.
    """

    role: ClassVar[Role] = "list"
    version: ClassVar[int] = 1
    streams: ClassVar[bool] = True
    n_rows: int  # rows that are chosen; all of them when the dataset has fewer
    rows_per_shard: int = 10_000

    def identity(self, manifest: Manifest) -> dict[str, Any]:
        return {
            **super().identity(manifest),
            "reader": manifest.reader,
            "reader_version": readers.load(manifest).VERSION,
            "files": manifest.annotations.files,
        }

    def expects(self, rows: int | None) -> int:
        return self.n_rows if rows is None else min(rows, self.n_rows)

    def prepare(self, work: Work) -> None:
        """Plans, unless there is a plan. Footers that an earlier run read are not fetched again."""

        def warn_of_waiting() -> None:
            log.warning("waiting for another job, which plans %s", work.manifest.name)

        # Without the lock two jobs could plan upstream at two commits.
        with work.store.lock(work.path(".plan.lock"), on_wait=warn_of_waiting):
            self._plan(work)

    def _plan(self, work: Work) -> None:
        if _current_plan(work) is not None:
            work.store.remove(work.path(_BEGUN))  # a kill may have left it
            return
        about = work.manifest
        glob, revision = _glob(about), about.pinned.commits.get(about.hub, about.revision)
        pattern = str(HubFile(repo=about.hub, revision=revision, path=glob))
        commit, there = with_retries(
            lambda: hub_files(about.hub, revision, work.hosts), f"{pattern!r} could not be listed"
        )
        found = sorted((path.split("/"), *there[path]) for path in there if _matches(path, glob))
        if not found:
            raise SourceError(
                f"{about.hub!r} has no file {glob!r} at commit {commit}: see whether upstream has moved its files, "
                "and name them in the manifest's annotations.files, or an older commit in its revision"
            )
        read = {_file_identity(file): file for name in (_PLAN, _BEGUN) for file in _files_of_plan(work, name)}
        todo = [("/".join(path), size, etag) for path, size, etag in found]
        missing = [entry for entry in todo if entry not in read]
        log.info("%s: %d files at commit %s, %d footers to read", about.name, len(todo), commit, len(missing))
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            for at in range(0, len(missing), SAVED_EVERY):
                more = pool.map(lambda entry: _plan_file(work, commit, *entry), missing[at : at + SAVED_EVERY])
                read |= {_file_identity(file): file for file in more}
                _write_plan(
                    work, _BEGUN, _Plan(about.hub, commit, glob, [read[entry] for entry in todo if entry in read])
                )
        _write_plan(work, _PLAN, _Plan(about.hub, commit, glob, [read[entry] for entry in todo]))
        work.store.remove(work.path(_BEGUN))

    def shards(self, work: Work) -> list[int]:
        plan = _current_plan(work)
        if plan is None:
            raise Incomplete(f"{work.manifest.name!r} isn't listed yet: run `datakit fetch {work.manifest.name}`")
        return list(range(-(-self._n_chosen(plan, work.limit) // self.rows_per_shard)))

    def inputs(self, work: Work, shard: int) -> dict[str, str] | None:
        """The etags of a shard's files, and the row counts of all files, which decide what is chosen."""
        plan = _current_plan(work)
        if plan is None:
            return None
        found = {plan.files[nth] for nth, _ in self._chosen_rows(plan, work.limit, shard)}
        counts = fingerprint([[file.path, file.rows] for file in plan.files])
        return {"rows of all files": counts, **{file.path: file.etag for file in sorted(found, key=_file_identity)}}

    def schema(self, rows: Rows, manifest: Manifest) -> pa.Schema:
        known: pa.Schema = readers.load(manifest).SCHEMA
        return known.append(pa.field("file", pa.string())).append(pa.field("row", pa.int64()))

    def rows(self, rows: Rows, work: Work, out: Out) -> Iterator[pa.RecordBatch]:
        schema = self.schema(rows, work.manifest)
        yield from as_batches(self._records(rows.shard, work, out), schema)

    def _records(self, shard: int, work: Work, out: Out) -> Iterator[dict[str, Any]]:
        plan = _current_plan(work)
        if plan is None:
            raise Incomplete(f"{work.path(_PLAN)} is gone: run `datakit fetch {work.manifest.name}` again")
        read = readers.load(work.manifest).read
        number = shard * self.rows_per_shard
        for nth, wanted in self._chosen_rows(plan, work.limit, shard):
            file = plan.files[nth]
            for row, found in zip(wanted, _read_file(work, plan, file, wanted), strict=True):
                record = found.reason if isinstance(found, UnreadableRow) else read(found, number)
                if isinstance(record, str):
                    out.reject(record)
                else:
                    yield {
                        "key": f"{work.manifest.key}-{number:09d}",
                        "messages": encode(record.messages).decode(),
                        "images": [],
                        **record.attrs,
                        "file": file.path,
                        "row": row,
                    }
                number += 1

    def _n_chosen(self, plan: _Plan, limit: int | None) -> int:
        return min(self.n_rows, sum(_row_counts(plan, limit)), *([] if limit is None else [limit]))

    def _chosen_rows(self, plan: _Plan, limit: int | None, shard: int) -> Iterator[tuple[int, list[int]]]:
        """The chosen rows of a shard: the index of a file in the plan, and its row numbers, file by file."""
        ends = list(accumulate(_row_counts(plan, limit)))
        k = self._n_chosen(plan, limit)
        first = shard * self.rows_per_shard
        numbers = evenly_spaced(ends[-1], k, first, min(first + self.rows_per_shard, k))
        for nth, in_file in groupby(numbers, lambda number: bisect_right(ends, number)):
            before = ends[nth - 1] if nth else 0
            yield nth, [number - before for number in in_file]


def evenly_spaced(n: int, k: int, start: int = 0, stop: int | None = None) -> list[int]:
    """Numbers `start` to `stop` of k of the rows 0 to n - 1: the first, the last, and others at even steps.

    In whole numbers. VILA's float32 linspace has steps of 352 to 384 rows where 378 are due, and ends behind the last
    row for half of all n (sft/preprocess_flan.py; docs/upstreams.md U40).
    """
    chosen = range(k)[start:stop]
    return [i * (n - 1) // (k - 1) for i in chosen] if k > 1 else [0 for _ in chosen]


def _row_counts(plan: _Plan, limit: int | None) -> list[int]:
    return [file.rows if limit is None else min(file.rows, limit) for file in plan.files]


def _glob(about: Manifest) -> str:
    files = about.annotations.files
    if not isinstance(files, str) or "://" in files or not about.hub:
        raise ManifestError(
            f"manifest {about.name!r}: a sample is taken of the files of a hub repository that match a pattern "
            f"such as '*_data/*.parquet', and annotations.files is {files!r}"
        )
    return files


def _matches(path: str, glob: str) -> bool:
    """Whether a path matches a pattern, whose `*` doesn't match a slash."""
    names, patterns = path.split("/"), glob.split("/")
    return len(names) == len(patterns) and all(map(fnmatchcase, names, patterns))


def _file_identity(file: _File) -> tuple[str, int, str]:
    return file.path, file.size_bytes, file.etag


# The plan


def _current_plan(work: Work) -> _Plan | None:
    """The plan beside the shards; None when there is none, or it isn't what the manifest asks for today."""
    plan = _read_plan(work, _PLAN)
    about = work.manifest
    if plan is None or (plan.hub, plan.glob) != (about.hub, about.annotations.files):
        return None
    pinned = about.pinned.commits.get(about.hub, about.revision)
    return None if re.fullmatch(r"[0-9a-f]{40}", pinned) and pinned != plan.commit else plan


def _files_of_plan(work: Work, name: str) -> list[_File]:
    """The files of a plan, whole or begun, be it for another commit."""
    plan = _read_plan(work, name)
    return plan.files if plan is not None else []


def _read_plan(work: Work, name: str) -> _Plan | None:
    return sealed.read(work.store, work.path(name), "plan", _Plan)


def _write_plan(work: Work, name: str, plan: _Plan) -> None:
    sealed.write(work.store, work.path(name), "plan", plan)


def _plan_file(work: Work, commit: str, path: str, size_bytes: int, etag: str) -> _File:
    """What the footer of a file says."""
    address = str(HubFile(repo=work.manifest.hub, revision=commit, path=path))
    with RangedFile(address, hosts=work.hosts, etag=etag, size_bytes=size_bytes) as file:
        footer = _footer(file, TAIL_BYTES)
        about = _metadata(work, file, footer)
    return _File(path, size_bytes, etag, about.num_rows, len(footer))


# A file


def _footer(file: RangedFile, guess_bytes: int) -> bytes:
    """The footer of a Parquet file, with its length and mark at the end."""
    tail = file.fetch(max(0, file.size_bytes - guess_bytes), file.size_bytes) if file.size_bytes else b""
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != _MAGIC or length + len(_MAGIC) > file.size_bytes:
        page = "a web page" if b"</html" in tail.lower() else "no Parquet, or cut short"
        raise SourceError(f"{file.address!r} is {page}: {_WAY_ON}")
    if length > len(tail):
        tail = file.fetch(file.size_bytes - length, file.size_bytes - len(tail)) + tail
    return tail[-length:]


_WAY_ON = "look at it on the hub; if upstream has mended it since, `datakit pin` takes the newer commit"


def _metadata(work: Work, file: RangedFile, footer: bytes) -> pq.FileMetaData:
    """The footer's contents. Raises SourceError unless the columns that the reader needs are there, as texts."""
    try:
        metadata = pq.read_metadata(pa.BufferReader(footer))
        schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"the footer of {file.address!r} is damaged ({_one_line(error)}): {_WAY_ON}") from error
    for name in readers.load(work.manifest).COLUMNS:
        kinds = [field.type for field in schema if field.name == name]
        if len(kinds) != 1 or not (pa.types.is_string(kinds[0]) or pa.types.is_large_string(kinds[0])):
            had = ", ".join(f"{field.name} {field.type}" for field in list(schema)[:20])
            raise SourceError(
                f"{file.address!r} should have one column {name!r} of texts, and has {had}: upstream changed its "
                "format, so pin the revision that datakit reads"
            )
    return metadata


def _read_file(work: Work, plan: _Plan, about: _File, wanted: list[int]) -> Iterator[dict[str, Any] | UnreadableRow]:
    """Rows of a file in rising order, each as its columns' values; one batch of one row group is in memory."""
    columns = list(readers.load(work.manifest).COLUMNS)
    address = str(HubFile(repo=plan.hub, revision=plan.commit, path=about.path))
    try:
        with RangedFile(address, hosts=work.hosts, etag=about.etag, size_bytes=about.size_bytes) as file:
            metadata = _metadata(work, file, _footer(file, about.footer_bytes))
            ends = list(accumulate(metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)))
            groups = {g: list(rows) for g, rows in groupby(wanted, lambda row: bisect_right(ends, row))}
            file.ahead(span for g in groups for span in _spans(metadata.row_group(g), columns))
            parquet = pq.ParquetFile(file, metadata=metadata, buffer_size=1 << 20, pre_buffer=False)
            for group, rows in groups.items():
                at = ends[group] - metadata.row_group(group).num_rows
                before = file.bytes_read
                yield from read_rows_of_group(parquet, group, columns, [row - at for row in rows])
                work.progress.bytes(work.step, file.bytes_read - before)
    except Changed as error:
        raise Changed(
            f"{address!r} isn't the file that was planned with: remove {work.store.root}/{work.path(_PLAN)} and run "
            "the same command again; only what came of changed files is made anew"
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{address!r} is damaged ({_one_line(error)}): {_WAY_ON}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _spans(group: Any, columns: list[str]) -> Iterator[tuple[int, int]]:
    """The byte ranges of a row group's column chunks."""
    for column in range(group.num_columns):
        chunk = group.column(column)
        if chunk.path_in_schema in columns:
            begins = [at for at in (chunk.dictionary_page_offset, chunk.data_page_offset) if at]
            yield min(begins), min(begins) + chunk.total_compressed_size


def read_rows_of_group(parquet: pq.ParquetFile, group: int, columns: list[str], rows: list[int]) -> Iterator[Any]:
    """Rows of a row group, by their rising numbers in it; nothing after the last of them is read."""
    at, left = 0, iter(rows)
    row = next(left, None)
    for batch in parquet.iter_batches(BATCH, row_groups=[group], columns=columns, use_threads=False):
        here = []
        while row is not None and row < at + batch.num_rows:
            here.append(row - at)
            row = next(left, None)
        yield from batch_rows(batch.take(pa.array(here, pa.int64())))
        at += batch.num_rows
        if row is None:
            return
