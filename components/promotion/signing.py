"""Signed statements: an in-toto Statement v1 in a DSSE envelope, checked byte for byte.

The envelope is that of https://github.com/secure-systems-lab/dsse (v1), the statement that of https://github.com/in-toto/attestation, so
other tools can check them. Beside each signature stands the public key: without a trusted key nobody is proven by it, but that the
signature was not changed still is.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.artifacts import canonical_json
from components.errors import ArtifactError
from components.promotion.signing_keys import SigningKey, TrustedKey, key_id

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"


@dataclass(frozen=True)
class Signed:
    """A signature that fits its statement. `trusted`: by a trusted key; else by one that nobody vouches for here."""

    key_id: str
    trusted: bool

    def __str__(self) -> str:
        """Who signed, in the words of a finding."""
        known = "a trusted key" if self.trusted else "a key that nothing here says whether to trust (no trusted keys are configured)"
        return f"signed by {self.key_id[:16]}, {known}"


@dataclass(frozen=True)
class Claim:
    """What a statement has to be about: its subjects (name -> sha256) and the type of what it says of them.

    What it says, the predicate, is not compared: a later version of this program may say more, and the signature covers it.
    """

    subjects: Mapping[str, str]
    predicate_type: str

    @property
    def subject_list(self) -> list[dict[str, Any]]:
        """The subjects in the form of in-toto."""
        return [{"name": name, "digest": {"sha256": digest}} for name, digest in self.subjects.items()]


def sign(claim: Claim, predicate: Mapping[str, Any], key: SigningKey) -> dict[str, Any]:
    """The DSSE envelope of the statement that says `predicate` of the claim's subjects."""
    about = {"subject": claim.subject_list, "predicateType": claim.predicate_type}
    payload = canonical_json({"_type": STATEMENT_TYPE, **about, "predicate": dict(predicate)})
    entry = {"keyid": key.key_id, "public_key": _encode(key.public), "sig": _encode(key.sign(pae(payload)))}
    return {"payloadType": PAYLOAD_TYPE, "payload": _encode(payload), "signatures": [entry]}


def check(envelope: Any, claim: Claim, trusted: Mapping[str, TrustedKey]) -> Signed:
    """Who signed a statement about the claim's subjects. With trusted keys only theirs count, with none any signature that fits.

    Raises ArtifactError for an envelope that is malformed, about something else, changed, or signed by another key.
    """
    entry = _entry(envelope)
    payload, public, name = _decode(envelope["payload"]), _decode(entry["public_key"]), str(entry["keyid"])
    if key_id(public) != name:
        raise ArtifactError(f"The signature names the key {name[:16]}, but carries another; it was changed.")
    if trusted and name not in trusted:
        known = ", ".join(key[:16] for key in sorted(trusted))
        raise ArtifactError(f"It is signed by the key {name[:16]}, which is not trusted. Trusted are: {known}.")
    if not _fits(public, _decode(entry["sig"]), pae(payload)):
        raise ArtifactError(f"The signature by the key {name[:16]} is false: signature or statement was changed.")
    if _about(payload) != (claim.subject_list, claim.predicate_type):
        raise ArtifactError("The signature is about other content than is there now: it was changed after it was signed.")
    return Signed(name, bool(trusted))


def _about(payload: bytes) -> tuple[Any, Any]:
    """Subjects and type of a signed statement."""
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or content.get("_type") != STATEMENT_TYPE:
        raise ArtifactError(f"What is signed is not a statement of the type {STATEMENT_TYPE}.")
    return content.get("subject"), content.get("predicateType")


def pae(payload: bytes) -> bytes:
    """The bytes that are signed: DSSE's pre-authentication encoding."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _entry(envelope: Any) -> dict[str, Any]:
    """The one signature of an envelope that has exactly our fields."""
    fields = set(envelope) if isinstance(envelope, dict) else set()
    entries = envelope["signatures"] if fields == {"payloadType", "payload", "signatures"} else None
    if not isinstance(entries, list) or len(entries) != 1 or envelope["payloadType"] != PAYLOAD_TYPE:
        raise ArtifactError(f"The signature is not a DSSE envelope of the type {PAYLOAD_TYPE} with one signature.")
    entry = entries[0]
    if not isinstance(entry, dict) or set(entry) != {"keyid", "public_key", "sig"}:
        raise ArtifactError("The signature does not name keyid, public_key and sig.")
    return entry


def _fits(public: bytes, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _decode(text: Any) -> bytes:
    """Strict base64: several texts decode to the same bytes, and only the one that was written is taken."""
    try:
        content = base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        content = b""
    if not content or _encode(content) != text:
        raise ArtifactError("The signature holds text that is not base64; it was changed.")
    return content
