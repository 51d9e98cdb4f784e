"""Big files from the web and from the hub: resumed, checked, and refused with a reason."""

import gzip
import hashlib
import json
import resource
import socket

import huggingface_hub.constants
import pytest
from unruly import Unruly, in_turn, ranged, reply, unruly_server

from datakit import downloads as module
from datakit import hosts as hosts_module
from datakit.downloads import Downloaded, Expect, HubFile, WebFile, check_not_html, download, parse
from datakit.errors import DownloadError, ManifestError, SourceError, StorageError
from datakit.hosts import Hosts, RefusedUrl

BODY = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(BODY).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILE = "/datasets/owner/repo/resolve/main/images.tar"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "BACKOFF_S", 0.0)
    monkeypatch.setattr(module, "PIECE_BYTES", 10_000)  # so that a kill always finds half a file
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)  # it would ask the real hub
    with unruly_server() as unruly:
        monkeypatch.setenv("HF_ENDPOINT", f"http://{unruly.place}")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield unruly


def get(unruly: Unruly, address: str, into, **settings) -> Downloaded:
    mirrors = settings.pop("mirrors", ())
    return download(address, into, hosts=Hosts(allowed=(unruly.place,), mirrors=mirrors), **settings)


def interrupt(done, total):
    """A `tell` that stands for a kill in the middle of the transfer."""
    if done:
        raise KeyboardInterrupt


def done_before(server):
    return int(server.visits[-1].headers["range"].removeprefix("bytes=").rstrip("-"))


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_file_is_fetched_once(server, tmp_path):
    url = server.at("/zips/a.zip", ranged(BODY))
    told = []

    first = get(server, url, tmp_path, tell=lambda done, total: told.append((done, total)))
    again = get(server, url, tmp_path)

    assert first == again
    assert first.path == tmp_path / f"127.0.0.1_{server.port}" / "zips" / "a.zip"
    assert first.path.read_bytes() == BODY
    assert (first.size_bytes, first.sha256, first.etag, first.revision) == (len(BODY), SHA256, '"v1"', None)
    assert told[0] == (0, len(BODY))
    assert told[-1] == (len(BODY), len(BODY))
    assert files(tmp_path) == ["a.zip", "a.zip.download.json"]
    (visit,) = server.visits
    assert visit.headers["user-agent"].startswith("datakit/")
    assert visit.headers["accept-encoding"] == "identity"
    assert not {"authorization", "cookie"} & set(visit.headers)


def test_a_file_whose_size_has_changed_on_disk_is_fetched_again(server, tmp_path):
    url = server.at("/a.zip", ranged(BODY))
    path = get(server, url, tmp_path).path

    path.write_bytes(b"short")
    get(server, url, tmp_path)

    assert path.read_bytes() == BODY


@pytest.mark.parametrize("headers", [{}, {"etag": None, "Last_Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}])
def test_a_broken_transfer_goes_on_where_it_was(server, tmp_path, headers):
    def unchanged(visit):
        visit.headers.pop("if-range", None)
        ranged(BODY, **headers)(visit)

    url = server.at("/a.zip", in_turn(ranged(BODY, cut=100_000, **headers), unchanged))

    done = get(server, url, tmp_path, expect=Expect(size_bytes=len(BODY), sha256=SHA256))

    assert done.path.read_bytes() == BODY
    assert [v.headers.get("range") for v in server.visits] == [None, "bytes=100000-"]


def test_a_killed_download_goes_on_where_it_was(server, tmp_path):
    url = server.at("/a.zip", ranged(BODY))

    with pytest.raises(KeyboardInterrupt):
        get(server, url, tmp_path, tell=interrupt)
    left = files(tmp_path)
    done = get(server, url, tmp_path)

    assert left == ["a.zip.lock", "a.zip.part", "a.zip.part.json"]
    assert 0 < done_before(server) < len(BODY)
    assert server.visits[-1].headers["if-range"] == '"v1"'
    assert (done.path.read_bytes(), done.sha256) == (BODY, SHA256)
    assert files(tmp_path) == ["a.zip", "a.zip.download.json"]


@pytest.mark.parametrize("etag", ['"v2"', None, 'W/"v2"'])
def test_another_file_upstream_begins_anew(server, tmp_path, etag):
    url = server.at("/a.zip", ranged(BODY))
    with pytest.raises(KeyboardInterrupt):
        get(server, url, tmp_path, tell=interrupt)

    server.at("/a.zip", ranged(BODY[::-1], etag=etag))
    done = get(server, url, tmp_path)

    assert done.path.read_bytes() == BODY[::-1]


def test_without_a_version_to_compare_nothing_is_spliced(server, tmp_path):
    url = server.at("/a.zip", ranged(BODY, etag=None))
    with pytest.raises(KeyboardInterrupt):
        get(server, url, tmp_path, tell=interrupt)

    server.at("/a.zip", ranged(BODY[::-1], etag=None))
    done = get(server, url, tmp_path)

    assert done.path.read_bytes() == BODY[::-1]
    assert "range" not in server.visits[-1].headers


def test_a_server_that_gives_another_part_is_asked_for_the_whole(server, tmp_path):
    def wrong_part(visit):
        visit.head(206, ETag='"v1"', Content_Range=f"bytes 5-9/{len(BODY)}", Content_Length=5)
        visit.send(b"wrong")

    for answer in (wrong_part, reply(b"", 416)):
        url = server.at("/a.zip", in_turn(ranged(BODY), answer, ranged(BODY)))
        into = tmp_path / str(len(server.visits))
        with pytest.raises(KeyboardInterrupt):
            get(server, url, into, tell=interrupt)

        done = get(server, url, into)

        assert done.path.read_bytes() == BODY
        assert "range" not in server.visits[-1].headers


def test_a_kill_between_the_name_and_the_sidecar_costs_nothing(server, tmp_path, monkeypatch):
    url = server.at("/a.zip", ranged(BODY))
    publish = module.publish_file

    def killed(path, data):
        if path.name.endswith(".download.json"):
            raise KeyboardInterrupt
        publish(path, data)

    monkeypatch.setattr(module, "publish_file", killed)
    with pytest.raises(KeyboardInterrupt):
        get(server, url, tmp_path)
    monkeypatch.setattr(module, "publish_file", publish)
    done = get(server, url, tmp_path)

    assert (done.path.read_bytes(), done.sha256) == (BODY, SHA256)
    assert len(server.visits) == 1


def test_a_file_of_unknown_length_and_an_empty_one_are_fetched(server, tmp_path):
    def chunked(visit):
        visit.head(Transfer_Encoding="chunked")
        visit.send(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")

    unknown = get(server, server.at("/a.zip", chunked), tmp_path)
    empty = get(server, server.at("/b.zip", reply(b"")), tmp_path)

    assert unknown.path.read_bytes() == b"abcde"
    assert empty.path.read_bytes() == b""


@pytest.mark.parametrize("status", [401, 403, 404, 410, 451])
def test_a_refusal_is_told_and_not_repeated(server, tmp_path, status):
    url = server.at("/a.zip", reply(b"", status))

    with pytest.raises(DownloadError, match=f"HTTP {status}"):
        get(server, url, tmp_path)

    assert len(server.visits) == 1


def test_a_passing_failure_is_tried_again_up_to_a_limit(server, tmp_path):
    url = server.at("/a.zip", in_turn(reply(b"", 503), reply(b"", 429, Retry_After="0"), ranged(BODY)))
    never = server.at("/b.zip", reply(b"", 500))
    late = server.at("/c.zip", reply(b"", 429, Retry_After="86400"))

    assert get(server, url, tmp_path).sha256 == SHA256
    with pytest.raises(DownloadError, match=r"answers 500.*run the same command again"):
        get(server, never, tmp_path)
    with pytest.raises(DownloadError, match="answers 429"):
        get(server, late, tmp_path)

    assert [server.paths().count(path) for path in ("/a.zip", "/b.zip", "/c.zip")] == [3, module.TRIES, 1]


def test_a_transfer_that_stalls_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TRIES", 2)
    monkeypatch.setattr(module, "STALL_S", 0.1)
    monkeypatch.setattr(module, "READ_S", 0.2)

    def trickle(visit):
        visit.head(Content_Length=10_000)
        visit.trickle()

    def silence(visit):
        visit.head(Content_Length=10_000)
        visit.hang()

    with pytest.raises(DownloadError, match="bytes came in"):
        get(server, server.at("/a.zip", trickle), tmp_path)
    with pytest.raises(DownloadError, match="timed out"):
        get(server, server.at("/b.zip", silence), tmp_path)


def test_a_web_page_in_place_of_a_file_is_told(server, tmp_path):
    page = reply(b"\n <!doctype html>", Content_Type="text/html")

    for name in ("a.json", "a.zip", "a.TAR"):
        with pytest.raises(DownloadError, match="web page"):
            get(server, server.at(f"/{name}", page), tmp_path)

    assert not [name for name in files(tmp_path) if not name.endswith((".lock", ".part"))]


def test_a_file_on_disk_that_is_a_web_page_is_told(tmp_path):
    (tmp_path / "page.json").write_bytes(b"\xef\xbb\xbf \n<html>")
    (tmp_path / "data.json").write_bytes(b"[1]")

    check_not_html(tmp_path / "data.json")
    with pytest.raises(SourceError, match="web page"):
        check_not_html(tmp_path / "page.json")


def test_a_file_that_is_not_the_expected_one_is_not_kept(server, tmp_path):
    url = server.at("/a.zip", ranged(BODY))

    with pytest.raises(DownloadError, match="size"):
        get(server, url, tmp_path, expect=Expect(size_bytes=5))
    with pytest.raises(DownloadError, match="sha256"):
        get(server, url, tmp_path, expect=Expect(sha256="0" * 64))
    assert "a.zip" not in files(tmp_path)

    get(server, url, tmp_path)
    with pytest.raises(DownloadError, match="sha256"):
        get(server, url, tmp_path, expect=Expect(sha256="0" * 64))


def test_no_more_is_written_than_was_expected(server, tmp_path):
    def endless(visit):
        visit.head()
        visit.flood()

    url = server.at("/a.zip", endless)

    with pytest.raises(DownloadError, match="sends more"):
        get(server, url, tmp_path, expect=Expect(size_bytes=100_000))


def test_a_compressed_answer_is_refused(server, tmp_path):
    squeezed = reply(gzip.compress(BODY), Content_Encoding="gzip")

    done = get(server, server.at("/a.tar.gz", squeezed), tmp_path)

    assert gzip.decompress(done.path.read_bytes()) == BODY
    with pytest.raises(DownloadError, match="compressed"):
        get(server, server.at("/a.json", squeezed), tmp_path)


def test_a_full_disk_is_told_before_and_during_the_transfer(server, tmp_path):
    huge = server.at("/a.zip", reply(b"", Content_Length=10**18))
    url = server.at("/b.zip", ranged(BODY))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    with pytest.raises(StorageError, match="1,000,000,000,000,000,000 bytes are needed"):
        get(server, huge, tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageError, match=r"412,000 bytes more are needed.*100,000 bytes that came are kept"):
            get(server, url, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert get(server, url, tmp_path).sha256 == SHA256
    assert server.visits[-1].headers["range"] == "bytes=100000-"


def test_redirects_are_followed_and_checked(server, tmp_path):
    end = server.at("/real/a.zip", ranged(BODY))
    good = server.at("/good.zip", reply(status=302, Location="/real/a.zip"))
    loop = server.at("/loop.zip", reply(status=302, Location="/loop.zip"))

    assert get(server, good, tmp_path).sha256 == SHA256
    with pytest.raises(DownloadError, match="redirects"):
        get(server, loop, tmp_path)
    with unruly_server() as other:
        inside = other.at("/x", reply(b"secret"))
        for target in ("file:///etc/passwd", "http://169.254.169.254/", inside, end.replace("//", "//u:p@")):
            with pytest.raises(RefusedUrl):
                get(server, server.at("/bad.zip", reply(status=302, Location=target)), tmp_path)
        assert other.visits == []


def test_the_address_that_was_checked_is_the_one_connected_to(server, tmp_path, monkeypatch):
    answers = [["127.0.0.1"], ["127.0.0.1"]]
    monkeypatch.setattr(hosts_module, "look_up", lambda host, port: answers.pop(0))
    server.at("/a.zip", ranged(BODY))
    url = f"http://changing.example:{server.port}/a.zip"

    done = download(url, tmp_path, hosts=Hosts(allowed=(f"changing.example:{server.port}",)))

    assert done.sha256 == SHA256
    assert server.visits[0].headers["host"] == f"changing.example:{server.port}"
    assert len(answers) == 1
    with pytest.raises(RefusedUrl):
        download(url.replace("changing", "rebound"), tmp_path, hosts=Hosts())


def test_a_name_that_is_not_found_is_told_at_once(server, tmp_path, monkeypatch):
    asked = []

    def look_up(host, port):
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(hosts_module, "look_up", look_up)

    with pytest.raises(DownloadError, match="no address"):
        get(server, "http://gone.example/a.zip", tmp_path)
    assert asked == ["gone.example"]


def test_a_server_without_tls_is_told_at_once(server, tmp_path):
    with pytest.raises(DownloadError, match=r"certificate|TLS"):
        get(server, f"https://{server.place}/a.zip", tmp_path)


def test_a_mirror_is_used_and_leaves_the_place_as_it_was(server, tmp_path):
    server.at("/images.example/a b.zip", ranged(BODY))
    server.at("/images.example/a%20b.zip", ranged(BODY))
    mirrors = (("http://", f"http://{server.place}/"),)

    done = get(server, "http://images.example/a b.zip", tmp_path, mirrors=mirrors)

    assert done.path == tmp_path / "images.example" / "a b.zip"
    assert json.loads((done.path.parent / "a b.zip.download.json").read_bytes())["url"] == (
        "http://images.example/a b.zip"
    )


@pytest.mark.parametrize(
    ("address", "source", "folder"),
    [
        (
            "hub://datasets/teowu/Q-Instruct@main/q-instruct-images.tar",
            HubFile(repo="teowu/Q-Instruct", revision="main", path="q-instruct-images.tar"),
            "huggingface.co/datasets/teowu/Q-Instruct/main/q-instruct-images.tar",
        ),
        (
            "hub://datasets/o/r@refs%2Fpr%2F1/data/a.json",
            HubFile(repo="o/r", revision="refs/pr/1", path="data/a.json"),
            "huggingface.co/datasets/o/r/refs%2Fpr%2F1/data/a.json",
        ),
        (
            "https://huggingface.co/datasets/o/r/blob/main/chat.json",
            HubFile(repo="o/r", revision="main", path="chat.json"),
            "huggingface.co/datasets/o/r/main/chat.json",
        ),
        (
            "https://huggingface.co/datasets/o/r/resolve/abc/d/e%20f.json?download=true",
            HubFile(repo="o/r", revision="abc", path="d/e f.json"),
            "huggingface.co/datasets/o/r/abc/d/e f.json",
        ),
        (
            "http://images.cocodataset.org/zips/train2017.zip",
            WebFile(url="http://images.cocodataset.org/zips/train2017.zip"),
            "images.cocodataset.org/zips/train2017.zip",
        ),
        ("https://h.example:81/a.zip", WebFile(url="https://h.example:81/a.zip"), "h.example_81/a.zip"),
    ],
)
def test_an_address_is_a_hub_file_or_a_web_file(address, source, folder):
    assert parse(address) == source
    assert parse(address).folder == folder


def test_addresses_that_differ_in_their_query_land_apart():
    one, two = (parse(f"https://h.example/dl/a.zip?id={n}").folder for n in (1, 2))

    assert one != two
    assert one.startswith("h.example/dl/id=1-")
    assert one.endswith("/a.zip")


@pytest.mark.parametrize(
    "address",
    [
        "a.zip",
        "ftp://h.example/a.zip",
        "file:///etc/passwd",
        "http:///a.zip",
        "https://h.example/",
        "https://h.example",
        "https://h.example/a/../b.zip",
        "https://h.example/a/%2e%2e/b.zip",
        "https://h.example/a//b.zip",
        "https://h.example/a%5Cb.zip",
        "https://h.example/a%00.zip",
        "https://h.example/" + "a" * 300,
        "https://../a.zip",
        "hub://datasets/o/r/a.json",
        "hub://models/o/r@main/a.json",
        "hub://datasets/o/r@main/../a.json",
        "hub://datasets/o/..@main/a.json",
        "hub://datasets/o/r@main/",
    ],
)
def test_an_address_that_leaves_its_place_is_refused(address):
    with pytest.raises(ManifestError):
        parse(address)


def hub_file(body=BODY, etag=None, cut=None, **headers):
    etag = etag or hashlib.sha256(body).hexdigest()
    return ranged(body, etag=f'"{etag}"', cut=cut, X_Repo_Commit=COMMIT, **headers)


HUB = "hub://datasets/owner/repo@main/images.tar"


def test_a_hub_file_is_fetched_with_the_token_and_its_commit(server, tmp_path):
    server.at(FILE, hub_file())

    done = get(server, HUB, tmp_path)
    again = get(server, HUB, tmp_path)

    assert done == again
    assert done.path == tmp_path / "huggingface.co/datasets/owner/repo/main/images.tar"
    assert done.path.read_bytes() == BODY
    assert (done.sha256, done.revision, done.etag) == (SHA256, COMMIT, SHA256)
    assert [(v.method, v.path) for v in server.visits] == [("HEAD", FILE), ("GET", FILE)]
    assert {v.headers["authorization"] for v in server.visits} == {"Bearer hf_secret"}


def test_the_token_never_leaves_the_hub(server, tmp_path):
    with unruly_server() as cdn:
        blob = cdn.at("/blob", ranged(BODY, etag='"other"'))
        linked = {"X_Linked_Etag": f'"{SHA256}"', "X_Linked_Size": len(BODY), "X_Repo_Commit": COMMIT}
        server.at(FILE, reply(status=302, Location=blob, **linked))

        done = get(server, HUB, tmp_path)

        assert done.sha256 == SHA256
        assert [v.headers.get("authorization") for v in cdn.visits] == [None]


def test_a_broken_or_killed_hub_download_goes_on_where_it_was(server, tmp_path):
    server.at(FILE, in_turn(hub_file(), hub_file(cut=100_000), hub_file()))

    with pytest.raises(KeyboardInterrupt):
        get(server, HUB, tmp_path, tell=interrupt)
    server.at(FILE, in_turn(hub_file(), reply(b"", 503), hub_file()))
    done = get(server, HUB, tmp_path)

    assert done.path.read_bytes() == BODY
    assert 0 < done_before(server) < len(BODY)


def test_a_hub_file_that_has_changed_begins_anew(server, tmp_path):
    server.at(FILE, hub_file())
    with pytest.raises(KeyboardInterrupt):
        get(server, HUB, tmp_path, tell=interrupt)

    server.at(FILE, hub_file(BODY[::-1]))
    done = get(server, HUB, tmp_path)

    assert done.path.read_bytes() == BODY[::-1]


def test_a_hub_file_that_came_damaged_is_not_kept(server, tmp_path):
    server.at(FILE, hub_file(etag="0" * 64))

    with pytest.raises(DownloadError, match="damaged"):
        get(server, HUB, tmp_path)

    assert "images.tar" not in files(tmp_path)


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (403, "GatedRepo", "gated: accept its terms at .*/datasets/owner/repo"),
        (404, "RepoNotFound", "no dataset 'owner/repo'"),
        (404, "RevisionNotFound", "no revision 'main'"),
        (404, "EntryNotFound", "no file 'images.tar'"),
        (401, "", "HF_TOKEN"),
        (403, "", "HF_TOKEN"),
    ],
)
def test_what_the_hub_refuses_is_told_with_a_way_on(server, tmp_path, status, code, says):
    server.at(FILE, reply(b"", status, X_Error_Code=code))

    with pytest.raises(DownloadError, match=says):
        get(server, HUB, tmp_path)

    assert len(server.visits) == 1


def test_an_endpoint_that_is_no_hub_is_told(server, tmp_path):
    server.at(FILE, reply(b"<html>"))

    with pytest.raises(DownloadError, match="HF_ENDPOINT"):
        get(server, HUB, tmp_path)


def test_a_hub_that_is_down_is_tried_again_up_to_a_limit(server, tmp_path):
    server.at(FILE, reply(b"", 503))

    with pytest.raises(DownloadError, match="503"):
        get(server, HUB, tmp_path)

    assert len(server.visits) == module.TRIES
