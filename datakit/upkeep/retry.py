"""Retry: tries the failed URLs of finished shards again, and patches the shards with what came this time.

A part that is patched keeps its tar as it is. What came goes into a new tar beside it (`00042.r1.tar`), a new table
(`00042.r1.parquet`) says where each picture is, and then the commit names both: until that moment the old table
stands. So the keys of all others, and their bytes, don't change, and `build-mix` sees that it has to pack again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

import msgspec

from datakit.engine.build import Build
from datakit.engine.done import Done
from datakit.engine.making import check_tables, committed_rows, maker
from datakit.engine.partfiles import part_files
from datakit.engine.pool import Call, run_calls
from datakit.engine.stage import Engine
from datakit.engine.work import Progress, Work
from datakit.errors import Incomplete, UsageError, nearest
from datakit.records.tables import LocatedPicture, Rows, with_pictures
from datakit.stages.fetch import Fetch
from datakit.storage import claims
from datakit.storage.ledger import Commit, Ledger, Part
from datakit.storage.shards import ranges, shard_name
from datakit.web.outcomes import KNOWN, may_pass


@dataclass(frozen=True)
class Where:
    """Which failed URLs are tried again: those of some outcomes, of some hosts; `*` stands for any characters."""

    outcomes: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()

    def matches(self, picture: LocatedPicture) -> bool:
        outcome = picture["outcome"]
        if outcome == "ok":
            return False
        if not (any(fnmatchcase(outcome, p) for p in self.outcomes) if self.outcomes else may_pass(outcome)):
            return False
        return not self.hosts or any(fnmatchcase(_host_of(picture["ref"]), p) for p in self.hosts)


def parse_where(conditions: tuple[str, ...]) -> Where:
    """`outcome=timeout_total`, `outcome=timeout_*,dns`, `host=*.example.org`. Raises UsageError."""
    found: dict[str, tuple[str, ...]] = {}
    for condition in conditions:
        key, equals, value = condition.partition("=")
        values = tuple(filter(None, (v.strip() for v in value.split(","))))
        if key.strip() not in ("outcome", "host") or not equals or not values:
            raise UsageError(
                f"{condition!r} is no condition: write outcome=NAME or host=NAME, several with commas, * for any text"
            )
        if key.strip() == "outcome":
            for value in values:
                _check_outcome(value)
        found[key.strip()] = found.get(key.strip(), ()) + values
    return Where(found.get("outcome", ()), found.get("host", ()))


def _check_outcome(pattern: str) -> None:
    """Raises UsageError for an outcome that no failed URL can have."""
    if pattern == "ok":
        raise UsageError("outcome=ok names the pictures that are there: name a failure")
    if not (re.match(r"http_[\d*?]", pattern) or any(fnmatchcase(name, pattern) for name in KNOWN)):
        raise UsageError(f"no URL has the outcome {pattern!r}. {nearest(pattern, KNOWN)}")


@dataclass
class Report:
    """The outcomes of the URLs of a retry, before and after it."""

    shards: list[int] = field(default_factory=list)
    behind: list[int] = field(default_factory=list)  # tried more often than others: a retry that was cut goes on
    before: Counter[str] = field(default_factory=Counter)  # outcomes of the URLs that were tried
    after: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)  # outcomes of failed URLs that weren't


def retry(
    build: Build,
    *,
    where: Where,
    engine: Engine | None = None,
    shards: list[int] | None = None,
    slice_of: tuple[int, int] = (0, 1),
    jobs: int = 1,
    progress: Progress | None = None,
) -> Report:
    """Tries the failed URLs of fetched shards again, and patches one shard after the other.

    When it was killed and is run again, the parts that it had done are left out: it takes those that were tried less
    often than others. `engine` makes the requests; without it, the engine that fetched. Raises Incomplete when nothing
    is fetched, UsageError for a dataset without URLs.
    """
    progress = progress or Progress()
    step, name = build.step_of("fetch"), build.manifest.name
    if not isinstance(step.stage, Fetch):
        raise UsageError(f"the pictures of {name!r} don't come by URL: there is nothing to try again")
    done = Done(build, snapshot=True)
    commits = done.ledger(step).commits()
    if unknown := sorted(set(shards or []) - set(commits)):
        raise UsageError(f"shards {ranges(unknown)} of {name!r} are not fetched yet")
    chosen = [k for k in sorted(commits) if (shards is None or k in shards) and k % slice_of[1] == slice_of[0]]
    unready = [k for k in chosen if not done.has(step, k, files=True)]
    if unready:
        raise Incomplete(
            f"shards {ranges(unready)} of {name!r} are not whole, were cleaned, or what they were made "
            f"from has changed: run `datakit fetch {name}` first"
        )
    if not chosen:
        raise Incomplete(f"nothing of {name!r} is fetched yet: run `datakit fetch {name}`")
    least = min(part.tries for k in chosen for part in commits[k].parts)
    todo = [k for k in chosen if any(part.tries == least for part in commits[k].parts)]
    report = Report(shards=todo, behind=[k for k in chosen if k not in todo])
    ledger = build.ledger(step)
    ledger.store.sweep(ledger.folder)
    progress.shards(len(chosen))
    progress.shards_done(len(chosen) - len(todo))

    def add(of_shard: Report) -> tuple[Call, ...]:
        progress.shards_done(1)
        report.before += of_shard.before
        report.after += of_shard.after
        report.left += of_shard.left
        return ()

    calls = [Call(retry_shard, (build, k, where, least, engine)) for k in todo]
    if jobs <= 1 or len(calls) <= 1:
        for function, arguments in calls:
            add(function(*arguments, progress))
    else:
        run_calls(calls, min(jobs, len(calls)), progress=progress, then=add)
    claims.sweep(build.ledger(step, snapshot=True), chosen)
    return report


def retry_shard(
    build: Build, shard: int, where: Where, tries: int, engine: Engine | None, progress: Progress
) -> Report:
    """Tries again the failed URLs of those parts of a shard that were tried `tries` times, and patches each part."""
    step = build.step_of("fetch")
    stage, ledger, work = step.stage, build.ledger(step), build.work(step, progress)
    assert isinstance(stage, Fetch)  # retry has seen to it
    stage = replace(stage, engine=engine or stage.engine)
    report = Report()
    with claims.shard_lock(ledger, shard_name(shard)):
        whole = ledger.read(shard_name(shard))
        if whole is None or not Done(build).has(step, shard, files=True):
            raise Incomplete(
                f"shard {shard} of {build.manifest.name!r} was removed meanwhile: "
                f"run `datakit fetch {build.manifest.name}`"
            )
        todo = [part for part in whole.parts if part.tries == tries]
        check_tables(ledger, todo)
        rows = {part.name: committed_rows(build, step, shard, [part]) for part in todo}
        urls = (ref for part in todo for ref in _failed_urls(rows[part.name], where))
        fetched = stage.crawl_urls(urls, work)
        try:
            for part in todo:
                made, change, stamps = _patch_part(stage, part, rows[part.name], where, fetched, work, report)
                now = _failure_counts(committed_rows(build, step, shard, [made]))
                whole = _commit_part(ledger, shard_name(shard), whole, made, change, now)
                if stamps != claims.stamps(ledger, stamps):
                    raise Incomplete(
                        f"another job patched {ledger.folder}/{made.name} at the same time: run `datakit verify "
                        f"{build.manifest.name} --repair` when it has ended, then `datakit fetch {build.manifest.name}`"
                    )
        finally:
            fetched.close()
    return report


def _failed_urls(rows: Rows, where: Where) -> Iterator[str]:
    for batch in rows.batches(["images"]):
        for pictures in batch["images"].to_pylist():
            yield from (picture["ref"] for picture in pictures if where.matches(picture))


def _patch_part(
    stage: Fetch, part: Part, rows: Rows, where: Where, fetched: Any, work: Work, report: Report
) -> tuple[Part, Counter[str], claims.Stamps]:
    """The part as it is now, how its outcomes have changed, and the stamps of the files that were written."""
    name = f"{part.name}.r{part.tries + 1}"
    n_wanted = sum(1 for _ in _failed_urls(rows, where))
    work.progress.rows_to_come(work.step, n_wanted)
    if not n_wanted:
        report.left += _failure_counts(rows)
        return msgspec.structs.replace(part, tries=part.tries + 1), Counter(), {}
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    work.store.remove(work.path(f"{name}.tar"))  # of a try that was killed before its commit
    schema = rows.schema()
    with part_files(work, name, schema) as files:
        for batch in rows.batches(size=256):
            n_tried = 0
            listed = batch["images"].to_pylist()
            for key, places in zip(batch["key"].to_pylist(), listed, strict=True):
                for at, old in enumerate(places):
                    if not where.matches(old):
                        report.left[old["outcome"]] += old["outcome"] != "ok"
                        continue
                    places[at] = stage.write_picture(next(fetched), key, at, len(places), files.out)
                    before[old["outcome"]] += 1
                    after[places[at]["outcome"]] += 1
                    n_tried += 1
            work.progress.rows(work.step, n_tried)
            files.write(with_pictures(batch, listed, schema))
    report.before += before
    report.after += after
    for outcome, n in after.items():
        if outcome != "ok":
            work.progress.faults(work.step, outcome, n)
    patches = [*part.patches, *([files.tar] if files.tar is not None else [])]
    made = msgspec.structs.replace(part, tries=part.tries + 1, table=files.table, patches=patches)
    change = Counter(after)
    change.subtract(before)
    return made, change, files.stamps


def _failure_counts(rows: Rows) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for batch in rows.batches(["images"]):
        outcomes.update(batch["images"].flatten().field("outcome").to_pylist())
    del outcomes["ok"]
    return outcomes


def _commit_part(
    ledger: Ledger, shard: str, whole: Commit, made: Part, change: Counter[str], now: Counter[str]
) -> Commit:
    """Declares a part patched, in its shard's commit and in its own when it has one.

    The part's own is counted anew (`now`): it may be that of a try that was killed before the shard's was written.
    """
    faults = Counter(whole.faults)
    faults.update({outcome: n for outcome, n in change.items() if outcome != "ok"})
    parts = [made if part.name == made.name else part for part in whole.parts]
    names = {shard: _changed_commit(whole, parts, faults)}
    if made.name != shard and (own := ledger.read(made.name)) is not None:
        names = {made.name: _changed_commit(own, [made], now), **names}
    ledger.patch(whole, names)
    return names[shard]


def _changed_commit(commit: Commit, parts: list[Part], faults: Counter[str]) -> Commit:
    counts = {outcome: n for outcome, n in sorted(faults.items()) if n > 0}
    return msgspec.structs.replace(commit, parts=parts, faults=counts, made_by=maker())


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
