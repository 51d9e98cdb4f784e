"""Locks: files that a process has locked, which the kernel lets go of however the process ends.

By flock, which knows files and not processes: it holds between containers that share a host name or process numbers,
between threads, and on network file systems that support it. Raises OSError as the system does.
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
    """Locks an open file if nobody else has it, and says whether; None on a file system that has no locks."""
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def stands(path: Path, handle: int) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            raise
        return False


def take(path: Path, how: int, *, wait: bool, waiting: Callable[[], None] | None) -> tuple[int | None, bool]:
    """Opens and locks the file of a lock; returns it, to be closed, and whether it is locked.

    None for the file where there can be no lock, in a folder that this user can't write to: that counts as locked,
    and so does a file on a file system without locks, which is told once.
    """
    while (handle := _opened(path)) is not None:
        try:
            free = flock(handle, how)
            if free is False and not wait:
                return handle, False
            if free is False:
                if waiting is not None:
                    waiting()
                waiting = None
                fcntl.flock(handle, how)
            if free is None:
                _tell_no_locks(path.parent)
            if stands(path, handle):
                return handle, True
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # removed by the one who had it, so others lock another file by now
    return None, True


def _opened(path: Path) -> int | None:
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
def _tell_no_locks(folder: Path) -> None:
    log.warning("%s is on a file system without locks: let no two jobs work on one shard there (--slice)", folder)
