"""An internet of one server in which every fault has a host of its own, and what faults are made from."""

from __future__ import annotations

import io
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from certificates import server_context
from PIL import Image, ImageDraw
from unruly import Answer, Greeting, Unruly, Visit, reply

PUBLIC = "127.0.0.77"  # stands for a public address where none may be allowed; see `Web.look_up`
CENTURY = "20990101000000Z"
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

Found = Callable[[Unruly, int], tuple[str, ...]]  # the addresses of a name, at the n-th question


def picture(n: int) -> bytes:
    """A JPEG that is stored as it came, another for each `n` below 4096."""
    image = Image.new("RGB", (64, 48), (n // 256 * 16, n // 16 % 16 * 16, n % 16 * 16))
    ImageDraw.Draw(image).rectangle((n % 50, 8, 60, 40), fill=(250, 120, n % 200))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


PICTURE = picture(4095)
HALF = PICTURE[: len(PICTURE) // 2]
SIZED = OK + b"Content-Length: %d\r\n\r\n" % len(PICTURE)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One way to misbehave. Its name is its host's; what isn't set is as it should be."""

    outcomes: frozenset[str]
    answer: Callable[[], Answer] | None = None  # to requests; made anew for each server
    greeting: Greeting | None = None  # of connections, before anything is read
    certificate: str = ""  # https, and whose: `@` stands for the host
    until: str = CENTURY  # the certificate's last second
    found: Found = lambda unruly, nth: ("127.0.0.1",)
    allowed: bool = True  # that its address is a private one
    scheme: str = "http"
    port: Callable[[Unruly], int] | None = None
    asks: int | None = None  # requests that reach the server; None leaves it open


@dataclass
class Web:
    """The names and the certificates of an internet whose only server is `unruly`."""

    unruly: Unruly
    folder: Path
    names: dict[str, Found] = field(default_factory=dict)
    allowed: list[str] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)

    def look_up(self, host: str, port: int) -> list[str]:
        """In the place of `datakit.web.hosts.look_up`."""
        self.asked[host] += 1
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return list(self.names[host](self.unruly, self.asked[host]))

    def good(self, n: int) -> str:
        """The URL of a sound picture, on a host of its own."""
        host = f"good-{n}.example"
        self._name(host, lambda unruly, nth: ("127.0.0.1",))
        return self.unruly.at(f"/good-{n}.jpg", reply(picture(n))).replace("127.0.0.1", host)

    def stand(self, name: str, fault: Fault) -> str:
        """Sets a fault up and returns its URL."""
        host, unruly, scheme = f"{name}.example", self.unruly, fault.scheme
        self._name(host, fault.found, allowed=fault.allowed)
        unruly.at(f"/{name}/x.jpg", fault.answer() if fault.answer else reply(PICTURE))
        port = unruly.port
        if fault.port:
            port = fault.port(unruly)
        elif fault.greeting:
            port = unruly.door(fault.greeting)
        elif fault.certificate:
            scheme = "https"
            port = unruly.door(tls=server_context(self.folder, fault.certificate.replace("@", host), until=fault.until))
        return f"{scheme}://{host}:{port}/{name}/x.jpg"

    def requests(self, name: str) -> int:
        """How many requests a fault got."""
        return sum(path.startswith(f"/{name}/") for path in self.unruly.paths())

    def authorities(self) -> Path:
        """The certificates that are trusted: a folder of all but the strangers'."""
        trusted = self.folder / "trusted"
        texts = [file.read_text("ascii") for file in self.folder.glob("*.pem") if "stranger" not in file.name]
        trusted.write_text("".join(texts), "ascii")
        return trusted

    def _name(self, host: str, found: Found, *, allowed: bool = True) -> None:
        self.names[host] = found
        if allowed:
            self.allowed.append(host)


# Answers.


def raw(data: bytes) -> Answer:
    """Bytes as they are, in the place of an answer, and the end of the connection."""
    return lambda visit: visit.send(data)


def lines(*headers: str, body: bytes = PICTURE, first: str = "HTTP/1.1 200 OK") -> Answer:
    """Headers as they are, and a body."""
    return raw("\r\n".join([first, *headers, "", ""]).encode("latin-1") + body)


def moved(location: str) -> Answer:
    return reply(status=302, Location=location)


def then(data: bytes, what: Callable[[Visit], object]) -> Answer:
    """Bytes, and something else after them."""

    def answer(visit: Visit) -> None:
        visit.send(data)
        what(visit)

    return answer


def endless(start: bytes, piece: bytes) -> Answer:
    """A start, and then the same again and again."""
    many = piece * max(1, 16384 // len(piece))

    def go_on(visit: Visit) -> None:
        while not visit.closing.is_set():
            visit.send(many)

    return then(start, go_on)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# Greetings, names and ports.


def banner(data: bytes, *, first: bool = True) -> Greeting:
    """Says something, at once or when it was spoken to, and waits until the client leaves."""

    def greet(connection: socket.socket, closing: threading.Event) -> None:
        if not first:
            connection.recv(65536)
        connection.sendall(data)
        while connection.recv(65536):
            pass

    return greet


def hang_up(connection: socket.socket, closing: threading.Event) -> None:
    """Hears what the client says, and closes."""
    connection.recv(65536)


def break_off(connection: socket.socket, closing: threading.Event) -> None:
    """Hears what the client says, and answers with an RST."""
    connection.recv(65536)
    reset(connection, closing)


def reset(connection: socket.socket, closing: threading.Event) -> None:
    """An RST, before the client says anything."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def stall(connection: socket.socket, closing: threading.Event) -> None:
    closing.wait()


def dribble(start: bytes) -> Greeting:
    """A start, and a byte now and then."""

    def greet(connection: socket.socket, closing: threading.Event) -> None:
        connection.sendall(start)
        while not closing.wait(0.02):
            connection.sendall(b"x")

    return greet


def always(*addresses: str) -> Found:
    return lambda unruly, nth: addresses


def fails(*codes: int) -> Found:
    """A name that can't be looked up, by one error after the other, and then it can."""

    def found(unruly: Unruly, nth: int) -> tuple[str, ...]:
        if nth <= len(codes):
            raise socket.gaierror(codes[nth - 1], "no")
        return ("127.0.0.1",)

    return found


def hangs(unruly: Unruly, nth: int) -> tuple[str, ...]:
    unruly.closing.wait()
    return ()


def nobody(unruly: Unruly) -> int:
    """A port at which nobody listens, and that nobody else gets meanwhile."""
    bound = unruly.doors.enter_context(socket.socket())
    bound.bind(("127.0.0.1", 0))
    return int(bound.getsockname()[1])


def crowded(unruly: Unruly) -> int:
    """A port at which nobody accepts, and that has no room for one more to wait."""
    busy = unruly.doors.enter_context(socket.socket())
    busy.bind(("127.0.0.1", 0))
    busy.listen(0)
    for _ in range(8):
        waiting = unruly.doors.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(busy.getsockname())
    return int(busy.getsockname()[1])
