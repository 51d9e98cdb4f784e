"""Which tests open connections, start processes or load torch: told by the names that their code reaches.

`make quick` leaves those out, so nobody keeps a list. A test whose connection or process is started deep inside datakit
isn't found here: it carries its mark itself, and `Watch` says so when it doesn't.
"""

from __future__ import annotations

import inspect
import multiprocessing.util
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

TESTS = Path(__file__).parent
NAMES = {
    "network": {"socket", "socketserver", "Miniature", "unruly_server", "Server"},
    "processes": {"subprocess", "multiprocessing", "ProcessPoolExecutor", "run_calls", "fork", "forkpty", "popen"}
    | {"parquetrows", "batches"},  # other people's Parquet is read in a process of its own
    "torch": {"torch", "transformers", "deepspeed", "peft"},
}
LOADS_TORCH = re.compile(r"""^(import torch|from (torch|transformers)\b|pytest.importorskip\("torch")""", re.MULTILINE)
EVENTS = {
    "network": {"socket.bind", "socket.connect", "socket.getaddrinfo"},
    "processes": {"subprocess.Popen", "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.system"},
}


def kinds(item: pytest.Function) -> set[str]:
    """Those of `network`, `processes` and `torch` that a test is, by its own code and that of its fixtures."""
    fixtures = item._fixtureinfo.name2fixturedefs.values()
    functions = [item.function, *(definitions[-1].func for definitions in fixtures)]
    reached = set(_names(functions, {item.module.__name__, *_modules_of_ours()}))
    found = {kind for kind, names in NAMES.items() if names & reached}
    return found | {"torch"} if loads_torch(item.path) else found


@cache
def loads_torch(file: Path) -> bool:
    """Whether a file of tests needs torch as soon as it is collected."""
    return LOADS_TORCH.search(file.read_text("utf-8")) is not None


def _names(functions: Iterable[Any], ours: set[str]) -> Iterator[str]:
    """Every name in some functions, and in the functions and classes of our modules that they name, and so on."""
    left, seen = list(functions), set()
    while left:
        function = inspect.unwrap(left.pop())
        if inspect.isclass(function):
            for base in inspect.getmro(function):
                yield base.__name__
                if base.__module__ in ours:
                    left += [value for value in vars(base).values() if inspect.isfunction(value) and value not in seen]
            continue
        if not inspect.isfunction(function) or function in seen:
            continue
        seen.add(function)
        for name in _names_in(function.__code__):
            yield name
            value = function.__globals__.get(name)
            if getattr(value, "__module__", None) in ours:
                left.append(value)


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _modules_of_ours() -> set[str]:
    global _known
    if len(sys.modules) != _known[0]:
        files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
        _known = len(sys.modules), {name for name, file in files.items() if file and TESTS in Path(file).parents}
    return _known[1]


_known: tuple[int, set[str]] = (0, set())


class Watch:
    """Refuses connections and processes while a quick test runs, and remembers them for those who catch everything."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hear)
        start = multiprocessing.util.spawnv_passfds  # it starts processes below what the audit hook hears

        def refused(*arguments: Any) -> int:
            self._hear("subprocess.Popen", ())
            return start(*arguments)

        multiprocessing.util.spawnv_passfds = refused

    def _hear(self, event: str, about: tuple[Any, ...]) -> None:
        if not self.on:
            return
        for kind, events in EVENTS.items():
            if event in events:
                self.seen.append(kind)
                raise RuntimeError(f"{event} in a quick test: give it the mark `pytest.mark.{kind}`")
