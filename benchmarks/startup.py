"""Times of starting: commands, and the workers of a pool.

`datakit --help` and `datakit list` beside an empty Python; the first calls of 16 workers, by our pool and in fresh
interpreters. Alternating.

python benchmarks/startup.py [--json FILE] [--repeat 21]
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import platform
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from datakit import __version__

TARGET_MS = 150
WORKERS = 16
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "datakit --help": ["-m", "datakit", "--help"],
    "datakit list": ["-m", "datakit", "list"],
}


def once_ms(words: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - start) * 1000


def load_fetch(_: object) -> None:
    """What a worker loads before its first picture."""
    importlib.import_module("datakit.stages.fetch")
    importlib.import_module("datakit.web.crawl")


def start_workers(how: str) -> None:
    """Has a call made by each of 16 workers, all begun for it."""
    if how == "spawn":
        with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as workers:
            list(workers.map(load_fetch, range(WORKERS)))
        return
    from datakit.engine.pool import Call, run_calls
    from datakit.engine.work import Progress

    importlib.import_module("datakit.stages.fetch")  # as the command has, that begins a pool
    run_calls([Call(load_fetch, ())] * WORKERS, WORKERS, progress=Progress())


def main() -> int:
    if len(sys.argv) == 3 and sys.argv[1] == "--workers":
        start_workers(sys.argv[2])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeat", type=int, default=21)
    parser.add_argument("--repeat-workers", type=int, default=3)
    args = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(args.repeat):
        for name, words in COMMANDS.items():
            times[name].append(once_ms(words))
    for _ in range(args.repeat_workers):
        for how, name in {"pool": f"{WORKERS} workers, our pool", "spawn": f"{WORKERS} workers, spawned"}.items():
            times.setdefault(name, []).append(once_ms([__file__, "--workers", how]))
    head = f"datakit {__version__}, Python {platform.python_version()}, {platform.machine()}"
    print(head)
    print(f"{'command':22} {'median ms':>10} {'spread ms':>16}")
    for name, found in times.items():
        print(f"{name:22} {statistics.median(found):10.0f} {f'{min(found):.0f} to {max(found):.0f}':>16}")
    met = statistics.median(times["datakit --help"]) <= TARGET_MS
    print(f"target {'met' if met else 'MISSED'}: --help in {TARGET_MS} ms")
    if args.json:
        args.json.write_text(json.dumps({"versions": head, "ms": times}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
