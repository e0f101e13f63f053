"""A trace as OpenLineage events (specification 2-0-2): for every step a run that starts and completes, its inputs and its outputs.

https://openlineage.io/docs/spec/object-model. Models and indexes are datasets there, as the specification has no other output; the
facet `version` of each carries the sha256 digest, so two of one name are told apart. The specification asks for a START of every run. A
release knows when a step was recorded, not when it began, so both events bear that time. A receiver takes one event a request.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from components.artifacts import digest_of
from components.errors import ModelError
from components.lineage.graph import Trace
from components.lineage.release_graph import Opened
from components.lineage.trace_node import moment, time_text
from components.lineage.trace_people import approvals, call_witness
from components.release.champion import CHAMPION, release_model
from components.release.manifest import LineageNode
from components.tracking import labels

SPECIFICATION = "https://openlineage.io/spec/2-0-2/OpenLineage.json"
PRODUCER = "urn:scalingnote:trace"  # RFC 8141: a name follows the namespace
FACETS = {
    "version": "https://openlineage.io/spec/facets/1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet",
    "parent": "https://openlineage.io/spec/facets/1-2-0/ParentRunFacet.json#/$defs/ParentRunFacet",
    "jobType": "https://openlineage.io/spec/facets/2-0-4/JobTypeJobFacet.json#/$defs/JobTypeJobFacet",
    "outputStatistics": "https://openlineage.io/spec/facets/1-0-2/OutputStatisticsOutputDatasetFacet.json"
    "#/$defs/OutputStatisticsOutputDatasetFacet",
}
OWN = f"{SPECIFICATION}#/$defs/BaseFacet"  # of facets that are ours: their fields are not in the specification
ROWS = ("documents", "rows", "queries", "pairs", "rules")  # the count that says how much an artifact holds


def openlineage_of(trace: Trace) -> list[dict[str, Any]]:
    """The events, oldest first; raises ModelError for a model that no release describes."""
    if trace.release is None:
        raise ModelError(f"No candidate pins {trace.model}/{trace.version}, so nothing is known of the runs that led to it.")
    return _Events(trace.release).all()


class _Events:
    """The events of one release."""

    def __init__(self, opened: Opened) -> None:
        self.opened, self.manifest = opened, opened.manifest
        self.witness = call_witness(opened.name)
        self.namespace = f"scalingnote/{opened.name}"
        self.nodes = {node.digest: node for node in self.manifest.lineage}
        compared = {node.parents[CHAMPION]: release_model(opened.name) for node in self.manifest.lineage if CHAMPION in node.parents}
        self.registered = {**compared, **{pin.digest: pin.model for _, pin in self.manifest.pins.items()}}
        self.last = max((node.recorded_at for node in self.manifest.lineage if node.recorded_at), default=self._created())

    def all(self) -> list[dict[str, Any]]:
        """One event a run of a step, then the release's own and those of its promotions."""
        runs: dict[str, list[LineageNode]] = {}
        for node in self.manifest.lineage:
            runs.setdefault(node.run_id or node.digest, []).append(node)
        ended = [*(self._step(made) for made in runs.values()), self._release(), *self._approvals(), *self._promotions()]
        return [event for end in ended for event in (_start(end), end)]

    def _step(self, made: list[LineageNode]) -> dict[str, Any]:
        """A run that made one artifact, or several, as the training makes both towers."""
        outputs = {node.digest for node in made}
        inputs = dict.fromkeys(digest for node in made for digest in node.parents.values() if digest not in outputs)
        bases = [_dataset("models", base.name, base.digest) for base in self._bases(outputs)]
        flow = made[0].flow_run_id or self.manifest.flow_run_id or "flow"
        facets = {"parent": _facet("parent", run={"runId": _uuid(flow)}, job=self._job("release"))}
        if earlier := self.manifest.earlier_flows.get(flow):
            facets["scalingnote_provenance"] = _own(**earlier)
        facets["scalingnote_configuration"] = _own(digest=digest_of(made[0].config), settings=labels.flatten(made[0].config))
        facets["scalingnote_runs"] = _own(mlflowRunId=made[0].run_id, prefectTaskRunId=made[0].task_run_id)
        source = self._source(made)
        return _event(
            moment(made[0].recorded_at or self.last, self.opened.info.created_ms),
            {"runId": _uuid(made[0].run_id or made[0].digest), "facets": facets},
            self._job(made[0].name, "TASK"),
            [*source, *map(self._artifact, inputs), *bases],
            [_with_rows(self._artifact(node.digest), node) for node in made],
        )

    def _release(self) -> dict[str, Any]:
        """The flow's own run: the pinned parts and the evaluation in, the candidate out."""
        used = [*(pin.digest for _, pin in self.manifest.pins.items()), self.manifest.evaluation.digest]
        facets = {
            "scalingnote_provenance": _own(**self.manifest.provenance),
            "scalingnote_configuration": _own(digest=digest_of(self.manifest.config), settings=labels.flatten(self.manifest.config)),
            "scalingnote_decision": _own(**self.manifest.decision.model_dump(mode="json")),
        }
        run = {"runId": _uuid(self.manifest.flow_run_id or "flow"), "facets": facets}
        when = moment(self.last, self.opened.info.created_ms)
        return _event(when, run, self._job("release", "DAG"), [self._artifact(digest) for digest in used], [self._candidate()])

    def _approvals(self) -> Iterator[dict[str, Any]]:
        """The copies into the release model that this release is, or that were made of this candidate."""
        for node in approvals(self.opened.name, self.opened.info, self.witness).children:
            known = {key: value for key, value in node.details.items() if value is not None}
            run = {"runId": _uuid(f"{node.key}:{self.opened.artifact.digest}"), "facets": {"scalingnote_approval": _own(**known)}}
            release = _dataset(self.namespace, release_model(self.opened.name), self.opened.artifact.digest)
            when = moment(known.get("approved_at"), known["copied_ms"])
            yield _event(when, run, self._job("approve", "TASK"), [self._candidate()], [release])

    def _promotions(self) -> Iterator[dict[str, Any]]:
        """The records that made this release the champion."""
        for record in self.witness.records if self._is_release() else ():
            if int(record["to_version"]) != self.opened.info.version:
                continue
            release = _dataset(self.namespace, self.opened.info.name, self.opened.artifact.digest)
            known = str(record.get("digest") or digest_of(record))
            run = {"runId": _uuid(known), "facets": {"scalingnote_record": _own(**record)}}
            when = moment(record.get("recorded_at") or record.get("time"), self.opened.info.created_ms)
            yield _event(when, run, self._job(str(record["action"]), "TASK"), [self._candidate()], [release])

    def _candidate(self) -> dict[str, Any]:
        return _dataset(self.namespace, f"{self.opened.name}-candidate", self.opened.artifact.digest)

    def _is_release(self) -> bool:
        return self.opened.info.name == release_model(self.opened.name)

    def _created(self) -> str:
        """When the version was registered: the steps of an older manifest name no time."""
        return time_text(self.opened.info.created_ms)

    def _job(self, name: str, kind: str | None = None) -> dict[str, Any]:
        job: dict[str, Any] = {"namespace": self.namespace, "name": name}
        facets = {"jobType": _facet("jobType", processingType="BATCH", integration="SCALINGNOTE", jobType=kind)}
        return {**job, "facets": facets} if kind else job

    def _artifact(self, digest: str) -> dict[str, Any]:
        node = self.nodes.get(digest)
        name = self.registered.get(digest) or (f"{node.name}.{node.kind}" if node else "not-described")
        made = _dataset(self.namespace, name, digest)
        if digest == (data := self.manifest.dataset).digest:
            made["facets"]["scalingnote_contracts"] = _own(contracts=data.contracts, sourceDigest=data.source_digest)
        return made

    def _bases(self, outputs: Iterable[str]) -> list[Any]:
        pins = dict(self.manifest.pins.items())
        found = {base.digest: base for role, base in self.opened.base_models.items() if pins[role].digest in outputs}
        return list(found.values())

    def _source(self, made: list[LineageNode]) -> list[dict[str, Any]]:
        sources = [str(node.attributes["source_digest"]) for node in made if node.attributes.get("source_digest")]
        return [_dataset(self.namespace, "source", digest) for digest in sources]


def _event(when: str, run: Mapping[str, Any], job: Mapping[str, Any], inputs: list[Any], outputs: list[Any]) -> dict[str, Any]:
    event = {"eventType": "COMPLETE", "eventTime": when, "run": run, "job": job, "inputs": inputs, "outputs": outputs}
    return {**event, "producer": PRODUCER, "schemaURL": f"{SPECIFICATION}#/$defs/RunEvent"}


def _start(end: dict[str, Any]) -> dict[str, Any]:
    """The beginning of a run that ended: what it gave is not there yet."""
    return {**end, "eventType": "START", "outputs": []}


def _dataset(namespace: str, name: str, digest: str) -> dict[str, Any]:
    return {"namespace": namespace, "name": name, "facets": {"version": _facet("version", datasetVersion=digest)}}


def _with_rows(dataset: dict[str, Any], node: LineageNode) -> dict[str, Any]:
    count = next((node.counts[name] for name in ROWS if name in node.counts), None)
    return dataset if count is None else {**dataset, "outputFacets": {"outputStatistics": _facet("outputStatistics", rowCount=count)}}


def _facet(name: str, **values: Any) -> dict[str, Any]:
    return {"_producer": PRODUCER, "_schemaURL": FACETS[name], **values}


def _own(**values: Any) -> dict[str, Any]:
    return {"_producer": PRODUCER, "_schemaURL": OWN, **values}


def _uuid(text: str) -> str:
    """A run of MLflow is a UUID without hyphens; anything else gets one that is always the same."""
    try:
        return str(uuid.UUID(hex=text))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{PRODUCER}:{text}"))
