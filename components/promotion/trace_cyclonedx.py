"""A trace as a CycloneDX 1.6 bill of materials: models with model cards, base models, data, packages, and what depends on what.

https://cyclonedx.org/docs/1.6/json. The serial number comes from the release's digest. Each approval and each promotion record is an
annotation, and makes a new version of the document.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from components.artifacts import digest_of
from components.errors import ModelError
from components.evaluation.report import Summary, load_summary
from components.promotion.release import EVALUATION_FOLDER, BaseModelPin, LineageNode
from components.promotion.trace import Trace
from components.promotion.trace_node import time_text, value_text
from components.promotion.trace_people import approvals, call_witness, promotions
from components.promotion.trace_release import Opened

SPECIFICATION = "1.6"
PREFIX = "scalingnote:"
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_SYSTEMS = {"query_encoder": "student", "query_tower": "teacher"}  # role -> its name in the evaluation
_CODE = ("code_revision", "patch_digest", "code_digest", "lock_digest", "platform")  # of an earlier flow that made a part
_RECORD = (
    *("action", "sequence", "from_version", "to_version", "approved_by", "role", "authentication", "reason", "override"),
    *("manifest_digest", "decision_digest", "audit_sequence", "audit_digest", "recorded_at", "digest"),
)
_TASKS = {"query_tower": "query encoding", "document_tower": "document encoding", "query_encoder": "query encoding"}


def cyclonedx_of(trace: Trace) -> dict[str, Any]:
    """The bill of materials; raises ModelError for a model that no release describes."""
    if trace.release is None:
        raise ModelError(f"No candidate pins {trace.model}/{trace.version}, so its parts and data are not known.")
    return _Bill(trace.release).document()


class _Bill:
    """The bill of one release."""

    def __init__(self, opened: Opened) -> None:
        self.opened, self.manifest = opened, opened.manifest
        self.witness = call_witness(opened.name)
        self.pins = dict(self.manifest.pins.items())
        self.nodes = {node.digest: node for node in self.manifest.lineage}
        self.summary = load_summary(Path(opened.artifact.path) / EVALUATION_FOLDER)

    def document(self) -> dict[str, Any]:
        """The whole document."""
        digest = self.opened.artifact.digest
        bases = {_base_ref(base): base for base in self.opened.base_models.values()}
        annotations = [*self._approvals(), *self._promotions()]
        parts = [*self._pinned(), *map(_base, bases.values()), *map(self._data, self._data_nodes()), *self._packages()]
        return {
            "bomFormat": "CycloneDX",
            "specVersion": SPECIFICATION,
            "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{PREFIX}{digest}')}",
            "version": 1 + len(annotations),
            "metadata": {"timestamp": time_text(self.opened.info.created_ms), "component": self._release()},
            "components": parts,
            "dependencies": list(self._dependencies()),
            "annotations": annotations,
        }

    def _approvals(self) -> Iterator[dict[str, Any]]:
        """Who approved, as annotations of the release."""
        for node in approvals(self.opened.name, self.opened.info, self.witness).children:
            known = {key: value_text(value) for key, value in node.details.items() if value is not None}
            yield self._annotation(known["approved_by"], known.get("approved_at") or time_text(int(known["copied_ms"])), "approval", known)

    def _promotions(self) -> Iterator[dict[str, Any]]:
        """The promotion records about the release."""
        for node in promotions(self.opened.name, self.opened.info, self.witness).children:
            known = {key: node.details.get(key) for key in _RECORD if node.details.get(key) is not None}
            yield self._annotation(str(known["approved_by"]), str(known["recorded_at"]), str(known["action"]), known)

    def _annotation(self, person: str, when: str, act: str, known: Mapping[str, Any]) -> dict[str, Any]:
        said = "; ".join(f"{key} {value_text(value)}" for key, value in known.items())
        about = {"subjects": [self.opened.artifact.digest], "annotator": {"individual": {"name": person}}}
        return {**about, "timestamp": when, "text": f"{act}: {said}"}

    def _release(self) -> dict[str, Any]:
        known = {key: value for key, value in self.manifest.provenance.items() if key != "packages"}
        about = {
            "release_type": self.manifest.release_type,
            "space_id": self.manifest.space_id,
            "verdict": self.manifest.decision.verdict,
            "flow_run_id": self.manifest.flow_run_id,
            "config_digest": digest_of(self.manifest.config),
            "lineage_gaps": self.opened.gaps,
            **_flat(known),
        }
        name, version = self.opened.info.name, str(self.opened.info.version)
        digest = self.opened.artifact.digest
        head = {"type": "application", "bom-ref": digest, "name": name, "version": version, "hashes": _hashes(digest)}
        return {**head, "properties": _properties(about)}

    def _pinned(self) -> Iterator[dict[str, Any]]:
        for role, pin in self.pins.items():
            node = self.nodes.get(pin.digest)
            kind = "data" if role == "index" else "machine-learning-model"
            head: dict[str, Any] = {
                "type": kind,
                "bom-ref": pin.digest,
                "name": pin.model,
                "version": str(pin.version),
                "hashes": _hashes(pin.digest),
            }
            if role == "index":
                head["data"] = [{"type": "other", "name": "vector index", "description": "FAISS index over the vectors of the documents"}]
            else:
                head["modelCard"] = self._card(role, node)
            yield {**head, "properties": _properties(self._facts(node) if node else {})}

    def _card(self, role: str, node: LineageNode | None) -> dict[str, Any]:
        base = self.opened.base_models.get(role)
        static = node is not None and node.config.get("form") == "static"
        parameters = {
            "approach": {"type": "supervised"},
            "task": _TASKS[role],
            "architectureFamily": "static embeddings" if static else "transformer",
            **({"modelArchitecture": base.name} if base else {}),
            "datasets": [{"ref": self.manifest.dataset.digest}],
            "inputs": [{"format": "text"}],
            "outputs": [{"format": "vector of unit length, float32"}],
        }
        card: dict[str, Any] = {"modelParameters": parameters, "considerations": self._considerations()}
        metrics = list(_metrics(self.summary, _SYSTEMS.get(role, "")))
        return {**card, "quantitativeAnalysis": {"performanceMetrics": metrics}} if metrics else card

    def _considerations(self) -> dict[str, Any]:
        """What was measured tells where the model may be used: nothing is said about other texts."""
        data, queries = self.manifest.dataset.name, self.manifest.evaluation.queries
        limit = f"Measured on {queries} judged queries of the split '{self.manifest.evaluation.split}' of '{data}' alone."
        use = f"Retrieval over the documents of '{data}', together with the other parts of this release and no other index."
        losses = [f"Gate {gate.name} is {gate.status}: {gate.reason}" for gate in self.manifest.decision.open_gates()]
        return {"useCases": [use], "technicalLimitations": [limit], **({"performanceTradeoffs": losses} if losses else {})}

    def _data_nodes(self) -> list[LineageNode]:
        """Data, vectors, queries and reports: all of the lineage that is not pinned."""
        pinned = {pin.digest for pin in self.pins.values()}
        return [node for node in self.manifest.lineage if node.digest not in pinned]

    def _data(self, node: LineageNode) -> dict[str, Any]:
        kind = "dataset" if node.kind in ("dataset", "queries", "vectors") else "other"
        name = str(node.attributes.get("name") or node.name)
        about = [{"type": kind, "name": name, "contents": {"properties": _properties(dict(node.counts))}}]
        contracts = self.manifest.dataset.contracts if node.digest == self.manifest.dataset.digest else {}
        facts = {**self._facts(node), **{f"contract.{contract}": version for contract, version in contracts.items()}}
        head = {"type": "data", "bom-ref": node.digest, "name": name, "hashes": _hashes(node.digest)}
        return {**head, "data": about, "properties": _properties(facts)}

    def _facts(self, node: LineageNode) -> dict[str, Any]:
        made: dict[str, Any] = {"kind": node.kind, "step": node.name, "run_id": node.run_id, "task_run_id": node.task_run_id}
        earlier = self.manifest.earlier_flows.get(node.flow_run_id or "", {})
        made |= {"flow_run_id": node.flow_run_id, **{key: earlier.get(key) for key in _CODE}, "found_finished": node.reused or None}
        return {**made, "config_digest": digest_of(node.config), **node.counts, **node.attributes}

    def _packages(self) -> Iterator[dict[str, Any]]:
        for name, version in (self.manifest.provenance.get("packages") or {}).items():
            purl = f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
            yield {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}

    def _dependencies(self) -> Iterator[dict[str, Any]]:
        """The edges of the lineage; only what is a component here can be named."""
        packages = [package["bom-ref"] for package in self._packages()]
        heads = [*(pin.digest for pin in self.pins.values()), self.manifest.evaluation.digest, self.manifest.dataset.digest]
        described = {*self.nodes, *(pin.digest for pin in self.pins.values())}
        yield _dependency(self.opened.artifact.digest, [*(head for head in heads if head in described), *packages])
        bases = {self.pins[role].digest: _base_ref(base) for role, base in self.opened.base_models.items()}
        for node in self.manifest.lineage:
            parents = [digest for digest in node.parents.values() if digest in described]
            yield _dependency(node.digest, [*parents, *([bases[node.digest]] if node.digest in bases else [])])


def _base(base: BaseModelPin) -> dict[str, Any]:
    head = {"type": "machine-learning-model", "bom-ref": _base_ref(base), "name": base.name}
    if base.revision:
        head |= {"version": base.revision, "purl": f"pkg:huggingface/{base.name.partition('@')[0]}@{base.revision}"}
    return {**head, "hashes": _hashes(base.digest), "properties": _properties({"role": "base model", "digest": base.digest})}


def _base_ref(base: BaseModelPin) -> str:
    return f"base:{base.name}:{base.digest}"


def _metrics(summary: Summary, system: str) -> Iterator[dict[str, Any]]:
    found = summary.systems.get(system)
    for metric, value in found.metrics.items() if found else ():
        entry: dict[str, Any] = {"type": metric, "value": f"{value:.6f}", "slice": summary.split}
        if interval := found.intervals.get(metric) if found else None:
            entry["confidenceInterval"] = {"lowerBound": f"{interval[0]:.6f}", "upperBound": f"{interval[1]:.6f}"}
        yield entry


def _dependency(ref: str, parents: Iterable[str]) -> dict[str, Any]:
    return {"ref": ref, "dependsOn": list(dict.fromkeys(parents))}


def _hashes(digest: str) -> list[dict[str, str]]:
    """A hash where the digest is one; the commit of a model hub is none."""
    return [{"alg": "SHA-256", "content": digest}] if _SHA256.match(digest) else []


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    inner = {f"{key}.{name}": part for key, value in values.items() if isinstance(value, Mapping) for name, part in value.items()}
    return {**{key: value for key, value in values.items() if not isinstance(value, Mapping)}, **inner}


def _properties(values: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"name": f"{PREFIX}{key}", "value": value_text(value)} for key, value in values.items() if value is not None]
