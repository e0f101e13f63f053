"""Read a source, a folder or the built-in set, into tables; and name its content by a digest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pandas as pd

from components.artifacts import digest_of, file_sha256
from components.data import icd10cm, jsonl, parquet
from components.data.config import DataConfig
from components.data.layout import SourceFiles, locate
from components.data.subset import hold_out_dev, keep_documents
from components.data.tables import RawTables, query_table

UNLABELLED_ID = "unlabelled"


def read_source(config: DataConfig) -> RawTables:
    """The tables of `config.source`, cut to `max_documents`, with a dev split; raises DataError for what cannot be read."""
    tables = icd10cm.build(config.scope) if _built_in(config) else _read_folder(locate(_folder(config)))
    sizes = {"source_documents": len(tables.documents), "source_queries": len(tables.queries)}
    tables = replace(tables, notes={**tables.notes, **sizes})
    if config.max_documents is not None:
        tables = keep_documents(tables, config.max_documents, config.seed)
    return hold_out_dev(tables, config.dev_share, config.seed)


def source_digest(config: DataConfig) -> str:
    """sha256 over the source's files by name and content; for the built-in set over its list and builder."""
    if _built_in(config):
        return icd10cm.source_digest()
    folder = _folder(config)
    return digest_of({path.relative_to(folder).as_posix(): file_sha256(path) for path in locate(folder).all()})


def source_name(config: DataConfig) -> str:
    """The built-in set's name, or the base name of the folder."""
    return config.source if _built_in(config) else _folder(config).resolve().name


def _built_in(config: DataConfig) -> bool:
    return config.source == icd10cm.NAME


def _folder(config: DataConfig) -> Path:
    return Path(config.source).expanduser()


def _read_folder(files: SourceFiles) -> RawTables:
    unlabelled = files.unlabelled
    qrels = [_reader(path).read_qrels(path, split) for split, path in files.qrels.items()]
    return RawTables(
        documents=_reader(files.documents).read_documents(files.documents),
        queries=_reader(files.queries).read_queries(files.queries),
        judgements=pd.concat(qrels, ignore_index=True),
        unlabelled=_reader(unlabelled).read_queries(unlabelled, UNLABELLED_ID) if unlabelled else query_table([], []),
    )


def _reader(path: Path) -> ModuleType:
    return parquet if path.suffix == ".parquet" else jsonl
