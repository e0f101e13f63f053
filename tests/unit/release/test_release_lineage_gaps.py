"""Gaps in the lineage: each thing that can be missing is named, and a complete lineage has none."""

from __future__ import annotations

from typing import Any

import pytest

from components.release.completeness import missing_lineage
from components.release.manifest import BaseModelPin, DatasetPin, EvaluationPin, LineageNode, ManifestDraft, Pin, Pins
from tests.unit.promotion_world import NAME, MemoryTracking, World

PARENTS = {
    "data": {},
    "tower": {"dataset": "data"},
    "vectors": {"dataset": "data", "document_tower": "tower"},
    "index": {"vectors": "vectors"},
    "teacher": {"dataset": "data"},
    "targets": {"dataset": "data", "query_tower": "teacher"},
    "student": {"dataset": "data", "targets": "targets", "index": "index"},
    "evaluation": {"dataset": "data", "query_encoder": "student", "index": "index"},
}
KINDS = {"data": "dataset", "tower": "encoder", "teacher": "encoder", "student": "encoder", "targets": "vectors"}
NODES = {
    digest: LineageNode(digest=digest, kind=KINDS.get(digest, digest), name=f"make_{digest}", parents=parents, run_id=f"run-{digest}")
    for digest, parents in PARENTS.items()
}
PINNED = {"query_tower": "teacher", "document_tower": "tower", "query_encoder": "student", "index": "index"}
COMPLETE = ManifestDraft(
    name="toy",
    space_id="space",
    lineage=tuple(NODES.values()),
    pins=Pins(**{role: Pin(model=f"toy-{role}", version=1, digest=digest) for role, digest in PINNED.items()}),
    dataset=DatasetPin(name="toy", digest="data", source_digest="s", contracts={"documents": "1.0.0"}),
    evaluation=EvaluationPin(digest="evaluation", split="test", queries=1, judgements_digest="j", metrics={}),
    provenance={"code_revision": "abc", "dirty": False, "lock_digest": "l", "platform": "test machine"},
    config={"seed": 1},
    flow_run_id="flow-1",
    base_models={role: BaseModelPin(name="tiny", digest="b") for role in ("query_tower", "document_tower", "query_encoder")},
)


OLD = LineageNode(digest="old", kind="dataset", name="make_old", run_id="run-old", flow_run_id="flow-0")


def without_key(role: str) -> dict[str, BaseModelPin]:
    return {known: base for known, base in COMPLETE.base_models.items() if known != role}


def changed(digest: str, **fields: Any) -> tuple[LineageNode, ...]:
    return tuple(node.model_copy(update=fields) if node.digest == digest else node for node in COMPLETE.lineage)


def without(digest: str) -> tuple[LineageNode, ...]:
    return tuple(node for node in COMPLETE.lineage if node.digest != digest)


def test_a_complete_lineage_has_no_gap() -> None:
    assert missing_lineage(COMPLETE) == ()


@pytest.mark.parametrize(
    ("fields", "gap"),
    [
        ({"lineage": without("vectors")}, "made from the vectors vectors, which is not described"),
        ({"lineage": without("evaluation")}, "The evaluation (evaluation) is not described"),
        ({"lineage": without("data")}, "The data set (data) is not described"),
        ({"lineage": changed("tower", parents={})}, "The document tower (tower) cannot be followed to a data set"),
        ({"lineage": changed("vectors", run_id=None)}, "The vectors of make_vectors (vectors) names no run"),
        ({"lineage": changed("student", attributes={"generator": "gemma"})}, "written by the model 'gemma', whose digest"),
        ({"dataset": COMPLETE.dataset.model_copy(update={"source_digest": ""})}, "The source of the data set 'toy' has no digest"),
        ({"dataset": COMPLETE.dataset.model_copy(update={"contracts": {}})}, "held against no data contract"),
        ({"dataset": COMPLETE.dataset.model_copy(update={"contracts": {"queries": ""}})}, "'queries' has no version"),
        ({"provenance": {**COMPLETE.provenance, "code_revision": "unknown"}}, "Neither the revision nor the digest of the code"),
        ({"provenance": {**COMPLETE.provenance, "dirty": True}}, "local changes whose digest is not known"),
        ({"provenance": {**COMPLETE.provenance, "lock_digest": None}}, "The lock file"),
        ({"provenance": {**COMPLETE.provenance, "platform": ""}}, "The machine is not described"),
        ({"config": {}}, "The configuration is not kept"),
        ({"flow_run_id": None}, "The run of the flow is not named"),
        ({"base_models": without_key("document_tower")}, "base model of the document tower has no digest"),
        ({"lineage": changed("index", parents={"dataset": "data"})}, "The index cannot be followed to the document tower that the release"),
        ({"lineage": changed("targets", parents={"dataset": "data"})}, "The query encoder cannot be followed to the query tower"),
        (
            {"lineage": changed("evaluation", parents={"dataset": "data", "index": "index"})},
            "evaluation cannot be followed to the query",
        ),
        ({"lineage": changed("vectors", parents={"document_tower": "tower"})}, "make_vectors (vectors) names no data set"),
        ({"lineage": changed("tower", flow_run_id="flow-0")}, "(tower) was made by an earlier flow (flow-0), whose code"),
        (
            {"lineage": changed("tower", flow_run_id="flow-0"), "earlier_flows": {"flow-0": {"code_revision": "a", "platform": "x"}}},
            "Of the earlier flow flow-0: The lock file",
        ),
        (
            {"lineage": (*changed("tower", parents={"dataset": "old"}), OLD), "earlier_flows": {"flow-0": COMPLETE.provenance}},
            "The dataset of make_old (old) was held against no data contract",
        ),
    ],
)
def test_what_is_missing_is_named_once(fields: dict[str, Any], gap: str) -> None:
    gaps = missing_lineage(COMPLETE.model_copy(update=fields))
    assert [gap in found for found in gaps].count(True) == 1, gaps


def test_what_an_earlier_flow_made_is_complete_with_its_code_and_contracts() -> None:
    report = LineageNode(
        digest="report", kind="validation", name="validate_data", parents={"dataset": "old"}, run_id="r", flow_run_id="flow-0"
    )
    lineage = (*changed("tower", parents={"dataset": "old"}, flow_run_id="flow-0"), OLD, report)
    assert missing_lineage(COMPLETE.model_copy(update={"lineage": lineage, "earlier_flows": {"flow-0": COMPLETE.provenance}})) == ()


def test_code_without_a_revision_is_known_by_its_digest() -> None:
    assert (
        missing_lineage(COMPLETE.model_copy(update={"provenance": {**COMPLETE.provenance, "code_revision": "unknown", "code_digest": "c"}}))
        == ()
    )


def test_a_lineage_that_goes_in_a_circle_ends() -> None:
    gaps = missing_lineage(COMPLETE.model_copy(update={"lineage": changed("tower", parents={"dataset": "data", "vectors": "vectors"})}))
    assert gaps == ()  # the vectors still lead to the data


def test_the_manifest_itself_is_asked(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from components.release.manifest import load_release

    tracking = MemoryTracking()
    tracking.install(monkeypatch)
    World(tracking, tmp_path).candidate()
    gaps = missing_lineage(load_release(tracking.folders[f"{NAME}-candidate", 1]))
    assert any("local changes" in gap for gap in gaps)
    assert any("base model of the query encoder" in gap for gap in gaps)
