"""`datakit export`: packed tars in the forms of other tools, and LLaVA's JSON all the way round."""

import io
import json
import os
import signal
import tarfile
import zipfile
from pathlib import Path

import msgspec
import pytest
from PIL import Image
from users import KILLED, settings, typed

from datakit.catalogue import manifest
from datakit.records.record import Message, Part, Record
from datakit.storage.store import Store
from datakit.upkeep import export
from datakit.upkeep.export import HF_FEATURES, ExportReport, conversations, is_path

IMAGE = Part(type="image")


MANIFEST = """
title = "odd"
homepage = "https://example.org"
licence = "none"
citation = "none"
hub = ""
reader = "llava"
recipe = "instruct"
[annotations]
format = "json"
files = "file://{0}/rows.json"
rows_per_shard = 5
[images]
by = "path"
[images.sources.all]
prefix = ""
archive = "file://{0}/pictures.zip"
"""


def jpeg():
    sink = io.BytesIO()
    Image.new("RGB", (60, 40), (200, 30, 90)).save(sink, "JPEG")
    return sink.getvalue()


def said(answer):
    return [{"from": "gpt", "value": answer}]


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def packed(built, upstream):
    """Types commands in the built root, which export only reads."""
    env = settings(upstream, built)
    return lambda command: typed(command, env)


def upstreams_rows(upstream, dataset):
    path = {
        "llava665k": "/datasets/liuhaotian/LLaVA-Instruct-150K/resolve/main/llava_v1_5_mix665k.json",
        "qinstruct": "/datasets/teowu/Q-Instruct/resolve/main/cleaned_labels.json",
    }[dataset]
    return json.loads(upstream.answer(path).body)


def repairs_of(built, dataset):
    """The `repairs` of every packed record, by row number."""
    from datakit.records.record import decode

    found = {}
    for path in sorted((built / dataset / "pack").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    record = decode(tar.extractfile(member).read())
                    found[int(record.key.rpartition("-")[2])] = record.attrs.get("repairs") or []
    return found


@pytest.mark.parametrize("dataset", ["llava665k", "qinstruct"])
def test_every_kept_record_goes_all_the_way_round_up_to_its_repairs(packed, built, upstream, tmp_path, dataset):
    repairs, rows = repairs_of(built, dataset), upstreams_rows(upstream, dataset)

    got = packed(f"export {dataset} --format llava --out {tmp_path}/out")
    made = json.loads((tmp_path / f"out/{dataset}.json").read_bytes())

    assert got.code == 0
    assert len(made) == len(repairs) == len(getattr(upstream.expected, dataset).kept)
    for mine, number in zip(made, sorted(repairs), strict=True):
        theirs = dict(rows[number])
        if "id_type" in repairs[number]:
            assert not isinstance(theirs["id"], str)
            theirs["id"] = str(theirs["id"])
        assert mine == theirs
    assert {name for repair in repairs.values() for name in repair} <= {"id_type", "content_type"}
    faults = getattr(upstream.expected, dataset).faults
    odd = {int(key[-9:]) for key, fault in faults.items() if fault in ("gif_named_jpg", "png_palette", "png_16bit")}
    assert {number for number, repair in repairs.items() if "content_type" in repair} == odd
    n_ids = sum("id_type" in repair for repair in repairs.values())
    assert (f"id_type {n_ids}" in got.out) == bool(n_ids)


ODD = [  # rows, and the repairs by which what is written differs from them
    ({"id": "a", "image": "0.jpg", "conversations": [("human", "<image>\nQ"), ("gpt", "A")]}, []),
    ({"id": "b", "conversations": [("system", "S"), ("human", "<image>?"), ("gpt", "<image>")]}, []),
    ({"id": "c", "image": ["0.jpg", "1.jpg"], "conversations": [("human", "<image>\n<image>\nQ"), ("gpt", "A")]}, []),
    ({"idx": 7, "model": "", "conversations": [("human", "Q"), ("gpt", "A")]}, ["id_key", "id_type"]),
    ({"conversations": [("human", "Q"), ("gpt", "A")]}, ["id_missing"]),
    ({"id": "d", "image": ["0.jpg"], "conversations": [("human", "Q\n<image>"), ("gpt", "A")]}, ["image_form"]),
    ({"id": "e", "image": "1.jpg", "conversations": [("human", "see <image> ?"), ("gpt", "A")]}, ["line_breaks"]),
    ({"id": "f", "image": "1.jpg", "conversations": [("human", "Q"), ("gpt", "A")]}, ["mark_added"]),
    ({"id": "g", "conversations": [("user", "Q"), ("assistant", "A"), ("human", "Q2"), ("gpt", "A2")]}, ["role_name"]),
]


def test_odd_rows_go_all_the_way_round_up_to_what_their_repairs_name(upstream, tmp_path):
    rows = [
        {**row, "conversations": [{"from": who, "value": what} for who, what in row["conversations"]]} for row, _ in ODD
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for name in ("0.jpg", "1.jpg"):
            archive.writestr(name, jpeg())
    (tmp_path / "own/manifests").mkdir(parents=True)
    (tmp_path / "own/manifests/odd.toml").write_text(MANIFEST.format(tmp_path))
    env = settings(upstream, tmp_path / "root", DATAKIT_CATALOGUE=str(tmp_path / "own"))

    built = typed("build-mix odd --fetch", env)
    got = typed(f"export odd --format llava --out {tmp_path}/out", env)
    made = json.loads((tmp_path / "out/odd.json").read_bytes())

    assert built.code == got.code == 0
    found = repairs_of(tmp_path / "root", "odd")
    assert [found[n] for n in range(len(ODD))] == [repairs for _, repairs in ODD]
    differs = {
        "id_key": ("id", "7"),
        "id_missing": ("id", "4"),
        "image_form": ("image", "0.jpg"),
        "line_breaks": ("conversations", [{"from": "human", "value": "see \n<image>\n ?"}, *said("A")]),
        "role_name": (
            "conversations",
            [{"from": ("human", "gpt")[n % 2], "value": what} for n, what in enumerate(["Q", "A", "Q2", "A2"])],
        ),
        "mark_added": ("conversations", [{"from": "human", "value": "<image>\nQ"}, *said("A")]),
    }
    for mine, theirs, (_, repairs) in zip(made, rows, ODD, strict=True):
        theirs = {name: theirs[name] for name in ("id", "image", "conversations") if name in theirs}
        assert mine == theirs | dict(differs[name] for name in repairs if name in differs)


def test_allavas_five_files_go_all_the_way_round_with_idx_as_id(user, upstream, tmp_path):
    built = user("build-mix --fetch allava")
    got = user(f"export allava --format llava --out {tmp_path}/out")

    assert built.code == got.code == 0
    rows = [
        row
        for file in manifest.load("allava").shard_files()
        for row in json.loads(upstream.answer(f"/datasets/FreedomIntelligence/ALLaVA-4V/resolve/main/{file}").body)
    ]
    repairs = repairs_of(user.root, "allava")
    made = json.loads((tmp_path / "out/allava.json").read_bytes())
    assert {tuple(repair) for repair in repairs.values()} == {(), ("id_key", "id_type")}
    for mine, number in zip(made, sorted(repairs), strict=True):
        theirs = {name: rows[number][name] for name in ("image", "conversations") if name in rows[number]}
        assert mine == {"id": str(rows[number]["idx"]) if repairs[number] else rows[number]["id"], **theirs}


def test_pictures_stand_where_the_json_says(packed, tmp_path):
    packed(f"export llava665k --format llava --out {tmp_path}/out")

    made = json.loads((tmp_path / "out/llava665k.json").read_bytes())
    refs = {row["image"] for row in made if "image" in row}

    assert refs == {name.removeprefix("images/") for name in files(tmp_path / "out") if name.startswith("images/")}
    for ref in refs:
        with Image.open(tmp_path / "out/images" / ref) as picture:
            picture.load()


def test_an_export_again_has_the_same_bytes_and_an_interrupted_one_goes_on(packed, tmp_path):
    packed(f"export qinstruct --format llava --out {tmp_path}/out")
    before = files(tmp_path / "out")
    (tmp_path / "out/qinstruct.json").unlink()
    next((tmp_path / "out/images").rglob("*.jpg")).unlink()

    again = packed(f"export qinstruct --format llava --out {tmp_path}/out")

    assert again.code == 0
    assert files(tmp_path / "out") == before


def test_another_folder_or_another_export_is_not_written_over(packed, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    packed(f"export qinstruct --format llava --no-images --out {tmp_path}/out")

    full = packed(f"export qinstruct --format hf --out {tmp_path}/full")
    other = packed(f"export qinstruct --format llava --out {tmp_path}/out")
    (tmp_path / "out/DATAKIT.json").write_text("{")
    damaged = packed(f"export qinstruct --format llava --no-images --out {tmp_path}/out")

    assert (full.code, other.code, damaged.code) == (2, 2, 2)
    assert "mine.txt" in full.err
    assert "images: false -> true" in other.err
    assert "can't be read" in damaged.err
    assert files(tmp_path / "full") == {"mine.txt": b"mine"}


def test_what_is_not_packed_is_said_to_be_missing(user, tmp_path):
    nothing = user(f"export qinstruct --format hf --out {tmp_path}/out")
    user("fetch qinstruct")
    fetched = user(f"export qinstruct --format hf --out {tmp_path}/out")

    assert nothing.code == fetched.code == 1
    assert "datakit fetch qinstruct" in nothing.err
    assert "datakit build-mix qinstruct" in fetched.err
    assert not (tmp_path / "out").exists()


def test_pairs_become_a_question_of_the_picture_and_hostile_references_stand_under_the_key(packed, tmp_path):
    got = packed(f"export coyo --format llava --out {tmp_path}/out")

    made = json.loads((tmp_path / "out/coyo.json").read_bytes())
    assert got.code == 0
    assert f"{len(made)} pairs" in got.out and f"{len(made)} pictures stand below by-key/" in got.out
    for row in made:
        assert row["conversations"][0] == {"from": "human", "value": "<image>"}
        assert row["conversations"][1]["from"] == "gpt"
        assert row["image"].startswith(f"by-key/{row['id']}.0.") or row["image"].startswith("by-key/coyo-")
        assert (tmp_path / "out/images" / row["image"]).is_file()


@pytest.mark.parametrize(
    ("ref", "good"),
    [
        ("coco/train2017/000000033471.jpg", True),
        ("a.JPEG", True),
        ("PACS+guitar_ü.png", True),
        ("../a.jpg", False),
        ("a/../../b.jpg", False),
        ("/etc/a.jpg", False),
        ("C:/a.jpg", False),
        ("http://x.org/a.jpg", False),
        ("a\\b.jpg", False),
        ("a//b.jpg", False),
        ("./a.jpg", False),
        (".hidden/a.jpg", False),
        ("a.jpg/b.jpg", False),
        ("by-key/a.jpg", False),
        ("passwd", False),
        ("a\0.jpg", False),
        (f"{'x' * 200}.jpg", False),
        ("", False),
    ],
)
def test_only_a_plain_path_of_a_picture_is_a_name(ref, good):
    assert is_path(ref) is good


def test_one_reference_that_stands_for_two_pictures_gives_two_files(tmp_path):
    out, done = Store(str(tmp_path)), ExportReport()

    names = [
        export.write_picture(out, "k-1", 0, "a.jpg", b"one", "jpg", done),
        export.write_picture(out, "k-2", 0, "a.jpg", b"one", "jpg", done),
        export.write_picture(out, "k-3", 0, "a.jpg", b"two", "png", done),
    ]

    assert names == ["a.jpg", "a.jpg", "by-key/k-3.0.png"]
    assert files(tmp_path) == {"images/a.jpg": b"one", "images/by-key/k-3.0.png": b"two"}
    assert (done.pictures, done.renamed) == (3, 1)


def record(*messages, images=0):
    said = [
        Message(role=role, content=[IMAGE if p is IMAGE else Part(type="text", text=p) for p in content])
        for role, *content in messages
    ]
    return Record(key="k", source="s", messages=said, images=[{"ref": f"{n}.jpg"} for n in range(images)])


@pytest.mark.parametrize(
    ("of", "turns"),
    [
        (record(("system", "S"), ("user", IMAGE, "Q"), ("assistant", "A"), images=1), ["S", "<image>\nQ", "A"]),
        (record(("user", "Q", IMAGE), ("assistant", "<image>"), images=1), ["Q\n<image>", "<image>"]),
        (record(("user", IMAGE, IMAGE, "Q"), ("assistant", "A"), images=2), ["<image>\n<image>\nQ", "A"]),
        (record(("user", "of <image>"), ("assistant", "A")), ["of <image>", "A"]),
        (record(("assistant", IMAGE, "C"), images=1), ["<image>", "C"]),
        (record(("assistant", "t", IMAGE, "C"), images=1), "document"),
        (msgspec.structs.replace(record(("assistant", IMAGE, "C"), images=1), attrs={"interleaved": True}), "document"),
        (record(("assistant", "text")), "document"),
        (record(("user", "Q")), "roles"),
        (record(("user", "Q"), ("assistant", IMAGE), images=1), "picture_in_answer"),
        (record(("user", IMAGE, "of <image>"), ("assistant", "A"), images=1), "mark_in_text"),
    ],
)
def test_a_record_has_llavas_form_or_a_reason(of, turns):
    made = conversations(of)

    assert (made if isinstance(made, str) else [turn["value"] for turn in made]) == turns


def test_a_datasets_folder_has_messages_and_images_in_the_same_order(packed, built, upstream, tmp_path):
    datasets = pytest.importorskip("datasets")
    got = packed(f"export llava665k --format hf --out {tmp_path}/out")

    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]

    assert got.code == 0
    assert (tmp_path / "out/data/train-00000-of-00001.parquet").is_file()
    assert loaded.column_names == ["key", "messages", "images", "model"]
    assert tuple(loaded["key"]) == upstream.expected.llava665k.kept
    rows = upstreams_rows(upstream, "llava665k")
    for sample in loaded:
        parts = [part for message in sample["messages"] for part in message["content"]]
        assert sum(part["type"] == "image" for part in parts) == len(sample["images"])
        assert all((part["text"] is None) == (part["type"] == "image") for part in parts)
        assert [m["role"] for m in sample["messages"]][-1] == "assistant"
        theirs = rows[int(sample["key"].rpartition("-")[2])]
        assert sample["messages"][-1]["content"][0]["text"] == theirs["conversations"][-1]["value"]
        for picture in sample["images"]:
            assert picture.convert("RGB").getpixel((0, 0))


def test_several_pictures_of_a_sample_keep_their_order(tmp_path):
    datasets = pytest.importorskip("datasets")
    drawn = []
    for colour in ("red", "blue", "white"):
        sink = io.BytesIO()
        Image.new("RGB", (8, 8), colour).save(sink, "PNG")
        drawn.append((sink.getvalue(), "png"))
    samples = [(record(("user", IMAGE, "a", IMAGE, IMAGE), ("assistant", "b"), images=3), drawn)] * 3

    with Store(str(tmp_path)).publish("data/train-00000-of-00001.parquet") as sink:
        export.write_parquet(iter(samples), sink, {}, ExportReport())
    loaded = datasets.load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))["train"]

    assert [p.getpixel((0, 0)) for p in loaded[2]["images"]] == [(255, 0, 0), (0, 0, 255), (255, 255, 255)]
    assert [p["type"] for p in loaded[2]["messages"][0]["content"]] == ["image", "text", "image", "image"]


def test_row_groups_are_cut_by_bytes_so_that_memory_stays_small(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    monkeypatch.setattr(export, "_GROUP_BYTES", 1000)
    samples = [(record(("user", IMAGE), ("assistant", "b"), images=1), [(bytes(600), "jpg")])] * 5

    with Store(str(tmp_path)).publish("x.parquet") as sink:
        export.write_parquet(iter(samples), sink, {}, ExportReport())

    about = pq.ParquetFile(tmp_path / "x.parquet").metadata
    assert [about.row_group(n).num_rows for n in range(about.num_row_groups)] == [2, 2, 1]


def test_the_features_are_those_that_datasets_would_write():
    datasets = pytest.importorskip("datasets")

    features = datasets.Features.from_dict(HF_FEATURES)

    assert features.arrow_schema.remove_metadata() == export.HF_SCHEMA
    assert features["images"].feature == datasets.Image()


def test_a_folder_of_rows_needs_its_pictures(packed, tmp_path):
    got = packed(f"export qinstruct --format hf --no-images --out {tmp_path}/out")

    assert got.code == 2
    assert "--no-images" in got.err


def test_without_images_the_json_keeps_upstreams_references(packed, tmp_path):
    packed(f"export qinstruct --format llava --no-images --out {tmp_path}/out")

    assert set(files(tmp_path / "out")) == {"DATAKIT.json", "qinstruct.json"}
    made = json.loads((tmp_path / "out/qinstruct.json").read_bytes())
    assert made[0]["image"].endswith(".jpg") and "by-key" not in made[0]["image"]


def test_a_tar_that_was_cut_is_refused(user, tmp_path):
    user("build-mix --fetch qinstruct")
    tar = next((user.root / "qinstruct/pack").glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-1024])

    got = user(f"export qinstruct --format llava --out {tmp_path}/out")

    assert got.code == 1
    assert "datakit fetch qinstruct" in got.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["llava", "hf"])
def test_an_export_that_was_killed_goes_on_and_leaves_nothing_else(built, upstream, tmp_path, forks, form):
    env = {**os.environ, **settings(upstream, built)}
    command = ["export", "qinstruct", "--format", form, "--out"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    typed(" ".join([*command, str(whole)]), settings(upstream, built))

    for after in (0, 1, 3):
        died = forks.start(KILLED, *command, cut, env={**env, "CUT_AFTER": str(after)})
        said = died.communicate()
        assert died.returncode in (-signal.SIGKILL, 0), said
        assert any(path.name.startswith(".") for path in cut.rglob("*")) or not died.returncode
    got = typed(" ".join([*command, str(cut)]), settings(upstream, built))

    assert got.code == 0, got
    assert files(cut) == files(whole)
