"""Settings: where the root is and who may be connected to. Flags win over the environment, that over datakit.toml.

    DATAKIT_ROOT           root           folder or fsspec URL, default ./data
    DATAKIT_MIRRORS        mirrors        FROM=TO, replaces a URL prefix (comma-separated; a list in the file)
    DATAKIT_ALLOW_HOSTS    allow_hosts    HOST or HOST:PORT that may be private (the same)
    DATAKIT_JOBS           jobs           processes
    DATAKIT_TIMEOUT_S      timeout_s      seconds that one picture may take in all, default 30
    DATAKIT_CATALOGUE      catalogue      folders with manifests/ and pipelines/ of your own (joined like PATH)

`datakit.toml` is looked for in the current folder.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datakit.errors import ManifestError, UsageError, nearest
from datakit.web.crawl import Limits
from datakit.web.hosts import Hosts, parse_allowed, parse_mirrors

FILE = "datakit.toml"
TIMEOUT_S = 30  # for one picture, redirects included; VILA gives 10, img2dataset 10 to each read
KINDS: dict[str, type] = {
    "root": str,
    "mirrors": list,
    "allow_hosts": list,
    "jobs": int,
    "timeout_s": int,
    "catalogue": list,
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    root: str
    hosts: Hosts
    jobs: int
    limits: Limits


def load(
    *,
    root: str | None = None,
    mirrors: tuple[str, ...] = (),
    allow_hosts: tuple[str, ...] = (),
    jobs: int | None = None,
    timeout_s: int | None = None,
    environ: Mapping[str, str] = os.environ,
    folder: Path | None = None,
) -> Settings:
    """Flags over environment over file. Raises UsageError or ManifestError, naming what is wrong where."""
    file = read_file((folder or Path.cwd()) / FILE)
    if "catalogue" in file and "DATAKIT_CATALOGUE" not in environ:
        os.environ["DATAKIT_CATALOGUE"] = os.pathsep.join(file["catalogue"])
    mirror_text = ",".join(mirrors) or environ.get("DATAKIT_MIRRORS") or ",".join(file.get("mirrors", []))
    allow_text = ",".join(allow_hosts) or environ.get("DATAKIT_ALLOW_HOSTS") or ",".join(file.get("allow_hosts", []))
    count = _number("jobs", jobs, environ.get("DATAKIT_JOBS"), file.get("jobs"), os.cpu_count() or 1)
    timeout = _number("timeout_s", timeout_s, environ.get("DATAKIT_TIMEOUT_S"), file.get("timeout_s"), TIMEOUT_S)
    return Settings(
        root=root or environ.get("DATAKIT_ROOT") or file.get("root") or "data",
        hosts=Hosts(mirrors=parse_mirrors(mirror_text), allowed=parse_allowed(allow_text)),
        jobs=count,
        limits=Limits(total_s=timeout, connect_s=min(10, timeout), read_s=min(20, timeout)),
    )


def _number(name: str, *given: int | str | None) -> int:
    """The first that is given, as a whole number from 1. Raises UsageError."""
    value = next(v for v in given if v not in (None, ""))
    if not str(value).isdecimal() or int(str(value)) < 1:
        raise UsageError(f"{name} should be a whole number from 1, not {value!r}")
    return int(str(value))


def read_file(path: Path) -> dict[str, Any]:
    """The keys of a datakit.toml; empty when there is none. Raises ManifestError for what isn't known."""
    if not path.is_file():
        return {}
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
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
