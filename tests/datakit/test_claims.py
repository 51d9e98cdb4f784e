"""Two jobs on one shard where there are no locks, and what killed jobs leave among a step's files."""

import random
import threading
from dataclasses import replace

import pytest
from buckets import Bucket, opened
from users import settings

from datakit.commands.options import load_settings, open_build
from datakit.engine.done import Done
from datakit.engine.runner import execute
from datakit.errors import DatakitError, RecipeChanged
from datakit.miniature import Miniature
from datakit.stages.fetch import Fetch
from datakit.storage import claims
from datakit.storage.ledger import Commit, File, Ledger, Part
from datakit.storage.store import Store
from datakit.upkeep.verify import Broken, verify
from datakit.web import asking


@pytest.fixture(scope="module")
def uneven():
    """Upstreams whose pictures have other bytes each time, and always the same size."""
    with Miniature(rows=20, coyo_shards=1) as upstream:
        urls = [row.columns["url"] for row in upstream._upstreams.coyo_rows(0)]
        answers = [upstream.answer(url) for url in urls]
        sound = next(one for one in answers if one.status == 200 and one.body[:2] == b"\xff\xd8" and not one.cut_after)
        chance = random.Random(0)
        for url in urls:
            upstream.replace(url, lambda asked: replace(sound, body=sound.body + chance.randbytes(8), etag=""))
        yield upstream


@pytest.fixture
def bucket(uneven, monkeypatch, tmp_path):
    """Makes a run of COYO in a bucket, which has no locks."""
    opened("bucket")
    root = f"s3://bucket{tmp_path}"
    monkeypatch.setattr(asking, "BACKOFF_S", 0.0)
    for name, value in settings(uneven, root).items():
        monkeypatch.setenv(name, value)
    yield lambda: open_build(load_settings(), "coyo", tolerates=1.0)
    opened()


class Two:
    """Two jobs: the second begins at a put of the first, and waits at one of its own until the first has ended."""

    def __init__(self, monkeypatch, make_run, begins, waits):
        self.begins, self.waits = begins, waits
        self.ended, self.paused = threading.Event(), threading.Event()
        self.puts = {}
        self.second = threading.Thread(target=self.job, args=(make_run, "second"))
        self.first = make_run
        self.wrong = []
        plain = Bucket.put_file

        def put_file(fs, lpath, rpath, **more):
            if "/fetch/" in rpath:
                self.turn(threading.current_thread())
            return plain(fs, lpath, rpath, **more)

        monkeypatch.setattr(Bucket, "put_file", put_file)

    def turn(self, thread):
        self.puts[thread] = self.puts.get(thread, 0) + 1
        if thread is self.second:
            if self.puts[thread] == self.waits:
                self.paused.set()
                self.ended.wait(60)
        elif self.puts[thread] == self.begins:
            self.second.start()
            self.paused.wait(60)

    def job(self, make_run, which):
        try:
            run = make_run()
            execute(run, upto=run.step_of("fetch"), shards=[0])
        except DatakitError as error:
            self.wrong.append((which, error))
        finally:
            (self.paused if which == "second" else self.ended).set()

    def play(self):
        self.job(self.first, "first")
        self.second.join(60)
        return self.wrong


@pytest.mark.parametrize("rows_per_part", [5, 1000])
@pytest.mark.parametrize(("begins", "waits"), [(1, 1), (1, 99), (2, 2), (2, 3), (3, 2), (3, 3), (4, 2), (4, 4)])
def test_two_jobs_on_one_shard_of_a_bucket_end_with_a_commit_that_agrees_with_its_files(
    bucket, monkeypatch, begins, waits, rows_per_part
):
    monkeypatch.setattr(Fetch, "rows_per_part", rows_per_part)
    run = bucket()
    execute(run, upto=run.step("top20"), shards=[0])

    wrong = Two(monkeypatch, bucket, begins, waits).play()

    assert wrong == []
    run = bucket()
    assert [one for one in verify(run.store, "coyo") if isinstance(one, Broken)] == []
    assert Done(run).has(run.step_of("fetch"), 0)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(Store(str(tmp_path)), "coyo/fetch")


def put(ledger, name):
    written = ledger.store.write(f"{ledger.folder}/{name}", name.encode())
    return File(name, written.size_bytes, written.xxh3)


def committed(ledger, name, *files):
    table, *tars = [put(ledger, file) for file in files]
    part = Part(name=name, rows=1, table=table, tar=tars[0] if tars else None, patches=tars[1:])
    ledger.put(name, Commit(recipe="r", inputs={}, rows=1, parts=[part]))


def swept(ledger, shards=None):
    claims.sweep(Ledger(ledger.store, ledger.folder, snapshot=True), shards)
    return [name for name in ledger.store.names(ledger.folder) if not name.endswith(".commit.json")]


def test_a_table_that_a_killed_retry_left_goes_and_what_a_commit_names_stays(ledger):
    committed(ledger, "00001", "00001.r1.parquet", "00001.tar", "00001.r1.tar")
    put(ledger, "00001.parquet")  # killed after the commit
    committed(
        ledger, "00002-00000", "00002-00000.parquet", "00002-00000.tar"
    )  # the shard's own commit is still to come
    put(ledger, "00002-00001.tar")  # killed before the commit
    put(ledger, "recipe.json")

    assert swept(ledger) == [
        "00001.r1.parquet",
        "00001.r1.tar",
        "00001.tar",
        "00002-00000.parquet",
        "00002-00000.tar",
        "recipe.json",
    ]


def test_what_a_live_job_has_just_made_stays_and_so_does_what_an_unreadable_commit_may_name(ledger):
    put(ledger, "00001.parquet")
    put(ledger, "00002.parquet")
    ledger.store.write(f"{ledger.folder}/00002.commit.json", b"{")
    put(ledger, "00003.parquet")

    with claims.shard_lock(ledger, "00001"):
        assert swept(ledger, [1, 2]) == ["00001.parquet", "00002.parquet", "00003.parquet"]
    assert swept(ledger, [1, 2]) == ["00002.parquet", "00003.parquet"]


def test_in_a_bucket_only_what_is_a_day_old_is_swept(monkeypatch):
    opened("bucket")
    ledger = Ledger(Store("s3://bucket/sweep"), "coyo/fetch")
    put(ledger, "00001.parquet")

    young = swept(ledger)
    monkeypatch.setattr("datakit.storage.store.QUIET_S", -1.0)
    old = swept(ledger)

    assert (young, old) == (["00001.parquet"], [])


def test_a_folder_that_another_job_took_or_removed_is_told_as_such(ledger):
    ledger.claim({"share": 0.2})
    claims.check_recipe(ledger, {"share": 0.2})

    ledger.claim({"share": 0.3})
    with pytest.raises(RecipeChanged, match=r"another job .*\n  share: 0.2 -> 0.3|share: 0.3 -> 0.2"):
        claims.check_recipe(ledger, {"share": 0.2})
    ledger.store.remove_folder(ledger.folder)
    with pytest.raises(RecipeChanged, match="it is gone"):
        claims.check_recipe(ledger, {"share": 0.2})


def test_what_was_cleaned_by_two_jobs_is_all_remembered(ledger):
    first, second = (Ledger(ledger.store, ledger.folder) for _ in range(2))
    first.cleaned_names(), second.cleaned_names()

    first.mark_cleaned({"00001.parquet"})
    second.mark_cleaned({"00002.parquet"})
    first.unmark_cleaned({"00003"})

    assert ledger.cleaned_names() == {"00001.parquet", "00002.parquet"}
