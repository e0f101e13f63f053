"""Read sources, folders or the built-in set, into tables; and name their content by a digest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pandas as pd

from components import settings
from components.artifacts import digest_of, file_sha256
from components.data import delimited, icd10cm, ir_sets, jsonl, parquet
from components.data.config import DataConfig
from components.data.layout import SourceFiles, locate
from components.data.left_out import leave_out
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
    """The built-in set's name, that of a set of ir_datasets, or the base name of the folder; mixed ones with a plus between them."""
    return "+".join(_parts(config))


def _parts(config: DataConfig) -> dict[str, DataConfig]:
    """The configuration of each single source by its name, `config.source` first."""
    names = [_own_name(config), *(mixed_name(source) for source in config.mix)]
    require_different(names)
    single = [config.model_copy(update={"source": source, "mix": ()}) for source in (config.source, *config.mix)]
    return dict(zip(names, single, strict=True))


def remarks_on(config: DataConfig) -> list[str]:
    """In sentences: which files were read as something else than their names say, and which files of the folders were not read, and why."""
    said = []
    for name, part in _parts(config).items() if not _built_in(config) or config.mix else ():
        if not _built_in(part) and not ir_sets.is_named(part.source):
            files = locate(_folder(part))
            said += [f"{name}: {remark}" for remark in files.remarks]
            said += [f"{name}: {path} is not read: {reason}." for path, reason in files.unread.items()]
    return said


def _read_one(config: DataConfig) -> RawTables:
    if _built_in(config):
        return leave_out(icd10cm.build(config.scope), config)
    if ir_sets.is_named(config.source):
        return leave_out(ir_sets.read(config.source), config)
    return leave_out(_read_folder(locate(_folder(config)), config.on_violation.exact_duplicates == "drop"), config)


def _digest_of_one(config: DataConfig) -> str:
    if _built_in(config):
        return icd10cm.source_digest()
    if ir_sets.is_named(config.source):
        return ir_sets.digest(config.source)
    folder = _folder(config)
    try:
        return digest_of({path.relative_to(folder).as_posix(): file_sha256(path) for path in locate(folder).all()})
    except OSError as error:
        raise DataError(f"The data folder {folder} cannot be read: {error.strerror}: {error.filename}. Check its permissions.") from None


def _own_name(config: DataConfig) -> str:
    if _built_in(config):
        return config.source
    return ir_sets.name_of(config.source) if ir_sets.is_named(config.source) else _folder(config).resolve().name


def _built_in(config: DataConfig) -> bool:
    return config.source == icd10cm.NAME


def _folder(config: DataConfig) -> Path:
    return settings.expanded(config.source)


def _read_folder(files: SourceFiles, repeats: bool) -> RawTables:
    """The tables of the files. With `repeats`, an id may stand in two shards of a table: what to do about it is decided later."""
    documents = [_reader(path).read_documents(path) for path in files.documents]
    queries = [_reader(path).read_queries(path) for path in files.queries]
    if not repeats:
        _require_apart(files.documents, [frame["doc_id"] for frame in documents], "document")
        _require_apart(files.queries, [frame["query_id"] for frame in queries], "query")
    qrels = [_judgements(split, paths) for split, paths in files.qrels.items()]
    numbered = [UNLABELLED_ID] if len(files.unlabelled) == 1 else [f"{UNLABELLED_ID}-{n}" for n in range(1, len(files.unlabelled) + 1)]
    unlabelled = [_reader(path).read_queries(path, name) for path, name in zip(files.unlabelled, numbered, strict=True)]
    return RawTables(
        documents=pd.concat(documents, ignore_index=True),
        queries=pd.concat(queries, ignore_index=True),
        judgements=pd.concat(qrels, ignore_index=True),
        unlabelled=pd.concat([query_table([], []), *unlabelled], ignore_index=True),
        notes={"remarks": " ".join(files.remarks)} if files.remarks else {},
    )


def _judgements(split: str, paths: Sequence[Path]) -> pd.DataFrame:
    """The judgements of one split. A file without any is no split: dev would be held out of train in its place without a word."""
    table = pd.concat([_reader(path).read_qrels(path, split) for path in paths], ignore_index=True)
    if table.empty:
        raise DataError(f"{paths[0]} holds no judgements. Fill it, or remove the file.")
    return table


def _require_apart(shards: Sequence[Path], ids: Sequence[pd.Series], what: str) -> None:
    """Raises DataError with both files of an id that stands in two of them; one that stands twice in one file is left to the contracts."""
    if len(shards) == 1:
        return
    known = pd.concat(ids, keys=range(len(ids)), names=["shard", "row"]).rename("id").dropna().reset_index("shard")
    first = known.groupby("id")["shard"].transform("min")
    again = known.loc[known["shard"] != first]
    if len(again):
        identifier, second = again.iloc[0]["id"], again.iloc[0]["shard"]
        both = f"{shards[int(first.loc[known['shard'] != first].iloc[0])]} and {shards[int(second)]}"
        raise DataError(f"The {what} id '{identifier}' stands in two files: {both} ({len(again)} such rows). Keep one of them.")


def _reader(path: Path) -> ModuleType:
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".parquet"):
        return parquet
    return jsonl if name.endswith(".jsonl") else delimited
