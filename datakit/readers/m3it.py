"""M3IT: rows of `inputs`, `outputs` and pictures in base64; their instructions are in a file beside.

Upstream's loader draws another instruction for each row whenever it runs (docs/upstreams.md U62). Here it is drawn by
XXH3 of only the file's name and the row's number, so that a listing is the same when it is made again; rows are
numbered through all files of the dataset. It comes before `inputs`, with the listing's separator between; an empty
separator glues them together, as VILA's script does (U63).

The rest is what VILA's loader makes of a row (llava/data/dataset.py, LazyVFlanDataset): pictures first, eight at the
most, `<image>` in the text taken out. A question with `Image Descriptions` is a dialog whose turns stand in it and
whose last answer is `outputs`; what comes before its first question is left out. Of eight pictures, which are the
frames of a video, VILA takes every second one when it trains; all eight are kept here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pyarrow as pa
import xxhash

from datakit.errors import ManifestError, SourceError
from datakit.readers import About
from datakit.readers.llava import MARK, Row
from datakit.records.record import Message, Part, problem
from datakit.records.tables import REFS

VERSION = 2
MAX_IMAGES = 8  # VILA's loader asserts it
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("messages", pa.string()),
        ("images", REFS),
        ("id", pa.string()),
        ("task", pa.string()),
        ("dataset", pa.string()),
        ("repairs", pa.list_(pa.string())),
    ]
)
_DIALOG = "Image Descriptions"  # how VILA's loader tells visual dialog from the others


def reading(about: About) -> Callable[[Any, int], Row | str]:
    """Reads rows of one `data/<task>/<dataset>/train.jsonl`. Raises SourceError when it has no instructions."""
    instructions = _instructions(about)
    task, dataset = [*["", ""], *about.file.split("/")[:-1]][-2:]
    name = about.file.encode()

    def read(row: Any, number: int) -> Row | str:
        """One row, or the reason for which it is dropped."""
        found = _pictures(row)
        inputs, answer = (row.get("inputs"), row.get("outputs")) if isinstance(row, dict) else (None, None)
        if not isinstance(answer, str) or not isinstance(inputs, str | None) or found is None:
            return "malformed"
        if not found and _images(row) is None:
            return "no_images"  # every row of M3IT has some; only an empty list says that there are none
        if len(found) > MAX_IMAGES:
            return "too_many_images"
        drawn = instructions[xxhash.xxh3_64_intdigest(b"%s\n%d" % (name, number)) % len(instructions)]
        question = (drawn + about.separator + inputs if inputs else drawn).rstrip()
        turns = [(question, answer)] if _DIALOG not in question else _turns(question, answer)
        if not turns:
            return "dialog"
        messages = []
        for at, (asked, said) in enumerate(turns):
            text = _without_marks(asked)
            content = [Part(type="image")] * (0 if at else len(found)) + (
                [Part(type="text", text=text)] if text else []
            )
            messages.append(Message(role="user", content=content))
            messages.append(Message(role="assistant", content=[Part(type="text", text=said.rstrip())]))
        wrong = problem(messages, len(found))
        if wrong:
            return wrong
        refs = [f"{number}.{nth}" for nth in range(len(found))]
        return Row(messages, refs, {"id": f"{dataset}-{number}", "task": task, "dataset": dataset})

    return read


def pictures(row: Any, about: About) -> list[bytes | str]:
    """The pictures of a row in base64, in the order of its references."""
    return [*(_pictures(row) or [])]


def _images(row: dict[str, Any]) -> Any:
    """The value of a row's pictures: under the file's own key, or under that of upstream's loader."""
    found = row.get("image_str")
    return row.get("image_base64_str") if found is None else found


def _pictures(row: Any) -> list[str] | None:
    """A row's pictures in base64, [] when it has no such key; None for any other value."""
    if not isinstance(row, dict):
        return None
    found = _images(row)
    listed = [] if found is None else [found] if isinstance(found, str) else found
    return listed if isinstance(listed, list) and all(isinstance(p, str) and p for p in listed) else None


def _without_marks(text: str) -> str:
    """Without `<image>` and one line break beside each, in the order in which VILA's loader takes them out."""
    return text.replace(f"{MARK}\n", "").replace(f"\n{MARK}", "").replace(MARK, "")


def _turns(question: str, answer: str) -> list[tuple[str, str]]:
    """The (question, answer) pairs of a dialog that is written into its question; [] when one of them is incomplete."""
    *earlier, last = [part.split("\nAnswer: ") for part in question.split("\nQuestion: ")[1:]] or [[]]
    if len(last) != 1 or any(len(turn) != 2 for turn in earlier):
        return []
    # The last question may end in a bare "Answer:", for the outputs to follow.
    return [*((q, a) for q, a in earlier), (last[0].removesuffix("\nAnswer:").strip("\n"), answer)]


def _instructions(about: About) -> list[str]:
    """The texts of the file beside: a list of them, or one in an object, or an object's values."""
    if about.beside is None:
        raise ManifestError(
            f"manifest {about.dataset!r}: M3IT's rows have no instruction of their own; name the file that has them, "
            "such as 'instructions.json', as annotations.beside"
        )
    try:
        found = msgspec.json.decode(about.beside)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _instructions_error(about, f"aren't JSON: {error}") from error
    texts = _texts(found)
    if not texts:
        raise _instructions_error(about, "hold no text")
    return texts


def _texts(found: Any) -> list[str]:
    """Every text in lists and objects, in the order of the file."""
    if isinstance(found, str):
        return [found] if found.strip() else []
    inner = list(found.values()) if isinstance(found, dict) else found if isinstance(found, list) else []
    return [text for value in inner for text in _texts(value)]


def _instructions_error(about: About, what: str) -> SourceError:
    return SourceError(f"the instructions beside {about.file!r} {what}; pin the revision that datakit reads")
