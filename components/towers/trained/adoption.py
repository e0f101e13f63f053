"""Vectors that exist become towers: held against the data by their ids, tried by a search, and written as what the texts have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.artifacts import Artifact, DatasetArtifact, Scalar, seal
from components.data.dataset import content_hash, load_dataset
from components.errors import DataError
from components.towers.contract import EncodingContract, save_contract, space_id_of
from components.towers.trained.stored import BASE, BLOCK, TABLE, VectorTable, write_table
from components.towers.trained.vector_files import copied_from, files_digest, not_read, read_vectors

if TYPE_CHECKING:
    import pandas as pd

    from components.data.dataset import Dataset

CHANCE = 3.0  # query vectors that find their documents less often than this many times chance belong to other texts
PROBED = 500  # judged queries of the probe search
PROBE_DEPTH = 50
SHIFTS = [s for s in range(-10, 11) if s]  # rows by which ids and vectors are tried against each other
SHIFT_PAIRS, SHIFT_SEGMENT = 5_000, 20  # judged pairs that are tried, and the fewest that say something about a part of the file
SHIFT_ERRORS, SHIFT_SHARE = 5.0, 0.75  # standard errors, and share of the pairs, by which another row has to be nearer


def adopt_vectors(dataset: DatasetArtifact, source: Path, folder: Path, expected: str | None = None) -> Artifact:
    """The step train_towers where the teacher is stored vectors: `take_stored` for the texts of a data set."""
    return take_stored(load_dataset(dataset.path), source, {"dataset": dataset.digest}, folder, expected)


def take_stored(dataset: Dataset, source: Path, parents: Mapping[str, str], folder: Path, expected: str | None = None) -> Artifact:
    """Write both towers from the vectors in `source`, which must hold one for every document of the data set.

    Queries may have vectors or not. The space is named by the documents' vectors. Raises DataError, with counts, for documents without
    vectors, for query vectors of another width, for query vectors none of which has the id of a query, and for those that do not find the
    documents they were judged with; also when the files are not those of the digest `expected` once they have been read.
    """
    documents = read_vectors(source, "documents")
    if documents is None:
        raise DataError(f"{source} has no vectors of documents. Expected documents.parquet, documents.npy or documents.faiss.")
    queries = read_vectors(source, "queries")
    if expected is not None and files_digest(source) != expected:  # they would be found under the key of others
        raise DataError(f"The vectors in {source} changed while they were read. Run the command again when nobody writes to them.")
    texts = {"query": query_texts(dataset), "document": _texts(dataset.documents["doc_id"], dataset.document_texts())}
    remarks = [*not_read(source), *_require_all(documents, texts["document"]), *_about(documents, "documents")]
    if queries is not None:
        if queries.vectors.shape[1] != documents.vectors.shape[1]:
            widths = f"{documents.vectors.shape[1]} dimensions, but those of queries have {queries.vectors.shape[1]}"
            raise DataError(f"{source}: the vectors of documents have {widths}. Make both with the same model.")
        remarks += [*_require_some(queries, texts["query"]), *_about(queries, "queries")]
        remarks += _probe(dataset, documents, queries)
    width = documents.vectors.shape[1]
    kept = {role: _of_data(table, texts[role], width) for role, table in (("query", queries), ("document", documents))}
    contracts = {role: _contract(role, table) for role, table in kept.items()}
    space_id = space_id_of(contracts["document"])
    origin = copied_from(source)
    for role, table in kept.items():
        _write(folder / f"{role}_tower", table.ids, [texts[role][name] for name in table.ids], table.vectors)
        save_contract(folder / f"{role}_tower", contracts[role], space_id)
        about: dict[str, Scalar] = {"space_id": space_id, "role": role, "dimension": width, "base_model": BASE, **origin}
        seal(folder / f"{role}_tower", "encoder", counts={"texts": len(table.ids)}, parents=parents, attributes=about)
    for remark in remarks:
        print(f"[train_towers] {remark}", flush=True)
    counts = {f"{role}_vectors": len(table.ids) for role, table in kept.items()}
    return seal(folder, "towers", counts=counts, parents=parents, attributes={"steps": 0, **origin})


def query_texts(dataset: Dataset) -> dict[str, str]:
    """Id -> text of all queries, those without judgements too."""
    found = _texts(dataset.unlabelled["query_id"], dataset.unlabelled["text"])
    return {**found, **_texts(dataset.queries["query_id"], dataset.queries["text"])}


def _texts(ids: Iterable[object], texts: Iterable[object]) -> dict[str, str]:
    return {str(name): str(text) for name, text in zip(ids, texts, strict=True)}


def _require_all(documents: VectorTable, texts: Mapping[str, str]) -> list[str]:
    there = set(documents.ids)
    missing = [name for name in texts if name not in there]
    if missing:
        shown = f" All vectors have ids of another kind, such as '{documents.ids[0]}'." if len(missing) == len(texts) else ""
        raise DataError(
            f"{len(missing):,} of {len(texts):,} documents have no vector (first: '{missing[0]}'), and the encoder is not here.{shown} "
            "Give their vectors under the ids of the data, or leave them out of the data."
        )
    surplus = len(there) - len(texts)
    return [f"{surplus:,} vectors belong to no document of the data and are left out"] if surplus else []


def _require_some(queries: VectorTable, texts: Mapping[str, str]) -> list[str]:
    surplus = sum(name not in texts for name in queries.ids)
    if surplus == len(queries.ids):
        raise DataError(
            f"None of the {surplus:,} vectors of queries has the id of a query: theirs are such as '{queries.ids[0]}', those of the data "
            f"such as '{next(iter(texts), '')}'. Give them under the ids of the data, or leave them out."
        )
    return [f"{surplus:,} vectors belong to no query of the data and are left out"] if surplus else []


def _about(table: VectorTable, what: str) -> list[str]:
    """What people should know of vectors that were accepted."""
    least, mean, most = table.norms
    rows = {hash(row.tobytes()) for row in table.vectors}
    said = [f"{len(table.ids):,} vectors of {what} in {table.vectors.shape[1]} dimensions", *table.remarks]
    if most - least > 0.01 * mean:
        said.append(f"Vectors of {what} have lengths from {least:.3g} to {most:.3g}; here they are compared by cosine")
    if len(rows) < len(table.ids):
        said.append(f"{len(table.ids) - len(rows):,} vectors of {what} equal another one")
    return said


def _probe(dataset: Dataset, documents: VectorTable, queries: VectorTable) -> list[str]:
    """Search for judged queries by their vectors: ids that belong to other texts find nothing better than chance does."""
    row = {name: place for place, name in enumerate(documents.ids)}
    place = {name: number for number, name in enumerate(queries.ids)}
    judged = dataset.all_judgements
    judged = judged[(judged["score"] > 0) & judged["query_id"].isin(place) & judged["doc_id"].isin(row)]
    chosen = sorted(set(judged["query_id"]))[:PROBED]
    if not chosen:
        return ["No judged query has a vector, so no search could show whether ids and vectors belong together"]
    depth = min(PROBE_DEPTH, len(documents.ids))
    relevant = judged.groupby("query_id")["doc_id"].agg(lambda ids: [row[name] for name in ids])
    asked = queries.vectors[[place[name] for name in chosen]]
    best = np.array([(asked[n] @ documents.vectors[relevant[name]].T).max() for n, name in enumerate(chosen)])
    above = np.zeros(len(chosen), np.int64)
    for start in range(0, len(documents.ids), BLOCK):
        above += (asked @ documents.vectors[start : start + BLOCK].T > best[:, None]).sum(1)
    hits = above < depth
    _require_unshifted(judged, (documents, row), (queries, place))
    chance = float(np.mean([1 - (1 - depth / len(documents.ids)) ** len(relevant[name]) for name in chosen]))
    share = float(np.mean(hits))
    if len(chosen) >= 20 and share < min(0.5, CHANCE * chance):
        raise DataError(
            f"Of {len(chosen):,} judged queries, {share:.1%} find a relevant document among the best {depth} by their vectors; by chance "
            f"{chance:.1%} would. The ids belong to other rows, or the two sets of vectors come from two models."
        )
    return [f"Probe search: {share:.1%} of {len(chosen):,} judged queries find a relevant document among the best {depth}"]


_Placed = tuple[VectorTable, dict[str, int]]  # a table, and its rows by id


def _require_unshifted(judged: pd.DataFrame, documents: _Placed, queries: _Placed) -> None:
    """Raise DataError where vectors fit the ids some rows away better than their own, in the whole file or in a tenth of it.

    A lost or added line moves all vectors behind it. A search shows that badly where neighbours in the file are alike, as in a sorted
    corpus, or in a small one. `judged` are the judgements whose query and document have a vector; each document and each query counts
    once, since the many queries of one document would all be nearer to the same neighbour.
    """
    judged = judged.drop_duplicates("doc_id").drop_duplicates("query_id")
    pairs = judged.iloc[np.linspace(0, len(judged) - 1, min(len(judged), SHIFT_PAIRS)).astype(int)]
    asked = queries[0].vectors[pairs["query_id"].map(queries[1]).to_numpy()]
    found = documents[0].vectors[pairs["doc_id"].map(documents[1]).to_numpy()]
    base = np.einsum("nd,nd->n", asked, found)
    best: tuple[float, str] | None = None
    for kind, (table, row), name, other in (("documents", documents, "doc_id", asked), ("queries", queries, "query_id", found)):
        rows = pairs[name].map(row).to_numpy()
        order = np.argsort(rows, kind="stable")
        for shift in SHIFTS:
            gain, there = np.full(len(rows), np.nan), (rows + shift >= 0) & (rows + shift < len(table.ids))
            gain[there] = np.einsum("nd,nd->n", table.vectors[rows[there] + shift], other[there]) - base[there]
            for part in (order, *np.array_split(order, 10)):
                known = gain[part][np.isfinite(gain[part])]
                if len(known) < SHIFT_SEGMENT or np.mean(known > 0) < SHIFT_SHARE:
                    continue
                if known.mean() > SHIFT_ERRORS * known.std(ddof=1) / np.sqrt(len(known)) and (best is None or known.mean() > best[0]):
                    where = f"From the id '{table.ids[rows[part[0]]]}' on, {np.mean(known > 0):.0%} of {len(known):,} judged pairs"
                    away = f"{abs(shift)} {'row' if abs(shift) == 1 else 'rows'} {'after' if shift > 0 else 'before'} its own"
                    best = known.mean(), f"{where} fit the vector of {kind} {away} better than their own"
    if best is not None:
        raise DataError(f"{best[1]}. A row was lost or added between ids and vectors: write both anew from one table.")


def _of_data(table: VectorTable | None, texts: Mapping[str, str], width: int) -> VectorTable:
    """The vectors whose ids the data has, in the order of the ids; none where there is no table."""
    if table is None:
        return VectorTable([], np.empty((0, width), np.float32), (1.0, 1.0, 1.0))
    rows = sorted((name, row) for row, name in enumerate(table.ids) if name in texts)
    return VectorTable([name for name, _ in rows], table.vectors[[row for _, row in rows]], table.norms)


def _contract(role: str, table: VectorTable) -> EncodingContract:
    return EncodingContract(
        role="query" if role == "query" else "document",
        base_model=BASE,
        base_digest=table.digest,
        adapter_digest=None,
        tokenizer_digest="unknown",
        pooling="unknown",
        normalize=True,
        prompt="",
        append_eos=False,
        max_length=1,
        dimension=table.vectors.shape[1],
        form="vectors",
    )


def _write(folder: Path, ids: Sequence[str], texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
    import pyarrow as pa

    columns = {
        "id": pa.array(ids, pa.large_string()),
        "content_hash": pa.array([content_hash(text) for text in texts], pa.large_string()),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / TABLE, columns, vectors)
