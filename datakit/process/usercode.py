"""User code: a catalogue's Python files (recipes and readers) as modules that any process can import.

A module's name holds its file's path and a hash of its version: `datakit_file:/my/pipelines/mine%2Epy@1f0c…`. So what
such a file defines can be pickled and unpickled as usual: importing datakit.engine.stage registers an import hook for
such names, in worker processes and on other machines that see the same path, and the hook rejects another version of
the file. Two files of one name in two catalogues are two modules.

A file stands alone: it may import what is installed or in PYTHONPATH, but not the file beside it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from datakit.errors import DatakitError, ManifestError

_PREFIX = "datakit_file:"


def load(path: Path) -> ModuleType:
    """The module of a file as it is now; executed once per process. Raises ManifestError with the line that failed."""
    return import_module(module_name(path))


def module_name(path: Path) -> str:
    """The name under which any process can import a file as it is now. Raises ManifestError if it can't be read."""
    path = path.absolute()
    quoted = quote_from_bytes(os.fsencode(path), safe="/").replace(".", "%2E")  # a dot would be a package
    return f"{_PREFIX}{quoted}@{_digest(_source(path))}"


def is_ours(module: str) -> bool:
    """Whether a module of that name is a file of a catalogue."""
    return module.startswith(_PREFIX)


def portable_error(error: BaseException) -> BaseException:
    """The error to send to another process or to show: a ManifestError with the line, if it came from a user's file.

    A DatakitError is returned unchanged, and so is an error in whose traceback there is no user's file.
    """
    if isinstance(error, DatakitError) or (where := _user_line(error)) is None:
        return error
    return ManifestError(f"{where}: {_error_text(error)}. Mend that file and run the same command again")


@contextmanager
def explain_errors() -> Iterator[None]:
    """Turns any exception from a user's file into a ManifestError with the file and the line."""
    try:
        yield
    except (Exception, SystemExit) as error:
        explained = portable_error(error)
        if explained is error:
            raise
        raise explained from error


def _user_line(error: BaseException) -> str | None:
    """The last line of a user's file in an error's traceback, as `FILE:LINE`; None when there is none."""
    frames = [
        (frame.f_code.co_filename, line, frame.f_code.co_name)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if is_ours(str(frame.f_globals.get("__name__", "")))
    ]
    if not frames:
        return None
    file, line, function = frames[-1]
    return f"{file}:{line}" + ("" if function == "<module>" else f", in {function}")


def _error_text(error: BaseException) -> str:
    """The class and text of an exception, even of one whose `__str__` fails."""
    try:
        text = str(error)
    except Exception as worse:  # noqa: BLE001 - of a class that the user wrote
        text = f"(its text can't be had: {type(worse).__name__})"
    return f"{type(error).__name__}: {text}".removesuffix(": ").rstrip(".")


def _source(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path} can't be read: {error}") from error


def _digest(source: bytes) -> str:
    import hashlib  # `datakit --help` needs no hash

    return hashlib.sha256(source).hexdigest()[:16]


class _Finder:
    """Imports a file by the name that `module_name` gave it. No bytecode is written beside the user's files.

    It has the methods of importlib.abc's MetaPathFinder and Loader, and not their names: to load these takes 15 ms.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not is_ours(fullname):
            return None
        quoted = fullname.removeprefix(_PREFIX).rpartition("@")[0]
        loader: Any = self
        return ModuleSpec(fullname, loader, origin=os.fsdecode(unquote_to_bytes(quoted)))

    def create_module(self, spec: ModuleSpec) -> None:
        """None, so that Python makes a module as usual."""

    def exec_module(self, module: ModuleType) -> None:
        path = Path(str(module.__spec__.origin)) if module.__spec__ else Path()
        module.__file__ = str(path)
        source = _source(path)
        if not module.__name__.endswith(f"@{_digest(source)}"):
            raise ManifestError(f"{path} was changed while a run was using it: run the same command again")
        try:
            exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
        except SyntaxError as error:
            raise ManifestError(f"{path}:{error.lineno}: this isn't Python: {error.msg}") from error
        except (Exception, SystemExit) as error:
            raise ManifestError(
                f"{_user_line(error) or path}: {_error_text(error)}{_hint_about_neighbour(path, error)}"
            ) from error


def _hint_about_neighbour(path: Path, error: BaseException) -> str:
    """What to do when the module that wasn't found is in the same folder; "" otherwise."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    if not name or not (path.parent / f"{name}.py").exists():
        return ""
    return f". {name}.py stands beside it, but a file of a catalogue stands alone: add its folder to PYTHONPATH"


sys.meta_path.insert(0, _Finder())
