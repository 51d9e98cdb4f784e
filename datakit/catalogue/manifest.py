"""Manifest: what a remote dataset is. One TOML file each, and beside it the hashes of `datakit pin`.

title, homepage, licence, citation, problems: what a person should know.
accept: terms that come before any download; lost: why it can't be had any more, and fallback: what may stand for it.
hub, revision: the repository, and its commit, tag or branch.
reader, recipe: who reads its rows (readers/ of a catalogue, or datakit/readers), and what is made of them (pipelines).
[annotations]: JSON cut into shards of rows, or files of one shard each: JSON, Parquet, WebDataset tars.
[annotations.attributes]: keys of its rows that are kept, with their types (datakit/records/attributes.py).
[annotations.subsets]: files by name; `allava.captions` is a dataset of its own, with only these.
[images]: by = "url" when rows hold URLs, "path" when they name members of archives, "inline" when they hold the
pictures, "folder" when they name loose files, "none" for text.
[expected]: counts by the authors' word, shown beside what was found.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec

from datakit import catalogue
from datakit.errors import ManifestError, UsageError, nearest, shortlist
from datakit.process import usercode
from datakit.records import attributes
from datakit.records.record import KEY
from datakit.web import addresses

NOT_KEYS = ("name", "pinned", "reader_module")  # of a Manifest, which its file can't set
OUR_READERS = Path(__file__).resolve().parents[1] / "readers"
Positive = Annotated[int, msgspec.Meta(gt=0, le=10_000_000)]


class Annotations(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rows: paths in the hub repository or full addresses, with `{shard}` where there is one a shard."""

    format: Literal["json", "parquet", "webdataset"]
    files: str | list[str]  # a list: JSON files are cut into shards one after the other, others are a shard each
    shards: Positive | None = None  # how many numbers {shard} runs over
    absent: list[int] = []  # those of them that upstream never had
    rows_per_shard: Positive | None = None  # of JSON that is cut; without it a file is a shard
    inside: str = ""  # the file is a zip or tar and the JSON is this member; *.jsonl is the only one of that ending
    beside: list[str] = []  # a file in the same folder that the reader needs, the first of these that is there
    columns: dict[str, str] = {}  # of a reader that must be told what they are
    attributes: dict[str, str] = {}  # keys of rows that their reader doesn't use, and a type for each
    subsets: dict[str, list[str]] = {}

    @property
    def cut(self) -> bool:
        """Whether files are cut into shards of rows."""
        return self.rows_per_shard is not None

    @property
    def glob(self) -> bool:
        """Whether only the repository knows which files there are."""
        return isinstance(self.files, str) and "*" in self.files

    def file_list(self, most: int | None = None) -> list[str]:
        """The files, or the first `most` of them, in the order of shards unless they are cut; a glob as it is."""
        if isinstance(self.files, list):
            return self.files[:most]
        return [self.files.format(shard=k) for k in self.numbers()[:most]] if self.shards else [self.files]

    def numbers(self) -> list[int]:
        """The numbers of the shards, when each file is a shard."""
        if isinstance(self.files, list):
            return list(range(len(self.files)))
        absent = set(self.absent)
        return [k for k in range(self.shards or 1) if k not in absent]


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Archives of pictures. A reference `<prefix>x.jpg` is the member `<inside>x.jpg` of one of them."""

    prefix: str
    archive: str  # http(s) URL, file:///path, or hub://datasets/OWNER/REPO@REVISION/FILE; {part} for several
    parts: Positive | None = None  # how many numbers {part} runs over; they are looked through in order
    inside: str = ""  # "*/" means any folder
    any_extension: bool = False  # x.jpg may be stored as x.png or x.gif
    obtain: str = ""  # no program can have it: what to accept, and where a person gets it
    subsets: list[str] = []  # that have pictures of it; all when none is named. The whole takes the first of a prefix
    licence: str = ""

    def archives(self) -> list[str]:
        """The addresses of the archives."""
        return [self.archive.format(part=k) for k in range(self.parts)] if self.parts else [self.archive]


class Images(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How rows name their pictures, and where those are."""

    by: Literal["url", "path", "inline", "folder", "none"]
    folder: str = ""  # absolute
    sources: dict[str, Source] = {}


class Pinned(msgspec.Struct, frozen=True):
    """What `datakit pin` recorded: commits of hub repositories, and (size, sha256) of files by address."""

    commits: dict[str, str] = {}
    files: dict[str, tuple[int | None, str | None]] = {}

    @property
    def n_unhashed(self) -> int:
        """How many files have no known hash."""
        return sum(digest is None for _, digest in self.files.values())


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a remote dataset is: its TOML file, and what `datakit pin` wrote beside it."""

    title: str
    homepage: str
    licence: str
    citation: str
    hub: Annotated[str, msgspec.Meta(pattern=r"^([\w.-]+/[\w.-]+)?$")]
    reader: str
    recipe: str
    annotations: Annotations
    images: Images
    revision: str = "main"
    accept: str = ""
    lost: str = ""
    fallback: str = ""
    problems: list[str] = []
    expected: dict[str, int] = {}
    name: str = ""  # the file's name; not a key of the file
    pinned: Pinned = Pinned()  # from the .sums file; not a key of the file
    reader_module: str = ""  # of a reader in a user's catalogue, this version of it (usercode); not a key of the file

    @property
    def key(self) -> str:
        """What the keys of its records begin with."""
        return self.name.replace(".", "-")

    def shard_files(self) -> list[str]:
        """The annotation files, in the order of shards unless they are cut."""
        return self.annotations.file_list()

    def file_of(self, shard: int) -> str:
        """The annotation file that is a shard."""
        rows = self.annotations
        return rows.files[shard] if isinstance(rows.files, list) else rows.files.format(shard=shard)

    def count(self, what: str) -> int | None:
        """How many `rows`, `images` or `bytes` the authors say there are, of the subset if it is one; None if nothing.

        The exact number before the rough one.
        """
        subset = self.name.partition(".")[2]
        ending = f"_{subset}" if subset else ""
        return next(
            (self.expected[k] for k in (f"{what}{ending}", f"{what}_about{ending}") if k in self.expected), None
        )

    def address(self, file: str) -> str:
        """Where an annotation file is, at the pinned commit if there is one."""
        if "://" in file:
            return self.at_commit(file)
        return self.at_commit(f"hub://datasets/{self.hub}@{quote(self.revision, safe='')}/{file}")

    def at_commit(self, address: str) -> str:
        """An address with the branch replaced by the commit that was pinned."""
        match = re.fullmatch(r"(hub://\w+/)([^@]+)@([^/]+)/(.+)", address)
        if not match or match[2] not in self.pinned.commits:
            return address
        return f"{match[1]}{match[2]}@{self.pinned.commits[match[2]]}/{match[4]}"

    def addresses(self) -> dict[str, str]:
        """The addresses of all files that are downloaded whole, by name: annotation files and archives of pictures."""
        files = [] if self.annotations.glob else self.shard_files()
        short = [posixpath.basename(file) for file in files]
        named = dict(zip(short if len(set(short)) == len(files) else files, map(self.address, files), strict=True))
        for name, source in self.images.sources.items():
            for part, archive in enumerate(source.archives()):
                named[name if source.parts is None else f"{name}.{part}"] = self.at_commit(archive)
        return named

    def sources_of(self, address: str) -> list[str]:
        """The sources of pictures that have an archive at that address, as `addresses` gives it."""
        sources = self.images.sources.items()
        return [name for name, source in sources if address in map(self.at_commit, source.archives())]

    def expect(self, address: str) -> tuple[int | None, str | None]:
        """Size and sha256 by which a file is checked, None where nothing was pinned."""
        return self.pinned.files.get(address, (None, None))


def load(name: str) -> Manifest:
    """The manifest of a dataset or a subset. Raises UsageError for an unknown name, ManifestError for a wrong file."""
    whole, _, subset = name.partition(".")
    if not KEY.fullmatch(whole):
        raise UsageError(f"bad dataset name {name!r}. {nearest(name, catalogue.names('manifests'))}")
    manifest = read(catalogue.find("manifests", f"{whole}.toml"))
    return subset_of(manifest, subset) if name != whole else _whole(manifest)


def _whole(manifest: Manifest) -> Manifest:
    """The manifest of all files: without the smaller archives of subsets whose pictures another archive holds too."""
    every = manifest.images.sources
    first = {source.prefix: name for name, source in reversed(every.items()) if source.subsets}
    sources = {name: source for name, source in every.items() if first.get(source.prefix, name) == name}
    return msgspec.structs.replace(manifest, images=msgspec.structs.replace(manifest.images, sources=sources))


def subset_of(whole: Manifest, subset: str) -> Manifest:
    """The part of a dataset that has a name. Raises UsageError."""
    rows = whole.annotations
    if subset not in rows.subsets:
        raise UsageError(f"{whole.name!r} has no subset {subset!r}. {nearest(subset, rows.subsets)}")
    sources = {n: s for n, s in whole.images.sources.items() if not s.subsets or subset in s.subsets}
    return msgspec.structs.replace(
        whole,
        name=f"{whole.name}.{subset}",
        annotations=msgspec.structs.replace(rows, files=rows.subsets[subset], subsets={}),
        images=msgspec.structs.replace(whole.images, sources=sources),
    )


def read(path: Path) -> Manifest:
    """The manifest in a file. Raises ManifestError with file, line, key and what was expected there."""
    try:
        text = path.read_text("utf-8-sig")
        data = tomllib.loads(text)
    except OSError as error:
        raise ManifestError(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # of its form, its encoding, or a number of thousands of digits
        raise ManifestError(f"{path}: not TOML: {error}") from error
    for key in NOT_KEYS:
        if key in data:
            raise ManifestError(f"{path}:{_line(text, [key])}: {key!r} can't be set: it comes from the file's name")
    try:
        manifest = msgspec.convert(data, Manifest, strict=True)
    except msgspec.ValidationError as error:
        raise ManifestError(f"{path}:{_explain(_at_source(str(error), data), text)}") from error
    _check(manifest, path, text)
    pinned = read_sums(path.with_suffix(".sums"))
    reader = catalogue.find("readers", f"{manifest.reader}.py")
    module = "" if reader.parent == OUR_READERS else usercode.module_name(reader)
    return msgspec.structs.replace(manifest, name=path.stem, pinned=pinned, reader_module=module)


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
    return [f for f in struct.__struct_fields__ if f not in NOT_KEYS]


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


Wrong = Callable[[list[str], str], ManifestError]  # keys, and what is wrong with their value


def _check(manifest: Manifest, path: Path, text: str) -> None:
    """Checks what types can't express. Raises ManifestError."""

    def wrong(keys: list[str], what: str) -> ManifestError:
        return ManifestError(f"{path}:{_line(text, keys)}: key {'.'.join(keys)!r}: {what}")

    if not KEY.fullmatch(path.stem):
        raise ManifestError(f"{path}: a dataset's name may hold a-z, 0-9, _ and -, not {path.stem!r}")
    _check_files(manifest, wrong)
    for name, source in manifest.images.sources.items():
        _check_source(["images", "sources", name], source, manifest, wrong)
    if (manifest.images.by == "folder") != manifest.images.folder.startswith("/"):
        raise wrong(["images", "folder"], "expected an absolute path, and only with by = 'folder'")
    for key, value, known in (
        ("reader", manifest.reader, catalogue.names("readers")),
        ("recipe", manifest.recipe, catalogue.names("pipelines")),
        ("fallback", manifest.fallback, ["", *catalogue.names("manifests")]),
    ):
        if value not in known:
            raise wrong([key], f"unknown {key} {value!r}. {nearest(value, filter(None, known))}")
    _check_attributes(manifest, wrong)


def _check_attributes(manifest: Manifest, wrong: Wrong) -> None:
    """The keys that are kept: their types, and whether they can have those names."""
    rows = manifest.annotations
    if rows.attributes and manifest.reader not in attributes.READERS:
        known = " and ".join(attributes.READERS)
        raise wrong(["annotations", "attributes"], f"only {known} keep keys of rows, not the reader {manifest.reader}")
    taken = attributes.used_keys(manifest.reader, rows.columns)
    for name, kind in rows.attributes.items():
        if kind not in attributes.KINDS:
            what = f"unknown type {kind!r}. {nearest(kind, attributes.KINDS)}"
            raise wrong(["annotations", "attributes", name], what)
        if why := attributes.why_refused(name, taken):
            raise wrong(["annotations", "attributes", name], f"it can't be kept, {why}")


def _check_files(manifest: Manifest, wrong: Wrong) -> None:
    """The files of annotations: how many there are, and where."""
    rows = manifest.annotations
    if isinstance(rows.files, str) and not rows.glob:
        around, places = re.subn(r"\{shard(:0\d{1,2}d)?\}", "", rows.files)
        if set("{}") & set(around) or (not places and (rows.shards or 1) > 1):
            raise wrong(["annotations", "files"], "expected {shard} where the number stands, e.g. {shard:05d}")
        if rows.shards is None and (places or rows.format == "parquet"):
            raise wrong(["annotations", "shards"], f"{rows.format} annotations need the number of files")
    if rows.cut and (rows.format != "json" or rows.shards is not None):
        raise wrong(["annotations", "rows_per_shard"], "only json is cut into shards, when it has no {shard}")
    if rows.format == "json" and not rows.cut and rows.shards is None:
        raise wrong(["annotations", "rows_per_shard"], "json annotations need the number of rows of a shard")
    for subset, named in rows.subsets.items():
        unknown = [file for file in named if file not in rows.file_list()]
        if not KEY.fullmatch(subset) or not named or unknown:
            what = f"expected some of `files`, under a name of a-z, 0-9, _ and -, not {shortlist(unknown) or subset!r}"
            raise wrong(["annotations", "subsets", subset], what)
    files = rows.file_list(100)  # of a template the first hundred show how all are
    if not manifest.hub and (bare := [file for file in files if "://" not in file]):
        raise wrong(["hub"], f"no repository is named, so {bare[0]!r} should be a full address")
    for file in files:
        _check_address(["annotations", "files"], manifest.address(file), wrong)


def _check_source(keys: list[str], source: Source, manifest: Manifest, wrong: Wrong) -> None:
    """The archives of a source: where they are, how many, and for whom."""
    if not re.match(r"https?://.|file:///.|hub://datasets/[^@/]+/[^@/]+@[^/]+/.", source.archive):
        what = "expected http(s)://…, file:///… or hub://datasets/OWNER/REPO@REVISION/FILE"
        raise wrong([*keys, "archive"], f"{what}, not {source.archive!r}")
    around, places = re.subn(r"\{part(:0\d{1,2}d)?\}", "", source.archive)
    if bool(places) != (source.parts is not None) or set("{}") & set(around):
        raise wrong([*keys, "archive"], "expected {part} where the number of one of `parts` stands")
    known = manifest.annotations.subsets
    if odd := sorted(set(source.subsets) - set(known)):
        raise wrong([*keys, "subsets"], f"unknown subset {odd[0]!r}. {nearest(odd[0], known)}")
    for archive in source.archives():
        _check_address([*keys, "archive"], archive, wrong)


def _check_address(keys: list[str], address: str, wrong: Wrong) -> None:
    try:
        addresses.parse(address)
    except ManifestError as error:
        raise wrong(keys, str(error)) from error


def read_sums(path: Path) -> Pinned:
    """The hashes beside a manifest; nothing pinned when there is no such file."""
    if not path.is_file():
        return Pinned()
    pinned = Pinned()
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise ManifestError(f"{path} can't be read: {error.strerror}") from error
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] == "commit" and len(words) == 3 and re.fullmatch(r"[0-9a-f]{40}", words[2]):
            pinned.commits[words[1]] = words[2]
        elif words[0] == "file" and len(words) == 4 and re.fullmatch(r"[0-9a-f]{64}|-", words[1]):
            if not re.fullmatch(r"[0-9]{1,18}|-", words[2]):
                raise ManifestError(f"{path}:{number}: expected a size in bytes or -, not {words[2]!r}")
            size = None if words[2] == "-" else int(words[2])
            pinned.files[words[3]] = (size, None if words[1] == "-" else words[1])
        else:
            raise ManifestError(
                f"{path}:{number}: expected `commit OWNER/REPO SHA` or `file SHA256 BYTES ADDRESS`; "
                "this file is written by `datakit pin`"
            )
    return pinned


def sums_text(name: str, pinned: Pinned) -> str:
    """The text of a `.sums` file."""
    lines = [f"# written by `datakit pin {name}`: commits of hub repositories, sha256 and bytes of files"]
    lines += [f"commit {repo} {sha}" for repo, sha in sorted(pinned.commits.items())]
    for address, (size, digest) in sorted(pinned.files.items()):
        lines.append(f"file {digest or '-'} {'-' if size is None else size} {address}")
    return "\n".join(lines) + "\n"


def check_sources(manifest: Manifest, names: Iterable[str]) -> None:
    """Raises UsageError for a name that is no source of the dataset."""
    every = manifest.images.sources
    if odd := sorted(set(names) - every.keys()):
        raise UsageError(f"{manifest.name!r} has no source {odd[0]!r} to do without. {nearest(odd[0], every)}")
