"""Loose pictures: files of a folder by their paths, and base64 in rows; neither is trusted."""

from __future__ import annotations

import binascii
import errno
import os
import posixpath
import re
import stat
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from datakit.errors import BadImage, SourceError
from datakit.formats.members import MAX_MEMBER_BYTES
from datakit.images.extensions import ENDINGS_IN_FOLDERS

# The bytes of a reference, and whether they were found only by a repair; raises BadImage with the outcome.
Find = Callable[[str], tuple[bytes, bool]]
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)


def decode_picture(picture: bytes | str) -> bytes:
    """The bytes of a picture; a str is base64, maybe a data URL. Raises BadImage.

    Line breaks and other characters outside base64's alphabet are skipped, as by b64decode in upstreams' loaders. Text
    that isn't a picture gives bytes that aren't one; `images.inspect` finds that out.
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
    """Pictures by their path below a folder. A path or a link that leads out of the folder is never opened.

    With `repair` a missing file is replaced by the file that differs only in its extension, if there is exactly one.
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

    `without` is a folder inside it to skip, such as the root that is being filled. A process walks the folder once, and
    again when a folder in it has changed: added, removed and renamed files are noticed at once, a file that was
    overwritten in place only by the next command.
    """
    folder, skipped = os.path.realpath(folder), os.path.realpath(without) if without else ""
    known, state = _states.get((folder, skipped), ({}, ""))
    if known and _stamps(known) == known:
        return state
    if not Path(folder).is_dir():
        return None
    stamps: dict[str, int] = {}
    entries = []
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if str(Path(where, name)) != skipped]
        stamps[where] = Path(where).stat().st_mtime_ns
        for name in files:
            path = Path(where, name)
            about = path.stat() if is_file(path) else path.lstat()  # of a link, what it leads to
            entries.append((os.fsencode(path.relative_to(folder)), about.st_size, about.st_mtime_ns))
    digest = sha256()
    for entry in sorted(entries):
        digest.update(b"%s\0%d %d\n" % entry)
    _states[folder, skipped] = (stamps, digest.hexdigest())
    return digest.hexdigest()


def _stamps(folders: dict[str, int]) -> dict[str, int]:
    return {folder: Path(folder).stat().st_mtime_ns for folder in folders if Path(folder).is_dir()}
