"""A small receiver for MLflow's webhooks that wakes the promote flow: one process, which keeps looking by itself as well.

In MLflow make a webhook to this address with the events `model_version.created` and `model_version_tag.set` and the same secret; the
server must have `MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY`, or it stops signing when it is restarted.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from components.errors import ConfigError
from components.promotion.webhook_deliveries import MAX_BODY, Deliveries, DeliveryError

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
        listener = socket.create_server(address, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    except OSError as error:
        raise ConfigError(f"Nothing can listen on {address[0]}:{address[1]}: {error.strerror}. Choose another --port or --host.") from None
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
