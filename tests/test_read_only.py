"""A root that can only be read serves all who only look."""

import json
import os
import subprocess
import sys

import pytest
from users import settings

LOOK = """
import json, os, sys
sys.path[:0] = json.loads(os.environ["WHERE"])
from users import typed
from datakit.stream.reader import Stream
found = []
for command in sys.argv[2:]:
    try:
        got = typed(command, {})
        found.append([command, got.code, got.out + got.err])
    except Exception as error:
        found.append([command, 99, repr(error)])
stream = Stream(f"{sys.argv[1]}/mixes/qinstruct/mix.json")
print(json.dumps([found, len(stream[0].images)]))
"""
ALONE = ["unshare", "--user", "--map-root-user", "--mount"]
READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && ! touch "$0/x" 2>/dev/null && exec "$@"'


def test_commands_that_only_look_work_in_a_root_that_can_only_be_read(upstream, user, tmp_path):
    if subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user can't mount anything")
    user("fetch coyo --shards 0-1")
    user("build-mix qinstruct --fetch")
    says = {"check qinstruct": "59 are kept", "check qinstruct --full": "58 are kept"}  # exit 1: some would be lost
    commands = [
        *says,
        "list",
        "info qinstruct",
        "status",
        "verify",
        "doctor qinstruct",
        "doctor coyo --sample 5",
        "fetch qinstruct",
        "build-mix qinstruct --name other",
        f"export qinstruct --format llava --out {tmp_path / 'out'}",
        "run qinstruct_after --dry-run",
        "clean qinstruct --dry-run",
    ]

    env = {**os.environ, **settings(upstream, user.root), "WHERE": json.dumps(sys.path)}
    look = [sys.executable, "-c", LOOK, str(user.root), *commands]
    alone = [*ALONE, "sh", "-c", READ_ONLY, str(user.root), *look]
    done = subprocess.run(alone, env=env, stdout=subprocess.PIPE, text=True, check=True)

    found, n_images = json.loads(done.stdout)
    wrong = {command: said for command, code, said in found if code and says.get(command, "?!") not in said}
    assert wrong.keys() == {"build-mix qinstruct --name other"}
    assert all("no permission to write" in said for said in wrong.values())
    assert n_images == 1
