"""The demo: the three commands that datakit is for, on the miniature, as a user would type them."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from datakit.miniature import Miniature
from datakit.process.terminal import say

COMMANDS = (
    "list",
    "run llava15 --dry-run",
    "fetch coyo --shards 0-3",
    "fetch llava665k",
    "fetch qinstruct",
    "build-mix llava665k+qinstruct",
    "build-mix coyo",
    "status coyo",
    "verify",
)
MIX = "mixes/llava665k+qinstruct/mix.json"


def play(root: str | None, *, train: bool) -> int:
    """Runs the chain in `root` (or a temporary folder) and returns the exit code of the first that fails."""
    with tempfile.TemporaryDirectory(prefix="datakit-demo-") as scratch, Miniature() as upstream:
        folder = Path(root or scratch).absolute()
        env = {**os.environ, **upstream.env, "DATAKIT_ROOT": str(folder), "DATAKIT_TIMEOUT_S": "5"}
        say(f"A small copy of the upstreams, with their faults, listens on {upstream.url}\n")
        start = time.monotonic()
        for command in COMMANDS:
            if code := _say(["datakit", *command.split()], [sys.executable, "-m", "datakit", *command.split()], env):
                return code
        if train and (code := _train(folder, env)):
            return code
        say(f"Done in {time.monotonic() - start:.0f} s: what you saw is what the real commands do.")
        if root:
            say(f"All of it is in {folder}")
    return 0


def _train(folder: Path, env: dict[str, str]) -> int:
    missing = [m for m in ("torch", "deepspeed", "transformers") if importlib.util.find_spec(m) is None]
    if missing:
        cure = "pip install -c constraints.txt '.[train]'"
        say(f"Training is left out: {', '.join(missing)} not installed ({cure})")
        return 0
    out = folder / "runs" / "demo"
    with socket.create_server(("127.0.0.1", 0)) as probe:  # 29500, the usual one, may be another run's
        port = probe.getsockname()[1]
    launch = f"--num_accelerators 2 --master_port {port} --module trainer.train"
    words = [*launch.split(), "--recipe", "toy", "--mix", str(folder / MIX), "--out", str(out), "--max-steps", "4"]
    command = [sys.executable, "-m", "deepspeed.launcher.runner", *words]
    return _say(["DS_ACCELERATOR=cpu", "deepspeed", *words], command, {**env, "DS_ACCELERATOR": "cpu"})


def _say(shown: list[str], command: list[str], env: dict[str, str]) -> int:
    say(" ".join(shown), label="$")
    code = subprocess.run(command, env=env, check=False).returncode
    if code:
        say(f"exit code {code}", err=True)
    say()
    return code
