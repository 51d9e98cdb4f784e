"""Pacing: how much a crawl does at once, and who waits for whom."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long, how much and how many. None of it changes a byte of what is fetched."""

    connect_s: float = 10
    read_s: float = 20
    """Silence that is borne on an open connection."""
    total_s: float = 60
    """The whole URL with redirects, retries and back-off; waiting for our own limits is not counted."""
    max_bytes: int = 50 << 20
    max_redirects: int = 5
    in_flight: int = 256
    per_host: int = 8
    bytes_ahead: int = 256 << 20
    """Bytes being read, worked on or waiting for their turn. A value counts by its length or `nbytes`,
    and as much as its body did when it has neither."""
    retries: int = 1


class Room:
    """So much of one thing at once. Who waits goes in order of arrival, and the oldest URL never waits."""

    def __init__(self, limit: int, oldest: Callable[[], int]) -> None:
        self.used = 0
        self._limit = limit
        self._oldest = oldest
        self._waiting: dict[int, tuple[int, asyncio.Future[None]]] = {}

    @property
    def idle(self) -> bool:
        return not self.used and not self._waiting

    def admits(self, place: int, n: int) -> bool:
        """Takes `n` at once if that is possible."""
        if place != self._oldest() and (self._waiting or self.used + n > self._limit):
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
        """Gives `n` back, and lets in those who now fit."""
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
    """Bytes that a value keeps in memory, as far as they can be told."""
    if isinstance(value, bytes | bytearray):
        return len(value)
    n = getattr(value, "nbytes", otherwise)
    return n if isinstance(n, int) else otherwise
