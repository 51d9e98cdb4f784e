"""Own: files of the user's that stand for downloads, and how an edit of such a file is noticed.

A download of such a file is a copy, or a symbolic link to it where a copy would double the disk. It is never a hard
link: an edit in place would change our bytes with the user's, and a comparison of both would find them equal.

The stamps of the user's file say whether it was edited. `.<name>.source.json` beside the download remembers the
sha256 that the file had when its size, mtime and ctime were these. With other stamps it is hashed again, once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec

from datakit.errors import DownloadError, NoSuchFile, StorageError
from datakit.storage.store import publish_file
from datakit.web.transfers import PIECE_BYTES, Broken, Reply, Version

TRIES = 3  # at hashing a file that is written to meanwhile
SETTLED_S = 2.0  # the coarsest clock of a file system (FAT's): an edit so soon after another may leave the stamps alike
FICLONE = 0x40049409  # linux/fs.h: two files share their blocks until one is written to


class _Stamps(msgspec.Struct, frozen=True):
    """What changes when a file is written to. The ctime can't be set back, as `cp -p` does with the mtime."""

    size_bytes: int
    mtime_ns: int
    ctime_ns: int


class _Seen(msgspec.Struct, frozen=True):
    """The sha256 of a file at its stamps."""

    file: str
    stamps: _Stamps
    sha256: str


_seen: dict[Path, _Seen] = {}  # what this process has seen, for roots that can only be read


@dataclass(eq=False)
class OwnFile:
    """A file of the user's that stands for the download at `path`. It is only ever read."""

    file: Path
    path: Path
    revision: str | None = None  # the commit of the hub's file that it stands for
    _copy_began: tuple[int, _Stamps] | None = field(default=None, init=False)

    @property
    def memo(self) -> Path:
        return self.path.with_name(f".{self.path.name}.source.json")

    def is_on_same_disk(self) -> bool:
        """Whether it is on the file system of the download, so that whoever sees the download sees it too."""
        return self.file.stat().st_dev == self.path.parent.stat().st_dev

    def sha256(self, tell: Callable[[int, int | None], None] | None = None) -> str:
        """The hash of its bytes as they are now. Raises DownloadError when it can't be read, or keeps changing."""
        for _ in range(TRIES):
            began = time.time_ns()
            with self.open_file() as file:
                now = _stamps(os.fstat(file.fileno()))
                for known in (_seen.get(self.memo), self._read_memo()):
                    if known is not None and (known.file, known.stamps) == (str(self.file), now):
                        return known.sha256
                sha256 = _sha256_of(file, now.size_bytes, tell)
            if self._stamps() == now:
                self._remember(sha256, now, began)
                return sha256
        raise DownloadError(f"{str(self.file)!r} is being written to: run the same command again when it is finished")

    @contextmanager
    def open_at(self, start: int, version: Version | None) -> Iterator[Reply]:
        """Its bytes from `start` on, for `downloads` to copy; Broken at their end if it was changed meanwhile."""
        began = time.time_ns()
        with self.open_file() as file:
            stamps = _stamps(os.fstat(file.fileno()))
            changes = f"{stamps.mtime_ns} {stamps.ctime_ns}"
            now = Version(
                url=self.file.as_uri(), total=stamps.size_bytes, last_modified=changes, revision=self.revision
            )
            begin = start if version == now else 0
            self._copy_began = None if begin else (began, stamps)
            file.seek(begin)

            def pieces() -> Iterator[bytes]:
                left = stamps.size_bytes - begin
                while piece := file.read(min(PIECE_BYTES, left)):
                    left -= len(piece)
                    yield piece
                if self._stamps() != stamps:
                    raise Broken("it was written to while it was copied", drop=True)

            yield Reply(version=now, start=begin, headers={}, pieces=pieces(), clone=lambda into: _clone(file, into))

    def remember_copy(self, sha256: str) -> None:
        """Remembers the hash of a copy, if it was made in one go."""
        if self._copy_began is not None:
            began, stamps = self._copy_began
            self._remember(sha256, stamps, began)

    @contextmanager
    def open_file(self) -> Iterator[BinaryIO]:
        """Opens it for reading. Raises NoSuchFile when it is gone, DownloadError when its permissions forbid it."""
        try:
            with self.file.open("rb", buffering=0) as file:
                yield file
        except FileNotFoundError as error:
            raise NoSuchFile(f"there is no file {str(self.file)!r}, which the manifest names: has it moved?") from error
        except PermissionError as error:
            raise DownloadError(f"{str(self.file)!r} can't be read: its permissions forbid it") from error

    def _stamps(self) -> _Stamps | None:
        """The stamps of the file that has its name now; None when there is none."""
        try:
            return _stamps(self.file.stat())
        except OSError:
            return None

    def _read_memo(self) -> _Seen | None:
        try:
            return msgspec.json.decode(self.memo.read_bytes(), type=_Seen)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None

    def _remember(self, sha256: str, stamps: _Stamps, began: int) -> None:
        if began - max(stamps.mtime_ns, stamps.ctime_ns) < SETTLED_S * 1e9:
            return  # an edit that the stamps hide is still possible: it is hashed once more
        _seen[self.memo] = seen = _Seen(str(self.file), stamps, sha256)
        try:
            publish_file(self.memo, msgspec.json.format(msgspec.json.encode(seen)) + b"\n")
        except StorageError:  # a root that can only be read, or a full disk: the next process hashes it again
            return


def _stamps(stat: os.stat_result) -> _Stamps:
    return _Stamps(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _sha256_of(file: BinaryIO, size_bytes: int, tell: Callable[[int, int | None], None] | None) -> str:
    digest, done = hashlib.sha256(), 0
    while piece := file.read(PIECE_BYTES):
        digest.update(piece)
        done += len(piece)
        if tell:
            tell(done, size_bytes)
    return digest.hexdigest()


def _clone(file: BinaryIO, into: int) -> bool:
    """Lets an empty file share the blocks of this one; False where the file system can't (btrfs and XFS can)."""
    try:
        fcntl.ioctl(into, FICLONE, file.fileno())
    except OSError:
        return False
    return True
