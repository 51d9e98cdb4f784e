"""Keys of a user's own rows: from JSON or Parquet through pack, index and export, and what is said of those lost."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from users import settings, typed

from datakit.add import Draft
from datakit.add.files import keep
from datakit.catalogue import manifest
from datakit.errors import ManifestError
from datakit.miniature import Miniature
from datakit.records import attributes
from datakit.records.attributes import MOST, SeenKeys, column_value
from datakit.records.record import decode

PARQUET = "/datasets/example/pictures-parquet/resolve/main/data/{}"
BIG = 123456789012345678901234567890


@pytest.fixture
def person(upstream, tmp_path):
    """Types commands; has a root and a catalogue of their own."""
    env = settings(upstream, tmp_path / "root", DATAKIT_CATALOGUE=str(tmp_path / "own"))

    def types(command, **more):
        return typed(command, {**env, **more})

    types.path = tmp_path
    return types


def turns(nth):
    return [{"from": "human", "value": f"Question {nth}?"}, {"from": "gpt", "value": "A."}]


def row(nth, **own):
    return {"id": f"r{nth}", "conversations": turns(nth), **own}


def added(person, rows, *, text=None):
    """The dataset `mine` of these rows, as `datakit add` describes it."""
    (person.path / "rows.json").write_text(json.dumps(rows) if text is None else text)
    got = person(f"add mine --json {person.path}/rows.json --force")
    assert got.code == 0, got
    return got


def kinds(person):
    return manifest.read(person.path / "own/manifests/mine.toml").annotations.attributes


def renamed(person, table):
    """Writes another table of attributes into the manifest."""
    path = person.path / "own/manifests/mine.toml"
    head = path.read_text().partition("[annotations.attributes]")[0]
    lines = "".join(f"{json.dumps(name)} = {json.dumps(kind)}\n" for name, kind in table.items())
    path.write_text(f'{head}[annotations.attributes]\n{lines}[images]\nby = "none"\n')


def packed(person):
    """Index and records of `mine` after fetch and build-mix."""
    for command in ("fetch mine", "build-mix mine"):
        got = person(command)
        assert got.code == 0, (command, got)
    folder = person.path / "root/mine/pack"
    index = pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])
    records = []
    for path in sorted(folder.glob("*.parquet")):
        data = path.with_suffix(".tar").read_bytes()
        for one in pq.read_table(path).to_pylist():
            records.append(decode(data[one["json_offset"] : one["json_offset"] + one["json_bytes"]]))
    return index, records


def exported(person, form):
    got = person(f"export mine --format {form} --out {person.path}/{form}")
    assert got.code == 0, got
    return got


OWN = [
    row(0, label="cat", score=0.5, stars=3, good=True, tags=["a", "b"], meta={"by": "me", "deep": [1, {"x": None}]}),
    row(1, label="dog", score=1, stars=-(1 << 63), good=False, tags=[], meta=[1, "two", 3.5]),
    row(2, label="", score=-2.5, stars=(1 << 63) - 1, tags=["ä", None], meta="text", counts=[1, 2], big=BIG),
    row(3, meta={"n": BIG}, mixed="one", weights=[0.5, 1], flags=[True]),
    row(4, mixed=2, weights=[2], **{'a key. with=odd "signs"': "kept"}),
]
TYPES = {
    "label": "string",
    "score": "number",
    "stars": "integer",
    "good": "boolean",
    "tags": "string[]",
    "meta": "json",
    "counts": "integer[]",
    "big": "json",
    "mixed": "json",
    "weights": "number[]",
    "flags": "boolean[]",
    'a key. with=odd "signs"': "string",
}


def test_keys_of_ones_own_json_go_typed_through_index_and_record_and_come_back_equal(person):
    added(person, OWN)

    index, records = packed(person)
    exported(person, "llava")
    checked = json.loads(person("check mine --json").out)

    assert kinds(person) == TYPES
    assert {name: index.schema.field(name).type for name in TYPES} == {
        name: attributes.arrow_type(kind) for name, kind in TYPES.items()
    }
    assert index["stars"].to_pylist() == [3, -(1 << 63), (1 << 63) - 1, None, None]
    assert json.loads(index["meta"][3].as_py()) == {"n": BIG}
    for record, own in zip(records, OWN, strict=True):
        assert record.attrs == {name: value for name, value in own.items() if name != "conversations"}
    assert json.loads((person.path / "llava/mine.json").read_bytes()) == OWN
    assert (checked["findings"], checked["notes"]) == ([], [])


def test_keys_are_columns_of_a_datasets_folder(person):
    datasets = pytest.importorskip("datasets")
    added(person, OWN)
    packed(person)
    exported(person, "hf")

    loaded = datasets.load_dataset(str(person.path / "hf"), cache_dir=str(person.path / "cache"))["train"]

    assert loaded.column_names == ["key", "messages", "images", *TYPES]
    assert loaded["label"][:] == ["cat", "dog", "", None, None]
    assert loaded["stars"][:3] == [3, -(1 << 63), (1 << 63) - 1]
    assert loaded["score"][:3] == [0.5, 1.0, -2.5]
    assert loaded["tags"][:3] == [["a", "b"], [], ["ä", None]]
    assert [json.loads(text) for text in loaded["meta"][:3]] == [one["meta"] for one in OWN[:3]]


def test_messages_of_ones_own_keep_their_keys_and_their_id(person):
    said = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    rows = [{"id": f"m{nth}", "messages": said, "label": nth} for nth in range(3)]
    added(person, rows)

    _, records = packed(person)

    assert [record.attrs for record in records] == [{"id": f"m{nth}", "label": nth} for nth in range(3)]


ODD = (
    '"score": 0.5; "score": NaN; "score": 1e999; "score": "high"; "score": 9007199254740993; "score": null; '
    '"meta": {"a": [NaN]}; "stars": 9223372036854775808; "stars": true; "tags": "a"; "tags": ["a", 1]; '
    '"label": "\\ud83d"'
)


def test_a_value_that_does_not_fit_is_null_and_counted_and_listed_with_its_row(person):
    rows = [
        f'{{"id": "r{nth}", "conversations": {json.dumps(turns(nth))}, {own}}}'
        for nth, own in enumerate(ODD.split("; "))
    ]
    added(person, [], text=f"[{', '.join(rows)}]")
    table = {"score": "number", "meta": "json", "stars": "integer", "tags": "string[]", "label": "string"}
    renamed(person, table)

    index, records = packed(person)
    checked = person("check mine --json")
    found = {one["name"]: one for one in json.loads(checked.out)["findings"]}

    misfit = [1, 2, 3, 4, 6, 7, 8, 9, 10]
    noted = {nth: ["attribute"] for nth in misfit} | {5: ["null_key"], 11: ["surrogate"]}
    assert {nth: record.attrs["repairs"] for nth, record in enumerate(records) if "repairs" in record.attrs} == noted
    assert all(index[name][nth].as_py() is None for nth in misfit for name in table)
    assert index["label"][11].as_py() == "\ufffd"
    assert checked.code == 0
    assert {name: one["count"] for name, one in found.items()} == {"attribute": 9, "null_key": 1, "surrogate": 1}
    assert found["attribute"]["examples"][2] == {"where": "row 3", "id": "r3", "value": "score, number: 'high'"}


def test_keys_that_nobody_named_are_listed_with_how_to_keep_them(person):
    added(person, [row(nth) for nth in range(4)])
    (person.path / "rows.json").write_text(
        json.dumps([row(0, label="a", repairs="x"), row(1, label="b"), row(2), row(3, label="c")])
    )

    got = person("check mine --json", DATAKIT_ROOT=str(person.path / "other"))

    report = json.loads(got.out)
    (finding,) = report["findings"]
    assert (finding["name"], finding["count"]) == ("unkept_key", 4)
    assert finding["examples"][0] == {"where": "row 0", "id": "r0", "value": "label: 'a'"}
    assert report["notes"] == [
        "key 'label' isn't kept, in 3 rows: name it in annotations.attributes",
        "key 'repairs' isn't kept, in 1 rows: it can't be under its name, datakit has a column of that name: "
        "give it another one in the rows",
    ]


def test_add_says_which_keys_it_keeps_and_which_it_cannot(person):
    got = added(person, [row(0, label="a", key="b", **{"": 1, "x\ny": 2, "images.ref": 3})])

    assert "label (string)" in got.out
    assert kinds(person) == {"label": "string"}
    described = manifest.read(person.path / "own/manifests/mine.toml")
    for name in ("'key'", "''", "'images.ref'", r"'x\ny'"):
        assert any(name in told and "isn't kept" in told for told in described.problems), name
        assert name in got.out


def test_rows_with_thousands_of_different_keys_keep_the_most_frequent_ones(person):
    rows = [row(nth, label="a", **{f"k{nth}-{at}": at for at in range(60)}) for nth in range(200)]

    got = added(person, rows)

    assert len(kinds(person)) == MOST
    assert "label" in kinds(person)
    assert "keys aren't kept" in got.out and "Put them into one object" in got.out


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("key", "string", "datakit has a column of that name"),
        ("repairs", "string", "datakit has a column of that name"),
        ("images.ref", "string", "datakit has a column of that name"),
        ("conversations", "json", "the reader makes the record of it"),
        ("x" * 101, "string", "a name has 1 to 100 characters"),
        ("label", "strin", "unknown type 'strin'. Did you mean 'string'"),
    ],
)
def test_a_manifest_that_names_what_cannot_be_kept_is_refused(person, name, kind, said):
    added(person, [row(0, label="a")])
    renamed(person, {name: kind})

    got = person("check mine")

    assert got.code != 0
    assert said in got.err
    assert "mine.toml:" in got.err


def test_a_reader_that_keeps_no_keys_says_so(person):
    added(person, [row(0, label="a")])
    path = person.path / "own/manifests/mine.toml"
    path.write_text(path.read_text().replace('reader = "llava"', 'reader = "mmc4"'))

    with pytest.raises(ManifestError, match="only llava and hf keep keys of rows"):
        manifest.read(path)


def test_a_manifest_without_attributes_is_the_listing_that_it_was():
    from datakit.stages.listing import Listing

    assert "attributes" not in Listing().identity(manifest.load("qinstruct"))
    assert Listing().identity(manifest.load("llava665k"))["attributes"] == {"model": "string"}


def picture():
    sink = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 90, 20)).save(sink, "JPEG")
    return sink.getvalue()


def test_columns_of_parquet_on_the_hub_are_kept_with_their_types(tmp_path):
    table = pa.table(
        {
            "image": pa.array([{"bytes": picture(), "path": None}] * 2),
            "question": ["Q?", "Q?"],
            "answer": ["A.", "A."],
            "label": pa.array(["a", None]).dictionary_encode(),
            "count": pa.array([1, 2], pa.uint8()),
            "score": pa.array([0.5, None], pa.float32()),
            "tags": pa.array([["x"], []]),
            "boxes": pa.array([[{"x": 1.5, "name": "b"}], None]),
            "when": pa.array([0, 1], pa.timestamp("ms")),
            "repairs": ["x", "y"],
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    with Miniature(rows=20) as upstream:
        for part in range(2):
            upstream.replace(PARQUET.format(f"train-0000{part}-of-00002.parquet"), sink.getvalue())
        env = settings(upstream, tmp_path / "root", DATAKIT_CATALOGUE=str(tmp_path / "own"))

        got = typed("add mine --hub example/pictures-parquet", env)
        built = typed("build-mix --fetch mine", env)

    assert (got.code, built.code) == (0, 0), (got, built)
    assert "'when' (timestamp[ms]) isn't kept: JSON has no such type" in got.out
    assert "'repairs' (string) isn't kept: datakit has a column of that name" in got.out
    assert manifest.read(tmp_path / "own/manifests/mine.toml").annotations.attributes == {
        "label": "string",
        "count": "integer",
        "score": "number",
        "tags": "string[]",
        "boxes": "json",
    }
    index = pq.read_table(min((tmp_path / "root/mine/pack").glob("*.parquet")))
    assert index["label"].to_pylist() == ["a", None]
    assert index["boxes"].to_pylist() == ['[{"x":1.5,"name":"b"}]', None]
    assert index["repairs"].to_pylist() == [None, None]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)


@pytest.mark.parametrize("name", ["messages.old", "it's\n", 'a "name"\n'])
def test_a_key_that_cannot_be_kept_is_called_a_key_whatever_quotes_are_in_it(name):
    seen, found = SeenKeys(), Draft(title="T", annotations={}, images={}, reader="hf", recipe="")
    seen.add({name: 1})

    keep(found, *seen.kinds(()))

    (problem,) = found.problems
    assert problem.startswith(f"key {name!r} isn't kept: ")


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_every_value_that_json_has_a_word_for_fits_the_type_that_is_found_for_its_key(found):
    seen = SeenKeys()
    for value in found:
        seen.add({"own": value})
    (kind,) = seen.kinds(())[0].values()

    for value in found:
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            with pytest.raises(ValueError, match=r"is no|not JSON"):
                column_value(value, kind)
            continue
        held = column_value(value, kind)
        assert (json.loads(held) if kind == "json" and held is not None else held) == value
        assert pa.array([held], attributes.arrow_type(kind)).to_pylist() == [held]
