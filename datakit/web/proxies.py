"""Proxies: which one the user's environment names for a URL, and what going through it means.

HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY (in lower case too) hold for the hub, for archives and for pictures by
URL alike. A proxy is trusted as it is named, on a private address too. URLs and redirects are then checked as they are
spelt, so a private address is refused, but names are the proxy's to resolve: one that leads to a private address isn't
noticed here. What must not be reached from there, the proxy has to refuse.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies_environment

from datakit.errors import UsageError


@dataclass(frozen=True)
class Proxies:
    """The proxies of an environment, by scheme; `no` holds the hosts that are asked directly."""

    named: dict[str, str] = field(default_factory=getproxies_environment)

    def proxy_for(self, url: str) -> str | None:
        """The proxy that a URL is asked through; None when it is asked directly, as this machine always is.

        Raises UsageError for a kind of proxy that isn't supported, such as SOCKS.
        """
        if not self.named:
            return None
        parts = urlsplit(url)
        if self._is_direct(parts.hostname or "", _port(parts)):
            return None
        return self._by_scheme.get(parts.scheme)

    def is_proxy(self, url: str) -> bool:
        """Whether a URL is that of a proxy itself."""
        return bool(self.named) and self.is_proxy_address(urlsplit(url).hostname or "", _port(urlsplit(url)))

    def is_proxy_address(self, host: str, port: int) -> bool:
        return (host, port) in self._addresses

    @cached_property
    def _by_scheme(self) -> dict[str, str]:
        both = {scheme: self.named.get(scheme) or self.named.get("all") for scheme in ("http", "https")}
        return {scheme: _proxy_url(scheme, proxy) for scheme, proxy in both.items() if proxy}

    @cached_property
    def _addresses(self) -> frozenset[tuple[str, int]]:
        found = map(urlsplit, self._by_scheme.values())
        return frozenset((parts.hostname or "", _port(parts)) for parts in found)

    def _is_direct(self, host: str, port: int) -> bool:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            address = None
        if host == "localhost" or (address is not None and address.is_loopback):
            return True
        for entry in self.named.get("no", "").lower().split(","):
            name, _, only = entry.strip().removeprefix("*").lstrip(".").partition(":")
            if entry.strip() == "*" or (
                name and only in ("", str(port)) and (host == name or host.endswith(f".{name}"))
            ):
                return True
            if address is not None and name and _covers(entry.strip(), address):
                return True
        return False


def proxy_for(url: str) -> str | None:
    """The proxy that the environment now names for a URL."""
    return Proxies().proxy_for(url)


def _covers(block: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(block, strict=False)
    except ValueError:
        return False


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _proxy_url(scheme: str, proxy: str) -> str:
    """A proxy as a URL. Raises UsageError for a kind that isn't supported."""
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    try:
        there = urlsplit(proxy)
        good = there.scheme in ("http", "https") and bool(there.hostname) and _port(there) > 0
    except ValueError:
        good = False
    if not good:
        raise UsageError(
            f"the environment names {proxy.rpartition('@')[2]!r} as the proxy for {scheme}, and only those at "
            "http://HOST:PORT are spoken to: name such a one in HTTP_PROXY and HTTPS_PROXY, or unset them"
        )
    return proxy
