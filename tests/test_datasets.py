"""Each dataset of the guides on the miniature, from download to tars: what is kept, and what is dropped and why."""

import json
import tarfile
from collections import Counter

import pytest
from users import settings, typed

from datakit.catalogue import manifest
from datakit.miniature import Miniature

NAMES = [
    "llava558k",
    "cc3m595k",
    "llava332k",
    "allava",
    "allava.captions",
    "allava.instructions",
    "allava.text",
    "m3it",
    "sharegpt4v.captions",
    "sharegpt4v.pretrain",
    "sharegpt4v.sft",
    "sharegpt4v_vila.pretrain",
    "sharegpt4v_vila.sft",
    "icm",
    "mgm.pretrain",
    "mgm.instruction",
]
RULES = ("sa_id", "repetition")  # of the recipe `sharegpt4v`


@pytest.fixture(scope="module")
def small():
    with Miniature(rows=60) as miniature:
        yield miniature


def bring(upstream, name, env, tmp_path):
    """Adopts what no program can download, as a person would who has it."""
    for source in manifest.load(name).images.sources.values():
        for archive in source.archives() if source.obtain else ():
            path = tmp_path / archive.rpartition("/")[2]
            path.write_bytes(upstream.answer(archive).body)
            assert typed(f"adopt {name} {path}", env).code == 0


def commits(root, name):
    return [json.loads(path.read_bytes()) for path in sorted((root / name).glob("*/?????.commit.json"))]


def dropped(root, name):
    counted = Counter()
    for commit in commits(root, name):
        counted.update(commit["dropped"])
    return dict(counted)


def packed(root, name):
    """Records by key, as they stand in the tars."""
    found = {}
    for path in sorted((root / name / "pack").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    record = json.loads(tar.extractfile(member).read())
                    found[record["key"]] = record
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_dataset_keeps_and_drops_what_it_should(small, tmp_path, name):
    env = settings(small, tmp_path / "root")
    bring(small, name, env, tmp_path)
    expected = small.expected.of(name)
    ruled = {key: why for key, why in expected.faults.items() if why in RULES} if name.startswith("sharegpt4v.") else {}
    if name == "sharegpt4v.sft":
        ruled = {}

    got = typed(f"build-mix {name} --fetch --accept-licence --tolerate 0.95", env)

    assert got.code == 0, got
    records = packed(tmp_path / "root", name)
    assert list(records) == [key for key in expected.kept if key not in ruled]
    assert dropped(tmp_path / "root", name) == dict(Counter(expected.counts) + Counter(ruled.values()))
    for record in records.values():
        assert record["source"] == name
        marks = sum(part["type"] == "image" for message in record["messages"] for part in message["content"])
        assert marks == len(record["images"])


def test_mmc4_keeps_documents_with_all_their_pictures_and_by_the_other_recipe_those_with_some(small, tmp_path):
    env = settings(small, tmp_path / "root")
    other = settings(small, tmp_path / "other")
    expected = {shard: small.expected.mmc4(shard) for shard in (0, 10)}

    assert typed("fetch mmc4 --shards 0,10", env).code == 0
    assert typed("build-mix mmc4", env).code == 0
    assert typed("fetch mmc4 --shards 0,10 --recipe mmc4_keep", other).code == 0
    assert typed("build-mix mmc4", other).code == 0

    whole, partly = packed(tmp_path / "root", "mmc4"), packed(tmp_path / "other", "mmc4")
    assert list(whole) == [key for one in expected.values() for key in one.kept]
    some = {key: urls for one in expected.values() for key, urls in one.partly.items() if urls}
    assert set(partly) == {key for one in expected.values() for key in one.kept} | set(some)
    for one in expected.values():
        for key, urls in one.partly.items() & some.items():
            assert sorted(image["ref"] for image in partly[key]["images"]) == sorted(urls)
            assert partly[key]["attrs"]["images_dropped"] == len(one.images[key]) - len(urls)
    lost = Counter(reason for one in expected.values() for reason in one.dropped.values())
    listed = Counter()
    for path in (tmp_path / "root/mmc4/list").glob("?????.commit.json"):
        listed.update(json.loads(path.read_bytes())["dropped"])
    assert {reason: n for reason, n in lost.items() if reason in ("no_images", "empty_answer")} == dict(listed)
    assert len(whole) + sum(dropped(tmp_path / "root", "mmc4").values()) == sum(one.rows for one in expected.values())


def test_a_missing_shard_of_mmc4_is_told_and_the_others_stay(small, tmp_path):
    env = settings(small, tmp_path / "root")

    gone = typed("fetch mmc4 --shards 1277", env)
    lost = typed("fetch mmc4 --shards 0,7", env)
    there = typed("fetch mmc4 --shards 0", env)

    assert gone.code == 2 and "1277" in gone.err
    assert lost.code == 1 and "docs_no_face_shard_7_v3" in lost.err
    assert there.code == 0 and "done before" in there.out


def test_mmc4_core_is_lost_and_says_what_may_stand_for_it(small, tmp_path):
    env = settings(small, tmp_path / "root")
    since = len(small.requests)

    got, mixed, pinned = (typed(f"{words} mmc4_core", env) for words in ("fetch", "build-mix", "pin"))

    assert [one.code for one in (got, mixed, pinned)] == [1, 1, 1]
    for one in (got, mixed, pinned):
        assert "AI2 deleted" in one.err and "datakit fetch mmc4" in one.err
    assert len(small.requests) == since


def test_flan_takes_the_even_sample_and_drops_what_has_no_answer(small, tmp_path):
    env = settings(small, tmp_path / "root")
    expected = small.expected.flan

    got = typed("build-mix flan --fetch", env)

    assert got.code == 0, got
    records = packed(tmp_path / "root", "flan")
    said = [(r["messages"][0]["content"][0]["text"], r["messages"][1]["content"][0]["text"]) for r in records.values()]
    kept = [pair for row, pair in enumerate(expected.pairs) if row not in expected.empty]
    assert said == [(asked.rstrip(), answer.rstrip()) for asked, answer in kept]  # fewer rows than a million: all
    assert dropped(tmp_path / "root", "flan") == {"empty_answer": len(expected.empty)}
    assert not any("submix_data.json" in path for _, path, _ in small.requests)
