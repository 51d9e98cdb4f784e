from __future__ import annotations

import json
import pickle
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datakit.errors import SourceError
from datakit.formats import jsonfile
from datakit.formats.jsonfile import Plan, chunks, plan, read_rows

ROWS = [
    {"id": str(i), "image": f"a/{i}.jpg", "conversations": [{"from": "q", "value": v}, {"from": "a", "value": "}, {"}]}
    for i, v in enumerate(['q "}, {"id": 1', "\\", '\\"}]', "é漢😀", "}],\n[{", ""])
]  # fmt: skip


def written(folder: Path, text: str | bytes, name: str = "rows.json") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def rows(path: Path, chunk_bytes: int = 1 << 20) -> list[dict]:
    return [row for _, found in chunks(path, chunk_bytes=chunk_bytes) for row in found]


def fault(folder: Path, text: str | bytes, name: str = "rows.json", chunk_bytes: int = 1 << 20) -> str:
    with pytest.raises(SourceError) as caught:
        rows(written(folder, text, name), chunk_bytes)
    return str(caught.value)


@pytest.mark.parametrize("chunk_bytes", [1, 7, 100, 400, 1 << 20])
@pytest.mark.parametrize("options", [{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}])
def test_every_row_comes_back_in_order(tmp_path, chunk_bytes, options):
    path = written(tmp_path, json.dumps(ROWS, **options))

    assert rows(path, chunk_bytes) == ROWS


def test_chunks_say_where_their_rows_are(tmp_path):
    text = json.dumps(ROWS).encode()
    path = written(tmp_path, text)

    found = [(chunk, values) for chunk, values in chunks(path, chunk_bytes=200)]

    assert len(found) > 2
    assert [c.first_row for c, _ in found] == [sum(c.n_rows for c, _ in found[:i]) for i in range(len(found))]
    for chunk, values in found:
        assert json.loads(b"[" + text[chunk.offset : chunk.offset + chunk.size_bytes] + b"]") == values


nasty = st.text(st.sampled_from('"\\{}[], :\n\tné😀u0d8') | st.characters(codec="utf-8"), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | nasty,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(nasty, inner, max_size=3),
    max_leaves=6,
)
objects = st.lists(st.dictionaries(nasty, values, max_size=3), max_size=8)


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    objects,
    st.sampled_from([None, 0, 1, 4, "\t"]),
    st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : "), (",\n", ":\t")]),
    st.booleans(),
    st.integers(1, 60),
)
def test_any_objects_written_in_any_style_come_back(tmp_path, value, indent, separators, ascii_only, chunk_bytes):
    text = json.dumps(value, indent=indent, separators=separators, ensure_ascii=ascii_only)
    path = written(tmp_path, text)

    made = plan(path, rows_per_shard=2, chunk_bytes=chunk_bytes)

    assert rows(path, chunk_bytes) == value
    assert [row for _, row in read_rows(path, made, 0, made.n_rows)] == value


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(objects, st.integers(1, 60), st.booleans(), st.sampled_from(["\n", "\r\n", "\n\n", " \n"]))
def test_any_json_lines_come_back(tmp_path, value, chunk_bytes, last_end, end):
    text = end.join(json.dumps(v) for v in value) + (end if last_end else "")
    path = written(tmp_path, text, "rows.jsonl")

    if value:
        assert rows(path, chunk_bytes) == value
    else:
        with pytest.raises(SourceError, match="empty"):
            rows(path, chunk_bytes)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=60), st.sampled_from([b"", b"[", b"{", b'[{"a":', b'[{"a":1},', b'{"a":1}\n']), st.integers(1, 9)
)
def test_any_bytes_give_rows_or_a_source_error(tmp_path, tail, head, chunk_bytes):
    path = written(tmp_path, head + tail)

    try:
        found = rows(path, chunk_bytes)
    except SourceError as error:
        assert "byte" in str(error)
    else:
        assert all(isinstance(row, dict) for row in found)


@pytest.mark.parametrize("chunk_bytes", [1, 50, 1 << 20])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_file_cut_at_any_byte_is_never_fewer_rows(tmp_path, chunk_bytes, indent):
    text = json.dumps(ROWS[:3], indent=indent).encode()

    for n in range(1, len(text)):
        said = fault(tmp_path, text[:n], chunk_bytes=chunk_bytes)
        assert f"byte {n}: cut short" in said, (text[:n], said)


def test_json_lines_cut_inside_a_line_are_noticed(tmp_path):
    lines = [json.dumps(row) for row in ROWS[:3]]
    text = "\n".join(lines).encode()
    ends = {len("\n".join(lines[:i])) for i in range(1, 4)}

    for n in range(len(lines[0]) + 2, len(text)):
        if n not in ends and n - 1 not in ends:
            assert f"byte {n}: cut short" in fault(tmp_path, text[:n], "rows.jsonl")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "the file is empty"),
        (b" \n\t ", "the file is empty"),
        (b"<!DOCTYPE html><html></html>", "HTML page"),
        (b"\n\n <html>", "resolve/"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS"),
        (b"\x1f\x8b\x08", "not JSON"),
        (b'"text"', "not JSON"),
        (b"[1, 2]", "an array of objects was expected"),
        (b'["a"]', "an array of objects was expected"),
        (b'[[{"a": 1}]]', "an array of objects was expected"),
        (b'[{"a": 1}, 2, {"b": 1}]', "an array of objects was expected"),
        (b'[{"a": 1}, null]', "an array of objects was expected"),
        (b'[{"a": 1}, [2]]', "an array of objects was expected"),
        (b'[{"a": 1} {"b": 1}]', "an array of objects was expected"),
        (b'[{"a": 1},]', "an array of objects was expected"),
        (b'[,{"a": 1}]', "an array of objects was expected"),
        (b'[{"a": 1}] x', "byte 11: b'x' after the closing bracket"),
        (b'[{"a": 1}]\n[{"a": 1}]', "after the closing bracket"),
        (b"[]]", "after the closing bracket"),
        (b'[{"a": "\xff"}]', "byte 8: invalid UTF-8"),
        (b'[{"a": "\xc3"}]', "byte 8: invalid UTF-8"),
        (b'[{"a": 1}, {"b": tru}]', "byte 17: not JSON"),
        (b'[{"a": "\n"}]', "not JSON"),
        (b'[{"a": 01}]', "not JSON"),
        (b'[{"a": 1]}]', "an array of objects was expected"),
        (b'{"info": {"year": 2014}, "images": []}', """the file is one JSON object, its first key is "info\""""),
        (b'{\n  "info": {},\n  "images": []\n}', "one JSON object"),
        (b'{"info": {\n  "year": 1}}', "one JSON object"),
        (b'{"a": 1}\n{"a": }\n', "byte 15: not JSON"),
        (b'{"a": 1}\n[1]\n', "an array of objects was expected"),
        (b'{"a": 1}{"b": 1}\n{"a": 1}\n', "not JSON"),
        (b'{"a": 1},{"b": 1}\n{"a": 1}\n', "2 objects in one line"),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [1, 5, 1 << 20])
def test_what_is_not_rows_is_told(tmp_path, text, words, chunk_bytes):
    said = fault(tmp_path, text, chunk_bytes=chunk_bytes)

    assert words in said
    assert "rows.json" in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"[]", []),
        (b" [ \n ] \n", []),
        (b'\xef\xbb\xbf[{"a": 1}]', [{"a": 1}]),
        (b'\xef\xbb\xbf{"a": 1}\n{"a": 2}', [{"a": 1}, {"a": 2}]),
        (b'[{}]\n\n', [{}]),
        (b"[{},{}, {}]", [{}, {}, {}]),
        (b'{"a": 1}\n\n  \n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        (b'[{"a": 123456789012345678901234567890}]', [{"a": 123456789012345678901234567890}]),
        (b'[{"a": "\\ud83d\\ude00 \\ud83d"}, {"b": "\\\\ud83d"}]', [{"a": "😀 \ufffd"}, {"b": "\\ud83d"}]),
        (b'[{"a": Infinity}]', [{"a": float("inf")}]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("chunk_bytes", [1, 5, 1 << 20])
def test_what_is_rows_is_read(tmp_path, text, expected, chunk_bytes):
    assert rows(written(tmp_path, text), chunk_bytes) == expected


def test_only_the_row_that_held_half_of_a_surrogate_pair_is_called_mended(tmp_path):
    text = '[{"a": 1}, {"a": [{"b\\udc00": "x\\ud83d"}]}, {"a": "\\ud83d\\ude00 \\\\ud83d \ufffd", "n": NaN}]'

    found = rows(written(tmp_path, text))

    assert [type(row) for row in found] == [dict, jsonfile.RepairedRow, dict]
    assert found[1] == {"a": [{"b\ufffd": "x\ufffd"}]}
    assert found[2]["a"] == "😀 \\ud83d \ufffd"


def test_one_object_is_a_row_when_the_name_says_json_lines(tmp_path):
    assert rows(written(tmp_path, '{"a": 1}', "rows.jsonl")) == [{"a": 1}]


def test_deep_nesting_is_a_source_error(tmp_path):
    assert "nested too deeply" in fault(tmp_path, '[{"a":' + "[" * 100_000 + "]" * 100_000 + "}]")


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_a_row_larger_than_the_block_is_read_and_one_beyond_the_ceiling_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(jsonfile, "MAX_ELEMENT_BYTES", 4096)
    shape = "[%s]" if name == "rows.json" else "%s"
    small, large = [json.dumps({"a": '"{' * n}) for n in (600, 3000)]

    assert len(rows(written(tmp_path, shape % small, name), 16)) == 1
    assert "a row of more than 4096 bytes" in fault(tmp_path, shape % large, name, 16)


def test_rows_whose_nested_objects_look_like_rows_come_back(tmp_path):
    value = [{"id": i, "parts": [{"id": j} for j in range(i % 7)]} for i in range(200)]

    for separators in ((",", ":"), (", ", ": ")):
        assert rows(written(tmp_path, json.dumps(value, separators=separators)), 300) == value


def test_a_block_is_decoded_a_bounded_number_of_times(tmp_path, monkeypatch):
    value = [{"id": i, "parts": [{"id": j, "t": "}, {" * 5} for j in range(40)]} for i in range(300)]
    path = written(tmp_path, json.dumps(value))
    decoded = []
    plainly = jsonfile._rows_of
    monkeypatch.setattr(jsonfile, "_rows_of", lambda run: decoded.append(len(run)) or plainly(run))

    found = rows(path, 20_000)

    assert found == value
    assert sum(decoded) < 4 * path.stat().st_size


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_a_plan_reads_any_range_of_rows(tmp_path, name):
    value = [{"n": i, "text": "x" * (i % 50)} for i in range(300)]
    text = json.dumps(value) if name == "rows.json" else "\n".join(map(json.dumps, value))
    path = written(tmp_path, text, name)

    made = plan(path, rows_per_shard=64, chunk_bytes=500)

    assert made.n_rows == 300
    assert len(made.chunks) > 10
    for start, stop in [(0, 300), (0, 0), (64, 128), (299, 300), (250, 999), (-5, 3), (300, 310)]:
        assert list(read_rows(path, made, start, stop)) == list(enumerate(value))[max(0, start) : stop]


def test_a_plan_is_json_and_can_be_pickled(tmp_path):
    made = plan(written(tmp_path, json.dumps(ROWS)), rows_per_shard=2, chunk_bytes=100)

    assert msgspec.json.decode(msgspec.json.encode(made), type=Plan) == made
    assert pickle.loads(pickle.dumps(made)) == made  # noqa: S301


def test_a_file_that_changed_since_its_plan_is_refused(tmp_path):
    text = json.dumps(ROWS)
    path = written(tmp_path, text)
    made = plan(path, rows_per_shard=2)

    written(tmp_path, text + " ")
    with pytest.raises(SourceError, match="when it was planned"):
        list(read_rows(path, made, 0, 2))
    written(tmp_path, json.dumps(ROWS[:5]).ljust(len(text.encode())))
    with pytest.raises(SourceError, match=r"planned|not JSON|closing"):
        list(read_rows(path, made, 0, 2))


def test_a_plan_of_a_file_cut_short_is_refused(tmp_path):
    with pytest.raises(SourceError, match="cut short"):
        plan(written(tmp_path, json.dumps(ROWS)[:-1]), rows_per_shard=2)


@pytest.mark.parametrize(
    "text",
    [b'[{"a": "\xff"}]', b'{"a": 1}\n{"a": "\xc3"}\n', b'[{"a": tru}]', b'[{"a": 1}, 2]', b'{"a": 1}\n{"a": 01}\n'],
)
def test_a_plan_finds_in_rows_that_it_only_counts_what_reading_them_finds(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_bytes(text)

    with pytest.raises(SourceError) as reading:
        list(chunks(path))
    with pytest.raises(SourceError) as planning:
        jsonfile.plan(path, rows_per_shard=2)

    assert str(planning.value) == str(reading.value)
