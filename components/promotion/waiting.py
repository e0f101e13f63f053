"""What waits for the promote flow: approved versions newer than any that was promoted, without those that a reviewer rejected.

What was refused is remembered on this machine, so that who looks again and again verifies it anew only when something changed, or after a
pause that grows from ten minutes to a day: nothing in the registry shows a file that somebody restored.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from components import settings
from components.artifacts import digest_of, read_json, write_json
from components.errors import ArtifactError, PromotionError
from components.promotion.approval import rejection, rejection_of_files
from components.release.champion import Record, candidate_model, current_aliases, expected_aliases, registered, release_model
from components.tracking import promotion_records as record_store
from components.tracking import registry

if TYPE_CHECKING:
    from components.tracking.registry import VersionInfo

FIRST_PAUSE, LONGEST_PAUSE = 600.0, 86_400.0  # seconds until an unchanged refusal is examined again; each time twice as long


class Waiting(NamedTuple):
    """Versions of the release model that may be promoted, oldest first, and a sentence about each that was rejected."""

    versions: list[VersionInfo]
    rejected: list[str]


def waiting_for_promotion(name: str, records: Sequence[Record]) -> Waiting:
    """Versions that were approved, and neither they nor their candidates rejected. Those below the newest promoted one are passed over."""
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
    if not waiting.versions and aliases == registered(name, expected_aliases(records), records)[0]:
        return None
    seen = [(info.version, info.tags) for info in waiting.versions]
    return digest_of({"waiting": seen, "records": len(records), "aliases": list(aliases)})


def refused_before(name: str) -> str | None:
    """Why what waits now was refused when it was last examined; None when nothing waits, something changed, or the pause is over."""
    state, known = pending(name), _refusal(name)
    if state is None or known is None or known["state"] != state:
        return None
    paused = 0 <= time.time() - known["at"] < min(FIRST_PAUSE * 2 ** (known["times"] - 1), LONGEST_PAUSE)
    return str(known["message"]) if paused else None


@contextmanager
def refusal_remembered(name: str) -> Iterator[None]:
    """Remember a refusal that the block raises, and forget an earlier one when it ends well. A server that does not answer is none."""
    state = pending(name)  # before the examination: what comes meanwhile is another state, and is looked at next
    try:
        yield
    except (PromotionError, ArtifactError) as error:
        known = _refusal(name)
        times = int(known["times"]) + 1 if known and known["state"] == state else 1
        write_json(_refusal_file(name), {"state": state, "message": str(error), "at": time.time(), "times": min(times, 32)})
        raise
    _refusal_file(name).unlink(missing_ok=True)


def _refusal(name: str) -> dict[str, Any] | None:
    """What was remembered; a file that cannot be read is no more than a refusal that is examined again."""
    try:
        found = read_json(_refusal_file(name))
        return {"state": found["state"], "message": found["message"], "at": float(found["at"]), "times": int(found["times"])}
    except (ArtifactError, KeyError, TypeError, ValueError, OSError):
        return None


def _refusal_file(name: str) -> Path:
    return settings.home() / "promotion" / f"{name}.refused.json"


def _candidate_rejection(name: str, release: VersionInfo, candidates: dict[int, VersionInfo]) -> str | None:
    origin = registry.copied_from(release)
    candidate = candidates.get(origin[1]) if origin and origin[0] == candidate_model(name) else None
    return rejection_of_files(candidate, candidates.values()) if candidate is not None else None
