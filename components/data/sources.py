"""Read sources, folders or the built-in set, into tables; and name their content by a digest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pandas as pd

from components import settings
from components.artifacts import digest_of, file_sha256
from components.data import icd10cm, jsonl, parquet
from components.data.config import DataConfig
from components.data.layout import SourceFiles, locate
from components.data.mixing import mix, mixed_name, require_different
from components.data.subset import hold_out_dev, keep_documents
from components.data.tables import RawTables, query_table
from components.errors import DataError

UNLABELLED_ID = "unlabelled"


def read_source(config: DataConfig) -> RawTables:
    """The tables of `config.source` and `config.mix`, cut to `max_documents`, with dev queries of each.

    Raises DataError for what cannot be read or mixed.
    """
    parts = {name: _read_one(part) for name, part in _parts(config).items()}
    tables = mix(parts) if config.mix else next(iter(parts.values()))
    sizes = {"source_documents": len(tables.documents), "source_queries": len(tables.queries)}
    tables = replace(tables, notes={**tables.notes, **sizes})
    if config.max_documents is not None:
        tables = keep_documents(tables, config.max_documents, config.seed)
    return hold_out_dev(tables, config.dev_share, config.seed)


def source_digest(config: DataConfig) -> str:
    """sha256 over the sources' files by name and content; for the built-in set over its list and builder.

    Raises DataError for a folder that is missing or cannot be mixed.
    """
    digests = {name: _digest_of_one(part) for name, part in _parts(config).items()}
    return digest_of(list(digests.items())) if config.mix else next(iter(digests.values()))


def source_name(config: DataConfig) -> str:
    """The built-in set's name, or the base name of the folder; mixed ones with a plus between them."""
    return "+".join(_parts(config))


def _parts(config: DataConfig) -> dict[str, DataConfig]:
    """The configuration of each single source by its name, `config.source` first."""
    names = [config.source if _built_in(config) else _folder(config).resolve().name, *(mixed_name(source) for source in config.mix)]
    require_different(names)
    single = [config.model_copy(update={"source": source, "mix": ()}) for source in (config.source, *config.mix)]
    return dict(zip(names, single, strict=True))


def _read_one(config: DataConfig) -> RawTables:
    return icd10cm.build(config.scope) if _built_in(config) else _read_folder(locate(_folder(config)))


def _digest_of_one(config: DataConfig) -> str:
    if _built_in(config):
        return icd10cm.source_digest()
    folder = _folder(config)
    return digest_of({path.relative_to(folder).as_posix(): file_sha256(path) for path in locate(folder).all()})


def _built_in(config: DataConfig) -> bool:
    return config.source == icd10cm.NAME


def _folder(config: DataConfig) -> Path:
    return settings.expanded(config.source)


def _read_folder(files: SourceFiles) -> RawTables:
    unlabelled = files.unlabelled
    qrels = [_reader(path).read_qrels(path, split) for split, path in files.qrels.items()]
    return RawTables(
        documents=_read_documents(files.documents),
        queries=_reader(files.queries).read_queries(files.queries),
        judgements=pd.concat(qrels, ignore_index=True),
        unlabelled=_reader(unlabelled).read_queries(unlabelled, UNLABELLED_ID) if unlabelled else query_table([], []),
    )


def _read_documents(shards: Sequence[Path]) -> pd.DataFrame:
    """The documents of all shards, one after the other. An id that stands twice in one file is left to the contracts."""
    frames = [_reader(path).read_documents(path) for path in shards]
    _require_apart(shards, [frame["doc_id"] for frame in frames])
    return pd.concat(frames, ignore_index=True)


def _require_apart(shards: Sequence[Path], ids: Sequence[pd.Series]) -> None:
    """Raises DataError with both files of an id that stands in two of them."""
    known = pd.concat(ids, keys=range(len(ids)), names=["shard", "row"]).dropna().reset_index("shard")
    first = known.groupby("doc_id")["shard"].transform("min")
    again = known.loc[known["shard"] != first]
    if len(again):
        doc_id, second = again.iloc[0]["doc_id"], again.iloc[0]["shard"]
        both = f"{shards[int(first.loc[known['shard'] != first].iloc[0])]} and {shards[int(second)]}"
        raise DataError(f"The document id '{doc_id}' stands in two files: {both} ({len(again)} such rows). Keep one of them.")


def _reader(path: Path) -> ModuleType:
    return parquet if path.suffix == ".parquet" else jsonl
