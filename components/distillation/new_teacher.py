"""A new teacher for an index that stays: a linear map leads its query tower into the vector space of the index's documents.

The map is learned where both spaces are known: on a sample of documents, encoded by the new teacher and held by the index as they are,
and on judged train queries, which are led to their documents. What a ridge of each strength gives, with and without those queries, is
tried on the dev judgements over the real index, and the best is kept. The towers stay as they were trained; the map is part of the query
tower from then on, so a student learns from it, and a release is measured, as with any other teacher.

Source of the idea: Drift-Adapter (arXiv 2509.23471), which leads new queries into an old index by such maps.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.artifacts import (
    MANIFEST,
    DatasetArtifact,
    EncoderArtifact,
    IndexArtifact,
    Scalar,
    by_role,
    file_sha256,
    parents_of,
    seal,
)
from components.data.dataset import are_among, load_dataset, texts_of
from components.distillation.config import DistillationConfig
from components.distillation.plan import DevSet, dev_metrics
from components.distillation.query_sources import relevant
from components.distillation.student.encoder import ridge
from components.distillation.train import OpenDocuments, dev_set
from components.errors import DataError, ModelError
from components.towers.contract import load_contract, record_probes, save_contract, unit
from components.towers.encoder import MAP, load_tower

if TYPE_CHECKING:
    from components.data.dataset import Dataset

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # strengths that are tried
FEWEST = 50  # documents that a map is learned on
Rows = NDArray[np.float32]


@dataclass(frozen=True)
class MapInputs:
    """The towers of the new teacher, the data, and the index whose documents its queries are to find."""

    dataset: DatasetArtifact
    query_tower: EncoderArtifact
    document_tower: EncoderArtifact
    index: IndexArtifact


@dataclass(frozen=True)
class Learned:
    """A map float32 (new dimension, old dimension), the ridge and the number of judged queries it was learned with, and its dev score."""

    matrix: Rows
    ridge: float
    queries: int
    score: float


def map_query_tower(inputs: MapInputs, config: DistillationConfig, open_documents: OpenDocuments, folder: Path) -> EncoderArtifact:
    """The step map_query_tower: the new query tower with the map into the index's space behind it.

    The artifact counts the documents and judged queries that the map was learned on. Its attributes are the ridge, and nDCG@10 of the dev
    queries among the sampled documents alone, before the map (`dev_ndcg_at_10_own`, in the new teacher's own space) and through it
    (`dev_ndcg_at_10_mapped`): what the map costs. Raises DataError for data without dev judgements or with too few documents, ModelError
    for a teacher without weights, and what opening the index raises.
    """
    data = load_dataset(inputs.dataset.path)
    dev = dev_set(data, lambda queries, k: [])  # what it finds is asked of the index, once that is open
    chosen, taught = sampled(data, dev, config), _judged(data, config)
    among = data.documents["doc_id"].iloc[chosen].tolist()
    # Of an index of millions these alone are read: all of them would not fit into memory.
    needed = list(dict.fromkeys([*among, *chain.from_iterable(taught.values())]))
    held, search = open_documents(inputs.index, None, needed)
    dev, old = replace(dev, search=search), held[: len(among)]
    tower = load_tower(inputs.query_tower.path)
    if tower.contract.companion is not None:
        raise ModelError("The new teacher has a companion, and the map stands behind one model alone. Train it without a companion.")
    asked = tower.encode(dev.queries, progress="dev queries")
    texts = texts_of(data.documents.iloc[chosen])
    sample = load_tower(inputs.document_tower.path).encode(texts, progress="documents for the map")
    queries = (tower.encode(list(taught), progress="train queries"), _means(taught, held, needed)) if taught else None
    best = best_map((sample, old), queries, asked, dev)
    own = _ndcg_among(asked, sample, among, dev)
    mapped = _ndcg_among(unit(asked @ best.matrix), old, among, dev)
    attributes: dict[str, Scalar] = {"ridge": best.ridge, "dev_ndcg_at_10_own": round(own, 4), "dev_ndcg_at_10_mapped": round(mapped, 4)}
    counts = {"probes": 64, "mapped_documents": len(chosen), "mapped_queries": best.queries}
    return _write(inputs, best.matrix, tower.width, (counts, attributes), folder)


def sampled(dataset: Dataset, dev: DevSet, config: DistillationConfig) -> list[int]:
    """Rows of the documents that the map is learned on: the answers of dev queries and others by chance, `map_documents` at most.

    Raises DataError for fewer than FEWEST documents.
    """
    rows = {doc_id: row for row, doc_id in enumerate(dataset.documents["doc_id"])}
    if len(rows) < FEWEST:
        raise DataError(f"A map between two vector spaces is learned on {FEWEST} documents at least; the data has {len(rows)}.")
    order = np.random.default_rng(config.seed).permutation(len(rows)).tolist()
    answers = [rows[doc_id] for doc_id in sorted(set().union(*dev.relevant)) if doc_id in rows]
    # Answers take half of the places at most: a map of answers alone would know little of what a query has to be kept from.
    return sorted(list(dict.fromkeys([*answers[: config.map_documents // 2], *order]))[: config.map_documents])


def best_map(documents: tuple[Rows, Rows], queries: tuple[Rows, Rows] | None, asked: Rows, dev: DevSet) -> Learned:
    """The map whose dev queries `asked` (n, new dimension) find the most over the index; of equal ones the first, and the simplest.

    `documents` and `queries` are unit rows of the new space and what they are to become in the old one.
    """
    import torch

    tried: list[Learned] = []
    for number, pairs in _to_learn_from(documents, queries):
        new, old = map(torch.from_numpy, pairs)
        for strength in RIDGES:
            matrix = ridge(new, old, strength).T.numpy()
            tried.append(Learned(matrix, strength, number, dev_metrics(unit(asked @ matrix), dev)["score"]))
    return max(tried, key=lambda one: one.score)


def _to_learn_from(documents: tuple[Rows, Rows], queries: tuple[Rows, Rows] | None) -> Iterator[tuple[int, tuple[Rows, Rows]]]:
    """Number of judged queries, and the rows to learn from: the documents alone, then with these queries."""
    yield 0, documents
    if queries is not None:
        yield len(queries[0]), (np.concatenate([documents[0], queries[0]]), np.concatenate([documents[1], queries[1]]))


def _judged(dataset: Dataset, config: DistillationConfig) -> dict[str, list[str]]:
    """Text -> ids of the relevant documents, of judged train queries, as many as documents are sampled at most."""
    judged = relevant(dataset, "train")
    judged = judged[are_among(judged["doc_id"], dataset.documents["doc_id"])]
    answers = judged.groupby("text", sort=True)["doc_id"].agg(list)
    order = np.random.default_rng(config.seed).permutation(len(answers))[: config.map_documents]
    chosen = answers.iloc[np.sort(order)]
    return dict(zip(chosen.index.tolist(), chosen.tolist(), strict=True))


def _means(answers: Mapping[str, Sequence[str]], held: Rows, doc_ids: Sequence[str]) -> Rows:
    """The mean of the vectors of each query's documents, unit length; `held` are those of `doc_ids`."""
    rows = {doc_id: row for row, doc_id in enumerate(doc_ids)}
    return unit(np.stack([held[[rows[doc_id] for doc_id in ids]].mean(0) for ids in answers.values()]))


def _ndcg_among(queries: Rows, documents: Rows, doc_ids: Sequence[str], dev: DevSet) -> float:
    """nDCG@10 of dev queries over these documents alone, of the queries that have an answer among them."""
    held = set(doc_ids)
    places = [place for place, answers in enumerate(dev.relevant) if answers & held]

    def search(asked: Rows, k: int) -> list[list[str]]:
        return [[doc_ids[row] for row in found[:k]] for found in np.argsort(-(asked @ documents.T), axis=1, kind="stable")]

    own = {new: dev.own[place] for new, place in enumerate(places) if place in dev.own}
    some = replace(dev, queries=[dev.queries[p] for p in places], relevant=[dev.relevant[p] & held for p in places], search=search, own=own)
    return dev_metrics(queries[places], some)["ndcg@10"]


def _write(inputs: MapInputs, matrix: Rows, width: int, told: tuple[dict[str, int], dict[str, Scalar]], folder: Path) -> EncoderArtifact:
    """The tower's own files with the map, its contract and probes beside them, sealed."""
    tower = inputs.query_tower
    shutil.copytree(tower.path, folder, ignore=shutil.ignore_patterns(MANIFEST), dirs_exist_ok=True)
    whole = np.zeros((width, matrix.shape[1]), np.float32)  # of a vector that is cut to its first dimensions the others count nothing
    whole[: len(matrix)] = matrix
    np.save(folder / MAP, whole)
    before, _ = load_contract(tower.path)
    contract = before.model_copy(update={"dimension": matrix.shape[1], "map_digest": file_sha256(folder / MAP)})
    save_contract(folder, contract, inputs.index.space_id)
    record_probes(load_tower(folder), folder)
    counts, attributes = told
    about = {**tower.attributes, "space_id": inputs.index.space_id, "dimension": contract.dimension, **attributes}
    made = seal(folder, "encoder", counts=counts, parents=parents_of(by_role(inputs)), attributes=about)
    return EncoderArtifact.model_validate(made.model_dump())
