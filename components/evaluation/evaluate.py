"""Evaluation of all systems on one split: rankings, metrics per query, speed, report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from components.artifacts import EvalReport, seal
from components.evaluation.config import EvaluationConfig
from components.evaluation.latency import measure_speed
from components.evaluation.metrics import Ranking, per_query_metrics
from components.evaluation.rankers import DenseRanker, Ranker
from components.evaluation.report import SpeedSummary, write_report
from components.evaluation.summarize import JudgedSplit, judged_split, summarize
from components.evaluation.trec import write_trec_run

if TYPE_CHECKING:
    import pandas as pd

    from components.data.dataset import Dataset


def evaluate(
    systems: Mapping[str, Ranker], dataset: Dataset, config: EvaluationConfig, folder: Path, parents: Mapping[str, str]
) -> EvalReport:
    """Measure every system on the judged queries of `config.split` and write the report into `folder`.

    Names with a meaning: bm25, student_untrained, teacher, student. Speed is measured when `teacher` and `student` are both a
    `DenseRanker`. Writes report.json, per_query.parquet and `<system>.trec`; raises DataError when nothing is judged.
    """
    judged = judged_split(dataset, config.split)
    _remove_leftovers(folder)
    rankings = {name: _rank(ranker, judged, config.depth) for name, ranker in systems.items()}
    for name, ranking in rankings.items():
        write_trec_run(folder / f"{name}.trec", ranking, name)
    per_query = _per_query(rankings, judged)
    summary = summarize(per_query, judged, len(dataset.documents), _speed(systems, judged, config), config)
    write_report(folder, summary, per_query)
    artifact = seal(
        folder,
        "evaluation",
        counts={"queries": summary.queries, "systems": len(rankings)},
        parents=parents,
        attributes={"split": config.split, "judgements_digest": summary.judgements_digest},
    )
    return EvalReport(**artifact.model_dump())


def _remove_leftovers(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()


def _rank(ranker: Ranker, judged: JudgedSplit, depth: int) -> dict[str, Ranking]:
    return dict(zip(judged.query_ids, ranker.rank(judged.texts, depth), strict=True))


def _per_query(rankings: Mapping[str, Mapping[str, Ranking]], judged: JudgedSplit) -> pd.DataFrame:
    import pandas as pd

    tables = [per_query_metrics(judged.judgements, ranking).assign(system=name) for name, ranking in rankings.items()]
    return pd.concat(tables, ignore_index=True)[["query_id", "system", "metric", "value"]]


def _speed(systems: Mapping[str, Ranker], judged: JudgedSplit, config: EvaluationConfig) -> SpeedSummary | None:
    teacher, student = systems.get("teacher"), systems.get("student")
    if not isinstance(teacher, DenseRanker) or not isinstance(student, DenseRanker):
        return None
    return measure_speed(teacher, student, judged.texts, config)
