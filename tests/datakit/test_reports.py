"""What reports say of plain data, without a root: availability, findings of a verification, losses, an overview."""

from collections import Counter

import pytest

from datakit import catalogue
from datakit.errors import UsageError
from datakit.reports import overview, plan
from datakit.reports.availability import Availability, UpstreamFile
from datakit.reports.description import describe
from datakit.reports.forecast import Forecast, Range
from datakit.reports.status import Loss, StepStatus
from datakit.upkeep.verify import Broken, Findings


def upstream_file(address="u", size_bytes=None, problem="", here=False):
    return UpstreamFile(name=f"name of {address}", address=address, here=here, size_bytes=size_bytes, problem=problem)


def test_a_file_under_two_names_is_downloaded_once_and_one_that_is_here_not_at_all():
    files = [upstream_file("a", 5), upstream_file("a", 5), upstream_file("b", 7, here=True), upstream_file("c")]

    assert Availability(files=files, terms="", free_bytes=0).to_download == 5


def test_downloads_need_room_for_packed_tars_too():
    files = [upstream_file("a", 5)]

    assert Availability(files=files, terms="", free_bytes=10).fits
    assert not Availability(files=files, terms="", free_bytes=9).fits


def test_terms_or_a_file_that_nobody_gives_stand_in_the_way():
    assert Availability(files=[upstream_file()], terms="", free_bytes=0).obtainable
    assert not Availability(files=[upstream_file()], terms="ask first", free_bytes=0).obtainable
    assert not Availability(files=[upstream_file(problem="gone")], terms="", free_bytes=0).obtainable


def test_a_file_in_json_has_its_size_or_what_is_wrong_with_it():
    said = {"name": "name of a", "address": "a", "here": False}

    assert upstream_file("a", 5).json_object() == {**said, "bytes": 5}
    assert upstream_file("a").json_object() == {**said, "bytes": None}
    assert upstream_file("a", problem="gone").json_object() == {**said, "problem": "gone"}


BROKEN = Broken("coyo/pack/00000.tar", "cut", ("datakit build-mix coyo", "datakit fetch coyo"))
BROKEN_MIX = Broken("mixes/a/mix.json", "cut", ("datakit build-mix a",))


def test_cures_begin_with_the_repair_and_fetch_before_they_pack():
    found = Findings(3, [BROKEN_MIX, BROKEN])

    assert found.cures(repaired=False) == [
        "datakit verify --repair",
        "datakit fetch coyo",
        "datakit build-mix a",
        "datakit build-mix coyo",
    ]
    assert found.cures(repaired=True)[0] == "datakit fetch coyo"


def test_a_mix_is_only_written_anew():
    assert Findings(0, [BROKEN_MIX]).cures(repaired=False) == ["datakit build-mix a"]


def test_cures_name_the_root_as_a_shell_reads_it():
    assert Findings(0, [BROKEN_MIX]).cures(repaired=False, root="my data") == ["datakit build-mix a --root 'my data'"]


def test_losses_are_rows_that_were_dropped_and_then_faults_of_rows_that_were_kept():
    faults = Counter(timeout_total=4, http_404=1, dead=2)
    step = StepStatus("coyo", "fetch", rows=6, dropped=Counter(dead=2, small=2), faults=faults, by_url=True)

    assert step.losses() == [
        Loss("dropped", "dead", 2, 0.2, False),
        Loss("dropped", "small", 2, 0.2, False),
        Loss("failed", "timeout_total", 4, 0.4, True),
        Loss("failed", "http_404", 1, 0.1, False),
    ]


def test_a_step_that_lost_nothing_has_no_losses():
    assert StepStatus("coyo", "list").losses() == []


def test_a_forecast_fits_where_there_is_room_for_fetched_and_packed_pictures():
    found = Forecast(shards=[0], n_shards=1, sampled=1, all_rows=True, urls=10, spent_s=1)
    found.ok, found.bytes_each = Range(1, 1, 1), Range(5, 5, 5)

    fits = []
    for found.free_bytes in (None, 99, 100):
        fits.append(found.fits)

    assert fits == [None, False, True]


def test_the_overview_has_what_can_be_read_and_says_what_is_wrong_with_the_rest(tmp_path, monkeypatch):
    for name, text in (("manifests/wrong.toml", "title = 3"), ("pipelines/wrong.py", "MIXES = {")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("DATAKIT_CATALOGUE", str(tmp_path))

    datasets, unread = overview.datasets()
    recipes, unread_recipes = overview.recipes()

    assert [about.name for about in datasets] == [n for n in catalogue.names("manifests") if n != "wrong"]
    assert ["wrong.toml" in str(error) for error in unread] == [True]
    assert "llava15" in recipes and "wrong" not in recipes
    assert ["wrong.py" in str(error) for error in unread_recipes] == [True]


def test_a_description_says_which_commit_of_the_hub_is_taken(tmp_path, monkeypatch):
    about = catalogue.find("manifests", "qinstruct.toml").read_text()
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests/mine.toml").write_text(about)
    monkeypatch.setenv("DATAKIT_CATALOGUE", str(tmp_path))
    before = describe("mine")

    commit = "0" * 40
    (tmp_path / "manifests/mine.sums").write_text(f"commit {before.manifest.hub} {commit}\n")
    after = describe("mine")

    assert (before.hub_revision, before.hub_moves) == ("main", True)
    assert (after.hub_revision, after.hub_moves) == (commit, False)


def test_each_dataset_of_a_recipe_does_without_those_of_the_sources_that_it_has():
    datasets = ["llava665k", "qinstruct"]

    assert plan.without_by_dataset("mine", datasets, ("coco",)) == {"llava665k": ("coco",), "qinstruct": ()}
    assert plan.without_by_dataset("mine", datasets, None) == {"llava665k": None, "qinstruct": None}
    with pytest.raises(UsageError, match=r"no dataset of 'mine' has a source 'coca'.*'coco'"):
        plan.without_by_dataset("mine", datasets, ("coca",))
