"""Opening of an index folder, with every check that FAISS does not make."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from components.artifacts import Artifact, Scalar, open_artifact, read_manifest, verify, verify_sizes
from components.errors import ArtifactError, SpaceMismatch
from components.index.exact import BLOCK
from components.index.index_keys import is_exact
from components.index.merging import MERGE_VERSION
from components.index.parts import (
    INDEX_FILE,
    StoredPart,
    has_own_file,
    merge_fault,
    open_mapped,
    open_part,
    open_stored,
    read_part,
    read_parts,
)
from components.index.pieces import Piece, Settings
from components.index.rows import Rows, live_rows, read_rows
from components.index.stored_vectors import StoredVectors
from components.index.template import TEMPLATE_FILE, read_faiss

LAYOUT_VERSION = 2
Check = Literal["full", "sizes"]


@dataclass(frozen=True)
class Opened:
    """What lies in an index folder; `artifact` is None as long as it is not sealed."""

    space_id: str
    dimension: int
    rows: Rows
    pieces: Sequence[Piece]
    stored: StoredVectors | None
    flat: bool
    settings: Settings
    artifact: Artifact | None = None


def open_index(folder: Path, space_id: str, expected_digest: str | None, check: Check) -> Opened:
    """Open a sealed index folder; raises as `components.index.search.load_index` says."""
    artifact = open_artifact(folder)
    require_index(artifact, space_id)
    verify(folder, expected_digest) if check == "full" else verify_sizes(folder, expected_digest)
    if layout_version(artifact) == 1:
        return _open_first_layout(artifact)
    _require_template(artifact)
    if fault := merge_fault_of(artifact):
        # Stopping the search that has answered until now would be worse than a document that it does not find.
        print(f"Warning: {fault} `scalingnote verify` fails until then.", file=sys.stderr, flush=True)
    return open_files(folder, artifact.attributes, artifact.counts["parts"], artifact)


def merge_fault_of(artifact: Artifact) -> str | None:
    """`merge_fault` of a sealed index; None for one that was merged by this version, and for the first layout, which has no parts."""
    if int(artifact.attributes.get("merge_version") or 1) >= MERGE_VERSION or layout_version(artifact) == 1:
        return None
    return merge_fault(artifact.path, [read_part(artifact.path, number) for number in range(artifact.counts.get("parts", 1))])


def require_index(artifact: Artifact, space_id: str) -> None:
    """Raise ArtifactError for what is no index or one of a newer layout, SpaceMismatch for one of another space."""
    if artifact.kind != "index":
        raise ArtifactError(f"{artifact.path} holds an artifact of kind '{artifact.kind}', not an index. Give the index folder.")
    if artifact.space_id != space_id:
        raise SpaceMismatch(
            f"{artifact.path}: the index belongs to the vector space {artifact.space_id[:12]}, the query encoder to {space_id[:12]}. "
            "Searching would return unrelated documents: take the index and the query encoder of the same release."
        )
    if layout_version(artifact) > LAYOUT_VERSION:
        raise ArtifactError(
            f"{artifact.path}: the index has layout version {layout_version(artifact)}; this program reads up to {LAYOUT_VERSION}. "
            "Update scalingnote."
        )


def layout_version(artifact: Artifact) -> int:
    """The version of an index's files; those that do not say it are the first."""
    return int(artifact.attributes.get("layout_version") or 1)


def open_files(folder: Path, about: Mapping[str, Scalar], parts: int, artifact: Artifact | None = None) -> Opened:
    """Open the files of an index of the present layout; `about` are its attributes."""
    rows, dimension, flat = read_rows(folder), int(about["dimension"] or 0), is_exact(str(about["index_key"]))
    space_id, digest = str(about["space_id"]), about["template_digest"]
    found = read_parts(folder, parts, space_id, None if digest is None else str(digest))
    stored = open_stored(folder, parts)
    _require_rows(folder, sum(part.rows for part in found), len(rows))
    _require_stored(folder, found, stored, about)
    pieces = [_exact_piece(stored, dimension, rows)] if flat and stored is not None else _approximate_pieces(folder, found, rows)
    _require_dimension(folder, pieces, dimension)
    names = ("nprobe", "ef_search", "refine_factor")
    settings = Settings(*(None if (value := about.get(name)) is None else int(value) for name in names))
    return Opened(space_id, dimension, rows, pieces, stored, flat, settings, artifact)


def flat_piece(blocks: Iterable[NDArray[np.float32]], dimension: int, rows: NDArray[np.int64] | None = None) -> Piece:
    """Exact search over blocks of vectors, float32 (m, d); `rows` are their row numbers when they are not counted from 0."""
    import faiss

    index = faiss.IndexFlatIP(dimension)
    for block in blocks:
        index.add(np.ascontiguousarray(block, dtype=np.float32))
    return Piece(index, rows=rows)


def _exact_piece(stored: StoredVectors, dimension: int, rows: Rows) -> Piece:
    """Deleted rows are left out and not filtered, so that an index after deletions answers like one built without them."""
    if not len(rows.deleted):
        return flat_piece(stored.blocks(BLOCK), dimension)
    live = live_rows(len(rows), rows.deleted)
    return flat_piece((stored.unit_vectors(live[i : i + BLOCK]) for i in range(0, len(live), BLOCK)), dimension, live)


def _approximate_pieces(folder: Path, parts: Sequence[StoredPart], rows: Rows) -> list[Piece]:
    """The merged file, where there is one, holds the first parts, those without a file of their own."""
    pieces: list[Piece] = []
    merged = sum(part.rows for part in parts if not has_own_file(folder, part.number))
    if merged and not (folder / INDEX_FILE).is_file():
        lost = next(part.number for part in parts if not has_own_file(folder, part.number))
        raise ArtifactError(
            f"{folder}: part-{lost:05d}.faiss is missing, and there is no {INDEX_FILE} that would hold the part. Restore it or build the "
            "index again."
        )
    if merged:
        pieces.append(_piece(open_mapped(folder / INDEX_FILE), 0, merged, rows))
    first = merged
    for part in parts:
        if has_own_file(folder, part.number):
            pieces.append(_piece(open_part(folder, part.number), first, part.rows, rows))
            first += part.rows
    for piece, expected in zip(pieces, _sizes(merged, folder, parts), strict=True):
        _require_rows(folder, piece.index.ntotal, expected)
    return pieces


def _sizes(merged: int, folder: Path, parts: Sequence[StoredPart]) -> list[int]:
    return [*([merged] if merged else []), *(part.rows for part in parts if has_own_file(folder, part.number))]


def _piece(index: Any, first: int, count: int, rows: Rows) -> Piece:
    mine = rows.deleted[(rows.deleted >= first) & (rows.deleted < first + count)]
    return Piece(index, first, deleted=mine - first)


def _open_first_layout(artifact: Artifact) -> Opened:
    """One file `index.faiss` for exact search and `doc_ids.parquet` without the order of the ids."""
    piece, rows = Piece(read_faiss(artifact.path / INDEX_FILE)), read_rows(artifact.path)
    dimension = int(artifact.attributes["dimension"] or 0)
    _require_rows(artifact.path, piece.index.ntotal, len(rows))
    _require_dimension(artifact.path, [piece], dimension)
    return Opened(artifact.space_id, dimension, rows, [piece], None, True, Settings(), artifact)


def _require_template(artifact: Artifact) -> None:
    """The manifest lists the template's sha256 already, so the file is not hashed a second time."""
    entry, stated = read_manifest(artifact.path).files.get(TEMPLATE_FILE), artifact.attributes.get("template_digest")
    found = entry.sha256 if entry else None
    if found != stated:
        raise ArtifactError(
            f"{artifact.path / TEMPLATE_FILE}: the index was made from the template {str(stated)[:12]}, the file is {str(found)[:12]}. "
            "Documents that a refresh adds to it would never be found: restore the file or build the index again."
        )


def _require_stored(folder: Path, parts: Sequence[StoredPart], stored: StoredVectors | None, about: Mapping[str, Scalar]) -> None:
    """Raise ArtifactError when vectors are not kept although they should be, or are not those of the rows."""
    if stored is None:
        if about["refine"] != "none":
            raise ArtifactError(f"{folder}: the vectors of the index (part-00000.vectors.npy) are missing. Restore or build it again.")
        return
    for part, vectors in zip(parts, stored.parts, strict=True):
        if vectors.shape != (part.rows, about["dimension"]):
            raise ArtifactError(
                f"{folder}: part-{part.number:05d}.vectors.npy holds {vectors.shape[0]:,} vectors of {vectors.shape[-1]} dimensions where "
                f"{part.rows:,} of {about['dimension']} are recorded. Restore it or build the index again."
            )


def _require_rows(folder: Path, found: int, expected: int) -> None:
    if found != expected:
        raise ArtifactError(f"{folder}: {found:,} vectors were found where {expected:,} documents are recorded. Build the index again.")


def _require_dimension(folder: Path, pieces: Sequence[Piece], dimension: int) -> None:
    for piece in pieces:
        if piece.index.d != dimension:
            raise ArtifactError(
                f"{folder}: the index holds vectors of {piece.index.d} dimensions, its manifest says {dimension}. Build the index again."
            )
