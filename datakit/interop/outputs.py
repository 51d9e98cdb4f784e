"""Outputs: a folder that img2dataset filled, looked up by URL and never trusted.

1. `Output.open` goes through the shards once: the Parquet (or, where a run was cut, the JSON of each sample that is
   whole) says what became of each URL, and the headers of the tar say where its picture stands.
2. For each URL a digest of 16 bytes and four numbers are kept, sorted: 30 bytes a row.
3. `find` looks a URL up and takes its picture out of the tar, the folder or the Parquet.

A shard without `_stats.json` is one that img2dataset didn't finish: what is whole in it counts, the rest isn't there.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from datakit.errors import ArchiveError, SourceError, UsageError
from datakit.formats import archives
from datakit.formats.members import MAX_MEMBER_BYTES, STORED, pread
from datakit.interop.causes import outcome_of
from datakit.web.hosts import Hosts, RefusedUrl

log = logging.getLogger(__name__)

EXTENSIONS = ("jpg", "png", "webp")  # encode_format: the ending of a picture, and the column of its bytes
BLOCK = 512
MAX_META_BYTES = 1 << 20  # of a sample's JSON
MAX_GROUP_BYTES = 2 << 30  # of the pictures in one row group; img2dataset puts 100 into one
_SHARD = re.compile(r"([0-9]{1,18})(\.parquet|\.tar|\.tfrecord|_stats\.json)?")
_SAMPLE = re.compile(rf"([0-9]{{1,19}})\.({'|'.join(EXTENSIONS)}|json)")
_WEB = re.compile(r"https?://", re.IGNORECASE)

Numbers = npt.NDArray[Any]
Form = Literal["webdataset", "files", "parquet"]


@dataclass(frozen=True, slots=True)
class UrlResult:
    """The result of a URL in an img2dataset output."""

    outcome: str
    status: int
    data: bytes | None
    """The picture; only when the outcome is ok."""


@dataclass(slots=True)
class _Shard:
    """One shard: where it is, and how the name of a picture is made from its place."""

    name: Path
    form: Form
    finished: bool
    ext: str = "jpg"
    first_key: int = 0  # of a `files` shard; places count from it
    width: int = 0  # of its keys, in digits


class _Meta(msgspec.Struct):
    url: str
    key: str
    status: str | None = None
    error_message: str | None = None


_KINDS = {
    "hi": "Q",  # the first half of a URL's digest
    "lo": "Q",
    "shard": "I",
    "place": "I",  # a block of the tar, a row of the Parquet, or a key counted from the shard's first
    "size": "I",
    "code": "H",  # of the outcome; 0 is ok
}


class _Columns:
    """The index while it grows, URLs in order of arrival: one block of memory a column, so none is lost in gaps."""

    def __init__(self) -> None:
        self._arrays = {name: array(kind) for name, kind in _KINDS.items()}

    def add(self, shard: int, rows: list[tuple[bytes, int, int, int]]) -> None:
        """Rows of (digest, place, size, code)."""
        if not rows:
            return
        digests, places, sizes, codes = zip(*rows, strict=True)
        halves = np.frombuffer(b"".join(digests), ">u8").reshape(-1, 2)
        values = (halves[:, 0], halves[:, 1], np.full(len(rows), shard), places, sizes, codes)
        for (name, kind), column in zip(_KINDS.items(), values, strict=True):
            self._arrays[name].frombytes(np.array(column, kind).tobytes())

    def extend(self, other: _Columns) -> None:
        for name, column in self._arrays.items():
            column.extend(other._arrays[name])

    def sorted(self) -> dict[str, Numbers]:
        """Columns sorted by digest, each URL once: its first success, or else its first failure. Empties itself.

        One column at a time is copied: 20 M URLs need 0.6 GB, and must not need twice that while they are sorted.
        """
        columns = {name: np.frombuffer(self._arrays.pop(name), kind) for name, kind in _KINDS.items()}
        order = np.argsort(columns["hi"], kind="stable").astype(np.uint32)
        columns["hi"] = columns["hi"][order]
        equal = columns["hi"][1:] == columns["hi"][:-1]
        twice = np.zeros(len(order), bool)
        twice[1:] |= equal
        twice[:-1] |= equal
        tied = np.flatnonzero(twice)
        theirs = order[tied]
        keys = (columns["code"][theirs] != 0, columns["lo"][theirs], columns["hi"][tied])
        order[tied] = theirs[np.lexsort(keys)]  # stable too, so of two successes the first one stays first
        columns["lo"] = columns["lo"][order]
        equal &= columns["lo"][1:] == columns["lo"][:-1]
        again = np.flatnonzero(equal) + 1
        for name, column in columns.items():
            whole = column if name in ("hi", "lo") else column[order]
            columns[name] = np.delete(whole, again) if len(again) else whole
        return columns


class Output:
    """The URLs of an img2dataset output folder. Not for several threads at once.

    `counts` says what was met: `rows`, `duplicates`, `missing_pictures` (said to be there, and not), `odd_rows`
    (no URL or no key), `unfinished_shards` and `unreadable_shards` (their Parquet). Duplicates: the first success wins.
    Pictures are read fastest when URLs are asked for in the order in which they were downloaded.
    """

    def __init__(self, folder: Path | None, *, hosts: Hosts | None = None, refused: Mapping[bytes, str] = {}) -> None:
        """`open` is for folders of others; with `hosts` it is one of our own runs.

        Of ours, URLs were asked for as `hosts.checked_url` gives them, and those `refused` (digest: outcome) never
        reached img2dataset; without a folder none did.
        """
        self.counts: Counter[str] = Counter()
        self._hosts = hosts
        self._shards = _shards(folder) if folder is not None else []
        self._outcomes: list[tuple[str, int]] = [("ok", 200)]
        self._codes = {self._outcomes[0]: 0}
        self._table: tuple[int, pq.ParquetFile, Numbers] | None = None  # the Parquet that was read last
        self._group: tuple[int, pa.ChunkedArray] | None = None  # its row group that was
        columns = _Columns()
        for number in range(len(self._shards)):
            columns.extend(self._read_shard(number))
        columns.add(0, [(digest, 0, 0, self._code_of((outcome, 0))) for digest, outcome in refused.items()])
        self._columns = columns.sorted()
        self.counts["duplicates"] = self.counts["rows"] - self.counts["missing_pictures"] + len(refused) - len(self)

    @classmethod
    def open(cls, folder: str | Path) -> Output:
        """Indexes an output folder. Raises UsageError when it is none, SourceError when nothing in it is whole."""
        text = str(folder)
        if "://" in text:
            raise UsageError(f"{text!r} is not a local folder: copy img2dataset's output to a disk here first")
        path = Path(text).expanduser()
        if not path.is_dir():
            raise UsageError(f"{text!r} is not a folder: give the output_folder of an img2dataset run")
        output = cls(path)
        if not len(output) and output.counts["unreadable_shards"] == len(output._shards):
            raise SourceError(
                f"none of the {len(output._shards)} shards of {text!r} can be read: was img2dataset stopped before it "
                "finished one, or are the columns url, key and status missing from its Parquet files?"
            )
        return output

    def __len__(self) -> int:
        """How many different URLs it holds, with any outcome."""
        return len(self._columns["hi"])

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the index takes."""
        return sum(column.nbytes for column in self._columns.values())

    def find(self, url: str) -> UrlResult | None:
        """The result of a URL; None when the output doesn't hold it, or its picture is missing."""
        if self._hosts is not None:
            try:
                url = self._hosts.checked_url(url)
            except RefusedUrl as refused:
                return UrlResult(refused.outcome, 0, None)
        row = self._row(digest_of(url))
        if row is None:
            return None
        shard, place, size, code = (int(self._columns[name][row]) for name in ("shard", "place", "size", "code"))
        outcome, status = self._outcomes[code]
        if outcome != "ok":
            return UrlResult(outcome, status, None)
        try:
            data = self._picture(shard, place, size)
        except (ArchiveError, OSError, pa.ArrowException) as error:
            log.warning("%s: a picture can't be read: %s", self._shards[shard].name, error)
            return None
        if data is None:
            return None
        return UrlResult("ok", 200, data) if len(data) <= MAX_MEMBER_BYTES else UrlResult("too_large", 200, None)

    def _row(self, digest: bytes) -> int | None:
        his, los = self._columns["hi"], self._columns["lo"]
        hi, lo = np.frombuffer(digest, ">u8").astype(np.uint64)
        row = int(np.searchsorted(his, hi))
        while row < len(his) and his[row] == hi:
            if los[row] == lo:
                return row
            row += 1
        return None

    def _code_of(self, outcome: tuple[str, int]) -> int:
        if outcome not in self._codes:
            self._codes[outcome] = len(self._outcomes)
            self._outcomes.append(outcome)
        return self._codes[outcome]

    # Going through the shards.

    def _read_shard(self, number: int) -> _Columns:
        shard = self._shards[number]
        self.counts["unfinished_shards"] += not shard.finished
        pictures: dict[str, tuple[int, int]] = {}  # place and size, by key
        metas: dict[str, tuple[int, int]] = {}
        if shard.form == "webdataset":
            pictures, metas = _in_tar(shard)
        elif shard.form == "files":
            pictures, metas = _in_folder(shard)
        try:
            columns, counts = self._rows(number, _table(shard), pictures)
        except (pa.ArrowException, OSError, UnicodeDecodeError, SourceError) as error:
            # A run that was killed leaves no footer in the Parquet; each whole sample has its JSON.
            self.counts["unreadable_shards"] += 1
            log.warning("%s: its Parquet can't be read (%s); whole samples are taken one by one", shard.name, error)
            columns, counts = self._rows(number, _by_sample(shard, metas), pictures)
        self.counts.update(counts)
        return columns

    def _rows(
        self, number: int, batches: Iterator[list[_Meta | None]], pictures: dict[str, tuple[int, int]]
    ) -> tuple[_Columns, Counter[str]]:
        columns, counts = _Columns(), Counter[str]()
        in_table = self._shards[number].form == "parquet"
        start = 0
        for batch in batches:
            rows = []
            for at, meta in enumerate(batch, start):
                if meta is None:
                    counts["odd_rows"] += 1
                    continue
                counts["rows"] += 1
                outcome = outcome_of(meta.status, meta.error_message)
                place, size = (at, 0) if in_table else pictures.get(meta.key, (-1, 0))
                if not _WEB.match(meta.url):
                    outcome = ("refused_url", 0)  # img2dataset reads file:// too
                elif outcome[0] == "ok" and size > MAX_MEMBER_BYTES:
                    outcome = ("too_large", 200)
                if outcome[0] != "ok":
                    place = size = 0
                elif not 0 <= place < 1 << 32:
                    counts["missing_pictures"] += 1
                    continue
                rows.append((digest_of(meta.url), place, size, self._code_of(outcome)))
            start += len(batch)
            columns.add(number, rows)
        return columns, counts

    # Taking pictures out.

    def _picture(self, at: int, place: int, size: int) -> bytes | None:
        shard = self._shards[at]
        if shard.form == "parquet":
            return self._cell(at, place)
        if shard.form == "files":
            return _file(shard.name / f"{shard.first_key + place:0{shard.width}d}.{shard.ext}", MAX_MEMBER_BYTES)
        return _member(shard, place, size, MAX_MEMBER_BYTES)

    def _cell(self, at: int, row: int) -> bytes | None:
        shard = self._shards[at]
        if self._table is None or self._table[0] != at:
            table = pq.ParquetFile(shard.name.with_name(f"{shard.name.name}.parquet"))
            about = table.metadata
            ends = np.cumsum([about.row_group(n).num_rows for n in range(about.num_row_groups)])
            self._table, self._group = (at, table, ends), None
        _, table, ends = self._table
        group = int(np.searchsorted(ends, row, side="right"))
        if group == len(ends):
            return None
        if self._group is None or self._group[0] != group:
            about = table.metadata.row_group(group)
            columns = [about.column(n) for n in range(about.num_columns)]
            if sum(c.total_uncompressed_size for c in columns if c.path_in_schema == shard.ext) > MAX_GROUP_BYTES:
                return None
            self._group = None  # two at once would be twice the memory
            self._group = (group, table.read_row_group(group, columns=[shard.ext])[shard.ext])
        value: bytes | None = self._group[1][row - (int(ends[group - 1]) if group else 0)].as_py()
        return value


def digest_of(url: str) -> bytes:
    """A hash of a URL, 16 bytes."""
    return hashlib.blake2b(url.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _shards(folder: Path) -> list[_Shard]:
    """The shards of a folder by number. Raises UsageError when it is none of img2dataset's."""
    kinds: dict[str, set[str]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if named := _SHARD.fullmatch(entry.name):
                kind = named[2] or "/"
                if entry.is_dir() if kind == "/" else entry.is_file():  # so not a pipe either
                    kinds.setdefault(named[1], set()).add(kind)
    every = set().union(*kinds.values())
    again = "Run img2dataset again with output_format=webdataset, files or parquet"
    if ".tfrecord" in every:
        raise UsageError(f"{str(folder)!r} holds tfrecord files, which datakit doesn't read. {again}")
    found = []
    for number in sorted(kinds, key=lambda name: (int(name), name)):
        has, name = kinds[number], folder / number
        finished = "_stats.json" in has
        if ".tar" in has:
            found.append(_Shard(name, "webdataset", finished))
        elif "/" in has and (has - {"/"} or _has_samples(name)):
            found.append(_Shard(name, "files", finished))
        elif ".parquet" in has:
            found.append(_Shard(name, "parquet", finished))
    if not found and "_stats.json" in every:
        raise UsageError(f"{str(folder)!r} has statistics but no pictures (output_format=dummy). {again}")
    if not found:
        raise UsageError(
            f"{str(folder)!r} holds nothing of img2dataset's (00000.parquet with 00000.tar or 00000/): "
            "give the output_folder of a run"
        )
    return found


def _has_samples(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(_SAMPLE.fullmatch(entry.name) for entry in entries)


def _in_tar(shard: _Shard) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]]]:
    """Place (in blocks) and size of the pictures and of the JSONs that are whole, by key."""
    pictures: dict[str, tuple[int, int]] = {}
    metas: dict[str, tuple[int, int]] = {}
    try:
        for member in archives.members(shard.name.with_name(f"{shard.name.name}.tar")):
            named = _SAMPLE.fullmatch(member.name)
            if named and member.method == STORED and member.offset % BLOCK == 0:  # else it is a zip
                of_kind = metas if named[2] == "json" else pictures
                of_kind.setdefault(named[1], (member.offset // BLOCK, min(member.size_bytes, (1 << 32) - 1)))
    except (ArchiveError, OSError) as error:
        if pictures or not shard.finished:
            log.warning("%s: %d pictures are whole: %s", shard.name, len(pictures), error)
    return pictures, metas


def _in_folder(shard: _Shard) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]]]:
    pictures: dict[str, tuple[int, int]] = {}
    metas: dict[str, tuple[int, int]] = {}
    with os.scandir(shard.name) as entries:
        named = [match for entry in entries if (match := _SAMPLE.fullmatch(entry.name))]
    if not named:
        return pictures, metas
    endings = Counter(match[2] for match in named if match[2] != "json")
    shard.ext = endings.most_common(1)[0][0] if endings else "jpg"
    shard.first_key = min(int(match[1]) for match in named)
    shard.width = Counter(len(match[1]) for match in named).most_common(1)[0][0]
    for match in named:
        if match[2] in ("json", shard.ext) and len(match[1]) == shard.width:
            (metas if match[2] == "json" else pictures)[match[1]] = (int(match[1]) - shard.first_key, 0)
    return pictures, metas


def _table(shard: _Shard) -> Iterator[list[_Meta | None]]:
    """The rows of a shard's Parquet; None for one without a URL or a key."""
    path = shard.name.with_name(f"{shard.name.name}.parquet")
    with pq.ParquetFile(path) as table:
        kinds = {f.name: f.type for f in table.schema_arrow}
        for name in ("url", "key", "status"):
            if not (name in kinds and (pa.types.is_string(kinds[name]) or pa.types.is_large_string(kinds[name]))):
                raise SourceError(f"{str(path)!r} has no column {name!r} of text: is it img2dataset's?")
        if shard.form == "parquet":
            held = [e for e in EXTENSIONS if e in kinds and kinds[e] in (pa.binary(), pa.large_binary())]
            if not held:
                raise SourceError(f"{str(path)!r} holds no pictures, in none of the columns {', '.join(EXTENSIONS)}")
            shard.ext = held[0]
        message_type = kinds.get("error_message")
        columns = ["url", "key", "status"] + (
            ["error_message"] if message_type in (pa.string(), pa.large_string()) else []
        )
        for batch in table.iter_batches(batch_size=4096, columns=columns):
            values = [batch[name].to_pylist() for name in columns]
            yield [_Meta(*row) if row[0] and row[1] else None for row in zip(*values, strict=True)]


def _by_sample(shard: _Shard, metas: dict[str, tuple[int, int]]) -> Iterator[list[_Meta | None]]:
    """The rows of the samples that are whole, from their JSON; nothing for pictures in a Parquet."""
    for key, (place, size) in metas.items():
        try:
            if shard.form == "files":
                data = _file(shard.name / f"{key}.json", MAX_META_BYTES)
            else:
                data = _member(shard, place, size, MAX_META_BYTES)
            meta = msgspec.json.decode(data or b"", type=_Meta)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ArchiveError, OSError):
            yield [None]
            continue
        yield [meta if meta.key == key and meta.url else None]


def _member(shard: _Shard, place: int, size: int, max_bytes: int) -> bytes:
    tar = shard.name.with_name(f"{shard.name.name}.tar")
    with tar.open("rb", buffering=0) as file:
        member = archives.Member(tar.name, place * BLOCK, size, size, STORED)
        return archives.read(file, member, max_bytes=max_bytes)


def _file(path: Path, max_bytes: int) -> bytes | None:
    """The bytes of a plain file; None for a link, a pipe, one that is gone or above the ceiling."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode) or about.st_size > max_bytes:
            return None
        return pread(fd, about.st_size, 0)
    finally:
        os.close(fd)
