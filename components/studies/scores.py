"""What the studies measure, kept in sealed folders: metrics per query of one system (`scores.parquet`), or any numbers (`result.json`).

Where a system is measured alone and fused with BM25, what it found is kept first (`rankings.parquet`), so that it is asked once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.artifacts import Artifact, Scalar, parents_of, read_json, seal, write_atomic, write_json
from components.data.dataset import load_dataset
from components.distillation.query_sources import Noise, add_noise
from components.errors import ArtifactError
from components.evaluation.metrics import JudgedSplit, Ranking, per_query_metrics
from components.evaluation.rankers import DEV, best_on_dev, dev_sample, fuse
from components.evaluation.report import FusionSetup
from components.evaluation.summarize import judged_split
from components.evaluation.units import Numbers, query_units

if TYPE_CHECKING:
    import pandas as pd

    from components.data.dataset import Dataset
    from components.evaluation.config import EvaluationConfig
    from components.evaluation.rankers import Ranker

KIND = "study"
SCORES_FILE = "scores.parquet"
RESULT_FILE = "result.json"
RANKINGS_FILE = "rankings.parquet"
TAKEN_APART = "taken_apart"  # attribute: the units that the data makes of the queries, where evaluation.query_groups takes some apart
Rankings = Mapping[str, Mapping[str, Ranking]]  # by split and query


class Scores(dict[tuple[str, str], NDArray[np.float64]]):
    """(split, metric) -> one value per query, in the order of the query ids; `units` maps a split to the unit of each of its queries."""

    def __init__(self, values: Mapping[tuple[str, str], NDArray[np.float64]], units: Mapping[str, Numbers] | None = None) -> None:
        super().__init__(values)
        self.units = dict(units or {})


def splits_of(config: EvaluationConfig) -> tuple[str, ...]:
    """The evaluation's split, then the extra ones."""
    return tuple(dict.fromkeys((config.split, *config.extra_splits)))


def write_scores(
    opener: Callable[[], Ranker], inputs: Mapping[str, Artifact], config: EvaluationConfig, folder: Path, noise: Noise | None = None
) -> Artifact:
    """Rank the judged queries of every split, with `noise` if given, and keep each metric of each query, and the unit that it was drawn in.

    `opener` opens the ranker; `inputs` are the `dataset` and what the ranker is made from.
    """
    ranker, dataset = opener(), load_dataset(inputs["dataset"].path)

    def ranked(judged: JudgedSplit) -> dict[str, Ranking]:
        texts = judged.texts if noise is None else add_noise(judged.texts, noise)
        return judged.rankings(ranker.rank(texts, judged.asked(config.depth)), config.depth)

    return _write_scores({split: ranked(judged_split(dataset, split)) for split in splits_of(config)}, dataset, inputs, config, folder)


def write_rankings(opener: Callable[[], Ranker], inputs: Mapping[str, Artifact], config: EvaluationConfig, folder: Path) -> Artifact:
    """Keep what a ranker finds for the judged queries of every split, and for the dev queries on which the fusion is chosen."""
    import pandas as pd

    ranker, dataset = opener(), load_dataset(inputs["dataset"].path)
    sample = dev_sample(dataset)
    asked = {split: judged_split(dataset, split) for split in splits_of(config)}
    asked |= {DEV: sample} if sample is not None and DEV not in asked else {}
    rows: list[tuple[str, str, str, float]] = []
    for split, judged in asked.items():
        found = judged.rankings(ranker.rank(judged.texts, judged.asked(config.depth)), config.depth)
        rows += [(split, query, doc_id, score) for query, ranking in found.items() for doc_id, score in ranking]
    frame = pd.DataFrame(rows, columns=["split", "query_id", "doc_id", "score"])
    write_atomic(folder / RANKINGS_FILE, frame.to_parquet(index=False))
    counts = {"queries": sum(len(judged.query_ids) for judged in asked.values())}
    setup = getattr(ranker, "setup", None)
    attributes = {"setup": setup.words} if setup is not None else {}
    parents = parents_of(inputs)
    return seal(folder, KIND, counts=counts, parents=parents, attributes=attributes)


def load_rankings(folder: Path) -> dict[str, dict[str, list[tuple[str, float]]]]:
    """Split -> query -> what was found, best first; a query that found nothing is not among them."""
    import pandas as pd

    rankings: dict[str, dict[str, list[tuple[str, float]]]] = {}
    frame = pd.read_parquet(folder / RANKINGS_FILE)
    for split, query, doc_id, score in frame.itertuples(index=False):
        rankings.setdefault(split, {}).setdefault(query, []).append((doc_id, score))
    return rankings


def write_found(inputs: Mapping[str, Artifact], config: EvaluationConfig, folder: Path) -> Artifact:
    """The scores of `rankings` (an artifact of `write_rankings`), fused with those of `lexical` where that is among the inputs.

    How they are fused is chosen on dev (see `components.evaluation.rankers`) and stands in the attribute `setup`.
    """
    dataset, found = load_dataset(inputs["dataset"].path), load_rankings(inputs["rankings"].path)
    if "lexical" not in inputs:
        return _write_scores(found, dataset, inputs, config, folder, {"setup": inputs["rankings"].attributes.get("setup")})
    lexical, sample = load_rankings(inputs["lexical"].path), dev_sample(dataset)
    setup = FusionSetup() if sample is None else best_on_dev(_of(found, DEV, sample), _of(lexical, DEV, sample), sample)
    fused: dict[str, dict[str, Ranking]] = {}
    for split in splits_of(config):
        judged = judged_split(dataset, split)
        first, second = _of(found, split, judged), _of(lexical, split, judged)
        fused[split] = {query: fuse(first[query], second[query], setup)[: config.depth] for query in judged.query_ids}
    return _write_scores(fused, dataset, inputs, config, folder, {"setup": setup.words})


def _of(rankings: Rankings, split: str, judged: JudgedSplit) -> dict[str, Ranking]:
    """The rankings of these queries; empty where nothing was found."""
    return {query: rankings.get(split, {}).get(query, []) for query in judged.query_ids}


def _write_scores(
    found: Rankings,
    dataset: Dataset,
    inputs: Mapping[str, Artifact],
    config: EvaluationConfig,
    folder: Path,
    attributes: Mapping[str, Scalar] | None = None,
) -> Artifact:
    import pandas as pd

    frames = [_split_scores(found.get(split, {}), dataset, split, config) for split in splits_of(config)]
    frame = pd.concat(frames, ignore_index=True)[["split", "query_id", "unit", "metric", "value"]]
    write_atomic(folder / SCORES_FILE, frame.to_parquet(index=False))
    means = frame.groupby(["split", "metric"])["value"].mean()
    write_json(folder / RESULT_FILE, {f"{split}.{metric}": float(value) for (split, metric), value in means.items()})
    queries = int(frame[["split", "query_id"]].drop_duplicates().shape[0])
    documents = {f"{role}_documents": a.counts["documents"] for role, a in inputs.items() if "documents" in a.counts}
    apart = query_units(judged_split(dataset, config.split), dataset, config.query_groups).taken_apart
    told = {**(attributes or {}), **({TAKEN_APART: apart} if apart else {})}
    return seal(folder, KIND, counts={"queries": queries, **documents}, parents=parents_of(inputs), attributes=told)


def _split_scores(rankings: Mapping[str, Ranking], dataset: Dataset, split: str, config: EvaluationConfig) -> pd.DataFrame:
    judged = judged_split(dataset, split)
    found = per_query_metrics(judged.judgements, rankings)
    return found.assign(split=split, unit=query_units(judged, dataset, config.query_groups).of(found["query_id"]))


def load_scores(folder: Path) -> Scores:
    """The float64 values of each split and metric, one per judged query in the order of the query ids, so that systems are paired by place.

    Raises ArtifactError when the file cannot be read.
    """
    import pandas as pd
    import pyarrow as pa

    try:
        frame = pd.read_parquet(folder / SCORES_FILE)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ArtifactError(f"{folder / SCORES_FILE} cannot be read ({str(error).splitlines()[0]}). Run the study again.") from None
    groups = list(frame.sort_values("query_id", kind="stable").groupby(["split", "metric"], sort=False))
    units = {str(split): rows["unit"].to_numpy(np.int64) for (split, _), rows in groups}
    return Scores({(str(split), str(metric)): rows["value"].to_numpy(np.float64) for (split, metric), rows in groups}, units)


def write_result(measure: Callable[[Path], Mapping[str, Any]], inputs: Mapping[str, Artifact], folder: Path) -> Artifact:
    """Measure and keep the numbers, which are JSON, as a sealed artifact of kind study; `measure` may write more files into `folder`."""
    write_json(folder / RESULT_FILE, dict(measure(folder)))
    return seal(folder, KIND, parents=parents_of(inputs))


def read_result(folder: Path) -> dict[str, Any]:
    """The numbers that `write_result` kept; of scores their means as `split.metric`."""
    found: dict[str, Any] = read_json(folder / RESULT_FILE)
    return found


def flat_numbers(artifact: Artifact) -> dict[str, float]:
    """All numbers of a measurement, nested names joined by dots; none when it holds no result.json."""
    if not (artifact.path / RESULT_FILE).is_file():
        return {}
    return _flat(read_result(artifact.path), "")


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found.update(_flat(value, f"{prefix}{key}."))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{key}"] = float(value)
    return found
