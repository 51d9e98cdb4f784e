import pytest

from datakit import catalogue
from datakit.catalogue import manifest
from datakit.errors import ManifestError, UsageError

GOOD = """\
title = "T"
homepage = "https://example.org"
licence = "CC0"
citation = "none"
hub = "owner/repo"
reader = "llava"
recipe = "instruct"

[annotations]
format = "json"
files = "a.json"
rows_per_shard = 10

[images]
by = "path"

[images.sources.one]
prefix = "one/"
archive = "https://example.org/one.zip"
"""


def read(tmp_path, text, name="mine.toml"):
    (tmp_path / name).write_text(text)
    return manifest.read(tmp_path / name)


@pytest.mark.parametrize("name", catalogue.names("manifests"))
def test_every_manifest_of_the_catalogue_is_read(name):
    about = manifest.load(name)

    assert about.name == name
    assert about.shard_files()
    assert about.licence and about.citation and about.problems


def test_coyo_has_upstreams_file_names():
    files = manifest.load("coyo").shard_files()

    assert len(files) == 128
    assert files[0] == "data/part-00000-17da4908-939c-46e5-91d0-15f256041956-c000.snappy.parquet"
    assert files[127] == "data/part-00127-17da4908-939c-46e5-91d0-15f256041956-c000.snappy.parquet"


def test_llava665k_names_five_archives_and_ocr_vqa_as_its_own():
    sources = manifest.load("llava665k").images.sources

    assert {s.prefix: s.archive for s in sources.values()} == {
        "coco/train2017/": "http://images.cocodataset.org/zips/train2017.zip",
        "gqa/images/": "https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip",
        "textvqa/train_images/": "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip",
        "vg/VG_100K/": "https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip",
        "vg/VG_100K_2/": "https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip",
        "ocr_vqa/images/": "hub://datasets/weizhiwang/llava_v15_instruction_images@main/ocr_vqa_images_llava_v15.zip",
    }
    assert sources["textvqa"].inside == "train_images/"  # although the zip is named train_val_images


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ('title = "T"', 'titel = "T"', 1, "'titel'.*Did you mean 'title'"),
        ('format = "json"', 'format = "jsn"', 10, "annotations.format"),
        ("rows_per_shard = 10", "rows_per_shard = -1", 12, "annotations.rows_per_shard"),
        ("rows_per_shard = 10", 'rows_per_shard = "10"', 12, "expected 'int"),
        ("rows_per_shard = 10", "rows_per_shad = 10", 12, "Did you mean 'rows_per_shard'"),
        ('prefix = "one/"', 'prefx = "one/"', 18, "Did you mean 'prefix'"),
        ('hub = "owner/repo"', 'hub = "owner"', 5, "hub"),
        ('reader = "llava"', 'reader = "lava"', 6, "Did you mean 'llava'"),
        ('recipe = "instruct"', 'recipe = "instuct"', 7, "Did you mean 'instruct'"),
        ('"https://example.org/one.zip"', '"ftp://example.org/one.zip"', 19, "http"),
        ('"https://example.org/one.zip"', '"https://example.org/a/../one.zip"', 19, r"'\.\.'"),
        ('"https://example.org/one.zip"', '"https://[::1/one.zip"', 19, "no address"),
        ('files = "a.json"', 'files = "../a.json"', 11, r"'\.\.'"),
        ('reader = "llava"', 'reader = "__init__"', 6, "unknown reader"),
        ("rows_per_shard = 10", "rows_per_shard = 99999999999", 12, "rows_per_shard"),
        ("[images]\n", '[expected]\nrows = "many"\n[images]\n', 15, "expected.rows"),
        ('licence = "CC0"\n', "", 1, "'licence' is missing"),
        ('files = "a.json"\n', "", 9, "'annotations.files' is missing"),
    ],
)
def test_a_mistake_is_told_with_file_line_key_and_the_nearest_name(tmp_path, old, new, line, says):
    with pytest.raises(ManifestError, match=says) as caught:
        read(tmp_path, GOOD.replace(old, new))

    assert str(caught.value).startswith(f"{tmp_path}/mine.toml:{line}: ")


def test_broken_toml_is_told_with_its_line(tmp_path):
    with pytest.raises(ManifestError, match=r"mine\.toml.*line 2"):
        read(tmp_path, 'title = "T"\nhomepage = \n')


def test_bytes_that_are_no_utf8_are_told(tmp_path):
    (tmp_path / "mine.toml").write_bytes("title = 'Müller'".encode("latin-1"))

    with pytest.raises(ManifestError, match="not TOML"):
        manifest.read(tmp_path / "mine.toml")


def test_a_revision_with_a_slash_is_one_revision(tmp_path):
    about = read(tmp_path, 'revision = "refs/pr/1"\n' + GOOD)

    assert about.address("a.json") == "hub://datasets/owner/repo@refs%2Fpr%2F1/a.json"


def test_a_reader_of_another_format_is_refused(tmp_path):
    from datakit import readers

    with pytest.raises(ManifestError, match="doesn't read 'json'"):
        readers.load(read(tmp_path, GOOD.replace('"llava"', '"coyo"')))


def test_parquet_without_a_place_for_the_shard_number_is_refused(tmp_path):
    text = GOOD.replace('format = "json"', 'format = "parquet"\nshards = 3')

    with pytest.raises(ManifestError, match="shard"):
        read(tmp_path, text)


def test_an_unknown_dataset_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match="Did you mean 'llava665k'"):
        manifest.load("llava665")
    with pytest.raises(UsageError, match="bad dataset name"):
        manifest.load("../coyo")


def test_what_was_pinned_is_written_and_read_back_and_moves_addresses_to_the_commit(tmp_path):
    commit = "a" * 40
    address = f"hub://datasets/owner/repo@{commit}/a.json"
    pinned = manifest.Pinned({"owner/repo": commit}, {address: (5, "b" * 64), "https://x/y.zip": (None, None)})
    (tmp_path / "mine.sums").write_text(manifest.sums_text("mine", pinned))

    about = read(tmp_path, GOOD)

    assert about.pinned == pinned
    assert about.address("a.json") == address
    assert about.expect(address) == (5, "b" * 64)
    assert about.expect("https://else/z.zip") == (None, None)


def test_a_damaged_sums_file_is_told_with_its_line(tmp_path):
    (tmp_path / "mine.sums").write_text("# fine\ncommit owner/repo short\n")

    with pytest.raises(ManifestError, match=r"mine\.sums:2: "):
        read(tmp_path, GOOD)


def test_the_sources_of_an_archive_are_found_by_its_address_at_the_pinned_commit(tmp_path):
    commit = "0" * 40
    text = GOOD.replace("https://example.org/one.zip", "hub://datasets/owner/repo@main/{part}.zip") + "parts = 2\n"
    (tmp_path / "mine.sums").write_text(f"commit owner/repo {commit}\nfile - - elsewhere\n")

    about = read(tmp_path, text)

    assert about.sources_of(f"hub://datasets/owner/repo@{commit}/1.zip") == ["one"]
    assert about.sources_of("hub://datasets/owner/repo@main/1.zip") == []
    assert about.pinned.n_unhashed == 1
