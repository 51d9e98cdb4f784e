"""Processes that can be killed, forked from one that has loaded everything already: to load it costs seconds each time.

    with Forks("datakit") as forks:
        run = forks.start("from datakit.cli import main; main()", "list", env=os.environ)
        out, err = run.communicate(timeout=60)
        assert run.returncode == 0

`Forked` has what tests use of `subprocess.Popen`. A process of it is as real as any other; only its start is cheaper.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

TRAIN = "import runpy\nrunpy.run_module('trainer.train', run_name='__main__', alter_sys=True)"
LOADS_A_PACKAGE = """
import importlib, pkgutil
package = importlib.import_module({package!r})
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if "__main__" not in module.name:
        importlib.import_module(module.name)
"""

# Forks twice for each message: one process that waits for the other and tells its id, then its status.
SERVER = """
import json, os, signal, socket, sys, traceback
doors, this = socket.socket(fileno=int(sys.argv[1])), sys.modules["__main__"]
exec(sys.argv[2], {"__name__": "loaded"})

def become(job, files):
    doors.detach(), line.detach()
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(3, 1024)
    if job["new_session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever we inherited
    sys.argv[:] = ["-c", *job["arguments"]]
    sys.path[:] = [*job["path"], *(p for p in sys.path if p not in job["path"])]
    code, main = 0, type(sys)("__main__")
    sys.modules["__main__"] = main
    try:
        exec(compile(job["code"], "<forked>", "exec"), vars(main))
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            pass
    os._exit(code)

def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass

doors.sendall(b"!")
signal.signal(signal.SIGCHLD, reap)
while True:
    head, files, _, _ = socket.recv_fds(doors, 1, 4)
    if not head:
        break
    if os.fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        line = socket.socket(fileno=files[3])
        job = json.loads(line.makefile("rb").readline())
        pid = os.fork()
        if pid == 0:
            become(job, files[:3])
        for file in files[:3]:
            os.close(file)
        line.sendall(b"%d\\n" % pid)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        try:
            line.sendall(b"%d\\n" % status)
        except OSError:
            pass
        os._exit(0)
    for file in files:
        os.close(file)
"""


class Forked:
    """A process that was forked. `stdout` and `stderr` are what it says, as text that holds every byte."""

    def __init__(self, line: socket.socket, stdout: IO[str], stderr: IO[str]) -> None:
        self._line, self._told = line, line.makefile("r")
        self.stdout, self.stderr = stdout, stderr
        self.pid = int(self._told.readline())
        self.returncode: int | None = None

    def send_signal(self, number: int) -> None:
        """As `Popen.send_signal`: one that has ended gets none."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, as `Popen` has it. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            self._line.settimeout(timeout)
            try:
                self.returncode = int(self._line.recv(16))
            except TimeoutError:
                raise subprocess.TimeoutExpired("a forked process", timeout or 0) from None
            self._told.close()
            self._line.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it said since it was last read, once it and all that came of it are gone."""
        if self.stdout.closed:
            return "", ""
        with ThreadPoolExecutor(1) as beside:
            err = beside.submit(self.stderr.read)
            said = self.stdout.read(), err.result()
        self.wait(timeout)
        self.stdout.close()
        self.stderr.close()
        return said


class Forks:
    """A process that loads `package` and all its modules, or runs `code` first, and forks for each `start`."""

    def __init__(self, package: str = "datakit", code: str | None = None, **env: str) -> None:
        ours, theirs = socket.socketpair()
        self._doors = ours
        loads = LOADS_A_PACKAGE.format(package=package) if code is None else code
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(theirs.fileno()), loads],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **env},
            )
        if self._doors.recv(1) != b"!":
            raise RuntimeError("what is to be loaded before forking can't be; see stderr")

    def start(
        self, code: str, *arguments: object, env: Mapping[str, str] | None = None, new_session: bool = False
    ) -> Forked:
        """Runs Python code in a process of its own, with arguments as `python -c` has them."""
        ours, theirs = socket.socketpair()
        out, their_out = os.pipe()
        err, their_err = os.pipe()
        nothing = os.open(os.devnull, os.O_RDONLY)
        job = {
            "code": code,
            "arguments": [str(argument) for argument in arguments],
            "env": dict(os.environ if env is None else env),
            "cwd": str(Path.cwd()),
            "path": sys.path,
            "new_session": new_session,
        }
        ours.sendall(json.dumps(job).encode() + b"\n")
        socket.send_fds(self._doors, [b"."], [nothing, their_out, their_err, theirs.fileno()])
        theirs.close()
        for file in (nothing, their_out, their_err):
            os.close(file)
        lossless = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
        return Forked(ours, os.fdopen(out, **lossless), os.fdopen(err, **lossless))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._doors.close()
        self._server.wait()
