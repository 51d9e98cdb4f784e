"""A loopback web of pictures for the benchmarks of the crawl: a bare protocol on uvloop, one process.

/<i>.jpg                    a picture, at once
/w/<ms>/<kind>/<i>.jpg      after so many milliseconds; kind is ok, gone (404) or hang (never an answer)

It listens on all of 127.0.0.0/8, so that 127.1.2.3 and 127.1.2.4 are two hosts to a client. What it costs in CPU is
read from the kernel (`Web.cpu_s`) and printed with each result, since it shares the cores with who is measured.
"""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import os
import random
import ssl
import subprocess
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

DISTINCT = 300
WEB_HOSTS = 2_000
GONE, HANGING = 0.15, 0.05  # shares of the web-like URLs
CLOSE = b"Connection: close\r\n"


def pictures(n: int = DISTINCT, *, width: tuple[int, int] = (500, 1025), grain: float = 3.1) -> list[bytes]:
    """JPEG q85 of 500 to 1024 pixels' width, 86 KiB on average as COCO's are: smooth areas, edges, texture."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    made = []
    for _ in range(n):
        wide = int(rng.integers(*width))
        high = int(wide * rng.uniform(0.66, 0.76))
        image = np.zeros((high, wide, 3), np.float32)
        for octave, weight in ((4, 90), (16, 40), (64, 22), (256, 11)):
            small = rng.normal(0, 1, (octave * 3 // 4 + 1, octave + 1, 3)).astype(np.float32)
            for c in range(3):
                layer = Image.fromarray(small[..., c]).resize((wide, high), Image.Resampling.BICUBIC)
                image[..., c] += weight * np.asarray(layer)
        image += rng.normal(0, grain, image.shape[:2]).astype(np.float32)[..., None]
        sink = io.BytesIO()
        Image.fromarray(np.clip(image + 120, 0, 255).astype(np.uint8)).save(sink, "JPEG", quality=85)
        made.append(sink.getvalue())
    return made


def web_urls(port: int, n: int, *, seed: int = 0) -> list[str]:
    """URLs of 2,000 hosts: 50 to 2,000 ms of latency, some gone, some that never answer; host and fate unrelated."""
    rng = random.Random(seed)
    found = []
    for i in range(n):
        draw, host = rng.random(), rng.randrange(WEB_HOSTS)
        kind = "gone" if draw < GONE else "hang" if draw < GONE + HANGING else "ok"
        found.append(f"http://{web_host(host)}:{port}/w/{rng.randint(50, 2000)}/{kind}/{i}.jpg")
    return found


def web_host(n: int) -> str:
    return f"127.1.{n // 250}.{n % 250 + 1}"


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 with its key, and a bundle to check it by, both PEM.

    ECDSA P-256, made by the openssl command. The bundle is certifi's with this one added: as many authorities as a
    client has in real life, since reading them is part of what a client does.
    """
    import certifi

    key, pem, bundle = folder / "key.pem", folder / "server.pem", folder / "bundle.pem"
    words = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-keyout", str(key), "-out", str(pem), "-days", "30", "-subj", "/CN=127.0.0.1"),
        *("-addext", "subjectAltName=IP:127.0.0.1", "-addext", "keyUsage=critical,keyCertSign,digitalSignature"),
    ]
    try:
        subprocess.run(words, check=True, capture_output=True)
    except FileNotFoundError:
        raise SystemExit("the openssl command isn't there; it makes the certificate of the https work") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"openssl made no certificate: {error.stderr.decode()[-500:]}") from error
    bundle.write_bytes(Path(certifi.where()).read_bytes() + b"\n" + pem.read_bytes())
    pem.write_bytes(key.read_bytes() + pem.read_bytes())
    return pem, bundle


class Web:
    """A server process. With `fresh` it closes the connection after each answer, as most of the web is to a crawl.

    It ends with the `with` block, and with its parent, however that ends.
    """

    def __init__(self, bodies: Sequence[bytes], *, certificate: Path | None = None, fresh: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(there, list(bodies), certificate and str(certificate), fresh), daemon=True
        )
        self._process.start()
        there.close()
        self.port: int = self._here.recv()
        self._scheme = "https" if certificate else "http"

    def urls(self, n: int) -> list[str]:
        """URLs of one host that answers at once."""
        return [f"{self._scheme}://127.0.0.1:{self.port}/{i}.jpg" for i in range(n)]

    def cpu_s(self) -> float:
        """User and system time that it has spent so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self) -> Web:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._here.close()
        self._process.terminate()
        self._process.join()


def _serve(there: Connection, bodies: list[bytes], certificate: str | None, fresh: bool) -> None:
    import uvloop

    uvloop.run(_answer(there, bodies, certificate, fresh))


async def _answer(there: Connection, bodies: list[bytes], certificate: str | None, fresh: bool) -> None:
    loop = asyncio.get_running_loop()
    extra = CLOSE if fresh else b""
    whole = [
        b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n%bContent-Length: %d\r\n\r\n" % (extra, len(body)) + body
        for body in bodies
    ]
    gone = b"HTTP/1.1 404 Not Found\r\n%bContent-Length: 4\r\n\r\ngone" % extra

    class Answers(asyncio.Protocol):
        transport: asyncio.Transport
        held = b""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport  # type: ignore[assignment]

        def data_received(self, data: bytes) -> None:
            self.held += data
            while b"\r\n\r\n" in self.held:
                request, _, self.held = self.held.partition(b"\r\n\r\n")
                close = fresh or b"connection: close" in request.lower()
                pieces = request.split(b" ", 2)[1].split(b"/")
                name = pieces[-1].removesuffix(b".jpg")
                if len(pieces) == 2 and name.isdigit():
                    self.send(whole[int(name) % len(whole)], close)
                elif len(pieces) < 5 or not name.isdigit():  # robots.txt, for one
                    self.send(gone, close)
                elif pieces[3] != b"hang":
                    answer = whole[int(name) % len(whole)] if pieces[3] == b"ok" else gone
                    loop.call_later(int(pieces[2]) / 1000, self.send, answer, close)

        def send(self, answer: bytes, close: bool) -> None:
            if self.transport.is_closing():  # the client has given up
                return
            self.transport.write(answer)
            if close:
                self.transport.close()

    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        context.num_tickets = 0  # a crawl hardly meets a host again, so no session is taken up again
    server = await loop.create_server(Answers, "0.0.0.0", 0, ssl=context, backlog=4096)
    ended = asyncio.Event()
    loop.add_reader(there.fileno(), ended.set)  # the parent's end was closed
    there.send(server.sockets[0].getsockname()[1])
    async with server:
        await ended.wait()
    os._exit(0)  # connections that hang wait for nobody
