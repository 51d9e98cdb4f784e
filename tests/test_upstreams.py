"""docs/upstreams.md: every number that is cited is there once, and every defect in it is told or handled somewhere."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from datakit import catalogue
from datakit.catalogue import manifest
from datakit.engine import pipeline

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs/upstreams.md"
DOC = FILE.read_text()
NAMES = catalogue.names("manifests")

# Where each defect is told or taken care of: `FILE::TEST`, `manifest NAME: WORDS` of its problems, or
# `recipe NAME: WORDS` of its docstring. One of which the document says "Nothing" may have no place.
PLACES = {
    "U1": [
        "manifest cc3m595k: blob/main", "manifest llava665k: blob/main", "manifest qinstruct: blob/main",
        "manifest icm: blob/main", "recipe vila: not from the page",
        "tests/test_bad_input.py::test_html_in_place_of_json_is_told_as_such",
    ],
    "U2": [
        "recipe llava15: an empty answer", "manifest llava665k: at least one answer is empty",
        "manifest llava332k: empty answers", "manifest sharegpt4v: wrong with LLaVA's 665K",
        "tests/datakit/test_catalogue_records.py::test_llava665k_and_its_half_the_empty_answer_is_left_out_by_name",
    ],
    "U3": [
        "recipe llava15: a picture that is gone",
        "tests/test_chain.py::test_what_is_packed_and_what_is_dropped_add_up_to_what_came",
    ],
    "U4": [
        "recipe llava15: several pictures of one turn",
        "tests/datakit/test_readers.py::test_several_marks_in_a_turn_stay_several",
        "tests/trainer/test_chat.py::test_several_pictures_of_a_question_stay_apart_and_in_their_places",
    ],
    "U5": [
        "tests/datakit/test_readers.py::test_an_answers_own_mark_is_text",
        "tests/trainer/test_chat.py::test_the_text_of_special_tokens_stays_text",
    ],
    "U6": ["tests/datakit/test_readers.py::test_a_row_that_cannot_be_trained_on_has_a_reason"],
    "U7": ["tests/datakit/test_readers.py::test_a_row_that_cannot_be_trained_on_has_a_reason"],
    "U8": ["tests/datakit/test_order.py::test_a_position_holds_the_same_sample_wherever_reading_began"],
    "U9": [
        "manifest llava558k: throws it away",
        "tests/trainer/test_chat.py::test_every_kind_of_record_works_in_every_template",
    ],
    "U10": ["tests/trainer/test_chat.py::test_a_cut_never_goes_through_a_picture"],
    "U12": [
        "manifest llava558k: ?download=true", "recipe libmoe: no `?download=true`",
        "tests/datakit/test_downloads.py::test_addresses_that_differ_in_their_query_land_apart",
    ],
    "U13": [
        "manifest llava558k: twice", "recipe libmoe: nothing is fetched twice",
        "tests/datakit/test_downloads.py::test_a_file_is_fetched_once",
    ],
    "U14": [
        "manifest llava665k: train_images", "manifest llava332k: train_images", "recipe libmoe: textvqa/train_images",
        "tests/test_manifests.py::test_textvqa_and_ocr_vqa_are_found_as_their_archives_have_them",
    ],
    "U15": ["manifest llava332k: backslash", "recipe libmoe: stray blank"],
    "U16": ["manifest llava558k: different folders", "recipe libmoe: no second layout"],
    "U17": ["recipe libmoe: reads the 332K by mistake"],
    "U18": ["recipe libmoe: cumo_pft_allava.json"],
    "U20": [
        "manifest llava332k: black picture", "recipe libmoe: train on a black one",
        "tests/test_chain.py::test_what_is_packed_and_what_is_dropped_add_up_to_what_came",
    ],
    "U21": [
        "manifest llava332k: written nowhere", "recipe llava_half: nowhere says how it was drawn",
        "tests/datakit/test_share.py::test_each_source_and_the_texts_give_their_half",
    ],
    "U22": [
        "manifest coyo: never tries again", "manifest mmc4: never tries again", "recipe vila: Every URL has an outcome",
        "tests/test_run.py::test_a_run_that_was_killed_goes_on",
    ],
    "U23": ["recipe coyo_vila: certificates of https are checked"],
    "U24": [
        "manifest coyo: drops the last", "manifest flan: remainder", "manifest m3it: remainder",
        "recipe vila: no tail to drop",
        "tests/test_chain.py::test_what_is_packed_and_what_is_dropped_add_up_to_what_came",
    ],
    "U25": ["tests/test_chain.py::test_the_stream_gives_every_sample_of_the_mix_once_an_epoch"],
    "U26": [
        "manifest coyo: coyo_25m", "manifest sharegpt4v_vila: new_vflan_sharegpt4v_sft",
        "recipe vila: that don't exist",
    ],
    "U27": ["manifest mgm: </summary>", "recipe dense_connector: in place of data"],
    "U28": [
        "manifest allava: while it still downloads", "recipe libmoe: read when they are whole",
        "tests/datakit/test_archives.py::test_a_zip_cut_anywhere_is_refused",
    ],
    "U29": [
        "manifest allava: holds on to one commit", "recipe libmoe: at one commit",
        "tests/datakit/test_downloads.py::test_a_hub_file_that_has_changed_begins_anew",
    ],
    "U30": [
        "manifest allava: `idx`", "tests/datakit/test_catalogue_records.py::test_allava_text_calls_its_id_idx",
    ],
    "U31": [
        "manifest allava: there are ten", "manifest allava: Vision-Flan's",
        "tests/test_manifests.py::test_allava_has_ten_zips_and_the_other_repositorys_one",
    ],
    "U32": ["manifest allava: two of its pictures missing"],
    "U33": ["manifest cc3m595k: 15 %"],
    "U34": ["manifest cc3m595k: 10 %"],
    "U35": ["manifest coyo: gone in August 2022"],
    "U36": ["manifest coyo: up to 323"],
    "U37": [
        "recipe coyo_vila: their script stops",
        "tests/datakit/test_choose.py::test_ties_are_broken_by_key_not_by_arrival",
    ],
    "U38": ["manifest coyo: 149M", "recipe coyo25m: no script says which"],
    "U39": [
        "manifest flan: 70 GB", "recipe vila: downloads 70 GB",
        "tests/datakit/test_sampled.py::test_only_files_of_the_pattern_are_asked_for",
    ],
    "U40": [
        "manifest flan: float32", "recipe vila: the stride is whole numbers",
        "tests/datakit/test_sampled.py::test_all_steps_are_even_where_float32_has_steps_of_352_to_384",
    ],
    "U41": ["manifest flan: in memory", "recipe vila: 378 million strings in memory"],
    "U42": ["manifest icm: adult", "tests/test_manifests.py::test_icm_is_for_research_and_has_to_be_accepted"],
    "U43": ["manifest icm: not given out any more"],
    "U44": ["manifest icm: 156,884 of 172,465", "recipe icm_msft: 156,884"],
    "U45": ["manifest icm: twice or more", "tests/test_check.py::test_duplicate_ids_are_found_across_shards"],
    "U46": ["manifest icm: appends", "tests/datakit/test_jsonfile.py::test_what_is_not_rows_is_told"],
    "U47": ["manifest icm: swaps the texts", "recipe icm_csft: no mix here"],
    "U48": ["manifest icm: 13B", "recipe icm_msft: llava-v1.5-13b"],
    "U49": ["manifest icm: malformed"],
    "U50": [
        "manifest icm: upper and lower case",
        "tests/datakit/test_catalogue_records.py::test_icm_the_picture_stands_last_and_the_suffix_keeps_its_case",
    ],
    "U51": ["manifest icm: five times"],
    "U52": [
        "manifest icm: stands last",
        "tests/trainer/test_chat.py::test_v1_puts_the_one_picture_of_a_question_to_its_front",
    ],
    "U53": ["manifest llava665k: Apache 2.0"],
    "U54": ["manifest llava665k: 80k", "recipe llava15: sizes are the hub's"],
    "U56": ["manifest llava665k: ids are not unique", "manifest llava332k: ids that come twice"],
    "U57": ["manifest llava665k: 40,688", "tests/test_chain.py::test_a_text_only_record_is_kept_without_a_picture"],
    "U58": [
        "manifest llava665k: some are .gif or .png", "manifest llava332k: .gif", "manifest sharegpt4v: .gif",
        "manifest sharegpt4v_vila: .gif",
        "tests/test_manifests.py::test_textvqa_and_ocr_vqa_are_found_as_their_archives_have_them",
    ],
    "U59": ["tests/test_manifests.py::test_both_zips_of_visual_genome_stand_below_its_second_folder"],
    "U60": ["manifest llava665k: about 170"],
    "U61": ["manifest m3it: upstream's loader is a script", "recipe vila: not its loader script"],
    "U62": [
        "manifest m3it: at random",
        "tests/datakit/test_m3it.py::test_an_instruction_hangs_on_the_file_and_the_row_alone",
    ],
    "U63": [
        "manifest m3it: glues", "recipe m3it_glued: upstream's form",
        "tests/test_recipes.py::test_m3it_and_mmc4_differ_from_their_other_forms_in_one_field",
    ],
    "U64": [
        "manifest m3it: one file isn't train.jsonl", "manifest m3it: re-phrased",
        "tests/test_manifests.py::test_m3it_has_vilas_fourteen_sets_and_only_what_is_for_training",
    ],
    "U65": ["manifest m3it: DocVQA"],
    "U66": ["tests/datakit/test_m3it.py::test_a_visual_dialog_is_turns_and_its_preamble_goes"],
    "U67": [
        "manifest mgm: not taken a second time", "recipe dense_connector: holds it already",
        "tests/test_manifests.py::test_the_generation_set_of_mgm_is_not_taken_beside_the_set_that_contains_it",
    ],
    "U68": [
        "manifest mgm: one root", "manifest mgm: TextVQA",
        "tests/test_manifests.py::test_mgm_doesnt_fetch_textvqa_for_upstream_trains_without_it",
    ],
    "U69": [
        "manifest mgm: left out that",
        "tests/test_manifests.py::test_a_reference_as_upstream_writes_it_has_its_source",
    ],
    "U70": [
        "manifest mgm: ten of the nineteen", "manifest mgm: gpt4v-dataset", "manifest mgm: 355 pictures",
        "tests/test_check.py::test_an_archive_that_a_person_has_to_get_is_asked_for_once",
    ],
    "U71": [
        "manifest mmc4: lost", "manifest mmc4_core: lost", "manifest mmc4_core: what is left of it",
        "recipe vila: MMC4-core is lost",
        "tests/test_run.py::test_a_lost_dataset_is_replaced_only_when_asked_for",
    ],
    "U72": [
        "manifest mmc4: 23,085", "manifest mmc4_core: 23,085", "recipe vila: 23,085 shards",
        "tests/test_recipes.py::test_mmc4_has_23_085_shards_less_those_that_core_ff_lacks",
    ],
    "U73": [
        "manifest mmc4: alphabet", "recipe vila: not by the alphabet",
        "tests/datakit/test_annotations.py::test_one_zip_a_shard_is_read_without_those_that_upstream_never_had",
    ],
    "U74": ["manifest mmc4: crashes", "recipe vila: no arguments that crash"],
    "U75": ["manifest mmc4: .count", "recipe vila: No counts to copy"],
    "U76": [
        "recipe vila: dropped whole", "recipe mmc4_keep: drop a whole document for one dead picture",
        "tests/datakit/test_pack_documents.py::test_a_document_with_a_lost_picture_is_dropped_unless_told_otherwise",
    ],
    "U77": ["manifest mmc4: links rot"],
    "U78": ["manifest mmc4: 3 % of the documents"],
    "U79": ["tests/datakit/test_mmc4.py::test_pictures_of_one_sentence_stand_side_by_side_in_upstreams_order"],
    "U80": ["manifest mmc4: could not be checked"],
    "U81": ["tests/datakit/test_crawl.py::test_a_picture_is_fetched_politely"],
    "U82": ["manifest qinstruct: get_mm_projectors.sh", "recipe qinstruct_mix: get_mm_projectors.sh"],
    "U83": ["manifest qinstruct: working directory", "recipe qinstruct_mix: two working folders"],
    "U84": [
        "manifest qinstruct: jq -s add", "recipe qinstruct_mix: never in memory at once",
        "tests/test_run.py::test_q_instruct_stands_first_in_its_mix",
    ],
    "U85": ["manifest qinstruct: licence"],
    "U86": ["manifest qinstruct: q-future/Q-Instruct-DB"],
    "U87": ["manifest sharegpt4v: no picture is in", "manifest sharegpt4v_vila: no picture is in"],
    "U88": [
        "manifest sharegpt4v: 51",
        "tests/test_manifests.py::test_segment_anything_has_51_tars_to_be_brought_by_a_person",
        "tests/test_manifests.py::test_the_mix_of_sharegpt4v_needs_only_the_nine_thousand_of_sams_pictures",
    ],
    "U89": ["manifest sharegpt4v: sa_26555", "manifest sharegpt4v_vila: sa_26555"],
    "U90": [
        "manifest sharegpt4v: repeat a sentence", "recipe sharegpt4v: repeat themselves",
        "tests/datakit/test_rules.py::test_each_row_is_counted_under_the_first_rule_that_it_breaks",
    ],
    "U91": ["manifest sharegpt4v_vila: COYO's folder", "recipe vila: its own folder"],
    "U92": ["manifest sharegpt4v_vila: jason-"],
    "U93": ["manifest sharegpt4v_vila: filter.py", "recipe sharegpt4v: is not published"],
    "U94": ["manifest m3it: in base64", "tests/datakit/test_m3it.py::test_several_pictures_all_stand_before_the_text"],
}  # fmt: skip


class Entry(NamedTuple):
    number: str
    lines: list[str]  # what upstream does, the source, what datakit does


def entries():
    """The entries of the document, in its order."""
    found = re.findall(r"^\*\*(U\d+)\. .+\.\*\*\n((?:- .+\n(?:  .+\n)*)+)", DOC, re.MULTILINE)
    return [Entry(number, re.split(r"\n(?=- )", body)) for number, body in found]


ENTRIES = entries()


def sections():
    """The section of each dataset, by its name."""
    return dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^##? |\Z)", DOC, re.MULTILINE | re.DOTALL))


def written():
    """Every file of the repository in which somebody could cite."""
    folders = ("datakit", "trainer", "pipelines", "manifests", "benchmarks", "tests", "dev", "docs")
    inside = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    kinds = {".py", ".toml", ".md", ".json"}
    return [*(path for path in inside if path.suffix in kinds), *ROOT.glob("*.md"), *ROOT.glob("*.cfg")]


def test_every_number_stands_once_and_none_is_left_out():
    numbers = [entry.number for entry in ENTRIES]

    assert sorted(numbers, key=lambda number: int(number[1:])) == [f"U{n + 1}" for n in range(len(numbers))]
    assert len(re.findall(r"^\*\*U", DOC, re.MULTILINE)) == len(numbers)  # no entry of another form


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.number)
def test_an_entry_says_what_upstream_does_by_which_source_and_what_datakit_does(entry):
    assert [line.partition(": ")[0] for line in entry.lines] == ["- Upstream", "- Source", "- datakit"]


def test_every_number_that_is_cited_is_in_the_document():
    known = {entry.number for entry in ENTRIES}

    unknown = {
        (str(path.relative_to(ROOT)), number)
        for path in written()
        for number in re.findall(r"\bU[1-9]\d*\b", path.read_text())
        if number not in known
    }

    assert not unknown


def test_a_citation_names_the_document_by_its_path():
    link = re.compile(r"\]\([^)]*\)")  # is relative; tests/test_docs.py follows it
    astray = [
        f"{path.relative_to(ROOT)}: {found}"
        for path in written()
        for found in re.findall(r"[\w./]*upstreams?\.md", link.sub("]", path.read_text()))
        if path != Path(__file__) and found != "docs/upstreams.md"
    ]

    assert not astray


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.py")), ids=lambda path: path.stem)
def test_a_recipe_that_cites_a_number_says_once_where_it_is(path):
    text = path.read_text()

    assert not re.search(r"\bU[1-9]\d*\b", text) or "docs/upstreams.md" in text


def test_every_dataset_has_its_section_and_no_other():
    assert list(sections()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_section_says_where_a_dataset_is_from_its_licence_its_size_and_its_terms(name):
    said, about = sections()[name], manifest.load(name)

    assert re.findall(r"^- (From|Licence|Size|Terms to accept): ", said, re.MULTILINE) == [
        "From", "Licence", "Size", "Terms to accept",
    ]  # fmt: skip
    assert about.homepage in said
    assert about.hub in said
    assert about.citation.partition("arXiv:")[2][:10] in said
    assert ("- Terms to accept: yes" in said) == bool(about.accept)


def test_the_modules_and_tests_that_the_document_names_are_there():
    named = re.findall(r"`((?:datakit|trainer|tests|pipelines|manifests)/[\w./]*)`", DOC)

    assert named
    assert not [path for path in named if not (ROOT / path).exists()]


def test_every_defect_has_its_place_or_is_said_to_have_none():
    done_nothing = {entry.number for entry in ENTRIES if entry.lines[2].startswith("- datakit: Nothing.")}
    numbers = [entry.number for entry in ENTRIES]

    assert [number for number in numbers if number not in PLACES and number not in done_nothing] == []
    assert set(PLACES) <= set(numbers)
    assert all(PLACES.values())


@pytest.mark.parametrize("place", sorted({place for places in PLACES.values() for place in places}))
def test_the_place_where_a_defect_is_told_or_handled_is_there(place):
    kind, _, rest = place.partition(" ")
    name, _, words = rest.partition(": ")
    if kind == "manifest":
        assert any(words in problem for problem in manifest.load(name).problems)
    elif kind == "recipe":
        assert words in " ".join(pipeline.load(name).__doc__.split())
    else:
        file, _, test = place.partition("::")
        assert f"def {test}(" in (ROOT / file).read_text()


@pytest.mark.parametrize("name", NAMES)
def test_every_problem_of_a_manifest_is_in_the_document(name):
    about = f"manifest {name}: "
    told = [place.removeprefix(about) for places in PLACES.values() for place in places if place.startswith(about)]

    untold = [problem for problem in manifest.load(name).problems if not any(words in problem for words in told)]

    assert not untold
