"""Settings: where the root is and who may be connected to. Flags win over the environment, that over datakit.toml.

    DATAKIT_ROOT           root           folder, or s3://… and its like; default ./data
    DATAKIT_MIRRORS        mirrors        FROM=TO, replaces a URL prefix (comma-separated; a list in the file)
    DATAKIT_ALLOW_HOSTS    allow_hosts    HOST or HOST:PORT that may be private (the same)
    DATAKIT_JOBS           jobs           processes
    DATAKIT_TIMEOUT_S      timeout_s      seconds that one picture may take in all, default 30
    DATAKIT_IN_FLIGHT      in_flight      URLs that a process asks for at once, at the most; default 2048
    DATAKIT_PER_HOST       per_host       requests that a host has to bear from a process at once, default 8
    DATAKIT_PER_HOST_PER_S per_host_per_s and in a second, default 50
    DATAKIT_ROBOTS         robots         1 (true in the file): ask each host for its robots.txt, and obey
    DATAKIT_CATALOGUE      catalogue      folders with manifests/, pipelines/, readers/ of your own (like PATH)

`datakit.toml` is looked for in the current folder.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datakit.errors import ManifestError, UsageError, nearest
from datakit.web.hosts import Hosts, parse_allowed, parse_mirrors
from datakit.web.pacing import Limits

FILE = "datakit.toml"
TIMEOUT_S = 30  # for one picture, redirects included; VILA gives 10, img2dataset 10 to each read
FLAGS = {"timeout_s": "--timeout", "per_host_per_s": "--rate"}  # the others have the name of their key
KINDS: dict[str, type] = {
    "root": str,
    "mirrors": list,
    "allow_hosts": list,
    "jobs": int,
    "timeout_s": int,
    "in_flight": int,
    "per_host": int,
    "per_host_per_s": int,
    "robots": bool,
    "catalogue": list,
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a command runs with: the root of all data, and the terms on which it connects and works."""

    root: str
    hosts: Hosts
    jobs: int
    limits: Limits
    catalogue: tuple[str, ...] | None  # folders that datakit.toml names; None where it doesn't, or the environment does


def load(
    *,
    root: str | None = None,
    mirrors: tuple[str, ...] = (),
    allow_hosts: tuple[str, ...] = (),
    robots: bool = False,
    environ: Mapping[str, str] = os.environ,
    folder: Path | None = None,
    **numbers: int | None,
) -> Settings:
    """Flags over environment over file. Raises UsageError or ManifestError, naming what is wrong where.

    Only reads: `catalogue.set_own_folders` makes the catalogue that is returned the one that is looked in.
    """
    file = read_file((folder or _current_folder()) / FILE)
    mirror_text = ",".join(mirrors) or environ.get("DATAKIT_MIRRORS") or ",".join(file.get("mirrors", []))
    allow_text = ",".join(allow_hosts) or environ.get("DATAKIT_ALLOW_HOSTS") or ",".join(file.get("allow_hosts", []))

    def number(name: str, default: int) -> int:
        given = {
            FLAGS.get(name, f"--{name.replace('_', '-')}"): numbers.get(name),
            f"DATAKIT_{name.upper()}": environ.get(f"DATAKIT_{name.upper()}"),
            f"{name!r} of {FILE}": file.get(name),
            name: default,
        }
        return _number(given)

    timeout_s, most = number("timeout_s", TIMEOUT_S), number("in_flight", Limits.window[1])
    return Settings(
        root=root or environ.get("DATAKIT_ROOT") or file.get("root") or "data",
        hosts=Hosts(mirrors=parse_mirrors(mirror_text), allowed=parse_allowed(allow_text)),
        jobs=number("jobs", os.cpu_count() or 1),
        limits=Limits(
            total_s=timeout_s,
            connect_s=min(10, timeout_s),
            read_s=min(20, timeout_s),
            window=(min(Limits.window[0], most), most),
            per_host=number("per_host", Limits.per_host),
            per_host_per_s=number("per_host_per_s", int(Limits.per_host_per_s)),
            robots=robots or _switch("robots", environ.get("DATAKIT_ROBOTS"), file.get("robots", False)),
        ),
        catalogue=tuple(file["catalogue"]) if "catalogue" in file and "DATAKIT_CATALOGUE" not in environ else None,
    )


def _current_folder() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise UsageError("the current directory was removed: change to one that is there") from None


def _switch(name: str, text: str | None, otherwise: bool) -> bool:
    if text in (None, ""):
        return otherwise
    if text not in ("0", "1"):
        raise UsageError(f"{name} should be 1 or 0, not {text!r}")
    return text == "1"


def _number(given: dict[str, int | str | None]) -> int:
    """The first that is given, as a whole number from 1. Raises UsageError, naming where it was given."""
    where, value = next((where, v) for where, v in given.items() if v not in (None, ""))
    text = str(value) if isinstance(value, str) or abs(value) < 1 << 31 else ""
    if not re.fullmatch(r"\d{1,9}", text) or int(text) < 1:
        raise UsageError(f"{where} should be a whole number from 1 to 999999999, not {value!r:.40}")
    return int(text)


def read_file(path: Path) -> dict[str, Any]:
    """The keys of a datakit.toml; empty when there is none. Raises ManifestError for what isn't known."""
    if not path.is_file():
        return {}
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ManifestError(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # of its form, its encoding, or a number of thousands of digits
        raise ManifestError(f"{path}: not TOML: {error}") from error
    for key, value in found.items():
        if key not in KINDS:
            raise ManifestError(f"{path}: unknown key {key!r}. {nearest(key, KINDS)}")
        kind = KINDS[key]
        items = value if isinstance(value, list) else []
        if not isinstance(value, kind) or not all(isinstance(item, str) for item in items):
            expected = "a list of strings" if kind is list else f"a {kind.__name__}"
            raise ManifestError(f"{path}: key {key!r}: expected {expected}, not {value!r}")
    return found
