"""The COYO-700M of the miniature: Parquet shards in upstream's schema, and a web with many pictures gone.

A shard is a function of (seed, shard). A URL carries its shard and row, so the web needs no table of URLs.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datakit.errors import UsageError
from datakit.miniature import pictures
from datakit.miniature.pictures import Drawing, drawing
from datakit.miniature.real import Real
from datakit.miniature.server import Answer, Request, whole
from datakit.miniature.world import Places, World, canonical_path

REPO = "kakaobrain/coyo-700m"
FILES = "data/part-{shard:05d}-17da4908-939c-46e5-91d0-15f256041956-c000.snappy.parquet"
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("url", pa.string()),
        ("text", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
    + [("image_phash", pa.string()), ("text_length", pa.int32()), ("word_count", pa.int32())]
    + [(name, pa.int32()) for name in ("num_tokens_bert", "num_tokens_gpt", "num_faces")]
    + [(name, pa.float32()) for name in ("clip_similarity_vitb32", "clip_similarity_vitl14")]
    + [(name, pa.float32()) for name in ("nsfw_score_opennsfw2", "nsfw_score_gantman")]
    + [(name, pa.float32()) for name in ("watermark_score", "aesthetic_score_laion_v2")]
)
SHARE, FLOOR = 0.2, np.float32(0.6)  # VILA, data_prepare/coyo/coyo_downloader.py

# What is wrong with a URL, and the outcomes that are right for it. Twenty, so that five in each of four
# neighbouring shards show them all. Three of them work all the same.
FAULTS: Mapping[str, tuple[str, ...]] = {
    "gone_404": ("http_404",),
    "redirect_good": ("ok",),
    "slow": ("timeout_total", "timeout_read"),
    "redirect_file": ("refused_url",),
    "truncated": ("truncated",),
    "forbidden_403": ("http_403",),
    "html": ("not_an_image",),
    "unicode": ("ok",),
    "file_url": ("refused_url",),
    "redirect_private": ("refused_address",),
    "gone_410": ("http_410",),
    "gif_named_jpg": ("ok",),
    "reset": ("reset",),
    "crlf": ("refused_url",),
    "noai": ("opted_out",),
    "error_500": ("http_500",),
    "redirect_loop": ("redirects",),
    "huge": ("pixels",),
    "credentials": ("refused_url",),
    "gone_404_again": ("http_404",),
}
STATUS = {"gone_404": 404, "gone_404_again": 404, "forbidden_403": 403, "gone_410": 410, "error_500": 500}
TOKEN = re.compile(r"-(\d{3,})x(\d{5,})\.jpg")
HOSTS = (
    *(f"cdn{n}.harbour-photos.example" for n in range(12)),
    *(f"img{n}.kettle-and-co.example" for n in range(9)),
    *(f"{name}.example" for name in ("static.north-post", "www.old-maps", "media.birdwatch", "i.tram-lines")),
    "shop.tinware.example:8080",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a shard: its columns, its picture, and what is wrong with its URL."""

    columns: dict[str, Any]
    drawing: Drawing
    fault: str = ""

    @property
    def outcomes(self) -> tuple[str, ...]:
        return FAULTS[self.fault] if self.fault else ("ok",)


@dataclass(frozen=True, kw_only=True)
class CoyoExpected:
    """What a correct tool finds in one shard."""

    rows: int
    chosen: tuple[int, ...]  # ids by VILA's rule, best first
    outcomes: Mapping[str, tuple[str, ...]]  # url -> the outcomes that are right; a slow one has two
    faults: Mapping[int, str]  # id -> what is wrong with its url, of FAULTS
    ok: tuple[int, ...]  # the chosen whose pictures can be had, best first


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows in upstream's schema, snappy, in several row groups. A column that a row lacks is null."""
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    sink = pa.BufferOutputStream()
    # Spark wrote the real ones, so there is no Arrow schema in their footer.
    pq.write_table(table, sink, compression="snappy", row_group_size=max(1, -(-len(rows) // 3)), store_schema=False)
    return bytes(sink.getvalue().to_pybytes())


def choose(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The ids that VILA's rule keeps of a whole shard, best first: sum > 0.6, the best int(0.2 n).

    The sum is one of float32 columns; equal sums go by the key `coyo-<id>` as text. The rule's assertion
    that more than a fifth pass the floor is not made here: of a poor shard, all that pass are kept.
    """
    sums = {
        row["id"]: np.float32(row["clip_similarity_vitb32"]) + np.float32(row["clip_similarity_vitl14"]) for row in rows
    }
    above = [id for id, similarity in sums.items() if similarity > FLOOR]
    return sorted(above, key=lambda id: (-sums[id], f"coyo-{id}"))[: int(SHARE * len(rows))]


def shard_rows(shard: int, *, rows: int, seed: int, real: Real | None = None) -> list[Row]:
    """The rows of a shard, with faults at some of the URLs that VILA's rule chooses."""
    chance = random.Random(f"coyo/{seed}/{shard}")
    sums = _sums(rows, poor=shard % 16 == 13)
    chance.shuffle(sums)
    drawn = [_row(shard, row, similarity, chance, real) for row, similarity in enumerate(sums)]
    _add_rounding_tie(drawn)
    chosen = choose([row.columns for row in drawn])
    places = {row.columns["id"]: place for place, row in enumerate(drawn)}
    n_faults = min(5, max(1, len(chosen) // 2)) if chosen else 0
    names = list(FAULTS)
    for nth in range(n_faults):
        place = places[chosen[nth * len(chosen) // n_faults]]
        drawn[place] = _spoilt(drawn[place], names[(shard * n_faults + nth) % len(names)])
    for place, row in enumerate(drawn):
        if row.columns["id"] not in chosen and place % 10 == 7:
            drawn[place] = _spoilt(row, "gone_404")
    return drawn


def expected(rows: Sequence[Row]) -> CoyoExpected:
    chosen = choose([row.columns for row in rows])
    by_id = {row.columns["id"]: row for row in rows}
    return CoyoExpected(
        rows=len(rows),
        chosen=tuple(chosen),
        outcomes={row.columns["url"]: row.outcomes for row in rows},
        faults={id: row.fault for id, row in by_id.items() if row.fault},
        ok=tuple(id for id in chosen if by_id[id].outcomes == ("ok",)),
    )


def place_of(path: str) -> tuple[int, int] | None:
    """The shard and the row that a URL's path names."""
    found = TOKEN.search(path)
    return (int(found[1]), int(found[2])) if found else None


def answer(row: Row, path: str, picture: bytes) -> Answer:
    """What the web has at a row's URL. `path` is what was asked for, for the redirects' targets."""
    fault = row.fault
    if fault in STATUS:
        return Answer(status=STATUS[fault], body=pictures.HTML, content_type="text/html; charset=utf-8")
    bare, _, query = path.partition("?")
    if fault.startswith("redirect") and query != "moved":
        target = {
            "redirect_good": f"{bare}?moved",
            "redirect_loop": bare,
            "redirect_private": "http://169.254.169.254/latest/meta-data/",
            "redirect_file": "file:///etc/hostname",
        }[fault]
        return Answer(status=302, headers=(("Location", target),))
    if fault == "html":
        return whole(pictures.HTML, "text/html; charset=utf-8")
    sent = whole(picture, "image/jpeg")
    if fault == "slow":
        return replace(sent, body=picture[:64], endless=True)
    if fault == "reset":
        return replace(sent, cut_after=len(picture) // 2)
    if fault == "noai":
        return replace(sent, headers=(("X-Robots-Tag", "noai"),))
    return sent


def picture(row: Row, nth: int, real: Real | None) -> bytes:
    """The bytes at a row's URL; with real pictures, one in seven of the sound ones is real."""
    make = {"truncated": pictures.truncated_jpeg, "gif_named_jpg": pictures.gif}.get(row.fault, Drawing.jpeg)
    if row.fault == "huge":
        return pictures.huge_png()
    if real and not row.fault and nth % 7 == 3:
        return real.photo(nth // 7) if nth % 2 else real.clipart(nth // 7)
    return make(row.drawing)


def rows_of(world: World, shard: int) -> list[Row]:
    if not 0 <= shard < world.coyo_shards:
        raise UsageError(f"The miniature of coyo has no shard {shard!r}; its shards are 0 to {world.coyo_shards - 1}.")
    return world.keep(
        ("coyo", shard), lambda: shard_rows(shard, rows=world.coyo_rows, seed=world.seed, real=world.real)
    )


def places(world: World) -> Places:
    drawn: dict[tuple[int, int], bytes] = {}

    def shard_file(shard: int) -> bytes:
        return parquet([row.columns for row in rows_of(world, shard)])

    @functools.cache
    def preview() -> Mapping[str, int]:
        """Where the preview rows have their pictures; any picture will do."""
        return {canonical_path(row["url"]): nth for nth, row in enumerate(world.real.coyo_rows if world.real else [])}

    def pages(request: Request, path: str) -> Answer | None:
        if world.real and path in preview():
            return whole(world.real.photo(preview()[path]), "image/jpeg")
        at = place_of(path)
        if at is None or not (at[0] < world.coyo_shards and at[1] < world.coyo_rows):
            return None
        row = rows_of(world, at[0])[at[1]]
        body = drawn.get(at)
        if body is None:  # not under the world's lock: two threads may draw at once, and draw the same
            body = drawn[at] = picture(row, at[1], world.real)
        return answer(row, request.path, body)

    files = {FILES.format(shard=shard): functools.partial(shard_file, shard) for shard in range(world.coyo_shards)}
    return Places(hub={REPO: files}, pages=pages)


def _sums(rows: int, *, poor: bool) -> list[float]:
    """Similarities, best first: a third above the floor (a tenth in a poor shard), four equal at the cut."""
    quota = int(SHARE * rows)
    n_above = rows // 10 if poor else min(rows, quota + max(3, rows // 7))
    sums = [0.92 - 0.28 * rank / max(1, n_above) for rank in range(n_above)]
    if not poor and quota >= 2:
        for rank in range(quota - 2, min(quota + 2, n_above)):
            sums[rank] = sums[quota - 2]
    sums += [0.58 - 0.3 * rank / rows for rank in range(rows - n_above)]
    return [round(similarity * 1024) / 1024 for similarity in sums]


def _row(shard: int, row: int, similarity: float, chance: random.Random, real: Real | None) -> Row:
    of = drawing(chance, least_px=200)
    text = _caption(of, chance)
    if real and row % 2:
        text = real.caption(shard * 31 + row)
    vitb32 = round(similarity * 0.54 * 1024) / 1024
    words = text.split()
    slug = "-".join(text.lower().replace(".", "").replace("“", "").replace("”", "").split()[:5])
    host = chance.choice(HOSTS)
    year, month = chance.randrange(2009, 2021), chance.randrange(1, 13)
    url = f"{chance.choice(('http', 'https'))}://{host}/{year}/{month:02d}/{quote(slug)}-{shard:03d}x{row:05d}.jpg"
    if chance.random() < 0.25:
        url += f"?v={chance.randrange(10**9)}&fit=max"
    # Spark's monotonically_increasing_id; the rows of one file come from several partitions.
    id = ((shard * 6 + row % 6) << 33) + row * 97 + chance.randrange(97)
    columns = {
        "id": id,
        "url": url,
        "text": text,
        "width": of.width,
        "height": of.height,
        "image_phash": f"{chance.getrandbits(64):016x}",
        "text_length": len(text),
        "word_count": len(words),
        "num_tokens_bert": len(words) + chance.randrange(4),
        "num_tokens_gpt": len(words) + chance.randrange(5),
        "num_faces": 0,
        "clip_similarity_vitb32": vitb32,
        "clip_similarity_vitl14": similarity - vitb32,
        "nsfw_score_opennsfw2": chance.random() ** 6 / 2,
        "nsfw_score_gantman": chance.random() ** 4 / 2,
        "watermark_score": chance.random() ** 2,
        "aesthetic_score_laion_v2": chance.uniform(3.5, 7.5),
    }
    return Row(columns=columns, drawing=of)


def _caption(of: Drawing, chance: random.Random) -> str:
    return chance.choice(
        (
            f"{of.named.capitalize()} on a {of.ground} background",
            f"{of.word.title()} sign with {of.named}, stock photo",
            f"Vintage poster: {of.colour} {of.shape}, “{of.word}”, {of.width} x {of.height}",
            f"How to paint a {of.shape} in {of.colour}. Step {chance.randrange(1, 20)}",
        )
    )


def _add_rounding_tie(rows: list[Row]) -> None:
    """Lift the last of the equal sums by half a float32 step: equal as float32, greater as float64."""
    quota = int(SHARE * len(rows))
    ranked = sorted(rows, key=lambda row: (-_similarity(row), f"coyo-{row.columns['id']}"))
    if quota < 2 or _similarity(ranked[quota - 1]) <= FLOOR:
        return
    tied = [row for row in ranked if _similarity(row) == _similarity(ranked[quota - 1])]
    score = np.float32(tied[-1].columns["clip_similarity_vitl14"])
    tied[-1].columns["clip_similarity_vitl14"] = float(np.nextafter(score, np.float32(1)))


def _similarity(row: Row) -> float:
    return float(row.columns["clip_similarity_vitb32"] + row.columns["clip_similarity_vitl14"])


def _spoilt(row: Row, fault: str) -> Row:
    url: str = row.columns["url"]
    scheme, _, rest = url.partition("://")
    if fault == "file_url":
        url = "file:///etc/hostname"
    elif fault == "credentials":
        url = f"{scheme}://reader:secret@{rest}"
    elif fault == "crlf":
        url = f"{url.partition('?')[0]}\r\nX-Injected: yes"
    elif fault == "unicode":
        folder, _, name = url.partition("?")[0].rpartition("/")
        url = f"{folder}/Straßen & Plätze/猫 {name}"
    return replace(row, columns=row.columns | {"url": url}, fault=fault)
