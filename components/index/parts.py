"""An index as parts on disk, all made from one trained template.

part-00000.json         rows, space and template: FAISS itself checks nothing
part-00000.vectors.npy  (rows, d) float16 or int8, in row order; absent when nothing is refined
part-00000.faiss        absent for exact search, and for parts that lie in index.faiss
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from components.artifacts import file_sha256, open_artifact, read_versioned, write_json
from components.errors import ArtifactError, ConfigError, SpaceMismatch
from components.index.engine import copy_of, empty_index, open_mapped, read_faiss, train, write_faiss
from components.index.index_keys import is_exact
from components.index.merging import Merge, can_merge, lists_damaged_by_faiss
from components.index.shards import to_float32, to_int8, unit_rows

TEMPLATE_FILE = "template.faiss"
Refine = Literal["none", "int8", "fp16"]


@dataclass(frozen=True)
class Template:
    """What every part of an index shares. `index` (trained, empty) and `digest` (sha256 of its file) are None for exact search."""

    key: str
    dimension: int
    space_id: str
    refine: Refine
    index: Any | None
    digest: str | None


def train_template(key: str, sample: NDArray[np.float32], space_id: str, refine: Refine, folder: Path) -> Template:
    """Train on the sample, float32 (n, d) of unit length, and write `template.faiss` into `folder`.

    Exact search has no template file, and always keeps the vectors as fp16: they are its index. Raises ConfigError for a key that FAISS
    cannot train with these vectors.
    """
    dimension = sample.shape[1]
    if is_exact(key):
        return Template(key, dimension, space_id, "fp16", None, None)
    index = empty_index(key, dimension)
    try:
        train(index, sample)
    except (RuntimeError, AssertionError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[-1][-160:]
        raise ConfigError(
            f"index_key {key} cannot be trained with {len(sample):,} vectors of {dimension} dimensions. Take index_key auto, or Flat, "
            f"which needs no training. (FAISS: {said})"
        ) from None
    write_faiss(index, folder / TEMPLATE_FILE)
    return Template(key, dimension, space_id, refine, index, file_sha256(folder / TEMPLATE_FILE))


def read_template(folder: Path) -> Template:
    """The template of the finished index in `folder`; raises ArtifactError when its file is not what the manifest says."""
    artifact = open_artifact(folder)
    about, digest = artifact.attributes, artifact.attributes.get("template_digest")
    shared = (str(about["index_key"]), int(str(about["dimension"])), artifact.space_id)
    if digest is None:
        return Template(*shared, "fp16", None, None)
    path = folder / TEMPLATE_FILE
    if not path.is_file() or file_sha256(path) != digest:
        raise ArtifactError(
            f"{path} is missing or is not the template {str(digest)[:12]} that the index was made from. Build the index again."
        )
    refine: Refine = str(about["refine"])  # type: ignore[assignment]  # written from the same type
    return Template(*shared, refine, read_faiss(path), str(digest))


def imbalance(sizes: NDArray[np.int64]) -> float:
    """FAISS's imbalance factor of list sizes: 1 when all are equal, 2 when a scan reads twice as much as it would then."""
    return float(len(sizes) * np.square(sizes, dtype=np.float64).sum() / max(1.0, float(sizes.sum()) ** 2))


# --- Parts of an index: stored vectors and a FAISS file each, made from one template, merged into one file or searched side by side.


INDEX_FILE = "index.faiss"
PART_VERSION = 1
REBUILD = "Build the index again: `scalingnote retrain`, or `scalingnote refresh-index` where it keeps its vectors."


class StoredPart(BaseModel):
    """What one part on disk says about itself. `template_digest` is None for exact search."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = PART_VERSION
    number: int
    rows: int
    space_id: str
    template_digest: str | None


def write_part(folder: Path, number: int, template: Template, blocks: Iterable[NDArray[Any]]) -> StoredPart:
    """Write part `number` from blocks of vectors, (m, d) float32 of unit length or float16 as stored, in row order.

    Only one block is held in memory, besides the codes of the part. A single array is given as `[vectors]`. The part's own file is
    written last: a part that lacks it is not finished.
    """
    index = None if template.index is None else copy_of(template.index)
    with _file(folder, number, "vectors.npy").open("wb") as handle:
        rows = _write_blocks(handle, blocks, template, index)
    if template.refine == "none":
        _file(folder, number, "vectors.npy").unlink()
    if index is not None:
        write_faiss(index, _file(folder, number, "faiss"))
    part = StoredPart(number=number, rows=rows, space_id=template.space_id, template_digest=template.digest)
    write_json(_file(folder, number, "json"), part.model_dump())
    return part


def read_part(folder: Path, number: int) -> StoredPart:
    """What part `number` says about itself; raises ArtifactError when it is missing, broken or of a newer version."""
    path = _file(folder, number, "json")
    try:
        return StoredPart.model_validate(read_versioned(path, PART_VERSION))
    except ValidationError as error:
        raise ArtifactError(f"{path} does not describe a part of an index ({error.errors()[0]['msg']}). Build the index again.") from None


def read_parts(folder: Path, count: int, space_id: str, template_digest: str | None) -> list[StoredPart]:
    """Parts 0 to count - 1; raises SpaceMismatch or ArtifactError, with its file, for one of another space or another template."""
    parts = [read_part(folder, number) for number in range(count)]
    for part in parts:
        path = _file(folder, part.number, "json")
        if part.space_id != space_id:
            raise SpaceMismatch(
                f"{path}: the part belongs to the vector space {part.space_id[:12]}, the index to {space_id[:12]}. "
                "Its documents would be ranked by chance: encode them with the index's document encoder."
            )
        if part.template_digest != template_digest:
            raise ArtifactError(
                f"{path}: the part was made from the template {_short(part.template_digest)}, the index from {_short(template_digest)}. "
                "Its codes mean nothing there: make the part again from the index's own template."
            )
    return parts


def open_part(folder: Path, number: int) -> Any:
    """The FAISS index of a part, memory-mapped where its type allows it."""
    return open_mapped(_file(folder, number, "faiss"))


def has_own_file(folder: Path, number: int) -> bool:
    """Whether a part has a FAISS file of its own; else it lies in `index.faiss`, or searches its stored vectors."""
    return _file(folder, number, "faiss").is_file()


def part_files(folder: Path, number: int) -> list[Path]:
    """Every file of part `number` that exists, for linking or removing it."""
    return [path for end in ("json", "vectors.npy", "faiss") if (path := _file(folder, number, end)).is_file()]


def stored_vectors(folder: Path, number: int) -> NDArray[Any]:
    """The stored vectors of a part, memory-mapped: (rows, d) float16 or int8; raises ArtifactError when none are kept or readable."""
    path = _file(folder, number, "vectors.npy")
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: the index keeps no vectors. Build it with index.refine fp16 or int8.")
    try:
        return np.asarray(np.load(path, mmap_mode="r"))
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}). Restore it or build the index again.") from None


def open_stored(folder: Path, parts: int) -> StoredVectors | None:
    """The stored vectors of all parts of an index; None when it keeps none."""
    if not _file(folder, 0, "vectors.npy").is_file():
        return None
    return StoredVectors([stored_vectors(folder, number) for number in range(parts)])


def merge_parts(folder: Path, count: int) -> int:
    """Put the FAISS indexes of parts 0 to count - 1 into `index.faiss`, remove their own files, and return the rows.

    One part is in memory at a time, besides the codes of all. Before the parts' files go, `index.faiss` is read again and held against
    what the parts held: rows and a digest of numbers and codes, list by list. Exact indexes have nothing to merge, and kinds that cannot
    be merged (`can_merge`) stay as they are. Raises SpaceMismatch for a part of another space than the first, ArtifactError for one of
    another template than the folder's or of another number of rows, each named, and for a merged file that does not hold its parts.
    """
    template = folder / TEMPLATE_FILE
    parts = read_parts(folder, count, read_part(folder, 0).space_id, file_sha256(template) if template.is_file() else None)
    rows = sum(part.rows for part in parts)
    if not has_own_file(folder, 0) or not can_merge(read_faiss(template)):
        return rows
    merge = Merge()
    for part in parts:
        path = _file(folder, part.number, "faiss")
        index = read_faiss(path)
        if index.ntotal != part.rows:
            raise ArtifactError(f"{path} holds {index.ntotal:,} rows where {part.rows:,} are recorded. Build the index again.")
        try:
            merge.append(index)
        except ArtifactError as error:
            raise ArtifactError(f"{path} cannot be merged: {error} Build the index again.") from None
    del index
    write_faiss(merge.take(), folder / INDEX_FILE)  # and forgotten: the codes of all are not to be in memory twice
    _require_merged(folder / INDEX_FILE, rows, merge)
    for part in parts:
        _file(folder, part.number, "faiss").unlink()
    return rows


def _require_merged(path: Path, rows: int, merge: Merge) -> None:
    """Remove a merged file that does not hold what its parts held, and raise ArtifactError with the first list that differs."""
    index = open_mapped(path)
    lost = f"it says that it holds {index.ntotal:,} rows" if index.ntotal != rows else merge.difference(index)
    if lost is not None:
        path.unlink()
        raise ArtifactError(
            f"{path} was merged from parts of {rows:,} rows, but {lost}. The parts are whole and the merged file was removed: "
            "check the memory and disk of this machine, and build the index again."
        )


def merge_fault(folder: Path, parts: Sequence[StoredPart]) -> str | None:
    """What is wrong with an `index.faiss` that FAISS merged itself, as versions before MERGE_VERSION 2 did; None for what is sound.

    FAISS's `merge_from` wrote past its buffers at lists of certain lengths (`components.index.merging`). Whether it did, follows from
    the rows of the parts and the row numbers in the lists. Raises ArtifactError when these numbers themselves were written over.
    """
    merged = [part.rows for part in parts if not has_own_file(folder, part.number)]
    if len(merged) < 2 or not (folder / INDEX_FILE).is_file():
        return None
    try:
        damaged = lists_damaged_by_faiss(open_mapped(folder / INDEX_FILE), merged)
    except ArtifactError as error:
        raise ArtifactError(f"{folder / INDEX_FILE} was damaged when it was merged: {error}. {REBUILD}") from None
    if not damaged:
        return None
    return (
        f"{folder / INDEX_FILE} was merged by an earlier version, in which FAISS wrote past its memory at {len(damaged):,} of its lists "
        f"(the first is list {damaged[0]}): codes of any list may be wrong, and documents not found. {REBUILD}"
    )


def _write_blocks(handle: BinaryIO, blocks: Iterable[NDArray[Any]], template: Template, index: Any | None) -> int:
    """Append every block to an .npy file and to `index`; returns the rows."""
    dtype, rows = np.int8 if template.refine == "int8" else np.float16, 0
    _write_header(handle, rows, template.dimension, dtype)
    for block in blocks:
        half = block.astype(np.float16, copy=False)
        # What is searched is what is stored: the index is made from the rounded vectors, too.
        unit = unit_rows(half)
        if index is not None:
            index.add(unit)
        if template.refine != "none":
            handle.write((to_int8(unit) if template.refine == "int8" else half).tobytes())
        rows += len(block)
    handle.seek(0)
    _write_header(handle, rows, template.dimension, dtype)
    return rows


def _write_header(handle: BinaryIO, rows: int, dimension: int, dtype: type[Any]) -> None:
    # NumPy leaves room for the number of rows to grow, so the header can be written again when it is known.
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (rows, dimension)}
    np.lib.format.write_array_header_1_0(handle, header)


def _file(folder: Path, number: int, end: str) -> Path:
    return folder / f"part-{number:05d}.{end}"


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]


# --- Stored vectors, memory-mapped: they score the best candidates of an approximate search again, and answer exact searches.


_AT_ONCE = 2**21  # numbers held as float32 while candidates are scored: what stays in a core's cache is several times faster


@dataclass(frozen=True)
class StoredVectors:
    """The stored vectors of all parts, (rows of the part, d) float16 or int8, as one matrix. Of each row only the direction counts."""

    parts: Sequence[NDArray[Any]]

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(len(part) for part in self.parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def scores(self, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Inner products of query i with the unit vectors of rows[i]: float32 (n, c); -inf where a row is -1.

        Rows in ascending order are read fastest.
        """
        scores = np.empty(rows.shape, np.float32)
        step = max(1, _AT_ONCE // max(1, rows.shape[1] * queries.shape[1]))
        for start in range(0, len(rows), step):
            some = slice(start, start + step)
            vectors = self.values(np.maximum(rows[some], 0).reshape(-1)).reshape(*rows[some].shape, -1)
            lengths = np.sqrt(np.einsum("ncd,ncd->nc", vectors, vectors))
            scores[some] = (vectors @ queries[some, :, None])[..., 0] / np.maximum(lengths, np.float32(1e-12))
        scores[rows < 0] = -np.inf
        return scores

    def unit_vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of unit length, float32 (len(rows), d)."""
        return unit_rows(self.values(rows))

    def blocks(self, size: int) -> Iterator[NDArray[np.float32]]:
        """All vectors in row order, of unit length, at most `size` rows at a time and none across two parts."""
        for first, part in zip(self._starts, self.parts, strict=False):
            for start in range(0, len(part), size):
                yield self.unit_vectors(np.arange(first + start, first + min(start + size, len(part))))

    def values(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Stored values as they are, float32 (len(rows), d)."""
        if len(self.parts) == 1:
            return to_float32(self.parts[0].take(rows, axis=0))
        found = np.empty((len(rows), self.parts[0].shape[1]), self.parts[0].dtype)
        of_part = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(of_part):
            mine = of_part == number
            found[mine] = self.parts[number].take(rows[mine] - self._starts[number], axis=0)
        return to_float32(found)
