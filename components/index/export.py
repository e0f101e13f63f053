"""Export of an index's documents for stores that a team has: vectors and what they belong to as Parquet shards, or into Qdrant.

    vectors-00000.parquet   doc_id, content_hash, title, vector (fp16, of unit length before rounding)
    manifest.json           last; verifies the shards

Deleted documents are left out. Every shard names in its schema's metadata the space that queries must come from and the index.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.artifacts import Artifact, IndexArtifact, seal
from components.errors import ArtifactError, ConfigError, ScalingNoteError
from components.index.parts import StoredVectors, open_stored
from components.index.rows import IDS_FILE, live_rows, read_deleted, read_table
from components.index.shards import vectors_path, write_vectors
from components.progress import progress_bar
from components.text import is_blank

if TYPE_CHECKING:
    import pyarrow as pa
    from qdrant_client import QdrantClient
    from qdrant_client.models import PointStruct
    from tqdm import tqdm

ROWS_PER_SHARD = 65_536
POINTS_PER_CALL = 256
COLUMNS = ("doc_id", "content_hash", "title")
_NAME = re.compile(r'[^<>:"/\\|?*\x00-\x1f]{1,255}')  # that Qdrant gives a collection
# Qdrant takes numbers and UUIDs as ids: a document's is the UUID of its id in this namespace, so a second export overwrites.
NAMESPACE = uuid.UUID("6d6b8f4e-2a51-5c63-9f0d-7c1e8b2a9d34")


class ExportError(ScalingNoteError):
    """A vector database that refuses what is written to it, or does not answer."""


@dataclass(frozen=True)
class ExportBlock:
    """Live documents of one block: a table of COLUMNS, and vectors float32 (rows, d) of unit length."""

    table: pa.Table
    vectors: NDArray[np.float32]


@dataclass(frozen=True)
class ExportSource:
    """The live documents of an index, row by row without loading them all."""

    artifact: IndexArtifact
    stored: StoredVectors
    table: pa.Table
    live: NDArray[np.int64]

    def blocks(self, size: int) -> Iterator[ExportBlock]:
        """All live documents in row order, at most `size` at a time."""
        for start in range(0, len(self.live), size):
            rows = self.live[start : start + size]
            near = self.table.slice(rows[0], rows[-1] - rows[0] + 1)  # Arrow joins all that it takes rows from
            yield ExportBlock(near.take(rows - rows[0]), self.stored.unit_vectors(rows))

    @property
    def about(self) -> dict[str, str]:
        """What whoever searches the exported vectors has to know."""
        dimension = str(self.artifact.attributes["dimension"])
        return {"space_id": self.artifact.space_id, "index_digest": self.artifact.digest, "dimension": dimension}


def open_source(index: IndexArtifact) -> ExportSource:
    """The documents of a verified index; raises ArtifactError for one that keeps no vectors."""
    stored = open_stored(index.path, index.counts.get("parts", 0))
    if stored is None:
        raise ArtifactError(
            f"{index.path}: the index {index.digest[:12]} keeps no vectors to export ({_why(index)}). "
            "Set index.refine to fp16 and build the index again with `scalingnote retrain`; the encoded vectors are found finished."
        )
    table = _columns(index.path)
    return ExportSource(index, stored, table, live_rows(table.num_rows, read_deleted(index.path, table.num_rows)))


def require_empty(folder: Path) -> None:
    """Raise ConfigError unless `folder` is empty, or a new folder in a place that exists."""
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not an empty folder, and an export never writes over files. Name a new folder in --to.")


def export_parquet(source: ExportSource, folder: Path) -> Artifact:
    """Write all live documents as Parquet shards into the empty `folder` and seal it."""
    require_empty(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = 0
    with progress_bar(len(source.live), "Exporting documents", "doc") as bar:
        for shards, block in enumerate(source.blocks(ROWS_PER_SHARD), start=1):
            write_vectors(vectors_path(folder, shards - 1), block.table.replace_schema_metadata(source.about), block.vectors)
            bar.update(block.table.num_rows)
    return seal(
        folder,
        "export",
        counts={"documents": len(source.live), "shards": shards},
        parents={"index": source.artifact.digest},
        attributes={"space_id": source.artifact.space_id, "dimension": source.artifact.attributes["dimension"]},
    )


def open_qdrant(where: str, collection: str) -> QdrantClient:
    """A client of the Qdrant server at a URL (key in QDRANT_API_KEY), or of an embedded store in a folder or `:memory:`.

    Raises ConfigError without the package qdrant-client and for a name that no collection can have, ExportError when the store does not
    answer or the collection exists.
    """
    from components.towers.trained.vector_stores import first_line, qdrant_client

    if not _NAME.fullmatch(collection) or is_blank(collection):
        raise ConfigError(
            f"'{collection[:60]}' names no collection: Qdrant takes 1 to 255 letters, none of < > : \" / \\ | ? *. Give --collection."
        )
    try:
        client = qdrant_client(where)
        exists = client.collection_exists(collection)
    except ConfigError:
        raise
    except Exception as error:  # the client raises errors of its own, of httpx and of the file lock
        raise ExportError(f"Qdrant at {where} cannot be used: {first_line(error)}. Check the address, QDRANT_API_KEY and access.") from None
    if exists:
        raise ExportError(f"Qdrant at {where} already has a collection '{collection}'. Name another in --collection, or delete it there.")
    return client


def export_qdrant(source: ExportSource, client: QdrantClient, collection: str) -> int:
    """Make `collection` and put all live documents into it: vectors with the inner product as the score, and COLUMNS as payload.

    Returns how many documents the collection holds then; raises ExportError when the store fails or holds another number.
    """
    from qdrant_client.models import Distance, VectorParams

    from components.towers.trained.vector_stores import first_line

    size = int(str(source.artifact.attributes["dimension"]))
    try:
        client.create_collection(collection, VectorParams(size=size, distance=Distance.DOT), metadata=source.about)
    except Exception as error:
        raise ExportError(f"Qdrant does not make the collection '{collection}': {first_line(error)}. Nothing was written there.") from None
    try:
        with progress_bar(len(source.live), "Exporting to Qdrant", "doc") as bar:
            client.upload_points(collection, _points(source, bar), batch_size=POINTS_PER_CALL, wait=True)
        held = int(client.count(collection, exact=True).count)
    except Exception as error:
        raise ExportError(f"Qdrant stopped the export: {first_line(error)}. Delete the collection '{collection}' and try again.") from None
    if held != len(source.live):
        raise ExportError(f"The collection '{collection}' holds {held:,} of {len(source.live):,} documents. Delete it and try again.")
    return held


def _points(source: ExportSource, bar: tqdm) -> Iterator[PointStruct]:
    from qdrant_client.models import PointStruct

    for block in source.blocks(POINTS_PER_CALL):
        for payload, vector in zip(block.table.to_pylist(), block.vectors, strict=True):
            yield PointStruct(id=str(uuid.uuid5(NAMESPACE, payload["doc_id"])), vector=vector.tolist(), payload=payload)
        bar.update(block.table.num_rows)


def _columns(folder: Path) -> pa.Table:
    """doc_id, content_hash and title of every row; an empty title where the index keeps none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    there = [name for name in COLUMNS if name in pq.ParquetFile(folder / IDS_FILE).schema_arrow.names]
    table = read_table(folder, there)
    return table if "title" in there else table.append_column("title", pa.array([""] * table.num_rows, pa.large_string()))


def _why(index: IndexArtifact) -> str:
    refine = index.attributes.get("refine")
    return "index.refine was none when it was built" if refine == "none" else "it was built by an older version"
