"""The README's commands are run, in their order, against the miniature."""

import importlib.util
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from users import settings, typed

from datakit import catalogue
from datakit.catalogue import manifest
from datakit.miniature import Miniature

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(kind=""):
    """Fenced blocks of the README of a kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands(first_word):
    """Command lines in the README's blocks, without their comments."""
    lines = [line.split("  #")[0].strip() for block in blocks() for line in block.splitlines()]
    return [line for line in lines if line.startswith(first_word + " ")]


def test_the_readmes_commands_work_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Miniature(rows=40, coyo_rows=15) as upstream:
        env = settings(upstream, tmp_path / "data", DATAKIT_JOBS="2")
        del env["DATAKIT_ROOT"]  # the README leaves it at ./data

        coco = upstream.answer("http://images.cocodataset.org/zips/train2017.zip").body
        (tmp_path / "train2017.zip").write_bytes(coco)
        (tmp_path / "photos").mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / "photos/1.png")
        talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A square."}]
        (tmp_path / "mine.json").write_text(json.dumps([{"id": "1", "image": "1.png", "conversations": talk}]))

        for command in commands("datakit"):
            command = command.replace("/data/coco", str(tmp_path))
            where = f" --out {tmp_path}/x.sums" if " pin " in command else ""
            got = typed(command + where, env)
            faults = " check " in command  # the miniature has some, and check says so with its exit code
            assert got.code == int(faults), (command, got)

    assert commands("datakit")
    assert (tmp_path / "data/mixes/llava665k+qinstruct/mix.json").is_file()
    assert len(list((tmp_path / "data/coyo/fetch").glob("?????.commit.json"))) == 128


def test_the_readmes_launch_line_trains(built, tmp_path):
    for module in ("deepspeed", "torch", "transformers"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} isn't installed")
    (line,) = commands("deepspeed")
    words = shlex.split(line)
    words[words.index("--mix") + 1] = str(built / "mixes/llava665k+qinstruct/mix.json")
    words[words.index("--out") + 1] = str(tmp_path / "x")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--master_port", port]

    done = subprocess.run(
        [*launcher, *words[1:], "--max-steps", "2"],
        env={**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert len((tmp_path / "x/log.jsonl").read_text().splitlines()) == 2


def test_the_two_commands_are_targets_of_the_makefile():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)

    assert [c.split()[1] for c in commands("make")] == ["demo", "test"]
    assert {"demo", "test", "check", "bench"} <= set(targets)


def test_the_example_of_a_new_dataset_is_a_manifest_that_is_read(tmp_path):
    (text,) = [b for b in blocks("toml") if "[annotations]" in b]
    (tmp_path / "mine.toml").write_text(text)

    about = manifest.read(tmp_path / "mine.toml")

    assert about.images.sources["all"].prefix == "photos/"


def test_the_example_of_a_settings_file_is_read(tmp_path, monkeypatch):
    from datakit.commands import settings as module

    (text,) = [b for b in blocks("toml") if "[annotations]" not in b]
    (tmp_path / "datakit.toml").write_text(text)
    monkeypatch.setenv("DATAKIT_CATALOGUE", "")

    found = module.load(folder=tmp_path, environ={"DATAKIT_CATALOGUE": ""})

    assert (found.root, found.jobs) == ("/data/vlm", 16)


def test_every_test_and_benchmark_that_the_readme_names_exists():
    table = README[README.index("## What is promised") :]
    for name in re.findall(r"`((?:tests/|benchmarks/|test_)[\w/.]*)`", table):
        path = ROOT / name if "/" in name else ROOT / "tests/datakit" / name
        assert path.exists(), name


def test_every_dataset_and_recipe_is_told_of_in_the_changelog():
    text = (ROOT / "CHANGELOG.md").read_text()

    for name in (*catalogue.names("manifests"), *catalogue.names("pipelines")):
        assert f"`{name}`" in text, name
