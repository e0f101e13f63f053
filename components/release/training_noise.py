"""Training noise: how far trainings of one configuration, data set and base models lie apart by their seeds.

It is known from a study, or from the retriever's own candidates.

The intervals of a release are about its queries. That another seed would have given another student stands in none of them, so a release
says beside its differences how large that noise is for its kind of training, or that nobody knows.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components import settings
from components.artifacts import digest_of, read_json, write_json
from components.errors import ArtifactError, ModelError
from components.evaluation.metrics import RETAINED, metric_words
from components.release.completeness import other_models
from components.release.manifest import ReleaseManifest, load_release
from components.tracking import registry
from components.tracking.store import TrackingError

NOISE_FILE = "training_noise.json"
NOTHING_TRAINED = "index-refresh"  # the type of release that trains nothing
_NEWEST = 50  # candidates that are looked at


class TrainingNoise(BaseModel):
    """Means of the student after trainings of one kind (see `kind_of`), in the order of their seeds: of towers, then of the student.

    `source` names the study or the candidates that they are from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: str
    source: str
    seeds: tuple[tuple[int, int], ...] = Field(min_length=2)
    values: dict[str, tuple[float, ...]]

    @property
    def spread(self) -> dict[str, float]:
        """Metric -> standard deviation (n - 1) over the trainings."""
        return {metric: statistics.stdev(found) for metric, found in self.values.items()}

    @property
    def words(self) -> str:
        """One or two sentences."""
        spread = ", ".join(f"{value:.4f} in {metric_words(metric)}" for metric, value in sorted(self.spread.items()))
        return (
            f"Training noise: {len(self.seeds)} trainings of the same settings, data and base models with other seeds spread by {spread} "
            f"(standard deviation; {self.source}). The intervals hold the noise of the queries, not this."
        )


def words_on(noise: TrainingNoise | None, release_type: str) -> str:
    """What a release says about its training noise, known or not."""
    if release_type == NOTHING_TRAINED:
        return "Training noise: none, since this release trained nothing."
    return (
        noise.words
        if noise
        else (
            "Training noise: unknown. No study here and no candidate of this retriever trained it on the same data with another seed, so a "
            "difference may be one of seeds. `scalingnote study baselines` measures it."
        )
    )


def short_words_on(noise: TrainingNoise | None, release_type: str) -> str:
    """The same as a part of a sentence about intervals; empty for a release that trained nothing."""
    if release_type == NOTHING_TRAINED:
        return ""
    if noise is None:
        return "this is one training, and how far another seed would lead is not known"
    spread = " and ".join(f"{value:.3f} in {metric_words(metric)}" for metric, value in sorted(noise.spread.items()))
    return f"{len(noise.seeds)} trainings of the same settings with other seeds spread by {spread}"


def kind_of(config: Mapping[str, Any], dataset: str, document_tower: str = "") -> str:
    """Digest of all that a training depends on but its seeds; with `document_tower` (digest) that of the student alone, on this one."""
    sections = {
        name: _in_use(_without_seed(config.get(name, {}))) for name in ("distillation", *(() if document_tower else ("towers", "index")))
    }
    split = config.get("evaluation", {}).get("split")
    return digest_of({"sections": sections, "dataset": dataset, "document_tower": document_tower, "split": split})


def find_noise(manifest: ReleaseManifest) -> TrainingNoise | None:
    """From the studies of this installation, else from the retriever's candidates; the one with most trainings, None without any."""
    if manifest.release_type == NOTHING_TRAINED:
        return None
    kind = _kind(manifest)
    known = [found for found in (*_of_studies(kind), _of_candidates(manifest, kind)) if found is not None]
    return max(known, key=lambda found: len(found.seeds), default=None)


def write_noise(folder: Path, noise: TrainingNoise | None) -> None:
    """Keep it in `folder`; nothing where it is unknown."""
    if noise is not None:
        write_json(folder / NOISE_FILE, noise.model_dump(mode="json"))


def load_noise(folder: Path) -> TrainingNoise | None:
    """What `write_noise` kept; None where there is nothing, or nothing that can be read."""
    path = folder / NOISE_FILE
    try:
        return TrainingNoise.model_validate(read_json(path)) if path.is_file() else None
    except (ArtifactError, ValidationError):
        return None


def _kind(manifest: ReleaseManifest) -> str:
    kept = manifest.pins.document_tower.digest if manifest.release_type == "query-refresh" else ""
    return kind_of(manifest.config, manifest.dataset.digest, kept)


def _in_use(section: Any) -> Any:
    """A section without the models beside that of the towers that are none, which older configurations do not know."""
    if not isinstance(section, Mapping):
        return section
    return {key: value for key, value in section.items() if not (isinstance(value, Mapping) and value.get("base_model") == "")}


def _without_seed(section: Any) -> Any:
    return {key: value for key, value in section.items() if key != "seed"} if isinstance(section, Mapping) else section


def _of_studies(kind: str) -> Iterator[TrainingNoise]:
    for path in sorted(settings.studies_folder().glob(f"*/*/{NOISE_FILE}")):
        found = load_noise(path.parent)
        if found is not None and found.kind == kind:
            yield found


def _of_candidates(manifest: ReleaseManifest, kind: str) -> TrainingNoise | None:
    """This release and those candidates of the retriever that were trained as it was, but with other seeds."""
    found: dict[tuple[int, int], tuple[str, ReleaseManifest]] = {_seeds(manifest): ("this one", manifest)}
    for version, other in _candidates(manifest.name):
        same = _kind(other) == kind and other.evaluation.judgements_digest == manifest.evaluation.judgements_digest
        if same and _models(other) == _models(manifest):
            elsewhere = "" if _made_with(other) == _made_with(manifest) else " by other code or another machine"
            found.setdefault(_seeds(other), (f"candidate/{version}{elsewhere}", other))
    return measured(kind, {seeds: (name, _means(other)) for seeds, (name, other) in found.items()})


def measured(kind: str, trainings: Mapping[tuple[int, int], tuple[str, Mapping[str, float | None]]]) -> TrainingNoise | None:
    """From the student's means by metric for each pair of seeds, with the name of where they are from; None for fewer than two."""
    whole = {seeds: entry for seeds, entry in sorted(trainings.items()) if all(entry[1].get(metric) is not None for metric in RETAINED)}
    if len(whole) < 2:
        return None
    values = {metric: tuple(float(means[metric] or 0.0) for _, means in whole.values()) for metric in RETAINED}
    names: Sequence[str] = list(dict.fromkeys(name for name, _ in whole.values()))
    return TrainingNoise(kind=kind, source=", ".join(names), seeds=tuple(whole), values=values)


def _candidates(name: str) -> Iterator[tuple[int, ReleaseManifest]]:
    model = f"{name}-candidate"
    try:
        versions = [info.version for info in registry.versions(model)]
    except TrackingError:
        return
    for version in sorted(versions, reverse=True)[:_NEWEST]:
        try:
            yield version, load_release(registry.artifact_folder(model, version))
        except (ArtifactError, ModelError, TrackingError):  # one that was deleted or damaged says nothing
            continue


def _models(manifest: ReleaseManifest) -> dict[str, str]:
    """Weights that a training starts from, and of models that take part in it: their names stand in the settings, not what lay there."""
    others = {what: model.digest for node in manifest.lineage for what, model in other_models(node)}
    return {**{role: base.digest for role, base in manifest.base_models.items()}, **others}


def _made_with(manifest: ReleaseManifest) -> tuple[Any, Any]:
    return manifest.provenance.get("code_digest"), manifest.provenance.get("machine")


def _seeds(manifest: ReleaseManifest) -> tuple[int, int]:
    towers, student = (manifest.config.get(section, {}).get("seed", 0) for section in ("towers", "distillation"))
    return (0 if manifest.release_type == "query-refresh" else int(towers)), int(student)


def _means(manifest: ReleaseManifest) -> Mapping[str, float | None]:
    return manifest.evaluation.metrics.get("student", {})
