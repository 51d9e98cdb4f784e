"""`datakit check`: what is wrong with a dataset is counted, with examples, before anything is made of it."""

import base64
import io
import json
import zipfile

import pytest
from PIL import Image
from users import settings, typed

from datakit.miniature import Miniature
from datakit.reports import check as checks
from datakit.reports import check_turns as turns

MINE = """
title = "mine"
homepage = "https://example.org/mine"
licence = "none"
citation = "none"
hub = "{hub}"
reader = "llava"
recipe = "{recipe}"
{more}
[annotations]
format = "json"
files = "{file}"
rows_per_shard = 5
[images]
by = "{by}"
"""
SOURCE = """
[images.sources.all]
prefix = "pics/"
archive = "{archive}"
inside = "in/"
{more}
"""


def picture(kind="JPEG"):
    sink = io.BytesIO()
    Image.new("RGB", (60, 40), (200, 30, 90)).save(sink, kind)
    return sink.getvalue()


def said(*values):
    return [{"from": ("human", "gpt")[i % 2], "value": v} for i, v in enumerate(values)]


def as_user(turns):
    """Turns of which the human is called `user`."""
    return [{**turn, "from": "user" if turn["from"] == "human" else turn["from"]} for turn in turns]


def row(n, *values, **more):
    return {"id": f"r{n}", "image": f"pics/{n}.jpg", "conversations": said(*(values or ("<image>\nQ", "A"))), **more}


@pytest.fixture
def mine(upstream, tmp_path, monkeypatch):
    """Makes a dataset `mine` of rows and a zip; what it returns types a command and reads its JSON."""

    def make(rows, members=None, *, more="", source="", by="path", hub="example/mine", address=None, recipe="instruct"):
        folder = tmp_path / "catalogue/manifests"
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        text = MINE.format(hub=hub, more=more, by=by, recipe=recipe, file=address or f"file://{tmp_path}/rows.json")
        if members is not None:
            with zipfile.ZipFile(tmp_path / "pictures.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for name, data in members.items():
                    archive.writestr(f"in/{name}", data)
            text += SOURCE.format(archive=f"file://{tmp_path}/pictures.zip", more=source)
        (folder / "mine.toml").write_text(text)
        monkeypatch.setenv("DATAKIT_CATALOGUE", str(tmp_path / "catalogue"))
        env = settings(upstream, tmp_path / "root", DATAKIT_CATALOGUE=str(tmp_path / "catalogue"))

        def types(command="check mine --json"):
            got = typed(command, env)
            got.found = {f["name"]: f for f in json.loads(got.out)["findings"]} if got.out.startswith("{") else {}
            return got

        types.root = tmp_path / "root"
        return types

    return make


def counts(got):
    return {name: one["count"] for name, one in got.found.items()}


def test_every_fault_of_the_miniature_is_found_and_the_rows_that_would_be_lost_are_those_that_pack_loses(
    user, upstream
):
    expected = upstream.expected.llava665k

    got = user("check llava665k --full --json")
    report = json.loads(got.out)
    found = {one["name"]: one for one in report["findings"]}

    assert got.code == 1
    assert (report["rows"], report["dropped"]) == (expected.rows, len(expected.dropped))
    faults = list(expected.faults.values())
    assert found["missing"]["count"] == faults.count("missing")
    assert found["empty_value"]["count"] == faults.count("empty_answer")
    assert found["html"]["count"] == faults.count("html")
    assert found["unreadable"]["count"] == sum(faults.count(f) for f in ("truncated", "zero_bytes", "huge"))
    assert found["gif_named_jpg"]["count"] == faults.count("gif_named_jpg")
    assert found["extension_known"]["count"] == faults.count("png_palette") + faults.count("png_16bit")
    assert all(len(one["examples"]) <= 5 for one in found.values())


@pytest.mark.parametrize("name", ["allava", "llava558k", "cc3m595k", "m3it"])
def test_a_full_check_foretells_how_many_rows_are_packed(user, name):
    report = json.loads(user(f"check {name} --full --json").out)

    built = user(f"build-mix --fetch {name}")

    assert built.code == 0
    packed = next(step["rows"] for step in json.loads(user(f"status {name} --json").out) if step["step"] == "pack")
    assert report["rows"] - report["dropped"] == packed
    assert 0 < report["dropped"] < report["rows"] / 4


def test_without_full_only_first_bytes_are_read_so_a_picture_cut_short_passes(user, upstream):
    found = {one["name"]: one["count"] for one in json.loads(user("check llava665k --json").out)["findings"]}

    assert found["html"] == 1
    assert found["unreadable"] == list(upstream.expected.llava665k.faults.values()).count("zero_bytes")


def test_the_table_names_rows_ids_and_values(user):
    got = user("check llava665k")

    assert "rows, " in got.out.splitlines()[0]
    assert "HTML instead of a picture" in got.out
    assert "unreadable picture" in got.out
    assert "row " in got.out and " id " in got.out and ".jpg" in got.out
    assert got.out.index("missing picture") < got.out.index("id isn't a string")


@pytest.mark.parametrize(
    ("upstream_row", "found"),
    [
        (row(0, "<image>\nQ", ""), {"empty_value": 1}),
        (row(0, "<image>\nQ", "A", "Q"), {"roles": 1}),
        ({**row(0), "conversations": said("Q", "A", "Q2", "A2")[1:]}, {"first_turn": 1}),
        ({**row(0), "conversations": said("<image>\nQ", "A")[::-1]}, {"first_turn": 1, "roles": 1}),
        (row(0, "<image>\n<image>\nQ", "A"), {"image_marks": 1}),
        (row(0, "Q", "A"), {"no_mark": 1}),
        (row(0, "", "A"), {"no_mark": 1}),
        (row(0, "<image>\nQ", "use <image>"), {"mark_in_answer": 1}),
        ({"id": "t", "conversations": said("what is <image>", "A")}, {"mark_without_picture": 1}),
        (row(0, "<image>\n<image>", "A", image=["pics/0.jpg", "pics/0.jpg"]), {"several_marks": 1}),
        ({"id": "t", "conversations": said(" ", " ")}, {"empty_value": 1, "zero_words": 1}),
        ({**row(0), "id": 7}, {"id_type": 1}),
        ({"idx": 7, "conversations": said("Q", "A")}, {"id_key": 1, "id_type": 1}),
        ({"conversations": said("Q", "A")}, {"id_missing": 1}),
        (row(0, model="", label="a"), {"unkept_key": 2}),
        ({"id": "t", "conversations": [{"from": "robot", "value": "Q"}]}, {"unknown_role": 1}),
        ({"id": "t", "conversations": as_user(said("Q", "A"))}, {"role_name": 1}),
        ({"id": "t", "conversations": as_user(said("Q", "A", "Q2"))}, {"roles": 1}),
        ({"id": "t", "conversations": as_user(said("Q", "A"))[::-1]}, {"first_turn": 1, "roles": 1}),
        ({"id": "t", "conversations": said("Q", "A \ud83d")}, {"surrogate": 1}),
        ({"id": "t", "text": "Q"}, {"malformed": 1}),
        (row(0, image="elsewhere/0.jpg"), {"no_source": 1}),
        (row(0), {}),
    ],
)
def test_each_finding_has_a_name_of_its_own(mine, upstream_row, found):
    got = mine([upstream_row], {"0.jpg": picture()})()

    assert counts(got) == found
    lost = {"dropped", "repairable"} & {one["effect"] for one in got.found.values()}
    assert got.code == bool(lost)
    assert json.loads(got.out)["dropped"] == bool(lost)


def test_pictures_are_looked_at_by_content(mine):
    members = {"0.jpg": picture("GIF"), "1.jpg": picture("PNG"), "2.jpg": b"<html>no</html>", "3.jpg": b"\0" * 99}

    got = mine([row(n) for n in range(5)], members)()

    assert counts(got) == {"gif_named_jpg": 1, "other_type": 1, "html": 1, "unreadable": 1, "missing": 1}
    assert got.found["missing"]["examples"] == [{"where": "row 4", "id": "r4", "value": "pics/4.jpg"}]


def test_an_archive_that_has_none_of_its_pictures_is_called_wrong(mine):
    got = mine([row(n) for n in range(8)], {"cat.jpg": picture()})()

    assert counts(got) == {"missing": 8, "wrong_zip": 8}
    (example,) = got.found["wrong_zip"]["examples"]
    assert "pictures.zip has 0 of 8" in example["value"]
    assert "in/cat.jpg" in example["value"]


def test_duplicate_ids_are_found_across_shards(mine):
    rows = [{"id": n % 7, "conversations": said("Q", "A")} for n in range(12)]

    got = mine(rows, {})()

    assert got.found["duplicate_id"]["count"] == 5
    assert got.found["duplicate_id"]["examples"][0] == {"where": "row 7", "id": "0", "value": "0"}
    assert got.code == 0


def test_ids_are_compared_across_blocks_too(monkeypatch, mine):
    monkeypatch.setattr(checks, "_BLOCK", 3)
    rows = [{"id": str(n % 7), "conversations": said("Q", "A")} for n in range(23)]

    assert mine(rows, {})().found["duplicate_id"]["count"] == 23 - 7


def test_repair_finds_pictures_by_another_extension_from_then_on_and_their_rows_say_so(mine):
    types = mine([row(n) for n in range(4)], {"0.jpg": picture(), "1.png": picture("PNG"), "2.gif": picture("GIF")})

    before = types()
    mended = types("check mine --repair")
    after = types()
    again = types("check mine --repair")
    packed = types("build-mix mine --fetch --tolerate 1")
    out = types(f"export mine --format llava --out {types.root}/../out --no-images")

    assert (before.code, counts(before)) == (1, {"extension": 2, "missing": 1})
    assert json.loads(before.out)["repairable"] == 2
    assert "keeps 2 rows more" in mended.out
    assert counts(after) == {"extension_known": 2, "missing": 1}
    assert json.loads((types.root / "mine/choices.json").read_text())["repairs"] == ["extension"]
    assert "nothing that --repair would mend" in again.out
    assert packed.code == 0
    assert "extension 2" in out.out
    assert [r["id"] for r in json.loads((types.root / "../out/mine.json").read_text())] == ["r0", "r1", "r2"]


def test_repair_of_all_faults_exits_with_0(mine):
    types = mine([row(0)], {"0.png": picture("PNG")})

    assert types().code == 1
    assert types("check mine --repair").code == 0
    assert types().code == 0


def test_a_repair_of_what_was_fetched_without_it_needs_a_rebuild_and_can_be_turned_off(mine):
    types = mine([row(0), row(1)], {"0.png": picture("PNG"), "1.jpg": picture()})
    fetched = types("fetch mine --tolerate 1")

    mended = types("check mine --repair")
    off = types("check mine --no-repair --json")

    assert fetched.code == 0
    assert "from the next `datakit fetch mine` on --rebuild, for it was fetched without" in mended.out
    assert (off.code, counts(off)) == (1, {"extension": 1})
    assert "repairs" not in json.loads((types.root / "mine/choices.json").read_text())


def test_what_is_fetched_and_not_packed_is_not_exported(mine):
    types = mine([row(0)], {"0.jpg": picture()})
    types("fetch mine")

    out = types(f"export mine --format llava --out {types.root}/../out")

    assert out.code == 1
    assert "nothing of 'mine' is packed yet: run `datakit build-mix mine`" in out.err


def test_a_trial_looks_at_the_first_rows(mine):
    got = mine([row(n) for n in range(20)], {"0.jpg": picture()})("check mine --limit 3 --json")

    assert json.loads(got.out)["rows"] == 3
    assert counts(got) == {"missing": 2}


def test_shards_are_chosen(mine):
    types = mine([row(n) for n in range(20)], {"0.jpg": picture()})

    assert json.loads(types("check mine --shards 1-2 --json").out)["rows"] == 10
    refused = types("check mine --shards 9")
    assert refused.code == 2
    assert "no shards [9]" in refused.err


def test_pictures_by_url_are_not_looked_at_and_that_is_said(user, upstream):
    asked = len(upstream.requests)

    got = user("check coyo --shards 0")

    assert got.code == 0
    assert "none was looked at; `datakit doctor coyo`" in got.out
    assert all("coyo-700m" in path for _, path, _ in upstream.requests[asked:])


@pytest.mark.parametrize("full", ["", " --full"])
def test_pictures_in_the_rows_are_looked_at(full, monkeypatch):
    from datakit.reports.check_pictures import PicturesInRows

    class Reader:
        @staticmethod
        def pictures(row, about):
            return row

    monkeypatch.setattr("datakit.readers.load", lambda manifest: Reader)

    class Run:
        manifest = None

    found = PicturesInRows(Run(), bool(full)).of_row(
        [picture(), base64.b64encode(picture()).decode(), "no base64", b"", b"<html>"], ["0"] * 6, None
    )

    assert [name for name, _ in found] == ["unreadable", "missing", "html", "missing"]


def test_loose_files_are_looked_at(mine, tmp_path):
    (tmp_path / "loose/pics").mkdir(parents=True)
    (tmp_path / "loose/pics/0.jpg").write_bytes(picture("GIF"))
    rows = [row(0), row(1), row(2, image="../../etc/passwd")]

    got = mine(rows, by=f'folder"\nfolder = "{tmp_path}/loose', recipe="inline")()

    assert counts(got) == {"gif_named_jpg": 1, "missing": 1, "outside": 1}


@pytest.mark.parametrize("file", ["cleaned_labels.json", "q-instruct-images.tar"])
def test_html_where_json_or_an_archive_was_due_is_one_clear_error(tmp_path, file):
    with Miniature(rows=20) as upstream:
        upstream.replace(f"/datasets/teowu/Q-Instruct/resolve/main/{file}", b"<html>a page</html>" * 99)

        got = typed("check qinstruct", settings(upstream, tmp_path / "root"))

    assert got.code == 1
    assert "gives a web page" in got.err and file in got.err


def test_a_gated_repository_says_what_to_accept_and_is_asked_once(mine, upstream):
    types = mine([], hub="example/gated-set", address="data.json", by="none")
    asked = len(upstream.requests)

    got = types("check mine")

    assert got.code == 1
    assert "example/gated-set" in got.err
    assert "HF_TOKEN" in got.err or "accept" in got.err
    assert len(upstream.requests) - asked <= 2


def test_terms_must_be_accepted_before_anything_is_read(mine):
    types = mine([row(0)], {"0.jpg": picture()}, more='accept = "research only"')

    refused = types("check mine")
    accepted = types("check mine --accept-licence --json")

    assert refused.code == 1
    assert "research only" in refused.err and "--accept-licence" in refused.err
    assert accepted.code == 0
    assert types().code == 0


def test_an_archive_that_a_person_has_to_get_is_asked_for_once(mine):
    types = mine(
        [row(0), {"id": "t", "conversations": said("Q", "A")}],
        {"0.jpg": picture()},
        source='obtain = "Sign at example.org"',
    )

    refused = types("check mine")
    downloaded = (types.root / "downloads").exists()
    without = types("check mine --without all --json")

    assert refused.code == 1
    assert "Sign at example.org" in refused.err and "datakit adopt mine" in refused.err
    assert not downloaded
    assert counts(without) == {"left_out": 1}
    assert (without.code, json.loads(without.out)["left_out"]) == (0, 1)  # a choice, not a fault


def test_a_row_of_llavas_form_with_nothing_odd_has_no_finding():
    assert list(turns.findings(row(0))) == []
    assert list(turns.findings([])) == []
    assert list(turns.findings({"conversations": [3], "id": "a"})) == []


def test_values_of_examples_are_short_and_in_one_line():
    assert checks.shorten("a\n b") == "a b"
    assert checks.shorten(7) == "7"
    assert len(checks.shorten("x" * 500)) == 100
