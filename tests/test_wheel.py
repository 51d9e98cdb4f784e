"""The wheel, unpacked alone in another place: the catalogue travels in it, and no torch is needed."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from test_usercode import MANIFEST, READER, RECIPE
from users import settings

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """A folder that holds what the wheel holds, and a torch that can't be imported."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout, so what belongs to the source isn't known")
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*build, "-w", str(work), str(source)], check=True, capture_output=True)
    (wheel,) = work.glob("*.whl")
    place = work / "site"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(place)
    for name in ("torch", "transformers", "deepspeed"):
        (place / f"{name}.py").write_text("raise ImportError('not installed here')\n")
    return place


def test_the_wheel_alone_lists_fetches_and_mixes_from_any_folder(unpacked, upstream, tmp_path):
    env = {**os.environ, **settings(upstream, tmp_path / "root"), "PYTHONPATH": str(unpacked)}

    def run(*words):
        where = "import datakit, sys; assert datakit.__file__.startswith(sys.argv.pop(1))"
        code = f"{where}\nimport datakit.cli; datakit.cli.main()"
        command = [sys.executable, "-c", code, str(unpacked), *words]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    for words in (
        ["--help"],
        ["list"],
        ["info", "coyo"],
        ["fetch", "coyo", "--shards", "0"],
        ["fetch", "qinstruct"],
        ["build-mix", "coyo+qinstruct"],
        ["status"],
        ["verify"],
    ):
        done = run(*words)
        assert done.returncode == 0, (words, done.stderr)
    assert "COYO-700M" in run("list").stdout


def test_a_user_of_the_wheel_adds_recipes_and_readers_that_work_in_every_process(unpacked, upstream, tmp_path):
    env = {**os.environ, **settings(upstream, tmp_path / "root"), "PYTHONPATH": str(unpacked)}
    env["DATAKIT_CATALOGUE"] = str(tmp_path / "my")
    rows = ", ".join(f'{{"q": "q{n}", "a": "a", "topic": "t"}}' for n in range(25))
    (tmp_path / "pairs.json").write_text(f"[{rows}]")
    for name, text in (
        ("pipelines/half.py", RECIPE),
        ("readers/qapairs.py", READER),
        ("manifests/pairs.toml", MANIFEST.format(file=tmp_path / "pairs.json")),
    ):
        (tmp_path / "my" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "my" / name).write_text(text.replace("BODY", "pass"))

    for words in (
        "fetch coyo --recipe half --shards 0-1 --jobs 2",
        "fetch coyo --retry --jobs 2",
        "run half --shards 0-1 --jobs 2",
        "build-mix pairs --fetch --jobs 2",
    ):
        code = "import datakit.cli\nif __name__ == '__main__': datakit.cli.main()"
        command = [sys.executable, "-c", code, *words.split()]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stderr)


def test_the_wheel_holds_the_catalogue_the_trainer_and_no_tests(unpacked):
    held = {str(p.relative_to(unpacked)) for p in unpacked.rglob("*") if p.is_file()}

    for name in ("datakit", "trainer"):
        for path in (ROOT / name).rglob("*.py"):
            assert str(path.relative_to(ROOT)) in held
    for name in ("manifests", "pipelines"):
        for path in (ROOT / name).iterdir():
            if path.suffix in (".toml", ".py", ".sums"):
                assert f"datakit/{name}/{path.name}" in held
    assert {"trainer/train.py", "trainer/zero2.json", "datakit/py.typed"} <= held
    assert not [name for name in held if "test" in name.split("/")[0]]
