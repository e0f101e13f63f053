"""Signing what was promoted before there was a key: the release, and one more record that vouches for the chain up to it.

A record cannot be signed afterwards, since the next one names its digest. So a record of the action `vouch` repeats the newest one, moves
nothing, and is signed: as every record names the one before it, its signature holds for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from components.artifacts import SIGNATURE, verify
from components.errors import ConfigError
from components.promotion.attestation import covered_records, record_signer, sign_release
from components.promotion.pinned import recorded_digest
from components.promotion.promotion_record import append
from components.promotion.references import resolve
from components.promotion.signing_keys import trusted_keys, usable_key
from components.promotion.standing import Record, expected_aliases, release_model
from components.tracking import records as record_store
from components.tracking import registry
from components.tracking.provenance import claimed_user

# What the chain gives every record itself, or what is said anew.
_OWN = {"sequence", "previous", "recorded_at", "retriever", "digest", "signature", "time"}


class Vouched(NamedTuple):
    """The version that was signed, with which key, and the number of the record that vouches; None where none was needed."""

    model: str
    version: int
    key_id: str
    sequence: int | None


def vouch(name: str, ref: str) -> Vouched:
    """Sign the release `ref`; where it is the champion and the newest promotion record has no signature, vouch for the records too.

    Raises ConfigError without a key, or with one that is not trusted where others are, ArtifactError for a release that was changed or a
    chain that is broken, PromotionError for an unknown reference.
    """
    key = usable_key()
    if key is None:
        raise ConfigError("There is no signing key. Make one with `scalingnote keys new`, or name one in SCALINGNOTE_SIGNING_KEY.")
    model, version = resolve(name, ref)
    records = record_store.read_records(name)
    folder = verify(registry.artifact_folder(model, version), recorded_digest(name, model, version, records)).path
    sign_release(folder)
    registry.share_file(model, version, SIGNATURE)
    unsigned = model == release_model(name) and _is_uncovered(records, version)
    record = append(name, _repeated(records[-1]), records, record_signer()) if unsigned else None
    return Vouched(model, version, key.key_id, None if record is None else int(record["sequence"]))


def _is_uncovered(records: Sequence[Record], version: int) -> bool:
    """Whether the release is the champion by records of which no signature that counts covers the newest."""
    return expected_aliases(records).champion == version and covered_records(records, trusted_keys()) < len(records)


def _repeated(newest: Record) -> dict[str, Any]:
    content = {field: value for field, value in newest.items() if field not in _OWN}
    return {**content, "action": "vouch", "from_version": newest["to_version"], "vouched_by": claimed_user()}
