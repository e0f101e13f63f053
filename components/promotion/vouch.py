"""Signing afterwards what was promoted before there was a key, or with one that is withdrawn now.

That is the release, and one more record that vouches for the chain up to it.

A record cannot be signed afterwards, since the next one names its digest. So a record of the action `vouch` repeats the newest one, moves
nothing, and is signed: as every record names the one before it, its signature holds for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from components.artifacts import SIGNATURE, verify
from components.errors import ArtifactError, ConfigError, ModelError
from components.promotion.record import append
from components.release.champion import Record, candidate_model, expected_aliases, release_model
from components.release.open import recorded_digest
from components.release.references import resolve
from components.signing.keys import SigningKey, TrustedKey, rotation_key, take_over, trusted_keys, usable_key
from components.signing.statements import check_records, check_release, covered_records, record_signer, sign_release
from components.tracking import promotion_records as record_store
from components.tracking import registry
from components.tracking.provenance import claimed_user

if TYPE_CHECKING:
    from components.tracking.registry import VersionInfo

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
    return Vouched(model, version, key.key_id, _append_vouch(name, records, key) if unsigned else None)


class Rotated(NamedTuple):
    """The key that signs from now on, what it signed again, and what was left as it is, with the reason."""

    key_id: str
    signed: list[str]
    left: list[str]
    withdrawn: list[Path]


def rotate() -> Rotated:
    """Give this home a new signing key: all that a trusted key had signed is signed again, then the former key is withdrawn.

    Of every retriever in the tracking store: candidates and releases, and one more record that vouches for the chain. Nothing stops being
    served on the way: both keys are trusted until the new one has signed all. A rotation that was killed is finished by the next.
    Raises ConfigError as `rotation_key` does, ArtifactError for a chain that no trusted key vouches for: look at it first.
    """
    key = rotation_key()
    signed: list[str] = []
    left: list[str] = []
    for name in registry.retrievers():
        records = record_store.read_records(name)
        if records:
            check_records(records, trusted_keys())
        for model in (candidate_model(name), release_model(name)):
            for info in registry.versions(model):
                place = f"{model}/{info.version}"
                try:
                    _sign_again(name, info, records, key)
                    signed.append(place)
                except (ArtifactError, ModelError) as error:
                    left.append(f"{place}: {error}")
        if records and covered_records(records, {key.key_id: TrustedKey(key.path, key.public)}) < len(records):
            signed.append(f"{name}-promotions/{_append_vouch(name, records, key)}")
    return Rotated(key.key_id, signed, left, take_over(key))


def _sign_again(name: str, info: VersionInfo, records: Sequence[Record], key: SigningKey) -> None:
    """Sign a version with `key` that is whole and that a trusted key had signed; another one is for a person to look at."""
    folder = verify(registry.artifact_folder(info.name, info.version), recorded_digest(name, info.name, info.version, records)).path
    if not (folder / SIGNATURE).is_file():
        raise ArtifactError("It was not signed, and stays so. Sign it: scalingnote keys sign REF.")
    if (found := check_release(folder, trusted_keys())) and found.key_id == key.key_id:
        return
    sign_release(folder, key)
    registry.share_file(info.name, info.version, SIGNATURE)


def _is_uncovered(records: Sequence[Record], version: int) -> bool:
    """Whether the release is the champion by records of which no signature that counts covers the newest."""
    return expected_aliases(records).champion == version and covered_records(records, trusted_keys()) < len(records)


def _append_vouch(name: str, records: Sequence[Record], key: SigningKey) -> int:
    """The number of one more record, signed with `key`, that says what the newest says."""
    record = append(name, _repeated(records[-1]), records, record_signer(key))
    record_store.state_head(name, [*records, record])
    return int(record["sequence"])


def _repeated(newest: Record) -> dict[str, Any]:
    content = {field: value for field, value in newest.items() if field not in _OWN}
    return {**content, "action": "vouch", "from_version": newest["to_version"], "vouched_by": claimed_user()}
