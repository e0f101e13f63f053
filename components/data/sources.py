"""Read sources into tables: folders, the built-in set, data sets of ir_datasets or of a hub; mixed, cut down, named by a digest of content.

The package ir_datasets is no requirement; it fetches a set when it is read for the first time, and keeps it where IR_DATASETS_HOME says.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from components import settings
from components.artifacts import digest_of, file_sha256
from components.data import delimited, icd10cm, jsonl, parquet
from components.data.config import DataConfig
from components.data.dataset import (
    DOCUMENT_COLUMNS,
    TRANSLATED,
    RawTables,
    judgement_table,
    no_translations,
    origin_of,
    query_table,
    stable_order,
    wording,
)
from components.data.layout import SourceFiles, locate, nearly_dev
from components.data.left_out import leave_out
from components.errors import DataError

MARK = "/"
COMMIT_OF = "commit_of_"  # and the name of a data set of a hub: a note that names its commit


def mixed_name(source: str) -> str:
    """The name of a further data set: the last part of its folder's path; raises DataError when that cannot stand in an id."""
    name = _named(source) or settings.expanded(source).resolve().name
    if not name or name.split() != [name]:
        raise DataError(f"data.mix: the folder '{source}' has no name without white space to put before its ids. Rename or move it.")
    return name


def _named(source: str) -> str:
    """The name of a source that is no folder of the user's; empty for one that is."""
    if is_hub_set(source):
        return hub_set_name(source)
    return ir_set_name(source) if is_ir_set(source) else ""


def require_different(names: Sequence[str]) -> None:
    """Raises DataError when two data sets have one name."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"data.mix: two of the data sets are named '{twice}', and their ids could not be told apart. "
            "Give every data set once, and rename folders of the same name."
        )


def mix(parts: Mapping[str, RawTables]) -> RawTables:
    """All tables of the parts by name, one part after the other; the first keeps its ids and its notes.

    Raises DataError when an id of the first looks as if it belonged to a further one.
    """
    (first, base), *further = parts.items()
    for name, _ in further:
        _require_no_such_id(name, base, first)
    tables = [base, *(_prefixed(part, name + MARK) for name, part in further)]
    return RawTables(
        documents=pd.concat([t.documents for t in tables], ignore_index=True),
        queries=pd.concat([t.queries for t in tables], ignore_index=True),
        judgements=pd.concat([t.judgements for t in tables], ignore_index=True),
        unlabelled=pd.concat([t.unlabelled for t in tables], ignore_index=True),
        notes={**{key: value for part in parts.values() for key, value in part.notes.items() if key.startswith(COMMIT_OF)}, **base.notes},
        sources=tuple(parts),
        left_out=tuple(replace(entry, source=name) for name, part in parts.items() for entry in part.left_out),
        translated=pd.concat([t.translated for t in tables], ignore_index=True),
    )


def _prefixed(tables: RawTables, prefix: str) -> RawTables:
    """A missing id stays missing, for the contracts to judge."""
    return replace(
        tables,
        documents=tables.documents.assign(doc_id=prefix + tables.documents["doc_id"]),
        queries=tables.queries.assign(query_id=prefix + tables.queries["query_id"]),
        judgements=tables.judgements.assign(query_id=prefix + tables.judgements["query_id"], doc_id=prefix + tables.judgements["doc_id"]),
        unlabelled=tables.unlabelled.assign(query_id=prefix + tables.unlabelled["query_id"]),
        translated=tables.translated.assign(query_id=prefix + tables.translated["query_id"]),
    )


def _require_no_such_id(name: str, base: RawTables, base_name: str) -> None:
    for column in (base.documents["doc_id"], base.queries["query_id"], base.judgements["query_id"], base.unlabelled["query_id"]):
        found = next((i for i in column if str(i).startswith(name + MARK)), None)
        if found is not None:
            raise DataError(
                f"data.mix: '{base_name}' has the id '{found}', which looks as if it came from '{name}'. Rename the folder '{name}'."
            )


# --- Cut a source down, and hold out dev queries where it has none: both depend on ids, texts and the seed alone.


def keep_documents(tables: RawTables, maximum: int, seed: int) -> RawTables:
    """At most `maximum` documents, judged ones first; a query stays only when all its relevant documents stay.

    Rows that point to an id that does not exist are kept: a subset must not hide them from the contracts.
    """
    known = set(tables.documents["doc_id"])
    if len(known) <= maximum:
        return tables
    kept = _chosen_documents(tables, known, maximum, seed)
    judgements = tables.judgements
    cut = judgements["doc_id"].isin(known - kept)
    lost = set(judgements.loc[cut & (judgements["score"] > 0), "query_id"])
    return replace(
        tables,
        documents=_rows(tables.documents, tables.documents["doc_id"].isin(kept)),
        queries=_rows(tables.queries, ~tables.queries["query_id"].isin(lost)),
        judgements=_rows(judgements, ~cut & ~judgements["query_id"].isin(lost)),
    )


def hold_out_dev(tables: RawTables, share: float, seed: int) -> RawTables:
    """Move `share` of the train queries to the split dev when it has no relevant judgement; says how many in the notes.

    Of several mixed data sets it is those without a dev judgement of their own that give. Queries that are equal after normalisation
    move together, or the held-out ones would have been seen in training.
    """
    judgements = tables.judgements
    train, dev = (_relevant_queries(judgements, split) for split in ("train", "dev"))
    complete = {origin_of(query, tables.sources) for query in dev}
    if complete.issuperset(tables.sources or [""]):
        return tables
    texts = tables.queries.loc[tables.queries["query_id"].isin(train)].drop_duplicates("query_id").fillna("")
    wordings = {query: wording(text) for query, text in zip(texts["query_id"], texts["text"], strict=True)}
    order = stable_order((text for query, text in wordings.items() if origin_of(query, tables.sources) not in complete), seed)
    chosen = set(order[: max(1, round(share * len(order)))] if len(order) > 1 else [])
    held_out = {query for query, text in wordings.items() if text in chosen}
    moved = judgements["query_id"].isin(held_out) & (judgements["split"] == "train")
    split = judgements["split"].mask(moved, "dev")
    return replace(tables, judgements=judgements.assign(split=split), notes={**tables.notes, "dev_held_out_of_train": len(held_out)})


def _chosen_documents(tables: RawTables, known: set[str], maximum: int, seed: int) -> set[str]:
    """Whole queries in the seed's order as long as their documents fit, then other documents up to `maximum`."""
    judgements = tables.judgements
    relevant = judgements.loc[(judgements["score"] > 0) & judgements["doc_id"].isin(known)]
    wanted: dict[str, set[str]] = {}
    for query, document in zip(relevant["query_id"], relevant["doc_id"], strict=True):
        wanted.setdefault(query, set()).add(document)
    kept: set[str] = set()
    for query in stable_order(wanted, seed):
        if len(kept) + len(wanted[query] - kept) <= maximum:
            kept |= wanted[query]
    others = stable_order(known - kept, seed)
    return kept | set(others[: maximum - len(kept)])


def _relevant_queries(judgements: pd.DataFrame, split: str) -> set[str]:
    return set(judgements.loc[(judgements["score"] > 0) & (judgements["split"] == split), "query_id"])


def _rows(table: pd.DataFrame, keep: pd.Series) -> pd.DataFrame:
    return table.loc[keep].reset_index(drop=True)


# --- Data sets of the package ir_datasets by name: `ir_datasets:beir/scifact` has the splits that the package has of it.


PREFIX = "ir_datasets:"
# How the package's names end, and what such a split is here.
_SPLITS = {"train": "train", "dev": "dev", "valid": "dev", "validation": "dev", "val": "dev", "test": "test"}


def is_ir_set(source: str) -> bool:
    """Whether a source is one of the package."""
    return source.startswith(PREFIX)


def ir_set_name(source: str) -> str:
    """The set's name without slashes, which would stand for folders."""
    return source.removeprefix(PREFIX).strip("/").replace("/", "-")


def read_ir_set(source: str) -> RawTables:
    """Documents, queries and judgements of the set `source`; raises DataError for one that is not there or cannot be fetched."""
    whole, splits = _opened(source)
    with _reading(source):
        documents = pd.DataFrame([_document(row) for row in whole.docs_iter()], columns=list(DOCUMENT_COLUMNS)).astype("str")
        queries: dict[str, str] = {}
        for query, text in ((str(row.query_id), _text(row)) for part in splits.values() for row in part.queries_iter()):
            if queries.setdefault(query, text) != text:  # numbered anew in each split: one text would be judged by both's documents
                raise DataError(f"'{source}' has two queries of the id '{query}' in its splits. Export it to a folder, with other ids.")
        judged = [
            judgement_table([(str(row.query_id), str(row.doc_id), int(row.relevance)) for row in part.qrels_iter()], split)
            for split, part in splits.items()
        ]
    return RawTables(
        documents=documents,
        queries=query_table(list(queries), list(queries.values())),
        judgements=pd.concat(judged, ignore_index=True),
        unlabelled=query_table([], []),
    )


@lru_cache(maxsize=8)
def ir_set_digest(source: str) -> str:
    """sha256 over all that `read_ir_set` gives: a set of this name may be another one with another version of the package."""
    tables = read_ir_set(source)
    hashed = hashlib.sha256()
    for table in (tables.documents, tables.queries, tables.judgements):
        hashed.update(f"{list(table.columns)}\n".encode())
        for row in table.itertuples(index=False, name=None):
            hashed.update(f"{row!r}\n".encode("utf-8", "surrogatepass"))
    return hashed.hexdigest()


def _opened(source: str) -> tuple[Any, dict[str, Any]]:
    """The set that has the documents, and by split those that have judgements."""
    try:
        import ir_datasets
    except ImportError:
        raise DataError(f"'{source}' needs the package ir_datasets, which is not installed: pip install ir-datasets") from None
    name = source.removeprefix(PREFIX).strip("/")
    known = [str(entry) for entry in ir_datasets.registry]
    with _reading(source):
        if name not in known:
            near = ", ".join(difflib.get_close_matches(name, known, 3)) or "see https://ir-datasets.com"
            raise DataError(f"ir_datasets has no data set '{name}'. Names that are near: {near}.")
        whole = ir_datasets.load(name)
        ends = {entry.removeprefix(f"{name}/"): entry for entry in known if entry.startswith(f"{name}/")}
        named = [end for end in ends if end in _SPLITS]
        if twice := next((end for end in named if [_SPLITS[other] for other in named].count(_SPLITS[end]) > 1), None):
            both = " and ".join(end for end in named if _SPLITS[end] == _SPLITS[twice])
            raise DataError(f"'{source}' has the split '{_SPLITS[twice]}' twice: {both}. Export it to a folder with the one that counts.")
        splits = {_SPLITS[end]: ir_datasets.load(ends[end]) for end in named}
        if not splits and whole.has_qrels():
            splits = {_SPLITS.get(name.rpartition("/")[2], "test"): whole}
        splits = {split: part for split, part in splits.items() if part.has_qrels() and part.has_queries()}
        if not whole.has_docs() or not splits:
            parts = ", ".join(sorted(ends)[:5])
            raise DataError(f"'{source}' has no documents with judged queries{f'; parts of it: {parts}' if parts else ''}. Name another.")
    return whole, splits


@contextmanager
def _reading(source: str) -> Iterator[None]:
    """A set that cannot be fetched or read is said in one sentence, whatever the package and its readers raise."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(f"'{source}' cannot be fetched or read: {said}. Check the network, or fetch it first with ir_datasets.") from None


def _document(row: Any) -> tuple[str, str, str, str]:
    title, text = getattr(row, "title", None), getattr(row, "text", None)
    if isinstance(title, str) and isinstance(text, str):
        return str(row.doc_id), title, text, "{}"
    return str(row.doc_id), "", _text(row), "{}"


def _text(row: Any) -> str:
    """What the package calls the text of a document or a query: of TREC topics the title, of a page its body."""
    made = getattr(row, "default_text", None)
    return str(made() if callable(made) else row.text)


# --- Data sets of a Hugging Face hub by name: `hub:mteb/scifact` or `hub:mteb/scifact@COMMIT`, fetched once and read as a folder.


HUB = "hub:"
ANSWER_SECONDS = 5.0
_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*(@[\w./-]+)?", re.ASCII)
_WANTED = tuple(
    f"*{ending}{packed}" for ending in (".jsonl", ".tsv", ".csv", ".txt", ".qrels", ".parquet", ".arrow") for packed in ("", ".gz")
)


def is_hub_set(source: str) -> bool:
    """Whether a source is a data set of a hub."""
    return source.startswith(HUB)


def hub_set_name(source: str) -> str:
    """Owner and name without the slash, which would stand for a folder, and without the revision."""
    return source.removeprefix(HUB).partition("@")[0].replace("/", "-")


@lru_cache(maxsize=8)
def hub_folder(source: str) -> Path:
    """The set's folder in the user's own cache of the hub, named by its commit; one answer holds for the whole process.

    Raises DataError in one sentence, within seconds where the hub does not answer and the cache has no such set.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    asked = source.removeprefix(HUB)
    if not _HUB_NAME.fullmatch(asked):
        raise DataError(f"'{source}' names no data set of a hub. Expected hub:OWNER/NAME or hub:OWNER/NAME@REVISION.")
    name, _, revision = asked.partition("@")
    cached = f"nor is it (or not whole) in the cache {constants.HF_HUB_CACHE}"
    try:
        found = snapshot_download(
            name, repo_type="dataset", revision=revision or None, allow_patterns=list(_WANTED), etag_timeout=ANSWER_SECONDS
        )
    except GatedRepoError:
        raise DataError(
            f"The data set '{name}' is gated: accept its terms on its page, then run `hf auth login` or set HF_TOKEN."
        ) from None
    except RevisionNotFoundError:
        raise DataError(
            f"The data set '{name}' has no revision '{revision}'. Name a branch, a tag or a full commit, or leave it out."
        ) from None
    except RepositoryNotFoundError:
        raise DataError(
            f"The data set '{name}' is not on {constants.ENDPOINT}, or is private: check the name; for a private one set HF_TOKEN."
        ) from None
    except LocalEntryNotFoundError:
        raise DataError(
            f"The hub {constants.ENDPOINT} does not give '{name}' now, {cached}. Check the network, or HF_HUB_OFFLINE."
        ) from None
    except Exception as error:
        said = str(error).strip().partition("\n")[0][:160] or type(error).__name__
        raise DataError(f"The hub {constants.ENDPOINT} does not give '{name}' ({said}), {cached}. Try again later.") from None
    return Path(found)


# --- Read sources, folders or the built-in set, into tables; and name their content by a digest.


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
    """Name of the built-in set or of one of ir_datasets or a hub, or the folder's base name; mixed ones with a plus between them."""
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
        if not _built_in(part) and not is_ir_set(part.source):
            files = locate(folder := _folder(part))
            said += [f"{name}: read from the hub's data set at commit {folder.name}."] if is_hub_set(part.source) else []
            said += [f"{name}: {remark}" for remark in files.remarks]
            not_dev = "is a further one, and dev is held out of train. Call its file dev if that is what it is"
            said += [f"{name}: the split '{split}' {not_dev}." for split in nearly_dev(files.qrels)]
            said += [f"{name}: {path} is not read: {reason}." for path, reason in files.unread.items()]
    return said


def _read_one(config: DataConfig) -> RawTables:
    if _built_in(config):
        return leave_out(icd10cm.build(config.scope), config)
    if is_ir_set(config.source):
        return leave_out(read_ir_set(config.source), config)
    tables = _read_folder(locate(folder := _folder(config)), config.on_violation.exact_duplicates == "drop")
    if is_hub_set(config.source):
        tables = replace(tables, notes={**tables.notes, COMMIT_OF + _named(config.source): folder.name})
    return leave_out(tables, config)


def _digest_of_one(config: DataConfig) -> str:
    if _built_in(config):
        return icd10cm.source_digest()
    if is_ir_set(config.source):
        return ir_set_digest(config.source)
    folder = _folder(config)
    try:
        return digest_of({path.relative_to(folder).as_posix(): file_sha256(path) for path in locate(folder).all()})
    except OSError as error:
        raise DataError(f"The data folder {folder} cannot be read: {error.strerror}: {error.filename}. Check its permissions.") from None


def _own_name(config: DataConfig) -> str:
    if _built_in(config):
        return config.source
    return _named(config.source) or _folder(config).resolve().name


def _built_in(config: DataConfig) -> bool:
    return config.source == icd10cm.NAME


def _folder(config: DataConfig) -> Path:
    return hub_folder(config.source) if is_hub_set(config.source) else settings.expanded(config.source)


def _read_folder(files: SourceFiles, repeats: bool) -> RawTables:
    """The tables of the files. With `repeats`, an id may stand in two shards of a table: what to do about it is decided later."""
    documents = [_reader(path).read_documents(path) for path in files.documents]
    queries = [_reader(path).read_queries(path) for path in files.queries]
    if not repeats:
        _require_apart(files.documents, [frame["doc_id"] for frame in documents], "document")
        _require_apart(files.queries, [frame["query_id"] for frame in queries], "query")
    qrels = [_judgements(split, paths) for split, paths in files.qrels.items()]
    unlabelled = [_reader(path).read_queries(path, name) for path, name in _numbered(files.unlabelled, UNLABELLED_ID)]
    translated = [_reader(path).read_queries(path, name, "translations") for path, name in _numbered(files.translated, TRANSLATED)]
    return RawTables(
        documents=pd.concat(documents, ignore_index=True),
        queries=pd.concat(queries, ignore_index=True),
        judgements=pd.concat(qrels, ignore_index=True),
        unlabelled=pd.concat([query_table([], []), *unlabelled], ignore_index=True),
        notes={"remarks": " ".join(files.remarks)} if files.remarks else {},
        translated=pd.concat([no_translations(), *translated], ignore_index=True),
    )


def _numbered(paths: Sequence[Path], name: str) -> list[tuple[Path, str]]:
    """Each file with the name that its rows without an id are numbered under."""
    return [(path, name if len(paths) == 1 else f"{name}-{number}") for number, path in enumerate(paths, start=1)]


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
    if name.endswith((".parquet", ".arrow")):
        return parquet
    return jsonl if name.endswith(".jsonl") else delimited
