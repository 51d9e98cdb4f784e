import json

import msgspec
import numpy as np
import pytest
from users import REAL

from datakit.catalogue.manifest import load
from datakit.errors import ManifestError
from datakit.readers import load as load_reader
from datakit.readers import mmc4
from datakit.records.record import Part, decode_messages, encode
from datakit.records.tables import as_batches

IMAGE = Part(type="image")


def text(value):
    return Part(type="text", text=value)


def found(*urls, **rest):
    return [{"raw_url": url, "image_name": "x.jpg", "face_detections": None, **rest} for url in urls]


def page(**changed):
    """A document of two images and three sentences, as in MMC4's files."""
    return {
        "text_list": ["One.", "Two.", "Three."],
        "image_info": found("http://a.test/0.jpg", "http://a.test/1.jpg"),
        "similarity_matrix": [[0.1, 0.2, 0.9], [0.8, 0.3, 0.1]],
        "url": "http://a.test/",
        "could_have_url_duplicate": 0,
        **changed,
    }


def without(name):
    return {key: value for key, value in page().items() if key != name}


def test_the_real_document_has_its_images_where_mmc4_put_them():
    if not REAL.is_dir():
        pytest.skip("the real document of ../shared/real isn't here")
    real = json.loads((REAL / "mmc4_doc.jsonl").read_text())
    words = real["text_list"]

    record = mmc4.read(real, 0)

    assert record.messages[0].content == [text(words[0]), IMAGE, text(words[1]), IMAGE, text(words[2])]
    assert [ref.rpartition("/")[2] for ref in record.images] == ["index.91.jpg", "index.90.jpg"]
    assert record.attrs["similarity"] == real["similarity_matrix"][::-1]
    assert record.attrs["url"] == "http://www.hfitinfo.com/hofi-48.html"


def test_images_and_the_rows_of_the_matrix_are_in_the_order_of_the_marks():
    record = mmc4.read(page(), 0)

    assert record.messages[0].content == [IMAGE, text("One. Two."), IMAGE, text("Three.")]
    assert record.images == ["http://a.test/1.jpg", "http://a.test/0.jpg"]
    assert record.attrs == {
        "sentences": ["One.", "Two.", "Three."],
        "similarity": [[0.8, 0.3, 0.1], [0.1, 0.2, 0.9]],
        "interleaved": True,
        "url": "http://a.test/",
        "could_have_url_duplicate": False,
    }


def indexed(*places, **changed):
    """The document with upstream's indexes."""
    images = [found(f"http://a.test/{n}.jpg", matched_text_index=place)[0] for n, place in enumerate(places)]
    return page(image_info=images, **changed)


def test_upstreams_index_is_taken_where_the_matrix_says_otherwise():
    record = mmc4.read(indexed(1, 0), 0)

    assert record.messages[0].content == [IMAGE, text("One."), IMAGE, text("Two. Three.")]
    assert record.images == ["http://a.test/1.jpg", "http://a.test/0.jpg"]
    assert record.attrs["similarity"] == [[0.8, 0.3, 0.1], [0.1, 0.2, 0.9]]  # to match by when one is lost


def test_pictures_of_one_sentence_stand_side_by_side_in_upstreams_order():
    record = mmc4.read(indexed(1, 1), 0)

    assert record.messages[0].content == [text("One."), IMAGE, IMAGE, text("Two. Three.")]
    assert record.images == ["http://a.test/0.jpg", "http://a.test/1.jpg"]


@pytest.mark.parametrize("odd", [-1, 3, None, "1", 1.0, True, 10**30])
def test_an_index_that_names_no_sentence_leaves_all_to_the_matrix(odd):
    assert mmc4.read(indexed(1, odd), 0) == mmc4.read(page(), 0)


@pytest.mark.parametrize("matrix", [None, [], [[0.1, 0.2, 0.3]], [[float("nan")] * 3] * 2])
def test_a_document_with_indexes_needs_no_matrix(matrix):
    record = mmc4.read(indexed(0, 2, similarity_matrix=matrix), 0)

    assert record.messages[0].content == [IMAGE, text("One. Two."), IMAGE, text("Three.")]
    assert record.attrs["similarity"] is None


def test_more_images_than_sentences_are_all_kept():
    crowded = page(text_list=["One."], similarity_matrix=[[0.2], [0.9]])

    record = mmc4.read(crowded, 0)

    assert record.messages[0].content == [IMAGE, IMAGE, text("One.")]
    assert record.images == ["http://a.test/0.jpg", "http://a.test/1.jpg"]


def test_one_address_twice_is_two_images():
    record = mmc4.read(page(image_info=found("http://a.test/0.jpg", "http://a.test/0.jpg")), 0)

    assert record.images == ["http://a.test/0.jpg"] * 2
    assert record.messages == mmc4.read(page(), 0).messages


@pytest.mark.parametrize("name", ["url", "could_have_url_duplicate"])
def test_what_no_sample_needs_may_be_missing(name):
    record = mmc4.read(without(name), 0)

    assert record.attrs[name] is None
    assert record.messages == mmc4.read(page(), 0).messages


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ([], "malformed"),
        ({}, "malformed"),
        (without("text_list"), "malformed"),
        (without("image_info"), "malformed"),
        (page(image_info=None), "malformed"),
        (page(image_info=["http://a.test/0.jpg"]), "malformed"),
        (page(image_info=found("http://a.test/0.jpg", "")), "malformed"),
        (page(image_info=[{"image_name": "x.jpg"}]), "malformed"),
        (page(text_list="One."), "malformed"),
        (page(text_list=["One.", None, "Three."]), "malformed"),
        (page(image_info=[], similarity_matrix=[]), "no_images"),
        (page(text_list=[], similarity_matrix=[[], []]), "empty_answer"),
        (page(text_list=["", " ", "\n"]), "empty_answer"),
        (without("similarity_matrix"), "similarity"),
        (page(similarity_matrix=None), "similarity"),
        (page(similarity_matrix={"0": [1, 2, 3], "1": [1, 2, 3]}), "similarity"),
        (page(similarity_matrix=[]), "similarity"),
        (page(similarity_matrix=[[0.1, 0.2, 0.3]]), "similarity"),
        (page(similarity_matrix=[[0.1, 0.2], [0.3, 0.4]]), "similarity"),
        (page(similarity_matrix=[[0.1, 0.2, 0.3], [0.1, 0.2]]), "similarity"),
        (page(similarity_matrix=[[0.1, 0.2, float("nan")], [0.1, 0.2, 0.3]]), "similarity"),
        (page(similarity_matrix=[[0.1, 0.2, None], [0.1, 0.2, 0.3]]), "similarity"),
    ],
)
def test_a_document_that_cannot_be_laid_out_has_a_reason(bad, reason):
    assert mmc4.read(bad, 0) == reason


def test_a_row_fits_the_table_and_comes_back_as_it_was():
    record = mmc4.read(page(similarity_matrix=[[0, 1, 16777217], [0.8, 0.3, 0.1]]), 0)
    row = {
        "key": "mmc4-000000000",
        "messages": encode(record.messages).decode(),
        "images": [{"ref": ref} for ref in record.images],
        **record.attrs,
    }

    (batch,) = as_batches([row], mmc4.SCHEMA)

    (back,) = batch.to_pylist()
    assert decode_messages(back["messages"]) == record.messages
    assert back["sentences"] == ["One.", "Two.", "Three."]
    assert np.array_equal(np.array(back["similarity"], np.float32), np.array(record.attrs["similarity"], np.float32))


def test_it_reads_objects_as_the_json_readers_do():
    llava = load("llava665k")

    assert load_reader(msgspec.structs.replace(llava, reader="mmc4")) is mmc4
    with pytest.raises(ManifestError):
        load_reader(msgspec.structs.replace(llava, reader="coyo"))
