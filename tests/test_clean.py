"""What a root holds is known from the root: clean and verify look at every dataset in it, whoever asks from where."""

import errno
import json
import shutil
from contextlib import ExitStack

import pytest
from users import settings, typed

from datakit.formats import archives
from datakit.miniature import Miniature
from datakit.storage import store as stores
from datakit.storage.refusals import store_errors


@pytest.fixture(scope="module")
def small():
    with Miniature(rows=24) as miniature:
        yield miniature


@pytest.fixture
def user(small, tmp_path):
    env = settings(small, tmp_path / "root", DATAKIT_CATALOGUE=str(tmp_path / "own"))

    def types(command, **more):
        return typed(command, {**env, **more})

    types.root, types.at = tmp_path / "root", tmp_path
    return types


def own_dataset(user, name="mine"):
    """A dataset of the user's own catalogue whose pictures are in an archive that LLaVA-665K has, too; fetched."""
    assert user("fetch llava665k").code == 0
    pictures = [one.name for one in archives.members(user.root / COCO) if one.name.endswith(".jpg")]
    rows = [
        {
            "id": f"{n}",
            "image": f"coco/{pictures[n]}",
            "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A boat."}],
        }
        for n in range(3)
    ]
    (user.at / f"{name}.json").write_text(json.dumps(rows))
    (user.at / "own/manifests").mkdir(parents=True, exist_ok=True)
    (user.at / f"own/manifests/{name}.toml").write_text(
        f"""title = "Mine"
homepage = ""
licence = "mine"
citation = ""
hub = ""
reader = "llava"
recipe = "instruct"
[annotations]
format = "json"
files = ["{(user.at / f"{name}.json").as_uri()}"]
rows_per_shard = 10
[images]
by = "path"
[images.sources.coco]
prefix = "coco/"
archive = "http://images.cocodataset.org/zips/train2017.zip"
inside = ""
"""
    )
    assert user("fetch mine").code == 0


COCO = "downloads/images.cocodataset.org/zips/train2017.zip"


def test_clean_from_another_folder_keeps_an_archive_that_a_dataset_of_ones_own_needs(user):
    own_dataset(user)
    assert user("build-mix llava665k --fetch").code == 0

    got = user("clean llava665k", DATAKIT_CATALOGUE=str(user.at / "nowhere"))

    assert got.code == 0 and "ocr_vqa_images" in got.out, got
    assert (user.root / COCO).exists()
    assert user("build-mix mine").code == 0
    assert "train2017.zip" in user("clean llava665k").out  # by now nobody needs it


def test_clean_keeps_all_downloads_for_a_dataset_that_nobody_knows(user):
    own_dataset(user)
    assert user("build-mix llava665k --fetch").code == 0
    (user.root / "mine/manifest.json").unlink()  # as in a root of an earlier version

    got = user("clean llava665k", DATAKIT_CATALOGUE=str(user.at / "nowhere"))

    assert "no download goes: 'mine'" in got.out and "DATAKIT_CATALOGUE" in got.out
    assert (user.root / COCO).exists()


def test_verify_and_status_see_a_dataset_that_is_not_in_the_catalogue(user):
    own_dataset(user)
    table = user.root / "mine/list/00000.parquet"
    data = bytearray(table.read_bytes())
    data[50] ^= 1
    table.write_bytes(data)
    elsewhere = {"DATAKIT_CATALOGUE": str(user.at / "nowhere")}

    found, seen = user("verify", **elsewhere), user("status", **elsewhere)

    assert found.code == 1 and "mine/list/00000.parquet: the bytes aren't" in found.out
    assert "datakit fetch mine" in found.out
    assert "mine/list: 1 done; 3 rows" in seen.out


def test_clean_of_one_bucket_keeps_what_another_needs_from_the_same_cache(user, bucket):
    cache = {"DATAKIT_CACHE": str(user.at / "cache")}
    one, two = ({**cache, "DATAKIT_ROOT": f"s3://bucket/{n}"} for n in "ab")
    assert user("fetch llava332k", **two).code == 0
    assert user("build-mix llava665k --fetch", **one).code == 0

    cleaned = user("clean llava665k", **one)
    built = user("build-mix llava332k", **two)

    assert cleaned.code == 0 and "llava665k/list/00000.parquet" in cleaned.out
    assert (user.at / "cache" / COCO).exists()
    assert built.code == 0, built
    later = user("clean llava665k --dry-run", **one)
    assert "train2017.zip" in later.out  # now nobody needs it


def test_a_bucket_that_cant_be_reached_stops_a_clean_of_the_shared_cache(user, bucket):
    cache = {"DATAKIT_CACHE": str(user.at / "cache"), "DATAKIT_ROOT": "s3://bucket/c"}
    assert user("build-mix qinstruct --fetch", **cache).code == 0
    (user.at / "cache/roots/0.root").write_text("s3://gone/x")

    got = user("clean qinstruct", **cache)

    assert got.code == 1 and "no bucket 'gone'" in got.err and "roots/0.root" in got.err
    assert list((user.at / "cache/downloads").rglob("q-instruct-images.tar"))


class FullDisk:
    """No new file can be written until so many files were removed."""

    def __init__(self, monkeypatch, removals):
        self.left = removals
        atomic_file, remove = stores.atomic_file, stores.Store.remove

        def full(path):
            if self.left > 0:
                with store_errors(path):
                    raise OSError(errno.ENOSPC, "No space left on device")
            return atomic_file(path)

        def removed(store, name):
            self.left -= store.size(name) is not None
            remove(store, name)

        monkeypatch.setattr(stores, "atomic_file", full)
        monkeypatch.setattr(stores.Store, "remove", removed)


@pytest.mark.parametrize("removals", [1, 2, 99])
def test_clean_works_on_a_disk_that_is_full_to_the_last_byte(user, monkeypatch, removals):
    assert user("build-mix llava665k --fetch").code == 0

    with monkeypatch.context() as patched:
        disk = FullDisk(patched, removals)
        got = user("clean llava665k")

    assert disk.left < removals
    assert not (user.root / COCO).exists()
    assert not list((user.root / "llava665k/list").glob("*.parquet"))
    if removals < 99:
        assert got.code == 0, got
        assert not list((user.root / "llava665k/fetch").glob("*.parquet"))
        assert user("fetch llava665k").out.rstrip().endswith("1 shards were done before")
    else:
        assert got.code == 1 and "no space left" in got.err
    assert user("build-mix llava665k --fetch").code == 0


def test_a_commit_that_names_files_elsewhere_is_damage_and_removes_nothing_there(user):
    assert user("fetch qinstruct").code == 0
    precious = user.at / "precious.parquet"
    precious.write_bytes(b"mine")
    path = user.root / "qinstruct/list/00000.commit.json"
    said = json.loads(path.read_text())
    said["seal"] = ""
    for name in ("../../../precious.parquet", str(precious)):
        said["parts"][0]["table"]["name"] = name
        path.write_text(json.dumps(said))

        told = user("verify --repair")
        built = user("fetch qinstruct")

        assert told.code == 1 and "qinstruct/list/00000.commit.json: the commit is damaged" in told.out
        assert built.code == 0, built
        assert precious.read_bytes() == b"mine"
        assert user("verify").code == 0
    part = user.root / "qinstruct/list/00000-00001.commit.json"
    shutil.copy(path, part)
    assert user("verify --repair").code in (0, 1)
    assert precious.exists()


def test_a_table_that_names_a_picture_outside_the_root_is_refused(user):
    from datakit.errors import SourceError
    from datakit.stages.pack import PictureFiles
    from datakit.storage.store import Store

    (user.at / "secret").write_bytes(b"secret")
    image = {"file": "", "ref": "x.jpg", "offset": 0, "stored_bytes": 6, "size_bytes": 6, "method": 0, "crc32": None}
    (user.root).mkdir()

    for name in ("../secret", "downloads/../../secret", str(user.at / "secret"), "coyo//x", "./x", "a\0b", ""):
        with pytest.raises(SourceError, match="isn't in this root"):
            PictureFiles(Store(str(user.root)), ExitStack()).read({**image, "file": name, "sha256": None})


def test_packed_pictures_are_compared_with_their_records(user):
    """As an earlier version could leave them: the tar is as committed, but a picture isn't the one that was fetched."""
    assert user("fetch coyo --shards 0").code == 0
    assert user("build-mix coyo").code == 0
    pack = user.root / "coyo/pack"
    before = {p.name: p.read_bytes() for p in pack.iterdir()}
    tar, commit = next(pack.glob("00000.tar")), pack / "00000.commit.json"
    said = json.loads(commit.read_text())
    data = bytearray(tar.read_bytes())
    data[512 + 700] ^= 4  # in the data of the first picture
    tar.write_bytes(data)
    import xxhash

    said["parts"][0]["tar"]["xxh3"] = xxhash.xxh3_128(bytes(data)).hexdigest()
    commit.write_text(json.dumps({**said, "seal": ""}))

    told = user("verify --repair")
    again = user("build-mix coyo")

    assert told.code == 1 and "aren't those that their records say" in told.out
    assert again.code == 0, again
    assert {p.name: p.read_bytes() for p in pack.iterdir()} == before


def test_a_picture_that_was_damaged_after_it_was_fetched_is_never_packed(user):
    assert user("fetch coyo --shards 0").code == 0
    tar = user.root / "coyo/fetch/00000.tar"
    data = bytearray(tar.read_bytes())
    data[512 + 700] ^= 4
    tar.write_bytes(data)

    got = user("build-mix coyo")

    assert got.code == 1 and "its bytes aren't those that were fetched" in got.err and "verify --repair" in got.err
    assert not list((user.root / "coyo/pack").glob("*.commit.json"))


def test_a_table_that_was_damaged_after_it_was_made_is_never_used(user):
    assert user("fetch qinstruct").code == 0
    shutil.rmtree(user.root / "qinstruct/fetch")
    table = user.root / "qinstruct/list/00000.parquet"
    data = bytearray(table.read_bytes())
    data[len(data) // 2] ^= 4
    table.write_bytes(data)

    got = user("fetch qinstruct")

    assert got.code == 1 and "list/00000.parquet can't be used" in got.err and "verify --repair" in got.err
