"""Index refresh: the documents that changed since a release are encoded, all else of it stays; the result is a candidate like any other.

What both refreshes share stands here: their configuration, and the release they start from, taken from the registry.

snapshot -> validate -> find changes -> encode them -> refresh index -> evaluate -> decide, register candidate
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol, TypeVar

from prefect import flow
from pydantic import Field

from components.artifacts import Artifact, DatasetArtifact, IndexArtifact, VectorShards
from components.errors import ConfigError
from components.evaluation.systems import EvaluationInputs
from components.index.drift import read_guard
from components.index.encode import EncodingInputs
from components.index.refresh import Changes, RefreshInputs, changes_since, read_documents
from components.index.search import merge_fault_of
from components.release.champion import candidate_model
from components.release.open import PinnedRelease
from components.settings import RETRIEVER_NAME, StepConfig
from components.towers.trained.published import OWN
from components.tracking.registry import find_version
from flows.candidate import (
    CandidateParts,
    CandidateResult,
    register_candidate,
    require_decidable,
    say_queries_in_common,
    verdict_line,
)
from flows.config import RetrainConfig, amend_config, load_config, nested
from flows.parameters import NO_SETTINGS, NOTHING, Name, Preset, ReleaseRef, SettingsForm, require_steps, steps_form
from flows.recorder import Recorder, recorded_flow
from flows.reporting import AS_OURS, emit, ended, say
from flows.steps import checked_validation, delta_step, evaluation_step, refresh_step, snapshot_step, typed


class RefreshConfig(StepConfig):
    """Which release is refreshed, from which data, with which settings in the place of the release's own."""

    name: str = Field("retriever", pattern=RETRIEVER_NAME, description="Name of the retriever")
    release: str = Field("champion", min_length=1, description="Release to start from: champion, previous, candidate/N or release/N")
    data: str = Field("", description="Data folder; empty: the one that the release was built from")
    preset: str | None = Field(
        None, description="Preset that what the refresh may change is taken from, gates apart; none: the release's own settings"
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="Settings changed for this refresh, such as distillation.epochs: 4")

    @property
    def changeable(self) -> tuple[str, ...]:
        """Sections and `section.field` that this refresh may change."""
        return CHANGEABLE


Refresh = TypeVar("Refresh", bound=RefreshConfig)


def requested_refresh(kind: type[Refresh], request: Refresh | None, **given: Any) -> Refresh:
    """The parameters of a refresh as one: those of the form (`given`, fields of `kind`), or `request`, which holds them all.

    Raises ConfigError when both say something.
    """
    flat = kind(**given)
    if request is not None and flat != kind():
        stated = ", ".join(field for field in kind.model_fields if getattr(flat, field) != getattr(kind(), field))
        raise ConfigError(f"Both request and {stated} are given. Put all into the single parameters, and leave request out.")
    return request or flat


def open_base(request: RefreshConfig) -> tuple[PinnedRelease, RetrainConfig]:
    """The release to start from, all that it pins verified, and the configuration of its refresh (see `configured`).

    Raises as `open_pinned` and `configured` do, and ConfigError when the policy asks for what will not be measured or reached.
    """
    from components.gates.decide import require_attainable, require_measured
    from components.release.open import open_pinned, resolve

    resolve(request.name, request.release)  # before a model is made on a server for a name that was misspelt
    require_decidable(request.name)
    base = open_pinned(request.name, request.release)
    config = configured(request, base.manifest, request.changeable)
    require_measured(config.policy, config.evaluation)
    require_attainable(config.policy, config.index, str(base.index.attributes["index_key"]))
    return base, config


class Recorded(Protocol):
    """What was built by a configuration that it records: the manifest of a release, or the run of a flow."""

    @property
    def config(self) -> dict[str, Any] | None:
        """The whole configuration, nested as in a file."""
        ...


def configured(request: RefreshConfig, recorded: Recorded, changeable: Sequence[str]) -> RetrainConfig:
    """The release's own configuration with the request's preset, settings and data laid over it.

    `changeable` are sections or `section.field` that the refresh may change; raises ConfigError for any other, and for wrong values.
    """
    given = nested(request.settings)
    _require_changeable(given, changeable)
    own = _without_former_models(recorded.config or {}, given)
    base, source = (own, "the release") if request.preset is None else _with_preset(own, request.preset, changeable)
    data = {"data.source": request.data} if request.data else {}
    return amend_config(base, {**request.settings, **data}, source)


def _without_former_models(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A release's `base` without what belongs to a model that `given` replaces: its commit, and what was said of one that was trained, or
    taken as it is, where the new one is taken as it is and says that itself.
    """
    found = dict(base)
    given = {section: fields for section, fields in given.items() if isinstance(fields, Mapping)}  # what is none is refused later
    for model, commit in (("student", "revision"), ("generator", "generator_revision")):
        if model in given.get("distillation", {}):
            found["distillation"] = _without(found["distillation"], (commit,))
    before, towers = found.get("towers", {}), given.get("towers", {})
    other = "base_model" in towers
    if (other or before.get("training") != "none") and {**before, **towers}.get("training") == "none":
        found["towers"] = _without(found["towers"], OWN)
    if other:
        found["towers"] = _without(found["towers"], ("revision", "vectors"))
    for section in ("companion", "judge"):
        if isinstance(of_it := towers.get(section), Mapping) and "base_model" in of_it:
            found["towers"] = {**found["towers"], section: _without(found["towers"].get(section) or {}, ("revision",))}
    if {**before, **towers}.get("training") == "none" and "judge" not in towers:  # nothing is left that it could judge
        found["towers"] = _without(found["towers"], ("judge",))
    return found


def _without(section: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    return {field: value for field, value in section.items() if field not in fields}


def _with_preset(own: Mapping[str, Any], preset: str, changeable: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The release's configuration with whole sections and fields of a preset in the place of its own, where a refresh may change them.

    The gates stay: a policy belongs to the installation, and changes only where somebody names it.
    """
    values = {section: dict(fields) if isinstance(fields, Mapping) else fields for section, fields in own.items()}
    taken = load_config(preset)
    # Without what nobody set: a teacher that is taken as it is brings its own values for some of that.
    whole, said = taken.model_dump(mode="json"), taken.model_dump(mode="json", exclude_unset=True)
    for section, _, field in (path.partition(".") for path in changeable if path != "policy"):
        if field:
            values[section][field] = whole[section][field]
        else:
            values[section] = said.get(section, {})
    return values, f"the release, preset {preset}"


def checked_data(config: RetrainConfig, recorder: Recorder, base: PinnedRelease) -> tuple[DatasetArtifact, Artifact]:
    """The data as tables and the report of their contracts.

    Raises DataError for data that breaks one, cannot be measured on, or measures by queries that `base`'s models were trained on.
    """
    from components.data.dataset import load_dataset
    from components.data.left_out import load_seen, require_not_trained_on, require_unseen
    from components.evaluation.summarize import require_judged

    dataset = typed(recorder.run(snapshot_step(config)), DatasetArtifact)
    validation = recorder.run(checked_validation(config, dataset))
    splits, tables = (config.evaluation.split, *config.evaluation.extra_splits), load_dataset(dataset.path)
    require_judged(tables, splits, config.evaluation.query_groups)
    require_not_trained_on(tables, splits)
    say_queries_in_common(config, tables, refused=False)
    if (seen := load_seen(base.artifact.path)) is not None:
        require_unseen(tables, splits, seen, base.title)
    return dataset, validation


def unknown_queries(base: PinnedRelease, dataset: DatasetArtifact) -> list[str]:
    """A note for the reviewer where the release does not say what its models were trained on, and the data is not the same."""
    from components.data.left_out import load_seen

    if base.manifest.dataset.digest == dataset.digest or load_seen(base.artifact.path) is not None:
        return []
    return [f"{base.title} keeps no list of its train queries: whether the judged queries of this data were among them is not known."]


def describe_changes(changes: Changes) -> str:
    """The counts as a sentence's end."""
    return ", ".join(f"{count:,} {what}" for what, count in changes.counts.items()) + " documents."


def _require_changeable(given: Mapping[str, Any], changeable: Sequence[str]) -> None:
    # The page sends {} for a part of a section that nobody touched.
    asked = [(section, fields) for section, fields in given.items() if isinstance(fields, Mapping)]
    paths = [f"{section}.{field}" for section, fields in asked for field, value in fields.items() if value != {}]
    paths += [section for section, fields in given.items() if not isinstance(fields, Mapping)]
    for path in paths:
        known = path.partition(".")[0] in RetrainConfig.model_fields  # any other is explained as a wrong field
        if known and not {path, path.partition(".")[0]} & set(changeable):
            raise ConfigError(
                f"{path} belongs to what the release keeps, so a refresh cannot change it. It can change: {', '.join(changeable)}. "
                "For all else: scalingnote retrain."
            )


# --- Index refresh: the documents that changed since a release are encoded, all else of it stays; the result is a candidate like any
# --- other.


CHANGEABLE = (
    "data.on_violation",
    "data.max_dropped_share",
    "encoding",
    "evaluation",
    "policy",
    "index.compact_share",
    "index.max_imbalance",
    "index.max_distance",
    "index.max_recall_loss",
)
Settings = Annotated[dict[str, Any], SettingsForm(CHANGEABLE)]
AGAIN = ("snapshot_data", "validate_data", "encode_changes", "refresh_index", "evaluate", "compare_with_champion", "write_candidate")
Again = Annotated[list[str], steps_form(AGAIN)]


@flow(name="refresh-index", **AS_OURS)
def refresh_index(
    name: Name = "retriever",
    release: ReleaseRef = "champion",
    data: str = "",
    preset: Preset | None = None,
    settings: Settings = NO_SETTINGS,
    request: RefreshConfig | None = None,
    again: Again = NOTHING,
) -> CandidateResult:
    """Bring a release's index up to date with the documents in `data` and register the candidate.

    Returns what `retrain` returns, with `changes` (added, changed, removed, unchanged), `encoded` (documents), `seconds` and `guard`.
    When no document changed nothing is encoded, and the candidate is the one that the release is, unless its index has to be written anew.

    Args:
        name: Name of the retriever
        release: Release to start from: champion, previous, candidate/N or release/N
        data: Data folder; empty: the one that the release was built from
        preset: Preset that what this refresh may change is taken from, gates apart; none: the release's own settings
        settings: Settings over the release's, as sections or by dotted names
        request: All of these in one, instead of the others
        again: Steps that are made anew although they are finished; what follows them is made anew where their result has changed
    """
    from components.settings import activate

    chosen = requested_refresh(RefreshConfig, request, name=name, release=release, data=data, preset=preset, settings=settings)
    require_steps("refresh-index", again, AGAIN)
    activate()
    started = time.monotonic()
    base, config = open_base(chosen)
    with recorded_flow(config.name, "refresh-index", config.model_dump(mode="json"), again) as recorder:
        recorder.adopt_lineage(base.ancestry(), base.flows())
        dataset, validation = checked_data(config, recorder, base)
        changes = changes_since(base.index.path, read_documents(dataset.path))
        say(f"Since {base.title}: {describe_changes(changes)}{_many_gone(changes, config.policy.max_removed_share)}")
        if not changes and merge_fault_of(base.index) is None:
            result = _unchanged(recorder, base, changes).model_copy(update={"seconds": time.monotonic() - started})
            return ended(result, f"No document changed since {base.title}.")
        delta, encoded = _encoded(config, recorder, base, dataset, changes)
        index = typed(recorder.run(refresh_step(config, RefreshInputs(dataset, base.index, delta), changes)), IndexArtifact)
        guard = read_guard(index.path)
        notes = [f"Index refresh of {base.title}: {describe_changes(changes)}", *(f"Index: {reason}" for reason in guard.reasons)]
        notes += unknown_queries(base, dataset)
        parts = _parts(config, recorder, base, (dataset, validation, index), notes, (len(changes.removed), served_before(changes)))
        result = register_candidate(config, recorder, parts)
    if guard.status != "ok":
        emit("drift", config.name, f"The index of '{config.name}' no longer fits its documents.", reasons=list(guard.reasons))
    told = {"base": base.title, "changes": changes.counts, "encoded": encoded, "guard": guard, "seconds": time.monotonic() - started}
    return ended(result.model_copy(update=told), f"{verdict_line(result)}; {describe_changes(changes)}")


def _encoded(
    config: RetrainConfig, recorder: Recorder, base: PinnedRelease, dataset: DatasetArtifact, changes: Changes
) -> tuple[VectorShards | None, int]:
    """The vectors of what was added and changed, None when there is nothing to encode, and how many documents were encoded just now."""
    if not len(changes.encoded):
        return None, 0
    before = recorder.made
    delta = typed(recorder.run(delta_step(config, EncodingInputs(dataset, base.document_tower), base.index, changes)), VectorShards)
    return delta, len(changes.encoded) if recorder.made > before else 0


def _parts(
    config: RetrainConfig,
    recorder: Recorder,
    base: PinnedRelease,
    made: tuple[DatasetArtifact, Artifact, IndexArtifact],
    notes: list[str],
    removed: tuple[int, int],
) -> CandidateParts:
    dataset, validation, index = made
    evaluation = recorder.run(evaluation_step(config, EvaluationInputs(dataset, base.query_tower, base.query_encoder, index)))
    towers = (base.query_tower, base.document_tower, base.query_encoder)
    return CandidateParts(dataset, validation, *towers, index, evaluation, "index-refresh", tuple(notes), base.artifact.path, removed)


def served_before(changes: Changes) -> int:
    """Documents that the index held before."""
    return changes.unchanged + len(changes.changed) + len(changes.removed)


def _many_gone(changes: Changes, allowed: float | None) -> str:
    """A warning before hours of work that the gates will not decide on."""
    share = len(changes.removed) / max(1, served_before(changes))
    if allowed is None or share <= allowed:
        return ""
    return f" That removes {share:.1%} of them; the policy decides on {allowed:.1%} at most. Is this the whole folder?"


def _unchanged(recorder: Recorder, base: PinnedRelease, changes: Changes) -> CandidateResult:
    """The result when the index holds the documents as they are: the candidate that the release was, and nothing new."""
    candidate = find_version(candidate_model(base.manifest.name), base.artifact.digest)
    decision = base.manifest.decision
    return CandidateResult(
        name=base.manifest.name,
        release_type=base.manifest.release_type,
        candidate=f"candidate/{candidate.version}" if candidate else None,
        version=candidate.version if candidate else None,
        digest=base.artifact.digest,
        folder=str(base.artifact.path),
        verdict=decision.verdict,
        first_release=decision.first_release,
        gates=decision.gates,
        cached=True,
        mlflow_run_id=recorder.run_id,
        base=base.title,
        changes=changes.counts,
        encoded=0,
        guard=None,
    )
