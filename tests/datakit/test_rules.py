import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_choose import run
from users import REAL

from datakit.errors import UsageError
from datakit.records.record import Message, Part, encode
from datakit.records.tables import REFS
from datakit.stages.text_rules import DropText, repetition, sa_id

# The sentence in which ShareGPT4V's captioner is known to get caught (its issue 12).
STUCK = "The image does not contain any imaginary content. "


def real(name):
    if not REAL.is_dir():
        pytest.skip("the real captions of ../shared/real aren't here")
    return [json.loads(line) for line in (REAL / name).read_text().splitlines()]


@pytest.mark.parametrize(
    "text",
    ["A dog (sa_545504).", "sa_1", "See sam/images/sa_27315.jpg", "The picture SA_223750 shows a street", '"sa_22839"'],
)
def test_the_name_of_a_sam_picture_is_found(text):
    assert sa_id(text)


@pytest.mark.parametrize(
    "text", ["USA_2019", "visa_1", "sa_", "sa 545504", "Pisa_2", "a salsa_3", "sa_file", "", "(sa_XXXX)"]
)
def test_what_only_looks_like_the_name_of_a_sam_picture_passes(text):
    assert not sa_id(text)


@pytest.mark.parametrize(
    "text",
    [
        STUCK * 3,
        "A red boat lies in the harbour. " + STUCK * 40,
        f"{STUCK}The sky is blue. {STUCK}The sea is calm. {STUCK}",
        STUCK.upper() + STUCK + STUCK.lower(),
        "There is a boat here\nThere is a boat here\nThere is a boat here\n",
        "The sign reads " + "open " * 24,
        "On the table are " + "a red cup, a blue plate, and a fork, " * 3,
        "a man and " * 8,
        "The tower is tall and " + "the roof of the tower is red and the door of the tower is green and " * 3,
        ("x " + " ".join(f"w{i}" for i in range(900)) + " ") * 3,
    ],
)
def test_a_text_that_goes_in_circles_is_found(text):
    assert repetition(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        STUCK,
        STUCK * 2,
        "It is red. " * 7,
        "No. No. No. No.",
        "open " * 23,
        "a red cup, a blue plate, and a fork, " * 2,
        "On the left there is a red car parked. On the right there is a red bus parked. In front there is a red van.",
        ("x " + " ".join(f"w{i}" for i in range(1000)) + " ") * 2,
        " ".join(f"number {i} of the houses in this long street of white houses" for i in range(50)),
    ],
)
def test_a_text_that_repeats_a_little_passes(text):
    assert not repetition(text)


def plainly_looped(words):
    """The definition of a run, word by word."""
    for phrase in range(1, len(words) // 3 + 1):
        run = phrase
        for at in range(phrase, len(words)):
            run = run + 1 if words[at] == words[at - phrase] else phrase
            if run >= max(24, 3 * phrase):
                return True
    return False


@given(
    st.lists(st.sampled_from("ab"), max_size=80) | st.lists(st.sampled_from("abcd"), max_size=9).map(lambda w: w * 9)
)
def test_a_run_is_found_exactly_where_its_definition_says(words):
    assert repetition(" ".join(words)) == plainly_looped(words)


def test_no_real_caption_or_answer_breaks_a_rule():
    captions = [caption for row in real("coco_caps_80.jsonl") for caption in row["captions"]]
    together = [" ".join(row["captions"]) for row in real("coco_caps_80.jsonl")]
    answers = [row["output"] for row in real("llava_qa_30x3.jsonl")]

    broken = [text for text in captions + together + answers if sa_id(text) or repetition(text)]

    assert len(captions) == 401 and len(answers) == 90
    assert not broken


def said(*turns):
    roles = ("user", "assistant")
    return encode(
        [Message(role=roles[i % 2], content=[Part(type="text", text=t)]) for i, t in enumerate(turns)]
    ).decode()


def table(rows, pictures=None):
    images = [[{"ref": "sam/images/sa_1.jpg"}]] * len(rows) if pictures is None else pictures
    keys = [f"k{i}" for i in range(len(rows))]
    return pa.table({"key": keys, "messages": rows, "images": pa.array(images, REFS)})


def test_each_row_is_counted_under_the_first_rule_that_it_breaks():
    rows = [said("What?", t) for t in ("A boat.", "It is sa_12.", STUCK * 3, STUCK * 3 + "sa_12")]

    kept, dropped, faults = run(DropText(), table(rows))

    assert kept == ["k0"]
    assert dropped == {"sa_id": 2, "repetition": 1}
    assert faults == {}  # a choice is no fault


def test_only_the_rules_that_are_named_are_asked():
    rows = [said("What?", t) for t in ("It is sa_12.", STUCK * 3)]

    assert run(DropText(rules=("repetition",)), table(rows))[0] == ["k0"]
    assert run(DropText(rules=("sa_id",)), table(rows))[0] == ["k1"]


def test_every_answer_is_read_alone_and_no_question_is():
    rows = [
        said("Is sa_12 a boat?", "Yes."),
        said("And this?", "This is a red boat.", "And this?", "This is a red boat.", "This?", "This is a red boat."),
        said("Is it?", "Yes.", "Is it?", "No, sa_3."),
    ]

    assert run(DropText(), table(rows))[0] == ["k0", "k1"]


def test_a_row_whose_picture_is_called_so_passes():
    assert run(DropText(), table([said("What?", "A boat.")], [[{"ref": "sam/images/sa_545504.jpg"}]]))[0] == ["k0"]


def test_text_without_a_picture_passes():
    verse = said("Write a song.", "We all live in a house of brick. " * 5)

    assert run(DropText(), table([verse, verse], [[], [{"ref": "a.jpg"}]]))[0] == ["k0"]


def test_an_empty_shard_gives_an_empty_shard():
    assert run(DropText(), table([])) == ([], {}, {})


def test_a_rule_that_is_not_known_is_told_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'repetition'"):
        DropText(rules=("sa_id", "repetitions"))
