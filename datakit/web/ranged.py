"""Ranged: a file of the hub or of the web that is read in parts, by HTTP Range, and never whole.

1. `RangedFile(address)` asks once which file upstream has, and where its bytes are.
2. `ahead(spans)` says what will be read: near spans are joined, so that few requests bring them.
3. `read` then fetches a part when it is first needed. What is read without being announced comes exactly as asked.

Connections, redirects, tokens and back-off are those of `transfers` and `downloads`. A file that is another one than
it was at the beginning is refused: half of each would be neither.
"""

from __future__ import annotations

import io
import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol

from datakit.errors import DownloadError, SourceError, UsageError
from datakit.web.addresses import HubFile, LocalFile, WebFile, parse
from datakit.web.downloads import with_retries
from datakit.web.hosts import Hosts
from datakit.web.hubclient import hub_endpoint, hub_library, origin
from datakit.web.transfers import (
    Broken,
    Version,
    ask_web,
    find_hub,
    follow,
    hub_errors,
    hub_get,
    read_steadily,
    refuse,
    web_errors,
    web_session,
)

PART_BYTES = 8 << 20  # the most that is asked for at once, and held
HELD = 4  # parts; a Parquet reader is in two columns at a time
GAP_SHARE = 0.05  # of two spans together, that may be read in vain between them: at most a tenth of everything

_RANGE = re.compile(r"bytes (\d{1,30})-(\d{1,30})/(\d+|\*)")
_EXPIRED = frozenset({400, 401, 403, 404, 410})  # what a link that has worked answers when its time is over


class Changed(DownloadError):
    """Upstream has another file by now than the one that was begun, or that was expected."""


class _Part(NamedTuple):
    """An answer to a request for a part."""

    status: int
    headers: Mapping[str, str]
    pieces: Iterator[bytes]


class _Site(Protocol):
    """Where a file is: asked about, and read from, one try at a time."""

    tag: str  # what the server that has the bytes calls this file; empty while that isn't known

    def find(self) -> Version: ...
    def part(self, headers: Mapping[str, str]) -> AbstractContextManager[_Part]: ...
    def close(self) -> None: ...


class RangedFile(io.RawIOBase):
    """A seekable file for reading; `bytes_read` and `requests` count what came and what was asked for.

    With `etag` and `size_bytes` it must be that file. Raises Changed, or what `downloads.download` raises. Not for
    several threads at once.
    """

    def __init__(self, address: str, *, hosts: Hosts, etag: str | None = None, size_bytes: int | None = None) -> None:
        super().__init__()
        self.address = address
        self.bytes_read = 0
        self.requests = 0
        self._at = 0
        self._parts: list[tuple[int, int]] = []
        self._held: OrderedDict[int, bytes] = OrderedDict()
        self._if_range: dict[str, str] = {}
        self._lost = False  # whether the last try broke, so that the link to the bytes may have expired
        source = parse(address)
        if isinstance(source, LocalFile):
            raise UsageError(f"{address!r} is a file of this machine: there is nothing to ask a server for")
        self._site: _Site = _Hub(source, hosts) if isinstance(source, HubFile) else _Web(source, hosts)
        self._failed = f"{address!r} could not be read"
        self.version = with_retries(self._site.find, self._failed)
        if self.version.total is None:
            raise DownloadError(f"{address!r} has no size that its server tells, so it can't be read in parts")
        self.size_bytes = self.version.total
        if (etag is not None and etag != self.version.etag) or size_bytes not in (None, self.size_bytes):
            raise self._changed_error()

    def ahead(self, spans: Iterable[tuple[int, int]]) -> None:
        """Announces what will be read, as (start, stop) in rising order."""
        self._parts = parts(spans)
        self._held.clear()

    def fetch(self, start: int, stop: int) -> bytes:
        """Exactly these bytes, from the server. After a broken connection it goes on where it was."""
        got = bytearray()

        def go_on() -> None:
            if self._lost:
                self._find_again()
            self._lost = True
            if len(got) < stop - start:
                self._add(got, start + len(got), stop)
            self._lost = False

        with_retries(go_on, self._failed)
        return bytes(got)

    def _find_again(self) -> None:
        version, self._if_range = self._site.find(), {}
        if (version.total, version.etag) != (self.version.total, self.version.etag):
            raise self._changed_error()

    def _add(self, got: bytearray, start: int, stop: int) -> None:
        """Sends one request and adds its bytes to `got`. Raises Broken when some are missing."""
        self.requests += 1
        with self._site.part({"Range": f"bytes={start}-{stop - 1}", **self._if_range}) as part:
            self._check(part, start, stop)
            missing = stop - start
            for piece in part.pieces:
                self.bytes_read += len(piece)
                if len(piece) > missing:
                    raise DownloadError(f"{self.address!r} sends more than the part that was asked for")
                got += piece
                missing -= len(piece)
            if missing:
                raise Broken(f"a part ended {missing:,} bytes too early")

    def _check(self, part: _Part, start: int, stop: int) -> None:
        if part.status != 206 and "text/html" in part.headers.get("Content-Type", ""):
            raise SourceError(
                f"{self.address!r} gives a web page and not a file: open it in a browser to see what it asks for"
            )
        etag = part.headers.get("ETag") or part.headers.get("Last-Modified") or ""
        if self._site.tag and tag(etag) != self._site.tag:
            raise self._changed_error()
        if part.status != 206:
            raise DownloadError(
                f"the server of {self.address!r} sends no parts of files (HTTP {part.status} to a Range request): "
                "name another place for it in DATAKIT_MIRRORS"
            )
        found = _RANGE.fullmatch(part.headers.get("Content-Range", "").strip())
        if found and found[3] not in ("*", str(self.size_bytes)):
            raise self._changed_error()
        if not found or (int(found[1]), int(found[2])) != (start, stop - 1):
            raise Broken("the server sends another part than was asked for")
        self._site.tag = tag(etag)
        # A weak ETag is no condition; the comparison above still holds it to be the same.
        self._if_range = {"If-Range": etag} if etag and not etag.startswith("W/") else {}

    def _changed_error(self) -> Changed:
        return Changed(f"{self.address!r} is another file by now than the one that was begun: run the command again")

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        begin, stop = self._at, min(self._at + len(view), self.size_bytes)
        while self._at < stop:
            start, data = self._part_at(self._at, stop)
            piece = data[self._at - start : stop - start]
            view[self._at - begin : self._at - begin + len(piece)] = piece
            self._at += len(piece)
        return max(0, stop - begin)

    def _part_at(self, at: int, stop: int) -> tuple[int, bytes]:
        """An offset not after `at`, and bytes from it on: the announced part that holds `at`, else up to `stop`."""
        place = bisect_right(self._parts, at, key=lambda part: part[0]) - 1
        if place < 0 or self._parts[place][1] <= at:
            if place + 1 < len(self._parts):
                stop = min(stop, self._parts[place + 1][0])
            stop = min(stop, at + PART_BYTES)
            return at, self.fetch(at, stop)
        start, stop = self._parts[place]
        if start not in self._held:
            self._held[start] = self.fetch(start, stop)
            if len(self._held) > HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(start)
        return start, self._held[start]

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size_bytes}[whence]
        if at < 0:
            raise ValueError(f"there is no place {at} in {self.address!r}")
        self._at = at
        return at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed and hasattr(self, "_site"):
            self._site.close()
        super().close()


def tag(etag: str | None) -> str:
    """An ETag without quotes and mark of weakness, as the hub's own has none."""
    return (etag or "").removeprefix("W/").strip('"')


def parts(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges to request for some spans: near ones in one part, one of more than PART_BYTES in several."""
    ranges: list[tuple[int, int]] = []
    last = 0  # length of the span before
    for start, stop in sorted(spans):
        near = ranges and start - ranges[-1][1] <= GAP_SHARE * (last + stop - start)
        if near and stop - ranges[-1][0] <= PART_BYTES:
            ranges[-1] = (ranges[-1][0], max(stop, ranges[-1][1]))
        elif stop > start:
            ranges += [(at, min(at + PART_BYTES, stop)) for at in range(start, stop, PART_BYTES)]
        last = stop - start
    return ranges


class _Hub:
    """A file of the hub, through huggingface_hub."""

    def __init__(self, source: HubFile, hosts: Hosts) -> None:
        self._source, self._hosts = source, hosts
        self._location = ""
        self._served = False  # whether the link to the bytes has worked
        self.tag = ""

    def find(self) -> Version:
        version, self._location = find_hub(self._source, self._hosts)
        self._served = False
        # Elsewhere, the file has an ETag of that server's.
        self.tag = tag(version.etag) if origin(self._location) == origin(hub_endpoint()) else ""
        return version

    @contextmanager
    def part(self, headers: Mapping[str, str]) -> Iterator[_Part]:
        with hub_errors(self._source, hub_endpoint()), hub_get(self._location, headers, self._hosts) as reply:
            if reply.status_code in _EXPIRED and self._served:
                raise Broken(f"the link to its bytes answers {reply.status_code}")
            hub_library().utils.hf_raise_for_status(reply)
            self._served = True
            yield _Part(reply.status_code, reply.headers, reply.iter_raw())

    def close(self) -> None:
        """The connections are the library's."""


class _Web:
    """A file at a URL, over one session; the URL at the end of its redirects is reused while it works."""

    def __init__(self, source: WebFile, hosts: Hosts) -> None:
        self._source, self._hosts = source, hosts
        self._stack = ExitStack()
        self._session = self._stack.enter_context(web_session(hosts))
        self._final = ""  # what the redirects led to, once it has worked
        self.tag = ""

    def find(self) -> Version:
        self._final = ""
        version = ask_web(self._source, self._hosts)
        self.tag = tag(version.etag or version.last_modified)
        return version

    @contextmanager
    def part(self, headers: Mapping[str, str]) -> Iterator[_Part]:
        url = self._final or self._hosts.checked_url(self._source.url)
        with web_errors(self._source.url), follow(self._session, "GET", url, self._hosts, headers) as reply:
            if reply.status_code in _EXPIRED and self._final:
                raise Broken(f"the link to its bytes answers {reply.status_code}")
            if reply.status_code not in (200, 206):
                refuse(reply, self._source.url)
            self._final = str(reply.url)
            yield _Part(reply.status_code, reply.headers, read_steadily(reply.raw))

    def close(self) -> None:
        self._stack.close()
