"""Whether the policy asks for what can be reached and will be measured at all, known before anything is trained."""

from __future__ import annotations

from components.errors import ConfigError
from components.evaluation.config import EvaluationConfig
from components.gates.config import PolicyConfig
from components.gates.soundness import ANN_DEPTH
from components.index.config import IndexConfig
from components.index.index_keys import is_exact


def require_measured(policy: PolicyConfig, evaluation: EvaluationConfig) -> None:
    """Raise ConfigError when the policy asks for a system, an extra split or a slice that the evaluation will not measure."""
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
