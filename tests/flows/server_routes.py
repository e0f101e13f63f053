"""Prints every route of the installed MLflow server with our app, as JSON lines: `python -m tests.flows.server_routes FOLDER`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Route(NamedTuple):
    """A method of one path template, and the function that answers it. `native`: served by FastAPI, not by Flask."""

    native: bool
    method: str
    path: str
    view: str

    @property
    def action(self) -> str:
        """Its name in the audit log."""
        from components.tracking.server.calls import named

        return named(self.view) or self.path.rpartition("/")[2].replace("-", "_")

    @property
    def example(self) -> str:
        """A path that the route takes: `x` in the place of every variable."""
        parts = self.path.replace("{", "<").replace("}", ">").split("/")
        return "/".join("x" if part.startswith("<") else part for part in parts)


def server_routes(folder: Path) -> list[Route]:
    """Asked of a process of its own: making the app changes MLflow's one Flask app for good."""
    command = [sys.executable, "-m", "tests.flows.server_routes", str(folder)]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return [Route(*json.loads(line)) for line in lines]


def _environment(folder: Path) -> dict[str, str]:
    template = (ROOT / "mlflow" / "basic_auth.ini").read_text()
    (folder / "auth.ini").write_text(template.replace("sqlite:///basic_auth.db", f"sqlite:///{folder / 'auth.db'}"))
    return {
        "_MLFLOW_SGI_NAME": "uvicorn",
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": "a password for tests",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a secret for tests",
        "SCALINGNOTE_HOME": str(folder),
    }


def _routes() -> Iterator[Route]:
    from components.tracking.server.plugin import create_app

    layer: Any = create_app()
    from fastapi.routing import iter_route_contexts
    from mlflow.server import app

    for rule in app.url_map.iter_rules():
        yield from (Route(False, method, rule.rule, rule.endpoint) for method in sorted(rule.methods or ()))
    for route in iter_route_contexts(layer.inner.routes):
        named = getattr(route.endpoint, "__name__", "")
        yield from (Route(True, method, str(route.path), named) for method in sorted(route.methods or ()))


if __name__ == "__main__":
    os.environ.update(_environment(Path(sys.argv[1])))
    for found in _routes():
        print(json.dumps(found))
