"""Traces through the command line: of a built, approved and promoted retriever, of its parts, documents and answers."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.tracking.store import client
from tests.flows.cli_world import SMALL, Built, assert_refused, at_home, done, require_valid_exports, scalingnote

pytestmark = [pytest.mark.server, pytest.mark.slow]
NAME = ("--name", "traced")


@pytest.fixture(scope="module")
def home(built: Built, mlflow_template: Path) -> Iterator[Path]:
    """A champion of a retriever of its own; its steps come from the cache."""
    with at_home(built.home, mlflow_template) as home:
        done("retrain", *SMALL, "--data", built.data, *NAME)
        done("approve", "candidate/1", "--as", "Ada", *NAME)
        done("promote", *NAME)
        yield home


def details(ref: str) -> Any:
    return done("trace", ref, *NAME)["trace"]["details"]


def test_the_lineage_of_a_built_release_is_complete(home: Path) -> None:
    root = done("trace", "champion", *NAME)["trace"]
    assert root["details"]["lineage"] == "complete"
    parts = {child["title"]: child for child in root["children"]}
    assert parts["flow run"]["details"]["prefect_flow_run_id"] != "not recorded"
    machine = next(child for child in parts["code and machine"]["children"] if child["title"] == "machine")
    assert {"host", "processor", "cores", "memory_gib"} <= set(machine["details"])
    student = parts["query encoder: traced-query-encoder/1"]
    assert student["details"]["task_run_id"] and student["details"]["source_train"] > 0
    base = next(child for child in student["children"] if child["kind"] == "base_model")
    assert len(base["details"]["digest"]) == 64
    assert "validation: validate_data" in [child["title"] for child in parts["data: clinic"]["children"]]


def test_an_answer_leads_to_its_release_and_documents(home: Path) -> None:
    found = done("search", "kidney stone", "-k", "3", *NAME)
    root = done("trace", f"answer:{found['answer_id']}")["trace"]  # the log says whose answer it was
    assert root["details"]["standing"] == "champion by promotion record 1"
    assert root["details"]["query"] == "not kept" and "kidney" not in (home / "answers" / "traced.jsonl").read_text()
    documents, release = root["children"]
    assert [child["title"] for child in documents["children"]] == [f"document {hit['doc_id']}" for hit in found["hits"]]
    assert all(len(child["details"]["content_hash"]) == 64 for child in documents["children"])
    assert release["title"] == "traced-release/1"


def test_every_query_of_a_run_has_an_answer(home: Path, tmp_path: Path) -> None:
    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"_id": "a", "text": "knee cyst"}\n{"_id": "b", "text": "eye burn"}\n', encoding="utf-8")
    first = done("run", "--queries", queries, "--output", tmp_path / "out.trec", "-k", "2", *NAME)["first_answer_id"]
    assert first.endswith(".1")
    assert details(f"answer:{first.removesuffix('1')}2")["documents"] == 2


def test_search_says_the_id_and_no_log_gives_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\nanswer:" in scalingnote("search", "kidney stone", *NAME).out
    monkeypatch.setenv("SCALINGNOTE_ANSWER_LOG", "off")
    assert "answer:" not in scalingnote("search", "kidney stone", *NAME).out
    monkeypatch.setenv("SCALINGNOTE_ANSWER_LOG", "all")
    assert_refused(scalingnote("search", "kidney stone", *NAME), 2, "SCALINGNOTE_ANSWER_LOG", "full")


def test_each_form_is_written_to_a_file(home: Path, tmp_path: Path) -> None:
    for form in ("text", "json", "html", "openlineage", "cyclonedx"):
        written = done("trace", "champion", "--format", form, "-o", tmp_path / form, *NAME)
        assert written["bytes"] == (tmp_path / form).stat().st_size > 1000
    assert "<svg" in (tmp_path / "html").read_text() and "<script" not in (tmp_path / "html").read_text()
    assert len(json.loads((tmp_path / "openlineage").read_text())) >= 9
    assert json.loads((tmp_path / "cyclonedx").read_text())["specVersion"] == "1.6"


def test_the_exports_are_valid_where_the_teacher_serves_its_own_queries(home: Path, built: Built, tmp_path: Path) -> None:
    """Query tower and query encoder are one model then."""
    other = ("--name", "oneself")
    done("retrain", *SMALL, "--data", built.data, "--set", "distillation.student=teacher", *other)
    done("approve", "candidate/1", "--as", "Ada", "--override", "a test has few queries", *other)
    done("promote", *other)
    require_valid_exports("champion", tmp_path, *other)


def test_parts_are_traced_by_name(home: Path) -> None:
    assert details("index/1")["digest"] == details("model/traced-index/1")["digest"]
    used = done("trace", "document-tower/1", *NAME)["trace"]["children"][-1]
    assert used["children"][0]["title"] == "traced-candidate/1"


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        (("answer:0123456789abcdef",), 3, "No answer"),
        (("answer:kidney",), 3, "not the id of an answer"),
        (("index/9",), 4, "its versions: 1"),
        (("model/nothing/1",), 4, "no such model"),
        (("champion", "--format", "html", "-o", "/nowhere/at/all.html"), 2, "does not exist"),
        (("champion", "-o", "/"), 2, "is a folder"),
        (("chmapion",), 3, "give another reference: a release (champion"),
        (("champion", "--format", "html", "--json"), 2, "--json"),
        (("champion", "--format", "pdf"), 2, "cyclonedx"),
    ],
)
def test_mistakes_are_said_in_words(home: Path, arguments: tuple[str, ...], status: int, named: str) -> None:
    assert_refused(scalingnote("trace", *arguments, *NAME), status, named)


def test_a_cold_trace_takes_little_time(home: Path) -> None:
    """Processor time, which other work on the machine does not change; the command alone takes about as long on an idle one."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "flows.cli.main", "trace", "champion", *NAME]
    subprocess.run(command, check=True, capture_output=True, env=dict(os.environ), timeout=600)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0


def test_mlflow_holds_the_same_edges(home: Path) -> None:
    experiment = client().get_experiment_by_name("traced")
    found = client().search_runs([experiment.experiment_id], max_results=100)
    runs = {run.info.run_name: client().get_run(run.info.run_id) for run in found}  # a search leaves model inputs out

    def models(run: str, side: str) -> set[str]:
        ends = runs[run].inputs.model_inputs if side == "in" else runs[run].outputs.model_outputs
        return {client().get_logged_model(end.model_id).name.removeprefix("traced-") for end in ends}

    def data(run: str) -> set[str]:
        return {tag.value for used in runs[run].inputs.dataset_inputs for tag in used.tags if tag.key == "mlflow.data.context"}

    assert data("snapshot_data") == {"source"} and data("validate_data") == {"dataset"}
    assert (data("train_towers"), models("train_towers", "in")) == ({"dataset"}, set())
    assert models("train_towers", "out") == {"query-tower", "document-tower"}
    assert (data("encode_corpus"), models("encode_corpus", "in")) == ({"dataset"}, {"document-tower"})
    assert "vectors" in data("build_index") and models("build_index", "out") == {"index"}
    assert models("encode_teacher_queries", "in") == {"query-tower"}
    assert models("distil_query_tower", "in") == {"query-tower", "index"} and models("distil_query_tower", "out") == {"query-encoder"}
    assert models("evaluate", "in") == {"query-tower", "query-encoder", "index"}
    assert data("write_candidate") >= {"evaluation", "validation"} and models("write_candidate", "out") == {"candidate"}
    assert models("write_candidate", "in") == {"query-tower", "document-tower", "query-encoder", "index"}
