"""Transfers: a file of the web or of the hub, asked about or read from an offset on; one try, no file written.

What another try may cure comes out as `Broken`; everything else is a DownloadError that says what to do.
Hub files go through huggingface_hub: its token, its metadata, its errors. Every redirect and every address is checked
for both (for the hub in `hubclient`), and both go through the environment's proxies (`proxies`), but take no netrc.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from http.cookiejar import DefaultCookiePolicy
from typing import Any, NoReturn
from urllib.parse import urljoin

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from datakit import __version__
from datakit.errors import DownloadError, NoSuchFile
from datakit.web import hosts as policy
from datakit.web.addresses import HubFile, WebFile
from datakit.web.hosts import Hosts
from datakit.web.hubclient import hub_endpoint, hub_library, is_hub, policy_applied
from datakit.web.proxies import proxy_for

CONNECT_S = 10.0
READ_S = 30.0  # silence that is borne
STALL_S = 60.0  # a transfer is given up when it brings less than
LEAST_PER_S = 1024  # so many bytes a second, for so long
MAX_REDIRECTS = 10
PIECE_BYTES = 1 << 20

LARGEST_BY_HTTP = 50 * 1000**3  # huggingface_hub.constants.MAX_HTTP_DOWNLOAD_SIZE: above it the hub has Xet only
TRY_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_RANGE = re.compile(r"bytes (\d{1,30})-\d+/(\d+|\*)")
_TOTAL = re.compile(r"bytes (?:0-0|\*)/(\d{1,30})")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WE: dict[str, Any] = {"library_name": "datakit", "library_version": __version__}


@dataclass(frozen=True, kw_only=True)
class Version:
    """Which file upstream has, or had when a download began."""

    url: str
    total: int | None = None
    etag: str | None = None
    last_modified: str | None = None
    revision: str | None = None

    @property
    def validator(self) -> str | None:
        """The validator for an If-Range header; None when upstream gave none that can be used."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The bytes of a version, from `start` on."""

    version: Version
    start: int
    headers: Mapping[str, str]
    pieces: Iterator[bytes]
    clone: Callable[[int], bool] | None = None
    """Puts the bytes into an empty file without copying them, if the file system can."""


Open = Callable[[int, Version | None], AbstractContextManager[Reply]]


class Broken(Exception):
    """A transfer that trying again may cure."""

    def __init__(self, why: object, *, after_s: float | None = None, drop: bool = False) -> None:
        super().__init__(str(why))
        self.after_s = after_s
        self.drop = drop  # what came is of no use


def from_web(source: WebFile, hosts: Hosts) -> Open:
    """Opens a URL at an offset in the file; every redirect and every address is checked."""

    @contextmanager
    def open_at(start: int, version: Version | None) -> Iterator[Reply]:
        ours = version if version and version.url == source.url else None  # or of a file that was being adopted
        validator = ours.validator if ours and start else None
        headers = {"Range": f"bytes={start}-", "If-Range": validator} if validator else {}
        with (
            web_session(hosts) as session,
            web_errors(source.url),
            follow(session, "GET", hosts.checked_url(source.url), hosts, headers) as reply,
        ):
            yield _web_reply(reply, source.url, ours if validator else None, start)

    return open_at


def ask_web(source: WebFile, hosts: Hosts) -> Version:
    """Which file a URL has, by HEAD; by a GET of its first byte from servers that won't answer HEAD in full."""
    with web_session(hosts) as session, web_errors(source.url):
        with follow(session, "HEAD", hosts.checked_url(source.url), hosts, {}) as reply:
            if reply.status_code in TRY_AGAIN:
                refuse(reply, source.url)
            if reply.status_code == 200 and (version := _web_version(reply, source.url)).total:
                return version
        with follow(session, "GET", hosts.checked_url(source.url), hosts, {"Range": "bytes=0-0"}) as reply:
            version = _web_version(reply, source.url)
            if reply.status_code == 200:
                return version
            total = _TOTAL.fullmatch(reply.headers.get("Content-Range", "").strip())
            if reply.status_code == 206 or (reply.status_code == 416 and total and total[1] == "0"):
                return replace(version, total=int(total[1]) if total else None)
            refuse(reply, source.url)


@contextmanager
def web_session(hosts: Hosts) -> Iterator[requests.Session]:
    """A session that takes nothing from the environment and connects to no address that wasn't checked."""
    with requests.Session() as session:
        session.trust_env = False
        session.verify = os.environ.get("SSL_CERT_FILE") or True
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        session.headers.update({"User-Agent": policy.USER_AGENT, "Accept-Encoding": "identity"})
        adapter = _checked_adapter(hosts)
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        yield session


def follow(
    session: requests.Session, method: str, url: str, hosts: Hosts, headers: Mapping[str, str]
) -> requests.Response:
    """The answer to a URL that has passed `hosts.checked_url`, after its redirects, each of which is checked."""
    target = url
    for _ in range(MAX_REDIRECTS + 1):
        proxy = proxy_for(target)
        reply = session.request(
            method,
            target,
            headers=headers,
            proxies={"http": proxy, "https": proxy} if proxy else {},
            stream=True,
            allow_redirects=False,
            timeout=(CONNECT_S, READ_S),
        )
        location = session.get_redirect_target(reply)
        if location is None:
            return reply
        reply.close()
        target = hosts.check_url(urljoin(target, location))
    raise DownloadError(f"{url!r} leads through more than {MAX_REDIRECTS} redirects: check the address")


def _web_reply(reply: requests.Response, url: str, known: Version | None, start: int) -> Reply:
    if reply.status_code not in (200, 206):
        refuse(reply, url)
    version, begins = _web_version(reply, url), 0
    if reply.status_code == 206:
        found = _RANGE.fullmatch(reply.headers.get("Content-Range", "").strip())
        same = found and known and int(found[1]) == start and found[2] in ("*", str(known.total))
        if not same or not known or (version.etag or known.etag) != known.etag:
            raise Broken("the server sends another part than was asked for", drop=True)
        version, begins = known, start
    return Reply(version=version, start=begins, headers=reply.headers, pieces=read_steadily(reply.raw))


def _web_version(reply: requests.Response, url: str) -> Version:
    headers = reply.headers
    length = headers.get("Content-Length", "")
    return Version(
        url=url,
        total=int(length) if re.fullmatch(r"[0-9]{1,30}", length) else None,
        etag=headers.get("ETag"),
        last_modified=headers.get("Last-Modified"),
    )


def refuse(reply: requests.Response, url: str) -> NoReturn:
    """Raises what an answer without a file means: Broken if it may pass, else DownloadError (NoSuchFile)."""
    status = reply.status_code
    if status in TRY_AGAIN or status == 416:
        after_s = policy.retry_after_s(reply.headers.get("Retry-After", ""))
        raise Broken(f"the server answers {status}", after_s=after_s, drop=status == 416)
    why = {401: "it asks for a login", 403: "it is forbidden", 404: "it isn't there", 410: "it is gone"}
    raise (NoSuchFile if status in (404, 410) else DownloadError)(
        f"{url!r} can't be fetched: {why.get(status, 'the server refuses')} (HTTP {status}). "
        "Look whether the address has moved; DATAKIT_MIRRORS can name another place"
    )


def read_steadily(raw: Any) -> Iterator[bytes]:
    """The bytes as they were sent; raises Broken when they come too slowly."""
    began, got = time.monotonic(), 0
    while piece := raw.read1(PIECE_BYTES, decode_content=False):
        got += len(piece)
        if (passed := time.monotonic() - began) > STALL_S:
            if got < passed * LEAST_PER_S:
                raise Broken(f"{got:,} bytes came in {passed:.0f} s")
            began, got = time.monotonic(), 0
        yield piece


@contextmanager
def web_errors(url: str) -> Iterator[None]:
    """Turns what requests and urllib3 raise into Broken, or into DownloadError where nothing will help."""
    try:
        yield
    except requests.exceptions.SSLError as error:
        raise DownloadError(f"{url!r} has no certificate that can be trusted: {error}") from error
    except requests.exceptions.ProxyError as error:
        raise Broken(f"the proxy that the environment names doesn't let it through: {error}") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, socket.gaierror):
            cause = cause.__cause__ or cause.__context__
        if cause is not None and cause.errno != socket.EAI_AGAIN:
            raise DownloadError(f"{url!r} names a host that has no address: check the name") from error
        raise Broken(error) from error


def _checked_adapter(hosts: Hosts) -> HTTPAdapter:
    """A requests adapter whose connections go to addresses that passed the check, and to no other."""

    def connect(self: HTTPConnection) -> socket.socket:
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
        _new_conn = connect

    class Https(HTTPSConnection):
        _new_conn = connect

    class HttpPool(HTTPConnectionPool):
        ConnectionCls = Http

    class HttpsPool(HTTPSConnectionPool):
        ConnectionCls = Https

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **settings: Any) -> None:
            super().init_poolmanager(*args, **settings)
            self.poolmanager.pool_classes_by_scheme = {"http": HttpPool, "https": HttpsPool}

    return Adapter()


def from_hub(source: HubFile, hosts: Hosts) -> Open:
    """Opens a hub file at an offset, through huggingface_hub; its token goes to the hub alone."""
    client = hub_library().utils
    endpoint = hub_endpoint()

    @contextmanager
    def open_at(start: int, version: Version | None) -> Iterator[Reply]:
        with hub_errors(source, endpoint):
            now, location = _hub_version(source, endpoint, hosts)
            if now.total is not None and now.total > LARGEST_BY_HTTP:
                raise DownloadError(_only_through_xet(source, now))
            same = version is not None and (version.etag, version.total) == (now.etag, now.total)
            begin = start if same else 0
            with hub_get(location, {"Range": f"bytes={begin}-"} if begin else {}, hosts) as reply:
                client.hf_raise_for_status(reply)
                if reply.headers.get("X-Repo-Commit", now.revision) != now.revision:
                    raise Broken("the dataset was changed at this moment")
                if reply.status_code != 206:
                    begin = 0
                elif not (reply.headers.get("Content-Range") or "").startswith(f"bytes {begin}-"):
                    raise Broken("the hub sends another part than was asked for", drop=True)
                yield Reply(version=now, start=begin, headers=reply.headers, pieces=reply.iter_raw())

    return open_at


@contextmanager
def hub_get(location: str, headers: Mapping[str, str], hosts: Hosts) -> Iterator[Any]:
    """The hub's answer to a GET of where a file's bytes are, whatever its status; for inside `hub_errors`."""
    client = hub_library().utils
    ours = client.build_hf_headers(**_WE)
    if not is_hub(location):
        ours.pop("authorization", None)
    with ExitStack() as stack:
        with policy_applied(hosts):
            reply = stack.enter_context(
                client.http_stream_backoff(
                    "GET",
                    location,
                    headers={**ours, **headers, "Accept-Encoding": "identity"},
                    timeout=READ_S,
                    max_retries=0,
                    retry_on_exceptions=(),
                    retry_on_status_codes=(),
                )
            )
        yield reply


def find_hub(source: HubFile, hosts: Hosts) -> tuple[Version, str]:
    """Which file the hub has (its commit, its size, as etag its hash if it is big), and where its bytes are."""
    endpoint = hub_endpoint()
    with hub_errors(source, endpoint):
        version, location = _hub_version(source, endpoint, hosts)
    if not _COMMIT.fullmatch(version.revision or ""):
        raise _no_hub(endpoint)
    return version, location


def hub_files(repo: str, revision: str, hosts: Hosts) -> tuple[str, dict[str, tuple[int, str]]]:
    """The commit of a dataset's revision, and all its files: size, and what `find_hub` has as etag."""
    endpoint = hub_endpoint()
    hub = hub_library()
    with hub_errors(HubFile(repo=repo, revision=revision, path=""), endpoint), policy_applied(hosts):
        api = hub.HfApi(endpoint=endpoint, **_WE)
        commit = str(api.dataset_info(repo, revision=revision, timeout=READ_S).sha)
        if not _COMMIT.fullmatch(commit):
            raise _no_hub(endpoint)
        tree = api.list_repo_tree(repo, recursive=True, revision=commit, repo_type="dataset")
        files = [entry for entry in tree if isinstance(entry, hub.RepoFile)]
    return commit, {file.path: (file.size, file.lfs.sha256 if file.lfs else file.blob_id) for file in files}


def _hub_version(source: HubFile, endpoint: str, hosts: Hosts) -> tuple[Version, str]:
    """Which file the hub has, and where its bytes are."""
    hub = hub_library()
    url = hub.hf_hub_url(source.repo, source.path, repo_type="dataset", revision=source.revision, endpoint=endpoint)
    with policy_applied(hosts):
        said = hub.get_hf_file_metadata(url, endpoint=endpoint, timeout=READ_S, **_WE)
    if said.commit_hash is None or said.etag is None:
        raise _no_hub(endpoint)
    return Version(url=str(source), total=said.size, etag=said.etag, revision=said.commit_hash), said.location


def _no_hub(endpoint: str) -> DownloadError:
    return DownloadError(f"{endpoint!r} doesn't answer as a hub does: check HF_ENDPOINT")


def _only_through_xet(source: HubFile, version: Version) -> str:
    fetch = (
        f"hf download {source.repo} {shlex.quote(source.path)} --repo-type dataset "
        f"--revision {version.revision} --local-dir ."
    )
    return (
        f"{str(source)!r} has {version.total:,} bytes, and the hub serves files above 50 GB only through Xet, which "
        f"is not spoken here. Fetch it with `{fetch}`, then let datakit use it: `datakit adopt NAME FILE`"
    )


@contextmanager
def hub_errors(source: HubFile, endpoint: str) -> Iterator[None]:
    """Turns huggingface_hub's errors into what a user can do about them."""
    hub: Any = hub_library().errors
    page = f"{endpoint}/datasets/{source.repo}"
    login = "log in with `hf auth login`, or set HF_TOKEN"
    transport = hub.HfHubHTTPError.__mro__[1]  # HTTPError of the httpx that this huggingface_hub uses
    try:
        yield
    except hub.GatedRepoError as error:
        raise DownloadError(f"{source.repo!r} is gated: accept its terms at {page} and {login}") from error
    except hub.RevisionNotFoundError as error:
        raise DownloadError(f"{source.repo!r} has no revision {source.revision!r}: see {page}/commits/main") from error
    except hub.EntryNotFoundError as error:
        raise NoSuchFile(
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
            raise Broken(f"the hub answers {status}", after_s=after_s, drop=status == 416) from error
        raise DownloadError(f"{source} can't be fetched (HTTP {status}): see {page}, and {login}") from error
    except transport as error:
        raise Broken(error) from error
