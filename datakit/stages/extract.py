"""Extract: pictures that the rows themselves hold, or loose files of a folder, into tars."""

from __future__ import annotations

import binascii
import errno
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from datakit import images, readers
from datakit.annotations import about, numbered
from datakit.archives.members import MAX_MEMBER_BYTES
from datakit.errors import BadImage, SourceError
from datakit.images.extensions import ENDINGS_IN_FOLDERS
from datakit.manifest import Manifest
from datakit.stage import Chosen, Cost, Role, Stage
from datakit.stages.locate import with_repair
from datakit.tables import LOCATED, LocatedPicture, Rows, failures, located_picture, with_images, with_places
from datakit.work import Out, Work

# The bytes of a reference, and whether they were found only by a repair; raises BadImage with the outcome.
Find = Callable[[str], tuple[bytes, bool]]
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Extract(Stage):
    """Takes the pictures of each row out of upstream's rows, and writes their bytes as they came, in row order.

    Every row is kept; a picture that won't do has its outcome instead of a place in the tar, and `pack` leaves such
    rows out: `missing` when there are no bytes, `outside` for a path that leaves the folder, and what
    `images.inspect` says of the others.
    """

    role: ClassVar[Role] = "fetch"
    version: ClassVar[int] = 2
    rows_per_part: ClassVar[int | None] = 10_000  # some GB of photographs
    tars: ClassVar[bool] = True
    reads_annotations: ClassVar[bool] = True
    any_extension: bool = False  # of loose files: what `datakit check --repair` turns on

    def identity(self, manifest: Manifest) -> dict[str, Any]:
        said = super().identity(manifest)
        return said if self.any_extension else {k: v for k, v in said.items() if k != "any_extension"}

    def as_chosen(self, chosen: Chosen, recorded: dict[str, Any]) -> Extract:
        return replace(self, any_extension="extension" in chosen.repairs)

    def costs(self, rows: int | None, size_bytes: float, jobs: int, manifest: Manifest) -> Cost:
        decoded_bytes = 0.75 * size_bytes  # out of base64
        return Cost(written_bytes=decoded_bytes, passed_bytes=decoded_bytes)

    def prepare(self, work: Work) -> None:
        source = work.manifest.images
        if source.by == "folder" and not Path(source.folder).is_dir():
            raise SourceError(
                f"the folder of pictures of {work.manifest.name!r}, {source.folder!r}, isn't there: "
                "bring it back, or write where it is now into images.folder of its manifest"
            )

    def inputs(self, work: Work, shard: int) -> dict[str, str] | None:
        if work.manifest.images.by != "folder":
            return {}  # the pictures come from the files that the listing names
        state = folder_state(work.manifest.images.folder, work.scratch)
        return None if state is None else {"folder": state}

    def schema(self, rows: Rows, manifest: Manifest) -> pa.Schema:
        return with_images(rows.schema(), LOCATED)

    @contextmanager
    def opened(self, parts: list[Rows], work: Work) -> Iterator[Find]:
        """One walk through upstream's rows for all the parts of a shard."""
        if work.manifest.images.by == "folder":
            yield Folder(work.manifest.images.folder, repair=self.any_extension)
        elif work.manifest.images.by == "inline" and parts:
            yield _Inline(numbered(work, parts[0].shard), work, parts[0].shard)
        else:
            yield _nowhere

    def rows(self, rows: Rows, work: Work, out: Out) -> Iterator[pa.RecordBatch]:
        schema = self.schema(rows, work.manifest)
        for batch in rows.batches(size=256):
            places, mended = [], []
            for key, refs in zip(batch["key"].to_pylist(), batch["images"].to_pylist(), strict=True):
                made = [_place(key, at, len(refs), one["ref"], out) for at, one in enumerate(refs)]
                places.append([place for place, _ in made])
                mended.append(any(repaired for _, repaired in made))
                out.fail(failures(places[-1]))
            work.progress.bytes(work.step, sum(p["size_bytes"] or 0 for row in places for p in row))
            yield with_places(with_repair(batch, mended), places, schema)


def _place(key: str, at: int, n: int, ref: str, out: Out) -> tuple[LocatedPicture, bool]:
    """Where picture `at` of the `n` of a row stands, once it is written, or why it doesn't; and if by a repair."""
    try:
        data, repaired = out.source(ref)
        ext, width, height = images.inspect(data)
    except BadImage as error:
        return located_picture(ref, error.reason), False
    name = f"{key}.{ext}" if n == 1 else f"{key}.{at}.{ext}"
    digest, extent = sha256(data).hexdigest(), out.add(name, data)
    place = located_picture(ref, "ok", **extent, checked=False, ext=ext, width=width, height=height, sha256=digest)
    return place, repaired


class _Inline:
    """Pictures by `<number of the row>.<nth>`, asked for in the order of the rows."""

    def __init__(self, rows: Iterator[tuple[int, Any]], work: Work, shard: int) -> None:
        self._rows = rows
        self._reader = readers.load(work.manifest)
        self._about = about(work, shard)
        self._dataset = work.manifest.name
        self._number = -1
        self._pictures: list[bytes | str] = []

    def __call__(self, ref: str) -> tuple[bytes, bool]:
        number, _, nth = ref.partition(".")
        if self._number != int(number):
            self._pictures = self._reader.pictures(self._row(int(number)), self._about)
        return decoded(self._pictures[int(nth)] if int(nth) < len(self._pictures) else b""), False

    def _row(self, wanted: int) -> Any:
        for number, row in self._rows:
            if number == wanted:
                self._number = number
                return row
        raise SourceError(
            f"row {wanted} of {self._dataset!r} was listed and isn't there any more, or rows are out of order: "
            f"make the listing anew with --rebuild"
        )


def _nowhere(ref: str) -> tuple[bytes, bool]:
    raise BadImage("missing", ref)


def decoded(picture: bytes | str) -> bytes:
    """The bytes of a picture; a str is base64, maybe a data URL. Raises BadImage.

    Line breaks and whatever else isn't base64's are passed over, as Python's b64decode does in upstreams' loaders; text
    that is no picture gives bytes that aren't one either.
    """
    if not picture:
        raise BadImage("missing", "no bytes")
    if len(picture) > MAX_MEMBER_BYTES:
        raise BadImage("too_large", f"{len(picture)} bytes, at most {MAX_MEMBER_BYTES}")
    if isinstance(picture, bytes):
        return picture
    try:
        start = _DATA_URL.match(picture)
        return binascii.a2b_base64(picture[start.end() :] if start else picture)
    except ValueError as error:
        raise BadImage("not_an_image", f"not base64: {error}") from error


def is_file(path: Path) -> bool:
    """Whether a file is there; no, for a name that none can have."""
    try:
        return path.is_file()
    except OSError:
        return False


class Folder:
    """Pictures by their path below a folder. What a path or a link names elsewhere is never opened.

    With `repair` one that isn't there is the one file that differs from it in its extension, if there is just one.
    """

    def __init__(self, folder: str, *, repair: bool) -> None:
        self._folder, self._repair = os.path.realpath(folder), repair

    def __call__(self, ref: str) -> tuple[bytes, bool]:
        try:
            return self._read(ref), False
        except BadImage as error:
            stem, dot, _ = ref.rpartition(".")
            if not self._repair or error.reason != "missing" or not dot:
                raise
            others = [stem + ending for ending in ENDINGS_IN_FOLDERS if is_file(Path(self._folder, stem + ending))]
            if len(others) != 1:  # two would be a guess
                raise
            return self._read(others[0]), True

    def _read(self, ref: str) -> bytes:
        if ref.startswith("/") or ".." in ref.split("/") or "\0" in ref:
            raise BadImage("outside", ref)
        try:
            path = Path(os.path.realpath(posixpath.join(self._folder, ref), strict=True))
            if not path.is_relative_to(self._folder):
                raise BadImage("outside", ref)
            there = path.stat()
            if not stat.S_ISREG(there.st_mode):
                raise BadImage("missing", ref)
            if there.st_size > MAX_MEMBER_BYTES:
                raise BadImage("too_large", f"{there.st_size} bytes, at most {MAX_MEMBER_BYTES}")
            return path.read_bytes()
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise SourceError(f"{ref!r} of the folder {self._folder!r} can't be read: {error}") from error
            raise BadImage("missing", ref) from error


_NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
_states: dict[tuple[str, str], tuple[dict[str, int], str]] = {}  # when the folders were changed, and the state


def folder_state(folder: str, without: Path | None = None) -> str | None:
    """A fingerprint of the names, sizes and times of change of a folder's files; None when it isn't there.

    `without` is a folder in it that doesn't count, such as the root that is being filled. A process walks through it
    once, and again when a folder in it has changed: a file that came, went or was renamed is noticed at once, one
    that was written in place by the next command.
    """
    folder, skipped = os.path.realpath(folder), os.path.realpath(without) if without else ""
    known, state = _states.get((folder, skipped), ({}, ""))
    if known and _stamps(known) == known:
        return state
    if not Path(folder).is_dir():
        return None
    stamps: dict[str, int] = {}
    found = []
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if str(Path(where, name)) != skipped]
        stamps[where] = Path(where).stat().st_mtime_ns
        for name in files:
            path = Path(where, name)
            about = path.stat() if is_file(path) else path.lstat()  # of a link, what it leads to
            found.append((os.fsencode(path.relative_to(folder)), about.st_size, about.st_mtime_ns))
    digest = sha256()
    for one in sorted(found):
        digest.update(b"%s\0%d %d\n" % one)
    _states[folder, skipped] = (stamps, digest.hexdigest())
    return digest.hexdigest()


def _stamps(folders: dict[str, int]) -> dict[str, int]:
    return {folder: Path(folder).stat().st_mtime_ns for folder in folders if Path(folder).is_dir()}
