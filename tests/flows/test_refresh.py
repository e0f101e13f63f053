"""The two cheap releases, through the commands that a person types: the index follows its documents, and the student is replaced."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.distillation.student import StudentEncoder
from components.release.open import load_manifest
from components.towers.contract import PROBE_TEXTS
from components.towers.encoder import TowerEncoder
from tests.data_world import write_lines, write_rows
from tests.flows.cli_world import SMALL, TITLES, Built, assert_refused, at_home, done, require_valid_exports, scalingnote

pytestmark = [pytest.mark.server, pytest.mark.slow]
Story = dict[str, Any]
NAME = ("--name", "fresh")
NEW = {"new1": "Moonstone of the ear", "new2": "Comet of the knee"}
ENCODERS = ("query_encoder", "query_tower", "document_tower")
CHANGED, REMOVED = "d7", "d3"  # neither is judged in the test split


@pytest.fixture(scope="module")
def story(built: Built, mlflow_template: Path) -> Iterator[Story]:
    """One retriever's life; each chapter is the JSON of a command, and what the document tower read meanwhile."""
    edited = edit(Path(shutil.copytree(built.data, built.data.parent / "edited" / "clinic")))
    refresh = ("refresh-index", "--data", edited, *NAME)
    with at_home(built.home, mlflow_template), pytest.MonkeyPatch.context() as patch:
        read, baseline = watch_document_tower(patch), watch_students(patch)
        story: Story = {"first": done("retrain", *SMALL, "--data", built.data, *NAME)}
        released("candidate/1")
        for chapter, command in (("refreshed", refresh), ("again", refresh)):
            read.clear()
            story |= {chapter: done(*command), f"{chapter}: read": list(read)}
        released("candidate/2")
        story["status"] = done("status", *NAME)
        story["found"] = done("search", "moonstone ear", "-k", "300", *NAME)["hits"]
        read.clear()
        story |= {"unchanged": done(*refresh), "unchanged in words": scalingnote(*refresh).out}
        query = ("refresh-query-tower", *NAME, "--set", "distillation.refine_epochs=0")
        baseline.clear()
        story |= {
            "query": done(*query),
            "query again": done(*query),
            "unchanged and query: read": list(read),
            "students: read": list(baseline),
        }
        released("candidate/3")
        read.clear()
        other = ("refresh-query-tower", *NAME, "--new-teacher", "--set", "towers.seed=5", "--set", "distillation.map_documents=60")
        story |= {"other teacher": done(*other), "other teacher: read": list(read), "other teacher again": done(*other)}
        yield story


def edit(data: Path) -> Path:
    """Two documents come, one of them with a test query, one gets another text, one goes with its queries."""
    rows = [json.loads(line) for line in (data / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [{**row, "text": "Something else entirely."} if row["_id"] == CHANGED else row for row in rows if row["_id"] != REMOVED]
    rows += [{"_id": doc_id, "title": title, "text": f"A patient with a {title.lower()}.", "metadata": {}} for doc_id, title in NEW.items()]
    write_rows(data / "corpus.jsonl", rows)
    asked = {f"q{REMOVED[1:]}", f"r{REMOVED[1:]}"}
    queries = [json.loads(line) for line in (data / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    write_rows(data / "queries.jsonl", [*(row for row in queries if row["_id"] not in asked), {"_id": "qnew1", "text": "ear moonstone"}])
    for path in (data / "qrels").iterdir():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.split("\t")[1] != REMOVED]
        write_lines(path, [*lines, "qnew1\tnew1\t1"] if path.stem == "test" else lines)
    return data


def watch_document_tower(patch: pytest.MonkeyPatch) -> list[str]:
    """The texts that any document tower encodes from now on, without the probes that it is checked with."""
    read: list[str] = []
    encode = TowerEncoder.encode

    def watched(self: TowerEncoder, texts: list[str], *rest: Any, **named: Any) -> Any:
        read.extend(texts if self.contract.role == "document" and tuple(texts) != PROBE_TEXTS else ())
        return encode(self, texts, *rest, **named)

    patch.setattr(TowerEncoder, "encode", watched)
    return read


def watch_students(patch: pytest.MonkeyPatch) -> list[str]:
    """The texts that any student encodes from now on, trained or not."""
    read: list[str] = []
    encode = StudentEncoder.encode

    def watched(self: StudentEncoder, texts: list[str], *rest: Any, **named: Any) -> Any:
        read.extend(texts)
        return encode(self, texts, *rest, **named)

    patch.setattr(StudentEncoder, "encode", watched)
    return read


def released(candidate: str) -> None:
    done("approve", candidate, "--as", "Ada", *NAME)
    assert done("promote", *NAME)["status"] == "promoted"


def pins(ref: str) -> Any:
    return load_manifest("fresh", ref).pins


def manifest_type(ref: str) -> str:
    return load_manifest("fresh", ref).release_type


def test_only_what_changed_is_encoded(story: Story) -> None:
    refreshed = story["refreshed"]
    assert refreshed["changes"] == {"added": 2, "changed": 1, "removed": 1, "unchanged": len(TITLES) - 2}
    assert (refreshed["encoded"], refreshed["candidate"], refreshed["release_type"]) == (3, "candidate/2", "index-refresh")
    texts = [f"{title}\nA patient with a {title.lower()}." for title in NEW.values()]
    assert sorted(story["refreshed: read"]) == sorted([*texts, f"{TITLES[CHANGED]}\nSomething else entirely."])


def test_the_same_refresh_again_encodes_nothing_and_finds_the_same_candidate(story: Story) -> None:
    again = story["again"]
    assert (again["candidate"], again["digest"]) == ("candidate/2", story["refreshed"]["digest"])
    assert (again["cached"], again["encoded"], story["again: read"]) == (True, 0, [])


def test_a_refreshed_index_is_compared_with_the_champion_and_promoted(story: Story) -> None:
    gates = {gate["name"]: gate for gate in story["refreshed"]["gates"]}
    # Its test queries are not those that the champion was evaluated on: the champion is asked them, and lacks one of the documents.
    assert (gates["champion_non_inferior"]["status"], gates["champion_non_inferior"]["queries"]) == ("pass", 43)
    assert "For 1 of the queries the champion lacks a relevant document" in gates["champion_non_inferior"]["reason"]
    known = gates["champion_non_inferior[documents=served by both]"]
    assert (known["status"], known["queries"]) == ("pass", 42)
    assert (story["status"]["champion"], story["status"]["alarm"]) == (2, None)
    before, after = pins("release/1"), pins("release/2")
    assert before.index != after.index
    assert (before.query_encoder, before.query_tower, before.document_tower) == (
        after.query_encoder,
        after.query_tower,
        after.document_tower,
    )


def test_search_finds_new_documents_and_none_that_were_removed(story: Story) -> None:
    found = {hit["doc_id"]: hit["title"] for hit in story["found"]}
    assert {name: found.get(name) for name in NEW} == NEW
    assert set(found) == (set(TITLES) | set(NEW)) - {REMOVED}


def test_without_a_change_nothing_is_encoded_or_registered(story: Story) -> None:
    unchanged = story["unchanged"]
    assert (unchanged["candidate"], unchanged["digest"]) == ("candidate/2", story["refreshed"]["digest"])
    assert (unchanged["changes"]["unchanged"], unchanged["encoded"], unchanged["base"]) == (len(TITLES) + 1, 0, "release/2")
    assert "No document changed since release/2: nothing was encoded" in story["unchanged in words"]


def test_a_new_student_leaves_documents_and_index_alone(story: Story) -> None:
    query = story["query"]
    assert (query["candidate"], query["release_type"], query["base"]) == ("candidate/3", "query-refresh", "release/2")
    assert story["unchanged and query: read"] == []
    assert story["students: read"] and not [text for text in story["students: read"] if "A patient with" in text]
    before, after = pins("release/2"), pins("candidate/3")
    assert before.query_encoder.digest != after.query_encoder.digest
    assert (before.index, before.query_tower, before.document_tower) == (after.index, after.query_tower, after.document_tower)
    again = story["query again"]
    assert (again["candidate"], again["digest"], again["cached"]) == ("candidate/3", query["digest"], True)


def test_refreshed_releases_verify_and_are_traced_to_the_release_before(story: Story) -> None:
    for ref in ("release/2", "release/3"):
        assert done("verify", ref, *NAME)["verified"] is True
    root = done("trace", "release/2", *NAME)["trace"]
    assert root["details"]["release_type"] == "index-refresh"
    index = next(child for child in root["children"] if child["title"].startswith("index: fresh-index/2"))
    assert [child["title"] for child in index["children"]] == ["dataset: snapshot_data", "index: build_index", "vectors: encode_changes"]
    first, second = (load_manifest("fresh", ref) for ref in ("release/1", "release/2"))
    tower = next(child for child in root["children"] if child["title"].startswith("query tower:"))
    data = next(child for child in tower["children"] if child["kind"] == "dataset")
    made = next(child for child in data["children"] if child["title"].startswith("made by an earlier flow"))
    assert made["details"]["mlflow_run_id"] == first.flow_run_id != second.flow_run_id
    assert made["details"].items() >= {key: first.provenance[key] for key in ("code_revision", "lock_digest", "patch_digest")}.items()
    assert "documents 1" in next(child for child in data["children"] if child["kind"] == "validation")["details"]["contracts"]
    last = load_manifest("fresh", "release/3")
    assert set(last.earlier_flows) == {first.flow_run_id, second.flow_run_id}  # a chain keeps all of them
    for ref in ("release/2", "release/3"):
        assert done("trace", ref, *NAME)["trace"]["details"]["lineage"] == "complete"
    assert [manifest_type(ref) for ref in ("release/1", "release/2", "release/3")] == ["full", "index-refresh", "query-refresh"]


@pytest.mark.parametrize("ref", ["candidate/1", "release/1", "release/2", "release/3"])
def test_the_exports_of_full_and_refreshed_releases_are_valid(story: Story, tmp_path: Path, ref: str) -> None:
    events = require_valid_exports(ref, tmp_path, *NAME)
    made = {output["name"] for event in events for output in event["outputs"]}
    assert {"fresh-index", "fresh-query-encoder", "fresh-candidate"} <= made
    promoted = [event for event in events if event["job"]["name"] == "promote"]
    assert len(promoted) == (0 if ref.startswith("candidate") else 2)


def test_a_document_is_traced_in_a_refreshed_index(story: Story) -> None:
    changed = done("trace", CHANGED, *NAME)["trace"]["details"]
    assert changed["content_hash"] != done("trace", CHANGED, "--release", "release/1", *NAME)["trace"]["details"]["content_hash"]
    gone = scalingnote("trace", REMOVED, *NAME)
    assert gone.status == 3 and f"no document '{REMOVED}'" in gone.err


def test_the_registry_holds_the_lineage(story: Story) -> None:
    from components.tracking import labels, registry

    before, after = registry.versions("fresh-index")
    assert after.tags[labels.INPUT + "index"] == f"fresh-index/1@{before.tags[labels.DIGEST]}"
    assert len(registry.versions("fresh-document-tower")) == 1
    assert [info.tags[labels.ATTRIBUTE + "release_type"] for info in registry.versions("fresh-candidate")] == [
        "full",
        "index-refresh",
        "query-refresh",
        "query-refresh",
    ]


MISTAKES = [
    (("--data", "DATA", "--name", "nobody"), 7, ("No release of 'nobody' was promoted yet", "scalingnote promote")),
    (("--data", "DATA", "--release", "candidate/99", *NAME), 7, ("candidate/99 does not exist", "candidate/3")),
    (("--data", "DATA", "--release", "newest", *NAME), 7, ("'newest' names no release",)),
    (NAME, 2, ("required: --data",)),
    (("--data", "nowhere", *NAME), 3, ("The data folder nowhere does not exist",)),
    (("--data", "DATA", "--set", "towers.steps=3", *NAME), 2, ("towers.steps belongs to what the release keeps", "index.compact_share")),
    (("--data", "DATA", "--set", "index.index_key=Flat", *NAME), 2, ("index.index_key belongs to what the release keeps",)),
    (("--data", "DATA", "--set", "policy.margn=0.1", *NAME), 2, ("policy.margn: unknown field", "did you mean 'policy.margin'")),
]


@pytest.mark.parametrize(("arguments", "status", "said"), MISTAKES)
def test_mistakes_are_explained_before_anything_starts(
    story: Story, built: Built, arguments: tuple[str, ...], status: int, said: tuple[str, ...]
) -> None:
    given = [str(built.data) if argument == "DATA" else argument for argument in arguments]
    assert_refused(scalingnote("refresh-index", *given), status, *said)


def test_a_new_teacher_answers_over_the_index_that_stays(story: Story) -> None:
    """Its document tower reads a sample, for the map; the release keeps index and document tower, and says what was done."""
    from components.tracking.store import client

    found, before = (load_manifest("fresh", ref) for ref in ("candidate/4", "candidate/3"))
    assert found.pins.index.digest == before.pins.index.digest and found.dataset.digest == before.dataset.digest
    assert found.pins.document_tower.digest == before.pins.document_tower.digest
    for role in ("query_tower", "query_encoder"):
        assert getattr(found.pins, role).digest != getattr(before.pins, role).digest
    assert found.release_type == "query-refresh" and found.space_id == before.space_id
    assert len(story["other teacher: read"]) == 60
    gates = {gate["name"]: gate["status"] for gate in story["other teacher"]["gates"]}
    assert gates["space_compatible"] == gates["lineage_complete"] == "pass"
    told = client().get_model_version("fresh-candidate", "4").description
    assert re.search(r"for which 60 of \d+ documents were encoded\. Among these alone its dev queries have [01]\.\d{3} nDCG@10", told), told
    tower = next(node for node in found.lineage if node.digest == found.pins.query_tower.digest)
    assert set(tower.parents) == {"dataset", "query_tower", "document_tower", "index"} and tower.parents["index"] == found.pins.index.digest
    assert story["other teacher again"]["cached"] and story["other teacher again"]["digest"] == story["other teacher"]["digest"]


def test_settings_of_the_teacher_need_the_word_for_a_new_one_and_weights_to_map(story: Story) -> None:
    assert_refused(scalingnote("refresh-query-tower", *NAME, "--set", "towers.seed=5"), 2, "towers.seed belongs to what the release keeps")
    asked = ("refresh-query-tower", *NAME, "--new-teacher", "--set")
    assert_refused(scalingnote(*asked, "encoding.shard_size=3"), 2, "encoding.shard_size belongs to what the release keeps")
    given = (
        "towers.base_model=endpoint",
        "--set",
        "towers.training=none",
        "--set",
        "towers.endpoint.url=http://127.0.0.1:1/v1",
        "--set",
        "towers.endpoint.model=m",
    )
    assert_refused(scalingnote(*asked, *given), 2, "towers.base_model is 'endpoint'", "needs weights of its own")
    assert_refused(scalingnote(*asked, "distillation.map_documents=10"), 2, "distillation.map_documents")


def test_a_new_student_needs_the_documents_of_the_index(story: Story, built: Built) -> None:
    outcome = scalingnote("refresh-query-tower", "--data", built.data, *NAME)
    assert_refused(outcome, 3, "are not those in the index of release/3: 1 added, 1 changed, 2 removed", "refresh-index --data")
    refused = scalingnote("refresh-query-tower", "--set", "encoding.shard_size=3", *NAME)
    assert_refused(refused, 2, "encoding.shard_size belongs to what the release keeps")


def test_a_release_whose_tower_is_gone_from_the_registry_is_named(story: Story, built: Built) -> None:
    from components.towers.contract import CONTRACT_FILE
    from components.tracking.registry import artifact_folder

    tower = artifact_folder("fresh-document-tower", 1) / CONTRACT_FILE
    tower.rename(tower.with_suffix(".away"))
    try:
        outcome = scalingnote("refresh-index", "--data", built.data, *NAME)
    finally:
        tower.with_suffix(".away").rename(tower)
    assert_refused(
        outcome, 6, "its document tower, fresh-document-tower/1, is not in the registry as it was released", "scalingnote retrain"
    )


def test_config_diff_names_what_a_refresh_changed_between_releases_and_runs(story: Story) -> None:
    found = done("config", "diff", "candidate/1", "champion", *NAME)
    assert set(found["different"]) == {"data.source", "distillation.refine_epochs"} and found["only_in_a"] == found["only_in_b"] == {}
    assert (found["facts_that_differ"], found["b"]["title"]) == (["data"], "champion, release/3 of 'fresh' (query-refresh)")
    assert done("config", "diff", story["first"]["mlflow_run_id"], "release/1", *NAME)["equal"]
    text = scalingnote("config", "diff", "candidate/1", "champion", *NAME).out
    assert "2 settings differ." in text and "data differs: " in text and "towers.steps" not in text


LOSSY = ("--name", "lossy")


@pytest.fixture(scope="module")
def lossy(story: Story, built: Built) -> Path:
    """Another retriever with a champion on the same data, and the data without a fifth of the documents, none of them tested."""
    done("retrain", *SMALL, "--data", built.data, *LOSSY)
    done("approve", "candidate/1", "--as", "Ada", *LOSSY)
    done("promote", *LOSSY)
    data = Path(shutil.copytree(built.data, built.data.parent / "lossy" / "clinic"))
    gone = {str(n) for n in range(4, len(TITLES), 5)}
    for name in ("corpus", "queries"):
        rows = [json.loads(line) for line in (data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        write_rows(data / f"{name}.jsonl", [row for row in rows if row["_id"][1:] not in gone])
    for path in (data / "qrels").iterdir():
        lines = path.read_text(encoding="utf-8").splitlines()
        write_lines(path, [line for line in lines if line.split("\t")[1][1:] not in gone])
    return data


def test_a_refresh_that_loses_a_fifth_of_the_documents_is_undecided_and_compared_on_the_others(lossy: Path) -> None:
    outcome = scalingnote("refresh-index", "--data", lossy, *LOSSY)
    assert outcome.status == 0 and "That removes 20.0% of them; the policy decides on 5.0% at most." in outcome.out
    result = done("refresh-index", "--data", lossy, *LOSSY)
    gates = {gate["name"]: gate for gate in result["gates"]}
    assert (result["verdict"], gates["removed_documents"]["status"], gates["removed_documents"]["value"]) == (
        "not_decidable",
        "not_decidable",
        0.2,
    )
    shared = gates["champion_non_inferior[documents=only those that both hold]"]
    # One encoder on the same documents: whatever it gains over all documents, here there is no difference.
    assert (shared["status"], shared["queries"], shared["value"]) == ("pass", 42, 0.0)
    assert done("verify", "candidate/2", *LOSSY)["verified"] is True


def test_a_test_query_that_the_kept_towers_were_trained_on_is_refused(lossy: Path, built: Built) -> None:
    data = Path(shutil.copytree(built.data, built.data.parent / "moved" / "clinic"))
    train, test = (data / "qrels" / f"{split}.tsv" for split in ("train", "test"))
    lines = train.read_text(encoding="utf-8").splitlines()
    write_lines(train, [line for line in lines if not line.startswith("q2\t")])
    write_lines(test, [*test.read_text(encoding="utf-8").splitlines(), "q2\td2\t1"])
    for command in ("refresh-index", "refresh-query-tower"):
        outcome = scalingnote(command, "--data", data, *LOSSY)
        assert_refused(
            outcome, 3, "1 of 43 judged queries of the split 'test' were train queries of release/1", "'q2'", "scalingnote retrain"
        )


def test_the_summary_of_a_retraining_ends_with_gain_and_cost(story: Story, built: Built) -> None:
    outcome = scalingnote("retrain", *SMALL, "--data", built.data, *NAME)
    gain, fused, cost = outcome.out.rstrip().splitlines()[-3:]
    assert fused.startswith("Fused with BM25, ")
    assert gain.startswith("Against BM25 the new search ") and "recall@50" in gain and "nDCG@10" in gain
    assert "against the encoder as it was downloaded it " in gain
    assert cost.startswith("It took ") and "queries a second" in cost and "MB for the encoder" in cost
    assert re.search(r"The titles of \d\d documents that no train query asks for", outcome.out)
    assert story["first"]["in_short"].splitlines()[0] == gain
