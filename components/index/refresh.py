"""Refresh an index: only documents that changed are encoded, old rows deleted, the whole rewritten when parts or deletions are many.

Earlier parts are linked, not copied. Rows of removed and changed documents are marked as deleted, and a search leaves them out from then
on. When their share reaches `compact_share`, the index is written anew from its stored vectors, without encoding and without training.
"""

from __future__ import annotations

import hashlib
from binascii import unhexlify
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components import settings
from components.artifacts import (
    DatasetArtifact,
    IndexArtifact,
    Scalar,
    VectorShards,
    linked,
    read_manifest,
    remove_files,
    seal,
    verify,
    verify_noted,
    write_json,
)
from components.data.dataset import open_table, wide
from components.errors import ArtifactError, DataError, SpaceMismatch
from components.index.build import display_titles
from components.index.config import IndexConfig
from components.index.corpus import read_slice
from components.index.drift import GUARD_FILE, Watched, watch
from components.index.engine import BLOCK, can_filter, engine_version, read_faiss
from components.index.merging import MERGE_VERSION, can_merge
from components.index.parts import (
    INDEX_FILE,
    TEMPLATE_FILE,
    Template,
    merge_parts,
    open_stored,
    part_files,
    read_template,
    write_part,
)
from components.index.rows import (
    IDS_FILE,
    LOOKED_UP,
    ColumnReader,
    live_marks,
    live_rows,
    looked_up,
    only_rows,
    read_deleted,
    read_table,
    write_deleted,
    write_rows,
)
from components.index.search import LAYOUT_VERSION, layout_version, merge_fault_of, open_files, require_index
from components.index.shards import half_blocks, parts_of, read_shard, shard_sizes

if TYPE_CHECKING:
    import pyarrow as pa


COLUMNS = ("doc_id", "content_hash")
_AT_ONCE = 2**20  # rows that are converted or compared in one go
_DIGITS = np.full(256, 255, np.uint8)  # the value of each hexadecimal digit
_DIGITS[list(b"0123456789abcdefABCDEF")] = [*range(16), *range(10, 16)]
RowNumbers = NDArray[np.int64]


@dataclass(frozen=True)
class Changes:
    """Row numbers, int64 and ascending: `added` and `changed` of the documents, `removed` and `replaced` of the index.

    `replaced` are the rows that held the former content of the `changed` documents. `unchanged` counts the documents that stay.
    """

    added: RowNumbers
    changed: RowNumbers
    removed: RowNumbers
    replaced: RowNumbers
    unchanged: int

    def __bool__(self) -> bool:
        """Whether anything changed."""
        return bool(len(self.encoded) or len(self.deleted))

    @property
    def encoded(self) -> RowNumbers:
        """Rows of the documents that have to be encoded, in their order."""
        return np.sort(np.concatenate([self.added, self.changed]))

    @property
    def deleted(self) -> RowNumbers:
        """Rows of the index that may no longer be returned."""
        return np.sort(np.concatenate([self.removed, self.replaced]))

    @property
    def counts(self) -> dict[str, int]:
        """How many documents were added, changed and removed, and how many stay as they are."""
        return {"added": len(self.added), "changed": len(self.changed), "removed": len(self.removed), "unchanged": self.unchanged}


def changes_since(index_folder: Path, documents: pa.Table) -> Changes:
    """How `documents` (columns doc_id, content_hash; unique ids) differ from those in the index in `index_folder`.

    The index's rows are read a piece at a time: in memory stand 52 bytes a document with an id of 12 letters, and 9 more while it runs.
    Raises ArtifactError when the index's table cannot be read, DataError for an id that stands twice among the documents.
    """
    with open_table(index_folder / IDS_FILE) as file:
        rows = file.metadata.num_rows
        batches = file.iter_batches(batch_size=_AT_ONCE, columns=list(COLUMNS))
        return _compared(batches, live_marks(rows, read_deleted(index_folder, rows)), documents)


def read_documents(dataset_folder: Path) -> pa.Table:
    """The columns doc_id and content_hash (its 32 bytes) of a dataset artifact, in the order of its documents."""
    with open_table(dataset_folder / "documents.parquet") as file:
        return _compact(file.iter_batches(batch_size=_AT_ONCE, columns=list(COLUMNS)))


def find_changes(index: pa.Table, deleted: RowNumbers, documents: pa.Table) -> Changes:
    """Compare the rows of an index, `deleted` ones left out, with documents; both are tables of doc_id and content_hash.

    A document whose id was deleted from the index before counts as added: its old vector is not looked at again.
    """
    return _compared(index.to_batches(max_chunksize=_AT_ONCE), live_marks(index.num_rows, deleted), documents)


def _compared(batches: Iterable[pa.RecordBatch], live: NDArray[np.bool_], documents: pa.Table) -> Changes:
    """Compare the rows that are `live` among those of the `batches` of an index with the documents."""
    after = _compact(documents.to_batches(max_chunksize=_AT_ONCE))
    places, same, start = np.full(len(after), -1, np.int64), np.zeros(len(after), bool), 0
    for piece in _pieces(batches):
        stop = start + len(piece)
        rows = start + np.flatnonzero(live[start:stop])
        before = piece if len(rows) == len(piece) else only_rows(piece, rows - start)
        found, here = looked_up(after["doc_id"], before["doc_id"])
        places[found] = rows[here]
        same[found] = _equal(after["content_hash"], found, before["content_hash"], here)
        start = stop
    known = places >= 0
    gone = live.copy()
    gone[places[known]] = False
    if (twice := int(known.sum()) - int(live.sum()) + int(gone.sum())) > 0:  # those that are new are found when they are encoded
        raise DataError(
            f"{twice:,} documents have the id of another document of the data; the index could hold but one of each. Make the ids unique: "
            "`scalingnote validate` names them where the contract of the documents asks for it (primaryKey)."
        )
    changed = np.flatnonzero(known & ~same)
    return Changes(
        added=np.flatnonzero(~known),
        changed=changed,
        removed=np.flatnonzero(gone),
        replaced=np.sort(places[changed]),
        unchanged=int(same.sum()),
    )


def _pieces(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The batches as tables of at least LOOKED_UP rows, the last one shorter: a table of hashes is made for each."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(map(len, held)) >= LOOKED_UP:
            yield _compact(held)
            held = []
    if held:
        yield _compact(held)


def _compact(batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """doc_id as large_string, and content_hash as its 32 bytes: half the memory of the digits, and no limit of 2 GiB."""
    import pyarrow as pa

    schema = pa.schema([("doc_id", pa.large_string()), ("content_hash", pa.binary(32))])
    found = []
    for batch in batches:
        ids, hashes = batch.column("doc_id").cast(pa.large_string()), batch.column("content_hash")
        if hashes.type != schema.field("content_hash").type:
            hashes = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(hashes), [None, pa.py_buffer(_hash_bytes(hashes))])
        found.append(pa.record_batch([ids, hashes], schema=schema))
    return pa.Table.from_batches(found, schema)


def _hash_bytes(hashes: pa.Array) -> NDArray[np.uint8]:
    """The 32 bytes of each sha256 in hexadecimal digits, of any other text its own sha256; uint8 (n, 32)."""
    import pyarrow as pa

    texts = hashes.cast(pa.large_string())
    if not len(texts):
        return np.empty((0, 32), np.uint8)
    ends = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    if not texts.null_count and (np.diff(ends) == 64).all():
        values = _DIGITS[np.frombuffer(texts.buffers()[2], np.uint8)[ends[0] : ends[-1]].reshape(-1, 2)]
        if (values < 16).all():
            return (16 * values[:, 0] + values[:, 1]).reshape(-1, 32)
    return np.frombuffer(b"".join(_bytes_of(value) for value in texts.to_pylist()), np.uint8).reshape(-1, 32)


def _bytes_of(content_hash: str) -> bytes:
    try:
        found = unhexlify(content_hash)
    except ValueError:
        found = b""
    return found if len(found) == 32 else hashlib.sha256(content_hash.encode()).digest()


def _equal(ours: pa.ChunkedArray, rows: RowNumbers, theirs: pa.ChunkedArray, other_rows: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether the 32 bytes of each of the `rows` are those of the row beside it in `theirs`."""
    same = np.empty(len(rows), bool)
    for start in range(0, len(rows), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        same[some] = (_words(ours, rows[some]) == _words(theirs, other_rows[some])).all(axis=1)
    return same


def _words(column: pa.ChunkedArray, rows: NDArray[Any]) -> NDArray[np.uint64]:
    """Rows of a column of 32 bytes each as numbers, uint64 (len(rows), 4); its chunks stay where they are."""
    found, first = np.empty((len(rows), 4), np.uint64), 0
    for chunk in column.chunks:
        mine = np.flatnonzero((rows >= first) & (rows < first + len(chunk)))
        if len(mine):
            words = np.frombuffer(chunk.buffers()[1], np.uint64)[4 * chunk.offset :][: 4 * len(chunk)].reshape(-1, 4)
            found[mine] = words[rows[mine] - first]
        first += len(chunk)
    return found


# --- Refresh of an index: what did not change is carried over, what was encoded becomes one more part of the same template.


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
    remove_files(folder)
    made = make(previous, delta, update, (template, config, folder))
    write_rows(folder, made.table, titles, _hash_reader(previous, made))
    write_deleted(folder, made.deleted)
    return _sealed(previous, delta, made, (template, config, folder))


@dataclass(frozen=True)
class RefreshInputs:
    """What a refreshed index is made from. `vectors`: of the documents that were added or changed, None where there are none."""

    dataset: DatasetArtifact
    index: IndexArtifact
    vectors: VectorShards | None = None


def refresh_for_dataset(inputs: RefreshInputs, changes: Changes, config: IndexConfig, folder: Path) -> IndexArtifact:
    """The step refresh_index: `refresh_index` with the data set's titles. Raises as that does."""
    titles = display_titles(inputs.dataset.path / "documents.parquet")
    return refresh_index(inputs.index, inputs.vectors, changes, config, folder, titles)


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
        linked(path, folder / path.name)
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
    template, config, folder = place
    about: dict[str, Scalar] = {**_first_layout(previous, config), **previous.attributes}
    about |= {"layout_version": LAYOUT_VERSION, "faiss_version": engine_version(), "rows_at_training": made.at_training}
    about["parts_at_writing"] = made.written
    if made.merge_version is not None:
        about["merge_version"] = made.merge_version
    index = open_files(folder, about, made.parts)
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


def _is_same(file: Path, earlier: Path) -> bool:
    return file.is_file() and file.samefile(earlier)


def _link_if_there(source: Path, target: Path) -> None:
    if source.is_file():
        linked(source, target)
