"""What a student learns from: query texts by source, and the pieces of one distillation run put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.distillation.config import DistillationConfig
from components.distillation.selection import DevSet, Search
from components.distillation.teacher_targets import read_teacher_targets
from components.distillation.train import DistillationData
from components.errors import DataError

if TYPE_CHECKING:
    from components.data.dataset import Dataset


@dataclass(frozen=True)
class DocumentSide:
    """The frozen documents: unit vectors float32 (m, d) in the data set's order, their space, and the search over the real index."""

    vectors: NDArray[np.float32]
    space_id: str
    search: Search


def query_sources(dataset: Dataset, config: DistillationConfig) -> dict[str, list[str]]:
    """Texts for the alignment by source: train queries, unlabelled queries, document titles (a seeded sample)."""
    titles = dataset.documents["title"]
    titles = titles[titles.str.strip() != ""].drop_duplicates()
    if len(titles) > config.titles:
        titles = titles.sample(config.titles, random_state=config.seed)
    return {
        "train": dataset.judged_queries("train")["text"].tolist(),
        "unlabelled": dataset.unlabelled["text"].tolist(),
        "titles": titles.tolist(),
    }


def distillation_data(dataset: Dataset, targets: Path, documents: DocumentSide, config: DistillationConfig) -> DistillationData:
    """Join teacher targets, pairs for the refinement, and the frozen document vectors, whose rows follow the data set's documents."""
    texts, teacher = read_teacher_targets(targets)
    pairs = refinement_pairs(dataset, texts, config.refine_titles)
    return DistillationData(texts, teacher, pairs, documents.vectors, documents.space_id, dev_set(dataset, documents.search))


def refinement_pairs(dataset: Dataset, texts: Sequence[str], titles: bool) -> list[tuple[int, int]]:
    """(text number, document number) of the relevant train judgements and, if wanted, of every title among `texts`."""
    text_row = {text: i for i, text in enumerate(texts)}
    document_row = {d: i for i, d in enumerate(dataset.documents["doc_id"])}
    train = _relevant(dataset, "train")
    pairs = [(text_row[t], document_row[d]) for t, d in zip(train["text"], train["doc_id"], strict=True)]
    if titles:
        pairs += [(text_row[t], i) for i, t in enumerate(dataset.documents["title"]) if t in text_row]
    return list(dict.fromkeys(pairs))


def dev_set(dataset: Dataset, search: Search) -> DevSet:
    """The dev judgements with the search that scores them; raises DataError when there are none."""
    judged = _relevant(dataset, "dev")
    if judged.empty:
        raise DataError("The data has no relevant dev judgements; checkpoints cannot be chosen. Add qrels/dev.tsv.")
    grouped = judged.groupby("query_id", sort=True)
    relevant = [frozenset(ids) for ids in grouped["doc_id"].agg(list)]
    return DevSet(queries=grouped["text"].first().tolist(), relevant=relevant, search=search)


def _relevant(dataset: Dataset, split: str) -> pd.DataFrame:
    judged = dataset.judgements(split)
    return judged[judged["score"] > 0].merge(dataset.judged_queries(split), on="query_id")
