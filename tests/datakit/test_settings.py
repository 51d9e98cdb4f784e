import os

import pytest

from datakit import catalogue
from datakit.commands import settings
from datakit.errors import ManifestError, UsageError


def load(tmp_path, text="", environ=None, **flags):
    (tmp_path / "datakit.toml").write_text(text)
    return settings.load(folder=tmp_path, environ=environ or {}, **flags)


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path):
    text = 'root = "file"\nmirrors = ["http://a/=http://b/"]\njobs = 3\n'

    assert load(tmp_path, text).root == "file"
    assert load(tmp_path, text, {"DATAKIT_ROOT": "env"}).root == "env"
    assert load(tmp_path, text, {"DATAKIT_ROOT": "env"}, root="flag").root == "flag"
    assert load(tmp_path, text).jobs == 3
    assert load(tmp_path, text, {"DATAKIT_JOBS": "5"}).jobs == 5
    assert load(tmp_path, text).hosts.with_mirror("http://a/x") == "http://b/x"
    over = load(tmp_path, text, {"DATAKIT_MIRRORS": "http://a/=http://c/"})
    assert over.hosts.with_mirror("http://a/x") == "http://c/x"
    assert load(tmp_path).root == "data"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('rot = "x"', "unknown key 'rot'.*'root'"),
        ("root = 3", "'root': expected a str"),
        ('mirrors = "a=b"', "'mirrors': expected a list of strings"),
        ("root = ", "not TOML"),
    ],
)
def test_a_mistake_in_the_file_is_told(tmp_path, text, says):
    with pytest.raises(ManifestError, match=says):
        load(tmp_path, text)


@pytest.mark.parametrize("environ", [{"DATAKIT_JOBS": "many"}, {"DATAKIT_JOBS": "-2"}, {"DATAKIT_MIRRORS": "x"}])
def test_a_mistake_in_the_environment_is_told(tmp_path, environ):
    with pytest.raises(UsageError):
        load(tmp_path, "", environ)


def test_settings_are_read_and_the_environment_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.delenv("DATAKIT_CATALOGUE", raising=False)
    before = dict(os.environ)

    found = load(tmp_path, 'catalogue = ["my", "ours"]')

    assert found.catalogue == ("my", "ours")
    assert dict(os.environ) == before


def test_a_catalogue_of_the_environment_goes_before_that_of_the_file(tmp_path):
    assert load(tmp_path, 'catalogue = ["my"]', {"DATAKIT_CATALOGUE": ""}).catalogue is None
    assert load(tmp_path, "catalogue = []").catalogue == ()
    assert load(tmp_path).catalogue is None


def test_the_user_s_catalogues_are_those_that_were_set_here_and_in_processes_started_from_here(monkeypatch):
    monkeypatch.setenv("DATAKIT_CATALOGUE", "before")

    catalogue.set_own_folders(["my", "ours"])

    assert [str(folder) for folder in catalogue.own_folders()] == ["my", "ours"]
    assert os.environ["DATAKIT_CATALOGUE"] == f"my{os.pathsep}ours"
