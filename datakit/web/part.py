"""Part: a file that grows beside its final name until it is whole, and what it is a part of."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from datakit.errors import DownloadError, StorageError
from datakit.storage.store import publish_file, replace
from datakit.web.sidecars import Downloaded, Expect, check, declare, part_note, part_path
from datakit.web.transfers import PIECE_BYTES, Reply, Version

BINARY = (".json", ".jsonl", ".parquet", ".zip", ".tar", ".gz", ".tgz")  # none of them begins with `<`
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
SHA256 = re.compile(r"[0-9a-f]{64}")


class Part:
    """A file that grows beside its final name, hashed as it does, and what it is a part of."""

    def __init__(self, path: Path, address: str) -> None:
        self.path, self.address = path, address
        self.size = 0
        self.version: Version | None = None
        self._file, self._note = part_path(path), part_note(path)
        self._cloned = False
        self._hash = hashlib.sha256()
        self._suffix = path.suffix.lower()
        self._handle = -1

    def __enter__(self) -> Part:
        with suppress(OSError, ValueError, TypeError):
            self.version = Version(**json.loads(self._note.read_bytes()))
        if self.version and self.path.exists() and not self._file.exists() and not self.path.is_symlink():
            self.path.replace(self._file)  # it was killed between the rename and the sidecar
        self._handle = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
        while self.version and (piece := os.read(self._handle, PIECE_BYTES)):
            self._hash.update(piece)
            self.size += len(piece)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)
        if not self.size and self.version is None:  # upstream has no such file, or nothing came of it
            self._file.unlink(missing_ok=True)

    @property
    def whole(self) -> bool:
        return self.version is not None and self.version.total == self.size

    def begin(self, reply: Reply, expect: Expect) -> None:
        """Gets ready for the bytes of a reply. Raises DownloadError, and StorageError where space is short."""
        total = reply.version.total
        if reply.headers.get("Content-Encoding", "identity") != "identity" and self._suffix != ".gz":
            raise DownloadError(f"{self.address!r} is sent compressed although that wasn't asked for: fetch it by hand")
        check(self.address, expect, size_bytes=total)
        if not reply.start:
            self.restart(reply.version)
            self._cloned = reply.clone is not None and reply.clone(self._handle)
        self.version = reply.version
        free = shutil.disk_usage(self.path.parent).free
        if total is not None and total - self.size > free and not self._cloned:
            raise StorageError(self._no_space(f"{total - self.size:,} bytes are needed and {free:,} are free"))

    def add(self, piece: bytes, expect: Expect) -> None:
        total = self.version.total if self.version else None
        if self.size == 0 and self._suffix in BINARY and piece.lstrip().startswith(b"<"):
            self.restart(None)
            raise DownloadError(
                f"{self.address!r} gives a web page and not the file {self.path.name!r}: open it in a "
                "browser to see what the page asks for"
            )
        most = total if expect.size_bytes is None else expect.size_bytes
        if most is not None and self.size + len(piece) > most:
            self.restart(None)
            raise DownloadError(f"{self.address!r} sends more than the {most:,} bytes that it should have")
        left = memoryview(piece)
        if self._cloned:  # the bytes are there already
            self._hash.update(piece)
            self.size += len(piece)
            return
        while left:
            try:
                n = os.write(self._handle, left)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                more = "more space" if total is None else f"{total - self.size:,} bytes more"
                raise StorageError(self._no_space(f"{more} are needed")) from error
            self._hash.update(left[:n])
            self.size += n
            left = left[n:]

    def finish(self, expect: Expect) -> Downloaded:
        """Checks the file, gives it its name, and writes the sidecar last."""
        version = self.version or Version(url=self.address)
        sha256 = self._hash.hexdigest()
        try:
            check(self.address, expect, size_bytes=self.size, sha256=sha256)
            # The hub's ETag of a big file is its hash.
            if version.revision and SHA256.fullmatch(version.etag or "") and version.etag != sha256:
                raise DownloadError(f"{self.address!r} came damaged: run the same command again")
        except DownloadError:
            self.restart(None)
            raise
        os.fsync(self._handle)
        replace(self._file, self.path)
        done = Downloaded(
            path=self.path, size_bytes=self.size, sha256=sha256, revision=version.revision, etag=version.etag
        )
        declare(done, self.address)
        self._note.unlink(missing_ok=True)
        return done

    def restart(self, version: Version | None) -> None:
        os.ftruncate(self._handle, 0)
        os.lseek(self._handle, 0, os.SEEK_SET)
        self.size, self._hash, self.version, self._cloned = 0, hashlib.sha256(), version, False
        if version:
            publish_file(self._note, json.dumps(asdict(version)).encode())
        else:
            self._note.unlink(missing_ok=True)

    def _no_space(self, what: str) -> str:
        return (
            f"no space for {str(self.path)!r}: {what}. The {self.size:,} bytes that came are kept; free some "
            "space and run the same command again"
        )
