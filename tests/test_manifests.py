"""Every manifest is valid, and has the files, counts and sources of its upstream (docs/upstreams.md)."""

from __future__ import annotations

import posixpath
import re

import pytest

from datakit import catalogue
from datakit.catalogue import manifest
from datakit.engine import pipeline
from datakit.web import addresses

NAMES = catalogue.names("manifests")
SUBSETS = [f"{name}.{subset}" for name in NAMES for subset in manifest.load(name).annotations.subsets]

# The datasets that the five guides prepare.
GUIDES = {
    "llava558k", "cc3m595k", "llava665k", "llava332k", "allava", "mmc4", "mmc4_core", "coyo", "flan", "m3it",
    "sharegpt4v", "sharegpt4v_vila", "qinstruct", "icm", "mgm",
}  # fmt: skip

# Numbers that no split of MMC4 has, and two more that core-ff lacks (docs/upstreams.md U72).
NO_SHARDS = [3218, 3267, 5064, 5146, 7119, 8991, 9750, 11899, 15127, 15252, 16996, 17369, 17499, 17818]
NOT_IN_CORE_FF = [1277, 22953]

MGM_PRETRAIN = "hub://datasets/YanweiLi/MGM-Pretrain@main/mgm_pretrain.json"
MGM_INSTRUCTION = "hub://datasets/YanweiLi/MGM-Instruction@main/mgm_instruction.json"
CAPTIONS = "sharegpt4v_instruct_gpt4-vision_cap100k.json"
PRETRAIN = "share-captioner_coco_lcs_sam_1246k_1107.json"
SFT = "sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.json"

# The repository, reader, and annotation files of each dataset that has few.
FILES = {
    "llava558k": ("liuhaotian/LLaVA-Pretrain", "llava", ["blip_laion_cc_sbu_558k.json"]),
    "cc3m595k": ("liuhaotian/LLaVA-CC3M-Pretrain-595K", "llava", ["chat.json"]),
    "llava665k": ("liuhaotian/LLaVA-Instruct-150K", "llava", ["llava_v1_5_mix665k.json"]),
    "llava332k": ("DavidNguyen/LLAVAHALF", "llava", ["llava_v1_5_mix665k_half.json"]),
    "allava": (
        "FreedomIntelligence/ALLaVA-4V",
        "llava",
        [
            "allava_laion/ALLaVA-Caption-LAION-4V.json",
            "allava_laion/ALLaVA-Instruct-LAION-4V.json",
            "allava_vflan/ALLaVA-Caption-VFLAN-4V.json",
            "allava_vflan/ALLaVA-Instruct-VFLAN-4V.json",
            "allava_text/Evol-Instruct-GPT4-Turbo-143K.json",
        ],
    ),
    "flan": ("Open-Orca/FLAN", "flan", ["*_data/*.parquet"]),
    "sharegpt4v": ("Lin-Chen/ShareGPT4V", "llava", [CAPTIONS, PRETRAIN, SFT]),
    "sharegpt4v_vila": (
        "mit-han-lab/ShareGPT4V",
        "llava",
        [f"filter-{PRETRAIN}", "sharegpt4v_mix738k_remove_sa.json"],
    ),
    "qinstruct": ("teowu/Q-Instruct", "llava", ["cleaned_labels.json"]),
    "icm": ("wumengyangok/ICM-Instruct", "llava", ["icm-instruct-train.zip"]),
    "mgm": ("", "llava", [MGM_PRETRAIN, MGM_INSTRUCTION]),
}

# VILA's fourteen sets by the hub's listings, and the name of the instructions beside each.
M3IT = {
    "captioning/image_paragraph_captioning/image_paragraph_captioning_train.jsonl": "instruction.json",
    "captioning/textcap/train.jsonl": "instructions.json",
    "generation/multi30k/train.jsonl": "instructions.json",
    "generation/visual_dialog/train.jsonl": "instructions.json",
    "reasoning/clevr/train.jsonl": "instructions.json",
    "reasoning/nlvr/train.jsonl": "instructions.json",
    "reasoning/visual_mrc/train.jsonl": "instructions.json",
    "vqa/docvqa/train.jsonl": "instructions.json",
    "vqa/gqa/train.jsonl": "instruction.json",
    "vqa/ivqa/train.jsonl": "instructions.json",
    "vqa/ocr-vqa/train.jsonl": "instruction.json",
    "vqa/st-vqa/train.jsonl": "instruction.json",
    "vqa/viquae/train.jsonl": "instructions.json",
    "vqa/vqav2/train.jsonl": "instructions.json",
}

# Counts, exact where upstream's are.
COUNTS = {
    "llava558k": {"rows_about": 558_128},
    "cc3m595k": {"rows": 595_375},
    "llava665k": {"rows": 665_298, "with_image": 624_610},
    "llava332k": {"rows_about": 332_000},
    "allava": {
        "rows_captions": 505_588 + 202_552,
        "rows_instructions": 505_588 + 203_065,
        "rows_text": 143_000,
        "rows": 505_588 + 202_552 + 505_588 + 203_065 + 143_000,
    },
    "mmc4": {"shards": 23_099 - 14 - 2, "rows_about": 5_500_000, "images_about": 22_400_000},
    "mmc4_core": {"shards": 23_085, "rows_about": 7_300_000, "images_about": 29_900_000},
    "coyo": {"shards": 128, "rows": 746_972_269},
    "flan": {"rows_about": 378_000_000},
    "m3it": {"rows_about": 483_800},
    "sharegpt4v": {"rows_pretrain": 570_486 + 676_415, "rows_about_captions": 102_000, "rows_about_sft": 665_000},
    "sharegpt4v_vila": {"rows_about_pretrain": 1_170_000, "rows_about_sft": 738_000},
    "qinstruct": {"rows_about": 200_000},
    "icm": {"rows_about": 172_465 + 73_677 + 77_790},
    "mgm": {"rows_about_pretrain": 1_200_000, "rows_about_instruction": 1_500_000},
}

MIX665K = ["coco/train2017/", "gqa/images/", "ocr_vqa/images/", "textvqa/train_images/", "vg/VG_100K/", "vg/VG_100K_2/"]
BY_HAND = ["sam/images/", "share_textvqa/images/", "web-celebrity/images/", "web-landmark/images/", "wikiart/images/"]
LAION = "allava_laion/images/100277305.jpeg"
VFLAN = "allava_vflan/images/images_191task_1k/PACS+guitar_830_10795-5.png"

# A reference as upstream writes it -> the source that it is looked for in.
REFERENCES = {
    "llava558k": {"00453/004539375.jpg": "all"},
    "cc3m595k": {"GCC_train_001738742.jpg": "all"},
    "qinstruct": {"spaq_koniq/00003.jpg": "all"},
    "icm": {"sexy_check_all/x.JPEG": "all"},
    "allava": {LAION: "laion", VFLAN: "vflan"},
    "sharegpt4v.captions": {"wikiart/images/a.jpg": "wikiart", "sam/images/sa_545504.jpg": "sam"},
    "sharegpt4v.pretrain": {
        "coco/train2017/000000000009.jpg": "coco",
        "llava/llava_pretrain/images/00453/004534373.jpg": "llava",
        "sam/images/sa_545504.jpg": "sam",
    },
    "mgm.pretrain": {
        "images/00013/000133305.jpg": "llava_pretrain",
        f"ALLaVA-4V/{LAION}": "allava_laion",
        f"ALLaVA-4V/{VFLAN}": "allava_vflan",
    },
    "mgm.instruction": {
        "llava/LLaVA-Pretrain/images/00013/000133305.jpg": "llava",  # MGM issue 50
        f"ALLaVA-4V/{LAION}": "allava_laion",
        "gpt4v-dataset/images/1.jpg": "gpt4v",
        "docvqa/train/documents/a.png": "docvqa",
        "chartqa/train/png/a.png": "chartqa",
        "dvqa/images/a.png": "dvqa",
        "ai2d/images/1.png": "ai2d",
    },
}
_NAMED = {"coco/train2017/": "coco", "vg/VG_100K/": "vg", "vg/VG_100K_2/": "vg2"}
for name in ("llava665k", "llava332k", "sharegpt4v.sft", "sharegpt4v_vila.sft"):
    REFERENCES[name] = {p + "1.jpg": _NAMED.get(p, p.partition("/")[0]) for p in MIX665K}
for name in ("sharegpt4v.sft", "sharegpt4v_vila.sft", "mgm.instruction"):
    REFERENCES.setdefault(name, {}).update({p + "1.jpg": p.partition("/")[0].replace("-", "_") for p in BY_HAND})
REFERENCES["sharegpt4v.sft"]["sam/images/1.jpg"] = "sam9k"
REFERENCES["mgm.instruction"] |= {
    p + "1.jpg": _NAMED.get(p, p.partition("/")[0]) for p in MIX665K if "textvqa" not in p
}


def test_every_dataset_of_the_guides_has_a_manifest():
    assert set(NAMES) == GUIDES == set(COUNTS)


@pytest.mark.parametrize("name", [*NAMES, *SUBSETS])
def test_a_manifest_says_all_that_a_person_should_know(name):
    about = manifest.load(name)

    assert about.name == name
    assert about.title and about.licence and about.problems and about.expected
    assert about.homepage.startswith("https://")
    assert re.search(r"arXiv:\d{4}\.\d{5}|, \d{4}$", about.citation)
    assert all(len(problem) <= 120 and not problem.endswith(".") for problem in about.problems)
    assert all(source.licence for source in about.images.sources.values())


# A recipe may have steps for the parts of a dataset only: those of sharegpt4v are cleaned, or not, each in its way.
@pytest.mark.parametrize("name", [name for name in [*NAMES, *SUBSETS] if name != "sharegpt4v"])
def test_the_recipe_of_a_manifest_has_steps_for_it(name):
    about = manifest.load(name)

    steps = pipeline.steps(about.recipe, about)

    assert steps[0].name == "list"


@pytest.mark.parametrize("name", FILES)
def test_files_and_repositories_are_upstreams(name):
    hub, reader, files = FILES[name]

    about = manifest.load(name)

    assert (about.hub, about.reader, about.shard_files()) == (hub, reader, files)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_upstreams(name):
    expected = manifest.load(name).expected

    assert {what: expected.get(what) for what in COUNTS[name]} == COUNTS[name]


def test_the_counts_by_source_of_the_665k_mix_add_up():
    by_source = {"coco": 364_100, "vg": 86_417, "ocr_vqa": 80_000, "gqa": 72_140, "textvqa": 21_953}  # LLaVA issue 657

    expected = manifest.load("llava665k").expected

    assert sum(by_source.values()) == expected["with_image"]
    assert expected["rows"] - expected["with_image"] == 40_688


@pytest.mark.parametrize(("name", "absent"), [("mmc4", sorted(NO_SHARDS + NOT_IN_CORE_FF)), ("mmc4_core", NO_SHARDS)])
def test_mmc4_has_the_shards_that_upstream_has(name, absent):
    about = manifest.load(name)
    rows = about.annotations

    assert (rows.format, rows.shards, rows.absent) == ("json", 23_099, absent)
    assert rows.numbers() == [k for k in range(23_099) if k not in absent]
    assert len(about.shard_files()) == about.expected["shards"]
    assert about.file_of(10).endswith(("_shard_10_v3.jsonl.zip", "_shard_10_v3.jsonl"))


def test_mmc4_core_is_lost_and_core_ff_may_stand_for_it():
    about = manifest.load("mmc4_core")

    assert "February 2025" in about.lost
    assert about.fallback == "mmc4"
    assert not manifest.load("mmc4").lost


def test_coyo_has_128_files_of_the_names_on_the_hub():
    files = manifest.load("coyo").shard_files()

    assert len(files) == 128
    assert files[127] == "data/part-00127-17da4908-939c-46e5-91d0-15f256041956-c000.snappy.parquet"


def test_m3it_has_vilas_fourteen_sets_and_only_what_is_for_training():
    about = manifest.load("m3it")

    assert about.shard_files() == [f"data/{file}" for file in M3IT]
    assert set(about.annotations.beside) == set(M3IT.values())
    assert (about.hub, about.reader, about.images.by) == ("MMInstruction/M3IT", "m3it", "inline")


def test_flan_is_text_and_only_its_parquet_is_read():
    about = manifest.load("flan")

    assert (about.annotations.format, about.images.by, about.annotations.glob) == ("parquet", "none", True)


def test_the_generation_set_of_mgm_is_not_taken_beside_the_set_that_contains_it():
    files = manifest.load("mgm").shard_files()

    assert not [file for file in files if "pure_text" in file]


def test_mgm_doesnt_fetch_textvqa_for_upstream_trains_without_it():
    prefixes = [source.prefix for source in manifest.load("mgm").images.sources.values()]

    assert not [prefix for prefix in prefixes if prefix.startswith("textvqa")]


def test_icm_is_for_research_and_has_to_be_accepted():
    accept = {name: manifest.load(name).accept for name in NAMES if manifest.load(name).accept}

    assert list(accept) == ["icm"]
    assert accept["icm"].startswith("research only")
    assert manifest.load("icm").annotations.inside == "icm_llava_train.json"


@pytest.mark.parametrize("name", NAMES)
def test_subsets_are_made_of_the_files_and_leave_none_out(name):
    about = manifest.load(name)
    subsets = about.annotations.subsets

    parts = [file for files in subsets.values() for file in files]

    assert not subsets or sorted(parts) == sorted(about.shard_files())
    for subset in subsets:
        part = manifest.load(f"{name}.{subset}")
        assert part.shard_files() == subsets[subset]
        assert part.key == f"{name}-{subset}"
        assert any(key.endswith(f"_{subset}") for key in about.expected)


@pytest.mark.parametrize(("name", "ref"), [(name, ref) for name, refs in REFERENCES.items() for ref in refs])
def test_a_reference_as_upstream_writes_it_has_its_source(name, ref):
    sources = manifest.load(name).images.sources
    fit = [source for source in sources if ref.startswith(sources[source].prefix)]

    longest = max(fit, key=lambda source: len(sources[source].prefix), default=None)

    assert longest == REFERENCES[name][ref]


@pytest.mark.parametrize("name", [*NAMES, *SUBSETS])
def test_no_two_sources_of_a_dataset_answer_for_the_same_prefix(name):
    prefixes = [source.prefix for source in manifest.load(name).images.sources.values()]

    assert len(set(prefixes)) == len(prefixes)


def test_the_mix_of_sharegpt4v_needs_only_the_nine_thousand_of_sams_pictures():
    mix, whole = manifest.load("sharegpt4v.sft").images.sources, manifest.load("sharegpt4v").images.sources

    assert "sam9k" in mix and "sam" not in mix
    assert "sam" in whole and "sam9k" not in whole


def test_the_text_of_allava_needs_no_pictures():
    assert manifest.load("allava.text").images.sources == {}


@pytest.mark.parametrize("name", ["llava665k", "llava332k", "sharegpt4v.sft", "sharegpt4v_vila.sft"])
def test_both_zips_of_visual_genome_stand_below_its_second_folder(name):
    sources = manifest.load(name).images.sources

    first, second = sources["vg"], sources["vg2"]

    assert (posixpath.basename(first.archive), first.inside) == ("images.zip", "VG_100K/")
    assert (posixpath.basename(second.archive), second.inside) == ("images2.zip", "VG_100K_2/")
    assert posixpath.dirname(first.archive) == posixpath.dirname(second.archive)
    assert first.archive.split("/")[-2] == "VG_100K_2"


@pytest.mark.parametrize("name", ["llava665k", "llava332k", "sharegpt4v.sft", "sharegpt4v_vila.sft"])
def test_textvqa_and_ocr_vqa_are_found_as_their_archives_have_them(name):
    sources = manifest.load(name).images.sources

    assert sources["textvqa"].inside == "train_images/"
    assert sources["ocr_vqa"].any_extension


def test_allava_has_ten_zips_and_the_other_repositorys_one():
    sources = manifest.load("allava").images.sources

    assert [posixpath.basename(a) for a in sources["laion"].archives()] == [f"images_{k}.zip" for k in range(10)]
    assert "Vision-Flan/vision-flan_191-task_1k" in sources["vflan"].archive
    assert {source.inside for source in sources.values()} == {"*/"}


@pytest.mark.parametrize("name", ["sharegpt4v", "sharegpt4v_vila", "mgm"])
def test_segment_anything_has_51_tars_to_be_brought_by_a_person(name):
    sam = manifest.load(name).images.sources["sam"]

    tars = [posixpath.basename(archive) for archive in sam.archives()]

    assert tars == [f"sa_{part:06d}.tar" for part in range(51)]
    assert "ai.meta.com/datasets/segment-anything-downloads" in sam.obtain


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_brought_is_known_by_its_name(name):
    known = [posixpath.basename(address) for address in manifest.load(name).addresses().values()]
    brought = [a for s in manifest.load(name).images.sources.values() if s.obtain for a in s.archives()]

    for archive in brought:
        assert known.count(posixpath.basename(archive)) == 1
        assert archive.endswith((".tar", ".zip"))


@pytest.mark.parametrize("name", NAMES)
def test_what_a_person_has_to_get_is_named_with_where_it_is(name):
    for source in manifest.load(name).images.sources.values():
        names = [posixpath.basename(archive) for archive in (source.archives()[0], source.archives()[-1])]

        assert not source.obtain or ("https://" in source.obtain and all(one in source.obtain for one in names))


@pytest.mark.parametrize("name", NAMES)
def test_no_address_is_a_page_or_has_a_query(name):
    about = manifest.load(name)
    files = [] if about.annotations.glob else [about.address(file) for file in about.shard_files()[:20]]
    archives = [a for source in about.images.sources.values() for a in source.archives()]

    for address in [*files, *archives]:
        assert "/blob/" not in address and "?" not in address
        assert addresses.parse(address)
