"""The command line. Each command loads what it needs and nothing else, so `--help` answers at once.

Exit codes: 0 done, 1 data or recipe wrong or incomplete, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import io
import logging
import os
import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import click

from datakit import __version__
from datakit.commands import add, inspect, look, make, run
from datakit.errors import DatakitError
from datakit.process import terminal, usercode


def main() -> NoReturn:
    """The entry point: runs a command and turns what it raises into one message and an exit code."""
    terminal.ensure_utf8_mode()
    terminal.open_standard_streams()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # Slurm's way to say stop
    code = _run()
    if why := terminal.output_failure():
        terminal.say(f"standard output can't be written: {why}. What was made is kept", err=True, label="error:")
        code = code or 1
    sys.exit(code)


def _run() -> int:
    """Runs the command that was typed and returns its exit code."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        terminal.say(shown.getvalue().rstrip("\n"), err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        again = " ".join(shlex.quote(a) for a in ["datakit", *sys.argv[1:]])
        terminal.say(f"\nInterrupted. What was committed is kept; to go on, run:\n  {again}", err=True)
        end = threading.Timer(5, os._exit, [130])  # a thread may still wait for the network
        end.daemon = True
        end.start()
        return 130
    except DatakitError as error:
        terminal.say(error, err=True, label="error:")
        return error.exit_code
    return 0


class _Commands(click.Group):
    """Commands that report an error in a user's file (recipe, reader) with its line."""

    def invoke(self, ctx: click.Context) -> Any:
        with usercode.explain_errors():
            return super().invoke(ctx)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="datakit")
@click.option("-v", "--verbose", is_flag=True, help="One line per shard, and what libraries say.")
def cli(verbose: bool) -> None:
    """Public vision-language data, turned into training batches.

    Each command can be killed at any moment and run again; it goes on where it was.

    \b
    datakit fetch coyo --shards 0-127         annotations, VILA's choice, pictures
    datakit fetch llava665k qinstruct         annotations and archives
    datakit build-mix llava665k+qinstruct     packed WebDataset tars of both, one mix
    """
    if Path("datakit.toml").is_file():
        from datakit import catalogue
        from datakit.commands import settings

        if (folders := settings.load().catalogue) is not None:
            catalogue.set_own_folders(folders)
    terminal.show_logs(logging.INFO if verbose else logging.WARNING)


for command in (
    make.fetch,
    make.build_mix,
    run.run,
    look.list_,
    look.info,
    look.status,
    look.doctor,
    look.verify,
    inspect.check,
    inspect.export,
    add.add,
    make.adopt,
    make.import_,
    make.clean,
    make.pin,
    make.demo,
):
    cli.add_command(command)
