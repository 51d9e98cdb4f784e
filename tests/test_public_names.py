"""What `import datakit` offers: loaded when asked for, seen by editors and type checkers, each on docs/library.md."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import datakit

ROOT = Path(__file__).parents[1]


def test_type_checkers_are_told_of_the_names_that_there_are():
    tree = ast.parse(Path(datakit.__file__).read_text())
    (told,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {alias.name: node.module for node in told.body for alias in node.names}

    assert sorted(imported) == sorted(datakit.__all__)
    for name, module in imported.items():
        assert getattr(datakit, name) is getattr(sys.modules[module], name), name
    assert set(datakit.__all__) <= set(dir(datakit))


def test_each_name_has_its_place_on_the_page_and_an_example_that_imports_it():
    page = (ROOT / "docs/library.md").read_text()
    table = page[: page.index("\n## ")]
    code = "".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    imported = {
        name for names in re.findall(r"^from datakit import (.+)$", code, re.MULTILINE) for name in names.split(", ")
    }

    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)))) == {*datakit.__all__}
    assert imported == {*datakit.__all__}


@pytest.mark.parametrize(("wrong", "right"), [("stream", "Stream"), ("Recrod", "Record"), ("filter", "Filter")])
def test_a_wrong_name_is_told_with_the_nearest(wrong, right):
    # In a process of its own: here a test may have imported the module datakit.stream.
    got = subprocess.run(
        [sys.executable, "-c", f"import datakit; datakit.{wrong}"], capture_output=True, text=True, check=False
    )

    # Python itself says no second "Did you mean".
    assert got.stderr.splitlines()[-1] == f"AttributeError: datakit has no {wrong!r}. Did you mean {right!r}?"


def test_a_training_loop_loads_nothing_of_what_downloads_or_makes():
    code = (
        "import sys, datakit\n"
        "datakit.Stream, datakit.Record, datakit.Mix, datakit.DatakitError\n"
        "print(*sorted({name.split('.')[1] for name in sys.modules if name.startswith('datakit.')}))\n"
        "heavy = {'aiohttp', 'torch', 'cv2', 'PIL', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )

    got = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert not {"engine", "stages", "web", "commands"} & set(got.stdout.split())
