"""`datakit run RECIPE` on the miniature: every recipe from the downloads to its mixes, and what stops one before."""

import json
import os
import signal
from pathlib import Path

import pytest
from forks import TRAIN
from users import KILLED, everything, settings, typed

from datakit import catalogue
from datakit.catalogue import manifest
from datakit.engine import pipeline
from datakit.miniature import Miniature
from datakit.stream import mixfile as mix
from datakit.stream.reader import Stream

ROOT = Path(__file__).parents[1]
PLAN = ROOT / "tests/golden/plans/vila.json"
REWRITE = "DATAKIT_GOLDEN=write python -m pytest tests/test_run.py"
PAPERS = {  # what else a person has to say; the miniature serves a few of the shards of COYO and MMC4
    "llava15": "",
    "qinstruct_mix": "",
    "qinstruct_after": "",
    "libmoe": "",
    "icm_msft": "--accept-licence",
    "icm_csft": "--accept-licence",
    "dense_connector": "--without {by_hand}",
    "sharegpt4v": "--without {by_hand}",
    "vila": "--fallback --shards 0-1 --without {by_hand}",
}


def datasets(recipe, fallback=True):
    """The datasets of a recipe, in the order of its stages, with what stands for a lost one."""
    found = [
        name for text in pipeline.mixes(recipe).values() for name, _ in mix.parse(text, catalogue.names("manifests"))
    ]
    return [manifest.load(name).fallback if fallback and manifest.load(name).lost else name for name in found]


def by_hand(recipe):
    """The sources that only a person can bring, joined as --without takes them."""
    sources = [source for name in datasets(recipe) for source in manifest.load(name).images.sources.items()]
    return ",".join(sorted({name for name, source in sources if source.obtain}))


def command(recipe):
    more = PAPERS[recipe].format(by_hand=by_hand(recipe))
    return f"run {recipe} {more.removesuffix('--without ')}".strip()


@pytest.fixture(scope="module")
def small():
    with Miniature(rows=60, coyo_shards=2, coyo_rows=240) as miniature:
        yield miniature


@pytest.fixture(scope="module")
def ran(small, tmp_path_factory):
    """A root in which every recipe was run, one after the other, and what each of them said. Read only."""
    root = tmp_path_factory.mktemp("ran") / "root"
    said = {recipe: typed(command(recipe), settings(small, root)) for recipe in PAPERS}
    return root, said


@pytest.fixture
def user(small, tmp_path):
    env = settings(small, tmp_path / "root")

    def types(line, **more):
        return typed(line, {**env, **more})

    types.root = tmp_path / "root"
    return types


def asked(miniature, since):
    """Paths that were fetched, not only looked at."""
    return [path for method, path, _ in miniature.requests[since:] if method == "GET"]


@pytest.mark.parametrize("recipe", PAPERS)
def test_a_recipe_runs_from_the_downloads_to_a_mix_for_each_stage(ran, recipe):
    root, said = ran

    assert said[recipe].code == 0, said[recipe].err
    for stage, expression in pipeline.mixes(recipe).items():
        path = root / f"mixes/{recipe}-{stage}/mix.json"
        made, _ = mix.read(path)
        terms = mix.parse(expression, catalogue.names("manifests"))
        stream = Stream(path)
        keys = [stream[position].key for position in range(len(stream))]

        assert len(made.parts) == len(terms)
        assert all(part.samples for part in made.parts)
        assert len(keys) == len(set(keys)) == made.samples
        assert f"{stage}: {made.samples:,} samples an epoch" in said[recipe].out


def test_every_recipe_with_mixes_is_among_those_that_are_run():
    files = [path.stem for path in (ROOT / "pipelines").glob("[a-z]*.py")]

    assert set(PAPERS) == {name for name in files if hasattr(pipeline.load(name), "MIXES")}


def test_what_one_recipe_made_the_next_one_takes(ran):
    _, said = ran

    assert "llava665k: pack done; 1 shards were done before" in said["qinstruct_mix"].out
    assert "llava558k: pack done; 1 shards were done before" in said["libmoe"].out


def test_q_instruct_stands_first_in_its_mix(ran):
    root, _ = ran
    made, _ = mix.read(root / "mixes/qinstruct_mix-finetune/mix.json")

    assert [part.dataset for part in made.parts] == ["qinstruct", "llava665k"]


def test_a_lost_dataset_is_replaced_only_when_asked_for(ran, user):
    root, _ = ran
    made, _ = mix.read(root / "mixes/vila-pretrain/mix.json")

    refused = user("run vila --phase pretrain")

    assert [part.dataset for part in made.parts] == ["coyo", "mmc4"]
    assert refused.code == 1
    assert "'mmc4_core' can't be had any more" in refused.err
    assert "--fallback takes 'mmc4'" in refused.err


def test_running_again_does_nothing_and_asks_the_network_for_nothing(ran, small):
    root, said = ran
    since = len(small.requests)
    before = everything(root)

    again = typed(command("icm_msft"), settings(small, root))

    assert again.code == 0
    assert again.out.count("were done before") == 2
    assert again.out.splitlines()[-2:] == said["icm_msft"].out.splitlines()[-2:]
    assert small.requests[since:] == []
    assert everything(root).keys() == before.keys()


def test_one_stage_makes_what_it_needs_and_nothing_else(user):
    got = user("run llava15 --phase pretrain")

    assert got.code == 0
    assert sorted(p.name for p in (user.root / "mixes").iterdir()) == ["llava15-pretrain"]
    assert not (user.root / "llava665k").exists()


def test_a_dataset_of_two_stages_is_made_once(user, tmp_path, monkeypatch):
    (tmp_path / "pipelines").mkdir()
    mine = (ROOT / "pipelines/instruct.py").read_text() + 'MIXES = {"one": "qinstruct", "two": "qinstruct:2"}\n'
    (tmp_path / "pipelines/mine.py").write_text(mine)
    monkeypatch.setenv("DATAKIT_CATALOGUE", str(tmp_path))

    got = user("run mine")
    one, two = (mix.read(user.root / f"mixes/mine-{stage}")[0] for stage in ("one", "two"))

    assert got.code == 0
    assert got.out.count("pack done") == 1
    assert two.samples == 2 * one.samples


def test_a_trial_has_folders_and_mixes_of_its_own(user):
    got = user("run qinstruct_after --limit 8")

    made, _ = mix.read(user.root / "mixes/qinstruct_after-finetune@limit-8/mix.json")
    assert got.code == 0
    assert 0 < made.samples <= 8
    assert (user.root / "qinstruct@limit-8").is_dir()


def test_slices_pack_and_the_last_run_writes_the_mixes(user):
    slices = [user(f"run qinstruct_after --slice {n}/2") for n in range(2)]
    assert not (user.root / "mixes").exists()

    whole = user("run qinstruct_after")

    assert [got.code for got in slices] == [0, 0]
    assert "run this without --slice" in slices[0].out
    assert whole.code == 0
    assert "shards were done before" in whole.out


# What would stop a run is said before it begins


def test_everything_that_is_in_the_way_is_told_at_once_and_nothing_is_downloaded(user, small, tmp_path, monkeypatch):
    (tmp_path / "pipelines").mkdir()
    mine = (ROOT / "pipelines/instruct.py").read_text()
    mine += 'MIXES = {"one": "icm+sharegpt4v.pretrain", "two": "mmc4_core+qinstruct"}\n'
    (tmp_path / "pipelines/mine.py").write_text(mine)
    monkeypatch.setenv("DATAKIT_CATALOGUE", str(tmp_path))
    since = len(small.requests)

    got = user("run mine")

    assert got.code == 1
    assert "nothing was downloaded" in got.err
    assert manifest.load("icm").accept.rstrip(".") in got.err
    assert "--accept-licence" in got.err
    for name, source in manifest.load("sharegpt4v.pretrain").images.sources.items():
        assert (f"{name}: " in got.err and source.obtain in got.err) == bool(source.obtain)
    assert "datakit adopt sharegpt4v.pretrain" in got.err
    assert "'mmc4_core' can't be had any more" in got.err
    assert small.requests[since:] == []
    assert not user.root.exists() or not any(user.root.iterdir())


def test_terms_are_accepted_once(user):
    first = user("run icm_csft --accept-licence --phase finetune")
    again = user("run icm_csft")

    assert first.code == again.code == 0


def test_a_root_made_by_another_recipe_is_refused_before_anything_is_downloaded(user, small):
    assert user("fetch coyo --shards 0").code == 0
    since = len(small.requests)

    got = user("run vila --fallback --shards 0 --phase pretrain")
    asked_then = small.requests[since:]
    rebuilt = user("run vila --fallback --shards 0 --phase pretrain --rebuild")

    assert got.code == 1
    assert "coyo was made by another recipe" in got.err
    assert asked_then == []
    assert rebuilt.code == 0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("run vilaa", "Did you mean 'vila'"),
        ("run coyo_vila", "names no mixes"),
        ("run toy", "names no mixes"),
        ("run llava15 --phase pretrian", "Did you mean 'pretrain'"),
        ("run llava15 --recipe instruct", "takes its recipe as the argument"),
        ("run llava15 --json", "--dry-run"),
        ("run llava15 --without cocoo", "Did you mean 'coco'"),
        ("run vila --fallback --phase pretrain --shards 40000", "'coyo' has none of these shards"),
    ],
)
def test_a_wrong_command_is_one_clear_error(user, line, says):
    got = user(line)

    assert got.code == 2
    assert says in got.err


# A run that is interrupted


@pytest.mark.parametrize("published", [12, 30, 58])  # of the 59 files that it publishes
def test_a_run_that_was_killed_goes_on(ran, user, small, forks, published):
    root, _ = ran
    env = {**os.environ, **settings(small, user.root), "CUT_AFTER": str(published)}

    killed = forks.start(KILLED, "run", "qinstruct_mix", env=env)
    killed.communicate()
    since = len(small.requests)
    resumed = user("run qinstruct_mix")

    def parts(place):
        return mix.read(place / "mixes/qinstruct_mix-finetune/mix.json")[0].parts

    assert killed.returncode == -signal.SIGKILL
    assert resumed.code == 0
    assert not any("cleaned_labels" in path for path in asked(small, since))  # it came before the kill
    assert parts(user.root) == parts(root)


# The plan


LOOSE = {
    "size_bytes",
    "here_bytes",
    "disk_bytes",
    "made_bytes",
    "more_bytes",
    "to_come",
    "free_bytes",
    "bytes_to_download",
    "seconds",
    "url_s",
}
TEXTS = {"title", "licence", "licences", "accept", "problems", "rates"}  # the manifests' own words


def masked(plan):
    """A plan in which what hangs on this machine, on codecs, or on a manifest's wording only is or isn't."""
    if isinstance(plan, dict):
        return {k: bool(v) if k in LOOSE | TEXTS and v is not None else masked(v) for k, v in plan.items()}
    return [masked(one) for one in plan] if isinstance(plan, list) else plan


def test_the_plan_of_vila_is_what_its_golden_file_says(user, small):
    since = len(small.requests)
    got = user(f"{command('vila')} --dry-run --json", DATAKIT_JOBS="1")

    found = masked(json.loads(got.out))

    if os.environ.get("DATAKIT_GOLDEN") == "write":
        PLAN.parent.mkdir(parents=True, exist_ok=True)
        PLAN.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    assert got.code == 0
    assert found == json.loads(PLAN.read_text()), f"the plan is another one. If that is meant:\n  {REWRITE}"
    assert not user.root.exists() or not any(user.root.iterdir())
    assert not [path for path in asked(small, since) if "/api/" not in path]


def test_a_plan_says_files_rows_steps_licences_mixes_disk_and_time(user):
    got = user("run qinstruct_mix --dry-run")

    assert got.code == 0
    for words in (
        "finetune  qinstruct+llava665k  ->  mixes/qinstruct_mix-finetune",
        "S-Lab License 1.0",
        "coco: annotations CC-BY-4.0",
        "files     7, ",
        "665,298 by the authors' word",
        "fetch     Locate",
        "download  ",
        "disk      ",
        "; free ",
        "time      ",
        "benchmarks/RESULTS.md",
        "problems: see `datakit info llava665k`",
    ):
        assert words in got.out


def test_the_bytes_of_a_plan_are_those_of_upstreams_files(user, small):
    (one,) = json.loads(user("run qinstruct_after --dry-run --json").out)["datasets"]
    files = ("cleaned_labels.json", "q-instruct-images.tar")

    sizes = [len(small.answer(f"/datasets/teowu/Q-Instruct/resolve/main/{file}").body) for file in files]

    assert (one["n_files"], one["size_bytes"], one["unknown_files"]) == (2, sum(sizes), 0)
    assert one["rows"] == manifest.load("qinstruct").expected["rows_about"]


def test_a_plan_after_the_run_has_nothing_left_to_download(ran, small):
    root, _ = ran
    got = typed(f"{command('llava15')} --dry-run --json", settings(small, root))

    plan = json.loads(got.out)

    assert plan["bytes_to_download"] == plan["disk_bytes"] == 0
    assert [(one["shards_done"], one["shards"]) for one in plan["datasets"]] == [(1, 1), (1, 1)]


def test_a_plan_is_made_when_upstream_does_not_answer(tmp_path):
    with Miniature(rows=24) as upstream:
        env = settings(upstream, tmp_path / "root")
        upstream.replace(
            "http://images.cocodataset.org/zips/train2017.zip",
            lambda asked: upstream.answer("/nowhere"),
        )

        got = typed("run qinstruct_mix --dry-run", env)

    assert got.code == 0
    assert "and 1 files of unknown size" in got.out
    assert "something of llava665k" in got.out


def test_a_plan_tells_what_has_to_be_done_first(user):
    got = user("run icm_csft --dry-run")

    assert got.code == 0
    assert "terms     " in got.out
    assert "first     'icm' has terms" in got.out


# The mix is trained on


def test_a_toy_is_trained_on_the_mix_of_qinstruct_mix(ran, tmp_path, trainers):
    root, _ = ran
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    words = ["--recipe", "toy", "--mix", root / "mixes/qinstruct_mix-finetune/mix.json", "--out", tmp_path / "run"]

    run = trainers.start(TRAIN, *words, "--max-steps", "3", env=env)

    err = run.communicate()[1]
    assert run.returncode == 0, err[-2000:]
    assert json.loads((tmp_path / "run/model/training.json").read_text())["step"] == 3
