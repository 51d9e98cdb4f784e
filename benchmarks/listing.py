"""Peak memory and time of listing: one COYO shard of 5.8 M rows with VILA's choice, and a 1 GB instruction JSON.

    python benchmarks/listing.py [--json FILE] [--scale 1.0] [--keep DIR]

The inputs are made here, in upstream's schema, and put where a download would have put them; each listing runs
in a process of its own, whose peak resident memory is read from the kernel.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datakit import __version__
from datakit.audit import open_run
from datakit.manifest import load
from datakit.runner import execute
from datakit.store import Store
from datakit.web.hosts import Hosts

COYO_ROWS = 5_836_000  # 746,972,269 / 128
JSON_BYTES = 1_030_000_000  # llava_v1_5_mix665k.json
GROUP = 800_000  # rows of a row group, as Spark's 128 MB blocks give
TARGETS = {"coyo": 500, "json": 600}  # MB
WORDS = (
    "a the of in on with red blue green old new small large wooden house boat river mountain street people "
    "standing near white black photo vintage design for sale free summer winter night day city park garden"
).split()


def make_coyo(path: Path, rows: int) -> None:
    """A Parquet file with upstream's 17 columns, snappy, captions of 68 characters and URLs of 90 on average."""
    rng = np.random.default_rng(0)
    pool = np.array([" ".join(rng.choice(WORDS, size=rng.integers(5, 20))) for _ in range(20_000)], dtype=object)
    with path.open("wb") as file:
        writer = None
        for start in range(0, rows, GROUP):
            n = min(GROUP, rows - start)
            ids = np.arange(start, start + n, dtype=np.int64) + (7 << 33)
            hashes = [f"{h:016x}" for h in rng.integers(0, 2**63, n)]
            tail = pa.array(hashes)
            import pyarrow.compute as pc

            url = pc.binary_join_element_wise(
                "https://cdn.example-", pc.utf8_slice_codeunits(tail, 0, 2), ".org/wp-content/uploads/2017/", tail,
                "/photograph-large.jpg?v=", pa.array(ids).cast(pa.string()), "",
            )  # fmt: skip
            text = pc.binary_join_element_wise(pa.array(pool[rng.integers(0, len(pool), n)], pa.string()), tail, " ")
            floats = {
                name: pa.array(rng.normal(mean, 0.07, n).astype(np.float32))
                for name, mean in (
                    ("clip_similarity_vitb32", 0.30),
                    ("clip_similarity_vitl14", 0.27),
                    ("nsfw_score_opennsfw2", 0.02),
                    ("nsfw_score_gantman", 0.02),
                    ("watermark_score", 0.18),
                    ("aesthetic_score_laion_v2", 4.8),
                )
            }
            ints = {
                name: pa.array(rng.integers(0, most, n).astype(np.int32))
                for name, most in (
                    ("width", 2000), ("height", 2000), ("text_length", 1000), ("word_count", 200),
                    ("num_tokens_bert", 200), ("num_tokens_gpt", 200), ("num_faces", 5),
                )
            }  # fmt: skip
            table = pa.table({"id": pa.array(ids), "url": url, "text": text, "image_phash": tail, **ints, **floats})
            writer = writer or pq.ParquetWriter(file, table.schema, compression="snappy")
            writer.write_table(table, row_group_size=GROUP)
        if writer is not None:
            writer.close()


def make_json(path: Path, size: int) -> int:
    """An array of LLaVA records of 1.5 kB on average, until the file has that size; returns the number of rows."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=60)) + ' "so" it\n' for _ in range(500)]
    rows = 0
    with path.open("wb") as file:
        file.write(b"[")
        while file.tell() < size:
            turns = []
            for turn in range(int(rng.integers(1, 6)) * 2):
                value = texts[int(rng.integers(500))]
                turns.append({"from": ("human", "gpt")[turn % 2], "value": ("<image>\n" if not turn else "") + value})
            name = f"{rows:012d}"
            record = {"id": name, "image": f"coco/train2017/{name}.jpg", "conversations": turns}
            file.write((b", " if rows else b"") + json.dumps(record).encode())
            rows += 1
        file.write(b"]")
    return rows


def adopt(root: Path, address: str, made: Path) -> None:
    """Puts a file where its download would be, with the sidecar that says it is whole."""
    from datakit.web import downloads

    path = root / "downloads" / downloads.parse(address).folder
    path.parent.mkdir(parents=True, exist_ok=True)
    made.rename(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    downloads.adopt(path, address, sha256=digest)


def peak_mb() -> float:
    """Peak resident memory of this process; ru_maxrss would begin at that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def listing(root: str, dataset: str, upto: str, answer) -> None:
    """The measured process."""
    run = open_run(Store(root), dataset, hosts=Hosts())
    start = time.perf_counter()
    report = execute(run, upto=upto, shards=[0] if dataset == "coyo" else None, jobs=1)
    answer.put(
        {
            "s": time.perf_counter() - start,
            "peak_mb": peak_mb(),
            "rows": report.rows,
            "dropped": dict(report.dropped),
        }
    )


def measure(root: Path, dataset: str, upto: str) -> dict:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=listing, args=(str(root), dataset, upto, queue))
    process.start()
    found = queue.get(timeout=1800)
    process.join()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--scale", type=float, default=1.0, help="of the inputs' size")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory(prefix="datakit-bench-") as scratch:
        root = Path(scratch, "root")
        coyo, llava = load("coyo"), load("llava665k")
        make_coyo(Path(scratch, "coyo"), int(COYO_ROWS * args.scale))
        adopt(root, coyo.address(coyo.shard_files()[0]), Path(scratch, "coyo"))
        rows = make_json(Path(scratch, "json"), int(JSON_BYTES * args.scale))
        adopt(root, llava.address(llava.shard_files()[0]), Path(scratch, "json"))
        print(f"made {int(COYO_ROWS * args.scale):,} COYO rows, and {rows:,} rows of instructions", file=sys.stderr)
        for name, dataset, upto in (("coyo", "coyo", "top20"), ("json", "llava665k", "list")):
            runs = []
            for _ in range(args.repeat):
                Store(str(root)).remove_folder(dataset)
                runs.append(measure(root, dataset, upto))
            results[name] = runs
    head = f"datakit {__version__}, pyarrow {pa.__version__}, Python {platform.python_version()}, {platform.machine()}"
    print(head)
    print(f"{'work':34} {'median s':>9} {'spread s':>15} {'peak MB':>8} {'target MB':>9}")
    met = True
    for name, work in (("coyo", "COYO shard: list + top 20 %"), ("json", "instruction JSON of 1 GB: list")):
        times = [r["s"] for r in results[name]]
        peak = max(r["peak_mb"] for r in results[name])
        met &= peak <= TARGETS[name]
        spread = f"{min(times):.1f} to {max(times):.1f}"
        print(f"{work:34} {statistics.median(times):9.1f} {spread:>15} {peak:8.0f} {TARGETS[name]:9}")
    print(f"memory targets {'met' if met else 'MISSED'} (scale {args.scale})")
    if args.json:
        args.json.write_text(json.dumps({"versions": head, "scale": args.scale, "results": results}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
