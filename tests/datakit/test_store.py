import subprocess
import sys

import pytest
import xxhash

from datakit.errors import StorageError
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


def test_any_fsspec_url_is_a_root():
    store = Store("memory://datakit-test")

    store.write("a/b.bin", b"hello")

    assert store.names("a") == ["b.bin"]
    assert store.read("a/b.bin") == b"hello"
    assert store.read("a/c.bin") is None
    assert store.size("a/b.bin") == 5
    store.remove_folder("a")
    assert store.names("a") == []
