"""The pieces of one distillation run put together: texts, teacher vectors, pairs, documents and the dev judgements.

They stand apart from `sources`, so that the teacher's vectors stay when only the training of the student changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.data.tables import normalise_text
from components.distillation.config import DistillationConfig, RefineTitles
from components.distillation.plan import texts_per_source
from components.distillation.selection import DevSet, Search
from components.distillation.sources import dev_queries, held_out_wordings, query_sources, relevant
from components.distillation.teacher_targets import read_held_out, read_sources, read_teacher_targets
from components.errors import DataError
from components.visible import is_blank

if TYPE_CHECKING:
    from components.data.dataset import Dataset

NOISED = "noised"
NoiseOf = Callable[[Sequence[str], int], list[str]]  # texts and a seed -> the texts with noise, in the same order


@dataclass(frozen=True)
class DistillationData:
    """Texts with teacher vectors (n, d), judged pairs (text number, document number), and document vectors (m, d); unit float32.

    `sources` names where each text comes from; `teacher_folder` is the teacher's query tower, for a student cut from it; `own` are pairs
    of a text and the document that it is itself, which is no negative of it. `held_out_titles` counts the documents that only held-out
    queries ask for and that are in a pair with their title all the same.
    """

    texts: Sequence[str]
    teacher: NDArray[np.float32]
    pairs: Sequence[tuple[int, int]]
    documents: NDArray[np.float32]
    space_id: str
    dev: DevSet
    sources: Sequence[str] = ()
    teacher_folder: Path | None = None
    own: Sequence[tuple[int, int]] = ()
    held_out_titles: int = 0


@dataclass(frozen=True)
class DocumentSide:
    """The frozen documents: unit vectors float32 (m, d) in the data set's order, their space, and the search over the real index."""

    vectors: NDArray[np.float32]
    space_id: str
    search: Search


def check_sources(dataset: Dataset, config: DistillationConfig) -> None:
    """Raise DataError when the data cannot feed the distillation: no dev judgements, or a share for a source without texts.

    Cheap, and meant to be asked before anything is trained.
    """
    if relevant(dataset, "dev").empty:
        raise DataError("The data has no relevant dev judgements; checkpoints cannot be chosen. Add qrels/dev.tsv.")
    sources = query_sources(dataset, config, ["a query"] if config.generated else [])
    sources |= {NOISED: ["a query"]} if config.noised else {}
    texts_per_source({name: len(texts) for name, texts in sources.items()}, config.source_shares)


def distillation_data(
    dataset: Dataset,
    targets: Path,
    documents: DocumentSide,
    config: DistillationConfig,
    teacher_folder: Path | None = None,
    noise: NoiseOf | None = None,
) -> DistillationData:
    """Join teacher targets, pairs for the refinement, and the frozen document vectors, whose rows follow the data set's documents.

    `teacher_folder` is the teacher's query tower, which a student cut from it needs; `noise` makes the texts of `config.noised`, to which
    the alignment alone is extended.
    """
    texts, teacher = read_teacher_targets(targets)
    sources = read_sources(targets)
    copies = noised_copies(dataset, texts, config, noise) if noise is not None and config.noised else {}
    pairs = refinement_pairs(dataset, texts, config.refine_titles)
    held_out, doc_ids = held_out_documents(dataset), dataset.documents["doc_id"].tolist()
    return DistillationData(
        texts=[*texts, *copies],
        teacher=np.concatenate([teacher, teacher[list(copies.values())]]) if copies else teacher,
        pairs=pairs,
        held_out_titles=len({document for _, document in pairs if doc_ids[document] in held_out}),
        own=own_pairs(dataset, texts),
        documents=documents.vectors,
        space_id=documents.space_id,
        dev=dev_set(dataset, documents.search, read_held_out(targets)),
        sources=[*sources, *[NOISED] * len(copies)],
        teacher_folder=teacher_folder,
    )


def noised_copies(dataset: Dataset, texts: Sequence[str], config: DistillationConfig, noise: NoiseOf) -> dict[str, int]:
    """At most `config.noised` new texts -> the number of the text that each was made of, in the seed's order.

    A copy that noise left as it was, that stands among `texts`, or that reads as a held-out query is none.
    """
    order = np.random.default_rng([config.seed, 3]).permutation(len(texts)).tolist()
    known, tested, found = set(texts), held_out_wordings(dataset), dict[str, int]()
    for number, copy in zip(order, noise([texts[i] for i in order], config.seed), strict=True):
        if len(found) >= config.noised:
            break
        if copy not in known and not is_blank(copy) and normalise_text(copy) not in tested:
            found.setdefault(copy, number)
    return found


def refinement_pairs(dataset: Dataset, texts: Sequence[str], titles: RefineTitles) -> list[tuple[int, int]]:
    """(text number, document number) of the relevant train judgements and, if wanted, of titles among `texts`.

    `titles`: True for those of all documents, "train_documents" for all but those of `held_out_documents`.
    """
    text_row = {text: i for i, text in enumerate(texts)}
    document_row = {d: i for i, d in enumerate(dataset.documents["doc_id"])}
    train = relevant(dataset, "train")
    pairs = [(text_row[t], document_row[d]) for t, d in zip(train["text"], train["doc_id"], strict=True)]
    if titles:
        unseen = held_out_documents(dataset) if titles == "train_documents" else frozenset()
        titled = enumerate(zip(dataset.documents["doc_id"], dataset.documents["title"], strict=True))
        pairs += [(text_row[title], i) for i, (doc_id, title) in titled if title in text_row and doc_id not in unseen]
    return list(dict.fromkeys(pairs))


def held_out_documents(dataset: Dataset) -> frozenset[str]:
    """Ids of the documents that a query of another split asks for and no train query does."""
    asked = {split: frozenset(relevant(dataset, split)["doc_id"]) for split in dataset.splits}
    return frozenset[str]().union(*(ids for split, ids in asked.items() if split != "train")) - asked.get("train", frozenset())


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


def dev_set(dataset: Dataset, search: Search, teacher: Mapping[str, NDArray[np.float32]] | None = None) -> DevSet:
    """The dev judgements with the search that scores them, and the teacher's vectors of the queries when all are given.

    Raises DataError when there are no dev judgements.
    """
    judged = relevant(dataset, "dev")
    if judged.empty:
        raise DataError("The data has no relevant dev judgements; checkpoints cannot be chosen. Add qrels/dev.tsv.")
    answers = [frozenset(ids) for ids in judged.groupby("query_id", sort=True)["doc_id"].agg(list)]
    queries = dev_queries(dataset)
    known = teacher is not None and all(text in teacher for text in queries)
    vectors = np.stack([teacher[text] for text in queries]) if teacher is not None and known else None
    left_out = dataset.own_documents("dev").left_out
    own = {place: query for place, query in enumerate(sorted(set(judged["query_id"]))) if query in left_out}
    return DevSet(queries, answers, search, vectors, own)
