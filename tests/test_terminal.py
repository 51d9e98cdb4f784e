"""What is printed: nothing that others wrote moves a terminal, and no state of the standard streams stops the work."""

import ast
import json
import logging
import os
import pty
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from test_check import MINE, SOURCE, picture, row, said
from users import DATAKIT, settings

from datakit.commands.progress import ProgressBars
from datakit.miniature import Answer, Miniature
from datakit.process import terminal

ROOT = Path(__file__).parents[1]
# Clears the screen, writes the clipboard (OSC 52), the same by C1, deletes, turns the reading order round.
EVIL = "a\x1b[2J\x1b]52;c;ZXZpbA==\x07\x9b31m\x85\x7f\u202eb\u2066\r\b\0"
NAMED = EVIL.replace("\0", "").replace("/", "")  # as a file may be called
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u061c\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def ran(command, env, **more):
    """A `datakit` command in a process of its own, as bytes turned into text without loss."""
    words = command if isinstance(command, list) else command.split()
    given = {"capture_output": True, "check": False, **more}
    return subprocess.run([sys.executable, "-m", "datakit", *words], env={**os.environ, **env}, **given)


def harmless(forks, command, env):
    """What a `datakit` command printed, once it is sure that a terminal obeys none of it."""
    words = command if isinstance(command, list) else command.split()
    text = "".join(forks.start(DATAKIT, *words, env={**os.environ, **env}).communicate(timeout=100))
    assert not OBEYED.search(text), OBEYED.search(text)
    assert "Traceback" not in text, text
    return text


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A dataset whose rows, members, manifest and server all try it."""
    tmp = tmp_path_factory.mktemp("hostile")
    bad = [
        row(1) | {"id": EVIL, "image": f"pics/{EVIL}.jpg"},
        row(2) | {"id": EVIL, "model": EVIL},
        row(3) | {"image": f"{EVIL}/3.jpg"},
        row(4) | {"id": {EVIL: EVIL}, "conversations": said("Q", "<image>" + EVIL)},
        row(5) | {"conversations": [{"from": EVIL, "value": EVIL}]},
        row(6) | {"conversations": said("<image>\nQ", "A " + EVIL)},
        row(7) | {"image": f"pics/{EVIL}/7.jpg", "conversations": said("<image>\n" + EVIL, "A")},
    ]
    (tmp / "rows.json").write_text(json.dumps(bad))
    with zipfile.ZipFile(tmp / "pictures.zip", "w") as archive:
        for name in ("2.jpg", "6.jpg", f"{NAMED}.png", f"{NAMED}/7.jpg"):
            archive.writestr(f"in/{name}", picture())
    (tmp / "own/manifests").mkdir(parents=True)
    quoted = json.dumps(EVIL)[1:-1].replace("\x7f", "\\u007f")
    more = f'problems = ["{quoted}"]'
    text = MINE.format(hub="example/mine", more=more, by="path", recipe="instruct", file=f"file://{tmp}/rows.json")
    text = text.replace('title = "mine"', f'title = "{quoted}"').replace('licence = "none"', f'licence = "{quoted}"')
    text += SOURCE.format(archive=f"file://{tmp}/pictures.zip", more=f'licence = "{quoted}"')
    (tmp / "own/manifests/mine.toml").write_text(text)
    (tmp / f"{NAMED}.json").write_text(json.dumps([row(1)]))
    with Miniature(rows=20) as upstream:
        env = settings(upstream, tmp / "root", DATAKIT_CATALOGUE=str(tmp / "own"))
        yield tmp, upstream, env


def test_no_command_prints_what_a_terminal_would_obey(hostile, forks):
    tmp, _, env = hostile
    commands = [
        "check mine", "check mine --repair", "check mine --json", "check mine --full", "list", "list --json",
        "info mine", "info mine --json", "doctor mine", "doctor mine --json", "run instruct --dry-run",
        "-v fetch mine --tolerate 1", "status", "status --json", "-v build-mix mine --tolerate 1 --jobs 2",
        "verify", "verify --json", f"export mine --format llava --out {tmp}/out",
        f"export mine --format hf --out {tmp}/hf", "clean mine --dry-run",
        ["add", "other", "--json", str(tmp / f"{NAMED}.json"), "--images", str(tmp)],
        ["adopt", "mine", str(tmp / f"{NAMED}.json")],
        ["fetch", NAMED], ["status", NAMED], ["run", NAMED], ["fetch", "mine", "--without", NAMED],
        ["fetch", "mine", "--recipe", NAMED], ["list", f"--{NAMED}"], ["fetch", "mine", "--shards", NAMED],
        ["verify", "--root", str(tmp / NAMED)], ["build-mix", f"mine+{NAMED}"], 
        ["pin", "mine", "--out", f"{tmp}/{NAMED}/x/y"],
    ]  # fmt: skip

    said = {str(command): harmless(forks, command, env) for command in commands}

    assert "\\x1b" in said["check mine"] and "\\u202e" in said["info mine"]
    found = json.loads(ran("info mine --json", env).stdout)
    assert found["title"] == EVIL and found["problems"] == [EVIL]


def test_what_a_server_says_reaches_no_terminal_as_it_is(hostile, forks):
    _, upstream, env = hostile
    body = json.dumps({"error": EVIL}).encode()
    headers = (("X-Error-Message", NAMED.replace("\r", "").encode("utf-8").decode("latin-1").replace("\x85", "")),)
    path = "/datasets/teowu/Q-Instruct/resolve/main/cleaned_labels.json"
    for status in (400, 401, 403, 404, 418):
        upstream.replace(path, Answer(status=status, body=body, headers=headers), times=9)
        for command in ("fetch qinstruct", "doctor qinstruct", "add third --hub teowu/Q-Instruct --file *.json"):
            harmless(forks, command, env)


def test_a_repository_s_names_of_files_reach_no_terminal_as_they_are(hostile, forks):
    _, upstream, env = hostile
    names = [f"data/{NAMED}.json", f"{NAMED}.zip", f"data/{NAMED}-00000.parquet", "README.md"]
    tree = [{"type": "file", "path": name, "size": 100, "oid": "0" * 40} for name in names]
    about = {"id": "evil/repo", "sha": "1" * 40, "siblings": [{"rfilename": name} for name in names]}
    about["cardData"] = {"license": EVIL, "pretty_name": EVIL}
    for at in ("/api/datasets/evil/repo", "/api/datasets/evil/repo/revision/main"):
        upstream.replace(at, Answer(body=json.dumps(about).encode(), content_type="application/json"))
    for at in ("/api/datasets/evil/repo/tree/main", f"/api/datasets/evil/repo/tree/{'1' * 40}"):
        upstream.replace(at, Answer(body=json.dumps(tree).encode(), content_type="application/json"))

    told = [
        harmless(forks, ["add", "fourth", "--hub", "evil/repo", *more], env)
        for more in ([], ["--file", f"data/{NAMED}.json"], ["--file", "*.parquet"])
    ]

    assert any("\\x1b" in text for text in told), told


def test_a_manifest_that_add_writes_holds_nothing_that_a_terminal_would_obey(hostile):
    from datakit import add

    text = add.toml({"title": EVIL, "list": [EVIL, EVIL]})

    assert not OBEYED.search(text)


def test_what_is_logged_and_told_as_progress_is_harmless_too(capsys):
    logger = logging.getLogger("datakit.test")
    terminal.show_logs(logging.WARNING)
    try:
        raise ValueError(EVIL)
    except ValueError:
        logger.exception("%s", EVIL)
    with ProgressBars(EVIL, terminal=False) as progress:
        progress.shards(1)
        progress.rows(EVIL, 1)
        progress.shards_done(1)

    told = capsys.readouterr().err

    assert "\\x1b" in told and not OBEYED.search(told)


def test_bars_show_names_that_look_like_markup_or_escapes_as_they_are(capsys):
    with ProgressBars("[red]x", terminal=True) as progress:
        progress.rows("[/]" + EVIL, 1)
        progress.download("https://example.org/[/b]" + EVIL, 5, 10)

    assert "\x1b]52" not in capsys.readouterr().err


def test_json_is_harmless_and_says_the_same():
    value = {EVIL: [EVIL, "\ud800", "é\U0001f600"]}

    text = terminal.json_text(value, indent=2)

    assert not OBEYED.search(text)
    assert json.loads(text) == value
    assert "é\U0001f600" in text


def test_only_one_module_prints():
    for path in (ROOT / "datakit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            of = getattr(getattr(called, "value", None), "id", "")
            prints = name in ("echo", "secho", "print", "print_exc") or (
                of in ("sys", "stdout", "stderr") and name == "write"
            )
            assert not prints or path.name == "terminal.py", f"{path}:{node.lineno}"
            assert not (
                isinstance(node, ast.Attribute)
                and node.attr in ("stdout", "stderr")
                and path.name != "terminal.py"
                and getattr(node.value, "id", "") == "sys"
            ), f"{path}:{node.lineno}"


def test_the_label_of_an_error_is_coloured_on_a_terminal_and_what_follows_is_not():
    primary, replica = pty.openpty()
    done = subprocess.Popen([sys.executable, "-m", "datakit", "info", NAMED], stderr=replica, stdout=replica)
    os.close(replica)
    seen = b""
    try:
        while piece := os.read(primary, 4096):
            seen += piece
    except OSError:  # Linux's end of a terminal
        pass
    os.close(primary)

    assert done.wait() == 2
    assert b"\x1b[31merror:\x1b[0m" in seen
    assert b"\x1b]52" not in seen


# The standard streams


def test_a_closed_standard_error_stops_nothing_and_no_file_gets_its_number(user, upstream):
    env = {**os.environ, **user.env}
    shell = f"{sys.executable} -m datakit -v fetch qinstruct --jobs 2 2>&-"

    done = subprocess.run(["bash", "-c", shell], env=env, stdout=subprocess.PIPE, check=False)

    assert done.returncode == 0
    assert b"fetch done" in done.stdout
    assert user("verify").code == 0


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full"])
@pytest.mark.parametrize("command", ["list", "fetch nothing", "status"])
def test_closed_and_full_streams_give_the_exit_code_of_the_command(user, closed, command):
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m datakit {command} {closed}"],
        env={**os.environ, **user.env}, capture_output=True, check=False,
    )  # fmt: skip

    assert done.returncode == (2 if "nothing" in command else 0)
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["list", "info coyo --json", "status", "--help", "--version", "fetch qinstruct"])
def test_a_full_standard_output_is_told_and_exits_with_1(user, command):
    with open("/dev/full", "wb") as full:
        done = ran(command, user.env, capture_output=False, stdout=full, stderr=subprocess.PIPE)

    assert done.returncode == 1
    assert done.stderr.endswith(
        b"error: standard output can't be written: No space left on device. What was made is kept\n"
    )


@pytest.mark.parametrize("command", ["list", "info coyo", "info coyo --json", "status", "--help", "fetch --help"])
def test_a_reader_that_has_left_is_no_error(user, command):
    left, right = os.pipe()
    os.close(left)

    done = ran(command, user.env, capture_output=False, stdout=right, stderr=subprocess.PIPE)
    os.close(right)

    assert (done.returncode, done.stderr) == (0, b"")


def test_a_command_whose_reader_has_left_does_its_work(user):
    left, right = os.pipe()
    os.close(left)

    done = ran(
        "fetch qinstruct llava665k --recipe instruct", user.env, capture_output=False, stdout=right, stderr=right
    )
    os.close(right)

    assert done.returncode == 0
    assert {s["dataset"] for s in json.loads(user("status --json").out)} == {"qinstruct", "llava665k"}


@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "utf-8:strict"},
    ],
)
def test_a_locale_that_is_not_utf_8_stops_no_command(hostile, locale):
    _, _, env = hostile
    most = ("list", "info mine", "status", "run llava15 --dry-run", "fetch --help") if "LC_ALL" in locale else ()

    for command in ("check mine", *most):
        done = ran(command, {**env, **locale})
        assert b"Traceback" not in done.stderr, (command, done.stderr)
        assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", done.stdout + done.stderr)
        assert done.returncode in (0, 1)


def test_a_mistake_of_ours_shows_its_traceback_without_what_a_terminal_would_obey():
    code = f"from datakit.process import terminal\nterminal.open_standard_streams()\nraise RuntimeError({EVIL!r})"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)

    text = done.stderr.decode()
    assert done.returncode == 1
    assert "Traceback" in text and "RuntimeError: a\\x1b" in text and not OBEYED.search(text)
