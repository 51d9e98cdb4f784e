"""Walks a tar by its headers: GNU, pax, ustar and old ones; sparse files, links and devices are left out.

A tar that ends without its end mark raises ArchiveError, so that half a download never passes for one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from datakit.archives.members import STORED, ArchiveFile, Member, clean_name

BLOCK = 512
_MAX_NAME_BYTES = 1 << 20  # of a GNU long name or a pax header


def is_header(block: bytes) -> bool:
    """Whether a block's checksum is its own; old tars summed signed bytes."""
    try:
        stated = int(block[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    summed = block[:148] + b" " * 8 + block[156:].rstrip(b"\0")
    total = sum(summed)
    return stated == total or stated == total - 256 * sum(b > 127 for b in summed)


def _number(archive: ArchiveFile, field: bytes, at: int) -> int:
    if field[0] == 0x80:  # GNU: base 256
        return int.from_bytes(field[1:])
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        archive.fail(at, f"a size that is no number, {field!r}")


def tar_members(archive: ArchiveFile, skipped: Counter[str]) -> Iterator[Member]:
    at, seen, ended = 0, 0, False
    shared: dict[bytes, bytes] = {}
    given: dict[bytes, bytes] = {}
    while True:
        block = archive.at(at, BLOCK)
        if len(block) < BLOCK and not (ended and not any(block)):
            archive.fail(archive.size, f"cut short, the tar has no end mark ({seen} members before byte {at})")
        if not any(block):
            ended = True
            at = _after_zeros(archive, at)
            if at >= archive.size:
                break
            continue
        if not is_header(block):
            if not ended:
                archive.fail(at, f"damaged, not a tar header ({seen} members before it)")
            skipped["after_end_mark"] += 1
            break
        ended = False  # tars joined by `cat` go on after the first one's end mark
        seen += 1
        kind = block[156:157]
        size = _number(archive, block[124:136], at)
        if kind in b"123456":
            size = 0  # links, devices and folders have no data, whatever they say
        elif b"size" in given or b"size" in shared:
            size = _pax_size(archive, given.get(b"size", shared.get(b"size", b"")), at)
        data_at = at + BLOCK
        more = kind == b"S" and block[482]
        while more:  # the map of a sparse file goes on
            more = (archive.at(data_at, BLOCK) or bytes(BLOCK))[504]
            data_at += BLOCK
        end = data_at + size
        at = end + -size % BLOCK
        if at > archive.size:
            archive.fail(archive.size, f"cut short, member {seen} needs bytes up to {at}")
        if kind in b"LKxXg":
            if size > _MAX_NAME_BYTES:
                archive.fail(data_at, f"a tar extension header of {size} bytes")
            body = archive.at(data_at, size)
            if kind == b"L":
                given[b"path"] = body.rstrip(b"\0")
            elif kind != b"K":
                (shared if kind == b"g" else given).update(_pax(archive, body, data_at))
            continue
        raw = block[:100].partition(b"\0")[0]
        prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
        raw = given.get(b"path", prefix + b"/" + raw if prefix else raw)
        sparse = kind == b"S" or any(key.startswith(b"GNU.sparse") for key in given)
        given = {}
        if kind == b"5" or (kind == b"\0" and raw.endswith(b"/")):
            continue
        if kind not in b"07\0" or sparse:
            skipped["sparse" if sparse else _TAR_KINDS.get(kind, "special")] += 1
        elif (name := clean_name(raw, skipped)) is not None:
            yield Member(name, data_at, size, size, STORED)
    if not seen:
        archive.fail(0, "nothing but zeros: the tar was never written")


_TAR_KINDS = {b"1": "hardlink", b"2": "symlink", b"3": "device", b"4": "device", b"6": "device"}


def _after_zeros(archive: ArchiveFile, at: int) -> int:
    """The first block from `at` on that isn't all zeros, or the end of the file."""
    while chunk := archive.at(at, 1 << 20):
        if left := chunk.lstrip(b"\0"):
            return at + (len(chunk) - len(left)) // BLOCK * BLOCK
        at += len(chunk)
    return archive.size


def _pax(archive: ArchiveFile, body: bytes, at: int) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of the records `LENGTH KEY=VALUE\\n` of a pax header."""
    place = 0
    while place < len(body) and body[place] != 0:
        digits, space, _ = body[place : place + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = body[place + len(digits) + 1 : place + length].partition(b"=")
        if not space or not equals or length > len(body) - place or not value.endswith(b"\n"):
            archive.fail(at + place, "a damaged pax header")
        yield key, value[:-1]
        place += length


def _pax_size(archive: ArchiveFile, value: bytes, at: int) -> int:
    if not value.isdigit() or len(value) > 19:
        archive.fail(at, f"a pax size that is no number, {value[:20]!r}")
    return int(value)
