"""The two instruction datasets of the miniature: their JSON files, their archives, and what is wrong in them.

1. rows are dealt to picture sources in upstream's proportions,
2. a few rows get a fault each,
3. every picture that isn't missing becomes a member of its archive, drawn when the archive is asked for.
"""

from __future__ import annotations

import functools
import io
import json
import random
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datakit.errors import UsageError
from datakit.miniature import pictures, questions
from datakit.miniature.pictures import Drawing, drawing
from datakit.miniature.real import Real

Member = tuple[str, Callable[[], bytes]]  # its name in the archive, and its bytes when they are wanted
FEWEST_ROWS = 14


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the pictures of some rows lie: counts are upstream's (LLaVA issues 657 and 546)."""

    prefix: str  # of `image`
    inside: str  # of the archive's members
    rows: int  # upstream, of 665,298
    turns: Callable[[Drawing, random.Random], questions.Turns]


SOURCES = {
    "coco": Source(prefix="coco/train2017/", inside="train2017/", rows=364_100, turns=questions.about_coco),
    "gqa": Source(prefix="gqa/images/", inside="images/", rows=72_140, turns=questions.about_gqa),
    "ocr_vqa": Source(prefix="ocr_vqa/images/", inside="images/", rows=80_000, turns=questions.about_book),
    "textvqa": Source(prefix="textvqa/train_images/", inside="train_images/", rows=21_953, turns=questions.about_text),
    "vg": Source(prefix="vg/VG_100K/", inside="VG_100K/", rows=51_000, turns=questions.boxes),
    "vg2": Source(prefix="vg/VG_100K_2/", inside="VG_100K_2/", rows=35_417, turns=questions.boxes),
}
TEXT_ROWS = 40_688

# Each fault: how many in 240 rows, the sources it is dealt to, and the reason a row is dropped for, if it is.
FAULTS: Mapping[str, tuple[int, tuple[str, ...], str | None]] = {
    "missing": (3, ("ocr_vqa", "vg2", "coco"), "missing"),
    "png_palette": (1, ("ocr_vqa",), None),  # the JSON says .jpg, the member is .png
    "png_16bit": (1, ("ocr_vqa",), None),
    "gif_named_jpg": (2, ("ocr_vqa",), None),
    "empty_answer": (2, ("coco",), "empty_answer"),
    "truncated": (2, ("vg2", "coco"), "truncated"),
    "zero_bytes": (1, ("vg2", "coco"), "not_an_image"),
    "html": (1, ("coco",), "not_an_image"),
    "huge": (1, ("gqa", "coco"), "pixels"),
    "cmyk": (2, ("coco",), None),
    "exif_turned": (2, ("textvqa", "coco"), None),
}
BROKEN: Mapping[str, Callable[[Drawing], bytes]] = {
    "png_palette": pictures.palette_png,
    "png_16bit": pictures.deep_png,
    "gif_named_jpg": pictures.gif,
    "truncated": pictures.truncated_jpeg,
    "zero_bytes": lambda of: b"",
    "html": lambda of: pictures.HTML,
    "huge": lambda of: pictures.huge_png(),
    "cmyk": pictures.cmyk,
    "exif_turned": pictures.jpeg_with_exif_turn,
}


@dataclass(frozen=True, kw_only=True)
class InstructExpected:
    """What a correct tool finds in one dataset whose rows are told by their numbers."""

    rows: int
    kept: tuple[str, ...]  # keys, in row order
    dropped: Mapping[str, str]  # key -> reason
    faults: Mapping[str, str]  # key -> what is odd about it, dropped or not
    sources: Mapping[str, str] = field(default_factory=dict)  # key -> where its picture comes from, "" without one

    @property
    def counts(self) -> dict[str, int]:
        """Rows dropped by reason."""
        return dict(Counter(self.dropped.values()))


@dataclass(frozen=True, kw_only=True)
class Instruct:
    """One instruction dataset: its records and the members of its archives."""

    dataset: str
    records: list[dict[str, Any]] = field(default_factory=list)
    members: dict[str, list[Member]] = field(default_factory=dict)  # by source
    faults: dict[int, tuple[str, str | None]] = field(default_factory=dict)  # row -> fault, reason

    @property
    def expected(self) -> InstructExpected:
        keys = [f"{self.dataset}-{row:09d}" for row in range(len(self.records))]
        dropped = {keys[row]: reason for row, (_, reason) in sorted(self.faults.items()) if reason}
        return InstructExpected(
            rows=len(keys),
            kept=tuple(key for key in keys if key not in dropped),
            dropped=dropped,
            faults={keys[row]: fault for row, (fault, _) in sorted(self.faults.items())},
        )


def llava665k(rows: int, seed: int, real: Real | None = None) -> Instruct:
    """The LLaVA-1.5 mix: six picture sources and text, with its faults."""
    if rows < FEWEST_ROWS:
        raise UsageError(
            f"The miniature of llava665k has rows={rows!r}, too few for every source; use {FEWEST_ROWS} or more."
        )
    chance = random.Random(f"llava665k/{seed}")
    row_sources = _shares(rows)
    chance.shuffle(row_sources)
    faults = _deal_faults(row_sources, chance)
    dataset = Instruct(dataset="llava665k", members={name: [] for name in SOURCES})
    reusable: list[tuple[str, Drawing]] = []  # COCO pictures that several components ask about
    shared = f"{chance.randrange(2_300_000, 2_420_000)}.jpg"  # one name that GQA and VG both have
    healthy: Counter[str] = Counter()
    n_coco = 0
    for row, source in enumerate(row_sources):
        if source == "text":
            dataset.records.append(_chat(chance, row))
            continue
        fault = faults.get(row, "")
        n_coco += source == "coco"
        if source == "coco" and not fault and reusable and n_coco % 8 == 0:
            name, of = chance.choice(reusable)
        else:
            # The two archives of VG hold pictures of other names; GQA repeats some of them.
            name = shared if source in ("gqa", "vg") and not dataset.members[source] else _name(source, chance, row)
            of = drawing(chance)
            member = _member(SOURCES[source].inside + name, of, fault)
            if not fault:
                healthy[source] += 1
                member = _realistic(member, source, healthy[source], real)
                if source == "coco":
                    reusable.append((name, of))
            if fault != "missing":
                dataset.members[source].append(member)
        turns = SOURCES[source].turns(of, chance)
        if real and source == "coco" and not fault and healthy[source] % 3 == 0:
            turns = real.questions(healthy[source] // 3)
        record = _record(_id(source, name), SOURCES[source].prefix + name, turns, chance)
        if fault:
            dataset.faults[row] = (fault, FAULTS[fault][2])
        if fault == "empty_answer":
            record["conversations"][-1]["value"] = ""
        dataset.records.append(record)
    _add_unasked(dataset, chance)
    return dataset


def qinstruct(rows: int, seed: int) -> Instruct:
    """Q-Instruct: questions on quality; one picture is missing and one is cut."""
    chance = random.Random(f"qinstruct/{seed}")
    dataset = Instruct(dataset="qinstruct", members={"all": []})
    for row in range(rows):
        fault = {rows // 3: "missing", rows // 2: "truncated"}.get(row, "")
        of = drawing(chance, least_px=120, flaw=chance.choice(pictures.FLAWS))
        folder = "spaq_koniq" if row % 5 < 3 else "livefb_liveitw_aigc"
        name = f"{folder}/{row * 7 + 3:05d}.jpg"
        if fault != "missing":
            dataset.members["all"].append(_member(name, of, fault))
        if fault:
            dataset.faults[row] = (fault, fault)
        dataset.records.append(_record(f"{row * 7 + 3:05d}", name, questions.about_quality(of, chance), chance))
    return dataset


def array(records: Sequence[dict[str, Any]], *, indent: int | None, ascii_only: bool) -> bytes:
    """One JSON array, with line breaks or without, as the upstreams differ."""
    separators = (",", ": ") if indent else (", ", ": ")
    return json.dumps(records, indent=indent, ensure_ascii=ascii_only, separators=separators).encode()


def zip_archive(members: Sequence[Member], *, deflate: bool = False) -> bytes:
    """A zip with an entry for each folder and members in the order given."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for folder in sorted({name.rpartition("/")[0] + "/" for name, _ in members if "/" in name}):
            entry = zipfile.ZipInfo(folder, (2017, 9, 1, 12, 0, 0))
            entry.external_attr = 0o40755 << 16 | 0x10
            archive.writestr(entry, b"")
        for name, data in members:
            entry = zipfile.ZipInfo(name, (2017, 9, 1, 12, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, data())
    return buffer.getvalue()


def tar_archive(members: Sequence[Member]) -> bytes:
    """A plain tar with an entry for each folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for folder in sorted({name.rpartition("/")[0] for name, _ in members}):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, 1_698_000_000
            archive.addfile(entry)
        for name, data in members:
            body = data()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(body), 1_698_000_000
            archive.addfile(entry, io.BytesIO(body))
    return buffer.getvalue()


def _shares(rows: int) -> list[str]:
    """One source per row, in upstream's proportions, each at least twice."""
    weights = {"text": TEXT_ROWS} | {name: source.rows for name, source in SOURCES.items()}
    whole = sum(weights.values())
    counts = {name: max(2, rows * weight // whole) for name, weight in weights.items()}
    counts["coco"] += rows - sum(counts.values())
    # With very few rows the least counts of the others leave COCO short; take back from the largest.
    while counts["coco"] < 2:
        most = max((name for name in counts if name != "coco"), key=lambda name: counts[name])
        counts[most] -= 1
        counts["coco"] += 1
    return [name for name, count in counts.items() for _ in range(count)]


def _deal_faults(row_sources: Sequence[str], chance: random.Random) -> dict[int, str]:
    """Which row gets which fault. Two rows of every source stay sound, so a small one has fewer faults."""
    free = {name: [row for row, source in enumerate(row_sources) if source == name] for name in SOURCES}
    dealt: dict[int, str] = {}
    for fault, (in_240, sources, _) in FAULTS.items():
        for turn in range(max(1, round(len(row_sources) * in_240 / 240))):
            choice = sources[turn % len(sources) :] + sources[: turn % len(sources)]
            source = next((name for name in choice if len(free[name]) > 2), None)
            if source is not None:
                dealt[free[source].pop(chance.randrange(len(free[source])))] = fault
    return dealt


def _member(name: str, of: Drawing, fault: str) -> Member:
    if fault.startswith("png_"):
        name = name.removesuffix(".jpg") + ".png"
    return name, functools.partial(BROKEN.get(fault, Drawing.jpeg), of)


def _realistic(member: Member, source: str, nth: int, real: Real | None) -> Member:
    """Now and then a photograph or a clip-art picture in place of a drawing."""
    if real and source == "coco" and nth % 8 == 1:
        return member[0], functools.partial(real.photo, nth // 8)
    if real and source == "ocr_vqa" and nth % 3 == 1:
        return member[0].removesuffix(".jpg") + ".png", functools.partial(real.clipart, nth // 3)
    return member


def _add_unasked(dataset: Instruct, chance: random.Random) -> None:
    """Members that no row refers to: the real archives hold many more pictures than the mix uses."""
    for source, members in dataset.members.items():
        for extra in range(1 + len(members) // 10):
            name = SOURCES[source].inside + _name(source, chance, 10_000_000 + extra)
            members.append(_member(name, drawing(chance), ""))
        chance.shuffle(members)


def _name(source: str, chance: random.Random, row: int) -> str:
    """A file name in the source's style, unlike that of any other row."""
    if source == "coco":
        return f"{row * 7 + chance.randrange(7):012d}.jpg"
    if source == "ocr_vqa":
        return f"{chance.randrange(10):01d}{row:08d}{chance.choice('0123456789X')}.jpg"
    if source == "textvqa":
        return f"{chance.getrandbits(32):08x}{row:08x}.jpg"
    return f"{2_420_000 + row}.jpg" if source != "gqa" else f"{'n' * (row % 5 == 0)}{2_500_000 + row}.jpg"


def _id(source: str, name: str) -> str | int:
    stem = name.partition(".")[0]
    return int(stem) if source in ("vg", "vg2") else stem


def _record(id: str | int, image: str, turns: questions.Turns, chance: random.Random) -> dict[str, Any]:
    conversation = _conversation(turns)
    first = conversation[0]["value"]
    conversation[0]["value"] = f"<image>\n{first}" if chance.random() < 0.7 else f"{first}\n<image>"
    return {"id": id, "image": image, "conversations": conversation}


def _chat(chance: random.Random, row: int) -> dict[str, Any]:
    letters = "".join(chance.choice("ABCDEFGHJKMNPQRSTabcdefghjkmnpqrst23456789") for _ in range(7))
    return {
        "id": f"{letters}_{row % 3}",
        "model": "",
        "conversations": _conversation(questions.CHATS[row % len(questions.CHATS)]),
    }


def _conversation(turns: questions.Turns) -> list[dict[str, str]]:
    return [{"from": role, "value": value} for human, gpt in turns for role, value in (("human", human), ("gpt", gpt))]
