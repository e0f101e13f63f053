"""The policy as a record: its digest, the policies that this installation allows, and the one that an older version decided by.

Gates are decided by the policy in the candidate's own configuration, which is whoever builds it who writes. So an installation names the
policies that it allows: `SCALINGNOTE_POLICY`, a YAML file, or a folder of `*.yaml` where earlier ones stay allowed. Another one needs an
override, at registration and again at promotion.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from components.artifacts import digest_of
from components.errors import ArtifactError, ConfigError
from components.promotion.config import PolicyConfig

POLICY_VARIABLE = "SCALINGNOTE_POLICY"
# What policies of before a field was there were decided by: a gate that came later is off, one that asks more now asks what it asked then.
BEFORE_FIELDS: Mapping[str, Any] = {"split": None, "teacher_worth": False, "baseline_metrics": ("ndcg@10",), "max_removed_share": None}
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


def allowed_policies() -> dict[str, Path] | None:
    """Digest -> file of each policy that this installation allows; None where it names none.

    Raises ConfigError for a place that is not there or holds none, and for a file that is no policy.
    """
    named = os.environ.get(POLICY_VARIABLE)
    if not named:
        return None
    place = Path(named).expanduser()
    files = sorted(place.glob("*.yaml")) if place.is_dir() else [place] if place.is_file() else []
    if not files:
        raise ConfigError(f"{POLICY_VARIABLE} names {place}, which is no YAML file with a policy and no folder of them. Correct it.")
    return {policy_digest(_policy_file(file)): file for file in files}


def foreign_policy(policy: PolicyConfig | Mapping[str, Any], promoted: bool = False) -> str | None:
    """A sentence when this is none of the installation's policies; None when it is one, or the installation names none.

    `promoted`: of a release that was let through in its day. A field that its version did not have, and that the installation's file does
    not name either, then means what it meant before there was one. A candidate is not given that: it could leave out a gate so.
    """
    if (allowed := allowed_policies()) is None:
        return None
    # As the gates take it: a field that an older version did not have is what `recorded_policy` says, and a file can say the same.
    taken = policy if isinstance(policy, PolicyConfig) else recorded_policy({"policy": policy})
    if policy_digest(taken) in allowed:
        return None
    if promoted and not isinstance(policy, PolicyConfig):
        before = {field: value for field, value in BEFORE_FIELDS.items() if field not in policy}
        if any(_policy_file(file, before) == taken for file in allowed.values()):
            return None
    known = ", ".join(f"{digest[:12]} ({file.name})" for digest, file in allowed.items())
    named = f"{policy_digest(taken)[:12]} (version {taken.version})"
    return f"It was decided on by the policy {named}, which is none of this installation's: {known}."


def _policy_file(file: Path, unnamed: Mapping[str, Any] | None = None) -> PolicyConfig:
    """The policy in a file; `unnamed` fields have these values where it does not name them, instead of their defaults."""
    import yaml

    try:
        given = yaml.safe_load(file.read_text(encoding="utf-8"))
        return PolicyConfig.model_validate({**unnamed, **given} if unnamed else given)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error).partition("\n")[0]
        raise ConfigError(f"{file} ({POLICY_VARIABLE}) is no policy: {first}. Give the fields of `policy` as YAML.") from None


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
        known = BEFORE_FIELDS if "version" in recorded else {**BEFORE_FIELDS, **BEFORE_VERSIONS}
        return PolicyConfig.model_validate({**known, **recorded})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"The manifest's policy is not valid ({where}: {first['msg']}), so its decision cannot be checked.") from None
