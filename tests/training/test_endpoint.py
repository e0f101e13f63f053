"""A teacher behind an address: batches, patience, limits, and servers that change or are none."""

from __future__ import annotations

import email.utils
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from components.artifacts import digest_of
from components.distillation.student.initial import width_of
from components.errors import ConfigError, ModelError, ProbeMismatch
from components.towers.config import EndpointConfig, TowerConfig
from components.towers.contract import EncodingContract, space_id_of
from components.towers.encoder import load_tower, open_tower
from components.towers.trained.endpoint import KEY, KEY_FILE, EndpointEncoder, _contract, endpoint_width, guessed_tokens, take_endpoint
from components.towers.trained.published import with_own_settings
from tests.endpoint_world import Endpoint, endpoint_on_loopback

TEXTS = [f"text {n} of many" for n in range(23)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    for name in (KEY, KEY_FILE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("components.towers.trained.endpoint.FIRST_WAIT", 0.01)
    endpoint_width.cache_clear()
    with endpoint_on_loopback() as endpoint:
        yield endpoint


def asking(server: Endpoint, **changes: Any) -> EndpointConfig:
    return EndpointConfig(**{"url": server.url, "model": "mini", "batch_size": 5, "concurrency": 3, "patience": 5, **changes})


def encoder_of(server: Endpoint, **changes: Any) -> EndpointEncoder:
    config = TowerConfig(base_model="endpoint", endpoint=asking(server, **changes), query_prompt="q: ")
    return EndpointEncoder(config.endpoint, _contract("query", config, 0, ""), "space")


def test_vectors_come_back_in_the_order_of_the_texts_and_of_unit_length(server: Endpoint) -> None:
    server.backwards = True
    encoder = encoder_of(server)
    wanted = server.vectors([f"q: {text}" for text in TEXTS])
    assert np.allclose(encoder.encode(TEXTS), wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-6)
    assert sorted(len(request["input"]) for request in server.requests) == [3, 5, 5, 5, 5]
    assert encoder.encode([]).shape[0] == 0
    server.base64 = True
    assert np.allclose(encoder.encode(TEXTS[:2]), (wanted / np.linalg.norm(wanted, axis=1, keepdims=True))[:2], atol=1e-6)


def test_a_busy_server_is_asked_again_when_it_says(server: Endpoint) -> None:
    date = email.utils.format_datetime(email.utils.localtime())
    server.replies = [(429, b"", {"Retry-After": "0"}), (503, b"", {}), (429, b"", {"Retry-After": date}), (500, b"", {"Retry-After": "x"})]
    assert len(encoder_of(server, concurrency=1).encode(TEXTS[:4])) == 4
    assert len(server.requests) == 5


def test_an_encoder_is_as_patient_after_a_failure_as_before(server: Endpoint) -> None:
    encoder = encoder_of(server, concurrency=1)
    server.replies = [(400, b"", {}), (503, b"", {})]
    with pytest.raises(ModelError, match="status 400"):
        encoder.encode(TEXTS[:4])
    assert len(encoder.encode(TEXTS[:4])) == 4


def test_a_server_that_stays_busy_ends_the_run_within_its_patience(server: Endpoint) -> None:
    server.replies = [(429, b"", {"Retry-After": "86400"})] * 9
    with pytest.raises(ModelError, match=r"does not answer \(status 429\) within the 5 seconds of towers.endpoint.patience"):
        encoder_of(server).encode(TEXTS)


def test_a_server_that_is_gone_is_named(server: Endpoint) -> None:
    with pytest.raises(ModelError, match=r"The endpoint http://127.0.0.1:9/v1 \('mini'\) does not answer"):
        encoder_of(server, url="http://127.0.0.1:9/v1", patience=0.05).encode(["a"])


def _narrower(endpoint: Endpoint) -> None:
    endpoint.width = 8 if len(endpoint.requests) == 1 else 6


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((200, b"<html><body>Sign in</body></html>", {"Content-Type": "text/html"}), "text/html that holds no embeddings: '<html>"),
        ((200, b"[]", {}), "holds no embeddings"),
        ((200, b'{"data": [{"index": 0}]}', {}), "without an embedding for each text"),
        ((200, b'{"data": []}', {}), "gave 0 vectors for 1 texts"),
        ((200, b'{"data": [{"embedding": [0, 0]}]}', {}), "zero or not finite"),
        ((200, b'{"data": [{"embedding": [NaN, 1]}]}', {}), "zero or not finite"),
        ((400, b"input too long", {}), r"refuses the request \(status 400: input too long\)"),
        ((404, b"", {}), "knows no such address or model"),
        ((413, b"", {}), r"finds the request too large \(status 413\)\. Lower towers\.endpoint\.batch_size"),
        ((302, b"", {"Location": "http://127.0.0.1:9/"}), "status 302"),
    ],
)
def test_an_answer_that_is_none_is_refused_in_words(reply: Any, words: str, server: Endpoint) -> None:
    server.replies = [reply]
    with pytest.raises(ModelError, match=words):
        encoder_of(server).encode(["a"])
    assert len(server.requests) == 1


def test_another_dimension_at_the_second_call_is_refused(server: Endpoint) -> None:
    server.before = _narrower
    with pytest.raises(ModelError, match="gave vectors of 6 dimensions, and 8 before"):
        encoder_of(server, concurrency=1).encode(TEXTS)


def test_another_dimension_than_when_the_settings_were_checked_is_refused_before_a_tower_is_written(
    server: Endpoint, tmp_path: Path
) -> None:
    config = TowerConfig(base_model="endpoint", endpoint=asking(server))
    assert width_of(config) == 8
    server.width = 6
    with pytest.raises(ModelError, match="gave vectors of 6 dimensions, and 8 before"):
        take_endpoint(config, {}, tmp_path / "towers")
    assert not (tmp_path / "towers").exists()
    take_endpoint(config, {}, tmp_path / "again")
    assert width_of(config) == 6, "the next run takes the server as it is now"


def test_the_key_is_sent_and_never_shown(server: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "sk-very-secret"
    with pytest.raises(ModelError, match=f"refuses the key .status 401.*Set {KEY} or {KEY_FILE}"):
        encoder_of(server).encode(["a"])
    (tmp_path / "key").write_text("sk-very-secret\n")
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "key"))
    take_endpoint(TowerConfig(base_model="endpoint", endpoint=asking(server)), {}, tmp_path / "towers")
    assert not [path for path in (tmp_path / "towers").rglob("*") if path.is_file() and b"very-secret" in path.read_bytes()]
    monkeypatch.setenv(KEY, "sk-another")
    with pytest.raises(ModelError) as refused:
        encoder_of(server).encode(["a"])
    assert "sk-another" not in str(refused.value)
    monkeypatch.delenv(KEY)
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=f"The file that {KEY_FILE} names cannot be read"):
        encoder_of(server).encode(["a"])


def test_towers_are_opened_with_their_probes_asked_again(server: Endpoint, tmp_path: Path) -> None:
    config = with_own_settings(TowerConfig(base_model="endpoint", endpoint=asking(server)))
    made = take_endpoint(config, {"dataset": "d"}, tmp_path)
    query, document = (open_tower(tmp_path / f"{role}_tower") for role in ("query", "document"))
    assert query.space_id == document.space_id and query.contract.dimension == 8 and query.contract.prompt == ""
    assert np.allclose(query.encode(["kidney stone"]), document.encode(["kidney stone"]))
    assert take_endpoint(config, {"dataset": "d"}, tmp_path / "again").digest == made.digest
    with pytest.raises(ModelError, match="no layers to take"):
        load_tower(tmp_path / "query_tower")
    server.model = "another"
    with pytest.raises(ProbeMismatch, match="no longer gives its recorded vectors"):
        open_tower(tmp_path / "document_tower")
    server.model, server.width = "mini", 9
    with pytest.raises(ModelError, match="gave vectors of 9 dimensions, and 8 before"):
        open_tower(tmp_path / "document_tower")


def test_fewer_dimensions_are_kept_where_they_are_asked_for(server: Endpoint, tmp_path: Path) -> None:
    take_endpoint(TowerConfig(base_model="endpoint", endpoint=asking(server), dimension=4), {}, tmp_path)
    vectors = open_tower(tmp_path / "query_tower").encode(TEXTS)
    assert vectors.shape == (len(TEXTS), 4) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    with pytest.raises(ModelError, match=r"towers.dimension is 9, but .* gives 8"):
        take_endpoint(TowerConfig(base_model="endpoint", endpoint=asking(server), dimension=9), {}, tmp_path / "wide")


def test_the_width_is_asked_once(server: Endpoint) -> None:
    towers = TowerConfig(base_model="endpoint", endpoint=asking(server))
    assert [width_of(towers), width_of(towers)] == [8, 8]
    assert len(server.requests) == 1


def test_a_run_ends_at_its_limits(server: Endpoint) -> None:
    told = r"would use about 50 tokens, above towers.endpoint.max_tokens \(30\)\. Finished shards are kept: the same command goes on .*"
    told += "Where it ends here once more, no shard has room below the limit: raise it"  # one shard alone would be sent, and paid, for ever
    with pytest.raises(ConfigError, match=told):
        encoder_of(server, max_tokens=30, concurrency=1).encode(TEXTS)
    assert len(server.requests) == 1
    with pytest.raises(ConfigError, match=r"which cost [\d,.]+, above towers.endpoint.max_cost \(0.10\)"):
        encoder_of(server, price=1e4, max_cost=0.1).encode(TEXTS)


def test_tokens_are_guessed_from_characters() -> None:
    assert guessed_tokens(["", "12345678"]) == 4


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x/v1", "http://user:word@x/v1", "https://x/v1?key=sk-1", "http://x/ v1"])
def test_an_address_with_a_secret_or_without_a_scheme_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="expected http://HOST/PATH"):
        EndpointConfig(url=url, model="m")


@pytest.mark.parametrize(
    "given",
    [
        {"base_model": "endpoint"},
        {"base_model": "endpoint", "endpoint": {"url": "http://x/v1"}},
        {"base_model": "endpoint", "endpoint": {"url": "http://x/v1", "model": "m"}, "training": "lora"},
        {"base_model": "vectors"},
        {"vectors": "folder"},
        {"base_model": "vectors", "vectors": "folder", "training": "full"},
    ],
)
def test_settings_of_a_teacher_without_weights_have_to_fit(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"both|set training to none"):
        TowerConfig(**given)
    assert TowerConfig(base_model="vectors", vectors="folder").training == "none"


def test_spaces_of_before_keep_their_names() -> None:
    fields = {"base_model": "b", "base_digest": "x", "adapter_digest": "y", "tokenizer_digest": "t", "pooling": "last", "normalize": True}
    contract = EncodingContract(role="document", **fields, prompt="", append_eos=True, max_length=8, dimension=4)  # type: ignore[arg-type]
    known = json.loads(contract.model_dump_json())
    for later in ("base_revision", "head", "head_digest", "base_code", "map_digest", "companion", "companion_share"):
        del known[later]
    assert space_id_of(contract) == digest_of(known)
    assert space_id_of(contract.model_copy(update={"head_digest": "h"})) != space_id_of(contract)
