"""Zips and tars read by their index: never unpacked, never trusted.

1. `members` walks a zip's central directory or a tar's headers and says where each member's data stands.
2. `write_index` sorts them by name into a small Parquet file beside the archive.
3. `Index` finds a member by name in it; `read` takes its bytes out of the archive with one pread.

Names are only looked up, never written to, and yet a name that could leave a folder is skipped. What is skipped is
counted by reason; an archive that isn't whole raises ArchiveError, so that half a download never passes for one.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
import struct
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from datakit.errors import ArchiveError
from datakit.store import publish_file

STORED, DEFLATED = 0, 8
BLOCK = 512
MAX_MEMBER_BYTES = 256 << 20
_MAX_NAME_BYTES = 1 << 20  # of a GNU long name or a pax header
_MAX_DIRECTORY_BYTES = 1 << 30
_PICTURES = {ext: rank for rank, ext in enumerate(("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"))}
_HOSTILE = re.compile(r"^/|^[A-Za-z]:|\\|[\x00-\x1f\x7f]|(?:^|/)\.\.(?:/|$)")
_OTHERS = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7-Zip", b"Rar!": "RAR", b"version https://git-lfs": "a Git LFS pointer",
}  # fmt: skip


class Member(NamedTuple):
    """Where a file's bytes stand inside an archive."""

    name: str
    offset: int  # of the first byte of the data itself
    stored_bytes: int
    size_bytes: int  # as it was before it was compressed
    method: int  # 0 stored, 8 deflate
    crc32: int | None = None  # None: the archive has none


def members(path: Path | str, skipped: Counter[str] | None = None) -> Iterator[Member]:
    """The files of a zip or a plain tar, as they stand; `skipped` counts what was left out, by reason.

    Raises ArchiveError when the archive is cut short, is compressed as a whole, or is no archive.
    """
    path = Path(path)
    skipped = Counter() if skipped is None else skipped
    with path.open("rb", buffering=0) as file:
        archive = _File(path, file)
        head = archive.at(0, BLOCK)
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            archive.fail(0, "an HTML page came instead of an archive", "Is the link a `blob/` one?")
        for magic, name in _OTHERS.items():
            if head.startswith(magic):
                archive.fail(0, f"{name} can't be read by its index", "Unpack it to a plain tar or a zip first")
        if not head.startswith((b"PK\3\4", b"PK\5\6", b"PK\7\x08")) and (
            len(head) < BLOCK or _is_header(head) or not any(head)
        ):
            if len(head) < BLOCK:
                archive.fail(archive.size, "cut short, or not an archive")
            yield from _tar_members(archive, skipped)
        else:
            yield from _zip_members(archive, skipped)


def read(file: int | IO[bytes], member: Member, *, max_bytes: int = MAX_MEMBER_BYTES) -> bytes:
    """The bytes of a member of an open archive; safe from several threads at once.

    Never makes more than the size the archive states. Raises ArchiveError for another size or checksum.
    """
    fd = file if isinstance(file, int) else file.fileno()
    if member.size_bytes > max_bytes or member.stored_bytes > max_bytes + (max_bytes >> 4) + 4096:
        _lie(member, f"{member.size_bytes} bytes, {member.stored_bytes} stored, above the ceiling of {max_bytes}")
    data = _pread(fd, member.stored_bytes, member.offset)
    if len(data) < member.stored_bytes:
        _lie(member, f"the archive is cut short, {len(data)} of {member.stored_bytes} bytes are there")
    if member.method == DEFLATED:
        inflate = zlib.decompressobj(-15)
        try:
            data = inflate.decompress(data, member.size_bytes + 1)
        except zlib.error as error:
            raise ArchiveError(f"member {member.name!r}: {error}. Fetch the archive again.") from error
        if not inflate.eof and len(data) <= member.size_bytes:
            _lie(member, "the compressed data is cut short")
    elif member.method != STORED:
        _lie(member, f"method {member.method!r} is neither stored (0) nor deflate (8)")
    if len(data) != member.size_bytes:
        more = "more than " if len(data) > member.size_bytes else ""
        _lie(member, f"{more}{min(len(data), member.size_bytes)} bytes where {member.size_bytes} are stated")
    if member.crc32 is not None and zlib.crc32(data) != member.crc32:
        _lie(member, "its checksum differs")
    return data


def _lie(member: Member, what: str) -> NoReturn:
    raise ArchiveError(f"member {member.name!r} at byte {member.offset}: {what}. Fetch the archive again.")


def _pread(fd: int, n: int, at: int) -> bytes:
    data = os.pread(fd, n, at)
    if len(data) == n or not data:
        return data
    parts = [data]
    while n > (have := sum(map(len, parts))) and (data := os.pread(fd, n - have, at + have)):
        parts.append(data)
    return b"".join(parts)


class _File:
    """An archive being indexed, and how its faults are told."""

    def __init__(self, path: Path, file: io.FileIO) -> None:
        self.path = path
        self.fd = file.fileno()
        self.size = os.fstat(self.fd).st_size

    def at(self, offset: int, n: int) -> bytes:
        return _pread(self.fd, n, offset)

    def fail(self, at: int, what: str, then: str = "Fetch it again") -> NoReturn:
        raise ArchiveError(f"{str(self.path)!r}, byte {at}: {what}. {then}.")


def _clean(raw: bytes | str, skipped: Counter[str]) -> str | None:
    """A member's name without `./`, or None, counted, when it is one that nobody should look up."""
    try:
        name = raw if isinstance(raw, str) else raw.decode()
    except UnicodeDecodeError:
        skipped["name_not_utf8"] += 1
        return None
    if _HOSTILE.search(name):
        skipped["unsafe_name"] += 1
        return None
    if "//" in name or "./" in name:
        name = "/".join(part for part in name.split("/") if part not in ("", "."))
    if name in ("", "."):
        skipped["unsafe_name"] += 1
        return None
    return name


# Tars


def _is_header(block: bytes) -> bool:
    """Whether a block's checksum is its own; old tars summed signed bytes."""
    try:
        stated = int(block[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    summed = block[:148] + b" " * 8 + block[156:].rstrip(b"\0")
    total = sum(summed)
    return stated == total or stated == total - 256 * sum(b > 127 for b in summed)


def _number(archive: _File, field: bytes, at: int) -> int:
    if field[0] == 0x80:  # GNU: base 256
        return int.from_bytes(field[1:])
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        archive.fail(at, f"a size that is no number, {field!r}")


def _tar_members(archive: _File, skipped: Counter[str]) -> Iterator[Member]:
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
        if not _is_header(block):
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
        elif (name := _clean(raw, skipped)) is not None:
            yield Member(name, data_at, size, size, STORED)
    if not seen:
        archive.fail(0, "nothing but zeros: the tar was never written")


_TAR_KINDS = {b"1": "hardlink", b"2": "symlink", b"3": "device", b"4": "device", b"6": "device"}


def _after_zeros(archive: _File, at: int) -> int:
    """The first block from `at` on that isn't all zeros, or the end of the file."""
    while chunk := archive.at(at, 1 << 20):
        if left := chunk.lstrip(b"\0"):
            return at + (len(chunk) - len(left)) // BLOCK * BLOCK
        at += len(chunk)
    return archive.size


def _pax(archive: _File, body: bytes, at: int) -> Iterator[tuple[bytes, bytes]]:
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


def _pax_size(archive: _File, value: bytes, at: int) -> int:
    if not value.isdigit() or len(value) > 19:
        archive.fail(at, f"a pax size that is no number, {value[:20]!r}")
    return int(value)


# Zips


def _zip_members(archive: _File, skipped: Counter[str]) -> Iterator[Member]:
    """By the central directory; every local header is looked at, because only it says where the data starts."""
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
            name = _clean(_zip_name(raw, flags), skipped)
            if name is not None:
                yield Member(name, offset, stored, size, method, crc)


def _directory(archive: _File) -> tuple[bytes, int, int, int]:
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
    """The reason for which a directory entry is left out."""
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
    archive: _File, header: int, raw: bytes, flags: int, method: int, stored: int, size: int
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


# The index


def index_path(path: Path | str) -> Path:
    """Where the index of an archive stands unless told otherwise."""
    return Path(f"{path}.index.parquet")


def index(path: Path | str) -> Any:
    """A pyarrow Table of the members, sorted by name; of two with one name the last one stands, as in `unzip -o`."""
    import pyarrow as pa

    skipped: Counter[str] = Counter()
    found: dict[str, Member] = {}
    n_members = 0
    for member in sorted(members(path, skipped), key=lambda m: m.offset):
        found[member.name] = member
        n_members += 1
    if n_members > len(found):
        skipped["duplicate"] = n_members - len(found)
    rows = sorted(found.values(), key=lambda m: m.name.encode())
    bare = [row.name.rpartition("/")[2].encode() for row in rows]
    about = {"archive_bytes": Path(path).stat().st_size, "skipped": dict(sorted(skipped.items()))}
    columns = {
        "name": pa.array([row.name for row in rows], pa.large_string()),
        "offset": pa.array([row.offset for row in rows], pa.int64()),
        "stored_bytes": pa.array([row.stored_bytes for row in rows], pa.int64()),
        "size_bytes": pa.array([row.size_bytes for row in rows], pa.int64()),
        "method": pa.array([row.method for row in rows], pa.int8()),
        "crc32": pa.array([-1 if row.crc32 is None else row.crc32 for row in rows], pa.int64()),
        "by_file_name": pa.array(sorted(range(len(rows)), key=bare.__getitem__), pa.int32()),
    }
    return pa.table(columns).replace_schema_metadata({"datakit.archive": json.dumps(about)})


def write_index(path: Path | str, out: Path | str | None = None) -> int:
    """Writes the index of an archive, all or nothing, and returns how many members it names."""
    import pyarrow.parquet as pq

    table = index(path)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    publish_file(Path(out) if out is not None else index_path(path), sink.getvalue())
    return int(table.num_rows)


_COLUMNS = ("name", "offset", "stored_bytes", "size_bytes", "method", "crc32", "by_file_name")


class Index:
    """Members of one archive by name: about 100 bytes of memory each, a few microseconds a look-up."""

    def __init__(self, path: Path | str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = Path(path)
        try:
            with pq.ParquetFile(self.path) as file:
                table = file.read(use_threads=False)
            about = json.loads(table.schema.metadata[b"datakit.archive"])
            # By buffers: read_table would load pyarrow.dataset, and to_numpy pandas, 100 MB between them.
            columns = {c: pa.concat_arrays(table.column(c).chunks).buffers() for c in _COLUMNS if len(table)}
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise ArchiveError(
                f"{str(self.path)!r} is not an archive's index ({error}). Remove it; it is made again from the archive."
            ) from error
        kept = {c: b"".join(buffer.to_pybytes() for buffer in columns.get(c, ())[1:2]) for c in _COLUMNS}
        self._ends = array("q", kept["name"][: 8 * (len(table) + 1)])
        self._text: bytes = columns["name"][2].to_pybytes() if len(table) else b""
        self._wide = {c: array("q", kept[c]) for c in ("offset", "stored_bytes", "size_bytes", "crc32")}
        self._method = kept["method"]
        self._by_file_name = array("i", kept["by_file_name"][: 4 * len(table)])
        del table, columns
        pa.default_memory_pool().release_unused()  # half of what opening took
        self.archive_bytes = int(about["archive_bytes"])  # the archive's own size when it was indexed
        self.skipped: dict[str, int] = about["skipped"]  # members left out, by reason

    def __reduce__(self) -> tuple[type[Index], tuple[Path]]:
        return type(self), (self.path,)

    @classmethod
    def open(cls, path: Path | str) -> Index:
        """Reads an index that `write_index` wrote. Raises ArchiveError when it is none."""
        return cls(path)

    def __len__(self) -> int:
        return len(self._by_file_name)

    def __iter__(self) -> Iterator[Member]:
        """Members by name."""
        return map(self._member, range(len(self)))

    def find(self, name: str) -> Member | None:
        """The member of exactly this name; a leading `./` doesn't matter."""
        wanted = name.removeprefix("./").encode(errors="replace")
        row = self._first(wanted)
        return self._member(row) if row < len(self) and self._name(row) == wanted else None

    def find_stem(self, stem: str) -> Member | None:
        """The member with this name and any extension: pictures before others, jpg before png, then by name."""
        wanted = stem.removeprefix("./").encode(errors="replace") + b"."
        best: tuple[int, int] | None = None
        row = self._first(wanted)
        while row < len(self) and (name := self._name(row)).startswith(wanted):
            ext = name[len(wanted) :]
            if b"." not in ext and b"/" not in ext:
                rank = (_PICTURES.get(ext.decode(errors="replace").lower(), len(_PICTURES)), row)
                best = rank if best is None else min(best, rank)
            row += 1
        return None if best is None else self._member(best[1])

    def find_any_folder(self, file_name: str) -> Member | None:
        """The member of this file name in whatever folder; None when there are two, for it would be a guess."""
        wanted = file_name.rpartition("/")[2].encode(errors="replace")
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self._file_name(middle) < wanted:
                low = middle + 1
            else:
                high = middle
        if low == len(self) or self._file_name(low) != wanted:
            return None
        if low + 1 < len(self) and self._file_name(low + 1) == wanted:
            return None
        return self._member(self._by_file_name[low])

    def _name(self, row: int) -> bytes:
        return self._text[self._ends[row] : self._ends[row + 1]]

    def _file_name(self, place: int) -> bytes:
        return self._name(self._by_file_name[place]).rpartition(b"/")[2]

    def _first(self, wanted: bytes) -> int:
        """The first row whose name isn't below `wanted`."""
        low, high = 0, len(self)
        text, ends = self._text, self._ends
        while low < high:
            middle = (low + high) // 2
            if text[ends[middle] : ends[middle + 1]] < wanted:
                low = middle + 1
            else:
                high = middle
        return low

    def _member(self, row: int) -> Member:
        wide = self._wide
        crc = wide["crc32"][row]
        place = (wide["offset"][row], wide["stored_bytes"][row], wide["size_bytes"][row], self._method[row])
        return Member(self._name(row).decode(), *place, crc if crc >= 0 else None)


class Archive:
    """An archive and its index, opened together; the index is written when there is none that fits.

    Members may be read from several threads, and in a worker process it opens its file anew.
    """

    def __init__(self, path: Path | str, index: Path | str | None = None) -> None:
        self.path = Path(path)
        place = Path(index) if index is not None else index_path(path)
        if not place.exists():
            write_index(path, place)
        self.index = Index(place)
        if self.index.archive_bytes != self.path.stat().st_size:  # the archive was fetched again
            write_index(path, place)
            self.index = Index(place)
        self._file = self.path.open("rb", buffering=0)

    def __reduce__(self) -> tuple[type[Archive], tuple[Path, Path]]:
        return type(self), (self.path, self.index.path)

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def read(self, member: Member, *, max_bytes: int = MAX_MEMBER_BYTES) -> bytes:
        return read(self._file, member, max_bytes=max_bytes)

    def close(self) -> None:
        self._file.close()
