"""The `mlflow.app` plugin: MLflow's basic auth, our rules before every handler, and one audit entry for every mutating call.

The answer to a call is held back until the call is in the audit log.

Two layers. Hooks in the Flask app know the route, its parsed body and the user who signed in, and refuse what a rule forbids. An ASGI
layer around everything sees calls that never reach Flask too, holds each answer back until its entry is on the disk, and lets no mutating
call through while the log is damaged. Both are wired to internals of MLflow 3.17; the tests of the server guard them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from components import settings
from components.errors import ArtifactError, ConfigError, ScalingNoteError
from components.tracking import audit_log as audit
from components.tracking import labels
from components.tracking.server.calls import (
    SAFE_METHODS,
    action_of,
    changes_something,
    contradiction,
    fields_of,
    is_reading,
    named,
    native_action,
    subject_of,
    tags_of,
)
from components.tracking.server.permissions import ADMIN, Call, Permissions, load_permissions, refusal
from components.tracking.server.permissions import serve as serve_policies


def roles_of(user: str) -> tuple[str, ...]:
    """Names of the roles of `user`, `admin` first for MLflow's administrator; those that MLflow makes for single users are left out."""
    from mlflow.exceptions import MlflowException
    from mlflow.server.auth import store

    try:
        found = store.get_user(user)
    except MlflowException:  # deleted while the call ran
        return ()
    names = sorted(role.name for role in store.list_user_roles(found.id) if not role.name.startswith("__user_"))
    return (ADMIN, *names) if found.is_admin else tuple(names)


class ServerStores:
    """The registry and tracking store of this server, and its audit log."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def exists(self, model: str) -> bool:
        """Whether there is a registered model of this name."""
        from mlflow.exceptions import MlflowException
        from mlflow.server.handlers import _get_model_registry_store

        try:
            _get_model_registry_store().get_registered_model(model)
        except MlflowException:
            return False
        return True

    def creator(self, model: str, version: int) -> str | None:
        """Who created a version, by the verified log; None when it was not created through this server."""
        entries = audit.read_audit(self.log) if self.log.exists() else []
        entry = audit.creation_of(entries, model, version)
        return entry.user if entry else None

    def tags(self, model: str, version: int) -> Mapping[str, str]:
        """Tags of a version; empty when there is none."""
        from mlflow.exceptions import MlflowException
        from mlflow.server.handlers import _get_model_registry_store

        try:
            found = _get_model_registry_store().get_model_version(model, str(version))
        except MlflowException:
            return {}
        return dict(found.tags)

    def complete(self, subject: dict[str, str]) -> dict[str, str]:
        """`subject` with the name of its experiment; the run that holds a chain of promotion records counts as part of their experiment."""
        if "experiment" in subject:
            return subject
        name = _experiment_of_run(subject["run"]) if "run" in subject else None
        if name is None and "experiment_id" in subject:
            name = _experiment_name(subject["experiment_id"])
        return {**subject, "experiment": name} if name else subject


def _experiment_of_run(run_id: str) -> str | None:
    return _if_there(_found_for_run, run_id)


def _experiment_name(experiment_id: str) -> str | None:
    return _if_there(_found_name, experiment_id)


def _if_there(find: Callable[[str], str], key: str) -> str | None:
    """What `find` gives; None for what is not there, which is not remembered: numbers of experiments can be guessed ahead."""
    from mlflow.exceptions import MlflowException

    try:
        return find(key)
    except MlflowException:
        return None


@functools.lru_cache(maxsize=4096)
def _found_for_run(run_id: str) -> str:
    from mlflow.server.handlers import _get_tracking_store

    run = _get_tracking_store().get_run(run_id)
    chain = run.data.tags.get(labels.PREFIX + "chain")
    return str(chain) if chain else _found_name(run.info.experiment_id)


@functools.lru_cache(maxsize=1024)
def _found_name(experiment_id: str) -> str:
    from mlflow.server.handlers import _get_tracking_store

    return str(_get_tracking_store().get_experiment(experiment_id).name)


# --- The answer of the server to one call, held back until the call is in the audit log, and what was learned of the call meanwhile.


Message = MutableMapping[str, Any]


class Send(Protocol):
    """ASGI's way to answer."""

    async def __call__(self, message: Message, /) -> None:
        """Send one message."""


@dataclass
class Seen:
    """What the Flask hooks learned of a call. `changes` stays None for a call that did not reach Flask.

    `unwritable` says why the audit log takes no entry now; then nothing may be changed.
    """

    action: str = ""
    changes: bool | None = None
    unwritable: str = ""
    subject: dict[str, str] = field(default_factory=dict)
    user: str | None = None
    roles: tuple[str, ...] = ()


@dataclass
class Answer:
    """The answer of the inner app, held back. `unlogged` marks one that stands for a log that cannot be written."""

    status: int = 500
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    unlogged: bool = False

    async def hold(self, message: Message) -> None:
        """Keep one message of the inner app."""
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message.get("headers", ()))
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")

    async def release(self, send: Send) -> None:
        """Send what was kept."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": bytes(self.body)})

    def replace(self, status: int, code: str, message: str) -> None:
        """Put an error in the form of MLflow's in place of the answer."""
        self.status, self.unlogged = status, True
        self.body = bytearray(json.dumps({"error_code": code, "message": message}).encode())
        self.headers = [(b"content-type", b"application/json"), (b"content-length", str(len(self.body)).encode())]

    def explain_refusal(self, seen: Seen) -> None:
        """MLflow refuses with two plain words, which its own page shows as an internal error; say who may not do what."""
        if self.status == 403 and b"application/json" not in dict(self.headers).get(b"content-type", b""):
            who = f"{seen.user} ({', '.join(seen.roles) or 'no role'})" if seen.user else "This user"
            target = seen.subject.get("model") or seen.subject.get("experiment")
            what = (seen.action or "this call").replace("_", " ") + (f" on {target}" if target else "")
            self.replace(403, "PERMISSION_DENIED", f"{who} has no permission for: {what}.")
            self.unlogged = False

    def made(self) -> dict[str, str]:
        """Names that the server gave: version, run, experiment, logged model."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return _made(found) if isinstance(found, dict) else {}


def _made(answer: Mapping[str, Any]) -> dict[str, str]:
    found = {
        "version": _at(answer, "model_version", "version"),
        "run": _at(answer, "run", "info", "run_id"),
        "experiment_id": _at(answer, "experiment_id"),
        "logged_model": _at(answer, "model", "info", "model_id"),
    }
    return {key: str(value) for key, value in found.items() if value}


def _at(answer: Any, *place: str) -> Any:
    """What stands at a place of an answer; None in one of another form, as a gateway's, whose `model` is a name."""
    for part in place:
        answer = answer.get(part) if isinstance(answer, Mapping) else None
    return answer


# --- The `mlflow.app` plugin: MLflow's basic auth, our rules before every handler, and one audit entry for every mutating call.


ASSISTANT = "/mlflow/assistant/"
App = Callable[[Any, Any, Any], Awaitable[None]]


_seen: ContextVar[Seen] = ContextVar("seen")


def create_app() -> App:
    """Factory for `mlflow server --app-name scalingnote`.

    Raises ConfigError for a bad file of permissions or policies, and for another server than uvicorn.
    """
    from mlflow.server import app as flask_app
    from mlflow.server.auth import create_app as create_auth_app

    permissions = load_permissions()
    flask_app.before_request(_note_call)  # before MLflow's own hooks, which end the chain for a call they refuse
    inner = create_auth_app(flask_app)
    if inner is flask_app:
        raise ConfigError("The app 'scalingnote' runs on uvicorn alone; start `mlflow server` without --gunicorn-opts and --waitress-opts.")
    path = settings.audit_log()
    world = ServerStores(path)
    flask_app.before_request(lambda: _enforce(permissions, world))
    flask_app.after_request(_note_user)
    _serve_audit(flask_app, path, permissions)
    _serve_policies(flask_app)
    _narrow_native_routes(permissions)
    return AuditLayer(inner, path, functools.partial(_may_read, flask_app))


def _note_call() -> Any:
    """Flask hook: remember what is asked for, before anything can refuse it. A change that could not be logged goes no further."""
    from flask import request

    seen = _seen.get(None)
    if seen is None:
        return None
    seen.action = action_of(request)
    seen.changes = changes_something(request, seen.action)
    if not seen.changes:
        return None
    seen.subject = subject_of(request, seen.action)
    return _refused(seen.unwritable, 503, "TEMPORARILY_UNAVAILABLE") if seen.unwritable else None


def _may_read(flask_app: Any, method: str, path: str) -> bool:
    """Whether Flask serves a call that is not a GET by a view that only reads, or that tells by its body, which `_note_call` looks at."""
    from werkzeug.exceptions import HTTPException

    try:
        view, _ = flask_app.url_map.bind("localhost").match(path, method=method)
    except HTTPException:
        return False
    action = named(str(view))
    return action == "graphql" or is_reading(action)


def _enforce(permissions: Permissions, world: ServerStores) -> Any:
    """Flask hook after MLflow's: a JSON refusal when a rule forbids the call, None to go on."""
    from flask import g, request

    seen = _seen.get(None)
    user = g.get("mlflow_authenticated_user")
    if seen is None:
        return _refused_read(request)
    if user is None:
        return None
    seen.user = user
    if not seen.changes:
        return None
    seen.roles = roles_of(user)
    subject = seen.subject = world.complete(seen.subject)
    if field := contradiction(request):
        return _refused(f"The call gives the field '{field}' twice with different values. Give it once.", 400, "INVALID_PARAMETER_VALUE")
    call = Call(user, seen.roles, seen.action, subject, tags_of(request))
    try:
        reason = refusal(call, permissions, world)
    except ArtifactError as error:
        reason = str(error)
    return _refused(reason) if reason else None


def _refused_read(request: Any) -> Any:
    """A GET that would change something: its body may hold a mutation of GraphQL. It is refused, so there is nothing to log."""
    if not changes_something(request, action_of(request)):
        return None
    return _refused("Send a mutation with POST.", 405, "INVALID_PARAMETER_VALUE")


def _note_user(response: Any) -> Any:
    """Flask hook for every answer: who signed in, also where MLflow refused before our rules were asked."""
    from flask import g

    seen = _seen.get(None)
    if seen is not None and seen.user is None and (user := g.get("mlflow_authenticated_user")):
        seen.user, seen.roles = user, roles_of(user) if seen.changes else ()
    return response


def _refused(reason: str, status: int = 403, code: str = "PERMISSION_DENIED") -> Any:
    from flask import jsonify

    answer = jsonify(error_code=code, message=reason)
    answer.status_code = status
    return answer


def _narrow_native_routes(permissions: Permissions) -> None:
    """Calls that FastAPI serves itself never reach the Flask hooks: put what binds there before MLflow's own check of each of them.

    The assistant works with the rights of the server's process, on its files and on the log, so it is left to the administrator, whom
    MLflow does not check.
    """
    import anyio
    from mlflow.server import auth

    find = auth._find_fastapi_validator

    def narrowed(path: str, method: str) -> Any:
        inner = find(path, method)
        if inner is None or method in SAFE_METHODS:
            return inner

        async def validator(username: str, request: Any) -> bool:
            roles = await anyio.to_thread.run_sync(roles_of, username)
            return ASSISTANT not in path and not permissions.only_reads(roles) and bool(await inner(username, request))

        return validator

    auth._find_fastapi_validator = narrowed


def _serve_audit(flask_app: Any, path: Path, permissions: Permissions) -> None:
    """A route that gives the log's head and lines to the roles that may read it, and one that tells everybody whether it is whole."""
    from flask import Response, g, jsonify, request
    from mlflow.server.auth import BEFORE_REQUEST_VALIDATORS
    from mlflow.server.handlers import _add_static_prefix

    address = _add_static_prefix(audit.ENDPOINT)
    readers = {name for name, role in permissions.roles.items() if role.reads_audit}

    def give() -> Any:
        head = audit.read_head(path)  # before the log, which only grows
        lines = path.read_bytes() if path.exists() else b""
        first = audit.head_bytes(head) if head else b""
        return Response(first + b"\n" + lines, mimetype="application/x-ndjson")

    @functools.lru_cache(maxsize=16)
    def examined(_: Any, entry: int) -> audit.LogState:
        return audit.state_of(path, "the audit log of this server", entry)

    def tell() -> Any:
        asked = request.args.get("entry", "0")
        files = [file.stat() for file in (path, audit.head_file(path)) if file.exists()]
        # Nobody sets back when a file was last changed (ctime), as they can what stands there as its time (mtime).
        unchanged = tuple((of.st_ino, of.st_size, of.st_ctime_ns) for of in files)
        number = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 19 else 0
        return jsonify(examined(unchanged, number)._asdict() if files else {"fault": "", "digest": None})

    flask_app.add_url_rule(address, "scalingnote_audit", give)
    BEFORE_REQUEST_VALIDATORS[address, "GET"] = lambda: bool(readers & set(roles_of(g.mlflow_authenticated_user)))
    state = _add_static_prefix(audit.STATE_ENDPOINT)
    flask_app.add_url_rule(state, "scalingnote_audit_state", tell)
    BEFORE_REQUEST_VALIDATORS[state, "GET"] = lambda: True


def _serve_policies(flask_app: Any) -> None:
    """The policies are for everybody who signs in; MLflow refuses a route that no validator lets through."""
    from mlflow.server.auth import BEFORE_REQUEST_VALIDATORS

    BEFORE_REQUEST_VALIDATORS[serve_policies(flask_app), "GET"] = lambda: True


class AuditLayer:
    """ASGI layer around the whole server: no mutating call is answered before its entry is on the disk.

    `may_read` tells of method and path whether the call perhaps only reads: such go on where the log is damaged, so that what serves does.
    """

    def __init__(self, inner: App, path: Path, may_read: Callable[[str, str], bool] = lambda method, path: False) -> None:
        self.inner = inner
        self.path = path
        self.may_read = may_read

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        """Pass reading calls through; hold the answer of others until they are logged."""
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS:
            await self.inner(scope, receive, send)
            return
        scope.setdefault("state", {})
        seen, answer = Seen(), Answer()
        token = _seen.set(seen)
        try:
            seen.unwritable = await self._unwritable()
            if not seen.unwritable or self.may_read(scope["method"], scope["path"]):
                await self.inner(scope, receive, answer.hold)
            if seen.unwritable and seen.changes is not False:
                answer.replace(503, "TEMPORARILY_UNAVAILABLE", seen.unwritable)
        except Exception:
            await self._log(scope, seen, Answer(status=500))
            raise
        finally:
            _seen.reset(token)
        await self._log(scope, seen, answer)
        await answer.release(send)

    async def _unwritable(self) -> str:
        """Why no entry can be written; empty where one can."""
        import anyio

        try:
            await anyio.to_thread.run_sync(audit.check_end, self.path)
        except (ScalingNoteError, OSError) as error:
            return f"Nothing can be changed while the audit log cannot be written: {error}"
        return ""

    async def _log(self, scope: Any, seen: Seen, answer: Answer) -> None:
        import anyio

        if answer.unlogged or seen.changes is False or (seen.changes is None and _only_reads(scope)):
            return
        answer.explain_refusal(seen)
        try:
            await anyio.to_thread.run_sync(audit.append_entry, self.path, _fields(scope, seen, answer))
        except Exception as error:  # whatever it is, the call was carried out
            answer.replace(500, "INTERNAL_ERROR", f"The call was carried out, but its audit entry could not be written: {error}")


def _only_reads(scope: Any) -> bool:
    """Whether a call that Flask did not serve went to a function that only reads; the path alone says nothing."""
    served = scope.get("endpoint")
    return hasattr(served, "__name__") and is_reading(native_action(scope["method"], scope["path"], served))


def _fields(scope: Any, seen: Seen, answer: Answer) -> dict[str, Any]:
    headers = dict(scope["headers"])
    client = scope.get("client")
    user = seen.user or scope["state"].get("username")
    outcome = "ok" if answer.status < 300 else "refused" if answer.status in (401, 403) else "failed"  # a redirect did nothing
    subject = seen.subject or fields_of(scope.get("path_params") or {})
    return {
        "user": user,
        "roles": seen.roles or (roles_of(user) if user else ()),
        "method": scope["method"],
        "path": scope["path"][:500],
        "action": seen.action or native_action(scope["method"], scope["path"], scope.get("endpoint")),
        "subject": subject | (answer.made() if outcome == "ok" else {}),
        "address": client[0] if client else None,
        "user_agent": headers.get(b"user-agent", b"").decode("latin-1")[:200] or None,
        "status": answer.status,
        "outcome": outcome,
    }
