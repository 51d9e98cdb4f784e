"""The command line. Each command loads what it needs and nothing else, so `--help` answers at once.

Exit codes: 0 done, 1 data or recipe wrong or incomplete, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import NoReturn

import click

from datakit import __version__
from datakit.commands import add, inspect, look, make, run
from datakit.errors import DatakitError


def main() -> NoReturn:
    """The entry point: runs a command and turns what it raises into one message and an exit code."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # Slurm's way to say stop
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        again = " ".join(shlex.quote(a) for a in ["datakit", *sys.argv[1:]])
        click.echo(f"\nInterrupted. What was committed is kept; to go on, run:\n  {again}", err=True)
        sys.stderr.flush()
        end = threading.Timer(5, os._exit, [130])  # a thread may still wait for the network
        end.daemon = True
        end.start()
        sys.exit(130)
    except DatakitError as error:
        click.echo(f"{click.style('error:', fg='red')} {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os._exit(0)
    sys.exit(0)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
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
        from datakit import settings

        settings.load()  # it may name a catalogue of the user's own
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s", stream=sys.stderr)


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
