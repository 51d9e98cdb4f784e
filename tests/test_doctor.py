"""`doctor`: what a fetch will give and cost, from a sample."""

import json
import shutil

import numpy as np
import pytest
from users import everything

from datakit.miniature import Answer, Miniature
from datakit.reports.forecast import Range, mean, share


@pytest.fixture
def upstream():
    with Miniature(rows=20, coyo_shards=4, coyo_rows=100) as miniature:
        yield miniature


@pytest.fixture
def user(user):
    user.env["DATAKIT_TIMEOUT_S"] = "1"
    return user


def told(got):
    assert got.code == 0, got
    return json.loads(got.out)


def test_a_sample_of_all_rows_counts_the_outcomes_that_a_fetch_has(upstream, user):
    found = told(user("doctor coyo --sample 1000 --shards 0-3 --json"))
    user("fetch coyo --shards 0-3")

    (fetch,) = [s for s in told(user("status coyo --json")) if s["step"] == "fetch"]
    assert {o: n for o, n in found["outcomes"].items() if o != "ok"} == fetch["faults"]
    assert found["sampled_urls"] == fetch["rows"]
    assert found["urls"] == fetch["rows"] * 128 // 4  # the manifest has 128 shards
    share, low, high = found["ok_share"]
    assert low < share < high
    assert share == pytest.approx(found["outcomes"]["ok"] / found["sampled_urls"], abs=1e-3)


def test_the_disk_forecast_is_what_a_fetch_then_takes(upstream, user):
    found = told(user("doctor coyo --sample 1000 --shards 0 --json"))
    user("fetch coyo --shards 0")

    tar = (user.root / "coyo/fetch/00000.tar").stat().st_size
    forecast, low, high = (b / 128 for b in found["disk_bytes"])
    assert low <= forecast <= high
    assert forecast == pytest.approx(tar, rel=0.35)  # tar headers weigh much beside small drawings


def test_doctor_lists_one_shard_when_none_is_and_fetches_nothing_for_good(upstream, user):
    first = user("doctor coyo --sample 5")

    assert first.code == 0
    names = set(everything(user.root))
    assert "coyo/top20/00000.commit.json" in names
    assert not any(name.startswith("coyo/fetch") for name in names)
    for word in ("URLs of shards 0", "95 %", "pictures", "disk", "time", "held up by", "128 shards"):
        assert word in first.out
    annotations = [path for _, path, _ in upstream.requests if ".parquet" in path]

    user("doctor coyo --sample 5 --seed 1")

    assert [path for _, path, _ in upstream.requests if ".parquet" in path] == annotations


def test_the_same_seed_draws_the_same_urls_and_another_one_others(upstream, user):
    def asked(seed):
        start = len(upstream.requests)
        user(f"doctor coyo --sample 4 --seed {seed}")
        return {path for _, path, _ in upstream.requests[start:] if "resolve" not in path}

    user("doctor coyo --sample 1")

    assert asked(7) == asked(7)
    assert asked(7) != asked(8)


def test_a_disk_that_is_too_small_is_said_loudly(user, monkeypatch):
    user("doctor coyo --sample 1")  # downloads the annotations, which takes room
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())

    assert "NOT ENOUGH" in user("doctor coyo --sample 3").out


def test_archives_are_asked_for_one_by_one(upstream, user):
    fine = told(user("doctor qinstruct --json"))
    one = next(f for f in fine["files"] if f["name"] != "qinstruct.json")
    url = one["address"]
    upstream.replace(
        url if url.startswith("http") else f"/{url.removeprefix('hub://').replace('@', '/resolve/')}",
        Answer(status=404),
    )

    broken = user("doctor qinstruct")

    assert all(f["bytes"] > 0 and not f["here"] for f in fine["files"])
    assert fine["bytes_to_download"] == sum(f["bytes"] for f in fine["files"])
    assert broken.code == 1
    assert "can be had" in broken.out


def test_the_interval_of_a_share_holds_the_truth_nineteen_times_of_twenty():
    rng = np.random.default_rng(0)
    for truth in (0.02, 0.5, 0.9):
        found = [share(int(rng.binomial(400, truth)), 400) for _ in range(1000)]
        inside = sum(one.low <= truth <= one.high for one in found)

        assert 925 <= inside <= 985


def test_shares_and_means_of_nothing_know_nothing():
    assert share(0, 0) == Range(0.0, 0.0, 1.0)
    assert share(0, 10).low == 0.0 < share(0, 10).high
    assert share(10, 10).high == 1.0 > share(10, 10).low
    assert mean([]) == Range(0, 0, 0)
    assert mean([5.0]) == Range(5.0, 0.0, 10.0)


def test_a_shard_that_isn_t_there_is_refused(user):
    assert user("doctor coyo --shards 7777").code == 2
