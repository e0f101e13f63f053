"""The model registry: register artifacts with their lineage, find versions, resolve aliases, copy versions for approval.

Lineage stands in MLflow too: data sets and models as inputs of runs, models as their outputs.

A model is looked up by the sha256 digest of its artifact, which its LoggedModel carries as a tag, because MLflow's own data set digest
covers the first 10,000 rows in 32 bits and its model versions do not name their LoggedModel.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from components import settings
from components.artifacts import Artifact
from components.errors import masked
from components.tracking import embedded, labels, packaging
from components.tracking.packaging import COPY, are_lost
from components.tracking.packaging import artifact_folder as artifact_folder
from components.tracking.packaging import forget_download as forget_download
from components.tracking.packaging import local_files as local_files
from components.tracking.packaging import share_file as share_file
from components.tracking.store import TrackingError, client, error_code, is_server, translated

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, LoggedModel, Run


MODEL_KINDS = frozenset({"encoder", "index", "release"})
_KNOWN_MODELS: dict[tuple[str, str, str], str] = {}  # a digest's model never changes, and a flow asks for it many times
_TABLES = 20  # of one data set whose columns are shown
_LONGEST_NAME = 480  # of a data set, of the 500 letters that MLflow takes
DATASET_DIGEST_LENGTH = 36  # the longest that MLflow takes; the whole digest is in a tag beside it


def input_tags(inputs: Mapping[str, Artifact]) -> dict[str, str]:
    """Role -> digest as tags: complete even where a parent was not registered (yet)."""
    return {labels.INPUT + labels.name(role): artifact.digest for role, artifact in inputs.items()}


def log_inputs(run_id: str, experiment: str, inputs: Mapping[str, Artifact]) -> None:
    """Record data as data set inputs and registered models as model inputs. One that is registered later is linked then."""
    from mlflow.entities import LoggedModelInput

    datasets = [
        _data_input(role, label(artifact), artifact.kind, artifact.digest, artifact)
        for role, artifact in inputs.items()
        if artifact.kind not in MODEL_KINDS
    ]
    digests = [artifact.digest for artifact in inputs.values() if artifact.kind in MODEL_KINDS]
    models = [LoggedModelInput(model_id) for model_id in models_of(experiment, digests).values()]
    if datasets or models:
        client().log_inputs(run_id, datasets=datasets, models=models)


def log_source(run_id: str, artifact: Artifact) -> None:
    """Record the files that a data set was read from as the input of the run that read them; nothing for other artifacts."""
    source = artifact.attributes.get("source_digest")
    if artifact.kind == "dataset" and source is not None:
        client().log_inputs(run_id, datasets=[_data_input("source", f"{label(artifact)} source", "source", str(source))])


def log_output(run_id: str, experiment: str, artifact: Artifact) -> None:
    """Record the registered model that holds `artifact` as an output of the run, if there is one."""
    from mlflow.entities import LoggedModelOutput

    if artifact.kind in MODEL_KINDS and (model_id := models_of(experiment, [artifact.digest]).get(artifact.digest)):
        client().log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])


def models_of(experiment: str, digests: Iterable[str]) -> dict[str, str]:
    """Artifact digest -> id of the oldest finished LoggedModel of the experiment that holds it; digests without one are left out."""
    uri = settings.tracking_uri()
    found = {digest: _model_of(uri, experiment, digest) for digest in digests}
    return {digest: model_id for digest, model_id in found.items() if model_id is not None}


def _model_of(uri: str, experiment: str, digest: str) -> str | None:
    key = (uri, experiment, digest)
    if key not in _KNOWN_MODELS:
        ready = [model for model in _models_with(experiment, digest) if str(model.status) == "READY"]
        if not ready:
            return None
        _KNOWN_MODELS[key] = str(min(ready, key=lambda model: (model.creation_timestamp, model.model_id)).model_id)
    return _KNOWN_MODELS[key]


def link_consumers(experiment: str, producer: Run, digest: str, model_id: str) -> None:
    """Record a model as input of those steps of the same flow run that used it before it was registered."""
    from mlflow.entities import LoggedModelInput

    parent = producer.data.tags.get("mlflow.parentRunId")
    if parent is None:
        return
    for run in client().search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'", max_results=1000):
        uses = {value for key, value in run.data.tags.items() if key.startswith(labels.INPUT)}
        if digest in uses and model_id not in _linked_models(run.info.run_id):
            client().log_inputs(run.info.run_id, models=[LoggedModelInput(model_id)])


def _linked_models(run_id: str) -> set[str]:
    """Asked of the run itself: a search gives runs without their model inputs."""
    run = client().get_run(run_id)
    return {used.model_id for used in (run.inputs.model_inputs if run.inputs else [])}


def _models_with(experiment: str, digest: str) -> list[LoggedModel]:
    return list(client().search_logged_models([experiment], filter_string=f"tags.`{labels.DIGEST}` = '{digest}'"))


def label(artifact: Artifact) -> str:
    """The name under which MLflow shows a data set, which it refuses beyond 500 letters: that of several is made of all their names."""
    return labels.cut(str(artifact.attributes.get("name") or artifact.kind), _LONGEST_NAME)


def _data_input(role: str, name: str, kind: str, digest: str, artifact: Artifact | None = None) -> DatasetInput:
    """`artifact`: the data set itself, where it lies here, for the numbers of its rows and its columns."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    # As components.tracking.dataset_source reads it, whose import takes MLflow's data packages with it.
    source = json.dumps({"kind": kind, "sha256": digest})
    profile = json.dumps(dict(artifact.counts if artifact else {}))
    dataset = Dataset(
        name=name,
        digest=digest[:DATASET_DIGEST_LENGTH],
        source_type="scalingnote",
        source=source,
        profile=profile,
        schema=_schema(artifact) if artifact else None,
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", role), InputTag("sha256", digest)])


def _schema(artifact: Artifact) -> str | None:
    """The columns of its Parquet tables in the form of MLflow's pages, each with its table's name; None where it has no tables."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from mlflow.types import ColSpec, Schema

    columns = []
    for path in sorted(artifact.path.glob("*.parquet"))[:_TABLES]:
        try:
            fields = list(pq.read_schema(path))
        except (OSError, pa.ArrowException):  # the step that reads it says what is wrong with it
            continue
        columns += [ColSpec(_column_type(field.type), f"{path.stem}.{field.name}", required=not field.nullable) for field in fields]
    return json.dumps({"mlflow_colspec": Schema(columns).to_dict()}) if columns else None


def _column_type(kind: Any) -> Any:
    import pyarrow as pa
    from mlflow.types import DataType
    from mlflow.types.schema import Array

    if any(is_list(kind) for is_list in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)):
        return Array(_column_type(kind.value_type))
    found = ((pa.types.is_integer, DataType.long), (pa.types.is_floating, DataType.double), (pa.types.is_boolean, DataType.boolean))
    return next((name for is_kind, name in found if is_kind(kind)), DataType.string)


# --- The model registry: register artifacts with their lineage, find versions, resolve aliases, copy versions for approval.


CHALLENGER = "challenger"  # the alias of the newest candidate whose gates passed
_HEADLINE = {"recall_at_10", "recall_at_50", "ndcg_at_10", "recall_at_10_of_exact"}
_METRICS = 1000  # the most metrics that MLflow takes in one call
_log = logging.getLogger(__name__)
_DESCRIPTIONS = {
    "-query-tower": "Query tower: the LLM's query adapter with its encoding contract. Teacher of the query encoder.",
    "-document-tower": "Document tower: the LLM's document adapter with its encoding contract. It defines the vector space.",
    "-query-encoder": "Query encoder: the small encoder that serves queries in the document tower's space.",
    "-index": "Index over the vectors of the document tower.",
    "-candidate": "Candidates: manifests that pin towers, query encoder and index by digest, with evidence. Promote one to approve it.",
    "-release": "Approved releases. Copies of candidates; the promote flow moves the alias `champion`.",
}


class RegisteredVersion(BaseModel):
    """One version of a registered model and the digest of the artifact it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    version: int
    digest: str


class VersionInfo(BaseModel):
    """What the registry says about one version. Tags may have been edited since: digests are proof, tags are not."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    version: int
    tags: dict[str, str]
    source: str
    run_id: str | None
    created_ms: int
    aliases: tuple[str, ...]


@translated("make a registered model")
def ensure_model(name: str) -> None:
    """Make the registered model `name` when it is missing, with a description by the part it plays."""
    from mlflow.exceptions import MlflowException

    description = next((text for suffix, text in _DESCRIPTIONS.items() if name.endswith(suffix)), None)
    try:
        client().create_registered_model(name, tags={labels.PREFIX + "managed": "true"}, description=description)
    except MlflowException as error:
        if error_code(error) != "RESOURCE_ALREADY_EXISTS":
            raise


def require_prepared(name: str) -> None:
    """Raise TrackingError before long work when a server would not let this user register a candidate of `name`: the model is missing."""
    if is_server(settings.tracking_uri()):
        ensure_model(f"{name}-candidate")


@translated("register a model")
def register(
    model_name: str, artifact: Artifact, run_id: str, inputs: Mapping[str, RegisteredVersion], tags: Mapping[str, Any]
) -> RegisteredVersion:
    """Register `artifact` as a version of `model_name`, produced by the run `run_id` from `inputs` (role -> version).

    Run again with the same artifact it returns the existing version, or makes another where the files of that one are lost. Digest, kind,
    parents and attributes become tags beside `tags` (see `provenance.version_tags`); they are given at creation, so a version never exists
    without them.
    """
    with _one_at_a_time(model_name):
        return find_version(model_name, artifact.digest) or _register_new(model_name, artifact, run_id, inputs, tags)


@contextmanager
def _one_at_a_time(model_name: str) -> Iterator[None]:
    """Of two equal runs on one home the second finds what the first registered; the system frees the lock when its holder dies."""
    folder = settings.work_folder() / "registering"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{model_name}.lock").open("w") as handle:
        if not settings.locked(handle, wait=False):
            print(f"Waiting: another command is registering a version of '{model_name}'.", file=sys.stderr, flush=True)
            settings.locked(handle)
        yield


def _register_new(
    model_name: str, artifact: Artifact, run_id: str, inputs: Mapping[str, RegisteredVersion], tags: Mapping[str, Any]
) -> RegisteredVersion:
    ensure_model(model_name)
    run = client().get_run(run_id)
    experiment = str(run.info.experiment_id)
    former = find_version(model_name, artifact.parents.get("index", "")) if artifact.kind == "index" else None
    shared = local_files(model_name, former.version) if former else None
    params = {key: value for key, value in run.data.params.items() if not key.startswith("artifact.")}
    logged = packaging.log_model(artifact, model_name, experiment, run_id, shared, params | labels.flatten(artifact.attributes))
    _link_parents(run_id, experiment, inputs)
    created = client().create_model_version(
        model_name,
        source=f"models:/{logged.model_id}",
        run_id=run_id,
        tags=_version_tags(artifact, inputs, {**tags, labels.PACKAGE: logged.package}),
        description=_description(model_name, artifact, inputs),
        model_id=logged.model_id,
        await_creation_for=0,
    )
    link_consumers(experiment, run, artifact.digest, logged.model_id)
    return RegisteredVersion(name=model_name, version=int(created.version), digest=artifact.digest)


def find_version(model_name: str, digest: str) -> RegisteredVersion | None:
    """The oldest version of `model_name` that holds the artifact `digest`, without those whose files are lost."""
    for info in versions(model_name):
        if info.tags.get(labels.DIGEST) == digest and not are_lost(model_name, info.version):
            return RegisteredVersion(name=model_name, version=info.version, digest=digest)
    return None


def package_digest(model_name: str, version: int) -> str | None:
    """What lists the files around a version's artifact had this digest when it was registered; None for an older version."""
    return next((info.tags.get(labels.PACKAGE) for info in versions(model_name) if info.version == version), None)


@translated("log the metrics of a model version")
def log_version_metrics(version: RegisteredVersion, metrics: Mapping[str, float], dataset: Artifact) -> None:
    """Show what was measured on `dataset` where MLflow compares models: with the version's LoggedModel, and on the run that made it.

    The headline also becomes tags of the version, which its page and its copies show. What stands there already is not written again.
    """
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    found = client().get_logged_model(_model_id(version.name, version.version))
    data = (label(dataset), dataset.digest[:DATASET_DIGEST_LENGTH])
    known = {(metric.key, metric.value) for metric in found.metrics or () if (metric.dataset_name, metric.dataset_digest) == data}
    now = int(time.time() * 1000)
    wanted = {labels.name(key): float(value) for key, value in metrics.items() if math.isfinite(value)}
    entries = [Metric(key, value, now, 0, found.model_id, *data) for key, value in wanted.items() if (key, value) not in known]
    try:
        for start in range(0, len(entries), _METRICS):
            client().log_batch(found.source_run_id, metrics=entries[start : start + _METRICS])
    except MlflowException as error:  # somebody has deleted the run that made it
        said = masked(str(error).partition("\n")[0])
        _log.warning("MLflow cannot compare %s/%s by what was measured now: %s", version.name, version.version, said)
    for key in {entry.key for entry in entries} & _HEADLINE:
        set_version_tag(version.name, version.version, f"metric.{key}", f"{wanted[key]:.4f}")


def mark_challenger(candidate: RegisteredVersion) -> None:
    """Point the alias `challenger` to a candidate whose gates passed, unless a newer one has it.

    It is for people and their tools; nothing is decided by it, so a server that does not let this user set it stops nothing.
    """
    if (alias(candidate.name, CHALLENGER) or 0) >= candidate.version:
        return
    try:
        set_alias(candidate.name, CHALLENGER, candidate.version)
    except TrackingError as error:
        _log.warning("The alias '%s' of %s stays where it is: %s", CHALLENGER, candidate.name, error)


@translated("describe a model version")
def set_description(model_name: str, version: int, markdown: str) -> None:
    """Set the text that the page of a version shows."""
    client().update_model_version(model_name, str(version), labels.cut(markdown, labels.MAX_DESCRIPTION))


@translated("list model versions")
def versions(model_name: str) -> list[VersionInfo]:
    """All versions of `model_name`, oldest first; empty when there is no such model."""
    view = embedded.reader()
    if view is not None:
        return _embedded_versions(view, model_name)
    if (aliases := _aliases(model_name)) is None:
        return []
    found = [_info(entry, aliases) for entry in _search(model_name)]
    return sorted(found, key=lambda info: info.version)


@translated("read the tags of model versions that were deleted")
def tags_of_deleted(model_name: str) -> dict[int, dict[str, str]]:
    """Version -> the tags that it had when it was deleted, which the embedded store keeps; a server does not show them."""
    view = embedded.reader()
    if view is None:
        return {}
    there = {row["version"] for row in view.versions(model_name)}
    return {version: tags for version, tags in view.version_tags(model_name).items() if version not in there}


@translated("list the retrievers")
def retrievers() -> list[str]:
    """Names of the retrievers that have releases, in alphabetical order; models whose names no retriever can have are somebody else's."""
    found, token = [], None
    while True:
        page = client().search_registered_models("name LIKE '%-release'", max_results=1000, page_token=token)
        found += [model.name.removesuffix("-release") for model in page]
        token = page.token
        if not token:
            return sorted(name for name in found if re.fullmatch(settings.RETRIEVER_NAME.rstrip("$"), name))


@translated("read the description of a model version")
def description(model_name: str, version: int) -> str:
    """The text that the page of a version shows."""
    return str(client().get_model_version(model_name, str(version)).description or "")


@translated("copy a model version")
def copy_version(source_name: str, source_version: int, target_name: str) -> int:
    """Copy a version into another registered model, as "Promote model" of MLflow's page does, and return the new number."""
    origin = client().get_model_version(source_name, str(source_version))
    ensure_model(target_name)
    # Not `copy_model_version`: that one prints to stderr.
    copied = client().create_model_version(
        target_name,
        source=f"models:/{source_name}/{source_version}",
        run_id=origin.run_id,
        tags=dict(origin.tags),
        description=origin.description,
        await_creation_for=0,
    )
    return int(copied.version)


def copied_from(info: VersionInfo) -> tuple[str, int] | None:
    """Model and version that `info` was copied from; None for a version that was not copied."""
    matched = COPY.match(info.source)
    return (matched.group(1), int(matched.group(2))) if matched else None


@translated("read an alias")
def alias(model_name: str, alias_name: str) -> int | None:
    """Version that an alias points to, or None. The version may have been deleted: MLflow lets that happen without a word."""
    view = embedded.reader()
    found = view.aliases(model_name) if view is not None else _aliases(model_name) or {}
    return found.get(alias_name)


@translated("set an alias")
def set_alias(model_name: str, alias_name: str, version: int) -> None:
    """Point an alias to a version, in one atomic step."""
    client().set_registered_model_alias(model_name, alias_name, str(version))


@translated("delete an alias")
def delete_alias(model_name: str, alias_name: str) -> None:
    """Remove an alias; nothing happens when it is not set."""
    client().delete_registered_model_alias(model_name, alias_name)


@translated("tag a model version")
def set_version_tag(model_name: str, version: int, key: str, value: str) -> None:
    """Set a tag of a version. `key` gets the project's prefix unless it has one."""
    for name, text in labels.prefixed({key: value}).items():
        client().set_model_version_tag(model_name, str(version), name, text)


@translated("tag a model version")
def set_review_tag(model_name: str, version: int, key: str, value: str) -> None:
    """Set a tag as a reviewer does in the MLflow UI: without the project's prefix, whose tags are not a reviewer's to set."""
    client().set_model_version_tag(model_name, str(version), key, labels.cut(value, labels.MAX_TAG))


def _model_id(model_name: str, version: int) -> str:
    """The LoggedModel behind a version; a copy has that of its origin."""
    found = client().get_model_version(model_name, str(version))
    while copied := COPY.match(found.source or ""):
        found = client().get_model_version(*copied.groups())
    return str(found.source).removeprefix("models:/")


def _description(model_name: str, artifact: Artifact, inputs: Mapping[str, RegisteredVersion]) -> str:
    """What a version's page says before anybody describes it: what it is, its artifact, and what it was made from."""
    kind = next((text for suffix, text in _DESCRIPTIONS.items() if model_name.endswith(suffix)), artifact.kind)
    known = {key: value for key, value in artifact.attributes.items() if value is not None}
    facts = [f"- {key.replace('_', ' ')}: {labels.text(value)}" for key, value in known.items()]
    facts += [f"- {name.replace('_', ' ')}: {count:,}" for name, count in artifact.counts.items()]
    made_from = ", ".join(f"{role.replace('_', ' ')} {used.name}/{used.version}" for role, used in inputs.items())
    last = [f"Made from {made_from}."] if made_from else []
    return labels.cut("\n\n".join([kind, "\n".join([f"- artifact: `{artifact.digest}`", *facts]), *last]), labels.MAX_DESCRIPTION)


def _version_tags(artifact: Artifact, inputs: Mapping[str, RegisteredVersion], tags: Mapping[str, Any]) -> dict[str, str]:
    own: dict[str, Any] = {labels.DIGEST: artifact.digest, labels.KIND: artifact.kind}
    own |= {labels.PARENT + role: digest for role, digest in artifact.parents.items()}
    own |= {labels.ATTRIBUTE + key: value for key, value in artifact.attributes.items()}
    own |= {labels.INPUT + role: f"{used.name}/{used.version}@{used.digest}" for role, used in inputs.items()}
    return labels.prefixed({**tags, **own})


def _link_parents(run_id: str, experiment: str, inputs: Mapping[str, RegisteredVersion]) -> None:
    """Record the registered parents as model inputs of the producing run, those that are not yet.

    One that the same run made is none: a run makes both towers, and the query tower is registered with the document tower.
    """
    from mlflow.entities import LoggedModelInput

    run = client().get_run(run_id)
    linked = {used.model_id for used in (run.inputs.model_inputs if run.inputs else [])}
    linked |= {made.model_id for made in (run.outputs.model_outputs if run.outputs else [])}
    parents = models_of(experiment, [used.digest for used in inputs.values()]).values()
    if missing := [LoggedModelInput(model_id) for model_id in parents if model_id not in linked]:
        client().log_inputs(run_id, models=missing)


def _aliases(model_name: str) -> dict[str, int] | None:
    """Alias -> version; None when there is no such model."""
    from mlflow.exceptions import MlflowException

    try:
        model = client().get_registered_model(model_name)
    except MlflowException as error:
        if error_code(error) != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return {name: int(version) for name, version in model.aliases.items()}


def _search(model_name: str) -> list[Any]:
    found, token = [], None
    while True:
        page = client().search_model_versions(f"name = '{model_name}'", max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _info(entry: Any, aliases: Mapping[str, int]) -> VersionInfo:
    version = int(entry.version)
    return VersionInfo(
        name=entry.name,
        version=version,
        tags=dict(entry.tags),
        source=entry.source or "",
        run_id=entry.run_id or None,
        created_ms=int(entry.creation_timestamp),
        aliases=tuple(sorted(name for name, target in aliases.items() if target == version)),
    )


def _embedded_versions(view: embedded.Reader, model_name: str) -> list[VersionInfo]:
    aliases, found_tags = view.aliases(model_name), view.version_tags(model_name)
    return [
        VersionInfo(
            name=model_name,
            version=row["version"],
            tags=found_tags.get(row["version"], {}),
            source=row["source"] or "",
            run_id=row["run_id"] or None,
            created_ms=row["creation_time"],
            aliases=tuple(sorted(name for name, target in aliases.items() if target == row["version"])),
        )
        for row in view.versions(model_name)
    ]
