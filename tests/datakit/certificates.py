"""Certificates made by code, self-signed on the curve P-256, for the servers of tests. Their keys guard nothing."""

from __future__ import annotations

import base64
import hashlib
import ssl
from pathlib import Path

# The curve, of FIPS 186-4: its prime, its order, and the point that generates it.
P = 2**256 - 2**224 + 2**192 + 2**96 - 1
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
Point = tuple[int, int] | None

P256 = bytes.fromhex("06082a8648ce3d030107")
EC_KEY = bytes.fromhex("06072a8648ce3d0201")
ECDSA_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
COMMON_NAME = bytes.fromhex("0603550403")
ALTERNATIVE_NAME = bytes.fromhex("0603551d11")
NO_AUTHORITY = bytes.fromhex("300c0603551d130101ff04023000")  # basicConstraints, critical: signs no others


def server_context(folder: Path, host: str, *, until: str = "20990101000000Z") -> ssl.SSLContext:
    """What a server needs to be `host`; its certificate stands in `folder` as `host`.pem."""
    key = int.from_bytes(hashlib.sha256(host.encode()).digest()) % N
    public = _times(key, G)
    assert public is not None
    point = _der(0x03, b"\0\4" + public[0].to_bytes(32) + public[1].to_bytes(32))
    name = _der(0x30, _der(0x31, _der(0x30, COMMON_NAME + _der(0x0C, host.encode()))))
    valid = _der(0x30, _der(0x18, b"20000101000000Z") + _der(0x18, until.encode()))
    names = _der(0x30, ALTERNATIVE_NAME + _der(0x04, _der(0x30, _der(0x82, host.encode()))))
    body = _der(
        0x30,
        _der(0xA0, _integer(2))
        + _integer(key >> 128)  # the serial number
        + ECDSA_SHA256
        + name  # of who signed
        + valid
        + name
        + _der(0x30, _der(0x30, EC_KEY + P256) + point)
        + _der(0xA3, _der(0x30, NO_AUTHORITY + names)),
    )
    certificate = _der(0x30, body + ECDSA_SHA256 + _der(0x03, b"\0" + _signature(key, body)))
    secret = _der(0x30, _integer(1) + _der(0x04, key.to_bytes(32)) + _der(0xA0, P256) + _der(0xA1, point))
    file = folder / f"{host}.pem"
    file.write_text(_pem("CERTIFICATE", certificate) + _pem("EC PRIVATE KEY", secret), "ascii")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def _signature(key: int, message: bytes) -> bytes:
    digest = hashlib.sha256(message).digest()
    nonce = int.from_bytes(hashlib.sha256(key.to_bytes(32) + digest).digest()) % N
    found = _times(nonce, G)
    assert found is not None
    r = found[0] % N
    s = (int.from_bytes(digest) + r * key) * pow(nonce, -1, N) % N
    return _der(0x30, _integer(r) + _integer(s))


def _times(n: int, point: Point) -> Point:
    total: Point = None
    while n:
        if n & 1:
            total = _plus(total, point)
        point, n = _plus(point, point), n >> 1
    return total


def _plus(a: Point, b: Point) -> Point:
    if a is None or b is None:
        return a or b
    if a[0] == b[0] and a[1] != b[1]:
        return None
    slope = (3 * a[0] ** 2 - 3) * pow(2 * a[1], -1, P) if a == b else (b[1] - a[1]) * pow(b[0] - a[0], -1, P)
    x = (slope**2 - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def _der(tag: int, body: bytes) -> bytes:
    size = len(body)
    length = bytes([size]) if size < 128 else bytes([0x80 | (n := (size.bit_length() + 7) // 8)]) + size.to_bytes(n)
    return bytes([tag]) + length + body


def _integer(number: int) -> bytes:
    return _der(0x02, number.to_bytes(number.bit_length() // 8 + 1))


def _pem(kind: str, der: bytes) -> str:
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN {kind}-----\n{text}-----END {kind}-----\n"
