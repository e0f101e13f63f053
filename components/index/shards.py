"""Vector shards: Parquet files of document vectors, written one by one and read in blocks.

A shard is two files: `vectors-00000.parquet` (doc_id, content_hash, vector fp16) and, written after it, `shard-00000.json`. A shard is
finished if and only if the second verifies the first, so a killed run leaves nothing that counts as done by mistake.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from components.artifacts import Artifact, VectorShards, digest_of, file_sha256, read_versioned, write_json, written_atomically
from components.data.dataset import reading, wide
from components.errors import ArtifactError, SpaceMismatch

if TYPE_CHECKING:
    import pyarrow as pa


SCHEMA_VERSION = 1
# Arrow counts the numbers of all lists of a column with 32 bits: a column of more vectors has several groups of rows.
_MOST_NUMBERS = 2**30
_ROW_GROUP = 2**20  # rows; what pyarrow takes by itself


# --- Formats in which vectors are stored, halves and int8, and what is read from them: float32 of unit length. They stand here and not
# --- with the search that scores stored vectors again, so that a changed search encodes no document anew.


_HALF_BITS = np.int32(-0x70002000)  # 0x8FFFE000: sign, exponent and fraction of a half moved to their places in a float32
_HALF_SCALE = np.float32(2.0**112)  # the difference of the exponents' offsets, 127 - 15


def to_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """The same numbers as float32. Finite halves are moved bit by bit, which takes a third of the time of NumPy's own cast."""
    if values.dtype != np.float16:
        return values.astype(np.float32)
    bits = np.ascontiguousarray(values).view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= _HALF_BITS
    floats = bits.view(np.float32)
    floats *= _HALF_SCALE
    return floats


def unit_rows(values: NDArray[Any]) -> NDArray[np.float32]:
    """float32 (n, d) of unit length: the lengths lost to rounding are restored, so that an inner product is a cosine again."""
    vectors = to_float32(values)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(norms, 1e-12)).astype(np.float32)


def to_int8(vectors: NDArray[np.float32]) -> NDArray[np.int8]:
    """Each row scaled to the whole range of int8. The scale is not kept: vectors are of unit length, so their direction is all."""
    largest = np.maximum(np.abs(vectors).max(axis=1, keepdims=True), 1e-12)
    return np.rint(vectors * (127 / largest)).astype(np.int8)


class ShardManifest(BaseModel):
    """What a shard holds. `inputs` is the digest of the rows it was made from, so a leftover of other rows is not reused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = SCHEMA_VERSION
    rows: int
    sha256: str
    space_id: str
    inputs: str


@dataclass(frozen=True)
class ShardKeys:
    """What names the documents of one shard, in order."""

    number: int
    doc_ids: list[str]
    content_hashes: list[str]

    @property
    def inputs(self) -> str:
        """sha256 (hex) over ids and content hashes in order."""
        return digest_of([self.doc_ids, self.content_hashes])


@dataclass(frozen=True)
class DocumentVectors:
    """All shards together. `vectors` is float32 (n, d) with rows of unit length; row i belongs to doc_ids[i]."""

    doc_ids: list[str]
    content_hashes: list[str]
    shards: list[int]
    vectors: NDArray[np.float32]


def vectors_path(folder: Path, number: int) -> Path:
    """The table of shard `number`."""
    return folder / f"vectors-{number:05d}.parquet"


def shard_manifest_path(folder: Path, number: int) -> Path:
    """The manifest of shard `number`."""
    return folder / f"shard-{number:05d}.json"


def shard_is_finished(folder: Path, keys: ShardKeys, space_id: str) -> bool:
    """Whether the shard on disk holds exactly these documents, encoded into this space, unchanged."""
    try:
        manifest = read_shard_manifest(folder, keys.number)
        same = (manifest.inputs, manifest.space_id) == (keys.inputs, space_id)
        return same and file_sha256(vectors_path(folder, keys.number)) == manifest.sha256
    except (ArtifactError, FileNotFoundError):
        return False


def read_shard_manifest(folder: Path, number: int) -> ShardManifest:
    """The manifest of one shard; raises ArtifactError when missing, broken or of a newer schema."""
    path = shard_manifest_path(folder, number)
    try:
        return ShardManifest.model_validate(read_versioned(path, SCHEMA_VERSION))
    except ValidationError as error:
        raise ArtifactError(f"{path} is not a shard's manifest ({error.errors()[0]['msg']}); run the encoding again.") from None


def write_shard(folder: Path, keys: ShardKeys, vectors: NDArray[np.float32], space_id: str) -> None:
    """Write the vectors, float32 (len(doc_ids), d), as fp16, then the shard's manifest; both atomically."""
    import pyarrow as pa

    columns = {"doc_id": pa.array(keys.doc_ids, pa.large_string()), "content_hash": pa.array(keys.content_hashes, pa.large_string())}
    path = vectors_path(folder, keys.number)
    write_vectors(path, pa.table(columns), vectors)
    manifest = ShardManifest(rows=len(keys.doc_ids), sha256=file_sha256(path), space_id=space_id, inputs=keys.inputs)
    write_json(shard_manifest_path(folder, keys.number), manifest.model_dump())


def write_vectors(path: Path, table: pa.Table, vectors: NDArray[np.float32]) -> None:
    """Write `table` with the vectors, float32 (table.num_rows, d), as its last column `vector`, lists of fp16; atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    dimension = vectors.shape[1]
    step = min(_ROW_GROUP, max(1, _MOST_NUMBERS // dimension))
    schema = table.schema.append(pa.field("vector", pa.list_(pa.float16())))
    with written_atomically(path) as handle, pq.ParquetWriter(handle, schema) as writer:
        for start in range(0, len(vectors), step):
            flat = pa.array(vectors[start : start + step].astype(np.float16).reshape(-1), type=pa.float16())
            lists = pa.FixedSizeListArray.from_arrays(flat, dimension).cast(pa.list_(pa.float16()))
            writer.write_table(table.slice(start, step).append_column("vector", lists), row_group_size=step)


def remove_strays(folder: Path, shards: int) -> None:
    """Remove what a run with other settings left: every file that is none of the first `shards` shards."""
    expected = {path for n in range(shards) for path in (vectors_path(folder, n), shard_manifest_path(folder, n))}
    for path in folder.iterdir():
        if path.is_file() and path not in expected:
            path.unlink()


def read_vectors(artifact: Artifact) -> DocumentVectors:
    """Read all shards in order.

    Raises ArtifactError for a shard that is missing or changed, SpaceMismatch for one that was encoded into another space.
    """
    tables = [read_shard(artifact, n) for n in range(artifact.counts["shards"])]
    if not tables:
        raise ArtifactError(f"{artifact.path} holds no vectors; encode the documents again.")
    return DocumentVectors(
        doc_ids=_strings(tables, "doc_id"),
        content_hashes=_strings(tables, "content_hash"),
        shards=[n for n, table in enumerate(tables) for _ in range(table.num_rows)],
        vectors=np.concatenate([unit_vectors(table) for table in tables]),
    )


def read_shard(artifact: Artifact, number: int) -> pa.Table:
    """doc_id, content_hash and vector of one shard, in order (see `unit_vectors`).

    Raises ArtifactError for a shard that is missing, changed or cannot be read, SpaceMismatch for one that was encoded into another space
    or has another dimension.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    manifest = read_shard_manifest(artifact.path, number)
    path = vectors_path(artifact.path, number)
    if manifest.space_id != artifact.space_id:
        raise SpaceMismatch(
            f"{path}: the shard belongs to the vector space {manifest.space_id[:12]}, the other vectors to {artifact.space_id[:12]}. "
            "Encode the documents again with one document encoder."
        )
    if not path.is_file() or file_sha256(path) != manifest.sha256:
        raise ArtifactError(f"{path} is missing or was changed after it was written. Encode the documents again.")
    # Group by group: Arrow would join the lists of all of them.
    with reading(path), pq.ParquetFile(path) as file:
        groups = [file.read_row_group(number) for number in range(file.num_row_groups)]
        table = wide(pa.concat_tables(groups) if groups else file.read())
    if table.num_rows != manifest.rows:
        raise ArtifactError(f"{path} holds {table.num_rows} rows, its manifest says {manifest.rows}. Encode the documents again.")
    _require_dimension(table, artifact, path)
    return table


def _require_dimension(table: pa.Table, artifact: Artifact, path: Path) -> None:
    dimension = int(artifact.attributes["dimension"] or 0)
    values = sum(len(chunk.flatten()) for chunk in table.column("vector").chunks)
    if values != table.num_rows * dimension:
        raise SpaceMismatch(
            f"{path}: the shard holds vectors of {values // max(1, table.num_rows)} dimensions, the other vectors have {dimension}. "
            "Encode the documents again with one document encoder."
        )


def _strings(tables: Sequence[pa.Table], column: str) -> list[str]:
    return [value for table in tables for value in table.column(column).to_pylist()]


def unit_vectors(table: pa.Table) -> NDArray[np.float32]:
    """float32 (rows, d) of a shard's table; the lengths lost to fp16 are restored, so that an inner product is a cosine again."""
    return unit_rows(half_vectors(table))


def half_vectors(table: pa.Table) -> NDArray[np.float16]:
    """The vectors of a shard's table as they are stored, float16 (rows, d)."""
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table.column("vector").chunks]
    return (flat[0] if len(flat) == 1 else np.concatenate(flat)).reshape(table.num_rows, -1)


# --- What a build reads from the shards of vectors, one shard at a time: ids, a sample, and blocks of vectors.


@dataclass(frozen=True)
class Survey:
    """One reading of all shards: doc_id and content_hash of every row, and a sample of the vectors, float32 (n, d) of unit length."""

    documents: pa.Table
    sample: NDArray[np.float32]


def shard_sizes(vectors: VectorShards) -> list[int]:
    """Rows of each shard; raises ArtifactError when there are none."""
    sizes = [read_shard_manifest(vectors.path, n).rows for n in range(vectors.counts["shards"])]
    if not sum(sizes):
        raise ArtifactError(f"{vectors.path} holds no vectors; encode the documents again.")
    return sizes


def survey(vectors: VectorShards, sizes: Sequence[int], sampled: int, seed: int) -> Survey:
    """Read every shard once; the sample is drawn by `seed` from all rows alike, at most `sampled` of them, in row order.

    Raises ArtifactError for a shard that is missing or changed, and for ids that occur twice, SpaceMismatch for a shard of another space.
    """
    import pyarrow as pa

    rows = sum(sizes)
    chosen = np.sort(np.random.default_rng(seed).choice(rows, min(sampled, rows), replace=False))
    tables, sample, first = [], [], 0
    for number, size in enumerate(sizes):
        table = read_shard(vectors, number)
        tables.append(table.select(["doc_id", "content_hash"]))
        mine = chosen[(chosen >= first) & (chosen < first + size)] - first
        sample.append(half_vectors(table)[mine])
        first += size
    documents = pa.concat_tables(tables)
    _require_unique(documents, vectors)
    return Survey(documents, unit_rows(np.concatenate(sample)))


def half_blocks(vectors: VectorShards, shards: Sequence[int]) -> Iterator[NDArray[np.float16]]:
    """The vectors of some shards as they are stored, float16 (rows, d), a shard at a time."""
    for number in shards:
        yield half_vectors(read_shard(vectors, number))


def unit_blocks(vectors: VectorShards, shards: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """The same as float32 of unit length."""
    return (unit_rows(block) for block in half_blocks(vectors, shards))


def parts_of(sizes: Sequence[int], part_size: int) -> list[list[int]]:
    """Numbers of consecutive shards that make one part each: as many as it takes to hold `part_size` rows."""
    parts: list[list[int]] = [[]]
    rows = 0
    for number, size in enumerate(sizes):
        if rows >= part_size:
            parts.append([])
            rows = 0
        parts[-1].append(number)
        rows += size
    return parts


def _require_unique(documents: pa.Table, vectors: VectorShards) -> None:
    """Compare neighbours in the order of the ids: 33 bytes a row, where Arrow's grouping takes 290 (600,000 ids)."""
    import pyarrow.compute as pc

    ids = documents["doc_id"].combine_chunks()
    order = pc.sort_indices(ids)
    repeated, first = 0, ""
    for start in range(0, len(ids) - 1, _ROW_GROUP):
        some = ids.take(order.slice(start, _ROW_GROUP + 1))
        again = np.flatnonzero(pc.equal(some.slice(1), some.slice(0, len(some) - 1)).to_numpy(zero_copy_only=False))
        first = str(some[int(again[0])]) if len(again) and not repeated else first
        repeated += len(again)
    if repeated:
        raise ArtifactError(
            f"{vectors.path}: {repeated:,} documents have the id of another document, the first is '{first}'. "
            "An answer could not be traced to one document: make the ids unique and encode again."
        )
