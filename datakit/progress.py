"""Progress of a run: bars when standard error is a terminal, plain lines otherwise."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from types import TracebackType
from typing import TYPE_CHECKING, Any

from datakit.terminal import is_terminal, one_line, say

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

QUIET_S = 30.0  # a plain line at least this often while something moves


def size_text(n: float) -> str:
    """Bytes as people read them: 532 B, 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def time_text(s: float) -> str:
    """Seconds as 42 s, 3:05 or 2:10:00."""
    whole = int(s)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class Progress:
    """Listens to what a run tells (see stage.Tell) and shows it on standard error."""

    def __init__(self, title: str, *, noun: str = "rows", terminal: bool | None = None) -> None:
        self.title, self.noun = title, noun
        self._terminal = is_terminal(err=True) if terminal is None else terminal
        self._lock = threading.Lock()
        self._start = self._last = time.monotonic()
        self.rows: Counter[str] = Counter()
        self.totals: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.faults: dict[str, Counter[str]] = defaultdict(Counter)
        self.sizes: dict[str, int] = {}
        self.shards = self.done = 0
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Progress:
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

    def tell(self, step: str, what: str, amount: int) -> None:
        """Takes one message of a run; may be called from any thread."""
        with self._lock:
            if what == "shards":
                self.shards += amount
            elif what == "done":
                self.done += amount
            elif what == "rows":
                self.rows[step] += amount
            elif what == "total":
                self.totals[step] += amount
            elif what == "bytes":
                self.bytes[step] += amount
            elif what.startswith("fault "):
                self.faults[step][what.removeprefix("fault ")] += amount
            elif what.startswith("size "):
                self.sizes[what.removeprefix("size ")] = amount
            if what.startswith("download "):
                self._download(what.removeprefix("download "), amount)
            elif self._bars is not None and not what.startswith("size "):
                self._draw(step, what)
            elif (what == "done" and amount) or time.monotonic() - self._last > QUIET_S:
                self._say(f"{self.done} of {self.shards} shards; {self._numbers()}")

    def _numbers(self) -> str:
        spent = time.monotonic() - self._start
        pieces = [self._step(step, spent) for step in self.rows]
        if 0 < self.done < self.shards:
            pieces.append(f"about {time_text(spent / self.done * (self.shards - self.done))} left")
        return "; ".join(pieces) or "nothing to do"

    def _step(self, step: str, spent: float) -> str:
        text = f"{step} {self.rows[step]:,} {self.noun} ({self.rows[step] / max(spent, 0.001):,.0f}/s)"
        if self.bytes[step]:
            text += f", {size_text(self.bytes[step])}"
        failed = sum(self.faults[step].values())
        return text + (f", {failed:,} failed" if failed else "")

    def _say(self, text: str) -> None:
        self._last = time.monotonic()
        say(f"{self.title}: {text}", err=True)

    def _download(self, address: str, done: int) -> None:
        name = "/".join(address.rsplit("/", 2)[-2:])  # several archives are called images.zip
        total = self.sizes.get(address)
        text = size_text(done) + (f" of {size_text(total)}" if total else "")
        if self._bars is not None:
            self._bar(f"download {name}", total, done, text)
            self._bars.update(self._tasks[one_line(f"download {name}")], visible=done != total)
        elif time.monotonic() - self._last > QUIET_S:
            self._say(f"downloading {name}: {text}")

    def _draw(self, step: str, what: str) -> None:
        if step:
            spent = time.monotonic() - self._start
            total = self.totals[step] if self.totals[step] >= self.rows[step] else None
            self._bar(f"{self.title} {step}", total, self.rows[step], self._step(step, spent).partition(" ")[2])
        elif what in ("shards", "done"):
            self._bar(f"{self.title} shards", self.shards, self.done, f"{self.done:,} of {self.shards:,}")

    def _bar(self, name: str, total: int | None, completed: int, detail: str) -> None:
        bars: Any = self._bars
        name, detail = one_line(name), one_line(detail)
        if name not in self._tasks:
            self._tasks[name] = bars.add_task(name, total=total, detail=detail)
        bars.update(self._tasks[name], total=total, completed=completed, detail=detail)
