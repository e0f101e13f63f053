"""A small receiver for MLflow's webhooks that wakes the promote flow: one process, which keeps looking by itself as well.

In MLflow make a webhook to this address with the events `model_version.created` and `model_version_tag.set` and the same secret; the
server must have `MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY`, or it stops signing when it is restarted.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from components.errors import ConfigError
from components.promotion.deliveries import MAX_BODY, Deliveries, DeliveryError

SECRET = "SCALINGNOTE_WEBHOOK_SECRET"
MAX_DIGITS = 12
MAX_DISCARDED = 20 * MAX_BODY  # bytes of a body that is too long
Wake = Callable[[], None]


def secret() -> str:
    """The secret that both sides share; raises ConfigError when it is not set."""
    found = os.environ.get(SECRET, "")
    if not found:
        raise ConfigError(f"The environment variable {SECRET} is not set. Put the secret of the webhook in MLflow there.")
    return found


@contextmanager
def receiving(address: tuple[str, int], deliveries: Deliveries, wake: Wake) -> Iterator[int]:
    """Receive in a thread of its own as long as the block runs; gives the port. `wake` is called for each event that may matter."""
    try:
        server = _Server(address, deliveries, wake)
    except OSError as error:
        raise ConfigError(f"Nothing can listen on {address[0]}:{address[1]}: {error.strerror}. Choose another --port or --host.") from None
    thread = threading.Thread(target=server.serve_forever, name="webhook", daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], deliveries: Deliveries, wake: Wake) -> None:
        self.deliveries, self.wake, self.lock = deliveries, wake, threading.Lock()
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a sender that hangs up while it is answered is no failure of ours."""


class _Handler(BaseHTTPRequestHandler):
    """One delivery: 202 when it wakes the flow, 200 when it is about something else, 4xx when it is refused."""

    server: _Server
    timeout = 10  # seconds: a sender that stops half-way must not keep its thread
    error_content_type = "application/json"
    error_message_format = '{"message": "%(explain)s"}'

    def do_POST(self) -> None:
        try:
            matters = self._accept()
        except DeliveryError as error:
            self._answer(error.status, str(error))
            return
        if matters:
            self.server.wake()
        self._answer(202 if matters else 200, "looking" if matters else "not about this retriever")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Every method but POST comes here as "not implemented"."""
        if code == HTTPStatus.NOT_IMPLEMENTED:
            self._answer(405, "Deliveries are sent with POST.")
        else:
            super().send_error(code, message, explain)

    def _accept(self) -> bool:
        body = self._body()
        if urlsplit(self.path).path != "/":
            raise DeliveryError(404, "Deliveries are received at the path / alone.")
        with self.server.lock:  # two deliveries with one id at the same moment
            return self.server.deliveries.accept(dict(self.headers.items()), body, time.time())

    def _body(self) -> bytes:
        given = self.headers.get("Content-Length", "")
        if not (given.isascii() and given.isdigit()):
            raise DeliveryError(411, "The header Content-Length is missing or holds no number.")
        if len(given) > MAX_DIGITS or int(given) > MAX_BODY:
            self._discard(int(given[:MAX_DIGITS]))
            raise DeliveryError(413, f"The body is longer than {MAX_BODY} bytes, which no delivery of MLflow is.")
        return self.rfile.read(int(given))

    def _discard(self, length: int) -> None:
        """Read what is sent, up to a limit: a sender that is cut off while it sends never sees the answer."""
        left = min(length, MAX_DISCARDED)
        while left and (chunk := self.rfile.read(min(left, 1 << 16))):
            left -= len(chunk)

    def _answer(self, status: int, message: str) -> None:
        content = json.dumps({"message": message}).encode()
        self.send_response(status)
        if status == 405:
            self.send_header("Allow", "POST")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: stdout holds what the flow did, and a flood of wrong deliveries must not fill a disk."""
