"""What both refreshes share: their configuration, and the release they start from, taken from the registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import Field

from components.config import RETRIEVER_NAME, StepConfig
from components.errors import ConfigError
from flows.config import RetrainConfig, amend_config, load_config, nested

if TYPE_CHECKING:
    from components.artifacts import Artifact, DatasetArtifact
    from components.index.changes import Changes
    from components.release.open import PinnedRelease
    from flows.recorder import Recorder


class RefreshConfig(StepConfig):
    """Which release is refreshed, from which data, with which settings in the place of the release's own."""

    name: str = Field("retriever", pattern=RETRIEVER_NAME, description="Name of the retriever")
    release: str = Field("champion", min_length=1, description="Release to start from: champion, previous, candidate/N or release/N")
    data: str = Field("", description="Data folder; empty: the one that the release was built from")
    preset: str | None = Field(
        None, description="Preset that what the refresh may change is taken from, gates apart; none: the release's own settings"
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="Settings changed for this refresh, such as distillation.epochs: 4")


def requested_refresh(request: RefreshConfig | None, **given: Any) -> RefreshConfig:
    """The parameters of a refresh as one: those of the form (`given`, fields of RefreshConfig), or `request`, which holds them all.

    Raises ConfigError when both say something.
    """
    flat = RefreshConfig(**given)
    if request is not None and flat != RefreshConfig():
        stated = ", ".join(field for field in RefreshConfig.model_fields if getattr(flat, field) != getattr(RefreshConfig(), field))
        raise ConfigError(f"Both request and {stated} are given. Put all into the single parameters, and leave request out.")
    return request or flat


def open_base(request: RefreshConfig, changeable: Sequence[str]) -> tuple[PinnedRelease, RetrainConfig]:
    """The release to start from, all that it pins verified, and the configuration of its refresh (see `configured`).

    Raises as `open_pinned` and `configured` do, and ConfigError when the policy asks for what will not be measured or reached.
    """
    from components.gates.attainable import require_attainable, require_measured
    from components.release.open import open_pinned

    base = open_pinned(request.name, request.release)
    config = configured(request, base.manifest, changeable)
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
    own = recorded.config or {}
    base, source = (own, "the release") if request.preset is None else _with_preset(own, request.preset, changeable)
    data = {"data.source": request.data} if request.data else {}
    settings = {**request.settings, **data}
    if "student" in given.get("distillation", {}) and "revision" not in given["distillation"]:
        settings["distillation.revision"] = None  # the recorded commit is one of the former student
    return amend_config(base, settings, source)


def _with_preset(own: Mapping[str, Any], preset: str, changeable: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The release's configuration with whole sections and fields of a preset in the place of its own, where a refresh may change them.

    The gates stay: a policy belongs to the installation, and changes only where somebody names it.
    """
    values = {section: dict(fields) if isinstance(fields, Mapping) else fields for section, fields in own.items()}
    taken = load_config(preset).model_dump(mode="json")
    for section, _, field in (path.partition(".") for path in changeable if path != "policy"):
        if field:
            values[section][field] = taken[section][field]
        else:
            values[section] = taken[section]
    return values, f"the release, preset {preset}"


def checked_data(config: RetrainConfig, recorder: Recorder, base: PinnedRelease) -> tuple[DatasetArtifact, Artifact]:
    """The data as tables and the report of their contracts.

    Raises DataError for data that breaks one, cannot be measured on, or measures by queries that `base`'s models were trained on.
    """
    from components.artifacts import DatasetArtifact
    from components.data.dataset import load_dataset
    from components.data.seen_queries import load_seen, require_unseen
    from components.evaluation.summarize import require_judged
    from flows.steps import checked_validation, snapshot_step, typed

    dataset: DatasetArtifact = typed(recorder.run(snapshot_step(config)), DatasetArtifact)
    validation = recorder.run(checked_validation(config, dataset))
    splits, tables = (config.evaluation.split, *config.evaluation.extra_splits), load_dataset(dataset.path)
    require_judged(tables, splits, config.evaluation.query_groups)
    if (seen := load_seen(base.artifact.path)) is not None:
        require_unseen(tables, splits, seen, base.title)
    return dataset, validation


def unknown_queries(base: PinnedRelease, dataset: DatasetArtifact) -> list[str]:
    """A note for the reviewer where the release does not say what its models were trained on, and the data is not the same."""
    from components.data.seen_queries import load_seen

    if base.manifest.dataset.digest == dataset.digest or load_seen(base.artifact.path) is not None:
        return []
    return [f"{base.title} keeps no list of its train queries: whether the judged queries of this data were among them is not known."]


def describe_changes(changes: Changes) -> str:
    """The counts as a sentence's end."""
    return ", ".join(f"{count:,} {what}" for what, count in changes.counts.items()) + " documents."


def _require_changeable(given: Mapping[str, Any], changeable: Sequence[str]) -> None:
    paths = [f"{section}.{field}" for section, fields in given.items() if isinstance(fields, Mapping) for field in fields]
    paths += [section for section, fields in given.items() if not isinstance(fields, Mapping)]
    for path in paths:
        known = path.partition(".")[0] in RetrainConfig.model_fields  # any other is explained as a wrong field
        if known and not {path, path.partition(".")[0]} & set(changeable):
            raise ConfigError(
                f"{path} belongs to what the release keeps, so a refresh cannot change it. It can change: {', '.join(changeable)}. "
                "For all else: scalingnote retrain."
            )
