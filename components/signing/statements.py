"""What is signed: the manifest of a release, and each promotion record.

A release's signature lies beside its `manifest.json` (SLSA provenance v1: the pins as subjects, data and code as what it was made from).
A record carries its own: over all it says but the signature and the digest that the chain adds. As every record names the digest of the
one before it, a signed record vouches for all before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import (
    MANIFEST,
    SIGNATURE,
    digest_of,
    file_sha256,
    open_artifact,
    read_json,
    require_written,
    write_json,
)
from components.errors import ArtifactError
from components.release.manifest import ReleaseManifest, load_release
from components.release.reviewers import require_entry, require_logged_heads
from components.signing.envelopes import Claim, Signed, check, sign, signers
from components.signing.keys import SigningKey, TrustedKey, load_signing_key, usable_key

if TYPE_CHECKING:
    from components.tracking.audit_log import AuditEntry

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
        require_written(path)
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
    signature that is false, and, with trusted keys, for records that none covers.
    """
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
            "Look at `scalingnote history`; if all records are right, `scalingnote keys sign champion` vouches for them."
        )
    return f"{signed} of {len(records)} records signed; each vouches for those before it" if signed else "unsigned: no key was configured"


def covered_records(records: Sequence[Record], trusted: Mapping[str, TrustedKey]) -> int:
    """How many records, from the first on, a signature that counts vouches for; raises ArtifactError for one that is false."""
    covered = 0
    for record in records:
        if record.get("signature") is None:
            continue
        try:
            names = signers(record["signature"], _record_claim(record), trusted)
        except ArtifactError as error:
            raise ArtifactError(f"Promotion record {record.get('sequence')}: {error}") from None
        if not trusted or trusted.keys() & set(names):
            covered = int(record["sequence"])
    return covered


def signed_by(record: Record) -> list[str]:
    """Ids of the keys that signed a record, by the public keys beside their signatures; nobody's where no signature fits."""
    if record.get("signature") is None:
        return []
    try:
        return signers(record["signature"], _record_claim(record), {})
    except ArtifactError:
        return ["nobody: the signature does not fit"]


def check_audit(name: str, records: Sequence[Record], entries: Sequence[AuditEntry] | None) -> str:
    """Check that the audit log holds every entry that a record rests on, and knows of no record that is gone; returns a sentence.

    Raises ArtifactError otherwise.
    """
    resting = [record for record in records if record.get("audit_digest")]
    if entries is None and resting:
        raise ArtifactError(f"Promotion record {resting[0]['sequence']} rests on an audit log, and there is none here. Restore it.")
    for record in resting:
        require_entry(record, entries or ())
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
    revision = known.get("code_revision")
    code = {"gitCommit": None if revision == "unknown" else revision, "sha256": known.get("code_digest")}
    materials: list[dict[str, Any]] = [{"name": manifest.dataset.name, "digest": {"sha256": manifest.dataset.digest}}]
    materials.append({"name": "code", "digest": {kind: value for kind, value in code.items() if value}})
    if lock := known.get("lock_digest"):
        materials.append({"name": "requirements.lock", "digest": {"sha256": lock}})
    definition = {
        "buildType": f"urn:scalingnote:{manifest.release_type}:v1",
        "externalParameters": {"config_digest": digest_of(manifest.config)},
        "resolvedDependencies": materials,
    }
    details = {"builder": {"id": "urn:scalingnote:flow"}, "metadata": {"invocationId": manifest.flow_run_id or ""}}
    return {"buildDefinition": definition, "runDetails": details}
