"""Asking: one URL from the first request to the last byte, through redirects, retries and robots.txt."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import BadHttpMessage
from yarl import URL

from datakit.errors import DownloadError
from datakit.web import hosts as policy
from datakit.web.hosts import Hosts, RefusedUrl
from datakit.web.outcomes import PACKED, NoHandles, Stop, redirect_target, stop_for
from datakit.web.pacing import ByteBudget, Host, Lateness, Limits, Window
from datakit.web.proxies import Proxies
from datakit.web.robots import MAX_BYTES as ROBOTS_BYTES
from datakit.web.robots import Robots

BACKOFF_S = 0.5  # before the first retry; doubled for each more
HANDLE_TRIES = 60  # BACKOFF_S apart, for which a URL waits until the system grants a file handle
LATE = 0.5  # share of a deadline that our own loop may miss; a busy crawl misses up to 0.3 before the window shrinks
LOOKUPS = 128  # names resolved at once; each blocks a thread, for ten seconds or more where a name server is dead
LOOKUPS_KEPT_S = 600  # for which an address, once checked, is used
LOOKUPS_KEPT = 100_000  # names
KEEP_ALIVE_S = 2.0  # a crawl meets so many hosts that idle connections would use up all file handles
HOSTS_KEPT = 10_000  # hosts remembered before those with nothing to remember are forgotten
HEADER_BYTES, HEADERS = 8190, 128  # the longest header line, and how many there may be

REDIRECTS = frozenset({301, 302, 303, 307, 308})
TRY_AGAIN = frozenset({429, 500, 502, 503, 504})


@dataclass(slots=True, eq=False)
class Job:
    """A URL on its way."""

    place: int
    url: str
    left_s: float
    sent_url: str = ""  # the URL as it is sent: checked and mirrored
    began: float = 0.0
    final_url: str = ""
    status: int = 0
    held: int = 0  # bytes that count against bytes_ahead
    deadline: asyncio.Timeout | None = None
    waited_s: float = 0.0  # for our own limits, during the present request


class Resolver(AbstractResolver):
    """Gives aiohttp the addresses that passed the check; it connects to these and looks nothing up itself.

    A proxy may have any address: the environment names it.
    """

    def __init__(self, hosts: Hosts, pool: ThreadPoolExecutor, proxies: Proxies) -> None:
        self._hosts, self._pool, self._proxies = hosts, pool, proxies

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        look_up = policy.look_up if self._proxies.is_proxy_address(host, port) else self._hosts.addresses
        addresses = await loop.run_in_executor(self._pool, look_up, host, port)
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


class _Connection(ResponseHandler):
    """A connection that is cut when it is closed, and that accepts few answers to one request."""

    def close(self) -> None:
        self.abort()  # a TLS connection would be read on for 30 s, for the other side's farewell

    def is_connected(self) -> bool:
        """False when data came before a request: it must not be taken for the answer to the next one."""
        return super().is_connected() and not self._buffer and not self._tail

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if len(self._buffer) > 8:  # 1xx answers without end
            self.set_exception(BadHttpMessage("too many answers"))
            if self.transport is not None:
                self.transport.pause_reading()


class Asker:
    """Asks for URLs on the running event loop, at the pace of their hosts."""

    def __init__(
        self,
        hosts: Hosts,
        limits: Limits,
        window: Window,
        room: ByteBudget,
        lateness: Lateness,
        has_room: Callable[[Host[Job]], None],
    ) -> None:
        self._hosts, self._limits, self._window, self._room, self._has_room = hosts, limits, window, room, has_room
        self._lateness = lateness
        self._loop = asyncio.get_running_loop()
        self._lookups = ThreadPoolExecutor(LOOKUPS, "crawl-dns")
        self._known: dict[str, Host[Job]] = {}
        self._forget_at = HOSTS_KEPT
        self._robots = Robots()
        self._proxies = Proxies()
        self._waiting: set[int] = set()  # places that wait for bytes
        connector = aiohttp.TCPConnector(
            resolver=Resolver(hosts, self._lookups, self._proxies),
            ssl=policy.tls(),
            limit=0,  # the window and per_host are counted here
            keepalive_timeout=KEEP_ALIVE_S,
            ttl_dns_cache=LOOKUPS_KEPT_S,
            dns_cache_max_size=LOOKUPS_KEPT,
        )
        connector._factory = partial(_Connection, loop=self._loop)  # type: ignore[assignment]
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": policy.USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(connect=limits.connect_s, sock_read=limits.read_s),
            auto_decompress=False,
            trust_env=False,
            max_line_size=HEADER_BYTES,
            max_field_size=HEADER_BYTES,
            max_headers=HEADERS,
        )

    async def close(self) -> None:
        await self._session.close()
        self._lookups.shutdown(wait=False, cancel_futures=True)  # a lookup can't be called off

    def checked_url(self, url: str) -> tuple[str, Host[Job]]:
        """The URL in the form in which it is sent, and its host. Raises RefusedUrl."""
        sent = self._hosts.checked_url(url)
        return sent, self.host(sent)

    def host(self, url: str) -> Host[Job]:
        """The state of the host of a checked URL."""
        name = policy.host_of(url)
        host = self._known.get(name)
        if host is None:
            host = self._known[name] = Host(self._limits)
        return host

    def forget_hosts(self) -> None:
        """Keeps the memory of hosts small, without looking through all of them each time."""
        if len(self._known) > self._forget_at:
            now = self._loop.time()
            self._known = {name: host for name, host in self._known.items() if not host.forgettable(now)}
            self._forget_at = max(HOSTS_KEPT, 2 * len(self._known))

    def let_in(self, place: int) -> None:
        """Lets a URL that waits for bytes go on, because it is the oldest now."""
        if place in self._waiting:
            self._room.let_in(place)

    async def fetch(self, job: Job, host: Host[Job]) -> tuple[bytes, str]:
        """The body and its encoding, through redirects and retries. `host` has begun the first request.

        Raises Stop and RefusedUrl with the outcome when there is none, and DownloadError when the system grants
        no file handles for long: that is no outcome of a URL, and would be the same for all the others.
        """
        url = job.sent_url
        hops, tries, refusals = 0, 0, 0
        was_late = False
        while True:
            left_s = job.left_s
            try:
                answer = await self._hop(job, url, host)
            except NoHandles as stop:
                self._window.shrink()
                job.left_s = left_s
                refusals += 1
                if refusals == HANDLE_TRIES:
                    raise DownloadError(
                        "the system grants the crawl no file handles: raise `ulimit -n`, or run fewer --jobs"
                    ) from stop
                await asyncio.sleep(BACKOFF_S)
                host = await self._enter_host(host, job)
                continue
            except Stop as stop:
                self._room.give(job.held)
                job.held = 0
                if stop.ours and not was_late:
                    was_late = True
                    host = await self._enter_host(host, job)
                    continue
                pause = BACKOFF_S * 2**tries if stop.after_s is None else stop.after_s
                if not stop.again or tries == self._limits.retries or pause >= job.left_s:
                    raise
                tries += 1
                job.left_s -= pause
                await asyncio.sleep(pause)
                host = await self._enter_host(host, job)
                continue
            if not isinstance(answer, str):
                return answer
            hops += 1
            if hops > self._limits.max_redirects:
                raise Stop("redirects")
            url = job.final_url = self._hosts.check_url(answer)
            host = await self._enter_host(self.host(url), job)

    async def _enter_host(self, host: Host[Job], job: Job) -> Host[Job]:
        """Begins a further request when the host permits it. Redirects and retries go before those who wait."""
        while True:
            now = self._loop.time()
            if refusal := host.refuses(now):
                raise Stop(refusal)
            pause = host.wait_s(now)
            if pause == 0 and (not host.full or job.place == self._room.oldest()):
                host.begin(now)
                return host
            if pause >= job.left_s:
                raise Stop("timeout_total")
            await asyncio.sleep(pause or 0.05)

    async def _hop(self, job: Job, url: str, host: Host[Job]) -> tuple[bytes, str] | str:
        """One request: a body with its encoding, or the URL to go to."""
        outcome = "ok"
        try:
            if self._limits.robots:
                await self._obey(job, url, host)
            began, late_s, job.waited_s = self._listened_s(), self._late_s(), 0.0
            try:
                async with asyncio.timeout(job.left_s) as job.deadline:
                    return await self._ask(job, url, host)
            except TimeoutError as error:
                raise self._deadline_outcome("timeout_total", job.left_s, late_s) from error
            finally:
                job.deadline = None
                job.left_s -= self._listened_s() - began - job.waited_s
        except Stop as stop:
            outcome = "" if stop.ours else stop.outcome
            raise
        except RefusedUrl as refused:
            outcome = refused.outcome
            raise
        finally:
            host.running -= 1
            if outcome:
                host.report_outcome(outcome, self._loop.time())
                self._window.report_connection(outcome != "timeout_connect")
            if host.waiting:
                self._has_room(host)

    def _late_s(self) -> float:
        """How late the loop has been in all, in seconds."""
        return self._lateness.total_s(self._loop.time())

    def _listened_s(self) -> float:
        """The loop's clock, without the time by which the loop was late."""
        now = self._loop.time()
        return now - self._lateness.total_s(now)

    def _deadline_outcome(self, outcome: str, deadline_s: float, late_s: float) -> Stop:
        """The outcome for a deadline that has passed; it is our own fault when the loop was late for much of it.

        `late_s` is how late the loop had been in all when the request began.
        """
        return Stop(outcome, ours=self._late_s() - late_s >= LATE * deadline_s)

    async def _obey(self, job: Job, url: str, host: Host[Job]) -> None:
        allowed, delay_s = await self._robots.allows(url, partial(self._robots_txt, job.place))
        if delay_s:
            host.slow(delay_s)
        if not allowed:
            raise Stop("robots")

    async def _robots_txt(self, place: int, url: str) -> tuple[int, bytes]:
        """Status and body of a robots.txt. It may exceed its host's share: other URLs wait for it."""
        job = Job(place, url, self._limits.total_s, url)
        late_s = self._late_s()
        try:
            async with asyncio.timeout(self._limits.total_s) as job.deadline:
                for _ in range(self._limits.max_redirects + 1):
                    answer = await self._ask(job, url, self.host(url), most=ROBOTS_BYTES)
                    if not isinstance(answer, str):
                        return job.status, answer[0]
                    url = self._hosts.check_url(answer)
        except TimeoutError as error:
            raise self._deadline_outcome("timeout_total", job.left_s, late_s) from error
        except Stop as stop:
            if stop.outcome.startswith("http_") or stop.outcome in ("opted_out", "encoding"):
                return job.status, b""
            raise
        finally:
            self._room.give(job.held)
        return 404, b""  # RFC 9309, 2.3.1.2: more than five redirects count as none being there

    async def _enter(self, job: Job, n: int) -> None:
        """Waits for room for bytes; the URL's own deadline stands still meanwhile."""
        if self._room.admits(job.place, n):
            return
        began, now = self._listened_s(), self._loop.time()
        left = None if job.deadline is None else (job.deadline.when() or now) - now
        if job.deadline is not None:
            job.deadline.reschedule(None)
        self._waiting.add(job.place)
        try:
            await self._room.wait(job.place, n)
        finally:
            self._waiting.discard(job.place)
        job.waited_s += self._listened_s() - began
        if job.deadline is not None and left is not None:
            job.deadline.reschedule(self._loop.time() + left)

    async def _ask(self, job: Job, url: str, host: Host[Job], most: int | None = None) -> tuple[bytes, str] | str:
        proxy = self._proxies.proxy_for(url)
        if proxy is None and self._proxies.is_proxy(url):
            raise RefusedUrl("refused_address", f"{url!r} leads to the proxy itself, which is for asking others")
        late_s = self._late_s()
        try:
            async with self._session.get(URL(url, encoded=True), allow_redirects=False, proxy=proxy) as reply:
                job.status = reply.status
                if reply.status in REDIRECTS and "Location" in reply.headers:
                    return redirect_target(url, reply.headers["Location"])
                if reply.status != 200:
                    again = reply.status in TRY_AGAIN
                    after_s = policy.retry_after_s(reply.headers.get("Retry-After", ""))
                    if again and after_s is not None:
                        host.pause(self._loop.time(), after_s)
                    raise Stop(f"http_{reply.status}", again=again, after_s=after_s)
                if policy.is_opted_out(reply.headers.getall("X-Robots-Tag", []), reply.headers.get("tdm-reservation")):
                    raise Stop("opted_out")
                return await self._read(job, reply, most)
        except aiohttp.ConnectionTimeoutError as error:
            raise self._deadline_outcome("timeout_connect", self._limits.connect_s, late_s) from error
        except aiohttp.ServerTimeoutError as error:
            raise self._deadline_outcome("timeout_read", self._limits.read_s, late_s) from error
        except (aiohttp.ClientError, ConnectionError, ssl.SSLError) as error:
            raise stop_for(error) from error

    async def _read(self, job: Job, reply: aiohttp.ClientResponse, most: int | None) -> tuple[bytes, str]:
        """The body up to the ceiling; beyond `most`, if that is given, the rest isn't read."""
        encoding = reply.headers.get("Content-Encoding", "").strip().lower()
        if encoding in PACKED or "," in encoding:
            raise Stop("encoding")
        if (reply.content_length or 0) > self._limits.max_bytes and most is None:
            raise Stop("too_large")
        pieces: list[bytes] = []
        async for piece in reply.content.iter_any():
            if job.held + len(piece) > self._limits.max_bytes:
                raise Stop("too_large")
            await self._enter(job, len(piece))
            job.held += len(piece)
            pieces.append(piece)
            if most is not None and job.held >= most:
                reply.close()
                break
        return b"".join(pieces), encoding
