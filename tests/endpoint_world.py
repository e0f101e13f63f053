"""A server of embeddings on loopback, OpenAI-shaped, that can be busy, change, or not be one at all."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from numpy.typing import NDArray

Reply = tuple[int, bytes, dict[str, str]]


@dataclass
class Endpoint:
    """A running server. `replies` are given first, each once and before any vector; `width` is that of the vectors."""

    url: str
    width: int = 8
    model: str = "mini"
    base64: bool = False
    backwards: bool = False  # the vectors in another order than the texts, as their index allows
    key: str = ""
    replies: list[Reply] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    before: Callable[[Endpoint], None] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """What it gives for texts: the same words give the same directions."""
        rows = [sum((_word(word, self.width, self.model) for word in text.lower().split()), np.full(self.width, 1e-3)) for text in texts]
        return np.array(rows, np.float32)


def _word(word: str, width: int, model: str) -> NDArray[np.float64]:
    seed = int.from_bytes(hashlib.sha256(f"{model}:{word}".encode()).digest()[:4], "big")
    return np.random.default_rng(seed).standard_normal(width)


@contextmanager
def endpoint_on_loopback() -> Iterator[Endpoint]:
    """The server, until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1")
    server.endpoint = endpoint  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        endpoint: Endpoint = self.server.endpoint  # type: ignore[attr-defined]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with endpoint.lock:
            endpoint.requests.append(body)
            endpoint.headers.append(dict(self.headers))
            if endpoint.before:
                endpoint.before(endpoint)
            reply = endpoint.replies.pop(0) if endpoint.replies else self._reply(endpoint, body)
        status, content, headers = reply
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _reply(self, endpoint: Endpoint, body: dict[str, Any]) -> Reply:
        if self.path != "/v1/embeddings":
            return 404, b'{"error": "no such path"}', {}
        if endpoint.key and self.headers.get("Authorization") != f"Bearer {endpoint.key}":
            return 401, f"the key {self.headers.get('Authorization')} is wrong".encode(), {}
        rows = endpoint.vectors(body["input"])
        shown = [base64.b64encode(row.astype("<f4").tobytes()).decode() if endpoint.base64 else row.tolist() for row in rows]
        data = [{"index": n, "embedding": row} for n, row in enumerate(shown)]
        usage = {"total_tokens": sum(len(text.split()) for text in body["input"])}
        answer = {"data": data[::-1] if endpoint.backwards else data, "usage": usage}
        return 200, json.dumps(answer).encode(), {}
