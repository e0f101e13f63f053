"""A trace in the terms of others: a CycloneDX bill of materials, and OpenLineage events.

https://cyclonedx.org/docs/1.6/json. The serial number comes from the release's digest. Each approval and each promotion record is an
annotation, and makes a new version of the document. Where there is a signing key whose signatures count here, it signs the document (JSON
Signature Format, https://cyclonedx.org/docs/1.6/json/#signature, over RFC 8785). The elements are those of the G7's "SBOM for AI -
Minimum Elements" (2026-05-12); what is not known of them stands in the property `not_declared`, with its reason.

https://openlineage.io/docs/spec/object-model. Models and indexes are datasets there, as the specification has no other output; the facet
`version` of each carries the sha256 digest, so two of one name are told apart. The specification asks for a START of every run. A release
knows when a step was recorded, not when it began, so both events bear that time. A receiver takes one event a request.
"""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from components.artifacts import canonical_json, digest_of
from components.errors import ModelError
from components.evaluation.report import Summary, load_summary
from components.lineage.graph import Trace
from components.lineage.release_graph import Opened, approvals, call_witness, moment, promotions, time_text, value_text
from components.release.champion import CHAMPION, release_model, standing
from components.release.completeness import BESIDE, DATA_KIND, VALIDATION_KIND, other_models
from components.release.manifest import EVALUATION_FOLDER, BaseModelPin, LineageNode, Pin, ReleaseManifest
from components.release.open import ancestors
from components.signing.keys import SigningKey, load_signing_key, trusted_keys
from components.signing.statements import signed_by
from components.tracking import labels

SPECIFICATION = "1.6"
PREFIX = "scalingnote:"
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
TOWERS = "towers"  # the role in which towers were joined with a companion
_SYSTEMS = {"query_encoder": "student", "query_tower": "teacher"}  # role -> its name in the evaluation
_CODE = ("code_revision", "patch_digest", "code_digest", "lock_digest", "platform")  # of an earlier flow that made a part
_RECORD = (
    *("action", "sequence", "from_version", "to_version", "approved_by", "role", "authentication", "reason", "override"),
    *("manifest_digest", "decision_digest", "audit_sequence", "audit_digest", "recorded_at", "digest"),
)
_TASKS = {"query_tower": "query encoding", "document_tower": "document encoding", "query_encoder": "query encoding"}
# Those of the packages that bring models; a hub's model is named with its place there instead.
_LICENCES = {"gemma3-270m": "Gemma Terms of Use", "gemma3-270m-warm": "Gemma Terms of Use", "all-minilm-l6-v2": "Apache-2.0"}
_SYSTEM = {
    "data_flow": "A query is encoded by the query encoder, the index finds the nearest documents, their ids and scores are returned. "
    "Nothing else leaves the process; what is logged of an answer is set by the installation.",
    "data_usage": "Documents are kept as vectors with their ids, content hashes and titles. Queries and judgements trained and measured "
    "the models. Whether any of it is personal is not known here.",
    "input": "a query as text",
    "output": "document ids with scores, best first",
}
# Elements of the G7 of which a release knows nothing.
_NOT_DECLARED = {
    "MDL-12 model license": "nobody states a licence for what is trained here; see that of each base model",
    "DP-08 dataset sensitivity": "no contract classifies the data",
    "DP-10 dataset license": "no contract names one",
    "SP-02 security compliance": "not assessed",
    "SP-03 cybersecurity policy": "the installation's, not the release's",
    "SP-04 vulnerability referencing": "no scan is recorded; the packages' names and versions are what one needs",
    "KPI-01 security metrics": "not measured",
}


def cyclonedx_of(trace: Trace) -> dict[str, Any]:
    """The bill of materials; raises ModelError for a model that no release describes, ConfigError for a key that cannot be used."""
    if trace.release is None:
        raise ModelError(f"No candidate pins {trace.model}/{trace.version}, so its parts and data are not known.")
    key, trusted = load_signing_key(), trusted_keys()
    return _Bill(trace.release, key if key and (not trusted or key.key_id in trusted) else None).document()


class _Bill:
    """The bill of one release."""

    def __init__(self, opened: Opened, key: SigningKey | None) -> None:
        self.opened, self.manifest, self.key = opened, opened.manifest, key
        self.witness = call_witness(opened.name)
        self.pins = dict(self.manifest.pins.items())
        self.builder = str(self.manifest.provenance.get("user") or "unknown")
        self.nodes = {node.digest: node for node in self.manifest.lineage}
        self.summary = load_summary(Path(opened.artifact.path) / EVALUATION_FOLDER)

    def document(self) -> dict[str, Any]:
        """The whole document."""
        digest, created = self.opened.artifact.digest, time_text(self.opened.info.created_ms)
        annotations = [*self._approvals(), *self._promotions()]
        tool = {"type": "application", "name": "scalingnote", "version": installed_version("scalingnote")}
        metadata = {
            "timestamp": max([created, *(note["timestamp"] for note in annotations)], key=_instant),
            "lifecycles": [{"phase": "post-build"}],
            "tools": {"components": [tool]},
            "authors": [{"name": self.builder}],
            "component": self._release(),
        }
        document = {
            "bomFormat": "CycloneDX",
            "specVersion": SPECIFICATION,
            "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{PREFIX}{digest}')}",
            "version": 1 + len(annotations),
            "metadata": metadata,
            "components": list(self._parts().values()),
            "dependencies": self._dependencies(),
            "compositions": [{"aggregate": "incomplete", "assemblies": [digest]}],  # the packages that matter most, of many
            "annotations": annotations,
        }
        return document if self.key is None else _signed(document, self.key)

    def _parts(self) -> dict[str, dict[str, Any]]:
        """By their reference, each once: one artifact may have two roles, as where both towers are one model."""
        bases = {_base_ref(base): base for base in self.opened.base_models.values()}
        others = [_base(model, what) for node in self.nodes.values() for what, model in other_models(node)]
        data = [*map(self._data, self._data_nodes()), *self._champions()]
        found = [*self._pinned(), *map(_base, bases.values()), *others, *data, *self._packages(), *self._platform()]
        parts: dict[str, dict[str, Any]] = {}
        for part in found:
            known = parts.setdefault(part["bom-ref"], part)
            if known is not part and (more := part.get("properties")):
                known["properties"] += [entry for entry in more if entry not in known["properties"]]
        return parts

    def _approvals(self) -> Iterator[dict[str, Any]]:
        """Who approved, as annotations of the release."""
        for node in approvals(self.opened.name, self.opened.info, self.witness).children:
            known = {key: value_text(value) for key, value in node.details.items() if value is not None}
            yield self._annotation(known["approved_by"], moment(known.get("approved_at"), int(known["copied_ms"])), "approval", known)

    def _promotions(self) -> Iterator[dict[str, Any]]:
        """The promotion records about the release."""
        for node in promotions(self.opened.name, self.opened.info, self.witness).children:
            known = {key: node.details.get(key) for key in _RECORD if node.details.get(key) is not None}
            when = moment(known.get("recorded_at"), self.opened.info.created_ms)
            struck = node.details.get("struck_out_by")  # as forged: it stands there ever after, and decides nothing
            act = f"STRUCK OUT by {struck}, this counts no more: {known.get('action')}" if struck else str(known.get("action"))
            yield self._annotation(str(known.get("approved_by")), when, act, known)

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
            "registered_at": time_text(self.opened.info.created_ms),
            **_SYSTEM,
            "application_area": self._use(),
            "security_controls": self._controls(),
            "not_declared": self._not_declared(),
            **_flat(known),
        }
        name, version = self.opened.info.name, str(self.opened.info.version)
        digest = self.opened.artifact.digest
        head = {"type": "application", "bom-ref": digest, "name": name, "version": version, "hashes": _hashes(digest)}
        head["description"] = f"A retriever: two encoders and an index of one vector space. {self._use()}"
        return {**head, "authors": [{"name": self.builder}], "properties": _properties(about)}

    def _controls(self) -> str:
        """What holds a release to what was approved, as far as it is used here."""
        policy = str(self.manifest.decision.policy_version or "none")
        controls = ["every file by sha256", f"gates by the policy {policy}", "approval by a person", "promotion records chained by digest"]
        trusted = trusted_keys()
        names = {name for record in standing(self.witness.records) for name in signed_by(record, trusted)}
        signed = {name[:16] for name in names if (name in trusted if trusted else _SHA256.match(name))}
        controls += [f"records signed by {', '.join(sorted(signed))}"] if signed else []
        return "; ".join([*controls, *(["an audit log of who did what"] if self.witness.entries is not None else [])])

    def _not_declared(self) -> str:
        unsigned = {} if self.key else {"MD-05 SBOM author signature": "there is no signing key here"}
        return "; ".join(f"{element}: {why}" for element, why in {**unsigned, **_NOT_DECLARED}.items())

    def _pinned(self) -> Iterator[dict[str, Any]]:
        for role, pin in self.pins.items():
            node = self.nodes.get(pin.digest)
            kind = "data" if role == "index" else "machine-learning-model"
            head: dict[str, Any] = {
                "type": kind,
                "bom-ref": pin.digest,
                "name": pin.model,
                "version": str(pin.version),
                "purl": _purl(pin),
                "hashes": _hashes(pin.digest),
                "authors": [{"name": str(self._flow_of(node).get("user") or "unknown")}],
            }
            facts = {"role": role.replace("_", " "), **(self._facts(node) if node else {})}
            if role == "index":
                head["data"] = [{"type": "other", "name": "vector index", "description": "FAISS index over the vectors of the documents"}]
            else:
                head |= {"description": self._what(role), "modelCard": self._card(role, node)}
                facts |= {f"setting.{field}": value for field, value in labels.flatten(node.config if node else {}).items()}
            yield {**head, "properties": _properties(facts)}

    def _what(self, role: str) -> str:
        bases = [self.opened.base_models[of].name for of in (role, role + BESIDE) if of in self.opened.base_models]
        made = f", made from {' and '.join(bases)}" if bases else ""
        return f"Text encoder for {_TASKS[role]} in the space {self.manifest.space_id[:12]}{made}. {self._use()}"

    def _card(self, role: str, node: LineageNode | None) -> dict[str, Any]:
        base = self.opened.base_models.get(role)
        # Of a part that a refresh kept it is not the data of the release.
        trained_on = [n.digest for n in ancestors(self.manifest.lineage, [self.pins[role].digest]) if n.kind == DATA_KIND]
        static = node is not None and node.config.get("form") == "static"
        parameters = {
            "approach": {"type": "supervised"},
            "task": _TASKS[role],
            "architectureFamily": "static embeddings" if static else "transformer",
            **({"modelArchitecture": base.name} if base else {}),
            **({"datasets": [{"ref": data} for data in trained_on]} if trained_on else {}),
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
        losses = [f"Gate {gate.name} is {gate.status}: {gate.told}" for gate in self.manifest.decision.open_gates()]
        return {"useCases": [self._use()], "technicalLimitations": [limit], **({"performanceTradeoffs": losses} if losses else {})}

    def _use(self) -> str:
        data = self.manifest.dataset.name
        return f"Retrieval over the documents of '{data}', together with the other parts of this release and no other index."

    def _data_nodes(self) -> list[LineageNode]:
        """Data, vectors, queries and reports: all of the lineage that is not pinned."""
        pinned = {pin.digest for pin in self.pins.values()}
        return [node for node in self.nodes.values() if node.digest not in pinned]

    def _data(self, node: LineageNode) -> dict[str, Any]:
        kind = "dataset" if node.kind in ("dataset", "queries", "vectors") else "other"
        name = str(node.attributes.get("name") or node.name)
        about = [{"type": kind, "name": name, "contents": {"properties": _properties(dict(node.counts))}}]
        contracts = self.manifest.dataset.contracts if node.digest == self.manifest.dataset.digest else {}
        facts = {**self._facts(node), **{f"contract.{contract}": version for contract, version in contracts.items()}}
        head: dict[str, Any] = {"type": "data", "bom-ref": node.digest, "name": name, "hashes": _hashes(node.digest)}
        if node.digest == self.manifest.dataset.digest:
            facts["source_digest"] = self.manifest.dataset.source_digest
            head["description"] = "Documents, queries and judgements as text, held against the contracts that are named here."
        return {**head, "data": about, "properties": _properties(facts)}

    def _champions(self) -> Iterator[dict[str, Any]]:
        """The release that this one was compared with, which has a bill of its own."""
        name, version = release_model(self.opened.name), self.manifest.baseline_version
        for digest in {node.parents[CHAMPION]: None for node in self.nodes.values() if CHAMPION in node.parents}:
            told = {"role": "champion that it was compared with"}
            head: dict[str, Any] = {"type": "application", "bom-ref": digest, "name": name, "hashes": _hashes(digest)}
            yield {**head, **({} if version is None else {"version": str(version)}), "properties": _properties(told)}

    def _facts(self, node: LineageNode) -> dict[str, Any]:
        made: dict[str, Any] = {"kind": node.kind, "step": node.name, "run_id": node.run_id, "task_run_id": node.task_run_id}
        made["recorded_at"] = node.recorded_at
        earlier = self._flow_of(node) if node.flow_run_id else {}
        made |= {"flow_run_id": node.flow_run_id, **{key: earlier.get(key) for key in _CODE}, "found_finished": node.reused or None}
        return {**made, "config_digest": digest_of(node.config), **node.counts, **node.attributes}

    def _flow_of(self, node: LineageNode | None) -> Mapping[str, Any]:
        """What the flow ran on that made a part: a refresh keeps parts that others have made."""
        earlier = node.flow_run_id if node else None
        return self.manifest.earlier_flows.get(earlier, {}) if earlier else self.manifest.provenance

    def _packages(self) -> Iterator[dict[str, Any]]:
        for name, version in (self.manifest.provenance.get("packages") or {}).items():
            normal = re.sub(r"[-_.]+", "-", name).lower()  # as package URLs have the names of PyPI
            purl = f"pkg:pypi/{normal}@{quote(str(version), safe='')}"
            yield {"type": "library", "bom-ref": purl, "name": name, "version": str(version), "purl": purl}

    def _platform(self) -> Iterator[dict[str, Any]]:
        """Python, the system and the machine that the release was built on; it runs on others too."""
        known = self.manifest.provenance
        if python := known.get("python"):
            yield {"type": "platform", "bom-ref": f"python:{python}", "name": "Python", "version": str(python)}
        if system := known.get("platform"):
            yield {"type": "operating-system", "bom-ref": f"system:{system}", "name": str(system)}
        if isinstance(machine := known.get("machine"), Mapping) and machine:
            name = str(machine.get("processor") or "processor not known")
            yield {"type": "device", "bom-ref": f"machine:{digest_of(dict(machine))}", "name": name, "properties": _properties(machine)}

    def _dependencies(self) -> list[dict[str, Any]]:
        """The edges of the lineage; only what is a component here can be named, and each component once."""
        around = [part["bom-ref"] for part in (*self._packages(), *self._platform())]
        heads = [*(pin.digest for pin in self.pins.values()), *decided_on(self.manifest)]
        described = {*self.nodes, *(pin.digest for pin in self.pins.values()), *(part["bom-ref"] for part in self._champions())}
        edges = {self.opened.artifact.digest: [*(head for head in heads if head in described), *around]}
        for role, base in self.opened.base_models.items():
            edges.setdefault(self.pins[role.removesuffix(BESIDE)].digest, []).append(_base_ref(base))
        for node in self.nodes.values():
            edges.setdefault(node.digest, []).extend(digest for digest in node.parents.values() if digest in described)
            edges[node.digest] += [_base_ref(model) for _, model in other_models(node)]
        return [{"ref": ref, "dependsOn": [parent for parent in dict.fromkeys(parents) if parent != ref]} for ref, parents in edges.items()]


def decided_on(manifest: ReleaseManifest) -> list[str]:
    """Digests of what the gates looked at beside the parts: the evaluation, the data, the comparison, and how the contracts were kept."""
    data = manifest.dataset.digest
    # A refresh also carries the validation of the data that its kept parts were made from.
    own = [n for n in manifest.lineage if n.kind == "comparison" or (n.kind == VALIDATION_KIND and data in n.parents.values())]
    return list(dict.fromkeys([manifest.evaluation.digest, data, *(node.digest for node in own)]))


def _base(base: BaseModelPin, role: str = "base model") -> dict[str, Any]:
    head: dict[str, Any] = {"type": "machine-learning-model", "bom-ref": _base_ref(base), "name": base.name}
    if base.revision:
        model = "/".join(quote(part, safe="") for part in base.name.partition("@")[0].split("/"))
        revision = quote(base.revision, safe="")
        place = f"https://huggingface.co/{model}/tree/{revision}"
        head |= {"version": base.revision, "purl": f"pkg:huggingface/{model}@{revision}"}
        head["externalReferences"] = [{"type": "distribution", "url": place, "comment": "as published, if it came from that hub"}]
    licence = _LICENCES.get(base.name)
    if licence:
        head["licenses"] = [{"license": {"id": licence} if licence == "Apache-2.0" else {"name": licence}}]
    facts = {"role": role, "digest": base.digest, "license": None if licence else "not declared"}
    return {**head, "hashes": _hashes(base.digest), "properties": _properties(facts)}


def _base_ref(base: BaseModelPin) -> str:
    return f"base:{base.name}:{base.digest}"


def _metrics(summary: Summary, system: str) -> Iterator[dict[str, Any]]:
    found = summary.systems.get(system)
    for metric, value in found.metrics.items() if found else ():
        entry: dict[str, Any] = {"type": metric, "value": f"{value:.6f}", "slice": summary.split}
        if interval := found.intervals.get(metric) if found else None:
            entry["confidenceInterval"] = {"lowerBound": f"{interval[0]:.6f}", "upperBound": f"{interval[1]:.6f}"}
        yield entry
    speed = getattr(summary.speed, system, None) if system else None
    if speed is None:
        return
    for name in ("p50_ms", "p95_ms", "qps"):
        yield {"type": f"encoding {name}", "value": f"{getattr(speed, name):.6f}", "slice": f"{speed.queries} queries"}


def _purl(pin: Pin) -> str:
    """The registered version; where the registry is, is the installation's to say."""
    return f"pkg:mlflow/{quote(pin.model, safe='')}@{pin.version}?checksum=sha256:{quote(pin.digest, safe='')}"


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _signed(document: dict[str, Any], key: SigningKey) -> dict[str, Any]:
    """The signature is over the document with all of the signature but its value. All numbers are whole, so our form is RFC 8785's."""
    public = {"kty": "OKP", "crv": "Ed25519", "x": _url_safe(key.public)}
    signature = {"algorithm": "Ed25519", "keyId": key.key_id, "publicKey": public}
    value = key.sign(canonical_json({**document, "signature": signature}))
    return {**document, "signature": {**signature, "value": _url_safe(value)}}


def _url_safe(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _hashes(digest: str) -> list[dict[str, str]]:
    """A hash where the digest is one; the commit of a model hub is none."""
    return [{"alg": "SHA-256", "content": digest}] if _SHA256.match(digest) else []


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    inner = {f"{key}.{name}": part for key, value in values.items() if isinstance(value, Mapping) for name, part in value.items()}
    return {**{key: value for key, value in values.items() if not isinstance(value, Mapping)}, **inner}


def _properties(values: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"name": f"{PREFIX}{key}", "value": value_text(value)} for key, value in values.items() if value is not None]


# --- A trace as OpenLineage events (specification 2-0-2): for every step a run that starts and completes, its inputs and its outputs.


OPENLINEAGE_SCHEMA = "https://openlineage.io/spec/2-0-2/OpenLineage.json"
PRODUCER = "urn:scalingnote:trace"  # RFC 8141: a name follows the namespace
FACETS = {
    "version": "https://openlineage.io/spec/facets/1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet",
    "parent": "https://openlineage.io/spec/facets/1-2-0/ParentRunFacet.json#/$defs/ParentRunFacet",
    "jobType": "https://openlineage.io/spec/facets/2-0-4/JobTypeJobFacet.json#/$defs/JobTypeJobFacet",
    "outputStatistics": "https://openlineage.io/spec/facets/1-0-2/OutputStatisticsOutputDatasetFacet.json"
    "#/$defs/OutputStatisticsOutputDatasetFacet",
}
OWN = f"{OPENLINEAGE_SCHEMA}#/$defs/BaseFacet"  # of facets that are ours: their fields are not in the specification
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
        trained = [node for node in made if TOWERS not in node.parents]  # joining a companion and its towers trains nothing
        used = {**self._bases(outputs), **{_base_ref(model): model for node in trained for _, model in other_models(node)}}
        bases = [_dataset("models", base.name, base.digest) for base in used.values()]
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
        """The flow's own run: the pinned parts and what was decided on in, the candidate out."""
        used = dict.fromkeys([*(pin.digest for _, pin in self.manifest.pins.items()), *decided_on(self.manifest)])
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
        for record in standing(self.witness.records) if self._is_release() else ():
            if record.get("to_version") != self.opened.info.version:
                continue
            release = _dataset(self.namespace, self.opened.info.name, self.opened.artifact.digest)
            known = str(record.get("digest") or digest_of(record))
            run = {"runId": _uuid(known), "facets": {"scalingnote_record": _own(**record)}}
            when = moment(record.get("recorded_at") or record.get("time"), self.opened.info.created_ms)
            yield _event(when, run, self._job(str(record.get("action")), "TASK"), [self._candidate()], [release])

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

    def _bases(self, outputs: Iterable[str]) -> dict[str, BaseModelPin]:
        return {_base_ref(base): base for role, base in self.opened.base_models.items() if self._trained_as(role) in outputs}

    def _trained_as(self, role: str) -> str:
        """Digest of what the training of a role's base model gave: of towers that were joined with a companion one of the two parts."""
        pin = dict(self.manifest.pins.items())[role.removesuffix(BESIDE)].digest
        parents = self.nodes[pin].parents if pin in self.nodes else {}
        return parents.get("companion" if role.endswith(BESIDE) else TOWERS, pin)

    def _source(self, made: list[LineageNode]) -> list[dict[str, Any]]:
        sources = [str(node.attributes["source_digest"]) for node in made if node.attributes.get("source_digest")]
        return [_dataset(self.namespace, "source", digest) for digest in sources]


def _event(when: str, run: Mapping[str, Any], job: Mapping[str, Any], inputs: list[Any], outputs: list[Any]) -> dict[str, Any]:
    event = {"eventType": "COMPLETE", "eventTime": when, "run": run, "job": job, "inputs": inputs, "outputs": outputs}
    return {**event, "producer": PRODUCER, "schemaURL": f"{OPENLINEAGE_SCHEMA}#/$defs/RunEvent"}


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
