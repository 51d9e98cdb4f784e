"""robots.txt: asked once a host, obeyed when the user wants it."""

import pytest
from unruly import in_turn, reply, unruly_server

from datakit.web import asking, robots
from datakit.web.crawl import Limits, crawl
from datakit.web.hosts import Hosts
from datakit.web.outcomes import NoHandles, Stop

OBEYING = Limits(robots=True, total_s=5)
RULES = b"""
User-agent: *
Disallow: /private/
Allow: /private/open*
Disallow: /*.gif$

User-agent: datakit
Disallow: /not-for-datakit/
Disallow: /private/
Allow: /private/open

User-agent: other
Disallow: /
"""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(asking, "BACKOFF_S", 0.0)
    with unruly_server() as unruly:
        yield unruly


def outcomes(server, *paths, limits=OBEYING):
    urls = [server.at(path, reply(b"picture")) for path in paths]
    return [f.outcome for f in crawl(urls, hosts=Hosts(allowed=(server.place,)), limits=limits, work=bytes)]


def test_what_robots_txt_forbids_is_not_asked_for(server):
    server.at("/robots.txt", reply(RULES))

    found = outcomes(server, "/a", "/not-for-datakit/a", "/private/a", "/private/open/a")

    assert found == ["ok", "robots", "robots", "ok"]
    assert sorted(server.paths()) == ["/a", "/private/open/a", "/robots.txt"]


def test_robots_txt_is_not_even_asked_for_without_the_option(server):
    server.at("/robots.txt", reply(b"User-agent: *\nDisallow: /"))

    assert outcomes(server, "/a", limits=Limits()) == ["ok"]
    assert server.paths() == ["/a"]


def test_robots_txt_is_asked_for_once_a_host(server):
    server.at("/robots.txt", reply(b"User-agent: *\nDisallow: /x"))

    found = outcomes(server, *(f"/{n}" for n in range(50)))

    assert found == ["ok"] * 50
    assert server.paths().count("/robots.txt") == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_host_without_robots_txt_permits_all(server, status):
    server.at("/robots.txt", reply(b"", status))

    assert outcomes(server, "/a") == ["ok"]


@pytest.mark.parametrize("status", [500, 503])
def test_a_host_whose_robots_txt_can_t_be_read_permits_nothing(server, status):
    server.at("/robots.txt", reply(b"", status))

    assert outcomes(server, "/a") == [f"http_{status}"]
    assert "/a" not in server.paths()


def test_a_redirect_of_robots_txt_is_followed_and_too_many_count_as_none(server):
    server.at("/robots.txt", reply(b"", 302, Location="/rules"))
    server.at("/rules", reply(b"User-agent: *\nDisallow: /a"))
    first = outcomes(server, "/a")
    server.at("/rules", reply(b"", 302, Location="/rules"))

    assert first == ["robots"]
    assert outcomes(server, "/a") == ["ok"]


def test_the_target_of_a_redirect_is_held_against_the_rules_of_its_host(server):
    server.at("/robots.txt", reply(b"User-agent: *\nDisallow: /secret"))
    url = server.at("/a", reply(b"", 302, Location="/secret"))

    (fetched,) = crawl([url], hosts=Hosts(allowed=(server.place,)), limits=OBEYING, work=bytes)

    assert fetched.outcome == "robots"
    assert "/secret" not in server.paths()


def test_an_endless_robots_txt_is_read_up_to_its_ceiling(server):
    def endless(visit):
        visit.head(200)
        visit.send(b"User-agent: *\nDisallow: /a\n")
        visit.flood()

    server.at("/robots.txt", endless)

    assert outcomes(server, "/a", "/b") == ["robots", "ok"]


def test_rules_that_are_no_text_permit_all(server):
    server.at("/robots.txt", reply(bytes(range(256)) * 10))

    assert outcomes(server, "/a") == ["ok"]


def test_a_host_that_breaks_off_its_robots_txt_gives_its_own_outcome(server):
    server.at("/robots.txt", lambda visit: visit.reset())

    assert outcomes(server, "/a") == ["reset"]


def test_a_host_whose_robots_txt_fails_is_not_asked_for_it_again_and_again(server):
    server.at("/robots.txt", reply(b"", 503))

    found = outcomes(server, *(f"/{n}" for n in range(60)), limits=Limits(robots=True, retries=0))

    assert set(found) == {"http_503", "host_down"}  # both of which a retry on another day tries
    assert server.paths() == ["/robots.txt"]


def test_a_host_that_is_well_again_is_asked_again(server, monkeypatch):
    monkeypatch.setattr(robots, "FAILURE_KEPT_S", -1.0)
    server.at("/robots.txt", in_turn(reply(b"", 503), reply(b"")))
    limits = Limits(robots=True, window=(1, 1))

    assert outcomes(server, "/a", "/b", limits=limits) == ["http_503", "ok"]


@pytest.mark.parametrize("fault", [NoHandles(), Stop("timeout_read", ours=True)])
def test_what_was_this_machine_s_fault_is_not_taken_for_the_host_s_answer(server, monkeypatch, fault):
    ask, faults = asking.Asker._ask, [fault]

    async def refused(self, *args, **kwargs):
        if faults:
            raise faults.pop()
        return await ask(self, *args, **kwargs)

    monkeypatch.setattr(asking.Asker, "_ask", refused)
    server.at("/robots.txt", reply(b"User-agent: *\nDisallow: /b"))

    assert outcomes(server, "/a", "/b") == ["ok", "robots"]
