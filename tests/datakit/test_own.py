"""Files of the user's that stand for downloads: copied or linked, hashed when they must be, written to never."""

import errno
import fcntl
import hashlib
import json
import os
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from datakit.errors import DownloadError, StorageError
from datakit.web import downloads, own, part
from datakit.web.downloads import bring, check_unedited, download, edited_hash, parse
from datakit.web.hosts import Hosts
from datakit.web.own import OwnFile
from datakit.web.sidecars import sweep

BODY = bytes(range(256)) * 2000
WEB = "https://example.org/a.tar"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "BACKOFF_S", 0.0)
    monkeypatch.setattr(own, "PIECE_BYTES", 10_000)
    monkeypatch.setattr(own, "_seen", {})
    monkeypatch.setattr(own, "SETTLED_S", 0.0)
    path = tmp_path / "mine.tar"
    path.write_bytes(BODY)
    return path


@pytest.fixture
def hashed(monkeypatch):
    """How often a file was read to be hashed."""
    times = []
    monkeypatch.setattr(own, "_sha256_of", lambda *args, real=own._sha256_of: times.append(1) or real(*args))
    return times


def get(address, tmp_path, **more):
    return download(address, tmp_path / "downloads", hosts=Hosts(), **more)


def place(address, tmp_path):
    return tmp_path / "downloads" / parse(address).folder


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if not path.is_dir())


def test_a_file_is_sha256_of_while_it_is_copied_and_not_again(mine, tmp_path, hashed):
    told = []
    done = get(mine.as_uri(), tmp_path, tell=lambda *args: told.append(args))
    again = get(mine.as_uri(), tmp_path)

    assert done == again
    assert done.path.read_bytes() == BODY
    assert done.sha256 == hashlib.sha256(BODY).hexdigest()
    assert (told[0], told[-1]) == ((0, len(BODY)), (len(BODY), len(BODY)))
    assert edited_hash(mine.as_uri(), tmp_path / "downloads") is None
    assert hashed == []
    assert files(tmp_path / "downloads") == [".mine.tar.source.json", "mine.tar", "mine.tar.download.json"]


def test_a_file_in_place_is_sha256_of_once_and_again_when_its_stamps_change(mine, tmp_path, hashed):
    done = get(mine.as_uri(), tmp_path, in_place=True)
    for _ in range(3):
        assert get(mine.as_uri(), tmp_path, in_place=True) == done
    os.utime(mine)
    for _ in range(3):
        assert edited_hash(mine.as_uri(), tmp_path / "downloads") is None

    assert done.path.is_symlink()
    assert len(hashed) == 2


def test_stamps_of_a_moment_ago_are_not_trusted(mine, tmp_path, hashed, monkeypatch):
    monkeypatch.setattr(own, "SETTLED_S", 1e6)

    get(mine.as_uri(), tmp_path, in_place=True)
    get(mine.as_uri(), tmp_path, in_place=True)

    assert len(hashed) == 2


def test_a_root_that_can_only_be_read_hashes_once_in_a_process(mine, tmp_path, hashed, monkeypatch):
    def refused(path, data):
        raise StorageError("no permission to write")

    get(mine.as_uri(), tmp_path)
    os.utime(mine)
    monkeypatch.setattr(own, "publish_file", refused)

    for _ in range(3):
        assert edited_hash(mine.as_uri(), tmp_path / "downloads") is None

    assert len(hashed) == 1


def test_what_was_linked_is_copied_where_a_copy_is_due_and_a_copy_is_good_for_both(mine, tmp_path):
    linked = get(mine.as_uri(), tmp_path, in_place=True).path.is_symlink()
    copied = get(mine.as_uri(), tmp_path).path.is_symlink()
    kept = get(mine.as_uri(), tmp_path, in_place=True).path.is_symlink()

    assert (linked, copied, kept) == (True, False, False)
    assert mine.read_bytes() == BODY


def written_while_read(monkeypatch, path, times):
    """Lets somebody write to a file each of the first times that it is read to its end."""
    left = [BODY[::-1], BODY] * times
    real = OwnFile._stamps

    def stamps(self):
        if len(left) > times:
            path.write_bytes(left.pop())
        return real(self)

    monkeypatch.setattr(OwnFile, "_stamps", stamps)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_file_that_is_written_to_while_it_is_read_is_read_again(mine, tmp_path, monkeypatch, in_place):
    written_while_read(monkeypatch, mine, 1)

    done = get(mine.as_uri(), tmp_path, in_place=in_place)

    assert done.path.read_bytes() == mine.read_bytes()
    assert done.sha256 == hashlib.sha256(mine.read_bytes()).hexdigest()


@pytest.mark.parametrize("in_place", [False, True])
def test_a_file_that_is_always_written_to_is_told(mine, tmp_path, monkeypatch, in_place):
    written_while_read(monkeypatch, mine, 100)

    with pytest.raises(DownloadError, match=r"written to"):
        get(mine.as_uri(), tmp_path, in_place=in_place)

    assert "mine.tar" not in files(tmp_path / "downloads")


def test_a_copy_that_was_killed_goes_on_unless_the_file_has_changed(mine, tmp_path):
    def interrupt(done, total):
        if done > len(BODY) // 2:
            raise KeyboardInterrupt

    told = []
    with pytest.raises(KeyboardInterrupt):
        get(mine.as_uri(), tmp_path, tell=interrupt)
    same = get(mine.as_uri(), tmp_path, tell=lambda *args: told.append(args[0]))
    mine.write_bytes(BODY * 2)
    with pytest.raises(KeyboardInterrupt):
        get(mine.as_uri(), tmp_path, tell=interrupt)
    mine.write_bytes(BODY[::-1])
    other = get(mine.as_uri(), tmp_path, tell=lambda *args: told.append(args[0]))

    assert min(told[: told.index(len(BODY))]) > len(BODY) // 2
    assert same.sha256 == hashlib.sha256(BODY).hexdigest()
    assert other.path.read_bytes() == BODY[::-1]
    assert other.sha256 == hashlib.sha256(BODY[::-1]).hexdigest()


def test_a_file_system_that_can_share_blocks_is_let_to(mine, tmp_path, monkeypatch):
    def shares(into, request, file):
        assert request == own.FICLONE
        os.pwrite(into, os.pread(file, len(BODY), 0), 0)

    written = []
    monkeypatch.setattr(own.fcntl, "ioctl", shares)
    monkeypatch.setattr(part.os, "write", lambda *args: written.append(args))

    done = get(mine.as_uri(), tmp_path)

    assert done.path.read_bytes() == BODY
    assert done.sha256 == hashlib.sha256(BODY).hexdigest()
    assert written == []


def test_a_file_that_may_not_be_read_or_is_gone_is_told(mine, tmp_path, monkeypatch):
    def forbidden(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "no")

    with pytest.raises(DownloadError, match=r"there is no file '.*other\.tar'"):
        get((tmp_path / "other.tar").as_uri(), tmp_path)
    monkeypatch.setattr(type(mine), "open", forbidden)
    with pytest.raises(DownloadError, match="permissions"):
        get(mine.as_uri(), tmp_path, in_place=True)


def test_a_link_whose_file_was_edited_or_is_gone_is_not_read_on(mine, tmp_path):
    path = get(mine.as_uri(), tmp_path, in_place=True).path
    check_unedited(path)

    mine.write_bytes(BODY[::-1])
    with pytest.raises(Exception, match="was edited while it was read"):
        check_unedited(path)
    mine.unlink()
    with pytest.raises(DownloadError, match="no file"):
        check_unedited(path)


def good_before(tmp_path):
    path = place(WEB, tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"good")
    downloads.adopt(path, WEB)
    return path


def test_adopting_keeps_a_good_file_until_the_new_one_is_whole(mine, tmp_path, monkeypatch):
    path = good_before(tmp_path)
    monkeypatch.setattr(OwnFile, "is_on_same_disk", lambda self: False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageError, match="412,000 bytes more are needed"):
            bring(mine, WEB, tmp_path / "downloads")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept = get(WEB, tmp_path)
    bring(mine, WEB, tmp_path / "downloads")

    assert kept.size_bytes == 4
    assert path.read_bytes() == BODY
    assert files(path.parent) == ["a.tar", "a.tar.download.json"]


@pytest.mark.parametrize("near", [True, False])
@pytest.mark.parametrize("cut_at", range(6))
def test_adopting_that_is_killed_at_a_rename_leaves_the_old_file_or_the_new_one(
    mine, tmp_path, monkeypatch, near, cut_at
):
    """Both have one size, so that only their hash tells them apart."""
    path = place(WEB, tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY[::-1])
    downloads.adopt(path, WEB)
    monkeypatch.setattr(OwnFile, "is_on_same_disk", lambda self: near)
    rename, left = type(path).replace, [cut_at]

    def killed(self, target):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(type(path), "replace", killed)
    with suppress(KeyboardInterrupt):
        bring(mine, WEB, tmp_path / "downloads")
    monkeypatch.setattr(type(path), "replace", rename)
    done = get(WEB, tmp_path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    bring(mine, WEB, tmp_path / "downloads")

    assert done.sha256 == found
    assert path.read_bytes() == mine.read_bytes() == BODY
    assert not [name for name in files(path.parent) if "part" in name or name.endswith(".link")]


def test_adopting_what_is_linked_already_links_it_again(mine, tmp_path):
    first = bring(mine, WEB, tmp_path / "downloads")
    again = bring(first.path, WEB, tmp_path / "downloads")

    assert first == again
    assert first.path.readlink() == mine
    assert json.loads(first.path.with_name("a.tar.download.json").read_bytes())["url"] == WEB


TAKES_OUT = """
import pathlib, sys
from datakit.storage.store import temporary_file
with temporary_file(pathlib.Path(sys.argv[1]), suffix=".json") as (raw, path):
    raw.write(b"x" * 1000)
    print(path, flush=True)
    sys.stdin.read()
"""


def test_what_a_kill_leaves_beside_downloads_is_swept_and_what_is_held_is_not(mine, tmp_path):
    path = good_before(tmp_path)
    folder = path.parent
    for name in ("a.tar.part", "a.tar.part.json", ".a.tar.9.adopted", ".b.tar.9.adopted", "goes-on.tar.part"):
        (folder / name).write_bytes(b"x")
    (folder / ".b.tar.link").symlink_to(mine)
    (folder / ".c.tar.link").symlink_to(mine)
    held = os.open(folder / "c.tar.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    command = [sys.executable, "-c", TAKES_OUT, str(path)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as killed,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as lives,
    ):
        gone, there = (Path(one.stdout.readline().strip()) for one in (killed, lives))
        killed.kill()
        killed.wait()

        sweep(folder)

        left = files(folder)
        assert (gone.exists(), there.exists()) == (False, True)
        lives.communicate("")
    os.close(held)

    assert set(left) == {*(".c.tar.link", "a.tar", "a.tar.download.json", "c.tar.lock", "goes-on.tar.part", there.name)}
    assert not there.exists()
    assert mine.read_bytes() == BODY


def test_a_download_that_begins_sweeps_its_folder(mine, tmp_path):
    folder = place(mine.as_uri(), tmp_path).parent
    folder.mkdir(parents=True)
    (folder / ".mine.tar.9.adopted").write_bytes(b"half")

    get(mine.as_uri(), tmp_path)

    assert files(folder) == [".mine.tar.source.json", "mine.tar", "mine.tar.download.json"]


def test_what_came_of_another_revision_is_found(tmp_path):
    for revision in ("main", "abc"):
        path = place(f"hub://datasets/o/r@{revision}/d/a.zip", tmp_path)
        path.parent.mkdir(parents=True)
        for name in ("a.zip.part", "a.zip.part.json"):
            (path.parent / name).write_bytes(b"{}")

    found = downloads.abandoned_parts("hub://datasets/o/r@abc/d/a.zip", tmp_path / "downloads")

    assert [path.relative_to(tmp_path / "downloads").as_posix() for path in found] == [
        "huggingface.co/datasets/o/r/main/d/a.zip.part",
        "huggingface.co/datasets/o/r/main/d/a.zip.part.json",
    ]
    assert downloads.abandoned_parts(WEB, tmp_path) == []


def test_where_there_are_no_links_a_file_is_copied(mine, tmp_path, monkeypatch):
    def refused(self, target):
        raise PermissionError(errno.EPERM, "exFAT has none")

    monkeypatch.setattr(type(mine), "symlink_to", refused)

    done = get(mine.as_uri(), tmp_path, in_place=True)

    assert (done.path.is_symlink(), done.path.read_bytes()) == (False, BODY)
    assert get(mine.as_uri(), tmp_path, in_place=True) == done
