"""A user of the end-to-end tests: types commands, and looks at what is in a root."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from datakit.cli import cli
from datakit.errors import DatakitError
from datakit.miniature import Miniature

# A program that runs a `datakit` command.
DATAKIT = "from datakit.cli import main\nmain()"
# A program that runs a `datakit` command, publishes as many files as CUT_AFTER says, and is killed with the next one
# written but not yet renamed.
KILLED = """
import os, pathlib, signal
from datakit.cli import main
rename, left = pathlib.Path.replace, int(os.environ["CUT_AFTER"])
def replace(self, target):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return rename(self, target)
pathlib.Path.replace = replace
main()
"""
# id and the similarities to ViT-B/32 and ViT-L/14 of the seven rows that COYO's README shows (kakaobrain/coyo-dataset)
COYOS_ROWS = (
    (4896263451343, 0.319336, 0.248169),
    (1425929344479, 0.24939, 0.203735),
    (7456063527931, 0.290771, 0.179321),
    (3221225511175, 0.263916, 0.217896),
    (5626407855002, 0.400878, 0.31665),
    (1125282207474, 0.4453125, 0.3505859),
    (1434519186493, 0.4165039, 0.3427734),
)
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
