"""Sidecars: what stands beside a download, and says what it is.

X                     the file, under its name only when it is whole
X.download.json       its size, hash, commit and address; written last
X.part, X.part.json   what has come so far, and of which version of the file
X.index.parquet, X.inside.*    what was made of it (datakit/web/derived.py)
.X.source.json, .X.link        of a file of the user's own (datakit/web/own.py)
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datakit.errors import DownloadError
from datakit.storage import store
from datakit.storage.store import publish_file
from datakit.web.derived import derived_files, remove


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


def finished_download(path: Path, expect: Expect) -> Downloaded | None:
    """The finished download at a path; None without a readable sidecar, or when the file hasn't the size it says."""
    sidecar = read_sidecar(path)
    try:
        if sidecar is None or path.stat().st_size != sidecar["size_bytes"] or _between(path):
            return None
        done = Downloaded(path=path, **{k: sidecar[k] for k in ("size_bytes", "sha256", "revision", "etag")})
    except (OSError, KeyError, TypeError):
        return None
    check(path, expect, size_bytes=done.size_bytes, sha256=done.sha256)
    return done


def _between(path: Path) -> bool:
    """Whether a kill came between the renaming of a new file and the writing of its sidecar."""
    return part_note(path).exists() and not part_path(path).exists()


def read_sidecar(path: Path) -> dict[str, Any] | None:
    """The contents of the sidecar; None when there is none that can be read."""
    try:
        sidecar = json.loads(sidecar_path(path).read_bytes())
    except (OSError, ValueError):
        return None
    return sidecar if isinstance(sidecar, dict) and isinstance(sidecar.get("sha256"), str) else None


def part_path(path: Path) -> Path:
    """Where a download lies until it is whole."""
    return path.with_name(path.name + ".part")


def part_note(path: Path) -> Path:
    """The file that says of which version of which file the part is."""
    return path.with_name(path.name + ".part.json")


def forget_part(path: Path) -> None:
    """Removes what an interrupted download left; once the file is finished nobody needs it."""
    part_note(path).unlink(missing_ok=True)
    part_path(path).unlink(missing_ok=True)


def sidecar_path(path: Path) -> Path:
    """The sidecar of a download: that it is finished, its size, hash, commit and address."""
    return path.with_name(path.name + ".download.json")


def declare(done: Downloaded, address: str, *, by_hand: bool = False) -> None:
    """Writes the sidecar, which makes the file finished; removes what was derived from another file of that name.

    With `by_hand` it says that a person has put the file there, so that nobody takes it for what upstream gives again.
    """
    for left in derived_files(done.path):
        remove(left)
    said = {**asdict(done), "url": address, **({"by_hand": True} if by_hand else {})}
    del said["path"]
    publish_file(sidecar_path(done.path), json.dumps(said, indent=2).encode() + b"\n")


def check(name: object, expect: Expect, *, size_bytes: int | None = None, sha256: str | None = None) -> None:
    """Raises DownloadError when a size or hash that is known isn't the one that was expected."""
    for what, got, due in (("size", size_bytes, expect.size_bytes), ("sha256", sha256, expect.sha256)):
        if got is not None and due is not None and got != due:
            raise DownloadError(
                f"{str(name)!r} has {what} {got!r}, and {due!r} was expected: upstream has changed, or the "
                ".sums is for another file. If the change is right, `datakit pin` writes it down"
            )


def sweep(folder: Path) -> None:
    """Removes what killed processes left beside downloads, but nothing that is locked or that can be resumed."""
    store.sweep(folder)
    for left in (*folder.glob("*.part"), *folder.glob(".*.link"), *folder.glob(".*.adopted")):
        # .adopted was made by earlier versions: `.X.PID.adopted`
        name = left.stem if left.suffix == ".part" else left.stem[1:]
        path = left.with_name(name.rpartition(".")[0] if left.suffix == ".adopted" else name)
        if left.suffix == ".part" and finished_download(path, Expect()) is None:
            continue
        with _unless_held(path.with_name(f"{path.name}.lock")) as free:
            if free and left.suffix == ".part":
                forget_part(path)
            elif free:
                left.unlink(missing_ok=True)


@contextmanager
def _unless_held(lock: Path) -> Iterator[bool]:
    """Yields whether the lock was free; if it was, holds it in the block and removes it after."""
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:  # a folder that can only be read, or one that is gone by now
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield False
    else:
        yield True
        lock.unlink(missing_ok=True)
    finally:
        os.close(handle)
