"""Datasets of a user's own, with several archives, pictures in rows, and sources that are given up."""

import io
import json
import tarfile
import zipfile

import pytest
from PIL import Image
from users import settings, typed

from datakit.miniature import Miniature


@pytest.fixture(scope="module")
def nobody():
    with Miniature(rows=20) as miniature:
        yield miniature


@pytest.fixture
def user(nobody, tmp_path):
    """Types commands with a catalogue of the user's own; `user.dataset(name, rows, sources)` adds to it."""
    env = {**settings(nobody, tmp_path / "root"), "DATAKIT_CATALOGUE": str(tmp_path / "own")}

    def types(command, **more):
        return typed(command, {**env, **more})

    def dataset(name, rows, sources, *, images='by = "path"', more=""):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        (tmp_path / "own/manifests").mkdir(parents=True, exist_ok=True)
        text = HEAD.format(more=more) + FILES.format(file=tmp_path / f"{name}.json", images=images)
        for source, keys in sources.items():
            text += f"[images.sources.{source}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in keys.items())
        (tmp_path / f"own/manifests/{name}.toml").write_text(text)

    types.root, types.at, types.dataset = tmp_path / "root", tmp_path, dataset
    return types


HEAD = """\
title = "T"
homepage = "https://example.org"
licence = "CC0"
citation = "none"
hub = ""
reader = "llava"
recipe = "instruct"
{more}
"""
FILES = """
[annotations]
format = "json"
files = ["file://{file}"]
rows_per_shard = 50
[images]
{images}
"""


def row(n, image):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "This."}]
    return {"id": str(n), "image": image, "conversations": turns}


def picture(colour, form="JPEG"):
    out = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(out, form)
    return out.getvalue()


def zipped(path, **members):
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "."), data)
    return f"file://{path}"


def packed(root, name):
    """The members of a dataset's tars that aren't records."""
    found = {}
    for path in sorted((root / name / "pack").glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {m.name: tar.extractfile(m).read() for m in tar if not m.name.endswith(".json")}
    return found


def test_two_archives_under_one_prefix_are_both_looked_through(user):
    one, two = picture("red"), picture("blue")
    sources = {
        "first": {"prefix": "", "archive": zipped(user.at / "a.zip", a__jpg=one)},
        "second": {"prefix": "", "archive": zipped(user.at / "b.zip", b__jpg=two)},
    }
    user.dataset("both", [row(1, "a.jpg"), row(2, "b.jpg")], sources)

    got = user("build-mix both --fetch")

    assert got.code == 0, got
    assert list(packed(user.root, "both").values()) == [one, two]


def test_a_repair_takes_another_extension_only_where_no_part_has_the_name(user):
    right, other = picture("red"), picture("blue", "PNG")
    zipped(user.at / "x0.zip", a__png=other, c__png=other)
    zipped(user.at / "x1.zip", a__jpg=right)
    sources = {"all": {"prefix": "", "archive": f"file://{user.at}/x{{part}}.zip", "parts": 2}}
    user.dataset("parts", [row(1, "a.jpg"), row(2, "c.jpg"), row(3, "d.jpg")], sources)

    before = user("check parts --repair")
    got = user("build-mix parts --fetch")

    assert before.code == 1  # d.jpg is nowhere
    assert got.code == 0, got
    assert list(packed(user.root, "parts").values()) == [right, other]
    records = [json.loads(line) for line in _records(user.root, "parts")]
    assert [record["attrs"].get("repairs") for record in records] == [None, ["extension"]]


def _records(root, name):
    for path in sorted((root / name / "pack").glob("*.tar")):
        with tarfile.open(path) as tar:
            yield from (tar.extractfile(m).read() for m in tar if m.name.endswith(".json"))


def by_hand(user):
    sources = {
        "web": {"prefix": "web/", "archive": zipped(user.at / "web.zip", a__jpg=picture("red"))},
        "far": {"prefix": "far/", "archive": "https://example.org/far.zip", "obtain": "Ask the librarian."},
    }
    user.dataset("mine", [row(1, "web/a.jpg"), row(2, "far/b.jpg")], sources)


def test_what_a_person_has_to_get_is_told_at_once_with_both_ways_on(user):
    by_hand(user)

    got = user("fetch mine")
    said = user("doctor mine")

    assert got.code == 1
    for words in ("far.zip", "Ask the librarian.", "datakit adopt mine", "--without far"):
        assert words in got.err
    assert not (user.root / "mine").exists() or not list((user.root / "mine").rglob("*.parquet"))
    assert "Ask the librarian." in said.out


def test_what_is_brought_is_used(user):
    by_hand(user)
    zipped(user.at / "far.zip", b__jpg=picture("blue"))

    adopted = user(f"adopt mine {user.at}/far.zip")
    got = user("build-mix mine --fetch")

    assert (adopted.code, got.code) == (0, 0)
    assert len(packed(user.root, "mine")) == 2


def test_a_source_that_is_given_up_stays_so_until_told_otherwise(user):
    by_hand(user)

    given_up = user("fetch mine --without far")
    again = user("build-mix mine --fetch")
    taken_back = user("fetch mine --without '' --rebuild")

    assert (given_up.code, again.code) == (0, 0)
    assert "left_out 1" in given_up.out + again.out
    assert len(packed(user.root, "mine")) == 1
    assert taken_back.code == 1 and "Ask the librarian." in taken_back.err
    assert user("fetch mine").code == 0  # nothing was removed


def test_a_source_that_isnt_there_cant_be_given_up_and_changes_nothing(user):
    by_hand(user)
    assert user("fetch mine --without far").code == 0

    wrong = user("fetch mine --without fra --rebuild")

    assert wrong.code == 2 and "Did you mean 'far'" in wrong.err
    assert (user.root / "mine/fetch/00000.commit.json").is_file()
    assert user("fetch mine").code == 0


def test_a_check_without_a_source_is_only_a_look(user):
    by_hand(user)

    looked = user("check mine --without far")
    after = user("fetch mine")

    assert looked.code == 0
    assert after.code == 1 and "Ask the librarian." in after.err


def test_terms_are_accepted_once(user):
    sources = {"web": {"prefix": "", "archive": zipped(user.at / "w.zip", a__jpg=picture("red"))}}
    user.dataset("grave", [row(1, "a.jpg")], sources, more='accept = "For research only."')

    refused = user("fetch grave")
    looked = user("list")
    accepted = user("fetch grave --accept-licence")
    after = user("build-mix grave --fetch")

    assert refused.code == 1 and "For research only." in refused.err and "--accept-licence" in refused.err
    assert "TERMS" in looked.out
    assert (accepted.code, after.code) == (0, 0)


def test_an_archive_of_the_same_size_that_takes_anothers_place_is_read_by_its_own_index(user):
    def tar(path, **members):
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:
            for name, data in members.items():
                about = tarfile.TarInfo(name.replace("__", "."))
                about.size = len(data)
                file.addfile(about, io.BytesIO(data))

    one, two = picture("red"), picture("blue")
    sources = {"far": {"prefix": "", "archive": "https://example.org/p.tar", "obtain": "Ask."}}
    user.dataset("swapped", [row(1, "a.jpg"), row(2, "b.jpg")], sources)
    tar(user.at / "p.tar", a__jpg=one, b__jpg=two)
    assert user(f"adopt swapped {user.at}/p.tar").code == 0
    assert user("build-mix swapped --fetch").code == 0
    (user.at / "new").mkdir()
    tar(user.at / "new/p.tar", b__jpg=two, a__jpg=one)

    assert user(f"adopt swapped {user.at}/new/p.tar").code == 0
    got = user("build-mix swapped --fetch")

    assert got.code == 0, got
    assert list(packed(user.root, "swapped").values()) == [one, two]


def test_while_nobody_knows_what_a_dataset_needs_no_download_is_cleaned_and_status_passes_it_over(user):
    by_hand(user)
    assert user("build-mix mine --fetch --without far").code == 0
    (user.root / "mine.gone/list").mkdir(parents=True)
    (user.root / "mine.gone/list/recipe.json").write_text("{}")

    seen = user("status")
    cleaned = user("clean mine")

    assert seen.code == 0 and "mine/fetch" in seen.out
    assert cleaned.code == 0 and "no download goes: 'mine.gone'" in cleaned.out
    assert "mine/list/00000.parquet" in cleaned.out and "downloads/" not in cleaned.out


def test_a_rebuild_takes_all_that_came_of_what_it_makes_anew(user):
    by_hand(user)
    assert user("build-mix mine --fetch --without far").code == 0
    zipped(user.at / "far.zip", b__jpg=picture("blue"))
    assert user(f"adopt mine {user.at}/far.zip").code == 0

    fetched = user("fetch mine --without '' --rebuild")
    built = user("build-mix mine")

    assert (fetched.code, built.code) == (0, 0), (fetched, built)
    assert len(packed(user.root, "mine")) == 2


def test_rows_that_hold_their_pictures_are_kept_until_these_are_taken_out(nobody, tmp_path):
    env = settings(nobody, tmp_path / "root", DATAKIT_CATALOGUE=str(tmp_path / "own"))
    assert typed("add held --hub example/pictures-parquet", env).code == 0
    assert typed("fetch held", env).code == 0
    kept = list((tmp_path / "root/downloads").rglob("*.parquet"))
    for path in (tmp_path / "root/held/fetch").glob("00001.*"):
        path.unlink()

    assert typed("clean held", env).code == 0

    assert set(kept) - set((tmp_path / "root/downloads").rglob("*.parquet")) == set(kept[:1]) or kept
    again = typed("build-mix held --fetch", env)
    assert again.code == 0, again


def test_pictures_taken_from_a_file_that_turns_out_damaged_are_taken_anew(nobody, tmp_path):
    env = settings(nobody, tmp_path / "root", DATAKIT_CATALOGUE=str(tmp_path / "own"))
    assert typed("add held --hub example/pictures-parquet", env).code == 0
    assert typed("build-mix held --fetch", env).code == 0
    whole = packed(tmp_path / "root", "held")
    path = sorted((tmp_path / "root/downloads").rglob("*.parquet"))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)

    found = typed("verify --repair", env)
    again = typed("build-mix held --fetch", env)

    assert found.code == 1
    assert again.code == 0, again
    assert not list((tmp_path / "root/held/fetch").glob("*.bad"))
    assert packed(tmp_path / "root", "held") == whole


def test_a_folder_is_repaired_as_an_archive_is(user):
    (user.at / "loose").mkdir()
    (user.at / "loose/a.png").write_bytes(picture("blue", "PNG"))
    (user.at / "loose/b.png").write_bytes(picture("blue", "PNG"))
    (user.at / "loose/b.gif").write_bytes(picture("red", "GIF"))
    user.dataset(
        "loose",
        [row(1, "./a.jpg"), row(2, "b.jpg")],
        {},
        images=f'by = "folder"\nfolder = "{user.at}/loose"',
        more="",
    )
    text = (user.at / "own/manifests/loose.toml").read_text()
    (user.at / "own/manifests/loose.toml").write_text(text.replace('"instruct"', '"inline"'))

    before = user("check loose")
    looked = user("check loose --repair")
    got = user("build-mix loose --fetch")

    assert "wrong extension: the picture is there under another" in before.out
    assert "archive" not in before.out + looked.out
    assert "a picture that is there under another extension is found" in looked.out
    assert got.code == 0, got
    records = [json.loads(line) for line in _records(user.root, "loose")]
    assert [(record["attrs"]["id"], record["attrs"]["repairs"]) for record in records] == [("1", ["extension"])]


def test_a_repair_can_be_turned_off_again(user):
    sources = {"all": {"prefix": "", "archive": zipped(user.at / "r.zip", a__png=picture("blue", "PNG"))}}
    user.dataset("mended", [row(1, "a.jpg")], sources)

    on, looked, off = user("check mended --repair"), user("check mended"), user("check mended --no-repair")

    assert [one.code for one in (on, looked, off)] == [0, 0, 1]
    assert "datakit check mended --repair" in off.out


def test_a_whole_dataset_and_a_part_of_it_make_no_mix(user):
    got = user("build-mix allava+allava.captions")

    assert got.code == 2
    assert "'allava.captions' is a part of 'allava'" in got.err


def test_names_of_recipes_and_datasets_that_are_mistaken_for_each_other_are_told(user):
    dataset, recipe = user("fetch vila"), user("run llava665k")

    assert dataset.code == 2 and "`datakit run vila`" in dataset.err
    assert recipe.code == 2 and "`datakit fetch llava665k`" in recipe.err


def test_an_archive_that_was_given_up_and_is_brought_says_how_to_take_it_up(user):
    by_hand(user)
    assert user("fetch mine --without far").code == 0
    zipped(user.at / "far.zip", b__jpg=picture("blue"))

    brought = user(f"adopt mine {user.at}/far.zip")
    again = user("fetch mine")
    taken_up = user("fetch mine --without '' --rebuild")

    assert "--without '' --rebuild" in brought.out
    assert "without far, as it was chosen before" in again.out
    assert taken_up.code == 0 and "left_out" not in taken_up.out


@pytest.mark.parametrize("long", ["x" * 5000 + ".jpg", "d/" * 2500 + "x.jpg"])
def test_a_name_that_no_file_can_have_is_missing(user, long):
    (user.at / "loose").mkdir()
    (user.at / "loose/a.jpg").write_bytes(picture("red"))
    user.dataset("named", [row(1, "a.jpg"), row(2, long)], {}, images=f'by = "folder"\nfolder = "{user.at}/loose"')
    text = (user.at / "own/manifests/named.toml").read_text()
    (user.at / "own/manifests/named.toml").write_text(text.replace('"instruct"', '"inline"'))

    looked = user("check named --repair")
    got = user("build-mix named --fetch")

    assert looked.code == 1 and "missing picture" in looked.out
    assert got.code == 0, got
    assert len(packed(user.root, "named")) == 1


def test_a_picture_of_another_type_than_its_name_says_is_among_the_repairs(user):
    sources = {
        "all": {
            "prefix": "",
            "archive": zipped(user.at / "t.zip", a__jpg=picture("blue", "PNG"), b__jpg=picture("red")),
        }
    }
    user.dataset("typed", [row(1, "a.jpg"), row(2, "b.jpg")], sources)

    assert user("build-mix typed --fetch").code == 0

    records = [json.loads(line) for line in _records(user.root, "typed")]
    assert [record["attrs"].get("repairs") for record in records] == [["content_type"], None]


def test_a_second_source_that_is_given_up_doesnt_take_the_first_up_again(user):
    sources = {
        name: {"prefix": f"{name}/", "archive": f"https://example.org/{name}.zip", "obtain": "Ask."} for name in "ab"
    }
    user.dataset("two", [row(1, "a/1.jpg"), row(2, "b/1.jpg")], sources)

    got = user("fetch two --without a")

    assert got.code == 1 and "--without a,b" in got.err
