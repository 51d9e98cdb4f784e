"""Every fault of the fault suite by its name, and the outcome that it is to have. Several where each would be right."""

from __future__ import annotations

import gzip
import socket
import struct
import zlib
from typing import Any

import faults as made
from faults import CHUNKED, HALF, OK, PICTURE, PUBLIC, SIZED, Fault, banner, chunk, endless, lines, moved, raw, then
from unruly import Answer, Visit, in_turn, reply

from datakit.web.pacing import Limits

LIMITS = Limits(connect_s=1.5, read_s=1.5, total_s=3, max_bytes=2_000_000)
FAULTS: dict[str, Fault] = {}


def fault(name: str, outcomes: str, answer: Answer | None = None, /, **how: Any) -> None:
    if answer is not None:
        how["answer"] = lambda: answer
    FAULTS[name] = Fault(outcomes=frozenset(outcomes.split()), **how)


# Slow, silent and broken connections.

fault("headers-byte-by-byte", "timeout_total", then(OK + b"X: ", Visit.trickle), asks=1)
fault("status-byte-by-byte", "timeout_total", then(b"HTTP/1.1 200 ", Visit.trickle), asks=1)
fault("body-byte-by-byte", "timeout_total", then(OK + b"Content-Length: 100000\r\n\r\n", Visit.trickle), asks=1)
fault("no-answer", "timeout_read", Visit.hang, asks=1)
fault("headers-stop", "timeout_read", then(OK + b"X: ", Visit.hang), asks=1)
fault("body-stops", "timeout_read", then(SIZED + HALF, Visit.hang), asks=1)
fault("closed-at-once", "reset", greeting=lambda connection, closing: None)
fault("reset-at-once", "reset connect", greeting=made.reset)
fault("reset-before-headers", "reset", Visit.reset)
fault("reset-in-headers", "reset", then(OK + b"X: ", Visit.reset))
fault("reset-in-body", "reset", then(SIZED + HALF, Visit.reset))
fault("closed-in-headers", "reset", raw(OK + b"X: "))
fault("reset-once", "ok", answer=lambda: in_turn(Visit.reset, reply(PICTURE)), asks=2)

# Lengths that lie. Whether what is too much came together with the rest, and is seen, is chance.

fault("length-too-great", "reset", lines(f"Content-Length: {len(PICTURE) + 1}"))
fault("length-too-small", "truncated protocol", lines(f"Content-Length: {len(HALF)}"))
fault("length-with-junk-behind", "ok protocol", lines(f"Content-Length: {len(PICTURE)}", body=PICTURE + b"junk"))
fault("length-negative", "protocol", lines("Content-Length: -1"))
fault("length-no-number", "protocol", lines("Content-Length: many"))
fault("length-in-hex", "protocol", lines("Content-Length: 0x10"))
fault("length-beyond-64-bits", "protocol too_large", lines(f"Content-Length: {10**30}"))
fault("lengths-differ", "protocol", lines("Content-Length: 1", "Content-Length: 2"))
fault("length-of-10-gb", "too_large", then(OK + b"Content-Length: 10000000000\r\n\r\n", Visit.hang), asks=1)
fault("length-and-chunks", "protocol", lines("Content-Length: 5", "Transfer-Encoding: chunked", body=chunk(PICTURE)))
fault("body-without-end", "too_large", endless(OK + b"\r\n", b"x" * 16384), asks=1)
fault("body-without-length", "ok", lines(), asks=1)

# Chunks.

fault("chunks-without-end", "too_large", endless(CHUNKED, chunk(b"x" * 4096)), asks=1)
fault("chunks-that-stop", "timeout_read", then(CHUNKED + chunk(HALF), Visit.hang), asks=1)
fault("chunks-cut", "reset", raw(CHUNKED + chunk(PICTURE)))
fault("chunk-cut", "reset", raw(CHUNKED + chunk(PICTURE)[:-10]))
fault("chunk-size-no-number", "protocol", raw(CHUNKED + b"zz\r\nno\r\n"))
fault("chunk-size-negative", "protocol", raw(CHUNKED + b"-5\r\nno\r\n"))
fault("chunk-size-beyond-64-bits", "protocol", raw(CHUNKED + b"F" * 20 + b"\r\nno\r\n"))
fault("chunk-size-of-16-eb", "too_large protocol reset", raw(CHUNKED + b"F" * 16 + b"\r\nno\r\n"))
fault("chunk-longer-than-its-size", "protocol", raw(CHUNKED + b"4\r\n" + PICTURE + b"\r\n0\r\n\r\n"))
fault("chunk-extension-without-end", "protocol timeout_total", endless(CHUNKED + b"5;", b"x" * 16384), asks=1)
fault(
    "trailers-without-end", "protocol timeout_total", endless(CHUNKED + chunk(PICTURE) + b"0\r\n", b"X: y\r\n"), asks=1
)
fault("chunks-of-one-byte", "ok", raw(CHUNKED + b"".join(chunk(bytes([b])) for b in PICTURE) + b"0\r\n\r\n"))

# Compressed bodies.


def bomb(kind: str) -> Answer:
    """A gigabyte of nothing in a megabyte."""
    block, n, crc = bytes(10_000_000), 100, 0
    packer = zlib.compressobj(9, wbits=-15)
    packed = (packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)) * n + b"\x03\x00"
    if kind == "gzip":
        for _ in range(n):
            crc = zlib.crc32(block, crc)
        packed = gzip.compress(b"")[:10] + packed + struct.pack("<II", crc, len(block) * n)
    return reply(packed, Content_Encoding=kind)


fault("gzip-bomb", "too_large", answer=lambda: bomb("gzip"), asks=1)
fault("deflate-bomb", "too_large", answer=lambda: bomb("deflate"), asks=1)
fault("gzip", "ok", reply(gzip.compress(PICTURE), Content_Encoding="gzip"))
fault("gzip-with-junk-behind", "ok", reply(gzip.compress(PICTURE) + b"junk", Content_Encoding="gzip"))
fault("gzip-cut", "encoding", reply(gzip.compress(PICTURE)[:-12], Content_Encoding="gzip"))
fault("gzip-that-is-none", "encoding", reply(PICTURE, Content_Encoding="gzip"))
fault("gzip-twice", "encoding", reply(gzip.compress(gzip.compress(PICTURE)), Content_Encoding="gzip, gzip"))
fault("gzip-in-gzip", "not_an_image", reply(gzip.compress(gzip.compress(PICTURE)), Content_Encoding="gzip"))
fault("gzip-with-wrong-crc", "encoding", reply(gzip.compress(PICTURE)[:-8] + bytes(8), Content_Encoding="gzip"))
fault("brotli", "encoding", reply(PICTURE, Content_Encoding="br"), asks=1)
fault("zstd", "encoding", reply(PICTURE, Content_Encoding="zstd"), asks=1)
fault("unknown-encoding", "ok", reply(PICTURE, Content_Encoding="utf-8"))
fault(
    "gzip-as-transfer-encoding",
    "not_an_image encoding protocol",
    raw(CHUNKED.replace(b"chunked", b"gzip, chunked") + chunk(gzip.compress(PICTURE)) + b"0\r\n\r\n"),
)

# Redirects.


def a_thousand(visit: Visit) -> None:
    n = int(visit.path.rpartition("?")[2]) if "?" in visit.path else 0
    (moved(f"?{n + 1}") if n < 1000 else reply(PICTURE))(visit)


def again_unless(name: str, **headers: str) -> Answer:
    """Sent back once with some headers; the picture only if the second request holds nothing by that name."""

    def answer(visit: Visit) -> None:
        if name in visit.headers:
            reply(b"", 403)(visit)
        else:
            (reply(PICTURE) if "?" in visit.path else reply(status=302, **headers))(visit)

    return answer


fault("redirects-1000", "redirects", a_thousand, asks=LIMITS.max_redirects + 1)
fault("redirect-loop", "redirects", moved("?x"), asks=LIMITS.max_redirects + 1)
fault("redirect-to-nothing", "redirects", moved(""), asks=LIMITS.max_redirects + 1)
fault("redirect-without-location", "http_302", reply(status=302), asks=1)
fault("many-choices", "http_300", reply(PICTURE, 300), asks=1)
fault("cookie-is-not-sent-back", "ok", again_unless("cookie", Location="?a", Set_Cookie="id=1; Path=/"), asks=2)
fault("redirect-with-quoted-newline", "ok", again_unless("x", Location="?a%0d%0aX:%20y"), asks=2)
fault("redirect-with-newline", "ok", again_unless("x", Location="?a\r\nX: y"), asks=2)
fault("redirect-with-carriage-return", "protocol refused_url", moved("?a\rX: y"), asks=1)
fault("redirect-with-nul", "protocol refused_url", moved("?a\0b"), asks=1)
fault("redirect-to-plain-http-by-https", "tls", lambda visit: moved(f"https://{visit.headers['host']}/")(visit), asks=1)
for name, location, outcome in (
    ("file", "file:///etc/passwd", "refused_url"),
    ("ftp", "ftp://a.example/x.jpg", "refused_url"),
    ("data", "data:image/jpeg;base64,/9j/", "refused_url"),
    ("javascript", "javascript:alert(1)", "refused_url"),
    ("gopher", "gopher://127.0.0.1:6379/_INFO", "refused_url"),
    ("credentials", "http://user:secret@a.example/", "refused_url"),
    ("port-99999", "http://a.example:99999/", "refused_url"),
    ("port-0", "http://a.example:0/", "refused_url"),
    ("half-an-address", "http://[::1/x.jpg", "refused_url"),
    ("metadata-address", "http://169.254.169.254/latest/meta-data/", "refused_address"),
    ("mapped-loopback", "http://[::ffff:127.0.0.1]/", "refused_address"),
    ("nat64-loopback", "http://[64:ff9b::7f00:1]/", "refused_address"),
    ("6to4-loopback", "http://[2002:7f00:1::]/", "refused_address"),
    ("loopback-v6", "http://[::1]/", "refused_address"),
    ("decimal-loopback", "http://2130706433/", "refused_address"),
    ("hex-loopback", "http://0x7f.1/", "refused_address"),
    ("octal-loopback", "http://0177.0.0.1/", "refused_address"),
    ("zero", "http://0/", "refused_address"),
    ("private", "http://10.0.0.1/", "refused_address"),
    ("localhost", "http://localhost/", "refused_address dns"),
    ("unknown-name", "http://unknown.invalid/", "dns"),
):
    fault(f"redirect-to-{name}", outcome, moved(location), asks=1)

# What isn't HTTP, or another HTTP.

fault("http-1.0", "ok", lines(first="HTTP/1.0 200 OK"))
fault("http-1.0-with-length", "ok", lines(f"Content-Length: {len(PICTURE)}", first="HTTP/1.0 200 OK"))
fault("http-0.9", "protocol", raw(PICTURE))
fault("http-2-in-words", "protocol ok", lines(first="HTTP/2.0 200 OK"))
fault("http-2-frames", "protocol", raw(b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64" + bytes(17)))
fault("http-9.9", "protocol", lines(first="HTTP/9.9 200 OK"))
fault("icecast", "protocol", lines(first="ICY 200 OK"))
fault("garbage", "protocol", raw(b"\x00\x01 not http\r\n\r\n"))
fault("ssh", "protocol reset", greeting=banner(b"SSH-2.0-OpenSSH_9.6\r\n"))  # it may speak before it is spoken to
fault("mail-server", "protocol", greeting=banner(b"220 mail.example ESMTP ready\r\n", first=False))
fault("status-no-number", "protocol", lines(first="HTTP/1.1 abc OK"))
fault("status-of-four-digits", "protocol http_2000", lines(first="HTTP/1.1 2000 OK"))
fault("status-without-end", "protocol", endless(b"HTTP/1.1 200 ", b"x" * 16384), asks=1)
fault("line-ends-without-cr", "ok protocol", raw(SIZED.replace(b"\r\n", b"\n") + PICTURE))

# Headers.

fault("header-of-10-mb", "protocol", lines("X: " + "x" * 10_000_000), asks=1)
fault("header-without-end", "protocol", endless(OK + b"X: ", b"x" * 16384), asks=1)
fault("headers-100000", "protocol", lines(*(f"X-{n}: y" for n in range(100_000))), asks=1)
fault("headers-without-end", "protocol", endless(OK, b"X: y\r\n"), asks=1)
fault("header-without-colon", "protocol", lines("nonsense"))
fault("header-without-name", "protocol", lines(": x"))
fault("header-with-space-in-name", "protocol", lines("X Y: z"))
fault("header-with-nul", "protocol", lines("X: a\0b"))
fault("header-on-two-lines", "ok protocol", lines("X: a\r\n b"))
fault("header-in-utf-8", "ok", raw(OK + "X: Größe 猫\r\n\r\n".encode() + PICTURE))
fault("header-of-odd-bytes", "ok protocol", raw(OK + b"X: \xff\xfe\x80\r\n\r\n" + PICTURE))

# Before, beside and after a 200.

fault("early-hints", "ok", raw(b"HTTP/1.1 103 Early Hints\r\nLink: </x.css>; rel=preload\r\n\r\n" + SIZED + PICTURE))
fault("continue-unasked", "ok", raw(b"HTTP/1.1 100 Continue\r\n\r\n" + SIZED + PICTURE))
fault("early-hints-without-end", "protocol", endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"), asks=1)
fault("continue-and-no-more", "reset", raw(b"HTTP/1.1 100 Continue\r\n\r\n"))
fault("early-hints-and-reset", "reset", then(b"HTTP/1.1 103 Early Hints\r\n\r\n", Visit.reset))
fault("switching-protocols", "protocol http_101", raw(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: a\r\n\r\n"))
fault("no-content", "http_204", raw(b"HTTP/1.1 204 No Content\r\n\r\n"), asks=1)
fault(
    "no-content-with-a-body",
    "http_204 protocol",
    lines(f"Content-Length: {len(PICTURE)}", first="HTTP/1.1 204 No"),
    asks=1,
)
fault("not-modified", "http_304", raw(b"HTTP/1.1 304 Not Modified\r\n\r\n"), asks=1)
fault("part-unasked", "http_206", reply(HALF, 206, Content_Range=f"bytes 0-{len(HALF) - 1}/{len(PICTURE)}"), asks=1)
fault("empty", "not_an_image", reply(b""), asks=1)
for status in (400, 401, 402, 403, 404, 405, 406, 410, 418, 451, 505):
    fault(f"status-{status}", f"http_{status}", reply(PICTURE, status), asks=1)
fault("status-500-for-ever", "http_500", reply(b"", 500), asks=2)
fault("status-503-once", "ok", answer=lambda: in_turn(reply(b"", 503), reply(PICTURE)), asks=2)
fault("429-for-no-time", "ok", answer=lambda: in_turn(reply(b"", 429, Retry_After="0"), reply(PICTURE)), asks=2)
fault("429-for-a-second", "ok", answer=lambda: in_turn(reply(b"", 429, Retry_After="1"), reply(PICTURE)), asks=2)
fault("429-for-a-day", "http_429", reply(b"", 429, Retry_After="86400"), asks=1)
fault("503-for-ages", "http_503", reply(b"", 503, Retry_After="9" * 400), asks=2)
fault("503-until-a-date-that-is-none", "http_503", reply(b"", 503, Retry_After="Fri, 99 Foo 99999 99:99 GMT"), asks=2)
fault("429-for-less-than-nothing", "http_429", reply(b"", 429, Retry_After="-5"), asks=2)

# Who doesn't want it.

fault("noai", "opted_out", reply(PICTURE, X_Robots_Tag="noai"), asks=1)
fault("noimageai", "opted_out", reply(PICTURE, X_Robots_Tag="noimageai"), asks=1)
fault("noai-for-us", "opted_out", reply(PICTURE, X_Robots_Tag="otherbot: noindex, datakit: noai"), asks=1)
fault("noai-for-another", "ok", reply(PICTURE, X_Robots_Tag="otherbot: noai"), asks=1)
fault("reserved", "opted_out", reply(PICTURE, tdm_reservation="1"), asks=1)

# Bodies that are something else.


def gif(frames: int) -> bytes:
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(3) + b"\xff" * 3 + frame * frames + b";"


def png(width: int, height: int, pixels: bytes) -> bytes:
    def block(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = block(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + block(b"IDAT", pixels) + block(b"IEND", b"")


HTML = b"<!DOCTYPE html><html><body>Not found</body></html>"
fault("html-as-jpeg", "not_an_image", reply(HTML, Content_Type="image/jpeg"))
fault("jpeg-as-html", "ok", reply(PICTURE, Content_Type="text/html", Content_Disposition="attachment; filename=x.txt"))
fault("svg", "not_an_image", reply(b"<svg xmlns='http://www.w3.org/2000/svg'/>", Content_Type="image/svg+xml"))
fault("zip-as-jpeg", "not_an_image", reply(b"PK\3\4" + bytes(60), Content_Type="image/jpeg"))
fault("picture-cut-in-half", "truncated", reply(HALF))
fault("pixel-bomb", "pixels", reply(png(30_000, 30_000, zlib.compress(bytes(1000)))))
fault("png-with-too-many-rows", "corrupt", answer=lambda: reply(png(8, 8, zlib.compress(bytes(50_000_000)))))
fault("gif-of-60000-frames", "frames", answer=lambda: reply(gif(60_000)))
fault("gif-of-two-frames", "ok", reply(gif(2)))

# Names and addresses.

fault("name-unknown", "dns", found=made.fails(*[socket.EAI_NONAME] * 9), asks=0)
fault("name-server-fails", "dns", found=made.fails(*[socket.EAI_AGAIN] * 9), asks=0)
fault("name-server-fails-once", "ok", found=made.fails(socket.EAI_AGAIN), asks=1)
fault("name-server-hangs", "timeout_connect", found=made.hangs, asks=0)
fault("name-without-address", "dns", found=made.always(), asks=0)
fault("name-of-a-private-address", "refused_address", found=made.always("10.0.0.1"), allowed=False, asks=0)
fault("name-of-loopback", "refused_address", found=made.always("127.0.0.1"), allowed=False, asks=0)
fault("name-of-loopback-v6", "refused_address", found=made.always("::1"), allowed=False, asks=0)
fault("name-of-mapped-loopback", "refused_address", found=made.always("::ffff:7f00:1"), allowed=False, asks=0)
fault("name-of-metadata", "refused_address", found=made.always("169.254.169.254"), allowed=False, asks=0)
fault("first-address-is-dead", "ok", found=made.always("::1", "127.0.0.1"), asks=1)


def only_there(visit: Visit) -> None:
    """A redirect to itself, and a picture for those alone who came to the public address twice."""
    there = visit.socket.getsockname()[0] == PUBLIC
    (reply(b"", 599) if not there else reply(PICTURE) if "?" in visit.path else moved("?again"))(visit)


def rebound(unruly: Any, nth: int) -> tuple[str, ...]:
    return (PUBLIC,) if nth == 1 else ("127.0.0.1",)


fault(
    "rebinding",
    "ok refused_address",
    only_there,
    found=rebound,
    allowed=False,
    port=lambda unruly: unruly.door(at=(PUBLIC, unruly.port)),
)

# Ports and TLS.

fault("nobody-listens", "connect", port=made.nobody)
fault("nobody-accepts", "timeout_connect", port=made.crowded)
fault("tls", "ok", certificate="@", asks=1)
fault("tls-of-another-name", "tls", certificate="other-@", asks=0)
fault("tls-of-a-stranger", "tls", certificate="@", asks=0)
fault("tls-of-the-past", "tls", certificate="@", until="20010101000000Z", asks=0)
fault("tls-that-is-none", "tls", scheme="https", asks=0)
fault("tls-stalls", "timeout_connect", scheme="https", greeting=made.stall)
fault("tls-byte-by-byte", "timeout_connect", scheme="https", greeting=made.dribble(b"\x16\x03\x03\x40\x00"))
fault("tls-closed", "tls reset", scheme="https", greeting=made.hang_up)
fault("tls-reset", "tls reset", scheme="https", greeting=made.break_off)
fault("tls-garbage", "tls", scheme="https", greeting=banner(b"\x16\x03\x03\x00\x04junk", first=False))
fault("tls-alert", "tls", scheme="https", greeting=banner(b"\x15\x03\x03\x00\x02\x02\x28", first=False))
fault("tls-breaks-in-body", "reset", then(SIZED + HALF, Visit.reset), certificate="@")
fault("tls-without-end", "too_large", endless(OK + b"\r\n", b"x" * 16384), certificate="@", asks=1)
