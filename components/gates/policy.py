"""The policy: what the gates ask, with its bounds and its digest.

Gates are decided by the policy in the candidate's own configuration, which is whoever builds it who writes. So an installation names the
policies that it allows: `SCALINGNOTE_POLICY`, a YAML file, or a folder of `*.yaml` where earlier ones stay allowed, in the environment of
the tracking server with sign-in, which hands them to its clients, or of the command. Another one needs an override, at registration and
again at promotion.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator

from components.artifacts import digest_of
from components.errors import ArtifactError, ConfigError
from components.evaluation.metrics import METRICS
from components.settings import StepConfig
from components.tracking.server import permissions as policies
from components.tracking.server.permissions import PolicyFiles


class PolicyConfig(StepConfig):
    """Thresholds of the gates. A metric that a gate needs and does not find is never a pass; null switches a gate off.

    Whatever is known from a sample of queries is held against its threshold by the lower end of its interval, never by its mean alone.
    Its values are taken as they stand there: a text is no number, nor is infinity a threshold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    version: str = Field("1", min_length=1, max_length=60, description="Name of this policy; change it with any threshold")
    split: str | None = Field(
        "test", min_length=1, max_length=60, description="Judgements that the gates are measured on (evaluation.split); null: not asked"
    )
    min_queries: int = Field(100, ge=1, description="Judged queries below which nothing can be decided")
    min_retention: float = Field(0.95, gt=0, le=2, description="Student's recall@50 over the teacher's, lower end")
    retention_by: Literal["lower_end", "mean"] = Field(
        "lower_end", description="What is held against min_retention; older releases were decided on by the mean"
    )
    min_off_distribution_retention: float | None = Field(
        None, gt=0, le=2, description="The same on each of evaluation.extra_splits, of which there must be one; null: not asked"
    )
    floors: dict[str, float] = Field(default_factory=dict, description="Least value of the student by metric, lower end, as ndcg@10: 0.3")
    beat_bm25: bool = Field(True, description="Student must beat BM25: better in one of baseline_metrics, not worse in the others")
    beat_untrained: bool = Field(True, description="Student must beat the untrained encoder in the same way")
    teacher_worth: bool = Field(True, description="Teacher must beat BM25 and the untrained encoder in the same way")
    baseline_metrics: tuple[str, ...] = Field(
        ("ndcg@10", "recall@50"),
        strict=False,
        min_length=1,
        description="Metrics in which baselines are beaten: better in one (with Bonferroni's correction), not worse in the others",
    )
    baseline_margin: float = Field(
        0.01, gt=0, le=0.5, description="Largest loss in one of baseline_metrics against a baseline that still counts as not worse"
    )
    margin: float = Field(0.01, gt=0, le=0.5, description="Largest loss of nDCG@10 against the champion that still counts as equal")
    confidence: float = Field(0.95, gt=0.5, le=0.999, description="Confidence of the one-sided intervals")
    min_power: float | None = Field(
        0.8,
        gt=0,
        lt=1,
        description="Chance that an equal candidate is shown to be equal, overall and in each slice; null: not asked",
    )
    slice_margin: float | None = Field(
        0.05,
        gt=0,
        le=1,
        description="Largest loss of nDCG@10 against the champion in a slice of the queries; null: slices are not judged",
    )
    min_slice_queries: int = Field(150, ge=2, description="Slices with fewer queries are judged together, as the others of their dimension")
    required_slices: tuple[str, ...] = Field(
        (), strict=False, description="Dimensions, or dimension=slice, that must be there and large enough"
    )
    min_speed_up: float | None = Field(1.0, ge=0, description="Student's queries per second over the teacher's; null: not asked")
    max_p95_ratio: float | None = Field(1.5, gt=0, description="95th percentile of the answer time over the champion's; null: not asked")
    min_qps_ratio: float | None = Field(0.67, ge=0, description="Queries per second over the champion's in the same run; null: not asked")
    min_ann_recall: float | None = Field(
        0.95, gt=0, le=1, description="Index: recall@100 against exact search on the same vectors; null: not asked"
    )
    max_contract_errors: int | None = Field(0, ge=0, description="Broken rules of the data contracts, severity error; null: not asked")
    max_removed_share: float | None = Field(
        0.05, ge=0, le=1, description="Largest share of the documents served before that may be gone, else undecided; null: not asked"
    )
    require_lineage: bool = Field(True, description="Every parent of the release must be known")
    require_space: bool = Field(True, description="Encoders and index must belong to one vector space")
    max_mean_cosine_over_teacher: float | None = Field(
        0.2, ge=0, le=2, description="Collapse: mean cosine of the student's query vectors above the teacher's; null: not asked"
    )
    min_effective_rank_share: float | None = Field(
        0.3, ge=0, le=1, description="Collapse: effective rank of the student's query vectors over the teacher's; null: not asked"
    )

    @field_validator("baseline_metrics", "floors")
    @classmethod
    def _known_metrics(cls, named: Collection[str]) -> Collection[str]:
        for metric in named:
            if metric not in METRICS:
                raise ValueError(f"the metric '{metric}' is not known; known are {', '.join(METRICS)}")
        return named

    @field_validator("floors")
    @classmethod
    def _shares(cls, floors: dict[str, float]) -> dict[str, float]:
        for metric, floor in floors.items():
            if not 0 <= floor <= 1:
                raise ValueError(f"the floor of {metric} is {floor:g}; it must lie between 0 and 1")
        return floors


# --- The policy as a record: its digest, the policies that this installation allows, and the one that an older version decided by.


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


def allowed_policies() -> dict[str, str] | None:
    """Digest -> file of each policy that this installation allows, in this environment and on its server; None where neither names any.

    Raises ConfigError for a place that is not there or holds none, and for a file that is no policy; TrackingError where the server
    does not say.
    """
    found = [_digests(source) for source in policies.sources()]
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
    known = policies.sources() if sources is None else sources
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
