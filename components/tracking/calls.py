"""What a call to the MLflow server asks for: its action and its subject, by the route that Flask chose and by MLflow's own parser."""

from __future__ import annotations

import re
from typing import Any

from components.tracking.labels import cut

MAX_VALUE = 500
_NAMES = {
    "set_registered_model_alias": "set_alias",
    "delete_registered_model_alias": "delete_alias",
    "set_model_version_tag": "set_version_tag",
    "delete_model_version_tag": "delete_version_tag",
    "delete_model_version": "delete_version",
    "update_model_version": "update_version",
    "set_tag": "set_run_tag",
    "delete_tag": "delete_run_tag",
}
# POST routes that only read. Everything else that is not a GET counts as a change, so a new route of MLflow is logged at first.
_READING = re.compile(r"^(serve_)?(search_.*|get_.*|batch_get_.*|calculate_.*|query_.*|create_presigned_download_url|.*ui_telemetry.*)$")
# Body field -> name in the subject. Passwords and other fields never enter the log.
_FIELDS = {
    "version": "version",
    "alias": "alias",
    "key": "key",
    "value": "value",
    "source": "source",
    "new_name": "new_name",
    "stage": "stage",
    "run_id": "run",
    "run_uuid": "run",
    "experiment_id": "experiment_id",
    "model_id": "logged_model",
    "username": "username",
    "is_admin": "is_admin",
    "role_id": "role_id",
    "resource_type": "resource_type",
    "resource_pattern": "resource_pattern",
    "resource_id": "resource_id",
    "permission": "permission",
}


def action_of(request: Any) -> str:
    """Name of the action by the view that Flask chose, such as `create_model_version`; of an unknown path its last part."""
    if request.url_rule is None:
        return native_action(request.method, request.path)
    view = str(request.url_rule.endpoint).rpartition(".")[2].lstrip("_").removesuffix("_handler")
    return _NAMES.get(view, view)


def native_action(method: str, path: str) -> str:
    """Name of the action of a path that Flask does not serve."""
    if "/mlflow-artifacts/artifacts/" in path:
        return {"PUT": "upload_artifact", "DELETE": "delete_artifact"}.get(method, "artifacts")
    return cut(path.rstrip("/").rpartition("/")[2].replace("-", "_"), 60) or "root"


def changes_something(request: Any, action: str) -> bool:
    """Whether a call that is not a GET can change anything."""
    if action == "graphql":
        return _is_mutation(str(body_of(request).get("query", "")))
    return _READING.match(action) is None


def body_of(request: Any) -> dict[str, Any]:
    """The JSON object in the body as MLflow's own handlers read it; empty when there is none."""
    from mlflow.server.handlers import _get_normalized_request_json

    try:
        found = _get_normalized_request_json(request)
    except Exception:  # what MLflow cannot read either, its handler refuses
        return {}
    return {_snake(str(key)): value for key, value in found.items()} if isinstance(found, dict) else {}


def subject_of(request: Any, action: str) -> dict[str, str]:
    """Whom or what a call is about, in the words of an audit entry."""
    if action == "graphql":
        return {"query": cut(str(body_of(request).get("query", "")), MAX_VALUE)}
    body = {**body_of(request), **{_snake(key): value for key, value in (request.view_args or {}).items()}}
    found = {subject: cut(_text(body[name]), MAX_VALUE) for name, subject in _FIELDS.items() if body.get(name) not in (None, "")}
    if body.get("name"):
        found[_kind(request.path, action)] = cut(_text(body["name"]), MAX_VALUE)
    if found.get("resource_type") == "registered_model" and "resource_id" in found:
        found["model"] = found["resource_id"]  # whose permissions are given or taken
    return found


def _kind(path: str, action: str) -> str:
    """What the field `name` of a body names."""
    if "registered-models" in path or "model-versions" in path:
        return "model"
    return next((kind for kind in ("experiment", "role", "logged_model") if kind in action), "name")


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _snake(key: str) -> str:
    """Protobuf takes `runId` and `run_id` for the same field."""
    return re.sub(r"(?<=[a-z])([A-Z])", lambda found: "_" + found.group(1).lower(), key)


def _is_mutation(query: str) -> bool:
    from graphql import GraphQLError, OperationDefinitionNode, OperationType, parse

    try:
        parsed = parse(query)
    except GraphQLError:
        return False
    return any(isinstance(node, OperationDefinitionNode) and node.operation == OperationType.MUTATION for node in parsed.definitions)
