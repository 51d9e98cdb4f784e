"""A proxy on 127.0.0.1 that knows names which nobody else does: it tunnels for https, and passes http on."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Relay:
    """`names` says on which port of 127.0.0.1 a name is; it refuses others with 503, as Squid does."""

    port: int
    names: dict[str, int]
    asked: list[str] = field(default_factory=list)  # the first lines of requests
    credentials: list[str | None] = field(default_factory=list)

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"


class _Handler(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        with suppress(ConnectionError):
            head = b""
            while b"\r\n\r\n" not in head:
                received = self.request.recv(65536)
                if not received:
                    return
                head += received
            self.passed_on(head)

    def passed_on(self, head: bytes) -> None:
        relay = self.server.relay
        first, _, rest = head.partition(b"\r\n")
        method, target, _ = first.decode().split(" ")
        relay.asked.append(f"{method} {target}")
        lines = rest.split(b"\r\n")
        said = [line.partition(b": ")[2].decode() for line in lines if line.lower().startswith(b"proxy-auth")]
        relay.credentials.append(said[0] if said else None)
        rest = b"\r\n".join(line for line in lines if not line.lower().startswith(b"proxy-auth"))
        authority, _, path = target.removeprefix("http://").partition("/")
        port = relay.names.get(authority.partition(":")[0])
        if port is None:
            self.request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        with socket.create_connection(("127.0.0.1", port)) as there:
            if method == "CONNECT":
                self.request.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                there.sendall(f"{method} /{path} HTTP/1.1\r\n".encode() + rest)
            back = threading.Thread(target=_poured, args=(there, self.request))
            back.start()
            _poured(self.request, there)
            back.join()


def _poured(source: socket.socket, into: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(65536):
            into.sendall(piece)
    for end in (source, into):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    relay: Relay


@contextmanager
def relayed(names: dict[str, int]) -> Iterator[Relay]:
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.relay = Relay(server.server_address[1], names)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.relay
        finally:
            server.shutdown()
            thread.join()
