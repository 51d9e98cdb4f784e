"""What tests share: the miniature, roots that were built from it, and what a quick run leaves out."""

import gc
import importlib.util
import os
import signal

import buckets
import hypothesis
import kinds
import pytest
from forks import Forks
from users import Typed, settings, typed

from datakit.miniature import Miniature

os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[name]  # the tests' internet is this machine

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what is to run in the background. Our children would inherit it, and tests interrupt them.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A deadline would be a timing assertion: on a busy machine a first example may take long.
hypothesis.settings.register_profile("datakit", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("quick", hypothesis.settings.get_profile("datakit"), max_examples=15)
hypothesis.settings.load_profile("datakit")
WATCH = pytest.StashKey[kinds.Watch]()


def pytest_addoption(parser):
    text = "only tests that open no connection, start no process and load no torch; one that does all the same fails"
    parser.addoption("--quick", action="store_true", help=text)


def pytest_configure(config):
    if config.getoption("quick"):
        hypothesis.settings.load_profile("quick")
        config.stash[WATCH] = kinds.Watch()


def pytest_ignore_collect(collection_path, config):
    if config.getoption("quick") and collection_path.suffix == ".py" and kinds.loads_torch(collection_path):
        return True
    return None


def pytest_collection_modifyitems(config, items):
    for item in items:
        for kind in sorted(kinds.kinds(item)):
            item.add_marker(kind)
    if config.getoption("quick"):
        slow = [item for item in items if {mark.name for mark in item.iter_markers()} & {*kinds.NAMES, "slow"}]
        config.hook.pytest_deselected(items=slow)
        left_out = set(slow)
        items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish():
    """What is there now stays to the end. Frozen, it costs nothing when a crawl collects its garbage, else 0.3 s."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    if (watch := item.config.stash.get(WATCH, None)) is None:
        return (yield)
    watch.seen.clear()
    watch.on = True
    try:
        return (yield)
    finally:
        watch.on = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A test that caught what the watch raised fails here."""
    result = yield
    if (watch := item.config.stash.get(WATCH, None)) is not None and watch.seen:
        pytest.fail(f"a quick test that caught an error of ours: give it the mark `pytest.mark.{watch.seen[0]}`")
    return result


@pytest.fixture(scope="session")
def upstream():
    """One miniature for tests that only read from it."""
    with Miniature(rows=120) as miniature:
        yield miniature


@pytest.fixture
def user(upstream, tmp_path):
    """Types commands in a root of its own: `user("fetch coyo --shards 0")`."""
    env = settings(upstream, tmp_path / "root")

    def types(command: str, **more: str) -> Typed:
        return typed(command, {**env, **more})

    types.root = tmp_path / "root"
    types.env = env
    return types


@pytest.fixture(scope="session")
def built(upstream, tmp_path_factory):
    """A root in which the three datasets of the quick start were fetched, packed and mixed. Read only."""
    root = tmp_path_factory.mktemp("built") / "root"
    env = settings(upstream, root)
    for command in (
        "fetch coyo --shards 0-3",
        "fetch llava665k qinstruct",
        "build-mix llava665k+qinstruct",
        "build-mix coyo",
    ):
        got = typed(command, env)
        assert got.code == 0, (command, got)
    return root


@pytest.fixture(scope="session")
def forks():
    """Forks processes that have all of datakit loaded."""
    with Forks() as forks:
        yield forks


@pytest.fixture(scope="session")
def trainers():
    """Forks processes that have loaded all that a training of the toy loads."""
    missing = [name for name in ("torch", "transformers", "deepspeed") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} of the `train` extra")
    build = "import deepspeed.runtime.zero.muon.original_muon, trainer.loop; from trainer import config, model, train"
    toy = "model.build(config.load('toy')[1])"
    env = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with Forks(code=f"{build}\n{toy}", **env) as forks:
        yield forks


@pytest.fixture
def lean(tmp_path_factory, monkeypatch):
    """Processes that are started find no torch and an empty wandb, which img2dataset loads for seconds without need."""
    folder = tmp_path_factory.mktemp("lean")
    (folder / "torch.py").write_text("raise ModuleNotFoundError('not here', name='torch')")
    (folder / "wandb.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))


@pytest.fixture
def bucket():
    """An object store in memory, `s3://bucket`, that is there for one test."""
    yield buckets.opened("bucket")
    buckets.opened()
