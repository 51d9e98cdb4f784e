"""Guarded: img2dataset in a process of its own, behind our own rules of what may be connected to.

Run as `python -m datakit.interop.guarded JOB.json`. img2dataset starts its workers by spawning, which runs this module
again in each of them, so the guard stands wherever it downloads. It replaces what urllib opens URLs with: nothing but
http and https, each redirect's target checked, each address checked as the socket is opened to it (so a name can't
turn private in between), no proxy, one TLS context, our User-Agent, our reading of opt-outs, and a ceiling of bytes
and time for a body. img2dataset itself is not changed.
"""

from __future__ import annotations

import http.client
import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from urllib.error import URLError

from datakit.interop.causes import GUARD
from datakit.web import hosts as policy
from datakit.web.hosts import Hosts, RefusedUrl

PIECE = 1 << 18


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to where a URL may lead."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        try:
            checked = self._hosts.check_url(newurl)
        except RefusedUrl as refused:
            raise URLError(GUARD + refused.outcome) from refused
        return super().redirect_request(req, fp, code, msg, headers, checked)


class Manners(urllib.request.BaseHandler):
    """Says who asks, heeds opt-outs, and reads no more and no longer than allowed."""

    def __init__(self, max_bytes: int, total_s: float) -> None:
        self._max_bytes = max_bytes
        self._total_s = total_s

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        request.add_header("User-Agent", policy.USER_AGENT)
        return request

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:
        if response.status == 200:
            headers = response.headers
            if policy.is_opted_out(headers.get_all("X-Robots-Tag", []), headers.get("tdm-reservation")):
                raise URLError(GUARD + "opted_out")
            response.read = self._reader(response)
        return response

    https_request = http_request
    https_response = http_response

    def _reader(self, response: http.client.HTTPResponse) -> Callable[[], bytes]:
        until = time.monotonic() + self._total_s
        length = response.length  # what is announced; None when nothing is

        def bounded() -> bytes:
            if (length or 0) > self._max_bytes:
                raise URLError(GUARD + "too_large")
            body = bytearray()
            while length is None or len(body) < length:
                piece = response.read1(PIECE if length is None else min(PIECE, length - len(body)))
                if not piece:
                    break
                body += piece
                if len(body) > self._max_bytes:
                    raise URLError(GUARD + "too_large")
                if time.monotonic() > until:
                    raise URLError(GUARD + "timeout_total")
            if length is not None and len(body) < length:
                raise http.client.IncompleteRead(bytes(body), length - len(body))
            return bytes(body)

        return bounded


def guard(hosts: Hosts, *, max_bytes: int, total_s: float, max_redirects: int) -> None:
    """Puts the guard into this process, for urllib and for every lookup of a name."""
    Redirects.max_redirections = max_redirects
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=policy.tls()),
        urllib.request.HTTPDefaultErrorHandler(),
        Redirects(hosts),
        Manners(max_bytes, total_s),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    urllib.request.install_opener(opener)
    resolve = socket.getaddrinfo

    def resolve_checked(host: Any, port: Any, *args: Any, **kwargs: Any) -> list[Any]:
        found = resolve(host, port, *args, **kwargs)
        name = host.decode("ascii") if isinstance(host, bytes) else host
        passed = [entry for entry in found if name is None or _public(hosts, name, entry[4])]
        if not passed:
            raise OSError(GUARD + "refused_address")
        return passed

    socket.getaddrinfo = resolve_checked


def _public(hosts: Hosts, name: str, address: tuple[Any, ...]) -> bool:
    try:
        hosts.check_address(name, str(address[0]), int(address[1]))
    except RefusedUrl:
        return False
    return True


def _end_with_parent() -> None:
    """Ends this process group when the process that started it is gone, which closes our stdin."""
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def _start() -> None:
    job = json.loads(Path(sys.argv[1]).read_bytes())
    guard(Hosts(allowed=tuple(job["allowed"])), **job["limits"])
    if __name__ == "__main__":
        threading.Thread(target=_end_with_parent, daemon=True).start()
        importlib.import_module("img2dataset").download(**job["download"])


if __name__ in ("__main__", "__mp_main__"):  # the latter in img2dataset's workers
    _start()
