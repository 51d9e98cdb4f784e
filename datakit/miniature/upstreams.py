"""What stands where: the hub's repositories, the archives' hosts, and the web of COYO's pictures.

Everything is made when it is first asked for and kept: making all shards and archives takes seconds, starting
takes none.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.parse import unquote

from datakit.errors import UsageError
from datakit.miniature import coyo, instruct
from datakit.miniature.hub import GATED, Hub, refusal
from datakit.miniature.real import Real
from datakit.miniature.server import Answer, Asked, whole

Made = TypeVar("Made")
Change = bytes | Answer | Callable[[Asked], Answer]

LLAVA, QINSTRUCT, OCR_VQA, COYO = (
    "liuhaotian/LLaVA-Instruct-150K",
    "teowu/Q-Instruct",
    "weizhiwang/llava_v15_instruction_images",
    "kakaobrain/coyo-700m",
)
ARCHIVES = {  # path on the web -> source of llava665k
    "/images.cocodataset.org/zips/train2017.zip": "coco",
    "/downloads.cs.stanford.edu/nlp/data/gqa/images.zip": "gqa",
    "/dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip": "textvqa",
    "/cs.stanford.edu/people/rak248/VG_100K_2/images.zip": "vg",
    "/cs.stanford.edu/people/rak248/VG_100K_2/images2.zip": "vg2",
}
RESOLVED = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class Upstreams:
    """A site: `answer` is all that a server needs."""

    def __init__(self, *, rows: int, seed: int, real: Real | None, coyo_shards: int, coyo_rows: int) -> None:
        self._rows, self._seed, self._real = rows, seed, real
        self._coyo_shards, self._coyo_rows = coyo_shards, coyo_rows
        self._kept: dict[object, object] = {}
        self._pictures: dict[tuple[int, int], bytes] = {}
        self._lock = threading.RLock()
        self._changes: dict[str, Change] = {}
        self._lasting: dict[str, int] = {}  # path -> requests for which its change still holds
        files = [coyo.FILES.format(shard=shard) for shard in range(coyo_shards)]
        self.hub = Hub(
            {
                LLAVA: ["README.md", "llava_v1_5_mix665k.json"],
                QINSTRUCT: ["README.md", "cleaned_labels.json", "q-instruct-images.tar"],
                OCR_VQA: ["README.md", "ocr_vqa_images_llava_v15.zip"],
                COYO: ["README.md", *files],
                GATED: ["README.md", "data.json"],
            },
            self._hub_bytes,
            edition=f"{rows} {seed} {real is not None} {coyo_shards} {coyo_rows}",
        )

    @functools.cached_property
    def llava665k(self) -> instruct.Instruct:
        return instruct.llava665k(self._rows, self._seed, self._real)

    @functools.cached_property
    def qinstruct(self) -> instruct.Instruct:
        return instruct.qinstruct(max(2, self._rows // 2), self._seed)

    def coyo_rows(self, shard: int) -> list[coyo.Row]:
        if not 0 <= shard < self._coyo_shards:
            raise UsageError(
                f"The miniature of coyo has no shard {shard!r}; its shards are 0 to {self._coyo_shards - 1}."
            )
        return self._keep(
            ("rows", shard),
            lambda: coyo.shard_rows(shard, rows=self._coyo_rows, seed=self._seed, real=self._real),
        )

    def change(self, path: str, to: Change, times: int | None) -> None:
        """Answer otherwise at a path, for the next `times` GETs or for good."""
        path = self.canonical(path)
        with self._lock:
            self._changes[path] = to
            self._lasting.pop(path, None)
            if times is not None:
                self._lasting[path] = times

    def canonical(self, path: str) -> str:
        """One name for a place: no scheme, query or percent signs; `main` for a hub revision."""
        path = unquote(re.sub(r"^https?://", "/", path).partition("?")[0])
        path = "/" + re.sub(r"/{2,}", "/", path).strip("/").removeprefix("huggingface.co/")
        found = RESOLVED.fullmatch(path)
        if found and found[2] == self.hub.commits.get(found[1]):
            return f"/datasets/{found[1]}/resolve/main/{found[3]}"
        return path

    def answer(self, asked: Asked) -> Answer:
        path = self.canonical(asked.path)
        with self._lock:
            change = self._changes.get(path)
            made = self._usual(asked, path) if isinstance(change, bytes) else None
            # A GET counts against a change that holds for a few; a HEAD only looks.
            if path in self._lasting and asked.method == "GET":
                self._lasting[path] -= 1
                if not self._lasting[path]:
                    del self._lasting[path], self._changes[path]
        if isinstance(change, Answer):
            return change
        if change is not None and not isinstance(change, bytes):
            return change(asked)
        return made or self._usual(asked, path) or refusal(404, "", "There is nothing here.")

    def _usual(self, asked: Asked, path: str) -> Answer | None:
        """What stands at a path, with the bytes that a test put there."""
        change = self._changes.get(path)
        if path.startswith(("/datasets/", "/api/")) or RESOLVED.fullmatch("/datasets" + path):
            stripped = re.sub(r"^/huggingface\.co/", "/", asked.path)
            return self.hub.answer(Asked(method=asked.method, path=stripped, headers=asked.headers, body=asked.body))
        if isinstance(change, bytes):
            return whole(change, "image/jpeg" if path.endswith(".jpg") else "application/octet-stream")
        if path in ARCHIVES:
            return self._keep(path, lambda: whole(self._archive(path), "application/zip"))
        return self._picture(asked.path, path)

    def _archive(self, path: str) -> bytes:
        source = ARCHIVES[path]
        return instruct.zipped(self.llava665k.members[source], deflate=source == "gqa")

    def _picture(self, asked_path: str, path: str) -> Answer | None:
        if self._real and path in self._preview:
            return whole(self._real.photo(self._preview[path]), "image/jpeg")
        place = coyo.place_of(path)
        if place is None or not (place[0] < self._coyo_shards and place[1] < self._coyo_rows):
            return None
        row = self.coyo_rows(place[0])[place[1]]
        body = self._pictures.get(place)
        if body is None:  # not under the lock: two threads may draw at once, and draw the same
            body = self._pictures[place] = coyo.picture(row, place[1], self._real)
        return coyo.answer(row, asked_path, body)

    @functools.cached_property
    def _preview(self) -> Mapping[str, int]:
        """Where the preview rows of COYO have their pictures; any picture will do."""
        rows = self._real.coyo_rows if self._real else []
        return {self.canonical(row["url"]): nth for nth, row in enumerate(rows)}

    def _hub_bytes(self, repo: str, name: str) -> bytes:
        change = self._changes.get(f"/datasets/{repo}/resolve/main/{name}")
        if isinstance(change, bytes):
            return change
        return self._keep((repo, name), lambda: self._hub_file(repo, name))

    def _hub_file(self, repo: str, name: str) -> bytes:
        if name == "README.md":
            return f"---\nlicense: other\n---\n\n# {repo}\n\nA miniature.\n".encode()
        if name == "llava_v1_5_mix665k.json":
            return instruct.array(self.llava665k.records, indent=2, ascii_only=False)
        if name == "cleaned_labels.json":
            return instruct.array(self.qinstruct.records, indent=None, ascii_only=True)
        if name == "q-instruct-images.tar":
            return instruct.tarred(self.qinstruct.members["all"])
        if name == "ocr_vqa_images_llava_v15.zip":
            return instruct.zipped(self.llava665k.members["ocr_vqa"])
        if repo == COYO:
            shard = int(name.partition("part-")[2][:5])
            return coyo.parquet([row.columns for row in self.coyo_rows(shard)])
        return b"[]\n"

    def _keep(self, key: object, make: Callable[[], Made]) -> Made:
        """What `make` made for a key the first time."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
            return self._kept[key]  # type: ignore[return-value]
