"""Bad input, as a user meets it: one clear error or one counted outcome, and nothing lost that was done."""

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from users import everything, settings, typed

from datakit.miniature import Miniature

LLAVA = "/datasets/liuhaotian/LLaVA-Instruct-150K/resolve/main/llava_v1_5_mix665k.json"
COCO = "http://images.cocodataset.org/zips/train2017.zip"
QTAR = "/datasets/teowu/Q-Instruct/resolve/main/q-instruct-images.tar"
COYO0 = (
    "/datasets/kakaobrain/coyo-700m/resolve/main/data/"
    "part-00000-17da4908-939c-46e5-91d0-15f256041956-c000.snappy.parquet"
)


@pytest.fixture
def own():
    """A miniature that a test may spoil."""
    with Miniature(rows=30) as miniature:
        yield miniature


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("fetch cojo", 2, "unknown dataset 'cojo'. Did you mean 'coyo'"),
        ("fetch ../coyo", 2, "bad dataset name"),
        ("fetch coyo --shards 3-1", 2, "Did you mean 1-3"),
        ("fetch coyo --shards 0-200", 2, "has shards 0-127, so there is no 128-200"),
        ("fetch coyo --slice 8/8", 2, "3/8"),
        ("fetch coyo --recipe vilaa", 2, "unknown recipe"),
        ("fetch qinstruct --recipe coyo_vila", 2, "no steps for 'qinstruct'"),
        ("fetch coyo --jobs 0", 2, "whole number from 1"),
        ("fetch coyo --mirror nonsense", 2, "mirror"),
        ("fetch coyo --tolerate nan", 2, "not nan"),
        ("fetch coyo --shards ''", 2, "shard range"),
        ("fetch coyo --root nosuch://x", 2, "'nosuch://x' can't be a root"),
        ("build-mix --fetch qinstruct --name @", 2, "bad mix name"),
        ("build-mix llava665k+qinstrct", 2, "Did you mean 'qinstruct'"),
        ("build-mix llava665k+qinstruct", 1, "datakit fetch llava665k ; datakit fetch qinstruct"),
        ("status nothing", 2, "unknown dataset"),
        ("verify nothing", 2, "unknown dataset"),
        ("clean nothing", 2, "unknown dataset"),
        ("info nothing", 2, "unknown dataset"),
    ],
)
def test_a_wrong_command_is_one_clear_error_with_its_exit_code(user, command, code, says):
    got = user(command)

    assert got.code == code
    assert says in got.err


def test_nothing_packed_and_no_fetch_asks_the_network_for_nothing(own, tmp_path):
    got = typed("build-mix llava665k", settings(own, tmp_path / "root"))

    assert got.code == 1
    assert own.requests == []


def test_html_in_place_of_json_is_told_as_such(own, tmp_path):
    own.replace(LLAVA, b"<!DOCTYPE html><html><body>Sign in</body></html>")

    got = typed("fetch llava665k", settings(own, tmp_path))

    assert got.code == 1
    assert "web page and not the file" in got.err


def test_json_cut_short_is_never_taken_for_fewer_rows(own, tmp_path):
    body = own.answer(LLAVA).body
    own.replace(LLAVA, body[: len(body) // 2])

    got = typed("fetch llava665k", settings(own, tmp_path))

    assert got.code == 1
    assert "cut short" in got.err
    assert not list((tmp_path / "llava665k").rglob("*.commit.json"))


def test_parquet_with_a_missing_column_is_told_and_other_shards_go_on(own, tmp_path):
    table = pq.read_table(io.BytesIO(own.answer(COYO0).body)).drop_columns(["url"])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    own.replace(COYO0, sink.getvalue().to_pybytes())
    env = settings(own, tmp_path)

    bad = typed("fetch coyo --shards 0", env)
    good = typed("fetch coyo --shards 1", env)

    assert bad.code == 1
    assert "no column url" in bad.err
    assert good.code == 0


def hostile_zip(data):
    """The members of a zip, and some that must never be followed."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        for name in ("../../escape.jpg", "/etc/absolute.jpg", "train2017/../../up.jpg", "C:\\windows.jpg"):
            new.writestr(name, b"hostile")
        link = zipfile.ZipInfo("train2017/link.jpg")
        link.external_attr = 0o120777 << 16
        new.writestr(link, "/etc/passwd")
    return made.getvalue()


def test_a_zip_with_hostile_names_is_read_and_leaves_nothing_outside(own, tmp_path):
    plain = tmp_path / "plain"
    assert typed("build-mix --fetch llava665k", settings(own, plain)).code == 0
    own.replace(COCO, hostile_zip(own.answer(COCO).body))

    got = typed("build-mix --fetch llava665k", settings(own, tmp_path / "root"))

    assert got.code == 0
    tar = "llava665k/pack/00000.tar"
    assert (tmp_path / "root" / tar).read_bytes() == (plain / tar).read_bytes()
    assert not [p for p in tmp_path.rglob("*") if p.name in ("escape.jpg", "absolute.jpg", "up.jpg", "link.jpg")]


def test_a_tar_cut_short_is_refused_and_what_was_listed_is_kept(own, tmp_path):
    body = own.answer(QTAR).body
    own.replace(QTAR, body[: len(body) // 2])
    env = settings(own, tmp_path)

    got = typed("fetch qinstruct", env)

    assert got.code == 1
    assert "cut short" in got.err
    own.replace(QTAR, body)
    shutil.rmtree(tmp_path / "downloads/huggingface.co/datasets/teowu/Q-Instruct")
    assert typed("fetch qinstruct", env).code == 0


def test_a_transfer_that_breaks_goes_on_where_it_broke(own, tmp_path):
    own.replace(COCO, dataclasses.replace(own.answer(COCO), cut_after=5000), times=1)

    got = typed("fetch llava665k", settings(own, tmp_path))

    assert got.code == 0
    ranges = [span for _, path, span in own.requests if path.endswith("/train2017.zip") and span]
    assert ranges
    assert (tmp_path / "downloads/images.cocodataset.org/zips/train2017.zip").read_bytes() == own.answer(COCO).body


def test_an_archive_that_is_gone_is_told_with_its_address(own, tmp_path):
    own.replace(COCO, dataclasses.replace(own.answer(COCO), status=404, body=b"gone"))

    got = typed("fetch llava665k", settings(own, tmp_path))

    assert got.code == 1
    assert "train2017.zip" in got.err and "404" in got.err


def test_a_private_mirror_is_refused_unless_it_is_allowed(own, tmp_path):
    env = settings(own, tmp_path, DATAKIT_ALLOW_HOSTS="")

    got = typed("fetch llava665k", env)

    assert got.code == 1
    assert "DATAKIT_ALLOW_HOSTS" in got.err
    assert typed(f"fetch llava665k --allow-host 127.0.0.1:{own.port}", env).code == 0


def test_a_network_that_is_down_is_not_taken_for_dead_pictures(tmp_path):
    with Miniature(rows=30, coyo_rows=300) as many:
        env = settings(many, tmp_path, DATAKIT_ALLOW_HOSTS="")  # every picture's address is refused
        got = typed("fetch coyo --shards 0", env)
        committed = list((tmp_path / "coyo/fetch").glob("*.commit.json"))
        accepted = typed("fetch coyo --shards 0 --tolerate 1", env)

    assert got.code == 1
    assert "refused_address" in got.err and "--tolerate 1.00" in got.err
    assert committed == []
    assert accepted.code == 0


def test_a_root_made_by_another_recipe_is_refused_with_the_fields(own, tmp_path):
    mine = tmp_path / "mine" / "pipelines"
    mine.mkdir(parents=True)
    recipe = Path(__file__).parents[1] / "pipelines" / "coyo_vila.py"
    (mine / "coyo_vila.py").write_text(recipe.read_text().replace("share=0.20", "share=0.30"))
    env = settings(own, tmp_path / "root")
    assert typed("fetch coyo --shards 0", env).code == 0
    before = everything(tmp_path / "root")
    other = {**env, "DATAKIT_CATALOGUE": str(tmp_path / "mine")}

    got = typed("fetch coyo --shards 0", other)

    assert got.code == 1
    assert "coyo/top20 was made by another recipe:\n  share: 0.2 -> 0.3\n" in got.err
    assert everything(tmp_path / "root") == before
    again = typed("fetch coyo --shards 0 --rebuild", other)
    assert again.code == 0
    assert json.loads((tmp_path / "root/coyo/top20/recipe.json").read_bytes())["share"] == 0.3


def test_a_commit_cut_short_is_made_again_with_the_same_bytes(own, tmp_path):
    env = settings(own, tmp_path)
    assert typed("build-mix --fetch qinstruct", env).code == 0
    before = everything(tmp_path)
    for step in ("list", "fetch", "pack"):
        commit = tmp_path / f"qinstruct/{step}/00000.commit.json"
        commit.write_bytes(commit.read_bytes()[:40])

    got = typed("build-mix --fetch qinstruct", env)

    assert got.code == 0
    assert everything(tmp_path) == before


def test_a_full_disk_is_one_clear_error_and_the_same_command_goes_on(own, tmp_path):
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"  # no file may grow beyond this
        "from datakit.cli import main\nmain()\n"
    )
    env = {**os.environ, **settings(own, tmp_path)}

    full = subprocess.run(
        [sys.executable, "-c", code, "fetch", "llava665k"], env=env, capture_output=True, text=True, check=False
    )
    again = typed("fetch llava665k", settings(own, tmp_path))

    assert full.returncode == 1
    assert "no space" in full.stderr.lower()
    assert "Traceback" not in full.stderr
    assert again.code == 0


@pytest.mark.parametrize("root", ["/proc/datakit", "{file}/below"])
def test_a_root_that_cannot_be_written_is_one_clear_error(user, tmp_path, root):
    (tmp_path / "file").write_bytes(b"")

    got = user(f"fetch qinstruct --root {root.format(file=tmp_path / 'file')}")

    assert got.code == 1
    assert "--root" in got.err


def test_a_mistake_in_a_manifest_can_be_mended_after_a_fetch_that_failed(own, tmp_path):
    from datakit import catalogue

    mine = tmp_path / "mine/manifests"
    mine.mkdir(parents=True)
    text = catalogue.find("manifests", "qinstruct.toml").read_text()
    env = settings(own, tmp_path / "root", DATAKIT_CATALOGUE=str(tmp_path / "mine"))
    (mine / "qinstruct.toml").write_text(text.replace("cleaned_labels.json", "cleaned_lables.json"))

    typo = typed("fetch qinstruct", env)
    (mine / "qinstruct.toml").write_text(text)

    assert typo.code == 1
    assert "no file 'cleaned_lables.json'" in typo.err
    assert typed("fetch qinstruct", env).code == 0


@pytest.mark.parametrize("code", ["STEPS = (", "1 / 0", "import nothing_of_the_kind", "STEPS = {'*': 'abc'}"])
def test_a_recipe_that_cannot_be_run_is_one_clear_error(own, tmp_path, code):
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines/mine.py").write_text(code)

    got = typed("fetch qinstruct --recipe mine", settings(own, tmp_path / "root", DATAKIT_CATALOGUE=str(tmp_path)))

    assert got.code == 1
    assert "mine" in got.err


@pytest.mark.parametrize("endpoint", ["nonsense", "http://[", "https://"])
def test_an_endpoint_that_is_no_url_is_refused_at_once(own, tmp_path, endpoint):
    got = typed("fetch qinstruct", settings(own, tmp_path, HF_ENDPOINT=endpoint))

    assert got.code == 2
    assert "HF_ENDPOINT should be a URL" in got.err


def test_annotations_without_rows_are_told(own, tmp_path):
    own.replace("/datasets/teowu/Q-Instruct/resolve/main/cleaned_labels.json", b"[]")

    got = typed("fetch qinstruct", settings(own, tmp_path))

    assert got.code == 1
    assert "hold no rows" in got.err


@pytest.mark.parametrize(
    "name", ["q-instruct-images.tar", "cleaned_labels.json", "q-instruct-images.tar.index.parquet"]
)
def test_a_download_that_was_damaged_on_the_disk_is_found_and_mended(own, tmp_path, name):
    env = settings(own, tmp_path)
    assert typed("build-mix --fetch qinstruct", env).code == 0
    whole = (tmp_path / "qinstruct/pack/00000.tar").read_bytes()
    (path,) = (tmp_path / "downloads").rglob(name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    for step in ("list", "fetch", "pack"):
        shutil.rmtree(tmp_path / "qinstruct" / step)

    found = typed("verify --repair", env)
    mended = typed("build-mix --fetch qinstruct", env)

    assert found.code == 1  # of an index, only that the mix has lost its tars
    assert mended.code == 0
    assert (tmp_path / "qinstruct/pack/00000.tar").read_bytes() == whole


@pytest.mark.parametrize("junk", [b"", b"{x", b'{"a":1}', b'{"a":"\xff"}', b"[1]", b"PAR1"])
def test_junk_in_any_file_of_a_root_never_ends_in_a_traceback(own, tmp_path, junk):
    env = settings(own, tmp_path / "root")
    assert typed("build-mix --fetch qinstruct", env).code == 0
    before = everything(tmp_path / "root")

    for name in before:
        if name.startswith("downloads/") and not name.endswith(".json"):
            continue
        (tmp_path / "root" / name).write_bytes(junk)
        typed("status", env)
        typed("verify --repair", env)
        got = typed("build-mix --fetch qinstruct --rebuild", env)
        assert got.code == 0, (name, got)

    after = everything(tmp_path / "root")
    assert {n: d for n, d in after.items() if "/pack/" in n} == {n: d for n, d in before.items() if "/pack/" in n}


def test_another_choice_under_another_name_does_not_overwrite_what_was_fetched(own, tmp_path):
    from datakit import catalogue

    (tmp_path / "pipelines").mkdir()
    text = catalogue.find("pipelines", "coyo_vila.py").read_text()
    wide = text.replace('name="top20"', 'name="half"').replace("share=0.20", "share=0.50")
    (tmp_path / "pipelines/wide.py").write_text(wide)
    env = settings(own, tmp_path / "root", DATAKIT_CATALOGUE=str(tmp_path))
    assert typed("fetch coyo --shards 0 --recipe wide", env).code == 0
    before = (tmp_path / "root/coyo/fetch/00000.tar").read_bytes()

    again = typed("fetch coyo --shards 0", env)
    got = typed("fetch coyo --shards 0 --recipe coyo_vila", env)

    assert again.code == 0  # what was chosen once stays chosen
    assert "recipe 'wide'" in again.out
    assert got.code == 1
    assert "coyo/fetch was made by another recipe" in got.err
    assert 'steps before: "list > half" -> "list > top20"' in got.err
    assert (tmp_path / "root/coyo/fetch/00000.tar").read_bytes() == before


def test_an_archive_cut_after_the_fetch_is_not_packed_and_is_fetched_again(own, tmp_path):
    env = settings(own, tmp_path)
    assert typed("fetch qinstruct", env).code == 0
    (tar,) = (tmp_path / "downloads").rglob("q-instruct-images.tar")
    tar.write_bytes(tar.read_bytes()[:5000])

    refused = typed("build-mix qinstruct", env)
    again = typed("fetch qinstruct", env)
    packed = typed("build-mix qinstruct", env)

    assert refused.code == 1
    assert "datakit fetch qinstruct" in refused.err
    assert again.code == packed.code == 0
    dropped = json.loads((tmp_path / "qinstruct/pack/00000.commit.json").read_bytes())["dropped"]
    assert "damaged_member" not in dropped


@pytest.mark.parametrize("path", [QTAR, "/datasets/teowu/Q-Instruct/resolve/main/cleaned_labels.json"])
def test_a_file_that_upstream_served_badly_once_is_fetched_anew(own, tmp_path, path):
    body = own.answer(path).body
    own.replace(path, body[: len(body) // 2])
    env = settings(own, tmp_path)

    bad = typed("fetch qinstruct", env)
    own.replace(path, body)
    good = typed("fetch qinstruct", env)

    assert bad.code == 1
    assert "put aside" in bad.err
    assert good.code == 0
