"""Walks a tar by its headers: GNU, pax, ustar and old ones; sparse files, links and devices are left out.

A tar that ends without its end mark raises ArchiveError, so that half a download never passes for one.
"""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Iterator, Mapping

from datakit.formats.members import STORED, ArchiveFile, Member, clean_name

BLOCK = 512
_MAX_NAME_BYTES = 1 << 20  # of a GNU long name or a pax header


def is_header(block: bytes) -> bool:
    """Whether a block is a header with the right checksum; old tars summed signed bytes."""
    try:
        stated = int(block[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    without_checksum = block[:148] + b" " * 8 + block[156:].rstrip(b"\0")
    total = sum(without_checksum)
    return stated == total or stated == total - 256 * sum(b > 127 for b in without_checksum)


def _number(archive: ArchiveFile, field: bytes, at: int) -> int:
    if field[0] == 0x80:  # GNU: base 256
        return int.from_bytes(field[1:])
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        archive.fail(at, f"a size that is no number, {field!r}")


def _name_in(block: bytes) -> bytes:
    """The name that a header itself has room for: 100 bytes, and a folder of 155 before it in a ustar header."""
    name = block[:100].partition(b"\0")[0]
    folder = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return folder + b"/" + name if folder else name


def _after_header(archive: ArchiveFile, block: bytes, at: int) -> int:
    """Where the data of a member starts: after its header, and after the map if it is a sparse file."""
    at += BLOCK
    more = block[156:157] == b"S" and block[482]
    while more:
        more = (archive.at(at, BLOCK) or bytes(BLOCK))[504]
        at += BLOCK
    return at


def _data_bytes(archive: ArchiveFile, block: bytes, at: int, pax: Mapping[bytes, bytes]) -> int:
    """The length of a member's data: from the pax header before it if there is one, else from its own header."""
    stated = _number(archive, block[124:136], at)
    if block[156:157] in b"123456":
        return 0  # links, devices and folders have no data, whatever they say
    return _pax_size(archive, pax[b"size"], at) if b"size" in pax else stated


def _extension(archive: ArchiveFile, kind: bytes, at: int, size: int) -> dict[bytes, bytes]:
    """The attributes, by pax key, that an extension header gives to the members after it."""
    if size > _MAX_NAME_BYTES:
        archive.fail(at, f"a tar extension header of {size} bytes")
    body = archive.at(at, size)
    if kind == b"L":  # GNU's long name; K is that of a link's target
        return {b"path": body.rstrip(b"\0")}
    return dict(_pax(archive, body, at)) if kind != b"K" else {}


def tar_members(archive: ArchiveFile, skipped: Counter[str]) -> Iterator[Member]:
    """The files of a tar in their order; `skipped` counts what is left out, by reason. Raises ArchiveError."""
    at, n_members, ended = 0, 0, False
    shared: dict[bytes, bytes] = {}
    given: dict[bytes, bytes] = {}
    while True:
        block = archive.at(at, BLOCK)
        if len(block) < BLOCK and not (ended and not any(block)):
            archive.fail(archive.size, f"cut short, the tar has no end mark ({n_members} members before byte {at})")
        if not any(block):
            ended = True
            at = _after_zeros(archive, at)
            if at >= archive.size:
                break
            continue
        if not is_header(block):
            if not ended:
                archive.fail(at, f"damaged, not a tar header ({n_members} members before it)")
            skipped["after_end_mark"] += 1
            break
        ended = False  # tars joined by `cat` go on after the first one's end mark
        n_members += 1
        kind = block[156:157]
        size = _data_bytes(archive, block, at, ChainMap(given, shared))
        data_at = _after_header(archive, block, at)
        at = data_at + size + -size % BLOCK
        if at > archive.size:
            archive.fail(archive.size, f"cut short, member {n_members} needs bytes up to {at}")
        if kind in b"LKxXg":
            (shared if kind == b"g" else given).update(_extension(archive, kind, data_at, size))
            continue
        raw = given[b"path"] if b"path" in given else _name_in(block)
        sparse = kind == b"S" or any(key.startswith(b"GNU.sparse") for key in given)
        given = {}
        if kind == b"5" or (kind == b"\0" and raw.endswith(b"/")):
            continue
        if kind not in b"07\0" or sparse:
            skipped["sparse" if sparse else _TAR_KINDS.get(kind, "special")] += 1
        elif (name := clean_name(raw, skipped)) is not None:
            yield Member(name, data_at, size, size, STORED)
    if not n_members:
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
