"""Memory of a crawl that goes on and on: one process, shard after shard of the web-like URLs of webserver.py.

    python benchmarks/soak.py [--minutes 10] [--json FILE]

It is the real fetch step, with tars, tables and commits, into a folder that is emptied after each shard. What a crawl
holds rises and falls with each shard, so the highest of each half minute counts: memory is flat when the median of them
in the last third is no more than 5 %, and no more than 20 MB, above that of the second third.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import webserver
from crawl import build_of, machine_text
from webserver import Web

from datakit.engine.runner import execute
from datakit.engine.work import Progress
from datakit.process import memory

EVERY_S = 5
SHARE, MB = 0.05, 20  # what memory may grow by


@dataclass(frozen=True)
class Sample:
    """What the process holds at one moment."""

    s: float
    rss_mb: float
    urls: int  # so far
    tasks: int
    threads: int
    files: int


class TimeUp(Exception):
    """The soak has lasted long enough."""


@dataclass
class Watch(Progress):
    """Counts the rows of the fetch step, and takes a sample every few seconds in a thread of its own."""

    end_s: float
    urls: int = 0
    samples: list[Sample] = field(default_factory=list)
    _began: float = field(default_factory=time.perf_counter)
    _ended: threading.Event = field(default_factory=threading.Event)

    def rows(self, step: str, n: int) -> None:
        if step == "fetch":
            self.urls += n
        if time.perf_counter() - self._began > self.end_s:
            raise TimeUp

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(EVERY_S):
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            self.samples.append(
                Sample(
                    s=round(time.perf_counter() - self._began, 1),
                    rss_mb=round(int(status["VmRSS"].split()[0]) / 1024, 1),
                    urls=self.urls,
                    tasks=sum(isinstance(thing, asyncio.Task) for thing in gc.get_objects()),
                    threads=int(status["Threads"]),
                    files=len(list(Path("/proc/self/fd").iterdir())),
                )
            )


def soak(web: Web, scratch: Path, watch: Watch, urls_per_shard: int) -> int:
    """Crawls until the time is up; returns the number of shards that were made."""
    shard = 0
    try:
        while True:
            root = scratch / str(shard)
            run = build_of(root, webserver.web_urls(web.port, urls_per_shard, seed=shard), {}, "web", shards=1)
            execute(run, upto=run.step_of("list"))
            execute(run, upto=run.step_of("fetch"), progress=watch)
            shutil.rmtree(root)
            shard += 1
    except TimeUp:
        return shard


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--urls", type=int, default=20_000, help="of a shard")
    args = parser.parse_args()
    print(machine_text(), flush=True)
    memory.reduce_overhead()  # as the command line does
    with (
        tempfile.TemporaryDirectory(prefix="datakit-soak-") as scratch,
        Web(webserver.pictures()) as web,
        Watch(args.minutes * 60) as watch,
    ):
        shards = soak(web, Path(scratch), watch, args.urls)
    samples = watch.samples
    if len(samples) < 18:
        parser.error(f"{args.minutes:g} minutes give {len(samples)} samples; 18 are the least")
    print(f"{'minute':>6} {'RSS MB':>7} {'URLs/s':>7} {'tasks':>6} {'threads':>8} {'files':>6}")
    before = Sample(0, 0, 0, 0, 0, 0)
    for at, sample in enumerate(samples, 1):
        if at % (60 // EVERY_S) == 0 or at == len(samples):
            rate = (sample.urls - before.urls) / (sample.s - before.s)
            print(
                f"{sample.s / 60:6.1f} {sample.rss_mb:7.0f} {rate:7.0f} {sample.tasks:6} {sample.threads:8} "
                f"{sample.files:6}"
            )
            before = sample
    per = 30 // EVERY_S
    highest = [max(sample.rss_mb for sample in samples[at : at + per]) for at in range(0, len(samples), per)]
    third = len(highest) // 3
    second = statistics.median(highest[third : 2 * third])
    last = statistics.median(highest[2 * third :])
    met = last - second <= min(SHARE * second, MB)
    print(f"{watch.urls:,} URLs, {shards} whole shards; highest RSS {second:.0f} MB, then {last:.0f} MB")
    print(f"target {'met' if met else 'MISSED'}: memory grows by {SHARE:.0%} and {MB} MB at the most")
    if args.json:
        found = {
            "versions": machine_text(),
            "met": met,
            "shards": shards,
            "samples": [asdict(sample) for sample in samples],
        }
        args.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
