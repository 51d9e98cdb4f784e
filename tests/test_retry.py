"""`fetch --retry` as a user meets it: failed URLs only, others' keys and bytes as they were, kills included."""

import dataclasses
import os
import signal
import tarfile
from collections import Counter

import pyarrow.parquet as pq
import pytest
from users import everything, typed

from datakit.miniature import Miniature
from datakit.stages.fetch import Fetch
from datakit.storage.ledger import Ledger
from datakit.storage.store import Store
from datakit.upkeep.retry import Where, parse_where
from datakit.web.outcomes import may_pass

CURED = "error_500", "reset", "gone_404"  # faults of the miniature that an upstream gets over in these tests


@pytest.fixture
def small_parts(monkeypatch):
    """So that a shard of the miniature has several parts."""
    monkeypatch.setattr(Fetch, "rows_per_part", 4)


@pytest.fixture
def upstream():
    with Miniature(rows=20, coyo_shards=4) as miniature:
        yield miniature


@pytest.fixture
def user(user):
    user.env["DATAKIT_TIMEOUT_S"] = "1"
    return user


def places(root):
    """(key, URL) -> what the committed tables of fetch say of the picture."""
    ledger = Ledger(Store(str(root)), "coyo/fetch")
    found = {}
    for commit in ledger.commits().values():
        for part in commit.parts:
            for row in pq.read_table(root / "coyo/fetch" / part.table.name).to_pylist():
                for image in row["images"]:
                    found[row["key"], image["ref"]] = image
    return found


def pictures(root):
    """(key, URL) -> bytes of the pictures that there are."""
    found = {}
    for which, image in places(root).items():
        if image["outcome"] == "ok":
            with (root / image["file"]).open("rb") as tar:
                tar.seek(image["offset"])
                found[which] = tar.read(image["size_bytes"])
    return found


def cure(upstream, root, faults=CURED):
    """Has the pictures of some faults come from now on; returns their URLs."""
    good = next(url for (_, url), image in places(root).items() if image["outcome"] == "ok" and not image["final_url"])
    cured = set()
    for shard in range(4):
        expected = upstream.expected.coyo(shard)
        urls = {row.columns["id"]: row.columns["url"] for row in upstream._upstreams.coyo_rows(shard)}
        cured |= {urls[id] for id, fault in expected.faults.items() if fault in faults and id in expected.chosen}
    for url in cured:
        upstream.replace(url, upstream.answer(good))
    return cured


def outcomes(root):
    return Counter(image["outcome"] for image in places(root).values())


def test_a_retry_gets_what_has_come_back_and_leaves_all_else_as_it_was(upstream, user, small_parts):
    user("fetch coyo --shards 0-3")
    before, kept = places(user.root), pictures(user.root)
    tars = {name: data for name, data in everything(user.root).items() if name.endswith(".tar")}
    cured = cure(upstream, user.root)
    wanted = {url for (_, url), image in before.items() if url in cured and may_pass(image["outcome"])}
    assert wanted

    got = user("fetch coyo --retry")

    assert got.code == 0, got
    now = places(user.root)
    assert now.keys() == before.keys()
    assert {url for (_, url), image in now.items() if image["outcome"] == "ok"} == wanted | {url for _, url in kept}
    assert {which: pictures(user.root)[which] for which in kept} == kept
    assert {name: everything(user.root)[name] for name in tars} == tars
    assert f"{len(wanted)} are ok now" in got.out
    assert typed("verify coyo", user.env).code == 0


def test_only_failures_that_may_pass_are_tried_unless_asked_for_all(upstream, user):
    user("fetch coyo --shards 0-3")
    n_before, cured = len(upstream.requests), cure(upstream, user.root)
    failed = {url for (_, url), image in places(user.root).items() if image["outcome"] != "ok"}
    gone = {url for (_, url), image in places(user.root).items() if image["outcome"] == "http_404"} & cured

    first = user("fetch coyo --retry")
    asked = upstream.requests[n_before:]
    second = user("fetch coyo --retry --where 'outcome=*'")

    assert not any(url.split("//")[1] in path for url in gone for _, path, _ in asked)
    assert "not tried: " in first.out and "http_404" in first.out
    assert second.code == 0
    assert {url for (_, url), image in places(user.root).items() if image["outcome"] == "ok"} >= cured
    assert len(failed) > len(cured)


def test_where_chooses_by_outcome_and_host(upstream, user):
    user("fetch coyo --shards 0-3")
    cure(upstream, user.root, ("error_500", "reset"))
    before = outcomes(user.root)
    assert before["http_500"] and before["reset"]

    got = user("fetch coyo --retry --where outcome=http_500")

    assert f"tried {before['http_500']} URLs again, {before['http_500']} are ok now" in got.out
    assert outcomes(user.root)["reset"] == before["reset"]
    assert "tried 0 URLs" in user("fetch coyo --retry --where host=nobody.example").out


def test_the_causes_of_status_follow_a_retry(upstream, user, small_parts):
    user("fetch coyo --shards 0-3")
    cure(upstream, user.root)

    user("fetch coyo --retry --where 'outcome=*'")

    ledger = Ledger(Store(str(user.root)), "coyo/fetch")
    faults = sum((Counter(commit.faults) for commit in ledger.commits().values()), Counter())
    assert faults == outcomes(user.root) - Counter(ok=outcomes(user.root)["ok"])
    for commit in ledger.commits().values():
        parts = [ledger.read(part.name) for part in commit.parts]
        assert [part.parts for part in parts] == [[part] for part in commit.parts]
        assert sum((Counter(part.faults) for part in parts), Counter()) == Counter(commit.faults)


def test_what_was_packed_before_a_retry_is_stale_and_packed_again_with_the_new_pictures(upstream, user):
    user("fetch coyo --shards 0-3")
    user("build-mix coyo")
    packed = pq.read_table(user.root / "coyo/pack/00000.parquet").column("key").to_pylist()
    sample = {key: _members(user.root / "coyo/pack/00000.tar")[f"{key}.jpg"] for key in packed}
    cure(upstream, user.root)

    user("fetch coyo --retry --where 'outcome=*'")
    status = user("status coyo").out
    user("build-mix coyo")

    assert "coyo/pack: 0 done, 4 stale" in status
    now = pq.read_table(user.root / "coyo/pack/00000.parquet").column("key").to_pylist()
    assert set(now) > set(packed)
    assert [key for key in now if key in packed] == packed
    assert {key: _members(user.root / "coyo/pack/00000.tar")[f"{key}.jpg"] for key in packed} == sample


def _members(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_a_fetch_after_a_retry_finds_all_done(upstream, user, small_parts):
    user("fetch coyo --shards 0-3")
    cure(upstream, user.root)
    user("fetch coyo --retry")
    before, n_before = everything(user.root), len(upstream.requests)

    got = user("fetch coyo --shards 0-3")

    assert got.code == 0
    assert everything(user.root) == before
    assert len(upstream.requests) == n_before


def test_a_shard_whose_commit_was_lost_after_a_retry_is_joined_again_from_its_parts(upstream, user, small_parts):
    user("fetch coyo --shards 0")
    cure(upstream, user.root)
    user("fetch coyo --retry")
    before, n_before = everything(user.root), len(upstream.requests)
    (user.root / "coyo/fetch/00000.commit.json").unlink()

    user("fetch coyo --shards 0")

    assert everything(user.root) == before
    assert len(upstream.requests) == n_before


def test_two_retries_patch_one_after_the_other(upstream, user):
    user("fetch coyo --shards 0-3")
    kept = pictures(user.root)
    cured = cure(upstream, user.root, ("error_500",))
    user("fetch coyo --retry")
    cured |= cure(upstream, user.root, ("reset",))

    user("fetch coyo --retry")

    now = pictures(user.root)
    assert {url for _, url in now} == {url for _, url in kept} | cured
    assert kept.items() <= now.items()
    assert typed("verify coyo", user.env).code == 0
    commits = Ledger(Store(str(user.root)), "coyo/fetch").commits().values()
    named = {file.name for commit in commits for part in commit.parts for file in part.files()}
    assert {path.name for path in (user.root / "coyo/fetch").glob("*.[pt]a*") if path.name[0] != "."} == named


KILLED = """
import os, signal, sys
from datakit.storage import ledger
from datakit.stages.fetch import Fetch
Fetch.rows_per_part = 4
left = int(sys.argv[1])
plain = ledger.Ledger.put
def put(self, name, commit):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    plain(self, name, commit)
ledger.Ledger.put = put
from datakit.cli import cli
cli(["fetch", "coyo", "--retry"], standalone_mode=False)
"""


@pytest.mark.parametrize("commits", [0, 1, 2, 3])
def test_a_retry_that_was_killed_goes_on_and_ends_as_if_it_hadn_t_been(upstream, user, small_parts, forks, commits):
    user("fetch coyo --shards 0-3")
    kept = pictures(user.root)
    cured = cure(upstream, user.root)
    wanted = {url for (_, url), i in places(user.root).items() if url in cured and may_pass(i["outcome"])}

    died = forks.start(KILLED, commits, env={**os.environ, **user.env})
    said = died.communicate()
    between = typed("verify coyo", user.env)
    got = user("fetch coyo --retry")

    assert died.returncode == -signal.SIGKILL, said
    assert between.code == 0, between
    assert got.code == 0, got
    now = pictures(user.root)
    assert {url for _, url in now} == {url for _, url in kept} | wanted
    assert kept.items() <= now.items()
    ledger = Ledger(Store(str(user.root)), "coyo/fetch")
    assert {part.tries for commit in ledger.commits().values() for part in commit.parts} == {1}


def test_a_retry_says_what_it_needs(upstream, user):
    nothing = user("fetch coyo --retry")
    user("fetch coyo --shards 0")
    unknown = user("fetch coyo --retry --shards 0-1")
    archives = user("fetch qinstruct --retry")
    words = user("fetch coyo --retry --where timeout")
    unknown_outcome = user("fetch coyo --retry --where outcome=timeout_totl")
    fine = user("fetch coyo --retry --where outcome=ok")
    alone = user("fetch coyo --where outcome=dns")
    both = user("fetch coyo --retry --rebuild")
    user("build-mix coyo")
    user("clean coyo")
    cleaned = user("fetch coyo --retry")

    assert nothing.code == 1 and "`datakit fetch coyo`" in nothing.err
    assert unknown.code == 2 and "shards 1 " in unknown.err
    assert archives.code == 2 and "by URL" in archives.err
    assert words.code == 2 and "outcome=NAME" in words.err
    assert unknown_outcome.code == 2 and "'timeout_total'" in unknown_outcome.err
    assert fine.code == 2 and "failure" in fine.err
    assert alone.code == 2 and "--retry" in alone.err
    assert both.code == 2 and "--rebuild" in both.err
    assert cleaned.code == 1 and "cleaned" in cleaned.err


def test_conditions_are_read_and_joined():
    where = parse_where(("outcome=timeout_*,dns", "host=*.example"))

    assert where == Where(("timeout_*", "dns"), ("*.example",))
    assert where.matches({"outcome": "timeout_total", "ref": "http://a.example/x"})
    assert not where.matches({"outcome": "timeout_total", "ref": "http://a.org/x"})
    assert not where.matches({"outcome": "reset", "ref": "http://a.example/x"})
    assert not Where(("*",)).matches({"outcome": "ok", "ref": "http://a.example/x"})


def test_every_url_tried_stands_in_the_log_with_its_milliseconds(upstream, user):
    user("fetch coyo --shards 0")

    log = pq.read_table(user.root / "coyo/fetch/log/00000.parquet").to_pylist()

    assert [(row["key"], row["url"], row["outcome"]) for row in log] == [
        (*which, image["outcome"]) for which, image in places(user.root).items()
    ]
    assert all(row["ms"] >= 0 for row in log)
    assert any(row["ms"] > 0 for row in log)


def test_an_answer_that_fails_again_leaves_the_row_with_its_new_outcome(upstream, user):
    user("fetch coyo --shards 0-3")
    urls = [url for (_, url), image in places(user.root).items() if image["outcome"] == "http_500"]
    for url in urls:
        upstream.replace(url, dataclasses.replace(upstream.answer(url), status=404))

    user("fetch coyo --retry --where outcome=http_500")

    assert {image["outcome"] for (_, url), image in places(user.root).items() if url in urls} == {"http_404"}


def test_a_damaged_patch_costs_its_part_alone(upstream, user, small_parts):
    user("fetch coyo --shards 0-3")
    cure(upstream, user.root)
    user("fetch coyo --retry")
    before = everything(user.root)
    tar = next((user.root / "coyo/fetch").glob("*.r1.tar"))
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    n_before = len(upstream.requests)

    told = user("verify coyo --repair")
    got = user("fetch coyo --shards 0-3")

    part = tar.name.partition(".")[0]
    assert told.code == 1 and f"forgotten: coyo/fetch/{part}" in told.out
    assert got.code == 0
    others = {n for n in before if n.startswith("coyo/fetch/") and n.endswith(".tar") and part not in n}
    assert {n: everything(user.root)[n] for n in others} == {n: before[n] for n in others}
    assert 0 < len(upstream.requests) - n_before < 4 * 8  # one part of four rows, redirects and second tries included
    assert user("verify coyo").code == 0


def test_a_retry_killed_between_the_commits_of_part_and_shard_counts_right(upstream, user, small_parts, monkeypatch):
    user("fetch coyo --shards 0-3")
    cure(upstream, user.root)
    put = Ledger.put
    left = [1]

    def dies(self, name, commit):
        left[0] -= 1
        if left[0] < 0:
            raise InterruptedError
        put(self, name, commit)

    monkeypatch.setattr(Ledger, "put", dies)
    with pytest.raises(InterruptedError):
        user("fetch coyo --retry")
    monkeypatch.setattr(Ledger, "put", put)

    user("fetch coyo --retry")

    ledger = Ledger(Store(str(user.root)), "coyo/fetch")
    for commit in ledger.commits().values():
        own = [ledger.read(part.name) for part in commit.parts]
        assert sum((Counter(one.faults) for one in own), Counter()) == Counter(commit.faults)
    assert sum((Counter(c.faults) for c in ledger.commits().values()), Counter()) == outcomes(user.root) - Counter(
        ok=outcomes(user.root)["ok"]
    )


def test_a_retry_killed_before_it_removes_the_old_table_leaves_none_once_it_is_run_again(
    upstream, user, small_parts, monkeypatch
):
    user("fetch coyo --shards 0-3")
    cure(upstream, user.root)
    drop = Ledger._drop

    def dies(self, names):
        if list(names):
            raise InterruptedError

    monkeypatch.setattr(Ledger, "_drop", dies)
    with pytest.raises(InterruptedError):
        user("fetch coyo --retry")
    monkeypatch.setattr(Ledger, "_drop", drop)
    left = tables_and_tars(user.root) - named(user.root)

    user("fetch coyo --retry")

    assert left
    assert tables_and_tars(user.root) == named(user.root)


def test_clean_removes_what_no_commit_names(upstream, user):
    user("fetch coyo --shards 0-1")
    user("build-mix coyo")
    for step, name in (("fetch", "00000.r1.parquet"), ("fetch", "00001-00003.tar"), ("pack", "00007.tar")):
        (user.root / "coyo" / step / name).write_bytes(b"of a job that was killed")

    user("clean coyo")

    assert tables_and_tars(user.root) == set()
    assert sorted(p.name for p in (user.root / "coyo/pack").glob("*.tar")) == ["00000.tar", "00001.tar"]


def tables_and_tars(root):
    return {path.name for path in (root / "coyo/fetch").iterdir() if path.suffix in (".parquet", ".tar")}


def named(root):
    commits = Ledger(Store(str(root)), "coyo/fetch").commits().values()
    return {file.name for commit in commits for part in commit.parts for file in part.files()}
