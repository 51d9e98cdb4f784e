"""Forecast: what fetching a dataset will give and cost, from a sample of its URLs, before anyone spends days.

The sample is drawn at random from the rows that the recipe has chosen, and goes through the same crawl, limits and
codecs as `datakit fetch`; nothing of it is kept. Shares have Wilson's interval, means the normal one, both of 95 %;
what the cores or a busy host permit is one figure without an interval.
What a small sample can't show: that a network gets slower under the load of days, and other shards' rot.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from datakit.engine.build import Build
from datakit.engine.done import Done
from datakit.engine.making import committed_rows
from datakit.engine.runner import execute
from datakit.engine.work import Progress
from datakit.errors import Incomplete, UsageError
from datakit.records.tables import Rows, refs_of
from datakit.storage.shards import shard_name
from datakit.storage.store import free_bytes

Z = 1.96  # standard deviations of a 95 % interval
LEAST_OF_A_HOST = 5  # URLs of one host in the sample; with fewer its share means nothing


@dataclass(frozen=True)
class Range:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def times(self, n: float) -> Range:
        return Range(self.value * n, self.low * n, self.high * n)


def share(n: int, of: int) -> Range:
    """Wilson's score interval of a share (Wilson, 1927), which holds for small samples and rare outcomes too."""
    if of == 0:
        return Range(0.0, 0.0, 1.0)
    p, spread = n / of, Z * Z / of
    middle = (p + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(p * (1 - p) / of + spread / (4 * of))
    return Range(p, max(0.0, middle - half), min(1.0, middle + half))


def mean(values: list[float]) -> Range:
    """The mean with its normal interval."""
    if not values:
        return Range(0.0, 0.0, 0.0)
    found = float(np.mean(values))
    half = Z * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else found
    return Range(found, max(0.0, found - half), found + half)


@dataclass
class Forecast:
    """What a sample of URLs predicts for the whole dataset."""

    shards: list[int]  # that the sample was drawn from
    n_shards: int  # of the whole dataset
    sampled: int  # URLs
    all_rows: bool  # whether the sample is all there is in these shards
    urls: float  # of the whole dataset, extrapolated from these shards
    spent_s: float
    outcomes: Counter[str] = field(default_factory=Counter)
    ok: Range = Range(0, 0, 1)
    bytes_each: Range = Range(0, 0, 0)  # of a stored picture
    url_s: Range = Range(0, 0, 0)  # from the request to the picture, per URL
    cpu_s: float = 0.0  # per URL
    per_s: Range = Range(0, 0, 0)  # URLs, on this machine with its jobs
    held_by: str = ""
    free_bytes: int | None = None

    @property
    def pictures(self) -> Range:
        return self.ok.times(self.urls)

    @property
    def disk_bytes(self) -> Range:
        """Bytes that fetch writes; pack writes as much again, until `datakit clean`."""
        low, high = self.ok.low * self.bytes_each.low, self.ok.high * self.bytes_each.high
        return Range(self.ok.value * self.bytes_each.value, low, high).times(self.urls)

    @property
    def seconds(self) -> Range:
        if not self.per_s.value:
            return Range(0, 0, 0)
        return Range(*(self.urls / per_s for per_s in (self.per_s.value, self.per_s.high, self.per_s.low)))

    @property
    def fits(self) -> bool | None:
        """Whether there is room for what is fetched and packed; None where that isn't known, as in a bucket."""
        return None if self.free_bytes is None else self.free_bytes >= 2 * self.disk_bytes.value

    def json_object(self) -> dict[str, Any]:
        def value_and_bounds(interval: Range) -> list[float]:
            return [round(interval.value, 4), round(interval.low, 4), round(interval.high, 4)]

        return {
            "shards": self.shards,
            "of_shards": self.n_shards,
            "sampled_urls": self.sampled,
            "urls": round(self.urls),
            "outcomes": dict(self.outcomes.most_common()),
            "ok_share": value_and_bounds(self.ok),
            "pictures": value_and_bounds(self.pictures),
            "disk_bytes": value_and_bounds(self.disk_bytes),
            "free_bytes": self.free_bytes,
            "urls_per_s": value_and_bounds(self.per_s),
            "seconds": value_and_bounds(self.seconds),
            "held_up_by": self.held_by,
            "sample_seconds": round(self.spent_s, 1),
        }


def forecast(
    build: Build,
    *,
    sample: int,
    jobs: int,
    shards: list[int] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Forecast:
    """Tries `sample` URLs of a dataset. If no shard is listed and chosen yet, makes one first, and keeps it.

    Raises UsageError for a dataset whose pictures don't come by URL.
    """
    progress = progress or Progress()
    fetch = build.step_of("fetch")
    chosen = build.step_before(fetch)
    if not fetch.stage.by_url or chosen is None:
        raise UsageError(f"the pictures of {build.manifest.name!r} don't come by URL")
    done = Done(build)
    ledger = done.ledger(chosen)
    if shards is None:
        shards = [k for k in sorted(ledger.commits()) if done.has(chosen, k)] or [0]
    execute(build, upto=chosen, shards=shards, jobs=jobs, progress=progress)
    tables = []
    for shard in shards:
        commit = ledger.read(shard_name(shard))
        if commit is None:
            raise Incomplete(f"shard {shard} of {build.manifest.name!r} was removed meanwhile")
        tables.append(committed_rows(build, chosen, shard, commit.parts))
    rows = sum(len(table) for table in tables)
    if rows == 0:
        raise Incomplete(f"shards {shards} of {build.manifest.name!r} hold no rows to try: name others with --shards")
    urls = _sample_urls(tables, min(sample, rows), seed)
    n_shards = max(len(done.known_shards()), len(shards))
    whole = len(urls) / min(sample, rows) * rows / len(shards) * n_shards
    found = Forecast(
        shards=shards, n_shards=n_shards, sampled=len(urls), all_rows=sample >= rows, urls=whole, spent_s=0.0
    )
    progress.rows_to_come(fetch.name, len(urls))
    seconds, sizes = [], []
    began, cpu = time.perf_counter(), time.process_time()
    for got in fetch.stage.crawl_urls(urls, build.work(fetch, progress)):
        found.outcomes[got.outcome] += 1
        seconds.append(got.ms / 1000)
        if got.value is not None:
            sizes.append(float(len(got.value.data)))
        progress.rows(fetch.name, 1)
        if got.outcome != "ok":
            progress.faults(fetch.name, got.outcome, 1)
    found.spent_s = time.perf_counter() - began
    found.cpu_s = (time.process_time() - cpu) / len(urls)
    found.ok = share(found.outcomes["ok"], len(urls))
    found.bytes_each, found.url_s = mean(sizes), mean(seconds)
    _pace(found, build, urls, jobs)
    if build.store.local:
        found.free_bytes = free_bytes(build.store.path(""))
    return found


def _sample_urls(tables: list[Rows], n: int, seed: int) -> list[str]:
    """The URLs of `n` rows of the tables, drawn without replacement."""
    rows = sum(len(table) for table in tables)
    picked = np.sort(np.random.default_rng(seed).choice(rows, size=n, replace=False))
    urls: list[str] = []
    at = 0
    for table in tables:
        for batch in table.batches(["images"]):
            first, last = np.searchsorted(picked, [at, at + batch.num_rows])
            urls += refs_of(batch.take(picked[first:last] - at))
            at += batch.num_rows
    return urls


def _pace(found: Forecast, build: Build, urls: list[str], jobs: int) -> None:
    """Sets how many URLs a second all jobs try: the least of what cores, the window and the busiest host permit."""
    limits, cores = build.limits, os.cpu_count() or 1

    def by_window(url_s: float) -> float:
        return jobs * limits.window[1] / url_s if url_s else math.inf

    caps = {"the cores": min(cores, 2 * jobs) / found.cpu_s if found.cpu_s else math.inf}
    hosts = Counter(urlsplit(url).netloc for url in urls)
    ((busiest, n),) = hosts.most_common(1)
    if n >= LEAST_OF_A_HOST:
        caps[f"{busiest}, which has {n / len(urls):.0%} of the URLs,"] = jobs * limits.per_host_per_s * len(urls) / n
    window = f"the {limits.window[1]} URLs that each process has in flight"
    found.held_by = min([*caps, window], key=lambda cap: caps.get(cap, by_window(found.url_s.value)))
    low, value, high = (
        min([*caps.values(), by_window(url_s)]) for url_s in (found.url_s.high, found.url_s.value, found.url_s.low)
    )
    found.per_s = Range(value, low, high) if math.isfinite(value) else Range(0, 0, 0)
