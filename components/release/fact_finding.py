"""Finding out what the gates ask besides measurements: broken contracts, gaps in the lineage, parts of different spaces."""

from __future__ import annotations

from collections.abc import Mapping

from components.artifacts import Artifact
from components.gates.config import PolicyConfig
from components.gates.facts import Facts
from components.gates.policy import allowed_policies, foreign_policy
from components.release.completeness import Origins, gaps_of
from components.release.spaces import space_mismatches


def gather_facts(
    validation: Artifact,
    origins: Origins,
    parts: Mapping[str, Artifact],
    policy: PolicyConfig,
    uncompared: str = "",
    removed: tuple[int, int] | None = None,
) -> Facts:
    """The facts about a candidate before its manifest is written; `parts` maps the role of encoders and index to their artifact.

    `removed`: documents that an index refresh removed, and how many there were.
    """
    from components.data.validation import load_report

    report = load_report(validation)
    return Facts(
        contract_errors=len(report.errors),
        contract_warnings=len(report.warnings),
        lineage_gaps=gaps_of(origins),
        space_mismatches=space_mismatches(parts),
        uncompared=uncompared,
        removed_documents=removed[0] if removed else None,
        documents_before=removed[1] if removed else None,
        foreign_policy=None if allowed_policies() is None else foreign_policy(policy) or "",
    )
