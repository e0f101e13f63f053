"""A data set with a share of its training pairs, all else equal: what a scaling law over data sizes is measured with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, cast

from components.artifacts import DatasetArtifact, seal
from components.data.dataset import TABLES, load_dataset, write_table
from components.data.tables import stable_order
from components.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

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
