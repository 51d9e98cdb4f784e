"""What a quick run leaves out by itself, and refuses to let through."""

import os
import subprocess
import sys
from pathlib import Path

FILE = """
import socket
import subprocess

import pytest


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as door:
        yield door


def started():
    return subprocess.run(["true"])


def test_of_nothing():
    assert True


def test_of_a_fixture(server): ...


def test_of_a_process():
    started()


@pytest.mark.slow
def test_of_a_mark(): ...


def test_of_a_hidden_process():
    getattr(__import__("sub" + "process"), "run")(["true"])


def test_of_a_hidden_connection_whose_error_is_caught():
    try:
        getattr(__import__("soc" + "ket"), "create_server")(("127.0.0.1", 0))
    except RuntimeError:
        pass


def test_of_a_hidden_spawn():
    getattr(__import__("multi" + "processing.pool"), "get_context")("spawn").Process(target=print).start()
"""


def test_a_quick_run_leaves_out_servers_and_processes_and_fails_what_starts_them_all_the_same(tmp_path):
    (tmp_path / "test_kinds.py").write_text(FILE)
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "--quick", "-rA", "-q"]

    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), "-o", "markers=network\nprocesses\ntorch\nslow", str(tmp_path)],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},  # tests/datakit isn't what is meant
        capture_output=True,
        text=True,
        check=False,
    )

    ended = {line.split("::")[1].split(" ")[0]: line.split(" ")[0] for line in done.stdout.splitlines() if "::" in line}
    assert ended == {
        "test_of_nothing": "PASSED",
        "test_of_a_hidden_process": "FAILED",
        "test_of_a_hidden_connection_whose_error_is_caught": "FAILED",
        "test_of_a_hidden_spawn": "FAILED",
    }, done.stdout + done.stderr
    assert "3 deselected" in done.stdout
    assert "give it the mark `pytest.mark.processes`" in done.stdout
