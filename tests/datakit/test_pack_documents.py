"""Pack over documents that lost pictures, at fetch or only here, under both policies."""

import io
import json
import tarfile
from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datakit.catalogue.manifest import load
from datakit.engine.work import Out, Work
from datakit.errors import UsageError
from datakit.readers import mmc4
from datakit.records import interleaved
from datakit.records.record import Message, Part, encode
from datakit.records.tables import LOCATED, Rows, TableWriter, located_picture, with_images
from datakit.stages.pack import Pack
from datakit.storage.fingerprint import changes
from datakit.storage.store import Store
from datakit.web.crawl import Limits
from datakit.web.hosts import Hosts

SENTENCES = ["One.", "Two.", "Three."]
# Image 0 fits the first sentence best, and so does image 1, which has to stand before the second while 0 is there.
SIMILARITY = [[0.9, 0.1, 0.1], [0.8, 0.7, 0.1], [0.1, 0.2, 0.6]]


def png(shade):
    data = io.BytesIO()
    Image.new("RGB", (24, 16), (shade, 10, 200)).save(data, "PNG")
    return data.getvalue()


GOOD = tuple(png(shade) for shade in range(40))
BAD = png(99)[:-30]  # cut short, which only decoding tells


def document(key, *pictures, similarity=SIMILARITY, **more):
    """A row before pack. A picture is its bytes, or the outcome of the fetch that failed."""
    similarity = similarity[: len(pictures)]
    messages, order = interleaved.document(SENTENCES, similarity, len(pictures))
    assert order == sorted(order)  # images come in the order of their marks
    about = {"sentences": SENTENCES, "similarity": similarity}
    return {"key": key, "messages": encode(messages).decode(), "images": pictures, **about, **more}


def question(key, *pictures):
    """A conversation, which has no similarities."""
    content = [*[Part(type="image") for _ in pictures], Part(type="text", text="What?")]
    answer = Message(role="assistant", content=[Part(type="text", text="A boat.")])
    messages = [Message(role="user", content=content), answer]
    return {"key": key, "messages": encode(messages).decode(), "images": pictures}


@dataclass
class Packed:
    samples: dict  # every member of the tar, by key and ending
    index: list  # rows of the table beside it
    columns: list
    dropped: dict
    faults: dict
    bad_rows: int

    def record(self, key):
        return json.loads(self.samples[key]["json"])

    def parts(self, key):
        (message,) = self.record(key)["messages"]
        return [part.get("text", "<image>") for part in message["content"]]


def pack(root, rows, *, schema=None, **fields):
    """Runs Pack over rows as the step before leaves them: a table, and pictures in a tar of its own."""
    store, stored, table = Store(str(root)), b"", []
    for row in rows:
        places = []
        for at, picture in enumerate(row["images"]):
            ref = f"http://a.test/{row['key']}/{at}"
            if isinstance(picture, bytes):
                size = {"offset": len(stored), "stored_bytes": len(picture), "size_bytes": len(picture), "method": 0}
                places.append(located_picture(ref, "ok", file="mmc4/fetch/00000.tar", checked=False, **size))
                stored += picture
            else:
                places.append(located_picture(ref, picture))
        table.append({**row, "images": places})
    schema = with_images(schema or mmc4.SCHEMA, LOCATED)
    store.write("mmc4/fetch/00000.tar", stored)
    with store.publish("mmc4/fetch/00000.parquet") as sink:
        writer = TableWriter(sink, schema)
        writer.write(pa.RecordBatch.from_pylist(table, schema=schema))
        writer.close()
    before = Rows(store, 0, (("mmc4/fetch/00000.parquet", len(table)),), 0, len(table))
    work, stage = Work(store, load("coyo"), "mmc4", "pack", Hosts(), Limits()), Pack(**fields)
    with store.publish("mmc4/pack/00000.tar") as tar, store.publish("mmc4/pack/00000.parquet") as sink:
        out = Out(lambda: tar, "mmc4/pack/00000.tar")
        writer = TableWriter(sink, stage.schema(before, work.manifest))
        for batch in stage.rows(before, work, out):
            writer.write(batch)
        writer.close()
        _ = out.tar
        out.close()
    samples = {}
    with tarfile.open(store.path("mmc4/pack/00000.tar")) as tar:
        for member in tar.getmembers():
            key, _, ending = member.name.partition(".")
            samples.setdefault(key, {})[ending] = tar.extractfile(member).read()
    index = pq.read_table(store.path("mmc4/pack/00000.parquet"))
    counted = dict(out.dropped), dict(out.faults), out.bad_rows
    return Packed(samples, index.to_pylist(), index.column_names, *counted)


def test_a_document_with_a_lost_picture_is_dropped_unless_told_otherwise(tmp_path):
    rows = [document("a", *GOOD[:3]), document("b", GOOD[3], "http_404", "dns"), document("c", *GOOD[4:6])]

    got = pack(tmp_path, rows)

    assert list(got.samples) == ["a", "c"]
    assert (got.dropped, got.faults) == ({"http_404": 1}, {})  # the fault was counted by fetch


def test_a_document_loses_the_picture_and_is_matched_again(tmp_path):
    got = pack(tmp_path, [document("a", "http_404", GOOD[1], GOOD[2])], missing="drop_image")

    assert got.parts("a") == ["<image>", "One. Two.", "<image>", "Three."]  # image 1 has sentence 0 now
    assert got.record("a")["attrs"] == {"images_dropped": 1}
    assert got.index[0]["images_dropped"] == 1
    assert [image["ref"] for image in got.record("a")["images"]] == ["http://a.test/a/1", "http://a.test/a/2"]
    assert (got.samples["a"]["0.png"], got.samples["a"]["1.png"]) == (GOOD[1], GOOD[2])
    assert (got.dropped, got.faults) == ({}, {})


def test_a_picture_that_turns_out_bad_here_is_lost_like_the_others_and_is_a_fault(tmp_path):
    rows = [document("a", GOOD[0], BAD, GOOD[2]), document("b", BAD, "dns", GOOD[3])]

    got = pack(tmp_path, rows, missing="drop_image")

    assert got.parts("a") == ["<image>", "One. Two.", "<image>", "Three."]
    assert got.parts("b") == ["One. Two.", "<image>", "Three."]
    assert [row["images_dropped"] for row in got.index] == [1, 2]
    assert (got.dropped, got.faults, got.bad_rows) == ({}, {"truncated": 2}, 2)


def test_a_picture_that_turns_out_bad_here_drops_the_document_under_vilas_policy(tmp_path):
    got = pack(tmp_path, [document("a", GOOD[0], BAD, GOOD[2])])

    assert (got.samples, got.dropped, got.faults, got.bad_rows) == ({}, {"truncated": 1}, {"truncated": 1}, 1)


def test_pictures_change_places_when_the_new_match_says_so(tmp_path):
    similarity = [[0.5, 0.1, 0.9], [0.1, 0.9, 0.1], [0.0, 0.0, 0.9]]  # image 0 fits sentence 2, which image 2 has

    whole = pack(tmp_path / "whole", [document("a", *GOOD[:3], similarity=similarity)])
    got = pack(tmp_path / "got", [document("a", *GOOD[:2], "dns", similarity=similarity)], missing="drop_image")

    assert whole.parts("a") == ["<image>", "One.", "<image>", "Two.", "<image>", "Three."]
    assert got.parts("a") == ["One.", "<image>", "Two.", "<image>", "Three."]
    assert [image["ref"][-1] for image in got.record("a")["images"]] == ["1", "0"]
    assert (got.samples["a"]["0.png"], got.samples["a"]["1.png"]) == (GOOD[1], GOOD[0])


def test_a_document_without_any_picture_left_is_dropped_for_its_first_reason(tmp_path):
    rows = [document("a", "http_404", BAD, "dns"), document("b", BAD, "dns"), document("c", "tls")]

    got = pack(tmp_path, rows, missing="drop_image")

    assert got.samples == {}
    assert got.dropped == {"http_404": 1, "truncated": 1, "tls": 1}
    assert (got.faults, got.bad_rows) == ({"truncated": 2}, 2)


def test_a_document_without_a_matrix_keeps_the_others_where_they_stand(tmp_path):
    rows = [
        {**document("a", "http_404", GOOD[1], GOOD[2]), "similarity": None},
        {**document("b", GOOD[3], BAD, GOOD[4]), "similarity": None},
        {**document("c", "dns"), "similarity": None},
    ]

    got = pack(tmp_path, rows, missing="drop_image")

    assert got.parts("a") == ["One.", "<image>", "Two.", "<image>", "Three."]
    assert got.parts("b") == ["<image>", "One. Two.", "<image>", "Three."]
    assert [row["images_dropped"] for row in got.index] == [1, 1]
    assert (got.dropped, got.faults) == ({"dns": 1}, {"truncated": 1})
    assert (got.samples["b"]["0.png"], got.samples["b"]["1.png"]) == (GOOD[3], GOOD[4])


@pytest.mark.parametrize("missing", ["drop_sample", "drop_image"])
def test_a_document_that_begins_with_its_only_picture_is_no_pair(tmp_path, missing):
    got = pack(tmp_path, [document("a", GOOD[0], interleaved=True)], missing=missing)

    assert got.parts("a") == ["<image>", "One. Two. Three."]
    assert sorted(got.samples["a"]) == ["json", "png"]
    assert got.record("a")["attrs"] == {"interleaved": True}


def test_a_conversation_never_loses_a_picture(tmp_path):
    rows = [question("a", *GOOD[:2]), question("b", GOOD[2], "http_404"), question("c", GOOD[3], BAD)]

    for missing in ("drop_sample", "drop_image"):
        got = pack(tmp_path / missing, rows, missing=missing)

        assert list(got.samples) == ["a"]
        assert got.dropped == {"http_404": 1, "truncated": 1}
        assert got.faults == {"truncated": 1}


def test_rows_of_a_table_without_similarities_are_packed_alike_under_both_policies(tmp_path):
    plain = pa.schema([("key", pa.string()), ("messages", pa.string()), ("images", mmc4.REFS), ("id", pa.string())])
    rows = [question("a", *GOOD[:2]), question("b", GOOD[2], "http_404")]

    one = pack(tmp_path / "one", rows, schema=plain)
    other = pack(tmp_path / "other", rows, schema=plain, missing="drop_image")

    assert one == other
    assert "images_dropped" not in other.columns


def test_a_score_named_similarity_stays_an_attribute(tmp_path):
    scored = pa.schema(
        [("key", pa.string()), ("messages", pa.string()), ("images", mmc4.REFS), ("similarity", pa.float64())]
    )
    rows = [{**question("a", GOOD[0]), "similarity": 0.5}]

    got = pack(tmp_path, rows, schema=scored, missing="drop_image")

    assert got.record("a")["attrs"] == {"similarity": 0.5}
    assert got.index[0]["similarity"] == 0.5


def test_a_lost_picture_with_a_matrix_of_another_size_drops_the_document(tmp_path):
    lacks_a_row = {**document("a", GOOD[0], "dns"), "similarity": SIMILARITY[:1]}
    no_number = {**document("b", BAD, GOOD[1]), "similarity": [[0.1, float("nan"), 0.1], [0.1, 0.1, 0.1]]}
    none_lost = {**document("c", GOOD[2]), "similarity": []}

    got = pack(tmp_path, [lacks_a_row, no_number, none_lost], missing="drop_image")

    assert list(got.samples) == ["c"]
    assert got.dropped == {"similarity": 2}
    assert (got.faults, got.bad_rows) == ({"similarity": 2, "truncated": 1}, 2)


@pytest.mark.parametrize("missing", ["drop_sample", "drop_image"])
def test_sentences_and_similarities_end_here(tmp_path, missing):
    got = pack(tmp_path, [document("a", *GOOD[:3], url="http://a.test/")], missing=missing)

    assert got.record("a")["attrs"] == {"url": "http://a.test/"}
    assert not {"sentences", "similarity"} & set(got.columns)
    assert got.index[0]["url"] == "http://a.test/"


def test_samples_that_lost_nothing_have_the_same_bytes_under_both_policies(tmp_path):
    rows = [
        document("a", *GOOD[:3]),
        document("b", GOOD[3], "http_404", GOOD[4]),
        document("c", GOOD[5]),
        document("d", BAD, GOOD[6]),
        question("e", *GOOD[7:9]),
        document("f", *GOOD[9:12], url="http://a.test/f"),
    ]

    strict = pack(tmp_path / "strict", rows)
    loose = pack(tmp_path / "loose", rows, missing="drop_image")

    assert list(strict.samples) == ["a", "c", "e", "f"]
    assert list(loose.samples) == ["a", "b", "c", "d", "e", "f"]
    for key, members in strict.samples.items():
        assert loose.samples[key] == members, key


@settings(max_examples=25)
@given(data=st.data())
def test_whatever_is_lost_marks_pictures_and_counts_agree(tmp_path_factory, data):
    one = st.sampled_from(["http_404", "dns", BAD, *GOOD])
    drawn = data.draw(st.lists(st.lists(one, min_size=1, max_size=3), min_size=1, max_size=4))
    rows = [document(f"d{at}", *pictures) for at, pictures in enumerate(drawn)]

    got = pack(tmp_path_factory.mktemp("pack"), rows, missing="drop_image")

    for row in rows:
        here = [picture for picture in row["images"] if picture in GOOD]
        if not here:
            assert row["key"] not in got.samples
            continue
        sample, record = got.samples[row["key"]], got.record(row["key"])
        pictures = [bytes_ for ending, bytes_ in sorted(sample.items()) if ending.endswith("png")]
        assert Counter(pictures) == Counter(here)
        assert got.parts(row["key"]).count("<image>") == len(record["images"]) == len(here)
        assert record["attrs"].get("images_dropped", 0) == len(row["images"]) - len(here)
        for at, image in enumerate(record["images"]):
            assert pictures[at] == row["images"][int(image["ref"][-1])]
    assert sum(got.dropped.values()) + len(got.samples) == len(rows)
    assert got.faults.get("truncated", 0) == sum(picture is BAD for row in rows for picture in row["images"])


def test_the_policy_is_part_of_the_recipe_and_no_other_word_is_taken():
    strict, loose = (Pack(missing=missing).identity(load("coyo")) for missing in ("drop_sample", "drop_image"))

    assert Pack().identity(load("coyo")) == strict
    assert changes(strict, loose) == ['missing: "drop_sample" -> "drop_image"']
    with pytest.raises(UsageError, match="drop_image"):
        Pack(missing="drop_images")
