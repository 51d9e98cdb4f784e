"""Extensions of pictures' names: what they say of the type, and in which order a picture is looked for under others.

The lists differ, and each is part of what tables, records and exports hold that were made with it: which member of an
archive a row got, which row has a repair. So an extension that is added to one of them is a change of DATA.
"""

from __future__ import annotations

import re

TYPES = {
    "jpg": "jpg", "jpeg": "jpg", "jpe": "jpg", "png": "png", "gif": "gif", "webp": "webp", "bmp": "bmp",
    "tif": "tiff", "tiff": "tiff", "avif": "avif",
}  # fmt: skip
"""By extension in lower case, the type that a name says, as `sniff` calls it; `datakit check` compares the two."""

TYPES_IN_REPAIRS = {extension: TYPES[extension] for extension in ("jpg", "jpeg", "png", "gif", "webp", "bmp")}
"""Those of TYPES of which `pack` notes a contradiction, `content_type`, among a record's repairs."""

ENDINGS_IN_ARCHIVES = (".jpg", ".png", ".gif", ".jpeg", ".webp", ".JPG", ".PNG", ".GIF", ".JPEG")
"""Endings under which `locate` looks for a member that isn't there under its own, in this order."""

EXTENSIONS_OF_A_STEM = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
"""Extensions in lower case, the preferred first, where `locate` takes the member of a stem whatever its extension."""

ENDINGS_IN_FOLDERS = tuple(
    cased for ending in (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp") for cased in (ending, ending.upper())
)
"""Endings under which `extract` looks for a loose file that isn't there under its own; it takes the only one."""

_EXPORTED = re.compile(r"\.(jpe?g|png|gif|webp|bmp|tiff?|avif)$", re.IGNORECASE)


def extension_of(name: str) -> str:
    """The extension of a file's name or path, in lower case and without the dot; "" when it has none."""
    stem, dot, extension = name.rpartition("/")[2].rpartition(".")
    return extension.lower() if dot and stem else ""


def is_exported(name: str) -> bool:
    """Whether other tools take a file of this name for a picture, so that `export` leaves it its name."""
    return _EXPORTED.search(name) is not None
