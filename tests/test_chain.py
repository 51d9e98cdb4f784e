"""The main job, end to end on the miniature: fetch, pack, mix, and what others read of it."""

import io
import json
import tarfile
from collections import Counter

import pyarrow.parquet as pq
import pytest
from users import REAL, everything, settings, typed

from datakit.miniature import Miniature, coyo_parquet
from datakit.stream.reader import Stream


def tables(root, step):
    """Rows of all tables of a step."""
    return [row for path in sorted((root / step).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def commits(root, step):
    return [json.loads(p.read_bytes()) for p in sorted((root / step).glob("?????.commit.json"))]


def total(root, step, what):
    counted = Counter()
    for commit in commits(root, step):
        counted.update(commit[what])
    return dict(counted)


def samples(root, dataset):
    """Every sample of a dataset's packed tars, by key, as plain tarfile sees it."""
    found = {}
    for path in sorted((root / dataset / "pack").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                key, _, ending = member.name.partition(".")
                found.setdefault(key, {})[ending] = tar.extractfile(member).read()
    return found


def test_coyo_takes_vilas_choice_and_every_url_has_its_outcome(built, upstream):
    for shard in range(4):
        expected = upstream.expected.coyo(shard)

        chosen = pq.read_table(built / f"coyo/top20/{shard:05d}.parquet")["key"].to_pylist()
        fetched = pq.read_table(built / f"coyo/fetch/{shard:05d}.parquet").to_pylist()

        assert sorted(chosen) == sorted(f"coyo-{i}" for i in expected.chosen)
        assert [row["key"] for row in fetched] == chosen
        outcomes = {image["ref"]: image["outcome"] for row in fetched for image in row["images"]}
        assert len(outcomes) == len(expected.chosen)
        for url, outcome in outcomes.items():
            assert outcome in expected.outcomes[url], url


def test_what_is_packed_and_what_is_dropped_add_up_to_what_came(built, upstream):
    for dataset in ("llava665k", "qinstruct"):
        expected = getattr(upstream.expected, dataset)

        packed = samples(built, dataset)
        dropped = Counter(total(built, f"{dataset}/list", "dropped"))
        dropped.update(total(built, f"{dataset}/pack", "dropped"))

        assert tuple(sorted(packed)) == expected.kept
        assert dict(dropped) == expected.counts
        assert len(packed) + sum(dropped.values()) == expected.rows


def test_a_text_only_record_is_kept_without_a_picture(built, upstream):
    alone = [s for s in samples(built, "llava665k").values() if set(s) == {"json"}]

    assert alone
    for sample in alone:
        record = json.loads(sample["json"])
        assert record["images"] == []
        assert {p["type"] for m in record["messages"] for p in m["content"]} == {"text"}


def test_a_record_has_as_many_pictures_as_image_parts_and_they_open(built):
    from PIL import Image

    for dataset in ("llava665k", "qinstruct", "coyo"):
        for key, sample in samples(built, dataset).items():
            record = json.loads(sample["json"])
            marks = sum(p["type"] == "image" for m in record["messages"] for p in m["content"])
            pictures = [data for ending, data in sample.items() if ending.endswith(("jpg", "png"))]

            assert record["key"] == key
            assert record["source"] == dataset
            assert marks == len(pictures) == len(record["images"])
            for data in pictures:
                with Image.open(io.BytesIO(data)) as picture:
                    picture.load()
                    assert picture.format in ("JPEG", "PNG")
                    assert picture.mode in ("RGB", "L")


def test_a_pair_has_its_caption_beside_it(built):
    for sample in samples(built, "coyo").values():
        (message,) = json.loads(sample["json"])["messages"]

        assert message["role"] == "assistant"
        assert sample["txt"].decode() == message["content"][1]["text"]


def test_fetched_pictures_have_their_short_side_at_336_at_the_most(built):
    sides = [
        min(image["width"], image["height"])
        for row in tables(built, "coyo/fetch")
        for image in row["images"]
        if image["outcome"] == "ok"
    ]

    assert sides and max(sides) <= 336


def test_archives_are_never_unpacked(built):
    loose = [p for p in built.rglob("*") if p.suffix in (".jpg", ".png", ".gif", ".jpeg")]

    assert loose == []


def test_the_index_beside_a_tar_says_where_every_member_stands(built):
    for path in sorted((built / "llava665k/pack").glob("*.tar")):
        data = path.read_bytes()
        for row in pq.read_table(path.with_suffix(".parquet")).to_pylist():
            record = json.loads(data[row["json_offset"] : row["json_offset"] + row["json_bytes"]])
            assert record["key"] == row["key"]
            for image in row["images"]:
                first = data[image["offset"] : image["offset"] + 2]
                assert first == {"jpg": b"\xff\xd8", "png": b"\x89P"}[image["ext"]]


def test_the_same_root_is_made_again_with_the_same_bytes_by_two_processes(built, upstream, tmp_path):
    env = settings(upstream, tmp_path / "again", DATAKIT_JOBS="2")

    for command in ("build-mix --fetch llava665k+qinstruct", "fetch coyo --shards 0-3", "build-mix coyo"):
        assert typed(command, env).code == 0

    def made(root):
        return {name: data for name, data in everything(root).items() if not name.startswith("downloads/")}

    assert made(tmp_path / "again") == made(built)


def test_running_again_does_nothing_and_asks_the_network_for_nothing(built, upstream):
    before = len(upstream.requests)
    files = {name: hash(data) for name, data in everything(built).items()}
    env = settings(upstream, built)

    for command in ("fetch coyo --shards 0-3", "fetch llava665k", "build-mix llava665k+qinstruct"):
        got = typed(command, env)
        assert got.code == 0
        assert "done before" in got.out

    assert upstream.requests[before:] == []
    assert {name: hash(data) for name, data in everything(built).items()} == files


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its tars open
def test_webdataset_reads_the_packed_tars(built):
    wds = pytest.importorskip("webdataset", reason="webdataset isn't installed")
    tars = [str(p) for p in sorted((built / "llava665k/pack").glob("*.tar"))]

    found = {s["__key__"]: s for s in wds.WebDataset(tars, shardshuffle=False)}

    expected = samples(built, "llava665k")
    assert found.keys() == expected.keys()
    for key, sample in expected.items():
        assert {k: v for k, v in found[key].items() if not k.startswith("__")} == sample


@pytest.mark.filterwarnings("default::ResourceWarning", "default::DeprecationWarning", "default::FutureWarning")
def test_hugging_face_datasets_reads_the_packed_tars(built, tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets isn't installed")
    tars = [str(p) for p in sorted((built / "coyo/pack").glob("*.tar")) if p.stat().st_size > 1024]

    found = datasets.load_dataset("webdataset", data_files=tars, split="train", cache_dir=str(tmp_path))

    expected = samples(built, "coyo")
    assert sorted(found["__key__"]) == sorted(expected)
    for row in found:
        assert row["txt"] == expected[row["__key__"]]["txt"].decode()
        assert row["jpg"].size == tuple(row["json"]["images"][0][side] for side in ("width", "height"))


def test_the_stream_gives_every_sample_of_the_mix_once_an_epoch(built):
    stream = Stream(built / "mixes/llava665k+qinstruct/mix.json", seed=3)
    expected = samples(built, "llava665k") | samples(built, "qinstruct")

    seen = [stream[p] for p in range(len(stream))]

    assert sorted(s.key for s in seen) == sorted(expected)
    for sample in seen:
        pictures = [d for e, d in sorted(expected[sample.key].items()) if e.endswith(("jpg", "png"))]
        assert sample.images == pictures
    assert [stream[len(stream) + p].key for p in range(len(stream))] != [s.key for s in seen]


def test_a_bucket_is_a_root_like_any_other(built, upstream, tmp_path, bucket):
    env = settings(upstream, tmp_path, DATAKIT_ROOT="s3://bucket/chain-test", DATAKIT_CACHE=str(tmp_path / "cache"))

    for command in ("build-mix --fetch llava665k+qinstruct", "fetch coyo --shards 0-3", "build-mix coyo", "verify"):
        assert typed(command, env).code == 0

    here = Stream(built / "mixes/llava665k+qinstruct/mix.json")
    there = Stream("s3://bucket/chain-test/mixes/llava665k+qinstruct/mix.json")
    assert there.fingerprint == here.fingerprint
    assert [there[p] for p in range(20)] == [here[p] for p in range(20)]
    for name in ("llava665k+qinstruct", "coyo"):
        mixed = [Stream(f"{root}/mixes/{name}/mix.json").fingerprint for root in (built, "s3://bucket/chain-test")]
        assert mixed[0] == mixed[1]
    assert "0 files" not in typed("clean llava665k", env).out
    assert typed("fetch llava665k", env).code == 0


def test_the_seven_real_rows_as_one_shard_give_vilas_row(tmp_path):
    if not REAL.is_dir():
        pytest.skip("the real rows of ../shared/real aren't here")
    rows = [json.loads(line) for line in (REAL / "coyo_rows.jsonl").read_text().splitlines()]
    name = "data/part-00000-17da4908-939c-46e5-91d0-15f256041956-c000.snappy.parquet"
    with Miniature(real=REAL) as upstream:
        upstream.replace(f"/datasets/kakaobrain/coyo-700m/resolve/main/{name}", coyo_parquet(rows))
        env = settings(upstream, tmp_path)

        assert typed("fetch coyo --shards 0", env).code == 0
        assert typed("build-mix coyo", env).code == 0

    (key,) = samples(tmp_path, "coyo")
    assert key == "coyo-1125282207474"
    record = json.loads(samples(tmp_path, "coyo")[key]["json"])
    assert round(record["attrs"]["clip_sim"], 6) == 0.795898
    assert commits(tmp_path, "coyo/top20")[0]["dropped"] == {"below_floor": 4, "below_quota": 2}
