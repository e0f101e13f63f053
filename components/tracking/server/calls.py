"""What a call to the MLflow server asks for: its action and its subject, by the route that Flask chose and by MLflow's own parser."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from components.tracking.labels import DIGEST, cut, text

MAX_VALUE = 500
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
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
# Views that only read, though they are not asked with GET. Every other one counts as a change, so a new route of MLflow is logged.
READING = frozenset(
    {
        *("batch_get_trace_infos", "calculate_trace_filter_correlation", "query_trace_metrics"),
        *("get_latest_versions", "create_presigned_download_url", "post_ui_telemetry"),
        *("search_datasets", "search_evaluation_datasets", "search_experiments", "search_issues", "search_jobs", "search_logged_models"),
        *("search_prompt_optimization_jobs", "search_runs", "search_traces_v3"),
    }
)
# Two fields of one meaning, the first of which wins in MLflow's handlers, while its permission check may look at the other.
_SAME = {"run_uuid": "run_id"}
_FILE_IN_BODY = "upload_artifact"  # its body is the file, whatever it holds
# Field of a call -> name in the subject. Passwords and other fields never enter the log.
_FIELDS = {
    "version": "version",
    "alias": "alias",
    "key": "key",
    "value": "value",
    "source": "source",
    "new_name": "new_name",
    "stage": "stage",
    "run_id": "run",
    "experiment_id": "experiment_id",
    "model_id": "logged_model",
    "username": "username",
    "is_admin": "is_admin",
    "role_id": "role_id",
    "resource_type": "resource_type",
    "resource_pattern": "resource_pattern",
    "resource_id": "resource_id",
    "permission": "permission",
    "path": "artifact",
    "artifact_path": "artifact",
}


def action_of(request: Any) -> str:
    """Name of the action by the view that Flask chose, such as `create_model_version`; of an unknown path its last part."""
    if request.url_rule is None:
        return native_action(request.method, request.path)
    return named(str(request.url_rule.endpoint)) or native_action(request.method, request.path)


def native_action(method: str, path: str, endpoint: Any = None) -> str:
    """Name of the action of a call that Flask does not serve: of the function that served it, else by the path."""
    if name := named(getattr(endpoint, "__name__", "")):
        return name
    if "/mlflow-artifacts/artifacts/" in path:
        return {"PUT": "upload_artifact", "DELETE": "delete_artifact"}.get(method, "artifacts")
    return cut(path.rstrip("/").rpartition("/")[2].replace("-", "_"), 60) or "root"


def named(view: str) -> str:
    """The action of a view function by its name; empty for one without a name of its own."""
    name = view.rpartition(".")[2].lstrip("_").removeprefix("serve_").removesuffix("_handler")
    return "" if name == "<lambda>" else _NAMES.get(name, name)


def is_reading(action: str) -> bool:
    """Whether a call that is not a GET only reads, by the name of its action."""
    return action in READING


def changes_something(request: Any, action: str) -> bool:
    """Whether a call can change anything. GraphQL queries come in the body, even with GET."""
    if action == "graphql":
        return _is_mutation(str(body_of(request).get("query", "")))
    return request.method not in SAFE_METHODS and not is_reading(action)


def contradiction(request: Any) -> str | None:
    """The first field that a call gives twice with different values, None when there is none.

    MLflow asks for permission on the one and acts on the other where a field comes in the address and in the body, in two spellings,
    or as `run_id` and `run_uuid`.
    """
    given: dict[str, str] = {}
    for key, value in [*_raw_body(request).items(), *request.args.items(multi=True)]:
        name = _SAME.get(_snake(str(key)), _snake(str(key)))
        if given.setdefault(name, text(value)) != text(value):
            return name
    return None


def body_of(request: Any) -> dict[str, Any]:
    """The JSON object in the body as MLflow's own handlers read it, names in snake case; empty when there is none."""
    found = {_snake(str(key)): value for key, value in _raw_body(request).items()}
    for name, preferred in _SAME.items():
        if found.get(name):
            found[preferred] = found.get(preferred) or found[name]
    return found


def _raw_body(request: Any) -> dict[str, Any]:
    from mlflow.server.handlers import _get_normalized_request_json

    if request.url_rule is not None and named(str(request.url_rule.endpoint)) == _FILE_IN_BODY:
        return {}
    if request.mimetype == "application/x-www-form-urlencoded":
        return dict(request.form)
    try:
        found = _get_normalized_request_json(request)
    except Exception:  # what MLflow cannot read either, its handler refuses
        return {}
    return found if isinstance(found, dict) else {}


def subject_of(request: Any, action: str) -> dict[str, str]:
    """Whom or what a call is about, in the words of an audit entry."""
    if action == "graphql":
        return {"query": cut(str(body_of(request).get("query", "")), MAX_VALUE)}
    address = {_SAME.get(_snake(key), _snake(key)): value for key, value in request.args.items()}
    body = {**address, **body_of(request), **{_snake(key): value for key, value in (request.view_args or {}).items()}}
    found = fields_of(body)
    if "version" in found:
        found["version"] = _number(found["version"])
    if body.get("name"):
        found[_kind(request.path, action)] = cut(text(body["name"]), MAX_VALUE)
    if action == "create_model_version" and (digest := tags_of(request).get(DIGEST)):
        found["digest"] = cut(digest, MAX_VALUE)
    if found.get("resource_type") == "registered_model" and "resource_id" in found:
        found["model"] = found["resource_id"]  # whose permissions are given or taken
    return found


def fields_of(given: Mapping[str, Any]) -> dict[str, str]:
    """Those fields of a call that an entry keeps, long values cut off."""
    return {subject: cut(text(given[name]), MAX_VALUE) for name, subject in _FIELDS.items() if given.get(name) not in (None, "")}


def tags_of(request: Any) -> dict[str, str]:
    """Tags that something is to be created with."""
    listed = body_of(request).get("tags")
    found = listed if isinstance(listed, list) else []
    return {str(tag.get("key")): str(tag.get("value", "")) for tag in found if isinstance(tag, dict)}


def _kind(path: str, action: str) -> str:
    """What the field `name` of a body names."""
    if "registered-models" in path or "model-versions" in path:
        return "model"
    return next((kind for kind in ("experiment", "role", "logged_model") if kind in action), "name")


def _number(version: str) -> str:
    """MLflow takes `01` for version 1, and so must who looks for the calls about version 1."""
    try:
        return str(int(version))
    except ValueError:
        return version


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
