"""Signed statements about releases, promotion records and the audit log, as DSSE envelopes: signed and checked.

The envelope is that of https://github.com/secure-systems-lab/dsse (v1), the statement that of https://github.com/in-toto/attestation, so
other tools can check them and sign them too. Beside each of our signatures stands the public key: without a trusted key nobody is proven
by it, but that the signature was not changed still is.

A release's signature lies beside its `manifest.json` (SLSA provenance v1: the pins as subjects; data, code and models as what it
was made from).
A record carries its own: over all it says but the signature and the digest that the chain adds. As every record names the digest of the
one before it, a signed record vouches for all before it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from components.artifacts import (
    MANIFEST,
    SIGNATURE,
    canonical_json,
    digest_of,
    file_sha256,
    open_artifact,
    read_json,
    require_written,
    strict_json,
    write_json,
)
from components.errors import ArtifactError
from components.release.champion import standing
from components.release.manifest import BaseModelPin, ReleaseManifest, load_release
from components.release.reviewers import require_entry, require_logged_heads, require_proven
from components.signing.keys import SigningKey, TrustedKey, key_id, load_signing_key, trusted_keys, usable_key
from components.tracking.promotion_records import FORGED, STRIKE, struck_out

if TYPE_CHECKING:
    from components.tracking.audit_log import AuditEntry


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
        content = strict_json(payload)
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


# --- What is signed: the manifest of a release, and each promotion record.


Record = Mapping[str, Any]
RELEASE_PREDICATE = "https://slsa.dev/provenance/v1"
RECORD_PREDICATE = "urn:scalingnote:promotion-record:v1"
_HEADLINE = ("sequence", "previous", "action", "from_version", "to_version", "manifest_digest", "approved_by")


def sign_release(folder: Path, key: SigningKey | None = None) -> str | None:
    """Sign the finished release in `folder` with `key`, else the configured one; returns the key's id, None without a key.

    A signature that is there is replaced. Raises ConfigError for a key that cannot be used.
    """
    key = key or load_signing_key()
    if key is None:
        return None
    # The same release and key give the same bytes, so a run that was killed here is simply run again.
    write_json(folder / SIGNATURE, sign(_release_claim(folder), _provenance(load_release(folder)), key))
    return key.key_id


def check_release(folder: Path, trusted: Mapping[str, TrustedKey]) -> Signed | None:
    """Who signed the release in `folder`; None when it is unsigned and no trusted keys are configured.

    Raises ArtifactError when the signature does not fit, or, with trusted keys, when it is missing or by another key.
    """
    path = folder / SIGNATURE
    if path.is_file():
        try:
            require_written(path)
        except UnicodeEncodeError:  # JSON can spell half a character, and no file takes it
            raise ArtifactError(f"{path} was changed: it holds half a character. Sign it again: scalingnote keys sign REF.") from None
        return check(read_json(path), _release_claim(folder), trusted)
    if trusted:
        raise ArtifactError("It is not signed, and only releases signed by a trusted key count here. Sign it: scalingnote keys sign REF.")
    return None


def record_signer(key: SigningKey | None = None) -> Callable[[Record], dict[str, Any]] | None:
    """Signs promotion records with `key`, else the configured one; None where there is none. Raises ConfigError as `usable_key` does."""
    key = key or usable_key()
    if key is None:
        return None
    return lambda record: sign(_record_claim(record), {field: record.get(field) for field in _HEADLINE}, key)


def check_records(records: Sequence[Record], trusted: Mapping[str, TrustedKey]) -> str:
    """Check the signatures of a chain of records; returns a sentence about them.

    With trusted keys a signature by another key counts as none: a key that was withdrawn, or one that signed by mistake. Each signature
    vouches for the records before it, so one by a trusted key that covers the newest record is enough. Raises ArtifactError for a
    signature that is false, and, with trusted keys, for records that none covers. A strike needs a signature of its own, and what a trusted
    key signed is never struck out.
    """
    check_strikes(records, trusted)
    covered = covered_records(records, trusted)
    signed = sum(1 for record in records if record.get("signature") is not None)
    if trusted and covered < len(records):
        foreign = next((record for record in reversed(records[covered:]) if record.get("signature")), None)
        state = f"{covered + 1} is not signed"
        if foreign is not None:
            key = signers(foreign["signature"], _record_claim(foreign), trusted)[0][:16]
            state = f"{foreign['sequence']}: It is signed by the key {key}, which is not trusted"
        raise ArtifactError(
            f"Promotion record {state}, and no trusted key signed one after it; only their signatures count here. "
            "Look at `scalingnote history`; if all records are right, `scalingnote keys sign champion` vouches for them. "
            + FORGED.format(covered + 1)
        )
    return f"{signed} of {len(records)} records signed; each vouches for those before it" if signed else "unsigned: no key was configured"


def require_vouched(records: Sequence[Record]) -> None:
    """`check_records` with the keys that are trusted here; without any, strikes alone are checked. Raises ArtifactError, ConfigError."""
    trusted = trusted_keys()
    if trusted or any(record.get("action") == STRIKE for record in records):
        check_records(records, trusted)


def check_strikes(records: Sequence[Record], trusted: Mapping[str, TrustedKey]) -> None:
    """Raise ArtifactError for a strike that nobody signed, and for one of a record that a trusted key signed."""
    by_number = {record.get("sequence"): record for record in records}
    for number, strike in struck_out(records).items():
        own = strike["sequence"]
        if strike.get("signature") is None:
            raise ArtifactError(f"Promotion record {own} strikes out others and is not signed, so it was forged. {FORGED.format(own)}")
        if names := trusted.keys() & set(signed_by(by_number[number], trusted)):
            raise ArtifactError(
                f"Promotion record {own} strikes out record {number}, which the trusted key {min(names)[:16]} signed. One of the two is "
                f"wrong: where that key leaked, take it away from the trusted ones; where the strike was forged, strike it out: "
                f"scalingnote history --strike {own} --as NAME --reason TEXT."
            )


def covered_records(records: Sequence[Record], trusted: Mapping[str, TrustedKey]) -> int:
    """How many records, from the first on, a signature that counts vouches for; raises ArtifactError for one that is false."""
    covered, struck = 0, struck_out(records)
    for record in records:
        if record.get("signature") is None or record.get("sequence") in struck:
            continue
        try:
            names = signers(record["signature"], _record_claim(record), trusted)
        except ArtifactError as error:
            number = record.get("sequence")
            raise ArtifactError(f"Promotion record {number}: {error} {FORGED.format(number)}") from None
        if not trusted or trusted.keys() & set(names):
            covered = int(record["sequence"])
    return covered


def signed_by(record: Record, trusted: Mapping[str, TrustedKey] | None = None) -> list[str]:
    """Ids of the keys that signed a record, by the public keys beside their signatures or the `trusted` ones; nobody's where none fits."""
    if record.get("signature") is None:
        return []
    try:
        return signers(record["signature"], _record_claim(record), trusted or {})
    except ArtifactError:
        return ["nobody: the signature does not fit"]


def check_audit(name: str, records: Sequence[Record], entries: Sequence[AuditEntry] | None) -> str:
    """Check that the audit log holds all that records rest on and a promotion needs, and knows of no record that is gone; in a sentence.

    Raises ArtifactError otherwise.
    """
    resting = [record for record in standing(records) if record.get("audit_digest")]
    if entries is None and resting:
        raise ArtifactError(f"Promotion record {resting[0]['sequence']} rests on an audit log, and there is none here. Restore it.")
    for record in resting:
        require_entry(record, entries or ())
    require_proven(records, entries or ())
    require_logged_heads(name, records, entries or ())
    if entries is None:
        return "none: nobody was authenticated, names are as claimed"
    return f"{len(entries)} entries, {len(resting)} of {len(records)} records rest on one of them"


def _release_claim(folder: Path) -> Claim:
    """The release's manifest file (which other tools can hash), its digest, and its pins."""
    artifact, manifest = open_artifact(folder), load_release(folder)
    subjects = {MANIFEST: file_sha256(folder / MANIFEST), f"{manifest.name} release": artifact.digest}
    subjects |= {f"{pin.model}/{pin.version}": pin.digest for _, pin in manifest.pins.items()}
    return Claim(subjects, RELEASE_PREDICATE)


def _record_claim(record: Record) -> Claim:
    """The digest of the record without signature and chain digest."""
    plain = {key: value for key, value in record.items() if key not in ("signature", "digest")}
    return Claim({f"{record.get('retriever')}-promotions/{record.get('sequence')}": digest_of(plain)}, RECORD_PREDICATE)


def _provenance(manifest: ReleaseManifest) -> dict[str, Any]:
    """SLSA provenance: how and from what the release was built, without times, so that signing again gives the same bytes."""
    known = manifest.provenance
    materials: list[dict[str, Any]] = [{"name": manifest.dataset.name, "digest": {"sha256": manifest.dataset.digest}}]
    materials.append({"name": "code", "digest": _code(known)})
    # A refresh keeps parts that the code of earlier flows has made, of their data.
    earlier = sorted((flow, code) for flow, about in manifest.earlier_flows.items() if (code := _code(about)))
    materials += [{"name": f"code of the earlier flow {flow}", "digest": code} for flow, code in earlier]
    if lock := known.get("lock_digest"):
        materials.append({"name": "requirements.lock", "digest": {"sha256": lock}})
    if source := manifest.dataset.source_digest:
        materials.append({"name": f"{manifest.dataset.name}: files", "digest": {"sha256": source}})
    former = sorted({(n.name, n.digest) for n in manifest.lineage if n.kind == "dataset" and n.digest != manifest.dataset.digest})
    materials += [{"name": name, "digest": {"sha256": digest}} for name, digest in former]
    materials += _models(manifest)
    definition = {
        "buildType": f"urn:scalingnote:{manifest.release_type}:v1",
        "externalParameters": {"config_digest": digest_of(manifest.config)},
        "resolvedDependencies": materials,
    }
    details = {"builder": {"id": "urn:scalingnote:flow"}, "metadata": {"invocationId": manifest.flow_run_id or ""}}
    return {"buildDefinition": definition, "runDetails": details}


def _code(known: Mapping[str, Any]) -> dict[str, str]:
    """Revision and digest of the code that a flow ran, as far as they are known."""
    revision = known.get("code_revision")
    code = {"gitCommit": None if revision == "unknown" else revision, "sha256": known.get("code_digest")}
    return {kind: value for kind, value in code.items() if value}


def _models(manifest: ReleaseManifest) -> list[dict[str, Any]]:
    """The published models that encoders started from, and those that judged or wrote queries, each once."""
    from components.release.completeness import other_models

    used = [*manifest.base_models.values(), *(model for node in manifest.lineage for _, model in other_models(node))]
    found = {(model.name, model.digest): model for model in used}
    return [_model(found[key]) for key in sorted(found)]


def _model(model: BaseModelPin) -> dict[str, Any]:
    """As in-toto names a resource: by a digest, else by an address that says no more than the name."""
    digests = {"sha256": model.digest} if re.fullmatch("[0-9a-f]{64}", model.digest) else {}
    digests |= {"gitCommit": model.revision} if model.revision else {}
    return {"name": model.name, **({"digest": digests} if digests else {"uri": f"urn:scalingnote:model:{quote(model.name, safe='')}"})}
