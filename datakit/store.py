"""Store: the root folder, and the one way in which a file gets there.

A file is written under a temporary name in its own folder, flushed to the disk, renamed, and the folder
flushed too, so a name without the leading dot always stands for a whole file. On an object store one PUT
is the rename. Nothing else in datakit opens a file of the root for writing.
"""

from __future__ import annotations

import fcntl
import io
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import xxhash

from datakit.errors import StorageError, UsageError
from datakit.refusals import Remote, store_errors

# Object stores keep what was written, and show a file whole or not at all.
OBJECT_STORES = ("s3", "gs", "gcs", "az", "abfs", "oss", "oci")
_HOST = "".join(c if c.isalnum() else "-" for c in socket.gethostname())


@dataclass(frozen=True)
class Written:
    """What was published: its size and the hash of its bytes, XXH3 of 128 bits.

    It is there to find damage, and costs nothing; sha256, at 1.6 GB/s, took a sixth of a crawl's CPU.
    """

    size_bytes: int
    xxh3: str


class Sink(io.RawIOBase):
    """A file being written, hashed as it goes. `written` is set once it is published."""

    def __init__(self, raw: BinaryIO, name: object) -> None:
        super().__init__()
        self._raw = raw
        self._name = name
        self._hash = xxhash.xxh3_128()
        self._size = 0
        self._abandoned = False
        self.written: Written | None = None

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
            return
        with tempfile.TemporaryDirectory(prefix="datakit-") as folder:
            part = Path(folder, "part")
            with part.open("wb") as raw, _finished(Sink(cast(BinaryIO, raw), part)) as sink:
                yield sink
            with store_errors(f"{self.root}/{name}"):
                self._fs.put_file(str(part), self._remote(name))

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
                self._fs.rm_file(self._remote(name))

    def remove_folder(self, folder: str) -> None:
        with store_errors(f"{self.root}/{folder}"):
            if self.local:
                if self.path(folder).exists():
                    # Renamed first, so that a kill in the middle leaves nothing that looks like a folder of ours.
                    doomed = self.path(folder).with_name(f".{self.path(folder).name}.{secrets.token_hex(4)}.gone")
                    self.path(folder).rename(doomed)
                    shutil.rmtree(doomed)
            elif self._fs.exists(self._remote(folder)):
                self._fs.rm(self._remote(folder), recursive=True)

    def sweep(self, folder: str) -> None:
        """Removes temporary files that killed processes of this host left in a folder."""
        if not self.local:
            return
        for left in self.path(folder).glob(f".*.{_HOST}~*.tmp"):
            pid = left.name.split("~")[-1].split("-")[0]
            if pid.isdigit() and not Path("/proc", pid).exists() and Path("/proc").exists():
                left.unlink(missing_ok=True)


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
def published(final: Path) -> Iterator[Sink]:
    """A file outside the root that stands under its name only when the block has ended well."""
    temporary = final.with_name(f".{final.name}.{_HOST}~{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with store_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        raw = temporary.open("wb", buffering=1 << 16)
    try:
        try:
            with _finished(Sink(raw, final)) as sink:
                yield sink
        finally:
            with suppress(OSError):  # a full disk fails again on close; the first error is the one to tell
                raw.close()
        with store_errors(final):
            replace(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish_file(path: Path, data: bytes) -> None:
    """Publishes bytes at a path outside the root (a `.sums` file, a download's sidecar)."""
    with published(path) as sink:
        sink.write(data)


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder, which need not be there yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock, so that two jobs on one machine or share don't fetch one file twice."""
    with store_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
