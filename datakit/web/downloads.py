"""Downloads: big single files of the hub and of the web; whole, checked, and fetched once.

1. `parse` says what an address in a manifest is, and in which folder its file lands.
2. `<file>.part` grows and `<file>.part.json` says of what, so that a killed download goes on where it was;
   it begins anew when upstream has another file by then.
3. Size and hash are checked, the file gets its name, and `<file>.download.json` is written last.

A file of this machine, which a manifest names or a person adopts, is copied in the same way, or read where it is (own).
The bytes come from `transfers`, one try at a time. `hf_hub_download` isn't used: in huggingface_hub 2.4.0 a
download that was killed begins again from nothing.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from datakit.errors import DownloadError, Incomplete, SourceError, UsageError
from datakit.storage.refusals import storage_errors
from datakit.storage.store import file_lock, replace
from datakit.web.addresses import HubFile, LocalFile, Source, WebFile, parse
from datakit.web.hosts import Hosts
from datakit.web.own import OwnFile
from datakit.web.part import BINARY, SHA256, Part
from datakit.web.sidecars import (
    Downloaded,
    Expect,
    check,
    declare,
    finished_download,
    forget_part,
    part_note,
    part_path,
    read_sidecar,
    sweep,
)
from datakit.web.transfers import Broken, Open, ask_web, find_hub, from_hub, from_web

__all__ = [
    "Downloaded",
    "Expect",
    "Head",
    "adopt",
    "bring",
    "check_not_html",
    "download",
    "head",
    "parse",
    "sweep",
    "with_retries",
]

TRIES = 5  # in a row without this much progress:
PROGRESS_BYTES = 1 << 20
BACKOFF_S = 1.0  # doubled with each try
LONGEST_PAUSE_S = 300.0

_COMMIT = re.compile(r"[0-9a-f]{40}")
Got = TypeVar("Got")
Tell = Callable[[int, int | None], None]  # bytes that are done, and of how many if that is known

log = logging.getLogger(__name__)


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
    in_place: bool = False,
    tell: Tell = lambda done, total: None,
) -> Downloaded:
    """Fetches a file, or finds it finished; `tell(bytes_done, total)` is called as it grows.

    A file of this machine is copied, and read where it is with `in_place`; it is taken again when it was edited.
    Raises DownloadError (what upstream said, and what to do), StorageError (no space) or RefusedUrl.
    """
    source = parse(address)
    path = Path(into, source.folder)
    expect = expect or Expect()
    if own := _own_file(source, path):
        if isinstance(source, LocalFile) or own.file.is_file():
            done = _take(own, address, in_place=in_place, tell=tell)
            check(path, expect, size_bytes=done.size_bytes, sha256=done.sha256)
            return done
        log.warning("%s was adopted for %s and is gone: it is fetched", own.file, address)
    if found := finished_download(path, expect):
        return found
    with _lock(path):
        if found := finished_download(path, expect):
            return found
        with storage_errors(path), Part(path, address) as part:
            _fetch(part, _opener(source, hosts), expect, tell)
            return part.finish(expect)


def _opener(source: Source, hosts: Hosts) -> Open:
    if isinstance(source, HubFile):
        return from_hub(source, hosts)
    assert isinstance(source, WebFile)  # a file of this machine is copied by `_copy`
    return from_web(source, hosts)


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
        version, _ = find_hub(source, hosts)
        # The hub's ETag is the sha256 of a big file and the git hash of a small one.
        sha256 = version.etag if SHA256.fullmatch(version.etag or "") else None
        return Head(repo=source.repo, revision=version.revision, size_bytes=version.total, sha256=sha256)

    return with_retries(ask, f"{address!r} could not be asked about")


def with_retries(ask: Callable[[], Got], failed: str) -> Got:
    """What `ask` returns; tries again while that may help. Raises DownloadError, which begins with `failed`."""
    tries = 0
    while True:
        try:
            return ask()
        except Broken as broken:
            tries += 1
            if not _worth_a_try(broken, tries):
                raise DownloadError(f"{failed}: {broken}. Run the same command again later") from broken


def edited_hash(address: str, into: Path) -> dict[str, str] | None:
    """`{"sha256": …}` of a user's file that was edited since it was taken; None when it is unchanged, or gone."""
    source = parse(address)
    path = Path(into, source.folder)
    own, sidecar = _own_file(source, path), read_sidecar(path)
    if own is None or sidecar is None or not own.file.is_file():
        return None
    now = own.sha256()
    return None if now == sidecar["sha256"] else {"sha256": now}


def abandoned_parts(address: str, into: Path) -> list[Path]:
    """Unfinished downloads of a hub's file at other revisions than the present one, which nothing will resume."""
    source = parse(address)
    if not isinstance(source, HubFile):
        return []
    ours = Path(into, source.folder)
    revisions = ours.parents[source.path.count("/")].parent  # …/OWNER/REPO
    found = (part_path(folder / source.path) for folder in sorted(revisions.glob("*")) if folder / source.path != ours)
    return [
        left for part in found if part.exists() for left in (part, part_note(part.with_suffix(""))) if left.exists()
    ]


def own_file(address: str, into: Path) -> Path | None:
    """The user's file of which a download is a copy, or to which it is a link; None when there is none."""
    source = parse(address)
    own = _own_file(source, Path(into, source.folder))
    return None if own is None else own.file


def check_unedited(path: Path) -> None:
    """Raises Incomplete when a download is a link to a file that was edited: a reader may have met both versions."""
    if not path.is_symlink():
        return
    sidecar = read_sidecar(path)
    if sidecar is None or OwnFile(_target(path), path).sha256() != sidecar["sha256"]:
        raise Incomplete(f"{str(_target(path))!r} was edited while it was read: run the same command again")


def _own_file(source: Source, path: Path) -> OwnFile | None:
    if isinstance(source, LocalFile):
        return OwnFile(Path(source.path), path)
    return OwnFile(_target(path), path, _commit(source)) if path.is_symlink() else None


def _target(link: Path) -> Path:
    return Path(link.parent, link.readlink())


def _take(own: OwnFile, address: str, *, in_place: bool, tell: Tell) -> Downloaded:
    """Copies a user's file, or with `in_place` links to it, unless that is done and the file unchanged since."""

    def up_to_date() -> Downloaded | None:
        found = finished_download(own.path, Expect())
        if not own.file.is_file():
            return found
        if found is None or (own.path.is_symlink() and not in_place) or _shares_its_bytes(own):
            return None
        return found if own.sha256() == found.sha256 else None

    if found := up_to_date():
        return found
    _check_readable(own)
    with _lock(own.path):
        return up_to_date() or (_link(own, address, tell) if in_place else _copy(own, address, tell))


def _check_readable(own: OwnFile) -> None:
    """Raises DownloadError when the user's file is gone or forbidden, SourceError when it is a web page."""
    with own.open_file():
        if own.path.suffix.lower() in BINARY:
            check_not_html(own.file)


def _shares_its_bytes(own: OwnFile) -> bool:
    """Whether a download is a hard link to the user's file, as earlier versions made them."""
    return not own.path.is_symlink() and own.path.samefile(own.file)


def _copy(own: OwnFile, address: str, tell: Tell) -> Downloaded:
    with storage_errors(own.path), Part(own.path, address) as part:
        _fetch(part, own.open_at, Expect(), tell)
        done = part.finish(Expect())
    own.remember_copy(done.sha256)
    return done


def _link(own: OwnFile, address: str, tell: Tell) -> Downloaded:
    link = own.path.with_name(f".{own.path.name}.link")
    try:
        link.unlink(missing_ok=True)  # of one that was killed here
        link.symlink_to(own.file)
    except OSError:  # a file system without links; copying says what else may be wrong
        return _copy(own, address, tell)
    sha256 = own.sha256(tell)
    done = Downloaded(
        path=own.path, size_bytes=own.file.stat().st_size, sha256=sha256, revision=own.revision, etag=None
    )
    with storage_errors(own.path):
        replace(link, own.path)
        declare(done, address)
        forget_part(own.path)
    return done


@cache  # a folder may hold 23,000 files, and is looked through once in a process
def _sweep_once(folder: Path) -> None:
    sweep(folder)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds the lock of a download, so that nobody else makes it meanwhile."""
    lock = path.with_name(path.name + ".lock")
    _sweep_once(path.parent)
    with file_lock(lock):
        yield
        lock.unlink(missing_ok=True)


def adopt(path: Path, address: str) -> Downloaded:
    """Declares a file finished that datakit didn't download, and that stands where its download would land.

    `path` ends with `parse(address).folder`.
    """
    source = parse(address)
    if path.absolute().parts[-len(Path(source.folder).parts) :] != Path(source.folder).parts:
        raise UsageError(f"{str(path)!r} is not where {address!r} lands: move it to …/{source.folder}")
    if not path.is_file():
        raise UsageError(f"there is no file {str(path)!r}: put the file of {address!r} there first")
    if path.suffix.lower() in BINARY:
        check_not_html(path)
    with _lock(path):
        with storage_errors(path), path.open("rb") as file:
            os.fsync(file.fileno())  # before the sidecar, which may be all that a crash leaves otherwise
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size_bytes = os.fstat(file.fileno()).st_size
        done = Downloaded(path=path, size_bytes=size_bytes, sha256=sha256, revision=_commit(source), etag=None)
        declare(done, address, by_hand=True)
        forget_part(path)
    return done


def bring(file: Path, address: str, into: Path, *, tell: Tell = lambda done, total: None) -> Downloaded:
    """Adopts a file from elsewhere on this machine: a link to it on one file system, a copy from another.

    The user's file is never written to, and a good file that stands in its place stays until the new one is whole.
    """
    if not file.is_file():
        raise UsageError(f"there is no file {str(file)!r}")
    source = parse(address)
    path, file = Path(into, source.folder), file.resolve()
    if path.resolve() == file and not path.is_symlink():
        return adopt(path, address)
    own = OwnFile(file, path, _commit(source))
    _check_readable(own)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path):
        return _link(own, address, tell) if own.is_on_same_disk() else _copy(own, address, tell)


def _commit(source: Source) -> str | None:
    return source.revision if isinstance(source, HubFile) and _COMMIT.fullmatch(source.revision) else None


def check_not_html(path: Path) -> None:
    """Raises SourceError for a file that begins as a web page does; for files that should be data."""
    with path.open("rb") as file:
        if file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            raise SourceError(
                f"{str(path)!r} is a web page where data was due: delete it, and open its address in a "
                "browser to see what the page asks for"
            )


def _fetch(part: Part, opener: Open, expect: Expect, tell: Tell) -> None:
    """Downloads into a part until it is whole; tries again while that may help."""
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
