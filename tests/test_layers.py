"""The design's floors: a module imports only from lower ones, and the light commands load nothing heavy."""

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    {"errors", "locks", "__init__"},
    {"refusals"},
    {
        "store",
        "memory",
        "fingerprint",
        "shards",
        "order",
        "catalogue",
        "record",
        "tars",
        "usercode",
        "terminal",
        "parquetchild",
        "attributes",
    },
    {"ledger", "images", "archives", "jsonfile", "web", "interleaved", "parquetrows", "sealed"},
    {"manifest", "mix", "tables", "claims", "interop", "webdataset"},
    {"holdings", "overview"},
    {"readers", "stream", "work", "choices"},
    {"annotations", "stage", "finder", "loose"},
    {"stages", "settings"},
    {"build", "pipeline", "pool"},
    {"done", "opening", "partfiles"},
    {"making"},
    {"runner", "status", "description"},
    {"verify", "progress", "retry", "forecast", "availability"},
    {"clean", "repair"},
    {"assembly", "adopt", "pin", "checks", "export", "plan", "add"},
    {"miniature", "mending"},
    {"demo"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}
TRAINER_MAY = {"stream", "mix", "order", "record", "errors", "catalogue"}


def imported(path: Path) -> set[str]:
    """Full names of what a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms(path: Path) -> set[str]:
    """The modules of datakit, one level down, that a file imports."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("datakit.")} & FLOOR.keys()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "datakit").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT / "datakit"))
)
def test_a_module_imports_only_from_lower_floors(path):
    room = path.relative_to(ROOT / "datakit").parts[0].removesuffix(".py")

    too_high = {other for other in rooms(path) if other != room and FLOOR[other] >= FLOOR[room]}

    assert not too_high, f"{room} (floor {FLOOR[room]}) imports {too_high}"


def test_datakit_imports_neither_the_trainer_nor_a_recipe_nor_torch():
    for path in (ROOT / "datakit").rglob("*.py"):
        tops = {name.split(".")[0] for name in imported(path)}

        assert not tops & {"trainer", "pipelines", "torch", "transformers", "deepspeed"}, path


def test_the_trainer_knows_only_the_stream_side_of_datakit():
    for path in (ROOT / "trainer").rglob("*.py"):
        assert rooms(path) <= TRAINER_MAY, path


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

    assert writers <= {"store.py", "web", "miniature"}


def test_commands_print_what_others_compute():
    for path in (ROOT / "datakit/commands").glob("*.py"):
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
