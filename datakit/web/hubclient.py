"""Hub client: huggingface_hub's requests, under the policy of `hosts`.

The library follows redirects by itself, for its API wherever they lead. Here each of its requests is looked at on its
way out. The endpoint is connected to as it is named, on a private address too. Any other origin, a redirect's target
above all, must pass `check_url` and `check_address`, the address that passed is the one connected to, and the token
isn't sent there. Requests that other libraries in this process make through huggingface_hub go out as without us.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from datakit.errors import UsageError
from datakit.web import hosts as policy
from datakit.web.hosts import Hosts
from datakit.web.proxies import proxy_for

HUB = "https://huggingface.co"
ADDRESS_KEPT_S = 600.0  # for which an address, once connected to, is used
_loading = threading.Lock()
_under: ContextVar[Hosts | None] = ContextVar("_under", default=None)


def hub_library() -> ModuleType:
    """huggingface_hub, loaded when first needed; in this process its requests then go out as this module says.

    Its telemetry is off unless HF_HUB_DISABLE_TELEMETRY says otherwise.
    """
    with _loading:  # a session that one thread asks for is closed when another sets the factory
        return _hub_library()


@cache
def _hub_library() -> ModuleType:
    import huggingface_hub
    import huggingface_hub.constants
    import huggingface_hub.errors
    import huggingface_hub.utils

    # Else it looks for the program that calls it, and asks the hub for a list of such programs: a request that nobody
    # asked for. Who wants it sets the variable to 0.
    if "HF_HUB_DISABLE_TELEMETRY" not in os.environ:
        huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True

    httpx: Any = sys.modules[huggingface_hub.errors.HfHubHTTPError.__mro__[1].__module__.partition(".")[0]]
    hooks = huggingface_hub.get_session().event_hooks  # offline mode, and an id for each request

    def client() -> Any:
        return httpx.Client(transport=_checked_transport(httpx), event_hooks=hooks, follow_redirects=True, timeout=None)

    huggingface_hub.set_client_factory(client)
    return huggingface_hub


@contextmanager
def policy_applied(hosts: Hosts) -> Iterator[None]:
    """Holds the requests that huggingface_hub sends in this thread, within the block, to the policy."""
    before = _under.set(hosts)
    try:
        yield
    finally:
        _under.reset(before)


def hub_endpoint() -> str:
    """The hub's URL, read at each call: the library binds it when it is loaded. Raises UsageError when it is no URL."""
    endpoint = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    try:
        url = urlsplit(endpoint)
        good = url.scheme in ("http", "https") and bool(url.hostname)
    except ValueError:
        good = False
    if not good:
        raise UsageError(f"HF_ENDPOINT should be a URL such as {HUB}, not {endpoint!r}")
    return endpoint


def origin(url: str) -> tuple[str, str]:
    """Scheme and host (with its port) of a URL."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def is_hub(url: str) -> bool:
    """Whether the token may be sent there."""
    return origin(url) in (origin(hub_endpoint()), origin(HUB))


def _checked_transport(httpx: Any) -> Any:  # noqa: C901  (all methods of the class count as this function's)
    """A transport for the library's client, which checks every URL and every address."""

    class Checked(httpx.BaseTransport):  # type: ignore[misc]
        def __init__(self) -> None:
            self._plain = httpx.Client(timeout=None)
            self._transports: dict[
                tuple[object, ...], Any
            ] = {}  # one for each host: two on one address share no connection
            self._addresses: dict[tuple[object, ...], tuple[str, float]] = {}
            self._lock = threading.Lock()

        def handle_request(self, request: Any) -> Any:
            hosts, url = _under.get(), str(request.url)
            if hosts is None:
                return self._plain.send(request, stream=True, follow_redirects=False)
            if origin(url) != origin(hub_endpoint()):
                hosts.check_url(url)
            if not is_hub(url):
                request.headers.pop("authorization", None)
            if proxy := proxy_for(url):
                return self._transport(proxy, proxy=proxy).handle_request(request)
            return self._direct(request, hosts)

        def _direct(self, request: Any, hosts: Hosts) -> Any:
            host, port = request.url.host, request.url.port or (443 if request.url.scheme == "https" else 80)
            key = (hosts, origin(hub_endpoint()), request.url.scheme, host, port)
            trouble = None
            for ip in self._addresses_of(key, hosts, str(request.url), host, port):
                sent = httpx.Request(
                    request.method,
                    request.url.copy_with(host=ip),
                    headers=request.headers,
                    stream=request.stream,
                    extensions={**request.extensions, "sni_hostname": host},
                )
                try:
                    reply = self._transport(*key).handle_request(sent)
                except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                    trouble = error
                    self._addresses.pop(key, None)
                else:
                    self._addresses.setdefault(key, (ip, time.monotonic()))
                    return reply
            raise trouble or httpx.ConnectError(f"{host} has no address")

        def _addresses_of(self, key: tuple[object, ...], hosts: Hosts, url: str, host: str, port: int) -> list[str]:
            """The addresses that may be connected to; for a while only the one that answered last."""
            ip, since = self._addresses.get(key, ("", 0.0))
            if ip and time.monotonic() - since < ADDRESS_KEPT_S:
                return [ip]
            self._addresses.pop(key, None)
            try:
                named = origin(url) == origin(hub_endpoint())
                return policy.look_up(host, port) if named else hosts.addresses(host, port)
            except socket.gaierror as error:
                raise httpx.ConnectError(f"the name of {host} is not found: {error}") from error

        def _transport(self, *key: object, proxy: str | None = None) -> Any:
            with self._lock:
                if key not in self._transports:
                    self._transports[key] = httpx.HTTPTransport(verify=policy.tls(), trust_env=False, proxy=proxy)
                return self._transports[key]

        def close(self) -> None:
            for client in (self._plain, *self._transports.values()):
                client.close()

    return Checked()
