"""Refresh of an index: what did not change is carried over, what was encoded becomes one more part of the same template.

Earlier parts are linked, not copied. Rows of removed and changed documents are marked as deleted, and a search leaves them out from then
on. When their share reaches `compact_share`, the index is written anew from its stored vectors, without encoding and without training.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components import settings
from components.artifacts import IndexArtifact, Scalar, VectorShards, read_manifest, seal, verify, verify_noted, write_json
from components.data.dataset import open_table, wide
from components.errors import ArtifactError, DataError, SpaceMismatch
from components.index.blocks import half_blocks, parts_of, shard_sizes
from components.index.build import remove_leftovers
from components.index.changes import COLUMNS, Changes
from components.index.config import IndexConfig
from components.index.corpus import read_slice
from components.index.drift import GUARD_FILE, Watched, watch
from components.index.exact import BLOCK
from components.index.index_keys import can_filter
from components.index.merging import MERGE_VERSION, can_merge
from components.index.opening import LAYOUT_VERSION, layout_version, merge_fault_of, open_files, require_index
from components.index.parts import INDEX_FILE, merge_parts, open_stored, part_files, write_part
from components.index.rows import IDS_FILE, ColumnReader, live_rows, only_rows, read_deleted, read_table, write_deleted, write_rows
from components.index.search import vector_index
from components.index.shards import read_shard
from components.index.template import TEMPLATE_FILE, Template, read_faiss, read_template

if TYPE_CHECKING:
    import pyarrow as pa

MOST_ADDED = 64  # parts that refreshes added, each of which is a search of its own


@dataclass(frozen=True)
class _Update:
    """An index on its way: the ids of its rows, the `before` of the previous index first, which of them are deleted, and its parts.

    `hashes` are the content hashes of what was added; those of the previous index stay in its file. `kept` are the rows of that index
    which this one has, None for all. `written` of the parts were written at once, by a build or anew; refreshes added the others.
    `at_training` counts the rows, the first ones, that the template was trained with; `merge_version` says how earlier parts were merged.
    """

    table: pa.Table
    hashes: pa.ChunkedArray
    before: int
    deleted: NDArray[np.int64]
    parts: int
    written: int
    at_training: int
    merge_version: Scalar = None
    kept: NDArray[np.int64] | None = None


def refresh_index(
    previous: IndexArtifact,
    delta: VectorShards | None,
    changes: Changes,
    config: IndexConfig,
    folder: Path,
    titles: pa.Table | Mapping[str, str] | None = None,
) -> IndexArtifact:
    """Write the refreshed index into `folder`, with the guard's report; the same search parameters, tuned when the template was trained.

    `delta` holds the vectors of `changes.encoded`, in that order; None when nothing had to be encoded. When nothing changed at all,
    `previous` is the result, unless FAISS damaged it when it was merged. `titles`: of all documents, as `write_rows` takes them. Raises
    ArtifactError for files that were changed or a delta that does not fit the changes, SpaceMismatch for one of another space, DataError
    when no document would be left.
    """
    require_index(previous, previous.space_id)
    if not changes and merge_fault_of(previous) is None:
        return previous
    verify_noted(previous.path, previous.digest, settings.check_note(previous.path))
    _require_fitting(previous, delta, changes)
    update = _joined(previous, delta, changes)
    template = read_template(previous.path)
    make = _written_anew if _is_due(previous, update, template, config) else _carried_over
    remove_leftovers(folder)
    made = make(previous, delta, update, (template, config, folder))
    write_rows(folder, made.table, titles, _hash_reader(previous, made))
    write_deleted(folder, made.deleted)
    return _sealed(previous, delta, made, (template, config, folder))


_Place = tuple[Template, IndexConfig, Path]


def _require_fitting(previous: IndexArtifact, delta: VectorShards | None, changes: Changes) -> None:
    wanted, given = len(changes.encoded), 0 if delta is None else delta.counts["documents"]
    if delta is not None and delta.space_id != previous.space_id:
        raise SpaceMismatch(
            f"{delta.path}: the changed documents were encoded into the vector space {delta.space_id[:12]}, the index belongs to "
            f"{previous.space_id[:12]}. Encode them with the document tower of the index's own release."
        )
    if delta is not None and delta.attributes["dimension"] != previous.attributes["dimension"]:
        raise SpaceMismatch(
            f"{delta.path}: the vectors have {delta.attributes['dimension']} dimensions, the index has {previous.attributes['dimension']}. "
            "Encode the changes with the document tower of the index's own release."
        )
    if wanted != given:
        raise ArtifactError(f"{wanted:,} documents were added or changed, but vectors of {given:,} are given. Encode the changes again.")
    if delta is not None:
        verify(delta.path, delta.digest)


def _joined(previous: IndexArtifact, delta: VectorShards | None, changes: Changes) -> _Update:
    """The rows of the index with those of the delta behind them, before any file is written."""
    import pyarrow as pa

    before = read_table(previous.path, ("doc_id",))
    none = pa.schema([(name, pa.large_string()) for name in COLUMNS]).empty_table()
    added = pa.concat_tables([none, *(_keys(delta) if delta else ())])
    deleted = np.union1d(read_deleted(previous.path, len(before)), changes.deleted)
    known = previous.attributes.get("rows_at_training")
    update = _Update(
        table=pa.concat_tables([before, added.select(["doc_id"])]),
        hashes=added["content_hash"],
        before=len(before),
        deleted=deleted,
        parts=previous.counts.get("parts", 1),
        written=_written_at_once(previous),
        at_training=len(before) if known is None else int(known),  # 0: none of the rows that it was trained with is left
    )
    if len(deleted) == update.table.num_rows:
        raise DataError("Every document was removed and none was added: an index without documents answers nothing. Check the data folder.")
    _require_unique(update)
    return update


def _written_at_once(previous: IndexArtifact) -> int:
    """How many of the parts no refresh has added. Earlier versions did not record it: the parts of the rows of the training are those."""
    parts, known = previous.counts.get("parts", 1), previous.attributes.get("parts_at_writing")
    trained = previous.attributes.get("rows_at_training")
    if known is not None or trained is None:
        return parts if known is None else int(known)
    of_row = read_table(previous.path, ["part"])["part"]
    return int(of_row[int(trained) - 1].as_py()) + 1 if 0 < int(trained) <= len(of_row) else parts


def _keys(delta: VectorShards) -> Iterator[pa.Table]:
    return (read_shard(delta, number).select(list(COLUMNS)) for number in range(delta.counts["shards"]))


def _hash_reader(previous: IndexArtifact, made: _Update) -> ColumnReader:
    """What gives the content hashes of an index: those that it keeps of the previous one come from its file, a slice at a time."""
    import pyarrow as pa

    path = previous.path / IDS_FILE
    kept = range(made.before) if made.kept is None else made.kept

    def of(start: int, count: int) -> pa.ChunkedArray:
        rows = np.asarray(kept[start : start + count], np.int64)
        chunks = made.hashes.slice(max(0, start - len(kept)), count - len(rows)).chunks
        if len(rows):
            with open_table(path) as file:
                some = wide(read_slice(file, ["content_hash"], int(rows[0]), int(rows[-1]) + 1))
            chunks = [*only_rows(some, rows - rows[0])["content_hash"].chunks, *chunks]
        return pa.chunked_array(chunks, pa.large_string())

    return of


def _require_unique(update: _Update) -> None:
    """A delta that holds a document which is not deleted would be answered twice. In the previous index none stands twice."""
    import pyarrow.compute as pc

    ids, added = update.table["doc_id"].slice(0, update.before), update.table["doc_id"].slice(update.before)
    there = np.flatnonzero(pc.is_in(ids, value_set=added.combine_chunks()).to_numpy())
    twice = len(added) - len(added.unique()) + int((~np.isin(there, update.deleted)).sum())
    if twice:
        raise ArtifactError(
            f"{twice:,} documents would stand in the index twice: the vectors are of other documents than those "
            "that changed. Encode the changes again."
        )


def _is_due(previous: IndexArtifact, update: _Update, template: Template, config: IndexConfig) -> bool:
    """Whether the index has to be written anew, and can be: without stored vectors there is nothing to write it from."""
    if layout_version(previous) < LAYOUT_VERSION:
        return True
    unfiltered = len(update.deleted) > 0 and template.index is not None and not can_filter(template.index)
    fault = merge_fault_of(previous)
    added = update.parts - update.written + (update.table.num_rows > update.before)
    crowded = added > MOST_ADDED or len(update.deleted) >= config.compact_share * update.table.num_rows
    kept = open_stored(previous.path, update.parts) is not None
    if unfiltered and not kept:
        raise ArtifactError(
            f"{previous.path}: an index {template.key} without stored vectors (index.refine is none) can neither leave out documents nor "
            "be written anew without them. Retrain, with index.refine fp16 or an inverted file (IVF...)."
        )
    if fault and not kept:
        raise ArtifactError(f"{fault} This one keeps no vectors (index.refine is none), so only a retraining can build it.")
    return kept and (unfiltered or crowded or fault is not None)


def _carried_over(previous: IndexArtifact, delta: VectorShards | None, update: _Update, place: _Place) -> _Update:
    """Link what there is, and write the delta as one more part."""
    import pyarrow as pa

    template, _, folder = place
    whole = [path for name in (TEMPLATE_FILE, INDEX_FILE) if (path := previous.path / name).is_file()]
    for path in [*whole, *(path for number in range(update.parts) for path in part_files(previous.path, number))]:
        _link(path, folder / path.name)
    numbers = read_table(previous.path, ["part"])["part"].to_numpy()
    if delta is not None:
        write_part(folder, update.parts, template, half_blocks(delta, range(delta.counts["shards"])))
    column = np.concatenate([numbers, np.full(update.table.num_rows - update.before, update.parts, np.int32)])
    table = update.table.append_column("part", pa.array(column, pa.int32()))
    parts, version = update.parts + (delta is not None), previous.attributes.get("merge_version")
    return replace(update, table=table, parts=parts, merge_version=version)


def _written_anew(previous: IndexArtifact, delta: VectorShards | None, update: _Update, place: _Place) -> _Update:
    """Write the rows that are not deleted, and the delta, as an index of the same template without gaps."""
    import pyarrow as pa

    template, config, folder = place
    if template.index is not None:
        _link_if_there(previous.path / TEMPLATE_FILE, folder / TEMPLATE_FILE)
    live = _live(update)
    kept = live[live < update.before]
    blocks = _Blocks(previous, delta, kept)
    merged = previous.attributes.get("layout", config.layout) == "merged"
    grown_whole = merged and template.index is not None and not can_merge(template.index)
    parts = [list(range(len(blocks.sizes)))] if grown_whole else parts_of(blocks.sizes, config.part_size)
    for number, members in enumerate(parts):
        write_part(folder, number, template, (blocks.read(member) for member in members))
    if merged:
        merge_parts(folder, len(parts))
    sizes = [sum(blocks.sizes[member] for member in members) for members in parts]
    part = pa.array(np.repeat(np.arange(len(parts), dtype=np.int32), sizes))
    table = only_rows(update.table, live).append_column("part", part)
    trained, version = int((live < update.at_training).sum()), None if template.index is None else MERGE_VERSION
    return _Update(table, update.hashes, len(table), np.empty(0, np.int64), len(parts), len(parts), trained, version, kept)


class _Blocks:
    """The rows of a new index in blocks: those kept of the previous one, then the shards of the delta."""

    def __init__(self, previous: IndexArtifact, delta: VectorShards | None, kept: NDArray[np.int64]) -> None:
        self._delta, self._kept = delta, [kept[start : start + BLOCK] for start in range(0, len(kept), BLOCK)]
        stored = open_stored(previous.path, previous.counts.get("parts", 1))
        # The first layout has its vectors in the FAISS file alone.
        self._take = read_faiss(previous.path / INDEX_FILE).reconstruct_batch if stored is None else stored.values
        self.sizes: Sequence[int] = [*(len(rows) for rows in self._kept), *(shard_sizes(delta) if delta else ())]

    def read(self, number: int) -> NDArray[Any]:
        """Block `number`, (m, d) as stored."""
        if number < len(self._kept):
            values: NDArray[Any] = self._take(self._kept[number])
            return values
        assert self._delta is not None
        return next(half_blocks(self._delta, [number - len(self._kept)]))


def _sealed(previous: IndexArtifact, delta: VectorShards | None, made: _Update, place: _Place) -> IndexArtifact:
    import faiss

    template, config, folder = place
    about: dict[str, Scalar] = {**_first_layout(previous, config), **previous.attributes}
    about |= {"layout_version": LAYOUT_VERSION, "faiss_version": str(faiss.__version__), "rows_at_training": made.at_training}
    about["parts_at_writing"] = made.written
    if made.merge_version is not None:
        about["merge_version"] = made.merge_version
    index = vector_index(open_files(folder, about, made.parts))
    report = watch(Watched(index, template, about, made.at_training), config)
    write_json(folder / GUARD_FILE, report.model_dump(mode="json"))
    parents = {"index": previous.digest, **({"vectors": delta.digest} if delta else {})}
    counts = {"documents": len(index), "rows": len(index.rows), "deleted": len(made.deleted), "parts": made.parts}
    linked = {name: entry for name, entry in read_manifest(previous.path).files.items() if _is_same(folder / name, previous.path / name)}
    artifact = seal(folder, "index", counts=counts, parents=parents, attributes={**about, "guard": report.status}, known=linked)
    return IndexArtifact(**artifact.model_dump())


def _first_layout(previous: IndexArtifact, config: IndexConfig) -> dict[str, Scalar]:
    """What an index of the first layout, which is always exact, does not say about itself."""
    if layout_version(previous) == LAYOUT_VERSION:
        return {}
    unset = ("template_digest", "nprobe", "ef_search", "refine_factor", "tuned_on", "imbalance", "centroid_distance")
    documents = previous.counts["documents"]
    return {
        **dict.fromkeys(unset),
        "asked_key": "Flat",
        "layout": config.layout,
        "refine": "fp16",
        "ann_recall": 1.0,
        "ann_recall_at": min(config.recall_at, documents),
        "tuning_queries": 0,
        "tuned_documents": documents,
    }


def _live(update: _Update) -> NDArray[np.int64]:
    return live_rows(update.table.num_rows, update.deleted)


def _link(source: Path, target: Path) -> None:
    """A second name for the same file; a copy where the file system has none. Index files are replaced, never written into."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _is_same(file: Path, earlier: Path) -> bool:
    return file.is_file() and file.samefile(earlier)


def _link_if_there(source: Path, target: Path) -> None:
    if source.is_file():
        _link(source, target)
