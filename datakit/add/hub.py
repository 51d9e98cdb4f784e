"""Hub: what a dataset repository holds, told by its file names and first bytes; nothing is downloaded whole."""

from __future__ import annotations

import io
import json
import re
import tarfile
import zipfile
from fnmatch import fnmatchcase
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from datakit.add import Draft
from datakit.add.files import REFS, ROWS_PER_SHARD, TURNS, columns_text, json_rows, keep, refs_of, source
from datakit.errors import DownloadError, SourceError, UsageError, nearest, shortlist
from datakit.formats import webdataset
from datakit.process.terminal import size_text
from datakit.readers import webdataset as samples
from datakit.records.attributes import SeenKeys, kind_of_arrow, why_refused
from datakit.web.addresses import HubFile
from datakit.web.downloads import with_retries
from datakit.web.hosts import Hosts
from datakit.web.hubclient import HUB
from datakit.web.ranged import RangedFile
from datakit.web.transfers import hub_files

Kind = Literal["json", "parquet", "webdataset"]
HEAD_BYTES = 4 << 20  # of a file that is looked into
LOOK_BYTES = 64 << 20  # of a zip's index or a Parquet's footer, at most; half a million pictures have 50 MB
SHOWN = 20  # choices listed in an error
LOOKS = 12  # files whose first bytes are fetched before a person is asked which one it is
_ENDINGS: dict[str, Kind] = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".tar": "webdataset"}
_NUMBER = re.compile(r"(?<![A-Za-z])\d+(?:-of-\d+)?(?:-[0-9a-f]{16})?(?=\.\w+$)")
_TEXTS = {  # names that columns go by, the surest first
    "messages": TURNS,
    "question": ("question", "query", "prompt", "instruction"),
    "answer": ("answer", "response", "output", "completion"),
    "text": ("text", "caption", "captions", "description"),
}


def look(repository: str, pattern: str | None, hosts: Hosts) -> Draft:
    """What a dataset repository `OWNER/REPO[@REVISION]` holds. Raises UsageError when that isn't one thing."""
    name = repository.removeprefix(f"{HUB}/").removeprefix("datasets/").strip("/")
    repo, _, revision = name.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII):
        raise UsageError(f"--hub takes OWNER/REPO or OWNER/REPO@REVISION, not {repository!r}")
    hub = Hub(repo, revision or "main", hosts)
    kind, files, head = _choose_files(hub, pattern)
    rows: dict[str, Any] = {"format": kind, "files": files}
    draft = Draft(repo, rows, {"by": "inline"}, "", "inline", hub=repo, revision=hub.revision)
    draft.homepage = f"{HUB}/datasets/{repo}"
    licence = hub.licence()
    draft.licence = licence or "unknown: the card names none"
    {"json": _hub_json, "parquet": _hub_parquet, "webdataset": _hub_tars}[kind](draft, hub, files, head)
    draft.note("files", f"{shortlist(files, 3)}: {hub.size(files)}")
    draft.note("licence", f"{licence}, by the card" if licence else draft.licence)
    return draft


class Hub:
    """A repository: its files with their sizes, and their bytes."""

    def __init__(self, repo: str, revision: str, hosts: Hosts) -> None:
        self.repo, self.revision, self.hosts = repo, revision, hosts
        _, listed = with_retries(lambda: hub_files(repo, revision, hosts), f"{repo} could not be looked at")
        self.files = {path: size for path, (size, _) in listed.items()}

    def address(self, path: str) -> str:
        return str(HubFile(repo=self.repo, revision=self.revision, path=path))

    def size(self, paths: list[str]) -> str:
        return size_text(sum(self.files[path] for path in paths))

    def head(self, path: str) -> bytes:
        with _Look(self.address(path), hosts=self.hosts) as file:
            return file.read(HEAD_BYTES) or b""

    def licence(self) -> str:
        return licence_of(self.head("README.md").decode("utf-8", "replace") if "README.md" in self.files else "")


def licence_of(card: str) -> str:
    """What the front matter of a card says; empty when it says nothing."""
    front = card[3:].partition("\n---")[0] if card.startswith("---") else ""
    line = re.search(r"^license:[ \t]*(?:\n[ \t]*-[ \t]*)?(\S.*)$", front, re.MULTILINE)
    return line[1].strip(" \"'[]") if line else ""


class _TooMuch(DownloadError):
    """Looking into a file would take more than LOOK_BYTES."""


class _Look(RangedFile):
    """A file of which no more than LOOK_BYTES are read."""

    def fetch(self, start: int, stop: int) -> bytes:
        if self.bytes_read + stop - start > LOOK_BYTES:
            raise _TooMuch(f"{self.address!r} has an index of more than {LOOK_BYTES} bytes: write its manifest by hand")
        return super().fetch(start, stop)


def _choose_files(hub: Hub, pattern: str | None) -> tuple[Kind, list[str], bytes]:
    """The annotation files that were meant, and the head of the first. Raises UsageError when it isn't clear."""
    offered = {file: kind for file in sorted(hub.files) if (kind := _ENDINGS.get(Path(file).suffix.lower()))}
    if pattern is not None:
        offered = {file: kind for file, kind in offered.items() if file == pattern or fnmatchcase(file, pattern)}
        if not offered:
            raise UsageError(f"{hub.repo} has no {pattern!r} of JSON, Parquet or tar. {nearest(pattern, hub.files)}")
        if len(set(offered.values())) > 1:
            raise UsageError(f"{pattern!r} is of several kinds: {shortlist(offered)}. Take one with --file")
        files = list(offered)
        return offered[files[0]], files, hub.head(files[0])
    groups: dict[str, list[str]] = {}
    for file in offered:
        groups.setdefault(_NUMBER.sub("*", file), []).append(file)
    chosen = []
    for label, files in groups.items():
        kind = offered[files[0]]
        unseen = kind == "parquet" or len(groups) > LOOKS
        head = b"" if unseen else hub.head(files[0])
        if unseen or (_is_conversations(head) if kind == "json" else _kinds(_tar_head(head))):
            chosen.append((label, kind, files, head))
    if not chosen:
        raise UsageError(
            f"{hub.repo} has nothing that is read without a manifest of yours: no conversations in JSON, no Parquet, "
            f"no WebDataset tars. It has {shortlist(hub.files, 8) or 'no files'}"
        )
    if len(chosen) > 1:
        choices = [
            f"  --file '{label if len(files) > 1 else files[0]}'   {len(files)} of {kind}, {hub.size(files)}"
            for label, kind, files, _ in chosen
        ]
        raise UsageError(f"{hub.repo} has several things that may be meant; say which:\n{_choice_lines(choices)}")
    ((_, kind, files, head),) = chosen
    return kind, files, head


def _choice_lines(lines: list[str]) -> str:
    more = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join(lines[:SHOWN] + more)


def _hub_json(draft: Draft, hub: Hub, files: list[str], head: bytes) -> None:
    draft.annotations["rows_per_shard"] = ROWS_PER_SHARD
    rows, used = _json_head(head)
    seen = SeenKeys()
    for row in rows:
        seen.add(row)
    what = json_rows(draft, rows, files[0], seen)
    n_rows = round(len(rows) * sum(map(hub.files.__getitem__, files)) / used)
    whole = len(head) == hub.files[files[0]] and len(files) == 1
    draft.expected = {"rows" if whole else "rows_about": n_rows}
    if not whole:
        draft.note(
            "kept", f"told from the first {len(rows):,} rows; `datakit check` says what doesn't fit in the others"
        )
    draft.note("format", f"{what}, {'' if whole else 'about '}{n_rows:,} rows")
    refs = list(islice(refs_of(rows), REFS))
    if any(re.match(r"https?://", ref) for ref in refs):
        raise UsageError(f"rows of {files[0]} name pictures by URL: such a manifest is written by hand, as coyo's is")
    draft.images, draft.recipe = {"by": "none"}, "inline"
    if not refs:
        return draft.note("pictures", "none are named in its first rows")
    draft.images, draft.recipe = {"by": "path"}, "instruct"
    stores = [file for file in sorted(hub.files) if file.lower().endswith((".zip", ".tar")) and file not in files]
    entries, fitting = {}, []
    for name, archive, parts, first in group_archives(stores):
        entry, fits = source(draft, name, hub.address(first), refs, names_in(hub, first), parts=parts is not None)
        entries[name] = {**entry, "archive": hub.address(archive)} | ({"parts": parts} if parts else {})
        fitting += [name] if fits else []
    # An archive in which no reference was found would come before one in which some were.
    draft.images["sources"] = {name: entries[name] for name in fitting or entries}
    if left := entries.keys() - set(fitting if fitting else entries):
        draft.note("pictures", f"left out of the manifest: {shortlist(sorted(left))}", problem=True)
    if not stores:
        text = f"none in {hub.repo}, and rows name them as {refs[0]!r}: add their archives under images.sources"
        draft.note("pictures", text, problem=True)


def _hub_parquet(draft: Draft, hub: Hub, files: list[str], head: bytes) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        remote = io.BufferedReader(_Look(hub.address(files[0]), hosts=hub.hosts), 1 << 18)
        with remote, pq.ParquetFile(remote) as file:
            schema, n_rows = file.schema_arrow, file.metadata.num_rows * len(files)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{files[0]} of {hub.repo} is no Parquet: {error}") from error
    draft.reader, draft.expected = "hf", {"rows" if len(files) == 1 else "rows_about": n_rows}
    draft.note("format", f"Parquet, {'about ' if len(files) > 1 else ''}{n_rows:,} rows in {len(files)} files")
    named, told_by = columns(schema, f"{files[0]} of {hub.repo}")
    draft.annotations["columns"] = named
    draft.note("columns", columns_text(named))
    others = {name: kind_of_arrow(schema.field(name).type) for name in schema.names if name not in named.values()}
    reasons = {name: why_refused(name, ()) or "" if kind else "JSON has no such type" for name, kind in others.items()}
    said = [f"key {name!r} ({schema.field(name).type}) isn't kept: {why}" for name, why in reasons.items() if why]
    keep(draft, {name: kind for name, kind in others.items() if kind and not reasons[name]}, said)
    held = named.get("image")
    draft.images = {"by": "inline" if held else "none"}
    draft.note("pictures", f"in column {held!r}, by {told_by}" if held else "in no column")


def columns(schema: Any, where: str) -> tuple[dict[str, str], str]:
    """The columns by role, and how that of the pictures was recognised. Raises UsageError when none holds text."""
    import pyarrow as pa

    def is_list(name: str) -> bool:
        return bool(pa.types.is_list(schema.field(name).type) or pa.types.is_large_list(schema.field(name).type))

    def is_text(name: str) -> bool:
        return bool(pa.types.is_string(schema.field(name).type) or pa.types.is_large_string(schema.field(name).type))

    # What `datasets` writes beside the columns; it need not be installed to be read.
    said = _features((schema.metadata or {}).get(b"huggingface", b"{}"))
    held = [name for name in schema.names if '"_type": "Image"' in json.dumps(said.get(name))]
    told_by = "the features that Hugging Face datasets wrote into the file"
    if not said:
        bytes_in = re.compile(r"struct<bytes: (large_)?binary")
        held = [name for name in schema.names if bytes_in.search(str(schema.field(name).type))]
        told_by = "its type"
    if len(held) > 1 and not (held := [name for name in held if name in ("image", "images")][:1]):
        raise UsageError(f"{where} has several columns of pictures: write the manifest by hand, with one of them")
    picked = {}
    for role, known in _TEXTS.items():
        fits = [name for name in schema.names if is_text(name) or (role == "messages" and is_list(name))]
        if named := [name for wanted in known for name in fits if name.lower() == wanted]:
            picked[role] = named[0]
    sets = (("messages",), ("question", "answer"), ("text",))
    kept = next((roles for roles in sets if set(roles) <= set(picked)), None)
    if kept is None:
        raise UsageError(
            f"no column of {where} has a name that is known to hold text: it has {shortlist(schema.names, 12)}. "
            "Write a manifest with [annotations.columns] (datakit/readers/hf.py)"
        )
    found = {role: picked[role] for role in kept} | ({"image": held[0]} if held else {})
    return found | ({"id": "id"} if "id" in schema.names else {}), told_by


def _features(text: bytes) -> dict[str, Any]:
    """The features that `datasets` wrote into a Parquet file; none when it didn't, or they can't be read."""
    try:
        found = json.loads(text)
        for name in ("info", "features"):
            found = found[name]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _hub_tars(draft: Draft, hub: Hub, files: list[str], head: bytes) -> None:
    members = _tar_head(head)
    kinds = _kinds(members)
    if not kinds:
        raise UsageError(f"{files[0]} of {hub.repo} holds no pictures with a json or txt beside them")
    draft.reader = "webdataset"
    told = next((_json_head(data)[0] for name, data in members if webdataset.split(name)[1] == "json"), [])
    said = next((k for k in ("messages", "conversations", "caption") if told and told[0].get(k)), None)
    text = f"json: {said}" if said else "txt -> caption" if "txt" in kinds else "json, in which nothing known was seen"
    draft.note("format", f"WebDataset, {len(files)} tars")
    draft.note("columns", f"{text}; members are {shortlist(kinds, 8)}", problem=said is None and "txt" not in kinds)
    draft.note("pictures", f"in the tars: {shortlist(k for k in kinds if samples.PICTURE.fullmatch(k))}")


# First bytes


def _is_conversations(head: bytes) -> bool:
    rows, _ = _json_head(head)
    return any(isinstance(rows[0].get(name), list) for name in TURNS) if rows else False


def _json_head(head: bytes) -> tuple[list[Any], int]:
    """The whole objects at the start of a JSON array or of JSON Lines, and how many bytes they take."""
    text = head.decode("utf-8-sig", "ignore")
    decoder, at, rows = json.JSONDecoder(), re.match(r"\s*\[?", text).end(), []  # type: ignore[union-attr]
    start = at
    while match := re.compile(r"[\s,]*(?=\{)").match(text, at):
        try:
            row, at = decoder.raw_decode(text, match.end())
        except (ValueError, RecursionError):
            break
        rows.append(row)
    return rows, max(1, len(text[start:at].encode("utf-8", "ignore")))


def _tar_head(head: bytes) -> list[tuple[str, bytes]]:
    """The members that are whole in the first bytes of a tar."""
    found = []
    try:
        with tarfile.open(fileobj=io.BytesIO(head), mode="r:") as tar:
            while (member := tar.next()) is not None:
                if member.isfile() and member.offset_data + member.size <= len(head):
                    found.append((member.name, head[member.offset_data : member.offset_data + member.size]))
    except (tarfile.TarError, ValueError):  # where the head ends; what came before it counts
        return found
    return found


def _kinds(members: list[tuple[str, bytes]]) -> list[str]:
    """The kinds of members of a WebDataset tar; none when it is something else, such as an archive of pictures."""
    kinds: dict[str, set[str]] = {}
    for name, _ in members:
        key, kind = webdataset.split(name)
        kinds.setdefault(key, set()).add(kind)
    seen = [k for k in kinds.values() if k & {"json", "txt"} and any(samples.PICTURE.fullmatch(kind) for kind in k)]
    return sorted(set(chain(*kinds.values()))) if seen else []


def names_in(hub: Hub, file: str) -> list[str] | None:
    """Names in an archive of a repository; None when that would take long. Of a tar those at its start."""
    if file.lower().endswith(".tar"):
        return [name for name, _ in _tar_head(hub.head(file))]
    try:
        remote = io.BufferedReader(_Look(hub.address(file), hosts=hub.hosts), 1 << 18)
        with remote, zipfile.ZipFile(remote) as zipped:
            return [name for name in zipped.namelist() if not name.endswith("/")]
    except _TooMuch:
        return None
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise SourceError(f"{file} of {hub.repo} is no zip: {error}") from error


def group_archives(files: list[str]) -> list[tuple[str, str, int | None, str]]:
    """(name, path, parts, first file) of archives; those numbered from 0 on are the parts of one."""
    found: list[tuple[str, str, int | None, str]] = []
    groups: dict[str, list[str]] = {}
    for file in files:
        groups.setdefault(_NUMBER.sub("{part}", file.replace("{", "").replace("}", "")), []).append(file)
    for label, group in groups.items():
        wide = max(map(len, group)) == min(map(len, group))
        digits = len(group[0]) - len(label) + len("{part}")
        pattern = label.replace("{part}", f"{{part:0{digits}d}}") if wide and digits > 1 else label
        if len(group) > 1 and sorted(group) == sorted(pattern.format(part=k) for k in range(len(group))):
            found.append((_source_name(label, found), pattern, len(group), pattern.format(part=0)))
        else:
            found += [(_source_name(file, found), file, None, file) for file in group]
    return found


def _source_name(file: str, others: list[Any]) -> str:
    """A name for a source, from its file's."""
    stem = re.sub(r"[^a-z0-9]+", "_", Path(file.replace("{part}", "")).stem.lower()).strip("_") or "pictures"
    return stem if stem not in [other[0] for other in others] else f"{stem}_{len(others)}"
