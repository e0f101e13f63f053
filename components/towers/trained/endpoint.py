"""A teacher behind an address: `/embeddings` as OpenAI, vLLM and TEI have it, asked in batches, in parallel and with patience.

The key comes from the environment or from a file that it names, and goes into no record, message or artifact. What the server holds may
change without a word, so the probe texts are asked anew whenever a tower is opened.
"""

from __future__ import annotations

import base64
import email.utils
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.artifacts import Artifact, Scalar, digest_of, read_json, seal, write_json
from components.errors import ConfigError, ModelError
from components.progress import Progress, counting
from components.towers.config import EndpointConfig, TowerConfig
from components.towers.contract import (
    PROBE_TEXTS,
    ROLES,
    EncodingContract,
    Role,
    check_probes,
    load_contract,
    record_probes,
    save_contract,
    space_id_of,
)

BASE = "endpoint"  # what `towers.base_model` names
FILE = "endpoint.json"
KEY, KEY_FILE = "SCALINGNOTE_ENDPOINT_KEY", "SCALINGNOTE_ENDPOINT_KEY_FILE"
BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # worth another try
REFUSED = {401: "refuses the key", 403: "refuses the key", 404: "knows no such address or model", 413: "finds the request too large"}
PROBE_TOLERANCE = 1e-3  # 1 - cosine; servers that batch requests differ in the fourth digit
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
CHARACTERS_PER_TOKEN = 4  # where tokens are guessed
# The settings of an endpoint lie in the tower, whose digest is in the key of what is encoded with it.
AGAIN = (
    "Finished shards are kept: the same command goes on from there, later or at once. With other settings in towers.endpoint all "
    "documents are sent again."
)
LIMITED = (
    "Finished shards are kept: the same command goes on from there and counts anew. Where it ends here once more, no shard has room below "
    "the limit: raise it, with which all documents are sent again, or take less data."
)
_SHOWN = 120


class EndpointEncoder:
    """An encoder that asks a server (see `components.towers.contract.TextEncoder`); `tokens` counts what the server says it has read."""

    def __init__(self, endpoint: EndpointConfig, contract: EncodingContract, space_id: str, width: int | None = None) -> None:
        """`width`: dimensions of the server's own vectors, where they are known; the contract may keep fewer."""
        self.contract, self.space_id, self.width, self.tokens = contract, space_id, width, 0
        self._endpoint, self._lock = endpoint, threading.Lock()

    def encode(self, texts: Sequence[str], batch_size: int | None = None, progress: Progress = None) -> NDArray[np.float32]:
        """Unit float32 vectors (len(texts), dimension), in the order of `texts`.

        Raises ModelError for a server that refuses, stays busy beyond its patience, gives another dimension than before, or answers with
        something else than vectors; ConfigError when a limit of tokens or cost is reached.
        """
        size = min(batch_size or self._endpoint.batch_size, self._endpoint.batch_size)
        prompted = [self.contract.prompt + text for text in texts]
        batches = [prompted[start : start + size] for start in range(0, len(prompted), size)]
        found: list[NDArray[np.float32]] = []
        given_up = threading.Event()  # of this call alone: who asks after a failure is as patient as before
        with ThreadPoolExecutor(self._endpoint.concurrency, "endpoint") as threads, counting(progress, len(texts), "text") as done:
            try:
                for vectors in threads.map(partial(self._answer, given_up=given_up), batches):
                    found.append(vectors)
                    done(len(vectors))
            except BaseException:
                given_up.set()  # else those that wait for a busy server would go on waiting
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        return np.concatenate(found) if found else np.empty((0, self.contract.dimension), np.float32)

    def _answer(self, texts: list[str], given_up: threading.Event) -> NDArray[np.float32]:
        # Counted before it is sent, so that no limit is passed; corrected by what the server says.
        expected = guessed_tokens(texts)
        with self._lock:
            require_within(self._endpoint, self.tokens + expected, "This run would use", LIMITED)
            self.tokens += expected
        # Servers refuse a text without anything in it.
        body = {"model": self._endpoint.model, "input": [text or " " for text in texts], "encoding_format": "float"}
        raw = _asked(self._endpoint, body, given_up)
        vectors = _vectors(raw, len(texts), self._endpoint)
        with self._lock:
            self.tokens += _used(raw, expected) - expected
            self.width = self.width or vectors.shape[1]
        if vectors.shape[1] != self.width:
            endpoint_width.cache_clear()  # a process that lives on asks again
            raise ModelError(
                f"{_named(self._endpoint)} gave vectors of {vectors.shape[1]} dimensions, and {self.width} before: the model behind the "
                "address has changed. Nothing of this answer was kept; restore the former model, or build with the new one from the start."
            )
        kept = vectors[:, : self.contract.dimension or None]
        return (kept / np.linalg.norm(kept, axis=1, keepdims=True)).astype(np.float32)


def take_endpoint(config: TowerConfig, parents: Mapping[str, str], folder: Path) -> Artifact:
    """Write both towers of the model behind `config.endpoint`: contracts, and the vectors of the probe texts as it gives them today.

    Raises ModelError as `EndpointEncoder.encode` does, for a server that gives one text two vectors, and for one whose vectors have
    another width than when the configuration was checked.
    """
    endpoint, contracts = config.endpoint, {}
    for role in ROLES:
        bare = _contract(role, config, 0, "")
        encoder = EndpointEncoder(endpoint, bare, "", endpoint_width(endpoint))
        vectors = encoder.encode(PROBE_TEXTS)
        width = config.dimension or vectors.shape[1]
        if width > vectors.shape[1]:
            raise ModelError(f"towers.dimension is {width}, but {_named(endpoint)} gives {vectors.shape[1]}. Give as many at most.")
        # Enough digits to tell two models apart, and few enough for two answers of one model to agree.
        contracts[role] = _contract(role, config, width, digest_of([endpoint.model, np.round(vectors.astype(float), 2).tolist()]))
    space_id = space_id_of(contracts["document"])
    for role, contract in contracts.items():
        target = folder / f"{role}_tower"
        target.mkdir(parents=True, exist_ok=True)
        write_json(target / FILE, {"endpoint": endpoint.model_dump(), "width": encoder.width})
        save_contract(target, contract, space_id)
        record_probes(EndpointEncoder(endpoint, contract, space_id, encoder.width), target)
        load_endpoint(target)
        attributes: dict[str, Scalar] = {"space_id": space_id, "role": role, "dimension": contract.dimension, "base_model": BASE}
        seal(target, "encoder", counts={"probes": len(PROBE_TEXTS)}, parents=parents, attributes=attributes)
    return seal(folder, "towers", parents=parents, attributes={"steps": 0})


def load_endpoint(folder: Path) -> EndpointEncoder:
    """Open a tower behind an address and ask it the probe texts; raises ProbeMismatch where it gives other vectors than recorded."""
    contract, space_id = load_contract(folder)
    kept = read_json(folder / FILE)
    encoder = EndpointEncoder(EndpointConfig.model_validate(kept["endpoint"]), contract, space_id, int(kept["width"]))
    check_probes(encoder, folder, PROBE_TOLERANCE)
    return encoder


@cache  # a configuration is checked in several places, and each question may cost
def endpoint_width(endpoint: EndpointConfig) -> int:
    """Dimensions of the server's vectors, from one text; raises ModelError as `EndpointEncoder.encode` does."""
    bare = _contract("query", TowerConfig(base_model=BASE, endpoint=endpoint), 0, "")
    return int(EndpointEncoder(endpoint, bare, "").encode(PROBE_TEXTS[:1]).shape[1])


def guessed_tokens(texts: Iterable[str]) -> int:
    """About how many tokens the texts have, by their characters; what the server counts may be a third more or less."""
    return sum(1 + len(text) // CHARACTERS_PER_TOKEN for text in texts)


def require_within(endpoint: EndpointConfig, tokens: int, said: str, advice: str = "Raise it, or take less data.") -> None:
    """Raise ConfigError when `tokens` are above the limits; `said` begins the sentence, `advice` ends it."""
    cost = tokens * endpoint.price / 1e6
    if endpoint.max_tokens is not None and tokens > endpoint.max_tokens:
        raise ConfigError(f"{said} about {tokens:,} tokens, above towers.endpoint.max_tokens ({endpoint.max_tokens:,}). {advice}")
    if endpoint.max_cost is not None and cost > endpoint.max_cost:
        raise ConfigError(
            f"{said} about {tokens:,} tokens, which cost {cost:,.2f}, above towers.endpoint.max_cost ({endpoint.max_cost:,.2f}). {advice}"
        )


def _contract(role: Role, config: TowerConfig, width: int, digest: str) -> EncodingContract:
    return EncodingContract(
        role=role,
        base_model=BASE,
        base_digest=digest,
        adapter_digest=None,
        tokenizer_digest="unknown",
        pooling="unknown",
        normalize=True,
        prompt=config.query_prompt if role == "query" else config.document_prompt,
        append_eos=False,
        max_length=config.max_query_length if role == "query" else config.max_document_length,
        dimension=width,
        form="endpoint",
    )


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A key must not follow a redirection to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _asked(endpoint: EndpointConfig, body: Mapping[str, Any], given_up: threading.Event) -> dict[str, Any]:
    """The server's answer as JSON, tried again where it is busy or silent until the patience ends or `given_up` is set."""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if key := _key():
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(f"{endpoint.url}/embeddings", json.dumps(body).encode(), headers)
    opener = urllib.request.build_opener(_NoRedirects)
    deadline, wait = time.monotonic() + endpoint.patience, FIRST_WAIT
    while True:
        try:
            with opener.open(request, timeout=endpoint.timeout) as answer:
                return _parsed(answer.read(), str(answer.headers.get("Content-Type", "")), endpoint)
        except urllib.error.HTTPError as error:
            reason = f"status {error.code}"
            if error.code not in BUSY:
                raise ModelError(_refusal(endpoint, error)) from None
            asked = _retry_after(error.headers.get("Retry-After"))
        except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
            reason, asked = str(getattr(error, "reason", None) or error or type(error).__name__), None
        pause = wait if asked is None else asked
        if time.monotonic() + pause > deadline or given_up.wait(pause):
            raise ModelError(
                f"{_named(endpoint)} does not answer ({reason}) within the {endpoint.patience:g} seconds of towers.endpoint.patience. "
                + AGAIN
            )
        wait = min(2 * wait, LONGEST_WAIT)


def _key() -> str:
    """The key, empty where none is set; raises ConfigError for a file that cannot be read."""
    if key := os.environ.get(KEY, "").strip():
        return key
    if not (path := os.environ.get(KEY_FILE)):
        return ""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        raise ConfigError(f"The file that {KEY_FILE} names cannot be read ({type(error).__name__}). Correct the variable.") from None


def _retry_after(said: str | None) -> float | None:
    """Seconds that a busy server asks to wait, given as a number or as a date; None where it says nothing that can be read."""
    if not said:
        return None
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _refusal(endpoint: EndpointConfig, error: urllib.error.HTTPError) -> str:
    why = REFUSED.get(error.code, "refuses the request")
    said = " ".join(error.read(2000).decode("utf-8", "replace").split())[:_SHOWN]
    key = _key()
    said = said.replace(key, "***") if key else said
    keys = dict.fromkeys((401, 403), f"Set {KEY} or {KEY_FILE}")
    advices = {**keys, 413: "Lower towers.endpoint.batch_size"}
    advice = advices.get(error.code, "Check towers.endpoint.url and towers.endpoint.model")
    return f"{_named(endpoint)} {why} (status {error.code}{f': {said}' if said else ''}). {advice}."


def _parsed(content: bytes, kind: str, endpoint: EndpointConfig) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("data"), list):
        begins = " ".join(content[:400].decode("utf-8", "replace").split())[:_SHOWN]
        raise ModelError(
            f"{_named(endpoint)} answers with {kind.partition(';')[0] or 'something'} that holds no embeddings: '{begins}'. Check the "
            "address, which usually ends with /v1."
        )
    return found


def _vectors(raw: Mapping[str, Any], count: int, endpoint: EndpointConfig) -> NDArray[np.float32]:
    """float32 (count, dimensions) in the order of the texts."""
    try:
        rows = sorted(enumerate(raw["data"]), key=lambda pair: pair[1].get("index", pair[0]))
        vectors = [_numbers(row["embedding"]) for _, row in rows]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ModelError(
            f"{_named(endpoint)} gave an answer without an embedding for each text. It is not an OpenAI-shaped server."
        ) from None
    if len(vectors) != count:
        raise ModelError(f"{_named(endpoint)} gave {len(vectors)} vectors for {count} texts. Lower towers.endpoint.batch_size.")
    widths = {len(vector) for vector in vectors}
    if len(widths) != 1:
        raise ModelError(
            f"{_named(endpoint)} gave vectors of {sorted(widths)} dimensions in one answer: more than one model answers there."
        )
    found = np.stack(vectors)
    if not np.isfinite(found).all() or not (np.linalg.norm(found, axis=1) > 1e-9).all():
        raise ModelError(f"{_named(endpoint)} gave vectors that are zero or not finite. Look at the server's own log.")
    return found


def _used(raw: Mapping[str, Any], guessed: int) -> int:
    """Tokens that the server says it has read; the guess where it says nothing."""
    usage = raw.get("usage")
    said = usage.get("total_tokens") if isinstance(usage, Mapping) else None
    return said if isinstance(said, int) and said >= 0 else guessed


def _numbers(embedding: Any) -> NDArray[np.float32]:
    if isinstance(embedding, str):  # some servers give base64 whatever was asked for
        return np.frombuffer(base64.b64decode(embedding), "<f4").astype(np.float32)
    return np.asarray(embedding, np.float32).reshape(-1)


def _named(endpoint: EndpointConfig) -> str:
    return f"The endpoint {endpoint.url} ('{endpoint.model}')"
