"""The Hugging Face hub's protocol, as much of it as huggingface_hub 2.4 speaks when it reads.

- `/datasets/OWNER/REPO/resolve/REV/FILE`: the file, with the headers that name its commit and its hash
- `/datasets/OWNER/REPO/blob/REV/FILE`: an HTML page, which is what guides that say `wget …/blob/…` get
- `/api/datasets/OWNER/REPO[/revision/REV]`, `…/tree/REV[/FOLDER]`, `…/paths-info/REV`: JSON
"""

from __future__ import annotations

import functools
import hashlib
import html
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs, unquote

from datakit.miniature.server import Answer, Request

GATED = "example/gated-set"
WHEN = "2024-05-12T08:00:00.000Z"
LARGE = (".json", ".jsonl", ".parquet", ".tar", ".zip")  # kept in LFS by the repositories' .gitattributes
TYPES = {".json": "application/json", ".md": "text/markdown; charset=utf-8"}


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A file of a repository: its bytes and the hashes that the hub shows for it."""

    path: str
    body: bytes

    @property
    def large(self) -> bool:
        return self.path.endswith(LARGE)

    @functools.cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()

    @functools.cached_property
    def oid(self) -> str:
        """git's id: of the file, or of the pointer that stands for a large one."""
        body = self.body
        if self.large:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(body)}\n"
            body = pointer.encode()
        return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()

    def entry(self, *, expand: bool) -> dict[str, Any]:
        shown: dict[str, Any] = {"type": "file", "oid": self.oid, "size": len(self.body), "path": self.path}
        if self.large:
            shown["lfs"] = {"oid": self.sha256, "size": len(self.body), "pointerSize": 134}
        return shown | (_last_commit() if expand else {})


class Hub:
    """Dataset repositories, each with a fixed commit. `read(repo, file)` gives a file's bytes."""

    def __init__(self, repos: Mapping[str, Iterable[str]], read: Callable[[str, str], bytes], *, edition: str) -> None:
        self.repos = {repo: sorted(files) for repo, files in repos.items()}
        self.commits = {repo: hashlib.sha1(f"{repo} {edition}".encode()).hexdigest() for repo in repos}
        self._read = read
        self._stored: dict[tuple[str, str], Stored] = {}

    def answer(self, request: Request) -> Answer | None:
        """The hub's answer, or None for a path that is not the hub's."""
        path, _, query = request.path.partition("?")
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[0] == "api" and len(parts) >= 4:
            options = {name: values[-1].lower() for name, values in parse_qs(query).items()}
            return self._api(request, parts[1:], options)
        if parts[0] not in ("datasets", "api") and len(parts) >= 4 and parts[2] in ("resolve", "blob"):
            return refusal(404, "RepoNotFound", "Repository not found")  # there are no models here
        if parts[0] == "datasets" and len(parts) >= 3:
            return self._page(request, parts[1:])
        return None

    def file(self, repo: str, name: str) -> Answer:
        """A file as `resolve` gives it."""
        stored = self.stored_file(repo, name)
        etag = stored.sha256 if stored.large else stored.oid
        headers = [("X-Repo-Commit", self.commits[repo])]
        if stored.large:
            headers += [("X-Linked-Size", str(len(stored.body))), ("X-Linked-Etag", f'"{etag}"')]
        content_type = TYPES.get(name[name.rfind(".") :], "application/octet-stream")
        return Answer(body=stored.body, content_type=content_type, etag=etag, headers=tuple(headers))

    def stored_file(self, repo: str, name: str) -> Stored:
        body = self._read(repo, name)
        known = self._stored.get((repo, name))
        if known is None or known.body is not body:
            known = self._stored[repo, name] = Stored(path=name, body=body)
        return known

    def _page(self, request: Request, parts: list[str]) -> Answer:
        repo = "/".join(parts[:2])
        wanted = self._commit_or_refusal(repo, parts[3] if len(parts) > 3 else "main")
        if isinstance(wanted, Answer):
            return wanted
        kind, name = parts[2] if len(parts) > 2 else "", "/".join(parts[4:])
        if kind != "resolve":
            return page(f"{repo} {name}")
        if repo == GATED:
            return gate(request)
        if name not in self.repos[repo]:
            return self._no_entry(repo)
        return self.file(repo, name)

    def _api(self, request: Request, parts: list[str], options: Mapping[str, str]) -> Answer:
        repo = "/".join(parts[1:3]) if parts[0] == "datasets" else ""
        kind, rest = parts[3] if len(parts) > 3 else "revision", parts[4:]
        wanted = self._commit_or_refusal(repo, rest[0] if rest else "main")
        if isinstance(wanted, Answer):
            return wanted
        if kind == "revision":
            return self._json(repo, self._info(repo, blobs="blobs" in options))
        if kind == "tree":
            folder = "/".join(rest[1:]).strip("/")
            listed = self._tree(repo, folder, options.get("recursive") == "true", options.get("expand") == "true")
            return self._json(repo, listed) if listed or not folder else self._no_entry(repo)
        if kind == "paths-info" and request.method == "POST":
            paths, expand = _form(request)
            return self._json(repo, [e for path in paths for e in self._path_info(repo, path, expand)])
        return refusal(404, "", "Not found")

    def _commit_or_refusal(self, repo: str, revision: str) -> str | Answer:
        """The commit of a revision, or the refusal that the client understands."""
        if repo not in self.repos:
            return refusal(404, "RepoNotFound", "Repository not found")
        if revision not in ("main", "refs/heads/main", self.commits[repo]):
            return refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[repo]

    def _no_entry(self, repo: str) -> Answer:
        refused = refusal(404, "EntryNotFound", "Entry not found")
        return replace(refused, headers=(*refused.headers, ("X-Repo-Commit", self.commits[repo])))

    def _info(self, repo: str, *, blobs: bool) -> dict[str, Any]:
        siblings: list[dict[str, Any]] = [{"rfilename": name} for name in self.repos[repo]]
        if blobs:
            for sibling in siblings:
                stored = self.stored_file(repo, sibling["rfilename"])
                sibling |= {"size": len(stored.body), "blobId": stored.oid}
                if stored.large:
                    sibling["lfs"] = {"sha256": stored.sha256, "size": len(stored.body), "pointerSize": 134}
        return {
            "_id": self.commits[repo][:24],
            "id": repo,
            "author": repo.partition("/")[0],
            "sha": self.commits[repo],
            "lastModified": WHEN,
            "createdAt": WHEN,
            "private": False,
            "gated": "auto" if repo == GATED else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
        }

    def _tree(self, repo: str, folder: str, recursive: bool, expand: bool) -> list[dict[str, Any]]:
        prefix = folder + "/" if folder else ""
        listed: dict[str, dict[str, Any]] = {}
        for name in self.repos[repo]:
            if not name.startswith(prefix):
                continue
            steps = name.removeprefix(prefix).split("/")
            for depth in range(1, len(steps) if recursive else min(2, len(steps))):
                inner = prefix + "/".join(steps[:depth])
                listed.setdefault(inner, _folder(inner, expand))
            if recursive or len(steps) == 1:
                listed[name] = self.stored_file(repo, name).entry(expand=expand)
        return list(listed.values())

    def _path_info(self, repo: str, path: str, expand: bool) -> list[dict[str, Any]]:
        path = path.strip("/")
        if path in self.repos[repo]:
            return [self.stored_file(repo, path).entry(expand=expand)]
        inside = any(name.startswith(path + "/") for name in self.repos[repo])
        return [_folder(path, expand)] if inside else []  # the hub leaves out what it doesn't have

    def _json(self, repo: str, value: Any) -> Answer:
        return Answer(
            body=json.dumps(value).encode(),
            content_type="application/json; charset=utf-8",
            headers=(("X-Repo-Commit", self.commits[repo]),),
        )


def page(title: str) -> Answer:
    """A page for people."""
    shown = html.escape(title.strip())
    body = f"<!DOCTYPE html>\n<html><head><title>{shown}</title></head><body><h1>{shown}</h1></body></html>\n"
    return Answer(body=body.encode(), content_type="text/html; charset=utf-8")


def refusal(status: int, code: str, message: str) -> Answer:
    headers = [("X-Error-Message", message)] + ([("X-Error-Code", code)] if code else [])
    body = json.dumps({"error": message}).encode()
    return Answer(status=status, body=body, content_type="application/json", headers=tuple(headers))


def gate(request: Request) -> Answer:
    """401 without a token, 403 with one whose owner has not accepted the terms."""
    status = 403 if "authorization" in request.headers else 401
    return refusal(status, "GatedRepo", f"Access to dataset {GATED} is restricted: accept its terms first.")


def _form(request: Request) -> tuple[list[str], bool]:
    if request.headers.get("content-type", "").startswith("application/json"):
        sent = json.loads(request.body)
        paths = sent["paths"]
        return ([paths] if isinstance(paths, str) else paths), bool(sent.get("expand"))
    fields = parse_qs(request.body.decode())
    return fields.get("paths", []), fields.get("expand", ["false"])[-1].lower() == "true"


def _folder(path: str, expand: bool) -> dict[str, Any]:
    oid = hashlib.sha1(f"tree {path}".encode()).hexdigest()
    return {"type": "directory", "oid": oid, "size": 0, "path": path} | (_last_commit() if expand else {})


def _last_commit() -> dict[str, Any]:
    return {"lastCommit": {"id": "0" * 40, "title": "Upload files", "date": WHEN}}
