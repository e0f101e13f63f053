"""The sentences for people who read no tables: they name a loss where there is one, and say nothing that was not measured."""

from __future__ import annotations

import pytest

from components.evaluation.report import Comparison, Summary, SystemSummary, UnitsSummary
from components.evaluation.table import cost_sentence, gain_sentence, render_table, split_mark, teacher_mark, units_mark
from tests.unit.promotion_world import GOOD, make_evaluation

Given = dict[tuple[str, str, str], tuple[float, float, float]]
GAINS: Given = {
    ("student", "bm25", "ndcg@10"): (0.139, 0.110, 0.170),
    ("student", "bm25", "recall@50"): (0.152, 0.120, 0.180),
    ("student", "student_untrained", "ndcg@10"): (0.063, 0.035, 0.094),
    ("student", "student_untrained", "recall@50"): (-0.010, -0.030, 0.012),
}
LOSS: Given = {("teacher", "student_untrained", "recall@50"): (-0.0265, -0.050, -0.002)}


def summary(comparisons: Given, split: str = "test", systems: dict[str, dict[str, float]] | None = None) -> Summary:
    made = [
        Comparison(system=a, baseline=b, metric=m, difference=d, low=low, high=high, confidence=0.95, queries=40)
        for (a, b, m), (d, low, high) in comparisons.items()
    ]
    levels = {name: SystemSummary(metrics=metrics, intervals={}) for name, metrics in (systems or {}).items()}
    return make_evaluation().summary.model_copy(update={"comparisons": tuple(made), "systems": levels, "split": split})


def test_the_gain_over_both_baselines_is_said_in_both_metrics_with_intervals() -> None:
    told = gain_sentence(summary(GAINS))
    assert told.startswith("Against BM25 the new search gains 0.152 [0.120 0.180] in recall@50 and gains 0.139 [0.110 0.170] in nDCG@10; ")
    assert "against the encoder as it was downloaded it shows no difference in recall@50 (-0.010 [-0.030 +0.012]) and gains 0.063" in told
    assert told.count(".") - told.count("0.") == 1 and told.endswith(").")  # one sentence


def test_what_the_intervals_do_not_hold_is_said_behind_them() -> None:
    assert gain_sentence(summary(GAINS)).endswith("(in brackets 95% intervals over the queries).")
    assert gain_sentence(summary(GAINS), "one training").endswith("(in brackets 95% intervals over the queries; one training).")


def test_a_teacher_that_loses_to_doing_nothing_stands_in_the_same_sentence() -> None:
    told = gain_sentence(summary({**GAINS, **LOSS}))
    assert "the teacher is worse than doing nothing: recall@50 -0.026 [-0.050 -0.002] against the encoder as it was downloaded" in told


def test_a_loss_of_the_student_is_called_one() -> None:
    worse: Given = {("student", "student_untrained", "recall@50"): (-0.03, -0.05, -0.01)}
    assert "it loses 0.030 [0.010 0.050] in recall@50" in gain_sentence(summary(worse))


def test_what_was_not_measured_is_not_made_up() -> None:
    assert gain_sentence(summary({})) == "What was gained over BM25 and over the encoder as it was downloaded was not measured."
    silent = summary({}).model_copy(update={"speed": None})
    assert cost_sentence(silent, {}) == "What it costs was not measured."
    assert "minutes" not in cost_sentence(summary({}), {"encoder_bytes": 91e6})


def test_the_cost_names_minutes_queries_a_second_and_sizes() -> None:
    told = cost_sentence(summary({}), {"seconds": 567.0, "encoder_bytes": 91.2e6, "index_bytes": 24.4e6})
    assert told == (
        "It took 9.4 minutes of computing to build, encodes 500 queries a second (batches of 32), takes 91.2 MB for the encoder and "
        "24.4 MB for the index."
    )


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ((-0.03, -0.05, -0.01), "is worse than doing nothing"),
        ((-0.01, -0.03, 0.01), "lies below doing nothing, which may be chance"),
        ((0.0, -0.01, 0.01), ""),
        ((0.05, 0.03, 0.07), ""),
    ],
)
def test_the_teacher_is_marked_where_it_lies_below_the_untrained_encoder(found: tuple[float, float, float], words: str) -> None:
    mark = teacher_mark(summary({("teacher", "student_untrained", "ndcg@10"): found}))
    assert words in mark and bool(mark) == bool(words)


def test_reports_of_before_there_was_such_a_comparison_are_marked_by_their_means() -> None:
    before = summary({}, systems={"teacher": {"recall@50": 0.85}, "student_untrained": {"recall@50": 0.867}})
    assert "recall@50 -0.017 without an interval against" in teacher_mark(before)


def test_a_loss_that_has_no_interval_is_not_called_no_difference() -> None:
    lost = summary({}, systems={"student": {"recall@50": 0.5, "ndcg@10": 0.3}, "bm25": {"recall@50": 0.8, "ndcg@10": 0.3}})
    told = gain_sentence(lost)
    assert "the new search differs by -0.300 in recall@50 (no interval, so this may be chance)" in told and "no difference" not in told


def test_any_split_but_test_is_marked_in_the_table() -> None:
    assert split_mark("test") == ""
    assert "Checkpoints were chosen on it" in split_mark("dev")
    for split in ("dev", "test_nl2bash", "TEST"):
        report = make_evaluation(GOOD).summary.model_copy(update={"split": split, "retention": {}})
        assert f"NOT MEASURED ON TEST but on the split '{split}'" in render_table(report).splitlines()[1]
    assert "NOT MEASURED" not in render_table(make_evaluation(GOOD).summary.model_copy(update={"retention": {}}))


def test_queries_that_were_taken_apart_are_told_at_the_head_of_the_table() -> None:
    units = UnitsSummary(rule="each", units=40, largest=1, words="each")
    apart = summary({}).model_copy(update={"units": units.model_copy(update={"taken_apart": 7})})
    mark = units_mark(apart)
    assert mark.startswith("QUERIES THAT BELONG TOGETHER ARE TAKEN APART") and "40 units, of which the data makes 7" in mark
    assert " ".join(render_table(apart).split("\n\n")[0].split()).endswith(mark)
    assert units_mark(apart.model_copy(update={"units": units})) == units_mark(summary({})) == ""


def test_a_manager_is_told_first_where_the_figures_are_not_of_the_test_queries_or_of_queries_that_were_taken_apart() -> None:
    assert gain_sentence(summary(GAINS)).startswith("Against BM25")
    assert gain_sentence(summary(GAINS, "dev")).startswith("NOT MEASURED ON TEST but on the split 'dev'.")
    units = UnitsSummary(rule="each", units=40, largest=1, words="each", taken_apart=7)
    assert gain_sentence(summary(GAINS).model_copy(update={"units": units})).startswith("QUERIES THAT BELONG TOGETHER ARE TAKEN APART")
