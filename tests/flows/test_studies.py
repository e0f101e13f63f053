"""Studies from the command line on the tiny models: tables, plots, what comes from the cache, what MLflow holds, mistakes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.cli_world import SMALL, at_home, done, scalingnote, write_collection

pytestmark = [pytest.mark.server, pytest.mark.slow]
# No student collapses here by its training's length: a collapsed cell has its own test.
STUDY = (*SMALL, "--set", "distillation.max_mean_cosine=1.0", "--set", "distillation.min_effective_rank=1.0")
STUDY += ("--set", "study.seeds=[13]")  # several have a test of their own


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("data") / "clinic")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[Path]:
    with at_home(tmp_path_factory.mktemp("studies") / "home", mlflow_template) as folder:
        yield folder


def by_system(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["system"]: row for row in result["rows"]}


def test_retention_compares_students_of_one_teacher(home: Path, clinic: Path) -> None:
    arguments = ("study", "retention", *STUDY, "--data", clinic)
    first = done(*arguments, "--cells", "layers-2")
    assert list(by_system(first)) == ["teacher", "layers-2"] and not first["cached"]
    trained = set((home / "work" / "train_towers").iterdir())
    both = done(*arguments, "--cells", "layers-2,static")
    rows = by_system(both)
    assert list(rows) == ["teacher", "layers-2", "static"]
    assert rows["layers-2"]["R@50"] == by_system(first)["layers-2"]["R@50"]
    assert rows["static"]["kept R@50"] == pytest.approx(rows["static"]["R@50"] / rows["teacher"]["R@50"])
    assert rows["static"]["kept R@50 low"] <= rows["static"]["kept R@50"] <= rows["static"]["kept R@50 high"]
    assert rows["static"]["speed-up"] == pytest.approx(rows["static"]["queries/s"] / rows["teacher"]["queries/s"])
    assert set((home / "work" / "train_towers").iterdir()) == trained


def test_a_second_seed_is_trained_beside_the_first_one_which_is_found_again(home: Path, clinic: Path) -> None:
    arguments = ("study", "retention", *STUDY, "--data", clinic, "--cells", "static")
    once = by_system(done(*arguments))
    assert once["static"]["claim"] == "one seed: no claim" and once["static"]["seeds"] == 1
    before = set((home / "work" / "distil_query_tower").glob("*/manifest.json"))
    outcome = scalingnote(*arguments, "--set", "study.seeds=[13, 14]")
    assert outcome.status == 0, outcome.err
    assert "static@13: from the cache in" in outcome.out and "static@14: done in" in outcome.out
    assert len(set((home / "work" / "distil_query_tower").glob("*/manifest.json")) - before) == 1
    twice = by_system(done(*arguments, "--set", "study.seeds=[13, 14]"))
    assert twice["static"]["seeds"] == 2 and not twice["static"].get("claim")


def test_a_second_run_takes_all_from_the_cache(home: Path, clinic: Path) -> None:
    arguments = ("study", "retention", *STUDY, "--data", clinic, "--cells", "layers-2")
    before = done(*arguments)
    again = scalingnote(*arguments)
    assert again.status == 0 and "All cells were taken from the cache." in again.out
    assert "[retention] cell 2 of 3, layers-2@13: from the cache in" in again.out
    after = done(*arguments)
    assert (after["cached"], after["rows"], after["folder"]) == (True, before["rows"], before["folder"])


def test_mlflow_holds_table_and_plot(home: Path, clinic: Path) -> None:
    from components.tracking.store import client

    result = done("study", "retention", *STUDY, "--data", clinic, "--cells", "layers-2")
    run = client().get_run(result["mlflow_run_id"])
    experiment = client().get_experiment(run.info.experiment_id)
    assert (experiment.name, run.info.status) == ("retriever-study-retention", "FINISHED")
    assert {"table.md", "table.csv", "plot.png"} <= {file.path for file in client().list_artifacts(run.info.run_id)}
    assert "| teacher" in run.data.tags["mlflow.note.content"]
    steps = client().search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    assert {"train_towers", "distil_query_tower", "study_scores", "study_speed", "study_report"} <= {step.info.run_name for step in steps}


def test_robustness_asks_both_systems_the_same_noisy_queries(home: Path, clinic: Path) -> None:
    foreign = ("--set", f"study.foreign_documents={clinic}", "--set", "study.noise={typos: [0.5], verbosity: [1.0]}")
    result = done("study", "robustness", *STUDY, "--data", clinic, *foreign, "--cells", "typos,foreign_documents")
    rows = {(row["queries"], row["system"]): row for row in result["rows"]}
    conditions = ("clean", "typos 50%", "foreign_documents")
    assert set(rows) == {(condition, system) for condition in conditions for system in ("teacher", "student")}
    noisy, clean = rows["typos 50%", "teacher"], rows["clean", "teacher"]
    assert noisy["change nDCG@10"] == pytest.approx(noisy["nDCG@10"] - clean["nDCG@10"])
    # The foreign documents are the own ones under other ids: each takes a place, so at most as much is found.
    assert rows["foreign_documents", "teacher"]["R@50"] <= clean["R@50"]
    assert "210 of 'clinic'" in result["text"]


def test_ablation_and_cost_on_the_same_teacher(home: Path, clinic: Path) -> None:
    ablation = done("study", "distillation_ablation", *STUDY, "--data", clinic, "--cells", "aligned-only")
    rows = by_system(ablation)
    assert list(rows) == ["base", "aligned-only"]
    assert rows["aligned-only"]["over base R@50"] == pytest.approx(rows["aligned-only"]["R@50"] - rows["base"]["R@50"])
    cost = by_system(done("study", "cost_benefit", *STUDY, "--data", clinic, "--set", "study.watts=100", "--set", "study.price_per_hour=1"))
    assert list(cost) == ["bm25", "student_untrained", "teacher", "student"]
    student = cost["student"]
    assert 0 < cost["teacher"]["device-hours"] < student["device-hours"]
    assert student["kWh"] == pytest.approx(student["device-hours"] * 0.1, rel=1e-4)  # the table keeps six digits
    assert student["USD per million queries"] == pytest.approx(1e6 / student["queries/s"] / 3600 * 1.03)


def test_worth_names_what_to_deploy_and_asks_no_system_twice(home: Path, clinic: Path) -> None:
    rates = ("--set", "study.small_learning_rates=[0.001]", "--set", "study.pair_passes=0.2")
    cells = ("--cells", "untrained+bm25,symmetric,teacher,static,static+bm25")
    result = done("study", "worth", *STUDY, *rates, "--data", clinic, *cells)
    rows = by_system(result)
    assert list(rows) == ["bm25", "untrained+bm25", "symmetric", "teacher", "static", "static+bm25"]
    asked = list((home / "work" / "study_rankings").glob("*/manifest.json"))
    assert len(asked) == 5  # bm25, untrained, symmetric, teacher, static
    for name, row in rows.items():
        assert row["queries/s"] > 0 and row["MB"] > 0 and row["building h"] < row["h with 1,000,000 queries"], name
        assert row["behind the best, R@50 low"] <= row["behind the best, R@50"] <= 0, name
    best = max(rows, key=lambda name: rows[name]["nDCG@10"])
    assert rows[best]["behind the best, nDCG@10"] == 0
    assert rows["static"]["claim"] == "one seed: no claim" and "p below 0.05 by Holm): none" in result["text"]
    assert rows["static+bm25"]["over bm25 R@50"] == pytest.approx(rows["static+bm25"]["R@50"] - rows["bm25"]["R@50"], abs=1e-5)
    assert rows["static+bm25"]["building h"] > rows["static"]["building h"]
    assert "- The rule: the cheapest system" in result["text"]
    choice = json.loads((Path(result["folder"]) / "choice.json").read_text())
    assert choice["chosen"] in rows and choice["margin"] == 0.5 and choice["queries"] == 1_000_000
    # Nothing was trained with a seed where BM25 and the encoder as downloaded are best.
    trained = {choice["chosen"], *choice["best"].values()} - {"bm25", "untrained+bm25"}
    assert choice["claimed"] == (not trained) and f"- {choice['sentence']}" in result["text"]
    # Another number of queries changes the choice's cost, and measures nothing anew.
    again = scalingnote("study", "worth", *STUDY, *rates, "--data", clinic, *cells, "--set", "study.worth_queries=10")
    assert again.status == 0 and "[worth] cell 6 of 7, static+bm25@13: from the cache" in again.out
    assert "[worth] cell 7 of 7, cost: from the cache" in again.out and "h with 10 queries" in again.out


def test_tower_ablation_compares_teachers(home: Path, clinic: Path) -> None:
    result = done("study", "tower_ablation", *STUDY, "--data", clinic, "--cells", "mined,mined-unfiltered,query-prediction-0.1")
    rows = by_system(result)
    assert list(rows) == ["base", "mined", "mined-unfiltered", "query-prediction-0.1"]
    for row in rows.values():
        assert row["nDCG@10"] - rows["base"]["nDCG@10"] == pytest.approx(row["over base nDCG@10"] or 0, abs=1e-6)
    gained = rows["mined"]["nDCG@10"] - rows["mined-unfiltered"]["nDCG@10"]
    assert f"filter minus without it: R@50 {rows['mined']['R@50'] - rows['mined-unfiltered']['R@50']:+.3f}" in result["text"]
    assert f"nDCG@10 {gained:+.3f} [" in result["text"]


def test_corpus_growth_measures_sizes_and_says_what_is_synthetic(home: Path, clinic: Path) -> None:
    sizes = ("--set", "study.growth_sizes=[200, 300, 1000]", "--set", "index.index_key=IVF4,Flat")
    result = done("study", "corpus_growth", *STUDY, "--data", clinic, *sizes)
    rows = result["rows"]
    assert [row["documents"] for row in rows] == [200, 300, 1000, 10**8, 10**9]
    origins = ["real", "synthetic beyond 210 real", "synthetic beyond 210 real", "extrapolated", "extrapolated"]
    assert [row["documents are"] for row in rows] == origins
    assert all(row["recall@k"] >= 0.9 and row["p50 ms"] > 0 and row["build s"] > 0 for row in rows[:3])
    assert rows[4]["files GB"] > rows[3]["files GB"] > rows[2]["files GB"]
    assert "1,000,000 times the largest index measured" in result["text"] and "No release is champion yet" in result["text"]
    assert (Path(result["folder"]) / "laws.json").is_file()
    # Corpus and index of each size are gone, only the numbers are kept.
    kept = {path.name for path in (home / "work" / "study_growth").rglob("*") if path.is_file()}
    assert {name for name in kept if not name.endswith((".lock", ".timing.json", ".key.json"))} == {"manifest.json", "result.json"}


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        (("retentoin",), 2, ("retentoin", "did you mean 'retention'", "cost_benefit")),
        (("retention", "--set", "study.seeds=[13, 13]"), 2, ("study.seeds", "twice")),
        (("retention", "--set", "evaluation.query_groups=page"), 3, ("'page'", "auto", "queries")),
        (("retention", "--cells", "layer-2"), 2, ("layer-2", "did you mean 'layers-2'")),
        (("retention", "--set", "study.layers=[9]", "--set", "study.static=false"), 2, ("[9]", "2 layers")),
        (("retention", "--set", "study.layer=[1]"), 2, ("study.layer", "study.layers")),
        (("retention", "--set", "evaluation.extra_splits=[nl]"), 3, ("'nl'", "dev, test, train")),
        (("corpus_growth", "--set", "study.growth_sizes=[10]"), 2, ("study.growth_sizes", "200")),
        (("corpus_growth", "--cells", "5k"), 2, ("5k", "10k")),
        (("tower_ablation", "--cells", "mind"), 2, ("mind", "did you mean 'mined'")),
        (("tower_ablation", "--cells", "mined", "--set", "towers.mining_depth=1"), 2, ("hard_negatives 2", "mining_depth 1")),
        (("robustness", "--set", "study.foreign_documents=nowhere"), 3, ("nowhere", "does not exist")),
        (("retention", "--data", "nowhere"), 3, ("nowhere", "does not exist")),
    ],
)
def test_mistakes_are_explained_before_anything_is_trained(
    home: Path, clinic: Path, arguments: tuple[str, ...], status: int, named: tuple[str, ...]
) -> None:
    towers = home / "work" / "train_towers"
    trained = set(towers.iterdir()) if towers.exists() else set()
    outcome = scalingnote("study", *STUDY, "--data", clinic, *arguments)
    said = outcome.out + outcome.err
    assert outcome.status == status and "Traceback" not in said, said
    assert [word for word in named if word not in said] == [], said
    assert (set(towers.iterdir()) if towers.exists() else set()) == trained


def test_help_lists_the_studies() -> None:
    from flows.studies.registry import STUDIES

    told = scalingnote("study", "--help")
    assert told.status == 0 and all(f"  {name} " in told.out and text in told.out for name, text in STUDIES.items())
