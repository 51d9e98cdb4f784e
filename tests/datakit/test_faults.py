"""The crawl against servers, resolvers and certificates that misbehave in every way that has a name here."""

from __future__ import annotations

import ipaddress
import re
import resource
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from fault_table import FAULTS, LIMITS
from faults import OK, PICTURE, PUBLIC, SIZED, Fault, Web, moved, nobody, picture
from unruly import Visit, reply, unruly_server

from datakit import images
from datakit.web import asking
from datakit.web import hosts as hosts_module
from datakit.web.crawl import Fetched, crawl
from datakit.web.hosts import Hosts
from datakit.web.pacing import Limits

WATCHDOG_S = 120  # nobody waits longer for a crawl that doesn't end; what ends too late has another outcome
PATIENT = replace(LIMITS, connect_s=6, read_s=6, total_s=12)  # for 300 URLs of one server that shares our two cores


@pytest.fixture
def web(monkeypatch, tmp_path):
    """An internet where names, certificates and one public address are the test's own."""
    closed = [block for block in hosts_module._CLOSED_V4 if not block.is_loopback]
    loopback = ipaddress.ip_network("127.0.0.0/8")
    closed += loopback.address_exclude(ipaddress.ip_network(PUBLIC))
    monkeypatch.setattr(hosts_module, "_CLOSED_V4", tuple(closed))
    monkeypatch.setattr(asking, "BACKOFF_S", 0.0)
    with unruly_server() as unruly:
        made = Web(unruly, tmp_path)
        monkeypatch.setattr(hosts_module, "look_up", made.look_up)
        yield made
    hosts_module.tls.cache_clear()


def crawled(
    web: Web,
    urls: list[str],
    monkeypatch: pytest.MonkeyPatch,
    limits: Limits = LIMITS,
    work: Callable[[bytes], images.Picture] = images.normalise,
) -> list[Fetched[images.Picture]]:
    """What came of each URL; fails when the crawl doesn't end."""
    monkeypatch.setenv("SSL_CERT_FILE", str(web.authorities()))
    hosts_module.tls.cache_clear()
    hosts = Hosts(allowed=tuple(web.allowed))
    found: list[Fetched[images.Picture]] = []

    def consume() -> None:
        found.extend(crawl(urls, hosts=hosts, limits=limits, work=work))

    consumer = threading.Thread(target=consume, daemon=True)
    consumer.start()
    consumer.join(WATCHDOG_S)
    assert not consumer.is_alive(), "the crawl doesn't end"
    return found


@pytest.fixture
def late(monkeypatch):
    """The outcomes that this machine was too busy for, and that were asked for again: none where it is quiet."""
    found = []
    missed = asking.Asker._deadline_outcome

    def noted(*args):
        stop = missed(*args)
        if stop.ours:
            found.append(stop.outcome)
        return stop

    monkeypatch.setattr(asking.Asker, "_deadline_outcome", noted)
    return found


def due(fault: Fault, late: list[str]) -> frozenset[str]:
    """The outcomes that a fault is to have; a busy machine may look only when both deadlines have passed."""
    both = "timeout_read" in fault.outcomes and late
    return fault.outcomes | {"timeout_total"} if both else fault.outcomes


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_has_its_outcome_and_harms_no_neighbour(web, monkeypatch, late, name):
    fault = FAULTS[name]
    urls = [web.good(0), web.stand(name, fault), web.good(1)]

    before, got, after = crawled(web, urls, monkeypatch)

    assert got.outcome in due(fault, late)
    assert (got.value is None) == (got.outcome != "ok")
    assert fault.asks is None or fault.asks <= web.requests(name) <= fault.asks + len(late)
    assert [before.outcome, after.outcome] == ["ok", "ok"]
    assert [before.value.data, after.value.data] == [picture(0), picture(1)]


def test_all_faults_at_once_leave_200_sound_pictures_alone(web, monkeypatch, late):
    names = list(FAULTS)
    numbers = range(max(200, len(names)))
    urls = [
        url for n in numbers for url in (web.good(n), *(web.stand(name, FAULTS[name]) for name in names[n : n + 1]))
    ]
    before = peak_bytes()

    found = crawled(web, urls, monkeypatch, PATIENT)

    assert [f.url for f in found] == urls
    sound = [f for f in found if re.search(r"/good-\d+[.]jpg", f.url)]
    assert {f.outcome for f in sound} == {"ok"}
    assert [f.value.data for f in sound] == [picture(n) for n in numbers]
    others = [f.outcome for f in found if f not in sound]
    assert {name: got for name, got in zip(names, others, strict=True) if got not in due(FAULTS[name], late)} == {}
    assert peak_bytes() - before < 300 << 20  # one bomb alone would be three times as much


def test_an_answer_too_many_is_not_taken_for_that_of_the_next_request(web, monkeypatch):
    taken, said = threading.Event(), threading.Event()

    def work(body: bytes) -> images.Picture:
        taken.set()
        return images.normalise(body)

    def two_answers(visit: Visit) -> None:
        visit.send(SIZED + PICTURE)
        taken.wait(10)  # its connection is idle now
        visit.send(OK + b"Content-Length: %d\r\n\r\n" % len(picture(9)) + picture(9))
        said.set()
        visit.socket.recv(65536)

    def to_the_same_host(visit: Visit) -> None:
        said.wait(10)
        moved(f"http://shared.example:{web.unruly.port}/own.jpg")(visit)

    web.unruly.at("/own.jpg", reply(picture(5)))
    shared = web.stand("shared", Fault(outcomes=frozenset(), answer=lambda: two_answers))
    other = web.stand("other", Fault(outcomes=frozenset(), answer=lambda: to_the_same_host))

    first, second = crawled(web, [shared, other], monkeypatch, work=work)

    assert (first.outcome, first.value.data) == ("ok", PICTURE)
    assert (second.outcome, second.value.data) == ("ok", picture(5))


def test_a_connection_with_too_many_bytes_over_tls_is_left_at_once(web, monkeypatch):
    left = threading.Event()

    def flood(visit: Visit) -> None:
        visit.send(OK + b"\r\n")
        try:
            visit.flood()
        finally:
            left.set()

    def answer_then(visit: Visit) -> None:
        left.wait(10)
        reply(PICTURE)(visit)

    flooding = web.stand("flooding", Fault(outcomes=frozenset(), answer=lambda: flood, certificate="@"))
    patient = web.stand("patient", Fault(outcomes=frozenset(), answer=lambda: answer_then))

    found = crawled(web, [flooding, patient], monkeypatch)

    assert [f.outcome for f in found] == ["too_large", "ok"]


def test_a_host_that_keeps_failing_is_not_asked_for_ever(web, monkeypatch):
    url = web.stand("down", Fault(outcomes=frozenset(), port=nobody))
    urls = [f"{url}?{n}" for n in range(40)]

    found = crawled(web, [*urls, web.good(0)], monkeypatch, replace(LIMITS, per_host=1, retries=0))

    assert {f.outcome for f in found[:40]} == {"connect", "host_down"}
    assert found[39].outcome == "host_down"
    assert found[40].outcome == "ok"


def peak_bytes() -> int:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
