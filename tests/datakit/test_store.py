import errno
import fcntl
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import xxhash

from datakit.errors import StorageError, UsageError
from datakit.storage import locks
from datakit.storage import store as store_module
from datakit.storage.store import Store, file_lock


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    store = Store(str(tmp_path))

    with pytest.raises(RuntimeError), store.publish("a/b.bin") as sink:
        sink.write(b"half")
        raise RuntimeError("cut")

    assert store.names("a") == []
    assert list((tmp_path / "a").iterdir()) == []


def test_what_is_published_has_the_hash_and_size_that_is_told(tmp_path):
    store = Store(str(tmp_path))

    written = store.write("a.bin", b"hello")

    assert store.read("a.bin") == b"hello"
    assert (written.size_bytes, written.xxh3) == (5, xxhash.xxh3_128(b"hello").hexdigest())


def test_a_process_killed_while_writing_leaves_nothing_that_counts_and_is_swept_up(tmp_path):
    code = (
        "import os, sys\nfrom datakit.storage.store import Store\n"
        "with Store(sys.argv[1]).publish('x/y.bin') as sink:\n"
        "    sink.write(b'a' * 3_000_000)\n    os.kill(os.getpid(), 9)\n"
    )

    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    store = Store(str(tmp_path))

    assert done.returncode == -9
    assert store.names("x") == []
    assert len(list((tmp_path / "x").iterdir())) == 1
    store.sweep("x")
    assert list((tmp_path / "x").iterdir()) == []


def test_a_full_disk_is_one_clear_error_and_what_was_there_stays(tmp_path):
    code = (
        "import resource, sys\nfrom datakit.storage.store import Store\n"
        "from datakit.errors import StorageError\n"
        "store = Store(sys.argv[1])\n"
        "store.write('small', b'kept')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try:\n    store.write('big', bytes(4 << 20))\n"
        "except StorageError as e:\n    print(e)\n"
        "print(store.names(''), store.read('small'))\n"
    )

    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)

    assert "no space left" in done.stdout
    assert done.stdout.endswith("['small'] b'kept'\n")
    assert [p.name for p in tmp_path.iterdir()] == ["small"]


def test_a_root_that_is_a_file_is_refused_with_a_way_on(tmp_path):
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(StorageError, match="--root"):
        Store(str(tmp_path / "file")).write("a", b"")


def test_a_root_without_permission_is_refused_with_a_way_on():
    with pytest.raises(StorageError, match=r"--root|can't use"):
        Store("/proc/datakit").write("a", b"")


def test_a_place_in_an_object_store_is_a_root(bucket):
    store = Store("s3://bucket/datakit-test")

    store.check()
    store.write("a/b.bin", b"hello")

    assert store.names("a") == ["b.bin"]
    assert store.sizes("a") == {"b.bin": 5}
    assert store.read("a/b.bin") == b"hello"
    assert store.read("a/c.bin") is None
    assert store.size("a/b.bin") == 5
    with store.open("a/b.bin") as file:
        assert (file.seek(1), file.read(3), file.tell(), file.read()) == (1, b"ell", 4, b"o")
    assert pickle.loads(pickle.dumps(store)).root == store.root  # noqa: S301
    store.remove_folder("a")
    assert store.names("a") == []


def writer(folder, body="sys.stdin.read()"):
    """A process that writes a file, says so, and goes on with `body` before the file is published."""
    code = (
        "import sys\nfrom datakit.storage.store import Store\n"
        f"with Store({str(folder)!r}).publish('y.bin') as sink:\n"
        f"    sink.write(b'a' * 300_000)\n    print('here', flush=True)\n    {body}\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_what_another_process_is_writing_isn_t_swept_though_it_seems_dead(tmp_path, monkeypatch):
    with writer(tmp_path) as other:
        assert other.stdout.readline() == "here\n"
        there = Path.exists  # as in another container with this host name, where no process of ours is seen
        monkeypatch.setattr(Path, "exists", lambda self: self.parts[1] != "proc" and there(self))

        Store(str(tmp_path)).sweep("")
        other.communicate()

    assert other.returncode == 0
    assert Store(str(tmp_path)).names("") == ["y.bin"]


def test_two_containers_of_one_host_name_leave_each_other_s_files_alone(tmp_path):
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user can't have a process namespace")
    sweeps = "import sys; from datakit.storage.store import Store; Store(sys.argv[1]).sweep('')"

    with writer(tmp_path) as other:
        assert other.stdout.readline() == "here\n"
        subprocess.run([*alone, sys.executable, "-c", sweeps, str(tmp_path)], check=True)
        other.communicate()

    assert Store(str(tmp_path)).names("") == ["y.bin"]


@pytest.mark.parametrize(("host", "age_s", "swept"), [("other", 0, False), ("other", 90_000, True), ("ours", 0, True)])
def test_a_dead_temporary_of_another_host_is_swept_after_a_day(tmp_path, host, age_s, swept):
    name = store_module._HOST if host == "ours" else "other-host"
    left = tmp_path / f".y.bin.{name}~4194303-0123abcd.tmp"
    left.write_bytes(b"half")
    os.utime(left, (time.time() - age_s,) * 2)

    Store(str(tmp_path)).sweep("")

    assert left.exists() is not swept


def test_without_locks_a_temporary_is_swept_after_a_day_and_what_is_guarded_goes_on(tmp_path, monkeypatch, caplog):
    def refuses(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuses)
    locks._warn_no_locks.cache_clear()
    young, old = (tmp_path / f".y.bin.other~1-0123abc{n}.tmp" for n in "de")
    for left in (young, old):
        left.write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)

    store = Store(str(tmp_path))
    store.write("x.bin", b"whole")
    store.sweep("")
    for _ in range(2):
        with store.lock(".x.lock") as held:
            assert held

    assert store.read("x.bin") == b"whole"
    assert (young.exists(), old.exists()) == (True, False)
    assert caplog.text.count("without locks") == 1


def test_all_that_kills_left_below_a_folder_is_swept_and_nothing_else(tmp_path):
    ours = store_module._HOST
    kept = ["a/b/.hidden", "a/.x.lock", "a/tmp", f"a/x.{ours}~1-0123abcd.tmp", "a/.fetch.gone/x"]
    left = [f"a/b/c/.x.{ours}~4194303-0123abcd.tmp", f"a/.x.zip.inside.{ours}~4194303-0123abcd.tmp.jsonl"]
    for name in [*kept, *left, "a/.fetch.0123abcd.gone/log/x.parquet"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    Store(str(tmp_path)).sweep("a")

    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(kept)


def test_a_file_that_is_put_into_a_bucket_leaves_nothing_in_the_temporary_folder_after_a_kill(tmp_path):
    code = (
        "import os, buckets\nfrom datakit.storage.store import Store\nbuckets.opened('x')\n"
        "with Store('s3://x').publish('y.bin') as sink:\n"
        "    sink.write(b'a' * 3_000_000)\n    os.kill(os.getpid(), 9)\n"
    )

    tests = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": tests}
    done = subprocess.run([sys.executable, "-c", code], env=env, check=False)

    assert done.returncode == -9
    assert list(tmp_path.iterdir()) == []


def test_a_lock_lets_readers_share_and_keeps_a_writer_out(tmp_path):
    path = tmp_path / ".00001.lock"

    readers = file_lock(path, shared=True), file_lock(path, shared=True, wait=False)
    with readers[0] as first, readers[1] as second, file_lock(path, wait=False) as alone:
        assert (first, second, alone) == (True, True, False)
    with file_lock(path, wait=False) as alone, file_lock(path, shared=True, wait=False) as reader:
        assert (alone, reader) == (True, False)


def test_a_lock_whose_file_was_removed_by_the_one_who_had_it_is_taken_anew(tmp_path):
    path = tmp_path / ".00001.lock"
    told = []

    with ThreadPoolExecutor(1) as pool:
        waits = threading.Event()
        with file_lock(path):

            def second():
                with file_lock(path, on_wait=waits.set), file_lock(path, wait=False) as third:
                    told.append(third)

            future = pool.submit(second)
            assert waits.wait(60)
            path.unlink()
        future.result(60)

    assert told == [False]


@pytest.mark.parametrize(
    "root",
    ["http://example.org/x", "https://example.org", "memory://x", "ftp://h/x", "nonsense://x", "s3://", "s3:///", "S3://b",
     "simplecache::s3://b/x", "github://a:b@/", "zip://x::s3://b", "data\0x"],
)  # fmt: skip
def test_a_root_that_cannot_keep_files_is_refused_with_what_is_possible(root):
    with pytest.raises(UsageError, match=r"s3://BUCKET|no name of a folder"):
        Store(root)


def test_a_bucket_that_is_not_there_is_one_clear_error(bucket):
    store = Store("s3://nobody/root")

    with pytest.raises(StorageError, match=r"there is no bucket 'nobody'. Make it first"):
        store.check()
    with pytest.raises(StorageError, match="isn't there"):
        store.write("a", b"")


class ClientError(Exception):
    """As botocore raises it: no OSError."""


ClientError.__module__ = "botocore.exceptions"


@pytest.mark.parametrize(
    "error",
    [
        OSError("An error occurred (503) when calling the operation: Slow Down"),
        PermissionError("Access Denied"),
        ClientError("An error occurred (InternalError)"),
        TimeoutError(),
        ConnectionResetError(104, "Connection reset by peer"),
        FileNotFoundError("The specified bucket does not exist"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_bucket_refuses_is_one_clear_error(bucket, error):
    store = Store("s3://bucket/root")
    store.write("a", b"hello")
    file = store.open("a")

    def unwell(method, path):
        raise error

    bucket.unwell = unwell

    for call in (
        lambda: store.write("b", b""),
        lambda: store.open("a"),
        lambda: file.read(2),
        *((store.check,) if not isinstance(error, PermissionError | FileNotFoundError) else ()),
        *(() if isinstance(error, FileNotFoundError) else (lambda: store.read("a"), lambda: store.sizes(""))),
        *(() if isinstance(error, FileNotFoundError) else (lambda: store.size("a"), lambda: store.remove("a"))),
    ):
        with pytest.raises(StorageError, match="s3://bucket/root"):
            call()


def test_an_answer_of_a_bucket_that_is_cut_short_is_not_taken_for_the_file(bucket):
    store = Store("s3://bucket/root")
    store.write("a", bytes(1000))
    bucket.cut = 100

    with store.open("a") as file, pytest.raises(StorageError, match="100 of 1000 bytes came"):
        file.read()
    with store.open("a") as file:
        assert file.read(50) == bytes(50)
        with pytest.raises(StorageError, match="100 of 500 bytes came from byte 50"):
            file.readinto(bytearray(500))


def test_a_defect_of_ours_is_not_taken_for_the_bucket_s(bucket):
    def unwell(method, path):
        raise KeyError("ours")

    bucket.unwell = unwell

    with pytest.raises(KeyError):
        Store("s3://bucket/root").read("a")


def test_a_file_that_may_not_be_read_is_one_clear_error(tmp_path):
    code = (
        "import os, sys\nfrom datakit.errors import StorageError\nfrom datakit.storage.store import Store\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "for call in (lambda s: s.read('a/b'), lambda s: s.open('a/b'), lambda s: s.names('c'),\n"
        "             lambda s: s.sizes('c'), lambda s: s.size('c/d')):\n"
        "    try: call(Store(sys.argv[1]))\n"
        "    except StorageError as e: print(e)\n"
    )
    for folder in ("a", "c"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a/b").write_bytes(b"secret")
    (tmp_path / "a/b").chmod(0)
    (tmp_path / "c").chmod(0)
    above = tmp_path
    while above.stat().st_uid == os.getuid() and above != above.parent and above.name != "tmp":
        above.chmod(above.stat().st_mode | 0o055)
        above = above.parent

    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    (tmp_path / "c").chmod(0o700)

    assert done.stdout.count("no permission to") == 5, done.stdout
