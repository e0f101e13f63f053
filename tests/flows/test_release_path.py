"""From data to a promoted release and back, through the commands that a person types."""

from __future__ import annotations

import html
import inspect
import json
import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.evaluation.champion_comparison import load_comparison
from components.tracking import registry
from components.tracking.runs import evidence_links
from components.tracking.store import client
from tests.flows.cli_world import SMALL, TITLES, Built, at_home, done, scalingnote

pytestmark = [pytest.mark.server, pytest.mark.slow]
Story = dict[str, Any]


@pytest.fixture(scope="module")
def story(built: Built, mlflow_template: Path) -> Iterator[Story]:
    """One retriever's life; each chapter is the JSON of a command."""
    build = ("retrain", *SMALL, "--data", built.data)
    changed = (*build, "--set", "distillation.refine_epochs=0")
    with at_home(built.home, mlflow_template):
        os.environ["SCALINGNOTE_ANSWER_LOG"] = "full"  # gone with the home; only a query whose text was kept can be replayed
        yield {
            "first": built.first,
            "again": done(*build),
            "approved": done("approve", "candidate/1", "--as", "Ada"),
            "approved again": done("approve", "candidate/1", "--as", "Bob"),
            "promoted": done("promote"),
            "promoted again": done("promote"),
            "found": done("search", "kidney stone", "-k", "5"),
            "rebuilt": done(*build),
            "changed": done(*changed),
            "second approved": done("approve", "candidate/2", "--as", "Bob"),
            "second promoted": done("promote"),
            "status with two": done("status"),
            "rolled back": done("rollback", "--as", "Ada", "--reason", "worse on knees"),
            "status": done("status"),
            "verified": done("verify"),
            "trace": done("trace", "champion"),
            "found after": done("search", "kidney stone", "-k", "5"),
            "nothing more": done("promote"),
        }


def test_first_candidate_passes_lenient_gates_and_says_that_it_is_the_first(story: Story) -> None:
    first = story["first"]
    assert (first["candidate"], first["verdict"], first["first_release"], first["cached"]) == ("candidate/1", "pass", True, False)
    assert {gate["name"]: gate["status"] for gate in first["gates"]}["enough_queries"] == "pass"


def test_retraining_with_nothing_changed_is_cached_and_makes_no_candidate(story: Story) -> None:
    for chapter in ("again", "rebuilt"):
        assert story[chapter]["cached"] is True
        assert story[chapter]["candidate"] == "candidate/1"
        assert story[chapter]["digest"] == story["first"]["digest"]


def test_approval_is_the_copy_and_a_second_one_changes_nothing(story: Story) -> None:
    assert story["approved"]["created"] and story["approved"]["release_version"] == 1
    again = story["approved again"]
    assert (again["created"], again["release_version"], again["person"]) == (False, 1, "Ada")


def test_promotion_runs_once(story: Story) -> None:
    assert (story["promoted"]["status"], story["promoted"]["from_version"], story["promoted"]["to_version"]) == ("promoted", None, 1)
    assert story["promoted again"]["status"] == "nothing"


def test_search_shows_documents_with_their_titles(story: Story) -> None:
    hits = story["found"]["hits"]
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5]
    assert all(TITLES[hit["doc_id"]] == hit["title"] for hit in hits)
    scores = [hit["score"] for hit in hits]
    assert scores == sorted(scores, reverse=True)


def test_changed_configuration_makes_a_candidate_that_is_held_against_the_champion(story: Story) -> None:
    changed = story["changed"]
    assert (changed["candidate"], changed["first_release"], changed["cached"]) == ("candidate/2", False, False)
    gates = {gate["name"]: gate["status"] for gate in changed["gates"]}
    assert gates["champion_non_inferior"] == "pass"
    assert (story["second promoted"]["from_version"], story["second promoted"]["to_version"]) == (1, 2)
    assert (story["status with two"]["champion"], story["status with two"]["previous"]) == (2, 1)


def test_candidates_carry_the_evidence_that_a_reviewer_reads(story: Story) -> None:
    first, second = (Path(story[chapter]["folder"]) for chapter in ("first", "changed"))
    assert "This is a first release" in (first / "report.html").read_text(encoding="utf-8")
    assert load_comparison(first / "comparison") is None
    compared = load_comparison(second / "comparison")
    assert compared is not None and (compared.baseline_version, compared.queries) == (1, 42)
    assert compared.agreement["logged queries@10"].queries == 1  # the one that was searched for before
    page = html.unescape((second / "report.html").read_text(encoding="utf-8"))
    for words in ("release/1", "Training of the towers", "Candidate minus champion", "distillation.refine_epochs: 1 -> 0"):
        assert words in page, words


def test_the_run_of_the_flow_shows_figures_curves_and_plots(story: Story) -> None:
    run = client().get_run(story["changed"]["mlflow_run_id"])
    assert run.data.tags["mlflow.note.content"] == registry.description("retriever-candidate", 2)
    assert {"minus_champion/ndcg_at_10", "minus_champion/ndcg_at_10_low", "gates/pass", "over_champion/p95"} <= set(run.data.metrics)
    assert any(name.startswith("minus_champion_in_slices/") for name in run.data.metrics)
    assert [point.step for point in client().get_metric_history(run.info.run_id, "training/towers_loss")] == list(range(1, 9))
    plots = {entry.path for entry in client().list_artifacts(run.info.run_id, "plots")}
    assert {"plots/1_differences_from_champion.svg", "plots/3_slices.svg", "plots/6_training_of_student.svg"} <= plots


def test_the_description_of_a_candidate_links_to_its_report(story: Story) -> None:
    text = registry.description("retriever-candidate", 2)
    assert text.startswith("## Verdict:")
    for title, link in evidence_links("retriever-candidate", 2).items():
        assert f"[{title}]({link})" in text
    run, path = re.findall(r"/runs/(\w+)/artifacts/(\S+)\)", text)[0]
    assert path in [file.path for file in client().list_artifacts(run, "release")]


def test_rollback_returns_to_the_first_release_and_promote_leaves_it_there(story: Story) -> None:
    assert (story["rolled back"]["status"], story["rolled back"]["to_version"]) == ("rolled_back", 1)
    assert (story["status"]["champion"], story["status"]["alarm"]) == (1, None)
    assert story["status"]["last_record"]["reason"] == "worse on knees"
    assert story["nothing more"]["status"] == "nothing"
    assert story["found after"]["hits"] == story["found"]["hits"]


def test_every_check_of_the_champion_holds(story: Story) -> None:
    assert story["verified"]["verified"] is True
    assert {"files", "index", "query encoder", "decision", "promotion record"} <= {check["name"] for check in story["verified"]["checks"]}


def test_the_example_of_the_public_api_opens_searches_verifies_and_traces(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    import components

    lines = inspect.cleandoc(components.__doc__ or "").splitlines()
    example = textwrap.dedent("\n".join(line for line in lines if line.startswith("    ") or not line))
    assert example.count("\n") <= 30
    exec(compile(example, "components/__init__.py", "exec"), {})
    told = capsys.readouterr().out
    assert [line.split(" ")[0] for line in told.splitlines()[:3]] == [hit["doc_id"] for hit in story["found after"]["hits"][:3]]
    assert "ok decision" in told and "WRONG" not in told
    assert "retriever-release/1" in told


def test_trace_leads_to_data_contracts_code_configuration_and_approval(story: Story) -> None:
    assert (story["trace"]["model"], story["trace"]["version"]) == ("retriever-release", 1)
    root = story["trace"]["trace"]
    parts = {child["title"]: child for child in root["children"]}
    assert parts["data: clinic"]["details"]["documents"] == len(TITLES)
    contracts = [child["title"] for child in parts["data: clinic"]["children"]]
    assert contracts == ["contract documents", "contract judgements", "contract queries", "validation: validate_data"]
    assert parts["approval"]["children"][0]["details"]["approved_by"] == "Ada"
    assert parts["configuration"]["details"]["towers.steps"] == "8"
    # The second record is about the release that took its place for a while.
    records = [child["title"] for child in parts["promotion records"]["children"]]
    assert records == ["record 1: promote", "record 2: promote", "record 3: rollback"]


def test_a_document_is_traced_to_its_row_and_content(story: Story) -> None:
    traced = done("trace", "d7")["trace"]
    assert traced["title"] == "document d7"
    assert len(traced["details"]["content_hash"]) == 64


def test_run_writes_one_line_for_each_document_of_each_query(story: Story, tmp_path: Path) -> None:
    queries, output = tmp_path / "queries.jsonl", tmp_path / "out.trec"
    queries.write_text('{"_id": "a", "text": "knee cyst"}\n{"_id": "b", "text": "eye burn"}\n', encoding="utf-8")
    done("run", "--queries", queries, "--output", output, "-k", "7", "--release", "release/2")
    rows = [line.split() for line in output.read_text(encoding="utf-8").splitlines()]
    assert [row[0] for row in rows] == ["a"] * 7 + ["b"] * 7
    assert [int(row[3]) for row in rows] == [*range(1, 8)] * 2
    for query in ("a", "b"):
        mine = [row for row in rows if row[0] == query]
        scores = [float(row[4]) for row in mine]
        assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]
        assert len({row[2] for row in mine}) == 7 and {row[2] for row in mine} <= set(TITLES)


def test_a_run_leaves_out_the_document_that_asks_and_refuses_a_blank_query(story: Story, tmp_path: Path) -> None:
    queries, output = tmp_path / "queries.jsonl", tmp_path / "out.trec"
    trouble, _, part = TITLES["d7"].lower().partition(" of the ")
    itself = f"{TITLES['d7']}\nA patient with {trouble}, found in the {part}."
    rows = [{"_id": "d7", "text": itself}, {"_id": "d8", "text": itself}, {"_id": "a", "text": itself}]
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    told = done("run", "--queries", queries, "--output", output, "-k", str(len(TITLES)))
    found = [(query, doc_id) for query, _, doc_id, *_ in (line.split() for line in output.read_text(encoding="utf-8").splitlines())]
    assert told["own_documents_left_out"] == 1
    assert ("d7", "d7") not in found
    assert {("d8", "d7"), ("d8", "d8"), ("a", "d7")} <= set(found)
    assert len(found) == 3 * len(TITLES) - 1
    assert done("run", "--queries", queries, "--output", output, "--identical-ids", "never")["own_documents_left_out"] == 0
    queries.write_text(json.dumps({"_id": "b", "text": "\u3164"}) + "\n", encoding="utf-8")
    refused = scalingnote("run", "--queries", queries, "--output", output)
    assert refused.status == 3 and "the query 'b' is blank" in refused.err


def test_export_writes_the_documents_of_a_release_once(story: Story, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    folder = tmp_path / "out"
    told = done("export", "--release", "release/1", "--to", folder)
    assert (told["documents"], told["release"]) == (len(TITLES), "retriever-release/1")
    table = pq.read_table(folder / "vectors-00000.parquet")
    assert dict(zip(table["doc_id"].to_pylist(), table["title"].to_pylist(), strict=True)) == TITLES
    assert table.schema.metadata[b"space_id"].decode() == told["space_id"]
    again = scalingnote("export", "--to", folder)
    assert again.status == 2 and "not an empty folder" in again.err
    nowhere = scalingnote("export")
    assert nowhere.status == 2 and "--to FOLDER" in nowhere.err


def test_texts_for_people(story: Story) -> None:
    shown = scalingnote("search", "kidney stone", "-k", "1")
    assert shown.status == 0 and TITLES[story["found"]["hits"][0]["doc_id"]] in shown.out
    assert "champion release/1" in scalingnote("status").out
