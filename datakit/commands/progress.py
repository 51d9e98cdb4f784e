"""Progress as a terminal shows it: bars when standard error is one, plain lines otherwise."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from types import TracebackType
from typing import TYPE_CHECKING, Any

from datakit.engine.work import Progress
from datakit.process.terminal import is_terminal, one_line, say, size_text, time_text

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

QUIET_S = 30.0  # a plain line at least this often while something moves


class ProgressBars(Progress):
    """Shows on standard error what a run reports of itself."""

    def __init__(self, title: str, *, noun: str = "rows", terminal: bool | None = None) -> None:
        self.title, self.noun = title, noun
        self._terminal = is_terminal(err=True) if terminal is None else terminal
        self._lock = threading.Lock()
        self._start = self._last = time.monotonic()
        self._rows: Counter[str] = Counter()
        self._totals: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._faults: dict[str, Counter[str]] = defaultdict(Counter)
        self._n_shards = self._n_done = 0
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressBars:
        if self._terminal:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[detail]}", markup=False),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    # May be called from any thread.

    def shards(self, n: int) -> None:
        with self._lock:
            self._n_shards += n
            self._show_change("")

    def shards_done(self, n: int) -> None:
        with self._lock:
            self._n_done += n
            self._show_change("", say_now=n > 0)

    def rows_to_come(self, step: str, n: int) -> None:
        with self._lock:
            self._totals[step] += n
            self._show_change(step)

    def rows(self, step: str, n: int) -> None:
        with self._lock:
            self._rows[step] += n
            self._show_change(step)

    def bytes(self, step: str, n: int) -> None:
        with self._lock:
            self._bytes[step] += n
            self._show_change(step)

    def faults(self, step: str, reason: str, n: int) -> None:
        with self._lock:
            self._faults[step][reason] += n
            self._show_change(step)

    def download(self, address: str, n_bytes: int, of_bytes: int | None) -> None:
        with self._lock:
            self._download(address, n_bytes, of_bytes)

    def _show_change(self, step: str, *, say_now: bool = False) -> None:
        """Shows numbers of a step, or of the shards, once they have changed."""
        if self._bars is not None:
            self._draw(step)
        elif say_now or time.monotonic() - self._last > QUIET_S:
            self._say(f"{self._n_done} of {self._n_shards} shards; {self._numbers()}")

    def _numbers(self) -> str:
        spent = time.monotonic() - self._start
        pieces = [self._step(step, spent) for step in self._rows]
        if 0 < self._n_done < self._n_shards:
            pieces.append(f"about {time_text(spent / self._n_done * (self._n_shards - self._n_done))} left")
        return "; ".join(pieces) or "nothing to do"

    def _step(self, step: str, spent: float) -> str:
        text = f"{step} {self._rows[step]:,} {self.noun} ({self._rows[step] / max(spent, 0.001):,.0f}/s)"
        if self._bytes[step]:
            text += f", {size_text(self._bytes[step])}"
        failed = sum(self._faults[step].values())
        return text + (f", {failed:,} failed" if failed else "")

    def _say(self, text: str) -> None:
        self._last = time.monotonic()
        say(f"{self.title}: {text}", err=True)

    def _download(self, address: str, done: int, total: int | None) -> None:
        name = "/".join(address.rsplit("/", 2)[-2:])  # several archives are called images.zip
        text = size_text(done) + (f" of {size_text(total)}" if total else "")
        if self._bars is not None:
            self._bar(f"download {name}", total, done, text)
            self._bars.update(self._tasks[one_line(f"download {name}")], visible=done != total)
        elif time.monotonic() - self._last > QUIET_S:
            self._say(f"downloading {name}: {text}")

    def _draw(self, step: str) -> None:
        if step:
            spent = time.monotonic() - self._start
            total = self._totals[step] if self._totals[step] >= self._rows[step] else None
            self._bar(f"{self.title} {step}", total, self._rows[step], self._step(step, spent).partition(" ")[2])
        else:
            counts = f"{self._n_done:,} of {self._n_shards:,}"
            self._bar(f"{self.title} shards", self._n_shards, self._n_done, counts)

    def _bar(self, name: str, total: int | None, completed: int, detail: str) -> None:
        bars: Any = self._bars
        name, detail = one_line(name), one_line(detail)
        if name not in self._tasks:
            self._tasks[name] = bars.add_task(name, total=total, detail=detail)
        bars.update(self._tasks[name], total=total, completed=completed, detail=detail)
