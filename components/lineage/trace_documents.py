"""Documents in an index: row, file of the stored vector, and the digest of the content that was encoded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import file_sha256, read_manifest, verify_sizes
from components.errors import ArtifactError, DataError
from components.index.rows import DELETED_FILE, IDS_FILE, read_rows, read_single
from components.release.manifest import Pin
from components.release.references import TRACED
from components.tracking import registry

if TYPE_CHECKING:
    from components.index.rows import Rows

SHARD_FILE = "vectors-{:05d}.parquet"
PART_FILE = "part-{:05d}.vectors.npy"


def checked_index(pin: Pin) -> Path:
    """Folder of a pinned index, the files that name its documents hashed and all others compared by size.

    Raises ArtifactError for a difference. `scalingnote verify` hashes the vectors as well, which takes seconds for a large index.
    """
    folder = registry.artifact_folder(pin.model, pin.version)
    verify_sizes(folder, pin.digest)
    for name, entry in read_manifest(folder).files.items():
        if name in (IDS_FILE, DELETED_FILE) and file_sha256(folder / name) != entry.sha256:
            raise ArtifactError(f"{folder}: the file {name} was changed. Restore it or run the step again.")
    return folder


def find_document(index_folder: Path, doc_id: str) -> dict[str, Any]:
    """Row, file of the stored vector and content hash of a document; raises DataError when the index does not hold it."""
    rows = read_rows(index_folder)
    found = _found(index_folder, rows, [doc_id])[0]
    if found is None:
        raise DataError(
            f"The index of this release has no document '{doc_id}'; it holds {rows.live:,} others. "
            f"Check the id, or give another reference: {TRACED}."
        )
    return found


def find_documents(index_folder: Path, doc_ids: Sequence[str]) -> list[dict[str, Any] | None]:
    """What `find_document` gives for each id; None for one that the index does not hold."""
    return _found(index_folder, read_rows(index_folder), doc_ids)


def _found(index_folder: Path, rows: Rows, doc_ids: Sequence[str]) -> list[dict[str, Any] | None]:
    places = [rows.row_of(doc_id) for doc_id in doc_ids]
    found = iter(read_single(index_folder, ("content_hash", "part", "shard"), [row for row in places if row is not None]))
    return [None if row is None else _described(row, next(found)) for row in places]


def _described(row: int, found: dict[str, Any]) -> dict[str, Any]:
    # Indexes of the first layout keep no vectors of their own, but name the shard of the encoding.
    where = {"shard": SHARD_FILE.format(found["shard"])} if "shard" in found else {"part": PART_FILE.format(found["part"])}
    return {"row": row, **where, "content_hash": found["content_hash"]}
