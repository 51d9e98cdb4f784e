"""Where the pictures of rows are, and whether they are what they are called; nothing is copied.

In archives they are found by the archives' indexes, as `Locate` finds them, and their first kilobytes are read; `full`
reads each whole and walks its structure (datakit/images), which finds one that is cut short. What is damaged inside
the pixel data only decoding shows, at `build-mix`. Pictures by URL aren't looked at.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from datakit import images, readers
from datakit.engine.build import Build
from datakit.engine.work import Progress, Work
from datakit.errors import ArchiveError, BadImage
from datakit.formats import archives
from datakit.formats.members import DEFLATED
from datakit.images.extensions import TYPES, extension_of
from datakit.images.headers import readable_type
from datakit.upstream.finder import Finder, index_of, sources_with, table_name
from datakit.upstream.loose import Find, Folder, decode_picture

_HEAD_BYTES = 4096
_FEW = 0.1  # share of the references into an archive; when fewer are found, it is the wrong archive
_ENOUGH = 5  # references, to judge an archive by

Found = Iterator[tuple[str, object]]  # (finding, offending value)


@contextmanager
def pictures_of(build: Build, *, full: bool, progress: Progress) -> Iterator[Pictures]:
    """The pictures of a dataset, ready to be looked at; archives that aren't here are downloaded."""
    by, notes = build.manifest.images.by, list[str]()
    with ExitStack() as stack:
        step, mended = build.step_of("fetch"), "extension" in build.choices.repairs
        if by in ("path", "folder") and by in step.stage.finds:
            work = build.work(step, progress)
            step.stage.prepare(work)
            if by == "path":
                yield _InArchives(work, build.choices.without, mended, full, stack)
            else:
                yield _InFolder(Folder(build.manifest.images.folder, repair=True), mended, full)
            return
        if by == "inline":
            yield PicturesInRows(build, full)
            return
        if by == "url":
            notes = [f"pictures come by URL: none was looked at; `datakit doctor {build.manifest.name}` tries a sample"]
        elif by != "none":
            notes = [f"recipe {build.recipe!r} doesn't look for the pictures, so none was looked at"]
        yield Pictures(notes)


class Pictures:
    """Pictures that aren't looked at; the subclasses look at theirs."""

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes  # on the dataset as a whole

    def of_row(self, row: Any, refs: list[str], about: readers.About) -> Found:
        """What is wrong with the pictures of a row."""
        return iter(())

    def wrong_archives(self) -> Iterator[tuple[str, int, str]]:
        """(source, references not found, why) of archives that can't be those that the rows mean."""
        return iter(())


class _InArchives(Pictures):
    def __init__(self, work: Work, without: tuple[str, ...], mended: bool, full: bool, stack: ExitStack) -> None:
        super().__init__([])
        self._full = full
        self._finder = Finder(work, without=without, repair=True)
        self._mended = mended  # so that fetch takes what it finds under another extension
        sources = sources_with(work.manifest, without)
        self._files: dict[str, BinaryIO] = {
            table_name(work, archive): stack.enter_context(work.local(archive).open("rb", buffering=0))
            for source in sources.values()
            for archive in source.archives()
        }
        self._first = {name: s.archives()[0] for name, s in sources.items()}
        self._work = work
        self._asked: Counter[str] = Counter()
        self._found: Counter[str] = Counter()
        self._example: dict[str, str] = {}

    def of_row(self, row: Any, refs: list[str], about: readers.About) -> Found:
        for ref in refs:
            yield from self._look(ref)

    def _look(self, ref: str) -> Found:
        found = self._finder(ref)
        if isinstance(found, str):
            if found == "missing":
                name = next(source for source in self._finder.sources(ref) if source in self._first)
                self._asked[name] += 1
                self._example.setdefault(name, ref)
            yield found, ref
            return
        self._asked[found.source] += 1
        self._found[found.source] += 1
        if extension_of(ref) != extension_of(found.member.name):
            known = self._mended or not found.repaired
            yield ("extension_known" if known else "extension"), f"{ref} is {found.member.name}"
        file = self._files[found.file]
        try:
            data = archives.read(file, found.member) if self._full else _head(file, found.member)
        except ArchiveError as error:
            yield "unreadable", f"{ref}: {error}"
            return
        yield from content(data, found.member.name, ref, self._full)

    def wrong_archives(self) -> Iterator[tuple[str, int, str]]:
        for name, asked in sorted(self._asked.items()):
            found = self._found[name]
            if asked >= _ENOUGH and found < asked * _FEW:
                index, file = (
                    index_of(self._work, self._first[name]),
                    self._files[table_name(self._work, self._first[name])],
                )
                holds = next((member.name for member in index), "nothing")
                why = f"{Path(str(file.name)).name} has {found} of {asked}; asked for {self._example[name]}"
                yield name, asked - found, f"{why}, it holds {holds}"


class _InFolder(Pictures):
    def __init__(self, find: Find, mended: bool, full: bool) -> None:
        super().__init__([])
        self._find, self._mended, self._full = find, mended, full

    def of_row(self, row: Any, refs: list[str], about: readers.About) -> Found:
        for ref in refs:
            try:
                data, repaired = self._find(ref)
            except BadImage as error:
                yield (error.reason if error.reason in ("missing", "outside") else "unreadable"), ref
                continue
            if repaired:
                yield ("extension_known" if self._mended else "extension"), f"{ref} is there under another extension"
            yield from content(data, ref, ref, self._full)


class PicturesInRows(Pictures):
    """Pictures that stand in upstream's rows; with `full` their pixels are decoded, too."""

    def __init__(self, build: Build, full: bool) -> None:
        super().__init__([])
        self._reader, self._full = readers.load(build.manifest), full

    def of_row(self, row: Any, refs: list[str], about: readers.About) -> Found:
        held = self._reader.pictures(row, about)
        for nth in range(len(refs)):
            try:
                data = decode_picture(held[nth] if nth < len(held) else b"")
            except BadImage as error:
                lost = error.reason == "missing"
                yield ("missing", f"picture {nth}") if lost else ("unreadable", f"picture {nth}: {error.detail}")
                continue
            yield from content(data, "", f"picture {nth}", self._full)


def content(data: bytes, name: str, ref: str, full: bool) -> Found:
    """What is wrong with a picture by its bytes, or the first of them: HTML, unreadable, or of another type."""
    if images.sniff(data[:_HEAD_BYTES]) == "html":
        yield "html", ref
        return
    try:
        kind = images.inspect(data)[0] if full else readable_type(data)
    except BadImage as error:
        yield "unreadable", f"{ref}: {error}"
        return
    said = TYPES.get(extension_of(name))
    if said is not None and said != kind:
        yield ("gif_named_jpg" if (said, kind) == ("jpg", "gif") else "other_type"), f"{ref} is {kind}"


def _head(file: BinaryIO, member: archives.Member) -> bytes:
    """The first bytes of a member. Raises ArchiveError when they can't be inflated."""
    data = os.pread(file.fileno(), min(member.stored_bytes, _HEAD_BYTES), member.offset)
    if member.method != DEFLATED:
        return data
    try:
        return zlib.decompressobj(-15).decompress(data, _HEAD_BYTES)
    except zlib.error as error:
        raise ArchiveError(f"member {member.name!r}: {error}") from error
