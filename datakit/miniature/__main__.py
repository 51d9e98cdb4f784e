"""`python -m datakit.miniature`: serve the miniature until interrupted, for trying commands by hand."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import threading
from pathlib import Path

from datakit.errors import DatakitError
from datakit.miniature import Miniature
from datakit.process.terminal import say


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m datakit.miniature", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="any free one unless told")
    parser.add_argument("--rows", type=int, default=240, help="of llava665k")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", type=Path, help="a folder of photographs and texts to use among the drawings")
    options = parser.parse_args()
    interrupted = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: interrupted.set())
    try:
        with Miniature(**vars(options)) as miniature:
            for name, value in miniature.env.items():
                say(f"export {name}={shlex.quote(value)}")
            interrupted.wait()
    except DatakitError as error:
        say(error, err=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
