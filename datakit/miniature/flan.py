"""FLAN as Open-Orca has it: Parquet in folders, and JSON at the top that nobody should download."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from datakit.miniature.world import Places, World

REPO = "Open-Orca/FLAN"
FOLDERS = {  # and how many files it has: the names of eleven files and more don't sort as their numbers do
    "cot_fsopt_data": 2,
    "cot_zsopt_data": 2,
    "dialog_zsopt_data": 2,
    "flan_fsnoopt_data": 2,
    "niv2_zsopt_data": 11,
    "t0_zsopt_data": 2,
}
UNUSED = ("cot_zs_submix_data.json", "flan2021_zsnoopt_submix_data.json", "t0_zsopt_submix_data.json")
SCHEMA = pa.schema(
    [
        ("inputs", pa.string()),
        ("targets", pa.string()),
        ("_template_idx", pa.int64()),
        ("_task_source", pa.string()),
        ("_task_name", pa.string()),
        ("_template_type", pa.string()),
    ]
)
GROUP_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class FlanExpected:
    """All rows in the order in which they are counted: by the files' paths as text, as VILA lists them."""

    files: dict[str, int]  # rows by file
    pairs: tuple[tuple[str, str], ...]  # inputs and targets

    @property
    def rows(self) -> int:
        return len(self.pairs)

    @property
    def empty(self) -> tuple[int, ...]:
        """The rows without an answer."""
        return tuple(row for row, (_, targets) in enumerate(self.pairs) if not targets.strip())

    def sample(self, n: int) -> list[int]:
        """The rows of an even sample, first and last among them: VILA's rule in whole numbers."""
        return [nth * (self.rows - 1) // (n - 1) for nth in range(n)]


def paths() -> list[str]:
    return sorted(f"{folder}/part.{n}.parquet" for folder, count in FOLDERS.items() for n in range(count))


def table(world: World, path: str) -> pa.Table:
    """The rows of a file; one may have no answer, and one is there twice."""
    chance = random.Random(f"flan/{world.seed}/{path}")
    task = path.partition("_")[0]
    rows = []
    for row in range(GROUP_ROWS + chance.randrange(2 * GROUP_ROWS)):
        a, b = chance.randrange(100), chance.randrange(100)
        asked = f"Q: What is {a} + {b}?\nA:" if row % 2 else f"Add {a} and {b}, and say how you did ({path}, {row})."
        said = str(a + b) if row % 2 else f"{a} and {b} make {a + b}. The answer is {a + b}."
        if row == 5 and path.endswith("/part.1.parquet"):
            said = ""
        kind = path.partition("_data")[0].rpartition("_")[2]
        rows.append([asked, said, row % 9, task.upper(), f"{task}_sums", kind])
        if row == 3:
            rows.append(rows[-1])
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, values, strict=True)) for values in rows], schema=SCHEMA)


def parquet(world: World, path: str) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(world.keep(("flan", path), lambda: table(world, path)), sink, row_group_size=GROUP_ROWS)
    return bytes(sink.getvalue().to_pybytes())


def expected(world: World) -> FlanExpected:
    tables = {path: world.keep(("flan", path), functools.partial(table, world, path)) for path in paths()}
    pairs = tuple(
        pair for part in tables.values() for pair in zip(part["inputs"].to_pylist(), part["targets"].to_pylist())
    )
    return FlanExpected(files={path: part.num_rows for path, part in tables.items()}, pairs=pairs)


def places(world: World) -> Places:
    files = {path: functools.partial(parquet, world, path) for path in paths()}
    return Places(hub={REPO: files | {name: lambda: b'[{"inputs": "", "targets": ""}]\n' for name in UNUSED}})
