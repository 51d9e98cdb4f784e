"""The spool: values that wait on disk for their turn."""

import random
import threading
from dataclasses import dataclass

import pytest
from unruly import reply, unruly_server

from datakit.errors import StorageError
from datakit.web import spool as spool_module
from datakit.web.crawl import Limits, crawl
from datakit.web.hosts import Hosts
from datakit.web.spool import Spool


@dataclass(frozen=True, slots=True)
class Value:
    data: bytes


def test_values_come_back_in_any_order_and_no_file_can_be_seen(tmp_path):
    spool = Spool(tmp_path, 1 << 30)
    values = [Value(bytes([n % 256]) * (n * 37)) for n in range(200)]

    kept = [spool.put(value) for value in values]
    order = random.Random(0).sample(range(200), 200)

    assert {n: spool.take(kept[n]) for n in order} == dict(enumerate(values))
    assert spool.used == 0
    assert not list(tmp_path.iterdir())
    spool.close()


def test_the_disk_is_given_back_when_all_of_a_file_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 1000)
    spool = Spool(tmp_path, 1 << 30)
    kept = [spool.put(b"x" * 500) for _ in range(10)]
    files = {one.segment.file for one in kept}

    for one in kept[:9]:
        spool.take(one)

    assert len(files) > 3
    assert sum(file.closed for file in files) >= len(files) - 1
    spool.close()
    assert all(file.closed for file in files)


def test_a_spool_says_when_it_is_full(tmp_path):
    spool = Spool(tmp_path, 100)

    assert not spool.full
    kept = spool.put(b"x" * 200)
    assert spool.full
    spool.take(kept)
    assert not spool.full
    spool.close()


def test_a_folder_that_can_t_be_used_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    spool = Spool(tmp_path / "file", 100)

    with pytest.raises(StorageError, match="file"):
        spool.put(b"x")


def test_pictures_that_come_long_before_their_turn_don_t_stay_in_memory(tmp_path, monkeypatch):
    bodies = [bytes([n]) * 10_000 for n in range(60)]
    others = threading.Semaphore(0)
    spooled = []
    put = Spool.put
    monkeypatch.setattr(Spool, "put", lambda self, value: spooled.append(value) or put(self, value))

    def late(visit):
        for _ in bodies[1:]:
            others.acquire()
        reply(bodies[0])(visit)

    def work(body):
        others.release()
        return body

    with unruly_server() as server:
        urls = [server.at(f"/{n}", reply(body)) for n, body in enumerate(bodies)]
        server.at("/0", late)
        limits = Limits(window=(60, 60), per_host=60, bytes_ahead=100_000, per_host_per_s=1e6)
        hosts = Hosts(allowed=(server.place,))

        found = [f.value for f in crawl(urls, hosts=hosts, limits=limits, work=work, scratch=tmp_path)]

    assert found == bodies
    assert len(spooled) > 40
