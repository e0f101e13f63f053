"""Whether the policy asks of an index what it can reach at all, known before anything is trained."""

from __future__ import annotations

from components.errors import ConfigError
from components.index.config import IndexConfig
from components.index.kinds import is_exact
from components.promotion.config import PolicyConfig
from components.promotion.gate_soundness import ANN_DEPTH


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
