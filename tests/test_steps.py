"""Steps by their roles, filters of one's own, and parts of a shard that processes share."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from users import DATAKIT, everything, settings, typed

from datakit.commands.options import load_settings, open_build
from datakit.engine.done import Done
from datakit.engine.runner import execute
from datakit.engine.work import Progress

DOCS = Path(__file__).parents[1] / "docs"

# COYO in parts of two rows, so that a shard has many; and a step of each role, in every place that it may have.
RECIPE = '''
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from datakit.engine.stage import Filter, Stage, Step
from datakit.stages.clip_top import ClipTop
from datakit.stages.fetch import Fetch
from datakit.stages.listing import Listing
from datakit.stages.pack import Pack
from datakit.records.tables import with_images


def met():
    """Waits for the other processes, as many as a test has said; once a process, in the first part that it makes."""
    port = os.environ.pop("MEET_AT", None)
    if port:
        with socket.create_connection(("127.0.0.1", int(port))) as door:
            door.sendall(b"%d\\n" % os.getpid())
            door.recv(1)


def killed():
    """Kills all processes of the job when so many parts of it were begun."""
    file = os.environ.get("KILL_COUNT")
    if file:
        with Path(file).open("ab") as count:
            count.write(b".")
        if Path(file).stat().st_size >= int(os.environ["KILL_AT"]):
            os.killpg(0, signal.SIGKILL)


@dataclass(frozen=True, kw_only=True)
class FewFetch(Fetch):
    rows_per_part = 2

    def rows(self, rows, work, out):
        met(), killed()
        yield from Fetch.rows(self, rows, work, out)


@dataclass(frozen=True, kw_only=True)
class FewPack(Pack):
    rows_per_part = 2

    def rows(self, rows, work, out):
        killed()
        yield from Pack.rows(self, rows, work, out)


@dataclass(frozen=True, kw_only=True)
class Wide(Filter):
    """Drops rows of which a picture is higher than it is wide."""

    def reasons(self, batch):
        pictures = batch["images"].to_pylist()
        high = [any((p["height"] or 0) > (p["width"] or 0) for p in row) for row in pictures]
        return ["high" if one else None for one in high]


@dataclass(frozen=True, kw_only=True)
class Size(Stage):
    """Scores each packed sample by the bytes of its pictures."""

    role = "score"
    keeps_parts = True

    def schema(self, rows, manifest):
        return pa.schema([("key", pa.string()), ("n_bytes", pa.int64())])

    def rows(self, rows, work, out):
        for batch in rows.batches(["key", "images"]):
            sizes = [sum(p["size_bytes"] for p in row) for row in batch["images"].to_pylist()]
            columns = [batch["key"], pa.array(sizes, pa.int64())]
            yield pa.RecordBatch.from_arrays(columns, schema=self.schema(rows, work.manifest))


STEPS = {
    "coyo": (
        Step(name="list", stage=Listing()),
        Step(name="top", stage=ClipTop(share=0.6, floor=0.2)),
        Step(name="fetch", stage=FewFetch(max_short_side_px=64), tolerates=1.0),
        Step(name="wide", stage=Wide()),
        Step(name="pack", stage=FewPack()),
        Step(name="score-size", stage=Size()),
        Step(name="score-size-again", stage=Size()),
    )
}
'''


@pytest.fixture
def mine(upstream, tmp_path):
    """The environment of a user who has the recipe."""
    recipe = tmp_path / "my/pipelines/parts.py"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(RECIPE)
    return settings(upstream, tmp_path / "root", DATAKIT_CATALOGUE=str(tmp_path / "my"))


@pytest.fixture
def meeting():
    """A port at which processes wait until there are four of them, and the numbers of those that came."""
    came: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(240)  # without four processes the job goes on by itself then, and the test fails

        def open_when_all_are_there() -> None:
            doors = []
            try:
                while len(doors) < 4:
                    doors.append(server.accept()[0])
                    came.append(int(doors[-1].makefile().readline()))
            finally:
                for door in doors:
                    door.close()

        thread = threading.Thread(target=open_when_all_are_there)
        thread.start()
        yield str(server.getsockname()[1]), came
        thread.join()


def rows_of(root: Path, step: str) -> list[dict]:
    commit = json.loads((root / f"coyo/{step}/00000.commit.json").read_text())
    tables = [root / "coyo" / step / part["table"]["name"] for part in commit["parts"]]
    return [row for table in tables for row in pq.read_table(table).to_pylist()]


def test_four_processes_share_one_shard_and_are_killed_ten_times_with_the_bytes_of_one(mine, meeting, tmp_path, forks):
    port, came = meeting

    def datakit(command, **env):
        """A command in a process group of its own: its exit status, and what it said."""
        job = forks.start(DATAKIT, *command.split(), env={**os.environ, **mine, **env}, new_session=True)
        _, err = job.communicate()
        return job.returncode, err

    alone = str(tmp_path / "alone")
    assert datakit("fetch coyo --recipe parts --shards 0 --jobs 1", DATAKIT_ROOT=alone)[0] == 0
    assert datakit("build-mix coyo --recipe parts --jobs 1", DATAKIT_ROOT=alone)[0] == 0

    count, kills = tmp_path / "count", 0
    code, err = datakit("fetch coyo --recipe parts --shards 0 --jobs 4", MEET_AT=port)
    assert code == 0, err
    shutil.rmtree(tmp_path / "root/coyo/fetch")  # all over again, and the job is killed as it begins its fifth part
    for command in ("fetch coyo --recipe parts --shards 0 --jobs 4", "build-mix coyo --recipe parts --jobs 4"):
        while True:
            count.unlink(missing_ok=True)
            limits = {"KILL_COUNT": str(count), "KILL_AT": "5"} if kills < 10 else {}
            code, err = datakit(command, **limits)
            if code == 0:
                break
            assert code == -signal.SIGKILL, err
            kills += 1

    assert kills == 10
    assert len(set(came)) == 4
    assert everything(tmp_path / "root/coyo") == everything(tmp_path / "alone/coyo")
    assert everything(tmp_path / "root/mixes") == everything(tmp_path / "alone/mixes")


def test_progress_of_a_divided_step_counts_each_row_once_also_when_it_goes_on(mine, tmp_path, monkeypatch):
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    build = open_build(load_settings(), "coyo", recipe="parts")
    fetch = build.step_of("fetch")

    class Counted(Progress):
        def __init__(self):
            self.n = 0

        def rows(self, step, n):
            self.n += n if step == "fetch" else 0

    first, second = Counted(), Counted()
    execute(build, upto=fetch, shards=[0], jobs=2, progress=first)
    folder = tmp_path / "root/coyo/fetch"
    for name in ("00000", "00000-00001", "00000-00004"):
        (folder / f"{name}.commit.json").unlink()
    execute(build, upto=fetch, shards=[0], jobs=2, progress=second)

    n_rows = len(rows_of(tmp_path / "root", "fetch"))
    assert first.n == second.n == n_rows > 8


def test_a_choice_after_the_fetch_drops_by_what_was_fetched(mine, tmp_path):
    typed("fetch coyo --recipe parts --shards 0", mine)

    mixed = typed("build-mix coyo", mine)

    assert mixed.code == 0, mixed.err
    fetched, wide, packed = (rows_of(tmp_path / "root", step) for step in ("fetch", "wide", "pack"))
    high = [row["key"] for row in fetched if any((p["height"] or 0) > (p["width"] or 0) for p in row["images"])]
    dead = [row["key"] for row in fetched if any(p["outcome"] != "ok" for p in row["images"])]
    assert high and {row["key"] for row in wide} == {row["key"] for row in fetched} - set(high)
    assert {row["key"] for row in packed} == {row["key"] for row in wide} - set(dead)
    status = typed("status coyo", mine).out
    assert re.search(rf"coyo/wide: 1 done.*\n    dropped  high +{len(high)} ", status)


def test_scores_stand_beside_packed_shards_part_by_part_and_none_waits_for_another(mine, tmp_path):
    typed("fetch coyo --recipe parts --shards 0", mine)
    typed("build-mix coyo", mine)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in mine.items():
            patch.setenv(name, value)
        build = open_build(load_settings(), "coyo")
        score = build.step("score-size-again")

        report = execute(build, upto=score, first=score)

        assert report.made == [0] and Done(build).has(score, 0)
        assert execute(build, upto=score, first=score).kept == [0]
    pack, scores = (
        json.loads((tmp_path / f"root/coyo/{s}/00000.commit.json").read_text()) for s in ("pack", score.name)
    )
    assert [part["name"] for part in scores["parts"]] == [part["name"] for part in pack["parts"]]
    assert list(scores["inputs"]) == ["pack"]
    packed = {row["key"]: sum(p["size_bytes"] for p in row["images"]) for row in rows_of(tmp_path / "root", "pack")}
    assert {row["key"]: row["n_bytes"] for row in rows_of(tmp_path / "root", score.name)} == packed
    assert not (tmp_path / "root/coyo/score-size").exists()
    gone = typed("clean coyo", mine)
    assert gone.code == 0 and "coyo/fetch/" in gone.out and "coyo/pack/" not in gone.out
    assert "coyo/score-size-again: 1 done" in typed("status coyo", mine).out
    assert typed("verify", mine).code == 0


@pytest.mark.parametrize(
    "order",
    ["choose list fetch pack", "list pack fetch", "list fetch pack choose", "list score fetch pack", "list pack"],
)
def test_steps_in_an_order_that_makes_no_sense_are_refused_with_their_roles(order, mine, tmp_path):
    stages = {"list": "Listing()", "choose": "Wide()", "fetch": "Fetch()", "pack": "Pack()", "score": "Size()"}
    steps = ", ".join(f"Step(name='{role}', stage={stages[role]})" for role in order.split())
    recipe = tmp_path / "my/pipelines/odd.py"
    recipe.write_text(RECIPE.partition("STEPS =")[0] + f"STEPS = {{'coyo': ({steps},)}}\n")

    got = typed("fetch coyo --recipe odd", mine)

    assert got.code == 1 and "one to list, one to fetch and one to pack" in got.err
    assert all(f"{role} ({role})" in got.err for role in order.split())


def test_the_filter_of_the_docs_plans_counts_resumes_and_shows_in_status(upstream, tmp_path):
    text = (DOCS / "adding.md").read_text().partition("\n## A filter\n")[2]
    code, commands = re.findall(r"```python\n(.+?)```", text, re.S)[0], re.findall(r"```bash\n(.+?)```", text, re.S)[0]
    recipe = tmp_path / "my/pipelines/longtalk.py"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(code)
    filter_lines = re.search(r"@dataclass.+?(?=\n\n\nSTEPS)", code, re.S)
    env = settings(upstream, tmp_path / "root", DATAKIT_CATALOGUE=str(tmp_path / "my"))
    plan, make, status = commands.split("\n")[:3]

    planned = typed(f"{plan} --json", env)
    made = typed(make, env)
    again = typed(make, env)
    shown = typed(status, env)

    assert filter_lines is not None and len(filter_lines[0].splitlines()) <= 15
    (dataset,) = json.loads(planned.out)["datasets"]
    assert {"step": "long", "stage": "LongTalk", "least_chars": 400} in dataset["steps"]
    assert made.code == 0 and "short_talk" in made.out
    assert "done before" in again.out
    assert re.search(r"llava665k/long: 1 done.*\n    dropped  short_talk", shown.out)


@pytest.mark.parametrize(
    ("reasons", "told"),
    [
        ("pc.less(batch['clip_sim'], 0.9)", "and not an array of bool"),
        ("[1] * batch.num_rows", r"and not \[1"),
        ("None", "and not None"),
        ("[''] * batch.num_rows", "a reason may hold letters, digits"),
        (r"['a\nb'] * batch.num_rows", "a reason may hold letters, digits"),
        ("[None]", "gave 1 reasons for"),
    ],
)
def test_a_filter_that_gives_no_reasons_is_told_so_with_its_file(reasons, told, mine, tmp_path):
    recipe = tmp_path / "my/pipelines/odd.py"
    code = f"class Odd(Filter):\n    def reasons(self, batch):\n        return {reasons}\n\n\n"
    steps = "STEPS = {'coyo': like('coyo_vila', Step(name='odd', stage=Odd()))}\n"
    imports = "from datakit.engine.pipeline import like\n"
    recipe.write_text(RECIPE.partition("STEPS =")[0] + imports + code + steps)

    got = typed("fetch coyo --recipe odd --shards 0", mine)

    assert got.code == 1 and re.search(told, got.err), got
    assert f"Odd of {recipe}" in got.err


def test_a_filter_may_give_what_numpy_makes_of_a_condition(mine, tmp_path):
    recipe = tmp_path / "my/pipelines/even.py"
    code = (
        "import numpy as np\nfrom datakit.engine.pipeline import like\n"
        "class Even(Filter):\n    def reasons(self, batch):\n"
        "        return np.where(np.arange(batch.num_rows) % 2 == 1, 'odd', None)\n\n\n"
        "STEPS = {'coyo': like('coyo_vila', Step(name='even', stage=Even()))}\n"
    )
    recipe.write_text(RECIPE.partition("STEPS =")[0] + code)

    got = typed("fetch coyo --recipe even --shards 0", mine)

    assert got.code == 0 and re.search(r"\bodd \d", got.out), got
