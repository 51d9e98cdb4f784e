import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datakit.errors import SourceError
from datakit.records import interleaved
from datakit.records.record import Part, problem

IMAGE = Part(type="image")
sims = st.floats(0, 1, width=32)


@st.composite
def matrices(draw, most=5):
    n_images, n_sentences = draw(st.integers(1, most)), draw(st.integers(1, most))
    row = st.lists(sims, min_size=n_sentences, max_size=n_sentences)
    return draw(st.lists(row, min_size=n_images, max_size=n_images))


def text(value):
    return Part(type="text", text=value)


def content(sentences, places):
    (message,) = interleaved.messages(sentences, places)
    assert message.role == "assistant"
    return message.content


def as_vila(sentences, places):
    """The text that VILA's LazyMMC4Dataset makes of a document."""
    sentences = list(sentences)
    for place in sorted(places):
        sentences[place] = "<image>" + sentences[place]
    return " ".join(sentences).replace("<image> ", "<image>").replace(" <image>", "<image>")


def test_an_image_gives_up_its_best_sentence_where_the_sum_gains():
    assert interleaved.match_images([[0.24, 0.32, 0.28], [0.22, 0.32, 0.26]]) == [2, 1]


def test_each_image_has_a_sentence_of_its_own_while_there_are_enough():
    assert interleaved.match_images([[0.9, 0.1, 0.0], [0.9, 0.2, 0.1], [0.9, 0.3, 0.4]]) == [0, 1, 2]


def test_images_left_over_go_to_the_sentence_they_fit_best():
    assert interleaved.match_images([[0.1, 0.2], [0.9, 0.1], [0.3, 0.8], [0.4, 0.3]]) == [1, 0, 1, 0]


@given(matrices())
def test_no_other_assignment_has_a_larger_sum(similarity):
    table = np.array(similarity)
    n_images, n_sentences = table.shape

    places = interleaved.match_images(similarity)

    if n_images <= n_sentences:
        others = itertools.permutations(range(n_sentences), n_images)
        best = max(table[range(n_images), list(other)].sum() for other in others)
        assert len(set(places)) == n_images
        assert table[range(n_images), places].sum() == pytest.approx(best)
    else:
        assert set(places) == set(range(n_sentences))


@pytest.mark.parametrize(
    "bad",
    [
        [],
        [[]],
        [[], []],
        [[0.1, 0.2], [0.3]],
        [[0.1, float("nan")]],
        [[0.1, float("inf")]],
        [[0.1, 1e39]],  # no float32
        [[0.1, None]],
        [[0.1, "0.2"]],
        [["a"]],
        [[True, False]],
        [0.1, 0.2],
        [[[0.1]]],
        [[10**30]],
        {"0": [0.1]},
        "ab",
        None,
    ],
)
def test_what_is_no_matrix_of_numbers_is_refused(bad):
    with pytest.raises(SourceError, match="similarity matrix"):
        interleaved.match_images(bad)


def test_an_image_stands_before_its_sentence_and_takes_the_place_of_the_space():
    assert content(["A.", "B.", "C.", "D."], [2, 1]) == [text("A."), IMAGE, text("B."), IMAGE, text("C. D.")]


def test_an_image_of_the_first_sentence_comes_first():
    assert content(["A.", "B."], [0]) == [IMAGE, text("A. B.")]


def test_images_of_one_sentence_stand_side_by_side():
    assert content(["A.", "B."], [1, 1]) == [text("A."), IMAGE, IMAGE, text("B.")]


def test_a_blank_sentence_leaves_no_empty_text():
    assert content(["", "B."], [0, 1]) == [IMAGE, IMAGE, text("B.")]


def test_a_literal_mark_in_a_sentence_is_text():
    assert content(["Use <image> here."], [0]) == [IMAGE, text("Use <image> here.")]


@given(
    st.lists(st.sampled_from(["A.", "B b.", "", "c "]), min_size=1, max_size=6).flatmap(
        lambda sentences: st.tuples(
            st.just(sentences), st.lists(st.integers(0, len(sentences) - 1), min_size=1, max_size=5)
        )
    )
)
def test_the_text_is_that_of_vilas_loader(document):
    parts = content(*document)

    assert "".join(p.text if p.type == "text" else "<image>" for p in parts) == as_vila(*document)


def test_images_come_in_the_order_of_their_marks_and_equal_places_keep_theirs():
    document = interleaved.document(["A.", "B."], [[0.0, 0.9], [0.8, 0.1], [0.0, 0.5]], 3)

    assert document.order == [1, 0, 2]
    assert document.messages[0].content == [IMAGE, text("A."), IMAGE, IMAGE, text("B.")]


def test_when_an_image_is_gone_the_others_are_matched_again():
    sentences, similarity = ["A.", "B.", "C."], [[0.24, 0.32, 0.28], [0.22, 0.32, 0.26]]

    document = interleaved.document(sentences, similarity, 2, gone={1})

    assert document.order == [0]
    assert document.messages[0].content == [text("A."), IMAGE, text("B. C.")]  # the sentence that the other had


@given(matrices(), st.data())
def test_without_some_images_it_is_the_document_of_the_others(similarity, data):
    n_images, sentences = len(similarity), [f"s{i}." for i in range(len(similarity[0]))]
    gone = data.draw(st.sets(st.integers(0, n_images - 1), max_size=n_images - 1))
    left = [i for i in range(n_images) if i not in gone]

    document = interleaved.document(sentences, similarity, n_images, gone)
    alone = interleaved.document(sentences, [similarity[i] for i in left], len(left))

    assert document.messages == alone.messages
    assert document.order == [left[i] for i in alone.order]
    assert sorted(document.order) == left
    assert problem(document.messages, len(left)) is None


def test_a_document_read_back_from_a_table_is_matched_alike():
    exact = [[0.1 + 1e-10, 0.1], [0.1, 0.1]]  # apart in float64 only
    stored = np.array(exact, np.float32).tolist()

    assert interleaved.match_images(exact) == interleaved.match_images(stored)


@pytest.mark.parametrize(
    ("sentences", "similarity", "n_images", "gone"),
    [
        (["A."], [[0.1], [0.2]], 1, ()),
        (["A."], [[0.1]], 2, ()),
        (["A.", "B."], [[0.1]], 1, ()),
        ([], [[]], 1, ()),
        (["A."], [], 0, ()),
        (["A."], [[0.1]], 1, [0]),
    ],
)
def test_a_matrix_of_another_size_or_no_image_is_refused(sentences, similarity, n_images, gone):
    with pytest.raises(SourceError, match="document out"):
        interleaved.document(sentences, similarity, n_images, gone)


def test_a_document_without_some_images_has_a_space_where_each_was():
    whole = interleaved.messages(["A.", "B.", "C."], [0, 1, 1, 2])

    (some,) = interleaved.without_images(whole, {1, 3})
    (none,) = interleaved.without_images(whole, {0, 1, 2, 3})

    assert some.content == [IMAGE, text("A."), IMAGE, text("B. C.")]
    assert none.content == [text("A. B. C.")]
    assert interleaved.without_images(whole, ()) == whole
