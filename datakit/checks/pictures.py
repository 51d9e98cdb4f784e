"""Where the pictures of rows are, and whether they are what they are called; nothing is copied.

In archives they are found by the archives' indexes, as `Locate` finds them, and their first kilobytes are read; `full`
reads each whole and walks its structure (datakit/images), which finds one that is cut short. What is damaged inside
the pixel data only decoding shows, at `build-mix`. Pictures by URL aren't looked at.
"""

from __future__ import annotations

import binascii
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from datakit import archives, images, readers
from datakit.archives.members import DEFLATED
from datakit.errors import ArchiveError, BadImage
from datakit.images.headers import sniffed
from datakit.run import Run
from datakit.stage import Tell, Work
from datakit.stages.extract import Extract, Find
from datakit.stages.locate import Locate, find, index_of, under_another_extension

_HEAD_BYTES = 4096
_KINDS = {"jpg": "jpg", "jpeg": "jpg", "jpe": "jpg", "png": "png", "gif": "gif", "webp": "webp", "bmp": "bmp"}
_KINDS |= {"tif": "tiff", "tiff": "tiff", "avif": "avif"}
_FEW = 0.1  # of the references into an archive: with fewer found it is taken for another one
_ENOUGH = 5  # references, to judge an archive by

Found = Iterator[tuple[str, object]]  # (finding, offending value)


@contextmanager
def pictures_of(run: Run, *, full: bool, tell: Tell) -> Iterator[Pictures]:
    """The pictures of a dataset, ready to be looked at; archives that aren't here are downloaded."""
    by, notes = run.manifest.images.by, list[str]()
    with ExitStack() as stack:
        for step in run.steps:
            work = run.work(step, tell)
            if by == "path" and isinstance(step.stage, Locate):
                step.stage.prepare(work)
                yield _InArchives(work, step.stage, full, stack)
                return
            if by == "folder" and isinstance(step.stage, Extract):
                step.stage.prepare(work)
                yield _InFolder(stack.enter_context(step.stage.opened([], work)), full)
                return
        if by == "inline":
            yield _InRows(run, full)
            return
        if by == "url":
            notes = [f"pictures come by URL: none was looked at; `datakit doctor {run.manifest.name}` tries a sample"]
        elif by != "none":
            notes = [f"recipe {run.recipe!r} doesn't look for the pictures, so none was looked at"]
        yield Pictures(notes)


class Pictures:
    """Pictures that nobody looks at; the parent of those that are looked at."""

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes  # on the whole

    def of_row(self, row: Any, refs: list[str], about: readers.About) -> Found:
        """What is wrong with the pictures of a row."""
        return iter(())

    def wrong_archives(self) -> Iterator[tuple[str, int, str]]:
        """(source, references not found, why) of archives that can't be those that the rows mean."""
        return iter(())


class _InArchives(Pictures):
    def __init__(self, work: Work, stage: Locate, full: bool, stack: ExitStack) -> None:
        super().__init__([])
        self._full = full
        self._sources = sorted(work.manifest.images.sources.items(), key=lambda named: -len(named[1].prefix))
        self._archives: dict[str, list[tuple[archives.Index, BinaryIO]]] = {
            name: [
                (index_of(work, archive), stack.enter_context(work.local(archive).open("rb", buffering=0)))
                for archive in source.archives()
            ]
            for name, source in stage.sources(work.manifest).items()
        }
        # How a fetch looks for pictures, and how a repaired one would; and whether fetch does so as things are.
        self._rules = ((find, True), (under_another_extension, stage.any_extension))
        self._source = dict(self._sources)
        self._asked: Counter[str] = Counter()
        self._found: Counter[str] = Counter()
        self._example: dict[str, str] = {}

    def of_row(self, row: Any, refs: list[str], about: readers.About) -> Found:
        for ref in refs:
            yield from self._look(ref)

    def _look(self, ref: str) -> Found:
        name, source = next(((n, s) for n, s in self._sources if ref.startswith(s.prefix)), ("", None))
        if source is None:
            yield "no_source", ref
            return
        if name not in self._archives:
            yield "left_out", ref
            return
        self._asked[name] += 1
        place = self._place(name, ref)
        if place is None:
            self._example.setdefault(name, ref)
            yield "missing", ref
            return
        self._found[name] += 1
        member, file, known = place
        if _suffix(ref) != _suffix(member.name):
            yield ("extension_known" if known else "extension"), f"{ref} is {member.name}"
        try:
            data = archives.read(file, member) if self._full else _head(file, member)
        except ArchiveError as error:
            yield "unreadable", f"{ref}: {error}"
            return
        yield from content(data, member.name, ref, self._full)

    def _place(self, name: str, ref: str) -> tuple[archives.Member, BinaryIO, bool] | None:
        """The member that a reference means, its archive, and whether a fetch finds it as things are."""
        for rule, known in self._rules:
            for index, file in self._archives[name]:
                member = rule(index, self._source[name], ref)
                if member is not None:
                    return member, file, known
        return None

    def wrong_archives(self) -> Iterator[tuple[str, int, str]]:
        for name, asked in sorted(self._asked.items()):
            found = self._found[name]
            if asked >= _ENOUGH and found < asked * _FEW:
                index, file = self._archives[name][0]
                holds = next((member.name for member in index), "nothing")
                why = f"{Path(str(file.name)).name} has {found} of {asked}; asked for {self._example[name]}"
                yield name, asked - found, f"{why}, it holds {holds}"


class _InFolder(Pictures):
    def __init__(self, find: Find, full: bool) -> None:
        super().__init__([])
        self._find, self._full = find, full

    def of_row(self, row: Any, refs: list[str], about: readers.About) -> Found:
        for ref in refs:
            try:
                data = self._find(ref)
            except BadImage as error:
                yield ("missing" if error.reason in ("missing", "outside") else "unreadable"), ref
                continue
            yield from content(data, ref, ref, self._full)


class _InRows(Pictures):
    def __init__(self, run: Run, full: bool) -> None:
        super().__init__([])
        self._reader, self._full = readers.load(run.manifest), full

    def of_row(self, row: Any, refs: list[str], about: readers.About) -> Found:
        held = self._reader.pictures(row, about)
        for nth in range(len(refs)):
            picture = held[nth] if nth < len(held) else b""
            try:
                data = binascii.a2b_base64(picture, strict_mode=True) if isinstance(picture, str) else picture
            except ValueError as error:
                yield "unreadable", f"picture {nth}: not base64: {error}"
                continue
            if data:
                yield from content(data, "", f"picture {nth}", self._full)
            else:
                yield "missing", f"picture {nth}"


def content(data: bytes, name: str, ref: str, full: bool) -> Found:
    """What the bytes of a picture, or the first of them, say against its name."""
    if images.sniff(data[:_HEAD_BYTES]) == "html":
        yield "html", ref
        return
    try:
        kind = images.inspect(data)[0] if full else sniffed(data)
    except BadImage as error:
        yield "unreadable", f"{ref}: {error}"
        return
    said = _KINDS.get(_suffix(name))
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


def _suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return suffix.lower() if dot and stem else ""
