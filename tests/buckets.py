"""An object store for tests: what fsspec's s3 would be, in memory, and as unwell as a test wants it."""

from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class Bucket(MemoryFileSystem):
    """s3://… in memory. `unwell` is asked before each call with the method's name and the path, and may raise."""

    protocol = "s3"
    cachable = False
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    buckets: ClassVar[set[str]] = set()
    unwell: ClassVar[Any] = None
    cut: ClassVar[int | None] = None  # bytes after which an answer to a read ends

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("s3://", "memory://", 1))

    def _ask(self, method, path):
        if Bucket.unwell is not None:
            Bucket.unwell(method, path)
        if self._strip_protocol(path).strip("/").partition("/")[0] not in Bucket.buckets:
            raise FileNotFoundError("The specified bucket does not exist")  # as s3fs says it, without an errno

    def exists(self, path, **kwargs):
        try:
            self._ask("exists", path)
        except FileNotFoundError:
            return False
        return super().exists(path, **kwargs)

    def ls(self, path, detail=True, **kwargs):
        self._ask("ls", path)
        if self._strip_protocol(path).strip("/") in Bucket.buckets and not Bucket.store:
            return []
        return super().ls(path, detail=detail, **kwargs)

    def put_file(self, lpath, rpath, *args, **kwargs):
        self._ask("put_file", rpath)
        return super().put_file(lpath, rpath, *args, **kwargs)

    def cat_file(self, path, start=None, end=None, **kwargs):
        self._ask("cat_file", path)
        return super().cat_file(path, start, end, **kwargs)

    def size(self, path):
        self._ask("size", path)
        return super().size(path)

    def rm_file(self, path):
        self._ask("rm_file", path)
        return super().rm_file(path)

    def _open(self, path, mode="rb", **kwargs):
        self._ask("open", path)
        file = super()._open(path, mode, **kwargs)
        return file if mode != "rb" else _Answer(self, path, file.getbuffer())


class _Answer:
    """A file that is read by ranges, each of which is an answer of the store."""

    def __init__(self, bucket, path, data):
        self._bucket, self._path, self._data, self._at, self.size = bucket, path, bytes(data), 0, len(data)

    def seek(self, offset, whence=0):
        self._at = offset + {0: 0, 1: self._at, 2: self.size}[whence]
        return self._at

    def tell(self):
        return self._at

    def read(self, size=-1):
        self._bucket._ask("read", self._path)
        end = self.size if size is None or size < 0 else self._at + size
        piece = self._data[self._at : end][: Bucket.cut]
        self._at += len(piece)
        return piece

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def opened(*names):
    """Makes `s3://` this store, empty, with buckets of these names."""
    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = [""]
    Bucket.buckets, Bucket.unwell, Bucket.cut = set(names), None, None
    fsspec.register_implementation("s3", Bucket, clobber=True)
    return Bucket
