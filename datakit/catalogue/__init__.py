"""The catalogue is three folders of files: `manifests/`, `pipelines/` and `readers/`. To list it is to list them.

Folders named by `DATAKIT_CATALOGUE` (joined like PATH, each holding some of the three; `./catalogue` unless it is set)
come first, then datakit's own: inside the package in a wheel, beside it in a checkout; readers always inside.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from datakit.errors import ManifestError, UsageError, nearest

Kind = Literal["manifests", "pipelines", "readers"]
_CALLED = {"manifests": "dataset", "pipelines": "recipe", "readers": "reader"}


def folders(kind: Kind) -> list[Path]:
    """Existing folders of that kind; the first that has a file wins."""
    package = Path(__file__).resolve().parents[1]
    ours = [package / kind] if kind == "readers" else [package / kind, package.parent / kind]
    return [f for f in (*(o / kind for o in own_folders()), *ours) if f.is_dir()]


def own_folders() -> list[Path]:
    """The user's catalogues, whether they exist or not; `datakit add` writes into the first."""
    return [Path(p).expanduser() for p in os.environ.get("DATAKIT_CATALOGUE", "catalogue").split(os.pathsep) if p]


def set_own_folders(folders: Iterable[str]) -> None:
    """Makes these the user's catalogues, in this process and in those that it starts (DATAKIT_CATALOGUE)."""
    os.environ["DATAKIT_CATALOGUE"] = os.pathsep.join(folders)


def names(kind: Kind) -> list[str]:
    """Sorted names, without their endings, of what the catalogue holds."""
    ending = ".toml" if kind == "manifests" else ".py"
    found = {p.stem for folder in folders(kind) for p in folder.glob(f"*{ending}") if p.is_file()}
    return sorted(name for name in found if not name.startswith("_"))


def mixes_summary(recipe: str) -> str | None:
    """The first line of the docstring of a recipe that has MIXES; None for one without. Doesn't run the recipe.

    Raises ManifestError for a file that isn't Python.
    """
    path = find("pipelines", f"{recipe}.py")
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except OSError as error:
        raise ManifestError(f"recipe {path} can't be read: {error.strerror}") from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ManifestError(f"recipe {path} isn't Python: {error or type(error).__name__}") from error
    named = [
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    return (ast.get_docstring(tree) or "").partition("\n")[0] if "MIXES" in named else None


def find(kind: Kind, file: str) -> Path:
    """The path of a file such as `coyo.toml`. Raises UsageError with the nearest names."""
    for folder in folders(kind):
        if "/" not in file and (folder / file).is_file():
            return folder / file
    what, name = _CALLED[kind], Path(file).stem
    if kind == "manifests" and name in names("pipelines"):
        raise UsageError(f"{name!r} is a recipe and no dataset: `datakit run {name}` makes what it trains on")
    if kind == "pipelines" and name in names("manifests"):
        raise UsageError(f"{name!r} is a dataset and no recipe: `datakit fetch {name}` gets it")
    raise UsageError(f"unknown {what} {Path(file).stem!r}. {nearest(Path(file).stem, names(kind))}")
