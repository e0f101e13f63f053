"""The benchmark command that compares any systems of a finished study."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
import pytest

from components import settings
from components.artifacts import seal, write_json
from tests.benchmarks.study_pairs import main

QUERIES = 40
SEEDS = {"student": (13, 14, 15), "fewer": (13, 14), "single": (13,), "bm25": (None,), "mini": (None,)}


def scores(folder: Path, mean: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        ("test", f"q{query}", query // 2, metric, float(np.clip(mean + rng.normal(0, 0.1), 0, 1)))
        for query in range(QUERIES)
        for metric in ("recall@50", "ndcg@10")
    ]
    folder.mkdir(parents=True)
    pd.DataFrame(rows, columns=["split", "query_id", "unit", "metric", "value"]).to_parquet(folder / "scores.parquet", index=False)


def report(home: Path, key: str, at: str, means: dict[str, float], study: str = "worth") -> None:
    inputs = {}
    for name, seeds in SEEDS.items():
        for seed in seeds:
            cell = name if seed is None else f"{name}@{seed}"
            scores(home / "work" / "study_scores" / f"{key}-{cell}", means[name], crc32(f"{key}-{cell}".encode()))
            inputs[cell] = {"digest": "d", "step": "study_scores", "key": f"{key}-{cell}"}
    (home / "work" / "study_scores" / "speed").mkdir(exist_ok=True)
    inputs["speed"] = {"digest": "d", "step": "study_scores", "key": "speed"}  # a cell that scores no queries
    made = home / "work" / "study_report" / key
    made.mkdir(parents=True)
    seal(made, "study")
    record = {"parts": {"settings": {"study": study}, "inputs": inputs}, "begun": {"at": at}, "finished_at": at, "uses": {}}
    write_json(made.with_name(f"{key}.key.json"), record)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "home"
    means = dict.fromkeys(SEEDS, 0.5)
    report(found, "new", "2026-11-30T12:00", {**means, "student": 0.8})
    report(found, "old", "2026-11-29T12:00", means)
    report(found, "other", "2026-11-30T13:00", means, study="baselines")
    monkeypatch.setenv("SCALINGNOTE_HOME", str(found))
    monkeypatch.setattr(settings, "activate", lambda: None)
    return found


Told = Callable[..., list[str]]


@pytest.fixture
def told(home: Path, capsys: pytest.CaptureFixture[str]) -> Told:
    def run(*arguments: str) -> list[str]:
        main(arguments)
        return capsys.readouterr().out.splitlines()

    return run


def test_systems_are_compared_by_the_report_that_was_made_last_also_in_a_copied_home(
    told: Told, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, recall, _, *others = told("worth", "student,mini", "bm25")
    assert head == "worth, report new of 2026-11-30T12:00"
    assert recall.startswith("student - bm25 recall@50 +0.") and "no p" not in recall and len(others) == 2
    copied = shutil.copytree(home, tmp_path / "copied", copy_function=shutil.copyfile)  # all files get new times
    (copied / "work" / "study_report" / "old.key.json").touch()
    monkeypatch.setenv("SCALINGNOTE_HOME", str(copied))
    assert told("worth", "student,mini", "bm25") == [head, recall, _, *others]


def test_systems_with_other_numbers_of_seeds_are_compared_and_one_seed_claims_nothing(told: Told) -> None:
    _, fewer, _, single, _ = told("worth", "fewer,single", "student")
    assert " p " in fewer and "no claim" not in fewer
    assert single.endswith("no p (single trained with one seed: no claim)")
    _, alone, _ = told("worth", "fewer", "student")
    assert fewer == alone, "what claims nothing does not count in Holm's correction"
    assert all("(single trained with one seed: no claim)" in line for line in told("worth", "bm25", "single")[1:])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("worth", "student,student", "bm25"), "'student' is named twice"),
        (("worth", "student", "bm25,bm25"), "'bm25' is named twice"),
        (("worth", "student", "bm25,nothing"), "no system 'nothing'"),
        (("worth", "", "bm25"), "no system '' with scores"),
        (("worth", "student,", "bm25"), "no system '' with scores"),
        (("worth", "student,bm25", "bm25"), "'bm25' cannot be held against itself"),
        (("worth", "speed", "bm25"), "no system 'speed' with scores per query. Systems: bm25, fewer, mini, single, student."),
        (("worth", "student", "bm52"), "no system 'bm52'"),
        (("worth", "student", "bm25", "--split", "tset"), "'tset' was not scored. Splits: test."),
        (("retention", "student", "bm25"), "no finished report of the study 'retention'"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_words(arguments: tuple[str, ...], words: str, home: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert words in str(stopped.value)


def test_scores_that_were_removed_and_a_home_that_cannot_be_are_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(home / "work" / "study_scores")
    with pytest.raises(SystemExit, match="no scores per query in this home"):
        main(["worth", "student", "bm25"])
    monkeypatch.setenv("SCALINGNOTE_HOME", " ")
    with pytest.raises(SystemExit, match="SCALINGNOTE_HOME is ' '"):
        main(["worth", "student", "bm25"])
