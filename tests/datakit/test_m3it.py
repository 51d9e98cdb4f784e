import json

import pytest

from datakit.errors import ManifestError, SourceError
from datakit.readers import About, m3it
from datakit.records.record import Part, decode_messages, encode
from datakit.records.tables import as_batches

IMAGE = Part(type="image")
FILE = "data/vqa/gqa/train.jsonl"
PICTURE = "/9j/4AAQSkZJRg=="


def text(value):
    return Part(type="text", text=value)


def about(instructions, *, file=FILE, separator="\n"):
    beside = instructions if isinstance(instructions, bytes | None) else json.dumps(instructions).encode()
    return About("m3it", file, beside, {}, separator)


def read(row, number=0, *, instructions=("Answer the question.",), **rest):
    return m3it.reading(about(list(instructions), **rest))(row, number)


def row(inputs="What is it?", outputs="A boat.", **rest):
    return {"inputs": inputs, "outputs": outputs, "image_str": PICTURE, **rest}


def said(record):
    return [(m.role, m.content) for m in record.messages]


def test_the_picture_comes_first_then_the_instruction_and_the_input():
    record = read(row(), 12)

    assert said(record) == [
        ("user", [IMAGE, text("Answer the question.\nWhat is it?")]),
        ("assistant", [text("A boat.")]),
    ]
    assert record.attrs == {"id": "gqa-12", "task": "vqa", "dataset": "gqa"}
    assert len(record.images) == 1


def test_an_empty_separator_is_upstreams_glued_form():
    assert said(read(row(), separator=""))[0][1] == [IMAGE, text("Answer the question.What is it?")]


@pytest.mark.parametrize("inputs", ["", None])
def test_without_an_input_there_is_only_the_instruction(inputs):
    assert said(read(row(inputs)))[0][1] == [IMAGE, text("Answer the question.")]


def test_blanks_at_the_ends_go_as_in_vilas_loader():
    record = read(row("What is it?\n ", "A boat. \n"))

    assert [m.content[-1].text for m in record.messages] == ["Answer the question.\nWhat is it?", "A boat."]


def test_an_instruction_hangs_on_the_file_and_the_row_alone():
    many = [f"Instruction {n}." for n in range(20)]

    drawn = [read(row(""), n, instructions=many).messages[0].content[-1].text for n in range(400)]
    again = [read(row(""), n, instructions=many).messages[0].content[-1].text for n in range(400)]
    elsewhere = [
        read(row(""), n, instructions=many, file="data/vqa/viquae/train.jsonl").messages[0].content[-1].text
        for n in range(400)
    ]

    assert drawn == again
    assert drawn != elsewhere
    assert set(drawn) == set(many)
    assert drawn[:3] == ["Instruction 14.", "Instruction 7.", "Instruction 3."]  # changes with VERSION only


@pytest.mark.parametrize(
    "beside",
    [["A.", "B."], {"instructions": ["A.", "B."]}, {"0": "A.", "1": "B."}, [{"instruction": "A."}, "B.", ""]],
)
def test_instructions_are_found_in_lists_and_objects(beside):
    drawn = {m3it.reading(about(beside))(row(""), n).messages[0].content[-1].text for n in range(40)}

    assert drawn == {"A.", "B."}


@pytest.mark.parametrize("beside", [b"", b"<html>", b"[]", b'{"a": 1}', b"\xff"])
def test_instructions_that_cannot_be_read_are_one_clear_error(beside):
    with pytest.raises(SourceError, match=r"data/vqa/gqa/train\.jsonl"):
        m3it.reading(about(beside))


def test_a_manifest_that_names_no_instructions_is_told_so():
    with pytest.raises(ManifestError, match=r"annotations\.beside"):
        m3it.reading(about(None))


@pytest.mark.parametrize("n", [2, 8])
def test_several_pictures_all_stand_before_the_text(n):
    several = row(image_str=[f"{PICTURE[:-2]}{i}=" for i in range(n)])

    record = read(several, 3)

    assert said(record)[0][1] == [IMAGE] * n + [text("Answer the question.\nWhat is it?")]
    assert record.images == [f"3.{nth}" for nth in range(n)]
    assert m3it.pictures(several, about(["A."])) == several["image_str"]


def test_pictures_are_found_under_the_name_that_upstreams_loader_gives_them():
    loaded = {"inputs": "", "outputs": "A boat.", "image_base64_str": [PICTURE]}

    assert m3it.pictures(loaded, about(["A."])) == [PICTURE]
    assert len(read(loaded).images) == 1


def test_a_row_that_says_it_has_no_picture_is_text():
    record = read(row(image_str=[]))

    assert record.images == []
    assert said(record)[0][1] == [text("Answer the question.\nWhat is it?")]


@pytest.mark.parametrize(
    ("inputs", "left"),
    [
        ("<image>\nWhat is it?", "What is it?"),
        ("What is it?\n<image>", "What is it?"),
        ("What is <image>it?", "What is it?"),
    ],
)
def test_marks_in_the_text_go_and_the_pictures_stand_first(inputs, left):
    record = read(row(inputs), instructions=["Look."])

    assert said(record)[0][1] == [IMAGE, text(f"Look.\n{left}")]


def test_marks_are_taken_out_of_the_instruction_too():
    assert said(read(row(""), instructions=["<image>\nLook."]))[0][1] == [IMAGE, text("Look.")]


DIALOG = (
    "Image Descriptions: two dogs on a beach\nQuestion: is it sunny?\nAnswer: yes\n"
    "Question: how many dogs?\nAnswer: 2\nQuestion: do they wear collars?"
)


@pytest.mark.parametrize("separator", ["\n", ""])
@pytest.mark.parametrize("ending", ["", "\n", "\nAnswer: ", "\nAnswer:"])
def test_a_visual_dialog_is_turns_and_its_preamble_goes(separator, ending):
    record = read(row(DIALOG + ending, "only one does"), separator=separator)

    assert said(record) == [
        ("user", [IMAGE, text("is it sunny?")]),
        ("assistant", [text("yes")]),
        ("user", [text("how many dogs?")]),
        ("assistant", [text("2")]),
        ("user", [text("do they wear collars?")]),
        ("assistant", [text("only one does")]),
    ]


@pytest.mark.parametrize(
    "inputs",
    [
        "Image Descriptions: two dogs",
        "Image Descriptions: two dogs\nQuestion: sunny?\nQuestion: how many?",
        "Image Descriptions: two dogs\nQuestion: sunny?\nAnswer: yes\nAnswer: no\nQuestion: how many?",
        "Image Descriptions: two dogs\nQuestion: sunny?\nAnswer: yes",
    ],
)
def test_a_dialog_whose_rounds_are_not_question_and_answer_has_a_reason(inputs):
    assert read(row(inputs)) == "dialog"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ([], "malformed"),
        ({}, "malformed"),
        (row(None, None), "malformed"),
        (row(["x"]), "malformed"),
        (row(image_str=""), "malformed"),
        (row(image_str=[PICTURE, ""]), "malformed"),
        (row(image_str={"bytes": PICTURE}), "malformed"),
        ({"inputs": "", "outputs": "A boat.", "image": PICTURE}, "no_images"),
        (row(image_str=None), "no_images"),
        (row(image_str=[PICTURE] * 9), "too_many_images"),
        (row(outputs=" \n"), "empty_answer"),
        (row("Image Descriptions: a\nQuestion: sunny?\nAnswer: \nQuestion: how many?"), "empty_answer"),
    ],
)
def test_a_row_that_cannot_be_trained_on_has_a_reason(bad, reason):
    assert read(bad) == reason


def test_a_row_fits_the_table_and_comes_back_as_it_was():
    record = read(row(), 5)
    as_row = {
        "key": "m3it-000000005",
        "messages": encode(record.messages).decode(),
        "images": [{"ref": ref} for ref in record.images],
        **record.attrs,
    }

    (batch,) = as_batches([as_row], m3it.SCHEMA)

    (back,) = batch.to_pylist()
    assert decode_messages(back["messages"]) == record.messages
    assert back == {**as_row, "repairs": None}
