"""A teacher of which only vectors are left: both towers answer from a table, and say so where a text has no vector in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.data.dataset import content_hash
from components.errors import ArtifactError, ModelError
from components.progress import Progress
from components.towers.contract import EncodingContract, load_contract

if TYPE_CHECKING:
    import pyarrow as pa

BASE = "vectors"  # what `towers.base_model` names
TABLE = "vectors.parquet"
BLOCK = 65_536  # rows that are looked at together
# Of a group of rows in a file: Arrow writes four bytes more for each number of a list than it has, and reads 2**31 of one group at most.
MOST_NUMBERS = 2**28
_ROW_GROUP = 2**20  # rows; what pyarrow takes by itself


@dataclass(frozen=True)
class VectorTable:
    """Vectors by id: `vectors` float32 (n, d) of unit length, `norms` the least, mean and largest length before; `remarks` for people."""

    ids: list[str]
    vectors: NDArray[np.float32]
    norms: tuple[float, float, float]
    remarks: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Identity of ids and vectors, in whatever order or format they came."""
        order = np.argsort(np.array(self.ids, dtype=object), kind="stable")
        found = hashlib.sha256(json.dumps([self.ids[i] for i in order]).encode())
        for start in range(0, len(order), BLOCK):
            found.update(np.ascontiguousarray(self.vectors[order[start : start + BLOCK]]).tobytes())
        return found.hexdigest()


class TextVectors:
    """A tower without an encoder (see `components.towers.contract.TextEncoder`): the vectors of the texts that it knows."""

    def __init__(self, rows: Mapping[str, Sequence[str]], vectors: NDArray[np.float32], contract: EncodingContract, space_id: str) -> None:
        """`rows`: ids and `content_hash` of the texts, in the order of `vectors`, float32 (n, dimension) of unit length."""
        self.contract, self.space_id = contract, space_id
        self._ids, self._hashes, self._vectors = rows["id"], rows["content_hash"], vectors
        self._stand_ins: dict[str, NDArray[np.float32]] = {}

    def encode(self, texts: Sequence[str], batch_size: int | None = None, progress: Progress = None) -> NDArray[np.float32]:
        """The stored unit vectors (len(texts), dimension); raises ModelError, with counts, for texts that have none."""
        hashes = [content_hash(text) for text in texts]
        found = [self._of_hash(digest) for digest in hashes]
        if missing := [text for text, vector in zip(texts, found, strict=True) if vector is None]:
            raise ModelError(self._lacking(missing, len(texts)))
        return np.stack([vector for vector in found if vector is not None]) if found else np.empty((0, self.contract.dimension), np.float32)

    def of_documents(self, doc_ids: Sequence[str], hashes: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of documents by id, float32 (n, dimension); raises ModelError for those that are new or whose text changed."""
        rows = [self._row_of_id.get(name) for name in doc_ids]
        new = [name for name, row in zip(doc_ids, rows, strict=True) if row is None]
        changed = [n for n, row, digest in zip(doc_ids, rows, hashes, strict=True) if row is not None and self._hashes[row] != digest]
        if new or changed:
            raise ModelError(
                f"{len(new):,} documents are new and {len(changed):,} have another text than the one that was encoded "
                f"(first: '{(new or changed)[0]}'), and this release holds vectors without their encoder. Encode them with the model that "
                "made the others, and run `scalingnote adopt` with all vectors."
            )
        return self._vectors[[row for row in rows if row is not None]]

    def knows(self, texts: Iterable[str]) -> list[bool]:
        """Whether each text has a vector of its own."""
        return [content_hash(text) in self._row_of_hash for text in texts]

    def with_stand_ins(self, vectors: Mapping[str, NDArray[np.float32]]) -> TextVectors:
        """The same tower, which gives these unit vectors, float32 (dimension,), for texts that have none of their own."""
        other = TextVectors({"id": self._ids, "content_hash": self._hashes}, self._vectors, self.contract, self.space_id)
        other._stand_ins = {content_hash(text): vector for text, vector in vectors.items()}
        return other

    def _of_hash(self, digest: str) -> NDArray[np.float32] | None:
        row = self._row_of_hash.get(digest)
        return self._stand_ins.get(digest) if row is None else self._vectors[row]

    @cached_property
    def _row_of_hash(self) -> dict[str, int]:
        # The first of equal texts: one encoder gave all of them one vector.
        return {digest: row for row, digest in reversed(list(enumerate(self._hashes)))}

    @cached_property
    def _row_of_id(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self._ids)}

    def _lacking(self, missing: Sequence[str], asked: int) -> str:
        what = "queries" if self.contract.role == "query" else "documents"
        return (
            f"{len(missing):,} of {asked:,} texts have no stored vector (first: '{missing[0][:60]}'), and the encoder that made the others "
            f"is not here. Add their vectors to those of the {what}, or name the encoder in towers.base_model."
        )


def load_stored(folder: Path) -> TextVectors:
    """Load a tower of stored vectors; raises ArtifactError when they are not those of its contract."""
    import pyarrow as pa

    contract, space_id = load_contract(folder)
    try:
        table = read_table(folder / TABLE)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{folder / TABLE} cannot be read ({str(error).splitlines()[0]}). Adopt the vectors again.") from None
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table.column("vector").chunks]
    vectors = (np.concatenate(flat) if flat else np.empty(0, np.float32)).reshape(-1, contract.dimension)
    rows = {name: table.column(name).to_pylist() for name in ("id", "content_hash")}
    if VectorTable(rows["id"], vectors, (1.0, 1.0, 1.0)).digest != contract.base_digest:
        raise ArtifactError(f"{folder}: the vectors are not those its contract names. Restore the tower, or adopt the vectors again.")
    return TextVectors(rows, vectors, contract, space_id)


def write_table(path: Path, columns: Mapping[str, Any], vectors: NDArray[Any]) -> None:
    """Write `columns`, Arrow's arrays or lists by name, and behind them the column `vector`: (n, d) of any kind of float, as it is."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, width = pa.table(dict(columns)), vectors.shape[1]
    step = min(_ROW_GROUP, max(1, MOST_NUMBERS // max(1, width)))

    def lists(start: int, stop: int) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(vectors[start:stop].reshape(-1)), width)

    schema = table.schema.append(pa.field("vector", lists(0, 0).type))
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, max(1, len(vectors)), step):
            group = pa.table([*table.slice(start, step).columns, lists(start, start + step)], schema=schema)
            writer.write_table(group, row_group_size=step)


def read_table(path: Path) -> pa.Table:
    """What `write_table` wrote, group by group: Arrow would join the lists of all. Raises OSError or ArrowException."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        groups = [file.read_row_group(number) for number in range(file.num_row_groups)]
        return pa.concat_tables(groups) if groups else file.read()
