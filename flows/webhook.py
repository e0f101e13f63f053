"""Promotion that keeps looking, and a small receiver for MLflow's webhooks that wakes it: one process.

It looks cheaply at the registry, and runs the whole flow only when there is something to do; it loads Prefect then and not before. Looking
is the truth and a webhook only makes it sooner, so a delivery that was lost costs a moment, not a promotion. The loop keeps no state that
matters: killed at any point, it is started again.

The signature is MLflow's version 1: `v1,<base64 of HMAC-SHA256 over "{delivery id}.{timestamp}.{body}">`. A delivery decides nothing: the
flow reads the registry and verifies all again, so whatever got past this could only make it look sooner.

In MLflow make a webhook to this address with the events `model_version.created` and `model_version_tag.set` and the same secret; the
server must have `MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY`, or it stops signing when it is restarted. An address of http, or of a private
network, it takes only with `MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https` and `MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from components.errors import ConfigError, PromotionError, ScalingNoteError
from components.release.champion import candidate_model, release_model
from components.text import whole_number

SIGNATURE, TIMESTAMP, DELIVERY_ID = "X-MLflow-Signature", "X-MLflow-Timestamp", "X-MLflow-Delivery-Id"
WINDOW_SECONDS = 300
MIN_SECRET = 16
MAX_BODY = 1_000_000  # bytes; MLflow's payloads have a few thousand


class DeliveryError(PromotionError):
    """A delivery that is refused; `status` is the HTTP status to answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Deliveries:
    """Accepts the deliveries for the retriever `name`, signed with `secret`, each once.

    Ids are remembered as long as their time stamp is acceptable; a restart forgets them. Raises ConfigError for a secret that is too short.
    """

    name: str
    secret: str
    window: int = WINDOW_SECONDS
    _seen: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.secret) < MIN_SECRET:
            raise ConfigError(
                f"The secret of the webhook has {len(self.secret)} characters; at least {MIN_SECRET} are needed. Put the one that the "
                "webhook has in MLflow into SCALINGNOTE_WEBHOOK_SECRET."
            )

    def accept(self, headers: Mapping[str, str], body: bytes, now: float) -> bool:
        """Whether the event is about candidates or releases of this retriever; `now` is the time in seconds since 1970.

        Raises DeliveryError for a missing header, a wrong signature, a time stamp outside of the window, or a delivery that came before.
        """
        given = {key.lower(): value for key, value in headers.items()}
        signature, stamp, delivery = (given.get(key.lower(), "") for key in (SIGNATURE, TIMESTAMP, DELIVERY_ID))
        if missing := [key for key in (SIGNATURE, TIMESTAMP, DELIVERY_ID) if not given.get(key.lower())]:
            raise DeliveryError(400, f"The header {missing[0]} is missing. Give the webhook in MLflow a secret, so that it signs.")
        if not hmac.compare_digest(signature.encode(), sign(self.secret, delivery, stamp, body).encode()):
            raise DeliveryError(401, "The signature does not fit the delivery. Both sides need the same secret.")
        self._require_fresh(delivery, stamp, now)
        return _model(body) in (release_model(self.name), candidate_model(self.name))

    def _require_fresh(self, delivery: str, stamp: str, now: float) -> None:
        """Called after the signature holds: what is not signed leaves no trace here."""
        sent = whole_number(stamp)
        if sent is None or abs(now - sent) > self.window:
            raise DeliveryError(
                401, f"The time stamp '{stamp[:40]}' is not within {self.window} seconds of {int(now)}. Compare both clocks."
            )
        self._seen = {known: time for known, time in self._seen.items() if now - time <= self.window}
        if delivery in self._seen:
            raise DeliveryError(409, f"The delivery {delivery} was accepted before.")
        self._seen[delivery] = float(sent)


def sign(secret: str, delivery: str, stamp: str, body: bytes) -> str:
    """The signature that MLflow puts into its header."""
    mac = hmac.new(secret.encode(), f"{delivery}.{stamp}.".encode() + body, hashlib.sha256)
    return "v1," + base64.b64encode(mac.digest()).decode()


def _model(body: bytes) -> str | None:
    """Name of the registered model that the event is about."""
    try:
        event: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise DeliveryError(400, "The body is not JSON.") from None
    data = event.get("data") if isinstance(event, dict) else None
    return str(data.get("name")) if isinstance(data, dict) else None


# --- Looking


Tell = Callable[[dict[str, Any]], None]


@dataclass
class Watch:
    """Looks every `seconds`, or at once when `wake` is set; `stop` ends it. `tell` gets each change and each refusal once.

    With `emit` it promotes nothing itself: it tells Prefect once of what waits (see `flows.reporting.tell_approved`), whose automation
    starts the deployment `promote` where the promoter's account and keys are.
    """

    name: str
    seconds: float
    tell: Tell
    emit: bool = False
    wake: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    _said: str | None = None
    _emitted: str | None = None  # the state that Prefect was told of

    def run(self) -> None:
        """Look until `stop` is set. An error that the user can act on is told, and looked at again; any other one ends the loop."""
        while not self.stop.is_set():
            self.wake.clear()  # before looking: what comes meanwhile is looked at next
            try:
                self.look()
            except ScalingNoteError as error:
                self._tell_once(str(error))
            self.wake.wait(self.seconds)

    def look(self) -> None:
        """Promote when something waits that was not refused in this state before (see `refused_before`)."""
        from components.promotion.promote import note_look, promotion_fingerprint, refused_before

        state = promotion_fingerprint(self.name)
        if state is None:
            self._said = None
            return
        if self.emit:
            self._emit(state)
            return
        note_look(self.name)
        if refused_before(self.name) is None:
            from flows.servers import run_flow  # with Prefect, which a process that only looks does without

            self.tell(run_flow("flows.promote:promote", self.name))

    def _emit(self, state: str) -> None:
        from flows.reporting import tell_approved

        if state != self._emitted and tell_approved(self.name):
            self._emitted = state
            self.tell({"status": "told", "message": f"Prefect was told that an approved release of '{self.name}' waits.", "warnings": ()})

    def _tell_once(self, message: str) -> None:
        if message != self._said:
            self._said = message
            self.tell({"status": "refused", "message": message, "warnings": ()})


# --- A small receiver for MLflow's webhooks that wakes the promote flow: one process, which keeps looking by itself as well.


SECRET = "SCALINGNOTE_WEBHOOK_SECRET"
SECONDS = 10.0  # a sender that stops half-way must not keep its connection
CONNECTIONS = 64  # at a time; MLflow needs one
# Status -> what is said of calls that are no delivery.
_REFUSED = {404: "Deliveries are received at the path / alone.", 405: "Deliveries are sent with POST."}
Wake = Callable[[], None]


def secret() -> str:
    """The secret that both sides share; raises ConfigError when it is not set."""
    found = os.environ.get(SECRET, "")
    if not found:
        raise ConfigError(f"The environment variable {SECRET} is not set. Put the secret of the webhook in MLflow there.")
    return found


@contextmanager
def receiving(address: tuple[str, int], deliveries: Deliveries, wake: Wake) -> Iterator[int]:
    """Receive in a thread of its own as long as the block runs; gives the port. `wake` is called for each event that may matter.

    Raises ConfigError where nothing can listen at `address`.
    """
    try:
        socket.getaddrinfo(*address)  # of a name that is none it says so; binding it is a TypeError
        listener = socket.create_server(address, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    except (OSError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or "that is no name of a host"
        raise ConfigError(f"Nothing can listen on {address[0]}:{address[1]}: {said}. Choose another --port or --host.") from None
    # stdout holds what the flow did, and a flood of wrong deliveries must not fill a disk: only failures of our own are logged.
    options = uvicorn.Config(
        application(deliveries, wake), log_config=None, log_level="error", access_log=False, lifespan="off",
        limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(options)
    thread = threading.Thread(target=server.run, args=([listener],), name="webhook", daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def application(deliveries: Deliveries, wake: Wake) -> FastAPI:
    """One delivery a call: 202 when it wakes the flow, 200 when it is about something else, 4xx when it is refused.

    All calls are answered by one thread, so no two deliveries with one id are accepted.
    """
    app = FastAPI(openapi_url=None)  # without the schema there are no pages about it either

    @app.post("/")
    async def receive(request: Request) -> JSONResponse:
        matters = deliveries.accept(request.headers, await _body(request), time.time())
        if matters:
            wake()
        return JSONResponse({"message": "looking" if matters else "not about this retriever"}, 202 if matters else 200)

    @app.exception_handler(DeliveryError)
    async def refused(_request: Request, error: DeliveryError) -> JSONResponse:
        return JSONResponse({"message": str(error)}, error.status)

    @app.exception_handler(HTTPException)
    async def no_delivery(_request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"message": _REFUSED.get(error.status_code, error.detail)}, error.status_code, error.headers)

    return app


async def _body(request: Request) -> bytes:
    """What was sent. A body that is too long is read to its end: a sender that is cut off while it sends never sees the answer."""
    read = bytearray()
    try:
        async with asyncio.timeout(SECONDS):
            async for chunk in request.stream():
                read += chunk if len(read) <= MAX_BODY else b""
    except TimeoutError:
        raise DeliveryError(408, f"The body did not arrive within {SECONDS:.0f} seconds.") from None
    except ClientDisconnect:
        raise DeliveryError(400, "The sender hung up.") from None
    if len(read) > MAX_BODY:
        raise DeliveryError(413, f"The body is longer than {MAX_BODY} bytes, which no delivery of MLflow is.")
    return bytes(read)
