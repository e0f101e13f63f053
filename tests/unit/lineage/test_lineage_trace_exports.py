"""OpenLineage events and the CycloneDX bill of a trace, held against what the two specifications require."""

from __future__ import annotations

import base64
import json
import re
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from components import settings
from components.errors import ModelError
from components.lineage.graph import Trace, follow
from components.lineage.standards import cyclonedx_of, openlineage_of
from components.release.manifest import BaseModelPin
from components.signing.keys import make_key
from tests.openlineage_world import problems, problems_of
from tests.third_party import there
from tests.unit.promotion_world import NAME
from tests.unit.trace_world import champion_trace

REF = re.compile(r"^[0-9a-f]{64}$")


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trace:
    return champion_trace(tmp_path, monkeypatch)[0]


def facets(value: Any) -> list[dict[str, Any]]:
    """All facets anywhere in an event."""
    if isinstance(value, list):
        return [facet for part in value for facet in facets(part)]
    if not isinstance(value, dict):
        return []
    own = [facet for key in ("facets", "inputFacets", "outputFacets") for facet in value.get(key, {}).values()]
    return own + [facet for key, part in value.items() if not key.endswith(("facets", "Facets")) for facet in facets(part)]


def require_valid(bill: dict[str, Any]) -> None:
    """Every reference is that of one component; by the strict validator of CycloneDX too, where it is installed."""
    parts = [bill["metadata"]["component"], *bill["components"]]
    refs = [part["bom-ref"] for part in parts]
    assert len(refs) == len(set(refs))
    assert len({dependency["ref"] for dependency in bill["dependencies"]}) == len(bill["dependencies"])
    named = [ref for dependency in bill["dependencies"] for ref in (dependency["ref"], *dependency["dependsOn"])]
    named += [data["ref"] for part in parts for data in part.get("modelCard", {}).get("modelParameters", {}).get("datasets", [])]
    named += [ref for note in bill["annotations"] for ref in note["subjects"]]
    assert set(named) <= set(refs), set(named) - set(refs)
    for name in ("properties", "hashes", "authors", "licenses"):
        for part in parts:
            listed = [json.dumps(entry, sort_keys=True) for entry in part.get(name, [])]
            assert len(listed) == len(set(listed)), (part["name"], name)
    if find_spec("cyclonedx"):
        from cyclonedx.schema import SchemaVersion
        from cyclonedx.validation.json import JsonStrictValidator

        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is None


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("eventTime",), "yesterday"),
        (("run", "runId"), "7"),
        (("producer",), "no uri"),
        (("eventType",), "DONE"),
        (("eventType",), None),
        (("schemaURL",), "https://openlineage.io/spec/1-0-0/OpenLineage.json#/$defs/RunEvent"),
        (("tower",), "a word of ours"),
        (("run", "name"), "a word of ours"),
        (("job", "namespace"), None),
        (("job", "facets", "jobType", "integration"), 7),
        (("job", "facets", "jobType", "kind"), "a word of ours"),
        (
            ("job", "facets", "jobType", "_schemaURL"),
            "https://openlineage.io/spec/facets/9-9-9/JobTypeJobFacet.json#/$defs/JobTypeJobFacet",
        ),
        (
            ("job", "facets", "parent"),
            {"_producer": "urn:x:y", "_schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/BaseFacet"},
        ),
        (("run", "facets", "parent", "run", "runId"), "7"),
        (("run", "facets", "scalingnote_runs", "_producer"), "no uri"),
        (("outputs", 0, "facets", "version", "datasetVersion"), 7),
        (("outputs", 0, "outputFacets", "outputStatistics", "rowCount"), "two"),
    ],
)
def test_the_events_are_held_to_the_specification(found: Trace, path: tuple[Any, ...], wrong: Any) -> None:
    event = json.loads(json.dumps(openlineage_of(found)[1], default=str))
    assert not problems(event)
    place = event
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = wrong
    assert problems(event)


def test_every_event_has_what_the_specification_requires(found: Trace) -> None:
    events = json.loads(json.dumps(openlineage_of(found), default=str))
    assert problems_of(events) == []
    assert len(events) == 20  # seven artifacts, the release, its approval, its promotion: each begins and ends
    for begun, ended in zip(events[::2], events[1::2], strict=True):
        assert [begun["eventType"], ended["eventType"]] == ["START", "COMPLETE"]
        assert (begun["run"], begun["job"], begun["outputs"]) == (ended["run"], ended["job"], [])
    for event in events:
        assert event["schemaURL"].endswith("/2-0-2/OpenLineage.json#/$defs/RunEvent")
        assert datetime.fromisoformat(event["eventTime"]).tzinfo is not None
        assert str(uuid.UUID(event["run"]["runId"])) == event["run"]["runId"]
        assert {"namespace", "name"} <= set(event["job"])
        assert all({"namespace", "name"} <= set(dataset) for dataset in event["inputs"] + event["outputs"])
        assert all({"_producer", "_schemaURL"} <= set(facet) for facet in facets(event))


@contextmanager
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server on loopback that takes one event a request where Marquez does, and refuses what the specification does not allow."""
    taken: list[dict[str, Any]] = []

    class Lineage(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            unknown = event["run"]["facets"].pop("tags", None) if isinstance(event, dict) else None  # of the library's client, about itself
            wrong = problems(event) if isinstance(event, dict) else ["not one event"]
            right = self.path == "/api/v1/lineage" and not wrong and (unknown is None or unknown["tags"])
            taken.extend([event] if right else [])
            self.send_response(201 if right else 400)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Lineage)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", taken
    finally:
        server.shutdown()
        server.server_close()


def send(url: str, body: Any) -> int:
    """The status that a receiver of OpenLineage answers with."""
    request = urllib.request.Request(f"{url}/api/v1/lineage", json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=600) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code


def test_a_receiver_takes_each_event_one_a_request_with_all_that_the_promotion_record_says(found: Trace) -> None:
    events = json.loads(json.dumps(openlineage_of(found), default=str))
    with receiver() as (url, taken):
        assert {send(url, event) for event in events} == {201} and taken == events
        assert send(url, events) == send(url, {**events[0], "eventTime": "yesterday"}) == 400 and taken == events
    record = taken[-1]["run"]["facets"]["scalingnote_record"]
    assert record["override"] is record["reason"] is None, "what is null is covered by the record's digest too"


@pytest.mark.skipif(not there("openlineage"), reason="openlineage-python is not installed")
def test_the_client_of_openlineage_sends_the_events_to_a_receiver(found: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    from openlineage.client import OpenLineageClient
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
    from openlineage.client.transport.http import HttpConfig, HttpTransport

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    events = json.loads(json.dumps(openlineage_of(found), default=str))
    with receiver() as (url, taken):
        client = OpenLineageClient(transport=HttpTransport(HttpConfig(url=url)))
        for event in events:
            inputs, outputs = ([InputDataset(**part) for part in event["inputs"]], [OutputDataset(**part) for part in event["outputs"]])
            given = {"inputs": inputs, "outputs": outputs, "run": Run(**event["run"]), "job": Job(**event["job"])}
            about = {name: event[name] for name in ("eventTime", "producer")}
            client.emit(RunEvent(eventType=RunState(event["eventType"]), **about, **given))
    assert [event["run"]["runId"] for event in taken] == [event["run"]["runId"] for event in events]
    # Why our exports do not go through it: it leaves out what is null, so nobody can compute the digest of a record that it sent.
    assert "override" not in taken[-1]["run"]["facets"]["scalingnote_record"]


def test_the_events_form_one_chain(found: Trace) -> None:
    events = openlineage_of(found)[1::2]
    made = {output["facets"]["version"]["datasetVersion"] for event in events for output in event["outputs"]}
    used = {part["facets"]["version"]["datasetVersion"] for event in events for part in event["inputs"] if part["namespace"] != "models"}
    assert used <= made
    assert [event["job"]["name"] for event in events[-3:]] == ["release", "approve", "promote"]
    assert events[-2]["run"]["facets"]["scalingnote_approval"]["approved_by"] == "Ada <script>"
    data = events[0]["outputs"][0]["facets"]
    assert data["scalingnote_contracts"]["contracts"] == {"documents": "1.0.0"}
    assert events[-1]["outputs"][0]["name"] == f"{NAME}-release"
    assert events[0]["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 2
    record = events[-1]["run"]["facets"]["scalingnote_record"]
    assert record["approved_by"] == "Ada <script>"


def test_a_run_of_mlflow_keeps_its_id_and_steps_of_one_run_are_one_event(found: Trace) -> None:
    run = uuid.uuid4()
    release = found.release
    assert release is not None
    nodes = tuple(node.model_copy(update={"run_id": run.hex}) if node.kind == "encoder" else node for node in release.manifest.lineage)
    changed = replace(found, release=replace(release, manifest=release.manifest.model_copy(update={"lineage": nodes})))
    shared = [event for event in openlineage_of(changed) if event["run"]["runId"] == str(run)]
    assert [len(event["outputs"]) for event in shared] == [0, 3]


def test_bill_has_what_the_specification_requires(found: Trace) -> None:
    bill = json.loads(json.dumps(cyclonedx_of(found)))
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 3)
    approved, promoted = bill["annotations"]
    assert {note["annotator"]["individual"]["name"] for note in (approved, promoted)} == {"Ada <script>"}
    assert approved["text"].startswith("approval: from retriever-candidate/1") and promoted["text"].startswith("promote: action promote")
    assert all(datetime.fromisoformat(note["timestamp"]).tzinfo for note in (approved, promoted))
    assert re.match(r"^urn:uuid:[0-9a-f-]{36}$", bill["serialNumber"])
    parts = [bill["metadata"]["component"], *bill["components"]]
    assert all(part["type"] and part["name"] for part in parts)
    require_valid(bill)
    assert all(REF.match(value["content"]) for part in parts for value in part.get("hashes", []))


def test_model_card_carries_metrics_with_their_intervals_and_data(found: Trace) -> None:
    parts = {part["name"]: part for part in cyclonedx_of(found)["components"]}
    card = parts[f"{NAME}-query-encoder"]["modelCard"]
    metrics = {metric["type"]: metric for metric in card["quantitativeAnalysis"]["performanceMetrics"]}
    assert metrics["ndcg@10"]["value"] == "0.700000" and metrics["ndcg@10"]["slice"] == "test"
    assert card["modelParameters"]["datasets"] == [{"ref": "d" * 64}]
    assert "'toy' alone" in card["considerations"]["technicalLimitations"][0]
    assert "quantitativeAnalysis" not in parts[f"{NAME}-document-tower"]["modelCard"]
    assert parts[f"{NAME}-index"]["type"] == "data" and "modelCard" not in parts[f"{NAME}-index"]
    assert parts["numpy"]["purl"] == "pkg:pypi/numpy@2"
    assert parts["tiny"]["type"] == "machine-learning-model"


def with_manifest(found: Trace, **changes: Any) -> Trace:
    """The same trace of a release whose manifest says something else."""
    release = found.release
    assert release is not None
    return replace(found, release=replace(release, manifest=release.manifest.model_copy(update=changes)))


def test_one_artifact_in_two_roles_is_one_component(found: Trace) -> None:
    """As where a published model is both towers: it needs no training and has no prompts."""
    release = found.release
    assert release is not None
    pins = release.manifest.pins
    shared = pins.model_copy(update={"query_encoder": pins.query_tower, "document_tower": pins.query_tower})
    bill = cyclonedx_of(with_manifest(found, pins=shared))
    require_valid(bill)
    parts = [part for part in bill["components"] if part["bom-ref"] == pins.query_tower.digest]
    assert len(parts) == 1
    roles = [entry["value"] for entry in parts[0]["properties"] if entry["name"] == "scalingnote:role"]
    assert roles == ["query tower", "document tower", "query encoder"]
    assert problems_of(openlineage_of(with_manifest(found, pins=shared))) == []


def test_a_lineage_with_an_artifact_twice_or_without_the_data_is_still_valid(found: Trace) -> None:
    release = found.release
    assert release is not None
    lineage = release.manifest.lineage
    require_valid(cyclonedx_of(with_manifest(found, lineage=(*lineage, *lineage))))
    without = cyclonedx_of(with_manifest(found, lineage=tuple(node for node in lineage if node.kind != "dataset")))
    require_valid(without)
    assert all("datasets" not in part["modelCard"]["modelParameters"] for part in without["components"] if "modelCard" in part)


def with_other_models(found: Trace) -> Trace:
    """Towers that a judge took part in, queries that a generator wrote, and a comparison with a champion."""
    release = found.release
    assert release is not None
    tower, data = release.manifest.pins.document_tower.digest, release.manifest.dataset.digest
    judge = {"judge": "acme/cross-encoder", "judge_digest": "1" * 64, "judge_revision": "c0ffee"}
    nodes = [n.model_copy(update={"attributes": {**n.attributes, **judge}}) if n.digest == tower else n for n in release.manifest.lineage]
    first = nodes[0]
    written = {"generator": "tiny", "generator_digest": "2" * 64}
    queries = first.model_copy(update={"digest": "3" * 64, "kind": "queries", "name": "generate", "parents": {"dataset": data}})
    compared = first.model_copy(update={"digest": "4" * 64, "kind": "comparison", "name": "compare", "parents": {"champion": "5" * 64}})
    for digest, held in (("6", data), ("7", "8" * 64)):
        nodes.append(
            first.model_copy(update={"digest": digest * 64, "kind": "validation", "name": "validate", "parents": {"dataset": held}})
        )
    nodes += [queries.model_copy(update={"attributes": written, "counts": {}}), compared.model_copy(update={"counts": {}})]
    return with_manifest(found, lineage=tuple(nodes), baseline_version=7)


def test_a_judge_and_a_generator_of_queries_are_parts_of_the_bill_with_their_digests(found: Trace) -> None:
    bill = cyclonedx_of(with_other_models(found))
    require_valid(bill)
    parts = {part["bom-ref"]: part for part in bill["components"]}
    judge, writer = parts[f"base:acme/cross-encoder:{'1' * 64}"], parts[f"base:tiny:{'2' * 64}"]
    assert judge["type"] == writer["type"] == "machine-learning-model" and judge["version"] == "c0ffee"
    assert [judge["hashes"][0]["content"], writer["hashes"][0]["content"]] == ["1" * 64, "2" * 64]
    assert {"name": "scalingnote:role", "value": "judge"} in judge["properties"]
    assert {"name": "scalingnote:role", "value": "generator"} in writer["properties"]
    edges = {entry["ref"]: entry["dependsOn"] for entry in bill["dependencies"]}
    assert found.release is not None
    assert judge["bom-ref"] in edges[found.release.manifest.pins.document_tower.digest] and writer["bom-ref"] in edges["3" * 64]


def test_a_part_that_an_earlier_flow_made_has_the_author_and_the_code_of_that_flow(found: Trace) -> None:
    release = found.release
    assert release is not None
    tower = release.manifest.pins.document_tower.digest
    nodes = tuple(n.model_copy(update={"flow_run_id": "flow-0"}) if n.digest == tower else n for n in release.manifest.lineage)
    flows = {"flow-0": {"user": "Grace", "code_revision": "old"}}
    known = {**release.manifest.provenance, "user": "Ada"}
    bill = cyclonedx_of(with_manifest(found, lineage=nodes, earlier_flows=flows, provenance=known))
    older = nodes[0].model_copy(update={"digest": "8" * 64, "flow_run_id": "flow-0", "kind": "dataset", "parents": {}})
    moved = tuple(n.model_copy(update={"parents": {"dataset": "8" * 64}}) if n.digest == tower else n for n in (*nodes, older))
    cards = {p["bom-ref"]: p["modelCard"] for p in cyclonedx_of(with_manifest(found, lineage=moved))["components"] if "modelCard" in p}
    data = {ref: card["modelParameters"]["datasets"] for ref, card in cards.items()}
    assert data[tower] == [{"ref": "8" * 64}] and data[release.manifest.pins.query_encoder.digest] == [{"ref": "d" * 64}]
    authors = {part["bom-ref"]: part["authors"] for part in bill["components"] if "authors" in part}
    assert authors[tower] == [{"name": "Grace"}] and authors[release.manifest.pins.index.digest] == [{"name": "Ada"}]
    unknown = cyclonedx_of(with_manifest(found, lineage=nodes, provenance=known))
    assert next(part["authors"] for part in unknown["components"] if part["bom-ref"] == tower) == [{"name": "unknown"}]


def test_the_champion_that_was_compared_with_and_all_that_was_decided_on_are_in_the_bill(found: Trace) -> None:
    bill = cyclonedx_of(with_other_models(found))
    champion = next(part for part in bill["components"] if part["bom-ref"] == "5" * 64)
    assert (champion["type"], champion["name"], champion["version"]) == ("application", f"{NAME}-release", "7")
    edges = {entry["ref"]: entry["dependsOn"] for entry in bill["dependencies"]}
    of_release = edges[bill["metadata"]["component"]["bom-ref"]]
    assert edges["4" * 64] == ["5" * 64] and {"4" * 64, "6" * 64} <= set(of_release)
    assert "7" * 64 not in of_release  # of the data that the kept parts of a refresh were made from


def test_the_events_name_judge_and_generator_and_what_the_release_was_decided_on_as_inputs(found: Trace) -> None:
    changed = with_other_models(found)
    events = json.loads(json.dumps(openlineage_of(changed), default=str))
    assert problems_of(events) == []
    models = {
        part["name"]: part["facets"]["version"]["datasetVersion"] for e in events for part in e["inputs"] if part["namespace"] == "models"
    }
    assert models["acme/cross-encoder"] == "1" * 64 and "2" * 64 in {
        part["facets"]["version"]["datasetVersion"] for e in events for part in e["inputs"] if part["name"] == "tiny"
    }
    release = next(event for event in events if event["job"]["name"] == "release" and event["eventType"] == "COMPLETE")
    used = {part["facets"]["version"]["datasetVersion"] for part in release["inputs"]}
    assert changed.release is not None and {"4" * 64, "6" * 64, changed.release.manifest.dataset.digest} <= used and "7" * 64 not in used


def test_odd_names_of_packages_models_and_machines_stay_valid(found: Trace) -> None:
    release = found.release
    assert release is not None
    known = {
        "packages": {"Great_Expectations": "1.24.1", "great-expectations": "1.24.1", "torch": "2.13.0+cpu", "odd name": "1 2"},
        "python": "3.11.7",
        "platform": "Linux \u00fc \u202e",
        "machine": {"processor": "", "cores": 2, "gpus": "a, b"},
        "user": "Ada <script>",
    }
    base = BaseModelPin(name="/models/my model@x", digest="hub", revision="main branch/1")
    changed = with_manifest(found, provenance=known)
    assert changed.release is not None
    changed = replace(changed, release=replace(changed.release, base_models={"query_tower": base, "document_tower": base}))
    bill = cyclonedx_of(changed)
    require_valid(bill)
    parts = {part["bom-ref"]: part for part in bill["components"]}
    assert parts["pkg:pypi/torch@2.13.0%2Bcpu"]["version"] == "2.13.0+cpu"
    assert [ref for ref in parts if "great-expectations" in ref] == ["pkg:pypi/great-expectations@1.24.1"]
    assert parts["base:/models/my model@x:hub"]["purl"] == "pkg:huggingface//models/my%20model@main%20branch%2F1"


@pytest.mark.parametrize("moment", ["yesterday", "2026-11-28T10:00:00", "", "0001-01-01T00:00:00+23:59", "2026-11-28T10:00:00+01:00"])
def test_a_claimed_time_that_is_none_makes_no_export_invalid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    found, tracking = champion_trace(tmp_path, monkeypatch)
    tracking.models[f"{NAME}-release"][0].tags["scalingnote.approved_at"] = moment
    found = follow(NAME, "release/1")
    assert problems_of(openlineage_of(found)) == []
    bill = cyclonedx_of(found)
    require_valid(bill)
    assert all(datetime.fromisoformat(note["timestamp"]).utcoffset() == timedelta(0) for note in bill["annotations"])


# The 50 elements of the G7's "SBOM for AI - Minimum Elements" (2026-05-12), by cluster: where the bill has them. `p` is the system's
# properties, `m` a trained model, `b` its base model, `d` the data.
G7: dict[str, dict[str, Callable[[dict[str, Any]], Any]]] = {
    "metadata": {
        "author": lambda x: x["bill"]["metadata"]["authors"][0]["name"],
        "version": lambda x: x["bill"]["version"],
        "data format name": lambda x: x["bill"]["bomFormat"],
        "data format version": lambda x: x["bill"]["specVersion"],
        "author signature": lambda x: x["bill"]["signature"]["value"],
        "tool name": lambda x: x["bill"]["metadata"]["tools"]["components"][0]["name"],
        "tool version": lambda x: x["bill"]["metadata"]["tools"]["components"][0]["version"],
        "generation context": lambda x: x["bill"]["metadata"]["lifecycles"][0]["phase"],
        "timestamp": lambda x: x["bill"]["metadata"]["timestamp"],
        "dependency relationship": lambda x: x["bill"]["dependencies"],
    },
    "system level properties": {
        "name": lambda x: x["system"]["name"],
        "components": lambda x: x["bill"]["components"],
        "producer": lambda x: x["system"]["authors"][0]["name"],
        "version": lambda x: x["system"]["version"],
        "timestamp": lambda x: x["p"]["registered_at"],
        "data flow": lambda x: x["p"]["data_flow"],
        "data usage": lambda x: x["p"]["data_usage"],
        "input and output": lambda x: x["p"]["input"] and x["p"]["output"],
        "intended application area": lambda x: x["p"]["application_area"],
    },
    "models": {
        "name": lambda x: x["m"]["name"],
        "identifier": lambda x: x["m"]["purl"],
        "version": lambda x: x["m"]["version"],
        "timestamp": lambda x: x["mp"]["recorded_at"],
        "producer": lambda x: x["m"]["authors"][0]["name"],
        "description": lambda x: x["m"]["description"],
        "hash value": lambda x: x["m"]["hashes"][0]["content"],
        "hash algorithm": lambda x: x["m"]["hashes"][0]["alg"],
        "properties": lambda x: x["m"]["modelCard"]["modelParameters"]["architectureFamily"],
        "input and output": lambda x: x["m"]["modelCard"]["modelParameters"]["inputs"],
        "training properties": lambda x: x["mp"]["setting.steps"],
        "license": lambda x: "MDL-12" in x["p"]["not_declared"] and x["b"]["licenses"],
        "external references": lambda x: x["b"]["externalReferences"][0]["url"],
    },
    "dataset properties": {
        "name": lambda x: x["d"]["name"],
        "description": lambda x: x["d"]["description"],
        "content": lambda x: x["d"]["data"][0]["type"],
        "identifier": lambda x: x["d"]["bom-ref"],
        "hash": lambda x: x["d"]["hashes"][0]["content"],
        "provenance": lambda x: x["dp"]["source_digest"],
        "statistical properties": lambda x: x["d"]["data"][0]["contents"]["properties"],
        "sensitivity": lambda x: "DP-08" in x["p"]["not_declared"],
        "dependency relationship": lambda x: x["m"]["modelCard"]["modelParameters"]["datasets"],
        "license": lambda x: "DP-10" in x["p"]["not_declared"],
    },
    "infrastructure": {
        "software": lambda x: {"library", "platform", "operating-system"} <= x["types"],
        "hardware": lambda x: "device" in x["types"],
    },
    "security properties": {
        "controls": lambda x: "approval by a person" in x["p"]["security_controls"],
        "compliance": lambda x: "SP-02" in x["p"]["not_declared"],
        "policy": lambda x: "SP-03" in x["p"]["not_declared"],
        "vulnerability referencing": lambda x: "SP-04" in x["p"]["not_declared"],
    },
    "key performance indicators": {
        "security metrics": lambda x: "KPI-01" in x["p"]["not_declared"],
        "operational performance": lambda x: {"ndcg@10", "encoding p95_ms", "encoding qps"} <= x["kpi"],
    },
}


def test_the_bill_has_every_element_of_the_g7_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCALINGNOTE_SIGNING_KEY", str(make_key(tmp_path / "key.pem").path))  # of whom nobody here says to trust anybody
    found = champion_trace(tmp_path, monkeypatch)[0]
    assert found.release is not None
    known = {**found.release.manifest.provenance, "user": "Ada", "python": "3.11", "machine": {"processor": "x", "cores": 2}}
    lineage = tuple(
        node.model_copy(update={"config": {"steps": 8}, "recorded_at": "2026-11-28T10:00:00+00:00"})
        for node in found.release.manifest.lineage
    )
    base = BaseModelPin(name="all-minilm-l6-v2", digest="a" * 64, revision="main")
    found = with_manifest(found, provenance=known, lineage=lineage)
    assert found.release is not None
    bill = cyclonedx_of(replace(found, release=replace(found.release, base_models={"query_encoder": base})))
    require_valid(bill)

    def properties(part: dict[str, Any]) -> dict[str, str]:
        return {entry["name"].removeprefix("scalingnote:"): entry["value"] for entry in part["properties"]}

    parts = {part["name"]: part for part in bill["components"]}
    model, data = parts[f"{NAME}-query-encoder"], parts["toy"]
    metrics = {entry["type"] for entry in model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]}
    system = bill["metadata"]["component"]
    place = {"bill": bill, "system": system, "p": properties(system), "m": model, "mp": properties(model), "kpi": metrics}
    place |= {"d": data, "dp": properties(data), "b": parts[base.name], "types": {part["type"] for part in bill["components"]}}
    assert sum(map(len, G7.values())) == 50 and len(G7) == 7
    for cluster, elements in G7.items():
        for element, find in elements.items():
            assert find(place), f"{cluster}: {element}"


def test_a_signed_bill_is_checked_by_its_key_and_every_change_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / "home"))
    champion_trace(tmp_path, monkeypatch)
    assert "signature" not in cyclonedx_of(follow(NAME, "release/1"))
    key = make_key(settings.keys_folder() / "signing.pem")
    bill = json.loads(json.dumps(cyclonedx_of(follow(NAME, "release/1"))))
    require_valid(bill)

    def signed_bytes(document: dict[str, Any]) -> bytes:
        bare = {**document, "signature": {name: value for name, value in document["signature"].items() if name != "value"}}
        return json.dumps(bare, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def from_url_safe(text: str) -> bytes:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

    assert bill["signature"]["keyId"] == key.key_id and bill["signature"]["algorithm"] == "Ed25519"
    public = Ed25519PublicKey.from_public_bytes(from_url_safe(bill["signature"]["publicKey"]["x"]))
    public.verify(from_url_safe(bill["signature"]["value"]), signed_bytes(bill))
    with pytest.raises(InvalidSignature):
        public.verify(from_url_safe(bill["signature"]["value"]), signed_bytes({**bill, "version": 99}))
    monkeypatch.setenv("SCALINGNOTE_SIGNING_KEY", str(make_key(tmp_path / "foreign.pem").path))
    assert "signature" not in cyclonedx_of(follow(NAME, "release/1"))  # its signatures do not count here


def test_bill_of_one_release_is_always_the_same(found: Trace) -> None:
    assert cyclonedx_of(found) == cyclonedx_of(follow(NAME, "release/1"))


def test_a_model_that_no_candidate_pins_cannot_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tracking = champion_trace(tmp_path, monkeypatch)
    tracking.add(f"{NAME}-index", tmp_path, "x" * 64)
    lonely = follow(NAME, "index/2")
    assert "no candidate pins it" in lonely.text()
    for export in (openlineage_of, cyclonedx_of):
        with pytest.raises(ModelError, match="No candidate pins retriever-index/2"):
            export(lonely)
