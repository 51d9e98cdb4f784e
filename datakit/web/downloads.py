"""Downloads: big single files of the hub and of the web; whole, checked, and fetched once.

1. `parse` says what an address in a manifest is, and in which folder its file lands.
2. `<file>.part` grows and `<file>.part.json` says of what, so that a killed download goes on where it was;
   it begins anew when upstream has another file by then.
3. Size and hash are checked, the file gets its name, and `<file>.download.json` is written last.

The bytes come from `transfers`, one try at a time. `hf_hub_download` isn't used: in huggingface_hub 2.4.0 a
download that was killed begins again from nothing.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from datakit.errors import DownloadError, SourceError, StorageError, UsageError
from datakit.refusals import storage_errors
from datakit.store import locked, publish_file, replace
from datakit.web.addresses import HubFile, LocalFile, parse
from datakit.web.hosts import Hosts
from datakit.web.transfers import PIECE_BYTES, Broken, Open, Reply, Version, ask_web, find_hub, from_hub, from_web

__all__ = ["Downloaded", "Expect", "Head", "adopt", "bring", "check_not_html", "download", "head", "parse", "tried"]

TRIES = 5  # in a row without this much progress:
PROGRESS_BYTES = 1 << 20
BACKOFF_S = 1.0  # doubled with each try
LONGEST_PAUSE_S = 300.0

BINARY = (".json", ".jsonl", ".parquet", ".zip", ".tar", ".gz", ".tgz")  # none of them begins with `<`
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
Got = TypeVar("Got")


@dataclass(frozen=True, kw_only=True)
class Expect:
    """What a `.sums` file knows about a download."""

    size_bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """A finished file."""

    path: Path
    size_bytes: int
    sha256: str
    revision: str | None
    """The commit of a hub file."""
    etag: str | None


@dataclass(frozen=True, kw_only=True)
class Head:
    """What upstream says of a file before it is fetched; None where it says nothing."""

    repo: str | None
    """OWNER/REPO of a hub file."""
    revision: str | None
    """The commit of a hub file, 40 hex digits."""
    size_bytes: int | None
    sha256: str | None
    """Known of the hub's big files only."""


def download(
    address: str,
    into: Path,
    *,
    hosts: Hosts,
    expect: Expect | None = None,
    tell: Callable[[int, int | None], None] | None = None,
) -> Downloaded:
    """Fetches a file, or finds it finished; `tell(bytes_done, total)` is called as it grows.

    Raises DownloadError (what upstream said, and what to do), StorageError (no space) or RefusedUrl.
    """
    source = parse(address)
    path = Path(into, source.folder)
    expect = expect or Expect()
    if isinstance(source, LocalFile):
        return _local(Path(source.path), address, path, into)
    if done := _finished(path, expect):
        return done
    lock = path.with_name(path.name + ".lock")
    with locked(lock):
        if done := _finished(path, expect):
            return done
        with storage_errors(path), _Part(path, address) as part:
            opener = from_hub(source) if isinstance(source, HubFile) else from_web(source, hosts)
            _fetch(part, opener, expect, tell or (lambda done, total: None))
            done = part.finish(expect)
        lock.unlink(missing_ok=True)
    return done


def head(address: str, *, hosts: Hosts) -> Head:
    """Asks upstream which file it has now, without fetching it. Raises what `download` raises."""
    source = parse(address)

    def ask() -> Head:
        if isinstance(source, LocalFile):
            there = Path(source.path)
            size = there.stat().st_size if there.is_file() else None
            return Head(repo=None, revision=None, size_bytes=size, sha256=None)
        if not isinstance(source, HubFile):
            return Head(repo=None, revision=None, size_bytes=ask_web(source, hosts).total, sha256=None)
        version, _ = find_hub(source)
        # The hub's ETag is the sha256 of a big file and the git hash of a small one.
        sha256 = version.etag if _SHA256.fullmatch(version.etag or "") else None
        return Head(repo=source.repo, revision=version.revision, size_bytes=version.total, sha256=sha256)

    return tried(ask, f"{address!r} could not be asked about")


def tried(ask: Callable[[], Got], failed: str) -> Got:
    """What `ask` returns, asked again while that may help. Raises DownloadError, which begins with `failed`."""
    tries = 0
    while True:
        try:
            return ask()
        except Broken as broken:
            tries += 1
            if not _worth_a_try(broken, tries):
                raise DownloadError(f"{failed}: {broken}. Run the same command again later") from broken


def changed(address: str, into: Path) -> dict[str, str] | None:
    """What stands for a file of this machine that was replaced since it was taken; None when it wasn't."""
    source = parse(address)
    path, file = Path(into, source.folder), Path(getattr(source, "path", ""))
    if not isinstance(source, LocalFile) or not file.is_file() or not path.exists():
        return None
    here, there = path.stat(), file.stat()
    if there.st_size == here.st_size and there.st_mtime_ns <= here.st_mtime_ns:
        return None
    return {"sha256": f"{there.st_size} bytes of {there.st_mtime_ns}"}


def _local(file: Path, address: str, path: Path, into: Path) -> Downloaded:
    """A file of this machine, linked or copied; again when it was replaced since."""
    done = _finished(path, Expect())
    if done and path.exists() and not changed(address, into):
        return done
    if not file.is_file():
        raise DownloadError(f"there is no file {str(file)!r}, which the manifest names: has it moved?")
    return bring(file, address, into)


def adopt(path: Path, address: str, *, sha256: str | None = None) -> Downloaded:
    """Declares a file finished that came by another way and stands where its download would land.

    `path` ends with `parse(address).folder`. Its hash is computed unless given, which is taken on trust.
    """
    source = parse(address)
    if path.absolute().parts[-len(Path(source.folder).parts) :] != Path(source.folder).parts:
        raise UsageError(f"{str(path)!r} is not where {address!r} lands: move it to …/{source.folder}")
    if not path.is_file():
        raise UsageError(f"there is no file {str(path)!r}: put the file of {address!r} there first")
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise UsageError(f"{sha256!r} is no sha256: give 64 hex digits in lower case, or leave it out")
    if path.suffix.lower() in BINARY:
        check_not_html(path)
    lock = path.with_name(path.name + ".lock")
    with locked(lock):
        with storage_errors(path), path.open("rb") as file:
            os.fsync(file.fileno())  # before the sidecar, which may be all that a crash leaves otherwise
            sha256 = sha256 or hashlib.file_digest(file, "sha256").hexdigest()
            size_bytes = os.fstat(file.fileno()).st_size
        commit = source.revision if isinstance(source, HubFile) and _COMMIT.fullmatch(source.revision) else None
        done = Downloaded(path=path, size_bytes=size_bytes, sha256=sha256, revision=commit, etag=None)
        _declare(done, address)
        for left in (".part.json", ".part"):  # of a download that this file makes needless
            path.with_name(path.name + left).unlink(missing_ok=True)
        lock.unlink(missing_ok=True)
    return done


def bring(file: Path, address: str, into: Path) -> Downloaded:
    """Adopts a file from elsewhere on this machine: linked where the file system can, copied where it can't.

    The user's file is never written to: what an interrupted download left, and might go on with, is removed
    before the link is there.
    """
    if not file.is_file():
        raise UsageError(f"there is no file {str(file)!r}")
    path = Path(into, parse(address).folder)
    if path.exists() and path.samefile(file):
        return adopt(path, address)
    if path.suffix.lower() in BINARY:
        check_not_html(file)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as data:
            sha256 = hashlib.file_digest(data, "sha256").hexdigest()
        aside = path.with_name(f".{path.name}.{os.getpid()}.adopted")
        with locked(path.with_name(path.name + ".lock")):
            for left in (".part.json", ".part", ".download.json"):
                path.with_name(path.name + left).unlink(missing_ok=True)
            try:
                os.link(file.resolve(), aside)
            except OSError:  # another disk, or a file system without links; copying says what else may be wrong
                shutil.copyfile(file, aside)
            replace(aside, path)
    return adopt(path, address, sha256=sha256)


def check_not_html(path: Path) -> None:
    """Raises SourceError for a file that begins as a web page does; for files that should be data."""
    with path.open("rb") as file:
        if file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            raise SourceError(
                f"{str(path)!r} is a web page where data was due: delete it, and open its address in a "
                "browser to see what the page asks for"
            )


def _finished(path: Path, expect: Expect) -> Downloaded | None:
    """What the sidecar says, when it is there and the file has the size that it says."""
    try:
        said = json.loads(_sidecar(path).read_bytes())
        if path.stat().st_size != said["size_bytes"]:
            return None
        done = Downloaded(path=path, **{k: said[k] for k in ("size_bytes", "sha256", "revision", "etag")})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    _check(path, expect, size_bytes=done.size_bytes, sha256=done.sha256)
    return done


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".download.json")


def made_of(path: Path) -> list[Path]:
    """What stands beside a download because it was made of it: an archive's index, a JSON that was taken out."""
    inside = path.parent.glob(f"{glob.escape(path.name)}.inside.*")
    return [path.with_name(f"{path.name}.index.parquet"), *(one for one in inside if one.suffix != ".lock")]


def _declare(done: Downloaded, address: str) -> None:
    """Writes the sidecar: from now on the file is finished, and what was made of another in its place goes."""
    for left in made_of(done.path):
        left.unlink(missing_ok=True)
    said = {**asdict(done), "url": address}
    del said["path"]
    publish_file(_sidecar(done.path), json.dumps(said, indent=2).encode() + b"\n")


def _check(name: object, expect: Expect, *, size_bytes: int | None = None, sha256: str | None = None) -> None:
    for what, got, due in (("size", size_bytes, expect.size_bytes), ("sha256", sha256, expect.sha256)):
        if got is not None and due is not None and got != due:
            raise DownloadError(
                f"{str(name)!r} has {what} {got!r}, and {due!r} was expected: upstream has changed, or the "
                ".sums is for another file. If the change is right, `datakit pin` writes it down"
            )


def _fetch(part: _Part, opener: Open, expect: Expect, tell: Callable[[int, int | None], None]) -> None:
    """Lets a part grow until it is whole; tries again while that helps."""
    tries, before = 0, part.size
    while not part.whole:
        try:
            with opener(part.size, part.version) as reply:
                part.begin(reply, expect)
                tell(part.size, reply.version.total)
                for piece in reply.pieces:
                    part.add(piece, expect)
                    tell(part.size, reply.version.total)
            if reply.version.total in (None, part.size):
                return
            raise Broken(f"it ended after {part.size:,} of {reply.version.total:,} bytes")
        except Broken as broken:
            if broken.drop:
                part.restart(None)
            if part.size - before >= PROGRESS_BYTES:
                tries = 0
            tries, before = tries + 1, part.size
            if not _worth_a_try(broken, tries):
                raise DownloadError(
                    f"{part.address!r} could not be fetched: {broken}. The {part.size:,} bytes that came are "
                    "kept; run the same command again to go on"
                ) from broken


def _worth_a_try(broken: Broken, tries: int) -> bool:
    """Waits before the next try; False when enough were made, or when upstream wants a longer wait."""
    pause = BACKOFF_S * 2 ** (tries - 1) if broken.after_s is None else broken.after_s
    if tries >= TRIES or pause > LONGEST_PAUSE_S:
        return False
    time.sleep(pause)
    return True


class _Part:
    """A file that grows beside its final name, hashed as it does, and what it is a part of."""

    def __init__(self, path: Path, address: str) -> None:
        self.path, self.address = path, address
        self.size = 0
        self.version: Version | None = None
        self._file = path.with_name(path.name + ".part")
        self._note = path.with_name(path.name + ".part.json")
        self._hash = hashlib.sha256()
        self._suffix = path.suffix.lower()
        self._handle = -1

    def __enter__(self) -> _Part:
        with suppress(OSError, ValueError, TypeError):
            self.version = Version(**json.loads(self._note.read_bytes()))
        if self.version and self.path.exists() and not self._file.exists():
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
        """Gets ready for what a reply brings, unless it can be told that it won't do."""
        total = reply.version.total
        if reply.headers.get("Content-Encoding", "identity") != "identity" and self._suffix != ".gz":
            raise DownloadError(f"{self.address!r} is sent compressed although that wasn't asked for: fetch it by hand")
        _check(self.address, expect, size_bytes=total)
        if not reply.start:
            self.restart(reply.version)
        self.version = reply.version
        free = shutil.disk_usage(self.path.parent).free
        if total is not None and total - self.size > free:
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
            _check(self.address, expect, size_bytes=self.size, sha256=sha256)
            # The hub's ETag of a big file is its hash.
            if version.revision and _SHA256.fullmatch(version.etag or "") and version.etag != sha256:
                raise DownloadError(f"{self.address!r} came damaged: run the same command again")
        except DownloadError:
            self.restart(None)
            raise
        os.fsync(self._handle)
        replace(self._file, self.path)
        done = Downloaded(
            path=self.path, size_bytes=self.size, sha256=sha256, revision=version.revision, etag=version.etag
        )
        _declare(done, self.address)
        self._note.unlink(missing_ok=True)
        return done

    def restart(self, version: Version | None) -> None:
        os.ftruncate(self._handle, 0)
        os.lseek(self._handle, 0, os.SEEK_SET)
        self.size, self._hash, self.version = 0, hashlib.sha256(), version
        if version:
            publish_file(self._note, json.dumps(asdict(version)).encode())
        else:
            self._note.unlink(missing_ok=True)

    def _no_space(self, what: str) -> str:
        return (
            f"no space for {str(self.path)!r}: {what}. The {self.size:,} bytes that came are kept; free some "
            "space and run the same command again"
        )
