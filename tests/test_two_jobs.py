"""Two jobs in one root at once, as real processes: none dies, nothing is lost, and what is there agrees."""

import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from forks import Forked, Forks
from users import DATAKIT, settings, typed

from datakit.engine.choices import read_choices, write_choices
from datakit.engine.opening import open_build
from datakit.miniature import Answer, Miniature, Request
from datakit.storage.ledger import Ledger
from datakit.storage.store import Store
from datakit.web.hosts import Hosts

# Runs groups of commands, each in its root; the commands of a group at once. Prints exit code and words of each.
JOBS = """
import json, os, shlex, sys, tempfile, traceback
from datakit.cli import main
# What a command would load, once for all.
import huggingface_hub.file_download, pandas, pyarrow.compute, uvloop
import datakit.engine.runner, datakit.upkeep.retry, datakit.mixing.assembly
import datakit.engine.opening, datakit.reports.status, datakit.reports.check, datakit.commands.progress
import datakit.upkeep.export, datakit.upkeep.pin, datakit.upkeep.adopt
from PIL import GifImagePlugin, JpegImagePlugin, PngImagePlugin
from datakit.stages.fetch import Fetch
from datakit.web import asking
Fetch.rows_per_part, asking.BACKOFF_S = 4, 0.0

def begin(root, command, gate):
    said = tempfile.TemporaryFile("w+")
    pid = os.fork()
    if pid:
        return pid, said
    os.read(gate, 1)
    os.environ["DATAKIT_ROOT"] = root
    os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
    sys.argv = ["datakit", *shlex.split(command)]
    try:
        main()
    except SystemExit as left:
        code = left.code or 0
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)

told = []
for root, commands in json.load(sys.stdin):
    gate, opens = os.pipe()
    jobs = [begin(root, command, gate) for command in commands]
    os.write(opens, b"." * len(jobs))
    for (pid, said), command in zip(jobs, commands):
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said.seek(0)
        told.append([command, code, said.read()])
print(json.dumps(told))
"""


def at_once(upstream: Miniature, groups: list[tuple[Path, list[str]]]) -> list[list]:
    """Runs groups of commands; returns [command, exit code, what it said] of each."""
    asked = json.dumps([(str(root), commands) for root, commands in groups])
    env = {**os.environ, **settings(upstream, groups[0][0], DATAKIT_TIMEOUT_S="1")}
    done = subprocess.run(
        [sys.executable, "-c", JOBS], input=asked, env=env, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def disagreements(root: Path) -> list[str]:
    """Pictures that a table of fetch places where its tar has others, or none."""
    found, store = [], Store(str(root))
    for commit in Ledger(store, "coyo/fetch").commits().values():
        for part in commit.parts:
            if store.size(f"coyo/fetch/{part.table.name}") is None:
                continue  # cleaned
            for row in pq.read_table(root / "coyo/fetch" / part.table.name).to_pylist():
                for image in (image for image in row["images"] if image["outcome"] == "ok"):
                    with tarfile.open(root / image["file"]) as tar:
                        named = {member.offset_data: member.name.partition(".")[0] for member in tar}
                    if named.get(image["offset"]) != row["key"]:
                        found.append(f"{part.name}: {row['key']}")
    return found


def leftovers(root: Path) -> list[str]:
    """Temporaries; locks stay, and so does what is remembered of a file of the user's."""
    hidden = (path for path in root.rglob(".*") if path.is_file())
    return [str(path) for path in hidden if path.suffix != ".lock" and not path.name.endswith(".source.json")]


@pytest.fixture
def uneven():
    """Upstreams of which a picture is there one time and not the next."""
    with Miniature(rows=20, coyo_shards=1) as upstream:
        rows = [row for shard in range(1) for row in upstream._upstreams.coyo_rows(shard)]
        chosen = {id for shard in range(1) for id in upstream.expected.coyo(shard).chosen}
        urls = [row.columns["url"] for row in rows if row.columns["id"] in chosen]
        chance = random.Random(0)
        answers = [upstream.answer(url) for url in urls]
        sound = [one for one in answers if one.status == 200 and one.body[:2] == b"\xff\xd8" and not one.cut_after]

        def any_of(asked: Request) -> Answer:
            return chance.choice([*sound, Answer(status=404)])

        for url in urls:
            upstream.replace(url, any_of)
        yield upstream


def test_sixteen_pairs_of_fetches_on_uneven_servers_end_whole(uneven, tmp_path):
    roots = [tmp_path / str(nth) for nth in range(16)]

    told = at_once(uneven, [(root, ["fetch coyo --shards 0 --tolerate 1"] * 2) for root in roots])

    assert [code for _, code, _ in told] == [0] * 32, [one for one in told if one[1]]
    for root in roots:
        assert typed("verify", settings(uneven, root)).code == 0
        assert disagreements(root) == [] == leftovers(root)


PAIRS = (
    ("nothing", "fetch qinstruct", "fetch qinstruct"),
    ("nothing", "fetch qinstruct", "build-mix qinstruct --fetch"),
    ("nothing", "build-mix qinstruct --fetch", "build-mix qinstruct --fetch"),
    ("nothing", "fetch qinstruct", "check qinstruct"),
    ("nothing", "fetch llava332k", "fetch llava665k"),
    ("nothing", "adopt qinstruct {archive}", "fetch qinstruct"),
    ("nothing", "fetch flan --limit 3", "fetch flan --limit 3"),
    ("fetched", "build-mix coyo", "build-mix coyo"),
    ("fetched", "build-mix coyo", "fetch coyo --shards 0-1 --tolerate 1"),
    ("fetched", "build-mix coyo+qinstruct", "build-mix qinstruct"),
    ("fetched", "fetch coyo --retry", "fetch coyo --shards 0-1"),
    ("fetched", "fetch coyo --retry", "fetch coyo --retry"),
    ("fetched", "fetch coyo --retry", "build-mix coyo"),
    ("fetched", "verify --repair", "fetch coyo --retry"),
    ("packed", "build-mix coyo", "export coyo --format llava --out {out}"),
    ("packed", "export coyo --format hf --out {out}", "export coyo --format hf --out {out}"),
    ("packed", "clean coyo", "build-mix coyo"),
    ("packed", "clean coyo", "clean coyo"),
    ("packed", "clean coyo", "verify --repair"),
    ("packed", "clean qinstruct", "fetch qinstruct"),
    ("packed", "check qinstruct --repair", "fetch coyo --retry"),
)


@pytest.fixture(scope="module")
def even():
    with Miniature(rows=14, coyo_shards=2) as upstream:
        for shard in range(2):
            for row in upstream._upstreams.coyo_rows(shard):  # none is slow
                if upstream.expected.coyo(shard).faults.get(row.columns["id"]):
                    upstream.replace(row.columns["url"], Answer(status=404))
        yield upstream


@pytest.fixture(scope="module")
def begun(even, tmp_path_factory):
    """Roots by how far they are."""
    roots = {name: tmp_path_factory.mktemp(name) for name in ("nothing", "fetched", "packed")}
    fetch = ["fetch coyo --shards 0-1 --tolerate 1", "fetch qinstruct"]
    told = at_once(even, [(roots[name], [command]) for name in ("fetched", "packed") for command in fetch])
    told += at_once(even, [(roots["packed"], [f"build-mix {name}"]) for name in ("coyo", "qinstruct")])
    assert not any(code for _, code, _ in told), told
    return roots


def test_two_commands_at_once_in_one_root_end_well_and_leave_it_whole(even, begun, tmp_path):
    archive = next(begun["fetched"].rglob("q-instruct-images.tar"))
    groups = []
    for nth, (start, *commands) in enumerate(PAIRS):
        root = tmp_path / f"{nth}"
        shutil.copytree(begun[start], root)
        groups.append((root, [one.format(archive=archive, out=tmp_path / f"out-{nth}") for one in commands]))

    told = at_once(even, groups)

    assert not [one for one in told if one[1] and not one[0].startswith("check")], told
    assert not [one for one in told if "Traceback" in one[2]]
    for root, commands in groups:
        verified = typed("verify", settings(even, root))
        assert verified.code == 0, (commands, verified)
        assert disagreements(root) == [] == leftovers(root), commands


def begin(forks: Forks, root: Path, upstream: Miniature, command: str) -> Forked:
    env = {**os.environ, **settings(upstream, root)}
    return forks.start(DATAKIT, *command.split(), env=env)


def in_the_middle_of_a_fetch(forks: Forks, upstream: Miniature, root: Path, command: str) -> tuple[int, str]:
    """Runs a command while `fetch coyo` waits for a picture; returns the fetch's exit code and what it said."""
    at = upstream._upstreams.coyo_rows(0)
    chosen = upstream.expected.coyo(0).chosen
    url = next(row.columns["url"] for row in at if row.columns["id"] in chosen)
    usual = upstream.answer(url)
    ended = []

    def meanwhile(asked: Request) -> Answer:
        other = begin(forks, root, upstream, command)
        ended.append((*other.communicate(timeout=100), other.returncode))
        return usual

    upstream.replace(url, meanwhile, times=1)
    fetch = begin(forks, root, upstream, "fetch coyo --shards 0 --tolerate 1 --timeout 100")
    _, said = fetch.communicate(timeout=200)
    assert [code for *_, code in ended] == [0], ended
    return fetch.returncode, said


def test_a_job_whose_folder_another_job_rebuilds_ends_with_a_clear_message(even, tmp_path, forks):
    code, said = in_the_middle_of_a_fetch(
        forks, even, tmp_path, "fetch coyo --shards 0 --recipe coyo25m --rebuild --tolerate 1"
    )

    assert code == 1
    assert "Traceback" not in said
    assert "coyo/fetch was taken away by another job while this one worked in it:\n" in said
    assert "--root" in said
    assert typed("verify", settings(even, tmp_path)).code == 0
    assert "coyo25m" in (tmp_path / "coyo/choices.json").read_text()
    assert typed("fetch coyo --shards 0 --tolerate 1", settings(even, tmp_path)).out.count("done before") == 1


@pytest.mark.parametrize("command", ["clean coyo", "verify --repair"])
def test_a_fetch_goes_on_right_while_another_job_cleans_or_repairs(even, tmp_path, command, forks):
    code, said = in_the_middle_of_a_fetch(forks, even, tmp_path, command)

    assert code == 0, said
    assert typed("verify", settings(even, tmp_path)).code == 0
    assert leftovers(tmp_path) == disagreements(tmp_path) == []


def test_two_commands_that_choose_different_things_lose_neither_choice(tmp_path):
    store = Store(str(tmp_path))
    first = open_build(store, "llava665k", hosts=Hosts(), without=("vg",))

    write_choices(store, "llava665k", repairs=("extension",))
    first.remember()

    chosen = read_choices(store, "llava665k")
    assert (chosen.without, chosen.repairs) == (("vg",), ("extension",))
