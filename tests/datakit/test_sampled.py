"""A sample of a dataset that is never downloaded: which rows, from where, and by how many bytes."""

import io
import random
from functools import cache
from itertools import pairwise

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from users import everything

from datakit.catalogue.manifest import Annotations, Images, Manifest, Pinned
from datakit.engine.build import Build
from datakit.engine.done import Done
from datakit.engine.runner import execute
from datakit.engine.stage import Step
from datakit.errors import DownloadError, Incomplete, ManifestError, SourceError
from datakit.miniature import Miniature
from datakit.miniature.hub import Hub
from datakit.miniature.server import Answer, Server
from datakit.readers import flan
from datakit.records.record import decode_messages
from datakit.stages import sampled_listing as sampled
from datakit.stages.sampled_listing import SampledListing, evenly_spaced
from datakit.storage.store import Store
from datakit.web import downloads
from datakit.web.hosts import Hosts

REPO = "Open-Orca/FLAN"
FLAN = Manifest(
    title="FLAN",
    homepage="",
    licence="",
    citation="",
    hub=REPO,
    reader="flan",
    recipe="vila",
    annotations=Annotations(format="parquet", files="*_data/*.parquet"),
    images=Images(by="none"),
    name="flan",
)


def words(chance, n):
    return chance.randbytes(n // 2).hex()


@cache
def parquet(name, rows=600, *, group=50, answer="a{row}", long=400, **columns):
    """A file of FLAN's columns and others between them; long texts that don't compress to nothing."""
    chance = random.Random(name)
    table = pa.table(
        {
            "_task_name": [words(chance, 300) for _ in range(rows)],
            "inputs": pa.array([f"{name} {row} {words(chance, long)} \n" for row in range(rows)], pa.string()),
            "_template_idx": list(range(rows)),
            "targets": pa.array([answer.format(row=row) + "\n\n" for row in range(rows)], pa.string()),
            **columns,
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=group)
    return sink.getvalue()


class Upstream(Server):
    """A hub with one dataset whose files a test changes; each change is a new commit unless it is `kept`."""

    def __init__(self, files):
        self.files = dict(files)
        self.turns = {}  # path -> answers to its next GETs
        super().__init__(self.reply)
        self.commit()

    def commit(self, **files):
        self.files |= {name.replace("__", "_data/") + ".parquet": body for name, body in files.items()}
        self.edition = len(self.requests)
        self.hub = Hub({REPO: self.files}, lambda _, name: self.files[name], edition=f"{self.edition}")
        return self.hub.commits[REPO]

    def reply(self, asked):
        turns = self.turns.get(asked.path.partition("?")[0].rpartition("/resolve/")[2].partition("/")[2])
        if asked.method == "GET" and turns and (answer := turns.pop(0)) is not None:
            return answer
        return self.hub.answer(asked) or Answer(status=404)

    def asked(self, method="GET"):
        """(file, first byte, byte after the last) of every request for a part."""
        found = []
        for how, path, wanted in self.requests:
            if how == method and "/resolve/" in path:
                name = path.partition("/resolve/")[2].partition("/")[2]
                first, _, last = (wanted or "bytes=0--1").removeprefix("bytes=").partition("-")
                found.append((name, int(first), int(last) + 1))
        return found


@pytest.fixture
def upstream(monkeypatch):
    monkeypatch.setattr(downloads, "BACKOFF_S", 0.0)
    server = Upstream(
        {
            "README.md": b"# FLAN\n",
            "t0_zsopt_submix.json": b"[" + b" " * 100_000 + b"]",
            "cot_zs.parquet": b"not in a folder",
            "b_data/deep/x.parquet": b"too deep",
            "b_data/notes.txt": b"no parquet",
            "b_data/0.parquet": parquet("b0"),
            "a_data/1.parquet": parquet("a1", 500),
            "a_data/0.parquet": parquet("a0", 700),
            "c_data/10.parquet": parquet("c10", 30),
            "c_data/2.parquet": parquet("c2", 0),
        }
    )
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.port}")
    yield server
    server.close()


def runs(root, *, n_rows=90, rows_per_shard=20, limit=None, manifest=FLAN):
    stage = SampledListing(n_rows=n_rows, rows_per_shard=rows_per_shard)
    steps = (Step(name="list", stage=stage),)
    return Build(store=Store(str(root)), manifest=manifest, recipe="x", steps=steps, hosts=Hosts(), limit=limit)


def listed(run, **which):
    """Makes the shards, and returns the rows of all there are."""
    execute(run, upto=run.step_of("list"), **which)
    folder = run.store.path(f"{run.folder}/list")
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def all_rows(upstream):
    """(file, row in it) of all rows, in the order in which they are counted."""
    names = ["a_data/0.parquet", "a_data/1.parquet", "b_data/0.parquet", "c_data/10.parquet", "c_data/2.parquet"]
    counts = [(name, pq.read_metadata(io.BytesIO(upstream.files[name])).num_rows) for name in names]
    return [(name, row) for name, n in counts for row in range(n)]


def test_the_chosen_rows_are_those_of_the_formula_first_and_last_among_them(upstream, tmp_path):
    every = all_rows(upstream)
    n, k = len(every), 90

    rows = listed(runs(tmp_path))

    assert [(row["file"], row["row"]) for row in rows] == [every[i * (n - 1) // (k - 1)] for i in range(k)]
    assert [(rows[0]["file"], rows[0]["row"]), (rows[-1]["file"], rows[-1]["row"])] == [every[0], every[-1]]
    assert [row["key"] for row in rows] == [f"flan-{i:09d}" for i in range(k)]
    assert [row["id"] for row in rows] == [f"text_flan_{i:08d}" for i in range(k)]
    for row in rows:
        question, answer = decode_messages(row["messages"])
        name, of, _ = question.content[0].text.split(" ")
        assert (name, int(of)) == (row["file"].replace("_data/", "").removesuffix(".parquet"), row["row"])
        assert answer.content[0].text == f"a{row['row']}"
        assert row["images"] == []


def test_the_miniature_s_flan_is_listed_as_it_expects(tmp_path, monkeypatch):
    with Miniature() as miniature:
        for name, value in miniature.env.items():
            monkeypatch.setenv(name, value)
        expected = miniature.expected.flan
        k = expected.rows // 3

        rows = listed(runs(tmp_path, n_rows=k))

        wanted = [(i, *expected.pairs[row]) for i, row in enumerate(expected.sample(k))]
    found = [(row["key"], *(m.content[0].text for m in decode_messages(row["messages"]))) for row in rows]
    assert found == [(f"flan-{i:09d}", asked.rstrip(), said.rstrip()) for i, asked, said in wanted if said.strip()]
    assert not [path for _, path, _ in miniature.requests if "/resolve/" in path and path.endswith(".json")]


@pytest.mark.parametrize("n", [*range(378_000_000, 378_000_064), 2**24 + 1, 1_000_001, 1_000_000])
def test_no_row_is_chosen_twice_and_none_behind_the_last(n):
    k = 1_000_000

    for start in (0, 499_999, k - 3):
        some = evenly_spaced(n, k, start, start + 3)
        assert some == [i * (n - 1) // (k - 1) for i in range(start, min(start + 3, k))]
        assert len(set(some)) == len(some)
    assert evenly_spaced(n, k, 0, 1) == [0]
    assert evenly_spaced(n, k, k - 1) == [n - 1]


def test_all_steps_are_even_where_float32_has_steps_of_352_to_384():
    n, k = 378_000_000, 1_000_000

    numbers = evenly_spaced(n, k)

    assert {after - before for before, after in pairwise(numbers)} == {378, 379}
    assert len(numbers) == k


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 1), (5, 5), (5, 4), (0, 0)])
def test_small_samples_are_rows_that_exist(n, k):
    numbers = evenly_spaced(n, k)

    assert len(set(numbers)) == k
    assert all(0 <= number < n for number in numbers)


def test_a_dataset_of_fewer_rows_is_listed_whole(upstream, tmp_path):
    rows = listed(runs(tmp_path, n_rows=10**6, rows_per_shard=10**4))

    assert [(row["file"], row["row"]) for row in rows] == all_rows(upstream)


def footers(upstream):
    """The requests for the ends of files."""
    return [part for part in upstream.asked() if part[2] == len(upstream.files[part[0]])]


def needed_bytes(upstream, rows):
    """Compressed bytes of the two columns in the row groups of rows."""
    size = 0
    for name in {name for name, _ in rows}:
        metadata = pq.read_metadata(io.BytesIO(upstream.files[name]))
        groups = {row // 50 for of, row in rows if of == name}
        for group in groups:
            chunks = [metadata.row_group(group).column(place) for place in range(metadata.num_columns)]
            size += sum(c.total_compressed_size for c in chunks if c.path_in_schema in ("inputs", "targets"))
    return size


@pytest.mark.parametrize("n_rows", [8, 90, 1000])
def test_little_more_is_read_than_two_columns_of_the_row_groups_that_are_needed(upstream, tmp_path, n_rows):
    upstream.commit(**{name: parquet(name, 2000, long=2000) for name in ("a__0", "a__1", "b__0")})
    run = runs(tmp_path, n_rows=n_rows, rows_per_shard=n_rows)
    run.steps[0].stage.prepare(run.work(run.steps[0]))
    before = len(upstream.asked())

    rows = listed(run)

    parts = [part for part in upstream.asked()[before:] if part not in footers(upstream)]
    read = sum(stop - start for _, start, stop in parts)
    needed = needed_bytes(upstream, [(row["file"], row["row"]) for row in rows])
    assert needed <= read <= 1.2 * needed


def test_only_files_of_the_pattern_are_asked_for(upstream, tmp_path):
    listed(runs(tmp_path))

    assert {name for name, *_ in upstream.asked()} | {name for name, *_ in upstream.asked("HEAD")} == {
        "a_data/0.parquet",
        "a_data/1.parquet",
        "b_data/0.parquet",
        "c_data/10.parquet",
        "c_data/2.parquet",
    }


def test_nobody_knows_the_shards_before_the_plan(upstream, tmp_path):
    run = runs(tmp_path)
    stage, work = run.steps[0].stage, run.work(run.steps[0])

    with pytest.raises(Incomplete, match="datakit fetch flan"):
        stage.shards(work)
    assert Done(run).known_shards() == []
    assert stage.inputs(work, 0) is None
    stage.prepare(work)

    assert Done(run).known_shards() == [0, 1, 2, 3, 4]


def test_a_trial_takes_the_first_rows_of_each_file_and_no_more_than_its_limit(upstream, tmp_path):
    rows = listed(runs(tmp_path, limit=10))

    assert len(rows) == 10
    assert all(row["row"] < 10 for row in rows)
    assert {row["file"] for row in rows} == {name for name, _ in all_rows(upstream)} - {"c_data/2.parquet"}


def test_what_was_listed_stays_at_its_commit(upstream, tmp_path):
    rows = listed(runs(tmp_path / "one"), shards=[0, 1])
    commit = upstream.hub.commits[REPO]

    more = listed(runs(tmp_path / "one"), shards=[2, 3, 4])

    assert more[:40] == rows
    assert {path.split("/")[5] for _, path, _ in upstream.requests if "/resolve/" in path} == {commit}
    assert sum("/tree/" in path for _, path, _ in upstream.requests) == 1


def test_another_pinned_commit_is_planned_anew_and_makes_stale_what_it_changes(upstream, tmp_path):
    pinned = {REPO: upstream.hub.commits[REPO]}
    manifest = msgspec.structs.replace(FLAN, pinned=Pinned(commits=pinned))
    listed(runs(tmp_path, manifest=manifest))
    before = len(upstream.asked())
    commit = upstream.commit(b__0=parquet("b0", answer="new"))
    manifest = msgspec.structs.replace(FLAN, pinned=Pinned(commits={REPO: commit}))
    run = runs(tmp_path, manifest=manifest)

    assert Done(run).known_shards() == []
    report = execute(run, upto=run.step_of("list"))

    assert report.made == [2, 3, 4]  # those that have rows of b_data
    assert report.kept == [0, 1]
    assert upstream.asked()[before][0] == "b_data/0.parquet"  # its footer, and no other
    assert "a_data/0.parquet" not in {name for name, *_ in upstream.asked()[before:]}
    assert listed(run) == listed(runs(tmp_path / "fresh", manifest=manifest))


def test_a_file_that_has_another_number_of_rows_makes_all_shards_stale(upstream, tmp_path):
    listed(runs(tmp_path))
    commit = upstream.commit(c__10=parquet("c10", 31))
    manifest = msgspec.structs.replace(FLAN, pinned=Pinned(commits={REPO: commit}))

    run = runs(tmp_path, manifest=manifest)
    report = execute(run, upto=run.step_of("list"))

    assert report.made == [0, 1, 2, 3, 4]


def test_a_file_that_changes_at_its_commit_is_refused_with_the_way_on(upstream, tmp_path):
    run = runs(tmp_path)
    listed(run, shards=[0])
    upstream.files["a_data/0.parquet"] = parquet("a0", 700, answer="other")

    with pytest.raises(DownloadError, match=r"isn't the file that was planned with: remove .*plan\.json"):
        listed(run, shards=[1])
    (tmp_path / "flan" / "list" / "plan.json").unlink()

    assert len(listed(run)) == 90


def test_a_plan_that_isn_t_as_it_was_written_is_made_again(upstream, tmp_path):
    run = runs(tmp_path)
    rows = listed(run)
    plan = tmp_path / "flan" / "list" / "plan.json"
    good = plan.read_bytes()
    plan.write_bytes(good.replace(b'"rows":700', b'"rows":701'))

    assert listed(run) == rows
    assert plan.read_bytes() == good


def test_a_dead_connection_is_taken_up_again(upstream, tmp_path):
    whole = listed(runs(tmp_path / "whole"))
    name = "a_data/0.parquet"
    body = upstream.hub.answer  # as it would be
    cut = body(type("", (), {"path": f"/datasets/{REPO}/resolve/main/{name}", "method": "GET", "headers": {}}))
    upstream.turns[name] = [Answer(status=503), None, None, Answer(status=502), Answer(**{**vars(cut), "cut_after": 9})]

    assert listed(runs(tmp_path / "cut")) == whole
    assert upstream.turns[name] == []


@pytest.mark.parametrize("left", range(1, 9))
def test_a_listing_cut_at_any_publish_goes_on_to_the_same_bytes(upstream, tmp_path, monkeypatch, left):
    monkeypatch.setattr(sampled, "SAVED_EVERY", 2)
    listed(runs(tmp_path / "whole"))
    once = footers(upstream)
    write, publishes = Store.publish, [None] * left

    def cut(self, name):
        if not publishes:
            raise KeyboardInterrupt
        publishes.pop()
        return write(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "publish", cut)
        with pytest.raises(KeyboardInterrupt):
            listed(runs(tmp_path / "cut"))
    listed(runs(tmp_path / "cut"))

    assert everything(tmp_path / "cut") == everything(tmp_path / "whole")
    assert len(footers(upstream)) - len(once) <= len(once) + 4  # two of the plan, and two of a shard of two files


def test_what_a_kill_left_of_a_plan_goes(upstream, tmp_path):
    run = runs(tmp_path)
    run.steps[0].stage.prepare(run.work(run.steps[0]))
    left = tmp_path / "flan" / "list" / "plan.part.json"
    left.write_bytes(b"{}")

    listed(run)

    assert not left.exists()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"<!DOCTYPE html><html>log in</html>\n", "is a web page"),
        (parquet("a0")[:-100], "no Parquet, or cut short"),
        (b"", "no Parquet, or cut short"),
        (b"PAR1" + b"\xff\xff\xff\x7f" + b"PAR1", "no Parquet, or cut short"),
        (b"PAR1" + b"x" * 100 + b"\x50\x00\x00\x00PAR1", "footer of .* is damaged"),
        (parquet("a0", inputs=(1,) * 600), "'inputs' of texts, and has .*inputs int64"),
    ],
    ids=["a web page", "cut", "empty", "a length that lies", "damaged", "numbers"],
)
def test_a_file_that_won_t_do_is_told_with_the_way_on(upstream, tmp_path, body, says):
    upstream.commit(a__0=body)

    with pytest.raises(SourceError, match=says) as caught:
        listed(runs(tmp_path))

    assert "a_data/0.parquet" in str(caught.value)
    assert "pin" in str(caught.value)


def test_damage_inside_a_file_is_told_with_the_way_on(upstream, tmp_path):
    body = bytearray(upstream.files["a_data/0.parquet"])
    start = pq.read_metadata(io.BytesIO(body)).row_group(0).column(1).data_page_offset
    body[start : start + 40] = b"\xff" * 40
    upstream.commit(a__0=bytes(body))

    with pytest.raises(SourceError, match=r"a_data/0\.parquet' is damaged .*pin"):
        listed(runs(tmp_path))


def test_a_repository_without_such_files_is_told(upstream, tmp_path):
    manifest = msgspec.structs.replace(FLAN, annotations=Annotations(format="parquet", files="data/*.parquet"))

    with pytest.raises(SourceError, match=r"no file 'data/\*\.parquet' at commit"):
        listed(runs(tmp_path, manifest=manifest))


def test_a_list_of_files_is_no_pattern(upstream, tmp_path):
    manifest = msgspec.structs.replace(FLAN, annotations=Annotations(format="parquet", files=["a.parquet"]))

    with pytest.raises(ManifestError, match="match a pattern"):
        listed(runs(tmp_path, manifest=manifest))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"inputs": "Q", "targets": " \n"}, "empty_answer"),
        ({"inputs": "", "targets": "A"}, "empty_question"),
        ({"inputs": "Q", "targets": None}, "malformed"),
        ({"inputs": "Q"}, "malformed"),
        ("Q", "malformed"),
    ],
)
def test_a_row_that_can_t_be_trained_on_has_a_reason(row, reason):
    assert flan.read(row, 0) == reason


def test_a_mark_for_a_picture_is_text():
    row = flan.read({"inputs": " <image> is a tag. \n", "targets": "\tYes. "}, 7)

    assert [message.content[0].text for message in row.messages] == [" <image> is a tag.", "\tYes."]
    assert (row.images, row.attrs) == ([], {"id": "text_flan_00000007"})
