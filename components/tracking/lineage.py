"""Lineage in MLflow: data sets and models as inputs of runs, models as their outputs.

A model is looked up by the sha256 digest of its artifact, which its LoggedModel carries as a tag, because MLflow's own data set
digest covers the first 10,000 rows in 32 bits and its model versions do not name their LoggedModel.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from components import settings
from components.artifacts import Artifact
from components.tracking import labels
from components.tracking.store import client

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, LoggedModel, Run

MODEL_KINDS = frozenset({"encoder", "index", "release"})
_KNOWN_MODELS: dict[tuple[str, str, str], str] = {}  # a digest's model never changes, and a flow asks for it many times
_TABLES = 20  # of one data set whose columns are shown
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
    """The name under which MLflow shows a data set."""
    return str(artifact.attributes.get("name") or artifact.kind)


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
    from mlflow.types import ColSpec, DataType, Schema

    columns = []
    for path in sorted(artifact.path.glob("*.parquet"))[:_TABLES]:
        try:
            fields = list(pq.read_schema(path))
        except (OSError, pa.ArrowException):  # the step that reads it says what is wrong with it
            continue
        columns += [
            ColSpec(_column_type(field.type, DataType), f"{path.stem}.{field.name}", required=not field.nullable) for field in fields
        ]
    return json.dumps({"mlflow_colspec": Schema(columns).to_dict()}) if columns else None


def _column_type(kind: Any, names: Any) -> Any:
    import pyarrow as pa

    found = ((pa.types.is_integer, names.long), (pa.types.is_floating, names.double), (pa.types.is_boolean, names.boolean))
    return next((name for is_kind, name in found if is_kind(kind)), names.string)
