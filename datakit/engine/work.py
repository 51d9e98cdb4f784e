"""Work: what a stage may use besides its fields, what it writes to, and how it reports progress."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datakit.catalogue.manifest import Manifest
from datakit.errors import SourceError
from datakit.formats.tars import TarWriter
from datakit.records.tables import Extent
from datakit.storage.store import Sink, Store
from datakit.web import downloads
from datakit.web.hosts import Hosts
from datakit.web.pacing import Limits
from datakit.web.sidecars import read_sidecar, sidecar_path


class Progress:
    """Progress reports of running work; this class ignores them, datakit/commands/progress.py shows them.

    Each number is added to those before, except in `download`, whose bytes are the total so far.
    """

    def shards(self, n: int) -> None:
        """`n` more shards belong to this run."""

    def shards_done(self, n: int) -> None:
        """`n` more of them are done."""

    def rows_to_come(self, step: str, n: int) -> None:
        """A step has `n` more rows to make; a negative `n` takes rows back."""

    def rows(self, step: str, n: int) -> None:
        """A step has written `n` more rows."""

    def bytes(self, step: str, n: int) -> None:
        """A step has read or written `n` more bytes."""

    def faults(self, step: str, reason: str, n: int) -> None:
        """A step has met `n` more faults of one reason."""

    def download(self, address: str, n_bytes: int, of_bytes: int | None) -> None:
        """A download has `n_bytes` of `of_bytes` bytes; `of_bytes` is None where upstream doesn't give the size."""


def intact(path: Path) -> bool:
    """Whether a download is there with its recorded size; of a link to a user's file, whether the file is there."""
    said = read_sidecar(path)
    if said is None or not path.is_file():
        return False
    return path.is_symlink() or path.stat().st_size == said.get("size_bytes")


@dataclass(frozen=True)
class Work:
    """What a stage may use besides its fields: where it runs, not what comes out."""

    store: Store
    manifest: Manifest
    folder: str  # of the dataset below the root: its name, or name@limit-N for a trial
    step: str
    hosts: Hosts
    limits: Limits  # deadlines and sizes of a crawl
    limit: int | None = None  # rows of each annotation file that a trial reads
    imports: str | None = None  # an output folder of img2dataset to take pictures from
    progress: Progress = field(default_factory=Progress)
    made: bool = False  # whether `inputs` should name what a shard was made from, not what it would be made from now

    def path(self, name: str) -> str:
        """The path of a file in this step's folder, relative to the root."""
        return f"{self.folder}/{self.step}/{name}"

    @property
    def scratch(self) -> Path:
        """A folder for temporary files, on the disk of the root, or of the cache beside a bucket.

        It is the system's own when the root is read-only.
        """
        folder = self.store.downloads.parent
        closed = folder.exists() and not os.access(folder, os.W_OK)
        return Path(tempfile.gettempdir()) if closed else folder

    def download(self, address: str, *, in_place: bool = False) -> downloads.Downloaded:
        """An upstream file, complete and checked; downloaded if it isn't there. Raises DownloadError.

        With `in_place` a file on this machine is read where it is, and not copied.
        """
        address = self.manifest.at_commit(address)
        size, sha256 = self.manifest.expect(address)

        def tell(done: int, total: int | None) -> None:
            self.progress.download(address, done, total)

        expect = downloads.Expect(size_bytes=size, sha256=sha256)
        folder = self.store.downloads
        return downloads.download(address, folder, hosts=self.hosts, expect=expect, in_place=in_place, tell=tell)

    def sidecar(self, address: str) -> dict[str, Any] | None:
        """The sidecar of a file that was downloaded once, even if it was cleaned since; None without one. No network.

        When the user has edited the file that it was taken from, the sidecar is of the file as it is now. With `made`
        the sidecar of a copy stays as it was: shards were made from the copy.
        """
        address = self.manifest.at_commit(address)
        path = self.local(address)
        if self.made and not path.is_symlink():
            return read_sidecar(path)
        return downloads.edited_hash(address, self.store.downloads) or read_sidecar(path)

    def distrust(self, address: str, error: SourceError) -> SourceError:
        """Puts a download that can't be read aside, and returns the error with what to do next.

        A file of the user's stays: only our copy of it, or our link to it, is removed.
        """
        path = self.local(address)
        own = downloads.own_file(self.manifest.at_commit(address), self.store.downloads)
        if own is None and not path.exists():
            return error
        sidecar_path(path).unlink(missing_ok=True)
        if own is not None:
            path.unlink(missing_ok=True)
            return type(error)(f"{str(error).rstrip('.')}. That is {own}: mend it, and run the same command again")
        bad = path.with_name(f"{path.name}.bad")
        path.replace(bad)
        return type(error)(f"{str(error).rstrip('.')}. It was put aside as {bad}; the same command fetches it anew")

    def local(self, address: str) -> Path:
        """The path that a download is saved under."""
        return self.store.downloads / downloads.parse(self.manifest.at_commit(address)).folder


@dataclass
class Out:
    """What a stage writes to besides the rows it yields: counters, a log, and a tar if it wants one."""

    open_tar: Callable[[], Sink]
    tar_name: str  # relative to the root
    source: Any = None  # what `Stage.shared_source` yielded
    log: list[dict[str, Any]] = field(default_factory=list)  # rows of tables.LOG: values that differ from run to run
    dropped: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    bad_rows: int = 0  # rows with a fault; the step's ceiling limits them
    sink: Sink | None = None
    _tar: TarWriter | None = None

    def drop(self, reason: str, n: int = 1) -> None:
        """Counts rows that a rule dropped, which is no fault. Raises ValueError for a negative number."""
        if n < 0:
            raise ValueError(f"{n} rows can't be dropped ({reason})")
        if n:
            self.dropped[reason] += n

    def reject(self, reason: str, n: int = 1) -> None:
        """Counts rows that were dropped because something is wrong with them: a drop and a fault each."""
        self.drop(reason, n)
        if n:
            self.faults[reason] += n
            self.bad_rows += n

    def fail(self, reasons: list[str]) -> None:
        """Counts what is wrong with a row that is kept, such as the outcomes of its dead URLs."""
        self.faults.update(reasons)
        self.bad_rows += bool(reasons)

    @property
    def tar(self) -> TarWriter:
        """The tar of this part, `<name>.tar` beside its table."""
        if self._tar is None:
            self.sink = self.open_tar()
            self._tar = TarWriter(self.sink)  # type: ignore[arg-type]
        return self._tar

    def add(self, name: str, data: bytes) -> Extent:
        """Writes a picture into the tar; returns where its bytes are."""
        offset = self.tar.add(name, data)
        return {
            "file": self.tar_name, "offset": offset, "stored_bytes": len(data), "size_bytes": len(data), "method": 0
        }  # fmt: skip

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()
