"""A candidate and its champion with every measurement, all of it small, for the tests of the reviewer's report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.data.validation_report import ContractUsed, RowsLeftOut, RuleResult, ValidationReport
from components.evaluation.champion_comparison import (
    AGREEMENT_COLUMNS,
    CANDIDATE,
    CHAMPION,
    SIDE_COLUMNS,
    Agreement,
    ComparisonSummary,
    ComparisonTables,
)
from components.evaluation.report import EncoderSpeed, UnitsSummary
from components.evaluation.units import Units
from components.evidence.dossier import Champion, Compared, Dossier, Making, StepCost
from components.release.manifest import load_release
from tests.unit.promotion_world import GOOD, NAME, MemoryTracking, World, make_evaluation

EVIL = "<script>alert('x')</script> | <b>bold</b>"
QUERIES = 40
IDS = [f"q{n:03d}" for n in range(QUERIES)]


def make_dossier(root: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Dossier:
    """The second candidate against the first, which is 0.05 worse; `changes` replace fields."""
    tracking = MemoryTracking()
    tracking.install(monkeypatch)
    world = World(tracking, root)
    first, second = world.candidate(GOOD), world.candidate({**GOOD, "student": 0.75})
    manifests = [load_release(tracking.folders[f"{NAME}-candidate", version]) for version in (first, second)]
    old = make_evaluation(GOOD)
    dossier = Dossier(
        manifest=manifests[1],
        evaluation=replace(make_evaluation({**GOOD, "student": 0.75}), slices=slices()),
        validation=validation(),
        champion=Champion(1, manifests[0], old),
        compared=Compared(comparison(), tables()),
        making=Making((3.0, 2.0, 1.0), epochs(), (StepCost("train_towers", 90.0, 2), StepCost("evaluate", None)), ("snapshot_data",)),
        notes=(EVIL,),
    )
    return replace(dossier, **changes)


def world_of(factory: pytest.TempPathFactory) -> Dossier:
    """`make_dossier` once for many tests: nobody can change it."""
    with pytest.MonkeyPatch.context() as patch:
        return make_dossier(factory.mktemp("dossier"), patch)


def with_units(dossier: Dossier, size: int = 4) -> Dossier:
    """The same, its queries drawn in units of so many."""
    units = Units(tuple(IDS), np.arange(QUERIES) // size)
    told = UnitsSummary(
        rule="by page", units=units.count, largest=size, design_effects={"ndcg@10": 2.0}, words=f"{QUERIES} queries in units by page."
    )
    report = dossier.evaluation
    return replace(
        dossier, evaluation=replace(report, units=units.table("test"), summary=report.summary.model_copy(update={"units": told}))
    )


def slices() -> pd.DataFrame:
    """36 queries in one slice, four in the other."""
    return pd.DataFrame({"query_id": IDS, "dimension": "length", "slice": ["short"] * 36 + ["long"] * 4})


def tables(queries: int = QUERIES) -> ComparisonTables:
    """The candidate has 0.05 more on every query, on the last four 0.2 less."""
    champion, ids = np.linspace(0.3, 0.7, queries), [f"q{n:03d}" for n in range(queries)]
    candidate = champion + np.where(np.arange(queries) < queries - 4, 0.05, -0.2)
    values = [(CANDIDATE, candidate), (CHAMPION, champion)]
    rows = [(q, name, m, v) for name, found in values for m in ("ndcg@10", "recall@50") for q, v in zip(ids, found, strict=True)]
    hits = [
        {"doc_id": "d1", "title": EVIL, "score": 0.5, "relevant": True},
        {"doc_id": "d2", "title": "Two", "score": 0.4, "relevant": False},
    ]
    lost, gained = [(q, EVIL, d, hits[:1], hits, hits[1:]) for q, d in (("q039", -0.2), ("q001", 0.05))]
    return ComparisonTables(
        per_query=pd.DataFrame(rows, columns=["query_id", "system", "metric", "value"]),
        side_by_side=pd.DataFrame([lost, gained], columns=list(SIDE_COLUMNS)),
        agreement=pd.DataFrame([("logged queries", "a", 10, 0.5)], columns=list(AGREEMENT_COLUMNS)),
    )


def comparison() -> ComparisonSummary:
    """The candidate is twice as fast."""
    speed = EncoderSpeed(p50_ms=2.0, p95_ms=4.0, qps=100.0, batch_size=32, queries=20)
    return ComparisonSummary(
        baseline_version=1,
        judgements_digest="j1",
        queries=QUERIES,
        candidate=speed.model_copy(update={"p95_ms": 2.0, "qps": 200.0}),
        champion=speed,
        agreement={"logged queries@10": Agreement(k=10, mean=0.5, low=0.4, high=0.6, queries=7, source="logged queries")},
        sizes={who: {"index": 2_000_000, "encoder": 1_000_000, "documents": 3} for who in (CANDIDATE, CHAMPION)},
        machine="a test machine",
    )


def epochs() -> tuple[dict[str, Any], ...]:
    """Two epochs of a student."""
    return tuple(
        {"phase": "align", "epoch": n, "loss": 1 / n, "ndcg@10": 0.1 * n, "recall@50": 0.2 * n, "mean_cosine": 0.5} for n in (1, 2)
    )


def validation() -> ValidationReport:
    """One rule that holds and one that is broken."""
    rule = RuleResult(
        contract="documents",
        version="1",
        table="documents",
        rule="id",
        severity="warning",
        requirement="It is there.",
        passed=True,
        count=0,
        checked=3,
    )
    return ValidationReport(
        dataset="toy",
        dataset_digest="d" * 64,
        counts={"documents": 3},
        contracts=(ContractUsed(name="documents", version="1", file="documents.yaml", sha256="s"),),
        results=(rule, rule.model_copy(update={"rule": "text", "passed": False, "count": 1, "found": EVIL})),
    )


def validation_with_dropped_rows() -> ValidationReport:
    """The same, of data that lost three rows of 200; what names their first row comes from the data."""
    dropped = RowsLeftOut(
        rule="dangling_document",
        table="judgements",
        split="test",
        reason="there is no such document",
        rows=3,
        total=200,
        unanswered=1,
        first=f"doc_id '{EVIL}'",
    )
    return validation().model_copy(update={"left_out": (dropped,)})
