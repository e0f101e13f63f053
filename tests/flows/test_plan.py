"""`scalingnote plan` and `retrain --budget` on a small collection with tiny models, and what they refuse."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.code import ROOT
from components.planning import plan as planning
from components.planning.plan import Room
from flows.config import RetrainConfig, load_config
from tests.flows.cli_world import SMALL, assert_refused, at_home, done, scalingnote, write_collection

pytestmark = [pytest.mark.server, pytest.mark.slow]
STEPS = ["snapshot_data", "validate_data", "train_towers", "encode_corpus", "encode_teacher_queries", "build_index", "distil_query_tower"]
STEPS += ["evaluate", "register"]
LEFT = "left of the whole flow"


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("data") / "clinic")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[Path]:
    with at_home(tmp_path_factory.mktemp("plan") / "home", mlflow_template) as home:
        yield home


def test_a_plan_names_every_step_and_its_file_loads(home: Path, clinic: Path, tmp_path: Path) -> None:
    file = tmp_path / "planned.yaml"
    found = done("plan", *SMALL, "--data", clinic, "--write", file)
    assert found["fits"] and [row["step"] for row in found["rows"]] == STEPS
    assert all(row["seconds"] > 0 and row["memory"] > 0 for row in found["rows"])
    assert found["pending"] == STEPS[2:] and found["seconds"] > 0  # the data are read and validated by now
    assert load_config(None, file) == RetrainConfig.model_validate(found["config"])
    text = file.read_text(encoding="utf-8")
    assert "lora_alpha: 8" in text and "pooling" not in text  # only what differs from the defaults
    assert {"setting", "towers.max_document_length"} <= set(scalingnote("plan", *SMALL, "--data", clinic).out.split())


def test_the_benchmark_of_plans_runs_every_step_beside_what_was_expected(clinic: Path, tmp_path: Path) -> None:
    options = ["--data", str(clinic), "--quick", "--json", str(tmp_path / "found.json")]
    command = [sys.executable, "-m", "tests.benchmarks.plan_accuracy", *SMALL, *options]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["steps"]
    assert list(found) == STEPS[:-1]
    assert all(side["seconds"] >= 0 for step in STEPS[2:-1] for side in found[step].values())
    assert all(found[step]["measured"]["seconds"] > 0 and found[step]["measured"]["disk"] > 0 for step in STEPS[2:-1])
    assert [line.split()[0] for line in ran.stdout.splitlines() if "=" in line and ";" not in line] == [*STEPS[:-1], "all"]


def test_the_same_plan_is_found_again_and_measured_again_when_asked(home: Path, clinic: Path) -> None:
    first, second = (done("plan", *SMALL, "--data", clinic, "--budget", "10m") for _ in range(2))
    assert first == second
    assert done("plan", *SMALL, "--data", clinic, "--budget", "10m", "--again")["rates"] != first["rates"]


def test_a_retraining_with_a_budget_runs_its_plan_and_is_cached_the_second_time(home: Path, clinic: Path) -> None:
    small = [*SMALL, "--data", clinic, "--budget", "5m", "--set", "towers.steps=9"]
    first, second = scalingnote("retrain", *small), scalingnote("retrain", *small)
    assert first.status == second.status == 0, first.err + second.err
    assert first.out.startswith("Planned for 5m: about ") and "towers.max_document_length" in first.out
    assert "[train_towers] about " in first.out and LEFT in first.out
    assert LEFT not in second.out and "All steps were taken from the cache" in second.out
    # The file that `plan` writes for the same request gives the same run.
    file = home / "again.yaml"
    done("plan", *small, "--write", file)
    assert done("retrain", "--config", file)["cached"]


def test_a_run_begins_with_an_estimate_only_where_something_is_to_be_made(home: Path, clinic: Path) -> None:
    settings = [*SMALL, "--data", clinic, "--set", "towers.seed=5"]
    first, second = scalingnote("retrain", *settings), scalingnote("retrain", *settings)
    assert first.status == second.status == 0, first.err + second.err
    assert first.out.startswith("This run: about ")
    # The data were read for the estimate, and are this run's own all the same.
    assert "[snapshot_data] done in" in first.out or "[snapshot_data] unchanged" in first.out
    assert "This run" not in second.out and LEFT not in second.out


@pytest.mark.parametrize("budget", ["0s", "0", "-1h", "1 h 30", "400d", "soon"])
def test_a_budget_that_is_none_is_refused_in_words(home: Path, clinic: Path, budget: str) -> None:
    for command in ("plan", "retrain"):
        assert_refused(scalingnote(command, *SMALL, "--data", clinic, f"--budget={budget}"), 2, "--budget is")


def test_a_budget_that_nothing_fits_says_what_would(home: Path, clinic: Path) -> None:
    kept = set((home / "work" / "plans").glob("*"))
    outcome = scalingnote("plan", *SMALL, "--data", clinic, "--budget", "1s")
    assert_refused(outcome, 2, "It does not fit", "give --budget", "train_towers")
    assert set((home / "work" / "plans").glob("*")) == kept, "a busy machine's refusal is not remembered"
    assert_refused(scalingnote("retrain", *SMALL, "--data", clinic, "--budget", "1s"), 2, "Nothing that would train fits", "--budget")
    assert json.loads(scalingnote("plan", *SMALL, "--data", clinic, "--budget", "1s", "--json").out)["fits"] is False


def test_a_year_is_more_than_a_plan_needs(home: Path, clinic: Path) -> None:
    found = done("plan", *SMALL, "--data", clinic, "--budget", "365d")
    assert found["fits"] and found["seconds"] < 3600


def test_where_the_file_goes_is_looked_at_first(home: Path, clinic: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.yaml"
    there.write_text("mine", encoding="utf-8")
    for file, said in ((tmp_path, "is a folder"), (there, "exists already"), (tmp_path / "no" / "a.yaml", "does not exist")):
        assert_refused(scalingnote("plan", *SMALL, "--data", clinic, "--write", file), 2, "--write", said)
    assert there.read_text(encoding="utf-8") == "mine"


def test_data_that_cannot_be_trained_on_is_refused_as_ever(home: Path, clinic: Path, tmp_path: Path) -> None:
    queries = tmp_path / "queries"
    queries.mkdir()
    shutil.copyfile(clinic / "queries.jsonl", queries / "queries.jsonl")
    other = Path(shutil.copytree(clinic, tmp_path / "other"))
    (other / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nx1\ty1\t1\nx2\ty2\t1\n", encoding="utf-8")
    for folder, said in ((queries, "corpus.jsonl"), (other, "x1"), (tmp_path / "none", "does not exist")):
        for command in ("plan", "retrain"):
            assert_refused(scalingnote(command, *SMALL, "--data", folder), 3, said)


def test_a_card_that_is_not_here_gives_memory_and_no_times(home: Path, clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as small:
        small.setattr("components.planning.plan.free_room", lambda _: Room(10**9, 10**12))  # too little for any training
        outcome = scalingnote("plan", *SMALL, "--data", clinic, "--card", "24 GB")
    assert outcome.status == 0 and "No GPU is here" in outcome.out and "not known here" in outcome.out
    assert "Beside the card the machine needs" in outcome.out and "It does not fit" not in outcome.out
    assert_refused(scalingnote("plan", *SMALL, "--data", clinic, "--card", "24 GB", "--budget", "1h"), 2, "--budget needs measured times")
    assert_refused(scalingnote("plan", *SMALL, "--data", clinic, "--card", "H900"), 2, "--card is 'H900'")


def test_a_job_that_memory_or_disk_cannot_hold_does_not_start(home: Path, clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [*SMALL, "--data", clinic, "--set", "towers.seed=6"]
    for room, said in (((10**6, 10**12), "of memory in the step"), ((10**12, 10**6), "Free some space")):
        monkeypatch.setattr(planning, "free_room", lambda _, room=room: planning.Room(*room))
        assert_refused(scalingnote("retrain", *settings), 9, "This job", said, "is free")
        assert_refused(scalingnote("plan", *settings), 2, "It does not fit", said)


def test_an_unknown_model_and_a_wrong_precision_are_named(home: Path, clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_refused(scalingnote("plan", *SMALL, "--data", clinic, "--set", "towers.base_model=./nowhere"), 4, "nowhere")
    monkeypatch.setenv("SCALINGNOTE_PRECISION", "fp8")
    assert_refused(scalingnote("plan", *SMALL, "--data", clinic, "--set", "towers.precision=auto"), 2, "SCALINGNOTE_PRECISION is 'fp8'")
