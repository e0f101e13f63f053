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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from components.errors import ConfigError
from components.promotion.deliveries import MAX_BODY, Deliveries, DeliveryError

SECRET = "SCALINGNOTE_WEBHOOK_SECRET"
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
        server = ThreadingHTTPServer(address, _handler(deliveries, wake))
    except OSError as error:
        raise ConfigError(f"Nothing can listen on {address[0]}:{address[1]}: {error.strerror}. Choose another --port or --host.") from None
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="webhook", daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(deliveries: Deliveries, wake: Wake) -> type[BaseHTTPRequestHandler]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        """One delivery: 202 when it wakes the flow, 200 when it is about something else, 4xx when it is refused."""

        timeout = 10  # seconds: a sender that stops half-way must not keep its thread

        def do_POST(self) -> None:
            try:
                body = self._body()
                with lock:  # two deliveries with one id at the same moment
                    matters = deliveries.accept(dict(self.headers.items()), body, time.time())
            except DeliveryError as error:
                self._answer(error.status, str(error))
                return
            if matters:
                wake()
            self._answer(202 if matters else 200, "looking" if matters else "not about this retriever")

        def _body(self) -> bytes:
            length = self.headers.get("Content-Length", "")
            if not length.isdigit():
                raise DeliveryError(411, "The header Content-Length is missing.")
            if int(length) > MAX_BODY:
                raise DeliveryError(413, f"The body has {length} bytes; at most {MAX_BODY} are read.")
            return self.rfile.read(int(length))

        def _answer(self, status: int, message: str) -> None:
            content = json.dumps({"message": message}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing: stdout holds what the flow did, and a flood of wrong deliveries must not fill a disk."""

    return Handler
