"""Downloads: big single files of the hub and of the web; whole, checked, and fetched once.

1. `parse` says what an address in a manifest is, and in which folder its file lands.
2. `<file>.part` grows and `<file>.part.json` says of what, so that a killed download goes on where it was;
   it begins anew when upstream has another file by then.
3. Size and hash are checked, the file gets its name, and `<file>.download.json` is written last.

Hub files go through huggingface_hub: its client, its token, its metadata, its errors. Its
`hf_hub_download` isn't used: in 2.4.0 a download that was killed begins again from nothing.
The web is asked without the environment's proxies and netrc, as in `crawl`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from datakit import __version__
from datakit import hosts as policy
from datakit.errors import DownloadError, ManifestError, SourceError, StorageError
from datakit.hosts import Hosts
from datakit.store import locked, publish_file, replace, storage_errors

CONNECT_S = 10.0
READ_S = 30.0  # silence that is borne
STALL_S = 60.0  # a transfer is given up when it brings less than
LEAST_PER_S = 1024  # so many bytes a second, for so long
TRIES = 5  # in a row without this much progress:
PROGRESS_BYTES = 1 << 20
BACKOFF_S = 1.0  # doubled with each try
LONGEST_PAUSE_S = 300.0
MAX_REDIRECTS = 10
PIECE_BYTES = 1 << 20

HUB = "https://huggingface.co"
BINARY = (".json", ".jsonl", ".parquet", ".zip", ".tar", ".gz", ".tgz")  # none of them begins with `<`
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
TRY_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_HUB_ADDRESS = re.compile(r"hub://datasets/([\w.-]+/[\w.-]+)@([^/]+)/(.+)", re.ASCII)
_HUB_PAGE = re.compile(r"/datasets/([\w.-]+/[\w.-]+)/(?:blob|resolve|raw)/([^/]+)/(.+)", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file of a dataset on the hub."""

    repo: str
    revision: str
    path: str

    @property
    def folder(self) -> str:
        """Where it lands, with its name."""
        return _safe_path(str(self), "huggingface.co", "datasets", self.repo, quote(self.revision, ""), self.path)

    def __str__(self) -> str:
        return f"hub://datasets/{self.repo}@{quote(self.revision, '')}/{self.path}"


@dataclass(frozen=True, kw_only=True)
class WebFile:
    """A file at an http or https address."""

    url: str

    @property
    def folder(self) -> str:
        """Where it lands, with its name. Addresses that differ in their query land in different folders."""
        parts = urlsplit(self.url)
        folder, _, name = unquote(parts.path).rpartition("/")
        if parts.query:
            readable = re.sub(r"[^\w.=-]+", "_", unquote(parts.query))[:60]
            folder += f"/{readable}-{hashlib.sha256(parts.query.encode()).hexdigest()[:8]}"
        return _safe_path(self.url, parts.netloc.replace(":", "_"), *filter(None, [folder[1:]]), name)

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True, kw_only=True)
class Expect:
    """What a `.sums` file knows about a download."""

    size_bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """A finished file."""

    path: Path
    size_bytes: int
    sha256: str
    revision: str | None
    """The commit of a hub file."""
    etag: str | None


@dataclass(frozen=True, kw_only=True)
class _Version:
    """Which file upstream had when the download began."""

    url: str
    total: int | None = None
    etag: str | None = None
    last_modified: str | None = None
    revision: str | None = None

    @property
    def validator(self) -> str | None:
        """What If-Range takes."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


@dataclass(frozen=True, kw_only=True)
class _Reply:
    """The bytes of a version, from `start` on."""

    version: _Version
    start: int
    headers: Mapping[str, str]
    pieces: Iterator[bytes]


_Open = Callable[[int, _Version | None], AbstractContextManager[_Reply]]


class _Broken(Exception):
    """A transfer that trying again may cure."""

    def __init__(self, why: object, *, after_s: float | None = None, drop: bool = False) -> None:
        super().__init__(str(why))
        self.after_s = after_s
        self.drop = drop  # what came is of no use


def parse(address: str) -> HubFile | WebFile:
    """`hub://datasets/OWNER/REPO@REV/PATH` or a URL; pages and files of huggingface.co are hub files."""
    url = urlsplit(address)
    source: HubFile | WebFile
    if url.scheme == "hub":
        found = _HUB_ADDRESS.fullmatch(address)
        if not found:
            raise ManifestError(f"{address!r} is no hub address: write hub://datasets/OWNER/REPO@REVISION/PATH")
        source = HubFile(repo=found[1], revision=unquote(found[2]), path=found[3])
    elif url.scheme not in ("http", "https") or not url.netloc:
        raise ManifestError(f"{address!r} is no address: write https://… or hub://datasets/OWNER/REPO@REV/PATH")
    elif url.netloc in ("huggingface.co", "hf.co") and (found := _HUB_PAGE.fullmatch(url.path)):
        source = HubFile(repo=found[1], revision=unquote(found[2]), path=unquote(found[3]))
    else:
        source = WebFile(url=address)
    _ = source.folder  # a path that leaves its place is refused here
    return source


def download(
    address: str,
    into: Path,
    *,
    hosts: Hosts,
    expect: Expect | None = None,
    tell: Callable[[int, int | None], None] | None = None,
) -> Downloaded:
    """Fetches a file, or finds it finished; `tell(bytes_done, total)` is called as it grows.

    Raises DownloadError (what upstream said, and what to do), StorageError (no space) or RefusedUrl.
    """
    source = parse(address)
    path = Path(into, source.folder)
    expect = expect or Expect()
    if done := _finished(path, expect):
        return done
    lock = path.with_name(path.name + ".lock")
    with locked(lock):
        if done := _finished(path, expect):
            return done
        with storage_errors(path), _Part(path, address) as part:
            opener = _from_hub(source) if isinstance(source, HubFile) else _from_web(source, hosts)
            _fetch(part, opener, expect, tell or (lambda done, total: None))
            done = part.finish(expect)
        lock.unlink(missing_ok=True)
    return done


def check_not_html(path: Path) -> None:
    """Raises SourceError for a file that begins as a web page does; for files that should be data."""
    with path.open("rb") as file:
        if file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            raise SourceError(
                f"{str(path)!r} is a web page where data was due: delete it, and open its address in a "
                "browser to see what the page asks for"
            )


def _safe_path(address: str, *parts: str) -> str:
    """Parts joined to a relative path that can't leave the folder it is put in."""
    path = "/".join(parts)
    for name in path.split("/"):
        if name in ("", ".", "..") or re.search(r"[\x00-\x1f\x7f\\]", name) or len(name.encode()) > 200:
            raise ManifestError(f"{address!r} has {name!r} in its path, which can't be the name of a file")
    return path


def _finished(path: Path, expect: Expect) -> Downloaded | None:
    """What the sidecar says, when it is there and the file has the size that it says."""
    try:
        said = json.loads(_sidecar(path).read_bytes())
        if path.stat().st_size != said["size_bytes"]:
            return None
        done = Downloaded(path=path, **{k: said[k] for k in ("size_bytes", "sha256", "revision", "etag")})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    _check(path, expect, size_bytes=done.size_bytes, sha256=done.sha256)
    return done


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".download.json")


def _check(name: object, expect: Expect, *, size_bytes: int | None = None, sha256: str | None = None) -> None:
    for what, got, due in (("size", size_bytes, expect.size_bytes), ("sha256", sha256, expect.sha256)):
        if got is not None and due is not None and got != due:
            raise DownloadError(
                f"{str(name)!r} has {what} {got!r}, and {due!r} was expected: upstream has changed, or the "
                ".sums is for another file. If the change is right, `datakit pin` writes it down"
            )


def _fetch(part: _Part, opener: _Open, expect: Expect, tell: Callable[[int, int | None], None]) -> None:
    """Lets a part grow until it is whole; tries again while that helps."""
    tries, before = 0, part.size
    while not part.whole:
        try:
            with opener(part.size, part.version) as reply:
                part.begin(reply, expect)
                tell(part.size, reply.version.total)
                for piece in reply.pieces:
                    part.add(piece, expect)
                    tell(part.size, reply.version.total)
            if reply.version.total in (None, part.size):
                return
            raise _Broken(f"it ended after {part.size:,} of {reply.version.total:,} bytes")
        except _Broken as broken:
            if broken.drop:
                part.restart(None)
            if part.size - before >= PROGRESS_BYTES:
                tries = 0
            tries, before = tries + 1, part.size
            pause = BACKOFF_S * 2 ** (tries - 1) if broken.after_s is None else broken.after_s
            if tries >= TRIES or pause > LONGEST_PAUSE_S:
                raise DownloadError(
                    f"{part.address!r} could not be fetched: {broken}. The {part.size:,} bytes that came are "
                    "kept; run the same command again to go on"
                ) from broken
            time.sleep(pause)


class _Part:
    """A file that grows beside its final name, hashed as it does, and what it is a part of."""

    def __init__(self, path: Path, address: str) -> None:
        self.path, self.address = path, address
        self.size = 0
        self.version: _Version | None = None
        self._file = path.with_name(path.name + ".part")
        self._note = path.with_name(path.name + ".part.json")
        self._hash = hashlib.sha256()
        self._suffix = path.suffix.lower()
        self._handle = -1

    def __enter__(self) -> _Part:
        with suppress(OSError, ValueError, TypeError):
            self.version = _Version(**json.loads(self._note.read_bytes()))
        if self.version and self.path.exists() and not self._file.exists():
            self.path.replace(self._file)  # it was killed between the rename and the sidecar
        self._handle = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
        while self.version and (piece := os.read(self._handle, PIECE_BYTES)):
            self._hash.update(piece)
            self.size += len(piece)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    @property
    def whole(self) -> bool:
        return self.version is not None and self.version.total == self.size

    def begin(self, reply: _Reply, expect: Expect) -> None:
        """Gets ready for what a reply brings, unless it can be told that it won't do."""
        total = reply.version.total
        if reply.headers.get("Content-Encoding", "identity") != "identity" and self._suffix != ".gz":
            raise DownloadError(f"{self.address!r} is sent compressed although that wasn't asked for: fetch it by hand")
        _check(self.address, expect, size_bytes=total)
        if not reply.start:
            self.restart(reply.version)
        self.version = reply.version
        free = shutil.disk_usage(self.path.parent).free
        if total is not None and total - self.size > free:
            raise StorageError(self._no_space(f"{total - self.size:,} bytes are needed and {free:,} are free"))

    def add(self, piece: bytes, expect: Expect) -> None:
        total = self.version.total if self.version else None
        if self.size == 0 and self._suffix in BINARY and piece.lstrip().startswith(b"<"):
            self.restart(None)
            raise DownloadError(
                f"{self.address!r} gives a web page and not the file {self.path.name!r}: open it in a "
                "browser to see what the page asks for"
            )
        most = total if expect.size_bytes is None else expect.size_bytes
        if most is not None and self.size + len(piece) > most:
            self.restart(None)
            raise DownloadError(f"{self.address!r} sends more than the {most:,} bytes that it should have")
        left = memoryview(piece)
        while left:
            try:
                n = os.write(self._handle, left)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                more = "more space" if total is None else f"{total - self.size:,} bytes more"
                raise StorageError(self._no_space(f"{more} are needed")) from error
            self._hash.update(left[:n])
            self.size += n
            left = left[n:]

    def finish(self, expect: Expect) -> Downloaded:
        """Checks the file, gives it its name, and writes the sidecar last."""
        version = self.version or _Version(url=self.address)
        sha256 = self._hash.hexdigest()
        try:
            _check(self.address, expect, size_bytes=self.size, sha256=sha256)
            # The hub's ETag of a big file is its hash.
            if version.revision and _SHA256.fullmatch(version.etag or "") and version.etag != sha256:
                raise DownloadError(f"{self.address!r} came damaged: run the same command again")
        except DownloadError:
            self.restart(None)
            raise
        os.fsync(self._handle)
        replace(self._file, self.path)
        done = Downloaded(
            path=self.path, size_bytes=self.size, sha256=sha256, revision=version.revision, etag=version.etag
        )
        said = {**asdict(done), "url": self.address}
        del said["path"]
        publish_file(_sidecar(self.path), json.dumps(said, indent=2).encode() + b"\n")
        self._note.unlink(missing_ok=True)
        return done

    def restart(self, version: _Version | None) -> None:
        os.ftruncate(self._handle, 0)
        os.lseek(self._handle, 0, os.SEEK_SET)
        self.size, self._hash, self.version = 0, hashlib.sha256(), version
        if version:
            publish_file(self._note, json.dumps(asdict(version)).encode())
        else:
            self._note.unlink(missing_ok=True)

    def _no_space(self, what: str) -> str:
        return (
            f"no space for {str(self.path)!r}: {what}. The {self.size:,} bytes that came are kept; free some "
            "space and run the same command again"
        )


def _from_web(source: WebFile, hosts: Hosts) -> _Open:
    """Opens a URL from a place in the file on; every redirect and every address is checked."""

    @contextmanager
    def opened(start: int, version: _Version | None) -> Iterator[_Reply]:
        validator = version.validator if version and start else None
        headers = {"Range": f"bytes={start}-", "If-Range": validator} if validator else {}
        with requests.Session() as session, _broken(source.url):
            session.trust_env = False
            session.verify = os.environ.get("SSL_CERT_FILE") or True
            session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
            session.headers.update({"User-Agent": policy.USER_AGENT, "Accept-Encoding": "identity"})
            adapter = _checked_adapter(hosts)
            session.mount("http://", adapter)
            session.mount("https://", adapter)
            with _followed(session, source.url, hosts, headers) as reply:
                yield _web_reply(reply, source.url, version if validator else None, start)

    return opened


def _followed(session: requests.Session, url: str, hosts: Hosts, headers: Mapping[str, str]) -> requests.Response:
    asked = hosts.first(url)
    for _ in range(MAX_REDIRECTS + 1):
        reply = session.get(asked, headers=headers, stream=True, allow_redirects=False, timeout=(CONNECT_S, READ_S))
        location = session.get_redirect_target(reply)
        if location is None:
            return reply
        reply.close()
        asked = hosts.check_url(urljoin(asked, location))
    raise DownloadError(f"{url!r} leads through more than {MAX_REDIRECTS} redirects: check the address")


def _web_reply(reply: requests.Response, url: str, known: _Version | None, start: int) -> _Reply:
    said = reply.headers
    status = reply.status_code
    if status in TRY_AGAIN or status == 416:
        after_s = policy.retry_after_s(said.get("Retry-After", ""))
        raise _Broken(f"the server answers {status}", after_s=after_s, drop=status == 416)
    if status not in (200, 206):
        why = {401: "it asks for a login", 403: "it is forbidden", 404: "it isn't there", 410: "it is gone"}
        raise DownloadError(
            f"{url!r} can't be fetched: {why.get(status, 'the server refuses')} (HTTP {status}). "
            "Look whether the address has moved; DATAKIT_MIRRORS can name another place"
        )
    length = said.get("Content-Length", "")
    version = _Version(
        url=url,
        total=int(length) if length.isdigit() else None,
        etag=said.get("ETag"),
        last_modified=said.get("Last-Modified"),
    )
    begins = 0
    if status == 206:
        found = _RANGE.fullmatch(said.get("Content-Range", "").strip())
        same = found and known and int(found[1]) == start and found[2] in ("*", str(known.total))
        if not same or not known or (version.etag or known.etag) != known.etag:
            raise _Broken("the server sends another part than was asked for", drop=True)
        version, begins = known, start
    return _Reply(version=version, start=begins, headers=said, pieces=_steady(reply.raw))


def _steady(raw: Any) -> Iterator[bytes]:
    """The bytes as they were sent; _Broken when hardly any come."""
    began, got = time.monotonic(), 0
    while piece := raw.read1(PIECE_BYTES, decode_content=False):
        got += len(piece)
        if (passed := time.monotonic() - began) > STALL_S:
            if got < passed * LEAST_PER_S:
                raise _Broken(f"{got:,} bytes came in {passed:.0f} s")
            began, got = time.monotonic(), 0
        yield piece


@contextmanager
def _broken(url: str) -> Iterator[None]:
    """Turns what requests and urllib3 raise into _Broken, or into DownloadError where nothing will help."""
    try:
        yield
    except requests.exceptions.SSLError as error:
        raise DownloadError(f"{url!r} has no certificate that can be trusted: {error}") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, socket.gaierror):
            cause = cause.__cause__ or cause.__context__
        if cause is not None and cause.errno != socket.EAI_AGAIN:
            raise DownloadError(f"{url!r} names a host that has no address: check the name") from error
        raise _Broken(error) from error


def _checked_adapter(hosts: Hosts) -> HTTPAdapter:
    """A requests adapter whose connections go to addresses that passed the check, and to no other."""

    def connected(self: HTTPConnection) -> socket.socket:
        port = int(self.port or 0)
        try:
            addresses = hosts.addresses(self.host, port)
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        trouble: OSError | None = None
        for ip in addresses:
            try:
                return urllib3.util.connection.create_connection(
                    (ip, port), self.timeout, self.source_address, self.socket_options
                )
            except OSError as error:
                trouble = error
        if isinstance(trouble, TimeoutError):
            raise ConnectTimeoutError(self, f"{self.host} didn't answer in {self.timeout} s") from trouble
        raise NewConnectionError(self, f"{self.host} can't be reached: {trouble}") from trouble

    class Http(HTTPConnection):
        _new_conn = connected

    class Https(HTTPSConnection):
        _new_conn = connected

    class HttpPool(HTTPConnectionPool):
        ConnectionCls = Http

    class HttpsPool(HTTPSConnectionPool):
        ConnectionCls = Https

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **settings: Any) -> None:
            super().init_poolmanager(*args, **settings)
            self.poolmanager.pool_classes_by_scheme = {"http": HttpPool, "https": HttpsPool}

    return Adapter()


def _from_hub(source: HubFile) -> _Open:
    """Opens a hub file from a place on, through huggingface_hub; its token goes to the hub alone."""
    import huggingface_hub as hub
    from huggingface_hub import utils

    client: Any = utils  # it doesn't say which of its names are public; the hub's own documentation does

    # Read now: the library has bound it when it was imported.
    endpoint = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    library: dict[str, Any] = {"library_name": "datakit", "library_version": __version__}

    @contextmanager
    def opened(start: int, version: _Version | None) -> Iterator[_Reply]:
        with _hub_errors(source, endpoint):
            url = hub.hf_hub_url(
                source.repo, source.path, repo_type="dataset", revision=source.revision, endpoint=endpoint
            )
            said = hub.get_hf_file_metadata(url, endpoint=endpoint, timeout=READ_S, **library)
            if said.commit_hash is None or said.etag is None:
                raise DownloadError(f"{endpoint!r} doesn't answer as a hub does: check HF_ENDPOINT")
            now = _Version(url=str(source), total=said.size, etag=said.etag, revision=said.commit_hash)
            same = version is not None and (version.etag, version.total) == (now.etag, now.total)
            begin = start if same else 0
            headers = client.build_hf_headers(**library)
            if _origin(said.location) not in (_origin(endpoint), _origin(HUB)):
                headers.pop("authorization", None)
            headers["Accept-Encoding"] = "identity"
            if begin:
                headers["Range"] = f"bytes={begin}-"
            with client.http_stream_backoff(
                "GET",
                said.location,
                headers=headers,
                timeout=READ_S,
                max_retries=0,
                retry_on_exceptions=(),
                retry_on_status_codes=(),
            ) as reply:
                client.hf_raise_for_status(reply)
                if reply.headers.get("X-Repo-Commit", said.commit_hash) != said.commit_hash:
                    raise _Broken("the dataset was changed at this moment")
                if reply.status_code != 206:
                    begin = 0
                elif not (reply.headers.get("Content-Range") or "").startswith(f"bytes {begin}-"):
                    raise _Broken("the hub sends another part than was asked for", drop=True)
                yield _Reply(version=now, start=begin, headers=reply.headers, pieces=reply.iter_raw())

    return opened


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


@contextmanager
def _hub_errors(source: HubFile, endpoint: str) -> Iterator[None]:
    """Turns huggingface_hub's errors into what a user can do about them."""
    from huggingface_hub import errors as hub

    page = f"{endpoint}/datasets/{source.repo}"
    login = "log in with `hf auth login`, or set HF_TOKEN"
    transport: Any = hub.HfHubHTTPError.__mro__[1]  # HTTPError of the httpx that this huggingface_hub uses
    try:
        yield
    except hub.GatedRepoError as error:
        raise DownloadError(f"{source.repo!r} is gated: accept its terms at {page} and {login}") from error
    except hub.RevisionNotFoundError as error:
        raise DownloadError(f"{source.repo!r} has no revision {source.revision!r}: see {page}/commits/main") from error
    except hub.EntryNotFoundError as error:
        raise DownloadError(
            f"{source.repo!r} has no file {source.path!r} at {source.revision!r}: see {page}/tree/main"
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise DownloadError(
            f"the hub knows no dataset {source.repo!r}, or it is private: check {page}, and {login}"
        ) from error
    except hub.OfflineModeIsEnabled as error:
        raise DownloadError(f"{source} is not here and HF_HUB_OFFLINE is set: unset it") from error
    except hub.HfHubHTTPError as error:
        status = error.response.status_code
        if status in TRY_AGAIN or status == 416:
            after_s = policy.retry_after_s(error.response.headers.get("Retry-After") or "")
            raise _Broken(f"the hub answers {status}", after_s=after_s, drop=status == 416) from error
        raise DownloadError(f"{source} can't be fetched (HTTP {status}): see {page}, and {login}") from error
    except transport as error:
        raise _Broken(error) from error
