"""Serves answers over HTTP/1.1 on 127.0.0.1, and breaks off, dawdles or lies where an answer says so.

A site is a function from what is asked to an `Answer`. The server adds Range, HEAD, keep-alive, a list of
all requests, and an end that leaves neither thread nor socket behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TRICKLE_S = 0.05  # between two bytes of an endless answer
RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request as it came in: the path still holds its query and its percent signs."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)  # names in lower case
    body: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is sent back. A 200 with an ETag can be asked for in ranges."""

    body: bytes = b""
    status: int = 200
    content_type: str = "application/octet-stream"
    etag: str = ""  # without its quotes
    headers: tuple[tuple[str, str], ...] = ()
    cut_after: int | None = None  # the connection is closed after so many bytes of the body
    endless: bool = False  # a byte now and then until the client hangs up


Site = Callable[[Request], Answer]


def whole(body: bytes, content_type: str = "application/octet-stream") -> Answer:
    """A file that can be read in ranges."""
    return Answer(body=body, content_type=content_type, etag=hashlib.sha256(body).hexdigest()[:32])


class Server(ThreadingHTTPServer):
    """Answers for a site until `close`; one thread per connection."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024  # a crawl opens many connections at once

    def __init__(self, site: Site, *, port: int = 0, delay_s: float = 0.0) -> None:
        self.site = site
        self.delay_s = delay_s
        self.requests: list[tuple[str, str, str | None]] = []
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._attending: set[threading.Thread] = set()
        super().__init__(("127.0.0.1", port), _Connection)
        self._loop = threading.Thread(target=self.serve_forever, args=(0.02,), name="miniature", daemon=True)
        self._loop.start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def server_bind(self) -> None:
        # HTTPServer asks the name service for its own name here, which can take seconds without a network.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.port

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(target=self._attend, args=(request, client_address), daemon=True)
        with self._lock:
            self._open.add(request)
            self._attending.add(thread)
        thread.start()

    def _attend(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open.discard(request)
                self._attending.discard(threading.current_thread())

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Clients hang up, and some are made to; anything else is a defect that should be seen.
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def close(self) -> None:
        """Stops listening, cuts every connection, and waits for the threads."""
        self.stopping.set()
        self.shutdown()
        self.server_close()
        self._loop.join()
        with self._lock:
            connections, threads = list(self._open), list(self._attending)
        for connection in connections:
            with contextlib.suppress(OSError):  # it may have ended by itself
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(timeout=5)


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "miniature"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = 1 << 16  # head and body leave in one packet
    server: Server

    def _respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(
            method=self.command,
            path=self.path,
            headers={name.lower(): value for name, value in self.headers.items()},
            body=body,
        )
        self.server.requests.append((request.method, request.path, request.headers.get("range")))
        if self.server.delay_s:
            self.server.stopping.wait(self.server.delay_s)
        answer = self.server.site(request)
        if answer.endless and self.command != "HEAD":
            self._dawdle(answer)
        else:
            self._send(answer, *_part(request, answer))

    do_GET = do_HEAD = do_POST = _respond

    def _send(self, answer: Answer, status: int, part: slice) -> None:
        start, stop, _ = part.indices(len(answer.body))
        size_bytes = max(0, stop - start)
        self._head(answer, status, size_bytes)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(answer.body)}")
        elif status == 416:
            self.send_header("Content-Range", f"bytes */{len(answer.body)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        body = answer.body[start:stop]
        if answer.cut_after is not None and answer.cut_after < size_bytes:
            self.wfile.write(body[: answer.cut_after])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def _head(self, answer: Answer, status: int, size_bytes: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(size_bytes))
        if answer.etag:
            self.send_header("ETag", f'"{answer.etag}"')
            self.send_header("Accept-Ranges", "bytes")
        for name, value in answer.headers:
            self.send_header(name, value)

    def _dawdle(self, answer: Answer) -> None:
        self.close_connection = True
        self._head(answer, answer.status, 10_000_000)
        self.end_headers()
        self.wfile.write(answer.body)
        self.wfile.flush()
        while not self.server.stopping.wait(TRICKLE_S):
            self.wfile.write(b"\0")
            self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing: `requests` is the log."""


def _part(request: Request, answer: Answer) -> tuple[int, slice]:
    """The status and the part of the body that a request is due (RFC 9110, section 14)."""
    wanted = RANGE.fullmatch(request.headers.get("range", ""))
    condition = request.headers.get("if-range", "").strip('"')
    if (
        not wanted
        or request.method != "GET"
        or answer.status != 200
        or not answer.etag
        or (condition and condition != answer.etag)
    ):
        return answer.status, slice(None)
    first, last = wanted.groups()
    size_bytes = len(answer.body)
    if first:
        start, stop = int(first), min(size_bytes, int(last) + 1) if last else size_bytes
    elif last:
        start, stop = max(0, size_bytes - int(last)), size_bytes
    else:
        return answer.status, slice(None)
    return (206, slice(start, stop)) if start < stop else (416, slice(0, 0))
