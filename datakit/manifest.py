"""Manifest: what a remote dataset is. One TOML file each, and beside it the hashes of `datakit pin`.

title, homepage, licence, citation, problems: what a person should know.
hub, revision: the repository, and its commit, tag or branch.
reader, recipe: who reads its rows (datakit/readers), and what is made of them (pipelines).
[annotations]: Parquet files, one a shard; or one JSON, cut into shards of rows.
[images]: by = "url" when rows hold URLs; by = "path" when they name members of archives.
[expected]: counts by the authors' word, shown beside what was found.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec

from datakit import catalogue
from datakit.errors import ManifestError, UsageError, nearest
from datakit.record import KEY
from datakit.web import addresses

Positive = Annotated[int, msgspec.Meta(gt=0, le=10_000_000)]


class Annotations(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rows: `files` is a path in the hub repository, with `{shard}` where there is one a shard."""

    format: Literal["json", "parquet"]
    files: str
    shards: Positive | None = None  # parquet: how many files
    rows_per_shard: Positive | None = None  # json: rows of one shard of ours


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One archive of pictures. A reference `<prefix>x.jpg` is the member `<inside>x.jpg` of it."""

    prefix: str
    archive: str  # http(s) URL, or hub://datasets/OWNER/REPO@REVISION/FILE
    inside: str = ""  # "*/" means any folder
    any_extension: bool = False  # x.jpg may be stored as x.png or x.gif
    licence: str = ""


class Images(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    by: Literal["url", "path"]
    sources: dict[str, Source] = {}


class Pinned(msgspec.Struct, frozen=True):
    """What `datakit pin` saw: commits of hub repositories, and (size, sha256) of files by address."""

    commits: dict[str, str] = {}
    files: dict[str, tuple[int | None, str | None]] = {}


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    title: str
    homepage: str
    licence: str
    citation: str
    hub: Annotated[str, msgspec.Meta(pattern=r"^[\w.-]+/[\w.-]+$")]
    reader: str
    recipe: str
    annotations: Annotations
    images: Images
    revision: str = "main"
    problems: list[str] = []
    expected: dict[str, int] = {}
    name: str = ""  # the file's name; not a key of the file
    pinned: Pinned = Pinned()  # from the .sums file; not a key of the file

    def shard_files(self) -> list[str]:
        """Paths of the annotation files in the hub repository, by shard."""
        if self.annotations.format == "json":
            return [self.annotations.files]
        return [self.annotations.files.format(shard=k) for k in range(self.annotations.shards or 0)]

    def file_of(self, shard: int) -> str:
        """The annotation file that a shard is read from."""
        rows = self.annotations
        return rows.files.format(shard=shard) if rows.format == "parquet" else rows.files

    def address(self, file: str) -> str:
        """Where a file of the dataset's own repository is, at the pinned commit if there is one."""
        return self.at_commit(f"hub://datasets/{self.hub}@{quote(self.revision, safe='')}/{file}")

    def at_commit(self, address: str) -> str:
        """An address with the branch replaced by the commit that was pinned."""
        match = re.fullmatch(r"(hub://\w+/)([^@]+)@([^/]+)/(.+)", address)
        if not match or match[2] not in self.pinned.commits:
            return address
        return f"{match[1]}{match[2]}@{self.pinned.commits[match[2]]}/{match[4]}"

    def addresses(self) -> dict[str, str]:
        """All that is downloaded whole, by a name to call it: annotation files, and sources of pictures."""
        named = {file.rpartition("/")[2]: self.address(file) for file in self.shard_files()}
        return named | {name: self.at_commit(source.archive) for name, source in self.images.sources.items()}

    def expect(self, address: str) -> tuple[int | None, str | None]:
        """Size and sha256 by which a file is checked, None where nothing was pinned."""
        return self.pinned.files.get(address, (None, None))


def load(name: str) -> Manifest:
    """The manifest of a dataset. Raises UsageError for an unknown name, ManifestError for a wrong file."""
    if not KEY.fullmatch(name):
        raise UsageError(f"bad dataset name {name!r}. {nearest(name, catalogue.names('manifests'))}")
    return read(catalogue.find("manifests", f"{name}.toml"))


def read(path: Path) -> Manifest:
    """The manifest in a file. Raises ManifestError with file, line, key and what was expected there."""
    try:
        text = path.read_text("utf-8-sig")
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: not TOML: {error}") from error
    for key in ("name", "pinned"):
        if key in data:
            raise ManifestError(f"{path}:{_line(text, [key])}: {key!r} can't be set: it comes from the file's name")
    try:
        manifest = msgspec.convert(data, Manifest, strict=True)
    except msgspec.ValidationError as error:
        raise ManifestError(f"{path}:{_explain(_at_source(str(error), data), text)}") from error
    _check(manifest, path, text)
    pinned = read_sums(path.with_suffix(".sums"))
    return msgspec.structs.replace(manifest, name=path.stem, pinned=pinned)


def _explain(message: str, text: str) -> str:
    """msgspec's words (`Expected …`, `- at `$.a.b``) with the line, the key and the nearest valid name."""
    what, _, where = message.partition(" - at ")
    keys = [k for k in where.strip("`").removeprefix("$").split(".") if k]
    unknown = re.search(r"unknown field `(.+?)`", what)
    missing = re.search(r"missing required field `(.+?)`", what)
    if unknown:
        line, key = _line(text, [*keys, unknown[1]]), ".".join([*keys, unknown[1]])
        return f"{line}: unknown key {key!r}. {nearest(unknown[1], _fields(keys))}"
    if missing:
        key = ".".join([*keys, missing[1]])
        return f"{_line(text, keys)}: key {key!r} is missing"
    return f"{_line(text, keys)}: key {'.'.join(keys)!r}: {what[0].lower()}{what[1:]}".replace("`", "'")


def _at_source(message: str, data: dict[str, Any]) -> str:
    """msgspec says `sources[...]` for an entry of a dictionary; this finds out which one."""
    if "$.expected[...]" in message:
        wrong = next(k for k, v in data["expected"].items() if type(v) is not int)
        return message.replace("$.expected[...]", f"$.expected.{wrong}")
    if "$.images.sources[...]" in message:
        for name, body in data["images"]["sources"].items():
            try:
                msgspec.convert(body, Source, strict=True)
            except msgspec.ValidationError as error:
                what, _, where = str(error).partition(" - at ")
                return f"{what} - at `$.images.sources.{name}{where.strip('`').removeprefix('$')}`"
    return message


def _fields(keys: list[str]) -> list[str]:
    struct: Any = Manifest
    if keys:
        struct = {"annotations": Annotations, "images": Images}.get(keys[0], Manifest)
        struct = Source if keys[:2] == ["images", "sources"] else struct
    return [f for f in struct.__struct_fields__ if f not in ("name", "pinned")]


def _line(text: str, keys: list[str]) -> int:
    """The line where a key, or the table it should stand in, is found; 1 when it isn't there at all."""
    table: list[str] = []
    best = 1
    for number, line in enumerate(text.splitlines(), 1):
        if head := re.match(r"\s*\[+([^\]]+)\]", line):
            table = [part.strip().strip('"') for part in head[1].split(".")]
            if table == keys[: len(table)]:
                best = number
        elif (pair := re.match(r'\s*"?([\w.-]+)"?\s*=', line)) and [*table, *pair[1].split(".")] == keys:
            return number
    return best


def _check(manifest: Manifest, path: Path, text: str) -> None:
    """What types can't say. Raises ManifestError."""

    def wrong(keys: list[str], what: str) -> ManifestError:
        return ManifestError(f"{path}:{_line(text, keys)}: key {'.'.join(keys)!r}: {what}")

    rows = manifest.annotations
    if not KEY.fullmatch(path.stem):
        raise ManifestError(f"{path}: a dataset's name may hold a-z, 0-9, _ and -, not {path.stem!r}")
    if rows.format == "parquet":
        if rows.shards is None:
            raise wrong(["annotations", "shards"], "parquet annotations need the number of files")
        around, places = re.subn(r"\{shard(:0\d{1,2}d)?\}", "", rows.files)
        if set("{}") & set(around) or (not places and rows.shards > 1):
            raise wrong(["annotations", "files"], "expected {shard} where the number stands, e.g. {shard:05d}")
    elif rows.rows_per_shard is None:
        raise wrong(["annotations", "rows_per_shard"], "json annotations need the number of rows of a shard")
    try:
        addresses.parse(manifest.address(manifest.file_of(0)))
    except ManifestError as error:
        raise wrong(["annotations", "files"], str(error)) from error
    for name, source in manifest.images.sources.items():
        if not re.match(r"https?://.|hub://datasets/[^@/]+/[^@/]+@[^/]+/.", source.archive):
            raise wrong(
                ["images", "sources", name, "archive"],
                f"expected http(s)://… or hub://datasets/OWNER/REPO@REVISION/FILE, not {source.archive!r}",
            )
        try:
            addresses.parse(source.archive)
        except ManifestError as error:
            raise wrong(["images", "sources", name, "archive"], str(error)) from error
    readers = [p.stem for p in (Path(__file__).parent / "readers").glob("[a-z]*.py")]
    if manifest.reader not in readers:
        raise wrong(["reader"], f"unknown reader {manifest.reader!r}. {nearest(manifest.reader, readers)}")
    if manifest.recipe not in catalogue.names("pipelines"):
        known = catalogue.names("pipelines")
        raise wrong(["recipe"], f"unknown recipe {manifest.recipe!r}. {nearest(manifest.recipe, known)}")


def read_sums(path: Path) -> Pinned:
    """The hashes beside a manifest; nothing pinned when there is no such file."""
    if not path.is_file():
        return Pinned()
    pinned = Pinned()
    for number, line in enumerate(path.read_bytes().decode("utf-8", "replace").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] == "commit" and len(words) == 3 and re.fullmatch(r"[0-9a-f]{40}", words[2]):
            pinned.commits[words[1]] = words[2]
        elif words[0] == "file" and len(words) == 4 and re.fullmatch(r"[0-9a-f]{64}|-", words[1]):
            if not re.fullmatch(r"\d+|-", words[2]):
                raise ManifestError(f"{path}:{number}: expected a size in bytes or -, not {words[2]!r}")
            size = None if words[2] == "-" else int(words[2])
            pinned.files[words[3]] = (size, None if words[1] == "-" else words[1])
        else:
            raise ManifestError(
                f"{path}:{number}: expected `commit OWNER/REPO SHA` or `file SHA256 BYTES ADDRESS`; "
                "this file is written by `datakit pin`"
            )
    return pinned


def sums(name: str, pinned: Pinned) -> str:
    """The text of a `.sums` file."""
    lines = [f"# written by `datakit pin {name}`: commits of hub repositories, sha256 and bytes of files"]
    lines += [f"commit {repo} {sha}" for repo, sha in sorted(pinned.commits.items())]
    for address, (size, digest) in sorted(pinned.files.items()):
        lines.append(f"file {digest or '-'} {'-' if size is None else size} {address}")
    return "\n".join(lines) + "\n"
