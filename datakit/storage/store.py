"""Store: the root folder, and the one way in which a file gets there.

A file is written under a temporary name in its own folder, flushed to the disk, renamed, and the folder
flushed too, so a name without the leading dot always stands for a whole file. On an object store one PUT
is the rename. Nothing else in datakit opens a file of the root for writing.
"""

from __future__ import annotations

import io
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, cast

import xxhash

from datakit.errors import StorageError, UsageError
from datakit.storage import locks
from datakit.storage.refusals import Remote, store_errors

# Object stores keep what was written, and show a file whole or not at all.
OBJECT_STORES = ("s3", "gs", "gcs", "az", "abfs", "oss", "oci")
_HOST = "".join(c if c.isalnum() else "-" for c in socket.gethostname())
_TEMPORARY = re.compile(r"\..+\.(?P<host>[^.~]+)~(?P<pid>\d+)-[0-9a-f]{8}\.tmp(\.\w+)?")
_GONE = re.compile(r"\..+\.[0-9a-f]{8}\.gone")
QUIET_S = 24 * 3600.0  # without locks, a temporary file that wasn't written to for so long is abandoned


@dataclass(frozen=True)
class Written:
    """Size and hash of a published file, XXH3 of 128 bits.

    The hash is for finding damage and costs next to nothing; sha256, at 1.6 GB/s, took a sixth of a crawl's CPU.
    """

    size_bytes: int
    xxh3: str


def xxh3(file: Any) -> str:
    """The hash of an open file from its position on, XXH3 of 128 bits."""
    digest = xxhash.xxh3_128()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


class Sink(io.RawIOBase):
    """A file being written and hashed. `written` is set when it is published; a Store sets `stamp` too."""

    def __init__(self, raw: BinaryIO, name: object) -> None:
        super().__init__()
        self._raw = raw
        self._name = name
        self._hash = xxhash.xxh3_128()
        self._size = 0
        self._abandoned = False
        self.written: Written | None = None
        self.stamp: str | None = None

    def abandon(self) -> None:
        """Discards all later writes: a Parquet writer still writes its footer when it is closed after an error."""
        self._abandoned = True

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        if self._abandoned:
            return view.nbytes
        with store_errors(self._name):
            self._raw.write(view)
        self._hash.update(view)
        self._size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self._size

    def _finish(self) -> None:
        with store_errors(self._name):
            self._raw.flush()
            os.fsync(self._raw.fileno())
        self.written = Written(self._size, self._hash.hexdigest())


def replace(temporary_file: Path, final: Path) -> None:
    """Rename within a folder and flush the folder: the moment at which a file exists."""
    temporary_file.replace(final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Store:
    """Files below one root, a folder or a prefix in an object store. Paths are relative, with `/`.

    Raises UsageError for any other kind of root, such as http:// or memory://.
    """

    def __init__(self, root: str) -> None:
        for prefix in ("file://", "local://", "file:"):
            root = root.removeprefix(prefix)
        self.root = root.rstrip("/") or "/"
        self._fs: Any = None
        if "\0" in root:
            raise UsageError(f"{root!r} is no name of a folder")
        if "://" in root:
            scheme, _, bucket = root.partition("://")
            if scheme not in OBJECT_STORES or not bucket.strip("/"):
                known = ", ".join(f"{name}://BUCKET/…" for name in OBJECT_STORES)
                raise UsageError(f"{root!r} can't be a root: take a folder, or a place in an object store ({known})")
            import fsspec

            try:
                self._fs, self._base = fsspec.core.url_to_fs(root, use_listings_cache=False)
            except Exception as error:  # of a client that isn't installed, or finds no credentials
                raise StorageError(f"can't use root {root!r}: {type(error).__name__}: {error}") from error
        else:
            self._base = str(Path(root).expanduser().absolute())

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return type(self), (self.root,)

    def check(self) -> None:
        """Raises StorageError when a bucket isn't there or can't be reached; a local folder is made when needed."""
        if self._fs is None:
            return
        bucket = self._base.strip("/").partition("/")[0]
        try:
            if not self._fs.exists(self._base):
                self._fs.ls(bucket)
        except PermissionError:
            return  # who may write into a bucket may still not list it
        except FileNotFoundError as error:
            raise StorageError(f"can't use root {self.root!r}: there is no bucket {bucket!r}. Make it first") from error
        except Exception as error:
            raise StorageError(f"can't reach root {self.root!r}: {type(error).__name__}: {error}") from error

    @property
    def local(self) -> bool:
        return self._fs is None

    def path(self, name: str) -> Path:
        """The local path of a name; only for a local root."""
        if not self.local:
            raise StorageError(f"{self.root!r} is not a local folder, so {name!r} has no local path")
        return Path(self._base, name)

    @property
    def downloads(self) -> Path:
        """The folder for big upstream files: in a local root, or in the user's cache when the root is a bucket."""
        if self.local:
            return self.path("downloads")
        cache = os.environ.get("DATAKIT_CACHE") or str(Path.home() / ".cache" / "datakit")
        return Path(cache, "downloads")

    def _remote(self, name: str) -> str:
        return f"{self._base.rstrip('/')}/{name}"

    @contextmanager
    def publish(self, name: str) -> Iterator[Sink]:
        """A sink for a file that appears under its name, whole, when the block ends without an error."""
        if self.local:
            with atomic_file(self.path(name)) as sink:
                yield sink
            sink.stamp = self.stamp(name)
            return
        # A file without a name, so that a kill leaves nothing; it is uploaded as a whole, unlike by `fs.open`.
        with tempfile.TemporaryFile() as raw:
            with _finish_or_abandon(Sink(cast(BinaryIO, raw), tempfile.gettempdir())) as sink:
                yield sink
            raw.seek(0)
            with store_errors(f"{self.root}/{name}"):
                self._fs.put_file(f"/dev/fd/{raw.fileno()}", self._remote(name))
            sink.stamp = self.stamp(name)

    def write(self, name: str, data: bytes) -> Written:
        with self.publish(name) as sink:
            sink.write(data)
        assert sink.written is not None  # set by publish
        return sink.written

    def read(self, name: str) -> bytes | None:
        """The bytes of a file, or None when there is none."""
        with store_errors(f"{self.root}/{name}", "read"):
            try:
                if self.local:
                    return self.path(name).read_bytes()
                return cast(bytes, self._fs.cat_file(self._remote(name)))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def open(self, name: str) -> Any:
        """A seekable binary file, for pyarrow or for reading pieces. Raises StorageError."""
        where = f"{self.root}/{name}"
        with store_errors(where, "read"):
            if self.local:
                return self.path(name).open("rb")
            raw = self._fs.open(self._remote(name), "rb")
            return Remote(raw, where, raw.size)

    def size(self, name: str) -> int | None:
        """Size in bytes of a file, or None when there is none."""
        with store_errors(f"{self.root}/{name}", "read"):
            try:
                return self.path(name).stat().st_size if self.local else int(self._fs.size(self._remote(name)))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def is_quiet(self, name: str) -> bool:
        """Whether a file of a bucket was written a day ago or earlier; False where the bucket doesn't say."""
        with store_errors(f"{self.root}/{name}", "look at"):
            try:
                written: datetime = self._fs.modified(self._remote(name))
            except (FileNotFoundError, NotImplementedError):
                return False
        return datetime.now(UTC) - written.replace(tzinfo=written.tzinfo or UTC) > timedelta(seconds=QUIET_S)

    def names(self, folder: str) -> list[str]:
        """Sorted names of the published files and folders of a folder; empty when there is none."""
        with store_errors(f"{self.root}/{folder}", "list"):
            try:
                if self.local:
                    found = [entry.name for entry in os.scandir(self.path(folder))]
                else:
                    found = [Path(p).name for p in self._fs.ls(self._remote(folder), detail=False)]
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(name for name in found if not name.startswith("."))

    def sizes(self, folder: str) -> dict[str, int]:
        """Size in bytes of every published file of a folder, by one listing."""
        with store_errors(f"{self.root}/{folder}", "list"):
            try:
                if self.local:
                    found = {}
                    with os.scandir(self.path(folder)) as entries:
                        for entry in entries:
                            with suppress(FileNotFoundError):  # a temporary name that another job renamed meanwhile
                                if entry.is_file():
                                    found[entry.name] = entry.stat().st_size
                else:
                    entries = self._fs.ls(self._remote(folder), detail=True)
                    found = {Path(e["name"]).name: int(e["size"] or 0) for e in entries if e["type"] == "file"}
            except (FileNotFoundError, NotADirectoryError):
                return {}
        return {name: size for name, size in found.items() if not name.startswith(".")}

    def remove(self, name: str) -> None:
        """Removes one file; it may be gone already."""
        with store_errors(f"{self.root}/{name}"):
            if self.local:
                self.path(name).unlink(missing_ok=True)
            elif self._fs.exists(self._remote(name)):
                with suppress(FileNotFoundError):  # another job removed it meanwhile
                    self._fs.rm_file(self._remote(name))

    def remove_folder(self, folder: str) -> None:
        with store_errors(f"{self.root}/{folder}"):
            if self.local:
                if self.path(folder).exists():
                    # Renamed first, so that a kill in the middle leaves nothing that looks like a folder of ours.
                    doomed = self.path(folder).with_name(f".{self.path(folder).name}.{secrets.token_hex(4)}.gone")
                    with suppress(FileNotFoundError):  # another job removed it meanwhile
                        self.path(folder).rename(doomed)
                        _remove_tree(doomed)
            elif self._fs.exists(self._remote(folder)):
                self._fs.rm(self._remote(folder), recursive=True)

    def sweep(self, folder: str) -> None:
        """Removes what killed processes left in a folder and all folders below it; see the function `sweep`."""
        if self.local:
            sweep(self.path(folder), below=True)

    def lock(
        self, name: str, *, shared: bool = False, wait: bool = True, on_wait: Callable[[], None] | None = None
    ) -> AbstractContextManager[bool]:
        """`file_lock` for a name of the root. A bucket has no locks: there it yields True and keeps nobody out."""
        if not self.local:
            return nullcontext(True)
        return file_lock(self.path(name), shared=shared, wait=wait, on_wait=on_wait)

    def stamp(self, name: str) -> str | None:
        """A text that changes whenever a file is written again, even with the same bytes; None without a file."""
        with store_errors(f"{self.root}/{name}", "look at"):
            try:
                if self.local:
                    about = self.path(name).stat()
                    return f"{about.st_dev} {about.st_ino} {about.st_mtime_ns} {about.st_size}"
                return str(self._fs.ukey(self._remote(name)))
            except (FileNotFoundError, NotADirectoryError):
                return None


@contextmanager
def _finish_or_abandon(sink: Sink) -> Iterator[Sink]:
    """The sink, flushed to the disk when the block ends well; after an error it discards what is still written."""
    try:
        yield sink
        sink._finish()
    except BaseException:
        sink.abandon()
        raise


@contextmanager
def temporary_file(beside: Path, *, suffix: str = "") -> Iterator[tuple[BinaryIO, Path]]:
    """A new file in the folder of `beside`, open for writing, and its path; removed at the end, if still there.

    It is locked as long as it is open, and a kill releases the lock: so `sweep` knows which files are in use.
    """
    with store_errors(beside):
        beside.parent.mkdir(parents=True, exist_ok=True)
        while True:
            name = f".{beside.name}.{_HOST}~{os.getpid()}-{secrets.token_hex(4)}.tmp{suffix}"
            path = beside.with_name(name)
            raw = path.open("x+b", buffering=1 << 16)
            if locks.flock(raw.fileno(), locks.ALONE) is not False and locks.still_named(path, raw.fileno()):
                break
            raw.close()  # swept between the two
    try:
        yield raw, path
    finally:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # a full disk fails again on close; the first error is the one to report
            raw.close()


@contextmanager
def atomic_file(final: Path) -> Iterator[Sink]:
    """A sink for a file at a path outside the root; it appears there, whole, when the block ends without an error."""
    with temporary_file(final) as (raw, path):
        with _finish_or_abandon(Sink(raw, final)) as sink:
            yield sink
        with store_errors(final):
            replace(path, final)


def publish_file(path: Path, data: bytes) -> None:
    """Publishes bytes at a path outside the root (a `.sums` file, a download's sidecar)."""
    with atomic_file(path) as sink:
        sink.write(data)


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def sweep(folder: Path, *, below: bool = False) -> None:
    """Removes temporary files and half-removed folders that killed processes left in a folder, or also `below` it.

    A temporary file is in use while its lock is held. On a shared file system the locks of another host may be
    invisible, and some file systems have none: there a file must also have been untouched for a day.
    """
    for here, folders, names in os.walk(folder):
        if not os.access(here, os.W_OK):
            continue
        for name in names:
            if found := _TEMPORARY.fullmatch(name):
                _sweep_temporary(Path(here, name), found["host"], found["pid"])
        for name in filter(_GONE.fullmatch, folders):
            _remove_tree(Path(here, name))
        folders[:] = [name for name in folders if below and not _GONE.fullmatch(name)]


def _sweep_temporary(path: Path, host: str, pid: str) -> None:
    try:
        handle = os.open(path, os.O_RDWR)
    except (FileNotFoundError, PermissionError):  # renamed meanwhile, or another user's
        return
    try:
        free = locks.flock(handle, locks.ALONE)
        if free is False:
            return
        quiet = time.time() - os.fstat(handle).st_mtime > QUIET_S
        alive = host == _HOST and Path("/proc", pid).exists()
        if (free and host == _HOST) or (quiet and (free or not alive)):
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _remove_tree(doomed: Path) -> None:
    while doomed.exists():
        with suppress(FileNotFoundError):  # another job sweeps it, too
            shutil.rmtree(doomed)


@contextmanager
def file_lock(
    path: Path, *, shared: bool = False, wait: bool = True, on_wait: Callable[[], None] | None = None
) -> Iterator[bool]:
    """Holds a lock file, so that jobs on one machine or file system exclude each other; yields whether it is held.

    It always is, unless `wait` is False and another job has it. A `shared` lock excludes only exclusive ones.
    `on_wait` is called before waiting for another job. The file stays afterwards. Without a lock, and yielding True,
    the block runs on a file system that has no locks, and in a folder that this user can't write to.
    """
    with store_errors(path):
        handle, held = locks.acquire(path, locks.SHARED if shared else locks.ALONE, wait=wait, on_wait=on_wait)
    try:
        yield held
    finally:
        if handle is not None:
            os.close(handle)
