"""A user of the end-to-end tests: types commands, and looks at what is in a root."""

import shlex
from dataclasses import dataclass
from pathlib import Path

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


def settings(miniature: Miniature, root: Path, **more: str) -> dict[str, str]:
    """The environment of a user whose internet is the miniature."""
    return {**miniature.env, "DATAKIT_ROOT": str(root), "DATAKIT_JOBS": "1", "DATAKIT_TIMEOUT_S": "2", **more}


def everything(root: Path) -> dict[str, bytes]:
    """Every published file of a root whose bytes are promised: without locks, and without fetch's logs of times."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.startswith(".") and path.suffix != ".lock" and path.parent.name != "log"
    }
