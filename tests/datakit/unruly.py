"""A server on 127.0.0.1 that answers byte by byte what a test tells it, polite or not."""

from __future__ import annotations

import socket
import socketserver
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

TICK_S = 0.02  # between two bytes of a slow answer


@dataclass
class Visit:
    """One request, and the socket to answer it on."""

    method: str
    path: str
    headers: dict[str, str]
    socket: socket.socket
    closing: threading.Event

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self, status: int = 200, **headers: object) -> None:
        lines = [f"HTTP/1.1 {status} Whatever", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape"))

    def hang(self) -> None:
        """Says nothing more until the test ends."""
        self.closing.wait()

    def trickle(self) -> None:
        """A byte now and then until the test ends or the client leaves."""
        while not self.closing.wait(TICK_S):
            self.send(b"x")

    def flood(self) -> None:
        """Bytes without an end."""
        while not self.closing.is_set():
            self.send(b"x" * 65536)

    def reset(self) -> None:
        """Breaks the connection with an RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


Answer = Callable[[Visit], object]
Greeting = Callable[[socket.socket, threading.Event], object]  # what a door does with a connection


def reply(body: bytes = b"", status: int = 200, **headers: object) -> Answer:
    """A proper answer of a known length."""

    def answer(visit: Visit) -> None:
        visit.head(status, **{"Content_Length": len(body), **headers})
        if visit.method != "HEAD":
            visit.send(body)

    return answer


def in_turn(*answers: Answer) -> Answer:
    """One answer after the other; the last one for ever."""
    left = list(answers)

    def answer(visit: Visit) -> None:
        (left.pop(0) if len(left) > 1 else left[0])(visit)

    return answer


def ranged(body: bytes, etag: str | None = '"v1"', cut: int | None = None, **headers: object) -> Answer:
    """A file that can be read from a place on; with `cut` the connection ends after so many bytes."""

    def answer(visit: Visit) -> None:
        said = {**({"ETag": etag} if etag else {}), **headers}
        start = 0
        asked = visit.headers.get("range", "")
        if asked and visit.headers.get("if-range", etag) == etag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            said["Content_Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        left = body[start:]
        visit.head(206 if start else 200, **said, Content_Length=len(left))
        if visit.method != "HEAD":
            visit.send(left[:cut])

    return answer


@dataclass
class Unruly:
    """Answers by path, without the query; a path it doesn't know is a 404."""

    port: int
    answers: dict[str, Answer] = field(default_factory=dict)
    visits: list[Visit] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    doors: ExitStack = field(default_factory=ExitStack)

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    def at(self, path: str, answer: Answer) -> str:
        """Sets an answer and returns its URL."""
        self.answers[path] = answer
        return f"http://{self.place}{path}"

    def door(
        self,
        greeting: Greeting | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        at: tuple[str, int] = ("127.0.0.1", 0),
    ) -> int:
        """Opens one more port: `greeting` has it before anything is read, else it answers, after TLS if any."""
        server = self.doors.enter_context(_Server(at, _Handler))
        server.unruly, server.greeting, server.tls = self, greeting, tls
        self.doors.enter_context(_served(server))
        return int(server.server_address[1])

    def paths(self) -> list[str]:
        return [visit.path for visit in self.visits]


class _Handler(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        with suppress(ConnectionError, TimeoutError, ssl.SSLError):  # the client left first
            if self.server.greeting:
                self.server.greeting(self.request, self.server.unruly.closing)
            elif self.server.tls:
                with self.server.tls.wrap_socket(self.request, server_side=True) as self.request:
                    self.answer(self.server.unruly)
            else:
                self.answer(self.server.unruly)

    def answer(self, unruly: Unruly) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            received = self.request.recv(65536)
            if not received:
                return
            head += received
            if head.startswith(b"\x16"):  # a TLS handshake, and here is none
                self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                return
        first, *lines = head.split(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (li.partition(":") for li in lines)}
        visit = Visit(method, path, headers, self.request, unruly.closing)
        unruly.visits.append(visit)
        unruly.answers.get(path.partition("?")[0], reply(b"none", 404))(visit)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    request_queue_size = 2048
    unruly: Unruly
    greeting: Greeting | None = None
    tls: ssl.SSLContext | None = None

    def handle_error(self, request: object, client_address: object) -> None:
        raise  # pytest reports what goes wrong in a thread


@contextmanager
def _served(server: _Server) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def unruly_server() -> Iterator[Unruly]:
    """Serves until the block ends; no thread and no socket is left behind."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        unruly = server.unruly = Unruly(server.server_address[1])
        with unruly.doors, _served(server):
            try:
                yield unruly
            finally:
                unruly.closing.set()
