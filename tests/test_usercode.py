"""Recipes and readers of a user's own catalogue: in every process, and with the line when they go wrong."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from users import DATAKIT, Typed, everything, settings

from datakit import catalogue, readers
from datakit.catalogue import manifest
from datakit.engine import pipeline, pool
from datakit.engine.work import Progress
from datakit.errors import DatakitError, ManifestError
from datakit.process import usercode

RECIPE = '''"""Half of COYO, by a stage of our own."""

import enum
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from datakit.engine.stage import Stage, Step
from datakit.stages.fetch import Fetch
from datakit.stages.listing import Listing
from datakit.stages.pack import Pack


class Side(enum.Enum):
    FIRST = "first"
    LAST = "last"


@dataclass(frozen=True)
class Cut:
    side: Side
    share: float


def wanted(cut, n):
    rows = int(n * cut.share)
    return (0, rows) if cut.side is Side.FIRST else (n - rows, rows)


@dataclass(frozen=True, kw_only=True)
class Half(Stage):
    cut: Cut

    def rows(self, rows, work, out) -> Iterator[pa.RecordBatch]:
        for batch in rows.batches():
            BODY
            start, length = wanted(self.cut, batch.num_rows)
            out.drop("other_half", batch.num_rows - length)
            yield batch.slice(start, length)


STEPS = {
    "coyo": (
        Step(name="list", stage=Listing()),
        Step(name="half", stage=Half(cut=Cut(Side.FIRST, 0.5))),
        Step(name="fetch", stage=Fetch(max_short_side_px=336), tolerates=1.0),
        Step(name="pack", stage=Pack()),
    )
}
MIXES = {"one": "coyo"}
'''

READER = '''"""Questions and answers, one object each."""

from dataclasses import dataclass

import pyarrow as pa

from datakit.readers.llava import Row
from datakit.records.record import Message, Part
from datakit.records.tables import REFS

VERSION = 3
SCHEMA = pa.schema([("key", pa.string()), ("messages", pa.string()), ("images", REFS), ("topic", pa.string())])


def read(row, number):
    BODY
    if "q" not in row:
        return "no_question"
    said = [Message("user", [Part("text", row["q"])]), Message("assistant", [Part("text", row["a"])])]
    return Row(said, [], {"topic": row["topic"]})
'''

MANIFEST = """
title = "Pairs"
homepage = ""
licence = "ours"
citation = ""
hub = ""
reader = "qapairs"
recipe = "instruct"

[annotations]
format = "json"
files = "file://{file}"
rows_per_shard = 10

[images]
by = "none"
"""


@pytest.fixture
def datakit(forks):
    """Runs a command in a process of its own: its exit code, and what it said."""

    def run(command, env):
        job = forks.start(DATAKIT, *command.split(), env={**os.environ, **env})
        out, err = job.communicate()
        return Typed(job.returncode, out, err)

    return run


@pytest.fixture
def mine(upstream, tmp_path):
    """The environment of a user with a catalogue, and a way to write a file into it."""
    env = settings(upstream, tmp_path / "root", DATAKIT_CATALOGUE=str(tmp_path / "my"))

    def write(name, text, body="pass"):
        path = tmp_path / "my" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("BODY", body))
        return path

    write.env, write.root = env, tmp_path / "root"
    return write


@pytest.fixture
def pairs(mine, tmp_path):
    """A dataset of 35 rows, so four shards, whose reader is the user's."""
    rows = [f'{{"q": "q{n}", "a": "a{n}", "topic": "t"}}' for n in range(34)]
    (tmp_path / "pairs.json").write_text(f"[{', '.join([*rows, '{}'])}]")
    mine("manifests/pairs.toml", MANIFEST.format(file=tmp_path / "pairs.json"))
    return mine("readers/qapairs.py", READER)


def test_a_stage_of_ones_own_recipe_works_in_worker_processes_as_in_one(datakit, mine, tmp_path):
    mine("pipelines/half.py", RECIPE)
    other = {**mine.env, "DATAKIT_ROOT": str(tmp_path / "other")}

    many = datakit("fetch coyo --recipe half --shards 0-2 --jobs 2", mine.env)
    retried = datakit("fetch coyo --retry --jobs 2", mine.env)
    mixed = datakit("run half --shards 0-2 --jobs 2", mine.env)
    one = datakit("run half --shards 0-2 --jobs 1", other)

    for done in (many, retried, mixed, one):
        assert done.code == 0, done.err
    assert "other_half" in many.out
    held, alone = (everything(root / "coyo/half") for root in (mine.root, tmp_path / "other"))
    assert held == alone and len([name for name in held if name.endswith(".parquet")]) == 3
    assert '"cut":{"share":0.5,"side":"first"}' in held["recipe.json"].decode().replace(" ", "").replace("\n", "")


def test_a_reader_of_ones_own_catalogue_works_in_worker_processes_and_its_version_counts(datakit, mine, pairs):
    done = datakit("build-mix pairs --fetch --jobs 2", mine.env)
    checked = datakit("check pairs", mine.env)
    pairs.write_text(pairs.read_text().replace("VERSION = 3", "VERSION = 4"))
    changed = datakit("fetch pairs", mine.env)

    assert done.code == 0, done.err
    assert "34 samples" in done.out and "no_question 1" in done.out
    assert "1  no question" in checked.out
    assert changed.code == 1 and "reader_version: 3 -> 4" in changed.err


def test_two_files_of_one_name_in_two_catalogues_are_two_modules(tmp_path):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "mine.py").write_text(f"class Thing:\n    place = {place!r}\n")

    a, b = (usercode.load(tmp_path / place / "mine.py") for place in ("a", "b"))

    assert (a.Thing.place, b.Thing.place) == ("a", "b")
    for module in (a, b):
        assert pickle.loads(pickle.dumps(module.Thing)) is module.Thing  # noqa: S301
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_pickle_of_a_file_that_was_changed_since_is_refused(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("class Thing: pass\n")
    data = pickle.dumps(usercode.load(path).Thing())
    path.write_text("class Thing: other = True\n")
    code = "import sys, pickle, datakit.engine.stage\npickle.loads(sys.stdin.buffer.read())"

    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=False)

    assert done.returncode == 1
    assert b"mine.py was changed while a run was using it" in done.stderr


def test_a_file_that_is_edited_is_read_anew_in_the_same_process(tmp_path):
    path = tmp_path / "mine.py"
    seen = []
    for n in (1, 2, 1):
        path.write_text(f"N = {n}\n")
        seen.append(usercode.load(path).N)

    assert seen == [1, 2, 1]


@pytest.mark.parametrize(
    ("body", "told", "jobs"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero", 1),
        ("1 / 0", "ZeroDivisionError: division by zero", 2),
        ("raise type('Odd', (Exception,), {'__init__': lambda self, a, b: None})(1, 2)", "Odd", 1),
        ("raise type('Odd', (Exception,), {'__init__': lambda self, a, b: None})(1, 2)", "Odd", 2),
        ("raise Exception(lambda: 0)", "Exception: <function", 2),
        ("raise SystemExit(0)", "SystemExit: 0", 1),
        ("raise SystemExit(0)", "SystemExit: 0", 2),
        ("batch['nothing']", "KeyError", 1),
        ("out.drop('mine', -5)", "ValueError: -5 rows can't be dropped", 1),
    ],
)
def test_a_mistake_in_a_stage_of_ones_own_is_told_with_its_line(datakit, mine, jobs, body, told):
    path = mine("pipelines/half.py", RECIPE, body)
    line = path.read_text().splitlines().index(f"            {body}") + 1

    done = datakit(f"fetch coyo --recipe half --shards 0-1 --jobs {jobs}", mine.env)

    assert done.code == 1
    assert f"{path}:{line}, in rows: {told}" in done.err
    assert "Traceback" not in done.err and "want of memory" not in done.err


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("return [1 for _ in rows.batches()]", "should be a generator"),
        ("yield from (batch.to_pylist() for batch in rows.batches())", "should yield pyarrow.RecordBatch"),
        ("yield from (batch.select(['key']) for batch in rows.batches())", "say in `schema` what comes out"),
        ("yield from (batch.slice(1) for batch in rows.batches())", "Each row is given back once"),
        ("yield from (batch for batch in rows.batches() for _ in '12')", "Each row is given back once"),
    ],
)
def test_a_stage_that_makes_something_else_is_told_what_was_expected(datakit, mine, wrong, told):
    text = RECIPE.partition("        for batch in rows.batches():")
    tail = text[2].partition("\n\n\nSTEPS")
    path = mine("pipelines/half.py", f"{text[0]}        {wrong}\n\n\nSTEPS{tail[2]}")

    done = datakit("fetch coyo --recipe half --shards 0 --jobs 1", mine.env)

    assert done.code == 1
    assert told in done.err and str(path) in done.err and "Half" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("body", "told", "jobs"),
    [
        ("row['nothing']", "in read: KeyError: 'nothing'", 1),
        ("row['nothing']", "in read: KeyError: 'nothing'", 2),
        ("return 7", ": a reader answers with a Row", 1),
        ("return Row([], [], {'other': 1})", ": attribute 'other' is no column of SCHEMA", 1),
        ("return Row([], [], {'topic': 1})", "'topic' is not of type string", 1),
    ],
)
def test_a_mistake_in_a_reader_of_ones_own_is_one_clear_error(datakit, mine, pairs, jobs, body, told):
    pairs.write_text(READER.replace("BODY", body))

    done = datakit(f"fetch pairs --jobs {jobs}", mine.env)

    assert done.code == 1
    assert told in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("VERSION = 3", "", "a reader has VERSION"),
        ('("images", REFS), ', "", "a reader has SCHEMA"),
        ("def read(", "def raed(", "doesn't read 'json'"),
        ("import pyarrow as pa", "import pyarrow as pa\nimport neighbour", "neighbour.py stands beside it"),
        ("VERSION = 3", "VERSION = (", "qapairs.py:11: this isn't Python"),
        ("VERSION = 3", "VERSION = 3\nexit(5)", "qapairs.py:12: SystemExit: 5"),
        ("VERSION = 3", "VERSION = 3\0", "qapairs.py"),
    ],
)
def test_a_file_that_is_no_reader_is_refused_and_says_why(datakit, mine, pairs, old, new, told):
    mine("readers/neighbour.py", "")
    pairs.write_text(READER.replace(old, new).replace("BODY", "pass"))

    done = datakit("fetch pairs", mine.env)

    assert done.code == 1
    assert told in done.err
    assert "Traceback" not in done.err


def test_an_unknown_reader_is_told_with_the_nearest_of_both_catalogues(mine, pairs, monkeypatch):
    path = mine("manifests/pairs.toml", MANIFEST.replace("qapairs", "qapair").format(file="/x.json"))
    monkeypatch.setenv("DATAKIT_CATALOGUE", str(path.parents[1]))

    with pytest.raises(ManifestError, match=r"unknown reader 'qapair'. Did you mean 'qapairs'"):
        manifest.load("pairs")
    assert {"llava", "coyo", "qapairs"} <= set(catalogue.names("readers"))


def test_a_reader_of_ones_own_comes_before_ours_of_that_name(mine, monkeypatch):
    mine("readers/llava.py", READER)
    monkeypatch.setenv("DATAKIT_CATALOGUE", mine.env["DATAKIT_CATALOGUE"])

    assert readers.load(manifest.load("qinstruct")).VERSION == 3
    monkeypatch.delenv("DATAKIT_CATALOGUE")
    assert readers.load(manifest.load("qinstruct")).__name__ == "datakit.readers.llava"


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_field_that_no_recipe_can_hold_is_one_clear_error(datakit, mine, jobs):
    mine("pipelines/half.py", RECIPE.replace("Cut(Side.FIRST, 0.5)", "Cut(Side.FIRST, lambda: 0.5)"))

    done = datakit(f"fetch coyo --recipe half --shards 0-1 --jobs {jobs}", mine.env)

    assert done.code == 1
    assert "can't be part of a recipe" in done.err
    assert "Traceback" not in done.err


def test_a_stage_that_cannot_be_sent_to_a_worker_is_told_so(datakit, mine):
    local = RECIPE.replace("Half(cut=Cut(Side.FIRST, 0.5))", "made()").replace(
        "STEPS = {",
        "def made():\n    class Local(Half): pass\n    return Local(cut=Cut(Side.FIRST, 0.5))\n\n\nSTEPS = {",
    )
    mine("pipelines/half.py", local)

    done = datakit("fetch coyo --recipe half --shards 0-1 --jobs 2", mine.env)
    alone = datakit("fetch coyo --recipe half --shards 0-1 --jobs 1", mine.env)

    assert done.code == 1
    assert "can't be sent to another process" in done.err and "--jobs 1" in done.err
    assert alone.code == 0, alone.err


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("__import__('os').kill(__import__('os').getpid(), 9)", "was killed, perhaps for want of memory"),
        ("__import__('os').abort()", "crashed (SIGABRT)"),
        ("__import__('os')._exit(7)", "ended by itself with exit code 7"),
    ],
)
def test_a_worker_that_dies_is_told_as_what_it_died_of(datakit, mine, body, told):
    mine("pipelines/half.py", RECIPE, body)

    done = datakit("fetch coyo --recipe half --shards 0-2 --jobs 2", mine.env)

    assert done.code == 1
    assert f"a worker process {told}" in done.err
    assert "Traceback" not in done.err


def test_a_recipe_file_that_goes_away_while_it_is_used_is_told_as_that(datakit, mine):
    path = mine("pipelines/half.py", RECIPE)
    mine("pipelines/half.py", RECIPE + f"\n__import__('pathlib').Path({str(path)!r}).unlink()\n")

    done = datakit("fetch coyo --recipe half --shards 0-2 --jobs 2", mine.env)

    assert done.code == 1
    assert f"{path} can't be read" in done.err or "unknown recipe" in done.err
    assert "want of memory" not in done.err and "Traceback" not in done.err


def test_steps_of_two_recipes_that_share_a_name_of_class_are_told_apart(mine, monkeypatch):
    mine("pipelines/one.py", RECIPE)
    mine("pipelines/two.py", RECIPE.replace("out.drop", "out.reject"))
    monkeypatch.setenv("DATAKIT_CATALOGUE", mine.env["DATAKIT_CATALOGUE"])
    about = manifest.load("coyo")

    one, two = (pickle.loads(pickle.dumps(pipeline.steps(name, about))) for name in ("one", "two"))  # noqa: S301

    assert type(one[1].stage) is not type(two[1].stage)
    assert one == pipeline.steps("one", about)


def test_an_error_that_no_pickle_brings_home_is_still_told(tmp_path):
    path = tmp_path / "odd.py"
    path.write_text(
        "class Odd(Exception):\n    def __init__(self, a, b): super().__init__('odd')\n"
        "    def __str__(self): raise ValueError\n"
        "def work(progress): raise Odd(1, 2)\n"
    )
    code = (
        "import sys\nfrom pathlib import Path\nfrom datakit.engine import pool\n"
        "from datakit.engine.work import Progress\nfrom datakit.process import usercode\n"
        "if __name__ == '__main__':\n"
        "    work = usercode.load(Path(sys.argv[1])).work\n"
        "    pool.run_calls([pool.Call(work, ())] * 2, 2, progress=Progress())\n"
    )
    script = tmp_path / "main.py"
    script.write_text(code)

    done = subprocess.run([sys.executable, str(script), str(path)], capture_output=True, text=True, check=False)

    assert f"{path}:4, in work: Odd: (its text can't be had: ValueError)" in done.stderr
    assert issubclass(ManifestError, DatakitError) and Path(path).exists()


def test_workers_have_the_environment_of_the_moment(monkeypatch):
    found = []
    for value in ("before", "after"):
        monkeypatch.setenv("OF_THE_MOMENT", value)
        call = pool.Call(os.getenv, ("OF_THE_MOMENT",))  # its second argument is what it says of a name that isn't set
        pool.run_calls([call] * 2, 2, progress=Progress(), then=lambda value: found.append(value) or ())

    assert found == ["before", "before", "after", "after"]


def test_a_program_that_begins_again_in_each_worker_is_told_what_it_lacks(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        "import os\nfrom datakit.engine import pool\nfrom datakit.engine.work import Progress\n"
        "pool.run_calls([pool.Call(os.getenv, ('HOME',))] * 2, 2, progress=Progress())\n"
    )

    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert 'does its work under `if __name__ == "__main__":`' in done.stderr
