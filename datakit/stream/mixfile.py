"""Mix: `a+b:2` as a list of packed tars, their sample counts and one fingerprint. No data is copied.

    llava665k+qinstruct      both, once an epoch
    llava665k+qinstruct:3    qinstruct three times an epoch

`<root>/mixes/<name>/mix.json` names the tars relative to itself, so a root can be moved or copied whole. It names
nothing outside its root. `check` compares it with the commits beside the tars, and so finds tars that were packed again
after the mix was made, even if their size is the same.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import msgspec

from datakit.errors import MixError, UsageError, nearest
from datakit.records.record import KEY
from datakit.storage.fingerprint import fingerprint
from datakit.storage.ledger import Commit, Part, decode_commit
from datakit.storage.refusals import store_errors

VERSION = 1
CHANGED = (
    "{!r} isn't what the mix was made from: it was packed again since, or is damaged. `datakit verify` tells which; "
    "make the mix again with `{}`"
)
_OURS = re.compile(r"\.\./\.\./[a-z0-9_-][a-z0-9_.@-]*/[a-z0-9_-]+/(?P<shard>\d+)(?:-\d+)?\.(tar|parquet)")


class MixShard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One packed tar and the Parquet file beside it with the offsets of its members."""

    tar: str  # relative to the folder of mix.json
    index: str
    samples: int
    size_bytes: int
    xxh3: str  # of the tar, 128 bits
    index_xxh3: str


class MixPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One dataset of a mix."""

    dataset: str
    repeats: int
    recipe: str  # fingerprint of the pack step
    samples: int  # before repeating
    shards: list[MixShard]

    @property
    def size_bytes(self) -> int:
        """Bytes of its tars, each counted once."""
        return sum(shard.size_bytes for shard in self.shards)


class Mix(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is trained on: which datasets, how often each is repeated, and in which tars they are."""

    version: int
    name: str
    fingerprint: str
    samples: int  # in one epoch, repeats counted
    parts: list[MixPart]

    @property
    def size_bytes(self) -> int:
        """Bytes of its tars, each counted once."""
        return sum(part.size_bytes for part in self.parts)

    @property
    def n_tars(self) -> int:
        """Number of its tars, each counted once."""
        return sum(len(part.shards) for part in self.parts)

    def entries(self) -> list[MixShard]:
        """The tars of one epoch, repeated ones as often as they are repeated, in the order that `Order` permutes."""
        return [shard for part in self.parts for _ in range(part.repeats) for shard in part.shards]


def parse(expression: str, known: list[str]) -> list[tuple[str, int]]:
    """`a+b:2` as [("a", 1), ("b", 2)]. Raises UsageError, with the nearest names, on anything else."""
    repeats_by_name: dict[str, int] = {}
    for term in expression.split("+"):
        name, colon, times = term.strip().partition(":")
        whole, dot, subset = name.partition(".")
        if not KEY.fullmatch(whole) or (dot and not KEY.fullmatch(subset)):
            raise UsageError(f"bad mix {expression!r} at {term!r}: expected NAME or NAME:TIMES joined with +")
        if whole not in known:
            raise UsageError(f"unknown dataset {name!r} in mix {expression!r}. {nearest(name, known)}")
        if colon and not re.fullmatch(r"[1-9]\d{0,3}", times):
            raise UsageError(f"bad mix {expression!r}: {term!r} should end in a whole number from 1, e.g. {name}:2")
        if name in repeats_by_name:
            raise UsageError(f"{name!r} stands twice in mix {expression!r}; write {name}:2 to repeat it")
        repeats_by_name[name] = int(times or 1)
    for name in repeats_by_name:
        whole = name.partition(".")[0]
        if whole != name and whole in repeats_by_name:
            raise UsageError(f"{name!r} is a part of {whole!r}, so mix {expression!r} would have its rows twice")
    return list(repeats_by_name.items())


def make(name: str, parts: list[MixPart]) -> Mix:
    """The mix of some parts. Raises MixError when one of them has no samples."""
    empty = [part.dataset for part in parts if not part.samples]
    if empty:
        raise MixError(f"{empty[0]!r} has no packed sample, so mix {name!r} would silently leave it out")
    samples, identity = _samples_and_fingerprint(parts)
    return Mix(version=VERSION, name=name, fingerprint=identity, samples=samples, parts=parts)


def _samples_and_fingerprint(parts: list[MixPart]) -> tuple[int, str]:
    """Number of samples in an epoch, and the fingerprint of its contents."""
    samples = sum(part.samples * part.repeats for part in parts)
    identity = [[part.dataset, part.repeats, [[s.xxh3, s.samples] for s in part.shards if s.samples]] for part in parts]
    return samples, fingerprint(identity)


def encode(mix: Mix) -> bytes:
    """The text of a mix.json; the same mix always has the same bytes."""
    return msgspec.json.format(msgspec.json.encode(mix), indent=1) + b"\n"


def read(path: str | Path) -> tuple[Mix, str]:
    """A mix and the folder (a path or URL) that its tars are relative to. Raises MixError."""
    text = str(path)
    if not text.endswith(".json"):
        text = posixpath.join(text, "mix.json")
    (data,) = _read_remote(text, [text]) if "://" in text else [_read_local(Path(text))]
    if data is None:
        raise MixError(f"no mix at {text!r}: make one with `datakit build-mix NAME+NAME`")
    try:
        mix = msgspec.json.decode(data, type=Mix)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MixError(f"{text!r} is not a mix: {error}. Make it again with `datakit build-mix`") from error
    if (mix.samples, mix.fingerprint) != _samples_and_fingerprint(mix.parts) or any(
        part.repeats < 1 or part.samples != sum(shard.samples for shard in part.shards) for part in mix.parts
    ):
        raise MixError(
            f"{text!r} was changed by hand: its counts or its fingerprint aren't those of its tars. Make it again"
        )
    if mix.version != VERSION:
        raise MixError(f"{text!r} has version {mix.version}, this datakit reads {VERSION}: make the mix again")
    named = (name for shard in mix.entries() for name in (shard.tar, shard.index))
    if odd := next((name for name in named if not _OURS.fullmatch(name)), None):
        raise MixError(
            f"{text!r} names {odd!r}, which isn't a packed tar of the root that the mix is in: nothing was read. "
            "Make it again with `datakit build-mix`"
        )
    return mix, posixpath.dirname(text) or "."


def command(mix: Mix) -> str:
    """The command that makes the mix again."""
    return _command([(part.dataset, part.repeats) for part in mix.parts], mix.name)


def terms_and_command(data: bytes, name: str) -> tuple[list[tuple[str, int]], str]:
    """(dataset, repeats) of the datasets that a mix.json names, and the command that makes it again.

    Also works for a damaged mix.json. If no dataset can be read from it, the command has A+B in their place.
    """
    found = re.findall(rb'"dataset"\s*:\s*"([a-z0-9_.-]+)"\s*,\s*"repeats"\s*:\s*([1-9]\d{0,3})\b', data)
    terms = [(dataset.decode(), int(repeats)) for dataset, repeats in found]
    return terms, _command(terms or [("A", 1), ("B", 1)], name)


def _command(terms: list[tuple[str, int]], full_name: str) -> str:
    expression = "+".join(dataset + (f":{repeats}" if repeats > 1 else "") for dataset, repeats in terms)
    name, _, limit = full_name.partition("@limit-")
    named = "" if name == expression else f" --name {name}"
    return f"datakit build-mix {expression}{named}" + (f" --limit {limit}" if limit else "")


def check(mix: Mix, folder: str) -> None:
    """Compares a mix with the commits of its tars; the tars and indexes themselves aren't read.

    `folder` is the one that `read` returns. Raises MixError for a tar that was packed again since, or has no commit.
    """
    shards = {shard.tar: shard for part in mix.parts for shard in part.shards}
    commits = _read_commits(folder, sorted({commit_of(tar) for tar in shards}))
    parts = {(name, part.name): part for name, commit in commits.items() if commit for part in commit.parts}
    for tar, shard in shards.items():
        if not matches_commit(shard, parts.get((commit_of(tar), _stem(tar)))):
            raise MixError(CHANGED.format(locate(folder, tar), command(mix)))


def matches_commit(shard: MixShard, part: Part | None) -> bool:
    """Whether a tar of a mix and its index are those that a commit's part names."""
    if part is None or part.tar is None:
        return False
    committed = (part.rows, part.tar.size_bytes, part.tar.xxh3, part.table.xxh3)
    return committed == (shard.samples, shard.size_bytes, shard.xxh3, shard.index_xxh3)


def commit_of(tar: str) -> str:
    """The path of the commit beside a tar, relative to the mix as the tar's is."""
    match = _OURS.fullmatch(tar)
    assert match  # `read` has checked it
    return f"{posixpath.dirname(tar)}/{match['shard']}.commit.json"


def _stem(tar: str) -> str:
    return posixpath.basename(tar).removesuffix(".tar")


def _read_commits(folder: str, names: list[str]) -> dict[str, Commit | None]:
    """The commits of those names; None for one that isn't there or is damaged. Raises MixError."""
    paths = [locate(folder, name) for name in names]
    data = _read_remote(folder, paths) if "://" in folder else [_read_local(Path(path)) for path in paths]
    return dict(zip(names, map(_decode_commit, data), strict=True))


def _read_local(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise MixError(f"can't read {str(path)!r}: {error}. `datakit verify` says what is whole") from error


def _read_remote(folder: str, paths: list[str]) -> list[bytes | None]:
    """The bytes of files of a bucket, got by one call; None for a file that isn't there."""
    import fsspec

    with store_errors(folder, "read"):
        fs = fsspec.core.url_to_fs(folder)[0]
        got = fs.cat(paths, on_error="return") if paths else {}
    found: list[bytes | None] = []
    for path in paths:
        data = got.get(fs._strip_protocol(path))
        if not isinstance(data, bytes | None | FileNotFoundError):
            raise MixError(f"can't read {path!r}: {data}. Check that the bucket can be reached")
        found.append(data if isinstance(data, bytes) else None)
    return found


def _decode_commit(data: bytes | None) -> Commit | None:
    try:
        return decode_commit(data) if data is not None else None
    except ValueError:
        return None


def locate(folder: str, name: str) -> str:
    """The path or URL of a file that mix.json names, with `..` resolved."""
    scheme, mark, rest = folder.rpartition("://")
    return f"{scheme}{mark}{posixpath.normpath(posixpath.join(rest, name))}"
