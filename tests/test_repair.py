"""Whatever is damaged in a root, and wherever the repair is killed: afterwards it has the bytes that it had."""

import os
import random
import re
import shutil

import pytest
from users import everything, settings, typed

from datakit.miniature import Miniature

# Two datasets share five archives and an OCR-VQA zip; the third comes by URL, in parts.
FETCH = ("fetch llava665k llava332k", "fetch coyo --shards 0-1")
BUILD = ("build-mix llava665k+llava332k", "build-mix coyo:2")


MKDIR = os.mkdir


class Killed(BaseException):
    """What a process that is killed can't handle."""


class Knife:
    """Stops every change to the file system after so many, as kill -9 does."""

    def __init__(self, monkeypatch):
        self.left = None
        for name in ("unlink", "remove", "replace", "rename", "rmdir", "link", "symlink", "mkdir", "truncate"):
            monkeypatch.setattr(os, name, self._blunted(getattr(os, name)))

    def _blunted(self, change):
        def changed(*args, **more):
            if self.left is not None and (change is MKDIR) != os.path.lexists(args[0]):
                if self.left == 0:
                    raise Killed
                self.left -= 1
            return change(*args, **more)

        return changed


@pytest.fixture
def knife(monkeypatch):
    return Knife(monkeypatch)


@pytest.fixture(scope="module")
def small():
    with Miniature(rows=24, coyo_rows=40) as miniature:
        yield miniature


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    root = tmp_path_factory.mktemp("whole") / "root"
    for command in (*FETCH, *BUILD):
        assert typed(command, settings(small, root)).code == 0
    return root


DAMAGED = {
    "list table": "llava665k/list/*.parquet",
    "plan": "llava332k/list/plan.json",
    "choice": "coyo/top20/*.parquet",
    "fetch table": "llava332k/fetch/*.parquet",
    "table of URLs": "coyo/fetch/*.parquet",
    "fetch tar": "coyo/fetch/*.tar",
    "archive": "downloads/**/train2017.zip",
    "annotations": "downloads/**/*.json",
    "index": "downloads/**/*.index.parquet",
    "pack tar": "*/pack/*.tar",
    "pack table": "*/pack/*.parquet",
    "commit": "*/*/*.commit.json",
    "recipe": "*/*/recipe.json",
    "mix": "mixes/*/mix.json",
}


def damage(root, pattern, chance):
    """Flips a bit at a random place of one of the files that fit."""
    files = [p for p in sorted(root.glob(pattern)) if not p.name.endswith(".download.json") and p.is_file()]
    path = chance.choice(files)
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    return path


def heal(env):
    """What a user is told to type; returns what verify says at the end."""
    told = typed("verify --repair", env)
    for command in (*FETCH, *BUILD):
        got = typed(command, env)
        assert got.code == 0, (command, got)
    return told, typed("verify", env)


def seeded(kind, seed):
    return random.Random(f"{kind} {seed}")


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("seed", range(2))
def test_a_damaged_root_is_healed_to_the_bytes_that_it_had(small, whole, tmp_path, kind, seed):
    root = tmp_path / "root"
    shutil.copytree(whole, root)
    path = damage(root, DAMAGED[kind], seeded(kind, seed))

    told, after = heal(settings(small, root))

    assert told.code == 1 and str(path.relative_to(root)) in told.out, (path, told)
    assert after.code == 0, after
    assert everything(root) == everything(whole)


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("patient", [True, False], ids=["patient", "impatient"])
def test_a_repair_killed_at_every_change_heals_the_same(small, whole, tmp_path, knife, kind, patient):
    root, chance = tmp_path / "root", seeded(kind, "killed")
    env = settings(small, root)
    shutil.copytree(whole, root)
    for _ in range(2):
        damage(root, DAMAGED[kind], chance)

    kills, left = 0, 0
    while True:
        knife.left = left
        try:
            typed("verify --repair", env)
            break
        except Killed:
            kills += 1
            left = 0 if left else 1  # a change a time, and now and then none
        finally:
            knife.left = None
        assert kills < 99, "no progress"
        if not patient and kills == 3:  # who doesn't repair to the end builds from what is left, which may fail
            for command in (*FETCH, *BUILD):
                typed(command, env)
    _, after = heal(env)

    assert kills > 1 or kind in ("plan", "recipe", "mix")
    assert after.code == 0, after
    assert everything(root) == everything(whole)


BEFORE_PACK = [kind for kind, pattern in DAMAGED.items() if "pack" not in kind and kind != "mix"]


@pytest.mark.parametrize("kind", BEFORE_PACK)
def test_what_was_packed_from_damaged_files_is_packed_again(small, whole, tmp_path, kind):
    root = tmp_path / "root"
    shutil.copytree(whole, root)
    for folder in (*root.glob("*/pack"), root / "mixes"):
        shutil.rmtree(folder)
    env, chance = settings(small, root), seeded(kind, "packed")
    for _ in range(3):
        damage(root, DAMAGED[kind], chance)
    for command in BUILD:
        typed(command, env)  # which may notice, or pack what it can

    _, after = heal(env)

    assert after.code == 0, after
    assert everything(root) == everything(whole)


@pytest.mark.parametrize("damage", [b"\x00", b"", b"{", b"null"])
def test_a_damaged_mix_is_told_with_the_command_that_makes_it_again_whatever_its_name(small, tmp_path, damage):
    env = settings(small, tmp_path / "root")
    assert typed("build-mix qinstruct:2 --fetch --name big_one --limit 8", env).code == 0
    path = tmp_path / "root/mixes/big_one@limit-8/mix.json"
    whole = path.read_bytes()
    at = whole.index(b'"fingerprint"')
    path.write_bytes(whole[:at] + damage + whole[at + 5 :] if damage in (b"\x00", b"{") else damage)

    told = typed("verify", env)
    command = told.out.rstrip().splitlines()[-1].strip()

    assert told.code == 1
    if damage in (b"\x00", b"{"):
        assert command == "datakit build-mix qinstruct:2 --name big_one --limit 8"
        assert typed(command, env).code == 0
        assert path.read_bytes() == whole
    else:  # nothing in it says which datasets it had
        assert command == "datakit build-mix A+B --name big_one --limit 8"


def test_what_pack_needs_is_fetched_by_the_commands_that_verify_prints(small, tmp_path):
    env = settings(small, tmp_path / "root")
    assert typed("build-mix qinstruct --fetch", env).code == 0
    before = everything(tmp_path / "root")
    next((tmp_path / "root/downloads").rglob("q-instruct-images.tar.download.json")).unlink()
    (tmp_path / "root/qinstruct/pack/00000.tar").unlink()

    told = typed("verify --repair", env)
    for command in told.out.partition("one after the other:")[2].strip().splitlines():
        assert typed(command.strip(), env).code == 0, command

    assert typed("verify", env).code == 0
    assert everything(tmp_path / "root") == before


@pytest.mark.parametrize(
    "name", ["**/q-instruct-images.tar.download.json", "qinstruct/manifest.json", "**/*.tar.index*.of"]
)
@pytest.mark.parametrize("data", [b"null", b"{", b""])
def test_a_note_that_can_t_be_read_is_told_and_made_again(small, tmp_path, name, data):
    env = settings(small, tmp_path / "root")
    assert typed("build-mix qinstruct --fetch", env).code == 0
    before = everything(tmp_path / "root")
    (note,) = (tmp_path / "root").glob(name)
    note.write_bytes(data)

    told = typed("verify --repair", env)
    for command in told.out.partition("one after the other:")[2].strip().splitlines():
        assert typed(command.strip(), env).code == 0, command

    assert told.code == 1 and "can't be read" in told.out
    assert typed("verify", env).code == 0
    shutil.rmtree(tmp_path / "root/qinstruct/fetch")  # what nothing needs any more wasn't made again
    assert typed("build-mix qinstruct --fetch", env).code == 0
    assert everything(tmp_path / "root") == before


def test_what_a_person_put_there_is_never_removed_by_a_repair(small, tmp_path):
    env = settings(small, tmp_path / "root")
    assert typed("build-mix qinstruct --fetch", env).code == 0
    (archive,) = (tmp_path / "root/downloads").rglob("q-instruct-images.tar")
    assert typed(f"adopt qinstruct {archive}", env).code == 0
    damage(tmp_path / "root", str(archive.relative_to(tmp_path / "root")), random.Random(0))
    damaged = archive.read_bytes()

    told = typed("verify --repair", env)

    assert "put aside as q-instruct-images.tar.bad" in told.out
    assert archive.with_name("q-instruct-images.tar.bad").read_bytes() == damaged


def test_a_part_of_a_shard_that_is_not_finished_is_verified_and_healed(small, whole, tmp_path, monkeypatch):
    from datakit.stages.fetch import Fetch

    monkeypatch.setattr(Fetch, "rows_per_part", 3)
    root, clean = tmp_path / "root", tmp_path / "clean"
    for place in (root, clean):
        assert typed("fetch coyo --shards 0", settings(small, place)).code == 0
    (root / "coyo/fetch/00000.commit.json").unlink()  # as if it had been killed before the last commit
    path = damage(root, "coyo/fetch/00000-00001.tar", random.Random(0))

    told = typed("verify --repair", settings(small, root))
    typed("fetch coyo --shards 0", settings(small, root))

    assert f"{path.relative_to(root)}: the bytes aren't those" in told.out
    assert everything(root) == everything(clean)


def test_a_root_of_an_earlier_version_is_refused_with_a_command_that_leads_on(small, tmp_path):
    env = settings(small, tmp_path / "root")
    assert typed("build-mix qinstruct --fetch", env).code == 0
    before = everything(tmp_path / "root")
    for recipe in (tmp_path / "root/qinstruct").glob("*/recipe.json"):
        recipe.write_text(re.sub(r'"reader_version": \d+', '"reader_version": 1', recipe.read_text()))

    refused = typed("build-mix qinstruct", env)
    (command,) = re.findall(r"`(datakit .*?)`", refused.err)
    again = [typed(command, env), typed("build-mix qinstruct", env)]

    assert refused.code == 1 and "reader_version: 1 -> " in refused.err
    assert command == "datakit fetch qinstruct --rebuild"
    assert [one.code for one in again] == [0, 0], again
    assert everything(tmp_path / "root") == before
