"""Big files from the web and from the hub: resumed, checked, and refused with a reason."""

import gzip
import hashlib
import json
import os
import resource
import socket
import subprocess
import sys

import huggingface_hub.constants
import pytest
from unruly import Unruly, in_turn, ranged, reply, unruly_server

from datakit.errors import DownloadError, ManifestError, SourceError, StorageError, UsageError
from datakit.web import downloads as module
from datakit.web import hosts as hosts_module
from datakit.web import sidecars, transfers
from datakit.web.addresses import HubFile, WebFile
from datakit.web.downloads import Downloaded, Expect, Head, adopt, check_not_html, download, head, parse
from datakit.web.hosts import Hosts, RefusedUrl

BODY = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(BODY).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILE = "/datasets/owner/repo/resolve/main/images.tar"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "BACKOFF_S", 0.0)
    monkeypatch.setattr(transfers, "PIECE_BYTES", 10_000)  # so that a kill always finds half a file
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)  # it would ask the real hub
    with unruly_server() as unruly:
        monkeypatch.setenv("HF_ENDPOINT", f"http://{unruly.place}")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield unruly


def get(unruly: Unruly, address: str, into, **settings) -> Downloaded:
    mirrors = settings.pop("mirrors", ())
    return download(address, into, hosts=Hosts(allowed=(unruly.place,), mirrors=mirrors), **settings)


def ask(unruly: Unruly, address: str, mirrors=()) -> Head:
    return head(address, hosts=Hosts(allowed=(unruly.place,), mirrors=mirrors))


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
    publish = sidecars.publish_file

    def killed(path, data):
        if path.name.endswith(".download.json"):
            raise KeyboardInterrupt
        publish(path, data)

    monkeypatch.setattr(sidecars, "publish_file", killed)
    with pytest.raises(KeyboardInterrupt):
        get(server, url, tmp_path)
    monkeypatch.setattr(sidecars, "publish_file", publish)
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
    monkeypatch.setattr(transfers, "STALL_S", 0.1)
    monkeypatch.setattr(transfers, "READ_S", 0.2)

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
        "file://host/etc/passwd",
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

        done = download(HUB, tmp_path, hosts=Hosts(allowed=(cdn.place,)))

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


def test_a_hub_file_above_50_gb_is_told_with_a_way_to_have_it(server, tmp_path):
    with unruly_server() as cdn:
        blob = cdn.at("/blob", ranged(BODY))
        linked = {"X_Linked_Etag": f'"{SHA256}"', "X_Linked_Size": 60 * 10**9, "X_Repo_Commit": COMMIT}
        server.at(FILE, reply(status=302, Location=blob, **linked))

        with pytest.raises(DownloadError, match=rf"only through Xet.*hf download owner/repo .*{COMMIT}.*adopt"):
            get(server, HUB, tmp_path)

        assert ask(server, HUB).size_bytes == 60 * 10**9
        assert cdn.visits == []


def of_size(size_bytes):
    return Head(repo=None, revision=None, size_bytes=size_bytes, sha256=None)


def test_the_head_of_a_web_file_is_its_size_and_nothing_is_fetched(server):
    url = server.at("/a.zip", ranged(BODY))

    found = ask(server, url)

    assert found == of_size(len(BODY))
    assert [(v.method, v.path) for v in server.visits] == [("HEAD", "/a.zip")]
    assert server.visits[0].headers["accept-encoding"] == "identity"


def without_head(answer, status=405):
    """A server that answers GET only."""

    def answered(visit):
        (reply(b"", status) if visit.method == "HEAD" else answer)(visit)

    return answered


@pytest.mark.parametrize("status", [400, 403, 404, 405, 501])
def test_a_server_that_refuses_head_is_asked_for_one_byte(server, status):
    one_byte = reply(b"x", 206, Content_Range=f"bytes 0-0/{len(BODY)}")
    url = server.at("/a.zip", without_head(one_byte, status))

    found = ask(server, url)

    assert found == of_size(len(BODY))
    assert [(v.method, v.headers.get("range")) for v in server.visits] == [("HEAD", None), ("GET", "bytes=0-0")]


def test_the_size_is_found_in_every_answer_to_the_question_for_one_byte(server):
    def endless(visit):
        visit.head()
        if visit.method == "GET":
            visit.flood()

    answers = {
        len(BODY): without_head(reply(BODY)),  # it ignores Range
        0: without_head(reply(b"", 416, Content_Range="bytes */0")),  # an empty file has no first byte
        7: in_turn(reply(b""), reply(b"1234567")),  # HEAD gives no true length
    }

    for size_bytes, answer in answers.items():
        assert ask(server, server.at(f"/{size_bytes}.zip", answer)) == of_size(size_bytes)
    for answer in (endless, without_head(reply(b"x", 206, Content_Range="bytes 0-0/*"))):
        assert ask(server, server.at("/unknown.zip", answer)) == of_size(None)


def test_a_head_that_is_refused_says_what_a_download_would(server, tmp_path):
    gone = server.at("/gone.zip", reply(b"", 410))
    down = server.at("/down.zip", in_turn(reply(b"", 503), ranged(BODY)))
    never = server.at("/never.zip", reply(b"", 500))

    with pytest.raises(DownloadError) as asked:
        ask(server, gone)
    with pytest.raises(DownloadError) as fetched:
        get(server, gone, tmp_path)

    assert str(asked.value) == str(fetched.value)
    assert ask(server, down) == of_size(len(BODY))
    with pytest.raises(DownloadError, match="answers 500"):
        ask(server, never)
    assert server.paths().count("/never.zip") == module.TRIES


def test_a_head_follows_the_mirrors_and_redirects_of_a_download(server):
    server.at("/images.example/a.zip", reply(status=302, Location="/real.zip"))
    server.at("/real.zip", ranged(BODY))
    mirrors = (("http://", f"http://{server.place}/"),)

    assert ask(server, "http://images.example/a.zip", mirrors) == of_size(len(BODY))
    with unruly_server() as other:
        for target in ("file:///etc/passwd", "http://169.254.169.254/", other.at("/x", reply(b"secret"))):
            with pytest.raises(RefusedUrl):
                ask(server, server.at("/bad.zip", reply(status=302, Location=target)))
        assert other.visits == []
    with pytest.raises(RefusedUrl):
        head(f"http://{server.place}/real.zip", hosts=Hosts())


@pytest.mark.parametrize(("etag", "sha256"), [(SHA256, SHA256), ("0" * 40, None)])
def test_the_head_of_a_hub_file_has_its_commit_and_the_hash_of_a_big_one(server, etag, sha256):
    server.at(FILE, hub_file(etag=etag))

    found = ask(server, HUB)

    assert found == Head(repo="owner/repo", revision=COMMIT, size_bytes=len(BODY), sha256=sha256)
    assert [(v.method, v.headers["authorization"]) for v in server.visits] == [("HEAD", "Bearer hf_secret")]


def test_the_head_of_a_hub_file_is_refused_as_its_download_is(server):
    server.at(FILE, reply(b"", 403, X_Error_Code="GatedRepo"))
    with pytest.raises(DownloadError, match="gated: accept its terms"):
        ask(server, HUB)

    server.at(FILE, ranged(BODY, X_Repo_Commit="main"))
    with pytest.raises(DownloadError, match="HF_ENDPOINT"):
        ask(server, HUB)

    server.at(FILE, in_turn(reply(b"", 503), hub_file()))
    assert ask(server, HUB).size_bytes == len(BODY)


def test_the_hub_is_told_nothing_that_the_user_did_not_ask_for():
    code = (
        "from datakit.web import transfers; from datakit.web.addresses import HubFile\n"
        "from datakit.web.hosts import Hosts\n"
        "transfers.from_hub(HubFile(repo='o/r', revision='main', path='a.tar'), Hosts())\n"
        "import huggingface_hub.constants as c; print(c.HF_HUB_DISABLE_TELEMETRY)\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.endswith("DISABLE_TELEMETRY") and k != "DO_NOT_TRACK"}

    said = [
        subprocess.run([sys.executable, "-c", code], env=env | more, check=True, capture_output=True, text=True).stdout
        for more in ({}, {"HF_HUB_DISABLE_TELEMETRY": "0"})
    ]

    assert said == ["True\n", "False\n"]


def laid(folder, address, body=BODY):
    path = folder / parse(address).folder
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return path


def test_a_file_that_was_adopted_is_not_fetched(server, tmp_path):
    url = server.at("/a.zip", ranged(BODY))
    path = laid(tmp_path, url)

    adopted = adopt(path, url)
    done = get(server, url, tmp_path, expect=Expect(size_bytes=len(BODY), sha256=SHA256))

    assert adopted == done
    assert (done.path, done.size_bytes, done.sha256, done.revision) == (path, len(BODY), SHA256, None)
    assert server.visits == []
    assert files(tmp_path) == ["a.zip", "a.zip.download.json"]


def test_the_sidecar_of_an_adopted_file_is_that_of_a_download_and_says_that_a_person_put_it_there(server, tmp_path):
    url = server.at("/a.zip", ranged(BODY))

    fetched = get(server, url, tmp_path / "fetched").path
    adopted = adopt(laid(tmp_path / "adopted", url), url).path

    one, two = (json.loads((p.parent / "a.zip.download.json").read_bytes()) for p in (fetched, adopted))
    assert one == {"size_bytes": len(BODY), "sha256": SHA256, "revision": None, "etag": '"v1"', "url": url}
    assert two == one | {"etag": None, "by_hand": True}


def test_an_adopted_hub_file_knows_its_commit_when_the_address_names_one(tmp_path):
    at_commit = HUB.replace("main", COMMIT)

    revisions = [adopt(laid(tmp_path, address), address).revision for address in (HUB, at_commit)]

    assert revisions == [None, COMMIT]


def test_adopting_ends_a_download_that_was_killed(server, tmp_path):
    url = server.at("/a.zip", ranged(BODY))
    with pytest.raises(KeyboardInterrupt):
        get(server, url, tmp_path, tell=interrupt)

    adopt(laid(tmp_path, url), url)

    assert files(tmp_path) == ["a.zip", "a.zip.download.json"]


def test_a_file_is_adopted_at_its_place_only_and_must_be_one(tmp_path):
    url = "https://h.example/zips/a.zip"
    elsewhere = tmp_path / "a.zip"
    elsewhere.write_bytes(BODY)
    page = laid(tmp_path, "https://h.example/page.zip", b"<html>")

    with pytest.raises(UsageError, match=r"move it to …/h\.example/zips/a\.zip"):
        adopt(elsewhere, url)
    with pytest.raises(UsageError, match="no file"):
        adopt(tmp_path / parse(url).folder, url)
    with pytest.raises(SourceError, match="web page"):
        adopt(page, "https://h.example/page.zip")

    assert files(tmp_path) == ["a.zip", "page.zip"]
