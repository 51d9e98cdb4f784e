"""Values that are kept with their fingerprint: whole or not at all, in the form that earlier versions wrote."""

from dataclasses import dataclass

import msgspec
import pytest

from datakit.storage import sealed
from datakit.storage.store import Store

# As the first version wrote it, which had no module for it.
WRITTEN = (
    '{"plan":{"hub":"o/r","commit":"c0","glob":"d/*.parquet","files":[{"path":"d/é.parquet","size_bytes":700,"etag":"e1",'
    '"rows":31,"footer_bytes":9}]},"digest":"ac705dfa29736d6f6b886485e895919ac8b02bb9fc1167b8b8b202d5a719870e"}'
).encode()


@dataclass(frozen=True)
class File:
    path: str
    size_bytes: int
    etag: str
    rows: int
    footer_bytes: int


@dataclass(frozen=True)
class Plan:
    hub: str
    commit: str
    glob: str
    files: list[File]


PLAN = Plan("o/r", "c0", "d/*.parquet", [File("d/é.parquet", 700, "e1", 31, 9)])


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def test_what_an_earlier_version_wrote_is_read_and_written_again_to_the_same_bytes(store):
    store.write("old.json", WRITTEN)
    sealed.write(store, "new.json", "plan", PLAN)

    assert sealed.read(store, "old.json", "plan", Plan) == PLAN
    assert store.read("new.json") == WRITTEN


def test_structs_and_dictionaries_come_back_as_they_were(store):
    class Kept(msgspec.Struct, frozen=True):
        sha256: str
        chunks: tuple[tuple[int, int], ...]

    kept = {"b": Kept("0", ((1, 2),)), "a": Kept("1", ())}
    sealed.write(store, "plan.json", "files", kept)

    assert sealed.read(store, "plan.json", "files", dict[str, Kept]) == kept


def test_no_damaged_byte_is_read_as_another_value(store):
    read = []
    for at in range(len(WRITTEN)):
        for other in (WRITTEN[at] ^ 1, WRITTEN[at] ^ 0x80, ord(" ")):
            data = WRITTEN[:at] + bytes([other]) + WRITTEN[at + 1 :]
            store.write("plan.json", data)
            read += [sealed.read(store, "plan.json", "plan", Plan)] if data != WRITTEN else []

    assert read == [None] * len(read)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b'{"plan":{}}',
        WRITTEN[:-1],
        WRITTEN.replace(b"31", b"32"),
        WRITTEN.replace(b'"plan"', b'"files"'),
        b'{"plan":{"hub":"o"},"digest":7}',
        b'\xff{"plan":{},"digest":""}',
    ],
)
def test_what_is_not_such_a_value_is_none(store, data):
    store.write("plan.json", data)

    assert sealed.read(store, "plan.json", "plan", Plan) is None
    assert sealed.read(store, "gone.json", "plan", Plan) is None


def test_a_file_is_known_to_be_whole_without_knowing_what_is_in_it():
    assert sealed.is_whole(WRITTEN)
    assert sealed.is_whole(WRITTEN.replace(b'"plan"', b'"files"'))
    broken = [b"", b"[]", b"{}", b'{"digest":""}', WRITTEN[:-1], WRITTEN.replace(b"31", b"32")]
    assert not any(sealed.is_whole(data) for data in [*broken, WRITTEN.replace(b"{", b'{"more":1,', 1)])
