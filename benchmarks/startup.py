"""Time of `datakit --help` and `datakit list`, beside that of an empty Python, alternating.

python benchmarks/startup.py [--json FILE] [--repeat 21]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from datakit import __version__

TARGET_MS = 150
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "datakit --help": ["-m", "datakit", "--help"],
    "datakit list": ["-m", "datakit", "list"],
}


def once_ms(words: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - start) * 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeat", type=int, default=21)
    args = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(args.repeat):
        for name, words in COMMANDS.items():
            times[name].append(once_ms(words))
    head = f"datakit {__version__}, Python {platform.python_version()}, {platform.machine()}"
    print(head)
    print(f"{'command':18} {'median ms':>10} {'spread ms':>16}")
    for name, found in times.items():
        print(f"{name:18} {statistics.median(found):10.0f} {f'{min(found):.0f} to {max(found):.0f}':>16}")
    met = statistics.median(times["datakit --help"]) <= TARGET_MS
    print(f"target {'met' if met else 'MISSED'}: --help in {TARGET_MS} ms")
    if args.json:
        args.json.write_text(json.dumps({"versions": head, "ms": times}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
