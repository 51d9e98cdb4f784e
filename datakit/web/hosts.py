"""Hosts: what may be connected to, and the only place that says so.

A URL from the internet passes three gates. `checked_url` (or `check_url`, for a redirect's target) looks at its
form, `look_up` turns its host into addresses, and `check_address` looks at each address before a socket is
opened to it. The caller connects to the address that was checked, never to the name again. What a server
asks of us in its headers is read here too: `is_opted_out`, `retry_after_s`.
"""

from __future__ import annotations

import email.utils
import ipaddress
import os
import re
import socket
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal
from urllib.parse import quote, urlsplit

from datakit import __version__
from datakit.errors import DownloadError, UsageError

USER_AGENT = f"datakit/{__version__} (+https://github.com/datakit-vlm/datakit)"
LONGEST_URL = 8192  # servers give up at about this length

Outcome = Literal["refused_url", "refused_address"]
IPv4 = ipaddress.IPv4Address
IPv6 = ipaddress.IPv6Address

# Special-purpose blocks of IANA's registry, and the one public address that a cloud uses for its metadata.
_CLOSED_V4 = tuple(
    ipaddress.IPv4Network(block)
    for block in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
        *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",  # Azure
    )
)
_OPEN_V6 = ipaddress.IPv6Network("2000::/3")  # all the global unicast there is
_CLOSED_V6 = tuple(ipaddress.IPv6Network(block) for block in ("2001::/23", "2001:db8::/32", "3fff::/20"))
# Blocks that carry an IPv4 address: how far it is from the right end, in bits.
_CARRIERS = (
    (ipaddress.IPv6Network("::/96"), 0),  # IPv4-compatible
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),  # IPv4-mapped
    (ipaddress.IPv6Network("::ffff:0:0:0/96"), 0),  # IPv4-translated
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),  # NAT64
    (ipaddress.IPv6Network("2002::/16"), 80),  # 6to4
)
_ISATAP = (0x00005EFE, 0x02005EFE)  # interface identifiers that end in an IPv4 address

_OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})  # none = noindex, nofollow
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})

_SCHEME = re.compile(r"(https?)://", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]+)(?::([0-9]{0,6}))?")
_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_KEPT = "!$%&'()*+,/:;=?@[]~-._"  # what may stand in a path or a query as it is


class RefusedUrl(DownloadError):
    """A URL or an address that is not connected to. `outcome` is what is counted."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome

    def __reduce__(self) -> tuple[type[RefusedUrl], tuple[Outcome, str]]:
        return type(self), (self.outcome, str(self))


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """The policy of a run: everything that is public, and what the user named."""

    mirrors: tuple[tuple[str, str], ...] = ()
    """FROM and TO prefixes. Applied once to a URL as it was written, never to a redirect's target."""
    allowed: tuple[str, ...] = ()
    """`HOST` or `HOST:PORT` that may be connected to whatever its address is; IPv6 in brackets."""

    def __post_init__(self) -> None:
        _ = self._allowed_hosts  # nonsense is refused when the settings are read, not at the first URL

    @cached_property
    def _allowed_hosts(self) -> frozenset[tuple[str, int | None]]:
        return frozenset(_parse_allowed_entry(entry) for entry in self.allowed)

    def with_mirror(self, url: str) -> str:
        """The URL with its longest matching FROM prefix replaced, once."""
        if scheme := _SCHEME.match(url):
            url = scheme[0].lower() + url[scheme.end() :]
        for source, target in sorted(self.mirrors, key=lambda pair: -len(pair[0])):
            if url.startswith(source):
                return target + url[len(source) :]
        return url

    def checked_url(self, url: str) -> str:
        """The URL to ask for when a dataset or a manifest says `url`: checked, mirrored, checked again.

        It is checked as written too, so that a row is refused with and without mirrors alike.
        """
        self.check_url(url)
        return self.check_url(self.with_mirror(url.strip(" ")))

    def check_url(self, url: str) -> str:
        """The URL in the form in which it is sent, or RefusedUrl. Checking twice changes nothing.

        Spaces and non-ASCII characters of path and query are percent-quoted, host names brought to ASCII,
        addresses to their usual spelling, and the fragment is left out.
        """
        url = url.strip(" ")
        if len(url) > LONGEST_URL:
            raise _refusal(f"{url[:60]!r}… has {len(url)} characters", f"{LONGEST_URL} is the most")
        if _CONTROL.search(url):
            raise _refusal(f"{url!r} holds a control character", "it could smuggle a second request")
        start = _SCHEME.match(url)
        if not start:
            raise _refusal(f"{url!r} is neither http nor https", "nothing else is fetched")
        rest = url[start.end() :].partition("#")[0]
        cut = re.search(r"[/?]", rest)
        authority, tail = (rest[: cut.start()], rest[cut.start() :]) if cut else (rest, "")
        if "@" in authority:
            raise _refusal(
                f"{_without_credentials(url)!r} holds a user name or a password",
                "credentials are never sent; leave them out",
            )
        scheme = start[1].lower()
        host, port = _split_authority(url, authority)
        address = _literal(url, host)
        if address is not None:
            self.check_address(str(address), str(address), port or _default_port(scheme))
            host = f"[{address}]" if address.version == 6 else str(address)
        shown_port = f":{port}" if port is not None and port != _default_port(scheme) else ""
        return f"{scheme}://{host}{shown_port}{_quote(url, tail)}"

    def check_address(self, host: str, ip: str, port: int) -> None:
        """Raises RefusedUrl unless `ip` is public, or `host` (as the URL spells it) was allowed."""
        name = _host_key(host)
        if (name, None) in self._allowed_hosts or (name, port) in self._allowed_hosts:
            return
        address = ipaddress.ip_address(ip.partition("%")[0])
        if not _is_public(address):
            shown = f"[{name}]" if ":" in name else name
            raise RefusedUrl(
                "refused_address",
                f"{shown if name == str(address) else f'{name} ({address})'} is not a public address, "
                f"so its port {port} is not connected to. If you mean it: DATAKIT_ALLOW_HOSTS={shown}:{port}",
            )

    def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a host that may be connected to.

        Raises what `look_up` raises, and RefusedUrl when there are addresses and none passes.
        """
        found = look_up(host, port)
        passed: list[str] = []
        refused: RefusedUrl | None = None
        for ip in found:
            try:
                self.check_address(host, ip, port)
            except RefusedUrl as error:
                refused = error
            else:
                passed.append(ip)
        if not passed:
            raise refused or socket.gaierror(socket.EAI_NONAME, "the name has no address")
        return passed


def look_up(host: str, port: int) -> list[str]:
    """The addresses of a host, in the order of preference of the system. Blocks; raises socket.gaierror."""
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


@cache
def tls() -> ssl.SSLContext:
    """The one SSL context of the process: certificates checked, SSL_CERT_FILE honoured."""
    if os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR"):
        return ssl.create_default_context()
    import certifi  # comes with requests; a system without certificates works too

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def is_opted_out(robots: Iterable[str], reservation: str | None) -> bool:
    """Whether headers ask not to be used: X-Robots-Tag for everybody or for datakit, and TDM reservation.

    A tag may name an agent (`datakit: noai`), and all that follows in its header is for that agent.
    """
    for tag in robots:
        ours = True
        for part in tag.lower().split(","):
            agent, colon, directive = (piece.strip() for piece in part.partition(":"))
            if not colon:
                directive = agent
            elif agent not in _VALUED:
                ours = agent == "datakit"
            if ours and directive in _OPT_OUTS:
                return True
    return reservation is not None and reservation.strip() == "1"


def retry_after_s(text: str) -> float | None:
    """Seconds of a Retry-After header, which holds a number or a date."""
    text = text.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def parse_mirrors(text: str) -> tuple[tuple[str, str], ...]:
    """`FROM=TO,FROM=TO`, as in DATAKIT_MIRRORS. FROM ends at its first `=`."""
    pairs = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        source, equals, target = entry.partition("=")
        if not equals or not _SCHEME.match(source) or not _SCHEME.match(target):
            raise UsageError(
                f"{entry!r} is not a mirror: write FROM=TO, both beginning with http:// or https://, "
                "for example https://images.example/=https://mirror.example/images/"
            )
        pairs.append((source, target))
    return tuple(pairs)


def parse_allowed(text: str) -> tuple[str, ...]:
    """`HOST,HOST:PORT`, as in DATAKIT_ALLOW_HOSTS; IPv6 in brackets."""
    entries = tuple(filter(None, (part.strip() for part in text.split(","))))
    for entry in entries:
        _parse_allowed_entry(entry)
    return entries


def _parse_allowed_entry(entry: str) -> tuple[str, int | None]:
    try:
        host, port = _split_authority(entry, entry)
        address = _literal(entry, host)
    except RefusedUrl as error:
        raise UsageError(
            f"{entry!r} is not a host: write HOST or HOST:PORT, for example 10.0.0.5:8080 or [::1]:80"
        ) from error
    return (str(address) if address is not None else _host_key(host)), port


def _host_key(host: str) -> str:
    bare = host.strip("[]").lower().rstrip(".")
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return bare


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _refusal(what: str, why: str) -> RefusedUrl:
    return RefusedUrl("refused_url", f"{what}: {why}")


def _without_credentials(url: str) -> str:
    start, _, rest = url.partition("://")
    return f"{start}://…@{rest.partition('@')[2]}"


def _split_authority(url: str, authority: str) -> tuple[str, int | None]:
    """Host (ASCII, lower case, IPv6 in brackets) and port of `HOST[:PORT]`."""
    parts = _AUTHORITY.fullmatch(authority)
    if not parts:
        raise _refusal(f"{url!r} names host {authority!r}", "that is not a host name and a port")
    host, port = parts[1], parts[2]
    number = int(port) if port else None
    if number is not None and not 0 < number < 65536:
        raise _refusal(f"{url!r} names port {port}", "a port is a number from 1 to 65535")
    if host.startswith("["):
        return host.lower(), number
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise _refusal(f"{url!r} names host {host!r}", "that is not a host name") from error
    host = host.lower()
    if len(host) > 253 or not _NAME.fullmatch(host):
        raise _refusal(f"{url!r} names host {host!r}", "that is not a host name")
    return host, number


def _literal(url: str, host: str) -> IPv4 | IPv6 | None:
    """The address that a host spells, in any of the ways that a resolver understands; None for a name."""
    if host.startswith("["):
        try:
            return IPv6(host[1:-1] if host.endswith("]") and "%" not in host else "")
        except ValueError as error:
            raise _refusal(f"{url!r} names host {host!r}", "that is not an IPv6 address") from error
    parts = host.removesuffix(".").split(".")
    if not _NUMBER.fullmatch(parts[-1]):
        return None
    try:
        # As inet_aton reads it: 127.1, 2130706433, 0x7f000001 and 0177.0.0.1 are all 127.0.0.1.
        numbers = [_number(part) for part in parts]
        last = 256 ** (5 - len(numbers))
        if len(numbers) > 4 or any(n > 255 for n in numbers[:-1]) or numbers[-1] >= last:
            raise ValueError(host)
    except ValueError as error:
        raise _refusal(f"{url!r} names host {host!r}", "that is not an IPv4 address") from error
    return IPv4(sum(n << (24 - 8 * place) for place, n in enumerate(numbers[:-1])) + numbers[-1])


def _number(part: str) -> int:
    if not _NUMBER.fullmatch(part):
        raise ValueError(part)
    if part.startswith("0x"):
        return int(part[2:] or "0", 16)
    return int(part, 8) if part.startswith("0") and len(part) > 1 else int(part)


def _is_public(address: IPv4 | IPv6) -> bool:
    if isinstance(address, IPv4):
        return not any(address in block for block in _CLOSED_V4)
    number = int(address)
    for block, shift in _CARRIERS:
        if address in block:
            return _is_public(IPv4(number >> shift & 0xFFFFFFFF))
    if number >> 32 & 0xFFFFFFFF in _ISATAP and not _is_public(IPv4(number & 0xFFFFFFFF)):
        return False
    return address in _OPEN_V6 and not any(address in block for block in _CLOSED_V6)


def _quote(url: str, tail: str) -> str:
    """Path and query as they are sent: what was quoted stays, what must be quoted is."""
    try:
        raw = _STRAY_PERCENT.sub("%25", tail).encode("utf-8")
    except UnicodeEncodeError as error:
        raise _refusal(f"{url!r} holds half a character", "it can't be sent") from error
    sent = quote(raw, safe=_KEPT)
    return sent if sent.startswith("/") else "/" + sent


def host_of(url: str) -> str:
    """The host and port of a checked URL; what per-host limits are counted by."""
    return urlsplit(url).netloc
