"""A real server with sign-in for tests: started by the code of `scalingnote ui --auth`, prepared by the code of `bootstrap`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

ROOT = Path(__file__).resolve().parents[1]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
PASSWORD = "a password for tests"
USERS = {
    **{role: (role,) for role in ("trainer", "reviewer", "promoter", "auditor")},
    "both": ("trainer", "reviewer"),
    "guest": ("auditor",),
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def know_the_app(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process and the servers it starts find our `mlflow.app`, also where the project is not installed."""
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["mlflow.app"]
    info = folder / "scalingnote_app-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scalingnote-app\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[mlflow.app]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items()))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))))


@dataclass(frozen=True)
class AuthServer:
    """A running server with sign-in and its home folder."""

    url: str
    home: Path

    def call(
        self, method: str, path: str, body: Any = None, user: str | None = None, password: str = PASSWORD, **headers: str
    ) -> tuple[int, Any]:
        """Status and JSON (or bytes) of one call to `/api/2.0/mlflow/<path>`, or to `path` when it starts with a slash.

        `headers` are more headers, with _ for -. A redirect is not followed.
        """
        url = self.url + (path if path.startswith("/") else f"/api/2.0/mlflow/{path}")
        sent = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
        if user:
            sent["authorization"] = "Basic " + b64encode(f"{user}:{password}".encode()).decode()
        data = None if body is None else json.dumps(body).encode()
        try:
            with OPENER.open(urllib.request.Request(url, data, sent, method=method), timeout=600) as response:
                return response.status, _content(response)
        except HTTPError as error:
            return error.code, _content(error)

    @contextmanager
    def as_user(self, user: str, password: str = PASSWORD) -> Iterator[None]:
        """The environment of somebody who works on this server."""
        from components.tracking.store import clear_caches

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", self.url)
            patch.setenv("MLFLOW_TRACKING_USERNAME", user)
            patch.setenv("MLFLOW_TRACKING_PASSWORD", password)
            clear_caches()
            yield
            clear_caches()


@contextmanager
def auth_server(folder: Path, template: Path) -> Iterator[AuthServer]:
    """A server over a new home folder, prepared for the retriever `retriever` with the users of `USERS`."""
    from components.tracking.server.bootstrap import bootstrap
    from components.tracking.store import clear_caches

    home = folder / "home"
    (home / "mlflow").mkdir(parents=True)
    shutil.copyfile(template, home / "mlflow" / "mlflow.db")
    users = folder / "users.yaml"
    listed = "".join(f"  {user}: {{roles: [{', '.join(roles)}], password_env: TEST_PASSWORD}}\n" for user, roles in USERS.items())
    users.write_text("users:\n" + listed)
    with pytest.MonkeyPatch.context() as patch:
        know_the_app(folder / "app", patch)
        patch.setenv("SCALINGNOTE_HOME", str(home))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow' / 'mlflow.db'}")
        patch.setenv("TEST_PASSWORD", PASSWORD)
        patch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", PASSWORD)
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            patch.delenv(name, raising=False)
        clear_caches()
        with _started() as url:
            bootstrap("retriever", url, users)
            yield AuthServer(url, home)
        clear_caches()


@contextmanager
def _started() -> Iterator[str]:
    """`scalingnote ui --auth` in a process of its own."""
    from components.tracking.sign_in import running_server

    command = [sys.executable, "-m", "flows.cli.main", "ui", "--auth", "--mlflow-port", str(free_port())]
    environment = os.environ | {"PREFECT_API_URL": "http://127.0.0.1:1/api"}  # so that MLflow alone is started
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while (url := running_server()) is None:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=600)


def _content(response: Any) -> Any:
    content = response.read()
    try:
        return json.loads(content)
    except ValueError:
        return content
