"""Pictures that rows hold: from Parquet, tars, base64 or a folder into fetch's tars; and the readers of such rows."""

import base64
import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datakit.catalogue import manifest
from datakit.engine import pipeline
from datakit.engine.build import Build
from datakit.engine.runner import execute
from datakit.engine.stage import Step
from datakit.errors import ArchiveError, ManifestError, SourceError
from datakit.formats import parquetrows, webdataset
from datakit.readers import About, hf
from datakit.readers import webdataset as samples
from datakit.stages import extract
from datakit.stages.extract import Extract
from datakit.stages.listing import Listing
from datakit.stages.pack import Pack
from datakit.storage.store import Store
from datakit.upstream.loose import folder_state
from datakit.web.hosts import Hosts

PICTURES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(colour: int, kind: str = "JPEG") -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (32, 24), (colour % 256, 90, 200)).save(sink, kind)
    return sink.getvalue()


def tarred(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def described(tmp_path, rows: str, images: str, reader: str) -> manifest.Manifest:
    """A manifest of files of this machine."""
    path = tmp_path / "mine.toml"
    path.write_text(
        f'title = ""\nhomepage = ""\nlicence = ""\ncitation = ""\nhub = ""\nreader = "{reader}"\nrecipe = "inline"\n'
        f"[annotations]\n{rows}\n[images]\n{images}\n"
    )
    return manifest.read(path)


def run_of(tmp_path, about: manifest.Manifest, *, tolerates: float = 1.0) -> Build:
    steps = tuple(
        Step(name=step.name, stage=step.stage, tolerates=tolerates) for step in pipeline.steps("inline", about)
    )
    store = Store(str(tmp_path / "root"))
    return Build(store=store, manifest=about, recipe="inline", steps=steps, hosts=Hosts())


def fetched(run: Build) -> list[dict]:
    """The rows of fetch; every picture that is ok is where its row says."""
    execute(run, upto=run.step_of("fetch"))
    tables = sorted(Path(run.store.root, run.folder, "fetch").glob("*.parquet"))
    rows = [row for table in tables for row in pq.read_table(table).to_pylist()]
    for row in rows:
        for image in row["images"]:
            if image["outcome"] == "ok":
                with open(f"{run.store.root}/{image['file']}", "rb") as file:
                    file.seek(image["offset"])
                    image["data"] = file.read(image["size_bytes"])
    return rows


def parquet(path, rows):
    fields = [("image", PICTURES), ("question", pa.string()), ("answer", pa.string())]
    table = pa.Table.from_pylist(rows, schema=pa.schema(fields))
    pq.write_table(table, path, row_group_size=3)
    return path.as_uri()


def asked(data, nth: int) -> dict:
    return {"image": None if data is None else {"bytes": data, "path": "x.jpg"}, "question": f"{nth}?", "answer": "a"}


COLUMNS = 'format = "parquet"\nfiles = ["{}"]\ncolumns = {{question = "question", answer = "answer", image = "image"}}'


@pytest.mark.processes
def test_pictures_of_parquet_rows_are_written_as_they_came_and_what_won_t_do_has_its_outcome(tmp_path):
    good = [picture(1), picture(2, "PNG"), picture(3, "GIF")]
    rows = [asked(data, nth) for nth, data in enumerate([*good, b"<html>", good[0][:-40], b"", None])]
    about = described(tmp_path, COLUMNS.format(parquet(tmp_path / "a.parquet", rows)), 'by = "inline"', "hf")

    found = fetched(run_of(tmp_path, about))

    assert [row["key"] for row in found] == [f"mine-00000-{nth:06d}" for nth in range(7)]
    assert [[image["outcome"] for image in row["images"]] for row in found] == [
        *([["ok"]] * 3),
        ["not_an_image"],
        ["truncated"],
        ["missing"],
        [],
    ]
    assert [row["images"][0]["data"] for row in found[:3]] == good
    assert [row["images"][0]["ext"] for row in found[:3]] == ["jpg", "png", "gif"]
    assert [row["images"][0]["ref"] for row in found[:3]] == ["0.0", "1.0", "2.0"]
    assert {(row["images"][0]["width"], row["images"][0]["height"]) for row in found[:3]} == {(32, 24)}


@pytest.mark.processes
def test_a_killed_extract_goes_on_with_the_next_part_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(Extract, "rows_per_part", 4)
    rows = [asked(picture(nth), nth) if nth != 5 else asked(None, nth) for nth in range(10)]
    about = described(tmp_path, COLUMNS.format(parquet(tmp_path / "a.parquet", rows)), 'by = "inline"', "hf")
    whole = fetched(run_of(tmp_path / "whole", about))
    inspect, seen = extract.images.inspect, []

    def cut(data):
        seen.append(data)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return inspect(data)

    monkeypatch.setattr(extract.images, "inspect", cut)
    with pytest.raises(KeyboardInterrupt):
        fetched(run_of(tmp_path / "cut", about))
    again = fetched(run_of(tmp_path / "cut", about))

    assert again == whole
    assert len(seen) == 6 + 5  # the first part, of four pictures, isn't looked at again


@pytest.mark.parametrize(
    "written",
    [
        lambda data: base64.b64encode(data).decode(),
        lambda data: base64.encodebytes(data).decode(),  # a line break after each 76 letters
        lambda data: base64.encodebytes(data).decode().replace("\n", "\r\n"),
        lambda data: f" {base64.b64encode(data).decode()}\n",
        lambda data: f"data:image/jpeg;base64,{base64.b64encode(data).decode()}",
    ],
)
def test_base64_is_read_as_upstreams_loaders_read_it(written):
    assert extract.decode_picture(written(picture(1))) == picture(1)


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        (base64.b64encode(picture(1)).decode()[:-3], "not_an_image"),
        (base64.b64encode(picture(1)).decode() + "é", "not_an_image"),
        ("", "missing"),
    ],
)
def test_what_no_decoder_of_base64_takes_is_no_picture(text, outcome):
    with pytest.raises(extract.BadImage, match=outcome):
        extract.decode_picture(text)


@pytest.mark.parametrize("text", ["pictures/1.jpg", "https://example.org/1.jpg", "data:image/jpeg,abcd", "\n \n"])
def test_text_that_is_no_base64_is_refused_by_what_it_decodes_to(text):
    with pytest.raises(extract.BadImage):
        extract.images.inspect(extract.decode_picture(text))


def test_a_path_that_leaves_the_folder_is_never_opened(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "in").mkdir(parents=True)
    (folder / "in/a.jpg").write_bytes(picture(1))
    (tmp_path / "secret.jpg").write_bytes(picture(2))
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "inner.jpg").symlink_to(folder / "in/a.jpg")
    (folder / "circle.jpg").symlink_to(folder / "circle.jpg")
    os.mkfifo(folder / "pipe.jpg")
    refs = {
        "in/a.jpg": "ok",
        "./in/a.jpg": "ok",
        "inner.jpg": "ok",
        "link.jpg": "outside",
        "../secret.jpg": "outside",
        "in/../in/a.jpg": "outside",
        f"{folder}/in/a.jpg": "outside",
        "a\0.jpg": "outside",
        "circle.jpg": "missing",
        "pipe.jpg": "missing",
        "in": "missing",
        "none.jpg": "missing",
        "in/a.jpg/b.jpg": "missing",
        "x" * 300: "missing",
    }
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a"}]
    rows = [{"id": "1", "image": ref, "conversations": turns} for ref in refs]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    files = f'format = "json"\nfiles = ["{(tmp_path / "rows.json").as_uri()}"]\nrows_per_shard = 100'
    about = described(tmp_path, files, f'by = "folder"\nfolder = "{folder}"', "llava")

    found = fetched(run_of(tmp_path, about))

    assert {row["images"][0]["ref"]: row["images"][0]["outcome"] for row in found} == refs
    assert {row["images"][0]["data"] for row in found if row["images"][0]["outcome"] == "ok"} == {picture(1)}


def test_a_folder_s_state_changes_with_its_files_and_not_with_the_root_in_it(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(b"1")
    (tmp_path / "root").mkdir()
    before = folder_state(str(tmp_path), tmp_path / "root")

    (tmp_path / "root/table").write_bytes(b"1")
    assert folder_state(str(tmp_path), tmp_path / "root") == before
    (tmp_path / "in/b.jpg").write_bytes(b"1")
    os.utime(tmp_path / "in", ns=(1, 1))  # whatever the clock's steps are
    assert folder_state(str(tmp_path), tmp_path / "root") != before
    assert folder_state(str(tmp_path / "none")) is None


def test_a_folder_that_isn_t_there_is_said_before_anything_is_made(tmp_path):
    (tmp_path / "rows.json").write_text('[{"id": "1", "image": "a.jpg", "conversations": []}]')
    files = f'format = "json"\nfiles = ["{(tmp_path / "rows.json").as_uri()}"]\nrows_per_shard = 100'
    about = described(tmp_path, files, 'by = "folder"\nfolder = "/none/such"', "llava")

    with pytest.raises(SourceError, match=r"/none/such.*isn't there"):
        fetched(run_of(tmp_path, about))


def test_members_of_a_tar_are_samples_however_they_stand(tmp_path):
    members = [
        ("a/0.jpg", b"0"),
        ("a/0.TXT", b"t0"),
        ("README", b"no kind"),
        ("a/1.jpg", b"1"),
        ("b.c/1.0.jpg", b"2"),  # the dot of a folder cuts nothing
        ("b.c/1.1.jpg", b"3"),
        ("a/1.txt", b"t1"),  # apart from its picture
        ("a/0.jpg", b"another"),  # a new sample under an old key
        ("a/0.jpg", b"twice"),
        ("a/.jpg", b"no key"),
    ]
    counted = Counter()

    found = list(webdataset.rows(tarred(tmp_path / "a.tar", members), counted))

    assert found == [
        {"__key__": "a/0", "jpg": b"0", "txt": b"t0"},
        {"__key__": "a/1", "jpg": b"1", "txt": b"t1"},
        {"__key__": "b.c/1", "0.jpg": b"2", "1.jpg": b"3"},
        {"__key__": "a/0", "jpg": b"another"},
    ]
    assert counted == {"no_kind": 2, "apart": 1, "same_key": 1, "same_member": 1}


def test_a_tar_that_is_cut_short_gives_no_sample(tmp_path):
    path = tarred(tmp_path / "a.tar", [(f"{n}.jpg", bytes(2000)) for n in range(9)])
    path.write_bytes(path.read_bytes()[:9000])

    with pytest.raises(ArchiveError, match="cut short"):
        next(webdataset.rows(path))


@pytest.mark.torch  # which the library loads
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its tars open
def test_samples_are_those_that_the_webdataset_library_gives(tmp_path):
    wds = pytest.importorskip("webdataset", reason="webdataset isn't installed")
    members = [(f"d/{n:03d}.{kind}", f"{n} {kind}".encode()) for n in range(5) for kind in ("jpg", "seg.PNG", "txt")]
    path = tarred(tmp_path / "a.tar", members)

    theirs = list(wds.WebDataset(str(path), shardshuffle=False))

    ours = list(webdataset.rows(path))
    assert [{k: v for k, v in s.items() if k == "__key__" or not k.startswith("__")} for s in theirs] == ours


def test_parquet_rows_come_in_order_and_damage_is_said(tmp_path):
    rows = [asked(picture(nth), nth) for nth in range(40)]
    parquet(tmp_path / "a.parquet", rows)
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[:-30])
    (tmp_path / "broken.parquet").write_bytes(data[:200] + b"\xff" * 400 + data[600:])
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    pq.write_table(twice, tmp_path / "twice.parquet")

    assert list(parquetrows.rows(tmp_path / "a.parquet")) == rows
    for name, said in (("cut", "cut short"), ("broken", "damaged"), ("twice", "column a twice")):
        with pytest.raises(SourceError, match=said):
            list(parquetrows.rows(tmp_path / f"{name}.parquet"))


def read(columns, row, number=7):
    return hf.reading(About("mine", "f", None, columns))(row, number)


def shown(row) -> list:
    """A row's messages in short: (role, texts and marks)."""
    if isinstance(row, str):
        return row
    return [(m.role, *("<>" if p.type == "image" else p.text for p in m.content)) for m in row.messages]


ONE = {"bytes": b"1", "path": None}


@pytest.mark.parametrize(
    ("turns", "n", "messages"),
    [
        (
            [{"role": "user", "content": "q <image>\nr"}, {"role": "assistant", "content": "a <image>"}],
            1,
            [("user", "q ", "<>", "r"), ("assistant", "a <image>")],
        ),
        (
            [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
            2,
            [("user", "<>", "<>", "q"), ("assistant", "a")],
        ),
        (
            [{"from": "system", "value": "s"}, {"role": "human", "content": "q"}, {"role": "model", "value": "a"}],
            0,
            [("system", "s"), ("user", "q"), ("assistant", "a")],
        ),
        (
            [
                {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "image", "text": None}]},
                {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
            ],
            1,
            [("user", "q", "<>"), ("assistant", "a")],
        ),
        (
            [{"user": "q", "assistant": "a", "source": "x"}, {"user": "r", "assistant": "b"}],
            1,
            [("user", "<>", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")],
        ),
        (
            json.dumps([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]),
            0,
            [("user", "q"), ("assistant", "a")],
        ),
        ([{"role": "assistant", "content": "seen"}], 1, [("assistant", "<>", "seen")]),
        ([{"role": "user", "content": "<image><image>q"}, {"role": "assistant", "content": "a"}], 1, "image_marks"),
        ([{"role": "user", "content": "q"}], 0, "roles"),
        ([{"role": "tool", "content": "q"}], 0, "unknown_role"),
        ([{"role": "user", "content": 5}], 0, "malformed"),
        ([{"role": "user", "content": ""}, {"role": "assistant", "content": "a"}], 0, "empty_question"),
        ("no json", 0, "malformed"),
        (None, 0, "malformed"),
        ([], 0, "roles"),
    ],
)
def test_turns_are_read_in_every_form(turns, n, messages):
    row = {"texts": turns, "images": [ONE] * n}

    assert shown(read({"messages": "texts", "image": "images"}, row)) == messages


def test_a_caption_and_a_question_with_an_answer_are_read():
    asks = {"question": "q", "answer": "a", "image": "i", "id": "n"}

    pair = read({"text": "t", "image": "i"}, {"t": "a dog", "i": ONE})
    answered = read(asks, {"q": "what?", "a": "a dog", "i": [ONE, ONE], "n": 5})

    assert shown(pair) == [("assistant", "<>", "a dog")]
    assert pair.attrs == {"id": "7"}
    assert shown(answered) == [("user", "<>", "<>", "what?"), ("assistant", "a dog")]
    assert answered.attrs == {"id": "5"}
    assert read(asks, {"q": None, "a": "a"}) == "empty_question"
    assert read(asks, {"q": "q", "a": " "}) == "empty_answer"
    assert read(asks, {"q": "q", "a": ["one", "two"]}) == "malformed"
    assert read(asks, {"q": "q", "a": "a", "i": 5}) == "malformed"
    assert read({"text": "t", "image": "i"}, {"t": None, "i": ONE}) == "empty_answer"


def test_there_are_as_many_pictures_as_a_row_has_references():
    about = About("mine", "f", None, {"text": "t", "image": "i"})

    for value, data in ((ONE, [b"1"]), (b"2", [b"2"]), ([ONE, b"3"], [b"1", b"3"]), ("QQ==", ["QQ=="]), (None, [])):
        row = {"t": "x", "i": value}
        assert hf.pictures(row, about) == data
        assert len(hf.reading(about)(row, 0).images) == len(data)


@pytest.mark.parametrize(
    "columns", [{}, {"question": "q"}, {"text": "t", "messages": "m"}, {"text": "t", "picture": "p"}]
)
def test_columns_that_mean_nothing_are_refused(columns):
    with pytest.raises(ManifestError, match=r"annotations\.columns"):
        read(columns, {})


def test_a_sample_of_a_tar_is_read_by_its_json_or_its_txt():
    turns = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
    about = About("mine", "f", None, {})
    read = samples.reading(about)

    def sample(told=None, **more):
        return {"__key__": "k", **more} | ({} if told is None else {"json": json.dumps(told).encode()})

    many = sample({"conversations": [turns[0], turns[1]]}, **{"10.png": b"10", "2.jpg": b"2"})
    many["json"] = many["json"].replace(b"<image>", b"<image><image>")

    assert shown(read(sample({"conversations": turns}, jpg=b"1"), 0)) == [("user", "<>", "q"), ("assistant", "a")]
    assert shown(read(sample({"caption": "c", "url": "u"}, webp=b"1", txt=b"t"), 0)) == [("assistant", "<>", "c")]
    assert shown(read(sample({"url": "u"}, jpeg=b"1", txt="tü".encode()), 0)) == [("assistant", "<>", "tü")]
    assert shown(read(sample(txt=b"alone"), 0)) == [("assistant", "alone")]
    assert shown(read(many, 0)) == [("user", "<>", "<>", "q"), ("assistant", "a")]
    assert samples.pictures(many, about) == [b"2", b"10"]
    assert read(sample(jpg=b"1"), 0) == "empty_answer"
    assert read(sample(txt=b"\xff", jpg=b"1"), 0) == "malformed"
    assert read(sample(json=b"{", jpg=b"1"), 0) == "malformed"
    assert read(sample([1], jpg=b"1"), 0) == "malformed"


@pytest.mark.processes
def test_what_datakit_packed_can_be_read_again(tmp_path):
    rows = [asked(picture(nth), nth) for nth in range(5)]
    about = described(tmp_path, COLUMNS.format(parquet(tmp_path / "a.parquet", rows)), 'by = "inline"', "hf")
    run = run_of(tmp_path, about)
    execute(run, upto=run.step_of("pack"))
    tar = f"file://{run.store.root}/mine/pack/00000.tar"
    again = described(tmp_path, f'format = "webdataset"\nfiles = ["{tar}"]', 'by = "inline"', "webdataset")

    found = fetched(run_of(tmp_path / "again", again))

    first = pq.read_table(f"{run.store.root}/mine/list/00000.parquet")
    assert [json.loads(row["messages"]) for row in found] == [json.loads(m) for m in first["messages"].to_pylist()]
    assert [row["images"][0]["data"] for row in found] == [row["image"]["bytes"] for row in rows]


def test_the_steps_of_inline_are_listing_extract_and_pack(tmp_path):
    about = described(tmp_path, 'format = "webdataset"\nfiles = ["file:///a.tar"]', 'by = "inline"', "webdataset")

    assert [type(step.stage) for step in pipeline.steps("inline", about)] == [Listing, Extract, Pack]
