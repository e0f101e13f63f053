"""Decide: every gate of a policy asked of one evaluation and its findings; pure, no files, no servers.

Also which gates of a policy can be passed at all.

A gate that lacks a number, meets one that is not finite, or would compare what cannot be compared is `not_decidable`; only a measured
value on the right side of its threshold is a pass. What is known from a sample of queries is decided on by the end of an interval:
comparisons use the paired bootstrap over the units that the queries were drawn in. `quality.py`, `champion.py` and `soundness.py` hold the
gates themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from components.artifacts import digest_of
from components.errors import ArtifactError, ConfigError
from components.evaluation.config import EvaluationConfig
from components.evaluation.table import DEV
from components.gates.champion import champion_gates
from components.gates.config import PolicyConfig
from components.gates.decision import GateDecision, GateInputs, GateResult, Verdict
from components.gates.measures import METHOD, asked_by
from components.gates.policy import policy_digest
from components.gates.quality import quality_gates
from components.gates.soundness import ANN_DEPTH, soundness_gates
from components.index.config import IndexConfig
from components.index.index_keys import is_exact

if TYPE_CHECKING:
    import pandas as pd
    from pydantic import BaseModel

    from components.evaluation.report import Evaluation


VALUES = "comparison_values"  # the input that decisions of older versions were made without


def input_digests(evidence: GateInputs) -> dict[str, str]:
    """Name of the input -> sha256 (hex) of its content; what is absent has none."""
    found = {"evaluation": _of_evaluation(evidence.report)}
    if evidence.baseline is not None:
        found["baseline"] = _of_evaluation(evidence.baseline)
    if evidence.values is not None:
        found[VALUES] = _of_table(evidence.values)
    if evidence.shared is not None:
        found["shared_documents"] = _of_table(evidence.shared)
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
    import pandas as pd

    columns = sorted(table.columns)
    ordered = table.sort_values([name for name in columns if name != "value"], kind="stable")
    digest = hashlib.sha256()
    for name in columns:
        digest.update(f"{name}\n".encode())
        values = ordered[name]
        as_numbers = name == "value" and pd.api.types.is_numeric_dtype(values)
        digest.update(values.to_numpy("<f8").tobytes() if as_numbers else "\n".join(map(str, values)).encode())
    return digest.hexdigest()


# --- Whether the policy asks for what can be reached and will be measured at all, known before anything is trained.


def require_measured(policy: PolicyConfig, evaluation: EvaluationConfig) -> None:
    """Raise ConfigError when the policy asks for a system, an extra split or a slice that the evaluation will not measure.

    Or for retention on other queries, of which none are: those that the models are chosen by, or the evaluation's own.
    """
    if not evaluation.untrained_student and (asked := [name for name in ("beat_untrained", "teacher_worth") if getattr(policy, name)]):
        raise ConfigError(
            f"policy.{asked[0]} compares with the untrained encoder, but evaluation.untrained_student is false, so it will not be "
            f"measured. Set that to true, or {' and '.join(f'policy.{name}' for name in asked)} to false."
        )
    if policy.min_off_distribution_retention is not None and not evaluation.extra_splits:
        raise ConfigError(
            f"policy.min_off_distribution_retention is {policy.min_off_distribution_retention:g}, but evaluation.extra_splits names no "
            "judged query set to measure it on. Name one, or set the first to null."
        )
    same = next((split for split in evaluation.extra_splits if split in (DEV, evaluation.split)), None)
    if policy.min_off_distribution_retention is not None and same is not None:
        why = "evaluation.split itself" if same == evaluation.split else "the split that checkpoints are chosen by"
        raise ConfigError(
            "policy.min_off_distribution_retention asks for retention on other queries, but evaluation.extra_splits names "
            f"'{same}', {why}. Take it out of these, or set the first to null."
        )
    if policy.slice_margin is None and policy.required_slices:
        raise ConfigError(
            f"policy.required_slices names '{policy.required_slices[0]}', but policy.slice_margin is null, so that no slice is judged. Set "
            "a margin, or require none."
        )
    if policy.slice_margin is None:
        return
    dimensions = [definition.name for definition in evaluation.slices]
    if not dimensions:
        raise ConfigError(
            f"policy.slice_margin is {policy.slice_margin:g}, but evaluation.slices is empty. Define slices, or set the first to null."
        )
    unknown = next((name for name in policy.required_slices if name.partition("=")[0] not in dimensions), None)
    if unknown is not None:
        raise ConfigError(f"policy.required_slices names '{unknown}', but evaluation.slices defines only {', '.join(dimensions)}.")


def require_attainable(policy: PolicyConfig, index: IndexConfig, key: str) -> None:
    """Raise ConfigError when the gate `ann_recall` could not pass: an index that keeps no vectors to be measured against, or aims lower.

    `key` is the resolved index key; exact search has nothing to be tuned.
    """
    asked = policy.min_ann_recall
    if asked is None or is_exact(key):
        return
    if index.refine == "none":
        raise ConfigError(
            f"index.refine is none, so an index {key} keeps no vectors that its recall could be measured against, but the policy asks for "
            f"a recall of {asked:g}. Set index.refine to fp16 or int8, or policy.min_ann_recall to null, which leaves the recall unchecked."
        )
    if index.recall_at == ANN_DEPTH and index.target_recall < asked:
        raise ConfigError(
            f"index.target_recall is {index.target_recall:g}, but policy.min_ann_recall asks for {asked:g}: the gate would refuse what the "
            "index is tuned to. Raise the first above the second, or lower the second."
        )


# --- The gates of a candidate: one pure function from evidence and a policy to a decision with reasons.


def decide(evidence: GateInputs, policy: PolicyConfig, method: int = METHOD) -> GateDecision:
    """Hold a candidate's evidence against the policy; pure, raises nothing for bad measurements but ArtifactError for an unknown method.

    The verdict is `fail` if any gate fails, else `not_decidable` if any gate is, else `pass`. The same evidence and policy always give
    the same decision, which names both by their digests. `method`: that of a decision that is made again.
    """
    if not 1 <= method <= METHOD:
        raise ArtifactError(
            f"The decision was made by the method {method}, and this version knows those up to {METHOD}. Install the version that made it."
        )
    digest, policy = policy_digest(policy), asked_by(policy, method)
    gates = (*quality_gates(evidence.report, policy), *champion_gates(evidence, policy), *soundness_gates(evidence, policy))
    return GateDecision(
        verdict=verdict_of(gates),
        first_release=evidence.baseline is None and not evidence.lost,
        gates=gates,
        policy_version=policy.version,
        policy_digest=digest,
        inputs=input_digests(evidence),
        method=method,
    )


def verdict_of(gates: Sequence[GateResult]) -> Verdict:
    """What all gates together say."""
    statuses = {gate.status for gate in gates}
    return "fail" if "fail" in statuses else "not_decidable" if "not_decidable" in statuses else "pass"
