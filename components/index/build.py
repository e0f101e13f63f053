"""Building of the index from the shards of vectors: exact inner product, rows in the order of the shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.artifacts import IndexArtifact, VectorShards, seal, verify, write_atomic
from components.errors import ArtifactError
from components.index.config import IndexConfig
from components.index.shards import DocumentVectors, read_vectors

if TYPE_CHECKING:
    from components.data.dataset import Dataset

INDEX_FILE = "index.faiss"
IDS_FILE = "doc_ids.parquet"
TITLE_LENGTH = 80  # characters of a text that stand in for a missing title


def build_index(vectors: VectorShards, config: IndexConfig, folder: Path, titles: Mapping[str, str] | None = None) -> IndexArtifact:
    """Write `index.faiss` and `doc_ids.parquet` (doc_id, content_hash, shard, and title if given, in row order) into `folder`.

    `titles` are what people read in search results: document id -> title.
    Raises ArtifactError for vectors that were changed or ids that occur twice, SpaceMismatch for a shard of another space.
    """
    import faiss

    verify(vectors.path, vectors.digest)
    rows = read_vectors(vectors)
    _require_unique(rows.doc_ids, vectors.path)
    _remove_leftovers(folder)
    write_atomic(folder / INDEX_FILE, faiss.serialize_index(make_faiss_index(rows.vectors, config.index_key)).tobytes())
    _write_ids(folder / IDS_FILE, rows, titles)
    artifact = seal(
        folder,
        "index",
        counts={"documents": len(rows.doc_ids), "shards": vectors.counts["shards"]},
        parents={"vectors": vectors.digest},
        attributes={
            "space_id": vectors.space_id,
            "index_key": config.index_key,
            "dimension": rows.vectors.shape[1],
            "faiss_version": str(faiss.__version__),
        },
    )
    return IndexArtifact(**artifact.model_dump())


def display_titles(dataset: Dataset) -> dict[str, str]:
    """Document id -> its title, or the start of its text when it has none."""
    frame = dataset.documents
    shown = frame["title"].where(frame["title"].str.strip() != "", frame["text"].str.slice(0, TITLE_LENGTH))
    return dict(zip(frame["doc_id"], shown, strict=True))


def make_faiss_index(vectors: NDArray[np.float32], index_key: str):  # type: ignore[no-untyped-def]  # faiss has no types
    """A FAISS index over float32 (n, d) vectors with inner product as the score."""
    import faiss

    index = faiss.index_factory(vectors.shape[1], index_key, faiss.METRIC_INNER_PRODUCT)
    index.add(np.ascontiguousarray(vectors, dtype=np.float32))
    return index


def _require_unique(doc_ids: list[str], where: Path) -> None:
    if twice := [doc_id for doc_id, count in Counter(doc_ids).items() if count > 1]:
        raise ArtifactError(
            f"{where}: {len(twice)} document ids occur more than once, the first is '{twice[0]}'. "
            "An answer could not be traced to one document: make the ids unique and encode again."
        )


def _remove_leftovers(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()


def _write_ids(path: Path, rows: DocumentVectors, titles: Mapping[str, str] | None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "doc_id": pa.array(rows.doc_ids, pa.string()),
        "content_hash": pa.array(rows.content_hashes, pa.string()),
        "shard": pa.array(rows.shards, pa.int32()),
    }
    if titles is not None:
        columns["title"] = pa.array([titles.get(doc_id, "") for doc_id in rows.doc_ids], pa.string())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    write_atomic(path, sink.getvalue().to_pybytes())
