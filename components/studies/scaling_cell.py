"""One cell of the scaling study: a share of the training pairs, contrastive entropy and metrics of one pair of towers.

Source: Fang et al., "Scaling Laws For Dense Retrieval", SIGIR 2024: minus the log-probability of the relevant document among it and 256
random ones. The paper's scores are inner products of vectors without a fixed length; ours are cosines, so they are divided by the
temperature that the towers were trained with (the logits of training), and the softmax itself has the temperature 1.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from components.artifacts import Artifact, DatasetArtifact, VectorShards, seal, write_atomic
from components.data.dataset import TABLES, load_dataset, stable_order, write_table
from components.errors import DataError
from components.evaluation.metrics import JudgedSplit, per_query_metrics
from components.evaluation.rankers import DenseRanker
from components.evaluation.summarize import CONFIDENCE, judged_split
from components.evaluation.units import mean_interval, query_units
from components.index.search import load_index
from components.index.shards import read_vectors
from components.studies.scaling_law import LAWS, Fit, Points, fit_law, predict
from components.towers.encoder import load_tower

if TYPE_CHECKING:
    import pandas as pd

    from components.evaluation.config import EvaluationConfig


NEGATIVES = 256


def contrastive_entropy(
    queries: NDArray[np.float32],
    documents: NDArray[np.float32],
    relevant: Sequence[frozenset[int]],
    negatives: Sequence[NDArray[np.int64]],
    temperature: float,
) -> NDArray[np.float64]:
    """Nats per query, float64 (n,): the mean over its relevant documents, each against the same negatives.

    `queries` (n, d) and `documents` (m, d) unit rows, `relevant` document numbers per query (at least one each), `negatives` from
    `draw_negatives`. Knowing nothing gives log(1 + number of negatives).
    """
    values = np.empty(len(queries), np.float64)
    for row, (wanted, others) in enumerate(zip(relevant, negatives, strict=True)):
        query = queries[row].astype(np.float64)
        against = documents[others] @ query / temperature
        positives = documents[sorted(wanted)] @ query / temperature
        values[row] = float(np.mean([_log_sum([score, *against]) - score for score in positives]))
    return values


def draw_negatives(relevant: Sequence[frozenset[int]], documents: int, count: int, seed: int) -> list[NDArray[np.int64]]:
    """`count` different document numbers below `documents` for each query, none of them relevant to it.

    A function of the seed and the query's place alone, so that every model meets the same negatives.
    """
    require_negatives(relevant, documents, count)
    drawn = []
    for number, wanted in enumerate(relevant):
        # The relevant ones are at most len(wanted) of those drawn.
        picked = np.random.default_rng([seed, number]).permutation(documents)[: count + len(wanted)]
        drawn.append(np.array([d for d in picked if d not in wanted][:count], dtype=np.int64))
    return drawn


def require_negatives(relevant: Sequence[frozenset[int]], documents: int, count: int) -> None:
    """Raise DataError when a query has fewer than `count` documents that are not relevant to it."""
    left = documents - max(map(len, relevant), default=0)
    if left < count:
        raise DataError(
            f"Contrastive entropy is asked for with {count} random negatives, but a query has only {left} documents that are not "
            "relevant to it. Lower study.scaling_negatives, or take more documents."
        )


def relevant_rows(judged: Mapping[str, Sequence[str]], doc_ids: Sequence[str]) -> list[frozenset[int]]:
    """For each query its relevant documents (`judged`: query id -> document ids) as rows of `doc_ids`."""
    row = {doc_id: number for number, doc_id in enumerate(doc_ids)}
    return [frozenset(row[d] for d in wanted) for wanted in judged.values()]


def _log_sum(scores: Sequence[float]) -> float:
    array = np.asarray(scores, np.float64)
    top = array.max()
    return float(top + np.log(np.exp(array - top).sum()))


# --- A data set with a share of its training pairs, all else equal: what a scaling law over data sizes is measured with.


JUDGEMENTS = "judgements"


def write_train_share(dataset: DatasetArtifact, share: float, seed: int, folder: Path) -> DatasetArtifact:
    """Copy the data set with `share` of the relevant judgements of the split train (rounded, at least one).

    The smaller share is contained in the larger one of the same seed. Raises DataError when nothing is judged for train.
    """
    for name in TABLES:
        if name != JUDGEMENTS:
            shutil.copyfile(dataset.path / f"{name}.parquet", folder / f"{name}.parquet")
    judgements = load_dataset(dataset.path).all_judgements
    train = (judgements["split"] == "train") & (judgements["score"] > 0)
    names = _names(judgements)
    kept = _chosen(names[train].tolist(), share, seed)
    left = judgements[~train | names.isin(kept)]
    write_table(left, folder / f"{JUDGEMENTS}.parquet")
    counts = {**dataset.counts, "judgements": len(left), "train_pairs": len(kept)}
    counts["train_queries"] = int(left.loc[(left["split"] == "train") & (left["score"] > 0), "query_id"].nunique())
    attributes = {**dataset.attributes, "train_share": share}
    made = seal(folder, "dataset", counts=counts, parents={"dataset": dataset.digest}, attributes=attributes)
    return cast("DatasetArtifact", made)


def train_pair_count(dataset: DatasetArtifact, share: float = 1.0) -> int:
    """How many relevant train judgements a `share` of all of them is."""
    judgements = load_dataset(dataset.path).all_judgements
    return _count(int(((judgements["split"] == "train") & (judgements["score"] > 0)).sum()), share)


def _names(judgements: pd.DataFrame) -> pd.Series:
    return judgements["query_id"] + "\t" + judgements["doc_id"]


def _chosen(names: list[str], share: float, seed: int) -> set[str]:
    order = stable_order(names, seed)
    return set(order[: _count(len(order), share)])


def _count(pairs: int, share: float) -> int:
    if not pairs:
        raise DataError("The data has no relevant train judgements; qrels/train.tsv must name at least one document per query.")
    return max(1, round(share * pairs))


# --- One cell of the scaling study: contrastive entropy and metrics of one pair of towers, and laws fitted over all cells.


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

    The law of model size is asked at the data alone that it was fitted at, the most of `cells`. Returns fits and predictions as JSON.
    """
    fits = fit_all(cells, seed, refits)
    most = max((cell["pairs"] for cell in cells), default=0)
    predictions = [
        asdict(found)
        for name in ("model_size", "joint")
        for size, pairs in wanted
        if (name == "joint" or pairs == most) and (found := predict(fits[name], size, pairs)) is not None
    ]
    return {"fits": {name: fits[name].describe() for name in ("model_size", "joint")}, "predictions": predictions}
