"""Parquet of other people: rows or one clear error, whatever a file does to the library that reads it."""

import io
import os
import random
import signal
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from users import settings, typed

from datakit.errors import SourceError
from datakit.formats import parquetrows
from datakit.formats.parquetrows import UnreadableRow
from datakit.miniature import Miniature, coyo_parquet
from datakit.readers import coyo
from datakit.stages import sampled_listing as sampled

# Of `damaged`: with pyarrow 26.0.1 the library aborts on each of these ("terminate called after …").
ABORTS = (450, 628, 1097, 1104, 1385, 2002)
BAD = b"caf\xe9 \xff"


def table():
    rows = range(50)
    columns = {
        "id": list(rows),
        "url": [f"https://example.org/{n}.jpg" for n in rows],
        "text": [f"caption {n % 5}" for n in rows],
        "m": [[1, 2]] * 50,
    }
    return pa.table(columns)


def damaged(seed):
    """A file of which a byte to three are changed."""
    sink = io.BytesIO()
    pq.write_table(table(), sink, compression="snappy", row_group_size=20)
    data = bytearray(sink.getvalue())
    draw = random.Random(seed)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for _ in range(draw.choice((1, 1, 2, 3))):
        at = draw.randrange(footer if seed % 2 else 4, len(data) - 8)
        data[at] = draw.choice((draw.randrange(256), 0xFF, 0x7F, 0x80, 0, data[at] ^ (1 << draw.randrange(8))))
    return bytes(data)


def test_a_file_on_which_the_library_aborts_is_one_clear_error_and_kills_nobody(tmp_path):
    path, told = tmp_path / "x.parquet", []
    for seed in (*ABORTS, *range(6)):
        path.write_bytes(damaged(seed))
        try:
            assert len(list(parquetrows.rows(path))) <= 50
        except SourceError as error:
            told.append(str(error))

    assert all(str(path) in one and "damaged" in one for one in told)
    if pa.__version__ == "26.0.1":
        assert sum("the Parquet library crashed on it (SIGABRT)" in one for one in told) == len(ABORTS)


def test_a_shard_of_coyo_on_which_the_library_aborts_is_one_clear_error_with_a_way_on(tmp_path):
    name = "part-00000-17da4908-939c-46e5-91d0-15f256041956-c000.snappy.parquet"
    path = f"/datasets/kakaobrain/coyo-700m/resolve/main/data/{name}"
    with Miniature(rows=20, coyo_rows=20) as upstream:
        env = settings(upstream, tmp_path / "root")
        good = upstream.answer(path).body
        upstream.replace(path, good[:-300] + bytes(200) + good[-100:])
        bad = typed("fetch coyo --shards 0", env)
        mended = typed("verify coyo --repair", env)
        upstream.replace(path, good)

    assert bad.code == 1
    assert "damaged" in bad.err and "datakit verify --repair" in bad.err
    assert mended.code in (0, 1)


def test_all_that_a_whole_file_holds_comes_in_order_with_its_types(tmp_path):
    nested = [[{"a": n, "b": None if n % 2 else b"\x00\xff"}] for n in range(100)]
    held = table().slice(0, 0).schema
    made = pa.table({"l": nested, "d": pa.array(["x", "y"] * 50).dictionary_encode(), "n": list(range(100))})
    pq.write_table(made, tmp_path / "x.parquet", row_group_size=7)

    assert list(parquetrows.rows(tmp_path / "x.parquet")) == made.to_pylist()
    with parquetrows.open_file(tmp_path / "x.parquet", (["n"], 30), (["d", "l"], None)) as file:
        assert (file.rows, file.schema.names) == (100, ["l", "d", "n"])
        assert [row["n"] for batch in file.batches() for row in batch.to_pylist()] == list(range(100))
        assert sum(batch.num_rows for batch in file.batches()) == 100
    assert held.names


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + bytes(20) + b"PAR1", b"<html>" * 9])
def test_what_is_no_parquet_is_one_clear_error(tmp_path, data):
    (tmp_path / "x.parquet").write_bytes(data)

    with pytest.raises(SourceError, match="no Parquet, is cut short or is damaged: "):
        list(parquetrows.rows(tmp_path / "x.parquet"))


def test_a_reader_that_is_left_early_leaves_no_process_and_no_pipe(tmp_path):
    pq.write_table(pa.table({"x": ["y" * 1000] * 20_000}), tmp_path / "x.parquet")
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = len(list(Path("/proc/self/fd").iterdir())), children.read_text()

    for _ in range(3):
        rows = parquetrows.rows(tmp_path / "x.parquet")
        next(rows)
        rows.close()

    assert (len(list(Path("/proc/self/fd").iterdir())), children.read_text()) == before


def test_a_reader_that_is_killed_is_told_as_that(tmp_path):
    pq.write_table(pa.table({"x": [os.urandom(1000) for _ in range(20_000)]}), tmp_path / "x.parquet")

    with pytest.raises(SourceError, match="was killed, perhaps for want of memory"):
        for n, _ in enumerate(parquetrows.rows(tmp_path / "x.parquet")):
            if n == 0:
                child = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()[-1]
                os.kill(int(child), signal.SIGKILL)


def texts(values):
    """Bytes as a column of strings, whether they are UTF-8 or not."""
    return pa.array(values, pa.binary()).view(pa.string())


def test_a_row_whose_text_is_not_utf_8_is_one_row_that_cannot_be_had(tmp_path):
    pq.write_table(pa.table({"t": texts([b"a", BAD, b"c"]), "n": [1, 2, 3]}), tmp_path / "x.parquet")

    found = list(parquetrows.rows(tmp_path / "x.parquet"))

    assert found == [{"t": "a", "n": 1}, UnreadableRow("not_utf8"), {"t": "c", "n": 3}]


@pytest.mark.parametrize("encoded", [False, True])
def test_rows_of_coyo_that_are_not_utf_8_are_counted_and_the_others_stay(tmp_path, encoded):
    rows = [
        {"id": n, "url": f"u{n}", "text": f"t{n}", "clip_similarity_vitb32": 0.3, "clip_similarity_vitl14": 0.3}
        for n in (1, 2, 2, 3, 4, 5)
    ]
    (tmp_path / "x.parquet").write_bytes(coyo_parquet(rows))
    held = pq.read_table(tmp_path / "x.parquet")
    for name, values in (
        ("url", [b"u1", b"u2", b"u2", BAD, b"", b"u5"]),
        ("text", [BAD, b"t2", b"t2", BAD, b"t4", "ü".encode()]),
    ):
        column = texts(values)
        held = held.set_column(
            held.schema.get_field_index(name), name, column.dictionary_encode() if encoded else column
        )
    pq.write_table(held, tmp_path / "x.parquet")
    rejected = Counter()

    batches = list(coyo.batches(tmp_path / "x.parquet", None, "coyo", lambda why, n: rejected.update({why: n})))

    assert [key for batch in batches for key in batch["key"].to_pylist()] == ["coyo-2", "coyo-4", "coyo-5"]
    assert +rejected == {"not_utf8": 2, "same_id": 1}
    assert not [b for b in batches if b.validate(full=True)]


@pytest.mark.processes
def test_rows_of_the_hub_that_are_not_utf_8_are_dropped_and_counted_from_fetch_to_check(tmp_path):
    path = tmp_path / "x.parquet"
    held = pa.table({"said": texts([b"good", BAD, b"good too"]), "image": [None, None, None]})
    pq.write_table(held.set_column(1, "image", pa.array([None] * 3, pa.binary())), path)
    (tmp_path / "my/manifests").mkdir(parents=True)
    (tmp_path / "my/manifests/mine.toml").write_text(
        'title = "m"\nhomepage = ""\nlicence = ""\ncitation = ""\nhub = ""\nreader = "hf"\nrecipe = "inline"\n'
        f'[annotations]\nformat = "parquet"\nfiles = ["file://{path}"]\n[annotations.columns]\ntext = "said"\n'
        'image = "image"\n[images]\nby = "inline"\n'
    )
    env = {"DATAKIT_ROOT": str(tmp_path / "root"), "DATAKIT_CATALOGUE": str(tmp_path / "my"), "DATAKIT_JOBS": "1"}

    got, checked = typed("fetch mine", env), typed("check mine", env)

    assert got.code == 0, got
    assert "not_utf8 1" in got.out
    assert "1  not utf8" in checked.out


def test_rows_of_flan_that_are_not_utf_8_stand_for_themselves(tmp_path):
    pq.write_table(pa.table({"t": texts([b"a", BAD, b"c", b"d"])}), tmp_path / "x.parquet")

    with pq.ParquetFile(tmp_path / "x.parquet") as file:
        found = list(sampled.read_rows_of_group(file, 0, ["t"], [0, 1, 3]))

    assert found == [{"t": "a"}, UnreadableRow("not_utf8"), {"t": "d"}]


def test_a_listing_of_before_with_a_text_that_is_not_utf_8_says_how_to_make_it_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(coyo.parquetrows, "utf8_rows", lambda batch, columns: None)  # as it was
    with Miniature(rows=20, coyo_rows=20) as upstream:
        env = settings(upstream, tmp_path / "root")
        name = "part-00000-17da4908-939c-46e5-91d0-15f256041956-c000.snappy.parquet"
        path = f"/datasets/kakaobrain/coyo-700m/resolve/main/data/{name}"
        held = pq.read_table(io.BytesIO(upstream.answer(path).body))
        place, column = held.schema.get_field_index("url"), held["url"].cast(pa.binary()).to_pylist()
        held = held.set_column(place, "url", texts([b"http://example.org/" + BAD for _ in column]))
        sink = io.BytesIO()
        pq.write_table(held, sink)
        upstream.replace(path, sink.getvalue())
        before = typed("fetch coyo --shards 0", env)
        monkeypatch.undo()
        (tmp_path / "root/coyo/list/00000.commit.json").unlink()
        after = typed("fetch coyo --shards 0 --tolerate 1", env)

    assert before.code == 1
    assert "remove coyo/list/00000.commit.json and run the same command again" in before.err
    assert after.code == 0
    assert "not_utf8" in after.out
