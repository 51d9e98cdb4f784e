"""Stage: one step of a pipeline, as a frozen dataclass with one generator.

A stage's fields and `version`, and what it says of the manifest in `identity`, are all that can change a
byte of its output. Whatever else it needs (the store, who may be connected to, progress) comes in `Work`.
Raise `version` when the code makes other bytes than before.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from datakit import usercode  # importing it lets a stage of a user's recipe be unpickled, see Stage
from datakit.errors import Incomplete, ManifestError, SourceError, shortlist
from datakit.fingerprint import plain
from datakit.manifest import Manifest
from datakit.store import Sink, Store
from datakit.tables import Extent, Rows
from datakit.tars import TarWriter
from datakit.web import downloads
from datakit.web.hosts import Hosts
from datakit.web.pacing import Limits
from datakit.web.sidecars import said_of, sidecar_of

# (step, what, amount): "shards" and "done" of the run; "total" (rows to come), "rows", "bytes" and "fault REASON" of a
# step, added up; "size ADDRESS" and "download ADDRESS" in bytes so far.
Tell = Callable[[str, str, int], None]


def silent(step: str, what: str, amount: int) -> None:
    """A Tell that tells nobody."""


def intact(path: Path) -> bool:
    """Whether a download is there with the size that it had when it came; a user's file, read in place, is there."""
    said = said_of(path)
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
    tell: Tell = silent
    made: bool = False  # whether it is asked what something was made from, not what it would be made from now

    def path(self, name: str) -> str:
        """A name of this step's folder, relative to the root."""
        return f"{self.folder}/{self.step}/{name}"

    @property
    def scratch(self) -> Path:
        """A folder on the disk of the root, or of the cache beside a bucket, for what is only needed meanwhile.

        The system's own where that can only be read.
        """
        folder = self.store.downloads.parent
        closed = folder.exists() and not os.access(folder, os.W_OK)
        return Path(tempfile.gettempdir()) if closed else folder

    def download(self, address: str, *, in_place: bool = False) -> downloads.Downloaded:
        """A whole, checked upstream file; fetched if it isn't there. Raises DownloadError.

        With `in_place` a file of this machine is read where it is, and not copied.
        """
        address = self.manifest.at_commit(address)
        size, sha256 = self.manifest.expect(address)

        def tell(done: int, total: int | None) -> None:
            if total is not None:
                self.tell(self.step, f"size {address}", total)
            self.tell(self.step, f"download {address}", done)

        expect = downloads.Expect(size_bytes=size, sha256=sha256)
        place = self.store.downloads
        return downloads.download(address, place, hosts=self.hosts, expect=expect, in_place=in_place, tell=tell)

    def known(self, address: str) -> dict[str, Any] | None:
        """The sidecar of a file that was downloaded once, even if it was cleaned since; no network.

        When it was taken from a file of the user's that was edited since, what that one has become; but where it is
        asked for what was `made`, a copy is what it was made from, whatever the original is by then.
        """
        address = self.manifest.at_commit(address)
        path = self.local(address)
        if self.made and not path.is_symlink():
            return said_of(path)
        return downloads.edited(address, self.store.downloads) or said_of(path)

    def distrust(self, address: str, error: SourceError) -> SourceError:
        """Puts a download aside that can't be read, and returns the error with the way on.

        Of a file of the user's only our copy or our link goes.
        """
        path = self.local(address)
        own = downloads.own_file(self.manifest.at_commit(address), self.store.downloads)
        if own is None and not path.exists():
            return error
        sidecar_of(path).unlink(missing_ok=True)
        if own is not None:
            path.unlink(missing_ok=True)
            return type(error)(f"{str(error).rstrip('.')}. That is {own}: mend it, and run the same command again")
        bad = path.with_name(f"{path.name}.bad")
        path.replace(bad)
        return type(error)(f"{str(error).rstrip('.')}. It was put aside as {bad}; the same command fetches it anew")

    def local(self, address: str) -> Path:
        """Where a download lands."""
        return self.store.downloads / downloads.parse(self.manifest.at_commit(address)).folder


@dataclass
class Out:
    """What a stage writes to besides the rows it yields: counters, a log, and a tar if it wants one."""

    open_tar: Callable[[], Sink]
    tar_name: str  # relative to the root
    source: Any = None  # what `Stage.opened` gave
    log: list[dict[str, Any]] = field(default_factory=list)  # tables.LOG: what differs from run to run
    dropped: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    bad_rows: int = 0  # rows with a fault, which the step's ceiling is for
    sink: Sink | None = None
    _tar: TarWriter | None = None

    def drop(self, reason: str, n: int = 1) -> None:
        """Counts rows that a rule left out: a choice, not a fault. Raises ValueError for a negative number."""
        if n < 0:
            raise ValueError(f"{n} rows can't be dropped ({reason})")
        if n:
            self.dropped[reason] += n

    def reject(self, reason: str, n: int = 1) -> None:
        """Counts rows that were left out because something is wrong with them."""
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
        """Writes a picture into the tar; returns where its bytes stand."""
        offset = self.tar.add(name, data)
        return {
            "file": self.tar_name, "offset": offset, "stored_bytes": len(data), "size_bytes": len(data), "method": 0
        }  # fmt: skip

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The parent of stages. One without an upstream (a listing) gets empty Rows and answers `shards`.

    One that a user's recipe file defines works in every process: see datakit/usercode.py.
    """

    version: ClassVar[int] = 1
    rows_per_part: ClassVar[int | None] = None  # how many input rows make one table (and tar) of a shard
    tars: ClassVar[bool] = False  # whether there is always a tar beside the table, be it empty
    reads_annotations: ClassVar[bool] = False  # whether it goes through upstream's rows once more

    def identity(self, manifest: Manifest) -> dict[str, Any]:
        """What recipe.json says: class, version, fields, and the parts of the manifest that matter."""
        parts = {} if self.rows_per_part is None else {"rows_per_part": self.rows_per_part}
        return {"stage": type(self).__name__, "version": self.version, **parts, **plain(self)}

    def check(self, work: Work) -> None:
        """Raises what would stop `prepare` for want of something that only a person can bring; no network."""

    def prepare(self, work: Work) -> None:
        """Done once, before any shard that isn't done: downloads, plans."""

    def shards(self, work: Work) -> list[int]:
        """The shards there are; only asked of the first step of a pipeline."""
        raise Incomplete(f"{type(self).__name__} can't be the first step of a pipeline")

    def inputs(self, work: Work, shard: int) -> dict[str, str] | None:
        """Upstream files that a shard is made from, by sha256. None: not known without the network."""
        return {}

    def needs(self, work: Work) -> list[Path]:
        """Files outside the step's folder that its rows point into, such as archives."""
        return []

    def schema(self, rows: Rows, manifest: Manifest) -> pa.Schema:
        """The schema of what `rows` yields."""
        return rows.schema()

    def opened(self, parts: list[Rows], work: Work) -> AbstractContextManager[Any]:
        """What the parts of a shard share while they are made, one after the other; `rows` finds it in `out.source`."""
        return nullcontext()

    def rows(self, rows: Rows, work: Work, out: Out) -> Iterator[pa.RecordBatch]:
        """The rows that this stage makes of its input rows."""
        raise NotImplementedError


def batches(stage: Stage, rows: Rows, work: Work, out: Out) -> Generator[pa.RecordBatch, None, None]:
    """What a stage makes of its rows. Raises ManifestError for what isn't RecordBatches of its schema."""
    schema, made = stage.schema(rows, work.manifest), stage.rows(rows, work, out)
    whose = type(stage).__name__
    if usercode.is_ours(type(stage).__module__):
        whose += f" of {sys.modules[type(stage).__module__].__file__}"
    if not isinstance(made, Generator):
        raise ManifestError(f"stage {whose}: `rows` should be a generator, one that yields, and not return {made!r}")
    try:
        for batch in made:
            if not isinstance(batch, pa.RecordBatch):
                raise ManifestError(f"stage {whose}: `rows` should yield pyarrow.RecordBatch, not {batch!r:.100}")
            if not batch.schema.equals(schema):
                names = f"{shortlist(batch.schema.names, 20)}, where its schema has {shortlist(schema.names, 20)}"
                raise ManifestError(f"stage {whose}: `rows` yields {names}: say in `schema` what comes out")
            yield batch
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{work.folder}/{work.step} shard {rows.shard}: a text of its rows isn't UTF-8: {error}. If an older "
            f"datakit listed it, remove {work.folder}/list/{rows.shard:05d}.commit.json and run the same command again"
        ) from error
    finally:
        made.close()


@dataclass(frozen=True, kw_only=True)
class Step:
    """A stage with the name of its folder, and how much may go wrong in it."""

    name: str
    stage: Stage
    tolerates: float = (
        0.05  # share of a part's rows that may be faults (a few always may, see runner.FEW); more stop the shard
    )
