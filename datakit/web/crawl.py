"""Crawl: pictures by URL, many at once, given back in the order in which they were asked for.

1. The consumer's thread reads URLs a window ahead and hands them to an event loop in a thread of its own.
2. Each URL becomes one task: look up, check, ask, follow redirects by hand, read up to a ceiling, try again.
3. What was read goes to `work` in a pool of threads, so that no picture is decoded on the event loop.
4. Results wait for their turn. How many bytes wait or are being read is bounded; the oldest URL is never
   held up by that bound, so there is always one that moves.

The proxies, netrc and cookies of the environment are not used (`trust_env=False`): through a proxy the
address that was checked would not be the one connected to, and no credential should meet a URL of a dataset.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from datakit.web import hosts as policy
from datakit.web.hosts import Hosts, RefusedUrl
from datakit.web.outcomes import PACKED, Stop, stop_for, target, worked
from datakit.web.pacing import Limits, Room, size_of

__all__ = ["Fetched", "Limits", "crawl"]

T = TypeVar("T")

BACKOFF_S = 0.5  # before the first retry; doubled for each more
AHEAD = 32  # times `in_flight` URLs may be started or finished before the oldest one is done
BATCH = 32  # URLs handed to the loop at once
LOOKUPS = 32  # names resolved at once; each blocks a thread
KEEP_ALIVE_S = 2.0  # a crawl meets so many hosts that idle connections would use up all file handles

REDIRECTS = frozenset({301, 302, 303, 307, 308})
TRY_AGAIN = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched(Generic[T]):
    """What became of one URL."""

    place: int
    url: str
    final_url: str
    """Where the redirects led; `url` when there was none."""
    outcome: str
    status: int
    """Of the last answer; 0 when there was none."""
    ms: int
    size_bytes: int
    """Of the body, as it was given to `work`; 0 when it wasn't."""
    value: T | None


def crawl(
    urls: Iterable[str],
    *,
    hosts: Hosts,
    limits: Limits,
    work: Callable[[bytes], T],
    threads: int = 2,
) -> Generator[Fetched[T], None, None]:
    """Fetches each URL and gives it to `work`; yields one `Fetched` per URL, in the order given.

    `work` runs in one of `threads` threads. The reason of a BadImage that it raises becomes the outcome;
    any other exception of it comes out here, when its URL's turn comes. Closing the generator stops all.
    """
    engine = _Engine(hosts, limits, work, threads)
    try:
        yield from engine.results(iter(urls))
    finally:
        engine.close()


@dataclass(slots=True)
class _Job:
    """A URL on its way."""

    place: int
    url: str
    left_s: float
    began: float = 0.0
    final_url: str = ""
    status: int = 0
    held: int = 0  # bytes that count against bytes_ahead
    deadline: asyncio.Timeout | None = None
    waited_s: float = 0.0  # for our own limits, during the present request


class _Resolver(AbstractResolver):
    """Gives aiohttp the addresses that passed the check; it connects to these and looks nothing up itself."""

    def __init__(self, hosts: Hosts, pool: ThreadPoolExecutor) -> None:
        self._hosts = hosts
        self._pool = pool

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        addresses = await loop.run_in_executor(self._pool, self._hosts.addresses, host, port)
        return [
            ResolveResult(
                hostname=host,
                host=ip,
                port=port,
                family=socket.AF_INET6 if ":" in ip else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for ip in addresses
        ]

    async def close(self) -> None:
        """Nothing is held; the pool belongs to the engine."""


class _Engine(Generic[T]):
    """The event loop's thread, and both sides of the border to it."""

    def __init__(self, hosts: Hosts, limits: Limits, work: Callable[[bytes], T], threads: int) -> None:
        self._hosts, self._limits, self._work = hosts, limits, work
        self._out: SimpleQueue[Fetched[T] | BaseException] = SimpleQueue()
        self._pool = ThreadPoolExecutor(threads, "crawl-work")
        self._lookups = ThreadPoolExecutor(LOOKUPS, "crawl-dns")
        # From here on all is the loop's own.
        self._pending: deque[_Job] = deque()
        self._running = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._done: dict[int, Fetched[T] | BaseException] = {}
        self._held: dict[int, int] = {}
        self._next_out = 0
        self._oldest = 0  # the first place that the consumer hasn't taken
        self._bytes = Room(limits.bytes_ahead, lambda: self._oldest)
        self._host_rooms: dict[str, Room] = {}
        self._waiting: dict[int, Room] = {}
        self._loop = _new_loop()
        self._stopping = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="crawl", daemon=True)
        self._thread.start()
        self._ready.wait()

    # The consumer's side.

    def results(self, urls: Iterator[str]) -> Iterator[Fetched[T]]:
        fed = taken = unsaid = 0
        more = True
        while more or taken < fed:
            room = AHEAD * self._limits.in_flight - (fed - taken)
            if more and room > 0:
                batch = list(islice(urls, min(room, BATCH)))
                more = bool(batch)
                self._call(self._feed, fed, batch)
                fed += len(batch)
                if self._out.empty():
                    continue
            item = self._out.get()
            if isinstance(item, BaseException):
                raise item
            taken += 1
            unsaid += 1
            if unsaid == BATCH or self._out.empty():
                self._call(self._taken, unsaid)
                unsaid = 0
            yield item

    def close(self) -> None:
        self._call(self._stopping.set)
        self._thread.join()
        self._lookups.shutdown(wait=False, cancel_futures=True)  # a lookup can't be called off

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            if not self._loop.is_closed():  # closed: the reason is the last thing in the queue
                raise

    # The loop's side.

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - a thread has nobody to raise to: the consumer does it
            self._out.put(error)
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        connector = aiohttp.TCPConnector(
            resolver=_Resolver(self._hosts, self._lookups),
            ssl=policy.tls(),
            limit=0,  # in_flight and per_host are counted here
            keepalive_timeout=KEEP_ALIVE_S,
            ttl_dns_cache=300,
        )
        session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": policy.USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(connect=self._limits.connect_s, sock_read=self._limits.read_s),
            auto_decompress=False,
            trust_env=False,
            max_line_size=8190,
            max_field_size=8190,
        )
        async with session:
            self._session = session
            self._ready.set()
            await self._stopping.wait()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _feed(self, place: int, urls: list[str]) -> None:
        self._pending.extend(_Job(place + n, url, self._limits.total_s) for n, url in enumerate(urls))
        self._start()

    def _taken(self, n: int) -> None:
        for _ in range(n):
            self._bytes.give(self._held.pop(self._oldest))
            self._oldest += 1
        if room := self._waiting.get(self._oldest):
            room.let_in(self._oldest)
        self._start()

    def _start(self) -> None:
        """Starts what may start. From half of bytes_ahead on nothing new is, so that what was can end."""
        while self._pending and self._running < self._limits.in_flight and not self._stopping.is_set():
            job = self._pending[0]
            if self._bytes.used * 2 >= self._limits.bytes_ahead and job.place != self._oldest:
                break
            self._pending.popleft()
            self._running += 1
            task = self._loop.create_task(self._handle(job))
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, job))

    def _ended(self, job: _Job, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (bug := task.exception()):
            self._deliver(job, bug)

    def _deliver(self, job: _Job, item: Fetched[T] | BaseException) -> None:
        self._done[job.place] = item
        self._held[job.place] = job.held
        while self._next_out in self._done:
            self._out.put(self._done.pop(self._next_out))
            self._next_out += 1

    async def _handle(self, job: _Job) -> None:
        job.began = self._loop.time()
        job.final_url = job.url
        size, value = 0, None
        try:
            try:
                body, encoding = await self._fetch(job)
            finally:
                self._running -= 1
                self._start()
            outcome, size, value = await self._loop.run_in_executor(
                self._pool, worked, self._work, body, encoding, self._limits.max_bytes
            )
        except (Stop, RefusedUrl) as stop:
            outcome = stop.outcome
        kept = 0 if value is None else size_of(value, job.held)
        self._bytes.give(job.held - kept)
        job.held = kept
        fetched = Fetched(
            place=job.place,
            url=job.url,
            final_url=job.final_url,
            outcome=outcome,
            status=job.status,
            ms=int((self._loop.time() - job.began) * 1000),
            size_bytes=size,
            value=value,
        )
        self._deliver(job, fetched)

    async def _fetch(self, job: _Job) -> tuple[bytes, str]:
        """The body and its encoding, through redirects and retries."""
        url = self._hosts.first(job.url)
        hops, tries = 0, 0
        while True:
            try:
                answer = await self._hop(job, url)
            except Stop as stop:
                self._bytes.give(job.held)
                job.held = 0
                pause = BACKOFF_S * 2**tries if stop.after_s is None else stop.after_s
                if not stop.again or tries == self._limits.retries or pause >= job.left_s:
                    raise
                tries += 1
                job.left_s -= pause
                await asyncio.sleep(pause)
                continue
            if not isinstance(answer, str):
                return answer
            hops += 1
            if hops > self._limits.max_redirects:
                raise Stop("redirects")
            url = job.final_url = self._hosts.check_url(answer)

    async def _hop(self, job: _Job, url: str) -> tuple[bytes, str] | str:
        """One request, at the pace of its host: a body with its encoding, or the URL to go to."""
        host = policy.host_of(url)
        room = self._host_rooms.setdefault(host, Room(self._limits.per_host, lambda: self._oldest))
        await self._enter(room, job, 1)
        began, job.waited_s = self._loop.time(), 0.0
        try:
            async with asyncio.timeout(job.left_s) as job.deadline:
                return await self._ask(job, url)
        except TimeoutError as error:
            raise Stop("timeout_total") from error
        finally:
            job.deadline = None
            job.left_s -= self._loop.time() - began - job.waited_s
            room.give(1)
            if room.idle:
                self._host_rooms.pop(host, None)

    async def _enter(self, room: Room, job: _Job, n: int) -> None:
        """Waits for room; the URL's own deadline stands still meanwhile."""
        if room.admits(job.place, n):
            return
        began = self._loop.time()
        left = None if job.deadline is None else (job.deadline.when() or began) - began
        if job.deadline is not None:
            job.deadline.reschedule(None)
        self._waiting[job.place] = room
        try:
            await room.wait(job.place, n)
        finally:
            del self._waiting[job.place]
        job.waited_s += self._loop.time() - began
        if job.deadline is not None and left is not None:
            job.deadline.reschedule(self._loop.time() + left)

    async def _ask(self, job: _Job, url: str) -> tuple[bytes, str] | str:
        try:
            async with self._session.get(URL(url, encoded=True), allow_redirects=False) as reply:
                job.status = reply.status
                if reply.status in REDIRECTS and "Location" in reply.headers:
                    return target(url, reply.headers["Location"])
                if reply.status != 200:
                    again = reply.status in TRY_AGAIN
                    after_s = policy.retry_after_s(reply.headers.get("Retry-After", ""))
                    raise Stop(f"http_{reply.status}", again=again, after_s=after_s)
                if policy.opted_out(reply.headers.getall("X-Robots-Tag", []), reply.headers.get("tdm-reservation")):
                    raise Stop("opted_out")
                return await self._read(job, reply)
        except (aiohttp.ClientError, ConnectionError, ssl.SSLError) as error:
            raise stop_for(error) from error

    async def _read(self, job: _Job, reply: aiohttp.ClientResponse) -> tuple[bytes, str]:
        encoding = reply.headers.get("Content-Encoding", "").strip().lower()
        if encoding in PACKED or "," in encoding:
            raise Stop("encoding")
        if (reply.content_length or 0) > self._limits.max_bytes:
            raise Stop("too_large")
        pieces: list[bytes] = []
        async for piece in reply.content.iter_any():
            if job.held + len(piece) > self._limits.max_bytes:
                raise Stop("too_large")
            await self._enter(self._bytes, job, len(piece))
            job.held += len(piece)
            pieces.append(piece)
        return b"".join(pieces), encoding


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # there is none for Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
