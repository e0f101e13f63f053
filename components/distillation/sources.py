"""What a student learns from: query texts by source, and the pieces of one distillation run put together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.distillation.config import DistillationConfig
from components.distillation.plan import texts_per_source
from components.distillation.selection import DevSet, Search
from components.distillation.teacher_targets import read_held_out, read_sources, read_teacher_targets
from components.distillation.train import DistillationData
from components.errors import DataError
from components.visible import is_blank

if TYPE_CHECKING:
    from components.data.dataset import Dataset

SENTENCE_WORDS = (3, 40)  # shorter ones are headings and numbers, longer ones are no queries
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\s*\n\s*")


@dataclass(frozen=True)
class DocumentSide:
    """The frozen documents: unit vectors float32 (m, d) in the data set's order, their space, and the search over the real index."""

    vectors: NDArray[np.float32]
    space_id: str
    search: Search


def query_sources(dataset: Dataset, config: DistillationConfig, generated: Sequence[str] = ()) -> dict[str, list[str]]:
    """Texts for the alignment by source: train queries, unlabelled queries, titles, sentences (seeded samples), generated queries."""
    titles = dataset.documents["title"]
    titles = titles[[not is_blank(title) for title in titles.fillna("")]].drop_duplicates()
    if len(titles) > config.titles:
        titles = titles.sample(config.titles, random_state=config.seed)
    return {
        "train": dataset.judged_queries("train")["text"].tolist(),
        "unlabelled": dataset.unlabelled["text"].tolist(),
        "titles": titles.tolist(),
        "sentences": document_sentences(dataset.documents["text"].tolist(), config.sentences, config.seed),
        "generated": list(generated),
    }


def document_sentences(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """At most `count` different sentences of 3 to 40 words, from as many documents as possible, in the seed's order.

    A sentence ends at a full stop, question or exclamation mark before white space, or at a line's end.
    """
    rng = np.random.default_rng([seed, 1])
    each = -(-count // max(1, len(texts)))  # sentences of one document
    chosen: dict[str, None] = {}
    for document in rng.permutation(len(texts)):
        if len(chosen) >= count:
            break
        sentences = list(_sentences(texts[document] or ""))
        chosen.update(dict.fromkeys(sentences[i] for i in rng.permutation(len(sentences))[:each]))
    return list(chosen)[:count]


def _sentences(text: str) -> Iterator[str]:
    for sentence in _SENTENCE_END.split(text):
        if SENTENCE_WORDS[0] <= len(sentence.split()) <= SENTENCE_WORDS[1]:
            yield sentence.strip()


def check_sources(dataset: Dataset, config: DistillationConfig) -> None:
    """Raise DataError when the data cannot feed the distillation: no dev judgements, or a share for a source without texts.

    Cheap, and meant to be asked before anything is trained.
    """
    if _relevant(dataset, "dev").empty:
        raise DataError("The data has no relevant dev judgements; checkpoints cannot be chosen. Add qrels/dev.tsv.")
    sources = query_sources(dataset, config, ["a query"] if config.generated else [])
    texts_per_source({name: len(texts) for name, texts in sources.items()}, config.source_shares)


def distillation_data(
    dataset: Dataset, targets: Path, documents: DocumentSide, config: DistillationConfig, teacher_folder: Path | None = None
) -> DistillationData:
    """Join teacher targets, pairs for the refinement, and the frozen document vectors, whose rows follow the data set's documents.

    `teacher_folder` is the teacher's query tower, which a student cut from it needs.
    """
    texts, teacher = read_teacher_targets(targets)
    return DistillationData(
        texts=texts,
        teacher=teacher,
        pairs=refinement_pairs(dataset, texts, config.refine_titles),
        own=own_pairs(dataset, texts),
        documents=documents.vectors,
        space_id=documents.space_id,
        dev=dev_set(dataset, documents.search, read_held_out(targets)),
        sources=read_sources(targets),
        teacher_folder=teacher_folder,
    )


def refinement_pairs(dataset: Dataset, texts: Sequence[str], titles: bool) -> list[tuple[int, int]]:
    """(text number, document number) of the relevant train judgements and, if wanted, of every title among `texts`."""
    text_row = {text: i for i, text in enumerate(texts)}
    document_row = {d: i for i, d in enumerate(dataset.documents["doc_id"])}
    train = _relevant(dataset, "train")
    pairs = [(text_row[t], document_row[d]) for t, d in zip(train["text"], train["doc_id"], strict=True)]
    if titles:
        pairs += [(text_row[t], i) for i, t in enumerate(dataset.documents["title"]) if t in text_row]
    return list(dict.fromkeys(pairs))


def own_pairs(dataset: Dataset, texts: Sequence[str]) -> list[tuple[int, int]]:
    """(text number, document number) of the train queries among `texts` that are documents themselves."""
    left_out = dataset.own_documents("train").left_out
    if not left_out:
        return []
    text_row = {text: i for i, text in enumerate(texts)}
    document_row = {d: i for i, d in enumerate(dataset.documents["doc_id"])}
    queries = dataset.judged_queries("train")
    found = zip(queries["query_id"], queries["text"], strict=True)
    return [(text_row[text], document_row[query]) for query, text in found if query in left_out and text in text_row]


def dev_queries(dataset: Dataset) -> list[str]:
    """The texts of the judged dev queries, in the order of their ids."""
    texts: list[str] = _relevant(dataset, "dev").groupby("query_id", sort=True)["text"].first().tolist()
    return texts


def dev_set(dataset: Dataset, search: Search, teacher: Mapping[str, NDArray[np.float32]] | None = None) -> DevSet:
    """The dev judgements with the search that scores them, and the teacher's vectors of the queries when all are given.

    Raises DataError when there are no dev judgements.
    """
    judged = _relevant(dataset, "dev")
    if judged.empty:
        raise DataError("The data has no relevant dev judgements; checkpoints cannot be chosen. Add qrels/dev.tsv.")
    relevant = [frozenset(ids) for ids in judged.groupby("query_id", sort=True)["doc_id"].agg(list)]
    queries = dev_queries(dataset)
    known = teacher is not None and all(text in teacher for text in queries)
    vectors = np.stack([teacher[text] for text in queries]) if teacher is not None and known else None
    left_out = dataset.own_documents("dev").left_out
    own = {place: query for place, query in enumerate(sorted(set(judged["query_id"]))) if query in left_out}
    return DevSet(queries, relevant, search, vectors, own)


def _relevant(dataset: Dataset, split: str) -> pd.DataFrame:
    judged = dataset.judgements(split)
    return judged[judged["score"] > 0].merge(dataset.judged_queries(split), on="query_id")
