"""Finding out what the gates ask besides measurements: broken contracts, gaps in the lineage, parts of different spaces."""

from __future__ import annotations

from collections.abc import Mapping

from components.artifacts import Artifact
from components.promotion.facts import Facts
from components.promotion.lineage_gaps import Origins, gaps_of
from components.promotion.spaces import space_mismatches


def gather_facts(validation: Artifact, origins: Origins, parts: Mapping[str, Artifact], uncompared: str = "") -> Facts:
    """The facts about a candidate before its manifest is written; `parts` maps the role of encoders and index to their artifact."""
    from components.data.validation import load_report

    report = load_report(validation)
    return Facts(
        contract_errors=len(report.errors),
        contract_warnings=len(report.warnings),
        lineage_gaps=gaps_of(origins),
        space_mismatches=space_mismatches(parts),
        uncompared=uncompared,
    )
