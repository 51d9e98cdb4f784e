"""Pacing: how much a crawl does at once, who waits for whom, and what one host is asked to bear."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

J = TypeVar("J")

BREAK_AFTER = 10  # failures of a host in a row, after which it isn't asked for a while
BREAK_S = 60.0  # doubled each time that it fails again, up to
LONGEST_BREAK_S = 3600.0
TICK_S = 0.25  # how often the window is set anew
LAG_S = 0.1  # an event loop that comes so late has more to do than the machine can bear
TROUBLE = 0.3  # share of connections that can't be made, above which the network has enough
STEP = 16  # URLs by which the window grows in a tick, once it has shrunk for the first time
SHRINK = 0.7


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long, how much and how many. None of it changes a byte of what is fetched."""

    connect_s: float = 10
    read_s: float = 20
    """Silence that is borne on an open connection."""
    total_s: float = 60
    """The whole URL with redirects, retries and back-off; waiting for our own limits, for file handles, for our own
    event loop and for robots.txt, which has as much, is not counted."""
    max_bytes: int = 50 << 20
    max_redirects: int = 5
    window: tuple[int, int] = (16, 2048)
    """URLs in flight at once: at least, at most. In between it follows the machine and the network."""
    per_host: int = 8
    """Requests that one host has to bear at once."""
    per_host_per_s: float = 50
    """Requests that one host has to bear in a second, on average."""
    robots: bool = False
    """Whether robots.txt is asked for and obeyed; the headers of pictures always are."""
    bytes_ahead: int = 128 << 20
    """Bytes of memory being read, worked on or waiting for their turn. A value counts by its length or
    `nbytes`, and as much as its body did when it has neither."""
    spool_bytes: int = 4 << 30
    """Bytes of disk where values wait for their turn once they fill a quarter of `bytes_ahead`."""
    retries: int = 1


class Window:
    """How many URLs may be in flight: doubled each tick at first, then by additive increase, multiplicative decrease.

    It grows only while it is what holds the crawl up. It shrinks when the event loop comes late or the codecs have
    more to do than the window is wide (the machine has enough), and when too many connections fail (the network has).
    """

    def __init__(self, bounds: tuple[int, int]) -> None:
        self.least, self.most = bounds
        self.size = float(min(max(64, self.least), self.most))
        self._slow_start = True
        self._full = False
        self._good = self._bad = 0

    def report_full(self) -> None:
        """Reports that a URL was ready and had to wait for the window."""
        self._full = True

    def report_connection(self, well: bool) -> None:
        """Reports whether a request got a connection."""
        if well:
            self._good += 1
        else:
            self._bad += 1

    def tick(self, *, late_s: float, backlog: int) -> None:
        """Sets the size anew; `backlog` is how many bodies wait for a thread."""
        n = self._good + self._bad
        network = self._bad >= 20 and self._bad > TROUBLE * n
        if late_s > LAG_S or backlog > self.size / 2 + STEP or network:
            self.shrink()
        elif self._full and backlog <= STEP:
            self.size = min(self.most, self.size * 2 if self._slow_start else self.size + STEP)
        self._full = False
        if n >= 100:  # enough to judge by; fewer are kept for the next tick
            self._good = self._bad = 0

    def shrink(self) -> None:
        self.size = max(self.least, self.size * SHRINK)
        self._slow_start = False
        self._good = self._bad = 0


class Lateness:
    """How late the event loop has been in all, in seconds: while it is late, no answer of a server is read.

    It is measured by a tick that is due every TICK_S. A busy machine, a process that was stopped, and a callback
    that takes too long all look alike.
    """

    def __init__(self, now: float) -> None:
        self._due = now + TICK_S
        self._before_s = 0.0

    def tick(self, now: float) -> float:
        """The seconds that this tick came late."""
        late_s = max(0.0, now - self._due)
        self._before_s += late_s
        self._due = now + TICK_S
        return late_s

    def total_s(self, now: float) -> float:
        """Seconds up to now; a tick that is overdue counts."""
        return self._before_s + max(0.0, now - self._due)


class Host(Generic[J]):
    """One host: its running requests, the jobs that wait for it, and whether it is worth asking.

    Its concurrency and its rate are halved, down to one request at a time and one a second, whenever it says that it
    has too much or breaks connections; each answer raises them a little, up to the limits (additive increase).
    """

    def __init__(self, limits: Limits) -> None:
        self.running = 0
        self.waiting: deque[J] = deque()
        self.alarm = False  # whether it will be looked at again by itself
        self.per_s = self._fastest = limits.per_host_per_s
        self._most = self._widest = float(limits.per_host)
        self._patience_s = limits.total_s
        self._due = 0.0  # when the requests made so far will have kept the rate
        self._paused_until = 0.0
        self._failures = 0
        self._breaks = 0
        self._closed_until = 0.0
        self._last = ""

    @property
    def full(self) -> bool:
        return self.running >= int(self._most)

    def wait_s(self, now: float) -> float:
        """Seconds until the rate, or a Retry-After, permits another request."""
        burst_s = (int(self._most) - 1) / self.per_s
        return max(self._due - now - burst_s, self._paused_until - now, 0.0)

    def begin(self, now: float) -> None:
        self.running += 1
        self._due = max(self._due, now) + 1 / self.per_s

    def slow(self, delay_s: float) -> None:
        """Obeys the crawl delay of the host's robots.txt: so many seconds between two requests."""
        self._most = self._widest = 1.0
        self._fastest = min(self._fastest, 1 / delay_s)
        self.per_s = min(self.per_s, self._fastest)

    def pause(self, now: float, after_s: float) -> None:
        """Obeys a Retry-After. When it is longer than a URL may take, the host isn't asked at all until then."""
        if after_s <= self._patience_s:
            self._paused_until = max(self._paused_until, now + after_s)
        else:
            self._failures, self._last = BREAK_AFTER, "host_down"
            self._closed_until = max(self._closed_until, now + min(after_s, LONGEST_BREAK_S))

    def refuses(self, now: float) -> str:
        """The outcome of URLs of a host that kept failing and isn't asked now; empty when it may be asked.

        When its time is over one request goes through; the next ones follow if that one is answered.
        """
        if self._failures < BREAK_AFTER:
            return ""
        if now >= self._closed_until and not self.running:
            return ""
        return "dns" if self._last == "dns" else "host_down"

    def report_outcome(self, outcome: str, now: float) -> None:
        """Reports the outcome of a request, which lengthens or ends a row of failures."""
        if outcome in _TOO_MUCH:
            self._most = max(1.0, self._most / 2)
            self.per_s = max(min(1.0, self._fastest), self.per_s / 2)
        elif not is_host_fault(outcome):
            self._most = min(self._widest, self._most + 1 / self._most)
            self.per_s = min(self._fastest, self.per_s + self._fastest / 100)
        if not is_host_fault(outcome):
            self._failures = self._breaks = 0
            return
        self._failures += 1
        self._last = outcome
        if self._failures >= BREAK_AFTER and now >= self._closed_until:
            self._closed_until = now + min(BREAK_S * 2**self._breaks, LONGEST_BREAK_S)
            self._breaks += 1

    def forgettable(self, now: float) -> bool:
        """Whether the host is in its initial state, so that nothing is lost when it is forgotten."""
        idle = not self.running and not self.waiting
        return (
            idle and self._most == self._widest and not self._failures and self.wait_s(now) == 0.0 and self._due <= now
        )


_TOO_MUCH = frozenset({"http_429", "http_503", "reset", "connect", "timeout_connect"})
_HOST_FAULTS = frozenset(
    {"dns", "connect", "tls", "timeout_connect", "timeout_read", "timeout_total", "reset", "protocol", "http_429"}
)


def is_host_fault(outcome: str) -> bool:
    """Whether an outcome speaks against the host rather than against one URL."""
    return outcome in _HOST_FAULTS or outcome.startswith("http_5")


class ByteBudget:
    """A byte budget with a queue: URLs wait in order of arrival, and the oldest URL never waits."""

    def __init__(self, limit: int, oldest: Callable[[], int]) -> None:
        self.used = 0
        self._limit = limit
        self.oldest = oldest
        self._waiting: dict[int, tuple[int, asyncio.Future[None]]] = {}

    def admits(self, place: int, n: int) -> bool:
        """Takes `n` bytes if that is possible without waiting."""
        if place != self.oldest() and (self._waiting or self.used + n > self._limit):
            return False
        self.used += n
        return True

    async def wait(self, place: int, n: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[place] = (n, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if self._waiting.pop(place, None) is None:  # it was let in and cancelled at the same moment
                self.give(n)
            raise

    def give(self, n: int) -> None:
        """Gives `n` bytes back, and lets in the waiting URLs that now fit."""
        self.used -= n
        while self._waiting:
            place, (wanted, _) = next(iter(self._waiting.items()))
            if self.used + wanted > self._limit:
                break
            self.let_in(place)

    def let_in(self, place: int) -> None:
        if place in self._waiting:
            n, turn = self._waiting.pop(place)
            self.used += n
            if not turn.done():
                turn.set_result(None)


def size_of(value: object, otherwise: int) -> int:
    """Bytes that a value keeps in memory, as far as they are known."""
    if isinstance(value, bytes | bytearray):
        return len(value)
    n = getattr(value, "nbytes", otherwise)
    return n if isinstance(n, int) else otherwise
