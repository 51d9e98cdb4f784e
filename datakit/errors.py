"""Every error that datakit raises on purpose: one class per thing a caller might do differently.

Each message says what happened, where, and what to do next. The command line prints the message
without a traceback and exits with `exit_code`.
"""

from __future__ import annotations

from collections.abc import Iterable


class DatakitError(Exception):
    """Something a user can understand and act on. The command line exits with 1."""

    exit_code = 1


class UsageError(DatakitError):
    """The command itself is wrong: an unknown name, a bad range. The command line exits with 2."""

    exit_code = 2


class ManifestError(DatakitError):
    """A manifest, a `.sums` file or `datakit.toml` is wrong; the message names file, line and key."""


class RecipeChanged(DatakitError):
    """A folder was made by another recipe than the one asked for; the message lists what differs."""


class SourceError(DatakitError):
    """An upstream file is not what it should be: HTML instead of JSON, a file cut short, a missing column."""


class ArchiveError(SourceError):
    """A zip or tar that can't be read safely: cut short, hostile names, a size that lies."""


class DownloadError(DatakitError):
    """A file could not be fetched: refused address, dead link, terms to accept first, hash that differs."""


class NoSuchFile(DownloadError):
    """The server says that it has no file of this name, so a retry won't help."""


class StorageError(DatakitError):
    """The root can't be written or read: no space, no permission, a folder that is a file."""


class NoSpace(StorageError):
    """The disk is full."""


class CeilingExceeded(DatakitError):
    """More rows of a shard went wrong than the step tolerates; nothing of the shard was committed."""


class Incomplete(DatakitError):
    """Something asked for isn't there yet; the message names the command that makes it."""


class MixError(DatakitError):
    """A mix can't be made or read, or a stream's state belongs to another one."""


class BadImage(DatakitError):
    """Bytes that can't become a picture. `reason` is the outcome of its URL."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[BadImage], tuple[str, str]]:
        return type(self), (self.reason, self.detail)


def shortlist(values: Iterable[object], most: int = 5) -> str:
    """The first `most` values as text, and how many more there are."""
    every = [str(v) for v in values]
    more = len(every) - most
    return ", ".join(every[:most]) + (f" and {more} more" if more > 0 else "")


def nearest(name: str, known: Iterable[str]) -> str:
    """`Did you mean …?` for a name that isn't known, or the list of what is."""
    import difflib  # only for messages

    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(repr(c) for c in close)}?"
    return f"Known: {shortlist(known, 20)}." if known else "None is known here."
