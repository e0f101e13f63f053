"""Metrics and tables of a candidate as MLflow shows them.

A metric that was measured again and again, as a loss, is a list: MLflow draws it as a curve. Names hold a `/`, by which its pages group
the charts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import Artifact, read_manifest
from components.evaluation.champion_comparison import KIND as COMPARISON
from components.evaluation.champion_comparison import ComparisonSummary, load_comparison
from components.evaluation.metrics import RETAINED
from components.evaluation.report import EncoderSpeed, Summary, load_summary
from components.evidence.dossier import METRIC, Delta, Dossier, Rivals, against_champion, baseline_rivals, deltas, slice_deltas
from components.gates.decision import GateResult, Status
from components.tracking.runs import Measured

if TYPE_CHECKING:
    import pandas as pd


_ENDS = 20  # queries at each end of the differences
_TITLES = 10  # documents of a ranking that are named


def evidence_tables(dossier: Dossier) -> dict[str, pd.DataFrame]:
    """Name -> table: gates, systems, slices, worst_regressions, best_gains; a table without a row is left out.

    Slices and queries are those of candidate and champion; without a champion those of student and BM25, which the column `systems` says.
    """
    import pandas as pd

    rows = {"gates": [_gate(gate) for gate in dossier.manifest.decision.gates], "systems": _systems(dossier)}
    rivals = against_champion(dossier) or next((pair for pair in baseline_rivals(dossier) if pair.first == "student"), None)
    if rivals is not None and METRIC in rivals.scores:
        if dossier.evaluation.slices is not None:
            rows["slices"] = [_delta(rivals, found) for found in slice_deltas(rivals, dossier.evaluation.slices, dossier)]
        changes = _answers(dossier) or _values(rivals)
        rows["worst_regressions"] = [row for row in changes if row["difference"] < 0][:_ENDS]
        rows["best_gains"] = [row for row in reversed(changes) if row["difference"] > 0][:_ENDS]
    return {name: pd.DataFrame(found) for name, found in rows.items() if found}


def _gate(gate: GateResult) -> dict[str, Any]:
    return {key: "" if value is None else value for key, value in {**gate.model_dump(), "reason": gate.told}.items()}


def _systems(dossier: Dossier) -> list[dict[str, Any]]:
    found = []
    for name, system in dossier.evaluation.summary.systems.items():
        for metric, value in system.metrics.items():
            low, high = system.intervals.get(metric, ("", ""))
            found.append({"system": name, "metric": metric, "mean": value, "low": low, "high": high})
    return found


def _delta(rivals: Rivals, found: Delta) -> dict[str, Any]:
    ends = {"low": found.low, "high": found.high, "power": found.power}
    return {
        "slice": found.name,
        "systems": f"{rivals.first} - {rivals.second}",
        "metric": found.metric,
        "queries": found.queries,
        rivals.first: found.means[0],
        rivals.second: found.means[1],
        "difference": found.difference,
        **{key: "" if value is None else value for key, value in ends.items()},
    }


def _answers(dossier: Dossier) -> list[dict[str, Any]]:
    """The queries that the comparison kept with the answers of both, worst first; none without a comparison."""
    tables = dossier.compared.tables
    if tables is None:
        return []
    return [
        {
            "query_id": row["query_id"],
            "query": row["text"],
            "difference": float(row["difference"]),
            "relevant": _named(row["relevant"]),
            **{f"{who} found": _named(row[who]) for who in ("candidate", "champion")},
        }
        for row in tables.side_by_side.to_dict("records")
    ]


def _named(documents: Any) -> str:
    return "; ".join(_name(document) for document in list(documents)[:_TITLES])


def _name(document: Mapping[str, Any]) -> str:
    return f"{document['title']} ({document['doc_id']})" if document["title"] else str(document["doc_id"])


def _values(rivals: Rivals) -> list[dict[str, Any]]:
    """All queries with their value in nDCG@10 for both systems, worst first."""
    first, second = rivals.scores[METRIC]
    rows = [
        {"query_id": query_id, "difference": float(one - other), rivals.first: float(one), rivals.second: float(other)}
        for query_id, one, other in zip(rivals.query_ids, first, second, strict=True)
    ]
    return sorted(rows, key=lambda row: (row["difference"], row["query_id"]))


# --- The figures of a candidate as metrics of MLflow runs: each step's on its own run, what decides on the run of the flow.


Metrics = dict[str, Measured]
_AGAINST = "minus_champion"
_GATES: tuple[Status, ...] = ("pass", "fail", "not_decidable")
_LONGEST = 200  # of the 250 characters that MLflow allows a name


def step_metrics(artifact: Artifact) -> Mapping[str, Measured]:
    """What a finished step measured: curves of a training, figures of an evaluation or a comparison; nothing for other artifacts."""
    read = _READ.get(artifact.kind)
    return read(artifact.path) if read else {}


def candidate_metrics(dossier: Dossier) -> Mapping[str, Measured]:
    """What a reviewer asks first: quality, differences from the champion with their intervals, overall and by slice, speed and gates."""
    decision, summary = dossier.manifest.decision, dossier.evaluation.summary
    statuses = Counter(gate.status for gate in decision.gates)
    found: Metrics = {f"gates/{status}": statuses[status] for status in _GATES}
    found |= {f"candidate/{metric}": value for metric, value in _levels(summary).get("student", {}).items()}
    found |= _retention(summary) | _baselines(dossier)
    if dossier.compared.summary is not None:
        found |= _compared(dossier.compared.summary)
    return found | _differences(dossier) | _training(dossier.making.tower_losses or (), dossier.making.student_epochs or ())


def model_metrics(dossier: Dossier) -> dict[str, dict[str, float]]:
    """Role -> what MLflow compares registered versions by: `recall@50` of a query encoder is the student's, of a tower the teacher's.

    A candidate has the student's and all that `candidate_metrics` says; an index its recall against exact search.
    """
    summary, speed = dossier.evaluation.summary, dossier.evaluation.summary.speed
    levels = _levels(summary)
    student, teacher = levels.get("student", {}), levels.get("teacher", {})
    timed = {} if speed is None else _plain(_speed("student", speed.student))
    decided = _plain(candidate_metrics(dossier))
    return {
        "query_encoder": student | timed,
        "query_tower": teacher,
        "document_tower": teacher,
        "index": {} if summary.ann is None else {f"{metric}_of_exact": value for metric, value in summary.ann.recall.items()},
        "candidate": student | timed | decided,
    }


def _plain(metrics: Mapping[str, Measured]) -> dict[str, float]:
    """The numbers alone, without the curves."""
    return {name: float(value) for name, value in metrics.items() if not isinstance(value, Sequence)}


def _baselines(dossier: Dossier) -> Metrics:
    """Student and teacher minus each baseline, in both metrics that the gates ask for: `student_minus_bm25/ndcg@10` and its two ends."""
    found: Metrics = {}
    for pair in (pair for pair in baseline_rivals(dossier) if pair.second != "teacher"):
        for delta in deltas(pair, dossier, RETAINED):
            ends = {"": delta.difference, "_low": delta.low, "_high": delta.high}
            group = f"{pair.first}_minus_{pair.second}"
            found |= {f"{group}/{delta.metric}{end}": value for end, value in ends.items() if value is not None}
    return found


def _differences(dossier: Dossier) -> Metrics:
    rivals, slices = against_champion(dossier), dossier.evaluation.slices
    if rivals is None:
        return {}
    found: Metrics = {}
    for delta in deltas(rivals, dossier):
        ends = {"": delta.difference, "_low": delta.low, "_high": delta.high}
        found |= {f"{_AGAINST}/{delta.metric}{end}": value for end, value in ends.items() if value is not None}
    if slices is not None and METRIC in rivals.scores:
        found |= {_slice_name(delta.name): delta.difference for delta in slice_deltas(rivals, slices, dossier)}
    return found


def _slice_name(name: str) -> str:
    """A slice's name comes from the data: a `/` in it would make a path that MLflow refuses."""
    return f"{_AGAINST}_in_slices/{name.replace('=', ': ', 1).replace('/', '_')}"[:_LONGEST]


def _towers(folder: Path) -> Metrics:
    from components.towers.train import losses_of

    if "companion" in read_manifest(folder).parents:  # joined, and trained in steps of their own
        return {}
    return _training(losses_of(folder / "query_tower") or (), ())


def _student(folder: Path) -> Metrics:
    from components.distillation.train import training_epochs

    return _training((), training_epochs(folder) or ())


def _training(losses: Sequence[float], epochs: Sequence[Mapping[str, Any]]) -> Metrics:
    """Curves over the steps of stage 1 and the student's epochs. Losses of two phases are different quantities: each has its own curve."""
    found: Metrics = {"training/towers_loss": losses} if losses else {}
    for phase in dict.fromkeys(epoch["phase"] for epoch in epochs):
        found[f"training/student_loss_{phase}"] = [float(epoch["loss"]) for epoch in epochs if epoch["phase"] == phase]
    for name in ("ndcg@10", "recall@50", "mean_cosine"):
        if epochs and all(name in epoch for epoch in epochs):
            found[f"training/student_dev_{name}"] = [float(epoch[name]) for epoch in epochs]
    return found


def _evaluation(folder: Path) -> Metrics:
    summary = load_summary(folder)
    found: Metrics = {f"{system}/{metric}": value for system, values in _levels(summary).items() for metric, value in values.items()}
    if summary.ann is not None:
        found |= {f"index/{metric}_of_exact": value for metric, value in summary.ann.recall.items()}
    if summary.speed is not None:
        for name, speed in (("teacher", summary.speed.teacher), ("student", summary.speed.student)):
            found |= {} if speed is None else _speed(name, speed)
    return found | _retention(summary)


def _comparison(folder: Path) -> Metrics:
    summary = load_comparison(folder)
    if summary is None:
        return {}
    differences: Metrics = {}
    for found in summary.metrics:
        ends = {"": found.difference, "_low": found.low, "_high": found.high}
        differences |= {f"{_AGAINST}/{found.metric}{end}": value for end, value in ends.items() if value is not None}
    return differences | _compared(summary) | _speed("candidate", summary.candidate) | _speed("champion", summary.champion)


def _levels(summary: Summary) -> dict[str, dict[str, float]]:
    return {system: dict(found.metrics) for system, found in summary.systems.items()}


def _retention(summary: Summary) -> Metrics:
    found: Metrics = {f"retention/{metric}": value for metric, value in summary.retention.items()}
    for split, extra in summary.extra.items():
        found |= {f"retention/{split}_{metric}": value for metric, value in extra.retention.items()}
    return found


def _compared(summary: ComparisonSummary) -> Metrics:
    found: Metrics = {f"agreement/{name.replace(' ', '_')}": agreement.mean for name, agreement in summary.agreement.items()}
    if min(summary.champion.p95_ms, summary.champion.qps) > 0:
        found["over_champion/p95"] = summary.candidate.p95_ms / summary.champion.p95_ms
        found["over_champion/queries_per_second"] = summary.candidate.qps / summary.champion.qps
    return found


def _speed(name: str, speed: EncoderSpeed) -> Metrics:
    return {f"speed/{name}_p50_ms": speed.p50_ms, f"speed/{name}_p95_ms": speed.p95_ms, f"speed/{name}_queries_per_second": speed.qps}


_READ: dict[str, Callable[[Path], Metrics]] = {
    "towers": _towers,
    "encoder": _student,
    "evaluation": _evaluation,
    COMPARISON: _comparison,
}
