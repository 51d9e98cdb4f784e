"""Processes that are forked end, speak and are killed like those that are started."""

import os
import signal
import subprocess

import pytest


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("raise SystemExit('no')", 1),
        ("1 / 0", 1),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("import os\nos.kill(os.getpid(), 9)", -signal.SIGKILL),
    ],
)
def test_the_status_is_that_of_an_interpreter(forks, code, status):
    run = forks.start(code)

    run.communicate(timeout=60)

    assert run.returncode == status


def test_it_has_its_arguments_its_environment_and_its_own_main(forks):
    code = "import os, sys\nprint(sys.argv[1:], dict(os.environ), __name__)\nprint('so', file=sys.stderr)"

    out, err = forks.start(code, "a", 2, env={"X": "1"}).communicate(timeout=60)

    assert out == "['a', '2'] {'X': '1'} __main__\n"
    assert err == "so\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_one_that_runs_can_be_interrupted_and_killed(forks, number):
    run = forks.start("import signal\nprint('up', flush=True)\nsignal.pause()", env=os.environ)
    assert run.stdout.readline() == "up\n"
    with pytest.raises(subprocess.TimeoutExpired):
        run.wait(0.01)

    run.send_signal(number)

    run.communicate(timeout=60)
    assert run.returncode == -number
    run.kill()  # as `Popen.kill`: it has ended, and nobody else is hit
