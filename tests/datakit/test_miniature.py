"""The miniature keeps its word: the hub's own client reads it, and its faults are those that it lists."""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from PIL import Image
from users import COYOS_ROWS

from datakit.errors import UsageError
from datakit.miniature import Answer, Miniature, Request, choose, coyo_parquet

LLAVA = "liuhaotian/LLaVA-Instruct-150K"
LLAVA_JSON = f"/datasets/{LLAVA}/resolve/main/llava_v1_5_mix665k.json"
COYO = "kakaobrain/coyo-700m"
SHARD_0 = "data/part-00000-17da4908-939c-46e5-91d0-15f256041956-c000.snappy.parquet"
ARCHIVES = {  # prefix of `image` -> the archive and the folder inside it
    "coco/train2017/": ("http://images.cocodataset.org/zips/train2017.zip", "train2017/"),
    "gqa/images/": ("https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip", "images/"),
    "textvqa/train_images/": (
        "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip",
        "train_images/",
    ),
    "vg/VG_100K/": ("https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip", "VG_100K/"),
    "vg/VG_100K_2/": ("https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip", "VG_100K_2/"),
    "ocr_vqa/images/": (
        "/datasets/weizhiwang/llava_v15_instruction_images/resolve/main/ocr_vqa_images_llava_v15.zip",
        "images/",
    ),
}
REAL = Path(__file__).parents[2].parent / "shared/real"


@pytest.fixture(scope="module")
def shared() -> Iterator[Miniature]:
    with Miniature() as miniature:
        yield miniature


@pytest.fixture
def api(shared: Miniature) -> HfApi:
    return HfApi(endpoint=shared.url, token=False)


def download(miniature: Miniature, repo: str, name: str, folder: Path) -> bytes:
    path = hf_hub_download(repo, name, repo_type="dataset", endpoint=miniature.url, cache_dir=folder, token=False)
    return Path(path).read_bytes()


def ask(miniature: Miniature, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", miniature.port, timeout=20)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): v for name, v in headers.items()})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def mirrored(miniature: Miniature, url: str) -> str:
    return f"{miniature.url}/{url.partition('://')[2]}"


def url_of(miniature: Miniature, fault: str) -> str:
    """The URL of a chosen row with a fault, from the first four shards."""
    for shard in range(4):
        expected = miniature.expected.coyo(shard)
        for row in shard_rows(miniature, shard):
            if row["id"] in expected.chosen and expected.faults.get(row["id"]) == fault:
                return str(row["url"])
    raise LookupError(fault)


def shard_rows(miniature: Miniature, shard: int) -> list[dict]:
    name = SHARD_0.replace("part-00000", f"part-{shard:05d}")
    body = miniature.answer(f"/datasets/{COYO}/resolve/main/{name}").body
    return pq.read_table(io.BytesIO(body)).to_pylist()


def llava_records(miniature: Miniature) -> list[dict]:
    return json.loads(miniature.answer(LLAVA_JSON).body)


def picture(miniature: Miniature, record: dict) -> tuple[str, bytes] | None:
    """The member that a record's `image` refers to, whatever its extension."""
    prefix = next(p for p in ARCHIVES if record["image"].startswith(p))
    path, inside = ARCHIVES[prefix]
    stem = inside + record["image"].removeprefix(prefix).partition(".")[0]
    with zipfile.ZipFile(io.BytesIO(miniature.answer(path).body)) as archive:
        names = [name for name in archive.namelist() if name.partition(".")[0] == stem]
        return (names[0], archive.read(names[0])) if names else None


def faulty(miniature: Miniature, fault: str) -> list[tuple[str, bytes] | None]:
    records = llava_records(miniature)
    keys = [key for key, name in miniature.expected.llava665k.faults.items() if name == fault]
    return [picture(miniature, records[int(key.rpartition("-")[2])]) for key in keys]


# --- the hub ---


@pytest.mark.parametrize(
    ("repo", "name"),
    [
        (LLAVA, "llava_v1_5_mix665k.json"),
        (LLAVA, "README.md"),
        (COYO, SHARD_0),
        ("teowu/Q-Instruct", "cleaned_labels.json"),
        ("teowu/Q-Instruct", "q-instruct-images.tar"),
        ("weizhiwang/llava_v15_instruction_images", "ocr_vqa_images_llava_v15.zip"),
    ],
)
def test_the_hubs_own_client_downloads_every_kind_of_file(shared, tmp_path, repo, name):
    got = download(shared, repo, name, tmp_path)

    assert got == shared.answer(f"/datasets/{repo}/resolve/main/{name}").body
    assert got


def test_the_hubs_own_client_resumes_a_broken_download_by_range(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client's pause before it tries again
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 250)  # 10 MB otherwise
    with Miniature(rows=60) as miniature:
        usual = miniature.answer(LLAVA_JSON)
        miniature.replace(LLAVA_JSON, dataclasses.replace(usual, cut_after=1000), times=1)

        got = download(miniature, LLAVA, "llava_v1_5_mix665k.json", tmp_path)

        assert got == usual.body
        ranges = [asked for method, path, asked in miniature.requests if method == "GET"]
        assert ranges[0] is None
        assert ranges[1] == "bytes=1000-"


def test_the_tree_lists_128_shards_with_their_sizes_and_hashes(shared, api):
    listed = {entry.path: entry for entry in api.list_repo_tree(COYO, "data", repo_type="dataset")}
    everything = api.list_repo_files(COYO, repo_type="dataset")

    body = shared.answer(f"/datasets/{COYO}/resolve/main/{SHARD_0}").body
    assert len(listed) == 128
    assert listed[SHARD_0].size == len(body)
    assert listed[SHARD_0].lfs.sha256 == hashlib.sha256(body).hexdigest()
    assert sorted(everything) == ["README.md", *sorted(listed)]


def test_a_tree_that_is_not_recursive_shows_folders(api):
    shown = [entry.path for entry in api.list_repo_tree(COYO, repo_type="dataset")]

    assert shown == ["README.md", "data"]


def test_the_repository_has_one_commit_and_can_be_asked_for_by_it(shared, api):
    commit = api.dataset_info(LLAVA).sha

    again = api.dataset_info(LLAVA, revision=commit, files_metadata=True)
    response, _ = ask(shared, f"/datasets/{LLAVA}/resolve/{commit}/README.md", "HEAD")

    assert len(commit) == 40
    assert again.sha == commit
    assert {s.rfilename: bool(s.size) for s in again.siblings} == {
        "README.md": True,
        "llava_v1_5_mix665k.json": True,
    }
    assert response.headers["X-Repo-Commit"] == commit


def test_paths_info_tells_what_there_is_and_leaves_out_what_there_is_not(api):
    found = api.get_paths_info(COYO, ["README.md", "data", "nothing"], repo_type="dataset", expand=True)

    assert [entry.path for entry in found] == ["README.md", "data"]
    assert found[0].last_commit is not None


def test_a_small_files_hash_is_gits(shared, api):
    (found,) = api.get_paths_info(LLAVA, ["README.md"], repo_type="dataset")

    body = shared.answer(f"/datasets/{LLAVA}/resolve/main/README.md").body
    assert found.lfs is None
    assert found.blob_id == hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def test_the_hubs_file_system_reads_a_part_of_a_file(shared):
    files = HfFileSystem(endpoint=shared.url, token=False, skip_instance_cache=True)

    with files.open(f"datasets/{COYO}/{SHARD_0}", "rb") as shard:
        shard.seek(-4, os.SEEK_END)
        end = shard.read()

    assert end == b"PAR1"


def test_the_client_understands_what_is_refused(shared, api, tmp_path):
    with pytest.raises(RepositoryNotFoundError):
        download(shared, "nobody/nothing", "README.md", tmp_path)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("nobody/nothing")
    with pytest.raises(EntryNotFoundError):
        download(shared, LLAVA, "nothing.json", tmp_path)
    with pytest.raises(RevisionNotFoundError):
        api.dataset_info(LLAVA, revision="v9")
    with pytest.raises(GatedRepoError):
        download(shared, "example/gated-set", "data.json", tmp_path)


@pytest.mark.parametrize(("token", "status"), [({}, 401), ({"Authorization": "Bearer hf_x"}, 403)])
def test_a_gate_tells_a_missing_token_from_one_that_is_not_enough(shared, token, status):
    response, _ = ask(shared, "/datasets/example/gated-set/resolve/main/data.json", **token)

    assert response.status == status
    assert response.headers["X-Error-Code"] == "GatedRepo"


def test_a_blob_link_is_a_page_for_people(shared):
    response, body = ask(shared, LLAVA_JSON.replace("/resolve/", "/blob/"))

    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/html")
    assert body.lstrip().startswith(b"<")


def test_the_hub_can_be_reached_as_a_mirrored_host(shared):
    _, body = ask(shared, "/huggingface.co" + LLAVA_JSON)

    assert body == shared.answer(LLAVA_JSON).body


# --- HTTP ---


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("bytes=0-9", 0, 10), ("bytes=100-", 100, None), ("bytes=-7", -7, None), ("bytes=5-999999999", 5, None)],
)
def test_a_range_is_answered_with_its_bytes(shared, asked, start, stop):
    path = "/images.cocodataset.org/zips/train2017.zip"

    response, body = ask(shared, path, Range=asked)

    whole = shared.answer(path).body
    assert response.status == 206
    assert body == whole[start:stop]
    assert response.headers["Content-Range"].endswith(f"/{len(whole)}")


def test_a_range_past_the_end_is_refused_with_the_size(shared):
    size = len(shared.answer(LLAVA_JSON).body)

    response, body = ask(shared, LLAVA_JSON, Range=f"bytes={size}-")

    assert (response.status, body) == (416, b"")
    assert response.headers["Content-Range"] == f"bytes */{size}"


@pytest.mark.parametrize(("etag", "status"), [(None, 206), ('"another"', 200)])
def test_a_range_holds_only_if_the_file_is_the_same(shared, etag, status):
    etag = etag or f'"{shared.answer(LLAVA_JSON).etag}"'

    response, _ = ask(shared, LLAVA_JSON, Range="bytes=5-9", If_Range=etag)

    assert response.status == status


def test_head_gives_the_headers_of_get_without_the_body(shared):
    head, nothing = ask(shared, LLAVA_JSON, "HEAD")
    get, body = ask(shared, LLAVA_JSON)

    assert nothing == b""
    assert head.headers["Content-Length"] == str(len(body))
    assert head.headers["ETag"] == get.headers["ETag"] == f'"{hashlib.sha256(body).hexdigest()}"'
    assert head.headers["X-Linked-Size"] == str(len(body))


def test_one_connection_serves_many_requests(shared):
    connection = http.client.HTTPConnection("127.0.0.1", shared.port, timeout=20)
    try:
        statuses = []
        for path in (LLAVA_JSON, "/nothing.example/here", LLAVA_JSON):
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            statuses.append((response.status, response.will_close))
    finally:
        connection.close()

    assert statuses == [(200, False), (404, False), (200, False)]


def test_requests_are_listed_with_their_ranges():
    with Miniature(rows=14) as miniature:
        ask(miniature, LLAVA_JSON + "?download=true", Range="bytes=1-2")
        ask(miniature, LLAVA_JSON, "HEAD")

        assert miniature.requests == [
            ("GET", LLAVA_JSON + "?download=true", "bytes=1-2"),
            ("HEAD", LLAVA_JSON, None),
        ]


# --- the instruction sets ---


def test_every_source_and_fault_of_llava665k_is_there(shared):
    records = llava_records(shared)

    prefixes = Counter(r["image"].rpartition("/")[0] + "/" for r in records if "image" in r)
    text_only = [r for r in records if "image" not in r]
    faults = Counter(shared.expected.llava665k.faults.values())
    assert len(records) == 240
    assert set(prefixes) == set(ARCHIVES)
    assert min(prefixes.values()) >= 2
    assert prefixes["coco/train2017/"] > 120
    assert len(text_only) >= 2
    assert len(faults) == 11
    assert len({str(r["id"]) for r in records}) < len(records)


def test_records_have_upstreams_fields_and_turns(shared):
    for record in llava_records(shared):
        said = record["conversations"]

        fields = {"id", "image", "conversations"} if "image" in record else {"id", "model", "conversations"}
        assert set(record) == fields
        assert record.get("model", "") == ""
        assert [turn["from"] for turn in said] == ["human", "gpt"] * (len(said) // 2)
        assert said[0]["value"].count("<image>") == ("image" in record)


def test_the_prompts_are_worded_as_upstreams(shared):
    text = shared.answer(LLAVA_JSON).body.decode()

    for wording in (
        "Answer the question using a single word or phrase.",
        "Answer with the option's letter from the given choices directly.",
        "Reference OCR token: ",
        "Please provide a short description for this region: [0.",
        '"<image>\\n',
        '\\n<image>"',
        "José",
    ):
        assert wording in text


def test_the_rows_expected_to_drop_are_those_whose_picture_or_answer_is_bad(shared):
    expected = shared.expected.llava665k
    dropped = {}
    for row, record in enumerate(llava_records(shared)):
        key = f"llava665k-{row:09d}"
        if not all(turn["value"] for turn in record["conversations"]):
            dropped[key] = "empty_answer"
        elif "image" in record:
            member = picture(shared, record)
            reason = "missing" if member is None else judged(member[1])
            if reason:
                dropped[key] = reason

    assert dropped == expected.dropped
    assert expected.counts == {
        "missing": 3,
        "not_an_image": 2,
        "empty_answer": 2,
        "truncated": 2,
        "pixels": 1,
    }
    assert len(expected.kept) == expected.rows - 10 == 230


def judged(data: bytes) -> str | None:
    """Pillow's opinion of a picture."""
    try:
        picture = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        return "pixels"
    except Image.UnidentifiedImageError:
        return "not_an_image"
    try:
        picture.load()
    except OSError:
        return "truncated"
    return None


def test_odd_pictures_are_odd_in_the_way_they_are_listed(shared):
    def opened(fault: str) -> list[tuple[str, Image.Image]]:
        return [(m[0], Image.open(io.BytesIO(m[1]))) for m in faulty(shared, fault) if m]

    assert [(n[-4:], p.format) for n, p in opened("gif_named_jpg")] == [(".jpg", "GIF")] * 2
    assert [(n[-4:], p.mode) for n, p in opened("png_palette")] == [(".png", "P")]
    assert [(n[-4:], p.mode) for n, p in opened("png_16bit")] == [(".png", "I;16")]
    assert [p.mode for _, p in opened("cmyk")] == ["CMYK"] * 2
    assert [p.getexif()[0x0112] for _, p in opened("exif_turned")] == [6] * 2
    assert [member and member[1] for member in faulty(shared, "zero_bytes")] == [b""]
    assert [len(member[1]) for member in faulty(shared, "huge") if member] == [1024]


def test_archives_hold_pictures_that_no_row_asks_for(shared):
    used = {r["image"].rpartition("/")[2] for r in llava_records(shared) if "image" in r}

    archive = zipfile.ZipFile(io.BytesIO(shared.answer("/images.cocodataset.org/zips/train2017.zip").body))

    names = {name.rpartition("/")[2] for name in archive.namelist()} - {""}
    assert names - used


def test_qinstruct_has_its_tar_and_two_faults(shared):
    records = json.loads(shared.answer("/datasets/teowu/Q-Instruct/resolve/main/cleaned_labels.json").body)
    body = shared.answer("/datasets/teowu/Q-Instruct/resolve/main/q-instruct-images.tar").body

    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}
    judgements = {
        f"qinstruct-{row:09d}": judged(members[r["image"]]) if r["image"] in members else "missing"
        for row, r in enumerate(records)
    }
    assert len(records) == shared.expected.qinstruct.rows == 120
    assert {r["image"].partition("/")[0] for r in records} == {"spaq_koniq", "livefb_liveitw_aigc"}
    assert {k: v for k, v in judgements.items() if v} == shared.expected.qinstruct.dropped
    assert shared.expected.qinstruct.counts == {"missing": 1, "truncated": 1}


@pytest.mark.parametrize("rows", [14, 24, 40, 61])
def test_small_miniatures_are_consistent_too(rows):
    with Miniature(rows=rows) as miniature:
        records = llava_records(miniature)

        expected = miniature.expected.llava665k
        prefixes = Counter(r["image"].rpartition("/")[0] for r in records if "image" in r)
        assert len(records) == expected.rows == rows
        assert len(prefixes) == 6
        assert min(prefixes.values()) >= 2
        assert len(expected.kept) + len(expected.dropped) == rows


# --- COYO ---


def test_a_coyo_shard_has_upstreams_schema_and_several_row_groups(shared):
    body = shared.answer(f"/datasets/{COYO}/resolve/main/{SHARD_0}").body

    file = pq.ParquetFile(io.BytesIO(body))
    assert file.schema_arrow == pa.schema(
        {
            "id": pa.int64(),
            "url": pa.string(),
            "text": pa.string(),
            "width": pa.int32(),
            "height": pa.int32(),
            "image_phash": pa.string(),
            "text_length": pa.int32(),
            "word_count": pa.int32(),
            "num_tokens_bert": pa.int32(),
            "num_tokens_gpt": pa.int32(),
            "num_faces": pa.int32(),
            "clip_similarity_vitb32": pa.float32(),
            "clip_similarity_vitl14": pa.float32(),
            "nsfw_score_opennsfw2": pa.float32(),
            "nsfw_score_gantman": pa.float32(),
            "watermark_score": pa.float32(),
            "aesthetic_score_laion_v2": pa.float32(),
        }
    )
    assert file.metadata.num_rows == 60
    assert file.metadata.num_row_groups == 3
    assert file.metadata.row_group(0).column(0).compression == "SNAPPY"


def test_ids_are_unique_across_shards_and_lie_in_several_partitions(shared):
    ids = [row["id"] for shard in range(6) for row in shard_rows(shared, shard)]

    assert len(set(ids)) == len(ids) == 360
    assert len({id >> 33 for id in ids[:60]}) == 6


@pytest.mark.parametrize("shard", [0, 1, 5, 127])
def test_the_chosen_rows_follow_vilas_rule_with_ties_at_the_cut(shared, shard):
    table = pa.Table.from_pylist(shard_rows(shared, shard))
    columns = [table[f"clip_similarity_{name}"].to_numpy().astype(np.float32) for name in ("vitb32", "vitl14")]

    sums = columns[0] + columns[1]
    ids = table["id"].to_pylist()
    order = sorted(range(60), key=lambda row: (-sums[row], f"coyo-{ids[row]}"))
    assert np.mean(sums > np.float32(0.6)) > 0.2
    assert tuple(ids[row] for row in order[:12]) == shared.expected.coyo(shard).chosen
    assert sums[order[11]] == sums[order[12]]


def test_summing_in_double_precision_would_choose_other_rows(shared):
    rows = shard_rows(shared, 0)

    def double(row: dict) -> tuple[float, str]:
        return -(row["clip_similarity_vitb32"] + row["clip_similarity_vitl14"]), f"coyo-{row['id']}"

    best = {row["id"] for row in sorted(rows, key=double)[:12]}
    assert best != set(shared.expected.coyo(0).chosen)


def test_a_poor_shard_has_fewer_rows_above_the_floor_than_a_fifth(shared):
    assert len(shared.expected.coyo(13).chosen) == 6


def test_the_rule_chooses_what_it_chooses_of_the_preview_rows():
    rows = [{"id": i, "clip_similarity_vitb32": b, "clip_similarity_vitl14": c} for i, b, c in COYOS_ROWS]

    assert choose(rows) == [1125282207474]


def test_four_shards_show_every_kind_of_dead_url(shared):
    seen = {
        fault
        for shard in range(4)
        for id, fault in shared.expected.coyo(shard).faults.items()
        if id in shared.expected.coyo(shard).chosen
    }

    assert len(seen) == 20


@pytest.mark.parametrize(
    ("fault", "status"),
    [("gone_404", 404), ("forbidden_403", 403), ("gone_410", 410), ("error_500", 500)],
)
def test_a_dead_url_answers_with_its_status(shared, fault, status):
    response = requests.get(mirrored(shared, url_of(shared, fault)), timeout=20)

    assert response.status_code == status


def fetched(miniature: Miniature, fault: str) -> requests.Response:
    response = requests.get(mirrored(miniature, url_of(miniature, fault)), timeout=20)
    assert response.status_code == 200
    return response


def test_bad_pictures_come_with_a_good_status(shared):
    assert judged(fetched(shared, "html").content) == "not_an_image"
    assert judged(fetched(shared, "truncated").content) == "truncated"
    assert judged(fetched(shared, "huge").content) == "pixels"
    assert Image.open(io.BytesIO(fetched(shared, "gif_named_jpg").content)).format == "GIF"
    assert fetched(shared, "noai").headers["X-Robots-Tag"] == "noai"


def test_a_url_with_spaces_and_unicode_works(shared):
    url = url_of(shared, "unicode")

    response = fetched(shared, "unicode")

    assert " " in url
    assert not url.isascii()
    assert judged(response.content) is None


def test_a_reset_connection_gives_fewer_bytes_than_it_said(shared):
    url = mirrored(shared, url_of(shared, "reset"))

    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="IncompleteRead"):
        requests.get(url, timeout=20)


def test_redirects_lead_where_they_say(shared):
    def target(fault: str) -> str:
        url = mirrored(shared, url_of(shared, fault))
        return requests.get(url, timeout=20, allow_redirects=False).headers["Location"]

    good = fetched(shared, "redirect_good")

    assert len(good.history) == 1
    assert judged(good.content) is None
    assert target("redirect_private").startswith("http://169.254.169.254/")
    assert target("redirect_file").startswith("file:")
    with pytest.raises(requests.exceptions.TooManyRedirects):
        requests.get(mirrored(shared, url_of(shared, "redirect_loop")), timeout=20)


def test_urls_that_must_not_be_fetched_are_in_the_rows(shared):
    assert url_of(shared, "file_url") == "file:///etc/hostname"
    assert "reader:secret@" in url_of(shared, "credentials")
    assert "\r\n" in url_of(shared, "crlf")


def test_every_sound_row_of_a_shard_has_its_picture_in_the_size_it_says(shared):
    expected = shared.expected.coyo(2)

    rows = [row for row in shard_rows(shared, 2) if row["id"] not in expected.faults]
    sizes = []
    for row in rows:
        body = shared.answer(row["url"]).body
        assert len(body) >= 5_000
        sizes.append(Image.open(io.BytesIO(body)).size)

    assert sizes == [(row["width"], row["height"]) for row in rows]
    assert all(expected.outcomes[row["url"]] == ("ok",) for row in rows)


def test_a_slow_url_trickles_until_the_miniature_closes():
    before = set(threading.enumerate())
    with Miniature() as miniature:
        url = mirrored(miniature, url_of(miniature, "slow"))
        response = requests.get(url, timeout=20, stream=True)
        first = [response.raw.read(1) for _ in range(70)]

    response.close()

    assert b"".join(first)[:2] == b"\xff\xd8"
    assert int(response.headers["Content-Length"]) > 1_000_000
    assert set(threading.enumerate()) == before


def test_closing_ends_idle_connections_and_their_threads():
    before = set(threading.enumerate())
    connection = http.client.HTTPConnection("127.0.0.1", 0, timeout=20)
    with Miniature(rows=14) as miniature:
        connection.port = miniature.port
        connection.request("HEAD", LLAVA_JSON)
        connection.getresponse().read()

    assert set(threading.enumerate()) == before
    connection.close()


# --- determinism and changes ---


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others():
    paths = [LLAVA_JSON, f"/datasets/{COYO}/resolve/main/{SHARD_0}", *(path for path, _ in ARCHIVES.values())]

    def bodies(seed: int) -> list[bytes]:
        with Miniature(rows=40, seed=seed) as miniature:
            chosen = miniature.expected.coyo(0).outcomes
            return [miniature.answer(path).body for path in [*paths, *list(chosen)[:10]]]

    assert bodies(0) == bodies(0)
    assert bodies(0)[:2] != bodies(1)[:2]


def test_the_bytes_do_not_depend_on_what_was_asked_for_before():
    with Miniature(rows=40) as forward, Miniature(rows=40) as backward:
        there = [forward.answer(path).body for path, _ in ARCHIVES.values()]
        back = [backward.answer(path).body for path, _ in reversed(ARCHIVES.values())]

    assert there == back[::-1]


def test_replaced_bytes_stand_in_the_hubs_listing_and_download(tmp_path):
    rows = [{"id": 7, "url": "https://a.example/b.jpg", "text": "b", "clip_similarity_vitb32": 0.5}]
    other = coyo_parquet(rows)
    with Miniature(rows=14) as miniature:
        miniature.replace(f"/datasets/{COYO}/resolve/main/{SHARD_0}", other)

        (info,) = HfApi(endpoint=miniature.url, token=False).get_paths_info(COYO, SHARD_0, repo_type="dataset")
        got = download(miniature, COYO, SHARD_0, tmp_path)

    assert got == other
    assert info.size == len(other)
    assert pq.read_table(io.BytesIO(got)).num_columns == 17


def test_an_answer_can_be_replaced_for_a_while_or_decided_each_time():
    with Miniature(rows=14) as miniature:
        archive = "https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip"
        miniature.replace(archive, Answer(status=503), times=1)
        statuses = [requests.get(mirrored(miniature, archive), timeout=20).status_code for _ in range(2)]
        asked: list[Request] = []
        miniature.replace("/a.example/x.jpg", lambda request: asked.append(request) or Answer(body=b"!"))
        body = requests.get(f"{miniature.url}/a.example/x.jpg?y=1", timeout=20).content

    assert statuses == [503, 200]
    assert body == b"!"
    assert asked[0].path == "/a.example/x.jpg?y=1"


def test_too_few_rows_and_a_port_that_is_taken_are_explained():
    with pytest.raises(UsageError, match="14 or more"), Miniature(rows=5) as miniature:
        _ = miniature.expected.llava665k
    with Miniature(rows=14) as first, pytest.raises(UsageError, match="another port"):
        Miniature(port=first.port).__enter__()
    with pytest.raises(UsageError, match="with"):
        _ = Miniature().url


def test_real_photographs_and_texts_are_used_when_given():
    if not REAL.is_dir():
        pytest.skip(f"no real pictures at {REAL}")
    preview = [json.loads(line) for line in (REAL / "coyo_rows.jsonl").read_text().splitlines()]
    with Miniature(real=REAL) as miniature, Miniature() as drawn:
        for row in preview:
            response = requests.get(mirrored(miniature, row["url"]), timeout=20)
            assert response.status_code == 200
            assert judged(response.content) is None

        assert miniature.expected.llava665k == drawn.expected.llava665k
        assert miniature.expected.coyo(0).chosen == drawn.expected.coyo(0).chosen
        assert choose(preview) == [1125282207474]
        assert "skateboard" in miniature.answer(LLAVA_JSON).body.decode()


def test_the_module_prints_its_settings_and_serves_until_it_is_stopped():
    command = [sys.executable, "-m", "datakit.miniature", "--rows", "14"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        try:
            lines = [process.stdout.readline() for _ in range(5)]
            settings = dict(line.removeprefix("export ").strip().split("=", 1) for line in lines)
            response = requests.get(settings["HF_ENDPOINT"].strip("'") + LLAVA_JSON, timeout=20)
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=20)

    assert list(settings) == [
        "HF_ENDPOINT",
        "DATAKIT_MIRRORS",
        "DATAKIT_ALLOW_HOSTS",
        "HF_HUB_DISABLE_XET",
        "HF_HUB_DISABLE_TELEMETRY",
    ]
    assert len(response.json()) == 14
    assert code == 0
