"""Files of the policies that an installation allows: as they lie on this machine, and as the tracking server hands them out.

Whoever trains owns the machine that they train on, and with it the environment there. So the administrator of the server names the
policies in the server's own environment, and every client asks the server for them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components import settings
from components.errors import ConfigError
from components.network import without_user
from components.tracking.store import TrackingError, is_server, translated

POLICY_VARIABLE = "SCALINGNOTE_POLICY"
ENDPOINT = "/ajax-api/2.0/scalingnote/policies"
_MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class PolicyFiles:
    """Name of each file -> its fields, and in words where they come from."""

    place: str
    files: Mapping[str, Mapping[str, Any]]


def sources(ask_server: bool = True) -> list[PolicyFiles]:
    """The policies that this environment names, and those of the tracking server; a place that names none is left out.

    `ask_server`: False for what is verified from files alone, where no server may be there to ask.
    Raises ConfigError for a place that is not there or holds no policies, TrackingError for a server that does not say.
    """
    found = [PolicyFiles(POLICY_VARIABLE, here)] if (here := local_files()) is not None else []
    uri = settings.tracking_uri()
    theirs = _of_server(uri) if ask_server and is_server(uri) else None
    # Where a policy came from is recorded with what was decided by it, and an address may hold a password.
    return found if theirs is None else [*found, PolicyFiles(f"the server {without_user(uri)}", theirs)]


def local_files() -> dict[str, dict[str, Any]] | None:
    """What `SCALINGNOTE_POLICY` names, a YAML file or a folder of `*.yaml`; None where it is not set. Raises ConfigError."""
    named = os.environ.get(POLICY_VARIABLE)
    if not named:
        return None
    place = Path(named).expanduser()
    files = sorted(place.glob("*.yaml")) if place.is_dir() else [place] if place.is_file() else []
    if not files:
        raise ConfigError(f"{POLICY_VARIABLE} names {place}, which is no YAML file with a policy and no folder of them. Correct it.")
    return {file.name: _fields(file) for file in files}


def serve(flask_app: Any) -> str:
    """A route that gives the server's policies, and its address. They are read anew each time, so a new file counts at once.

    Raises ConfigError where there are none to give, so that the server does not start.
    """
    from flask import jsonify
    from mlflow.server.handlers import _add_static_prefix

    local_files()

    def give() -> Any:
        try:
            return jsonify(policies=local_files())
        except ConfigError as error:
            answer = jsonify(error_code="INTERNAL_ERROR", message=str(error))
            answer.status_code = 500
            return answer

    address = _add_static_prefix(ENDPOINT)
    flask_app.add_url_rule(address, "scalingnote_policies", give)
    return str(address)


def _fields(file: Path) -> dict[str, Any]:
    import yaml

    try:
        if file.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{file} ({POLICY_VARIABLE}) is no policy: it has more than {_MAX_BYTES:,} bytes.")
        given = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        first = str(error).partition("\n")[0]
        raise ConfigError(f"{file} ({POLICY_VARIABLE}) is no policy: {first}. Give the fields of `policy` as YAML.") from None
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise ConfigError(f"{file} ({POLICY_VARIABLE}) is no policy: it holds no fields. Give the fields of `policy` as YAML.")
    return given


@translated("ask for the policies of the installation")
def _of_server(uri: str) -> dict[str, dict[str, Any]] | None:
    """The server's policies; None where it names none, or is a plain MLflow that knows nothing of them."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    answer = http_request(get_default_host_creds(uri), ENDPOINT, "GET", raise_on_status=False, max_retries=0)
    if answer.status_code == 404:
        return None
    try:
        given = answer.json()
        policies, said = given.get("policies", {}), str(given.get("message", ""))
    except (ValueError, AttributeError):
        policies, said = {}, answer.text[:300]
    if answer.status_code != 200 or not (policies is None or _are_files(policies)):
        raise TrackingError(
            f"The server {uri} could not give the policies of the installation (status {answer.status_code}): {said or 'no policies'} "
            "Nothing is decided without them; ask its administrator."
        )
    return policies


def _are_files(policies: Any) -> bool:
    return isinstance(policies, dict) and bool(policies) and all(isinstance(fields, dict) for fields in policies.values())
