"""The MLflow server with sign-in, roles and audit log, over the files of this installation."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

from components import settings
from components.artifacts import open_private, write_atomic
from components.gates.policy import allowed_policies
from components.tracking import audit_log as audit
from components.tracking import sign_in
from components.tracking.server.permissions import PERMISSIONS_FILE, load_permissions
from flows.server_plans import ServerError, ServerPlan, mlflow_plan

APP = "scalingnote"
PROJECT = Path(__file__).resolve().parents[1]


def auth_plan(port: int) -> ServerPlan:
    """The plan of `mlflow_plan` with our app in front.

    Raises, before anything starts, for a damaged audit log and for a bad file of permissions or policies.
    """
    if APP not in entry_points(group="mlflow.app").names:
        raise ServerError(f"MLflow does not know the app '{APP}'. Install scalingnote again with pip.")
    if url := sign_in.running_server():
        raise ServerError(f"A server with sign-in runs over {settings.home()} already: {url}. Use it, or stop it first.")
    load_permissions()
    allowed_policies()
    if settings.audit_log().exists():
        audit.read_audit(settings.audit_log())
    plan = mlflow_plan(port)
    # Without a proxy in front anybody could name the address that the log then holds.
    command = (*plan.command, "--app-name", APP, "--uvicorn-opts=--no-proxy-headers")
    return replace(plan, command=command, environment=plan.environment | _environment())


def _environment() -> dict[str, str]:
    secret = settings.home() / "mlflow" / "server-secret"
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(_configuration()),
        "MLFLOW_AUTH_ADMIN_PASSWORD": sign_in.admin_password(),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secret.read_text().strip() if secret.exists() else sign_in.keep_secret(secret),
        "SCALINGNOTE_AUDIT_LOG": str(settings.audit_log()),
        **_import_path(),
    }


def _import_path() -> dict[str, str]:
    """The server works in the home folder, but imports our app: from the checkout, unless it is installed where Python looks anyway."""
    if not (PROJECT / "pyproject.toml").exists():
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))}


def _configuration() -> Path:
    """The project's sign-in settings with a database in the home folder."""
    path = settings.home() / "mlflow" / "basic_auth.ini"
    open_private(path.with_suffix(".db")).close()  # the hashes of all passwords; SQLite would let everybody on the machine read them
    template = (PERMISSIONS_FILE.parent / "basic_auth.ini").read_text(encoding="utf-8")
    database = f"sqlite:///{settings.home() / 'mlflow' / 'basic_auth.db'}".replace("%", "%%")
    write_atomic(path, template.replace("sqlite:///basic_auth.db", database).encode())
    return path
