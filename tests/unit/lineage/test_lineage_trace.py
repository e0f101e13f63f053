"""Verification and traces of a release: what they find, and what they say when something was changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.artifacts import open_artifact, read_json, seal, verify, write_json
from components.errors import ArtifactError, DataError, PromotionError
from components.lineage.graph import find_document, trace, trace_document
from components.promotion.approval import approve
from components.promotion.promote import promote
from components.promotion.verification import verify_release
from components.release.manifest import REPORT_PAGE, SCHEMA_VERSION, load_release, write_candidate
from tests.unit.promotion_world import NAME, MemoryTracking, World, rewrite

RELEASE = f"{NAME}-release"
OLD_POLICY = ("min_queries", "min_retention", "beat_bm25", "beat_untrained", "margin", "confidence", "min_speed_up")
OLD_GATES = ("enough_queries", "retention", "beats_bm25", "beats_untrained", "champion_non_inferior", "speed_up")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """One candidate, approved and promoted."""
    tracking = MemoryTracking()
    tracking.install(monkeypatch)
    world = World(tracking, tmp_path)
    approve(NAME, world.candidate(), "Ada")
    promote(NAME, lambda manifest: None)
    return world


def findings(ref: str = "champion") -> dict[str, str]:
    return {check.name: check.detail for check in verify_release(NAME, ref) if not check.ok}


def test_untouched_release_verifies(world: World) -> None:
    checks = verify_release(NAME, "champion")
    assert all(check.ok for check in checks), findings()
    names = [check.name for check in checks]
    assert names[:5] == ["alias", "promotion record", "files", "signature", "manifest"]
    assert {"query tower", "document tower", "query encoder", "index", "evaluation", "validation", "decision"} <= set(names)
    assert findings("candidate/1") == {}


@pytest.mark.parametrize(
    ("changed", "check"),
    [
        ("query_encoder/weights.bin", "query encoder"),
        ("index/doc_ids.parquet", "index"),
        ("candidate/release.json", "files"),
        ("candidate/evaluation/report.json", "files"),
    ],
)
def test_changed_file_is_found_where_it_lies(world: World, changed: str, check: str) -> None:
    path = world.root / "1" / changed
    path.write_bytes(path.read_bytes() + b" ")
    assert list(findings()) == [check]
    assert path.name in findings()[check]


def test_half_a_character_in_a_release_is_refused_in_a_sentence(world: World) -> None:
    """JSON can spell it, and no digest or page of it can be written."""
    number = world.candidate()
    folder = world.root / str(number) / "candidate"
    path = folder / "release.json"
    path.write_bytes(path.read_bytes().replace(b'"source": "toy"', b'"source": "\\ud800"'))
    before = open_artifact(folder)
    digest = seal(folder, before.kind, counts=before.counts, parents=before.parents, attributes=before.attributes).digest
    world.tracking.models[f"{NAME}-candidate"][number - 1].tags["scalingnote.digest"] = digest
    with pytest.raises(ArtifactError, match=r"candidate/2: its release\.json holds half a character"):
        trace(NAME, f"candidate/{number}")


def test_resealed_pin_is_found(world: World) -> None:
    folder = world.root / "1" / "query_encoder"
    (folder / "weights.bin").write_bytes(b"other")
    before = open_artifact(folder)
    seal(folder, before.kind, parents=before.parents, attributes=before.attributes)
    assert "replaced after it was registered" in findings()["query encoder"]


def test_resealed_manifest_is_found_by_its_promotion_record(world: World) -> None:
    folder = world.root / "1" / "candidate"
    rewrite(folder, lambda content: content.update(flow_run_id="another"))
    world.tracking.models[RELEASE][0].tags["scalingnote.digest"] = open_artifact(folder).digest
    assert "Record 1 names the digest" in findings()["promotion record"]


def test_encoder_of_another_space_is_found(world: World) -> None:
    folder, candidate = world.root / "1" / "query_encoder", world.root / "1" / "candidate"
    before = open_artifact(folder)
    digest = seal(folder, before.kind, parents=before.parents, attributes={"space_id": "another-space"}).digest
    rewrite(candidate, lambda content: content["pins"]["query_encoder"].update(digest=digest))
    world.tracking.models[RELEASE][0].tags["scalingnote.digest"] = open_artifact(candidate).digest
    assert "the space another-spac" in findings()["query encoder"]
    assert "did not measure the query_encoder" in findings()["evaluation"]


def test_missing_version_is_a_finding(world: World) -> None:
    shutil.rmtree(world.root / "1" / "index")
    assert "manifest.json is missing" in findings()["index"]


def test_alias_moved_by_hand_is_a_finding(world: World) -> None:
    world.tracking.aliases.clear()
    assert list(findings()) == ["alias"]


def test_broken_record_chain_is_a_finding(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ArtifactError("Promotion record 1 was changed.")

    monkeypatch.setattr("components.tracking.promotion_records.read_records", broken)
    assert findings() == {"promotion record": "Promotion record 1 was changed."}
    assert findings("release/1")["promotion record"] == "Promotion record 1 was changed."


def test_unknown_reference_is_an_error(world: World) -> None:
    with pytest.raises(PromotionError, match="release/9 does not exist"):
        verify_release(NAME, "release/9")


def test_trace_shows_the_way_back(world: World) -> None:
    found = trace(NAME, "champion")
    text = found.text()
    for part in (
        "retriever-release/1",
        "query encoder: retriever-query-encoder/1",
        "vectors: corpus",
        "dataset: toy",
        "source_digest: " + "s" * 64,
        "contract documents",
        "code_revision: abc",
        "dirty: true",
        "lock_digest: l",
        "platform: test machine",
        "flow_run_id: flow-1",
        "run_id: run-index",
        "data.source: toy",
        "approved_by: Ada",
        "record 1: promote",
    ):
        assert part in text, part
    content = json.loads(json.dumps(found.to_json()))
    assert (content["model"], content["version"]) == (RELEASE, 1)
    assert content["trace"]["children"][0]["title"] == "query tower: retriever-query-tower/1"


def test_trace_of_a_candidate_names_its_approval(world: World) -> None:
    assert "approved_by: Ada" in trace(NAME, "candidate/1").text()
    world.candidate()
    assert "not approved" in trace(NAME, "candidate/2").text()


def test_trace_of_a_document_gives_row_shard_and_hash(world: World) -> None:
    found = trace_document(NAME, "champion", "d2")
    assert found.root.details == {"row": 1, "shard": "vectors-00001.parquet", "content_hash": "h2"}
    assert found.root.children[0].title == "retriever-release/1"
    with pytest.raises(DataError, match="no document 'd9'"):
        trace_document(NAME, "champion", "d9")


def test_a_document_that_was_replaced_is_found_in_its_new_row(tmp_path: Path) -> None:
    rows = {"doc_id": ["d1", "d2", "d3", "d1"], "content_hash": ["h1", "h2", "h3", "h4"], "part": [0, 0, 0, 1]}
    pd.DataFrame(rows).to_parquet(tmp_path / "doc_ids.parquet", index=False)
    np.save(tmp_path / "deleted.npy", np.array([0, 2]))
    assert find_document(tmp_path, "d1") == {"row": 3, "part": "part-00001.vectors.npy", "content_hash": "h4"}
    assert find_document(tmp_path, "d2") == {"row": 1, "part": "part-00000.vectors.npy", "content_hash": "h2"}
    with pytest.raises(DataError, match="no document 'd3'"):
        find_document(tmp_path, "d3")


def test_trace_of_a_changed_index_is_refused(world: World) -> None:
    path = world.root / "1" / "index" / "doc_ids.parquet"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ArtifactError, match="was changed"):
        trace_document(NAME, "champion", "d1")


def test_candidate_is_written_the_same_over_leftovers(world: World, tmp_path: Path) -> None:
    source = world.root / "1"
    manifest = load_release(source / "candidate")
    folder = tmp_path / "again"
    (folder / "evaluation").mkdir(parents=True)
    (folder / "evaluation" / "leftover.txt").write_text("half")
    for name in ("facts.json", REPORT_PAGE):
        shutil.copyfile(source / "candidate" / name, folder / name)
    written = write_candidate(manifest, source / "evaluation", source / "validation", folder)
    assert written.digest == open_artifact(source / "candidate").digest
    assert verify(folder / "evaluation", manifest.evaluation.digest).kind == "evaluation"


def test_broken_release_files_are_refused_in_words(world: World) -> None:
    path = world.root / "1" / "candidate" / "release.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "surprise": 1}))
    with pytest.raises(ArtifactError, match="surprise"):
        load_release(path.parent)
    path.write_text(json.dumps({**content, "schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(ArtifactError, match=f"schema version {SCHEMA_VERSION + 1}"):
        load_release(path.parent)


def test_a_release_from_before_the_gate_of_the_index_still_verifies(world: World) -> None:
    folder = world.root / "1" / "candidate"

    def older(content: dict[str, Any]) -> None:
        content["schema_version"] = 1
        policy, decision = content["config"]["policy"], content["decision"]
        content["config"]["policy"] = {key: value for key, value in policy.items() if key in OLD_POLICY}
        gates = [{key: gate[key] for key in ("name", "status", "reason")} for gate in decision["gates"] if gate["name"] in OLD_GATES]
        content["decision"] = {"verdict": decision["verdict"], "first_release": decision["first_release"], "gates": gates}
        del content["release_type"], content["base_models"]

    rewrite(folder, older)
    world.tracking.models[RELEASE][0].tags["scalingnote.digest"] = open_artifact(folder).digest
    # The files are not those that were promoted here, nor is the decision in them; made again, it is the same.
    assert list(findings()) == ["promotion record", "claims"]


def sealed_again(world: World, part: str, change: Callable[[dict[str, Any]], None], file: str = "report.json") -> None:
    """A report of the candidate changed, and everything sealed and named anew, as who writes the store could."""
    folder = world.root / "1" / "candidate"
    content = read_json(folder / part / file)
    change(content)
    write_json(folder / part / file, content)
    if part:
        known = open_artifact(folder / part)
        digest = seal(folder / part, known.kind, counts=known.counts, parents=known.parents, attributes=known.attributes).digest
        if part == "evaluation":
            rewrite(folder, lambda manifest: manifest["evaluation"].update(digest=digest))
    rewrite(folder, lambda manifest: None)
    world.tracking.models[RELEASE][0].tags["scalingnote.digest"] = open_artifact(folder).digest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["speed"].update(speed_up=50.0), "for the speed-up"),
        (lambda c: c["systems"]["bm25"]["metrics"].update({"ndcg@10": 0.1}), "other figures"),
        (lambda c: c["retention"].update({"recall@50": 0.99}), "for the retention of recall@50"),
        (lambda c: c["systems"]["student"].update(intervals={"ndcg@10": [0.8, 0.9]}), "outside of its own interval"),
        (
            lambda c: c.update(comparisons=[_better_than_it_is()]),
            "0.5000 for the ndcg@10 of 'student' minus 'bm25', its values give 0.3000",
        ),
        (lambda c: c["ann"]["recall"].update({"recall@100": 0.2}), "for the recall@100 of the index"),
    ],
)
def test_figures_of_the_evaluation_that_its_values_do_not_give_are_a_finding(
    world: World, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    sealed_again(world, "evaluation", change)
    assert words in findings()["evaluation"]


def _better_than_it_is() -> dict[str, Any]:
    gap = {"system": "student", "baseline": "bm25", "metric": "ndcg@10", "difference": 0.5, "low": 0.4, "high": 0.6}
    return {**gap, "confidence": 0.95, "queries": 40}


def test_broken_rules_that_the_gates_were_not_told_of_are_a_finding(world: World) -> None:
    def broken(content: dict[str, Any]) -> None:
        rule = {"contract": "documents", "version": "1.0.0", "table": "documents", "rule": "r", "severity": "error", "requirement": "R."}
        content["results"] = [{**rule, "passed": False, "count": 3, "checked": 9}]

    sealed_again(world, "validation", broken)
    assert findings()["validation"] == "It found 1 errors and 0 warnings, the gates were told 0 and 0."


def test_a_validation_of_other_data_or_contracts_is_a_finding(world: World) -> None:
    sealed_again(world, "validation", lambda content: content.update(dataset_digest="9" * 64))
    assert findings()["validation"].startswith("It is of the data 999999999999")
    sealed_again(world, "validation", lambda content: content.update(dataset_digest="d" * 64, contracts=[]))
    assert "other data contracts" in findings()["validation"]


def test_a_gate_that_a_manifest_leaves_out_is_a_finding(world: World) -> None:
    folder = world.root / "1" / "candidate"

    def without_gate(content: dict[str, Any]) -> None:
        content["decision"]["gates"] = [gate for gate in content["decision"]["gates"] if gate["name"] != "ann_recall"]

    rewrite(folder, without_gate)
    world.tracking.models[RELEASE][0].tags["scalingnote.digest"] = open_artifact(folder).digest
    assert "ann_recall: None became pass" in findings()["decision"]
