"""The evidence about a candidate as tables, for MLflow's pages: its viewer shows JSON tables, and none of the Parquet files of a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from components.evidence.dossier import Dossier
from components.evidence.numbers import METRIC, Delta, Rivals, against_champion, baseline_rivals, slice_deltas
from components.gates.decision import GateResult

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
    return {key: "" if value is None else value for key, value in gate.model_dump().items()}


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
