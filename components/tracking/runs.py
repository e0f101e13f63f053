"""Runs in MLflow: one for a flow run, one nested run for each of its steps, with the step's whole lineage and links to their pages.

Every call names its run. MLflow's active run is never used: tasks on other threads would not see it, and it would leak into them.
"""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from components import settings
from components.artifacts import MANIFEST, Artifact, digest_of
from components.tracking import labels
from components.tracking.embedded import reader
from components.tracking.live import KILLED, End, end_of, finished_runs
from components.tracking.packaging import local_path
from components.tracking.provenance import Provenance, claimed_user, provenance_tags, source_tags
from components.tracking.registry import input_tags, log_inputs, log_output, log_source
from components.tracking.store import NOTE, TrackingError, client, error_code, experiment_id, require_answer, translated

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Run

    from components.tracking.live import LiveStep


@translated("find the pages of a model version")
def evidence_links(model: str, version: int) -> dict[str, str]:
    """Title -> link for the files of a version, and for the report that the run which made it keeps a copy of."""
    found = client().get_model_version(model, str(version))
    run = client().get_run(found.run_id)
    experiment = run.info.experiment_id
    model_id = (found.source or "").removeprefix("models:/")
    return {
        "Full report": f"#/experiments/{experiment}/runs/{_holder(run)}/artifacts/release/{PAGE}",
        "Files of this version": f"#/experiments/{experiment}/models/{model_id}/artifacts",
        "Run": f"#/experiments/{experiment}/runs/{found.run_id}",
    }


@translated("find the page of a run")
def run_link(run_id: str) -> str:
    """The page of a run."""
    return f"#/experiments/{client().get_run(run_id).info.experiment_id}/runs/{run_id}"


@translated("find the report of a step")
def report_link(run_id: str, kind: str) -> str:
    """The report of the step whose run `run_id` is, an artifact of the `kind`; the run that made it holds the file."""
    run = client().get_run(run_id)
    return f"#/experiments/{run.info.experiment_id}/runs/{_holder(run)}/artifacts/{kind}/{PAGE}"


def _holder(run: Run) -> str:
    """The run that keeps a copy of the files: one that found its step finished has none."""
    return str(run.data.tags.get(labels.FILES_RUN, run.info.run_id))


def version_link(model: str, version: int) -> str:
    """The page of a registered version."""
    return f"#/models/{model}/versions/{version}"


# --- Runs in MLflow: one for a flow run, one nested run for each of its steps, written with the step's whole lineage.


Status = Literal["FINISHED", "FAILED", "KILLED"]
REPORT_KINDS = frozenset({"validation", "evaluation", "comparison", "study"})
PAGE = "report.html"  # what people read of an artifact that has it: a run's page can be linked to, a model's files cannot
TABLES = "tables"  # folder of what its viewer shows as tables
PLOTS = "plots"  # folder of its pictures
Measured = float | Sequence[float]  # a number, or a curve: the values after step 1, 2 and so on
CANCELLED = "cancelled"  # why a run was killed that a person ended
_NEVER = 253_402_300_799_000  # milliseconds until the end of the year 9999, the last that has a date
_CONFIG = "config.json"  # the file that holds a flow's whole configuration, beside the run's parameters
_BATCH = 100  # the most parameters or tags that MLflow takes in one call
_METRICS = 1000  # the most metrics that it takes in one call
_POINTS = 1000  # of a curve: its pages draw fewer


@dataclass(frozen=True)
class StepRecord:
    """What one step did. `inputs` and `artifact` carry the digests, `seconds` is the step's own duration.

    `flow_run_id` is the flow's run in MLflow, `task_run_id` the step's run in Prefect. `fault`: what is wrong with the artifact, empty
    when nothing is.
    """

    step: str
    config: Mapping[str, Any]
    artifact: Artifact
    inputs: Mapping[str, Artifact] = field(default_factory=dict)
    metrics: Mapping[str, Measured] = field(default_factory=dict)
    seconds: float = 0.0
    cached: bool = False
    flow_run_id: str = ""
    task_run_id: str | None = None
    fault: str = ""


@dataclass(frozen=True)
class FlowRun:
    """A run as MLflow has it: the flow or step that it is the run of, its status, start (UTC) and tags.

    `config` is the configuration that the flow recorded, None where it recorded none or its file is gone; the run of a step never has
    one, and `parent` names the run of its flow.
    """

    run_id: str
    title: str
    status: str
    started: str
    tags: Mapping[str, str]
    parent: str | None
    config: dict[str, Any] | None


@translated("open a run for the flow")
def open_flow_run(
    name: str,
    flow: str,
    parameters: Mapping[str, Any],
    provenance: Provenance,
    tags: Mapping[str, Any],
    begin: Callable[[str], object] = lambda _run_id: None,
) -> str:
    """Open the run of a flow in the experiment `name` and return its id; `tags` become tags.

    `begin` is told the id as soon as there is a run: what fails from then on leaves one that somebody has to close.
    """
    experiment = experiment_id(name)
    everything = {labels.FLOW: flow, **provenance_tags(provenance), **tags}
    run = client().create_run(
        experiment,
        run_name=f"{flow}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}",
        tags={"mlflow.user": provenance.user, **source_tags(provenance, flow), **labels.prefixed(everything)},
    )
    run_id = str(run.info.run_id)
    begin(run_id)
    _log_parameters(run_id, labels.flatten(parameters))
    client().log_dict(run_id, provenance.model_dump(), "provenance.json")
    client().log_dict(run_id, dict(parameters), _CONFIG)
    return run_id


@translated("close the run of the flow")
def close_flow_run(run_id: str, status: Status, error: str | None = None) -> None:
    """End the run of a flow, and those of its steps that are left open where it failed; `error` says why it did."""
    if error:
        client().set_tag(run_id, labels.ERROR, labels.cut(error, labels.MAX_TAG))
    client().set_terminated(run_id, status)
    if status != "FINISHED":
        for left in _open_steps(client().get_run(run_id)):
            client().set_terminated(left.info.run_id, status)


@translated("close a run whose process is gone")
def close_left_run(run_id: str, end: End = KILLED) -> bool:
    """End the run of a flow, and those of its steps, which a process that is gone has left open, as it ended.

    Nothing happens to one that is closed. Returns whether this store knows the run.
    """
    from mlflow.exceptions import MlflowException

    try:
        run = client().get_run(run_id)
    except MlflowException as error:
        if error_code(error) != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    for left in (*_open_steps(run), run):
        if left.info.status == "RUNNING" and left.info.lifecycle_stage == "active":
            if end.why and labels.ERROR not in left.data.tags:  # else it had said why it ends, and was disturbed then
                client().set_tag(left.info.run_id, labels.ERROR, labels.cut(end.why, labels.MAX_TAG))
            client().set_terminated(left.info.run_id, end.status, end.at)
    return True


def _open_steps(run: Run) -> Sequence[Run]:
    """The runs of the steps of a flow's run that have not ended."""
    still_open = f"tags.`mlflow.parentRunId` = '{run.info.run_id}' and attributes.status = 'RUNNING'"
    return list(client().search_runs([run.info.experiment_id], still_open))


@translated("read a run")
def read_flow_run(run_id: str) -> FlowRun | None:
    """The run `run_id` with the configuration that its flow recorded; None when there is no such run."""
    from mlflow.exceptions import MlflowException

    try:
        run = client().get_run(run_id)
    except MlflowException as error:
        if error_code(error) not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
    tags = run.data.tags
    title = tags.get(labels.FLOW) or tags.get(labels.STEP) or str(run.info.run_name)
    started = _utc(int(run.info.start_time or 0))
    parent = tags.get("mlflow.parentRunId")
    config = None if parent else _recorded_config(run_id, str(run.info.artifact_uri))
    return FlowRun(run_id, title, str(run.info.status), started, tags, parent, config)


@translated("find the last run")
def last_flow_run(name: str) -> dict[str, str] | None:
    """The newest run of any flow in the experiment `name`: flow, state, start (UTC) and why it ended so; None where there is none.

    The state is finished, failed, cancelled (a person ended it), killed (its process is gone) or running, as Prefect shows the same run:
    Completed, Failed, Cancelled, Crashed, Running. A run whose start is still to come is the newest for ever: it counts where there is no
    other, and `ahead` is its start.
    """
    found = _newest(name, _NEVER)
    if found is None:
        return None
    ahead = _utc(found[2]) if found[2] > _latest() else ""
    run_id, status, start, tags = (_newest(name, _latest()) if ahead else None) or found
    end = end_of(run_id) if status == "RUNNING" else None
    status, why = (end.status if end else status), tags.get(labels.ERROR, "") or (end.why if end and end != KILLED else "")
    state = ("cancelled" if why == CANCELLED else "killed") if status == "KILLED" else status.lower()
    return {"flow": tags[labels.FLOW], "state": state, "started": _utc(start), "why": why, "run_id": run_id, "ahead": ahead}


def _latest() -> int:
    """The latest start (milliseconds) that a run can have: clocks of two machines differ."""
    return int((time.time() + settings.CLOCK_SLACK.total_seconds()) * 1000)


def _utc(start: int) -> str:
    return (datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=min(max(start, 0), _NEVER))).strftime("%Y-%m-%d %H:%M")


def _newest(name: str, latest: int) -> tuple[str, str, int, Mapping[str, str]] | None:
    """Id, status, start (milliseconds) and the tags that matter of the newest flow's run up to `latest`; without MLflow if that can be."""
    if (view := reader()) is not None:
        experiment = view.experiment(name)
        run = view.newest_run(experiment["experiment_id"], labels.FLOW, latest) if experiment else None
        if experiment is None or run is None:
            return None
        known = {key: view.run_tags(experiment["experiment_id"], key).get(run["run_uuid"], "") for key in (labels.FLOW, labels.ERROR)}
        return str(run["run_uuid"]), str(run["status"]), int(run["start_time"] or 0), known
    found = _search(name, f"tags.`{labels.FLOW}` != ''", latest)
    if found is None:
        return None
    info = found.info
    return str(info.run_id), str(info.status), int(info.start_time or 0), found.data.tags


def _search(name: str, condition: str, latest: int) -> Run | None:
    """The run of the experiment `name` that began last, and not after `latest`, of those that fulfil the condition."""
    experiment = client().get_experiment_by_name(name)
    if experiment is None:
        return None
    condition += f" and attributes.start_time <= {latest}"
    found = client().search_runs([experiment.experiment_id], condition, max_results=1, order_by=["attributes.start_time DESC"])
    return found[0] if found else None


@translated("find a run")
def newest_flow_run(name: str, flow: str) -> FlowRun | None:
    """The newest finished run of `flow` in the experiment `name`, with the configuration that it recorded; None where there is none.

    One whose start is still to come counts where there is no other, and one that finished while the store was gone is closed now.
    """
    for run_id, end in finished_runs().items():
        with suppress(TrackingError):  # of a retriever that this user may not change; a server that is gone is told by what follows
            close_left_run(run_id, end)
    condition = f"tags.`{labels.FLOW}` = '{flow}' and attributes.status = 'FINISHED'"
    found = _search(name, condition, _latest()) or _search(name, condition, _NEVER)
    return read_flow_run(found.info.run_id) if found else None


def _recorded_config(run_id: str, location: str) -> dict[str, Any] | None:
    stored = local_path(location)
    try:
        found = json.loads((stored / _CONFIG).read_bytes() if stored else _downloaded_config(run_id))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _downloaded_config(run_id: str) -> bytes:
    """The file in a remote store. Raises FileNotFoundError where that does not list it, and what a store in trouble raises."""
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(client().download_artifacts(run_id, _CONFIG, folder)).read_bytes()
        except (MlflowException, OSError):
            require_answer()  # a server that is gone does not say that there is none
            if _CONFIG in {entry.path for entry in client().list_artifacts(run_id)}:
                raise
    raise FileNotFoundError(_CONFIG)


@translated("log a report")
def log_report(run_id: str, folder: Path, text: str) -> None:
    """Copy the files of `folder` to a flow's run and show `text` (Markdown) on the run's page."""
    client().log_artifacts(run_id, str(folder))
    client().set_tag(run_id, NOTE, labels.cut(text, labels.MAX_DESCRIPTION))


@translated("log the evidence about a candidate")
def log_evidence(
    run_id: str, folder: Path, metrics: Mapping[str, Measured], text: str, tables: Mapping[str, pd.DataFrame] | None = None
) -> None:
    """Show on the page of a flow's run what was found out about its candidate.

    `metrics`, page and plots of `folder`, `text` (Markdown), and `tables` (name -> rows), which its viewer shows as `tables/NAME.json`.
    """
    _log_metrics(run_id, metrics, int(time.time() * 1000))
    for name, table in (tables or {}).items():
        client().log_table(run_id, table, f"{TABLES}/{name}.json")
    _upload_readable(run_id, folder)
    client().set_tag(run_id, NOTE, labels.cut(text, labels.MAX_DESCRIPTION))


@translated("open a run for a step")
def open_step(parent_run_id: str, step: str) -> str:
    """Open the nested run of a step whose making begins, and return its id; `record_step` or the reason of its failure closes it."""
    experiment, source = _parent(settings.tracking_uri(), parent_run_id)
    own = {labels.STEP: step, labels.FLOW_RUN: parent_run_id}
    tags = {**dict(source), "mlflow.parentRunId": parent_run_id, "mlflow.user": claimed_user(), **labels.prefixed(own)}
    return str(client().create_run(experiment, run_name=step, tags=tags).info.run_id)


@translated("record a step")
def record_step(parent_run_id: str, record: StepRecord, live: LiveStep | None = None) -> str:
    """Write one finished step as a nested run and return that run's id: the one that `live` has open, else a new one.

    Reports (`REPORT_KINDS`) are uploaded whole, of other artifacts the manifest and what people read: models travel by registration. A
    cached step does not upload again; its tag names the run that holds the files.
    """
    experiment, source = _parent(settings.tracking_uri(), parent_run_id)
    holder = _earlier_upload(experiment, record.artifact.digest) if record.cached else None
    ended, tags = int(time.time() * 1000), _step_tags(parent_run_id, record, holder)
    run_id, fed = (live.run_id, live.first) if live is not None else (None, {})
    if run_id is None:
        started = ended - int(record.seconds * 1000)
        run_id = str(client().create_run(experiment, started, {**dict(source), **tags}, record.step).info.run_id)
    else:
        _set_tags(run_id, tags)
    _log_numbers(run_id, record, ended, fed)
    log_inputs(run_id, experiment, record.inputs)
    log_source(run_id, record.artifact)
    log_output(run_id, experiment, record.artifact)
    if holder is None:
        _upload(run_id, record.artifact)
    client().set_terminated(run_id, "FAILED" if record.fault else "FINISHED", ended)
    return run_id


def _set_tags(run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    entries = [RunTag(key, value) for key, value in tags.items()]
    for start in range(0, len(entries), _BATCH):
        client().log_batch(run_id, tags=entries[start : start + _BATCH])


def _step_tags(parent_run_id: str, record: StepRecord, holder: str | None) -> dict[str, str]:
    artifact = record.artifact
    own = {
        labels.STEP: record.step,
        labels.KIND: artifact.kind,
        labels.DIGEST: artifact.digest,
        labels.CACHED: record.cached,
        labels.FILES_RUN: holder,
        labels.FLOW_RUN: record.flow_run_id or None,
        labels.TASK_RUN: record.task_run_id,
        labels.ERROR: record.fault or None,
        "config_digest": digest_of(dict(record.config)),
    }
    nested = {"mlflow.parentRunId": parent_run_id, "mlflow.user": claimed_user()}
    return {**nested, **labels.prefixed(own), **input_tags(record.inputs)}


def _log_numbers(run_id: str, record: StepRecord, now_ms: int, fed: Mapping[str, int]) -> None:
    """Parameters from the step's settings; metrics, counts and numeric attributes of its artifact.

    `fed`: name -> step since which the run was fed with this curve while it was made: only what came before is written.
    """
    counts = {f"count.{key}": float(value) for key, value in record.artifact.counts.items()}
    _log_parameters(run_id, labels.flatten({**record.config, "artifact": record.artifact.attributes}))
    _log_metrics(run_id, {**counts, **record.metrics, "seconds": record.seconds}, now_ms, fed)


def _log_parameters(run_id: str, parameters: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    entries = [Param(key, value) for key, value in parameters.items()]
    for start in range(0, len(entries), _BATCH):
        client().log_batch(run_id, params=entries[start : start + _BATCH])


def _log_metrics(run_id: str, metrics: Mapping[str, Measured], now_ms: int, fed: Mapping[str, int] | None = None) -> None:
    from mlflow.entities import Metric

    points = [(labels.name(key), step, value) for key, measured in metrics.items() for step, value in _steps(measured)]
    entries = [Metric(name, value, now_ms, step) for name, step, value in points if step < (fed or {}).get(name, step + 1)]
    for start in range(0, len(entries), _METRICS):
        client().log_batch(run_id, metrics=entries[start : start + _METRICS])


def _steps(measured: Measured) -> list[tuple[int, float]]:
    """(step, value): step 0 for a number; of a long curve every n-th point and the last."""
    if not isinstance(measured, Sequence):
        return [(0, float(measured))]
    every = max(1, -(-len(measured) // _POINTS))
    kept = sorted({*range(0, len(measured), every), len(measured) - 1} & set(range(len(measured))))
    return [(place + 1, float(measured[place])) for place in kept]


def _upload(run_id: str, artifact: Artifact) -> None:
    """Copy the files to the run, then mark it as holding them: an upload that was killed is never pointed to."""
    if artifact.kind in REPORT_KINDS:
        client().log_artifacts(run_id, str(artifact.path), artifact.kind)
    else:
        client().log_artifact(run_id, str(artifact.path / MANIFEST), artifact.kind)
        _upload_readable(run_id, artifact.path, artifact.kind)
    client().set_tag(run_id, labels.UPLOADED, "true")


def _upload_readable(run_id: str, folder: Path, place: str | None = None) -> None:
    """Copy page and plots, if there are any, into the folder `place` of the run."""
    if (folder / PAGE).is_file():
        client().log_artifact(run_id, str(folder / PAGE), place)
    if (folder / PLOTS).is_dir():
        client().log_artifacts(run_id, str(folder / PLOTS), f"{place}/{PLOTS}" if place else PLOTS)


def _earlier_upload(experiment: str, digest: str) -> str | None:
    condition = f"tags.`{labels.DIGEST}` = '{digest}' and tags.`{labels.UPLOADED}` = 'true'"
    found = client().search_runs([experiment], condition, max_results=1, order_by=["attributes.start_time ASC"])
    return str(found[0].info.run_id) if found else None


@functools.lru_cache(maxsize=256)
def _parent(uri: str, run_id: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The experiment of a flow's run, and its tags that say what made it, which hold for its steps as well."""
    run = client().get_run(run_id)
    source = tuple((key, value) for key, value in run.data.tags.items() if key.startswith("mlflow.source."))
    return str(run.info.experiment_id), source
