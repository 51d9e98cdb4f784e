"""Zips and tars read by their index: never unpacked, never trusted.

1. `members` walks a zip's central directory or a tar's headers and finds the offset of each member's data.
2. `write_index` sorts them by name into a small Parquet file beside the archive.
3. `Index` finds a member by name in it; `read` takes its bytes out of the archive with one pread.

Names that could leave a folder, links and the like are skipped and counted by reason. An archive that is cut short
raises ArchiveError, so that half a download is never taken for a whole one.
"""

from __future__ import annotations

import io
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datakit.errors import ArchiveError
from datakit.formats.members import ArchiveFile, Member, pieces, read
from datakit.formats.tarwalk import BLOCK, is_header, tar_members
from datakit.formats.zipwalk import zip_members
from datakit.storage.store import publish_file

__all__ = ["Index", "Member", "index", "index_path", "members", "pieces", "read", "write_index"]

_OTHERS = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7-Zip", b"Rar!": "RAR", b"version https://git-lfs": "a Git LFS pointer",
}  # fmt: skip


def members(path: Path | str, skipped: Counter[str] | None = None) -> Iterator[Member]:
    """The files of a zip or a plain tar; `skipped` counts those left out, by reason.

    Raises ArchiveError when the archive is cut short, is compressed as a whole, or is no archive.
    """
    path = Path(path)
    skipped = Counter() if skipped is None else skipped
    with path.open("rb", buffering=0) as file:
        archive = ArchiveFile(path, file)
        head = archive.at(0, BLOCK)
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            archive.fail(0, "an HTML page came instead of an archive", "Is the link a `blob/` one?")
        for magic, name in _OTHERS.items():
            if head.startswith(magic):
                archive.fail(0, f"{name} can't be read by its index", "Unpack it to a plain tar or a zip first")
        if not head.startswith((b"PK\3\4", b"PK\5\6", b"PK\7\x08")) and (
            len(head) < BLOCK or is_header(head) or not any(head)
        ):
            if len(head) < BLOCK:
                archive.fail(archive.size, "cut short, or not an archive")
            yield from tar_members(archive, skipped)
        else:
            yield from zip_members(archive, skipped)


def index_path(path: Path | str) -> Path:
    """The default path of an archive's index."""
    return Path(f"{path}.index.parquet")


def index(path: Path | str) -> Any:
    """A pyarrow Table of the members, sorted by name; of several with one name the last is taken, as by `unzip -o`."""
    import pyarrow as pa

    skipped: Counter[str] = Counter()
    by_name: dict[str, Member] = {}
    n_members = 0
    for member in sorted(members(path, skipped), key=lambda m: m.offset):
        by_name[member.name] = member
        n_members += 1
    if n_members > len(by_name):
        skipped["duplicate"] = n_members - len(by_name)
    rows = sorted(by_name.values(), key=lambda m: m.name.encode())
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
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
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
            with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
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

    def find_stem(self, stem: str, preferred: Sequence[str]) -> Member | None:
        """The member with this name and any extension: the preferred ones in their order, then others by name.

        `preferred` are in lower case and match any case.
        """
        wanted = stem.removeprefix("./").encode(errors="replace") + b"."
        best: tuple[int, int] | None = None
        row = self._first(wanted)
        while row < len(self) and (name := self._name(row)).startswith(wanted):
            ext = name[len(wanted) :]
            if b"." not in ext and b"/" not in ext:
                lower = ext.decode(errors="replace").lower()
                rank = (preferred.index(lower) if lower in preferred else len(preferred), row)
                best = rank if best is None else min(best, rank)
            row += 1
        return None if best is None else self._member(best[1])

    def find_any_folder(self, file_name: str) -> Member | None:
        """The member of this file name in any folder; None when there are two, since either would be a guess."""
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

    def _file_name(self, at: int) -> bytes:
        return self._name(self._by_file_name[at]).rpartition(b"/")[2]

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
        extent = (wide["offset"][row], wide["stored_bytes"][row], wide["size_bytes"][row], self._method[row])
        return Member(self._name(row).decode(), *extent, crc if crc >= 0 else None)
