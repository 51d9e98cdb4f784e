"""img2dataset: what it made is adopted whole or cut, and it downloads only what may be asked for."""

import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from unruly import reply, unruly_server

from datakit import images
from datakit.catalogue.manifest import load
from datakit.engine.work import Work
from datakit.errors import BadImage, DownloadError, SourceError, UsageError
from datakit.interop import img2dataset, outputs
from datakit.interop.img2dataset import Output, crawl_by_img2dataset, look_up_urls, outcome_of, run
from datakit.miniature.pictures import drawing
from datakit.stages.fetch import Fetch
from datakit.storage.store import Store
from datakit.web import hosts as hosts_module
from datakit.web.hosts import Hosts
from datakit.web.pacing import Limits

real = pytest.mark.skipif(
    find_spec("img2dataset") is None or find_spec("imghdr") is None,
    reason="img2dataset is not installed, or this Python has no imghdr",
)
QUICK = Limits(connect_s=5, read_s=5, total_s=5, window=(4, 8), max_bytes=1 << 20)
SCHEMA = pa.schema({name: pa.string() for name in ("url", "key", "status", "error_message")})


def jpeg(seed: int, px: int = 60) -> bytes:
    return drawing(random.Random(seed), least_px=px, most_px=px + 20).jpeg()


def tar_of(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return out.getvalue()


def meta(url: str, key: str, status: str = "success", error: str | None = None) -> dict:
    return {"url": url, "key": key, "status": status, "error_message": error}


def shard(folder: Path, form: str, rows: list[tuple[dict, bytes | None]], *, number: str = "00000", stats=True) -> None:
    """A shard as img2dataset leaves it."""
    folder.mkdir(exist_ok=True)
    table = pa.Table.from_pylist([about for about, _ in rows], SCHEMA)
    kept = {about["key"]: (data, json.dumps(about).encode()) for about, data in rows if data is not None}
    if form == "parquet":
        table = table.append_column("jpg", pa.array([data for _, data in rows], pa.binary()))
    pq.write_table(table, folder / f"{number}.parquet", row_group_size=2)
    if form == "webdataset":
        members = {f"{key}.{ext}": data for key, pair in kept.items() for ext, data in zip(("jpg", "json"), pair)}
        (folder / f"{number}.tar").write_bytes(tar_of(dict(sorted(members.items(), key=lambda m: m[0].split(".")[0]))))
    if form == "files":
        (folder / number).mkdir()
        for key, (data, about) in kept.items():
            (folder / number / f"{key}.json").write_bytes(about)
            (folder / number / f"{key}.jpg").write_bytes(data)
    if stats:
        (folder / f"{number}_stats.json").write_text("{}")


def four_rows() -> list[tuple[dict, bytes | None]]:
    return [
        (meta("http://a.example/0.jpg", "000000000"), b"picture 0"),
        (meta("http://a.example/1.jpg", "000000001", "failed_to_download", "HTTP Error 404: Not Found"), None),
        (meta("http://a.example/2.jpg", "000000002"), b"picture 2"),
        (meta("http://a.example/3.jpg", "000000003", "failed_to_resize", "Image decoding error"), None),
    ]


@pytest.fixture
def server():
    """A server that a policy has to allow, since it is on 127.0.0.1."""
    with unruly_server() as unruly:
        yield unruly


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


# Folders of others.


@pytest.mark.parametrize("form", ["webdataset", "files", "parquet"])
def test_every_form_of_output_is_looked_up_by_url(tmp_path, form):
    shard(tmp_path / "out", form, four_rows())

    output = Output.open(tmp_path / "out")

    found = [output.find(f"http://a.example/{n}.jpg") for n in (0, 1, 2, 3, 4)]
    assert [f and (f.outcome, f.status, f.data) for f in found] == [
        ("ok", 200, b"picture 0"),
        ("http_404", 404, None),
        ("ok", 200, b"picture 2"),
        ("corrupt", 200, None),
        None,
    ]
    assert len(output) == 4
    assert output.counts["rows"] == 4 and not output.counts["unfinished_shards"]


def test_several_shards_are_one_output(tmp_path):
    shard(tmp_path, "webdataset", four_rows()[:2])
    shard(tmp_path, "files", four_rows()[2:], number="00001")
    (tmp_path / "_tmp").mkdir()
    (tmp_path / "notes.txt").write_text("mine")

    output = Output.open(str(tmp_path))

    assert [output.find(f"http://a.example/{n}.jpg").outcome for n in range(4)] == ["ok", "http_404", "ok", "corrupt"]


def test_the_first_success_of_a_url_wins(tmp_path):
    failure = ("failed_to_download", "timed out")
    shard(
        tmp_path,
        "webdataset",
        [
            (meta("http://a.example/x", "0", *failure), None),
            (meta("http://a.example/x", "1"), b"first"),
            (meta("http://a.example/y", "2", "failed_to_download", "HTTP Error 403: No"), None),
            (meta("http://a.example/y", "3", *failure), None),
        ],
    )
    shard(tmp_path, "webdataset", [(meta("http://a.example/x", "10"), b"second")], number="00001")

    output = Output.open(tmp_path)

    assert output.find("http://a.example/x").data == b"first"
    assert output.find("http://a.example/y").outcome == "http_403"
    assert (len(output), output.counts["duplicates"]) == (2, 3)


@pytest.mark.parametrize("whole_parquet", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.55, 0.8, 0.99])
def test_what_is_whole_in_a_cut_tar_is_taken(tmp_path, share, whole_parquet):
    rows = [(meta(f"http://a.example/{n}", f"{n:09d}"), bytes([n]) * 3000) for n in range(8)]
    shard(tmp_path, "webdataset", rows, stats=False)
    shard(tmp_path, "webdataset", [(meta("http://b.example/", "000010000"), b"whole")], number="00001")
    tar = tmp_path / "00000.tar"
    sample = 512 + 3072 + 512 + 512  # a picture, then its JSON, each with a header
    cut = int(8 * sample * share)
    tar.write_bytes(tar.read_bytes()[:cut])
    if not whole_parquet:
        (tmp_path / "00000.parquet").write_bytes(b"PAR1 and then nothing")

    output = Output.open(tmp_path)

    found = [output.find(url["url"]) for url, _ in rows]
    n_whole = sum(f is not None for f in found)
    assert [f.data for f in found[:n_whole]] == [data for _, data in rows[:n_whole]]
    assert found[n_whole:] == [None] * (8 - n_whole)
    assert n_whole == ((cut + 1024) // sample if whole_parquet else cut // sample)
    assert output.find("http://b.example/").data == b"whole"
    assert output.counts["unfinished_shards"] == 1


def test_whole_samples_of_a_folder_without_parquet_are_taken(tmp_path):
    shard(tmp_path, "files", four_rows(), stats=False)
    (tmp_path / "00000.parquet").write_bytes(b"")
    (tmp_path / "00000" / "000000002.json").write_text('{"url": "http://a.exa')

    output = Output.open(tmp_path)

    assert output.find("http://a.example/0.jpg").data == b"picture 0"
    assert output.find("http://a.example/2.jpg") is None


def test_an_output_without_any_whole_shard_is_an_error(tmp_path):
    (tmp_path / "00000.parquet").write_bytes(b"PAR1")

    with pytest.raises(SourceError, match="none of the 1 shards"):
        Output.open(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds nothing of img2dataset's"),
        (["pictures/", "readme.md", "train.parquet"], "holds nothing of img2dataset's"),
        (["00000.parquet", "00000.tfrecord", "00000_stats.json"], "tfrecord"),
        (["00000_stats.json", "00001_stats.json"], "output_format=dummy"),
    ],
)
def test_a_folder_that_is_no_output_is_refused_with_a_way_on(tmp_path, names, message):
    for name in names:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_bytes(b"")

    with pytest.raises(UsageError, match=message):
        Output.open(tmp_path)


@pytest.mark.parametrize("folder", ["s3://bucket/out", "nowhere", "a_file"])
def test_what_is_no_local_folder_is_refused(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    Path("a_file").write_text("")

    with pytest.raises(UsageError, match="folder"):
        Output.open(folder)


def test_names_and_sizes_that_lie_lead_nowhere(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    rows = [
        (meta("http://a.example/up", "../secret"), None),
        (meta("http://a.example/link", "000000001"), None),
        (meta("http://a.example/pipe", "000000002"), None),
        (meta("http://a.example/huge", "99999999999999999999999"), None),
        (meta("file:///etc/passwd", "000000003"), b"secret"),
        (meta("http://a.example/fine", "000000004"), b"fine"),
    ]
    out = tmp_path / "out"
    shard(out, "files", rows)
    (out / "00000" / "000000001.jpg").symlink_to(tmp_path / "secret.jpg")
    os.mkfifo(out / "00000" / "000000002.jpg")

    output = Output.open(out)

    found = {url["url"].rpartition("/")[2]: output.find(url["url"]) for url, _ in rows}
    assert [found[name] for name in ("up", "link", "pipe", "huge")] == [None] * 4
    assert found["passwd"].outcome == "refused_url"
    assert found["fine"].data == b"fine"
    assert output.counts["missing_pictures"] == 2


def test_a_member_that_says_it_is_huge_is_not_read(tmp_path, monkeypatch):
    shard(tmp_path, "webdataset", four_rows())
    monkeypatch.setattr(outputs, "MAX_MEMBER_BYTES", 5)

    output = Output.open(tmp_path)

    assert output.find("http://a.example/0.jpg") == outputs.UrlResult("too_large", 200, None)


@pytest.mark.parametrize("content", [b"", b"<html>", bytes(1024), b"PK\3\4" + bytes(600), os.urandom(2000)])
def test_a_tar_that_is_none_has_no_pictures(tmp_path, content):
    shard(tmp_path, "webdataset", four_rows())
    (tmp_path / "00000.tar").write_bytes(content)

    output = Output.open(tmp_path)

    assert output.find("http://a.example/0.jpg") is None
    assert output.find("http://a.example/1.jpg").outcome == "http_404"


def test_a_parquet_of_other_columns_or_bad_text_is_not_believed(tmp_path):
    shard(tmp_path, "webdataset", four_rows())
    pq.write_table(pa.table({"url": [1, 2]}), tmp_path / "00000.parquet")
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], "i4")), pa.py_buffer(b"\xff\xfe")])
    fine = pa.array(["000010000"])
    pq.write_table(pa.table({"url": bad, "key": fine, "status": fine}), tmp_path / "00001.parquet")
    (tmp_path / "00001.tar").write_bytes(tar_of({}))

    output = Output.open(tmp_path)

    assert output.find("http://a.example/0.jpg").data == b"picture 0"  # by its JSON
    assert (len(output), output.counts["unreadable_shards"]) == (2, 2)


def test_a_picture_that_went_away_later_is_not_imported(tmp_path):
    shard(tmp_path / "tar", "webdataset", four_rows())
    shard(tmp_path / "files", "files", four_rows())
    shard(tmp_path / "parquet", "parquet", four_rows())
    every = [Output.open(tmp_path / form) for form in ("tar", "files", "parquet")]

    (tmp_path / "tar" / "00000.tar").write_bytes(b"")
    (tmp_path / "files" / "00000" / "000000000.jpg").unlink()
    (tmp_path / "parquet" / "00000.parquet").unlink()

    assert [output.find("http://a.example/0.jpg") for output in every] == [None] * 3


def test_urls_whose_digests_begin_alike_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "digest_of", lambda url: b"the same" + url[-8:].encode())
    rows = [
        (meta(f"http://a.example/{n:08d}", str(n), "failed_to_download", f"HTTP Error {400 + n % 50}: No"), None)
        for n in (*range(99, 0, -1), *range(50))
    ]
    shard(tmp_path, "webdataset", rows)

    output = Output.open(tmp_path)

    assert [output.find(f"http://a.example/{n:08d}").status for n in range(100)] == [400 + n % 50 for n in range(100)]
    assert output.find("http://a.example/00000100") is None
    assert output.counts["duplicates"] == 49


def test_a_url_takes_thirty_bytes_of_memory(tmp_path):
    rows = [(meta(f"http://a.example/{n}", f"{n:09d}", "failed_to_download", "timed out"), None) for n in range(5000)]
    shard(tmp_path, "webdataset", rows)

    output = Output.open(tmp_path)

    assert output.nbytes == 30 * 5000
    assert all(output.find(about["url"]).outcome == "timeout_read" for about, _ in rows[::7])


# Outcomes.


@pytest.mark.parametrize(
    ("message", "outcome"),
    [
        ("HTTP Error 503: datakit: opted_out", ("http_503", 503)),
        ("<urlopen error [Errno -2] Name or service not known>", ("dns", 0)),
        ("<urlopen error [Errno -3] Temporary failure in name resolution>", ("dns", 0)),
        ("<urlopen error timed out>", ("timeout_connect", 0)),
        ("<urlopen error [Errno 110] Connection timed out>", ("timeout_connect", 0)),
        ("<urlopen error _ssl.c:989: The handshake operation timed out>", ("timeout_connect", 0)),
        ("timed out", ("timeout_read", 0)),
        ("The read operation timed out", ("timeout_read", 0)),
        ("<urlopen error [Errno 113] No route to host>", ("connect", 0)),
        ("[Errno 104] Connection reset by peer", ("reset", 0)),
        ("IncompleteRead(3 bytes read, 5 more expected)", ("reset", 0)),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed (_ssl.c:1006)>", ("tls", 0)),
        ("got more than 100 headers", ("protocol", 0)),
        ("Use of image disallowed by X-Robots-Tag directive", ("opted_out", 200)),
        ("hash mismatch", ("img2dataset_error", 0)),
        ("datakit: ok", ("img2dataset_error", 0)),
        ("datakit: refused_address", ("refused_address", 0)),
        ("x" * 100_000 + "certificate", ("img2dataset_error", 0)),
        (None, ("img2dataset_error", 0)),
    ],
)
def test_texts_of_failures_become_outcomes(message, outcome):
    assert outcome_of("failed_to_download", message) == outcome


@pytest.mark.parametrize(
    ("message", "outcome"),
    [
        ("Image decoding error", "corrupt"),
        ("something of OpenCV(4.9.0)", "corrupt"),
        (
            "OpenCV(4.14.0) error: (-215) pixels <= CV_IO_MAX_IMAGE_PIXELS in function 'validateInputImageSize'",
            "pixels",
        ),
        ("image too small", "img2dataset_filtered"),
        ("aspect ratio too large", "img2dataset_filtered"),
        ("anything", "corrupt"),
    ],
)
def test_pictures_that_could_not_be_resized_have_outcomes_too(message, outcome):
    assert outcome_of("failed_to_resize", message) == (outcome, 200)


# Importing.


def test_urls_are_imported_in_their_order_and_through_work(tmp_path):
    shard(tmp_path, "webdataset", four_rows())
    output = Output.open(tmp_path)
    urls = [f"http://a.example/{n}.jpg" for n in (4, 2, 1, 0, 2)]

    def work(data: bytes) -> str:
        if data == b"picture 0":
            raise BadImage("truncated")
        return data.decode()

    got = list(look_up_urls(iter(urls), output, work, threads=2))

    assert [(f.place, f.url, f.final_url) for f in got] == [(n, url, url) for n, url in enumerate(urls)]
    assert [(f.outcome, f.status, f.ms, f.size_bytes, f.value) for f in got] == [
        ("not_imported", 0, 0, 0, None),
        ("ok", 200, 0, 9, "picture 2"),
        ("http_404", 404, 0, 0, None),
        ("truncated", 200, 0, 9, None),
        ("ok", 200, 0, 9, "picture 2"),
    ]


def test_only_a_few_urls_are_read_ahead(tmp_path):
    shard(tmp_path, "webdataset", four_rows())
    taken = []

    def urls():
        for n in range(100):
            taken.append(n)
            yield f"http://a.example/{n}.jpg"

    got = look_up_urls(urls(), Output.open(tmp_path), bytes)
    next(got)
    got.close()

    assert len(taken) <= 2 * img2dataset.AHEAD


def test_another_exception_of_work_comes_out_in_its_turn(tmp_path):
    shard(tmp_path, "webdataset", four_rows())

    def work(data: bytes) -> bytes:
        if data == b"picture 2":
            raise ZeroDivisionError
        return data

    got = look_up_urls([f"http://a.example/{n}.jpg" for n in range(4)], Output.open(tmp_path), work)

    assert [next(got).outcome, next(got).outcome] == ["ok", "http_404"]
    with pytest.raises(ZeroDivisionError):
        next(got)


# The program itself.


def download(tmp_path: Path, urls: list[str], hosts: Hosts, *, px: int | None = None, limits: Limits = QUICK) -> Output:
    return run(
        urls, folder=tmp_path, hosts=hosts, limits=limits, max_short_side_px=px, quality=90, processes=1, threads=8
    )


@real
@pytest.mark.usefixtures("lean")
def test_the_real_program_downloads_and_its_words_become_outcomes(tmp_path, server):
    picture, small, port = jpeg(1, 100), jpeg(2, 30), free_port()
    local = f"http://{server.place}"
    closed = f"127.0.0.1:{port}"

    def reset(visit):
        visit.reset()

    def cut(visit):
        visit.head(Content_Length=1000)
        visit.send(b"x" * 10)

    urls = {
        server.at("/ok.jpg", reply(picture)): "ok",
        server.at("/small.jpg", reply(small)): "ok",
        server.at("/page.jpg", reply(b"<html>no picture</html>")): "corrupt",
        f"{local}/gone.jpg": "http_404",
        server.at("/teapot.jpg", reply(b"", 418)): "http_418",
        server.at("/noai.jpg", reply(picture, X_Robots_Tag="noai")): "opted_out",
        server.at("/none.jpg", reply(picture, X_Robots_Tag="none")): "opted_out",
        server.at("/reserved.jpg", reply(picture, tdm_reservation="1")): "opted_out",
        server.at("/reset.jpg", reset): "reset",
        server.at("/cut.jpg", cut): "reset",
        server.at("/large.jpg", reply(bytes(QUICK.max_bytes + 1))): "too_large",
        server.at("/loop.jpg", reply(b"", 302, Location="/loop.jpg")): "redirects",
        server.at("/away.jpg", reply(b"", 302, Location="file:///etc/passwd")): "refused_url",
        server.at("/ftp.jpg", reply(b"", 302, Location="ftp://a.example/x")): "refused_url",
        server.at("/inside.jpg", reply(b"", 302, Location="http://169.254.169.254/")): "refused_address",
        server.at("/name.jpg", reply(b"", 302, Location=f"http://localhost:{port}/")): "refused_address",
        server.at("/moved.jpg", reply(b"", 302, Location="/ok.jpg")): "ok",
        f"http://{closed}/": "connect",
        f"https://{server.place}/ok.jpg": "tls",
    }
    refused = {
        "file:///etc/passwd": "refused_url",
        "http://169.254.169.254/latest/": "refused_address",
        "http://localhost:1/": "refused_address",
        "http://no.such.name.invalid/": "dns",
    }

    output = download(tmp_path / "x", [*urls, *refused], Hosts(allowed=(server.place, closed)), px=60)

    got = {url: output.find(url) for url in urls | refused}
    assert {url: found.outcome for url, found in got.items()} == urls | refused
    shrunk = images.normalise(got[f"{local}/ok.jpg"].data)
    assert min(shrunk.width, shrunk.height) == 60
    assert got[f"{local}/small.jpg"].data == small
    asked = [visit for visit in server.visits if visit.path == "/ok.jpg"]
    assert {visit.headers["user-agent"] for visit in asked} == {hosts_module.USER_AGENT}
    given = pq.read_table(tmp_path / "x" / "urls.parquet")["url"].to_pylist()
    assert sorted(given) == sorted(urls)


@real
@pytest.mark.usefixtures("lean")
@pytest.mark.parametrize(("rounding", "width"), [("nearest", 421), ("down", 420)])
def test_pictures_that_it_fetched_have_the_sizes_that_the_recipe_asks_for(tmp_path, server, rounding, width):
    sink = io.BytesIO()
    Image.new("RGB", (501, 400), (200, 30, 90)).save(sink, "JPEG")
    url = server.at("/x.jpg", reply(sink.getvalue()))  # 336 of 400 makes 420.84
    stage = Fetch(max_short_side_px=336, rounding=rounding, engine="img2dataset")
    work = Work(Store(str(tmp_path / "root")), load("coyo"), "coyo", "fetch", Hosts(allowed=(server.place,)), QUICK)

    (got,) = stage.crawl_urls([url], work)

    assert got.outcome == "ok"
    assert (got.value.width, got.value.height) == (width, 336)


@real
@pytest.mark.usefixtures("lean")
@pytest.mark.parametrize("form", ["files", "parquet"])
def test_what_the_real_program_writes_alone_is_read(tmp_path, server, form):
    pictures = {server.at(f"/{n}.jpg", reply(jpeg(n))): jpeg(n) for n in range(3)}
    missing, opted_out = f"http://{server.place}/missing", server.at("/noai", reply(jpeg(9), X_Robots_Tag="noai"))
    nobody, unknown = f"http://127.0.0.1:{free_port()}/", "http://no.such.name.invalid/"
    page, no_tls = server.at("/page", reply(b"<html>")), f"https://{server.place}/"
    every = [*pictures, missing, opted_out, nobody, unknown, page, no_tls]
    (tmp_path / "list.txt").write_text("\n".join(every))
    options = {"encode_format": "png", "encode_quality": 9} if form == "files" else {"disable_all_reencoding": True}
    options |= {"url_list": "list.txt", "output_folder": "out", "output_format": form, "resize_mode": "no"}
    env = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "no_proxy": "*", "WANDB_MODE": "disabled"}

    code = f"import img2dataset; img2dataset.download(thread_count=4, **{options!r})"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, capture_output=True, timeout=120)

    output = Output.open(tmp_path / "out")
    got = {url: output.find(url) for url in every}
    for url, picture in pictures.items():
        assert got[url].data == picture or (form == "files" and got[url].data.startswith(b"\x89PNG"))
    outcomes = [got[url].outcome for url in (missing, opted_out, nobody, unknown, no_tls)]
    assert outcomes == ["http_404", "opted_out", "connect", "dns", "tls"]
    assert got[page].outcome == ("corrupt" if form == "files" else "ok")  # nothing was decoded in the others
    assert not output.counts["unfinished_shards"]


@real
@pytest.mark.usefixtures("lean")
def test_a_crawl_by_it_goes_in_batches_in_order_and_leaves_nothing(tmp_path, server, monkeypatch):
    monkeypatch.setattr(img2dataset, "BATCH", 5)
    server.at("/0.jpg", reply(jpeg(0)))
    server.at("/1.jpg", reply(b"<html>"))
    server.at("/3.jpg", reply(jpeg(3)))
    hosts = Hosts(allowed=(server.place,), mirrors=(("http://pictures.example/", f"http://{server.place}/"),))
    urls = [f"http://pictures.example/{n}.jpg" for n in (0, 1, 2, 3, 0)] + ["http://10.0.0.1/", "data:,"]
    (tmp_path / "img2dataset-000000000").mkdir()
    (tmp_path / "img2dataset-000000000" / "left").write_text("of a run that was killed")

    got = list(
        crawl_by_img2dataset(
            urls,
            scratch=tmp_path,
            hosts=hosts,
            limits=QUICK,
            work=images.normalise,
            max_short_side_px=None,
            quality=90,
            threads=1,
        )
    )

    assert [(f.place, f.url) for f in got] == list(enumerate(urls))
    assert [f.outcome for f in got] == ["ok", "not_an_image", "http_404", "ok", "ok", "refused_address", "refused_url"]
    assert got[0].value.data == got[4].value.data
    assert list(tmp_path.iterdir()) == []


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


SLOW = """
import multiprocessing, urllib.request
import pyarrow.parquet as pq

def ask(url):
    urllib.request.urlopen(url)

def download(url_list, **options):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.map(ask, pq.read_table(url_list)["url"].to_pylist())
"""

ASKER = """
import subprocess, sys
from pathlib import Path
from datakit.interop import img2dataset
from datakit.web.hosts import Hosts
from datakit.web.pacing import Limits

start = subprocess.Popen

def noted(*args, **options):
    process = start(*args, **options)
    print(process.pid, flush=True)
    return process

subprocess.Popen = noted
img2dataset.check_installed = lambda: None
img2dataset.run([sys.argv[1]], folder=Path(sys.argv[2]), hosts=Hosts(allowed=("127.0.0.1",)), limits=Limits(),
                max_short_side_px=None, quality=90, processes=1, threads=1)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Another program under the name of img2dataset, for processes that are started."""
    monkeypatch.setattr(img2dataset, "check_installed", lambda: None)
    folder = tmp_path / "stand_in"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))
    return folder / "img2dataset.py"


@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_its_processes_end_with_the_one_that_asked_for_them(tmp_path, server, stand_in, how):
    asked = threading.Event()

    def hang(visit):
        asked.set()
        visit.hang()

    stand_in.write_text(SLOW)
    command = [sys.executable, "-c", ASKER, server.at("/slow.jpg", hang), str(tmp_path / "x")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as asker:
        try:
            group = int(asker.stdout.readline())
            assert asked.wait(300)

            asker.send_signal(signal.SIGINT if how == "interrupted" else signal.SIGKILL)

            _, said = asker.communicate(timeout=300)
        finally:
            asker.kill()  # else a failure would wait for it for ever
    assert asker.returncode != 0
    assert how == "killed" or b"KeyboardInterrupt" in said
    for _ in range(600):
        if not alive(group):
            break
        threading.Event().wait(0.1)  # who ends itself takes a moment
    assert not alive(group)


def test_a_run_that_fails_says_what_the_program_said(tmp_path, server, stand_in):
    stand_in.write_text("def download(**options): raise OSError('no space left, say')")

    with pytest.raises(DownloadError, match=r"(?s)code 1.*no space left, say"):
        download(tmp_path / "x", [server.at("/0.jpg", reply(jpeg(0)))], Hosts(allowed=(server.place,)))


def test_urls_that_it_left_out_are_an_error(tmp_path, server, stand_in):
    stand_in.write_text("def download(**options): print('shard 0 failed, say')")

    with pytest.raises(DownloadError, match=r"0 of 1 URLs .* shard 0 failed, say"):
        download(tmp_path / "x", [server.at("/0.jpg", reply(jpeg(0)))], Hosts(allowed=(server.place,)))


def test_it_is_not_started_for_urls_that_are_all_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(img2dataset, "check_installed", lambda: None)
    monkeypatch.setattr(img2dataset, "_run_in_process_group", None)

    output = download(tmp_path / "x", ["file:///etc/passwd", "http://10.0.0.1/"], Hosts())

    assert output.find("http://10.0.0.1/").outcome == "refused_address"


def test_without_the_extra_a_run_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "img2dataset", None)

    with pytest.raises(UsageError, match=r"pip install 'datakit-vlm\[img2dataset\]' .*below 3.13"):
        download(tmp_path, ["http://a.example/"], Hosts())


def test_a_python_without_imghdr_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(img2dataset, "find_spec", lambda name: None if name == "imghdr" else object())

    with pytest.raises(UsageError, match=r"imghdr.*use Python 3.11 or 3.12"):
        download(tmp_path, ["http://a.example/"], Hosts())


def test_what_it_cannot_do_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(img2dataset, "check_installed", lambda: None)
    (tmp_path / "mine").write_text("")

    with pytest.raises(UsageError, match="not empty"):
        download(tmp_path, ["http://a.example/"], Hosts())
    with pytest.raises(UsageError, match=r"robots\.txt"):
        download(tmp_path / "x", ["http://a.example/"], Hosts(), limits=Limits(robots=True))


def test_importing_it_loads_nothing_heavy():
    code = (
        "import sys; import datakit.interop.img2dataset\n"
        "assert not {'img2dataset', 'albumentations', 'wandb', 'torch'} & set(sys.modules)\n"
    )

    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_img2dataset_doesn_t_go_around_a_proxy(tmp_path, monkeypatch):
    monkeypatch.setattr(img2dataset, "check_installed", lambda: None)
    monkeypatch.setenv("HTTPS_PROXY", "http://10.0.0.1:3128")

    with pytest.raises(UsageError, match="NO_PROXY"):
        download(tmp_path / "x", ["http://a.example/"], Hosts())
