"""A reader of a page of docs who does what it says: types its commands, writes its files, runs its Python.

In the fenced blocks of a page, in their order:

    bash      lines of `datakit`, `python FILE` and `export NAME=VALUE`; a comment `# exit code 1` says how one ends
    python    is run, and later blocks know its names; one that begins with `# my/file.py` is written there
    text      every line of it stands in what the commands before it said; `…` is anything, and so are spaces
"""

import contextlib
import io
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

from users import typed


class Reader:
    """Reads pages in the current folder, which they may write to. `env` is what the commands see."""

    def __init__(self, env: dict[str, str], left_out: tuple[str, ...] = ()) -> None:
        self.env = dict(env)
        self.left_out = left_out  # how commands begin that the test itself sees to
        self.names: dict[str, Any] = {}
        self.commands: list[str] = []
        self._said = ""

    def reads(self, page: Path) -> None:
        """Does what a page says. Fails at the first command that ends otherwise than it says, or says other things."""
        for kind, body in re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            if kind == "bash":
                self._said = "".join(map(self._types, body.splitlines()))
            elif kind == "python":
                self._python(body)
            elif kind == "text":
                self._compares(body)

    def _types(self, line: str) -> str:
        command, _, comment = (part.strip() for part in line.partition("#"))
        if not command:
            return ""
        self.commands.append(command)
        words = shlex.split(command)
        if words[0] == "export":
            self.env.update([words[1].split("=", 1)])
            return ""
        if command.startswith(self.left_out):
            return ""
        if words[0] == "python":
            return self.runs(words[1:])
        assert words[0] == "datakit", f"nobody has said how to run {command!r}"
        expected = re.search(r"exit code (\d+)", comment)
        got = typed(command, self.env)
        assert got.code == (int(expected[1]) if expected else 0), (command, got)
        return got.out + got.err

    def runs(self, words: list[str]) -> str:
        """What a Python file prints, run in this process: torch needs seconds to be imported."""
        said, before = io.StringIO(), sys.argv
        sys.argv = words
        try:
            with contextlib.redirect_stdout(said):
                runpy.run_path(words[0], run_name="__main__")
        finally:
            sys.argv = before
        return said.getvalue()

    def _python(self, body: str) -> None:
        first, _, rest = body.partition("\n")
        if re.fullmatch(r"# [\w/]+\.py", first):
            path = Path(first.removeprefix("# "))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(rest)
            return
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(body, "a block of the page", "exec"), self.names)
        self._said = said.getvalue()

    def _compares(self, body: str) -> None:
        said = " ".join(self._said.split())
        for line in filter(str.strip, body.splitlines()):
            pattern = re.escape(" ".join(line.split())).replace("…", ".*?")
            assert re.search(pattern, said), f"{line!r} isn't in what was said:\n{self._said}"
