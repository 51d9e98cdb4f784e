"""img2dataset: reading its output folders, and running the program itself as a second engine for a crawl.

1. `Output.open` indexes a folder that it filled; `look_up_urls` gives a dataset's URLs what that folder holds of them.
2. `run` has it download URLs into a new folder; `crawl_by_img2dataset` does so batch by batch and yields in order.

It comes with `pip install 'datakit-vlm[img2dataset]'` and needs Python below 3.13, which no longer has `imghdr`. It is
never imported here: it runs in processes of its own, and importing it takes seconds.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from datakit.errors import BadImage, DownloadError, UsageError
from datakit.images import MAX_PIXELS
from datakit.interop.causes import outcome_of
from datakit.interop.outputs import Output, UrlResult, digest_of
from datakit.storage.store import Store, publish_file
from datakit.web.crawl import Fetched
from datakit.web.hosts import Hosts, RefusedUrl
from datakit.web.pacing import Limits
from datakit.web.proxies import proxy_for

__all__ = ["UrlResult", "Output", "check_installed", "crawl_by_img2dataset", "look_up_urls", "outcome_of", "run"]

T = TypeVar("T")

BATCH = 10_000  # URLs that `crawl_by_img2dataset` gives to one run: a start takes seconds, and a kill loses so much
ROWS_PER_SHARD = 10_000
LOOKUPS = 32  # names resolved at once; each blocks a thread
KNOWN_HOSTS = 100_000  # whose answer is remembered during a run
MOST_THREADS = 256  # of one img2dataset process: its own default
AHEAD = 4  # pictures per thread that wait for `work` or for their turn
TAIL_BYTES = 4096  # of what img2dataset printed, for the message of an error
NOT_IMPORTED = "not_imported"


def check_installed() -> None:
    """Raises UsageError unless img2dataset can run here. Imports nothing."""
    if find_spec("img2dataset") is None:
        raise UsageError(
            "img2dataset is not installed: pip install 'datakit-vlm[img2dataset]' (it needs Python below 3.13), "
            "or leave the crawl to datakit's own engine"
        )
    if find_spec("imghdr") is None:
        raise UsageError(
            f"img2dataset needs Python's module imghdr, which Python {sys.version_info[0]}.{sys.version_info[1]} "
            "doesn't have: use Python 3.11 or 3.12, or leave the crawl to datakit's own engine"
        )


def look_up_urls(
    urls: Iterable[str], output: Output, work: Callable[[bytes], T], *, threads: int = 1
) -> Generator[Fetched[T], None, None]:
    """The result of each URL in an output, in the order given; `not_imported` for a URL that it doesn't hold.

    Pictures go through `work` in `threads` threads, with the rules of `crawl`: the reason of a BadImage that it raises
    becomes the outcome, any other exception comes out in its turn. How long img2dataset took isn't known: ms is 0.
    """
    yield from _look_up(enumerate(urls), output, work, threads)


def _look_up(
    urls: Iterator[tuple[int, str]], output: Output, work: Callable[[bytes], T], threads: int
) -> Generator[Fetched[T], None, None]:
    pool = ThreadPoolExecutor(threads, "import-work")
    waiting: deque[tuple[int, str, UrlResult, Future[T] | None]] = deque()
    try:
        while True:
            for place, url in islice(urls, AHEAD * threads - len(waiting)):
                found = output.find(url) or UrlResult(NOT_IMPORTED, 0, None)
                waiting.append((place, url, found, None if found.data is None else pool.submit(work, found.data)))
            if not waiting:
                return
            yield _to_fetched(*waiting.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _to_fetched(place: int, url: str, found: UrlResult, job: Future[T] | None) -> Fetched[T]:
    outcome, value = found.outcome, None
    if job is not None:
        try:
            value = job.result()
        except BadImage as bad:
            outcome = bad.reason
    return Fetched(
        place=place,
        url=url,
        final_url=url,
        outcome=outcome,
        status=found.status,
        ms=0,
        size_bytes=len(found.data or b""),
        value=value,
    )


def run(
    urls: Iterable[str],
    *,
    folder: Path,
    hosts: Hosts,
    limits: Limits,
    max_short_side_px: int | None,
    quality: int,
    processes: int,
    threads: int,
) -> Output:
    """Has img2dataset download URLs into an empty local folder, and indexes what it made.

    Every URL passes `hosts` first, its name is resolved, and what is refused never reaches img2dataset. In its
    processes redirects and addresses are checked again (datakit.interop.guarded). Unlike our own engine it obeys no
    robots.txt, doesn't spare a host that has many of the URLs, tries nothing twice (its retries come at once, and for
    a 404 too), and lets headers trickle in for longer than `total_s`. When it shrinks pictures it does so without
    their EXIF turn and their colour profile, and what is no JPEG or too big is written anew.
    """
    check_installed()
    if limits.robots:
        raise UsageError("img2dataset doesn't read robots.txt: leave the crawl to datakit's own engine")
    if any(proxy_for(f"{scheme}://example.org/") for scheme in ("http", "https")):
        raise UsageError(
            "img2dataset isn't taken through the proxy that the environment names: leave the crawl to datakit's own "
            "engine, or set NO_PROXY='*' where hosts can be asked directly"
        )
    store = Store(str(folder.absolute()))
    if store.names(""):
        raise UsageError(f"{str(folder)!r} is not empty: give img2dataset a new folder")
    refused: dict[bytes, str] = {}
    n_urls = _write_list(store, urls, hosts, refused)
    output = store.path("output")
    if n_urls:
        download: dict[str, Any] = {
            "url_list": str(store.path("urls.parquet")),
            "input_format": "parquet",
            "output_folder": str(output),
            "output_format": "webdataset",
            "processes_count": processes,
            "thread_count": threads,
            "number_sample_per_shard": max(1, min(ROWS_PER_SHARD, math.ceil(n_urls / processes))),
            "timeout": limits.total_s,
            "retries": 0,
            "extract_exif": False,
            "compute_hash": None,
            "enable_wandb": False,
            "user_agent_token": "datakit",
            "disallowed_header_directives": ["noai", "noimageai", "noindex", "noimageindex"],
            "disable_all_reencoding": max_short_side_px is None,
            "image_size": max_short_side_px or 1,
            "resize_mode": "keep_ratio",
            "resize_only_if_bigger": True,
            "skip_reencode": True,
            "encode_format": "jpg",
            "encode_quality": quality,
        }
        bounds = {"max_bytes": limits.max_bytes, "total_s": limits.total_s, "max_redirects": limits.max_redirects}
        job = {"allowed": hosts.allowed, "limits": bounds, "download": download}
        publish_file(store.path("job.json"), json.dumps(job).encode())
        printed = _run_in_process_group(store.path("job.json"))
        made = Output(output, hosts=hosts, refused=refused) if output.is_dir() else None
        if made is None or made.counts["rows"] < n_urls:
            there = 0 if made is None else made.counts["rows"]
            raise DownloadError(
                f"img2dataset ended with {there} of {n_urls} URLs in {str(output)!r}. It said: {printed}"
            )
        return made
    return Output(None, hosts=hosts, refused=refused)


def crawl_by_img2dataset(
    urls: Iterable[str],
    *,
    scratch: Path,
    hosts: Hosts,
    limits: Limits,
    work: Callable[[bytes], T],
    max_short_side_px: int | None,
    quality: int,
    threads: int,
) -> Generator[Fetched[T], None, None]:
    """Crawls by img2dataset: batches of 10,000 URLs, each in a folder below `scratch` that is removed afterwards.

    Starts as many processes as `work` has threads, and as many downloads in each as the window of `limits` has room.
    """
    check_installed()
    left = iter(urls)
    place = 0
    downloads = max(1, min(MOST_THREADS, limits.window[1] // threads))
    while batch := list(islice(left, BATCH)):
        folder = scratch / f"img2dataset-{place:09d}"
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        try:
            output = run(
                batch,
                folder=folder,
                hosts=hosts,
                limits=limits,
                max_short_side_px=max_short_side_px,
                quality=quality,
                processes=threads,
                threads=downloads,
            )
            yield from _look_up(enumerate(batch, place), output, work, threads)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        place += len(batch)


def _write_list(store: Store, urls: Iterable[str], hosts: Hosts, refused: dict[bytes, str]) -> int:
    """Writes the URLs that may be asked for, each once in a batch, and returns how many; the others go to `refused`."""
    schema = pa.schema({"url": pa.string()})
    left = iter(urls)
    n_urls = 0
    known: dict[tuple[str, int], str | None] = {}
    with (
        ThreadPoolExecutor(LOOKUPS, "lookup") as pool,
        store.publish("urls.parquet") as sink,
        pq.ParquetWriter(sink, schema) as writer,
    ):
        while batch := list(islice(left, BATCH)):
            asked: dict[str, tuple[str, int]] = {}
            for url in batch:
                with suppress(RefusedUrl):  # `Output.find` will refuse it in the same way
                    sent_url = hosts.checked_url(url)
                    asked[sent_url] = _host_and_port(sent_url)
            if len(known) > KNOWN_HOSTS:
                known.clear()
            unknown = list({host_and_port for host_and_port in asked.values() if host_and_port not in known})
            known.update(
                zip(
                    unknown,
                    pool.map(lambda host_and_port: _refusal_outcome(hosts, *host_and_port), unknown),
                    strict=True,
                )
            )
            allowed = []
            for url, host_and_port in asked.items():
                if reason := known[host_and_port]:
                    refused[digest_of(url)] = reason
                else:
                    allowed.append(url)
            writer.write_table(pa.table({"url": allowed}, schema))
            n_urls += len(allowed)
    return n_urls


def _host_and_port(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _refusal_outcome(hosts: Hosts, host: str, port: int) -> str | None:
    """The outcome for a host that may not or can't be connected to; None for one that can."""
    try:
        hosts.addresses(host, port)
    except RefusedUrl as refusal:
        return refusal.outcome
    except (socket.gaierror, UnicodeError):
        return "dns"
    return None


def _run_in_process_group(job: Path) -> str:
    """Runs img2dataset in a process group that ends with this call, however it ends; returns its last output."""
    tail = bytearray()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "datakit.interop.guarded", str(job)],
        cwd=job.parent,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            "NO_ALBUMENTATIONS_UPDATE": "1",  # it would ask the network for its newest version
            "WANDB_MODE": "disabled",
            "OPENCV_IO_MAX_IMAGE_PIXELS": str(MAX_PIXELS),
        },
        stdin=subprocess.PIPE,  # when we are killed it closes, and they end themselves
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdin is not None  # PIPE, above
    listener = threading.Thread(target=_listen, args=(process.stdout.fileno(), tail), daemon=True)
    try:
        listener.start()
        # Waited for without being reaped, so that its number still stands for its group when that is ended.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    finally:
        with suppress(ProcessLookupError, PermissionError):  # gone already; the second is how macOS says so
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        if listener.ident is not None:
            listener.join()  # all who could write are gone
        process.stdin.close()
        process.stdout.close()
    printed = tail.decode(errors="replace").strip() or "nothing"
    if code:
        raise DownloadError(f"img2dataset ended with code {code}. It said: {printed}")
    return printed


def _listen(fd: int, tail: bytearray) -> None:
    while piece := os.read(fd, 65536):
        tail += piece
        del tail[:-TAIL_BYTES]
