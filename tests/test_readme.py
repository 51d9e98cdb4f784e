"""The README and the pages beside it: their commands are run, and what they name is there."""

import configparser
import importlib.util
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
from PIL import Image
from test_layers import LOOSE, STRATUM
from users import settings, typed

from datakit import catalogue
from datakit.cli import cli
from datakit.commands import settings as settings_module
from datakit.miniature import Miniature
from datakit.web import outcomes

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "docs/README.md",
    "docs/layout.md",
    "docs/preparing.md",
    "docs/crawling.md",
    "docs/architecture.md",
    "docs/promises.md",
    "CONTRIBUTING.md",
)
PROGRAMS = {"datakit", "deepspeed", "git", "make", "pip", "python"}


def blocks(page, kind):
    """The fenced blocks of a page that are of a kind."""
    found, opened, lines = [], None, []
    for line in (ROOT / page).read_text().splitlines():
        if not line.startswith("```"):
            lines.append(line)
        elif opened is None:
            opened, lines = line[3:], []
        else:
            found.append((opened, "\n".join(lines)))
            opened = None
    assert opened is None, f"{page} leaves a block open"
    return [text for language, text in found if language == kind]


def commands(program):
    """The command lines of all pages that start a program, in their order, each once, without their comments."""
    lines = [
        re.split(r"\s#\s", line)[0].strip()
        for page in PAGES
        for block in blocks(page, "bash")
        for line in block.splitlines()
    ]
    return list(dict.fromkeys(line for line in lines if line and program_of(line) == program))


def program_of(line):
    """The first word of a command, behind variables that it sets."""
    words = [word for word in line.split() if not re.match(r"[A-Z_]+=", word)]
    return words[0] if words else ""


def codes(page):
    """What stands between backticks in the text of a page."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


def table_below(page, heading):
    """The rows of the first table below a heading, as lists of cells."""
    text = (ROOT / page).read_text()
    lines = text[text.index(f"\n{heading}\n") :].split("\n|", 1)[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_no_command_but_in_a_block_that_is_run(page):
    for block in blocks(page, "bash"):
        for line in filter(str.strip, block.splitlines()):
            assert program_of(line) in PROGRAMS, f"{line!r} of {page} is run by no test"
    for block in blocks(page, "") + blocks(page, "toml"):
        assert not [line for line in block.splitlines() if program_of(line) in PROGRAMS]


def test_the_commands_of_the_pages_work_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Miniature(rows=40, coyo_rows=15) as upstream:
        env = settings(upstream, tmp_path / "data")
        del env["DATAKIT_ROOT"]  # the pages leave it at ./data

        coco = upstream.answer("http://images.cocodataset.org/zips/train2017.zip").body
        (tmp_path / "train2017.zip").write_bytes(coco)
        (tmp_path / "photos").mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / "photos/1.png")
        talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A square."}]
        (tmp_path / "mine.json").write_text(json.dumps([{"id": "1", "image": "1.png", "conversations": talk}]))

        for command in commands("datakit"):
            command = command.replace("/data/coco", str(tmp_path))
            # The other shards are as these, and take a minute.
            command = command.replace("--shards 0-127", "--shards 0-1,127")
            where = f" --out {tmp_path}/x.sums" if " pin " in command else ""
            got = typed(command + where, env)
            faults = " check " in command  # the miniature has some, and check says so with its exit code
            assert got.code == int(faults), (command, got)

    for mix in ("llava665k+qinstruct", "qinstruct_mix-finetune", "coyo", "mine"):
        assert (tmp_path / f"data/mixes/{mix}/mix.json").is_file()
    assert len(list((tmp_path / "data/coyo/fetch").glob("?????.commit.json"))) == 3


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
        [*launcher, *words[1:], "--max-steps", "1", "--data-workers", "0"],
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert len((tmp_path / "x/log.jsonl").read_text().splitlines()) == 1


def test_what_pip_is_to_install_is_an_extra_with_its_constraints():
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")

    for line in commands("pip"):
        got = re.fullmatch(r"pip install -c (\S+) '\.\[(\w+)\]'", line)
        assert got, line
        assert (ROOT / got[1]).is_file()
        assert got[2] in config["options.extras_require"]


def test_what_python_and_git_are_to_run_is_there():
    for line in (*commands("python"), *commands("git")):
        (name,) = re.findall(r"tests/[\w./]+", line)
        assert (ROOT / name).exists(), line
        assert "DATAKIT_GOLDEN" not in line or "DATAKIT_GOLDEN" in (ROOT / name).read_text(), line


@pytest.mark.parametrize("page", PAGES)
def test_a_command_in_the_text_of_a_page_has_a_name_and_options_that_there_are(page):
    context = click.Context(cli)
    for code in codes(page):
        if not code.startswith("datakit ") or code == "datakit …":
            continue
        command = cli.get_command(context, code.split()[1])
        assert command, f"{code!r} of {page}"
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert set(re.findall(r"--[\w-]+", code)) <= options, f"{code!r} of {page}"


@pytest.mark.parametrize("page", PAGES)
def test_a_module_or_test_that_a_page_names_is_there(page):
    for name in codes(page):
        if not re.fullmatch(r"[\w./]*\w\.(py|md)", name) or name.startswith(("my/", "catalogue/")):
            continue
        places = (ROOT, ROOT / "datakit", ROOT / "tests/datakit", ROOT / "pipelines")
        assert any((place / name).is_file() for place in places), f"{name} of {page}"


def test_the_example_of_a_settings_file_is_read(tmp_path):
    (text,) = blocks("docs/preparing.md", "toml")
    (tmp_path / "datakit.toml").write_text(text)

    found = settings_module.load(folder=tmp_path, environ={"DATAKIT_CATALOGUE": ""})

    assert (found.root, found.jobs) == ("/data/vlm", 16)


def test_the_outcomes_of_the_page_are_those_that_there_are_and_are_tried_again_as_it_says():
    told = {
        name: again for cell, _, again in table_below("docs/crawling.md", "## Outcomes") for name in cell.split("`")
    }
    told = {name: again for name, again in told.items() if re.fullmatch(r"\w+", name)}

    assert told.keys() == {"ok", "http_404", *outcomes.KNOWN}
    for name in outcomes.KNOWN:
        assert outcomes.may_pass(name) == (told[name] == "yes"), name


def test_the_limits_of_the_page_are_flags_variables_and_keys_that_there_are():
    rows = table_below("docs/crawling.md", "## Limits")
    options = {option for parameter in cli.get_command(click.Context(cli), "fetch").params for option in parameter.opts}

    assert {key.strip("`") for _, _, key, *_ in rows} == settings_module.KINDS.keys() - {"root", "catalogue"}
    for flag, variable, *_ in rows:
        assert flag.strip("`") in options
        assert variable.strip("`") in settings_module.__doc__


def test_the_folders_of_the_architecture_are_those_of_the_strata():
    rows = table_below("docs/architecture.md", "## Folders")

    told = {name.strip("`").removesuffix(".py").strip("/"): int(stratum) for stratum, name, _ in rows}

    assert told == {name: height + 1 for name, height in STRATUM.items()}
    assert {name for _, name, _ in rows if ".py" in name} == {f"`{name}.py`" for name in LOOSE - {"__init__"}}


def test_every_dataset_and_recipe_is_told_of_in_the_changelog():
    text = (ROOT / "CHANGELOG.md").read_text()

    for name in (*catalogue.names("manifests"), *catalogue.names("pipelines")):
        assert f"`{name}`" in text, name


def anchors(path):
    """What a link to a heading of a page may say behind its #, as GitHub makes it of the heading."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])  # tests/test_docs.py follows those of docs/
def test_a_link_of_a_page_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        there = (ROOT / page).parent / name if name else ROOT / page
        assert there.is_file(), f"{target} of {page}"
        assert not anchor or anchor in anchors(there), f"{target} of {page}"


def test_what_make_is_to_do_is_a_target_of_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert [line.split()[1] for line in commands("make")][:2] == ["demo", "test"]
    assert {line.split()[1] for line in commands("make")} <= targets
    assert {code.split()[1] for page in PAGES for code in codes(page) if code.startswith("make ")} <= targets
