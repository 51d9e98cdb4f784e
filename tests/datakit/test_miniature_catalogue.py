"""The rest of the catalogue in the miniature: each upstream's schema, and its defects where they are listed."""

from __future__ import annotations

import base64
import io
import json
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from functools import cache

import pyarrow.parquet as pq
import pytest
import requests
from huggingface_hub import HfApi, HfFileSystem
from PIL import Image

from datakit import catalogue
from datakit.catalogue import manifest
from datakit.errors import UsageError
from datakit.formats.webdataset import rows as tar_samples
from datakit.miniature import Miniature
from datakit.readers import About, flan, hf, llava, m3it, mmc4, webdataset

HUB = "/datasets/{}/resolve/main/{}"
COCO = ("http://images.cocodataset.org/zips/train2017.zip", "train2017/")
GQA = ("https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip", "images/")
OCR_VQA = (
    HUB.format("weizhiwang/llava_v15_instruction_images", "ocr_vqa_images_llava_v15.zip"),
    "images/",
)
TEXTVQA = ("https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip", "train_images/")
VG = ("https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip", "VG_100K/")
VG2 = ("https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip", "VG_100K_2/")
LCS = (HUB.format("liuhaotian/LLaVA-Pretrain", "images.zip"), "")
ALLAVA = "FreedomIntelligence/ALLaVA-4V"
LAION = [(HUB.format(ALLAVA, f"allava_laion/image_chunks/images_{n}.zip"), f"images_{n}/") for n in range(10)]
VFLAN = (HUB.format("Vision-Flan/vision-flan_191-task_1k", "image_191-task_1k.zip"), "images_191task_1k/")
ICM_ZIP = HUB.format("wumengyangok/ICM-Instruct", "icm-instruct-train.zip")
SAM = [(f"https://ai.meta.com/datasets/segment-anything-downloads/sa_{part:06d}.tar", "") for part in range(51)]
DRIVE = "https://drive.google.com/drive/folders/1tCUQ-sq6vdshZVkF0ZeF3K4eztkXJgax"
MIX = {
    "coco/train2017/": [COCO],
    "gqa/images/": [GQA],
    "ocr_vqa/images/": [OCR_VQA],
    "vg/VG_100K/": [VG],
    "vg/VG_100K_2/": [VG2],
}
SHAREGPT4V = {
    **MIX,
    "textvqa/train_images/": [TEXTVQA],
    "llava/llava_pretrain/images/": [LCS],
    "sam/images/": SAM,
    "share_textvqa/images/": [(f"{DRIVE}/share_textvqa.zip", "data/share_textvqa/images/")],
    "web-celebrity/images/": [(f"{DRIVE}/web-celebrity.zip", "data/web-celebrity/images/")],
    "web-landmark/images/": [(f"{DRIVE}/web-landmark.zip", "data/web-landmark/images/")],
    "wikiart/images/": [(f"{DRIVE}/wikiart.zip", "data/wikiart/images/")],
}
SOURCES = {  # dataset -> prefix -> the archives that are looked through, and the folder in each
    "llava558k": {"": [LCS]},
    "cc3m595k": {"": [(HUB.format("liuhaotian/LLaVA-CC3M-Pretrain-595K", "images.zip"), "")]},
    "llava332k": {**MIX, "textvqa/train_images/": [TEXTVQA]},
    "allava": {
        "allava_laion/images/": LAION,
        "allava_vflan/images/images_191task_1k/": [VFLAN],
    },
    "sharegpt4v": SHAREGPT4V,
    "sharegpt4v_vila": SHAREGPT4V,
    "icm": {"sexy_check_all/": [(ICM_ZIP, "sexy_check_all/")]},
    "mgm": {
        **SHAREGPT4V,
        "images/": [LCS],
        "llava/LLaVA-Pretrain/images/": [LCS],
        "ALLaVA-4V/allava_laion/images/": LAION,
        "ALLaVA-4V/allava_vflan/images/images_191task_1k/": [VFLAN],
        "gpt4v-dataset/images/": [("https://huggingface.co/datasets/laion/gpt4v-dataset/gpt4v-dataset.zip", "images/")],
        "docvqa/train/": [("https://rrc.cvc.uab.es/docvqa.zip", "train/")],
        "chartqa/train/png/": [("https://github.com/vis-nlp/ChartQA/chartqa.zip", "train/png/")],
        "dvqa/images/": [("https://github.com/kushalkafle/DVQA_dataset/dvqa.zip", "images/")],
        "ai2d/images/": [("https://allenai.org/data/diagrams/ai2d.zip", "images/")],
    },
}
FILES = {  # dataset -> its files, in the order in which their rows are numbered
    "llava558k": ["liuhaotian/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json"],
    "cc3m595k": ["liuhaotian/LLaVA-CC3M-Pretrain-595K/chat.json"],
    "llava332k": ["DavidNguyen/LLAVAHALF/llava_v1_5_mix665k_half.json"],
    "allava": [
        f"{ALLAVA}/allava_laion/ALLaVA-Caption-LAION-4V.json",
        f"{ALLAVA}/allava_laion/ALLaVA-Instruct-LAION-4V.json",
        f"{ALLAVA}/allava_vflan/ALLaVA-Caption-VFLAN-4V.json",
        f"{ALLAVA}/allava_vflan/ALLaVA-Instruct-VFLAN-4V.json",
        f"{ALLAVA}/allava_text/Evol-Instruct-GPT4-Turbo-143K.json",
    ],
    "sharegpt4v": [
        "Lin-Chen/ShareGPT4V/sharegpt4v_instruct_gpt4-vision_cap100k.json",
        "Lin-Chen/ShareGPT4V/share-captioner_coco_lcs_sam_1246k_1107.json",
        "Lin-Chen/ShareGPT4V/sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.json",
    ],
    "sharegpt4v_vila": [
        "mit-han-lab/ShareGPT4V/filter-share-captioner_coco_lcs_sam_1246k_1107.json",
        "mit-han-lab/ShareGPT4V/sharegpt4v_mix738k_remove_sa.json",
    ],
    "icm": ["icm_llava_train.json"],
    "mgm": ["YanweiLi/MGM-Pretrain/mgm_pretrain.json", "YanweiLi/MGM-Instruction/mgm_instruction.json"],
}
SUBSETS = {
    "allava.captions": [0, 2],
    "allava.instructions": [1, 3],
    "allava.text": [4],
    "sharegpt4v.captions": [0],
    "sharegpt4v.pretrain": [1],
    "sharegpt4v.sft": [2],
    "sharegpt4v_vila.pretrain": [0],
    "sharegpt4v_vila.sft": [1],
    "mgm.pretrain": [0],
    "mgm.instruction": [1],
}
M3IT = "MMInstruction/M3IT"
MMC4 = "data_core/docs_no_face_shard_{}_v3.jsonl.zip"


@pytest.fixture(scope="module")
def shared() -> Iterator[Miniature]:
    with Miniature() as miniature:
        yield miniature


def body(miniature: Miniature, place: str) -> bytes:
    answer = miniature.answer(place)
    assert answer.status == 200, place
    return answer.body


def hub_file(miniature: Miniature, path: str) -> bytes:
    owner, repo, name = path.split("/", 2)
    return body(miniature, HUB.format(f"{owner}/{repo}", name))


def records(miniature: Miniature, dataset: str, nth: int) -> list[dict]:
    path = FILES[dataset][nth]
    if dataset == "icm":
        return json.loads(unpacked(body(miniature, ICM_ZIP))[path])
    return json.loads(hub_file(miniature, path))


@cache
def unpacked(archive: bytes) -> dict[str, bytes]:
    if archive.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            return {name: opened.read(name) for name in opened.namelist() if not name.endswith("/")}
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return {
            member.name.removeprefix("./"): opened.extractfile(member).read() for member in opened if member.isfile()
        }


def judged(data: bytes) -> str | None:
    """Pillow's opinion of a picture."""
    try:
        picture = Image.open(io.BytesIO(data))
        picture.load()
    except Image.DecompressionBombError:
        return "pixels"
    except Image.UnidentifiedImageError:
        return "not_an_image"
    except OSError:
        return "truncated"
    return None


def looked_up(miniature: Miniature, dataset: str, ref: str) -> str | None:
    """What is wrong with the picture that a reference means."""
    prefix = max((p for p in SOURCES[dataset] if ref.startswith(p)), key=len, default=None)
    if prefix is None:
        return "no_source"
    stem = ref.removeprefix(prefix).rpartition(".")[0]
    for place, inside in SOURCES[dataset][prefix]:
        for name, data in unpacked(body(miniature, place)).items():
            fits = (
                name.rpartition(".")[0] == inside + stem if "ocr_vqa" in prefix else name == inside + ref[len(prefix) :]
            )
            if fits:
                return judged(data)
    return "missing"


# --- datasets whose rows are told by their numbers ---


@pytest.mark.parametrize("name", [*FILES, *SUBSETS])
def test_the_rows_expected_to_drop_are_those_that_a_reader_or_the_archives_turn_down(shared, name):
    dataset = name.partition(".")[0]
    key = name.replace(".", "-")
    rows = [row for nth in SUBSETS.get(name, range(len(FILES[dataset]))) for row in records(shared, dataset, nth)]

    dropped = {}
    for number, row in enumerate(rows):
        read = llava.read(row, number)
        reason = (
            read
            if isinstance(read, str)
            else next(filter(None, (looked_up(shared, dataset, ref) for ref in read.images)), None)
        )
        if reason:
            dropped[f"{key}-{number:09d}"] = reason

    expected = shared.expected.of(name)
    assert expected.rows == len(rows)
    assert expected.dropped == dropped
    assert [*expected.kept] == [k for n in range(len(rows)) if (k := f"{key}-{n:09d}") not in dropped]
    assert dropped.keys() <= expected.faults.keys()
    assert len(expected.sources) == len(rows)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("llava558k", {"missing": 1, "truncated": 1, "not_an_image": 1, "empty_answer": 1}),
        ("cc3m595k", {"missing": 1, "truncated": 1, "not_an_image": 1, "empty_answer": 1}),
        ("allava.text", {"empty_answer": 1}),
        ("allava.captions", {"missing": 2, "truncated": 1, "not_an_image": 1}),
        ("allava.instructions", {"missing": 2, "truncated": 1, "not_an_image": 1, "empty_answer": 1}),
        ("m3it", {"not_an_image": 2, "truncated": 1, "empty_answer": 1}),
    ],
)
def test_the_defects_are_those_that_are_said(shared, name, counts):
    assert shared.expected.of(name).counts == counts


def test_half_of_the_mix_are_rows_of_the_mix_in_its_order(shared):
    mix = json.loads(hub_file(shared, "liuhaotian/LLaVA-Instruct-150K/llava_v1_5_mix665k.json"))

    half = records(shared, "llava332k", 0)

    left = iter(mix)
    assert len(half) == 120
    assert all(row in left for row in half)
    assert len(set(shared.expected.of("llava332k").sources.values())) == 7


def test_pretraining_rows_have_two_turns_and_a_mark_on_either_side(shared):
    for dataset in ("llava558k", "cc3m595k"):
        rows = records(shared, dataset, 0)

        asked = [row["conversations"][0]["value"] for row in rows]
        assert len(rows) == 60
        assert {tuple(row) for row in rows} == {("id", "image", "conversations")}
        assert {len(row["conversations"]) for row in rows} == {2}
        assert {a.startswith("<image>\n") for a in asked} == {a.endswith("\n<image>") for a in asked} == {True, False}
    assert all(row["image"].startswith(row["id"][:5] + "/") for row in records(shared, "llava558k", 0))
    assert all(row["image"] == row["id"] + ".jpg" for row in records(shared, "cc3m595k", 0))


def test_allavas_texts_have_an_idx_and_its_captions_keys_of_their_own(shared):
    captions, _, vflan, _, texts = (records(shared, "allava", nth) for nth in range(5))

    assert {tuple(row) for row in captions} == {("id", "image", "conversations", "original_caption", "url")}
    assert {tuple(row) for row in vflan} == {("id", "image", "conversations")}
    assert {tuple(row) for row in texts} == {("idx", "conversations")}


def test_allavas_pictures_lie_in_ten_chunks(shared):
    sizes = [len(unpacked(body(shared, place))) for place, _ in LAION]

    assert len(sizes) == 10
    assert min(sizes) >= 1


def test_sharegpt4v_has_every_source_and_two_kinds_of_bad_caption(shared):
    for name, sources in (("captions", 7), ("pretrain", 3), ("sft", 13)):
        expected = shared.expected.of(f"sharegpt4v.{name}")

        assert len(set(expected.sources.values())) == sources
    rows = records(shared, "sharegpt4v", 1)
    odd = shared.expected.of("sharegpt4v.pretrain").faults

    said = {key: rows[int(key[-9:])]["conversations"][1]["value"] for key in odd}
    assert all("sa_" in said[key] for key in odd if odd[key] == "sa_id")
    assert all(said[key].count("does not contain") > 5 for key in odd if odd[key] == "repetition")
    assert Counter(odd.values())["sa_id"] >= 3
    assert Counter(odd.values())["repetition"] >= 3


def test_vilas_cut_left_out_all_but_one_of_each_kind_of_bad_caption(shared):
    whole, cut = records(shared, "sharegpt4v", 1), records(shared, "sharegpt4v_vila", 0)

    odd = Counter(shared.expected.of("sharegpt4v_vila.pretrain").faults.values())
    assert len(cut) < len(whole)
    assert all(row in whole for row in cut)
    assert (odd["sa_id"], odd["repetition"]) == (1, 1)


def test_segment_anything_comes_in_51_tars_with_a_json_beside_each_picture(shared):
    names = [name for place, _ in SAM for name in unpacked(body(shared, place))]

    pictures = [name for name in names if name.endswith(".jpg")]
    assert len(pictures) == 9
    assert {name.replace(".jpg", ".json") for name in pictures} <= set(names)


def test_icm_has_broken_paths_repeated_ids_odd_choices_and_every_ending(shared):
    rows = records(shared, "icm", 0)

    faults = Counter(shared.expected.of("icm").faults.values())
    endings = {row["image"].rpartition(".")[2] for row in rows if "." in row["image"]}
    assert endings >= {"JPEG", "jpg", "png", "JPG", "PNG", "jpeg", "GIF"}
    assert faults["broken_path"] == 2 * len({row["image"] for row in rows if row["id"].endswith("_mc")})
    assert faults["odd_choice"] == 2
    assert len({row["id"] for row in rows}) < len(rows)
    assert all(row["conversations"][0]["value"].endswith("\n<image>") for row in rows)


def test_mgms_text_rows_are_in_a_file_of_their_own_as_well(shared):
    alone = json.loads(hub_file(shared, "YanweiLi/MGM-Instruction/mgm_generation_pure_text.json"))

    rows = records(shared, "mgm", 1)
    assert alone
    assert all(row in rows for row in alone)
    assert len(set(shared.expected.of("mgm.instruction").sources.values())) == 18


def test_what_nobody_expects_is_explained(shared):
    with pytest.raises(UsageError, match="'mgm'"):
        shared.expected.of("mgn")
    with pytest.raises(UsageError, match="pretrain"):
        shared.expected.of("mgm.pretrian")


# --- M3IT ---


def m3it_files(miniature: Miniature) -> list[str]:
    listed = HfApi(endpoint=miniature.url, token=False).list_repo_files(M3IT, repo_type="dataset")
    return [name for name in listed if name.endswith("train.jsonl")]


def test_m3it_has_vilas_fourteen_sets_with_instructions_beside_each(shared):
    listed = HfApi(endpoint=shared.url, token=False).list_repo_files(M3IT, repo_type="dataset")

    beside = Counter(name.rpartition("/")[2] for name in listed if "instruction" in name)
    assert len(m3it_files(shared)) == 14
    assert beside == {"instructions.json": 10, "instruction.json": 4}


def test_the_rows_of_m3it_expected_to_drop_are_those_with_a_bad_picture_or_no_answer(shared):
    dropped, number, n_images = {}, 0, {}
    for file in sorted(m3it_files(shared)):
        read = m3it.reading(About("m3it", file, b'["Look."]', {}, "\n"))
        for line in body(shared, HUB.format(M3IT, file)).splitlines():
            row = json.loads(line)
            assert {"inputs", "outputs", "image_str"} <= row.keys() <= {"inputs", "outputs", "image_str", "meta"}
            found = read(row, number)
            reason = found if isinstance(found, str) else next(filter(None, map(decoded, row_pictures(row))), None)
            n_images[file] = len(row_pictures(row))
            if reason:
                dropped[f"m3it-{number:09d}"] = reason
            number += 1

    expected = shared.expected.of("m3it")
    assert (number, dropped) == (expected.rows, expected.dropped)
    assert n_images["data/reasoning/nlvr/train.jsonl"] == 2
    assert n_images["data/vqa/ivqa/train.jsonl"] == 8


def row_pictures(row: dict) -> list[str]:
    return row["image_str"] if isinstance(row["image_str"], list) else [row["image_str"]]


def decoded(picture: str) -> str | None:
    try:
        return judged(base64.b64decode(picture, validate=True))
    except ValueError:
        return "not_an_image"


def test_visual_dialogs_rounds_stand_behind_a_description(shared):
    lines = body(shared, HUB.format(M3IT, "data/generation/visual_dialog/train.jsonl")).splitlines()
    read = m3it.reading(About("m3it", "data/generation/visual_dialog/train.jsonl", b'["Look."]', {}, "\n"))

    rows = [read(json.loads(line), n) for n, line in enumerate(lines)]

    assert all(json.loads(line)["inputs"].startswith("Image Descriptions") for line in lines)
    assert {len(row.messages) for row in rows} == {2, 4, 6}


# --- FLAN ---


def test_flans_files_have_its_columns_and_the_rows_that_are_expected(shared):
    expected = shared.expected.flan
    listed = HfApi(endpoint=shared.url, token=False).list_repo_files("Open-Orca/FLAN", repo_type="dataset")

    pairs = []
    for path, rows in expected.files.items():
        file = pq.ParquetFile(io.BytesIO(hub_file(shared, f"Open-Orca/FLAN/{path}")))
        assert file.schema_arrow.names[:2] == ["inputs", "targets"]
        assert "_template_idx" in file.schema_arrow.names
        assert file.metadata.num_rows == rows
        assert file.metadata.num_row_groups >= 2
        pairs += [(row["inputs"], row["targets"]) for row in file.read().to_pylist()]
    assert tuple(pairs) == expected.pairs
    assert [*expected.files] == sorted(name for name in listed if name.endswith(".parquet"))
    assert len({name.partition("/")[0] for name in expected.files}) == 6
    assert any(name.endswith(".json") for name in listed)


def test_an_even_sample_of_flan_has_the_first_and_the_last_row_and_some_have_no_answer(shared):
    expected = shared.expected.flan

    sample = expected.sample(50)

    assert (sample[0], sample[-1]) == (0, expected.rows - 1)
    assert len(set(sample)) == 50
    assert [
        n
        for n, (asked, said) in enumerate(expected.pairs)
        if isinstance(flan.read({"inputs": asked, "targets": said}, n), str)
    ] == [*expected.empty]
    assert expected.empty


def test_a_row_group_of_flan_can_be_read_by_itself(shared):
    path = next(iter(shared.expected.flan.files))
    files = HfFileSystem(endpoint=shared.url, token=False, skip_instance_cache=True)

    with files.open(f"datasets/Open-Orca/FLAN/{path}", "rb") as opened:
        group = pq.ParquetFile(opened).read_row_group(1, columns=["inputs"])

    assert group["inputs"][0].as_py() == shared.expected.flan.pairs[8][0]


# --- MMC4 ---


def documents(miniature: Miniature, shard: int) -> list[dict]:
    members = unpacked(body(miniature, HUB.format("jmhessel/mmc4-core-ff", MMC4.format(shard))))
    assert [*members] == [f"docs_no_face_shard_{shard}_v3.jsonl"]
    return [json.loads(line) for line in next(iter(members.values())).splitlines()]


@pytest.mark.parametrize("shard", [0, 1, 2, 10])
def test_mmc4s_documents_are_upstreams_and_drop_as_expected(shared, shard):
    expected = shared.expected.mmc4(shard)

    dropped, images = {}, {}
    for row, document in enumerate(documents(shared, shard)):
        key = f"mmc4-{shard:05d}-{row:06d}"
        read = mmc4.read(document, row)
        assert set(document) == {"text_list", "url", "image_info", "similarity_matrix", "could_have_url_duplicate"}
        assert all(len(sims) == len(document["text_list"]) for sims in document["similarity_matrix"])
        images[key] = tuple(info["raw_url"] for info in document["image_info"])
        if isinstance(read, str):
            dropped[key] = read
    assert (dropped, images) == (expected.dropped, expected.images)
    assert set(dropped.values()) == {"no_images", "empty_answer"}
    assert sorted([*expected.kept, *expected.partly, *dropped]) == [f"mmc4-{shard:05d}-{n:06d}" for n in range(12)]
    assert sum(document["could_have_url_duplicate"] for document in documents(shared, shard)) == 1


def test_the_web_has_mmc4s_pictures_but_for_those_that_are_dead(shared):
    expected = shared.expected.mmc4(0)

    for url, outcomes in expected.outcomes.items():
        response = requests.get(f"{shared.url}/{url.partition('://')[2]}", timeout=20)
        outcome = judged(response.content) if response.status_code == 200 else f"http_{response.status_code}"
        assert (outcome or "ok") in outcomes, url
    assert {outcome for outcomes in expected.outcomes.values() for outcome in outcomes} == {
        "ok",
        "http_404",
        "http_410",
        "not_an_image",
    }


def test_a_lost_shard_is_not_there(shared):
    assert shared.answer(HUB.format("jmhessel/mmc4-core-ff", MMC4.format(3))).status == 404
    assert shared.answer("http://www.garden-notes.example/pages/3/0-0.jpg").status == 404


# --- what `datakit add` may find ---


def test_parquet_with_pictures_says_so_in_its_schema(shared):
    expected = shared.expected.added_dataset("example/pictures-parquet", "pictures")
    about = About("pictures", "", None, {"image": "image", "question": "question", "answer": "answer"}, "\n")
    read = hf.reading(about)

    dropped = {}
    for part in range(2):
        file = pq.ParquetFile(
            io.BytesIO(hub_file(shared, f"example/pictures-parquet/data/train-{part:05d}-of-00002.parquet"))
        )
        features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
        assert features["image"] == {"_type": "Image"}
        for number, row in enumerate(file.read().to_pylist()):
            found = read(row, number)
            reason = found if isinstance(found, str) else judged(row["image"]["bytes"])
            if reason:
                dropped[f"pictures-{part:05d}-{number:06d}"] = reason
    assert dropped == expected.dropped
    assert len(expected.kept) + len(dropped) == expected.rows == 24


def test_webdataset_tars_have_pairs_and_one_text_alone(shared, tmp_path):
    read = webdataset.reading(About("wds", "", None, {}, "\n"))

    alone = []
    for part in range(2):
        (tmp_path / "x.tar").write_bytes(hub_file(shared, f"example/wds/train-{part:06d}.tar"))
        rows = [read(sample, number) for number, sample in enumerate(tar_samples(tmp_path / "x.tar"))]
        alone += [f"wds-{part:05d}-{number:06d}" for number, row in enumerate(rows) if not row.images]
        assert len(rows) == 12
    expected = shared.expected.added_dataset("example/wds", "wds")
    assert alone == [*expected.faults] == ["wds-00001-000003"]
    assert len(expected.kept) == expected.rows == 24


# --- the manifests ---


def served_at(address: str) -> str:
    """Where the miniature has what a manifest's address means."""
    return re.sub(r"^hub://(datasets/[^@]+)@[^/]+/", r"/\1/resolve/main/", address)


@pytest.mark.parametrize("name", [name for name in catalogue.names("manifests") if not manifest.load(name).lost])
def test_every_address_of_a_manifest_is_served(shared, name):
    loaded = manifest.load(name)

    files = [file for file in loaded.shard_files() if not loaded.annotations.glob]
    if name == "mmc4":
        files = [loaded.file_of(shard) for shard in (0, 1, 2, 10)]
    places = [served_at(loaded.address(file)) for file in files]
    places += [served_at(at) for source in loaded.images.sources.values() for at in source.archives()]

    assert [place for place in places if shared.answer(place).status != 200] == []


@pytest.mark.parametrize("name", [*FILES, "m3it"])
def test_rows_are_numbered_through_the_files_in_the_order_of_the_manifest(shared, name):
    listed = [served_at(manifest.load(name).address(file)) for file in manifest.load(name).shard_files()]
    files = FILES.get(name) or [f"{M3IT}/{file}" for file in sorted(m3it_files(shared))]

    assert [url.rpartition("/")[2] for url in listed] == [
        "icm-instruct-train.zip" if name == "icm" else file.rpartition("/")[2] for file in files
    ]
    if name == "m3it":
        assert [url.partition("/main/")[2] for url in listed] == [file.partition(f"{M3IT}/")[2] for file in files]


# --- determinism ---


def everything(miniature: Miniature) -> dict[str, bytes]:
    hub = miniature._upstreams.hub
    places = [HUB.format(repo, name) for repo, files in hub.repos.items() for name in files if "coyo" not in repo]
    webs = [
        SAM[0][0],
        f"{DRIVE}/wikiart.zip",
        "https://allenai.org/data/diagrams/ai2d.zip",
        *miniature.expected.mmc4(2).outcomes,
    ]
    return {place: miniature.answer(place).body for place in [*places, *webs]}


def test_the_whole_catalogue_has_the_same_bytes_twice_in_whatever_order():
    with Miniature(rows=40) as first, Miniature(rows=40) as again, Miniature(rows=40, seed=1) as other:
        made = everything(first)

        for place in reversed(made):
            assert again.answer(place).body == made[place], place
        changed = everything(other)

    assert sum(made[place] != changed.get(place) for place in made) > len(made) // 2


def test_nothing_is_made_before_it_is_asked_for():
    with Miniature() as miniature:
        assert miniature._upstreams._world._kept == {}
