"""Table and sentences of the study of growth from cells whose laws are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.studies.growth_law import (
    EXTRAPOLATED,
    ORIGIN,
    comparisons,
    draw_growth,
    fit_laws,
    growth_table,
    law_notes,
    measured_kind,
    reach_notes,
)

SIZES = (100_000, 200_000, 400_000, 1_000_000)


def cell(documents: int, key: str = "IVF1024,PQ48x4fs", nprobe: int | None = 16) -> dict[str, Any]:
    """An index whose numbers follow the laws exactly."""
    work = comparisons(key, documents, nprobe, None)
    return {
        "documents": documents,
        "synthetic": max(0, documents - 200_000),
        "index_key": key,
        "nprobe": nprobe,
        "comparisons": work,
        "build_seconds": 1e-5 * documents**1.25,
        "build_peak_bytes": 10**9,
        "file_bytes": 10**7 + 800 * documents,
        "resident_bytes": 10**6 + 40 * documents,
        "p50_ms": 0.2 + 1e-5 * work,
        "p95_ms": 0.3 + 2e-5 * work,
        "batch_ms": 0.1 + 1e-5 * work,
        "open_seconds": 0.1,
        "recall": 0.96,
        "queries": 100,
    }


def test_measured_and_extrapolated_sizes_stand_in_one_table() -> None:
    frame = growth_table([cell(n) for n in reversed(SIZES)], (10**9, 10**8))
    assert frame["documents"].tolist() == [*SIZES, 10**8, 10**9]
    assert frame[ORIGIN].tolist() == [*["real"] * 2, *["synthetic beyond 200,000 real"] * 2, *[EXTRAPOLATED] * 2]
    first, last = frame.iloc[0], frame.iloc[-1]
    assert first["resident GB"] == pytest.approx(0.005) and first["queries/s"] == pytest.approx(1000 / first["batch ms"])
    assert last["resident GB"] == pytest.approx(40.001) and last["files GB"] == pytest.approx(800.01)
    assert last["build s"] == pytest.approx(1e-5 * 1e9**1.25)
    assert last["resident GB low"] <= last["resident GB"] <= last["resident GB high"]
    assert last["p50 ms"] > first["p50 ms"] and frame["recall@k"].isna().tolist() == [False] * 4 + [True] * 2


def test_laws_are_those_of_approximate_indexes_when_there_are_some() -> None:
    exact = [cell(n, "Flat", None) for n in (10_000, 30_000)]
    mixed = [*exact, *(cell(n) for n in SIZES)]
    assert [c["documents"] for c in measured_kind(mixed)] == list(SIZES)
    assert [c["documents"] for c in measured_kind(exact)] == [10_000, 30_000]
    assert fit_laws(mixed)["files GB"].parameters == pytest.approx({"a": 0.01, "b": 8e-7})
    assert "4 approximate indexes" in law_notes(mixed)[0] and "2 exact search" in law_notes(exact)[0]


def test_too_few_points_are_said_and_leave_no_number() -> None:
    cells = [cell(n) for n in SIZES[:2]]
    frame = growth_table(cells, (10**8,))
    assert "p50 ms low" not in frame and frame["p50 ms"].isna().tolist() == [False, False, True]
    assert all("was not fitted: 2 points for 2 parameters" in line for line in law_notes(cells)[1:])


def test_distance_and_another_type_are_said() -> None:
    lines = reach_notes([cell(n) for n in SIZES], (10**8, 10**9), {10**8: "IVF65536,PQ48x4fs", 10**9: "IVF1048576(RCQ2x10),PQ48x4fs"})
    assert "100 times the largest" in lines[0] and "another type" not in lines[0]
    assert "1,000 times" in lines[1] and "takes IVF1048576(RCQ2x10),PQ48x4fs there, another type than the IVF1024" in lines[1]


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    from matplotlib.image import imread

    drawn = []
    for number, cells in enumerate(([cell(n) for n in SIZES], [cell(SIZES[0])])):
        draw_growth(growth_table(cells, (10**8, 10**9)), tmp_path / f"{number}.png")
        drawn.append(imread(tmp_path / f"{number}.png"))
        assert min(drawn[-1].shape[:2]) > 200
        assert len(np.unique(drawn[-1].reshape(-1, drawn[-1].shape[-1]), axis=0)) > 20  # lines and words, not one colour
    assert drawn[0].shape != drawn[1].shape or (drawn[0] != drawn[1]).any()  # other measurements, another figure
