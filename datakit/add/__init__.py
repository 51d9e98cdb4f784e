"""Add: looks at a dataset that the catalogue doesn't have, and writes the manifest that describes it.

1. `hub.look` lists a repository and reads the first bytes of what may be annotations; `files.look` reads a JSON.
2. Columns, pictures and the licence are told from what was seen; where that isn't clear, the error says what to add.
3. `write` publishes the manifest and reads it as every command will; one that can't be read isn't left behind.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datakit import catalogue
from datakit.catalogue import manifest
from datakit.errors import ManifestError, UsageError
from datakit.process.terminal import json_text
from datakit.records.record import KEY
from datakit.storage.store import publish_file

_KINDS = ("format", "files", "columns", "kept", "pictures", "licence")  # of notes


@dataclass
class Draft:
    """A manifest to be written, with notes for the user."""

    title: str
    annotations: dict[str, Any]
    images: dict[str, Any]
    reader: str
    recipe: str
    homepage: str = ""
    licence: str = "unknown: ask whoever gave you the data"
    hub: str = ""
    revision: str = "main"
    expected: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)  # (what, text)

    def notes_by_kind(self) -> list[tuple[str, str]]:
        """The notes as they are read: what it is, where, what of it is kept, and on which terms."""
        return sorted(self.notes, key=lambda note: _KINDS.index(note[0]))

    def note(self, what: str, text: str, *, problem: bool = False) -> None:
        self.notes.append((what, text))
        if problem:
            self.problems.append(text)


def catalogue_folder(folder: str | None) -> tuple[Path, bool]:
    """The folder to write to, the user's first catalogue if `folder` is None; and whether commands look there."""
    own = catalogue.own_folders() or [Path("catalogue")]
    if folder is None:
        return own[0], True
    return Path(folder), Path(folder).absolute() in [p.absolute() for p in own]


def check(name: str, folder: Path, *, force: bool = False) -> Path:
    """Where a dataset's manifest goes in a catalogue's folder. Raises UsageError for a malformed or taken name."""
    if not KEY.fullmatch(name):
        raise UsageError(f"a dataset's name may hold a-z, 0-9, _ and -, not {name!r}")
    path = folder / "manifests" / f"{name}.toml"
    if not force and (path.exists() or name in catalogue.names("manifests")):
        raise UsageError(f"there is a dataset {name!r} already: take another name, or write over it with --force")
    return path


def write(name: str, draft: Draft, folder: Path, *, force: bool = False) -> Path:
    """Publishes the manifest of a dataset in a catalogue's folder. Raises UsageError for a malformed or taken name."""
    path = check(name, folder, force=force)
    before = path.read_bytes() if path.exists() else None
    body = {
        "title": draft.title,
        "homepage": draft.homepage,
        "licence": draft.licence,
        "citation": "",
        "hub": draft.hub,
        "revision": draft.revision,
        "reader": draft.reader,
        "recipe": draft.recipe,
        "problems": draft.problems,
        "expected": draft.expected,
        "annotations": draft.annotations,
        "images": draft.images,
    }
    try:
        text = toml(body).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"a path that isn't UTF-8 can't stand in a manifest: {error}. Rename it") from error
    publish_file(path, text)
    try:
        manifest.read(path)
    except ManifestError:
        if before is None:
            path.unlink()
        else:
            publish_file(path, before)
        raise
    return path


def toml(table: dict[str, Any], name: str = "") -> str:
    """A table as TOML: its values, then the tables in it; empty ones are left out."""
    lines = [f"[{name}]"] if name else []
    inner = {key: value for key, value in table.items() if isinstance(value, dict) and value}
    lines += [f"{_key(key)} = {_value(value)}" for key, value in table.items() if not isinstance(value, dict)]
    parts = ["\n".join(lines) + "\n"] if len(lines) > bool(name) or not inner else []
    parts += [toml(value, f"{name}.{_key(key)}" if name else _key(key)) for key, value in inner.items()]
    return "\n".join(parts)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, list):
        if len(value) < 2:
            return f"[{''.join(map(_value, value))}]"
        return "[\n" + "".join(f"    {_value(item)},\n" for item in value) + "]"
    json.dumps(value, ensure_ascii=False).encode()  # TOML has no escape for what isn't UTF-8
    return json_text(value)  # JSON's escapes are TOML's
