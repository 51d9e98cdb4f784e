"""Looking around in a root and after it: list, info, status, verify, clean, trials, slices, progress."""

import json
import os
import pty
import shutil
import subprocess
import sys

import pytest
from users import everything, settings, typed

from datakit.miniature import Miniature


@pytest.fixture
def own(built, upstream, tmp_path):
    """A copy of the built root that a test may change."""
    root = tmp_path / "root"
    shutil.copytree(built, root)
    env = settings(upstream, root)

    def types(command):
        return typed(command, env)

    types.root, types.env = root, env
    return types


def read(got):
    return json.loads(got.out)


def test_list_names_the_catalogue(user):
    assert {d["name"] for d in read(user("list --json"))} >= {"coyo", "llava665k", "qinstruct"}
    assert "COYO-700M" in user("list").out


@pytest.mark.parametrize("name", ["coyo", "llava665k", "qinstruct"])
def test_info_tells_licence_files_steps_and_problems(user, name):
    about = read(user(f"info {name} --json"))
    told = user(f"info {name}").out

    assert about["licence"] in told
    assert all(problem in told for problem in about["problems"])
    assert about["steps"][0]["step"] == "list"
    assert about["steps"][-1]["step"] == "pack"
    assert "not pinned" in told


def test_list_goes_on_past_a_manifest_with_a_mistake_and_a_settings_file_names_more(user, tmp_path, monkeypatch):
    mine = tmp_path / "my/manifests"
    mine.mkdir(parents=True)
    (mine / "wrong.toml").write_text("title = 3")
    (tmp_path / "datakit.toml").write_text('catalogue = ["my"]')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATAKIT_CATALOGUE", "")
    monkeypatch.delenv("DATAKIT_CATALOGUE")

    got = user("list")

    assert got.code == 1
    assert "wrong.toml:1: key 'title'" in got.err
    assert "COYO-700M" in got.out


def test_status_counts_what_is_done_and_why_the_rest_is_lost(own, upstream):
    steps = {s["step"]: s for s in read(own("status llava665k --json"))}
    expected = upstream.expected.llava665k

    assert steps["list"]["done"] == steps["pack"]["done"] == "0"
    assert steps["list"]["missing"] == ""
    assert steps["pack"]["rows"] == len(expected.kept)
    lost = {**steps["list"]["dropped"], **steps["pack"]["dropped"]}
    assert lost == expected.counts
    assert "missing" in own("status llava665k").out


def test_status_of_an_empty_root_says_how_to_start(user):
    assert "datakit fetch NAME" in user("status").out
    assert read(user("status --json")) == []


def test_verify_finds_everything_whole(own):
    found = read(own("verify --json"))

    assert found["broken"] == []
    assert found["whole"] > 20


def test_verify_finds_one_flipped_bit_and_a_repair_makes_it_again(own, built):
    path = own.root / "coyo/pack/00001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)

    found = own("verify --json")
    assert found.code == 1
    assert [b["file"] for b in read(found)["broken"]] == ["coyo/pack/00001.tar"]

    assert own("verify coyo --repair").code == 1
    assert own("build-mix coyo").code == 0
    assert own("verify").code == 0
    assert everything(own.root) == everything(built)


def test_verify_finds_a_missing_file_a_cut_file_and_a_damaged_commit(own):
    (own.root / "coyo/pack/00000.tar").unlink()
    (own.root / "coyo/top20/00001.parquet").write_bytes(b"PAR1")
    (own.root / "qinstruct/list/00000.commit.json").write_bytes(b"{")

    found = {b["file"]: b["problem"] for b in read(own("verify --json"))["broken"]}

    assert "missing" in found["coyo/pack/00000.tar"]
    assert "4 bytes" in found["coyo/top20/00001.parquet"]
    assert "damaged" in found["qinstruct/list/00000.commit.json"]
    assert "isn't there" in found["mixes/coyo/mix.json"]


def test_clean_removes_what_is_packed_says_how_much_and_nothing_is_fetched_again(own, upstream):
    dry = own("clean llava665k --dry-run")
    assert (own.root / "downloads/images.cocodataset.org/zips/train2017.zip").exists()

    got = own("clean llava665k")
    asked = len(upstream.requests)
    again = own("fetch llava665k")
    packed = own("build-mix llava665k+qinstruct")

    assert "would remove" in dry.out and "train2017.zip" in dry.out
    assert "removed" in got.out and "MB" in got.out
    assert not (own.root / "downloads/images.cocodataset.org/zips/train2017.zip").exists()
    assert not list((own.root / "llava665k/fetch").glob("*.parquet"))
    assert again.code == packed.code == 0
    assert upstream.requests[asked:] == []
    assert own("verify").code == 0
    assert own("clean llava665k").out.startswith("removed 0 files")


def test_clean_keeps_what_another_dataset_still_needs(own):
    shutil.rmtree(own.root / "qinstruct/pack")

    own("clean qinstruct")

    assert list((own.root / "downloads").rglob("q-instruct-images.tar"))


def test_what_was_cleaned_is_fetched_again_when_it_is_needed(own, built):
    own("clean coyo")
    shutil.rmtree(own.root / "coyo/pack")

    refused = own("build-mix coyo")
    again = own("fetch coyo --shards 0-3")
    mixed = own("build-mix coyo")

    assert refused.code == 1
    assert "datakit fetch coyo" in refused.err
    assert again.code == mixed.code == 0
    for tar in (built / "coyo/pack").glob("*.tar"):
        assert (own.root / "coyo/pack" / tar.name).read_bytes() == tar.read_bytes()


def test_a_trial_is_kept_apart_from_the_whole(user):
    trial = user("build-mix --fetch qinstruct --limit 7")
    whole = user("build-mix --fetch qinstruct")

    assert trial.code == whole.code == 0
    recipe = json.loads((user.root / "qinstruct@limit-7/list/recipe.json").read_bytes())
    commit = json.loads((user.root / "qinstruct@limit-7/list/00000.commit.json").read_bytes())
    assert recipe["limit"] == 7
    assert commit["rows"] + sum(commit["dropped"].values()) == 7
    assert (user.root / "mixes/qinstruct@limit-7/mix.json").is_file()
    assert (user.root / "mixes/qinstruct/mix.json").is_file()


def test_slices_share_the_shards_and_make_the_same_whole(built, upstream, tmp_path):
    env = settings(upstream, tmp_path / "root")

    for part in range(3):
        assert typed(f"fetch coyo --shards 0-3 --slice {part}/3", env).code == 0
    assert typed("build-mix coyo", env).code == 0

    made = everything(tmp_path / "root")
    assert {name: made[name] for name in everything(built) if name.startswith("coyo/")} == {
        name: data for name, data in everything(built).items() if name.startswith("coyo/")
    }


def test_one_file_is_cut_into_shards_of_a_stated_number_of_rows(upstream, tmp_path):
    mine = tmp_path / "mine/manifests"
    mine.mkdir(parents=True)
    from datakit import catalogue

    text = catalogue.find("manifests", "llava665k.toml").read_text()
    (mine / "llava665k.toml").write_text(text.replace("rows_per_shard = 5000", "rows_per_shard = 50"))
    env = settings(upstream, tmp_path / "root", DATAKIT_CATALOGUE=str(tmp_path / "mine"))

    assert typed("build-mix --fetch llava665k", env).code == 0

    commits = [json.loads(p.read_bytes()) for p in sorted((tmp_path / "root/llava665k/list").glob("*.commit.json"))]
    assert [c["rows"] + sum(c["dropped"].values()) for c in commits] == [50, 50, 20]
    assert len(list((tmp_path / "root/llava665k/pack").glob("*.tar"))) == 3


def test_a_changed_upstream_makes_what_came_of_it_stale_and_it_is_made_again(tmp_path):
    with Miniature(rows=20) as upstream:
        env = settings(upstream, tmp_path)
        assert typed("build-mix --fetch qinstruct", env).code == 0
        before = (tmp_path / "qinstruct/pack/00000.tar").read_bytes()
        path = "/datasets/teowu/Q-Instruct/resolve/main/cleaned_labels.json"
        rows = json.loads(upstream.answer(path).body)
        upstream.replace(path, json.dumps(rows[:5]).encode())
        shutil.rmtree(tmp_path / "downloads/huggingface.co/datasets/teowu/Q-Instruct/main")
        (tmp_path / "qinstruct/list/plan.json").unlink()
        (tmp_path / "qinstruct/list/00000.commit.json").unlink()

        assert typed("build-mix --fetch qinstruct", env).code == 0

    after = (tmp_path / "qinstruct/pack/00000.tar").read_bytes()
    assert len(after) < len(before)
    assert json.loads((tmp_path / "qinstruct/pack/00000.commit.json").read_bytes())["rows"] <= 5


def test_a_terminal_gets_bars_and_a_file_gets_lines(upstream, tmp_path):
    command = [sys.executable, "-m", "datakit", "fetch", "qinstruct"]
    main, side = pty.openpty()

    env = {**os.environ, **settings(upstream, tmp_path / "a"), "TERM": "xterm", "COLUMNS": "120"}
    subprocess.run(command, env=env, stderr=side, stdout=subprocess.DEVNULL, check=True)
    os.close(side)
    shown = b""
    try:
        while piece := os.read(main, 65536):
            shown += piece
    except OSError:  # the other side is closed and all is read
        pass
    os.close(main)
    env = {**os.environ, **settings(upstream, tmp_path / "b")}
    plain = subprocess.run(command, env=env, capture_output=True, check=True).stderr

    assert b"\x1b[" in shown and b"qinstruct fetch" in shown
    assert b"\x1b[" not in plain and b"qinstruct: 1 of 1 shards" in plain


def test_pin_writes_what_upstream_has_and_a_changed_file_is_then_refused(tmp_path):
    with Miniature(rows=20) as upstream:
        env = settings(upstream, tmp_path / "root")
        mine = tmp_path / "mine/manifests"
        mine.mkdir(parents=True)
        from datakit import catalogue
        from datakit.catalogue import manifest

        shutil.copy(catalogue.find("manifests", "qinstruct.toml"), mine)
        env["DATAKIT_CATALOGUE"] = str(tmp_path / "mine")

        assert typed("pin qinstruct", env).code == 0
        pinned = manifest.read_sums(mine / "qinstruct.sums")
        assert typed("fetch qinstruct", env).code == 0
        told = typed("info qinstruct", env).out
        upstream.replace("/datasets/teowu/Q-Instruct/resolve/main/q-instruct-images.tar", b"another tar")
        other = typed("fetch qinstruct", {**env, "DATAKIT_ROOT": str(tmp_path / "other")})

    assert len(pinned.commits["teowu/Q-Instruct"]) == 40
    assert pinned.commits["teowu/Q-Instruct"] in told
    assert all(size for size, _ in pinned.files.values())
    assert other.code == 1


def test_a_file_that_the_user_has_is_taken_instead_of_a_download(tmp_path):
    with Miniature(rows=20) as upstream:
        env = settings(upstream, tmp_path / "root")
        coco = "http://images.cocodataset.org/zips/train2017.zip"
        (tmp_path / "train2017.zip").write_bytes(upstream.answer(coco).body)
        (tmp_path / "images.zip").write_bytes(b"PK")

        unclear = typed(f"adopt llava665k {tmp_path}/images.zip", env)
        wrong = typed(f"adopt llava665k {tmp_path}/images.zip --as cocoa", env)
        taken = typed(f"adopt llava665k {tmp_path}/train2017.zip", env)
        fetched = typed("fetch llava665k", env)
        asked = [path for _, path, _ in upstream.requests]

    assert unclear.code == wrong.code == 2
    assert "gqa or vg" in unclear.err
    assert "Did you mean 'coco'" in wrong.err
    assert taken.code == fetched.code == 0
    assert not [path for path in asked if "train2017" in path]
    assert any("gqa" in path for path in asked)
    assert (tmp_path / "train2017.zip").exists()


def test_a_file_that_was_adopted_is_never_written_to(tmp_path):
    coco = "http://images.cocodataset.org/zips/train2017.zip"
    with Miniature(rows=20) as upstream:
        env = settings(upstream, tmp_path / "root")
        mine = tmp_path / "train2017.zip"
        mine.write_bytes(upstream.answer(coco).body[:5000])  # not the whole of upstream's
        folder = tmp_path / "root/downloads/images.cocodataset.org/zips"
        folder.mkdir(parents=True)
        note = {"url": coco, "total": len(upstream.answer(coco).body), "etag": upstream.answer(coco).etag}
        (folder / "train2017.zip.part.json").write_text(json.dumps(note))  # of a download that was interrupted
        (folder / "train2017.zip.part").write_bytes(b"PK")

        assert typed(f"adopt llava665k {mine}", env).code == 0
        (folder / "train2017.zip.download.json").unlink()  # as if it had been killed before its last write
        typed("fetch llava665k", env)

    assert mine.read_bytes() == upstream.answer(coco).body[:5000]


def test_a_mix_says_which_shards_it_leaves_out_and_refuses_one_whose_origin_was_lost(own):
    told = own("build-mix coyo").out
    (own.root / "coyo/fetch/00002.commit.json").unlink()

    lost = own("build-mix coyo")
    own("fetch coyo --shards 2")
    again = own("build-mix coyo")

    assert "shards 4-127 are not in it" in told
    assert lost.code == 1
    assert "datakit fetch coyo --shards 2" in lost.err
    assert again.code == 0


def test_a_commit_of_a_shard_that_the_dataset_does_not_have_is_not_mixed(own):
    pack = own.root / "qinstruct/pack"
    shutil.copy(pack / "00000.commit.json", pack / "00007.commit.json")

    got = own("build-mix qinstruct")

    assert got.code == 0
    assert " in 1 tars" in got.out


def test_what_was_cleaned_and_made_again_is_missed_when_it_is_lost(own):
    own("clean coyo")
    shutil.rmtree(own.root / "coyo/pack")
    assert own("fetch coyo --shards 0-3").code == 0

    (own.root / "coyo/fetch/00001.tar").unlink()
    found = own("verify coyo --json")

    assert found.code == 1
    assert [b["file"] for b in read(found)["broken"]] == ["coyo/fetch/00001.tar"]


def test_a_shard_that_is_made_again_in_fewer_parts_leaves_none_behind(tmp_path, monkeypatch):
    from datakit.stages.fetch import Fetch
    from datakit.stages.pack import Pack

    monkeypatch.setattr(Fetch, "rows_per_part", 5)
    monkeypatch.setattr(Pack, "rows_per_part", 3)
    with Miniature(rows=20) as upstream:
        env = settings(upstream, tmp_path / "root")
        assert typed("fetch coyo --shards 0", env).code == 0
        assert typed("build-mix coyo", env).code == 0
        parts = {p.name for p in (tmp_path / "root/coyo/pack").glob("*.tar")}
        monkeypatch.undo()
        for command in ("fetch coyo --shards 0 --rebuild", "build-mix coyo --rebuild"):
            assert typed(command, env).code == 0

    assert parts == {f"00000-{part:05d}.tar" for part in range(4)}
    for step in ("fetch", "pack"):
        left = {p.name for p in (tmp_path / "root/coyo" / step).iterdir() if p.name[0].isdigit()}
        assert left == {"00000.tar", "00000.parquet", "00000.commit.json"}


def test_a_part_that_was_committed_before_a_kill_is_not_fetched_again(tmp_path, monkeypatch):
    from datakit.stages.fetch import Fetch

    monkeypatch.setattr(Fetch, "rows_per_part", 4)
    with Miniature(rows=20) as upstream:
        env = settings(upstream, tmp_path)
        assert typed("fetch coyo --shards 0", env).code == 0
        (tmp_path / "coyo/fetch/00000.commit.json").unlink()
        (tmp_path / "coyo/fetch/00000-00002.commit.json").unlink()
        before = everything(tmp_path)
        asked = len(upstream.requests)

        assert typed("fetch coyo --shards 0", env).code == 0

        again = [path for _, path, _ in upstream.requests[asked:]]
    assert 0 < len(again) <= 8  # one part of four pictures, and its redirects
    assert {n: d for n, d in everything(tmp_path).items() if n in before} == before


def test_rebuilding_a_slice_is_refused(user):
    got = user("fetch coyo --slice 0/2 --rebuild")

    assert got.code == 2
    assert "rebuild first" in got.err


def test_help_of_every_command_has_a_line_on_what_it_does(user):
    from datakit.cli import cli

    for name in cli.commands:
        got = user(f"{name} --help")
        assert got.code == 0
        assert len(got.out.splitlines()[2].strip()) > 15
