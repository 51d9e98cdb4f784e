"""A crawl that is killed, with kill -9 and for real, loses nothing and ends with the same bytes."""

from __future__ import annotations

import os
import random
import signal
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from forks import Forked, Forks
from users import everything, settings, typed

from datakit.miniature import Answer, Miniature, Request
from datakit.stages.fetch import Fetch
from datakit.web import asking

CRAWL = "fetch coyo --shards 1-2"  # their faults answer at once
ROWS_PER_PART = 5

# Writes as many bytes of pictures' tars and tables as it is told, the last of them half a piece, and is killed.
DRIVER = """
import os, signal
from datakit.cli import main
from datakit.stages.fetch import Fetch
from datakit.storage.store import Sink
from datakit.web import asking
write, left = Sink.write, int(os.environ["KILL_AFTER_BYTES"])
def write_some(self, data):
    global left
    if "coyo/fetch" in str(self._name):
        left -= memoryview(data).nbytes
        if left < 0:
            write(self, bytes(data)[: len(data) // 2])
            self._raw.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    return write(self, data)
Sink.write = write_some
Fetch.rows_per_part = int(os.environ["ROWS_PER_PART"])
asking.BACKOFF_S = 0.0
main()
"""


def made(root: Path) -> dict[str, bytes]:
    """What a crawl makes, without its log of times and without downloads that were begun."""
    endings = (".log.parquet", ".part", ".part.json")
    return {name: data for name, data in everything(root).items() if not name.endswith(endings)}


def keys_of(root: Path) -> set[str]:
    """The keys of the samples in the tars; every tar is read to its end mark."""
    found = set()
    for path in root.rglob("*.tar"):
        if not path.name.startswith("."):
            with tarfile.open(path) as tar:
                found.update(name.partition(".")[0] for name in tar.getnames())
            assert path.read_bytes().endswith(bytes(1024)), path  # the end mark: tarfile can do without
    return found


def column(root: Path, step: str) -> list[dict]:
    """The pictures that the tables of a step name."""
    tables = [p for p in sorted((root / "coyo" / step).glob("*.parquet")) if not p.name.endswith(".log.parquet")]
    return [image for table in tables for row in pq.read_table(table)["images"].to_pylist() for image in row]


@pytest.fixture(scope="module")
def upstreams():
    with Miniature(rows=10, coyo_rows=120) as miniature:
        yield miniature


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(Fetch, "rows_per_part", ROWS_PER_PART)
    monkeypatch.setattr(asking, "BACKOFF_S", 0.0)


@pytest.fixture(scope="module")
def whole(upstreams, tmp_path_factory):
    """A crawl that nobody disturbed: its root."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fetch, "rows_per_part", ROWS_PER_PART)
        patch.setattr(asking, "BACKOFF_S", 0.0)
        assert typed(CRAWL, settings(upstreams, root)).code == 0
    assert len(list((root / "coyo/fetch").glob("*.tar"))) > 8
    return root


def begin(forks: Forks, env: dict[str, str], kill_after_bytes: int) -> Forked:
    env = {**os.environ, **env, "KILL_AFTER_BYTES": str(kill_after_bytes), "ROWS_PER_PART": str(ROWS_PER_PART)}
    return forks.start(DRIVER, *CRAWL.split(), env=env)


def check_resumed(root: Path, env: dict[str, str], whole: Path) -> None:
    """What a killed crawl left is whole, and the next one ends as if nothing had been."""
    assert keys_of(root) <= keys_of(whole)

    resumed = typed(CRAWL, env)

    assert resumed.code == 0, resumed.err
    assert keys_of(root) == keys_of(whole)
    listed = {image["ref"] for image in column(root, "top20")}
    assert {image["ref"] for image in column(root, "fetch") if image["outcome"]} == listed
    assert made(root) == made(whole)


@pytest.mark.parametrize("nth", range(10))
def test_a_crawl_killed_while_it_writes_is_resumed_without_loss(upstreams, whole, tmp_path, forks, nth):
    env = settings(upstreams, tmp_path)
    written = sum(path.stat().st_size for path in (whole / "coyo/fetch").iterdir())
    moment = random.Random(f"bytes {nth}").randrange(int(written * 0.9))

    crawl = begin(forks, env, moment)
    _, said = crawl.communicate(timeout=100)

    assert crawl.returncode == -signal.SIGKILL, said
    check_resumed(tmp_path, env, whole)


@pytest.mark.parametrize("nth", range(10))
def test_a_crawl_killed_while_it_asks_is_resumed_without_loss(upstreams, whole, tmp_path, forks, nth):
    env = settings(upstreams, tmp_path)
    asked_for = [image["ref"] for image in column(whole, "fetch") if image["outcome"] == "ok"]
    url = random.Random(f"requests {nth}").choice(asked_for)
    usual = upstreams.answer(url)
    crawls: list[Forked] = []

    def kill(asked: Request) -> Answer:
        crawls[0].kill()
        return usual

    upstreams.replace(url, kill, times=1)
    crawls.append(begin(forks, env, 1 << 40))
    _, said = crawls[0].communicate(timeout=100)

    assert crawls[0].returncode == -signal.SIGKILL, said
    check_resumed(tmp_path, env, whole)
