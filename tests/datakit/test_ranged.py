"""Files that are read in parts, over HTTP, from servers that are well and from those that aren't."""

import hashlib
import random
from dataclasses import replace

import pytest

from datakit.errors import DownloadError, SourceError
from datakit.miniature.hub import Hub
from datakit.miniature.server import Answer, Server, whole
from datakit.web import downloads, ranged
from datakit.web.hosts import Hosts, RefusedUrl
from datakit.web.ranged import Changed, RangedFile, parts

BODY = random.Random(4).randbytes(300_000)
OTHER = random.Random(5).randbytes(300_000)


class Web(Server):
    """A server whose answers a test may change, and which remembers what it was sent."""

    def __init__(self):
        self.bodies = {"/a.bin": whole(BODY)}
        self.turns = []  # answers to the next GETs, before the usual ones
        self.seen = []
        super().__init__(self.reply)
        self.place = f"127.0.0.1:{self.port}"
        self.hosts = Hosts(allowed=(self.place,))

    def reply(self, asked):
        self.seen.append(asked)
        if asked.method == "GET" and self.turns and (answer := self.turns.pop(0)) is not None:
            return answer(asked) if callable(answer) else answer
        answer = self.bodies.get(asked.path, Answer(status=404))
        return answer(asked) if callable(answer) else answer

    def ranges(self):
        return [wanted for method, _, wanted in self.requests if method == "GET"]

    def open(self, **expected):
        return RangedFile(f"http://{self.place}/a.bin", hosts=self.hosts, **expected)


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setattr(downloads, "BACKOFF_S", 0.0)
    server = Web()
    yield server
    server.close()


def test_it_reads_as_the_file_would(web):
    chance = random.Random(0)

    with web.open() as file:
        for _ in range(30):
            at, n = chance.randrange(310_000), chance.randrange(2000)
            file.seek(at)
            assert file.read(n) == BODY[at : at + n]
        file.seek(-10, 2)
        assert file.read() == BODY[-10:]


def test_only_what_is_asked_for_comes_and_it_is_counted(web):
    with web.open() as file:
        file.seek(1000)
        got = file.read(50)

    assert got == BODY[1000:1050]
    assert (file.bytes_read, file.requests) == (50, 1)
    assert web.ranges() == ["bytes=1000-1049"]


def test_what_is_announced_comes_in_few_requests(web):
    spans = [(at, at + 900) for at in range(0, 9000, 1000 - 20)]  # 80 bytes between two of them

    with web.open() as file:
        file.ahead(spans)
        for start, stop in spans:
            file.seek(start)
            assert file.read(stop - start) == BODY[start:stop]

    assert file.requests == 1
    assert file.bytes_read <= 1.1 * sum(stop - start for start, stop in spans)


def test_two_columns_that_are_read_in_turns_are_fetched_once(web, monkeypatch):
    monkeypatch.setattr(ranged, "PART_BYTES", 10_000)

    with web.open() as file:
        file.ahead([(0, 50_000), (100_000, 110_000)])
        for turn in range(50):
            file.seek(turn * 1000)
            file.read(1000)
            file.seek(100_000 + turn * 200)
            file.read(200)

    assert (file.requests, file.bytes_read) == (6, 60_000)


@pytest.mark.parametrize(
    ("spans", "joined"),
    [
        ([], []),
        ([(0, 0)], []),
        ([(0, 100), (110, 210)], [(0, 210)]),
        ([(0, 100), (111, 211)], [(0, 100), (111, 211)]),  # a gap of more than a twentieth of both
        ([(5, 25_005)], [(5, 10_005), (10_005, 20_005), (20_005, 25_005)]),
        ([(0, 9_000), (9_000, 18_000)], [(0, 9_000), (9_000, 18_000)]),
        ([(9_000, 9_500), (0, 9_000)], [(0, 9_500)]),
    ],
)
def test_near_spans_are_joined_and_long_ones_are_cut(monkeypatch, spans, joined):
    monkeypatch.setattr(ranged, "PART_BYTES", 10_000)

    assert parts(spans) == joined


def test_a_connection_that_breaks_is_taken_up_where_it_was(web):
    web.turns = [replace(web.bodies["/a.bin"], cut_after=30_000), Answer(status=503)]

    with web.open() as file:
        got = file.fetch(1000, 101_000)

    assert got == BODY[1000:101_000]
    assert web.ranges() == ["bytes=1000-100999", "bytes=31000-100999", "bytes=31000-100999"]


def test_a_server_that_never_recovers_is_given_up_with_a_way_on(web):
    web.turns = [Answer(status=503)] * 9

    with web.open() as file, pytest.raises(DownloadError, match=r"503.*Run the same command again"):
        file.fetch(0, 10)

    assert len(web.ranges()) == downloads.TRIES


def test_a_file_that_changes_midway_is_refused(web):
    with web.open() as file:
        file.fetch(0, 1000)
        web.bodies["/a.bin"] = whole(OTHER)

        with pytest.raises(Changed, match="another file by now"):
            file.fetch(1000, 2000)


def test_a_file_that_changes_before_its_first_part_is_refused(web):
    with web.open() as file:
        web.bodies["/a.bin"] = whole(OTHER)

        with pytest.raises(Changed):
            file.fetch(0, 10)


def test_a_file_that_changes_while_its_connection_is_broken_is_refused(web):
    def cut(asked):
        web.bodies["/a.bin"] = whole(OTHER)
        return replace(whole(BODY), cut_after=100)

    web.turns = [cut]

    with web.open() as file, pytest.raises(Changed):
        file.fetch(0, 1000)


def test_a_file_that_isn_t_the_expected_one_is_refused_at_once(web):
    etag = f'"{web.bodies["/a.bin"].etag}"'

    web.open(etag=etag, size_bytes=len(BODY)).close()
    for expected in ({"etag": '"other"'}, {"size_bytes": len(BODY) + 1}):
        with pytest.raises(Changed):
            web.open(**expected)

    assert web.ranges() == []


def test_a_server_that_ignores_ranges_isn_t_read_whole(web):
    web.bodies["/a.bin"] = replace(whole(BODY), etag="")

    with web.open() as file, pytest.raises(DownloadError, match="sends no parts of files"):
        file.fetch(10, 20)

    assert file.bytes_read == 0


def test_a_web_page_is_told_from_a_file(web):
    web.turns = [Answer(body=b"<html>log in</html>", content_type="text/html")]

    with web.open() as file, pytest.raises(SourceError, match="gives a web page"):
        file.fetch(10, 20)


def test_a_server_that_sends_another_part_is_not_believed(web):
    answer = Answer(status=206, body=BODY[:10], etag=web.bodies["/a.bin"].etag)
    web.turns = [replace(answer, headers=(("Content-Range", "bytes 5-14/300000"),))]

    with web.open() as file:
        assert file.fetch(0, 10) == BODY[:10]

    assert file.requests == 2


def test_redirects_are_followed_once_and_again_when_the_link_expires(web):
    def leads(asked):
        return Answer(status=302, headers=(("Location", f"/signed?{len(web.seen)}"),))

    expired = []

    def signed(asked):
        return Answer(status=403) if asked.path in expired else whole(BODY)

    web.bodies["/a.bin"] = leads
    web.site = lambda asked: signed(asked) if asked.path.startswith("/signed") else web.reply(asked)

    with web.open() as file:
        for at in range(0, 3000, 1000):
            assert file.fetch(at, at + 1000) == BODY[at : at + 1000]
        first = {path for method, path, _ in web.requests if method == "GET" and path.startswith("/signed")}
        expired += first
        assert file.fetch(3000, 4000) == BODY[3000:4000]

    assert len(first) == 1
    assert [path for method, path, _ in web.requests if method == "GET"].count("/a.bin") == 2


def test_a_private_address_is_not_connected_to(web):
    with pytest.raises(RefusedUrl, match="not a public address"):
        RangedFile(f"http://{web.place}/a.bin", hosts=Hosts())

    assert web.requests == []


def test_mirrors_are_asked_instead(web):
    hosts = Hosts(allowed=(web.place,), mirrors=(("https://files.example/", f"http://{web.place}/"),))

    with RangedFile("https://files.example/a.bin", hosts=hosts) as file:
        assert file.fetch(7, 9) == BODY[7:9]


@pytest.fixture
def hub(web, monkeypatch):
    """A hub that keeps its bytes elsewhere, at `web`, as the real one does."""
    about = Hub({"o/r": ["a.parquet"]}, lambda repo, name: BODY, edition="1")

    def site(asked):
        seen.append(asked)
        answer = about.answer(asked)
        if asked.path.startswith("/datasets/") and answer.status == 200:
            headers = (*answer.headers, ("Location", f"http://{web.place}/a.bin"))
            return Answer(status=302, headers=headers)
        return answer

    seen = []
    server = Server(site)
    server.seen = seen
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.close()


def test_a_hub_file_is_read_from_where_the_hub_sends_us_without_the_token(hub, web):
    with RangedFile("hub://datasets/o/r@main/a.parquet", hosts=Hosts(allowed=(web.place,))) as file:
        got = [file.fetch(at, at + 10) for at in (5, 50, 500)]

    assert got == [BODY[at : at + 10] for at in (5, 50, 500)]
    assert file.version.etag == hashlib.sha256(BODY).hexdigest()
    assert [asked.method for asked in hub.seen] == ["HEAD"]
    assert hub.seen[0].headers["authorization"] == "Bearer hf_secret"
    assert not any("authorization" in asked.headers for asked in web.seen)


def test_a_hub_file_whose_link_expires_is_asked_for_again(hub, web):
    web.turns = [None, Answer(status=403)]

    with RangedFile("hub://datasets/o/r@main/a.parquet", hosts=Hosts(allowed=(web.place,))) as file:
        got = [file.fetch(at, at + 10) for at in (5, 50)]

    assert got == [BODY[at : at + 10] for at in (5, 50)]
    assert [asked.method for asked in hub.seen] == ["HEAD", "HEAD"]


def test_a_hub_file_that_is_forbidden_is_not_asked_for_again(hub, web):
    web.turns = [Answer(status=403)]

    file = RangedFile("hub://datasets/o/r@main/a.parquet", hosts=Hosts(allowed=(web.place,)))
    with file, pytest.raises(DownloadError, match="403"):
        file.fetch(0, 10)

    assert len(web.ranges()) == 1
