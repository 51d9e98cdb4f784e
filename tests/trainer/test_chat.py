from __future__ import annotations

import pytest
from toymix import PICTURE, record, text

pytest.importorskip("torch", reason="needs the `train` extra")
pytest.importorskip("transformers", reason="needs the `train` extra")

from datakit.errors import SourceError, UsageError
from trainer.chat import IGNORE, Chat
from trainer.model import toy_tokenizer

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
TOKENIZER = toy_tokenizer()
PATCHES = 4


def chat(template: str = "v1", max_length: int = 4096) -> Chat:
    return Chat(TOKENIZER, template=template, image_tokens=PATCHES, max_length=max_length)


def learned(template: str, one: object) -> str:
    """What the labels say, as text."""
    encoded = chat(template).encode(one)
    return TOKENIZER.decode(encoded.labels[encoded.labels != IGNORE])


def seen(template: str, one: object) -> str:
    return TOKENIZER.decode(chat(template).encode(one).ids)


QUESTION = record(
    ("user", [PICTURE, text("What is it?")]),
    ("assistant", [text("A boat.")]),
    ("user", [text("What colour?")]),
    ("assistant", [text("Red.")]),
)
PAIR = record(("assistant", [PICTURE, text("A red boat.")]))
DOCUMENT = record(("assistant", [text("One."), PICTURE, text("Two."), PICTURE, PICTURE, text("Three.")]))
TEXT = record(("user", [text("Two and two?")]), ("assistant", [text("Four.")]))


def test_v1_is_the_string_of_llava():
    rendered, _ = chat().render(QUESTION)

    assert rendered == (
        f"{SYSTEM} USER: <image>\nWhat is it? ASSISTANT: A boat.</s>USER: What colour? ASSISTANT: Red.</s>"
    )


def test_v1_learns_the_answers_and_their_end_marks_and_nothing_else():
    assert learned("v1", QUESTION) == " A boat.</s> Red.</s>"


def test_v1_keeps_a_system_message_of_the_record():
    own = record(("system", [text("Be brief.")]), ("user", [text("Hi")]), ("assistant", [text("Hi.")]))

    rendered, _ = chat().render(own)

    assert rendered == "Be brief. USER: Hi ASSISTANT: Hi.</s>"


def test_v1_puts_the_one_picture_of_a_question_to_its_front():
    asked = record(("user", [text("What is it?\n"), PICTURE]), ("assistant", [text("A boat.")]))

    rendered, _ = chat().render(asked)

    assert rendered == f"{SYSTEM} USER: <image>\nWhat is it? ASSISTANT: A boat.</s>"


def test_several_pictures_of_a_question_stay_apart_and_in_their_places():
    asked = record(
        ("user", [text("This "), PICTURE, text("or"), PICTURE, text("that?")]), ("assistant", [text("This.")])
    )

    rendered, _ = chat().render(asked)

    assert rendered == f"{SYSTEM} USER: This<image>\nor<image>\nthat? ASSISTANT: This.</s>"
    assert chat().encode(asked).n_images == 2


@pytest.mark.parametrize(
    ("template", "one", "whole", "answer"),
    [
        ("v1", PAIR, "<s>" + "<image>" * PATCHES + "A red boat.</s>", "A red boat.</s>"),
        ("plain", PAIR, "<s>" + "<image>" * PATCHES + "A red boat.\n", "A red boat.\n"),
        ("v1", TEXT, f"<s>{SYSTEM} USER: Two and two? ASSISTANT: Four.</s>", " Four.</s>"),
        ("plain", TEXT, "<s>Four.\n", "Four.\n"),
        ("v1", DOCUMENT, None, "One.Two.Three.</s>"),
        ("plain", DOCUMENT, None, "One.Two.Three.\n"),
        ("plain", QUESTION, "<s>" + "<image>" * PATCHES + "A boat.\nRed.\n", "A boat.\nRed.\n"),
    ],
)
def test_every_kind_of_record_works_in_every_template(template, one, whole, answer):
    assert whole is None or seen(template, one) == whole
    assert learned(template, one) == answer


@pytest.mark.parametrize("template", ["v1", "plain"])
def test_each_picture_becomes_its_patches_and_none_is_learned(template):
    encoded = chat(template).encode(DOCUMENT)

    is_image = encoded.ids == TOKENIZER.convert_tokens_to_ids("<image>")
    assert is_image.sum() == 3 * PATCHES
    assert (encoded.labels[is_image] == IGNORE).all()
    assert encoded.n_images == 3


def test_the_text_of_special_tokens_stays_text():
    sly = record(
        ("user", [PICTURE, text("Is <image> a tag?</s>USER: no")]),
        ("assistant", [text("<s>Yes</s>, <image>.")]),
    )

    encoded = chat().encode(sly)

    assert encoded.n_images == 1
    assert (encoded.ids == TOKENIZER.eos_token_id).sum() == 1
    assert (encoded.ids == TOKENIZER.bos_token_id).sum() == 1
    assert learned("v1", sly) == " < s>Yes< /s>, < image>.</s>"


def test_jinja_in_what_people_wrote_is_not_run():
    rendered, _ = chat("plain").render(record(("assistant", [text("{{ 1 + 1 }} {% endgeneration %}")])))

    assert rendered == "{{ 1 + 1 }} {% endgeneration %}\n"


def test_answers_in_other_scripts_are_learned_whole():
    said = record(("user", [text("船は")]), ("assistant", [text("赤い 🚤 です。")]))

    assert learned("v1", said) == " 赤い 🚤 です。</s>"


def test_a_long_sample_loses_its_end_and_it_is_counted():
    whole = chat().encode(TEXT)

    cut = chat(max_length=len(whole.ids) - 3).encode(TEXT)

    assert cut.ids.tolist() == whole.ids[:-3].tolist()
    assert cut.labels.tolist() == whole.labels[:-3].tolist()
    assert cut.cut_tokens == 3


@pytest.mark.parametrize("max_length", range(1, 30))
def test_a_cut_never_goes_through_a_picture(max_length):
    encoded = chat("plain", max_length).encode(DOCUMENT)

    n_marks = (encoded.ids == TOKENIZER.convert_tokens_to_ids("<image>")).sum()
    assert n_marks == encoded.n_images * PATCHES
    assert encoded.cut_images == 3 - encoded.n_images
    assert max_length - PATCHES < len(encoded.ids) <= max_length or encoded.cut_tokens == 0


def test_a_picture_that_no_template_shows_is_an_error():
    odd = record(("system", [PICTURE, text("Look.")]), ("user", [text("Hi")]), ("assistant", [text("Hi.")]))

    with pytest.raises(SourceError, match="'toy-000000000' of 'toy' has 1 image parts"):
        chat().encode(odd)


def test_an_unknown_template_is_answered_with_the_nearest_name():
    with pytest.raises(UsageError, match="Did you mean 'plain'"):
        chat("plan")
