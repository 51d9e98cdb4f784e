"""Derived files: what was made of a download and stands beside it, an archive's index or a JSON taken out.

`<file>.of` is written after each: of which bytes it was made (the download's sha256), and its own size and hash. A file
without one, or that doesn't fit it, is made again.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from datakit.storage.store import publish_file, xxh3


class Origin(msgspec.Struct, frozen=True):
    """What a derived file was made of, and what it is."""

    sha256: str  # of the download
    size_bytes: int
    xxh3: str  # of the derived file, 128 bits


def of_path(path: Path) -> Path:
    """The file that says what a derived file was made of."""
    return path.with_name(f"{path.name}.of")


def declare(path: Path, sha256: str) -> None:
    """Records that a derived file is finished, and that it was made of a download with that hash."""
    origin = Origin(sha256, path.stat().st_size, _hash(path))
    publish_file(of_path(path), msgspec.json.encode(origin) + b"\n")


def fits(path: Path, sha256: str, *, whole: bool = False) -> bool:
    """Whether a derived file is there and was made of a download with that hash; `whole` reads it to be sure."""
    origin = _declaration(path)
    if origin is None or origin.sha256 != sha256:
        return False
    return damage(path) is None if whole else path.is_file() and path.stat().st_size == origin.size_bytes


def damage(path: Path) -> str | None:
    """What is wrong with a derived file that was declared; None when its bytes are those that were made."""
    origin = _declaration(path)
    if origin is None:
        return "what is said of it can't be read"
    if not path.is_file():
        return "the file is missing"
    if path.stat().st_size != origin.size_bytes or _hash(path) != origin.xxh3:
        return "the bytes aren't those that were made"
    return None


def has_declaration(path: Path) -> bool:
    """Whether a derived file was declared; earlier versions declared none, and theirs are made again."""
    return of_path(path).exists()


def derived_files(download: Path) -> list[Path]:
    """The derived files of a download that are there."""
    index = download.with_name(f"{download.name}.index.parquet")
    inside = download.with_name(f"{download.name}.inside")
    found = [path for path in download.parent.glob("*") if path.name.startswith(f"{inside.name}.")]
    return sorted(path for path in [index, *found] if path.suffix not in (".of", ".lock") and path.is_file())


def remove(path: Path) -> None:
    """Removes a derived file, its declaration first: without that the file doesn't count."""
    of_path(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _declaration(path: Path) -> Origin | None:
    try:
        return msgspec.json.decode(of_path(path).read_bytes(), type=Origin)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return xxh3(file)
