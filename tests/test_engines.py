"""img2dataset under our ledger: as the engine of a fetch, and as the maker of a folder that is taken over."""

import io
import json
import tarfile
from collections import Counter
from importlib.util import find_spec

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from users import everything

from datakit.miniature import Miniature
from datakit.storage.ledger import Ledger
from datakit.storage.store import Store


@pytest.fixture
def upstream():
    with Miniature(rows=20, coyo_shards=4, coyo_rows=40) as miniature:
        yield miniature


@pytest.fixture
def user(user):
    user.env["DATAKIT_TIMEOUT_S"] = "1"
    return user


def rows(root):
    ledger = Ledger(Store(str(root)), "coyo/fetch")
    return [
        row
        for commit in ledger.commits().values()
        for part in commit.parts
        for row in pq.read_table(root / "coyo/fetch" / part.table.name).to_pylist()
    ]


def outcomes(root):
    return Counter(image["outcome"] for row in rows(root) for image in row["images"])


def listed(root):
    """URLs of the chosen rows, by key."""
    table = pq.read_table(root / "coyo/top20/00000.parquet")
    return {row["key"]: row["images"][0]["ref"] for row in table.to_pylist()}


@pytest.fixture
def output(upstream, user, tmp_path):
    """An output folder of img2dataset with half of shard 0's pictures, and one failure."""
    user("doctor coyo --shards 0 --sample 1")  # lists and chooses
    urls = list(listed(user.root).values())
    return output_of(upstream, urls[: len(urls) // 2 + 1], tmp_path / "theirs")


def output_of(upstream, urls, folder):
    """What img2dataset would have made of some URLs, the first of them a failure."""
    folder.mkdir()
    made, table = io.BytesIO(), []
    with tarfile.open(fileobj=made, mode="w") as tar:
        for n, url in enumerate(urls):
            answer = None if n == 0 else upstream.answer(url)
            ok = answer is not None and answer.status == 200 and answer.body.startswith(b"\xff\xd8")
            status, error = ("success", None) if ok else ("failed_to_download", "HTTP Error 404: Not Found")
            table.append({"url": url, "key": f"{n:09d}", "status": status, "error_message": error})
            for ending, data in (("jpg", answer.body), ("json", json.dumps(table[-1]).encode())) if ok else ():
                about = tarfile.TarInfo(f"{n:09d}.{ending}")
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))
    (folder / "00000.tar").write_bytes(made.getvalue())
    pq.write_table(pa.Table.from_pylist(table), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text("{}")
    return folder


def test_a_folder_of_img2dataset_is_taken_over_without_a_download(upstream, user, output):
    n_before = len(upstream.requests)

    got = user(f"import img2dataset {output} coyo --shards 0")

    assert got.code == 0, got
    assert len(upstream.requests) == n_before
    found = outcomes(user.root)
    assert found["ok"] >= 2
    assert found["http_404"] >= 1
    assert found["not_imported"] >= 2
    assert sum(found.values()) == len(listed(user.root))
    assert user("verify coyo").code == 0
    assert "not_imported" in user("status coyo").out


def test_what_a_folder_lacks_is_fetched_by_a_retry_and_all_of_it_is_packed(upstream, user, output):
    user(f"import img2dataset {output} coyo --shards 0")
    before = outcomes(user.root)

    retried = user("fetch coyo --retry --engine datakit")
    built = user("build-mix coyo")
    status = user("status coyo").out

    assert retried.code == built.code == 0
    assert outcomes(user.root)["not_imported"] == 0
    assert outcomes(user.root)["ok"] > before["ok"]
    assert "another recipe" not in status
    assert "coyo/pack: 1 done" in status


def test_a_second_folder_fills_what_the_first_one_lacked(upstream, user, output, tmp_path):
    user(f"import img2dataset {output} coyo --shards 0")
    before = outcomes(user.root)
    n_before = len(upstream.requests)
    lacking = [i["ref"] for row in rows(user.root) for i in row["images"] if i["outcome"] == "not_imported"]
    second = output_of(upstream, lacking, tmp_path / "more")

    got = user(f"import img2dataset {second} coyo --shards 0")

    assert got.code == 0, got
    assert len(upstream.requests) == n_before
    assert outcomes(user.root)["not_imported"] == 0
    assert outcomes(user.root)["ok"] > before["ok"]


def test_engines_and_imports_mean_nothing_to_archives(user, output):
    for command in ("fetch qinstruct --engine img2dataset", f"import img2dataset {output} qinstruct"):
        got = user(command)

        assert got.code == 2
        assert "don't come by URL" in got.err


def test_a_folder_that_is_none_is_refused(user, tmp_path):
    (tmp_path / "empty").mkdir()

    got = user(f"import img2dataset {tmp_path / 'empty'} coyo --shards 0")

    assert got.code == 2
    assert "img2dataset" in got.err


def test_two_engines_don_t_mix_in_one_folder(user):
    user("fetch coyo --shards 0")
    before = everything(user.root)

    got = user("fetch coyo --shards 1 --engine img2dataset")

    assert got.code == 1
    assert "engine" in got.err
    assert {name: data for name, data in everything(user.root).items() if name in before} == before


@pytest.mark.skipif(
    find_spec("img2dataset") is None or find_spec("imghdr") is None,
    reason="img2dataset is not installed, or this Python has no imghdr",
)
@pytest.mark.usefixtures("lean")
def test_the_real_img2dataset_fetches_under_our_ledger(upstream, user):
    got = user("fetch coyo --shards 0 --engine img2dataset", DATAKIT_TIMEOUT_S="5")
    again = user("fetch coyo --shards 0")
    built = user("build-mix coyo")

    assert got.code == 0, got
    assert "1 shards were done before" in again.out
    assert built.code == 0
    expected = upstream.expected.coyo(0)
    ok = {url for url, outcomes in expected.outcomes.items() if outcomes == ("ok",)}
    mine = {image["ref"] for row in rows(user.root) for image in row["images"] if image["outcome"] == "ok"}
    assert mine <= ok
    assert len(mine) >= len(ok & set(listed(user.root).values())) - 1  # a name or two is beyond urllib
    recipe = json.loads((user.root / "coyo/fetch/recipe.json").read_text())
    assert recipe["engine"] == "img2dataset"
