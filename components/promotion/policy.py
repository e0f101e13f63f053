"""The policy as a record: its digest, and the policy of a release that was decided on by an older version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from components.artifacts import digest_of
from components.errors import ArtifactError
from components.promotion.config import PolicyConfig

# What policies without a version were decided without. Without the first line a manifest from before the gate of the index would be
# held against a threshold that nobody had set.
BEFORE_VERSIONS: Mapping[str, Any] = {
    "min_ann_recall": None,
    "retention_by": "mean",
    "min_power": None,
    "slice_margin": None,
    "max_p95_ratio": None,
    "min_qps_ratio": None,
    "max_contract_errors": None,
    "require_lineage": False,
    "require_space": False,
    "max_mean_cosine_over_teacher": None,
    "min_effective_rank_share": None,
}


def policy_digest(policy: PolicyConfig | Mapping[str, Any]) -> str:
    """sha256 (hex) of every field of a policy, or of the mapping that a manifest holds of it."""
    return digest_of(policy.model_dump(mode="json") if isinstance(policy, PolicyConfig) else dict(policy))


def recorded_policy(config: Mapping[str, Any]) -> PolicyConfig:
    """The policy in the configuration of a manifest; gates that its version did not have are off.

    Raises ArtifactError when there is none, or one that is not valid.
    """
    recorded = config.get("policy")
    if not isinstance(recorded, Mapping):
        raise ArtifactError("The manifest's configuration has no policy, so its decision cannot be checked. Retrain.")
    try:
        return PolicyConfig.model_validate(dict(recorded) if "version" in recorded else {**BEFORE_VERSIONS, **recorded})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"The manifest's policy is not valid ({where}: {first['msg']}), so its decision cannot be checked.") from None
