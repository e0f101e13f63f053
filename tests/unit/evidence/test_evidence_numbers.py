"""Figures and plots of the report against values worked out by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from components.evidence.dossier import METRIC, Compared, Dossier, Rivals, against_champion, deltas, slice_deltas
from components.evidence.labels import Curve, Mark, PlotText, Point, forest, lines, scatter, standalone, ticks
from tests.unit.evidence_world import slices, world_of
from tests.unit.promotion_world import make_evaluation

WORDS = PlotText("A <title>", "What it shows", "across", "up")


@pytest.fixture(scope="module")
def dossier(tmp_path_factory: pytest.TempPathFactory) -> Dossier:
    return world_of(tmp_path_factory)


def test_differences_are_paired_and_have_power(dossier: Dossier) -> None:
    rivals = against_champion(dossier)
    assert rivals is not None
    found = next(delta for delta in deltas(rivals, dossier) if delta.metric == METRIC)
    assert found.difference == pytest.approx((36 * 0.05 - 4 * 0.2) / 40)
    assert (found.name, found.queries) == ("candidate - champion", 40)
    assert found.low is not None and found.high is not None and found.low < found.difference < found.high
    # The spread of 36 differences of 0.05 and four of -0.2: the margin of 0.01 is below its standard error of 0.012.
    assert found.power is not None and 0.1 < found.power < 0.5
    assert found.detectable is not None and found.detectable > dossier.policy.margin


def test_a_slice_with_few_queries_has_no_interval(dossier: Dossier) -> None:
    rivals = against_champion(dossier)
    assert rivals is not None
    long, short = slice_deltas(rivals, slices(), dossier)
    assert (short.name, short.queries, short.difference) == ("length=short", 36, pytest.approx(0.05))
    assert (long.name, long.queries, long.difference) == ("length=long", 4, pytest.approx(-0.2))
    assert short.low == pytest.approx(0.05)
    assert (long.low, long.power) == (None, None)


def test_slices_stand_from_low_to_high_and_have_the_power_of_their_own_margin(dossier: Dossier) -> None:
    rivals = against_champion(dossier)
    assert rivals is not None
    labels = ["10 and above", "under 4", "4 to under 10", "latin"] * 10
    table = pd.DataFrame({"query_id": rivals.query_ids, "dimension": "b", "slice": labels})
    table = pd.concat([table, table.assign(dimension="a", slice="all")], ignore_index=True)
    found = slice_deltas(rivals, table, dossier)
    assert [delta.name for delta in found] == ["b=under 4", "b=4 to under 10", "b=10 and above", "b=latin", "a=all"]
    overall = next(delta for delta in deltas(rivals, dossier) if delta.metric == METRIC)
    assert dossier.policy.slice_margin is not None and dossier.policy.slice_margin > dossier.policy.margin
    assert found[-1].power is not None and overall.power is not None and found[-1].power > overall.power


def test_evaluations_on_other_judgements_are_not_compared(dossier: Dossier) -> None:
    assert dossier.champion is not None
    alone = replace(dossier, compared=Compared(missing="gone"))
    rivals = against_champion(alone)
    assert rivals is not None
    assert float(np.mean(rivals.scores[METRIC][0] - rivals.scores[METRIC][1])) == pytest.approx(0.05)
    other = replace(dossier.champion, evaluation=make_evaluation(judgements="j2"))
    assert against_champion(replace(alone, champion=other)) is None
    assert against_champion(replace(alone, champion=None)) is None


@pytest.mark.parametrize(
    ("low", "high", "tone"), [(0.1, 0.3, "better"), (-0.3, -0.1, "worse"), (-0.1, 0.3, "open"), (0.0, 0.3, "open"), (None, None, "open")]
)
def test_a_mark_says_what_its_interval_says(low: float | None, high: float | None, tone: str) -> None:
    assert Mark("a", 0.2, low, high, "").tone == tone


def test_a_forest_has_a_shape_for_each_outcome_and_its_margin() -> None:
    marks = [Mark("up", 0.2, 0.1, 0.3, "n"), Mark("down", -0.2, -0.3, -0.1, "n", 0.05), Mark("<open>", 0, -0.1, 0.1, "n")]
    drawn = forest(marks, WORDS)
    # Each shape stands in the legend, too, and the allowed loss in the row that it is allowed for.
    assert drawn.count("<path") == 2 + 2
    assert drawn.count('<circle class="open"') == 1 + 1
    assert drawn.count('class="margin"') == 1 + 1
    assert drawn.count('class="zero"') == 1
    assert "the loss that the policy allows" in drawn
    assert "the loss that the policy allows" not in forest(marks[:1], WORDS)
    assert "&lt;open&gt;" in drawn
    assert "<title>A &lt;title&gt;</title><desc>What it shows</desc>" in drawn


def test_a_scatter_takes_one_point_and_equal_ones() -> None:
    assert scatter([Point("only", 3.0, 0.5)], WORDS).count("<circle") == 1
    equal = scatter([Point("a", 3.0, 0.5, 0.4, 0.6), Point("b", 3.0, 0.5)], WORDS)
    assert equal.count('class="line1"') == 1
    first, second = (float(y) for y in re.findall(r'<text class="fill\d" x="[\d.]+" y="([\d.]+)"', equal))
    assert abs(first - second) >= 16  # their names do not cover each other
    assert "nan" not in scatter([Point("a", 0.001, 0.0), Point("b", 5000.0, 0.0)], WORDS)


def test_long_curves_are_thinned_and_short_ones_show_their_points() -> None:
    long = lines([Curve("loss", [float(n) for n in range(10_000)])], WORDS)
    assert len(re.findall(r"[\d.]+,[\d.]+", long)) <= 200 + 6  # points, and numbers with a comma below the axis
    assert "<circle" not in long and ">10,000<" in long
    two = lines([Curve("a", [1.0, 2.0]), Curve("b", [2.0, 2.0])], WORDS, ("align 1", "refine 1"), kept=1)
    assert two.count("<circle") == 4
    assert ">refine 1<" in two and ">kept<" in two
    assert "nan" not in lines([Curve("one", [1.0])], WORDS)


def test_a_plot_stands_alone_as_a_picture() -> None:
    plot = forest([Mark("a < \x00\u202e", 0.2, 0.1, 0.3, "n & m", 0.01)], WORDS)
    picture = ElementTree.fromstring(standalone(plot))
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    assert (picture.get("width"), picture.get("height")) == tuple(str(picture.get("viewBox")).split()[2:])
    assert any("var(--good)" in (style.text or "") for style in picture.iter("{http://www.w3.org/2000/svg}style"))


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (-0.2, 0.05), (1e-9, 2e-9), (-3e5, 10.0), (0.5, 0.5)])
def test_ticks_hold_both_ends(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low + 1e-9 * abs(high - low) and found[-1] >= high - 1e-9 * abs(high - low)
    assert 2 <= len(found) <= 8


def test_power_against_a_baseline_is_that_of_the_margin_that_is_asked_there(dossier: Dossier) -> None:
    """It was that of the margin against the champion, beside gates that had too little power at their own."""
    policy = {**dossier.policy.model_dump(mode="json"), "margin": 0.2, "baseline_margin": 0.01}
    found = replace(dossier, manifest=dossier.manifest.model_copy(update={"config": {**dossier.manifest.config, "policy": policy}}))
    noisy = np.tile([0.4, 0.6], 20)
    ids, scores = tuple(f"q{n:03d}" for n in range(40)), {METRIC: (noisy, noisy * 0)}
    pairs = [Rivals("student", second, ids, scores, "") for second in ("bm25", "teacher")]
    against, beside = (deltas(pair, found)[0].power for pair in pairs)
    assert against is not None and beside is not None and against < 0.3 < 0.9 < beside
