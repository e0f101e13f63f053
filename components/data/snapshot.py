"""Write a source as a dataset artifact. It stands apart from reading one, so that a changed reader of sources trains nothing anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

from components.artifacts import DatasetArtifact, seal
from components.data.config import DataConfig
from components.data.dataset import IDENTICAL, SOURCES, TABLES, TRANSLATED, RawTables, identical_ids, origin_of, write_table
from components.data.left_out import counts_of, write_left_out
from components.data.sources import read_source, source_digest, source_name
from components.errors import DataError


def snapshot(config: DataConfig, folder: Path, expected: str | None = None) -> DatasetArtifact:
    """Write the source's tables as Parquet into `folder`, broken rows included, and seal them.

    Beside them lie the rows that the configuration drops, with reasons. Raises DataError, also when the files are not those of the
    digest `expected` (None: of the digest they have now) once they have been read.
    """
    expected = expected or source_digest(config)
    tables = read_source(config)
    with ThreadPoolExecutor(1) as beside:
        reading_again = beside.submit(source_digest, config)
        for name in (*TABLES, *([TRANSLATED] if len(tables.translated) else [])):
            write_table(getattr(tables, name), folder / f"{name}.parquet")
        read_from = reading_again.result()
    if read_from != expected:
        raise DataError(f"The data {config.source} changed while it was read. Run the command again when nobody writes to it.")
    write_left_out(tables.left_out, folder)
    sizes = {key: value for key, value in tables.notes.items() if isinstance(value, int)}
    labels = {key: value for key, value in tables.notes.items() if key not in sizes}
    attributes = {"name": source_name(config), "source_digest": read_from, **labels}
    if tables.sources:  # names of folders hold no slash, so one stands between them
        attributes[SOURCES] = "/".join(tables.sources)
    attributes[IDENTICAL] = config.ignore_identical_ids
    counts = {**_counts(tables), **sizes, **counts_of(tables.left_out)}
    return cast("DatasetArtifact", seal(folder, "dataset", counts=counts, attributes=attributes))


def _counts(tables: RawTables) -> dict[str, int]:
    relevant = tables.judgements.loc[tables.judgements["score"] > 0]
    judged: Mapping[str, int] = relevant.groupby("split")["query_id"].nunique().to_dict()
    found = identical_ids(tables.documents, tables.queries)
    same = {"queries_that_are_documents": len(found.same_text), "queries_with_the_id_of_another_document": len(found.other_text)}
    splits = {"train": 0, "dev": 0, "test": 0, **{str(split): int(count) for split, count in judged.items()}}
    return {
        "documents": len(tables.documents),
        "queries": len(tables.queries),
        "judgements": len(tables.judgements),
        "unlabelled": len(tables.unlabelled),
        **({TRANSLATED: len(tables.translated)} if len(tables.translated) else {}),
        **{f"{split}_queries": count for split, count in splits.items()},
        **_counts_by_source(tables),
        **{name: count for name, count in same.items() if count},
    }


def _counts_by_source(tables: RawTables) -> dict[str, int]:
    """Documents and train queries of each of the mixed data sets; none when nothing is mixed."""
    if not tables.sources:
        return {}
    train = tables.judgements.loc[(tables.judgements["score"] > 0) & (tables.judgements["split"] == "train"), "query_id"].unique()
    found: dict[str, int] = {}
    for label, ids in (("documents", tables.documents["doc_id"]), ("train_queries", train)):
        origins = Counter(origin_of(str(identifier), tables.sources) for identifier in ids)
        found |= {f"{label}_of_{name}": origins[name] for name in tables.sources}
    return found
