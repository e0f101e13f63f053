"""What users of MLflow, sentence-transformers and trec_eval find, asked through those tools' own interfaces."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from components import settings
from components.data.dataset import document_text
from components.tracking import registry
from components.tracking.store import client
from tests import third_party
from tests.flows.cli_world import TITLES, Built, assert_refused, at_home, done, free_port, scalingnote

pytestmark = [pytest.mark.server, pytest.mark.slow]
TEXTS = ["kidney stone", "Stone of the kidney", "é"]
KINDS = ("query-encoder", "query-tower", "document-tower", "index", "candidate")
# Loads the models that are named, asks each its own example, and says which modules our code has asked for by then.
ASKED_FOR = """
import builtins, json, sys
asked, original = set(), builtins.__import__
def recording(name, globals=None, locals=None, fromlist=(), level=0):
    if level == 0 and ((globals or {}).get("__name__") or "").startswith("components"):
        asked.add(name.partition(".")[0])
    return original(name, globals, locals, fromlist, level)
builtins.__import__ = recording
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
model.predict(model.input_example)
print(json.dumps(sorted(asked)))
"""


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


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_models_code_imports_is_among_its_requirements(kind: str, world: Built) -> None:
    """A fresh environment has these packages and what they require, and nothing else."""
    uri = f"models:/retriever-{kind}/1"
    command = [sys.executable, "-c", ASKED_FOR, uri]
    there = os.environ | {"MLFLOW_TRACKING_URI": settings.tracking_uri()}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=there)
    assert ran.returncode == 0, ran.stderr
    asked = set(json.loads(ran.stdout.splitlines()[-1])) - set(sys.stdlib_module_names) - {"components"}
    assert {"mlflow", "numpy"} <= asked
    distributions = metadata.packages_distributions()
    pinned = (registry.artifact_folder(f"retriever-{kind}", 1).parents[1] / "requirements.txt").read_text().split()
    installed = required({canonicalize_name(Requirement(line).name) for line in pinned})
    missing = {name for name in asked if not {canonicalize_name(each) for each in distributions[name]} & installed}
    assert missing == set()


def required(names: set[str]) -> set[str]:
    """These distributions and all that an installation of them brings along."""
    found: set[str] = set()
    while names:
        found |= names
        lines = [line for name in names for line in metadata.requires(name) or ()]
        wanted = [Requirement(line) for line in lines]
        names = {canonicalize_name(each.name) for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})} - found
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_mlflow_writes_a_dockerfile_for_each_model_that_needs_nothing_of_this_machine(
    kind: str, world: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner
    from mlflow.models.cli import commands

    monkeypatch.setenv("MLFLOW_TRACKING_URI", settings.tracking_uri())
    uri, folder = f"models:/retriever-{kind}/1", tmp_path / "image"
    ran = CliRunner().invoke(commands, ["generate-dockerfile", "-m", uri, "-d", str(folder)], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    written = (folder / "Dockerfile").read_text()
    assert re.search(rf"^FROM python:{sys.version_info.major}\.{sys.version_info.minor}\.\d+-slim$", written, re.MULTILINE)
    assert f"RUN pip install mlflow=={metadata.version('mlflow')}" in written and "COPY model_dir /opt/ml/model" in written
    model = folder / "model_dir"
    assert (model / "code" / "components" / "artifacts.py").is_file()
    lines = (model / "requirements.txt").read_text().splitlines()
    assert lines and all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines), lines
    told = [path.read_text() for path in (folder / "Dockerfile", model / "python_env.yaml", model / "conda.yaml", model / "MLmodel")]
    artifact_location = "artifact_path:"  # MLflow's own record of where it was logged; nothing is read from there
    said = "\n".join(line for text in told for line in text.splitlines() if not line.startswith(artifact_location))
    assert str(world.home) not in said and sys.prefix not in said


@pytest.fixture(scope="module")
def served(built: Built, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The champion as `mlflow models serve` serves it, in a copy of the home."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(built.home, folder / "home")
    with at_home(folder / "home", mlflow_template):
        done("approve", "candidate/1", "--as", "Ada", "--override", "the gates of so little training do not matter here")
        done("promote")
        port = free_port()
        command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/retriever-release@champion", "-p", str(port)]
        address = {
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'home' / 'mlflow' / 'mlflow.db'}",
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),  # MLflow calls uvicorn by its name
        }
        log = (folder / "log").open("wb")
        process = subprocess.Popen(
            [*command, "--env-manager", "local"], env=os.environ | address, stdout=log, stderr=log, cwd=folder, start_new_session=True
        )
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 240
        while not answers(url):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
            time.sleep(0.5)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
        log.close()


OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def answers(url: str) -> bool:
    with contextlib.suppress(OSError), OPENER.open(f"{url}/ping", timeout=5) as response:
        return bool(response.status == 200)
    return False


def invoked(url: str, body: Any) -> tuple[int, Any]:
    """Status and content of a call of /invocations."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with OPENER.open(urllib.request.Request(f"{url}/invocations", content, {"content-type": "application/json"}), timeout=60) as found:
            return found.status, json.load(found)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_mlflow_serves_the_champion_with_ids_scores_and_titles(served: str) -> None:
    status, answer = invoked(served, {"inputs": ["kidney stone", "burn of the eye"], "params": {"k": 3}})
    assert status == 200, answer
    first, second = answer["predictions"]
    assert first["doc_ids"] != second["doc_ids"]
    for row in (first, second):
        assert row["titles"] == [TITLES[doc_id] for doc_id in row["doc_ids"]] and len(row["doc_ids"]) == 3
        assert row["scores"] == sorted(row["scores"], reverse=True)
    assert [len(row["doc_ids"]) for row in invoked(served, {"dataframe_split": {"data": [["x"]]}})[1]["predictions"]] == [10]


@pytest.mark.parametrize("body", [b"no json", {}, {"inputs": []}, {"inputs": ["x"], "params": {"k": "three"}}])
def test_a_call_that_mlflow_cannot_answer_is_the_callers_fault(body: Any, served: str) -> None:
    status, answer = invoked(served, body)
    assert 400 <= status < 500, answer


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


@pytest.mark.skipif(not third_party.there("datasets"), reason="the package datasets is not installed; it comes with the extra `test`")
def test_the_evaluator_of_nanobeir_measures_the_package(
    package: Path, world: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import NanoBEIREvaluator

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    evaluator = NanoBEIREvaluator(["scifact"], dataset_id=str(as_nanobeir(world.data, tmp_path / "nano")), write_csv=False)
    found = evaluator(SentenceTransformer(str(package), device="cpu"))
    reported = steps_of(world.first["mlflow_run_id"])["evaluate"].data.metrics
    # Ours searches the index, whose vectors have half the digits, with texts' ties in another order: a query or two may differ.
    assert found["NanoSciFact_cosine_ndcg@10"] == pytest.approx(reported["student/ndcg_at_10"], abs=0.05)


def as_nanobeir(collection: Path, folder: Path) -> Path:
    """A collection's test queries in the layout that NanoBEIR has on the hub, as one of its sets."""
    import pandas as pd

    documents = pd.read_json(collection / "corpus.jsonl", lines=True)
    queries = pd.read_json(collection / "queries.jsonl", lines=True)
    qrels = pd.read_csv(collection / "qrels" / "test.tsv", sep="\t")
    texts = [document_text(title, text) for title, text in zip(documents["title"], documents["text"], strict=True)]
    tables = {
        "corpus": documents[["_id"]].assign(text=texts),
        "queries": queries[queries["_id"].isin(qrels["query-id"])][["_id", "text"]],
        "qrels": qrels[["query-id", "corpus-id"]],
    }
    head = "---\nconfigs:\n"
    for name, table in tables.items():
        (folder / name).mkdir(parents=True)
        table.to_parquet(folder / name / "NanoSciFact.parquet", index=False)
        head += f"- config_name: {name}\n  data_files:\n  - split: NanoSciFact\n    path: {name}/NanoSciFact.parquet\n"
    (folder / "README.md").write_text(f"{head}---\n")
    return folder


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
