"""Build an index from vector shards, part by part, and tune how wide its search has to be, on its own vectors.

In memory stand the sample that trains the template (`train_vectors`), the codes of one part or of the merged index, one shard of vectors,
and the ids. Stored vectors go to disk as they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.artifacts import Artifact, DatasetArtifact, IndexArtifact, Scalar, VectorShards, remove_files, seal, verify
from components.data.dataset import open_table, wide
from components.errors import SpaceMismatch
from components.index.config import IndexConfig
from components.index.engine import Settings, centroid_distances, engine_version, inverted_file
from components.index.index_keys import is_exact, usable_key
from components.index.merging import MERGE_VERSION, can_merge
from components.index.parts import Template, imbalance, merge_parts, train_template, write_part
from components.index.rows import write_rows
from components.index.search import LAYOUT_VERSION, VectorIndex, open_files
from components.index.shards import half_blocks, parts_of, shard_sizes, survey, unit_blocks
from components.text import is_blank, written

if TYPE_CHECKING:
    import pyarrow as pa


REFINE_FACTORS = (1, 2, 3, 4, 6, 8, 12, 16)
WIDEST_GRAPH = 4096  # ef_search
# Rough costs, the same on every machine so that the same vectors give the same index. Measured on one core: a byte of codes that is
# scanned, and a number of a stored vector that is read and multiplied, both in nanoseconds.
_SCANNED_BYTE = 0.1
_REFINED_NUMBER = 0.8


@dataclass(frozen=True)
class Tuned:
    """Search parameters and the recall they reach; a parameter that the index does not have is None."""

    nprobe: int | None
    ef_search: int | None
    refine_factor: int | None
    recall: float
    recall_at: int

    @property
    def settings(self) -> Settings:
        """The parameters as an index takes them."""
        return Settings(self.nprobe, self.ef_search, self.refine_factor)


def tune(index: VectorIndex, queries: NDArray[np.float32], config: IndexConfig, exact: NDArray[np.int64] | None = None) -> Tuned:
    """The cheapest parameters that reach `config.target_recall`; those given in `config` are kept.

    Takes queries float32 (n, d). `exact` are the row numbers (n, k) of their true neighbours; None: asked from the index. When nothing
    reaches the target, the widest search is taken, and its recall says so.
    """
    depth = min(config.recall_at, len(index))
    truth = index.exact_rows(queries, depth) if exact is None else exact[:, :depth]

    def recall(settings: Settings) -> float:
        return mean_recall(replace(index, settings=settings), queries, truth)

    chosen = _cheapest(index, config, depth, recall)
    return Tuned(chosen.nprobe, chosen.ef_search, chosen.refine_factor, recall(chosen), depth)


def mean_recall(index: VectorIndex, queries: NDArray[np.float32], exact: NDArray[np.int64]) -> float:
    """Mean share of the true rows, (n, k), that the index finds with its own parameters."""
    rows = index.found(queries, exact.shape[1])[1]
    return round(float(recall_against_exact(rows.tolist(), exact.tolist()).mean()), 6)


def recall_against_exact(approximate_ids: Sequence[Sequence[Hashable]], exact_ids: Sequence[Sequence[Hashable]]) -> NDArray[np.float64]:
    """Share of each query's exact neighbours that the index found, (n,); 1 for a query without any."""
    pairs = zip(approximate_ids, exact_ids, strict=True)
    return np.array([len(set(found) & set(true)) / len(set(true)) if true else 1.0 for found, true in pairs])


def smallest_reaching(reaches: Callable[[int], bool], most: int) -> int | None:
    """The smallest width from 1 to `most` that reaches the target, if wider never does worse; None when `most` does not.

    Doubles from 1, then halves the last step, so that narrow answers, the usual ones, are found by narrow and cheap searches.
    """
    low, high = 0, 1
    while not reaches(high):
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


def _cheapest(index: VectorIndex, config: IndexConfig, depth: int, recall: Callable[[Settings], float]) -> Settings:
    widest = _widest(index, config, _factors(index, config)[-1])
    best: Settings | None = None
    for factor in _factors(index, config):
        most = widest if best is None else best
        if best is not None and _refining(index, depth, factor) >= _cost(index, best, depth):
            break  # more candidates cost more than the whole search that reaches the target with fewer
        found = _narrowest(replace(most, refine_factor=factor), config, recall)
        if found is not None and (best is None or _cost(index, found, depth) < _cost(index, best, depth)):
            best = found
    return best or widest


def _narrowest(most: Settings, config: IndexConfig, recall: Callable[[Settings], float]) -> Settings | None:
    """The settings with the smallest nprobe or ef_search, at most those of `most`, that reach the target; None when none do."""
    name = next((name for name in ("nprobe", "ef_search") if getattr(most, name) is not None), None)
    given = name is None or getattr(config, name) is not None
    if given or name is None:
        return most if recall(most) >= config.target_recall else None
    width = smallest_reaching(lambda value: recall(replace(most, **{name: value})) >= config.target_recall, getattr(most, name))
    return None if width is None else replace(most, **{name: width})


def _factors(index: VectorIndex, config: IndexConfig) -> Sequence[int | None]:
    if index.stored is None or config.refine == "none":
        return (None,)
    return REFINE_FACTORS if config.refine_factor is None else (config.refine_factor,)


def _widest(index: VectorIndex, config: IndexConfig, factor: int | None) -> Settings:
    most = index.engine.widest()
    nprobe = None if most.nprobe is None else min(config.nprobe or most.nprobe, most.nprobe)
    ef_search = None if most.ef_search is None else config.ef_search or min(WIDEST_GRAPH, most.ef_search)
    return Settings(nprobe, ef_search, factor)


def _cost(index: VectorIndex, settings: Settings, depth: int) -> float:
    """Nanoseconds of one query, roughly."""
    return index.engine.scanned(settings, depth) * _SCANNED_BYTE + _refining(index, depth, settings.refine_factor)


def _refining(index: VectorIndex, depth: int, factor: int | None) -> float:
    return depth * (factor or 0) * index.dimension * _REFINED_NUMBER


# --- Building of the index from the shards of vectors, in bounded memory: one template, then a shard at a time, then the tuning.


TITLE_LENGTH = 80  # characters of a text that stand in for a missing title
COUNTED = 1_000_000  # documents whose repetitions are counted
MEASURED = 16_384  # at most this many vectors of documents say how well the lists fit, or stand in for queries
# What an exact index says of the parameters it does not have.
UNTUNED: Mapping[str, Scalar] = {
    **dict.fromkeys(("nprobe", "ef_search", "refine_factor", "tuned_on", "imbalance", "centroid_distance", "ann_recall_at")),
    "ann_recall": 1.0,
    "tuning_queries": 0,
}


@dataclass(frozen=True)
class Build:
    """What every step of a build needs: the shards, the rows of each, the configuration, and where the index goes."""

    vectors: VectorShards
    sizes: Sequence[int]
    config: IndexConfig
    folder: Path

    @property
    def shards(self) -> Sequence[int]:
        """Numbers of all shards."""
        return range(len(self.sizes))


def build_index(
    vectors: VectorShards,
    config: IndexConfig,
    folder: Path,
    titles: pa.Table | Mapping[str, str] | None = None,
    queries: NDArray[np.float32] | None = None,
) -> IndexArtifact:
    """Write an index of the kind `config.index_key` into `folder`.

    `titles` are what people read in search results, as `write_rows` takes them. `queries`, float32 (n, d), are those whose recall the
    search parameters are tuned to; None: vectors of documents, which is noted. Raises ArtifactError for vectors that were changed or ids
    that occur twice, SpaceMismatch for a shard of another space or queries of another width, ConfigError for a key that does not fit.
    """
    import pyarrow as pa

    verify(vectors.path, vectors.digest)
    build = Build(vectors, shard_sizes(vectors), config, folder)
    key = _key_for(build, queries)
    remove_files(folder)
    read = survey(vectors, build.sizes, 1 if is_exact(key) else config.train_vectors, config.seed)
    template = train_template(key, read.sample, vectors.space_id, config.refine, folder)
    _warn_of_repeats(template, read.documents)
    # A graph, which cannot be merged, is grown as one where one file is asked for.
    grown_whole = config.layout == "merged" and template.index is not None and not can_merge(template.index)
    parts = [list(build.shards)] if grown_whole else parts_of(build.sizes, config.part_size)
    part_of = np.repeat(np.arange(len(parts), dtype=np.int32), [sum(build.sizes[shard] for shard in part) for part in parts])
    write_rows(folder, read.documents.append_column("part", pa.array(part_of)), titles)
    for number, shards in enumerate(parts):
        write_part(folder, number, template, half_blocks(vectors, shards))
    if config.layout == "merged":
        merge_parts(folder, len(parts))
    about = {**_identity(template, config), **UNTUNED, "tuned_documents": sum(build.sizes)}
    if not is_exact(key):
        index = open_files(folder, about, len(parts))
        about |= _measured(build, template, index, read.sample[_spread(len(read.sample), MEASURED)], queries)
    counts = {"documents": sum(build.sizes), "rows": sum(build.sizes), "deleted": 0, "parts": len(parts)}
    made = seal(folder, "index", counts=counts, parents={"vectors": vectors.digest}, attributes=about)
    return IndexArtifact(**made.model_dump())


@dataclass(frozen=True)
class IndexInputs:
    """What an index is made from. `targets`: the teacher's query vectors, which an approximate index is tuned with."""

    vectors: VectorShards
    dataset: DatasetArtifact
    targets: Artifact | None = None


def build_for_dataset(inputs: IndexInputs, config: IndexConfig, folder: Path) -> IndexArtifact:
    """The step build_index: `build_index` with the data set's titles, tuned with the held-out queries of `targets`.

    Without these an approximate index is tuned with documents for queries. Raises as `build_index` does.
    """
    from components.distillation.teacher_targets import held_out_vectors

    queries = held_out_vectors(inputs.targets.path) if inputs.targets else None
    return build_index(inputs.vectors, config, folder, display_titles(inputs.dataset.path / "documents.parquet"), queries)


def display_titles(documents: Path) -> pa.Table:
    """doc_id and title of a dataset artifact's `documents.parquet`; the start of its text stands for the title of a document without one.

    Texts are read only where a title is missing. Raises ArtifactError when the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    pieces = []
    with open_table(documents) as file:
        for group in range(file.num_row_groups):
            table = wide(file.read_row_group(group, columns=["doc_id", "title"]))
            titles = pc.fill_null(table["title"], "")
            unclear = np.flatnonzero(~pc.match_substring_regex(titles, "[0-9A-Za-z]").to_numpy())
            missing = [row for row in unclear.tolist() if is_blank(titles[row].as_py())]
            if missing:
                texts, shown = file.read_row_group(group, columns=["text"])["text"], titles.to_pylist()
                for row in missing:
                    shown[row] = written(texts[row].as_py())[:TITLE_LENGTH]
                titles = pa.array(shown, pa.large_string())
            pieces.append(pa.table({"doc_id": table["doc_id"], "title": titles}))
    if not pieces:
        return pa.table({name: pa.array([], pa.large_string()) for name in ("doc_id", "title")})
    found = pa.concat_tables(pieces)
    # One chunk of titles, so that whoever picks some of them needs no second copy of all.
    return pa.table({"doc_id": found["doc_id"], "title": found["title"].combine_chunks()})


def _key_for(build: Build, queries: NDArray[np.float32] | None) -> str:
    """The resolved key, after every check that needs no vector."""
    documents, dimension = sum(build.sizes), int(build.vectors.attributes["dimension"] or 0)
    key = usable_key(build.config, documents, dimension)
    if queries is not None and (queries.ndim != 2 or queries.shape[1] != dimension or not len(queries)):
        raise SpaceMismatch(
            f"The queries that the index is tuned with have the shape {queries.shape}; the documents have {dimension} dimensions. "
            "Encode the dev queries with the query tower of the same space."
        )
    return key


def _warn_of_repeats(template: Template, documents: pa.Table) -> None:
    """Say that the documents differ less than an inverted file has lists: equal ones share a list, and the others stay empty."""
    import pyarrow.compute as pc

    lists = inverted_file(template.index)
    some = documents["content_hash"].slice(0, COUNTED)
    different = COUNTED if lists is None else pc.count_distinct(some).as_py()
    if lists is not None and different < min(lists.nlist, len(some)):
        print(
            f"Only {different:,} of {len(some):,} documents differ, fewer than the {lists.nlist:,} lists of {template.key}: most lists "
            "stay empty. Leave repeated documents out of the data, or take fewer lists (IVF16,...) or index.index_key=Flat.",
            flush=True,
        )


def _identity(template: Template, config: IndexConfig) -> dict[str, Scalar]:
    return {
        "space_id": template.space_id,
        "dimension": template.dimension,
        "layout_version": LAYOUT_VERSION,
        "index_key": template.key,
        "asked_key": config.index_key,
        "layout": config.layout,
        **({} if template.index is None else {"merge_version": MERGE_VERSION}),
        "template_digest": template.digest,
        "refine": template.refine,
        "faiss_version": engine_version(),
    }


def _measured(
    build: Build, template: Template, index: VectorIndex, sample: NDArray[np.float32], queries: NDArray[np.float32] | None
) -> dict[str, Scalar]:
    """Search parameters and the recall they reach, and how well the lists fit; `sample` are vectors of documents."""
    asked = sample if queries is None else queries
    asked = asked[_spread(len(asked), build.config.tuning_queries)]
    tuned = _tuned(build, index, asked)
    found: dict[str, Scalar] = {"nprobe": tuned.nprobe, "ef_search": tuned.ef_search, "refine_factor": tuned.refine_factor}
    found |= {"ann_recall": tuned.recall, "ann_recall_at": tuned.recall_at, "tuning_queries": len(asked)}
    found["tuned_on"] = "documents" if queries is None else "dev queries"
    if (sizes := index.engine.sizes()) is not None:
        found["imbalance"] = round(imbalance(sizes), 6)
        found["centroid_distance"] = round(float(centroid_distances(template.index, sample).mean()), 6)
    return found


def _tuned(build: Build, index: VectorIndex, queries: NDArray[np.float32]) -> Tuned:
    """The truth comes from the shards, since not every index keeps the vectors as they are."""
    depth = min(build.config.recall_at, len(index))
    exact = index.exact_rows(queries, depth, lambda: unit_blocks(build.vectors, build.shards))
    tuned = tune(index, queries, build.config, exact)
    if tuned.recall < build.config.target_recall:
        print(
            f"The index reaches recall@{depth} {tuned.recall:.3f} at most, below index.target_recall {build.config.target_recall:g}. "
            "Take finer codes, index.refine fp16, or index_key auto.",
            flush=True,
        )
    return tuned


def _spread(rows: int, most: int) -> NDArray[np.int64]:
    """At most `most` of the numbers from 0 to rows - 1, evenly spread."""
    return np.arange(rows) if rows <= most else np.arange(most) * rows // most
