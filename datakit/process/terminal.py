"""Terminal: everything that is printed goes through here, and control characters are escaped.

Names, ids, licences and error messages come from other people's files and servers. A control character in one could
move the cursor, write to the clipboard or reverse the reading order; here it is printed as `\\x1b` instead. Standard
error is for people and may be closed or full: that stops nothing. If standard output can't be written, that is
reported at the end, unless its reader, such as `head`, has closed it.
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


def escape_controls(text: str) -> str:
    """Text with control and reordering characters escaped, as `\\x1b` or `\\u202e`; line breaks and tabs stay."""
    return _UNSAFE.sub(lambda found: _escape(ord(found[0])), text)


def one_line(text: object) -> str:
    """The text of an object, escaped as by `escape_controls`, with line breaks and tabs escaped too."""
    return escape_controls(str(text)).replace("\n", "\\n").replace("\t", "\\t")


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON in which control and reordering characters are escaped."""
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
        _write(stream, f"{label}{escape_controls(str(text))}\n")
    except OSError:
        if not err:
            raise


def say_json(value: Any) -> None:
    """Prints a value as JSON."""
    say(json_text(value, indent=2))


def is_terminal(*, err: bool = False) -> bool:
    """Whether standard output, or with `err` standard error, is a terminal."""
    stream = sys.stderr if err else sys.stdout
    return stream is not None and stream.isatty()


def _write(stream: TextIO, text: str) -> None:
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


class _Handler(logging.Handler):
    """Prints log records to what is standard error at that time."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(self.format(record), err=True)
        except Exception:  # noqa: BLE001 - as logging's own handlers do for a wrong format
            self.handleError(record)


def show_logs(level: int) -> None:
    """Prints log records of this level and above to standard error."""
    root = logging.getLogger()
    root.setLevel(level)
    if not any(isinstance(handler, _Handler) for handler in root.handlers):
        root.addHandler(_Handler())


def log_level() -> int:
    """The level from which log records are shown."""
    return logging.getLogger().getEffectiveLevel()


# Of a process of our own


class _ForgivingStream(io.FileIO):
    """A standard stream whose writes never raise: the first error is kept in `failed`."""

    failed: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failed = self.failed or error
            return memoryview(data).nbytes


def ensure_utf8_mode() -> None:
    """Restarts Python in UTF-8 mode where the locale can't express most file names; printing follows the locale."""
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ.setdefault("PYTHONIOENCODING", (sys.stdout and sys.stdout.encoding) or "ascii")
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def open_standard_streams() -> None:
    """Replaces the standard streams by ones that exist, never raise and print any text; called when a process starts.

    A closed stream becomes the null device, since otherwise the next file opened would get its number. Tracebacks and
    warnings are printed through `say` too.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest number that is free
    sys.stdout, sys.stderr = _standard_stream(1, sys.stdout), _standard_stream(2, sys.stderr)
    sys.excepthook = lambda *error: say("".join(traceback.format_exception(*error)).rstrip(), err=True)
    threading.excepthook = lambda given: say(
        "".join(traceback.format_exception(given.exc_type, given.exc_value, given.exc_traceback)).rstrip(), err=True
    )
    logging.captureWarnings(True)


def _standard_stream(number: int, before: TextIO | None) -> TextIO:
    encoding = (before.encoding if before else None) or "utf-8"
    buffered = io.BufferedWriter(_ForgivingStream(number, "w", closefd=False))
    return io.TextIOWrapper(buffered, encoding, "backslashreplace", line_buffering=before is not None)


def output_failure() -> str:
    """Why standard output couldn't be written; "" when all was written, or when its reader had closed it."""
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
