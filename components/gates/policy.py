"""The policy as a record: its digest, the policies that this installation allows, and the one that an older version decided by.

Gates are decided by the policy in the candidate's own configuration, which is whoever builds it who writes. So an installation names the
policies that it allows: `SCALINGNOTE_POLICY`, a YAML file, or a folder of `*.yaml` where earlier ones stay allowed, in the environment of
the tracking server with sign-in, which hands them to its clients, or of the command. Another one needs an override, at registration and
again at promotion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from components.artifacts import digest_of
from components.errors import ArtifactError, ConfigError
from components.gates.config import PolicyConfig
from components.tracking.server import permissions
from components.tracking.server.permissions import PolicyFiles

# What policies of before a field was there were decided by: a gate that came later is off, one that asks more now asks what it asked then.
BEFORE_FIELDS: Mapping[str, Any] = {
    "split": None,
    "own_units": False,
    "teacher_worth": False,
    "same_teacher_share": None,
    "baseline_metrics": ("ndcg@10",),
    "max_removed_share": None,
}
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


def allowed_policies() -> dict[str, str] | None:
    """Digest -> file of each policy that this installation allows, in this environment and on its server; None where neither names any.

    Raises ConfigError for a place that is not there or holds none, and for a file that is no policy; TrackingError where the server
    does not say.
    """
    found = [_digests(source) for source in permissions.sources()]
    if not found:
        return None
    return {digest: name for digest, name in found[0].items() if all(digest in other for other in found)}


def foreign_policy(
    policy: PolicyConfig | Mapping[str, Any], promoted: bool = False, sources: Sequence[PolicyFiles] | None = None
) -> str | None:
    """A sentence when this is none of the installation's policies; None when it is one, or the installation names none.

    Where this environment and the server both name some, it has to be one of each: nobody allows on their own machine what the
    administrator does not.
    `promoted`: of a release that was let through in its day. A field that its version did not have, and that the installation's file does
    not name either, then means what it meant before there was one. A candidate is not given that: it could leave out a gate so.
    `sources`: the installation's policies, where they were asked for already.
    """
    known = permissions.sources() if sources is None else sources
    return next((foreign for source in known if (foreign := _foreign_to(source, policy, promoted))), None)


def _foreign_to(source: PolicyFiles, policy: PolicyConfig | Mapping[str, Any], promoted: bool) -> str | None:
    # As the gates take it: a field that an older version did not have is what `recorded_policy` says, and a file can say the same.
    taken = policy if isinstance(policy, PolicyConfig) else recorded_policy({"policy": policy})
    if policy_digest(taken) in (allowed := _digests(source)):
        return None
    if promoted and not isinstance(policy, PolicyConfig):
        before = {field: value for field, value in BEFORE_FIELDS.items() if field not in policy}
        if any(_policy(source, name, before) == taken for name in source.files):
            return None
    known = ", ".join(f"{digest[:12]} ({name})" for digest, name in allowed.items())
    named = f"{policy_digest(taken)[:12]} (version {taken.version})"
    return f"It was decided on by the policy {named}, which is none of this installation's, by {source.place}: {known}."


def _digests(source: PolicyFiles) -> dict[str, str]:
    return {policy_digest(_policy(source, name)): name for name in source.files}


def _policy(source: PolicyFiles, name: str, unnamed: Mapping[str, Any] | None = None) -> PolicyConfig:
    """The policy in a file; `unnamed` fields have these values where it does not name them, instead of their defaults."""
    try:
        return PolicyConfig.model_validate({**(unnamed or {}), **source.files[name]})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{name} ({source.place}) is no policy: {where}: {first['msg']}. Give the fields of `policy` as YAML.") from None


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
