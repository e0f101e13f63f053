"""The content of promotion records: from where to where, who, when and why, and the digests of what the decision rests on.

Fields that were added later have no default in older records: read them with `.get`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import verify
from components.promotion.approval import Approval
from components.promotion.redecide import Decided
from components.release import reviewers as people
from components.release.champion import Record, release_model
from components.release.manifest import load_release
from components.tracking import labels, registry
from components.tracking import promotion_records as record_store
from components.tracking.provenance import claimed_user

if TYPE_CHECKING:
    from components.release.reviewers import Act
    from components.tracking.registry import VersionInfo

UNAUTHENTICATED = "unauthenticated"


@dataclass(frozen=True)
class Promotion:
    """A verified release that is about to become champion. `decisions`: its own, and one against today's champion if that changed.

    `digest` is the one that was approved and verified; files that were swapped since make the record fail. `foreign_policy` is None where
    the policy is the installation's, `without_champion` the reason to promote although the champion cannot be opened.
    """

    release: VersionInfo
    digest: str
    approval: Approval
    decisions: tuple[Decided, ...]
    champion: int | None
    foreign_policy: str | None = None
    without_champion: str | None = None

    @property
    def overridden(self) -> bool:
        """Whether it needs the reviewer's reason: the decision against the champion did not pass, or was another policy's."""
        return self.decisions[-1].decision.verdict != "pass" or self.foreign_policy is not None


def promotion_record(name: str, promotion: Promotion) -> dict[str, Any]:
    """Content of the record of a promotion. Raises ArtifactError for files that are not those that were verified any more."""
    approval, last, digest = promotion.approval, promotion.decisions[-1], promotion.digest
    folder = verify(registry.artifact_folder(release_model(name), promotion.release.version), digest).path
    return {
        "action": "promote",
        "from_version": promotion.champion,
        "to_version": promotion.release.version,
        "candidate_version": approval.candidate_version,
        "manifest_digest": digest,
        "packages": _packages(name, promotion.release.version, folder),
        "evidence_digest": digest,  # the copy shares the files of its candidate: manifest, pins, evaluation, report under one digest
        "decision_digest": promotion.decisions[0].digest,
        "verdict": last.decision.verdict,
        "first_release": last.decision.first_release,
        "decisions": [_decided(decided) for decided in promotion.decisions] if len(promotion.decisions) > 1 else None,
        "approved_by": approval.person or UNAUTHENTICATED,
        "approved_at": approval.approved_at,
        "role": approval.role,
        "override": approval.override if promotion.overridden else None,
        "override_by": approval.override_by if promotion.overridden else None,
        "reason": approval.override,
        "promoted_by": claimed_user(),
        "foreign_policy": promotion.foreign_policy,
        "without_champion": promotion.without_champion,
        **_proof(approval.authentication, approval.audit_sequence, approval.audit_digest),
    }


def rollback_record(
    name: str,
    records: Sequence[Record],
    versions: tuple[int, int],
    person: str,
    reason: str,
    override: str | None = None,
    skipped: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """Content of the record of a rollback. Where there is an audit log, the tag with the reason is the act that names the person.

    `override`: why a release is served again that a reviewer has rejected; `skipped`: releases between that cannot be served, and why.
    """
    champion, target = versions
    promoted = next(r for r in reversed(records) if r["action"] == "promote" and int(r["to_version"]) == target)
    act = _proven_rollback(name, records, champion, reason)
    proof = _proof("none", None, None) if act is None else _proof("basic", act.sequence, act.digest)
    digest = str(promoted["manifest_digest"])
    folder = verify(registry.artifact_folder(release_model(name), target), digest).path
    return {
        "action": "rollback",
        "from_version": champion,
        "to_version": target,
        "candidate_version": promoted["candidate_version"],
        "manifest_digest": digest,
        "packages": _packages(name, target, folder),
        "evidence_digest": digest,
        "approved_by": act.person if act else person,
        "claimed_by": person,
        "role": act.role if act else None,
        "override": override,
        "override_by": person if override else None,
        "reason": reason,
        "skipped": {str(version): why for version, why in skipped.items()} if skipped else None,
        **proof,
    }


def append(name: str, content: dict[str, Any], records: Sequence[Record], sign: record_store.Signer | None) -> dict[str, Any]:
    """Write the record with its time, signed where there is a key. It is the act that counts.

    Raises PromotionError when another record came since `records` were read: what was decided on them may no longer hold.
    """
    return record_store.append_record(name, {**content, "time": datetime.now(UTC).isoformat()}, sign, len(records))


def _packages(name: str, version: int, folder: Path) -> dict[str, str]:
    """Digests of what lists the code of the release and of its parts; without those that were registered before there were lists."""
    places = [(release_model(name), version), *((pin.model, pin.version) for _, pin in load_release(folder).pins.items())]
    found = {f"{model}/{number}": registry.package_digest(model, number) for model, number in places}
    return {place: digest for place, digest in found.items() if digest}


def _decided(decided: Decided) -> dict[str, Any]:
    comparison = decided.comparison.model_dump(mode="json") if decided.comparison is not None else None
    decision = decided.decision.model_dump(mode="json")
    return {"against": decided.against, "digest": decided.digest, "decision": decision, "comparison": comparison}


def _proof(authentication: str, sequence: int | None, digest: str | None) -> dict[str, Any]:
    """Without an audit log nobody's identity was proven: the names are what tags and the command line claim."""
    proven = authentication if authentication != "none" else UNAUTHENTICATED
    return {"authentication": proven, "audit_sequence": sequence, "audit_digest": digest}


def _proven_rollback(name: str, records: Sequence[Record], champion: int, reason: str) -> Act | None:
    """Tag the release that is left, so that the server's log says who did it; None where there is no log."""
    if people.require_trail(records) is None:
        return None
    registry.set_version_tag(release_model(name), champion, people.ROLLED_BACK, reason)
    entries = people.require_trail(records) or []
    release = next((info for info in registry.versions(release_model(name)) if info.version == champion), None)
    return people.tag_act(entries, release, labels.PREFIX + people.ROLLED_BACK) if release is not None else None
