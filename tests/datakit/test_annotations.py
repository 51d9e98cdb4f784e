"""Upstream's rows as they stand in files of several kinds."""

import errno
import hashlib
import io
import json
import os
import re
import zipfile
from dataclasses import replace

import pytest
from unruly import reply, unruly_server

from datakit.catalogue import manifest
from datakit.engine.build import Build
from datakit.engine.work import Work
from datakit.errors import DownloadError, Incomplete, ManifestError, NoSuchFile, UsageError
from datakit.storage.store import Store
from datakit.upstream import annotations
from datakit.web import downloads
from datakit.web.hosts import Hosts
from datakit.web.pacing import Limits

HEAD = """
title = "T"
homepage = "https://example.org"
licence = "CC0"
citation = "none"
hub = ""
reader = "llava"
recipe = "instruct"
"""


def work(tmp_path, text, name="mine", limit=None):
    """A Work over a manifest of local files; `{at}` in the text stands for their folder."""
    (tmp_path / "mine.toml").write_text(HEAD + text.replace("{at}", str(tmp_path)))
    about = manifest.read(tmp_path / "mine.toml")
    if "." in name:
        about = manifest.subset_of(about, name.partition(".")[2])
    store = Store(str(tmp_path / "root"))
    return Work(store, about, name, "list", Hosts(), Limits(), limit)


def rows(n, mark):
    return [{"id": f"{mark}{k}", "conversations": []} for k in range(n)]


def two_files(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(rows(5, "a")))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(3, "b")))
    return """
[annotations]
format = "json"
files = ["file://{at}/a.json", "file://{at}/b.jsonl"]
rows_per_shard = 2
[annotations.subsets]
second = ["file://{at}/b.jsonl"]
[images]
by = "none"
"""


def ids(work, shard):
    return [(number, row["id"]) for number, row in annotations.numbered_rows(work, shard)]


def test_several_json_files_are_cut_one_after_the_other_and_numbered_on(tmp_path):
    both = work(tmp_path, two_files(tmp_path))

    annotations.prepare(both)

    assert annotations.shards(both) == [0, 1, 2, 3, 4]
    found = [ids(both, shard) for shard in range(5)]
    assert found == [
        [(0, "a0"), (1, "a1")],
        [(2, "a2"), (3, "a3")],
        [(4, "a4")],
        [(5, "b0"), (6, "b1")],
        [(7, "b2")],
    ]
    assert [annotations.file_of(both, shard).rpartition("/")[2] for shard in (2, 3)] == ["a.json", "b.jsonl"]


def test_a_trial_takes_as_many_rows_of_each_file_under_the_numbers_that_they_have(tmp_path):
    trial = work(tmp_path, two_files(tmp_path), limit=1)

    annotations.prepare(trial)

    assert [ids(trial, shard) for shard in annotations.shards(trial)] == [[(0, "a0")], [(5, "b0")]]


def test_a_subset_has_its_own_files_name_and_keys(tmp_path):
    second = work(tmp_path, two_files(tmp_path), "mine.second")

    annotations.prepare(second)

    assert second.manifest.name == "mine.second"
    assert second.manifest.key == "mine-second"
    assert [ids(second, shard) for shard in annotations.shards(second)] == [[(0, "b0"), (1, "b1")], [(2, "b2")]]


def test_an_unknown_subset_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(UsageError, match="Did you mean 'second'"):
        work(tmp_path, two_files(tmp_path), "mine.secnd")


def test_shards_are_unknown_before_the_files_are_planned(tmp_path):
    both = work(tmp_path, two_files(tmp_path))

    assert annotations.inputs(both, 0) is None
    with pytest.raises(Incomplete, match="datakit fetch mine"):
        annotations.shards(both)


def test_only_a_file_that_changed_makes_its_shards_stale(tmp_path):
    both = work(tmp_path, two_files(tmp_path))
    annotations.prepare(both)
    before = [annotations.inputs(both, shard) for shard in range(5)]

    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(4, "c")))
    annotations.prepare(both)

    after = [annotations.inputs(both, shard) for shard in range(5)]
    assert after[:3] == before[:3]
    assert after[3] != before[3]
    assert ids(both, 4) == [(7, "c2"), (8, "c3")]


def test_a_file_with_other_rows_before_makes_the_next_files_shards_stale_too(tmp_path):
    both = work(tmp_path, two_files(tmp_path))
    annotations.prepare(both)
    before = annotations.inputs(both, 3)

    (tmp_path / "a.json").unlink()
    (tmp_path / "a.json").write_text(json.dumps(rows(6, "a")))
    annotations.prepare(both)

    assert ids(both, 3) == [(6, "b0"), (7, "b1")]
    assert annotations.inputs(both, 3) != before


def test_a_file_of_this_machine_that_was_replaced_is_noticed_without_a_plan(tmp_path):
    both = work(tmp_path, two_files(tmp_path))
    annotations.prepare(both)
    before = annotations.inputs(both, 0)

    (tmp_path / "a.json").unlink()
    (tmp_path / "a.json").write_text(json.dumps(rows(5, "other")))

    assert annotations.inputs(both, 0) != before


def zipped(**members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in members.items():
            file.writestr(name.replace("__", "."), text)
    return out.getvalue()


def lines(n, mark):
    return "".join(json.dumps(row) + "\n" for row in rows(n, mark))


SHARDS = """
[annotations]
format = "json"
files = "file://{at}/docs_{shard}.jsonl.zip"
shards = 5
absent = [1, 3]
inside = "*.jsonl"
[images]
by = "url"
"""


def test_one_zip_a_shard_is_read_without_those_that_upstream_never_had(tmp_path):
    for shard in (0, 2, 4):
        (tmp_path / f"docs_{shard}.jsonl.zip").write_bytes(zipped(docs__jsonl=lines(2, f"s{shard}-")))
    found = work(tmp_path, SHARDS)

    assert annotations.shards(found) == [0, 2, 4]
    assert ids(found, 2) == [(0, "s2-0"), (1, "s2-1")]
    assert annotations.inputs(found, 4) is None
    assert not list((tmp_path / "root").rglob("rows.jsonl"))


NEVER_HAD = r"If upstream never had it, .* annotations\.absent"


@pytest.mark.parametrize(("status", "hint"), [(404, True), (410, True), (403, False)])
def test_a_shard_that_upstream_answers_not_to_have_may_be_left_out(tmp_path, status, hint):
    with unruly_server() as server:
        server.at("/docs_0.jsonl.zip", reply(b"", status))
        text = SHARDS.replace("file://{at}", f"http://{server.place}")
        found = replace(work(tmp_path, text), hosts=Hosts(allowed=(server.place,)))

        with pytest.raises(DownloadError, match=f"HTTP {status}") as raised:
            ids(found, 0)

    assert bool(re.search(NEVER_HAD, str(raised.value))) is hint


def test_a_file_of_this_machine_that_is_gone_may_be_left_out(tmp_path):
    with pytest.raises(NoSuchFile, match=rf"has it moved\? {NEVER_HAD}"):
        ids(work(tmp_path, SHARDS), 0)


def test_a_file_with_an_odd_name_that_may_not_be_read_is_not_said_to_be_missing(tmp_path, monkeypatch):
    folder = tmp_path / "there is no file here"
    folder.mkdir()
    (folder / "docs_0.jsonl.zip").write_bytes(zipped(docs__jsonl=lines(1, "s")))
    found = work(tmp_path, SHARDS.replace("{at}", folder.as_uri().removeprefix("file://")))

    def forbidden(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(type(folder), "open", forbidden)
    with pytest.raises(DownloadError, match="permissions") as raised:
        ids(found, 0)

    assert not re.search(NEVER_HAD, str(raised.value))


def test_a_zip_with_two_documents_where_one_was_due_is_told_with_what_it_holds(tmp_path):
    (tmp_path / "docs_0.jsonl.zip").write_bytes(zipped(a__jsonl=lines(1, "a"), b__jsonl=lines(1, "b")))
    found = work(tmp_path, SHARDS)

    with pytest.raises(ManifestError, match=r"has 2 members .* it has a\.jsonl, b\.jsonl"):
        ids(found, 0)


def test_a_json_inside_an_archive_is_taken_out_once_and_cut(tmp_path):
    (tmp_path / "all.zip").write_bytes(zipped(rows__json=json.dumps(rows(3, "r")), picture__jpg="x"))
    found = work(
        tmp_path,
        """
[annotations]
format = "json"
files = "file://{at}/all.zip"
inside = "rows.json"
rows_per_shard = 2
[images]
by = "none"
""",
    )

    annotations.prepare(found)

    assert [ids(found, shard) for shard in annotations.shards(found)] == [[(0, "r0"), (1, "r1")], [(2, "r2")]]
    assert len(list((tmp_path / "root").rglob("*.inside.json"))) == 1


def test_a_json_inside_is_taken_out_again_when_an_older_archive_takes_its_place(tmp_path):
    text = """
[annotations]
format = "json"
files = "https://example.org/all.zip"
inside = "rows.json"
rows_per_shard = 9
[images]
by = "none"
"""
    found = work(tmp_path, text)
    for n in (3, 5):
        path = tmp_path / f"{n}.zip"
        path.write_bytes(zipped(rows__json=json.dumps(rows(n, "r"))))
        os.utime(path, (1_000_000 // n, 1_000_000 // n))
        downloads.bring(path, "https://example.org/all.zip", found.store.downloads)

        annotations.prepare(found)

        assert len(ids(found, 0)) == n


BESIDE = """
[annotations]
format = "json"
files = ["file://{at}/x/train.jsonl", "file://{at}/y/train.jsonl"]
rows_per_shard = 2
beside = ["instructions.json", "instruction.json"]
[images]
by = "none"
"""


def test_the_first_file_beside_that_is_there_is_given_to_the_reader(tmp_path):
    for folder, name in (("x", "instructions.json"), ("y", "instruction.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.jsonl").write_text(lines(1, folder))
        (tmp_path / folder / name).write_text(json.dumps([folder]))
    found = work(tmp_path, BESIDE)

    annotations.prepare(found)

    assert [annotations.about(found, shard).beside for shard in (0, 1)] == [b'["x"]', b'["y"]']
    assert annotations.inputs(found, 1).keys() >= {
        f"file://{tmp_path}/y/{name}" for name in ("train.jsonl", "instruction.json")
    }


def test_files_of_one_name_in_several_folders_are_called_by_their_paths(tmp_path):
    named = work(tmp_path, BESIDE).manifest.addresses()

    assert [name[-13:] for name in named] == ["x/train.jsonl", "y/train.jsonl"]


def test_a_file_beside_that_is_nowhere_is_told_with_all_that_was_asked_for(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/train.jsonl").write_text(lines(1, "x"))
    (tmp_path / "y").mkdir()
    (tmp_path / "y/train.jsonl").write_text(lines(1, "y"))

    with pytest.raises(DownloadError, match=r"instructions\.json.*instruction\.json"):
        annotations.prepare(work(tmp_path, BESIDE))


def test_a_lost_dataset_says_what_may_stand_for_it(tmp_path):
    found = work(tmp_path, 'lost = "Its makers deleted it."\nfallback = "coyo"\n' + two_files(tmp_path))
    run = Build(store=found.store, manifest=found.manifest, recipe="instruct", steps=(), hosts=Hosts())

    with pytest.raises(DownloadError, match=r"Its makers deleted it\. 'coyo' may stand for it"):
        run.permit()


def test_a_plan_has_the_form_that_earlier_versions_read(tmp_path):
    both = work(tmp_path, two_files(tmp_path))

    annotations.prepare(both)

    kept = json.loads((tmp_path / "root/mine/list/plan.json").read_bytes())
    canonical = json.dumps(kept["files"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert list(kept) == ["files", "digest"]
    assert kept["digest"] == hashlib.sha256(canonical.encode()).hexdigest()
    assert [sorted(file) for file in kept["files"].values()] == [["plan", "sha256"]] * 2


def test_a_damaged_plan_is_made_again_to_the_same_bytes(tmp_path):
    both = work(tmp_path, two_files(tmp_path))
    annotations.prepare(both)
    plan = tmp_path / "root/mine/list/plan.json"
    good = plan.read_bytes()
    plan.write_bytes(good.replace(b'"n_rows":5', b'"n_rows":4'))

    with pytest.raises(Incomplete, match="isn't listed yet"):
        annotations.shards(both)
    annotations.prepare(both)

    assert plan.read_bytes() == good
