"""How the servers of a local installation are started: command, environment, port, and the path that answers once one is ready."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from components import settings
from components.errors import ScalingNoteError

HOST = "127.0.0.1"
# Our commands silence Prefect in the terminal, but a server's log must say why it ended.
LOUD = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "NOTSET"}


class ServerError(ScalingNoteError):
    """A local server that did not start, or that ended by itself."""

    exit_code = 8


@dataclass(frozen=True)
class ServerPlan:
    """How one server is started: its command and environment, and the path that answers once it is ready."""

    name: str
    port: int
    command: tuple[str, ...]
    health: str
    environment: dict[str, str] = field(default_factory=dict)
    log_name: str = ""  # of the file for what it prints, where not its name

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return f"http://{HOST}:{self.port}"

    @property
    def log(self) -> Path:
        """The file that holds what the server prints."""
        return settings.home() / "logs" / f"{self.log_name or self.name.lower()}-server.log"


def mlflow_plan(port: int) -> ServerPlan:
    """MLflow over the embedded store.

    Artifacts are not proxied: every experiment keeps a file location, which the server shows and the embedded commands read.
    One worker without job execution starts in 5 s and 2 processes instead of 19 s and 13.
    """
    command = (
        *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"),
        *("--no-serve-artifacts", "--default-artifact-root", settings.artifact_root().as_uri()),
    )
    environment = {
        "MLFLOW_BACKEND_STORE_URI": settings.tracking_uri(),  # not an argument: it may hold a password, and arguments are everybody's
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_LOGGING_LEVEL": "INFO",
    }
    return ServerPlan("MLflow", port, command, "/health", environment)


def small_prefect_plan(port: int) -> ServerPlan:
    """Prefect over the same database as long as one command runs: no page, and only the services that a run needs.

    The command and the variables are those of Prefect's own ephemeral server, which stays behind when we are killed.
    """
    from prefect.settings import get_current_settings

    command = (
        *(sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"),
        *("--host", HOST, "--port", str(port), "--log-level", "error", "--lifespan", "on"),
    )
    small = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    environment = small | get_current_settings().to_environment_variables(exclude_unset=True) | LOUD
    return ServerPlan("Prefect", port, command, "/api/health", environment, "small-prefect")


def prefect_plan(port: int, account: str = "") -> ServerPlan:
    """Prefect over the database in the home folder, where runs without a server leave their history too.

    With an `account` (user:password) its API and page ask for it: whoever may start a run there runs code on the workers.
    """
    command = (sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port), "--analytics-off")
    environment = {
        "PREFECT_UI_API_URL": f"http://{HOST}:{port}/api",  # else the page asks the address of some other profile
        "PREFECT_LOGGING_LEVEL": "INFO",  # our commands silence Prefect, but the log must say why a server ended
        # Prefect's second page asks a host of its makers' at every load, with its analytics switched off too; the first one does not.
        "PREFECT_SERVER_UI_V2_ENABLED": os.environ.get("PREFECT_SERVER_UI_V2_ENABLED", "false"),
        **LOUD,
        # The server's own services are clients of its API.
        **({"PREFECT_SERVER_API_AUTH_STRING": account, "PREFECT_API_AUTH_STRING": account} if account else {}),
    }
    return ServerPlan("Prefect", port, command, "/api/health", environment)
