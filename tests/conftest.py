"""What the end-to-end tests share: the miniature, and roots that were built from it."""

import os

import buckets
import hypothesis
import pytest
from users import Typed, settings, typed

from datakit.miniature import Miniature

os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[name]  # the tests' internet is this machine

# A deadline would be a timing assertion: on a busy machine a first example may take long.
hypothesis.settings.register_profile("datakit", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("datakit")


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


@pytest.fixture
def bucket():
    """An object store in memory, `s3://bucket`, that is there for one test."""
    yield buckets.opened("bucket")
    buckets.opened()
