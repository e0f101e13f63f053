"""Which webhook deliveries are accepted: signed, fresh, and each once."""

from __future__ import annotations

import json

import pytest

from components.errors import ConfigError
from flows.webhook import DELIVERY_ID, SIGNATURE, TIMESTAMP, Deliveries, DeliveryError, sign

SECRET = "a secret that both sides share"
NOW = 1_800_000_000.0


def body(model: str = "retriever-release") -> bytes:
    return json.dumps({"entity": "model_version", "action": "created", "data": {"name": model, "version": "1"}}).encode()


def headers(content: bytes, delivery: str = "d-1", stamp: str = str(int(NOW)), secret: str = SECRET) -> dict[str, str]:
    return {SIGNATURE: sign(secret, delivery, stamp, content), TIMESTAMP: stamp, DELIVERY_ID: delivery}


@pytest.fixture
def deliveries() -> Deliveries:
    return Deliveries("retriever", SECRET)


def refused(deliveries: Deliveries, given: dict[str, str], content: bytes, status: int, reason: str) -> None:
    with pytest.raises(DeliveryError, match=reason) as caught:
        deliveries.accept(given, content, NOW)
    assert caught.value.status == status


def test_signature_is_the_one_that_mlflow_makes() -> None:
    from mlflow.webhooks.delivery import _generate_hmac_signature

    assert sign(SECRET, "d-1", "17", body()) == _generate_hmac_signature(SECRET, "d-1", "17", body().decode())


@pytest.mark.parametrize(("model", "matters"), [("retriever-release", True), ("retriever-candidate", True), ("retriever-index", False)])
def test_only_events_of_this_retriever_wake_the_flow(deliveries: Deliveries, model: str, matters: bool) -> None:
    assert deliveries.accept(headers(body(model)), body(model), NOW) is matters


def test_names_of_headers_in_any_case(deliveries: Deliveries) -> None:
    assert deliveries.accept({key.lower(): value for key, value in headers(body()).items()}, body(), NOW)


def test_wrong_signatures(deliveries: Deliveries) -> None:
    refused(deliveries, headers(body(), secret="another secret of some length"), body(), 401, "signature")
    refused(deliveries, headers(body()), body("retriever-candidate"), 401, "signature")
    refused(deliveries, headers(body()) | {DELIVERY_ID: "d-2"}, body(), 401, "signature")
    refused(deliveries, headers(body()) | {TIMESTAMP: str(int(NOW) + 1)}, body(), 401, "signature")
    refused(deliveries, headers(body()) | {SIGNATURE: "v1,ä"}, body(), 401, "signature")
    assert deliveries.accept(headers(body()), body(), NOW)  # none of them used up the id


@pytest.mark.parametrize("stamp", [str(int(NOW) - 301), str(int(NOW) + 301), "0", "soon", "²", ""])
def test_old_future_and_strange_time_stamps(deliveries: Deliveries, stamp: str) -> None:
    refused(deliveries, headers(body(), stamp=stamp), body(), 401 if stamp else 400, "time stamp" if stamp else "X-MLflow-Timestamp")


def test_delivery_is_accepted_once_as_long_as_its_time_stamp_holds(deliveries: Deliveries) -> None:
    ahead = headers(body(), stamp=str(int(NOW) + 200))
    assert deliveries.accept(ahead, body(), NOW)
    for later in (NOW, NOW + 100, NOW + 500):
        with pytest.raises(DeliveryError, match="accepted before"):
            deliveries.accept(ahead, body(), later)
    with pytest.raises(DeliveryError, match="not within"):
        deliveries.accept(ahead, body(), NOW + 501)
    deliveries.accept(headers(body(), "d-2", str(int(NOW) + 600)), body(), NOW + 600)
    assert list(deliveries._seen) == ["d-2"]  # what is too old anyway is forgotten


@pytest.mark.parametrize("name", [SIGNATURE, TIMESTAMP, DELIVERY_ID])
def test_missing_headers(deliveries: Deliveries, name: str) -> None:
    refused(deliveries, {key: value for key, value in headers(body()).items() if key != name}, body(), 400, name)


@pytest.mark.parametrize("content", [b"no json", b"\xff"])
def test_signed_nonsense(deliveries: Deliveries, content: bytes) -> None:
    refused(deliveries, headers(content), content, 400, "not JSON")


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"data": []}', b'{"data": {"name": null}}'])
def test_signed_events_of_another_kind_do_not_wake(deliveries: Deliveries, content: bytes) -> None:
    assert deliveries.accept(headers(content), content, NOW) is False


def test_short_secret() -> None:
    with pytest.raises(ConfigError, match="at least 16"):
        Deliveries("retriever", "short")
