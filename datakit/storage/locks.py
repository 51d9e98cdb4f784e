"""Locks on files, by flock: the kernel releases them however the process ends.

flock locks files, not processes: it works between containers that share a host name or process numbers, between
threads, and on network file systems that support it. Functions raise OSError as the system does.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

ALONE, SHARED = fcntl.LOCK_EX, fcntl.LOCK_SH
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF}
_NOT_OURS = {errno.EACCES, errno.EPERM, errno.EROFS}


def flock(handle: int, how: int) -> bool | None:
    """Tries to lock an open file, and returns whether that worked; None on a file system without locks."""
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def still_named(path: Path, handle: int) -> bool:
    """Whether an open file is still the one under this path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            raise
        return False


def acquire(path: Path, how: int, *, wait: bool, on_wait: Callable[[], None] | None) -> tuple[int | None, bool]:
    """Opens and locks a lock file; returns its handle, which the caller closes, and whether it is locked.

    The handle is None in a folder that this user can't write to, where no lock is possible. That counts as locked, and
    so does a file on a file system without locks, about which a warning is logged once.
    """
    while (handle := _open_lock_file(path)) is not None:
        try:
            free = flock(handle, how)
            if free is False and not wait:
                return handle, False
            if free is False:
                if on_wait is not None:
                    on_wait()
                on_wait = None
                fcntl.flock(handle, how)
            if free is None:
                _warn_no_locks(path.parent)
            if still_named(path, handle):
                return handle, True
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # removed by the one who had it, so others lock another file by now
    return None, True


def _open_lock_file(path: Path) -> int | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
    try:
        return os.open(path, os.O_RDONLY)  # another user's
    except OSError as error:
        if error.errno not in {*_NOT_OURS, errno.ENOENT}:
            raise
    return None


@cache
def _warn_no_locks(folder: Path) -> None:
    log.warning("%s is on a file system without locks: let no two jobs work on one shard there (--slice)", folder)
