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
QUIET_S = 24 * 3600.0  # a temporary that nobody wrote to for so long is dead, where no lock tells


@dataclass(frozen=True)
class Written:
    """What was published: its size and the hash of its bytes, XXH3 of 128 bits.

    It is there to find damage, and costs nothing; sha256, at 1.6 GB/s, took a sixth of a crawl's CPU.
    """

    size_bytes: int
    xxh3: str


def xxh3(file: Any) -> str:
    """The hash of what is left of an open file, XXH3 of 128 bits."""
    digest = xxhash.xxh3_128()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


class Sink(io.RawIOBase):
    """A file being written, hashed as it goes. `written` is set once it is published, and `stamp` by a Store then."""

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
        """Lets later writes go nowhere: a Parquet writer still writes its footer when it is thrown away."""
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


def replace(temporary: Path, final: Path) -> None:
    """Rename within a folder and flush the folder: the moment at which a file exists."""
    temporary.replace(final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Store:
    """Files below one root, a folder or a place in an object store. Paths are relative, with `/`.

    Raises UsageError for a root of another kind: one that can't be written, or forgets what was.
    """

    def __init__(self, root: str) -> None:
        for prefix in ("file://", "local://", "file:"):
            root = root.removeprefix(prefix)
        self.root = root.rstrip("/") or "/"
        self._fs: Any = None
        if "\0" in root:
            raise UsageError(f"{root!r} is no name of a folder")
        if "://" in root:
            scheme, _, place = root.partition("://")
            if scheme not in OBJECT_STORES or not place.strip("/"):
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
        """Where big upstream files land: in a local root, or in a local cache beside a remote one."""
        if self.local:
            return self.path("downloads")
        cache = os.environ.get("DATAKIT_CACHE") or str(Path.home() / ".cache" / "datakit")
        return Path(cache, "downloads")

    def _remote(self, name: str) -> str:
        return f"{self._base.rstrip('/')}/{name}"

    @contextmanager
    def publish(self, name: str) -> Iterator[Sink]:
        """A file that exists under its name when the block ends well, and not at all otherwise."""
        if self.local:
            with published(self.path(name)) as sink:
                yield sink
            sink.stamp = self.stamp(name)
            return
        # A file without a name, so that a kill leaves nothing; it is put as a whole, which `fs.open` can't promise.
        with tempfile.TemporaryFile() as raw:
            with _finished(Sink(cast(BinaryIO, raw), tempfile.gettempdir())) as sink:
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
        """A seekable binary file; for pyarrow, or for reading pieces. What it raises is a StorageError."""
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

    def quiet(self, name: str) -> bool:
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
                    listed = self._fs.ls(self._remote(folder), detail=True)
                    found = {Path(one["name"]).name: int(one["size"] or 0) for one in listed if one["type"] == "file"}
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
        """Removes what killed processes left in a folder and in all below it; see `sweep`."""
        if self.local:
            sweep(self.path(folder), below=True)

    def held(
        self, name: str, *, shared: bool = False, wait: bool = True, waiting: Callable[[], None] | None = None
    ) -> AbstractContextManager[bool]:
        """`locked` for a name of the root. A bucket has no locks: there it is always held, and keeps nobody out."""
        if not self.local:
            return nullcontext(True)
        return locked(self.path(name), shared=shared, wait=wait, waiting=waiting)

    def stamp(self, name: str) -> str | None:
        """What changes whenever a file is written anew, be it with the same bytes; None when there is none."""
        with store_errors(f"{self.root}/{name}", "look at"):
            try:
                if self.local:
                    about = self.path(name).stat()
                    return f"{about.st_dev} {about.st_ino} {about.st_mtime_ns} {about.st_size}"
                return str(self._fs.ukey(self._remote(name)))
            except (FileNotFoundError, NotADirectoryError):
                return None


@contextmanager
def _finished(sink: Sink) -> Iterator[Sink]:
    """The sink, flushed to the disk when the block ends well, and deaf from then on when it doesn't."""
    try:
        yield sink
        sink._finish()
    except BaseException:
        sink.abandon()
        raise


@contextmanager
def temporary(beside: Path, *, suffix: str = "") -> Iterator[tuple[BinaryIO, Path]]:
    """A file of this process alone in the folder of `beside`, open for writing; removed at the end, if still there.

    It is locked as long as it is open, and a kill lets go of the lock: so `sweep` knows those that are in use.
    """
    with store_errors(beside):
        beside.parent.mkdir(parents=True, exist_ok=True)
        while True:
            name = f".{beside.name}.{_HOST}~{os.getpid()}-{secrets.token_hex(4)}.tmp{suffix}"
            path = beside.with_name(name)
            raw = path.open("x+b", buffering=1 << 16)
            if locks.flock(raw.fileno(), locks.ALONE) is not False and locks.stands(path, raw.fileno()):
                break
            raw.close()  # swept between the two
    try:
        yield raw, path
    finally:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # a full disk fails again on close; the first error is the one to tell
            raw.close()


@contextmanager
def published(final: Path) -> Iterator[Sink]:
    """A file outside the root that stands under its name only when the block has ended well."""
    with temporary(final) as (raw, path):
        with _finished(Sink(raw, final)) as sink:
            yield sink
        with store_errors(final):
            replace(path, final)


def publish_file(path: Path, data: bytes) -> None:
    """Publishes bytes at a path outside the root (a `.sums` file, a download's sidecar)."""
    with published(path) as sink:
        sink.write(data)


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder, which need not be there yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def sweep(folder: Path, *, below: bool = False) -> None:
    """Removes temporaries and half-removed folders that killed processes left in a folder, or also in all `below` it.

    A temporary is in use while its lock is held. Locks of another host may not be seen on a shared file system, and
    some file systems have none: there it has to be untouched for a day, too.
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
def locked(
    path: Path, *, shared: bool = False, wait: bool = True, waiting: Callable[[], None] | None = None
) -> Iterator[bool]:
    """Holds a lock, so that jobs on one machine or share don't do the same thing twice; yields whether it is held.

    It always is, unless `wait` is False and another has it. `shared` keeps out only those who want it alone. `waiting`
    is called before it waits for another. The lock's file stays, and where there can be none it goes on without: on
    a file system without locks, and in a folder that this user can't write to, so that nothing can be made there.
    """
    with store_errors(path):
        handle, held = locks.take(path, locks.SHARED if shared else locks.ALONE, wait=wait, waiting=waiting)
    try:
        yield held
    finally:
        if handle is not None:
            os.close(handle)
