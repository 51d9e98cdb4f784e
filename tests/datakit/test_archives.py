from __future__ import annotations

import gzip
import io
import pickle
import random
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datakit.errors import ArchiveError
from datakit.formats import archives
from datakit.formats.archives import Index, Member, index, index_path, members, read, write_index

FILES = {
    "a/1.jpg": b"one" * 1000,
    "a/2.PNG": b"",
    "b/1.jpg": random.Random(0).randbytes(3000),
    "b/é漢.txt": b"text",
    "c/" + "long" * 60 + "/" + "name" * 20 + ".jpg": b"deep",
}


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, **options: object) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method, **options) as archive:
        archive.mkdir("empty")
        for name, data in files.items():
            info = zipfile.ZipInfo(name)  # not `name`, which would put today's date in
            archive.writestr(info, data, method)
    return out.getvalue()


def tarred(files: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        folder = tarfile.TarInfo("empty")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def tar_of(*infos: tarfile.TarInfo, form: int = tarfile.GNU_FORMAT) -> bytes:
    return b"".join(i.tobuf(form) + bytes(i.size + -i.size % 512) for i in infos) + bytes(1024)


def entry(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **more: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    for key, value in more.items():
        setattr(info, key, value)
    return info


def written(folder: Path, data: bytes, name: str = "archive") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def contents(path: Path, skipped: Counter[str] | None = None) -> dict[str, bytes]:
    with path.open("rb") as file:
        return {m.name: read(file, m) for m in members(path, skipped)}


def skips(folder: Path, data: bytes) -> tuple[dict[str, int], list[str]]:
    """What was skipped, by reason, and the names that were not."""
    skipped: Counter[str] = Counter()
    names = [m.name for m in members(written(folder, data), skipped)]
    return dict(skipped), names


def fault(folder: Path, data: bytes) -> str:
    path = written(folder, data)
    with pytest.raises(ArchiveError) as caught:
        list(members(path))
    return str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        zipped(FILES),
        zipped(FILES, zipfile.ZIP_STORED),
        b"#!/bin/sh\n" * 100 + zipped(FILES),
        zipped(FILES)[:-2] + b"\x05\0hello",
        tarred(FILES, tarfile.GNU_FORMAT),
        tarred(FILES, tarfile.PAX_FORMAT),
    ],
)
def test_every_file_of_an_archive_is_read(tmp_path, data):
    skipped: Counter[str] = Counter()

    found = contents(written(tmp_path, data), skipped)

    assert found == FILES
    assert not skipped


def test_old_and_ustar_headers_are_read(tmp_path):
    name = "p" * 120 + "/" + "n" * 80
    ustar = tarred({name: b"x"}, tarfile.USTAR_FORMAT)
    old = entry("v7.jpg").tobuf(tarfile.USTAR_FORMAT)
    old = old[:148] + b" " * 8 + b"\0" + bytes(355)
    old = old[:148] + b"%06o\0 " % sum(old) + old[156:]

    assert contents(written(tmp_path, ustar)) == {name: b"x"}
    assert contents(written(tmp_path, old + bytes(1024))) == {"v7.jpg": b""}


def test_a_zip_with_64_bit_fields_is_read(tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in FILES.items():
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(data)
    plain = out.getvalue()
    at = plain.rindex(b"PK\5\6")
    count, size, offset = struct.unpack_from("<HII", plain, at + 10)
    record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, at, 1)
    end = struct.pack("<4s4HIIH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)

    assert contents(written(tmp_path, plain[:at] + record + locator + end)) == FILES
    assert contents(written(tmp_path, b"before" + plain[:at] + record + locator + end)) == FILES


def test_sizes_beyond_32_bits_are_taken_from_the_extra_field(tmp_path):
    plain = zipped({"a": b"12345"}, zipfile.ZIP_STORED)
    at, end = plain.rindex(b"PK\1\2"), plain.rindex(b"PK\5\6")
    one = bytearray(plain[at:end])
    extra = struct.pack("<HHQQQ", 1, 24, 5, 5, struct.unpack_from("<I", one, 42)[0])
    one[20:28], one[30:32], one[42:46] = b"\xff" * 8, struct.pack("<H", len(extra)), b"\xff" * 4
    tail = bytearray(plain[end:])
    tail[12:16] = struct.pack("<I", at - plain.index(b"PK\1\2") + len(one) + len(extra))

    assert contents(written(tmp_path, plain[:at] + one + extra + tail)) == {"a": b"12345"}


def test_names_come_without_a_leading_dot(tmp_path):
    found = contents(written(tmp_path, tarred({"./a/1.jpg": b"1", "b//2.jpg": b"2", "c/./3": b"3"})))

    assert found == {"a/1.jpg": b"1", "b/2.jpg": b"2", "c/3": b"3"}


HOSTILE = ["../up", "a/../../up", "/etc/passwd", "C:\\w.jpg", "c:w.jpg", "a\\b.jpg", "..", ".", "./", "a\nb", "a/\x7f"]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_hostile_names_of_tars_are_skipped_and_counted(tmp_path, form):
    data = tar_of(*(entry(name, size=3) for name in [*HOSTILE, "fine.jpg"]), form=form)

    assert skips(tmp_path, data) == ({"unsafe_name": len(HOSTILE)}, ["fine.jpg"])


def test_hostile_names_of_zips_are_skipped_and_counted(tmp_path):
    hostile = [name for name in HOSTILE if not name.endswith("/")]
    data = zipped({**dict.fromkeys(hostile, b"x"), "nul_here": b"x", "fine.jpg": b"x"}).replace(b"nul_", b"nul\0")

    assert skips(tmp_path, data) == ({"unsafe_name": len(hostile) + 1}, ["fine.jpg"])


def test_names_that_are_not_utf8(tmp_path):
    zip_marked = zipped({"é.jpg": b"x"}).replace("é".encode(), b"\xff\xfe")
    zip_bare = zipped({"zz.jpg": b"x"}).replace(b"zz", b"\x82\x87")
    mac_zip = zipped({"zz.jpg": b"x"}).replace(b"zz", "é".encode())
    tar = tar_of(entry("é.jpg"), entry("ok"))

    assert skips(tmp_path, zip_marked) == ({"name_not_utf8": 1}, [])
    assert skips(tmp_path, zip_bare) == ({}, ["éç.jpg"])
    assert skips(tmp_path, mac_zip) == ({}, ["é.jpg"])
    assert skips(tmp_path, tar) == ({}, ["é.jpg", "ok"])
    latin = entry("é.jpg").tobuf(tarfile.GNU_FORMAT, "latin-1") + bytes(1024)
    assert skips(tmp_path, latin) == ({"name_not_utf8": 1}, [])


def test_links_and_devices_are_never_followed(tmp_path):
    tar = tar_of(
        entry("s", tarfile.SYMTYPE, linkname="/etc/passwd"),
        entry("h", tarfile.LNKTYPE, linkname="../up"),
        entry("c", tarfile.CHRTYPE),
        entry("f", tarfile.FIFOTYPE),
        entry("v", b"V"),
        entry("g", tarfile.GNUTYPE_SPARSE),
        entry("fine", size=700),
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, kind in (("s", stat.S_IFLNK), ("d", stat.S_IFCHR), ("fine", stat.S_IFREG)):
            info = zipfile.ZipInfo(name)
            info.external_attr = (kind | 0o644) << 16
            archive.writestr(info, b"/etc/passwd")

    expected = {"symlink": 1, "hardlink": 1, "device": 2, "special": 1, "sparse": 1}
    assert skips(tmp_path, tar) == (expected, ["fine"])
    assert skips(tmp_path, out.getvalue()) == ({"symlink": 1, "device": 1}, ["fine"])


def patched(data: bytes, at: int, value: bytes, mark: bytes = b"PK\1\2") -> bytes:
    """A zip with other bytes `at` so far behind the last `mark`."""
    place = data.rindex(mark) + at
    return data[:place] + value + data[place + len(value) :]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda z: patched(patched(z, 8, b"\1\0"), 6, b"\1\0", b"PK\3\4"), "encrypted"),
        (lambda z: patched(patched(z, 10, b"\x0c\0"), 8, b"\x0c\0", b"PK\3\4"), "unsupported_method"),
        (lambda z: patched(z, 10, b"\0\0"), "header_disagrees"),
        (lambda z: patched(z, 24, b"\x01"), "header_disagrees"),
        (lambda z: patched(z, 46, b"other"), "header_disagrees"),
        (lambda z: patched(z, 42, b"\xf0\xff\xff\x7f"), "header_disagrees"),
        (lambda z: patched(patched(z, 20, b"\xff\xff\xff\1"), 18, b"\xff\xff\xff\1", b"PK\3\4"), "past_the_end"),
    ],
)
def test_a_zip_entry_that_can_not_be_trusted_is_skipped_and_counted(tmp_path, change, reason):
    data = zipped({"first.jpg": b"fine" * 99, "second.jpg": b"not fine" * 99})

    assert skips(tmp_path, change(data)) == ({reason: 1}, ["first.jpg"])


def test_entries_that_share_their_data_are_skipped(tmp_path):
    data = zipped({"a.jpg": b"x" * 500})
    at, end = data.rindex(b"PK\1\2"), data.rindex(b"PK\5\6")
    folder = data.index(b"PK\1\2")
    twice = data[:end] + data[at:end] + data[end:]
    size = struct.pack("<HHI", 3, 3, end - folder + end - at)

    assert skips(tmp_path, patched(twice, 8, size, b"PK\5\6")) == ({"overlaps": 1}, ["a.jpg"])


def test_of_two_members_with_one_name_the_last_stands(tmp_path):
    path = written(tmp_path, tar_of(entry("a", size=1), entry("b", size=2), entry("./a", size=3)))

    assert write_index(path) == 2
    found = Index.open(index_path(path))
    assert found.find("a").size_bytes == 3
    assert found.skipped == {"duplicate": 1}


def test_a_member_that_inflates_beyond_its_stated_size_is_cut_off(tmp_path):
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = bomb.compress(bytes(50_000_000)) + bomb.flush()
    path = written(tmp_path, data)

    with path.open("rb") as file:
        with pytest.raises(ArchiveError, match="more than 1000 bytes where 1000 are stated"):
            read(file, Member("a", 0, len(data), 1000, 8))
        with pytest.raises(ArchiveError, match="50000000 bytes where 50000001"):
            read(file, Member("a", 0, len(data), 50_000_001, 8))
        with pytest.raises(ArchiveError, match="above the ceiling"):
            read(file, Member("a", 0, len(data), 50_000_000, 8), max_bytes=1 << 20)
        with pytest.raises(ArchiveError, match="checksum differs"):
            read(file, Member("a", 0, 10, 10, 0, crc32=1))
        with pytest.raises(ArchiveError, match="cut short"):
            read(file, Member("a", len(data) - 5, 10, 10, 0))
        with pytest.raises(ArchiveError, match="cut short"):
            read(file, Member("a", 0, len(data) // 2, 50_000_000, 8))
        with pytest.raises(ArchiveError, match="neither stored"):
            read(file, Member("a", 0, 10, 10, 12))
        with pytest.raises(ArchiveError, match="member 'a'"):
            read(file.fileno(), Member("a", 3, 100, 1000, 8))


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_cut_anywhere_before_its_end_mark_is_refused(tmp_path, form):
    whole = tarred({"a": b"x" * 600, "b" * 150: b"y" * 512}, form)
    data_end = len(whole.rstrip(b"\0")) + 511 & ~511
    cuts = {*range(0, data_end + 1, 256), *range(511, data_end, 512), data_end + 100}

    for n in cuts:
        assert "cut short" in fault(tmp_path, whole[:n]), n
        assert n < 512 or f"byte {n}" in fault(tmp_path, whole[:n])
    assert len(contents(written(tmp_path, whole[: data_end + 512]))) == 2


def test_a_zip_cut_anywhere_is_refused(tmp_path):
    whole = zipped(FILES)

    for n in range(0, len(whole), 97):
        assert "cut short" in fault(tmp_path, whole[:n])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cut short, or not an archive"),
        (b"\n<!doctype html><html>", "an HTML page came instead"),
        (b"<html>" + bytes(2000), "an HTML page came instead"),
        (gzip.compress(tarred(FILES)), "gzip can't be read by its index"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(600), "7-Zip"),
        (b"garbage!" * 200, "cut short or not a zip"),
        (bytes(10_240), "nothing but zeros"),
        (tarred({"a": b"x"})[:512] + b"damaged!" * 64 + bytes(1024), "damaged, not a tar header"),
        (patched(zipped(FILES), 10, b"\x09\0", b"PK\5\6"), "that should hold 9"),
        (patched(zipped(FILES), 4, b"\1\0", b"PK\5\6"), "one part of a zip in several"),
        (patched(zipped(FILES), 16, b"\xff\xff\xff\x0f", b"PK\5\6"), "damaged, a directory of"),
        (patched(zipped(FILES), 0, b"XX"), "damaged, not a zip directory entry"),
    ],
)
def test_what_is_no_archive_is_told(tmp_path, data, words):
    assert words in fault(tmp_path, data)


def test_tars_joined_by_cat_are_read_to_the_end(tmp_path):
    joined = tarred({"a": b"1"}) + tarred({"b": b"2"})

    assert contents(written(tmp_path, joined)) == {"a": b"1", "b": b"2"}
    assert skips(tmp_path, tarred({"a": b"1"}) + b"signature" * 100) == ({"after_end_mark": 1}, ["a"])


def test_a_size_of_gigabytes_is_followed(tmp_path):
    path = tmp_path / "sparse.tar"
    large = 9 << 30
    with path.open("wb") as file:
        file.write(entry("large", size=large).tobuf(tarfile.GNU_FORMAT))
        file.seek(512 + large)
        file.write(entry("small", size=3).tobuf(tarfile.GNU_FORMAT) + b"abc" + bytes(509 + 1024))

    assert [(m.name, m.size_bytes) for m in members(path)] == [("large", large), ("small", 3)]
    pax = entry("large", size=large).tobuf(tarfile.PAX_FORMAT)
    assert "cut short" in fault(tmp_path, pax + bytes(1024))


@pytest.mark.parametrize("data", [zipped(FILES), tarred(FILES)])
def test_an_index_finds_members_by_name_stem_and_file_name(tmp_path, data):
    path = written(tmp_path, data)

    count = write_index(path)
    found = Index.open(index_path(path))

    assert count == len(found) == len(FILES)
    assert [m.name for m in found] == sorted(FILES, key=str.encode)
    with path.open("rb") as file:
        assert {name: read(file, found.find(name)) for name in FILES} == FILES
    assert found.find("./a/1.jpg") == found.find("a/1.jpg")
    assert [found.find(n) for n in ("a/1", "a/1.jp", "a/1.jpgx", "", "zzz", "é", "\ud800")] == [None] * 7
    assert found.find_stem("a/2", ()).name == "a/2.PNG"
    assert found.find_stem("a/", ()) is found.find_stem("a", ()) is None
    assert found.find_any_folder("2.PNG").name == "a/2.PNG"
    assert found.find_any_folder("elsewhere/é漢.txt").name == "b/é漢.txt"
    assert found.find_any_folder("1.jpg") is None  # there are two
    assert found.find_any_folder("none.jpg") is None


def test_a_stem_prefers_pictures_and_ignores_longer_names(tmp_path):
    names = ["a.json", "a.PNG", "a.Jpg", "a.b.jpg", "a.d/x.jpg", "ab.jpg", "c.txt", "c.b"]
    path = written(tmp_path, tarred(dict.fromkeys(names, b"")))
    write_index(path)
    found = Index.open(index_path(path))

    assert [found.find_stem(stem, ("jpg", "png")).name for stem in ("a", "a.b", "c", "a.d/x")] == [
        "a.Jpg",
        "a.b.jpg",
        "c.b",
        "a.d/x.jpg",
    ]


def test_an_empty_zip_has_an_empty_index(tmp_path):
    path = written(tmp_path, b"PK\5\6" + bytes(18))

    assert write_index(path, tmp_path / "index") == 0
    found = Index.open(tmp_path / "index")
    assert (len(found), found.find("a"), found.find_stem("a", ()), found.find_any_folder("a")) == (0, None, None, None)


def test_an_index_survives_a_worker_process_and_says_what_was_skipped(tmp_path):
    path = written(tmp_path, tar_of(entry("../up"), entry("a.jpg", size=5)))
    write_index(path)

    found = pickle.loads(pickle.dumps(Index.open(index_path(path))))  # noqa: S301

    assert [m.name for m in found] == ["a.jpg"]
    assert found.skipped == {"unsafe_name": 1}


def test_the_same_archive_gives_the_same_index_bytes(tmp_path):
    path = written(tmp_path, zipped(FILES))
    write_index(path, tmp_path / "one")
    write_index(path, tmp_path / "two")

    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert index(path).num_rows == len(FILES)


def test_what_is_no_index_is_told(tmp_path):
    with pytest.raises(ArchiveError, match="not an archive's index"):
        Index.open(written(tmp_path, b"garbage"))


SEEDS = [
    zipped({"a.jpg": b"x" * 40, "é": b"y"}),
    tarred({"a.jpg": b"x" * 40, "b" * 120: b"y"})[:4096],
    tarred({"é" * 80: b"x"}, tarfile.PAX_FORMAT)[:4096],
]


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_mutated_archives_raise_nothing_but_archive_error(tmp_path, data):
    mutated = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(mutated) - 1)))
        if data.draw(st.integers(0, 5)) == 0:
            del mutated[at:]
        elif mutated:
            mutated[at] = data.draw(st.integers(0, 255))
            block = at // 512 * 512
            if not mutated.startswith(b"PK") and at % 512 < 148 and len(mutated) >= block + 512:
                mutated[block + 148 : block + 156] = b" " * 8
                mutated[block + 148 : block + 156] = b"%06o\0 " % sum(mutated[block : block + 512])
    path = written(tmp_path, bytes(mutated))

    try:
        found = contents(path)
    except ArchiveError as error:
        assert str(error)
    else:
        assert all(not name.startswith("/") for name in found)


@cache
def long_zip(method):
    """A zip with one member of 9 MB, and that member."""
    body = b"".join(b"%d, " % n for n in range(800_000)) + bytes(3_000_000)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        file.writestr("long.json", body)
    return out.getvalue(), body


def long_member(tmp_path, method):
    """A zip with one long member, and where it stands."""
    data, body = long_zip(method)
    path = tmp_path / "long.zip"
    path.write_bytes(data)
    (member,) = archives.members(path)
    return path, member, body


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_long_member_comes_in_pieces_that_are_what_it_is(tmp_path, method):
    path, member, body = long_member(tmp_path, method)

    with path.open("rb") as file:
        found = list(archives.pieces(file, member, max_bytes=len(body)))

    assert b"".join(found) == body
    assert max(map(len, found)) <= 1 << 20


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    "lie",
    [
        {"size_bytes": 7},
        {"size_bytes": 1 << 33},
        {"size_bytes": 9_000_001},
        {"stored_bytes": 5_000},
        {"offset": 10**9},
        {"crc32": 7},
        {"method": 9},
    ],
)
def test_a_long_member_that_isnt_what_is_stated_is_refused(tmp_path, method, lie):
    path, member, body = long_member(tmp_path, method)

    with path.open("rb") as file, pytest.raises(ArchiveError, match=r"long\.json"):
        list(archives.pieces(file, member._replace(**lie), max_bytes=len(body)))
