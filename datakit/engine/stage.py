"""Stage: what turns rows into rows, as a frozen dataclass with one generator; and Step, a stage in a recipe.

A stage's fields and `version`, and the parts of the manifest in its `identity`, are all that its output depends on.
Whatever else it needs (the store, the hosts it may connect to, progress) comes in `Work`. Raise `version` when the code
makes other bytes than before.

A stage answers for itself: which of a user's choices concern it (`as_chosen`), how many rows it lets through
(`expects`), what it costs (`costs`), and what keeps it from running (`check`). No other code asks for its class.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from datakit.catalogue.manifest import Manifest
from datakit.engine.work import Out, Work
from datakit.errors import Incomplete, ManifestError, SourceError, UsageError, shortlist
from datakit.process import usercode  # importing it lets a stage of a user's recipe be unpickled, see Stage
from datakit.records.tables import Rows, column
from datakit.storage.fingerprint import json_value

Role = Literal["list", "choose", "fetch", "pack", "score"]
Engine = Literal["datakit", "img2dataset"]
ENGINES: tuple[Engine, ...] = get_args(Engine)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a user has chosen for a dataset besides its recipe."""

    without: tuple[str, ...] = ()  # sources of pictures that are given up
    repairs: tuple[str, ...] = ()  # that `datakit check --repair` turned on
    engine: Engine | None = None  # what fetches by URL, if this command says so


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a stage is expected to cost for the rows that it is given."""

    urls: int | None = 0  # to fetch; None where their number isn't known
    seconds: float = 0.0
    written_bytes: float = 0.0
    passed_bytes: float | None = None  # pictures for the next step; None: the input's, by the share of rows that pass


Reasons: TypeAlias = Sequence[str | None] | pa.Array  # for each row of a batch why it is dropped, None where it is kept


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The parent of stages. One without an upstream (a listing) gets empty Rows and answers `shards`.

    One that a user's recipe file defines works in every process: see datakit/process/usercode.py.
    """

    role: ClassVar[Role] = "choose"
    version: ClassVar[int] = 1
    rows_per_part: ClassVar[int | None] = None  # input rows for one table (and tar); None: the whole shard's
    keeps_parts: ClassVar[bool] = False  # whether each part of the step before makes one of its own
    tars: ClassVar[bool] = False  # whether there is always a tar beside the table, be it empty
    reads_annotations: ClassVar[bool] = False  # whether it goes through upstream's rows once more
    streams: ClassVar[bool] = False  # whether it reads upstream's files without keeping them
    finds: ClassVar[tuple[str, ...]] = ()  # the kinds of [images] whose pictures it finds: path, folder, inline
    by_url: ClassVar[bool] = False  # whether it fetches pictures by URL, so that failed URLs can be retried

    def identity(self, manifest: Manifest) -> dict[str, Any]:
        """What recipe.json says: class, version, fields, and the parts of the manifest that matter."""
        parts = {} if self.rows_per_part is None else {"rows_per_part": self.rows_per_part}
        return {"stage": type(self).__name__, "version": self.version, **parts, **json_value(self)}

    def as_chosen(self, chosen: Chosen, recorded: dict[str, Any]) -> Stage:
        """This stage with what was chosen; `recorded` is its own part of recipe.json, {} before there is any."""
        return self

    def expects(self, rows: int | None) -> int | None:
        """The most rows that come out of `rows` input rows; None where that isn't known."""
        return rows

    def costs(self, rows: int | None, size_bytes: float, jobs: int, manifest: Manifest) -> Cost:
        """What `rows` rows with `size_bytes` of pictures cost in `jobs` processes on this machine."""
        return Cost()

    def check(self, work: Work) -> None:
        """Raises what would stop `prepare` until the user does something about it; no network.

        DownloadError for an archive that isn't here, UsageError for a choice that means nothing.
        """

    def prepare(self, work: Work) -> None:
        """Runs once before the shards that aren't done are made: downloads, plans."""

    def shards(self, work: Work) -> list[int]:
        """The numbers of the dataset's shards; only asked of a stage of role `list`."""
        raise Incomplete(f"{type(self).__name__} can't be the first step of a recipe: it lists nothing")

    def inputs(self, work: Work, shard: int) -> dict[str, str] | None:
        """The sha256 of each upstream file that a shard is made from; None when not known without the network."""
        return {}

    def needs(self, work: Work) -> list[Path]:
        """Files outside the step's folder that its rows point into, such as archives."""
        return []

    def schema(self, rows: Rows, manifest: Manifest) -> pa.Schema:
        """The schema of what `rows` yields."""
        return rows.schema()

    def crawl_urls(self, urls: Iterable[str], work: Work) -> Generator[Any]:
        """What became of each URL, in their order, for a stage that is `by_url`: see Fetch.crawl_urls."""
        raise UsageError(f"{type(self).__name__} asks for no pictures by URL")

    def shared_source(self, parts: list[Rows], work: Work) -> AbstractContextManager[Any]:
        """What the parts of a shard share while they are made one after the other; `rows` gets it as `out.source`."""
        return nullcontext()

    def rows(self, rows: Rows, work: Work, out: Out) -> Iterator[pa.RecordBatch]:
        """The rows that this stage makes of its input rows."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Filter(Stage):
    """A stage that keeps rows as they are or drops them: all that it writes is `reasons`."""

    def reasons(self, batch: pa.RecordBatch) -> Reasons:
        """For each row of a batch why it is dropped, or None to keep it."""
        raise NotImplementedError

    def judge(self, rows: Rows) -> Callable[[pa.RecordBatch], Reasons]:
        """The function that gives each batch's reasons, in order; for filters that look at all the rows first."""
        return self.reasons

    def rows(self, rows: Rows, work: Work, out: Out) -> Iterator[pa.RecordBatch]:
        judge = self.judge(rows)
        for batch in rows.batches():
            reasons = _as_reasons(self, judge(batch))
            if len(reasons) != batch.num_rows:
                raise ManifestError(
                    f"filter {_name_of(self)} gave {len(reasons)} reasons for {batch.num_rows} rows: give one for "
                    "each row, None where it is kept"
                )
            for count in pc.value_counts(reasons.drop_null()).to_pylist():
                if not _REASON.fullmatch(count["values"]):
                    raise ManifestError(
                        f"filter {_name_of(self)}: a reason may hold letters, digits, _, - and dots, and isn't "
                        f"{count['values']!r:.80}"
                    )
                out.drop(count["values"], count["counts"])
            kept = batch.filter(pc.is_null(reasons))
            if kept.num_rows:
                yield kept


_REASON = re.compile(r"[\w.-]{1,80}")  # it is a word of status, of reports and of JSON


def _as_reasons(stage: Filter, given: object) -> pa.Array:
    """What a filter gave, as texts and nulls. Raises ManifestError for anything else, such as a mask."""
    if isinstance(given, pa.ChunkedArray):
        given = given.combine_chunks()
    if isinstance(given, pa.Array):
        kind = given.type.value_type if pa.types.is_dictionary(given.type) else given.type
        if pa.types.is_null(kind):
            return given.cast(pa.string())
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return given
    elif isinstance(given, Iterable) and not isinstance(given, str):  # also an array of NumPy, as np.where gives it
        given = list(given)
        if all(reason is None or isinstance(reason, str) for reason in given):
            return column(given, pa.string())
    shown = f"an array of {given.type}" if isinstance(given, pa.Array) else f"{given!r:.80}"
    raise ManifestError(
        f"filter {_name_of(stage)}: `reasons` should give a text for each row that is dropped and None for one that is "
        f"kept, and not {shown}"
    )


def _name_of(stage: Stage) -> str:
    """The name of a stage's class, and the file of one that is a user's."""
    kind = type(stage)
    file = f" of {sys.modules[kind.__module__].__file__}" if usercode.is_ours(kind.__module__) else ""
    return kind.__name__ + file


KEPT = -1


def reasons_in_order(numbers: npt.NDArray[np.int8], names: Sequence[str]) -> Callable[[pa.RecordBatch], Reasons]:
    """A `judge` from a number for each row, in the order of the rows: the index of its reason in `names`, or KEPT."""
    at = 0

    def judge(batch: pa.RecordBatch) -> pa.Array:
        nonlocal at
        here = numbers[at : at + batch.num_rows]
        at += batch.num_rows
        return pa.DictionaryArray.from_arrays(pa.array(here, mask=here == KEPT), column(list(names), pa.string()))

    return judge


def checked_batches(stage: Stage, rows: Rows, work: Work, out: Out) -> Generator[pa.RecordBatch, None, None]:
    """The batches that a stage makes of its rows. Raises ManifestError for anything but RecordBatches of its schema."""
    schema, made = stage.schema(rows, work.manifest), stage.rows(rows, work, out)
    whose = _name_of(stage)
    if not isinstance(made, Generator):
        raise ManifestError(f"stage {whose}: `rows` should be a generator, one that yields, and not return {made!r}")
    try:
        for batch in made:
            if not isinstance(batch, pa.RecordBatch):
                raise ManifestError(f"stage {whose}: `rows` should yield pyarrow.RecordBatch, not {batch!r:.100}")
            if not batch.schema.equals(schema):
                names = f"{shortlist(batch.schema.names, 20)}, where its schema has {shortlist(schema.names, 20)}"
                raise ManifestError(f"stage {whose}: `rows` yields {names}: say in `schema` what comes out")
            yield batch
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{work.folder}/{work.step} shard {rows.shard}: a text of its rows isn't UTF-8: {error}. If an older "
            f"datakit listed it, remove {work.folder}/list/{rows.shard:05d}.commit.json and run the same command again"
        ) from error
    finally:
        made.close()


@dataclass(frozen=True, kw_only=True)
class Step:
    """A stage with the name of its folder, and how much may go wrong in it."""

    name: str
    stage: Stage
    tolerates: float = 0.05
    """Share of a part's rows that may be faults (a few always may, see making.FEW); more stop the shard."""

    @property
    def role(self) -> Role:
        """The role of its stage."""
        return self.stage.role
