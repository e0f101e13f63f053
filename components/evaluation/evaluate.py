"""Evaluation of all systems on one split and on extra ones: rankings, metrics per query, spread of the vectors, speed, report.

The recall of the index is measured against exact search on its own stored vectors.

Recall of document ids is unfair to an index where documents tie: which of them is returned says nothing about it. So every document that
scores within a rounding error of the k-th nearest counts as one of the k nearest, as in ann-benchmarks (Aumueller et al., 2020). An exact
index is measured in the same way, and comes out at 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.artifacts import EvalReport, remove_files, seal
from components.evaluation.config import EvaluationConfig
from components.evaluation.metrics import QRELS, JudgedSplit, Ranking, per_query_metrics, write_trec_qrels, write_trec_run
from components.evaluation.rankers import DenseRanker, FusedRanker, Ranker
from components.evaluation.report import (
    AnnSummary,
    Bm25Setup,
    Evaluation,
    FusionSetup,
    HealthSummary,
    SpeedSummary,
    UntrainedSetup,
    write_report,
)
from components.evaluation.slices import assign_slices
from components.evaluation.speed import answering, is_timed, measure_speed, measure_speeds
from components.evaluation.summarize import CONFIDENCE, judged_split, require_judged, summarize, summarize_extra
from components.evaluation.units import Units, mean_interval, paired_bootstrap, query_units

if TYPE_CHECKING:
    import pandas as pd

    from components.data.dataset import Dataset
    from components.index.search import VectorIndex


DEPTHS = (10, 100)
MOST_QUERIES = 2000  # exact search reads every vector; more queries than these narrow the interval by less than it costs
TIE = 2e-6  # scores are rounded to six digits, and two ways to compute one may round it to neighbours
_MARGIN = 16
Neighbours = Mapping[str, float]  # document id -> exact score, best first


class AnnMeasured(NamedTuple):
    """The summary, and the values it stands on: DataFrame[query_id, metric, value] with the metrics recall@10 and recall@100."""

    summary: AnnSummary
    per_query: pd.DataFrame


def measure_ann(
    index: VectorIndex,
    vectors: NDArray[np.float32],
    judged: JudgedSplit,
    per_query: pd.DataFrame,
    config: EvaluationConfig,
    units: Units | None = None,
) -> AnnMeasured:
    """Search `index` with the student's query vectors, float32 (judged queries, d), and hold the answers against exact search.

    `per_query` (query_id, metric, value) is what the student reached through this index; `units` are those of the judged queries. At most
    MOST_QUERIES evenly spread queries are searched. Each depth is a search of its own: an index looks less far when it is asked for fewer
    documents.
    Raises ArtifactError when the index keeps no vectors for an exact search.
    """
    step = slice(None, None, -(-len(vectors) // MOST_QUERIES))
    query_ids, sample = judged.query_ids[step], vectors[step]
    nearest = exact_neighbours(index, sample, max(DEPTHS))
    values = {f"recall@{k}": recall_at(index, sample, k, nearest) for k in DEPTHS}
    numbers = None if units is None else units.of(query_ids)
    found = {m: mean_interval(v, config.bootstrap_samples, CONFIDENCE, config.seed, numbers).share for m, v in values.items()}
    exact, served = _ndcg_exact(judged, query_ids, nearest), _ndcg_served(per_query, query_ids)
    lost = paired_bootstrap(exact, served, config.bootstrap_samples, CONFIDENCE, config.seed, numbers)
    summary = AnnSummary(
        queries=len(query_ids),
        documents=len(index),
        recall={metric: interval.difference for metric, interval in found.items()},
        intervals={metric: interval.ends for metric, interval in found.items() if interval.known},
        ndcg_lost=lost.difference,
        ndcg_lost_interval=lost.ends if lost.known else None,
    )
    return AnnMeasured(summary, _table(query_ids, values))


def exact_neighbours(index: VectorIndex, vectors: NDArray[np.float32], k: int) -> list[Neighbours]:
    """For each query its k nearest documents by exact search (all when there are fewer) and every document that ties with the k-th."""
    return _neighbours(index, vectors, k, min(k + _MARGIN, len(index)))


def recall_at(index: VectorIndex, vectors: NDArray[np.float32], k: int, nearest: Sequence[Neighbours]) -> NDArray[np.float64]:
    """Share of the k nearest that `index` finds for each query when asked for k documents, float64 (n,) in [0, 1].

    `nearest` are the `exact_neighbours` of at least k.
    """
    found = index.search(vectors, k)[1]
    return np.array([_recall(ids, near, k) for ids, near in zip(found, nearest, strict=True)], np.float64)


def _neighbours(index: VectorIndex, vectors: NDArray[np.float32], k: int, depth: int) -> list[Neighbours]:
    """Looks deeper for the queries where the tie at place k goes on beyond `depth`."""
    scores, ids = index.exact(vectors, depth)
    found: list[Neighbours] = [dict(zip(row, values.tolist(), strict=True)) for row, values in zip(ids, scores, strict=True)]
    undecided = np.flatnonzero(scores[:, -1] >= scores[:, k - 1] - TIE) if depth < len(index) else np.empty(0, np.int64)
    if len(undecided):
        deeper = _neighbours(index, vectors[undecided], k, min(depth * 8, len(index)))
        for place, near in zip(undecided, deeper, strict=True):
            found[place] = near
    return found


def _recall(found: Sequence[str], near: Neighbours, k: int) -> float:
    scores = list(near.values())
    wanted = min(k, len(scores))
    lowest = scores[wanted - 1] - TIE
    return min(sum(near.get(doc_id, -np.inf) >= lowest for doc_id in set(found)), wanted) / wanted


def _ndcg_exact(judged: JudgedSplit, query_ids: Sequence[str], nearest: Sequence[Neighbours]) -> NDArray[np.float64]:
    """What the student would reach if the index lost nothing."""
    rankings = {query: judged.without_own(query, list(near.items()))[: max(DEPTHS)] for query, near in zip(query_ids, nearest, strict=True)}
    judgements = judged.judgements[judged.judgements["query_id"].astype(str).isin(query_ids)]
    return _ndcg_served(per_query_metrics(judgements, rankings), query_ids)


def _ndcg_served(per_query: pd.DataFrame, query_ids: Sequence[str]) -> NDArray[np.float64]:
    values = per_query[per_query["metric"] == "ndcg@10"].set_index("query_id")["value"]
    return values.reindex(list(query_ids)).to_numpy(np.float64)


def _table(query_ids: Sequence[str], values: Mapping[str, NDArray[np.float64]]) -> pd.DataFrame:
    import pandas as pd

    tables = [pd.DataFrame({"query_id": query_ids, "metric": metric, "value": column}) for metric, column in values.items()]
    return pd.concat(tables, ignore_index=True)


# --- Evaluation of all systems on one split and on extra ones: rankings, metrics per query, spread of the vectors, speed, report.


HEALTH_QUERIES = 2048  # the spread of more vectors takes long and says no more
MEASURED_HEALTH = ("teacher", "student")
FUSED = "student_fused"


@dataclass(frozen=True)
class _Measured:
    """One split: its judgements and units, the values per query of every system, and the vectors of those whose health is reported."""

    judged: JudgedSplit
    units: Units
    per_query: pd.DataFrame
    vectors: dict[str, NDArray[np.float32]]


def evaluate(
    systems: Mapping[str, Ranker],
    dataset: Dataset,
    config: EvaluationConfig,
    folder: Path,
    parents: Mapping[str, str],
    absent: Mapping[str, str] | None = None,
) -> EvalReport:
    """Measure every system on the judged queries of `config.split` and `config.extra_splits` and write the report into `folder`.

    Names with a meaning: bm25, student_untrained, student_cut, teacher, student, student_fused. Speed is measured when `teacher` and
    `student` are both a `DenseRanker`, that of whole answers when `student_fused` is a `FusedRanker`, the recall of the student's index
    when `student` is one. Writes report.json, per_query.parquet, slices.parquet, units.parquet, ann.parquet, qrels.trec and
    `<system>.trec`, for extra splits per_query_extra.parquet, `<split>.qrels.trec` and `<split>.<system>.trec`; raises DataError when
    nothing is judged in a split, or no document has the metadata field that `config.query_groups` names. `absent`: the systems that could
    not be measured, each with the reason.
    """
    import pandas as pd

    require_judged(dataset, (config.split, *config.extra_splits), config.query_groups)
    remove_files(folder)
    main = _measure(systems, dataset, config.split, config, f"{folder}/")
    extra = {split: _measure(systems, dataset, split, config, f"{folder}/{split}.") for split in config.extra_splits}
    ann = _ann(systems, main, config)
    setups = {name: getattr(ranker, "setup", None) for name, ranker in systems.items()}
    summary = summarize(main.per_query, main.judged, len(dataset.documents), config, main.units).model_copy(
        update={
            "extra": {split: summarize_extra(found.per_query, found.judged, config, found.units) for split, found in extra.items()},
            "health": {name: _health(vectors) for name, vectors in main.vectors.items() if len(vectors) > 1},
            "speed": _speed(systems, main.judged, config, absent or {}),
            "ann": ann.summary if ann else None,
            "bm25": next((setup for setup in setups.values() if isinstance(setup, Bm25Setup)), None),
            "untrained": {name: setup for name, setup in setups.items() if isinstance(setup, UntrainedSetup)},
            "fusion": next((setup for setup in setups.values() if isinstance(setup, FusionSetup)), None),
            "absent": dict(absent or {}),
        }
    )
    slices = assign_slices(main.judged, dataset, config.slices)
    units = pd.concat([found.units.table(split) for split, found in {config.split: main, **extra}.items()], ignore_index=True)
    tables = [found.per_query.assign(split=split) for split, found in extra.items()]
    of_extra = pd.concat(tables, ignore_index=True) if tables else None
    write_report(folder, Evaluation(summary, main.per_query, ann.per_query if ann else None, slices, of_extra, units))
    artifact = seal(
        folder,
        "evaluation",
        counts={"queries": summary.queries, "systems": len(systems), **{f"queries_{s}": e.queries for s, e in summary.extra.items()}},
        parents=parents,
        attributes={
            "split": config.split,
            "judgements_digest": summary.judgements_digest,
            **{name: setup.words for name, setup in setups.items() if setup is not None},
        },
    )
    return EvalReport(**artifact.model_dump())


def _measure(systems: Mapping[str, Ranker], dataset: Dataset, split: str, config: EvaluationConfig, run_files: str) -> _Measured:
    """Rank with every system, and write judgements and rankings to TREC files whose paths begin with `run_files`."""
    import pandas as pd

    judged, depth = judged_split(dataset, split), config.depth
    units = query_units(judged, dataset, config.query_groups)
    write_trec_qrels(Path(f"{run_files}{QRELS}"), judged.judgements)
    tables, vectors = [], {}
    fused = [ranker for ranker in systems.values() if isinstance(ranker, FusedRanker)]
    kept = {id(part) for ranker in fused for part in (ranker.dense, ranker.lexical)}
    answers: dict[int, Sequence[Ranking]] = {}  # by ranker, of those that are fused, so that none is asked twice
    for name, ranker in systems.items():
        if isinstance(ranker, DenseRanker):
            encoded = ranker.encode(judged.texts)
            found = ranker.rank_vectors(encoded, judged.asked(depth))
            vectors.update({name: encoded} if name in MEASURED_HEALTH else {})
        elif isinstance(ranker, FusedRanker):
            # A query's own document is left out before, as it was where the fusion was chosen: it would stretch the scale of the others.
            both = ((part, answers.get(id(part))) for part in (ranker.dense, ranker.lexical))
            parts = [judged.rankings(part.rank(judged.texts, judged.asked(depth)) if own is None else own, depth) for part, own in both]
            first, second = ([part[query] for query in judged.query_ids] for part in parts)
            found = ranker.fused(first, second, depth)
        else:
            found = ranker.rank(judged.texts, judged.asked(depth))
        if id(ranker) in kept:
            answers[id(ranker)] = found
        ranking = judged.rankings(found, depth)
        write_trec_run(Path(f"{run_files}{name}.trec"), ranking, name)
        tables.append(per_query_metrics(judged.judgements, ranking).assign(system=name))
    per_query = pd.concat(tables, ignore_index=True)[["query_id", "system", "metric", "value"]]
    return _Measured(judged, units, per_query, vectors)


def _health(vectors: NDArray[np.float32]) -> HealthSummary:
    from components.towers.contract import measure_spread

    # Both encoders are measured on the same queries: the rank that n vectors can have depends on n.
    sample = vectors[:: -(-len(vectors) // HEALTH_QUERIES)]
    spread = measure_spread(sample)
    return HealthSummary(mean_cosine=spread.mean_cosine, effective_rank=spread.effective_rank, queries=len(sample))


def _speed(systems: Mapping[str, Ranker], judged: JudgedSplit, config: EvaluationConfig, absent: Mapping[str, str]) -> SpeedSummary | None:
    teacher, student = systems.get("teacher"), systems.get("student")
    if not isinstance(student, DenseRanker) or not (isinstance(teacher, DenseRanker) or absent):
        return None
    timed = teacher if isinstance(teacher, DenseRanker) and is_timed(teacher) else None
    speed = measure_speed(timed, student, judged.texts, config)
    fused = systems.get(FUSED)
    if not isinstance(fused, FusedRanker):
        return speed
    whole: dict[str, Ranker] = {"student": student, FUSED: fused}
    answers = measure_speeds({name: answering(ranker, config.depth) for name, ranker in whole.items()}, judged.texts, config)
    return speed.model_copy(update={"answers": answers})


def _ann(systems: Mapping[str, Ranker], main: _Measured, config: EvaluationConfig) -> AnnMeasured | None:
    student = systems.get("student")
    if not isinstance(student, DenseRanker) or not student.index.has_vectors:
        return None
    own = main.per_query[main.per_query["system"] == "student"]
    return measure_ann(student.index, main.vectors["student"], main.judged, own, config, main.units)
