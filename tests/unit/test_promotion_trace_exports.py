"""OpenLineage events and the CycloneDX bill of a trace, held against what the two specifications require."""

from __future__ import annotations

import json
import re
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from components.errors import ModelError
from components.promotion.trace import Trace, follow
from components.promotion.trace_cyclonedx import cyclonedx_of
from components.promotion.trace_openlineage import openlineage_of
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


def test_every_event_has_what_the_specification_requires(found: Trace) -> None:
    events = json.loads(json.dumps(openlineage_of(found), default=str))
    assert len(events) == 10  # seven artifacts, the release, its approval, its promotion
    for event in events:
        assert event["eventType"] == "COMPLETE" and event["schemaURL"].endswith("/2-0-2/OpenLineage.json#/$defs/RunEvent")
        assert datetime.fromisoformat(event["eventTime"]).tzinfo is not None
        assert str(uuid.UUID(event["run"]["runId"])) == event["run"]["runId"]
        assert {"namespace", "name"} <= set(event["job"])
        assert all({"namespace", "name"} <= set(dataset) for dataset in event["inputs"] + event["outputs"])
        assert all({"_producer", "_schemaURL"} <= set(facet) for facet in facets(event))


def test_the_events_form_one_chain(found: Trace) -> None:
    events = openlineage_of(found)
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
    from dataclasses import replace

    run = uuid.uuid4()
    release = found.release
    assert release is not None
    nodes = tuple(node.model_copy(update={"run_id": run.hex}) if node.kind == "encoder" else node for node in release.manifest.lineage)
    changed = replace(found, release=replace(release, manifest=release.manifest.model_copy(update={"lineage": nodes})))
    shared = [event for event in openlineage_of(changed) if event["run"]["runId"] == str(run)]
    assert len(shared) == 1 and len(shared[0]["outputs"]) == 3


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
    refs = [part["bom-ref"] for part in parts]
    assert len(refs) == len(set(refs))
    for dependency in bill["dependencies"]:
        assert dependency["ref"] in refs and set(dependency["dependsOn"]) <= set(refs), dependency
    assert len({dependency["ref"] for dependency in bill["dependencies"]}) == len(bill["dependencies"])
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
