"""The crawl against servers that break every rule."""

import asyncio
import gc
import gzip
import socket
import threading
import zlib

import pytest
from unruly import Unruly, in_turn, reply, unruly_server

from datakit.errors import BadImage, DownloadError
from datakit.web import asking, pacing
from datakit.web import crawl as crawl_module
from datakit.web import hosts as hosts_module
from datakit.web.crawl import Limits, crawl
from datakit.web.hosts import Hosts

QUICK = Limits(max_bytes=100_000)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(asking, "BACKOFF_S", 0.0)
    with unruly_server() as unruly:
        yield unruly


def fetch(unruly: Unruly, *urls: str, limits: Limits = QUICK, work=bytes, **settings):
    hosts = Hosts(allowed=(unruly.place,), **settings)
    return list(crawl(urls, hosts=hosts, limits=limits, work=work))


def outcomes(*args, **kwargs):
    return [fetched.outcome for fetched in fetch(*args, **kwargs)]


def test_a_picture_is_fetched_politely(server):
    url = server.at("/a.jpg", reply(b"picture"))

    (fetched,) = fetch(server, url + "?v=1#top")

    assert (fetched.place, fetched.outcome, fetched.status, fetched.value) == (0, "ok", 200, b"picture")
    assert (fetched.url, fetched.final_url) == (url + "?v=1#top", url + "?v=1#top")
    assert fetched.size_bytes == 7
    (visit,) = server.visits
    assert visit.path == "/a.jpg?v=1"
    assert visit.headers["user-agent"].startswith("datakit/")
    assert visit.headers["accept-encoding"] == "identity"
    assert "cookie" not in visit.headers


def test_no_url_gives_nothing(server):
    assert fetch(server) == []


def test_results_come_in_the_order_of_the_urls(server):
    last_asked = threading.Event()

    def first(visit):
        last_asked.wait()
        reply(b"0")(visit)

    def last(visit):
        last_asked.set()
        reply(b"29")(visit)

    urls = [server.at(f"/{n}", reply(str(n).encode())) for n in range(30)]
    server.at("/0", first)
    server.at("/29", last)
    limits = Limits(window=(1, 30), per_host=30)

    found = fetch(server, *urls, limits=limits)

    assert [f.place for f in found] == list(range(30))
    assert [f.value for f in found] == [str(n).encode() for n in range(30)]


def test_every_url_has_a_result_even_with_the_tightest_limits(server):
    urls = [server.at(f"/{n}", reply(bytes([n]) * 5000)) for n in range(40)]
    urls[7:7] = ["nonsense", f"http://{server.place}/gone"]
    limits = Limits(window=(1, 4), per_host=1, bytes_ahead=1)

    found = fetch(server, *urls, limits=limits)

    assert [f.url for f in found] == urls
    assert [f.outcome for f in found] == ["ok"] * 7 + ["refused_url", "http_404"] + ["ok"] * 33


def test_a_slow_consumer_holds_up_the_crawl(server):
    urls = [server.at(f"/{n}", reply(b"x" * 1000)) for n in range(200)]
    limits = Limits(window=(1, 2), bytes_ahead=5000)
    hosts = Hosts(allowed=(server.place,))
    worked = []

    results = crawl(urls, hosts=hosts, limits=limits, work=lambda body: worked.append(1) or body)
    ahead = [len(worked) - fetched.place for fetched in results]

    assert len(ahead) == 200
    assert max(ahead) <= 8  # 5 that wait, the two in flight, the one that was taken


@pytest.mark.parametrize("status", [204, 304, 400, 401, 403, 404, 410, 418, 451])
def test_an_answer_that_is_no_picture_is_counted_and_not_asked_for_again(server, status):
    url = server.at("/x", reply(b"", status))

    (fetched,) = fetch(server, url)

    assert (fetched.outcome, fetched.status, fetched.value) == (f"http_{status}", status, None)
    assert len(server.visits) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_passing_failure_is_tried_once_more(server, status):
    url = server.at("/x", in_turn(reply(b"", status), reply(b"ok")))
    never = server.at("/never", reply(b"", status))

    assert outcomes(server, url) == ["ok"]
    assert outcomes(server, never) == [f"http_{status}"]
    assert server.paths() == ["/x", "/x", "/never", "/never"]


def test_retry_after_is_honoured_up_to_the_deadline(server, monkeypatch):
    monkeypatch.setattr(asking, "BACKOFF_S", 1e9)
    soon = server.at("/soon", in_turn(reply(b"", 429, Retry_After="0"), reply(b"ok")))
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    past = server.at("/past", in_turn(reply(b"", 503, Retry_After=date), reply(b"ok")))
    odd = server.at("/odd", reply(b"", 429, Retry_After="later"))
    late = server.at("/late", reply(b"", 429, Retry_After="3600"))

    assert outcomes(server, soon, past, odd) == ["ok", "ok", "http_429"]
    assert outcomes(server, late, soon, past, limits=Limits(per_host=1)) == ["http_429", "host_down", "host_down"]
    assert sorted(server.paths()) == ["/late", "/odd", "/past", "/past", "/soon", "/soon"]


def test_a_connection_that_breaks_is_tried_once_more(server):
    def cut(visit):
        visit.head(Content_Length=100)
        visit.send(b"half")
        visit.reset()

    once = server.at("/once", in_turn(cut, reply(b"whole")))
    always = server.at("/always", cut)
    short = server.at("/short", reply(b"short", Content_Length=100))
    nothing = server.at("/nothing", lambda visit: None)

    found = fetch(server, once, always, short, nothing)

    assert [f.outcome for f in found] == ["ok", "reset", "reset", "reset"]
    assert found[0].value == b"whole"


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01 not http\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nno\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
    ],
)
def test_what_is_not_http_is_a_fault_of_protocol(server, garbage):
    url = server.at("/x", lambda visit: visit.send(garbage))

    assert outcomes(server, url) == ["protocol"]


def test_silence_ends_with_the_read_timeout(server):
    def silent_body(visit):
        visit.head(Content_Length=100)
        visit.hang()

    urls = [server.at("/head", lambda visit: visit.hang()), server.at("/body", silent_body)]
    limits = Limits(read_s=0.1)

    assert outcomes(server, *urls, limits=limits) == ["timeout_read", "timeout_read"]


def test_a_trickle_ends_with_the_total_timeout(server):
    def slow_body(visit):
        visit.head()
        visit.trickle()

    def slow_head(visit):
        visit.send(b"HTTP/1.1 200 OK\r\nX: ")
        visit.trickle()

    urls = [server.at("/body", slow_body), server.at("/head", slow_head)]
    limits = Limits(total_s=0.3)

    assert outcomes(server, *urls, limits=limits) == ["timeout_total", "timeout_total"]


def test_a_name_that_takes_too_long_is_a_connect_timeout(server, monkeypatch):
    monkeypatch.setattr(hosts_module, "look_up", lambda host, port: server.closing.wait(10) and [])
    limits = Limits(connect_s=0.1)

    found = outcomes(server, "http://a.example/", limits=limits)
    server.closing.set()

    assert found == ["timeout_connect"]


def test_a_body_over_the_ceiling_is_dropped(server):
    def endless(visit):
        visit.head()
        visit.flood()

    def endless_chunks(visit):
        visit.head(Transfer_Encoding="chunked")
        while not visit.closing.is_set():
            visit.send(b"400\r\n" + b"x" * 1024 + b"\r\n")

    urls = [
        server.at("/announced", lambda visit: visit.head(Content_Length=10_000_000_000)),
        server.at("/endless", endless),
        server.at("/chunks", endless_chunks),
        server.at("/just", reply(b"x" * QUICK.max_bytes)),
    ]

    assert outcomes(server, *urls) == ["too_large", "too_large", "too_large", "ok"]


def test_a_compressed_body_is_unpacked_up_to_the_ceiling(server):
    raw = zlib.compressobj(wbits=-15)
    urls = [
        server.at("/gzip", reply(gzip.compress(b"picture"), Content_Encoding="gzip")),
        server.at("/zlib", reply(zlib.compress(b"picture"), Content_Encoding="deflate")),
        server.at("/raw", reply(raw.compress(b"picture") + raw.flush(), Content_Encoding="deflate")),
        server.at("/odd", reply(b"picture", Content_Encoding="utf-8")),
        server.at("/bomb", reply(gzip.compress(bytes(50_000_000)), Content_Encoding="gzip")),
        server.at("/cut", reply(gzip.compress(b"picture" * 100)[:-12], Content_Encoding="gzip")),
        server.at("/lie", reply(b"picture", Content_Encoding="gzip")),
        server.at("/br", reply(b"picture", Content_Encoding="br")),
        server.at("/twice", reply(b"picture", Content_Encoding="gzip, gzip")),
    ]

    found = fetch(server, *urls)

    assert [f.value for f in found[:4]] == [b"picture"] * 4
    assert [f.outcome for f in found[4:]] == ["too_large", *["encoding"] * 4]


def test_redirects_are_followed_in_every_spelling(server):
    server.at("/dir/end", reply(b"here"))
    server.at("/%E9.jpg", reply(b"latin"))
    urls = [
        server.at("/absolute", reply(status=301, Location=f"http://{server.place}/dir/end#x")),
        server.at("/relative", reply(status=302, Location="dir/end")),
        server.at("/rooted", reply(status=307, Location="/dir/end")),
        server.at("/hostless", reply(status=308, Location=f"//{server.place}/dir/end")),
        server.at("/latin", reply(status=303, Location="/\udce9.jpg")),
    ]

    found = fetch(server, *urls)

    assert [f.value for f in found] == [b"here"] * 4 + [b"latin"]
    assert found[1].final_url == f"http://{server.place}/dir/end"


def test_a_redirect_that_leads_astray_is_refused(server):
    with unruly_server() as other:
        inside = other.at("/secret", reply(b"secret"))
        targets = {
            "file:///etc/passwd": "refused_url",
            "ftp://a.example/x": "refused_url",
            "http://u:p@a.example/": "refused_url",
            "http://[::1/": "refused_url",
            "http://169.254.169.254/latest/meta-data/": "refused_address",
            "http://0x7f000001/": "refused_address",
            inside: "refused_address",
            inside.replace("127.0.0.1", "localhost"): "refused_address",
        }
        urls = [server.at(f"/{n}", reply(status=302, Location=t)) for n, t in enumerate(targets)]

        found = outcomes(server, *urls)

        assert found == list(targets.values())
        assert other.visits == []


def test_redirects_without_end_are_given_up(server):
    loop = server.at("/loop", reply(status=302, Location="/loop"))
    bare = server.at("/bare", reply(status=302))

    assert outcomes(server, loop, bare) == ["redirects", "http_302"]
    assert server.paths().count("/loop") == QUICK.max_redirects + 1


def test_a_bad_url_is_refused_before_anything_is_sent(server):
    bad = {
        "file:///etc/passwd": "refused_url",
        f"http://{server.place}/x\r\nX: y": "refused_url",
        f"http://user:pass@{server.place}/": "refused_url",
        "http://169.254.169.254/": "refused_address",
        "http://[::ffff:10.0.0.1]/": "refused_address",
    }

    found = fetch(server, *bad)

    assert [f.outcome for f in found] == list(bad.values())
    assert [f.status for f in found] == [0] * 5
    assert server.visits == []


def test_a_mirror_is_used_for_the_first_request_only(server):
    server.at("/a.example/x.jpg", reply(b"copy"))
    server.at("/b.example/x.jpg", reply(status=302, Location="/a.example/x.jpg"))
    mirrors = (("http://", f"http://{server.place}/"),)
    urls = ["http://a.example/x.jpg?v=é 1", "http://b.example/x.jpg"]

    found = fetch(server, *urls, mirrors=mirrors)

    assert [f.value for f in found] == [b"copy", b"copy"]
    assert sorted(server.paths()) == ["/a.example/x.jpg", "/a.example/x.jpg?v=%C3%A9%201", "/b.example/x.jpg"]


def test_the_address_that_was_checked_is_the_one_connected_to(server, monkeypatch):
    answers = [["127.0.0.1"], ["127.0.0.9"]]
    monkeypatch.setattr(hosts_module, "look_up", lambda host, port: answers.pop(0))
    server.at("/x", reply(b"here"))
    url = f"http://changing.example:{server.port}/x"
    hosts = Hosts(allowed=(f"changing.example:{server.port}",))

    (fetched,) = crawl([url], hosts=hosts, limits=QUICK, work=bytes)

    assert fetched.value == b"here"
    assert answers == [["127.0.0.9"]]


def test_a_name_with_a_private_address_is_refused(server, monkeypatch):
    monkeypatch.setattr(hosts_module, "look_up", lambda host, port: ["127.0.0.1"])
    urls = [f"http://rebound.example:{server.port}/{n}" for n in range(5)]

    assert outcomes(server, *urls) == ["refused_address"] * 5
    assert server.visits == []


def test_a_name_that_is_not_found_is_told_from_one_that_is_late(server, monkeypatch):
    asked = []

    def look_up(host, port):
        asked.append(host)
        raise socket.gaierror(socket.EAI_AGAIN if "late" in host else socket.EAI_NONAME, "no")

    monkeypatch.setattr(hosts_module, "look_up", look_up)

    assert outcomes(server, "http://gone.example/", "http://late.example/") == ["dns", "dns"]
    assert sorted(asked) == ["gone.example", "late.example", "late.example"]


def test_a_port_where_nobody_listens_and_a_server_without_tls_are_told_apart(server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
        hosts = Hosts(allowed=("127.0.0.1",))
        urls = [f"http://{place}/", f"https://{server.place}/"]

        found = [f.outcome for f in crawl(urls, hosts=hosts, limits=QUICK, work=bytes)]

    assert found == ["connect", "tls"]


@pytest.mark.parametrize(
    ("headers", "outcome"),
    [
        ({"X_Robots_Tag": "noai"}, "opted_out"),
        ({"X_Robots_Tag": "nofollow, NoImageAI"}, "opted_out"),
        ({"X_Robots_Tag": "noindex"}, "opted_out"),
        ({"X_Robots_Tag": "none"}, "opted_out"),
        ({"X_Robots_Tag": "max-snippet: 5, noimageindex"}, "opted_out"),
        ({"X_Robots_Tag": "datakit: noai"}, "opted_out"),
        ({"X_Robots_Tag": "otherbot: noindex, datakit: noai"}, "opted_out"),
        ({"X_Robots_Tag": "noarchive\r\nX-Robots-Tag: noai"}, "opted_out"),
        ({"tdm_reservation": "1"}, "opted_out"),
        ({"X_Robots_Tag": "otherbot: noai, noindex"}, "ok"),
        ({"X_Robots_Tag": "nofollow, noarchive"}, "ok"),
        ({"X_Robots_Tag": "unavailable_after: 25 Jun 2010 15:00:00 PST"}, "ok"),
        ({"tdm_reservation": "0"}, "ok"),
    ],
)
def test_who_opted_out_is_left_out(server, headers, outcome):
    url = server.at("/x", reply(b"picture", **headers))

    assert outcomes(server, url) == [outcome]


def test_the_reason_of_a_bad_image_is_the_outcome(server):
    def work(body):
        raise BadImage(body.decode(), "so it is")

    urls = [server.at("/a", reply(b"truncated")), server.at("/b", reply(b"pixels"))]

    found = fetch(server, *urls, work=work)

    assert [(f.outcome, f.status, f.size_bytes) for f in found] == [("truncated", 200, 9), ("pixels", 200, 6)]


def test_another_exception_of_the_work_comes_out_in_its_turn(server):
    def work(body):
        if body == b"1":
            raise ZeroDivisionError("a bug")
        return body

    urls = [server.at(f"/{n}", reply(str(n).encode())) for n in range(3)]
    results = crawl(urls, hosts=Hosts(allowed=(server.place,)), limits=QUICK, work=work)

    first = next(results)

    assert first.value == b"0"
    with pytest.raises(ZeroDivisionError, match="a bug"):
        next(results)
    assert crawl_threads() == []


def test_an_exception_of_the_urls_comes_out_too(server):
    def urls():
        yield server.at("/x", reply(b"x"))
        raise KeyError("no more")

    results = crawl(urls(), hosts=Hosts(allowed=(server.place,)), limits=QUICK, work=bytes)

    with pytest.raises(KeyError, match="no more"):
        list(results)
    assert crawl_threads() == []


def test_closing_early_stops_everything(server):
    def half(visit):
        visit.head(Content_Length=10)
        visit.send(b"half")
        visit.hang()

    urls = [server.at("/first", reply(b"x")), *[server.at(f"/{n}", half) for n in range(20)]]
    hosts = Hosts(allowed=(server.place,))
    results = crawl(urls, hosts=hosts, limits=Limits(window=(1, 4)), work=bytes)

    first = next(results)
    results.close()
    gc.collect()

    assert first.outcome == "ok"
    assert crawl_threads() == []


def crawl_threads():
    return [t.name for t in threading.enumerate() if t.name in ("crawl", "crawl-work")]


def test_a_host_that_keeps_failing_is_left_alone_and_others_go_on(server):
    dead = f"127.0.0.1:{server.door(lambda connection, closing: connection.close())}"
    urls = [f"http://{dead}/{n}" for n in range(100)]
    urls[50:50] = [server.at("/good", reply(b"picture"))]
    limits = Limits(per_host=1, retries=0)
    hosts = Hosts(allowed=(server.place, dead))

    found = [f.outcome for f in crawl(urls, hosts=hosts, limits=limits, work=bytes)]

    assert found[50] == "ok"
    assert found.count("reset") == pacing.BREAK_AFTER
    assert found.count("host_down") == 90


def test_a_slow_host_doesn_t_hold_up_the_others(server):
    free = threading.Event()

    def slow(visit):
        free.wait()
        reply(b"slow")(visit)

    def last(visit):
        free.set()
        reply(b"last")(visit)

    slow_urls = [f"http://localhost:{server.port}/slow" for _ in range(20)]
    server.at("/slow", slow)
    urls = [*slow_urls, server.at("/last", last)]
    limits = Limits(window=(3, 3), per_host=2)
    hosts = Hosts(allowed=(server.place, f"localhost:{server.port}"))

    found = [f.value for f in crawl(urls, hosts=hosts, limits=limits, work=bytes)]

    assert found == [b"slow"] * 20 + [b"last"]


def test_a_name_is_looked_up_once_for_many_urls(server, monkeypatch):
    asked = []
    look_up = hosts_module.look_up
    monkeypatch.setattr(hosts_module, "look_up", lambda host, port: asked.append(host) or look_up(host, port))
    server.at("/a", reply(b"picture"))
    urls = [f"http://localhost:{server.port}/a?{n}" for n in range(30)]

    found = [f.outcome for f in crawl(urls, hosts=Hosts(allowed=("localhost",)), limits=QUICK, work=bytes)]

    assert found == ["ok"] * 30
    assert asked == ["localhost"]


def test_a_host_that_asks_for_patience_isn_t_asked_by_other_urls_meanwhile(server):
    server.at("/busy", in_turn(reply(b"", 429, Retry_After="1"), reply(b"ok")))
    urls = [f"http://{server.place}/busy?{n}" for n in range(3)]
    limits = Limits(per_host=1)

    found = [f.outcome for f in crawl(urls, hosts=Hosts(allowed=(server.place,)), limits=limits, work=bytes)]

    assert found == ["ok"] * 3
    assert len(server.visits) == 4


def without_handles(monkeypatch, times, also=lambda job: None):
    """Refuses the first requests as the system does when it has no file handles left."""
    ask, left = asking.Asker._ask, [times]

    def refused(self, job, *args, **kwargs):
        also(job)
        left[0] -= 1
        if left[0] < 0:
            return ask(self, job, *args, **kwargs)
        raise asking.NoHandles

    monkeypatch.setattr(asking.Asker, "_ask", refused)


def test_without_file_handles_the_crawl_waits_and_then_says_so(server, monkeypatch):
    url = server.at("/a", reply(b"picture"))
    without_handles(monkeypatch, 10**9)

    with pytest.raises(DownloadError, match="ulimit -n"):
        fetch(server, url, limits=Limits(per_host_per_s=1e9))


def test_to_wait_for_file_handles_costs_a_url_nothing_and_says_nothing_about_its_host(server, monkeypatch):
    left, said = [], []
    url = server.at("/a", reply(b"picture"))
    without_handles(monkeypatch, asking.HANDLE_TRIES - 1, also=lambda job: left.append(job.left_s))
    monkeypatch.setattr(pacing.Host, "report_outcome", lambda self, outcome, now: said.append(outcome))

    found = outcomes(server, url, limits=Limits(per_host_per_s=1e9, total_s=10))

    assert found == ["ok"]
    assert left == [10] * asking.HANDLE_TRIES
    assert said == ["ok"]


class StoppedLoop(asyncio.SelectorEventLoop):
    """A loop whose time leaps, as it does for a process that gets no processor for so long."""

    leap_s = 0.0
    leaps_after = 0.0  # a timer of so many seconds is set, as if the process was stopped right then
    leaps = 0

    def time(self):
        return super().time() + self.leap_s

    def call_later(self, delay, *args, **kwargs):
        timer = super().call_later(delay, *args, **kwargs)
        if self.leaps and delay == self.leaps_after:
            self.leaps -= 1
            self.leap_s += 1000
        return timer

    def leap(self):
        """From another thread."""
        self.leap_s += 1000
        self.call_soon_threadsafe(lambda: None)


@pytest.fixture
def loop(monkeypatch):
    """The loop of the next crawl."""
    loop = StoppedLoop()
    monkeypatch.setattr(crawl_module, "_new_loop", lambda: loop)
    yield loop
    loop.close()


def stopped_in(loop):
    """An answer that doesn't come before the client's process has been stopped for long."""

    def answer(visit):
        loop.leap()
        visit.hang()

    return answer


def test_a_url_whose_time_ran_out_while_we_were_stopped_is_asked_for_again(server, loop):
    url = server.at("/a", in_turn(stopped_in(loop), reply(b"picture")))

    (fetched,) = fetch(server, url, limits=Limits(retries=0))

    assert (fetched.outcome, fetched.value) == ("ok", b"picture")
    assert server.paths() == ["/a", "/a"]


def test_a_silence_that_we_were_too_late_to_hear_the_end_of_is_asked_for_again(server, loop):
    loop.leaps_after, loop.leaps = 77, 1
    url = server.at("/a", in_turn(lambda visit: visit.hang(), reply(b"picture")))

    assert outcomes(server, url, limits=Limits(retries=0, read_s=77, total_s=1e6)) == ["ok"]
    assert server.paths() == ["/a", "/a"]


def test_a_connection_that_wasn_t_made_while_we_were_stopped_is_tried_again(server, loop):
    visitors = []

    def greet(connection, closing):
        visitors.append(connection)
        if len(visitors) == 1:
            loop.leap()
            closing.wait()

    place = f"127.0.0.1:{server.door(greet)}"
    urls, limits = [f"https://{place}/"], Limits(retries=0, total_s=1e6)

    found = [f.outcome for f in crawl(urls, hosts=Hosts(allowed=(place,)), limits=limits, work=bytes)]

    assert found[0] in ("reset", "tls")  # the second time it hangs up
    assert len(visitors) == 2


def test_a_url_is_asked_for_again_once_and_its_host_isn_t_blamed(server, loop, monkeypatch):
    monkeypatch.setattr(pacing, "BREAK_AFTER", 1)
    urls = [server.at(f"/{n}", stopped_in(loop)) for n in range(3)]

    found = outcomes(server, *urls, limits=Limits(retries=0, per_host=1))

    assert all(outcome.startswith("timeout_") for outcome in found)  # and none is host_down
    assert server.paths() == ["/0", "/0", "/1", "/1", "/2", "/2"]


@pytest.mark.parametrize("url", [None, 7])
def test_a_url_that_is_no_text_stops_the_crawl_with_an_error_instead_of_for_ever(server, url):
    good = server.at("/a", reply(b"picture"))

    with pytest.raises((AttributeError, TypeError)):
        fetch(server, good, url, good)


def test_a_fault_in_a_callback_of_the_loop_comes_out(server, monkeypatch):
    def broken(self, *args, **kwargs):
        raise RuntimeError("a bug")

    url = server.at("/a", reply(b"picture"))
    monkeypatch.setattr(pacing.Window, "tick", broken)
    server.at("/a", lambda visit: visit.hang())

    with pytest.raises(RuntimeError, match="a bug"):
        fetch(server, url)
