"""What users of MLflow, sentence-transformers and trec_eval find, asked through those tools' own interfaces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.tracking import registry
from components.tracking.store import client
from tests.flows.cli_world import TITLES, Built, assert_refused, at_home, done, scalingnote

pytestmark = [pytest.mark.server, pytest.mark.slow]
TEXTS = ["kidney stone", "Stone of the kidney", "é"]


@pytest.fixture(scope="module")
def world(built: Built, mlflow_template: Path) -> Iterator[Built]:
    """The home of the first build, entered."""
    with at_home(built.home, mlflow_template):
        yield built


@pytest.fixture(scope="module")
def package(world: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release as one package of sentence-transformers."""
    folder = tmp_path_factory.mktemp("router") / "package"
    found = done("export", "--release", "candidate/1", "--router", folder)
    assert max(found["differences"].values()) < 1e-6, found
    return folder


def steps_of(run_id: str) -> dict[str, Any]:
    """Step -> its run in MLflow, of the flow's run."""
    experiment = client().get_run(run_id).info.experiment_id
    found = client().search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'", max_results=100)
    return {run.data.tags["scalingnote.step"]: client().get_run(run.info.run_id) for run in found}


def table(run_id: str, name: str, folder: Path) -> list[dict[str, Any]]:
    """A table of a run as MLflow's viewer reads it."""
    content = json.loads(Path(client().download_artifacts(run_id, f"tables/{name}.json", str(folder))).read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def test_models_are_found_by_what_they_reach(world: Built) -> None:
    run = client().get_run(world.first["mlflow_run_id"])
    every = client().search_logged_models([run.info.experiment_id], filter_string="metrics.recall_at_50 > 0")
    assert {model.name.removeprefix("retriever-") for model in every} == {"candidate", "query-encoder", "query-tower", "document-tower"}
    assert not client().search_logged_models([run.info.experiment_id], filter_string="metrics.recall_at_50 > 1")
    candidate = next(model for model in every if model.name == "retriever-candidate")
    metrics = {metric.key: metric for metric in candidate.metrics}
    assert metrics["recall_at_50"].value == pytest.approx(run.data.metrics["candidate/recall_at_50"])
    assert metrics["recall_at_50"].dataset_name == "clinic"
    assert candidate.params["verdict"] == "pass"
    for model in every:
        version = client().get_model_version(model.name, "1")
        assert version.description and float(version.tags["scalingnote.metric.recall_at_50"]) == pytest.approx(
            {metric.key: metric.value for metric in model.metrics}["recall_at_50"], abs=1e-4
        )


def test_the_passing_candidate_is_the_challenger_and_answers_with_titles(world: Built) -> None:
    from mlflow.pyfunc import load_model

    assert int(client().get_model_version_by_alias("retriever-candidate", "challenger").version) == 1
    model = load_model("models:/retriever-candidate@challenger")
    (row,) = model.predict(["kidney stone"], params={"k": 3}).to_dict("records")
    searched = done("search", "kidney stone", "-k", "3", "--release", "candidate/1")["hits"]
    assert row["doc_ids"] == [hit["doc_id"] for hit in searched]
    assert row["titles"] == [TITLES[doc_id] for doc_id in row["doc_ids"]]
    assert row["scores"] == pytest.approx([hit["score"] for hit in searched], abs=1e-3) == sorted(row["scores"], reverse=True)
    assert len(model.predict(model.input_example)["doc_ids"][0]) == 10


def test_mlflow_evaluates_what_the_candidate_finds_by_its_own_means(world: Built, tmp_path: Path) -> None:
    import mlflow
    import pandas as pd

    data = pd.DataFrame({"text": ["kidney stone", "heart attack"], "relevant": [["d15"], ["d1"]]})
    model = mlflow.pyfunc.load_model("models:/retriever-candidate/1")
    found = model.predict(data[["text"]])
    assert [len(ids) for ids in found["doc_ids"]] == [10, 10]
    experiment = client().create_experiment("evaluated", artifact_location=tmp_path.as_uri())
    with mlflow.start_run(experiment_id=experiment):  # the default one would put its files into the current folder
        result = mlflow.models.evaluate(
            data=data.assign(found=found["doc_ids"]), model_type="retriever", targets="relevant", predictions="found", evaluators="default"
        )
    assert 0 <= result.metrics["recall_at_3/mean"] <= 1


def test_the_query_encoder_loads_by_the_flavor_of_sentence_transformers(world: Built) -> None:
    import mlflow

    model = mlflow.sentence_transformers.load_model("models:/retriever-query-encoder/1")
    own = mlflow.pyfunc.load_model("models:/retriever-query-encoder/1").predict(TEXTS)
    assert np.abs(model.encode_query(TEXTS) - own).max() < 0.02  # our own loader may take bfloat16
    with pytest.raises(ValueError, match="No route found for task type 'document'"):
        model.encode_document(TEXTS)
    requirements = (registry.artifact_folder("retriever-query-encoder", 1).parents[1] / "requirements.txt").read_text()
    assert "torch==" in requirements and "+" not in requirements


def test_the_package_pairs_student_and_tower_and_says_so_in_its_card(package: Path) -> None:
    from huggingface_hub import ModelCard
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(package), device="cpu")
    scores = model.encode_query("kidney stone") @ model.encode_document(["Stone of the kidney", "Burn of the eye"]).T
    assert scores.shape == (2,)
    card = ModelCard.load(package / "README.md")
    assert card.data.library_name == "sentence-transformers" and card.data.license == "other"
    assert {result.metric_type for result in card.data.eval_results} >= {"recall@10", "nDCG@10"}
    summary = json.loads((registry.artifact_folder("retriever-candidate", 1) / "evaluation" / "report.json").read_text())
    student = summary["systems"]["student"]
    low, high = student["intervals"]["ndcg@10"]
    assert f"{student['metrics']['ndcg@10']:.3f} [{low:.3f} {high:.3f}]" in card.text
    assert "retriever-document-tower/1" in card.text and "clinic" in card.text and "encode_document" in card.text
    assert str(package) not in card.content


@pytest.mark.parametrize(("part", "side", "other"), [("student", "query", "document"), ("document-tower", "document", "query")])
def test_one_encoder_alone_refuses_the_other_side(part: str, side: str, other: str, package: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / part
    assert set(done("export", "--release", "candidate/1", "--router", folder, "--part", part)["differences"]) == {side}
    alone, both = SentenceTransformer(str(folder), device="cpu"), SentenceTransformer(str(package), device="cpu")
    ours, theirs = (getattr(model, f"encode_{side}")(TEXTS) for model in (alone, both))
    assert np.abs(ours - theirs).max() < 1e-6
    with pytest.raises(ValueError, match=f"No route found for task type '{other}'"):
        getattr(alone, f"encode_{other}")(TEXTS)
    assert f"`encode_{other}` raises an error" in (folder / "README.md").read_text()


def test_a_part_without_a_package_is_refused(world: Built, tmp_path: Path) -> None:
    assert_refused(scalingnote("export", "--to", tmp_path / "to", "--part", "student"), 2, "--part student", "--router")
    assert_refused(scalingnote("export", "--router", tmp_path / "x", "--part", "towers"), 2, "invalid choice")
    assert not (tmp_path / "to").exists()


def test_the_evidence_stands_in_tables_that_the_page_shows(world: Built, tmp_path: Path) -> None:
    run = world.first["mlflow_run_id"]
    gates = table(run, "gates", tmp_path)
    assert [(gate["name"], gate["status"]) for gate in gates] == [(gate["name"], gate["status"]) for gate in world.first["gates"]]
    systems = {row["system"] for row in table(run, "systems", tmp_path)}
    assert {"bm25", "teacher", "student"} <= systems
    worst = table(run, "worst_regressions", tmp_path)
    assert worst == sorted(worst, key=lambda row: row["difference"]) and all(row["difference"] < 0 for row in worst)
    logged = json.loads(client().get_run(run).data.tags["mlflow.loggedArtifacts"])
    assert {entry["path"] for entry in logged} >= {"tables/gates.json", "tables/worst_regressions.json"}


def test_judgements_lie_beside_the_runs_and_pytrec_eval_measures_what_the_report_says(world: Built, tmp_path: Path) -> None:
    import ir_measures
    import pytrec_eval

    step = steps_of(world.first["mlflow_run_id"])["evaluate"]
    folder = Path(client().download_artifacts(step.info.run_id, "evaluation", str(tmp_path)))
    with (folder / "qrels.trec").open() as qrels, (folder / "student.trec").open() as run:
        judged, found = pytrec_eval.parse_qrel(qrels), pytrec_eval.parse_run(run)
    values = pytrec_eval.RelevanceEvaluator(judged, {"recall.50", "ndcg_cut.10"}).evaluate(found)
    measured = {name: np.mean([row[name] for row in values.values()]) for name in ("recall_50", "ndcg_cut_10")}
    assert len(values) == len(judged)
    assert measured["recall_50"] == pytest.approx(step.data.metrics["student/recall_at_50"])
    assert measured["ndcg_cut_10"] == pytest.approx(step.data.metrics["student/ndcg_at_10"])
    read = ir_measures.calc_aggregate(
        [ir_measures.R @ 50],
        list(ir_measures.read_trec_qrels(str(folder / "qrels.trec"))),
        list(ir_measures.read_trec_run(str(folder / "student.trec"))),
    )
    assert read[ir_measures.R @ 50] == pytest.approx(step.data.metrics["student/recall_at_50"])


def test_runs_name_the_code_and_their_data_sets_open(world: Built) -> None:
    import mlflow

    flow = client().get_run(world.first["mlflow_run_id"])
    steps = steps_of(flow.info.run_id)
    for run in (flow, steps["train_towers"]):
        assert run.data.tags["mlflow.source.name"] == "scalingnote retrain"
        assert (
            run.data.tags.get("mlflow.source.git.commit", "unknown") == run.data.tags.get("scalingnote.code_revision", "unknown")
            or run is not flow
        )
    used = next(entry for entry in steps["train_towers"].inputs.dataset_inputs if entry.dataset.name == "clinic")
    columns = {column["name"] for column in json.loads(used.dataset.schema)["mlflow_colspec"]}
    assert {"documents.doc_id", "queries.text"} <= columns
    folder = Path(mlflow.data.get_source(used).load())
    assert (folder / "documents.parquet").is_file()
    source = next(entry for entry in steps["snapshot_data"].inputs.dataset_inputs)
    with pytest.raises(mlflow.exceptions.MlflowException, match="known by their digest alone"):
        mlflow.data.get_source(source).load()
