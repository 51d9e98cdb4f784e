"""The pages of docs/: the generated ones are what their generator writes, links lead somewhere, and examples work."""

import importlib.util
import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import click
import pytest
from PIL import Image
from users import typed

from datakit import catalogue, errors
from datakit.catalogue import manifest
from datakit.cli import cli
from datakit.engine import pipeline

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = ("commands.md", "datasets.md", "recipes.md")


@pytest.fixture
def generator(monkeypatch):
    monkeypatch.setenv("DATAKIT_CATALOGUE", "")
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_generated_page_is_what_the_generator_writes(generator):
    assert set(generator.PAGES) == set(PAGES)
    stale = [name for name, page in generator.PAGES.items() if page() != (DOCS / name).read_text()]

    assert not stale, "run `make docs` and commit what it writes"


def test_make_docs_writes_the_pages():
    makefile = (ROOT / "Makefile").read_text()

    assert re.search(r"^docs: .*\n\t\$\(BIN\)/python docs/generate\.py$", makefile, re.MULTILINE)


def test_every_option_of_every_command_is_on_its_page():
    page = (DOCS / "commands.md").read_text()
    sections = dict(re.findall(r"^## datakit ([\w-]+)\n(.*?)(?=^## )", page, re.MULTILINE | re.DOTALL))

    assert set(sections) == set(cli.commands)
    for name, command in cli.commands.items():
        options = {flag for p in command.params if isinstance(p, click.Option) for flag in (*p.opts, *p.secondary_opts)}
        assert options <= set(re.findall(r"--?[\w-]+", sections[name])), name


def test_the_exit_codes_of_the_page_are_those_of_the_commands(tmp_path):
    page = (DOCS / "commands.md").read_text()
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests/broken.toml").write_text("title = 1\n")
    env = {"DATAKIT_CATALOGUE": "", "DATAKIT_ROOT": str(tmp_path / "root")}

    codes = [
        typed("datakit info coyo", env).code,
        typed("datakit build-mix coyo", env).code,  # nothing was fetched
        typed("datakit info nosuch", env).code,
        typed("datakit fetch", env).code,
        typed("datakit list", {**env, "DATAKIT_CATALOGUE": str(tmp_path)}).code,
    ]

    assert codes == [0, 1, 2, 2, 1]
    assert re.findall(r"^\| (\d+) \|", page, re.MULTILINE) == ["0", "1", "2", "130"]
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.DatakitError):
            assert f"| `{kind.__name__}` | `{kind.__base__.__name__}` | {kind.exit_code} |" in page


def test_an_interrupted_command_ends_with_130():
    code = (
        "import signal, sys; from datakit import cli; cli.cli.main = lambda **_: signal.raise_signal(signal.SIGTERM)\n"
    )

    done = subprocess.run([sys.executable, "-c", f"{code}cli.main()"], capture_output=True, text=True, check=False)

    assert done.returncode == 130
    assert "to go on, run" in done.stderr


def test_every_dataset_and_recipe_has_its_section():
    for page, kind in (("datasets.md", "manifests"), ("recipes.md", "pipelines")):
        assert re.findall(r"^## `(\w+)`$", (DOCS / page).read_text(), re.MULTILINE) == catalogue.names(kind)


def test_terms_problems_and_sources_of_every_dataset_are_on_the_page():
    page = (DOCS / "datasets.md").read_text().replace("\\", "")
    sections = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))

    for name, section in sections.items():
        about = manifest.read(catalogue.find("manifests", f"{name}.toml"))
        plain = [about.licence, about.accept, about.lost, about.homepage, about.recipe, *about.problems]
        sources = [word for s in about.images.sources.values() for word in (s.archive, s.licence, s.obtain)]
        assert [words for words in plain + sources if words not in section] == [], name


def test_mixes_and_steps_of_every_recipe_are_on_the_page():
    page = (DOCS / "recipes.md").read_text()
    sections = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## )", page, re.MULTILINE | re.DOTALL))

    for name, section in sections.items():
        module = pipeline.load(name)
        for phase, mix in getattr(module, "MIXES", {}).items():
            assert f"| `{phase}` | `{mix}` |" in section
        for dataset in getattr(module, "STEPS", {}).keys() - {"*"}:
            table = section[section.rindex(f"[`{dataset}`](datasets.md") :].partition("|\n\n")[0]
            steps = pipeline.steps(name, manifest.load(dataset))
            assert re.findall(r"^\| `([\w-]+)` \| (\w+) \| \[`(\w+)`", table, re.MULTILINE) == [
                (step.name, step.role, type(step.stage).__name__) for step in steps
            ]
    assert "`share=0.2`, `floor=0.6`" in sections["coyo_vila"]
    assert "`tolerates=0.95`" in sections["icm_csft"]


def headings(path):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading_that_are_there(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        if "://" not in target and (not there.exists() or (anchor and anchor not in headings(there))):
            lost.append(target)

    assert not lost


# docs/adding.md

ADDING = (DOCS / "adding.md").read_text()


def blocks(kind):
    """The fenced blocks of docs/adding.md of a kind, but for the filter's, which tests/test_steps.py runs."""
    text = re.sub(r"^## A filter$.*?(?=^## )", "", ADDING, flags=re.MULTILINE | re.DOTALL)
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def photo():
    out = io.BytesIO()
    Image.new("RGB", (400, 500), "navy").save(out, "JPEG")
    return out.getvalue()


def data(folder):
    """The files that the examples are about: their rows ten times, photos, and captions in their archive."""
    (folder / "photos").mkdir()
    for n in (1, 2):
        (folder / f"photos/{n}.jpg").write_bytes(photo())
    for name, text in zip(("talks", "quiz"), blocks("json"), strict=True):
        assert f"`{name}.json`" in ADDING
        (folder / f"{name}.json").write_text(json.dumps(json.loads(text) * 10))
    turns = [{"from": "human", "value": "<image>\nCaption it."}, {"from": "gpt", "value": "A boat on a lake."}]
    captions = [{"id": str(n), "image": "photos/1.jpg", "conversations": turns} for n in range(40)]
    (folder / "captions.json").write_text(json.dumps(captions))
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        archive.writestr("1.jpg", photo())


def records(folder):
    """The records of the tars of a folder."""
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            yield from (json.load(tar.extractfile(member)) for member in tar if member.name.endswith(".json"))


@pytest.fixture(scope="module")
def added(tmp_path_factory):
    """A folder with the files of docs/adding.md, what each of its commands printed, and its run without --rebuild."""
    folder = tmp_path_factory.mktemp("adding")
    data(folder)
    files = re.findall(r"`(my/[\w/]+\.(?:toml|py))`[^\n]*:\n\n```\w+\n(.*?)^```", ADDING, re.MULTILINE | re.DOTALL)
    for name, text in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.replace("/data/", f"{folder}/"))
    assert len(files) == len(blocks("toml")) + len(blocks("python")) + 1  # and the filter's
    env = {"DATAKIT_CATALOGUE": "my", "DATAKIT_JOBS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        lines = [line for block in blocks("bash") for line in block.splitlines()]
        at = lines.index("datakit run small --rebuild")
        printed = {line: typed(line, env) for line in lines[:at]}
        refused = typed("datakit run small", env)
        printed |= {line: typed(line, env) for line in lines[at:]}
    return folder, printed, refused


def test_the_commands_of_adding_work_in_their_order(added):
    _, printed, _ = added

    assert len(printed) == 11
    assert {command: got for command, got in printed.items() if got.code != 0} == {}


def test_the_dataset_that_was_added_keeps_its_keys(added):
    folder, _, _ = added

    assert {record["attrs"]["topic"] for record in records(folder / "data/talks/pack")} == {"boats", "numbers"}


def test_the_reader_of_adding_makes_records_and_reasons(added):
    folder, printed, _ = added
    found = list(records(folder / "data/quiz/pack"))

    assert re.search(r"dropped +unanswered +10 ", printed["datakit status quiz"].out)
    assert len(found) == 10
    assert found[0]["messages"][0]["content"][1]["text"] == "What is it?\nA. a house\nB. a boat"
    assert found[0]["messages"][1]["content"] == [{"type": "text", "text": "B"}]
    assert found[0]["attrs"]["topic"] == "boats"


def test_what_another_recipe_has_made_is_not_mixed_as_adding_says(added):
    _, _, refused = added

    assert refused.code == 1
    assert "--rebuild" in refused.err and "half" in refused.err


def test_the_recipe_of_adding_halves_shrinks_and_mixes(added):
    folder, _, _ = added
    mixes = {
        phase: json.loads((folder / f"data/mixes/small-{phase}/mix.json").read_text()) for phase in ("align", "tune")
    }

    assert [(part["dataset"], part["repeats"]) for part in mixes["align"]["parts"]] == [("captions", 1)]
    assert [(part["dataset"], part["repeats"]) for part in mixes["tune"]["parts"]] == [("talks", 2), ("quiz", 1)]
    assert mixes["tune"]["parts"][0]["samples"] == 10
    assert {picture["width"] for record in records(folder / "data/quiz/pack") for picture in record["images"]} == {336}
