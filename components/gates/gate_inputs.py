"""Digests of what the gates looked at: with the policy's they say what a decision was made from."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from components.artifacts import digest_of
from components.errors import ArtifactError
from components.gates.decision import Evidence, GateDecision

if TYPE_CHECKING:
    import pandas as pd
    from pydantic import BaseModel

    from components.evaluation.report import Evaluation


VALUES = "comparison_values"  # the input that decisions of older versions were made without


def input_digests(evidence: Evidence) -> dict[str, str]:
    """Name of the input -> sha256 (hex) of its content; what is absent has none."""
    found = {"evaluation": _of_evaluation(evidence.report)}
    if evidence.baseline is not None:
        found["baseline"] = _of_evaluation(evidence.baseline)
    if evidence.values is not None:
        found[VALUES] = _of_table(evidence.values)
    sections: dict[str, BaseModel | None] = {"comparison": evidence.comparison, "facts": evidence.facts}
    return found | {name: digest_of(_content(section)) for name, section in sections.items() if section is not None}


def require_same_inputs(stated: GateDecision, again: GateDecision, policy: str) -> None:
    """Raise ArtifactError when a recorded decision names another input or policy (its digest) than the one it is checked against.

    Decisions of older versions name none.
    """
    require_policy(stated, policy)
    for name in sorted(set(stated.inputs) | set(again.inputs)) if stated.inputs else ():
        before, found = stated.inputs.get(name), again.inputs.get(name)
        if before != found:
            raise ArtifactError(f"The decision was made from the {name} {str(before)[:12]}, now there is {str(found)[:12]}.")


def require_policy(stated: GateDecision, policy: str) -> None:
    """Raise ArtifactError when a recorded decision names another policy than `policy` (digest)."""
    if stated.policy_digest not in (None, policy):
        raise ArtifactError(f"The decision names the policy {str(stated.policy_digest)[:12]}, the manifest holds {policy[:12]}.")


def _of_evaluation(report: Evaluation) -> str:
    tables = {"per_query": report.per_query, "ann": report.ann, "slices": report.slices, "extra": report.extra, "units": report.units}
    digests = {name: _of_table(table) for name, table in tables.items() if table is not None}
    return digest_of({"summary": _content(report.summary), **digests})


def _content(section: BaseModel) -> object:
    """Without fields at their default: one that a later version adds must not change the digest of what was written before."""
    return section.model_dump(mode="json", exclude_defaults=True)


def _of_table(table: pd.DataFrame) -> str:
    """Columns and values, whatever the order of the rows and however text is held in memory."""
    columns = sorted(table.columns)
    ordered = table.sort_values([name for name in columns if name != "value"], kind="stable")
    digest = hashlib.sha256()
    for name in columns:
        digest.update(f"{name}\n".encode())
        values = ordered[name]
        digest.update(values.to_numpy("<f8").tobytes() if name == "value" else "\n".join(map(str, values)).encode())
    return digest.hexdigest()
