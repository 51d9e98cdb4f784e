import os
import pickle
import subprocess
import sys

import pytest
import xxhash

from datakit.errors import StorageError, UsageError
from datakit.store import Store


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
        "import os, sys\nfrom datakit.store import Store\n"
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
        "import resource, sys\nfrom datakit.store import Store\n"
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


def test_a_root_without_permission_is_refused_with_a_way_on(tmp_path):
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
        with pytest.raises(StorageError, match="100 of 500 bytes came from place 50"):
            file.readinto(bytearray(500))


def test_a_defect_of_ours_is_not_taken_for_the_bucket_s(bucket):
    def unwell(method, path):
        raise KeyError("ours")

    bucket.unwell = unwell

    with pytest.raises(KeyError):
        Store("s3://bucket/root").read("a")


def test_a_file_that_may_not_be_read_is_one_clear_error(tmp_path):
    code = (
        "import os, sys\nfrom datakit.errors import StorageError\nfrom datakit.store import Store\n"
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
