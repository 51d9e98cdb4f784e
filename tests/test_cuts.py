"""A build that is killed, with kill -9 and for real, is resumed to the same bytes."""

import os
import random
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from users import DATAKIT, KILLED, everything, settings, typed

from datakit.miniature import Miniature

BUILD = "build-mix --fetch llava665k+qinstruct:2"


def made(root):
    """What a build makes; a download's sidecar and index come along, the half-written files do not."""
    return {n: d for n, d in everything(root).items() if not n.endswith((".part", ".part.json"))}


@pytest.fixture(scope="module")
def small():
    with Miniature(rows=30) as miniature:
        yield miniature


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    assert typed(BUILD, settings(small, root)).code == 0
    return made(root)


# One file each time, unless that is no progress: a download takes several.
def test_a_two_dataset_build_killed_at_every_publish_ends_with_the_same_bytes(small, whole, tmp_path, forks):
    env = {**os.environ, **settings(small, tmp_path)}
    kills, after, before = 0, 1, {}

    while True:
        cut = forks.start(KILLED, *BUILD.split(), env={**env, "CUT_AFTER": str(after)})
        _, said = cut.communicate()
        if cut.returncode != -signal.SIGKILL:
            break
        kills += 1
        progress = made(tmp_path)
        after = 1 if progress != before else after + 1
        before = progress
        assert after < 6, "no progress"

    assert cut.returncode == 0, said
    assert kills > 30  # recipes, plans, tables, tars and commits of two datasets, downloads, and the mix
    assert made(tmp_path) == whole


def test_a_build_by_several_processes_killed_at_random_moments_ends_with_the_same_bytes(small, whole, tmp_path, forks):
    env = {**os.environ, **settings(small, tmp_path, DATAKIT_JOBS="2")}
    chance = random.Random(0)

    for _ in range(5):
        build = forks.start(DATAKIT, *BUILD.split(), env=env)
        with suppress(subprocess.TimeoutExpired):
            build.wait(chance.uniform(0.1, 2))
        build.kill()
        build.communicate()
    last = forks.start(DATAKIT, *BUILD.split(), env=env)
    _, said = last.communicate()

    assert last.returncode == 0, said
    assert made(tmp_path) == whole


def test_a_pool_that_is_interrupted_at_random_moments_ends_at_once_and_goes_on(small, tmp_path, forks):
    env = {**os.environ, **settings(small, tmp_path, DATAKIT_JOBS="2")}
    fetch = ["fetch", "coyo", "--shards", "0-7"]
    chance = random.Random(1)

    codes = set()
    for _ in range(4):
        pool = forks.start(DATAKIT, *fetch, env=env)
        with suppress(subprocess.TimeoutExpired):
            pool.wait(chance.uniform(0.3, 2.0))
        pool.send_signal(signal.SIGINT)
        pool.communicate(timeout=60)
        codes.add(pool.returncode)
    last = forks.start(DATAKIT, *fetch, env=env)
    _, said = last.communicate()

    assert codes <= {0, 130}
    assert last.returncode == 0, said


def test_a_build_that_is_interrupted_says_how_to_go_on_and_exits_with_130(tmp_path):
    with Miniature(rows=30, delay_s=0.2) as slow:
        env = {**os.environ, **settings(slow, tmp_path)}
        command = [sys.executable, "-m", "datakit", "fetch", "llava665k"]
        process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        while not slow.requests:  # until it has begun
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.01)

        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "to go on, run:\n  datakit fetch llava665k\n" in err
