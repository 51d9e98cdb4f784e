"""Walks a zip by its central directory, and accepts an entry only if the local header agrees with it."""

from __future__ import annotations

import io
import stat
import struct
from collections import Counter
from collections.abc import Iterator

from datakit.formats.members import DEFLATED, STORED, ArchiveFile, Member, clean_name

_MAX_DIRECTORY_BYTES = 1 << 30


def zip_members(archive: ArchiveFile, skipped: Counter[str]) -> Iterator[Member]:
    """The files of a zip in the order of their data; `skipped` counts what is left out, by reason.

    Reads every local header too, because only it says where the data starts. Raises ArchiveError.
    """
    entries, n_entries, start, shift = _directory(archive)
    place = 0
    found = []
    while place < len(entries):
        if entries[place : place + 4] != b"PK\1\2" or place + 46 > len(entries):
            archive.fail(start + place, "damaged, not a zip directory entry")
        (flags, method, crc, stored, size, n_name, n_extra, n_note, disk, attributes, header) = struct.unpack_from(
            "<8xHH4xIIIHHHH2xII", entries, place
        )
        raw = entries[place + 46 : place + 46 + n_name]
        extra = entries[place + 46 + n_name : place + 46 + n_name + n_extra]
        place += 46 + n_name + n_extra + n_note
        if place > len(entries):
            archive.fail(start + len(entries), "damaged, a zip directory entry goes beyond the directory")
        if 0xFFFFFFFF in (size, stored, header):
            size, stored, header = _zip64(extra, size, stored, header)
        found.append((header + shift, raw, flags, method, crc, stored, size, attributes, disk))
    if (len(found) - n_entries) % 65_536:  # old writers count to 65,535 and start again
        archive.fail(start, f"damaged, a directory of {len(found)} entries that should hold {n_entries}")
    taken = 0  # where the data of the last member ends
    for header, raw, flags, method, crc, stored, size, attributes, disk in sorted(found):
        kind = stat.S_IFMT(attributes >> 16)
        if (raw.endswith(b"/") and not size) or kind == stat.S_IFDIR:
            continue
        reason = _zip_fault(flags, method, stored, size, kind, disk)
        offset = None if reason else _data_offset(archive, header, raw, flags, method, stored, size)
        if offset is None:
            skipped[reason or "header_disagrees"] += 1
        elif offset + stored > start:
            skipped["past_the_end"] += 1
        elif header < taken:
            skipped["overlaps"] += 1
        else:
            taken = offset + stored
            name = clean_name(_zip_name(raw, flags), skipped)
            if name is not None:
                yield Member(name, offset, stored, size, method, crc)


def _directory(archive: ArchiveFile) -> tuple[bytes, int, int, int]:
    """A zip's directory, its number of entries, where it starts, and the length of what was put before the zip."""
    tail_at = max(0, archive.size - 65_557)
    tail = archive.at(tail_at, archive.size - tail_at)
    at = tail.rfind(b"PK\5\6")
    while at >= 0 and (at + 22 > len(tail) or at + 22 + int.from_bytes(tail[at + 20 : at + 22], "little") != len(tail)):
        at = tail.rfind(b"PK\5\6", 0, at)
    if at < 0:
        archive.fail(archive.size, "cut short or not a zip (nor a tar): it has no end record")
    disk, first_disk, _, n_entries, n_bytes, offset = struct.unpack_from("<4HII", tail, at + 4)
    end = tail_at + at
    locator = archive.at(end - 20, 20) if end >= 20 else b""
    if locator.startswith(b"PK\6\7"):
        where = int.from_bytes(locator[8:16], "little")
        record = archive.at(end - 76, 56) if end >= 76 else b""
        if record.startswith(b"PK\6\6"):
            where = end - 76  # its usual place, also when something was put before the zip
        else:
            record = archive.at(where, 56) if where < end else b""
        if not record.startswith(b"PK\6\6") or len(record) < 56:
            archive.fail(end - 20, "damaged, or cut out of a larger zip: no zip64 end record where it should be")
        disk, first_disk, _, n_entries, n_bytes, offset = struct.unpack_from("<IIQQQQ", record, 16)
        end = where
    if disk or first_disk:
        archive.fail(end, "one part of a zip in several", "Join the parts to one zip first")
    start = end - n_bytes
    if n_bytes > _MAX_DIRECTORY_BYTES or start < offset or start < 0:
        archive.fail(end, f"damaged, a directory of {n_bytes} bytes at byte {offset}")
    return archive.at(start, n_bytes), n_entries, start, start - offset


def _zip64(extra: bytes, size: int, stored: int, header: int) -> tuple[int, int, int]:
    """The sizes and the offset that didn't fit 32 bits."""
    values = [size, stored, header]
    while len(extra) >= 4:
        tag, n = struct.unpack_from("<HH", extra)
        if tag == 1:
            wide = io.BytesIO(extra[4 : 4 + n])
            values = [int.from_bytes(wide.read(8), "little") if v == 0xFFFFFFFF else v for v in values]
            break
        extra = extra[4 + n :]
    return values[0], values[1], values[2]


def _zip_fault(flags: int, method: int, stored: int, size: int, kind: int, disk: int) -> str | None:
    """The reason for which a directory entry is skipped, or None."""
    if kind == stat.S_IFLNK:
        return "symlink"
    if kind not in (0, stat.S_IFREG):
        return "device"
    if flags & 0x2041:  # traditional, strong, masked headers
        return "encrypted"
    if method not in (STORED, DEFLATED) or disk:
        return "unsupported_method"
    return "header_disagrees" if method == STORED and stored != size else None


def _data_offset(
    archive: ArchiveFile, header: int, raw: bytes, flags: int, method: int, stored: int, size: int
) -> int | None:
    """Where the data starts, or None when the local header isn't that of the directory's entry."""
    local = archive.at(header, 30 + len(raw)) if header < archive.size else b""
    if len(local) < 30 + len(raw) or not local.startswith(b"PK\3\4") or local[30:] != raw:
        return None
    its_flags, its_method, its_stored, its_size, n_name, n_extra = struct.unpack_from("<6xHH8xIIHH", local)
    sizes_known = not its_flags & 8 and 0xFFFFFFFF not in (its_stored, its_size)
    if n_name != len(raw) or its_method != method or (its_flags ^ flags) & 0x2041:
        return None
    if sizes_known and (its_stored, its_size) != (stored, size):
        return None
    return header + 30 + len(raw) + int(n_extra)


def _zip_name(raw: bytes, flags: int) -> bytes | str:
    """UTF-8 where it is or says it is (macOS doesn't say); else the zip's own code page."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw if flags & 0x800 else raw.decode("cp437")
