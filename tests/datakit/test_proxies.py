"""The proxies of the environment: for the hub, for archives and for pictures alike; what isn't spelt out is theirs."""

import base64
import hashlib
import socket

import huggingface_hub
import pytest
from certificates import server_context
from relay import relayed
from unruly import ranged, reply, unruly_server

from datakit.errors import DownloadError, UsageError
from datakit.web import asking, downloads
from datakit.web import hosts as hosts_module
from datakit.web.crawl import Limits, crawl
from datakit.web.downloads import download
from datakit.web.hosts import Hosts, RefusedUrl
from datakit.web.proxies import Proxies
from datakit.web.ranged import RangedFile

BODY = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(BODY).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = "hub://datasets/owner/repo@main/images.tar"
FILE = "/datasets/owner/repo/resolve/main/images.tar"
SCHEMES = ["http", "https"]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads, "BACKOFF_S", 0.0)
    monkeypatch.setattr(asking, "BACKOFF_S", 0.0)
    with unruly_server() as unruly:
        unruly.at("/a.zip", ranged(BODY))
        unruly.at("/a.jpg", reply(b"picture"))
        unruly.at(FILE, ranged(BODY, etag=f'"{SHA256}"', X_Repo_Commit=COMMIT))
        yield unruly


@pytest.fixture
def proxy(server, monkeypatch, tmp_path):
    """A cluster whose only way out is a proxy; no name is found without it."""

    def unknown(host, port):
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    secure = server.door(tls=server_context(tmp_path, "secure.example"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "secure.example.pem"))
    monkeypatch.setattr(hosts_module, "look_up", unknown)
    hosts_module.tls.cache_clear()
    huggingface_hub.close_session()
    with relayed({"plain.example": server.port, "secure.example": secure}) as relay:
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://me:word@{relay.place}")
        yield relay
    huggingface_hub.close_session()
    hosts_module.tls.cache_clear()


def fetched(*urls):
    return [(f.outcome, f.value) for f in crawl(urls, hosts=Hosts(), limits=Limits(), work=bytes)]


def place(scheme):
    return {"http": "http://plain.example", "https": "https://secure.example"}[scheme]


def way(scheme, path):
    return "CONNECT secure.example:443" if scheme == "https" else f"GET http://plain.example{path}"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_archive_comes_through_the_proxy(proxy, tmp_path, scheme):
    url = f"{place(scheme)}/a.zip"

    done = download(url, tmp_path / "x", hosts=Hosts())
    with RangedFile(url, hosts=Hosts()) as file:
        assert file.version.total == len(BODY)

    assert done.sha256 == SHA256
    assert way(scheme, "/a.zip") in proxy.asked
    assert set(proxy.credentials) == {"Basic " + base64.b64encode(b"me:word").decode()}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_file_of_the_hub_comes_through_the_proxy(proxy, tmp_path, monkeypatch, scheme):
    monkeypatch.setenv("HF_ENDPOINT", place(scheme))

    done = download(HUB, tmp_path / "x", hosts=Hosts())

    assert done.sha256 == SHA256
    assert way(scheme, FILE) in proxy.asked


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_picture_comes_through_the_proxy(proxy, server, scheme):
    found = fetched(*[f"{place(scheme)}/a.jpg"] * 3)

    assert found == [("ok", b"picture")] * 3
    assert way(scheme, "/a.jpg") in proxy.asked
    assert not any("proxy-authorization" in visit.headers for visit in server.visits)


def test_what_a_proxy_refuses_is_told(proxy, tmp_path):
    with pytest.raises(DownloadError, match="503"):
        download("http://gone.example/a.zip", tmp_path, hosts=Hosts())
    with pytest.raises(DownloadError, match="proxy that the environment names"):
        download("https://gone.example/a.zip", tmp_path, hosts=Hosts())

    assert fetched("http://gone.example/a.jpg", "https://gone.example/a.jpg") == [("http_503", None)] * 2


def test_a_private_address_that_is_spelt_out_is_refused_through_a_proxy_too(proxy, server, tmp_path, monkeypatch):
    private = "http://10.0.0.5/a.zip"
    server.at("/away", reply(status=302, Location=private))
    linked = {"X_Linked_Etag": f'"{SHA256}"', "X_Linked_Size": len(BODY), "X_Repo_Commit": COMMIT}
    server.at(FILE, reply(status=302, Location=private, **linked))
    monkeypatch.setenv("HF_ENDPOINT", "http://plain.example")

    for address in (private, "http://plain.example/away", HUB):
        with pytest.raises(RefusedUrl):
            download(address, tmp_path, hosts=Hosts())
    found = fetched(private, "http://plain.example/away")

    assert [outcome for outcome, _ in found] == ["refused_address"] * 2
    assert not [asked for asked in proxy.asked if "10.0.0.5" in asked]


def test_hosts_of_no_proxy_and_this_machine_are_asked_directly(proxy, server, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "plain.example")
    monkeypatch.setattr(hosts_module, "look_up", lambda host, port: ["127.0.0.1"])
    here = Hosts(allowed=("plain.example", server.place))

    download(f"http://plain.example:{server.port}/a.zip", tmp_path, hosts=here)
    download(f"http://{server.place}/a.zip", tmp_path, hosts=here)
    urls = (f"http://plain.example:{server.port}/a.jpg", f"http://{server.place}/a.jpg")
    found = [f.outcome for f in crawl(urls, hosts=here, limits=Limits(), work=bytes)]

    assert found == ["ok", "ok"]
    assert proxy.asked == []


def test_a_proxy_may_have_a_private_name_but_no_url_may_lead_to_it(proxy, monkeypatch):
    monkeypatch.setattr(hosts_module, "look_up", lambda host, port: ["127.0.0.1"])
    monkeypatch.delenv("HTTP_PROXY")
    monkeypatch.setenv("HTTPS_PROXY", f"http://proxy.example:{proxy.port}")

    found = fetched("https://secure.example/a.jpg", f"http://proxy.example:{proxy.port}/a.jpg")

    assert found == [("ok", b"picture"), ("refused_address", None)]
    assert proxy.asked == ["CONNECT secure.example:443"]


def test_a_proxy_that_isn_t_there_is_told(proxy, tmp_path, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setenv("HF_ENDPOINT", "http://plain.example")

        with pytest.raises(DownloadError, match="proxy that the environment names"):
            download("http://plain.example/a.zip", tmp_path, hosts=Hosts())
        with pytest.raises(DownloadError, match="refused"):
            download(HUB, tmp_path, hosts=Hosts())
        assert fetched("http://plain.example/a.jpg") == [("connect", None)]


def test_a_proxy_of_another_kind_is_refused_without_its_password(proxy, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "socks5://me:word@127.0.0.1:1080")

    with pytest.raises(UsageError, match=r"'127\.0\.0\.1:1080' as the proxy for http") as refused:
        download("http://plain.example/a.zip", tmp_path, hosts=Hosts())

    assert "word" not in str(refused.value)


@pytest.mark.parametrize(
    ("no", "url", "direct"),
    [
        ("", "http://a.example/", False),
        ("*", "http://a.example/", True),
        ("example", "http://a.example/", True),
        (".example", "http://a.example/", True),
        ("*.example", "http://a.example/", True),
        ("ample", "http://a.example/", False),
        ("b.example, a.example", "http://A.example/", True),
        ("a.example:81", "http://a.example/", False),
        ("a.example:80", "http://a.example/", True),
        ("a.example:443", "https://a.example/", True),
        ("10.0.0.0/8", "http://10.1.2.3/", True),
        ("10.0.0.0/8", "http://11.1.2.3/", False),
        ("fd00::/8", "http://[fd00::1]/", True),
        ("", "http://localhost:8080/", True),
        ("", "http://127.0.0.9/", True),
        ("", "http://[::1]/", True),
    ],
)
def test_no_proxy_is_read_as_usual(no, url, direct):
    proxies = Proxies({"http": "proxy.example:3128", "all": "https://other.example", "no": no})

    found = proxies.proxy_for(url)

    assert (found is None) == direct
    if not direct:
        assert found == "http://proxy.example:3128"
