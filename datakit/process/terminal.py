"""Terminal: the one door through which anything is printed, and what is foreign made harmless on its way.

Names, ids, licences and error messages come from other people's files and servers. A control character in one could
move the cursor, write into the clipboard or turn the reading order round; here it is shown as `\\x1b` instead. Standard
error is for people and may be closed or full: that stops nothing. What standard output can't take is told at the end,
and a reader who has left, such as `head`, is no error.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import threading
import traceback
from contextlib import suppress
from typing import Any, TextIO

# C0 without tab and line break, DEL, C1; marks that reorder text or break lines; halves of characters.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_STYLES = {"error:": "\x1b[31m", "$": "\x1b[1m"}  # of labels, on a terminal
_PLAIN = "\x1b[0m"


def visible(text: str) -> str:
    """Text with what a terminal would obey written as `\\x1b` or `\\u202e`; line breaks and tabs stay."""
    return _UNSAFE.sub(lambda found: _escaped(ord(found[0])), text)


def one_line(text: object) -> str:
    """The same in one line."""
    return visible(str(text)).replace("\n", "\\n").replace("\t", "\\t")


def _escaped(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON in which no character is one that a terminal would obey."""
    import json  # `datakit --help` prints none

    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)  # such can only stand in its strings


def say(text: object = "", *, err: bool = False, label: str = "") -> None:
    """Prints a line to standard output, or with `err` to standard error; a label such as `error:` is coloured."""
    stream = sys.stderr if err else sys.stdout
    if stream is None:
        return
    if label:
        label = f"{_STYLES[label]}{label}{_PLAIN} " if is_terminal(err=err) else f"{label} "
    try:
        _write(stream, f"{label}{visible(str(text))}\n")
    except OSError:
        if not err:
            raise


def say_json(value: Any) -> None:
    """Prints a value as JSON."""
    say(json_text(value, indent=2))


def is_terminal(*, err: bool = False) -> bool:
    """Whether a person looks at standard output, or with `err` at standard error."""
    stream = sys.stderr if err else sys.stdout
    return stream is not None and stream.isatty()


def _write(stream: TextIO, text: str) -> None:
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


class _Handler(logging.Handler):
    """Prints what is logged, in this process or a library, to whatever standard error is by then."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(self.format(record), err=True)
        except Exception:  # noqa: BLE001 - logging's own way with a wrong format
            self.handleError(record)


def listen(level: int) -> None:
    """Shows what is logged from a level on."""
    root = logging.getLogger()
    root.setLevel(level)
    if not any(isinstance(handler, _Handler) for handler in root.handlers):
        root.addHandler(_Handler())


def level() -> int:
    """From which level on it is shown."""
    return logging.getLogger().getEffectiveLevel()


# Of a process of our own


class _Door(io.FileIO):
    """A standard stream that never stops the work: what couldn't be written is remembered, not raised."""

    failed: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failed = self.failed or error
            return memoryview(data).nbytes


def name_any_file() -> None:
    """Starts anew in Python's UTF-8 mode where the locale has no names for most files; prints as the locale wants."""
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ.setdefault("PYTHONIOENCODING", (sys.stdout and sys.stdout.encoding) or "ascii")
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def open_doors() -> None:
    """At the start of a process: standard streams that are there, never stop the work and print any text.

    One that was closed is the null device, for else the next file that is opened would get its number. Tracebacks and
    warnings go through the same door as everything.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest number that is free
    sys.stdout, sys.stderr = _door(1, sys.stdout), _door(2, sys.stderr)
    sys.excepthook = lambda *error: say("".join(traceback.format_exception(*error)).rstrip(), err=True)
    threading.excepthook = lambda given: say(
        "".join(traceback.format_exception(given.exc_type, given.exc_value, given.exc_traceback)).rstrip(), err=True
    )
    logging.captureWarnings(True)


def _door(number: int, before: TextIO | None) -> TextIO:
    encoding = (before.encoding if before else None) or "utf-8"
    buffered = io.BufferedWriter(_Door(number, "w", closefd=False))
    return io.TextIOWrapper(buffered, encoding, "backslashreplace", line_buffering=before is not None)


def unsaid() -> str:
    """Why standard output couldn't take all that was said to it; nothing when it did, or its reader had left."""
    with suppress(ValueError, AttributeError):
        sys.stdout.flush()
    failed = getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "failed", None)
    return "" if failed is None or isinstance(failed, BrokenPipeError) else str(failed.strerror)


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
