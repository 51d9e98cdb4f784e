"""What stands where: the hub's repositories, the archives' hosts, and the webs of COYO's and MMC4's pictures.

A new upstream is a module with a function `places`, named in `UPSTREAMS`. Everything is made when it is first
asked for and kept: making all shards and archives takes seconds, starting takes none.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

from datakit.miniature import allava, captions, coyo, flan, icm, llava, m3it, mgm, mmc4, plain, sharegpt4v
from datakit.miniature.hub import GATED, Hub, refusal
from datakit.miniature.server import Answer, Request, whole
from datakit.miniature.sheet import Dataset
from datakit.miniature.world import Places, World, canonical_path

Change = bytes | Answer | Callable[[Request], Answer]

UPSTREAMS: tuple[Callable[[World], Places], ...] = (
    llava.places,
    coyo.places,
    captions.places,
    allava.places,
    m3it.places,
    flan.places,
    mmc4.places,
    sharegpt4v.places,
    icm.places,
    mgm.places,
    plain.places,
)
DATASETS: dict[str, Callable[[World], Dataset]] = {  # those whose rows are told by their numbers
    "llava558k": captions.llava558k,
    "cc3m595k": captions.cc3m595k,
    "llava332k": llava.llava332k,
    "allava": allava.allava,
    "m3it": m3it.m3it,
    "sharegpt4v": sharegpt4v.sharegpt4v,
    "sharegpt4v_vila": sharegpt4v.sharegpt4v_vila,
    "icm": icm.icm,
    "mgm": mgm.mgm,
}
RESOLVED = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class Upstreams:
    """A site: `answer` is all that a server needs."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._lock = threading.RLock()
        self._changes: dict[str, Change] = {}
        self._lasting: dict[str, int] = {}  # path -> requests for which its change still holds
        found = [places(world) for places in UPSTREAMS]
        self._files = {repo: files for at in found for repo, files in at.hub.items()}
        self._pages = [at.pages for at in found if at.pages]
        self._files[GATED] = {"data.json": lambda: b"[]\n"}
        listed = {repo: ["README.md", *files] for repo, files in self._files.items()}
        self.hub = Hub(listed, self._hub_bytes, edition=world.edition)
        self._archives = {self.canonical(url): make for at in found for url, make in at.web.items()}

    def coyo_rows(self, shard: int) -> list[coyo.Row]:
        """The rows of a shard with what is wrong at their URLs."""
        return coyo.rows_of(self._world, shard)

    def change(self, path: str, to: Change, times: int | None) -> None:
        """Answer otherwise at a path, for the next `times` GETs or for good."""
        path = self.canonical(path)
        with self._lock:
            self._changes[path] = to
            self._lasting.pop(path, None)
            if times is not None:
                self._lasting[path] = times

    def canonical(self, path: str) -> str:
        """The form of a path or URL by which files are looked up: as `canonical_path`, `main` for a hub revision."""
        path = "/" + canonical_path(path).removeprefix("/").removeprefix("huggingface.co/")
        found = RESOLVED.fullmatch(path)
        if found and found[2] == self.hub.commits.get(found[1]):
            return f"/datasets/{found[1]}/resolve/main/{found[3]}"
        return path

    def answer(self, request: Request) -> Answer:
        path = self.canonical(request.path)
        with self._lock:
            change = self._changes.get(path)
            usual = self._usual(request, path) if isinstance(change, bytes) else None
            # A GET counts against a change that holds for a few; a HEAD only looks.
            if path in self._lasting and request.method == "GET":
                self._lasting[path] -= 1
                if not self._lasting[path]:
                    del self._lasting[path], self._changes[path]
        if isinstance(change, Answer):
            return change
        if change is not None and not isinstance(change, bytes):
            return change(request)
        return usual or self._usual(request, path) or refusal(404, "", "There is nothing here.")

    def _usual(self, request: Request, path: str) -> Answer | None:
        """What is at a path, with the bytes that a test put there."""
        change = self._changes.get(path)
        if path in self._archives and not isinstance(change, bytes):
            return self._world.keep(path, lambda: whole(self._archives[path](), "application/zip"))
        if path.startswith(("/datasets/", "/api/")) or RESOLVED.fullmatch("/datasets" + path):
            stripped = re.sub(r"^/huggingface\.co/", "/", request.path)
            return self.hub.answer(
                Request(method=request.method, path=stripped, headers=request.headers, body=request.body)
            )
        if isinstance(change, bytes):
            return whole(change, "image/jpeg" if path.endswith(".jpg") else "application/octet-stream")
        return next((found for pages in self._pages if (found := pages(request, path))), None)

    def _hub_bytes(self, repo: str, name: str) -> bytes:
        change = self._changes.get(f"/datasets/{repo}/resolve/main/{name}")
        if isinstance(change, bytes):
            return change
        if name == "README.md":
            return self._world.keep((repo, name), lambda: _card(repo))
        return self._world.keep((repo, name), self._files[repo][name])


def _card(repo: str) -> bytes:
    return f"---\nlicense: other\n---\n\n# {repo}\n\nA miniature.\n".encode()
