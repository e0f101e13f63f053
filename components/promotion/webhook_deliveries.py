"""Webhook deliveries of MLflow: only one that the server signed, a moment ago and for the first time, may wake the promote flow.

The signature is MLflow's version 1: `v1,<base64 of HMAC-SHA256 over "{delivery id}.{timestamp}.{body}">`. A delivery decides nothing: the
flow reads the registry and verifies all again, so whatever got past this could only make it look sooner.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from components.errors import ConfigError, PromotionError
from components.release.champion import candidate_model, release_model

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
        sent = int(stamp) if stamp.isascii() and stamp.isdigit() else None
        if sent is None or abs(now - sent) > self.window:
            raise DeliveryError(401, f"The time stamp '{stamp}' is not within {self.window} seconds of {int(now)}. Compare both clocks.")
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
