"""Files: a JSON of one's own with a folder or an archive of pictures; and what rows and archives say of each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from datakit.add import Draft
from datakit.errors import UsageError, shortlist
from datakit.formats import archives, jsonfile
from datakit.records.attributes import SeenKeys, used_keys
from datakit.upstream.loose import is_file

REFS = 2000  # references to pictures that are compared with an archive's names
ROWS_PER_SHARD = 5000
TURNS = ("messages", "conversations", "conversation", "texts")  # names of columns, the surest first


def look(path: Path, pictures: Path | None) -> Draft:
    """A JSON in LLaVA's form or with messages, and a folder or an archive of its pictures."""
    path = path.resolve()
    n_rows = 0
    refs: list[str] = []
    first: list[Any] = []
    seen = SeenKeys()
    for chunk, rows in jsonfile.chunks(path):
        n_rows += chunk.n_rows
        first = first or rows[:100]
        for row in rows:
            seen.add(row)
        refs += list(islice(refs_of(rows), max(0, REFS - len(refs))))
    annotations = {"format": "json", "files": [path.as_uri()], "rows_per_shard": ROWS_PER_SHARD}
    draft = Draft(path.stem, annotations, {"by": "none"}, "", "inline", expected={"rows": n_rows})
    if not n_rows:
        raise UsageError(f"{path} has no rows")
    draft.note("format", f"{json_rows(draft, first, path.name, seen)}, {n_rows:,} rows")
    if not refs:
        draft.note("pictures", "none are named")
    elif pictures is None:
        raise UsageError(f"{path.name} names pictures such as {refs[0]!r}: say where they are with --images")
    elif pictures.is_dir():
        _look_in_folder(draft, pictures.resolve(), refs)
    else:
        names = [member.name for member in archives.members(pictures)]
        draft.recipe = "instruct"
        archive, _ = source(draft, "all", pictures.resolve().as_uri(), refs, names)
        draft.images = {"by": "path", "sources": {"all": archive}}
    draft.note("licence", draft.licence)
    return draft


def _look_in_folder(draft: Draft, folder: Path, refs: list[str]) -> None:
    """The folder that references start from: the one that was named, or one above it."""
    refs = [ref for ref in refs if not ref.startswith("/") and ".." not in ref.split("/")] or ["(paths elsewhere)"]
    folders = (folder, *folder.parents[:3])
    counts = {above: sum(is_file(above / ref) for ref in refs) for above in folders}
    best = max(counts, key=lambda above: counts[above])
    best = best if counts[best] else folder
    draft.images = {"by": "folder", "folder": str(best)}
    text = f"{best}: {counts[best]:,} of {len(refs):,} that were looked for are there"
    real = best.resolve()
    outside = sum(is_file(best / ref) and not (best / ref).resolve().is_relative_to(real) for ref in refs)
    if outside:
        text += f"; {outside:,} of these are links to files elsewhere, which aren't read: name the folder they are in"
    if not counts[best]:
        text += f"; rows name them as {refs[0]!r}, so write the folder above that into images.folder"
    draft.note("pictures", text, problem=bool(outside) or not counts[best])


def json_rows(draft: Draft, rows: list[Any], name: str, seen: SeenKeys) -> str:
    """Says which reader the rows of a JSON need, and which of the keys seen are kept as attributes.

    Raises UsageError for rows of another kind.
    """
    row = next((row for row in rows if isinstance(row, dict)), {})
    turns = next((name for name in TURNS if isinstance(row.get(name), list)), None)
    if turns is None:
        raise UsageError(
            f"the rows of {name} have neither conversations nor messages, only {shortlist(row, 12) or 'nothing'}: "
            "such a format needs a reader, readers/NAME.py in your catalogue (datakit/readers says what it has)"
        )
    pictures = next((name for name in ("image", "images") if any(row.get(name) for row in rows)), None)
    by_from = any(isinstance(turn, dict) and "from" in turn for turn in row[turns])
    is_llava = turns == "conversations" and pictures != "images" and by_from
    draft.reader = "llava" if is_llava else "hf"
    columns = {"messages": turns} | ({"image": pictures} if pictures else {})
    if any(isinstance(row, dict) and "id" in row for row in rows):
        columns["id"] = "id"
    draft.note("columns", columns_text(columns))
    if not is_llava:
        draft.annotations["columns"] = columns
    keep(draft, *seen.kinds(used_keys(draft.reader, {} if is_llava else columns)))
    return "JSON, LLaVA's conversations" if is_llava else "JSON, messages"


def columns_text(columns: dict[str, str]) -> str:
    """The columns, by their roles, as a line to show: `text -> messages, picture -> image`."""
    return ", ".join(f"{column} -> {role}" for role, column in columns.items())


def keep(draft: Draft, kinds: dict[str, str], refused: list[str]) -> None:
    """Names the keys of rows that are kept as attributes, and says which can't be."""
    if kinds:
        draft.annotations["attributes"] = kinds
        draft.note("kept", shortlist((f"{name} ({kind})" for name, kind in kinds.items()), 12))
    for why in refused:
        draft.note("kept", why, problem=True)


def refs_of(rows: Iterable[Any]) -> Iterator[str]:
    """References to pictures of LLaVA's rows, or of rows with messages."""
    for row in rows:
        value = (row.get("image") or row.get("images")) if isinstance(row, dict) else None
        yield from (ref for ref in (value if isinstance(value, list) else [value]) if isinstance(ref, str) and ref)


def source(
    draft: Draft, name: str, address: str, refs: list[str], names: list[str] | None, *, parts: bool = False
) -> tuple[dict[str, Any], bool]:
    """An entry of [images.sources] that maps references to the names in an archive; and whether any of them fit.

    With `parts` it is the first of several archives, whose own folders may be called after each.
    """
    fits = fit(refs, names) if names else None
    label = address.rpartition("/")[2]
    if fits is None:
        why = (
            "has too long a list of names to read"
            if names is None
            else f"has names such as {shortlist(names[:2]) or '(none)'}"
        )
        draft.note(
            "pictures",
            f"{label}: {why}, and rows name pictures as {shortlist(refs[:2])}; write what stands before the common "
            f"part into images.sources.{name}.prefix (of the rows) and .inside (of the archive)",
            problem=True,
        )
        return {"prefix": "", "archive": address, "inside": ""}, False
    prefix, inside, n = fits
    if parts and Path(label).stem in inside:
        inside = "*/"
    looked = f"{n:,} of {len(refs):,} that were looked for are {'in the first part' if parts else 'there'}"
    draft.note("pictures", f"{label}: prefix {prefix!r}, inside {inside!r}; {looked}")
    return {"prefix": prefix, "archive": address, "inside": inside}, True


def fit(refs: list[str], names: list[str]) -> tuple[str, str, int] | None:
    """(prefix, inside, how many references fit): the pair by which most references are names; None when none is.

    Whole folders are compared from the end. References that fit names of many folders alike give inside = "*/".
    """
    by_base: dict[str, list[str]] = {}
    for name in names:
        by_base.setdefault(name.rpartition("/")[2], []).append(name)
    pairs: Counter[tuple[str, str]] = Counter()
    for ref in refs:
        for name in by_base.get(ref.rpartition("/")[2], [])[:8]:
            mine, its = ref.split("/"), name.split("/")
            same = 1
            while same < min(len(mine), len(its)) and mine[-same - 1] == its[-same - 1]:
                same += 1
            pairs["".join(f"{p}/" for p in mine[:-same]), "".join(f"{p}/" for p in its[:-same])] += 1
    if not pairs:
        return None
    known = set(names)
    hits = {
        (prefix, inside): sum(ref.startswith(prefix) and inside + ref[len(prefix) :] in known for ref in refs)
        for prefix, inside in [pair for pair, _ in pairs.most_common(50)]
    }
    prefix, inside = max(hits, key=lambda pair: (hits[pair], -len(pair[0])))
    n = hits[prefix, inside]
    anywhere = [ref for ref in refs if ref.startswith(prefix) and len(by_base.get(ref.rpartition("/")[2], [])) == 1]
    if len(anywhere) > 2 * n and all("/" not in ref[len(prefix) :] for ref in anywhere):
        return prefix, "*/", len(anywhere)
    return prefix, inside, n
