import json
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from datakit.catalogue.manifest import load
from datakit.errors import SourceError
from datakit.formats.jsonfile import chunks
from datakit.miniature import coyo_parquet
from datakit.readers import About, coyo, llava, reading
from datakit.readers import load as load_reader
from datakit.records.record import Part, decode_messages

REAL = Path(__file__).parents[2].parent / "shared" / "real"
IMAGE = Part(type="image")


def text(value):
    return Part(type="text", text=value)


def turns(*values):
    return [{"from": ("human", "gpt")[i % 2], "value": v} for i, v in enumerate(values)]


def row(*values, **rest):
    return {"id": "7", "conversations": turns(*values), **rest}


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("<image>\nWhat is it?", [IMAGE, text("What is it?")]),
        ("What is it?\n<image>", [text("What is it?"), IMAGE]),
        ("Look: <image> here", [text("Look: "), IMAGE, text(" here")]),
        ("What is it?", [IMAGE, text("What is it?")]),  # no mark: LLaVA's loader puts it first
    ],
)
def test_the_mark_of_a_picture_becomes_its_place(value, parts):
    record = llava.read(row(value, "A boat.", image="coco/train2017/1.jpg"), 0)

    assert record.messages[0].content == parts
    assert record.images == ["coco/train2017/1.jpg"]
    assert record.messages[1].content == [text("A boat.")]


def test_several_marks_in_a_turn_stay_several():
    record = llava.read(row("<image>\n<image>\nDiffer?", "Yes.", image=["a.jpg", "b.jpg"]), 0)

    assert [p.type for p in record.messages[0].content] == ["image", "image", "text"]


def test_a_text_only_record_is_kept_with_its_literal_mark():
    record = llava.read(row("What does <image> mean in HTML?", "A tag.", model=""), 0)

    assert record.images == []
    assert record.messages[0].content == [text("What does <image> mean in HTML?")]


def test_an_answers_own_mark_is_text():
    record = llava.read(row("<image>\nWrite a prompt", "Use <image> here", image="a.jpg"), 0)

    assert record.messages[1].content == [text("Use <image> here")]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row("<image>\nQ", "", image="a.jpg"), "empty_answer"),
        (row("Q", "  \n"), "empty_answer"),
        (row("", "A"), "empty_question"),
        (row("<image>\n<image>\nQ", "A", image="a.jpg"), "image_marks"),
        ({"conversations": turns("Q", "A")[::-1]}, "roles"),
        (row("Q"), "roles"),
        ({"conversations": []}, "roles"),
        ({"id": 1}, "malformed"),
        ([], "malformed"),
        (row("Q", "A", image=3), "malformed"),
        (row("Q", "A", image=[""]), "malformed"),
        ({"conversations": [{"from": "robot", "value": "Q"}]}, "unknown_role"),
        ({"conversations": [{"from": "human", "value": None}]}, "malformed"),
        ({"conversations": [{"from": ["human"], "value": "Q"}]}, "unknown_role"),
    ],
)
def test_a_row_that_cannot_be_trained_on_has_a_reason(bad, reason):
    assert llava.read(bad, 0) == reason


@pytest.mark.parametrize(
    ("unusual", "id", "repairs"),
    [
        ({"id": "7"}, "7", None),
        ({"id": "7", "model": "", "url": "http://x", "original_caption": "c"}, "7", None),
        ({"id": 2331819}, "2331819", ["id_type"]),
        ({"idx": "evol-3"}, "evol-3", ["id_key"]),
        ({"idx": 3}, "3", ["id_key", "id_type"]),
        ({}, "5", ["id_missing"]),
        ({"id": None}, "5", ["id_missing"]),
        ({"id": None, "idx": 0}, "0", ["id_key", "id_type"]),
        ({"id": "7", "image": None}, "7", ["image_form"]),
    ],
)
def test_an_unusual_id_is_kept_as_text_and_says_so(unusual, id, repairs):
    record = llava.read({**unusual, "conversations": turns("Q", "A")}, 5)

    assert record.attrs == {"id": id, "repairs": repairs}


@pytest.mark.parametrize(
    ("value", "image", "repairs"),
    [
        ("<image>\nQ", "a.jpg", None),
        ("Q\n<image>", "a.jpg", None),
        ("Q\n<image>\nmore", "a.jpg", None),
        ("<image>\n<image>\nQ", ["a.jpg", "b.jpg"], None),
        ("<image>", "a.jpg", None),
        ("<image>\n\nQ", "a.jpg", None),  # the second break is the text's own
        ("<image>Q", "a.jpg", ["line_breaks"]),
        ("<image>\n", "a.jpg", ["line_breaks"]),
        ("Look: <image> here", "a.jpg", ["line_breaks"]),
        ("<image><image>\nQ", ["a.jpg", "b.jpg"], ["line_breaks"]),
        ("Q", "a.jpg", ["mark_added"]),
        ("<image>\nQ", ["a.jpg"], ["image_form"]),
        ("What does <image> mean?", None, None),
    ],
)
def test_what_differs_from_upstreams_form_is_named(value, image, repairs):
    upstream = row(value, "A") if image is None else row(value, "A", image=image)

    record = llava.read(upstream, 0)

    assert record.attrs["repairs"] == repairs
    if not repairs:
        assert llava.turn_value(record.messages[0].content) == value


@pytest.mark.parametrize(
    ("asker", "answerer", "repairs"),
    [
        ("human", "gpt", None),
        ("user", "assistant", ["role_name"]),
        ("user", "gpt", ["role_name"]),
        ("human", "model", ["role_name"]),
        ("human", "bot", ["role_name"]),
    ],
)
def test_a_role_by_any_of_its_names_is_that_role_and_a_name_that_is_not_llavas_is_noted(asker, answerer, repairs):
    upstream = row("Q", "A")
    for turn, name in zip(upstream["conversations"], (asker, answerer), strict=True):
        turn["from"] = name

    record = llava.read(upstream, 0)

    assert [message.role for message in record.messages] == ["user", "assistant"]
    assert record.attrs["repairs"] == repairs


def test_a_turn_with_more_keys_says_that_they_are_lost():
    upstream = row("Q", "A")
    upstream["conversations"][1]["markdown"] = None

    assert llava.read(upstream, 0).attrs["repairs"] == ["turn_keys"]


@given(st.lists(st.sampled_from(["<image>", "\n", "Q", " ", "<image>\n"]), min_size=1, max_size=8).map("".join))
def test_what_is_written_back_is_upstreams_value_unless_the_record_says_otherwise_and_reads_the_same(value):
    images = ["a.jpg"] * value.count("<image>")
    record = llava.read(row(value, "A", image=images), 0) if images else "no image"
    assume(not isinstance(record, str))

    written = llava.turn_value(record.messages[0].content)

    assert (written == value) == ("line_breaks" not in (record.attrs["repairs"] or []))
    assert llava.read(row(written, "A", image=images), 0).messages == record.messages


def nothing_rejected(reason, n):
    assert not n, (reason, n)


def real_rows():
    if not REAL.is_dir():
        pytest.skip("the real rows of ../shared/real aren't here")
    return [json.loads(line) for line in (REAL / "coyo_rows.jsonl").read_text().splitlines()]


def test_coyos_real_rows_become_records_with_upstreams_words(tmp_path):
    rows = real_rows()
    (tmp_path / "x.parquet").write_bytes(coyo_parquet(rows))

    found = pa.Table.from_batches(coyo.batches(tmp_path / "x.parquet", None, "coyo", nothing_rejected)).to_pylist()

    assert [r["key"] for r in found] == [f"coyo-{r['id']}" for r in rows]
    assert [r["images"] for r in found] == [[{"ref": r["url"]}] for r in rows]
    assert [round(r["clip_sim"], 6) for r in found] == [
        0.567505, 0.453125, 0.470092, 0.481812, 0.717528, 0.795898, 0.759277,
    ]  # fmt: skip
    for record, upstream in zip(found, rows, strict=True):
        (message,) = decode_messages(record["messages"])
        assert (message.role, message.content) == ("assistant", [IMAGE, text(upstream["text"])])


def test_captions_with_every_nasty_character_survive(tmp_path):
    captions = ['say "hi"', "back\\slash", "line\nbreak", "tab\t", "\x01control", "emoji 🚢", "plain"]
    base = {"url": "http://x/y.jpg", "width": 1, "height": 1}
    rows = [{"id": i, "text": c, **base} for i, c in enumerate(captions)]
    (tmp_path / "x.parquet").write_bytes(coyo_parquet(rows))

    found = pa.Table.from_batches(coyo.batches(tmp_path / "x.parquet", None, "coyo", nothing_rejected)).to_pylist()

    assert [decode_messages(r["messages"])[0].content[1].text for r in found] == captions


def test_a_limit_takes_the_first_rows(tmp_path):
    rows = [{"id": i, "text": "t", "url": "u"} for i in range(10)]
    (tmp_path / "x.parquet").write_bytes(coyo_parquet(rows))

    found = pa.Table.from_batches(coyo.batches(tmp_path / "x.parquet", 3, "coyo", nothing_rejected))

    assert found["key"].to_pylist() == ["coyo-0", "coyo-1", "coyo-2"]


def test_parquet_with_a_missing_column_is_one_clear_error(tmp_path):
    data = coyo_parquet([{"id": 1, "text": "t", "url": "u"}])
    table = pq.read_table(pa.BufferReader(data)).drop_columns(["clip_similarity_vitl14"])
    pq.write_table(table, tmp_path / "x.parquet")

    with pytest.raises(SourceError, match="no column clip_similarity_vitl14"):
        list(coyo.batches(tmp_path / "x.parquet", None, "coyo", nothing_rejected))


def test_parquet_cut_short_anywhere_is_one_clear_error(tmp_path):
    data = coyo_parquet([{"id": i, "text": "t" * 50, "url": "u"} for i in range(200)])

    for cut in range(0, len(data), max(1, len(data) // 12)):
        (tmp_path / "x.parquet").write_bytes(data[:cut])
        with pytest.raises(SourceError, match=r"cut short|not Parquet"):
            list(coyo.batches(tmp_path / "x.parquet", None, "coyo", nothing_rejected))


def test_rows_without_an_id_or_with_anothers_are_counted_and_left_out(tmp_path):
    rows = [{"id": i, "text": "t", "url": "u"} for i in (5, 7, None, 5, 7, 0, None)]
    (tmp_path / "x.parquet").write_bytes(coyo_parquet(rows))
    rejected = {}

    found = list(coyo.batches(tmp_path / "x.parquet", None, "coyo", lambda r, n: rejected.update({r: n})))

    assert pa.Table.from_batches(found)["key"].to_pylist() == ["coyo-5", "coyo-7", "coyo-0"]
    assert {reason: n for reason, n in rejected.items() if n} == {"no_id": 2, "same_id": 2}


def test_pairs_without_a_caption_are_counted_and_left_out(tmp_path):
    rows = [{"id": i, "text": t, "url": "u"} for i, t in enumerate(["a", None, "", " \n ", "b"])]
    (tmp_path / "x.parquet").write_bytes(coyo_parquet(rows))
    rejected = {}

    found = list(coyo.batches(tmp_path / "x.parquet", None, "coyo", lambda r, n: rejected.update({r: n})))

    assert pa.Table.from_batches(found)["key"].to_pylist() == ["coyo-0", "coyo-4"]
    assert rejected["empty_answer"] == 3


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("id", pa.array(["../A.b/0"])),
        ("id", pa.array([0.5])),
        ("url", pa.array([5])),
        ("url", pa.array([["u"]])),
        ("clip_similarity_vitb32", pa.array(["0.5"])),
        ("text", pa.nulls(1)),
    ],
)
def test_a_column_of_another_type_is_one_clear_error(tmp_path, name, column):
    table = pq.read_table(pa.BufferReader(coyo_parquet([{"id": 1, "text": "t", "url": "u"}])))
    table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, tmp_path / "x.parquet")

    with pytest.raises(SourceError, match=f"column '{name}' is of type"):
        list(coyo.batches(tmp_path / "x.parquet", None, "coyo", nothing_rejected))


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_text_of_any_string_type_is_read(tmp_path, kind):
    table = pq.read_table(pa.BufferReader(coyo_parquet([{"id": 1, "text": "t", "url": "u"}])))
    for name in ("url", "text"):
        table = table.set_column(table.column_names.index(name), name, table[name].cast(kind))
    pq.write_table(table, tmp_path / "x.parquet")

    (batch,) = coyo.batches(tmp_path / "x.parquet", None, "coyo", nothing_rejected)

    assert batch["images"].to_pylist() == [[{"ref": "u"}]]


def asked(name):
    """A row of a reader with a text of our choice in it."""
    picture = "/9j/4AAQSkZJRg=="
    return {
        "llava": lambda said: row("Q", said),
        "hf": lambda said: {"q": "Q", "a": said},
        "m3it": lambda said: {"inputs": "Q", "outputs": said, "image_str": picture},
        "mmc4": lambda said: {
            "text_list": [said],
            "image_info": [{"raw_url": "http://a.test/0.jpg"}],
            "similarity_matrix": [[0.5]],
        },
    }[name]


@pytest.mark.parametrize("name", ["llava", "hf", "m3it", "mmc4"])
def test_half_of_a_surrogate_pair_is_noted_by_every_reader_of_json(tmp_path, name):
    manifest = msgspec.structs.replace(load("llava665k"), reader=name)
    about = About("mine", "data/vqa/gqa/train.jsonl", b'["Say."]', {"question": "q", "answer": "a"})
    made = asked(name)
    (tmp_path / "rows.json").write_text(json.dumps([made("a boat \ud83d"), made("a boat 🚢"), made("a \ufffd")]))
    read = reading(manifest, about)

    records = [read(one, nth) for _, rows in chunks(tmp_path / "rows.json") for nth, one in enumerate(rows)]

    assert records[0].messages[-1].content[-1].text == "a boat \ufffd"
    assert [record.attrs.get("repairs") for record in records] == [["surrogate"], None, None]
    assert "repairs" in load_reader(manifest).SCHEMA.names
