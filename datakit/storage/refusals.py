"""Refusals: errors of disks and object stores, turned into one sentence that says what to do."""

from __future__ import annotations

import errno
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from datakit.errors import DatakitError, NoSpace, StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BROKEN = {errno.EIO, errno.ESTALE, errno.EBUSY, errno.ENXIO, errno.ELOOP, errno.EMFILE, errno.ENFILE}
# Whose exceptions come through fsspec, beside OSError: of the clients of object stores and of their connections.
_CLIENTS = re.compile(
    r"^(aiobotocore|botocore|s3fs|gcsfs|google|adlfs|azure|aiohttp|asyncio|fsspec|ossfs|ocifs|urllib3)\b"
)


@contextmanager
def storage_errors(where: object, doing: str = "write") -> Iterator[None]:
    """Turns an OSError of the block into a StorageError or NoSpace whose message says what to do.

    An OSError of any other kind passes unchanged.
    """
    try:
        yield
    except DatakitError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise NoSpace(
                f"no space left while writing {str(where)!r}. Everything committed before is kept: "
                "free some space (`datakit clean NAME` shows what can go) and run the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageError(
                f"no permission to {doing} {str(where)!r}: give another folder with --root or DATAKIT_ROOT"
            ) from error
        if error.errno in _BROKEN:
            raise StorageError(f"can't use {str(where)!r}: {error.strerror}. Check its disk or server") from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOENT):
            raise StorageError(
                f"can't use {str(where)!r} ({error.strerror}): is --root (or --out) a folder that can be made?"
            ) from error
        raise


@contextmanager
def store_errors(where: object, doing: str = "write") -> Iterator[None]:
    """Turns every error of a disk or an object store into a StorageError; for blocks that do nothing but storage."""
    try:
        with storage_errors(where, doing):
            yield
    except DatakitError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not _CLIENTS.search(type(error).__module__):
            raise
        raise _storage_error(where, doing, error) from error


def _storage_error(where: object, doing: str, error: Exception) -> StorageError:
    if isinstance(error, FileNotFoundError):
        return StorageError(f"can't {doing} {str(where)!r}: it isn't there. Check that the bucket or disk exists")
    if isinstance(error, PermissionError):
        return StorageError(f"no permission to {doing} {str(where)!r}: {error}. Get access, or give another --root")
    what = f"{type(error).__name__}: {error}".removesuffix(": ").rstrip(".")
    return StorageError(
        f"can't {doing} {str(where)!r}: {what}. Everything committed before is kept: when the store works again, "
        "run the same command again"
    )


class Remote(io.RawIOBase):
    """A file of a bucket, open for reading. Raises StorageError for errors of the bucket and for short answers."""

    def __init__(self, raw: Any, where: str, size: int) -> None:
        super().__init__()
        self._raw, self._where, self._size = raw, where, size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        with store_errors(self._where, "read"):
            return int(self._raw.seek(offset, whence))

    def tell(self) -> int:
        return int(self._raw.tell())

    def read(self, size: int | None = -1, /) -> bytes:
        with store_errors(self._where, "read"):
            at = self._raw.tell()
            data: bytes = self._raw.read(-1 if size is None else size)
        left = max(0, self._size - at)
        due = left if size is None or size < 0 else min(size, left)
        if len(data) < due:
            raise StorageError(
                f"can't read {self._where!r}: {len(data)} of {due} bytes came from byte {at} on. Check the store and "
                "run the same command again"
            )
        return data

    def readall(self) -> bytes:
        return self.read(-1)

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()
