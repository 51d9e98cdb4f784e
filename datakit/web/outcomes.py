"""Outcomes: what can become of a URL, and which outcome an answer, a body or an exception means."""

from __future__ import annotations

import errno
import socket
import ssl
import zlib
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import quote, urljoin

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from datakit.errors import BadImage

T = TypeVar("T")

OUTCOMES = (
    "ok",
    "http_<status>",  # any answer but 200, for example http_404
    "dns",  # the host has no address
    "connect",  # nobody listens there, or no route
    "tls",  # a certificate or a handshake that fails
    "timeout_connect",  # name, connection and handshake together
    "timeout_read",  # silence on an open connection
    "timeout_total",  # the whole URL with its redirects
    "too_large",  # more bytes than allowed, announced, sent or unpacked
    "redirects",  # too many
    "refused_url",  # the form of the URL or of a redirect's target
    "refused_address",  # not a public address
    "reset",  # the connection broke
    "protocol",  # what came was not HTTP, or more headers than allowed
    "encoding",  # a compressed body that can't be unpacked
    "opted_out",  # X-Robots-Tag or tdm-reservation
    "robots",  # robots.txt forbids it, if it is asked
    "host_down",  # the host failed ten times in a row and wasn't asked
)
"""What can become of a URL; besides these, the reasons of `BadImage` that `work` raises."""

KNOWN = (
    *(name for name in OUTCOMES if name not in ("ok", "http_<status>")),
    *("not_an_image", "unsupported", "pixels", "frames", "truncated", "corrupt"),  # images.normalise
    *("not_imported", "img2dataset_error", "img2dataset_filtered"),  # datakit/interop
)
"""Outcomes of failed URLs in a table of fetch, besides http_404 and its like."""

# Answers that another try at another time may change; all others are how the world is.
_PASSING = frozenset(
    {
        *("dns", "connect", "tls", "timeout_connect", "timeout_read", "timeout_total", "reset", "protocol"),
        *("host_down", "http_408", "http_425", "http_429", "truncated", "not_imported"),
    }
)


def may_pass(outcome: str) -> bool:
    """Whether another try on another day may give another outcome."""
    return outcome in _PASSING or outcome.startswith("http_5")


PACKED = frozenset({"br", "zstd", "compress", "x-compress", "dcb", "dcz"})  # encodings we don't unpack
NO_HANDLES = frozenset({errno.EMFILE, errno.ENFILE})


class Stop(Exception):
    """This URL ends with an outcome, unless `again` and there are retries left.

    `ours`: this machine was at fault, so it says nothing about the host, and the URL is asked for again.
    """

    def __init__(self, outcome: str, *, again: bool = False, after_s: float | None = None, ours: bool = False) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.again = again
        self.after_s = after_s
        self.ours = ours


class NoHandles(Stop):
    """The system gives no more file handles: fewer URLs in flight, and this one again."""

    def __init__(self) -> None:
        super().__init__("no_handles", ours=True)


def run_work(work: Callable[[bytes], T], body: bytes, encoding: str, max_bytes: int) -> tuple[str, int, T | None]:
    """Outcome, size and value of a body. Runs in the pool."""
    if encoding in ("gzip", "x-gzip", "deflate"):
        body = _unpack(body, max_bytes)
    try:
        return "ok", len(body), work(body)
    except BadImage as bad:
        return bad.reason, len(body), None


def _unpack(body: bytes, max_bytes: int) -> bytes:
    """A gzip or deflate body, unpacked up to the ceiling. We ask for none, but some servers send it."""
    for window in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):  # gzip and zlib by their header; raw deflate
        unpacker = zlib.decompressobj(window)
        try:
            plain = unpacker.decompress(body, max_bytes + 1)
        except zlib.error:
            continue
        if len(plain) > max_bytes:
            raise Stop("too_large")
        if unpacker.eof:
            return plain
    raise Stop("encoding")


def redirect_target(url: str, location: str) -> str:
    """Where a redirect leads; bytes that are no UTF-8 are quoted as they came."""
    try:
        if any("\ud800" <= c <= "\udfff" for c in location):
            raw = location.encode("utf-8", "surrogateescape")
            location = quote(raw, safe="".join(map(chr, range(0x21, 0x7F))))
        return urljoin(url, location.strip(" "))
    except ValueError as error:
        raise Stop("refused_url") from error


def stop_for(error: Exception) -> Stop:
    """The outcome for an exception of aiohttp, but for deadlines."""
    if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno in NO_HANDLES:
        return NoHandles()
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Stop("dns", again=error.os_error.errno == socket.EAI_AGAIN)
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return Stop("tls")
    # A proxy answers so for http; for https it refuses to connect.
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return Stop(f"http_{error.status}", again=error.status >= 500)
    if isinstance(error, aiohttp.ClientConnectorError):
        broken = isinstance(error.os_error, ConnectionResetError | ConnectionAbortedError | BrokenPipeError)
        return Stop("reset", again=True) if broken else Stop("connect")
    if isinstance(error, aiohttp.InvalidURL):
        return Stop("refused_url")
    if isinstance(error, aiohttp.ClientResponseError) or (
        isinstance(error.__cause__, HttpProcessingError) and "Not enough data" not in str(error)
    ):
        return Stop("protocol")
    return Stop("reset", again=True)
