"""One cell of the scaling study: contrastive entropy and metrics of one pair of towers, and laws fitted over all cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.artifacts import Artifact, VectorShards, write_atomic
from components.data.dataset import load_dataset
from components.evaluation.metrics import per_query_metrics
from components.evaluation.rankers import DenseRanker
from components.evaluation.significance import mean_interval
from components.evaluation.summarize import CONFIDENCE, JudgedSplit, judged_split
from components.evaluation.units import query_units
from components.index.search import load_index
from components.index.shards import read_vectors
from components.studies.contrastive_entropy import contrastive_entropy, draw_negatives, relevant_rows, require_negatives
from components.studies.scaling_law import LAWS, Fit, Points, fit_law, predict
from components.towers.encoder import load_tower

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from components.evaluation.config import EvaluationConfig

PER_QUERY = "per_query.parquet"
SHOWN = {"recall@50": "R@50", "ndcg@10": "nDCG@10"}


@dataclass(frozen=True)
class EntropyRule:
    """How entropy is measured: number of random negatives, the temperature that scales cosines, and the seed of the draw."""

    negatives: int
    temperature: float
    seed: int


def require_measurable(dataset: Artifact, split: str, negatives: int) -> None:
    """Raise DataError when a query of the split has fewer than `negatives` documents that are not relevant to it."""
    tables = load_dataset(dataset)
    judged = judged_split(tables, split)
    doc_ids = [str(i) for i in tables.documents["doc_id"]]
    require_negatives(relevant_rows(_no_negatives(judged), doc_ids), len(doc_ids), negatives)


def measure_cell(inputs: Mapping[str, Artifact], config: EvaluationConfig, rule: EntropyRule, folder: Path) -> dict[str, Any]:
    """Numbers of one pair of towers on `config.split`; every query's entropy and metrics go into `folder`/per_query.parquet.

    `inputs`: dataset, query_tower, vectors, index. Entropy in nats, with its interval over queries.
    """
    dataset = load_dataset(inputs["dataset"])
    judged = judged_split(dataset, config.split)
    shards = VectorShards.model_validate(inputs["vectors"].model_dump())
    documents = read_vectors(shards)
    tower = load_tower(inputs["query_tower"].path)
    queries = tower.encode(judged.texts, progress="queries")
    relevant = relevant_rows(_relevant(judged), documents.doc_ids)
    excluded = relevant_rows(_no_negatives(judged), documents.doc_ids)
    drawn = draw_negatives(excluded, len(documents.doc_ids), rule.negatives, rule.seed)
    entropy = contrastive_entropy(queries, documents.vectors, relevant, drawn, rule.temperature)
    index = load_index(inputs["index"].path, tower.space_id, inputs["index"].digest)
    ranked = DenseRanker(tower, index).rank(judged.texts, judged.asked(config.depth))
    metrics = per_query_metrics(judged.judgements, judged.rankings(ranked, config.depth))
    _write(judged.query_ids, entropy, metrics, folder)
    units = query_units(judged, dataset, config.query_groups).of(judged.query_ids)
    interval = mean_interval(entropy, config.bootstrap_samples, CONFIDENCE, config.seed, units)
    means = metrics.groupby("metric")["value"].mean()
    shown = {title: float(means[metric]) for metric, title in SHOWN.items()}
    # Of a single unit there is no interval, and JSON has no infinite numbers.
    low, high = interval.ends if interval.known else (None, None)
    return {"entropy": interval.difference, "entropy_low": low, "entropy_high": high, **shown, "queries": len(entropy)}


def _relevant(judged: JudgedSplit) -> dict[str, list[str]]:
    """Relevant document ids of each judged query, in the order of the queries."""
    rows = judged.judgements[judged.judgements["score"] > 0]
    found: dict[str, list[str]] = {query: [] for query in judged.query_ids}
    for query, document in zip(rows["query_id"], rows["doc_id"], strict=True):
        found[str(query)].append(str(document))
    return found


def _no_negatives(judged: JudgedSplit) -> dict[str, list[str]]:
    """Of each query the documents that are no negatives of it: the relevant ones, and the one that it is itself."""
    return {query: [*found, *([query] if query in judged.own.left_out else [])] for query, found in _relevant(judged).items()}


def _write(query_ids: Sequence[str], entropy: NDArray[np.float64], metrics: Any, folder: Path) -> None:
    import pandas as pd

    own = pd.DataFrame({"query_id": query_ids, "metric": "contrastive_entropy", "value": entropy})
    write_atomic(folder / PER_QUERY, pd.concat([own, metrics], ignore_index=True).to_parquet(index=False))


def points_of(cells: Sequence[Mapping[str, Any]]) -> Points:
    """Points from cells with `parameters`, `pairs` and `entropy`."""
    return Points.of(*([cell[name] for cell in cells] for name in ("parameters", "pairs", "entropy")))


def fit_all(cells: Sequence[Mapping[str, Any]], seed: int, refits: int) -> dict[str, Fit]:
    """Each law on the points it is about: that of model size on the most data, that of data size on the largest model, the joint on all."""
    points = points_of(cells)
    if not len(points.loss):
        return {name: fit_law(name, points, seed, refits) for name in LAWS}
    on = {"model_size": points.pairs == points.pairs.max(), "data_size": points.sizes == points.sizes.max()}
    return {name: fit_law(name, points.where(on[name]) if name in on else points, seed, refits) for name in LAWS}


def foretell(cells: Sequence[Mapping[str, Any]], wanted: Sequence[tuple[float, float]], seed: int, refits: int) -> dict[str, Any]:
    """What the laws, fitted on `cells`, say about the (parameters, pairs) `wanted`, none of which is among the cells.

    The law of model size is asked at the most data only. Returns fits and predictions as JSON.
    """
    fits = fit_all(cells, seed, refits)
    most = max((pairs for _, pairs in wanted), default=0)
    predictions = [
        asdict(found)
        for name in ("model_size", "joint")
        for size, pairs in wanted
        if (name == "joint" or pairs == most) and (found := predict(fits[name], size, pairs)) is not None
    ]
    return {"fits": {name: fits[name].describe() for name in ("model_size", "joint")}, "predictions": predictions}
