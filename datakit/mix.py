"""Mix: `a+b:2` as a list of packed tars, their sample counts and one fingerprint. It copies nothing.

    llava665k+qinstruct      both, once an epoch
    llava665k+qinstruct:3    qinstruct three times an epoch

`<root>/mixes/<name>/mix.json` names the tars relative to itself, so a root can be moved or copied whole.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import msgspec

from datakit.errors import MixError, UsageError, nearest
from datakit.fingerprint import fingerprint
from datakit.record import KEY

VERSION = 1


class MixShard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One packed tar and the Parquet beside it that says where its members stand."""

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


class Mix(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is trained on: datasets, how often, in which tars."""

    version: int
    name: str
    fingerprint: str
    samples: int  # in one epoch, repeats counted
    parts: list[MixPart]

    def entries(self) -> list[MixShard]:
        """Tars of one epoch, repeats spelled out, in the order that positions are computed from."""
        return [shard for part in self.parts for _ in range(part.repeats) for shard in part.shards]


def parse(expression: str, known: list[str]) -> list[tuple[str, int]]:
    """`a+b:2` as [("a", 1), ("b", 2)]. Raises UsageError, with the nearest names, on anything else."""
    chosen: dict[str, int] = {}
    for term in expression.split("+"):
        name, colon, times = term.strip().partition(":")
        whole, dot, subset = name.partition(".")
        if not KEY.fullmatch(whole) or (dot and not KEY.fullmatch(subset)):
            raise UsageError(f"bad mix {expression!r} at {term!r}: expected NAME or NAME:TIMES joined with +")
        if whole not in known:
            raise UsageError(f"unknown dataset {name!r} in mix {expression!r}. {nearest(name, known)}")
        if colon and not re.fullmatch(r"[1-9]\d{0,3}", times):
            raise UsageError(f"bad mix {expression!r}: {term!r} should end in a whole number from 1, e.g. {name}:2")
        if name in chosen:
            raise UsageError(f"{name!r} stands twice in mix {expression!r}; write {name}:2 to repeat it")
        chosen[name] = int(times or 1)
    for name in chosen:
        whole = name.partition(".")[0]
        if whole != name and whole in chosen:
            raise UsageError(f"{name!r} is a part of {whole!r}, so mix {expression!r} would have its rows twice")
    return list(chosen.items())


def make(name: str, parts: list[MixPart]) -> Mix:
    """A mix with its count and fingerprint. Raises MixError when there is nothing in it."""
    empty = [part.dataset for part in parts if not part.samples]
    if empty:
        raise MixError(f"{empty[0]!r} has no packed sample, so mix {name!r} would silently leave it out")
    samples, identity = _identity(parts)
    return Mix(version=VERSION, name=name, fingerprint=identity, samples=samples, parts=parts)


def _identity(parts: list[MixPart]) -> tuple[int, str]:
    """Samples of an epoch, and the fingerprint of what is in it."""
    samples = sum(part.samples * part.repeats for part in parts)
    identity = [[part.dataset, part.repeats, [[s.xxh3, s.samples] for s in part.shards if s.samples]] for part in parts]
    return samples, fingerprint(identity)


def encode(mix: Mix) -> bytes:
    return msgspec.json.format(msgspec.json.encode(mix), indent=1) + b"\n"


def read(path: str | Path) -> tuple[Mix, str]:
    """A mix and the folder (a path or URL) that its tars are relative to. Raises MixError."""
    text = str(path)
    if not text.endswith(".json"):
        text = posixpath.join(text, "mix.json")
    try:
        if "://" in text:
            import fsspec

            with fsspec.open(text, "rb") as file:
                data = file.read()
        else:
            data = Path(text).read_bytes()
        mix = msgspec.json.decode(data, type=Mix)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MixError(f"no mix at {text!r}: make one with `datakit build-mix NAME+NAME`") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MixError(f"{text!r} is not a mix: {error}. Make it again with `datakit build-mix`") from error
    if (mix.samples, mix.fingerprint) != _identity(mix.parts) or any(
        part.repeats < 1 or part.samples != sum(shard.samples for shard in part.shards) for part in mix.parts
    ):
        raise MixError(
            f"{text!r} was changed by hand: its counts or its fingerprint aren't those of its tars. Make it again"
        )
    if mix.version != VERSION:
        raise MixError(f"{text!r} has version {mix.version}, this datakit reads {VERSION}: make the mix again")
    return mix, posixpath.dirname(text) or "."


def locate(folder: str, name: str) -> str:
    """The path or URL of a file that mix.json names, with `..` resolved."""
    scheme, mark, rest = folder.rpartition("://")
    return f"{scheme}{mark}{posixpath.normpath(posixpath.join(rest, name))}"
