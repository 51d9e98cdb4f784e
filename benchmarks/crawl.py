"""The crawl beside img2dataset, in one run, alternating: the same URLs, the same server, the same cores and disk.

    python benchmarks/crawl.py [--json FILE] [--work keep,area,linear,https,web,client,huge] [--images N] [--repeat 3]

keep    bytes as they are, into tar and Parquet; img2dataset with disable_all_reencoding
area    shorter side to 336, area filter, JPEG q95, on both sides
linear  the same with our faster recipe, against img2dataset's runs of `area`
https   the faster recipe over https, a connection for each picture
web     bytes as they are, 2,000 hosts, 50 to 2,000 ms of latency, 15 % gone, 5 % hanging; img2dataset as it comes
codecs  how many pictures the same cores shrink when nothing else is done: what `area` and `linear` could reach
client  crawl() alone: CPU of the client's process for one request, checks of address and headers included
huge    pictures of 20 megapixels, for the memory

Ours runs as users run it (steps, tars, tables and commits, flushed to the disk) in two processes over two shards; so
does img2dataset, in webdataset format. It needs its extra (pip install -e '.[img2dataset]') and runs at the best of
several thread counts, tried first in the same run, without the EXIF column that we don't make either. A rate is of
pictures that arrived. Time is that of the call, the start of its own processes included.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, get_args

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webserver
from webserver import Web

from datakit import __version__, images
from datakit.catalogue.manifest import Manifest, load
from datakit.engine.build import Build
from datakit.engine.runner import execute
from datakit.engine.stage import Role, Stage, Step
from datakit.engine.work import Out, Work
from datakit.records.tables import REFS, Rows
from datakit.stages.fetch import Fetch
from datakit.storage.store import Store
from datakit.web.crawl import crawl
from datakit.web.hosts import Hosts
from datakit.web.pacing import Limits

JOBS = 2  # processes, and shards, on either side
TIMEOUT_S = 10  # img2dataset's default
THREADS = (8, 16, 32, 64, 128)  # of img2dataset, tried first
DEFAULT_THREADS = 256
MEMORY_MB = 600
CLIENT_MS = 0.25
SCHEMA = pa.schema([("key", pa.string()), ("messages", pa.string()), ("images", REFS)])
SHRINK: dict[str, Any] = {"max_short_side_px": 336, "quality": 95}
PEER_KEEP: dict[str, Any] = {"disable_all_reencoding": True}
PEER_SHRINK: dict[str, Any] = {
    "image_size": 336, "resize_mode": "keep_ratio", "resize_only_if_bigger": True, "encode_quality": 95,
}  # fmt: skip


@dataclass(frozen=True)
class Race:
    """Runs of ours, by name, against the same runs of img2dataset."""

    ours: dict[str, dict[str, Any]]  # the fields of Fetch
    peer: dict[str, Any]
    images: int  # so many that a run of ours lasts five seconds and more
    kind: str = "http"


RACES = (
    Race({"keep": {}}, PEER_KEEP, 30_000),
    Race({"area": {**SHRINK, "resize": "area"}, "linear": {**SHRINK, "resize": "linear"}}, PEER_SHRINK, 5_000),
    Race({"https": {**SHRINK, "resize": "linear"}}, PEER_SHRINK, 3_000, "https"),
    Race({"web": {}}, PEER_KEEP, 60_000, "web"),
)
TARGETS = {"keep": 4.0, "area": 2.0, "linear": 3.0, "https": 8.0, "web": 5.0}
WORKS = (*TARGETS, "codecs", "client", "huge")


def limits(kind: str) -> Limits:
    """How ours is paced: as it comes for `web`, and without regard for the one host that all others ask."""
    ours = Limits(total_s=TIMEOUT_S, connect_s=TIMEOUT_S, read_s=TIMEOUT_S)
    return ours if kind == "web" else replace(ours, per_host=64, per_host_per_s=1e6)


@dataclass(frozen=True, kw_only=True)
class Urls(Stage):
    """A listing from files of URLs, one a shard."""

    role: ClassVar[Role] = "list"
    folder: str

    def shards(self, work: Work) -> list[int]:
        return list(range(len(list(Path(self.folder).glob("*.txt")))))

    def schema(self, rows: Rows, manifest: Manifest) -> pa.Schema:
        return SCHEMA

    def rows(self, rows: Rows, work: Work, out: Out) -> Iterator[pa.RecordBatch]:
        urls = Path(self.folder, f"{rows.shard}.txt").read_text().split()
        keys = [f"bench-{rows.shard}-{n:06d}" for n in range(len(urls))]
        refs = pa.array([[{"ref": url}] for url in urls], SCHEMA.field("images").type)
        yield pa.RecordBatch.from_arrays([pa.array(keys), pa.array(["[]"] * len(urls)), refs], schema=SCHEMA)


def build_of(root: Path, urls: list[str], fetch: dict[str, Any], kind: str, *, shards: int = JOBS) -> Build:
    """A run of ours over these URLs; they and the root are put below that folder."""
    (root / "urls").mkdir(parents=True)
    for shard in range(shards):
        (root / "urls" / f"{shard}.txt").write_text("\n".join(urls[shard::shards]))
    return Build(
        store=Store(str(root / "root")),
        manifest=load("coyo"),
        recipe="bench",
        steps=(
            Step(name="list", stage=Urls(folder=str(root / "urls"))),
            Step(name="fetch", stage=Fetch(**fetch), tolerates=1.0),
        ),
        hosts=Hosts(allowed=tuple({url.split("/")[2] for url in urls})),
        limits=limits(kind),
    )


def cpu_s() -> float:
    """Of this process, and of those of its children that have ended."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(r.ru_utime + r.ru_stime for r in found)


def fetch_shards(root: Path, urls: list[str], fetch: dict[str, Any], kind: str, answer: Any) -> None:
    """The measured process of ours."""
    run = build_of(root, urls, fetch, kind)
    execute(run, upto=run.step_of("list"))
    os.sync()
    start, cpu = time.perf_counter(), cpu_s()
    report = execute(run, upto=run.step_of("fetch"), jobs=JOBS)
    spent = time.perf_counter() - start
    ok = report.rows - sum(report.faults.values())
    answer.put({"s": spent, "cpu_s": cpu_s() - cpu, "ok": ok})


def run_in_process(target: Callable[..., None], *args: Any) -> dict[str, Any]:
    """What a function puts into its queue, called in a fresh interpreter, with the peak of its processes."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=target, args=(*args, queue))
    process.start()
    with Peaks(process.pid or 0) as peaks:
        process.join()
    if process.exitcode or queue.empty():
        raise SystemExit(f"{target.__name__} failed: see above")
    return {**queue.get(), "peak_mb": peaks.highest_mb}


PEER = """
import json, os, resource, sys, time
from img2dataset import download
def cpu_s():
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(r.ru_utime + r.ru_stime for r in found)
os.sync()
start, cpu = time.perf_counter(), cpu_s()
download(**json.loads(sys.argv[1]))
print("SPENT", time.perf_counter() - start, cpu_s() - cpu)
"""


def peer(root: Path, urls: list[str], recipe: dict[str, Any], threads: int) -> dict[str, Any]:
    """A run of img2dataset."""
    root.mkdir(parents=True)
    pq.write_table(pa.table({"url": urls}), root / "urls.parquet")
    options = {
        "url_list": str(root / "urls.parquet"),
        "input_format": "parquet",
        "output_folder": str(root / "out"),
        "output_format": "webdataset",
        "processes_count": JOBS,
        "thread_count": threads,
        "number_sample_per_shard": -(-len(urls) // JOBS),
        "timeout": TIMEOUT_S,
        "extract_exif": False,
        **recipe,
    }
    with (root / "log").open("w+") as log:
        words = [sys.executable, "-c", PEER, json.dumps(options)]
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, text=True)
        with Peaks(process.pid) as peaks:
            process.wait()
        log.seek(0)
        said = log.read()
    if "SPENT" not in said:
        raise SystemExit(f"img2dataset failed:\n{said[-2000:]}")
    spent, cpu = said.rpartition("SPENT")[2].split()[:2]
    ok = sum(json.loads(p.read_text())["successes"] for p in (root / "out").glob("*_stats.json"))
    return {"s": float(spent), "cpu_s": float(cpu), "ok": ok, "peak_mb": peaks.highest_mb}


@dataclass
class Peaks:
    """The highest resident memory of a process and those below it, while the block lasts.

    VmHWM is the kernel's own high-water mark, so looking now and then is enough.
    """

    pid: int
    highest_mb: float = 0
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Peaks:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.2):
            mine = {self.pid}
            for pid in sorted(int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()):
                try:
                    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
                except (FileNotFoundError, ProcessLookupError):  # it has ended
                    continue
                if pid in mine or int(status["PPid"]) in mine:
                    mine.add(pid)
                    self.highest_mb = max(self.highest_mb, int(status.get("VmHWM", "0").split()[0]) / 1024)


def time_requests(urls: list[str], answer: Any) -> None:
    """The measured process of `client`: nothing is done with what comes."""
    hosts = Hosts(allowed=(urls[0].split("/")[2],))
    for part in (urls[:500], urls):  # the first is a warm-up
        cpu, start = time.process_time(), time.perf_counter()
        got = crawl(part, hosts=hosts, limits=limits("http"), work=len)
        ok = sum(fetched.outcome == "ok" for fetched in got)
    cpu, spent = time.process_time() - cpu, time.perf_counter() - start
    answer.put({"ms": 1000 * cpu / len(urls), "per_s": len(urls) / spent, "ok": ok})


def time_resizing(n: int, resize: images.Resize, answer: Any) -> None:
    """The measured process of `codecs`: pictures from memory, shrunk by as many processes as a crawl has."""
    bodies = webserver.pictures()
    with multiprocessing.get_context("fork").Pool(JOBS) as pool:
        start = time.perf_counter()
        pool.map(partial(images.normalise, resize=resize, **SHRINK), (bodies[i % len(bodies)] for i in range(n)), 50)
        answer.put({"per_s": n / (time.perf_counter() - start)})


def best_threads(race: Race, scratch: Path, urls: list[str]) -> tuple[int, dict[int, float]]:
    """The thread count at which img2dataset is fastest on some of the URLs, and all that were tried."""
    rates = {}
    for threads in (THREADS[0], *THREADS):  # the first one twice, since the first run is a cold one
        found = peer(scratch / "try", urls, race.peer, threads)
        rates[threads] = found["ok"] / found["s"]
        shutil.rmtree(scratch / "try")
    return max(rates, key=lambda threads: rates[threads]), rates


def compete(race: Race, chosen: list[str], web: Web, scratch: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Ours and theirs in turn, `--repeat` times."""
    n = args.images or race.images
    urls = webserver.web_urls(web.port, n) if race.kind == "web" else web.urls(n)
    due = sum("/gone/" not in url and "/hang/" not in url for url in urls)
    threads, tried = DEFAULT_THREADS, dict[int, float]()
    if race.kind != "web" and not args.alone:
        threads, tried = best_threads(race, scratch, urls[: n // 4])
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in (*chosen, "peer")}
    for turn in range(args.repeat):
        for name in runs:
            if name == "peer" and args.alone:
                continue
            before = web.cpu_s()
            if name == "peer":
                found = peer(scratch / "peer", urls, race.peer, threads)
            else:
                found = run_in_process(fetch_shards, scratch / "ours", urls, race.ours[name], race.kind)
            shutil.rmtree(scratch / ("peer" if name == "peer" else "ours"))
            found |= {"rate": found["ok"] / found["s"], "server_cpu_s": web.cpu_s() - before, "n": n, "due": due}
            runs[name].append(found)
            print(f"{turn + 1}: {name:7} {found['rate']:7.0f}/s, {found['ok']:,} of {n:,}", file=sys.stderr)
    return {"runs": runs, "threads": threads, "tried": tried}


def ssim(a: Any, b: Any) -> float:
    """Structural similarity as Wang et al. 2004 define it: windows of 11 pixels, sigma 1.5, borders left out."""

    def mean(x: Any) -> Any:
        return cv2.GaussianBlur(x, (11, 11), 1.5)[5:-5, 5:-5]

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    return float((((2 * ma * mb + c1) * (2 * cov + c2)) / ((ma * ma + mb * mb + c1) * (va + vb + c2))).mean())


def stored_pictures(folder: Path) -> list[Any]:
    """The luma of all pictures in the tars below a folder, in order of their keys."""
    found = {}
    for path in folder.rglob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg") and (file := tar.extractfile(member)):
                    grey = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_GRAYSCALE)
                    if grey is None:
                        raise SystemExit(f"{member.name} of {path} is no picture")
                    found[member.name] = grey.astype(np.float64)
    return [found[name] for name in sorted(found)]


def similarity(web: Web, scratch: Path) -> dict[str, dict[str, float]]:
    """SSIM of our two recipes and img2dataset's, on each picture there is."""
    race = RACES[1]
    urls = web.urls(webserver.DISTINCT)
    # Shard k of ours has each JOBS-th URL, theirs has a piece.
    peer(scratch / "peer", [url for k in range(JOBS) for url in urls[k::JOBS]], race.peer, THREADS[1])
    made = {"img2dataset": stored_pictures(scratch / "peer")}
    for name, fetch in race.ours.items():
        run_in_process(fetch_shards, scratch / name, urls, fetch, race.kind)
        made[name] = stored_pictures(scratch / name)
    found = {}
    for a, b in (("area", "img2dataset"), ("linear", "img2dataset"), ("linear", "area")):
        alike = sorted(ssim(x, y) for x, y in zip(made[a], made[b], strict=True) if x.shape == y.shape)
        size = len(made[a]) - len(alike)
        found[f"{a} and {b}"] = {"mean": statistics.mean(alike), "p5": alike[len(alike) // 20], "other_size": size}
    for name in ("peer", *race.ours):
        shutil.rmtree(scratch / name)
    return found


def spread(values: list[float], digits: int = 0) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}..{max(values):,.{digits}f})"


def verdict(met: bool) -> str:
    return "target met" if met else "target MISSED"


def show(results: dict[str, Any]) -> None:
    """The table, then a line for each target."""
    print(f"\n{'':8}{'ours/s':>24}{'img2dataset/s':>24}{'ratio':>21}{'CPU ms each':>14}{'server':>8}{'peak MB':>12}")
    lines, peaks = [], []
    for race in results["races"]:
        theirs = race["runs"]["peer"]
        for name, mine in race["runs"].items():
            if name == "peer":
                continue
            row = f"{name:8}{spread([r['rate'] for r in mine]):>24}"
            ratios = [a["rate"] / b["rate"] for a, b in zip(mine, theirs, strict=False)]
            if ratios:
                row += f"{spread([r['rate'] for r in theirs]):>24}{spread(ratios, 2):>21}"
                said = verdict(statistics.median(ratios) >= TARGETS[name])
                lines.append(f"{said}: {name}, {TARGETS[name]:.0f} times img2dataset at {race['threads']} threads")
            sides = [runs for runs in (mine, theirs) if runs]
            cpu = "/".join(f"{1000 * statistics.median(r['cpu_s'] / r['n'] for r in runs):.2f}" for runs in sides)
            served = 1000 * statistics.median(r["server_cpu_s"] / r["n"] for r in mine)
            peak = "/".join(f"{max(r['peak_mb'] for r in runs):.0f}" for runs in sides)
            peaks.append(max(r["peak_mb"] for r in mine))
            print(f"{row:77}{cpu:>14}{served:8.2f}{peak:>12}")
            for run in (*mine, *theirs):
                if abs(run["ok"] - run["due"]) > 0.002 * run["due"]:
                    lines.append(f"NOT COMPARABLE: {name}, {run['ok']:,} pictures came and {run['due']:,} were due")
    for name, run in results["huge"].items():
        peaks.append(run["peak_mb"])
        print(f"huge {name}: {run['ok']:,} pictures, {run['ok'] / run['s']:.1f}/s, peak {run['peak_mb']:.0f} MB")
    for pair, like in results.get("ssim", {}).items():
        values = f"mean {like['mean']:.4f}, 5th percentile {like['p5']:.4f}"
        print(f"SSIM of {pair}: {values}, {like['other_size']} of other sizes")
    for resize, rates in results.get("codecs", {}).items():
        print(f"codecs alone, {resize}: {spread(rates)} pictures/s")
    if runs := results.get("client"):
        times = [r["ms"] for r in runs]
        print(f"client: {spread(times, 3)} ms of CPU a request, {spread([r['per_s'] for r in runs])} requests/s")
        lines.append(f"{verdict(statistics.median(times) <= CLIENT_MS)}: client, {CLIENT_MS} ms of CPU a request")
    if peaks:
        said = verdict(max(peaks) <= MEMORY_MB)
        lines.append(f"{said}: memory, {MEMORY_MB} MB a process; {max(peaks):.0f} at the most")
    print("\n" + "\n".join(lines))


def machine_text() -> str:
    found = [f"datakit {__version__}", f"Python {platform.python_version()}"]
    for name in ("img2dataset", "aiohttp", "uvloop", "opencv-python-headless", "simplejpeg", "pyarrow"):
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    processor = Path("/proc/cpuinfo").read_text().partition("model name\t: ")[2].partition("\n")[0]
    return (
        f"{', '.join(found)}\n{os.cpu_count()} cores ({processor or platform.machine()}), {memory:.0f} GiB; "
        "server: benchmarks/webserver.py on uvloop"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", default=",".join(WORKS), help=f"some of {','.join(WORKS)}")
    parser.add_argument("--images", type=int, help="URLs of each run, instead of so many that ours lasts 5 s")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="without img2dataset")
    parser.add_argument("--scratch", type=Path, help="a folder on the disk to write to; 10 GB are used")
    args = parser.parse_args()
    chosen = args.work.split(",")
    if unknown := set(chosen) - set(WORKS):
        parser.error(f"--work knows {', '.join(WORKS)}, not {', '.join(sorted(unknown))}")
    if set(chosen) & set(TARGETS) and not args.alone:
        try:
            version("img2dataset")
        except PackageNotFoundError:
            parser.error("img2dataset isn't installed: pip install -e '.[img2dataset]', or leave it out with --alone")
    print(machine_text())
    bodies = webserver.pictures()
    mean_kib = sum(map(len, bodies)) / len(bodies) / 1024
    print(f"{len(bodies)} pictures of {mean_kib:.0f} KiB on average")
    results: dict[str, Any] = {"versions": machine_text(), "mean_kib": mean_kib, "races": [], "huge": {}}
    with tempfile.TemporaryDirectory(prefix="datakit-bench-", dir=args.scratch) as folder, ExitStack() as stack:
        scratch = Path(folder)
        web = stack.enter_context(Web(bodies))
        for race in RACES:
            names = [name for name in race.ours if name in chosen]
            if names and race.kind != "https":
                results["races"].append(compete(race, names, web, scratch, args))
            elif names:
                certificate, bundle = webserver.make_certificate(scratch)
                os.environ["SSL_CERT_FILE"] = str(bundle)  # both sides read it
                with Web(bodies, certificate=certificate, fresh=True) as secure:
                    results["races"].append(compete(race, names, secure, scratch, args))
                del os.environ["SSL_CERT_FILE"]
        if {"area", "linear"} <= set(chosen) and not args.alone:
            results["ssim"] = similarity(web, scratch)
        if "codecs" in chosen:
            results["codecs"] = {
                resize: [
                    run_in_process(time_resizing, args.images or 3000, resize)["per_s"] for _ in range(args.repeat)
                ]
                for resize in get_args(images.Resize)
            }
        if "client" in chosen:
            urls = web.urls(args.images or 20_000)
            results["client"] = [run_in_process(time_requests, urls) for _ in range(args.repeat)]
        if "huge" in chosen:
            with Web(webserver.pictures(6, width=(5200, 5600), grain=9)) as large:
                urls = large.urls(args.images or 400)
                for name, fetch in (("keep", {}), ("area", SHRINK)):
                    results["huge"][name] = run_in_process(fetch_shards, scratch / "huge", urls, fetch, "http")
                    shutil.rmtree(scratch / "huge")
    show(results)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
