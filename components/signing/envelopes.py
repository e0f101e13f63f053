"""Signed statements: an in-toto Statement v1 in a DSSE envelope, checked byte for byte.

The envelope is that of https://github.com/secure-systems-lab/dsse (v1), the statement that of https://github.com/in-toto/attestation, so
other tools can check them and sign them too. Beside each of our signatures stands the public key: without a trusted key nobody is proven
by it, but that the signature was not changed still is.
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
from components.signing.keys import SigningKey, TrustedKey, key_id

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
MAX_SIGNATURES = 32  # nobody's time is taken by thousands of false ones
_FROM_URL = str.maketrans("-_", "+/")


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

    Raises ArtifactError for an envelope that is malformed, about something else, changed, or signed by other keys alone.
    """
    names = signers(envelope, claim, trusted)
    if not trusted:
        return Signed(names[0], False)
    if counted := [name for name in names if name in trusted]:
        return Signed(counted[0], True)
    known = ", ".join(key[:16] for key in sorted(trusted))
    raise ArtifactError(f"It is signed by the key {names[0][:16]}, which is not trusted. Trusted keys: {known}.")


def signers(envelope: Any, claim: Claim, trusted: Mapping[str, TrustedKey]) -> list[str]:
    """Ids of the keys whose signatures of a statement about the claim's subjects fit, at least one.

    As DSSE has it, an envelope may have several signatures, of kinds that are not known here too, and fields that are not known are passed
    over. A signature without the public key beside it is held against the trusted keys: a key id is a hint alone, and each tool makes its
    own. Raises ArtifactError when nothing fits, and for an envelope that is malformed, changed, or about something else.
    """
    payload, entries = _opened(envelope)
    names: list[str] = []
    problems: list[ArtifactError] = []
    for entry in entries:
        try:
            names.append(_signer(entry, pae(payload), trusted))
        except ArtifactError as error:
            problems.append(error)
    if not names:
        raise problems[0]
    if _about(payload) != (claim.subject_list, claim.predicate_type):
        raise ArtifactError("The signature is about other content than is there now: it was changed after it was signed.")
    return names


def _signer(entry: Any, message: bytes, trusted: Mapping[str, TrustedKey]) -> str:
    """The id of the key that made the signature `entry` of `message`."""
    if not isinstance(entry, dict) or not isinstance(entry.get("sig"), str):
        raise ArtifactError("The signature does not name sig.")
    signature, hint = _decode(entry["sig"]), str(entry.get("keyid", ""))
    if "public_key" not in entry:
        if found := next((name for name, key in trusted.items() if _fits(key.public, signature, message)), None):
            return found
        raise ArtifactError(f"The signature by the key {hint[:16] or 'without a name'} carries no public key, and fits no trusted key.")
    public = _decode(entry["public_key"])
    name = key_id(public)
    if name != hint:
        raise ArtifactError(f"The signature names the key {hint[:16] or 'nothing'}, but carries another; it was changed.")
    if not _fits(public, signature, message):
        raise ArtifactError(f"The signature by the key {name[:16]} does not fit: the signature or the statement was changed.")
    return name


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


def _opened(envelope: Any) -> tuple[bytes, list[Any]]:
    """The payload of an envelope, and its signatures."""
    entries = envelope.get("signatures") if isinstance(envelope, dict) else None
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_SIGNATURES or envelope.get("payloadType") != PAYLOAD_TYPE:
        raise ArtifactError(f"The signature is not a DSSE envelope of the type {PAYLOAD_TYPE} with 1 to {MAX_SIGNATURES} signatures.")
    return _decode(envelope.get("payload")), entries


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
    """Strict base64, plain or for URLs: of the texts that decode to the same bytes only the one that is written is taken."""
    plain = text.translate(_FROM_URL) if isinstance(text, str) else ""
    try:
        content = base64.b64decode(plain, validate=True)
    except (ValueError, binascii.Error):
        content = b""
    if not content or _encode(content) != plain:
        raise ArtifactError("The signature holds text that is not base64; it was changed.")
    return content
