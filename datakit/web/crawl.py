"""Crawl: pictures by URL, many at once, given back in the order in which they were asked for.

1. The consumer's thread reads URLs a window ahead and hands them to an event loop in a thread of its own.
2. A URL waits until the window and its host have room; then it becomes one task: look up, check, ask, follow
   redirects by hand, read up to a ceiling, try again.
3. What was read goes to `work` in a pool of threads, so that no picture is decoded on the event loop.
4. Results wait for their turn, in memory or in the spool. How many bytes are being read is bounded; the oldest
   URL is never held up by that bound, so one always makes progress.

The netrc and cookies of the environment are not used (`trust_env=False`): no credential should meet a URL of a
dataset. Its proxies are, and then names are theirs to resolve: see `proxies`.
"""

from __future__ import annotations

import asyncio
import resource
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from datakit.process import memory
from datakit.web.asking import Asker, Job
from datakit.web.hosts import Hosts, RefusedUrl
from datakit.web.outcomes import Stop, run_work
from datakit.web.pacing import TICK_S, ByteBudget, Host, Lateness, Limits, Window, size_of
from datakit.web.spool import Spool, Spooled

__all__ = ["Fetched", "Limits", "crawl"]

T = TypeVar("T")

AHEAD = 32  # times the widest window: URLs that may be started or finished before the oldest one is done
BATCH = 32  # URLs handed to the loop at once
GATHER_S = 0.004  # for which results are gathered: to wake the consumer costs as much as to write a picture
LIGHT_BYTES = 1 << 20
HANDLES_KEPT = 256  # for all that isn't a connection


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
    light: bool = False,
    scratch: Path | None = None,
) -> Generator[Fetched[T], None, None]:
    """Fetches each URL and gives it to `work`; yields one `Fetched` per URL, in the order given.

    `work` runs in one of `threads` threads; if it is `light` (cheaper than handing it to a thread), on the event loop
    for bodies up to a mebibyte. The reason of a BadImage that it raises becomes the outcome;
    any other exception of it comes out here, when its URL's turn comes. Values that come long before their turn
    are pickled into nameless files in `scratch` (the system's temporary folder if None). Closing the generator
    stops all.
    """
    engine = _Engine(hosts, limits, work, threads, light, Spool(scratch, limits.spool_bytes))
    try:
        yield from engine.results(iter(urls))
    finally:
        engine.close()


class _Engine(Generic[T]):
    """The event loop's thread, and the methods that the consumer's thread and the loop call."""

    def __init__(
        self, hosts: Hosts, limits: Limits, work: Callable[[bytes], T], threads: int, light: bool, spool: Spool
    ) -> None:
        self._hosts, self._limits, self._work, self._light, self._spool = hosts, limits, work, light, spool
        self._out: SimpleQueue[list[Fetched[Any] | BaseException]] = SimpleQueue()
        self._pool = ThreadPoolExecutor(threads, "crawl-work")
        handles = _raise_handle_limit(4 * limits.window[1] + HANDLES_KEPT)  # of connections kept alive a while, too
        self._window = Window(_affordable(limits.window, handles))
        self._ahead = AHEAD * self._window.most
        self._n_taken = 0  # written by the consumer alone
        self._starved = False  # whether the loop waits for the consumer
        # From here on all is the loop's own.
        self._pending: deque[Job] = deque()
        self._ready: deque[Host[Job]] = deque()  # hosts that have room again, and waiting jobs
        self._parked: dict[int, tuple[Job, Host[Job]]] = {}  # jobs that wait for their host, by place
        self._running = self._working = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._done: dict[int, Fetched[Any] | BaseException] = {}
        self._held: dict[int, int] = {}
        self._due: list[Fetched[Any] | BaseException] = []  # whose turn has come
        self._next_out = 0
        self._oldest = 0  # the first place that the consumer hasn't taken
        self._bytes = ByteBudget(limits.bytes_ahead, lambda: self._oldest)
        self._loop = _new_loop()
        self._stopping = asyncio.Event()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="crawl", daemon=True)
        self._thread.start()
        self._up.wait()

    # The consumer's side.

    def results(self, urls: Iterator[str]) -> Iterator[Fetched[T]]:
        fed = 0
        more = True
        while more or self._n_taken < fed:
            room = self._ahead - (fed - self._n_taken)
            if more and room > 0:
                batch = list(islice(urls, min(room, BATCH)))
                more = bool(batch)
                self._call(self._feed, fed, batch)
                fed += len(batch)
                if self._out.empty():
                    continue
            for item in self._out.get():
                if isinstance(item, BaseException):
                    raise item
                self._n_taken += 1
                if self._starved:
                    self._starved = False
                    self._call(self._start)
                if isinstance(item.value, Spooled):
                    item = replace(item, value=self._spool.take(item.value))
                yield item

    def close(self) -> None:
        self._call(self._stopping.set)
        self._thread.join()
        self._spool.close()
        memory.release()

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
            self._out.put([*self._due, error])
        finally:
            self._up.set()

    async def _serve(self) -> None:
        self._loop.set_exception_handler(self._on_loop_error)
        self._lateness = Lateness(self._loop.time())
        self._asker = Asker(self._hosts, self._limits, self._window, self._bytes, self._lateness, self._ready.append)
        try:
            self._loop.call_later(TICK_S, self._tick)
            self._up.set()
            await self._stopping.wait()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._asker.close()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Hands an exception of one of our callbacks to the consumer, which would otherwise wait for ever."""
        if "handle" in context and isinstance(bug := context.get("exception"), Exception):
            self._out.put([bug])
        else:
            loop.default_exception_handler(context)

    def _tick(self) -> None:
        self._window.tick(late_s=self._lateness.tick(self._loop.time()), backlog=self._working)
        self._asker.forget_hosts()
        self._loop.call_later(TICK_S, self._tick)
        self._start()

    def _feed(self, place: int, urls: list[str]) -> None:
        self._pending.extend(Job(place + n, url, self._limits.total_s) for n, url in enumerate(urls))
        self._start()

    def _settle(self) -> None:
        """Releases the bytes of the results that the consumer has taken, of which it reports only the number."""
        while self._oldest < self._n_taken:
            self._bytes.give(self._held.pop(self._oldest))
            self._oldest += 1
        self._asker.let_in(self._oldest)

    # Who may start.

    def _start(self) -> None:
        """Starts what may start. When memory or disk fill up nothing new is started, so that what runs can end."""
        self._settle()
        while not self._stopping.is_set():
            crowded = self._is_crowded()
            if crowded and not self._starved:
                self._starved = True  # from here on the consumer says when it takes something; so much it took before:
                self._settle()
                crowded = self._is_crowded()
            if crowded or self._running >= self._window.size:
                if not crowded and (self._pending or self._ready):
                    self._window.report_full()
                self._start_oldest()
                return
            job = self._next()
            if job is None:
                return
            self._launch(*job)

    def _is_crowded(self) -> bool:
        return self._bytes.used * 2 >= self._limits.bytes_ahead or self._spool.full

    def _next(self) -> tuple[Job, Host[Job]] | None:
        """The next URL whose host has room: one that had to wait for it, or else the next in order."""
        while self._ready:
            host = self._ready.popleft()
            if found := self._release(host):
                return found
        while self._pending:
            if found := self._admit(self._pending.popleft()):
                return found
        return None

    def _admit(self, job: Job) -> tuple[Job, Host[Job]] | None:
        """The URL with its host; None when it was refused (its result is delivered) or now waits for its host."""
        job.final_url = job.url
        try:
            job.sent_url, host = self._asker.checked_url(job.url)
        except RefusedUrl as refused:
            self._deliver(job, self._result(job, refused.outcome))
            return None
        except Exception as bug:  # noqa: BLE001 - a callback of the loop has nobody to raise to: the consumer does it
            self._deliver(job, bug)
            return None
        now = self._loop.time()
        if refusal := host.refuses(now):
            self._deliver(job, self._result(job, refusal))
            return None
        if host.waiting or host.full or host.wait_s(now) > 0:
            host.waiting.append(job)
            self._parked[job.place] = (job, host)
            if len(host.waiting) == 1:
                self._wake(host)
            return None
        return job, host

    def _release(self, host: Host[Job]) -> tuple[Job, Host[Job]] | None:
        """The first URL that waits for a host, if the host has room now. Those that the host refuses end here."""
        now = self._loop.time()
        while host.waiting:
            if refusal := host.refuses(now):
                job = host.waiting.popleft()
                del self._parked[job.place]
                self._deliver(job, self._result(job, refusal))
                continue
            if host.full or host.wait_s(now) > 0:
                self._wake(host)
                return None
            job = host.waiting.popleft()
            del self._parked[job.place]
            if host.waiting:
                self._ready.append(host)
            return job, host
        return None

    def _wake(self, host: Host[Job]) -> None:
        """Makes sure that a host is looked at again: when its pause is over, or when a request of it ends."""
        if not host.full and not host.alarm:
            host.alarm = True
            self._loop.call_later(host.wait_s(self._loop.time()), self._look_again, host)

    def _look_again(self, host: Host[Job]) -> None:
        host.alarm = False
        self._ready.append(host)
        self._start()

    def _start_oldest(self) -> None:
        """Starts the oldest URL beyond the window and its host's share: others may wait for bytes that wait for it."""
        if self._oldest in self._parked:
            job, host = self._parked[self._oldest]
            if host.wait_s(self._loop.time()) > 0:
                return  # it has a time at which it will be looked at again
            host.waiting.remove(job)
            del self._parked[self._oldest]
            self._launch(job, host)
        elif (
            self._pending and self._pending[0].place == self._oldest and (found := self._admit(self._pending.popleft()))
        ):
            self._launch(*found)

    def _launch(self, job: Job, host: Host[Job]) -> None:
        self._running += 1
        host.begin(self._loop.time())
        task = self._loop.create_task(self._handle(job, host))
        self._tasks.add(task)
        task.add_done_callback(partial(self._on_task_done, job))

    def _on_task_done(self, job: Job, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (bug := task.exception()):
            self._deliver(job, bug)

    def _result(self, job: Job, outcome: str, size: int = 0, value: Any = None) -> Fetched[Any]:
        return Fetched(
            place=job.place,
            url=job.url,
            final_url=job.final_url,
            outcome=outcome,
            status=job.status,
            ms=int((self._loop.time() - job.began) * 1000) if job.began else 0,
            size_bytes=size,
            value=value,
        )

    def _deliver(self, job: Job, item: Fetched[Any] | BaseException) -> None:
        self._done[job.place] = item
        self._held[job.place] = job.held
        while self._next_out in self._done:
            if not self._due:
                self._loop.call_later(GATHER_S, self._hand_over)
            self._due.append(self._done.pop(self._next_out))
            self._next_out += 1

    def _hand_over(self) -> None:
        # In small lots, so that the consumer hands on new URLs between them.
        for at in range(0, len(self._due), BATCH):
            self._out.put(self._due[at : at + BATCH])
        self._due = []

    # One URL.

    async def _handle(self, job: Job, host: Host[Job]) -> None:
        job.began = self._loop.time()
        size, value = 0, None
        try:
            try:
                body, encoding = await self._asker.fetch(job, host)
            finally:
                self._running -= 1
            if self._light and not encoding and len(body) <= LIGHT_BYTES and not self._spools():
                outcome, size, value = self._finish(job, body, encoding)
            else:
                self._working += 1
                self._start()
                try:
                    work = self._loop.run_in_executor(self._pool, self._finish, job, body, encoding)
                    outcome, size, value = await work
                finally:
                    self._working -= 1
        except (Stop, RefusedUrl) as stop:
            outcome = stop.outcome
        kept = 0 if value is None or isinstance(value, Spooled) else size_of(value, job.held)
        self._bytes.give(job.held - kept)
        job.held = kept
        self._deliver(job, self._result(job, outcome, size, value))
        self._start()

    def _finish(self, job: Job, body: bytes, encoding: str) -> tuple[str, int, Any]:
        """Runs in the pool: does the work, and spools to disk what comes long before its turn."""
        outcome, size, value = run_work(self._work, body, encoding, self._limits.max_bytes)
        if value is not None and self._spools() and job.place != self._next_out:
            return outcome, size, self._spool.put(value)
        return outcome, size, value

    def _spools(self) -> bool:
        """Whether values go to the disk until their turn comes."""
        return self._bytes.used * 4 >= self._limits.bytes_ahead and not self._spool.full


def _raise_handle_limit(wanted: int) -> int:
    """Asks the system to let this process open so many files; returns how many it may, RLIM_INFINITY for any number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


def _affordable(window: tuple[int, int], handles: int) -> tuple[int, int]:
    """The bounds of the window that so many file handles permit."""
    if handles == resource.RLIM_INFINITY:
        return window
    most = max(1, min(window[1], (handles - HANDLES_KEPT) // 2))
    return min(window[0], most), most


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # there is none for Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
