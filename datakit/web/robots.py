"""Robots: what robots.txt of a host permits (RFC 9309), asked once a day and host, or after a minute if it failed."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from datakit.web.outcomes import Stop

if TYPE_CHECKING:
    from protego import Protego

AGENT = "datakit"
KEPT_S = 24 * 3600  # RFC 9309, 2.4: not longer than a day
FAILURE_KEPT_S = 60.0
MOST_HOSTS = 20_000
MAX_BYTES = 500 << 10  # RFC 9309, 2.5: at least so much is read; what follows is ignored
LONGEST_DELAY_S = 30.0  # of a Crawl-delay; a longer one would stop the crawl rather than slow it

# Status and body of a URL that is followed through redirects.
Get = Callable[[str], Awaitable[tuple[int, bytes]]]


class Robots:
    """The answers of hosts, kept for a day."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[float, asyncio.Task[Protego | None]]] = OrderedDict()

    async def allows(self, url: str, get: Get) -> tuple[bool, float | None]:
        """Whether a checked URL may be asked for, and the seconds that the host wants between two requests.

        No robots.txt (any 4xx) permits all. A host that can't be reached or answers 5xx permits nothing for a minute:
        then it raises Stop with that outcome, which another day may change. What was this machine's fault is not kept.
        """
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        known = self._known.get(origin)
        if known is None or known[0] < time.monotonic():
            task = asyncio.ensure_future(self._rules(f"{origin}/robots.txt", get))
            known = self._known[origin] = (time.monotonic() + KEPT_S, task)
            while len(self._known) > MOST_HOSTS:
                self._known.popitem(last=False)
        # Shielded: many URLs wait for one answer, and one that gives up must not take it from the others.
        rules = await asyncio.shield(known[1])
        if rules is None:
            return True, None
        delay = rules.crawl_delay(AGENT)
        return rules.can_fetch(url, AGENT), None if delay is None else min(float(delay), LONGEST_DELAY_S)

    async def _rules(self, url: str, get: Get) -> Protego | None:
        from protego import Protego

        try:
            status, body = await get(url)
            if status >= 500:
                raise Stop(f"http_{status}")
        except Exception as error:
            origin = url.removesuffix("/robots.txt")
            if isinstance(error, Stop) and error.ours:
                self._known.pop(origin, None)
            elif origin in self._known:
                self._known[origin] = (time.monotonic() + FAILURE_KEPT_S, self._known[origin][1])
            raise
        return Protego.parse(body[:MAX_BYTES].decode("utf-8", "replace")) if status == 200 else None
