"""Annotations and archives: what preparing a dataset costs, beside `jq` and `cp` in the same run, alternating.

    python benchmarks/annotations.py [--json FILE] [--work merge,mix,coyo,flan,pack] [--scale 1.0] [--repeat 3]

merge  Q-Instruct and LLaVA's mix, 560 MB of JSON, into committed shards of two datasets; `jq -s add` as the guides do
mix    one instruction JSON of 1 GB, listed; for its memory
coyo   a COYO shard of 5.8 M rows, listed, and VILA's choice of its best fifth
flan   1 M rows out of 20 M in Parquet files, over HTTP: the bytes that are read
pack   a zip of 100,000 pictures of 49 kB, found by its index, into tars; `cp` of the zip, flushed to the disk

The inputs are made here, in upstream's schema, and put where a download would have put them, so none is timed. Ours
runs through the runner, as users run it: flushed, hashed and committed, `merge` and `pack` in two processes. Time is
that of the call, the start of its processes included. Memory is that of all processes of a run together.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datakit import __version__
from datakit.engine.build import Build
from datakit.engine.opening import open_build
from datakit.engine.runner import execute
from datakit.stages.sampled_listing import SampledListing
from datakit.storage.store import Store
from datakit.web import downloads
from datakit.web.hosts import Hosts

if TYPE_CHECKING:
    from datakit.miniature.server import Server

# The measured processes import this module too, so what only makes and serves the inputs is imported by who does.

JOBS = 2
COYO_ROWS = 5_836_000  # 746,972,269 / 128
MIX_BYTES = 1_030_000_000  # llava_v1_5_mix665k.json
MERGE_BYTES = {"qinstruct": 39_000_000, "llava665k": 521_000_000}  # 560 MB, in proportion 76.5 to 1,030 as upstream's
FLAN_ROWS, FLAN_CHOSEN, FLAN_FILES = 20_000_000, 1_000_000, 5
PICTURES = 100_000


def adopt(root: Path, address: str, made: Path) -> Path:
    """Puts a file where its download would be, with the sidecar that says it is whole; returns where."""
    path = root / "downloads" / downloads.parse(address).folder
    path.parent.mkdir(parents=True, exist_ok=True)
    made.rename(path)
    downloads.adopt(path, address)
    return path


# What is measured


def build_of(root: Path, dataset: str, chosen: int = FLAN_CHOSEN) -> Build:
    run = open_build(Store(str(root)), dataset, hosts=Hosts())
    first, *rest = run.steps
    if not isinstance(first.stage, SampledListing):
        return run
    return replace(run, steps=(replace(first, stage=replace(first.stage, n_rows=chosen)), *rest))


def make_shards(root: Path, datasets: list[str], upto: str, jobs: int, chosen: int, answer: Any) -> None:
    """The measured process."""
    start = time.perf_counter()
    rows = 0
    for dataset in datasets:
        shards = [0] if dataset == "coyo" else None
        build = build_of(root, dataset, chosen)
        rows += execute(build, upto=build.step(upto), shards=shards, jobs=jobs).rows
    answer.put({"call_s": time.perf_counter() - start, "rows": rows})


def measure_datakit(
    root: Path, datasets: list[str], upto: str, *, jobs: int = JOBS, chosen: int = FLAN_CHOSEN
) -> dict[str, Any]:
    """A run of ours in a fresh interpreter, which counts too."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=make_shards, args=(root, datasets, upto, jobs, chosen, queue))
    os.sync()
    start = time.perf_counter()
    process.start()
    with Memory(process.pid or 0) as memory:
        process.join()
    spent = time.perf_counter() - start
    if process.exitcode or queue.empty():
        raise SystemExit(f"{upto} of {', '.join(datasets)} failed: see above")
    return {"s": spent, "peak_mb": memory.highest_mb, **queue.get()}


def measure_program(words: list[str], out: Path | None = None) -> dict[str, Any]:
    """A run of another program, its output into a file."""
    os.sync()
    with open(out or os.devnull, "wb") as sink:
        start = time.perf_counter()
        process = subprocess.Popen(words, stdout=sink)
        with Memory(process.pid) as memory:
            process.wait()
        spent = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed with {process.returncode}")
    return {"s": spent, "peak_mb": memory.highest_mb}


class Memory:
    """The highest memory of a process and those below it together while the block lasts, looked at again and again.

    Of one process it is the kernel's own high-water mark (VmHWM), of several the sum of their shares (PSS).
    """

    def __init__(self, pid: int) -> None:
        self.pid, self.highest_mb = pid, 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            tree = self._tree()
            file, key = ("status", "VmHWM:") if len(tree) == 1 else ("smaps_rollup", "Pss:")
            total = sum(self._kib(pid, file, key) for pid in tree)
            self.highest_mb = max(self.highest_mb, total * 1024 / 1e6)
            if self._ended.wait(0.1):
                return

    def _tree(self) -> list[int]:
        found = [self.pid]
        for pid in found:  # which grows meanwhile
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                try:
                    found += map(int, task.read_text().split())
                except (FileNotFoundError, ProcessLookupError):  # it has ended
                    continue
        return found

    @staticmethod
    def _kib(pid: int, file: str, key: str) -> int:
        try:
            lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return next((int(line.split()[1]) for line in lines if line.startswith(key)), 0)


# The works: each gives runs by name


def merge(scratch: Path, args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Two JSONs by jq, and by us; in turn."""
    from inputs import make_rows

    root, paths = scratch / "root", []
    for dataset, size in MERGE_BYTES.items():
        make_rows(scratch / "made", dataset, size=int(size * args.scale))
        manifest = build_of(root, dataset).manifest
        paths.append(adopt(root, manifest.address(manifest.shard_files()[0]), scratch / "made"))
    runs: dict[str, list[dict[str, Any]]] = {"jq": [], "datakit": []}
    for _ in range(args.repeat):
        if shutil.which("jq"):
            words = ["jq", "-s", "add", *map(str, paths)]
            runs["jq"].append(measure_program(words, scratch / "out.json"))
            (scratch / "out.json").unlink()
        runs["datakit"].append(measure_datakit(root, list(MERGE_BYTES), "list"))
        for dataset in MERGE_BYTES:
            Store(str(root)).remove_folder(dataset)
    return runs


def mix(scratch: Path, args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    from inputs import make_rows

    root = scratch / "root"
    manifest = build_of(root, "llava665k").manifest
    make_rows(scratch / "made", "llava665k", size=int(MIX_BYTES * args.scale))
    adopt(root, manifest.address(manifest.shard_files()[0]), scratch / "made")
    return {"datakit": measure_one_process(root, "llava665k", "list", args)}


def coyo(scratch: Path, args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    from inputs import make_coyo

    root = scratch / "root"
    manifest = build_of(root, "coyo").manifest
    make_coyo(scratch / "made", int(COYO_ROWS * args.scale))
    adopt(root, manifest.address(manifest.file_of(0)), scratch / "made")
    return {"datakit": measure_one_process(root, "coyo", "top20", args)}


def measure_one_process(root: Path, dataset: str, upto: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs of ours in one process."""
    runs = []
    for _ in range(args.repeat):
        runs.append(measure_datakit(root, [dataset], upto, jobs=1))
        Store(str(root)).remove_folder(dataset)
    return runs


def flan(scratch: Path, args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Rows at even steps from files on a hub of our own, and the bytes that it was asked for."""
    from inputs import make_flan

    from datakit.miniature.hub import Hub
    from datakit.miniature.server import Answer, Server

    root, n = scratch / "root", int(FLAN_CHOSEN * args.scale)
    bodies, needed = {}, 0
    for k in range(FLAN_FILES):
        path = scratch / f"{k}.parquet"
        needed += make_flan(path, int(FLAN_ROWS * args.scale) // FLAN_FILES, k)
        with path.open("rb") as file:
            bodies[f"{'cfnt'[k % 4]}{k}_zsopt_data/part.0.parquet"] = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    repo = build_of(root, "flan").manifest.hub
    hub = Hub({repo: bodies}, lambda _, name: bodies[name], edition="bench")  # type: ignore[arg-type,return-value]
    server = Server(lambda asked: hub.answer(asked) or Answer(status=404))
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.port}"
    runs = []
    try:
        for _ in range(args.repeat):
            server.requests.clear()
            run = measure_datakit(root, ["flan"], "list", chosen=n)
            Store(str(root)).remove_folder("flan")
            runs.append({**run, "needed_mb": needed / 1e6, "read_mb": served_bytes(server, bodies) / 1e6})
    finally:
        server.close()
        del os.environ["HF_ENDPOINT"]
    return {"datakit": runs}


def served_bytes(server: Server, bodies: dict[str, mmap.mmap]) -> int:
    """The bytes of files that a server was asked for, footers included."""
    total = 0
    for how, path, wanted in server.requests:
        name = path.partition("/resolve/")[2].partition("/")[2]
        if how == "GET" and name:
            first, _, last = (wanted or "bytes=0-").removeprefix("bytes=").partition("-")
            total += int(last or len(bodies[name]) - 1) - int(first) + 1
    return total


_held: list[bytes] = []  # in the processes of `decoding`


def hold_bodies(bodies: list[bytes]) -> None:
    _held.extend(bodies)


def check_picture(nth: int) -> None:
    from datakit import images

    images.normalise(_held[nth % len(_held)])


def measure_decoding(bodies: list[bytes]) -> dict[str, Any]:
    """How fast as many processes see whether pictures in memory are whole, with nothing else to do."""
    n = 10 * len(bodies)
    with multiprocessing.get_context("spawn").Pool(JOBS, hold_bodies, (bodies,)) as pool:
        pool.map(check_picture, range(len(bodies)), 20)  # a warm-up: it imports
        start = time.perf_counter()
        pool.map(check_picture, range(n), 100)
        spent = time.perf_counter() - start
    return {"s": spent, "peak_mb": 0.0, "mb_per_s": 10 * sum(map(len, bodies)) / spent / 1e6}


def pack(scratch: Path, args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """A zip by cp and sync, and its pictures by us; in turn."""
    from inputs import make_rows, make_zip

    root, n = scratch / "root", int(PICTURES * args.scale)
    manifest = build_of(root, "llava558k").manifest
    make_rows(scratch / "made", "llava558k", rows=n)
    adopt(root, manifest.address(manifest.shard_files()[0]), scratch / "made")
    bodies = make_zip(scratch / "made", n)
    archive = adopt(root, manifest.images.sources["all"].archive, scratch / "made")
    size = archive.stat().st_size
    build = build_of(root, "llava558k")
    execute(build, upto=build.step_of("list"))
    runs: dict[str, list[dict[str, Any]]] = {"cp": [], "datakit": [], "decode": []}
    for _ in range(args.repeat):
        runs["cp"].append(
            measure_program(["sh", "-c", 'cp "$0" "$1" && sync "$1"', str(archive), str(scratch / "copy")])
        )
        (scratch / "copy").unlink()
        runs["datakit"].append(measure_datakit(root, ["llava558k"], "pack"))
        for step in ("fetch", "pack"):
            Store(str(root)).remove_folder(f"llava558k/{step}")
        archive.with_name(f"{archive.name}.index.parquet").unlink()
        runs["decode"].append(measure_decoding(bodies))
    for found in (*runs["cp"], *runs["datakit"]):
        found["mb_per_s"] = size / found["s"] / 1e6
    return runs


# What is told


def show(results: dict[str, dict[str, list[dict[str, Any]]]], scale: float) -> None:
    """The table, then a line for each target."""
    print(f"{'work':6} {'who':8} {'s':>24} {'peak MB':>8}")
    lines = []
    for work, runs in results.items():
        for who, found in runs.items():
            if found and who != "decode":
                peak = max(run["peak_mb"] for run in found)
                print(f"{work:6} {who:8} {spread([run['s'] for run in found]):>24} {peak:8.0f}")
        lines += TARGETS[work](runs)
    print("\n" + "\n".join(lines))
    if scale != 1:
        print(f"at scale {scale}: the targets are for 1")


def spread(values: list[float], digits: int = 1) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def verdict(met: bool, what: str) -> str:
    return f"target {'met' if met else 'MISSED'}: {what}"


def merge_lines(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    if not runs["jq"]:
        return ["NOT MEASURED: merge, there is no jq on this machine to compare with (apt-get install jq)"]
    pairs = list(zip(runs["datakit"], runs["jq"], strict=True))
    times, memory = [b["s"] / a["s"] for a, b in pairs], [b["peak_mb"] / a["peak_mb"] for a, b in pairs]
    return [
        verdict(statistics.median(times) >= 3, f"merge, {spread(times, 2)} times as fast as jq, 3 wanted"),
        verdict(min(memory) >= 8, f"merge, 1/{min(memory):.1f} of jq's memory at the most, 1/8 wanted"),
    ]


def mix_lines(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    peak = max(run["peak_mb"] for run in runs["datakit"])
    return [verdict(peak <= 600, f"mix, {peak:.0f} MB, 600 wanted")]


def coyo_lines(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    times, peak = [run["s"] for run in runs["datakit"]], max(run["peak_mb"] for run in runs["datakit"])
    return [
        verdict(statistics.median(times) <= 15, f"coyo, {spread(times)} s, 15 wanted"),
        verdict(peak <= 500, f"coyo, {peak:.0f} MB, 500 wanted"),
    ]


def flan_lines(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    shares = [run["read_mb"] / run["needed_mb"] for run in runs["datakit"]]
    needed = runs["datakit"][0]["needed_mb"]
    return [
        verdict(max(shares) <= 1.2, f"flan, {max(shares):.3f} times the {needed:,.0f} MB that are needed, 1.2 wanted")
    ]


def pack_lines(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    shares = [b["s"] / a["s"] for a, b in zip(runs["datakit"], runs["cp"], strict=True)]
    rates = [f"{who} {spread([run['mb_per_s'] for run in found], 0)}" for who, found in runs.items()]
    return [
        verdict(
            statistics.median(shares) >= 0.6, f"pack, {statistics.median(shares):.0%} of cp's throughput, 60 % wanted"
        ),
        f"  MB/s: {', '.join(rates)}; `decode` is what the processes can check from memory with nothing else to do",
    ]


WORKS = {"merge": merge, "mix": mix, "coyo": coyo, "flan": flan, "pack": pack}
TARGETS = {"merge": merge_lines, "mix": mix_lines, "coyo": coyo_lines, "flan": flan_lines, "pack": pack_lines}


def machine_text() -> str:
    found = [f"datakit {__version__}", f"Python {platform.python_version()}", f"pyarrow {version('pyarrow')}"]
    found += [f"msgspec {version('msgspec')}", f"simplejpeg {version('simplejpeg')}"]
    if shutil.which("jq"):
        found.append(subprocess.run(["jq", "--version"], capture_output=True, text=True, check=True).stdout.strip())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    processor = Path("/proc/cpuinfo").read_text().partition("model name\t: ")[2].partition("\n")[0]
    return f"{', '.join(found)}\n{os.cpu_count()} cores ({processor or platform.machine()}), {memory:.0f} GiB"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", default=",".join(WORKS), help=f"some of {','.join(WORKS)}")
    parser.add_argument("--scale", type=float, default=1.0, help="of the inputs' size")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="a folder on the disk to write to; 15 GB are used")
    args = parser.parse_args()
    chosen = args.work.split(",")
    if unknown := set(chosen) - set(WORKS):
        parser.error(f"--work knows {', '.join(WORKS)}, not {', '.join(sorted(unknown))}")
    print(machine_text())
    results = {}
    for work in chosen:
        with tempfile.TemporaryDirectory(prefix="datakit-bench-", dir=args.scratch) as scratch:
            results[work] = WORKS[work](Path(scratch), args)
        print(f"{work} done", file=sys.stderr)
    show(results, args.scale)
    if args.json:
        args.json.write_text(
            json.dumps({"versions": machine_text(), "scale": args.scale, "results": results}, indent=1)
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
