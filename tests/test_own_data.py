"""A user's own JSON and archives: an edit is noticed by the next command, and nothing of theirs is ever written to."""

import io
import json
import os
import signal
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from users import KILLED, Typed, typed

from datakit.stages import listing, locate, pack
from datakit.stream.reader import Stream
from datakit.web import own as module


@pytest.fixture
def user(tmp_path, monkeypatch):
    """Types commands; `user.rows(*texts)` writes their JSON, `user.texts()` says what the stream reads of it."""
    monkeypatch.setattr(module, "SETTLED_S", 0.0)  # so that stamps count at once
    monkeypatch.setattr(module, "_seen", {})
    env = {"DATAKIT_ROOT": str(tmp_path / "root"), "DATAKIT_CATALOGUE": str(tmp_path / "own"), "DATAKIT_JOBS": "1"}
    user = lambda command: typed(command, env)  # noqa: E731
    user.path, user.root, user.json = tmp_path, tmp_path / "root", tmp_path / "mine.json"
    user.env = env

    def rows(*texts, image=None):
        written = [conversation(nth, text, image) for nth, text in enumerate(texts)]
        with user.json.open("w") as file:  # in place: the inode stays
            json.dump(written, file)

    def texts():
        stream = Stream(tmp_path / "root/mixes/mine/mix.json")
        return [stream[at].record.messages[1].content[0].text for at in range(len(stream))]

    user.rows, user.texts = rows, texts
    return user


def conversation(nth, text, image):
    turns = [{"from": "human", "value": "<image>\nWhat?" if image else "What?"}, {"from": "gpt", "value": text}]
    return {"id": f"q{nth}", "conversations": turns} | ({"image": image} if image else {})


def picture(colour):
    out = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(out, "PNG")
    return out.getvalue()


def zipped(path: Path, **members) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(f"{name}.png", data)
    return path


def ran(*got: Typed) -> Typed:
    assert [one.code for one in got] == [0] * len(got), got
    return got[-1]


def downloaded(user, name="mine.json") -> Path:
    (found,) = (user.root / "downloads").rglob(name)
    return found


def test_a_json_that_is_edited_in_place_is_read_anew(user):
    user.rows("before")
    ran(user(f"add mine --json {user.json}"), user("build-mix mine --fetch"))

    user.rows("afters")  # as long as before
    ran(user("fetch mine"), user("build-mix mine"))

    assert user.texts() == ["afters"]
    assert downloaded(user).stat().st_ino != user.json.stat().st_ino


def test_a_loose_picture_that_another_of_the_same_size_replaces_is_taken_anew(user):
    photos = user.path / "photos"
    photos.mkdir()
    for name, colour in (("photos/1.bmp", "red"), ("other.bmp", "blue")):
        Image.new("RGB", (16, 16), colour).save(user.path / name)
    user.rows("Red.", image="1.bmp")
    ran(user(f"add mine --json {user.json} --images {photos}"), user("build-mix mine --fetch"))
    before = Stream(user.path / "root/mixes/mine/mix.json")[0].images

    assert (user.path / "other.bmp").stat().st_size == (photos / "1.bmp").stat().st_size
    (user.path / "other.bmp").replace(photos / "1.bmp")
    told = user("build-mix mine")
    ran(user("build-mix mine --fetch"))

    assert told.code == 1 and "has changed since" in told.err
    assert Stream(user.path / "root/mixes/mine/mix.json")[0].images != before


def test_a_folder_of_links_to_files_elsewhere_is_told_as_such(user):
    (user.path / "far").mkdir()
    (user.path / "photos").mkdir()
    (user.path / "far/1.png").write_bytes(picture("red"))
    (user.path / "photos/1.png").symlink_to(user.path / "far/1.png")
    user.rows("Red.", image="1.png")

    told = ran(user(f"add mine --json {user.json} --images {user.path / 'photos'}"))

    assert "1 of these are links to files elsewhere, which aren't read" in told.out


def test_a_json_that_an_older_one_of_the_same_size_replaces_is_read_anew(user):
    user.rows("before")
    ran(user(f"add mine --json {user.json}"), user("build-mix mine --fetch"))

    other = user.path / "other.json"
    other.write_text(user.json.read_text().replace("before", "afters"))
    os.utime(other, (1e9, 1e9))
    other.replace(user.json)
    ran(user("fetch mine"), user("build-mix mine"))

    assert user.texts() == ["afters"]


def test_a_json_whose_date_alone_has_changed_is_hashed_once_and_done_before(user, monkeypatch):
    user.rows("before")
    ran(user(f"add mine --json {user.json}"), user("build-mix mine --fetch"))
    hashed = []
    monkeypatch.setattr(module, "_sha256_of", lambda *args, told=module._sha256_of: hashed.append(1) or told(*args))

    os.utime(user.json, (1e9, 1e9))
    got = [ran(user("fetch mine")), ran(user("status mine")), ran(user("fetch mine"))]

    assert "1 shards were done before" in got[0].out
    assert len(hashed) == 1


def test_an_edit_is_noticed_after_the_copy_was_cleaned(user):
    user.rows("before")
    ran(user(f"add mine --json {user.json}"), user("build-mix mine --fetch"), user("clean mine"))

    user.rows("afters")
    ran(user("fetch mine"), user("build-mix mine"))

    assert user.texts() == ["afters"]


def test_a_hard_link_that_an_earlier_version_made_becomes_a_copy(user):
    user.rows("before")
    ran(user(f"add mine --json {user.json}"), user("build-mix mine --fetch"))
    old = downloaded(user)
    old.unlink()
    os.link(user.json, old)
    old.with_name(".mine.json.source.json").unlink()
    unedited = ran(user("fetch mine"))

    user.rows("afters")
    ran(user("fetch mine"), user("build-mix mine"))

    assert "1 shards were done before" in unedited.out
    assert user.texts() == ["afters"]
    assert downloaded(user).stat().st_nlink == user.json.stat().st_nlink == 1


def test_an_edit_while_the_rows_are_listed_is_never_taken_for_what_was_listed(user, monkeypatch):
    user.rows("before")
    ran(user(f"add mine --json {user.json}"))
    rows = listing.Listing.rows

    def edited(self, *args):
        yield from rows(self, *args)
        user.rows("afters")

    monkeypatch.setattr(listing.Listing, "rows", edited)
    user("build-mix mine --fetch")
    monkeypatch.undo()
    ran(user("fetch mine"), user("build-mix mine"))

    assert user.texts() == ["afters"]


def test_a_json_that_is_broken_stays_where_it_is_and_is_read_once_it_is_mended(user):
    user.rows("before")
    ran(user(f"add mine --json {user.json}"))
    user.json.write_text('[{"id": 1,')

    broken = user("fetch mine")
    left = user.json.read_text()
    user.rows("mended")
    ran(user("build-mix mine --fetch"))

    assert broken.code == 1 and f"That is {user.json}: mend it" in broken.err
    assert left == '[{"id": 1,'
    assert user.texts() == ["mended"]
    assert not list(user.path.rglob("*.bad"))


def test_an_archive_of_one_s_own_is_read_where_it_is_and_an_edit_is_noticed(user):
    user.rows("a", image="a.png")
    mine = zipped(user.path / "mine.zip", a=picture("red"))
    ran(user(f"add mine --json {user.json} --images {mine}"), user("build-mix mine --fetch"))
    link = downloaded(user, "mine.zip")
    stream = Stream(user.root / "mixes/mine/mix.json")
    first = stream[0].images

    zipped(mine, a=picture("blue"))
    ran(user("fetch mine"), user("build-mix mine"), user("verify mine"))

    assert link.is_symlink() and link.readlink() == mine
    assert (first, Stream(user.root / "mixes/mine/mix.json")[0].images) == ([picture("red")], [picture("blue")])


def test_an_archive_that_is_edited_while_it_is_packed_is_packed_anew(user, monkeypatch):
    user.rows("a", image="a.png")
    mine = zipped(user.path / "mine.zip", a=picture("red"))
    ran(user(f"add mine --json {user.json} --images {mine}"), user("fetch mine"))
    samples = pack.Pack._samples

    def edited(self, *args):
        yield from samples(self, *args)
        zipped(mine, a=picture("blue"))

    monkeypatch.setattr(pack.Pack, "_samples", edited)
    stopped = user("build-mix mine")
    monkeypatch.undo()
    ran(user("fetch mine"), user("build-mix mine"))

    assert stopped.code == 1 and "was edited while it was read" in stopped.err
    assert Stream(user.root / "mixes/mine/mix.json")[0].images == [picture("blue")]


def test_an_archive_that_is_edited_while_it_is_indexed_is_indexed_anew(user, monkeypatch):
    user.rows("a", image="a.png")
    mine = zipped(user.path / "mine.zip", b=picture("red"))
    ran(user(f"add mine --json {user.json} --images {zipped(user.path / 'mine.zip', a=picture('red'))}"))
    write = locate.archives.write_index

    def edited(path, out):
        n = write(path, out)
        zipped(mine, a=picture("blue"))
        return n

    monkeypatch.setattr(locate.archives, "write_index", edited)
    stopped = user("fetch mine")
    monkeypatch.undo()
    ran(user("build-mix mine --fetch"))

    assert stopped.code == 1 and "was edited while it was read" in stopped.err
    assert Stream(user.root / "mixes/mine/mix.json")[0].images == [picture("blue")]


def test_an_archive_that_has_vanished_is_told_and_what_was_packed_stays(user):
    user.rows("a", image="a.png")
    mine = zipped(user.path / "mine.zip", a=picture("red"))
    ran(user(f"add mine --json {user.json} --images {mine}"), user("build-mix mine --fetch"))
    mine.unlink()

    done = ran(user("fetch mine"), user("build-mix mine"), user("verify mine"))
    user.rows("b", image="a.png")
    needed = user("fetch mine")

    assert done.code == 0
    assert needed.code == 1 and f"there is no file {str(mine)!r}" in needed.err


def test_clean_verify_and_repair_never_touch_an_archive_of_one_s_own(user):
    user.rows("a", image="a.png")
    mine = zipped(user.path / "mine.zip", a=picture("red"))
    ran(user(f"add mine --json {user.json} --images {mine}"), user("build-mix mine --fetch"))
    zipped(mine, a=picture("blue"))
    edited = mine.read_bytes()

    seen = user("verify mine")
    user("verify mine --repair")
    ran(user("build-mix mine --fetch"), user("verify mine"))
    cleaned = ran(user("clean mine"))

    assert seen.code == 1 and "mine.zip" in seen.out
    assert mine.read_bytes() == edited
    assert not list((user.root / "downloads").rglob("mine.zip"))
    assert f"mine.zip  {len(str(mine))} B" in cleaned.out  # of the link, not of the archive, which stays


def test_a_broken_archive_of_one_s_own_is_never_moved(user):
    user.rows("a", image="a.png")
    mine = zipped(user.path / "mine.zip", a=picture("red"))
    ran(user(f"add mine --json {user.json} --images {mine}"))
    whole = mine.read_bytes()
    mine.write_bytes(whole[:-10])

    broken = user("fetch mine")
    left = mine.read_bytes()
    mine.write_bytes(whole)
    ran(user("build-mix mine --fetch"))

    assert broken.code == 1 and f"That is {mine}: mend it" in broken.err
    assert left == whole[:-10]
    assert not list(user.path.rglob("*.bad"))


@pytest.fixture
def far(user):
    """A dataset whose archive only a person can get."""
    user.rows("a", image="a.png")
    ran(user(f"add mine --json {user.json} --images {zipped(user.path / 'mine.zip', a=picture('red'))}"))
    manifest = user.path / "own/manifests/mine.toml"
    (line,) = [line for line in manifest.read_text().splitlines() if "file://" in line and "mine.zip" in line]
    text = manifest.read_text().replace(line, 'archive = "https://example.org/far.zip"\nobtain = "Ask."')
    manifest.write_text(text)
    return user


def test_an_adopted_archive_is_read_where_it_is_and_an_edit_is_noticed(far):
    mine = zipped(far.path / "far.zip", a=picture("red"))
    adopted = ran(far(f"adopt mine {mine}"))
    ran(far("build-mix mine --fetch"))

    zipped(mine, a=picture("blue"))
    ran(far("build-mix mine --fetch"))

    assert f"read from {mine}: leave it there" in adopted.out
    assert downloaded(far, "far.zip").is_symlink()
    assert Stream(far.root / "mixes/mine/mix.json")[0].images == [picture("blue")]


def test_an_adopted_archive_that_has_gone_is_asked_for_again(far):
    mine = zipped(far.path / "far.zip", a=picture("red"))
    ran(far(f"adopt mine {mine}"), far("fetch mine"))
    mine.rename(far.path / "elsewhere.zip")
    far.rows("b", image="a.png")

    gone = far("build-mix mine --fetch")
    ran(far(f"adopt mine {far.path / 'elsewhere.zip'} --as all"), far("build-mix mine --fetch"))

    assert gone.code == 1 and "datakit adopt mine" in gone.err
    assert far.texts() == ["b"]


def test_an_archive_from_another_file_system_is_copied(far, monkeypatch):
    mine = zipped(far.path / "far.zip", a=picture("red"))
    monkeypatch.setattr(module.OwnFile, "is_on_same_disk", lambda self: False)

    ran(far(f"adopt mine {mine}"))
    mine.unlink()
    ran(far("build-mix mine --fetch"))

    assert not downloaded(far, "far.zip").is_symlink()
    assert Stream(far.root / "mixes/mine/mix.json")[0].images == [picture("red")]


@pytest.mark.parametrize("near", [True, False])
def test_adopting_that_is_killed_anywhere_is_done_again_and_leaves_nothing(far, forks, near):
    mine = zipped(far.path / "far.zip", a=picture("red"))
    ran(far(f"adopt mine {mine}"), far("fetch mine"))  # a good one stands there already
    program = (
        KILLED
        if near
        else f"from datakit.web.own import OwnFile; OwnFile.is_on_same_disk = lambda self: False\n{KILLED}"
    )
    zipped(far.path / "new.zip", a=picture("blue"))

    codes = []
    for cut in range(6):
        env = {**os.environ, **far.env, "CUT_AFTER": str(cut)}
        adopting = forks.start(program, "adopt", "mine", far.path / "new.zip", "--as", "all", env=env)
        adopting.communicate(timeout=100)
        codes.append(adopting.returncode)
    found = [path.name for path in downloaded(far, "far.zip").parent.iterdir()]
    ran(far("build-mix mine --fetch"), far("verify mine"), far("clean mine"))

    assert -signal.SIGKILL in codes and codes[-1] == 0
    assert not [name for name in found if name.endswith((".part", ".part.json", ".link", ".zip.lock", ".tmp"))]
    assert Stream(far.root / "mixes/mine/mix.json")[0].images == [picture("blue")]
