"""The answer of the server to one call, held back until the call is in the audit log, and what was learned of the call meanwhile."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol

Message = MutableMapping[str, Any]


class Send(Protocol):
    """ASGI's way to answer."""

    async def __call__(self, message: Message, /) -> None:
        """Send one message."""


@dataclass
class Seen:
    """What the Flask hooks learned of a call. `changes` stays None for a call that did not reach Flask."""

    action: str = ""
    changes: bool | None = None
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
    run, version, logged = answer.get("run", {}), answer.get("model_version", {}), answer.get("model", {})
    found = {
        "version": version.get("version"),
        "run": run.get("info", {}).get("run_id"),
        "experiment_id": answer.get("experiment_id"),
        "logged_model": logged.get("info", {}).get("model_id"),
    }
    return {key: str(value) for key, value in found.items() if value}
