"""Files, numbers and places that hardly anybody has: one clear error each, and never a traceback."""

import io
import json
import os
import subprocess
import sys

import pytest
from PIL import Image
from users import settings, typed

from datakit import catalogue
from datakit.miniature import Answer, Miniature
from datakit.web import downloads

DIGITS = "9" * 5000
_made = io.BytesIO()
Image.new("RGB", (40, 30), (200, 30, 90)).save(_made, "JPEG")
JPEG = _made.getvalue()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("manifests/odd.toml", f"title = {DIGITS}"),
        ("manifests/odd.toml", f"title = {'[' * 50_000}"),
        ("manifests/odd.toml", "title = '\udcff'"),
        ("manifests/coyo.sums", f"file - {DIGITS} https://example.org/x"),
        ("pipelines/odd.py", f"MIXES = {DIGITS}"),
        ("pipelines/odd.py", "MIXES = 1\0"),
        ("pipelines/odd.py", f"MIXES = {'(' * 50_000}"),
    ],
    ids=lambda text: text[:22],
)
def test_a_file_of_the_catalogue_that_cannot_be_read_does_not_stop_list(user, tmp_path, name, text):
    path = tmp_path / "my" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    if name.endswith(".sums"):
        path.with_suffix(".toml").write_text(catalogue.find("manifests", "coyo.toml").read_text())

    got = user("list", DATAKIT_CATALOGUE=str(tmp_path / "my"))

    assert got.code == 1
    assert f"error: {path}" in got.err or f"error: recipe {path}" in got.err
    assert "llava665k" in got.out


@pytest.mark.parametrize(
    "text", [f"jobs = {DIGITS}", f"jobs = {'9' * 4000}", f"root = {'[' * 50_000}", "root = '\udcff'"]
)
def test_settings_that_cannot_be_read_are_one_clear_error(user, tmp_path, monkeypatch, text):
    (tmp_path / "datakit.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    monkeypatch.chdir(tmp_path)
    del user.env["DATAKIT_JOBS"]

    got = user("fetch qinstruct")

    assert got.code in (1, 2)
    assert "datakit.toml" in got.err


@pytest.mark.parametrize("jobs", [DIGITS, "\u00b2", "-1", "0", "1e3"])
def test_a_number_of_the_environment_that_is_none_is_refused(user, jobs):
    got = user("fetch qinstruct", DATAKIT_JOBS=jobs)

    assert got.code == 2
    assert "DATAKIT_JOBS should be a whole number" in got.err


def test_a_folder_that_is_called_like_a_file_of_the_catalogue_is_none(tmp_path):
    for name in ("manifests/odd.toml", "pipelines/odd.py"):
        (tmp_path / name).mkdir(parents=True)

    got = typed("list", {"DATAKIT_CATALOGUE": str(tmp_path)})

    assert got.code == 0
    assert "odd" not in got.out + got.err


@pytest.mark.parametrize(
    "root", ["http://example.org/data", "https://example.org", "memory://x", "nonsense://x", "s3://"]
)
@pytest.mark.parametrize("command", ["status", "fetch qinstruct", "build-mix qinstruct", "verify"])
def test_a_root_that_keeps_nothing_is_refused_with_what_is_possible(user, root, command):
    got = user(f"{command} --root {root}")

    assert got.code == 2
    assert "can't be a root" in got.err and "s3://BUCKET" in got.err


def test_a_bucket_whose_client_is_not_installed_is_one_clear_error():
    done = subprocess.run(
        [sys.executable, "-m", "datakit", "status", "--root", "oci://bucket/x"],
        env=os.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert done.stderr.startswith("error: can't") and "Traceback" not in done.stderr


@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_loose_pictures_with_any_names_are_found_under_any_locale(tmp_path, locale):
    pictures, rows = tmp_path / "fotoś", []
    pictures.mkdir()
    for name in ("café.jpg", "caf\udce9.jpg", "plain.jpg"):
        (pictures / name).write_bytes(JPEG)
    for n, name in enumerate(("café.jpg", "plain.jpg")):
        turns = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}]
        rows.append({"id": str(n), "image": name, "conversations": turns})
    (tmp_path / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    env = {**os.environ, "DATAKIT_ROOT": str(tmp_path / "root"), "DATAKIT_CATALOGUE": str(tmp_path / "my"), **locale}

    for command in (["add", "mine", "--json", "rows.json", "--images", "fotoś"], ["build-mix", "mine", "--fetch"]):
        done = subprocess.run(
            [sys.executable, "-m", "datakit", *command], env=env, cwd=tmp_path, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr

    assert b"2 samples" in done.stdout


def test_lengths_of_thousands_of_digits_that_a_server_names_are_no_lengths(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "BACKOFF_S", 0.0)
    path = "/datasets/teowu/Q-Instruct/resolve/main/cleaned_labels.json"
    told = ("X-Linked-Size", DIGITS), ("Content-Range", f"bytes 0-0/{DIGITS}")
    with Miniature(rows=20) as upstream:
        env = settings(upstream, tmp_path / "root")
        for status in (200, 206, 416):
            upstream.replace(path, Answer(status=status, body=b"[]", headers=told))
            got = typed("fetch qinstruct", env)
            assert got.code == 1 and got.err, got
        upstream.replace(
            "http://images.cocodataset.org/zips/train2017.zip", Answer(status=206, body=b"x", headers=told)
        )
        assert typed("doctor llava665k", env).code in (0, 1)
