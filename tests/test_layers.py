"""The design's strata: a folder imports from lower ones, or beside it in no circle, and light commands stay light."""

import ast
import configparser
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What stands on a stratum may import from those below it, and from its neighbours as long as there is no circle.
STRATA = [
    {"errors", "process"},
    {"storage", "images", "miniature"},
    {"web", "formats", "records"},
    {"catalogue", "stream", "interop"},
    {"engine", "upstream", "readers"},
    {"stages"},
    {"reports", "upkeep", "mixing", "add"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
STRATUM = {name: height for height, names in enumerate(STRATA) for name in names}
LOOSE = {"__init__", "__main__", "cli", "errors"}  # files beside the folders: at most five
TRAINER_SEES = {name for names in STRATA[:4] for name in names}
TORCH = {"torch", "torchvision", "transformers", "deepspeed", "open_clip", "peft"}
TORCH_FOLDERS = {"scorers"}  # of datakit/, those that may import them


@cache
def imported(path: Path) -> set[str]:
    """Full names of what a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def folder_of(path: Path) -> str:
    """The folder of datakit that a file is in, or its own name for a loose one."""
    return path.relative_to(ROOT / "datakit").parts[0].removesuffix(".py")


def folders(path: Path) -> set[str]:
    """The folders of datakit, and loose modules, that a file imports from."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("datakit.")} & STRATUM.keys()


OURS = sorted((ROOT / "datakit").rglob("*.py"))


def test_every_folder_stands_on_a_stratum_and_few_modules_are_loose():
    there = {folder_of(path) for path in OURS} - {"__init__"}
    loose = {path.stem for path in (ROOT / "datakit").glob("*.py")}

    assert there == STRATUM.keys(), "a folder is on no stratum, or is gone"
    assert loose == LOOSE and len(loose) <= 5
    for folder in there - loose:
        assert ast.get_docstring(ast.parse((ROOT / "datakit" / folder / "__init__.py").read_text())), folder


@pytest.mark.parametrize("path", OURS, ids=lambda p: str(p.relative_to(ROOT / "datakit")))
def test_a_module_imports_from_no_higher_stratum(path):
    if path == ROOT / "datakit/__init__.py":
        return  # its names are loaded when they are asked for
    height = STRATUM[folder_of(path)]

    too_high = {other for other in folders(path) if STRATUM[other] > height}

    assert not too_high, f"{folder_of(path)} (stratum {height + 1}) imports {too_high}"


def test_folders_import_each_other_in_no_circle():
    arrows: dict[str, set[str]] = {}
    for path in OURS:
        if path != ROOT / "datakit/__init__.py":
            arrows.setdefault(folder_of(path), set()).update(folders(path) - {folder_of(path)})

    left = dict(arrows)
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]

    assert not left, f"in or behind a circle: { {name: others & left.keys() for name, others in left.items()} }"


def test_torch_and_its_kin_are_imported_by_scorers_and_the_trainer_only():
    for path in OURS:
        tops = {name.split(".")[0] for name in imported(path)}

        assert not tops & {"trainer", "pipelines"}, path
        assert not tops & TORCH or folder_of(path) in TORCH_FOLDERS, path
    for path in (ROOT / "pipelines").rglob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & TORCH, path


def test_the_trainer_sees_the_stream_and_what_is_below_it():
    for path in (ROOT / "trainer").rglob("*.py"):
        assert folders(path) <= TRAINER_SEES, path


@pytest.mark.parametrize("folder", ["engine", "reports"])
def test_the_engine_and_reports_know_no_stage_by_name(folder):
    for path in (ROOT / "datakit" / folder).rglob("*.py"):
        assert "stages" not in folders(path), path


def test_reports_write_and_remove_nothing():
    changing = {"write", "publish", "remove", "remove_folder", "sweep", "mark_cleaned", "put", "discard", "claim"}
    for path in (ROOT / "datakit/reports").rglob("*.py"):
        called = {
            node.func.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }

        assert not called & (changing | {"write_bytes", "write_text", "unlink", "mkdir"}), path


@pytest.mark.parametrize(("folder", "extra"), [("datakit", None), ("trainer", "train")])
def test_what_a_folder_imports_is_what_its_requirements_list(folder, extra):
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    required = config["options"]["install_requires"]
    listed = required if extra is None else config["options.extras_require"][extra]
    names = {"opencv-python-headless": "cv2", "pillow": "PIL"}

    def modules(lines: str) -> set[str]:
        found = {re.match(r"[\w-]+", line)[0] for line in lines.split("\n") if line}
        return {names.get(name, name) for name in found}

    tops = {name.split(".")[0] for path in (ROOT / folder).rglob("*.py") for name in imported(path)}
    tops -= {*sys.stdlib_module_names, "datakit", "trainer", "__future__"}

    assert tops - modules(required) - modules(listed) == set()
    assert modules(listed) - tops == set()


def test_only_the_store_and_the_downloads_open_files_for_writing():
    writers = set()
    for path in (ROOT / "datakit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            modes = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            if called in ("write_bytes", "write_text", "rename") or (
                called == "open" and any(set(m) <= set("wabr+x") and set(m) & set("wax") for m in modes)
            ):
                writers.add(path.relative_to(ROOT / "datakit").parts[0])

    assert writers <= {"storage", "web", "miniature"}


def test_commands_print_what_others_compute():
    for path in set((ROOT / "datakit/commands").glob("*.py")) - {ROOT / "datakit/commands/progress.py"}:
        computing = {"json", "msgspec", "orjson", "numpy", "pyarrow", "collections", "posixpath"} & imported(path)

        assert not computing, f"{path} imports {computing}: say_json prints, the rest belongs to a module beside"


def test_help_and_list_load_nothing_heavy():
    code = (
        "import sys, runpy\n"
        "sys.argv = ['datakit', sys.argv[1]]\n"
        "try: runpy.run_module('datakit', run_name='__main__')\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "heavy = {'torch', 'pyarrow', 'aiohttp', 'transformers', 'cv2', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    for command in ("--help", "list"):
        subprocess.run([sys.executable, "-c", code, command], check=True, capture_output=True)


def test_importing_datakit_loads_nothing_else():
    code = "import sys; before = set(sys.modules); import datakit; print(*sorted(set(sys.modules) - before))"

    got = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert got.stdout == "datakit\n"


def test_no_file_is_too_long_to_finish_in_one_sitting():
    long = {
        str(path.relative_to(ROOT)): n
        for folder in ("datakit", "trainer", "pipelines")
        for path in (ROOT / folder).rglob("*.py")
        if (n := len(path.read_text().splitlines())) > 450
    }

    assert not long
