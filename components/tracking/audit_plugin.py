"""The `mlflow.app` plugin: MLflow's basic auth, our rules before every handler, and one audit entry for every mutating call.

Two layers. Hooks in the Flask app know the route, its parsed body and the user who signed in, and refuse what a rule forbids. An ASGI
layer around everything sees calls that never reach Flask too, holds each answer back until its entry is on the disk, and lets no
mutating call through while the log is damaged. Both are wired to internals of MLflow 3.17; the tests of the server guard them.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components import settings
from components.errors import ArtifactError, ConfigError, ScalingNoteError
from components.tracking import audit
from components.tracking.calls import action_of, changes_something, native_action, subject_of
from components.tracking.roles import Call, Permissions, load_permissions, refusal
from components.tracking.server_world import ServerWorld, roles_of

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass
class Seen:
    """What the Flask hooks learned of a call. `changes` stays None for a call that did not reach Flask."""

    action: str = ""
    changes: bool | None = None
    subject: dict[str, str] = field(default_factory=dict)
    user: str | None = None
    roles: tuple[str, ...] = ()


_seen: ContextVar[Seen] = ContextVar("seen")


def create_app() -> App:
    """Factory for `mlflow server --app-name scalingnote`; raises ConfigError for a bad permissions file or another server than uvicorn."""
    from mlflow.server import app as flask_app
    from mlflow.server.auth import create_app as create_auth_app

    permissions = load_permissions()
    flask_app.before_request(_note_call)  # before MLflow's own hooks, which end the chain for a call they refuse
    inner = create_auth_app(flask_app)
    if inner is flask_app:
        raise ConfigError("The app 'scalingnote' runs on uvicorn alone; start `mlflow server` without --gunicorn-opts and --waitress-opts.")
    path = settings.audit_log()
    world = ServerWorld(path)
    flask_app.before_request(lambda: _enforce(permissions, world))
    flask_app.after_request(_note_user)
    _serve_audit(flask_app, path, permissions)
    return AuditLayer(inner, path)


def _note_call() -> None:
    """Flask hook: remember what is asked for, before anything can refuse it."""
    from flask import request

    seen = _seen.get(None)
    if seen is None:
        return
    seen.action = action_of(request)
    seen.changes = changes_something(request, seen.action)
    if seen.changes:
        seen.subject = subject_of(request, seen.action)


def _enforce(permissions: Permissions, world: ServerWorld) -> Any:
    """Flask hook after MLflow's: a JSON refusal when a rule forbids the call, None to go on."""
    from flask import g, request

    seen = _seen.get(None)
    user = g.get("mlflow_authenticated_user")
    if seen is None or user is None:
        return None
    seen.user = user
    if not seen.changes:
        return None
    seen.roles = roles_of(user)
    subject = seen.subject = world.complete(seen.subject)
    call = Call(user, seen.roles, seen.action, subject, _tags(request))
    try:
        reason = refusal(call, permissions, world)
    except ArtifactError as error:
        reason = str(error)
    return _refused(reason) if reason else None


def _note_user(response: Any) -> Any:
    """Flask hook for every answer: who signed in, also where MLflow refused before our rules were asked."""
    from flask import g

    seen = _seen.get(None)
    if seen is not None and seen.user is None and (user := g.get("mlflow_authenticated_user")):
        seen.user, seen.roles = user, roles_of(user) if seen.changes else ()
    return response


def _tags(request: Any) -> Mapping[str, str]:
    from components.tracking.calls import body_of

    listed = body_of(request).get("tags")
    found = listed if isinstance(listed, list) else []
    return {str(tag.get("key")): str(tag.get("value", "")) for tag in found if isinstance(tag, dict)}


def _refused(reason: str) -> Any:
    from flask import jsonify

    answer = jsonify(error_code="PERMISSION_DENIED", message=reason)
    answer.status_code = 403
    return answer


def _serve_audit(flask_app: Any, path: Path, permissions: Permissions) -> None:
    """A route that gives the log's head and lines to the roles that may read it."""
    from flask import Response, g
    from mlflow.server.auth import BEFORE_REQUEST_VALIDATORS

    readers = {name for name, role in permissions.roles.items() if role.reads_audit}

    def give() -> Any:
        head = audit.read_head(path)  # before the log, which only grows
        lines = path.read_bytes() if path.exists() else b""
        first = audit.head_bytes(head) if head else b""
        return Response(first + b"\n" + lines, mimetype="application/x-ndjson")

    flask_app.add_url_rule(audit.ENDPOINT, "scalingnote_audit", give)
    BEFORE_REQUEST_VALIDATORS[audit.ENDPOINT, "GET"] = lambda: bool(readers & set(roles_of(g.mlflow_authenticated_user)))


class AuditLayer:
    """ASGI layer around the whole server: no mutating call is answered before its entry is on the disk."""

    def __init__(self, inner: App, path: Path) -> None:
        self.inner = inner
        self.path = path

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        """Pass reading calls through; hold the answer of others until they are logged."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.inner(scope, receive, send)
            return
        scope.setdefault("state", {})
        seen, answer = Seen(), Answer()
        token = _seen.set(seen)
        try:
            if await self._is_writable(answer):
                await self.inner(scope, receive, answer.hold)
        except Exception:
            await self._log(scope, seen, Answer(status=500))
            raise
        finally:
            _seen.reset(token)
        await self._log(scope, seen, answer)
        await answer.release(send)

    async def _is_writable(self, answer: Answer) -> bool:
        import anyio

        try:
            await anyio.to_thread.run_sync(audit.check_end, self.path)
        except (ScalingNoteError, OSError) as error:
            answer.replace(503, "TEMPORARILY_UNAVAILABLE", f"Nothing can be changed while the audit log cannot be written: {error}")
            return False
        return True

    async def _log(self, scope: Any, seen: Seen, answer: Answer) -> None:
        import anyio

        if answer.unlogged or seen.changes is False or (seen.changes is None and scope["path"].endswith("/search")):
            return
        answer.explain_refusal(seen)
        fields = _fields(scope, seen, answer)
        try:
            await anyio.to_thread.run_sync(audit.append_entry, self.path, fields)
        except (ScalingNoteError, OSError) as error:
            answer.replace(500, "INTERNAL_ERROR", f"The call was carried out, but its audit entry could not be written: {error}")


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

    def value(self) -> Mapping[str, Any]:
        """The JSON object in the answer, empty when there is none."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def _fields(scope: Any, seen: Seen, answer: Answer) -> dict[str, Any]:
    headers = dict(scope["headers"])
    client = scope.get("client")
    user = seen.user or scope["state"].get("username")
    outcome = "ok" if answer.status < 400 else "refused" if answer.status in (401, 403) else "failed"
    return {
        "user": user,
        "roles": seen.roles or (roles_of(user) if user else ()),
        "method": scope["method"],
        "path": scope["path"][:500],
        "action": seen.action or native_action(scope["method"], scope["path"]),
        "subject": seen.subject | (_made(answer.value()) if outcome == "ok" else {}),
        "address": client[0] if client else None,
        "user_agent": headers.get(b"user-agent", b"").decode("latin-1")[:200] or None,
        "status": answer.status,
        "outcome": outcome,
    }


def _made(answer: Mapping[str, Any]) -> dict[str, str]:
    """Names that the server gave: version, run, experiment, logged model."""
    run, version, logged = answer.get("run", {}), answer.get("model_version", {}), answer.get("model", {})
    found = {
        "version": version.get("version"),
        "run": run.get("info", {}).get("run_id"),
        "experiment_id": answer.get("experiment_id"),
        "logged_model": logged.get("info", {}).get("model_id"),
    }
    return {key: str(value) for key, value in found.items() if value}
