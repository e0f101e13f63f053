"""What waits for the promote flow: approved versions newer than any that was promoted, without those that a reviewer rejected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from components.artifacts import digest_of
from components.promotion.approval import rejection
from components.promotion.standing import Record, candidate_model, current_aliases, expected_aliases, release_model
from components.tracking import records as record_store
from components.tracking import registry

if TYPE_CHECKING:
    from components.tracking.registry import VersionInfo


class Waiting(NamedTuple):
    """Versions of the release model that may be promoted, oldest first, and a sentence about each that was rejected."""

    versions: list[VersionInfo]
    rejected: list[str]


def waiting_for_promotion(name: str, records: Sequence[Record]) -> Waiting:
    """Approved and not rejected, neither itself nor its candidate. Versions below the newest promoted one were passed over for good."""
    newest = max((int(record["to_version"]) for record in records), default=0)
    fresh = [info for info in registry.versions(release_model(name)) if info.version > newest]
    candidates = _candidates(name) if fresh else {}
    found = Waiting([], [])
    for info in fresh:
        reason = rejection(info) or _candidate_rejection(name, info, candidates)
        if reason is None:
            found.versions.append(info)
        else:
            found.rejected.append(f"release/{info.version} is marked as rejected ({reason}) and was left out.")
    return found


def rejection_of(name: str, release: VersionInfo) -> str | None:
    """Why a reviewer rejected a release or the candidate that it is a copy of; None when nobody did."""
    return rejection(release) or _candidate_rejection(name, release, _candidates(name))


def _candidates(name: str) -> dict[int, VersionInfo]:
    return {info.version: info for info in registry.versions(candidate_model(name))}


def pending(name: str) -> str | None:
    """A digest of what the promote flow would look at; None when it would find nothing to do. Reads the registry alone, no files.

    It stays the same as long as nothing changes, so that a refused approval need not be verified again at every look.
    """
    records = record_store.read_records(name)
    waiting, aliases = waiting_for_promotion(name, records), current_aliases(name)
    if not waiting.versions and aliases == expected_aliases(records):
        return None
    seen = [(info.version, info.tags) for info in waiting.versions]
    return digest_of({"waiting": seen, "records": len(records), "aliases": list(aliases)})


def _candidate_rejection(name: str, release: VersionInfo, candidates: dict[int, VersionInfo]) -> str | None:
    origin = registry.copied_from(release)
    candidate = candidates.get(origin[1]) if origin and origin[0] == candidate_model(name) else None
    return rejection(candidate) if candidate is not None else None
