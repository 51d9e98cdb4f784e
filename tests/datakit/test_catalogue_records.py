"""For each dataset of the catalogue: a row as upstream has it, and the record that its reader makes of it.

Rows are those that upstream's pages and loaders quote, or have their keys and forms with words of our own.
"""

import json

import pyarrow as pa
import pytest

from datakit.miniature import coyo_parquet
from datakit.readers import About, coyo, flan, llava, m3it, mmc4
from datakit.readers.llava import Row
from datakit.records.record import Message, Part, decode_messages

IMAGE = Part(type="image")


def text(value):
    return Part(type="text", text=value)


def user(*content):
    return Message(role="user", content=list(content))


def assistant(*content):
    return Message(role="assistant", content=list(content))


def turns(*values):
    return [{"from": ("human", "gpt")[i % 2], "value": v} for i, v in enumerate(values)]


def attrs(name, *repairs):
    return {"id": name, "repairs": list(repairs) or None}


def test_llava558k_a_picture_and_its_caption():
    row = {
        "id": "004539375",
        "image": "00453/004539375.jpg",
        "conversations": turns(
            "Render a clear and concise summary of the photo.\n<image>",
            "select luxury furniture 3 - inch gel memory foam mattress topper",
        ),
    }

    assert llava.read(row, 0) == Row(
        [
            user(text("Render a clear and concise summary of the photo."), IMAGE),
            assistant(text("select luxury furniture 3 - inch gel memory foam mattress topper")),
        ],
        ["00453/004539375.jpg"],
        attrs("004539375"),
    )


def test_cc3m595k_a_flat_name():
    row = {  # quoted in a comment of VILA's llava/data/dataset.py
        "id": "GCC_train_001738742",
        "image": "GCC_train_001738742.jpg",
        "conversations": turns("Provide a brief description of the given image.\n<image>", "a sketch of an ostrich"),
    }

    assert llava.read(row, 0) == Row(
        [
            user(text("Provide a brief description of the given image."), IMAGE),
            assistant(text("a sketch of an ostrich")),
        ],
        ["GCC_train_001738742.jpg"],
        attrs("GCC_train_001738742"),
    )


def test_llava665k_and_its_half_several_turns_over_one_picture():
    row = {
        "id": "000000033471",
        "image": "coco/train2017/000000033471.jpg",
        "conversations": turns(
            "<image>\nWhat are the colors of the bus in the image?",
            "The bus in the image is white and red.",
            "What feature can be seen on the back of the bus?\nAnswer the question using a single word or phrase.",
            "Advertisement",
        ),
    }

    assert llava.read(row, 7) == Row(
        [
            user(IMAGE, text("What are the colors of the bus in the image?")),
            assistant(text("The bus in the image is white and red.")),
            user(
                text(
                    "What feature can be seen on the back of the bus?\n"
                    "Answer the question using a single word or phrase."
                )
            ),
            assistant(text("Advertisement")),
        ],
        ["coco/train2017/000000033471.jpg"],
        attrs("000000033471"),
    )


def test_llava665k_and_its_half_text_alone_has_a_model_that_is_empty():
    row = {
        "id": "wgByO4Y_0",
        "model": "",
        "conversations": turns("How do I write <image> in HTML?", "Use the `<img>` element."),
    }

    assert llava.read(row, 0) == Row(
        [user(text("How do I write <image> in HTML?")), assistant(text("Use the `<img>` element."))],
        [],
        attrs("wgByO4Y_0"),
    )


def test_llava665k_and_its_half_an_id_may_be_a_number():
    row = {
        "id": 2354786,
        "image": "vg/VG_100K_2/2354786.jpg",
        "conversations": turns("<image>\nWhere?", "[0.1, 0.2, 0.3, 0.4]"),
    }

    assert llava.read(row, 0) == Row(
        [user(IMAGE, text("Where?")), assistant(text("[0.1, 0.2, 0.3, 0.4]"))],
        ["vg/VG_100K_2/2354786.jpg"],
        attrs("2354786", "id_type"),
    )


def test_llava665k_and_its_half_the_empty_answer_is_left_out_by_name():
    row = {
        "id": "x",
        "conversations": turns("Would this person be more likely to be a type a or b person?", ""),
    }  # upstream's row 245723

    assert llava.read(row, 245723) == "empty_answer"


def test_allava_a_laion_caption():
    row = {
        "id": "allava_laion_cap_100277305",
        "image": "allava_laion/images/100277305.jpeg",
        "conversations": turns("<image>\nPlease depict the image in words.", "A boat lies on a lake."),
        "original_caption": "boat on lake",
        "url": "http://a.test/boat.jpeg",
    }

    assert llava.read(row, 0) == Row(
        [user(IMAGE, text("Please depict the image in words.")), assistant(text("A boat lies on a lake."))],
        ["allava_laion/images/100277305.jpeg"],
        attrs("allava_laion_cap_100277305"),
    )


def test_allava_a_vision_flan_name_with_a_plus():
    row = {
        "id": "allava_vflan_cap_100000",
        "image": "allava_vflan/images/images_191task_1k/PACS+guitar_image_7.png",
        "conversations": turns("Describe it.\n<image>", "A guitar."),
    }

    assert llava.read(row, 0) == Row(
        [user(text("Describe it."), IMAGE), assistant(text("A guitar."))],
        ["allava_vflan/images/images_191task_1k/PACS+guitar_image_7.png"],
        attrs("allava_vflan_cap_100000"),
    )


@pytest.mark.parametrize(("idx", "repairs"), [("allava_text_7", ["id_key"]), (7, ["id_key", "id_type"])])
def test_allava_text_calls_its_id_idx(idx, repairs):
    row = {"idx": idx, "conversations": turns("Write a haiku.", "An old silent pond")}

    assert llava.read(row, 0) == Row(
        [user(text("Write a haiku.")), assistant(text("An old silent pond"))], [], attrs(str(idx), *repairs)
    )


def test_mmc4_the_document_of_its_readme():
    lock, press, close = (
        "When you lock the door using the lock tab on the driver\u2019s door, "
        "all of the other doors and tailgate lock at the same time.",
        "Press the master door lock switch in as shown to lock or unlock all doors and the tailgate.",
        "When you lock/unlock the driver\u2019s door and tailgate using the master lock switch, "
        "all the other doors lock/ unlock at the same time.",
    )
    matrix = [
        [0.24363446235656738, 0.31758785247802734, 0.27694183588027954],
        [0.2233106791973114, 0.3234919607639313, 0.26118797063827515],
    ]
    pictures = [f"http://www.hfitinfo.com/honda_fit_pics/3/2/index.{n}.jpg" for n in (90, 91)]
    row = {
        "image_info": [
            {"face_detections": None, "image_name": "b9040a0dbb22.jpg", "matched_sim": 0.27694183588027954}
            | {"matched_text_index": 2, "raw_url": pictures[0]},
            {"face_detections": None, "image_name": "db1c21bc8474.jpg", "matched_sim": 0.3234919607639313}
            | {"matched_text_index": 1, "raw_url": pictures[1]},
        ],
        "similarity_matrix": matrix,
        "text_list": [lock, press, close],
        "url": "http://www.hfitinfo.com/hofi-48.html",
        "could_have_url_duplicate": 0,
    }

    assert mmc4.read(row, 0) == Row(
        [assistant(text(lock), IMAGE, text(press), IMAGE, text(close))],  # 0 -> 2 and 1 -> 1
        [pictures[1], pictures[0]],
        {
            "sentences": [lock, press, close],
            "similarity": [matrix[1], matrix[0]],
            "interleaved": True,
            "url": "http://www.hfitinfo.com/hofi-48.html",
            "could_have_url_duplicate": False,
        },
    )


def test_coyo_a_row_of_its_readme(tmp_path):
    row = {
        "id": 1425929344479,
        "url": "https://www.ephotozine.com/resize/2018/07/xlrg/121543_1518912380.jpg?RTUdGk5cXyJFBQgJVANtcQlnYF8JERFaGwJRNQh6SlYUAEw1cmsCdg1hAWoxXFNGLSI=",
        "text": "The Gate by Pete2453",
        "width": 600,
        "height": 347,
        "image_phash": "8374726575bc0f8a",
        "text_length": 20,
        "word_count": 4,
        "num_tokens_bert": 6,
        "num_tokens_gpt": 6,
        "num_faces": 0,
        "clip_similarity_vitb32": 0.24939,
        "clip_similarity_vitl14": 0.203735,
        "nsfw_score_opennsfw2": 6.97374e-06,
        "nsfw_score_gantman": 0.00823276,
        "watermark_score": 0.0721415,
        "aesthetic_score_laion_v2": 6.98521,
    }
    (tmp_path / "x.parquet").write_bytes(coyo_parquet([row]))

    (found,) = pa.Table.from_batches(coyo.batches(tmp_path / "x.parquet", None, "coyo", lambda r, n: None)).to_pylist()

    assert found["key"] == "coyo-1425929344479"
    assert decode_messages(found["messages"]) == [assistant(IMAGE, text("The Gate by Pete2453"))]
    assert found["images"] == [{"ref": row["url"]}]
    rest = {name: value for name, value in found.items() if name not in ("key", "messages", "images")}
    assert rest == pytest.approx(
        {"clip_sim": 0.453125, **{name: row[name] for name in coyo.KEPT if name != "image_phash"}}
        | {"image_phash": "8374726575bc0f8a"}
    )


def test_flan_a_question_and_its_target():
    row = {"inputs": "Is the sky green?\nOPTIONS:\n- yes\n- no\n", "targets": "no", "task": "cot"}

    assert flan.read(row, 12) == Row(
        [user(text("Is the sky green?\nOPTIONS:\n- yes\n- no")), assistant(text("no"))],
        [],
        {"id": "text_flan_00000012"},
    )


def from_m3it(row, *, file, instruction, separator="\n", number=0):
    about = About("m3it", file, json.dumps([instruction]).encode(), {}, separator)
    return m3it.reading(about)(row, number)


def test_m3it_a_caption_has_an_instruction_alone():
    row = {"inputs": "", "outputs": "A sign that says stop.", "image_str": "/9j/4AAQ"}

    got = from_m3it(row, file="data/captioning/textcap/train.jsonl", instruction="Describe the picture and its text.")

    assert got == Row(
        [user(IMAGE, text("Describe the picture and its text.")), assistant(text("A sign that says stop."))],
        ["0.0"],
        {"id": "textcap-0", "task": "captioning", "dataset": "textcap"},
    )


def test_m3it_two_pictures():
    row = {"inputs": "Both show dogs.", "outputs": "False", "image_str": ["/9j/4AAQ", "/9j/4AAR"], "meta": {}}

    got = from_m3it(row, file="data/reasoning/nlvr/train.jsonl", instruction="Is this true of the pictures?", number=9)

    assert got == Row(
        [user(IMAGE, IMAGE, text("Is this true of the pictures?\nBoth show dogs.")), assistant(text("False"))],
        ["9.0", "9.1"],
        {"id": "nlvr-9", "task": "reasoning", "dataset": "nlvr"},
    )


def test_m3it_glued_as_vilas_script_does_it():
    row = {"inputs": "What colour is the boat?", "outputs": "red", "image_str": "/9j/4AAQ"}

    got = from_m3it(row, file="data/vqa/gqa/train.jsonl", instruction="Look closely.", separator="")

    assert got.messages == [user(IMAGE, text("Look closely.What colour is the boat?")), assistant(text("red"))]


def test_m3it_a_dialog():
    row = {
        "inputs": "Image Descriptions: a cat on a chair\nQuestion: what colour is it?\nAnswer: black\n"
        "Question: is it asleep?",
        "outputs": "yes",
        "image_str": "/9j/4AAQ",
    }

    got = from_m3it(row, file="data/generation/visual_dialog/train.jsonl", instruction="Go on with the dialog.")

    assert got == Row(
        [
            user(IMAGE, text("what colour is it?")),
            assistant(text("black")),
            user(text("is it asleep?")),
            assistant(text("yes")),
        ],
        ["0.0"],
        {"id": "visual_dialog-0", "task": "generation", "dataset": "visual_dialog"},
    )


@pytest.mark.parametrize(
    "picture",
    [
        "sam/images/sa_545504.jpg",
        "coco/train2017/000000000009.jpg",
        "llava/llava_pretrain/images/00453/004534373.jpg",
        "wikiart/images/7.jpg",
    ],
)
def test_sharegpt4v_a_caption_of_any_source(picture):
    row = {
        "id": "000000000009",
        "image": picture,
        "conversations": turns("What do you see happening in this image?\n<image>", "A tray of food on a table."),
    }

    assert llava.read(row, 0) == Row(
        [user(text("What do you see happening in this image?"), IMAGE), assistant(text("A tray of food on a table."))],
        [picture],
        attrs("000000000009"),
    )


def test_qinstruct_a_question_on_quality():
    row = {
        "id": "spaq_koniq_3",
        "image": "spaq_koniq/00003.jpg",
        "conversations": turns("Rate the quality of the image.\n<image>", "The quality of this image is poor."),
    }

    assert llava.read(row, 0) == Row(
        [user(text("Rate the quality of the image."), IMAGE), assistant(text("The quality of this image is poor."))],
        ["spaq_koniq/00003.jpg"],
        attrs("spaq_koniq_3"),
    )


def test_icm_the_picture_stands_last_and_the_suffix_keeps_its_case():
    row = {
        "id": "category_00017",
        "image": "sexy_check_all/category_00017.JPEG",  # the folder's name in upstream's zip; the words are ours
        "conversations": turns("Which of the rules does this picture keep?\n<image>", "All of them."),
    }

    assert llava.read(row, 0) == Row(
        [user(text("Which of the rules does this picture keep?"), IMAGE), assistant(text("All of them."))],
        ["sexy_check_all/category_00017.JPEG"],
        attrs("category_00017"),
    )


@pytest.mark.parametrize(
    "picture", ["llava/LLaVA-Pretrain/images/00013/000133305.jpg", "chartqa/train/png/1.png", "ai2d/images/2.png"]
)
def test_mgm_a_picture_of_any_root(picture):
    row = {
        "id": "000133305",
        "image": picture,
        "conversations": turns("Write a terse but informative summary of the picture.\n<image>", "a house by the sea"),
    }

    assert llava.read(row, 0) == Row(
        [
            user(text("Write a terse but informative summary of the picture."), IMAGE),
            assistant(text("a house by the sea")),
        ],
        [picture],
        attrs("000133305"),
    )
