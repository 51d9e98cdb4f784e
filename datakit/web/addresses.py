"""Addresses: what an address in a manifest names, and in which folder its file lands."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from datakit.errors import ManifestError

_HUB_ADDRESS = re.compile(r"hub://datasets/([\w.-]+/[\w.-]+)@([^/]+)/(.+)", re.ASCII)
_HUB_PAGE = re.compile(r"/datasets/([\w.-]+/[\w.-]+)/(?:blob|resolve|raw)/([^/]+)/(.+)", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file of a dataset on the hub."""

    repo: str
    revision: str
    path: str

    @property
    def folder(self) -> str:
        """Where it lands, with its name."""
        return _safe_path(str(self), "huggingface.co", "datasets", self.repo, quote(self.revision, ""), self.path)

    def __str__(self) -> str:
        return f"hub://datasets/{self.repo}@{quote(self.revision, '')}/{self.path}"


@dataclass(frozen=True, kw_only=True)
class WebFile:
    """A file at an http or https address."""

    url: str

    @property
    def folder(self) -> str:
        """Where it lands, with its name. Addresses that differ in their query land in different folders."""
        parts = urlsplit(self.url)
        folder, _, name = unquote(parts.path).rpartition("/")
        if parts.query:
            readable = re.sub(r"[^\w.=-]+", "_", unquote(parts.query))[:60]
            folder += f"/{readable}-{hashlib.sha256(parts.query.encode()).hexdigest()[:8]}"
        return _safe_path(self.url, parts.netloc.replace(":", "_"), *filter(None, [folder[1:]]), name)

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A file of this machine that a manifest of the user's own names."""

    path: str

    @property
    def folder(self) -> str:
        """Where it lands, with its name."""
        folder = hashlib.sha256(self.path.encode()).hexdigest()[:12]
        return _safe_path(str(self), "local", folder, self.path.rpartition("/")[2])

    def __str__(self) -> str:
        return f"file://{quote(self.path)}"


Source = HubFile | WebFile | LocalFile


def parse(address: str) -> Source:
    """`hub://datasets/OWNER/REPO@REV/PATH` or a URL; pages and files of huggingface.co are hub files."""
    try:
        url = urlsplit(address)
    except ValueError as error:
        raise ManifestError(f"{address!r} is no address: {error}") from error
    source: Source
    if url.scheme == "hub":
        found = _HUB_ADDRESS.fullmatch(address)
        if not found:
            raise ManifestError(f"{address!r} is no hub address: write hub://datasets/OWNER/REPO@REVISION/PATH")
        source = HubFile(repo=found[1], revision=unquote(found[2]), path=found[3])
    elif url.scheme == "file" and not url.netloc and url.path.startswith("/"):
        source = LocalFile(path=unquote(url.path))
    elif url.scheme not in ("http", "https") or not url.netloc:
        raise ManifestError(f"{address!r} is no address: write https://… or hub://datasets/OWNER/REPO@REV/PATH")
    elif url.netloc in ("huggingface.co", "hf.co") and (found := _HUB_PAGE.fullmatch(url.path)):
        source = HubFile(repo=found[1], revision=unquote(found[2]), path=unquote(found[3]))
    else:
        source = WebFile(url=address)
    _ = source.folder  # a path that leaves its place is refused here
    return source


def _safe_path(address: str, *parts: str) -> str:
    """Parts joined to a relative path that can't leave the folder it is put in."""
    path = "/".join(parts)
    for name in path.split("/"):
        if name in ("", ".", "..") or re.search(r"[\x00-\x1f\x7f\\]", name) or len(name.encode()) > 200:
            raise ManifestError(f"{address!r} has {name!r} in its path, which can't be the name of a file")
    return path
