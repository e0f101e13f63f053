"""A hub on loopback and its cache: tiny random models, and data sets, in the layout and protocol of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

LARGE = ".safetensors"


@dataclass
class Repository:
    """The commits of one model, each a mapping from file to content; the last one is `main`."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @property
    def main(self) -> str:
        return list(self.commits)[-1]

    def commit(self, folder: Path) -> str:
        """Add the files of `folder` as the newest commit and return its sha."""
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        sha = hashlib.sha1(b"".join(name.encode() + content for name, content in files.items()) + bytes(len(self.commits))).hexdigest()
        self.commits[sha] = files
        return sha


@dataclass
class Hub:
    """A running hub: models by name, faults by name, and every request it was sent."""

    url: str
    models: dict[str, Repository] = field(default_factory=dict)  # and data sets
    status: dict[str, tuple[int, str]] = field(default_factory=dict)  # name -> status and error code of every answer
    renamed: dict[str, str] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)  # models whose weights end too early
    delay: float = 0.0
    requests: list[str] = field(default_factory=list)

    def add(self, name: str, folder: Path) -> str:
        return self.models.setdefault(name, Repository()).commit(folder)


def keep_in_cache(cache: Path, name: str, folder: Path, commit: str | None = None) -> str:
    """Put the model in `folder` into a hub's cache as the hub's own client does: large files as blobs named by their sha256."""
    root = cache / f"models--{name.replace('/', '--')}"
    commit = commit or hashlib.sha1(name.encode()).hexdigest()
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest() if path.suffix == LARGE else _git_sha(content)
        blob = root / "blobs" / digest
        blob.write_bytes(content)
        link = root / "snapshots" / commit / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return commit


@contextmanager
def hub_on_loopback(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """A hub that Hugging Face's client of this process asks, with `cache` as its cache."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    use_cache(monkeypatch, cache, offline=False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use_cache(monkeypatch: pytest.MonkeyPatch, cache: Path, offline: bool = True) -> None:
    """Let Hugging Face's client use `cache`, without a network where `offline`."""
    from huggingface_hub import constants

    from components.data import sources
    from components.towers import hub

    sources.hub_folder.cache_clear()
    hub.commit_of.cache_clear()
    hub._folder.cache_clear()
    hub._SILENT.clear()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def _git_sha(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path).strip("/")
        hub.requests.append(path)
        time.sleep(hub.delay)
        parts = path.removeprefix("api/").removeprefix("models/").removeprefix("datasets/").split("/")
        name, rest = "/".join(parts[:2]), parts[2:]
        name = hub.renamed.get(name, name)
        if name in hub.status:
            status, code = hub.status[name]
            return self._answer(status, b"{}", {"X-Error-Code": code} if code else {})
        if name not in hub.models:
            return self._answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        repository = hub.models[name]
        commit = repository.main if len(rest) < 2 or rest[1] == "main" else rest[1]
        if commit not in repository.commits:
            return self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if path.startswith("api/"):
            return self._describe(name, rest, commit, repository.commits[commit])
        return self._file(hub, name, commit, "/".join(rest[2:]), repository.commits[commit])

    def _describe(self, name: str, rest: Sequence[str], commit: str, files: dict[str, bytes]) -> None:
        if rest and rest[0] == "tree":
            entries = [{"type": "file", "path": p, "size": len(c), "oid": _git_sha(c), **_lfs(p, c)} for p, c in files.items()]
            return self._answer(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
        about = {"id": name, "sha": commit, "siblings": [{"rfilename": p} for p in files], "private": False, "gated": False}
        return self._answer(200, json.dumps(about).encode(), {"Content-Type": "application/json"})

    def _file(self, hub: Hub, name: str, commit: str, path: str, files: dict[str, bytes]) -> None:
        if path not in files:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = files[path]
        etag = hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else _git_sha(content)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}
        if hub.broken and name in hub.broken and path.endswith(LARGE) and self.command == "GET":
            self.close_connection = True
            return self._answer(200, content[: len(content) // 2], headers, length=len(content))
        return self._answer(200, content, headers)

    def _answer(self, status: int, content: bytes, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _lfs(path: str, content: bytes) -> dict[str, object]:
    if not path.endswith(LARGE):
        return {}
    return {"lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}}
