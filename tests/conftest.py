"""What the end-to-end tests share: the miniature, and a way to type a command."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from datakit.cli import cli
from datakit.errors import DatakitError
from datakit.miniature import Miniature

REAL = Path(__file__).parents[1].parent / "shared" / "real"


@dataclass
class Typed:
    """What a command printed, and its exit code as `datakit.cli.main` gives it."""

    code: int
    out: str
    err: str


def typed(command: str, env: dict[str, str]) -> Typed:
    """Runs a `datakit` command in this process."""
    runner = CliRunner()
    got = runner.invoke(cli, shlex.split(command.removeprefix("datakit ")), env=env, prog_name="datakit")
    if isinstance(got.exception, DatakitError):
        return Typed(got.exception.exit_code, got.stdout, got.stderr + str(got.exception))
    if got.exception is not None and not isinstance(got.exception, SystemExit):
        raise got.exception
    return Typed(got.exit_code, got.stdout, got.stderr)


@pytest.fixture(scope="session")
def upstream():
    """One miniature for tests that only read from it."""
    with Miniature(rows=120) as miniature:
        yield miniature


def settings(miniature: Miniature, root: Path, **more: str) -> dict[str, str]:
    """The environment of a user whose internet is the miniature."""
    return {**miniature.env, "DATAKIT_ROOT": str(root), "DATAKIT_JOBS": "1", "DATAKIT_TIMEOUT_S": "2", **more}


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


def everything(root: Path) -> dict[str, bytes]:
    """Every published file of a root; downloads without their sidecars' times, locks left out."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.startswith(".") and path.suffix != ".lock"
    }


os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
