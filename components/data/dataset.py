"""The tables that every source is read into, and those of a dataset artifact, which every later step works on.

Here alone texts are joined, normalised and hashed, and queries found that are documents themselves, as in duplicate questions (Quora),
counterarguments (ArguAna) and citations: each finds itself.

BEIR leaves the document with the query's id out of every answer (`ignore_identical_ids`). The id alone does not tell, though: small sets
number queries and documents from 1, and there the document of the same number is often the very answer. So a document is the query's own
if the id is the same and its title, its text, or both together read the same (see `normalise_text`), and one that the judgements call
relevant stays, since whoever judged it meant it as an answer.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.artifacts import Artifact, Scalar, open_artifact
from components.data.config import IgnoreIdenticalIds
from components.errors import ArtifactError, DataError
from components.text import INVISIBLE

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


DOCUMENT_COLUMNS = ("doc_id", "title", "text", "metadata")
QUERY_COLUMNS = ("query_id", "text")
TRANSLATION_COLUMNS = (*QUERY_COLUMNS, "original")
JUDGEMENT_COLUMNS = ("query_id", "doc_id", "score", "split")
TextColumns = Mapping[str, Sequence[str | None]]  # of some rows, by the column's name
GROUPS = "query_groups"  # note of a source: the metadata field of its documents that the splits were made by

_UNSEEN = re.compile(f"[{INVISIBLE}\ufdd0-\ufdef\u0640]")  # and no characters, and the Arabic tatweel, which only makes a word longer
# Before NFKC, which would make 10² the number 102, 1½ the number 11/2, and letters of a trade mark.
_POWER = re.compile("(?<=\\d)(?=[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻])")
_FRACTION = re.compile("(?<=\\d)(?=[¼-¾⅐-⅟↉])")
_DECORATION = str.maketrans(dict.fromkeys("®©℗™℠\u00b4\u00a8\u00af\u00b8", " "))
_ALIKE = {"\u2044": "/", "\u2215": "/", "\u066a": "%"}  # other slashes, the Arabic per cent
_ALIKE |= dict.fromkeys("\u05be\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2e3a\u2e3b", "-")  # dashes, the minus, the Hebrew maqaf
_SAME_SIGN = str.maketrans(_ALIKE)
# Punctuation that changes what is meant: in numbers and before them, before a name (.net, !ready), in != and between factors.
_MEANT = re.compile(
    "(?<=\\d)[.,:\u066b\u066c-](?=\\d)|(?<![\\w).-])-(?=\\.?\\d)|(?<![\\w.])[.](?=\\w)|(?<!\\w)!(?=[\\w(])|!(?= ?=)"
    "|(?<=\\w)[*](?=\\w)|(?<=\\w )[*](?= \\w)"
)
_KEPT = {mark: chr(0xFDD0 + place) for place, mark in enumerate(".,:\u066b\u066c-!*")}  # stands for it: a code point that no text may hold
_SIGNS = frozenset("%‰‱&@/\\§\u2032")  # beside all symbols, such as < = $ ° and €; the last is the prime of feet and minutes


def query_table(ids: Sequence[str | None], text: Sequence[str | None], original: Sequence[str | None] | None = None) -> pd.DataFrame:
    """Columns query_id and text, in the given order; with `original` that column too, which makes it a table of translations."""
    columns = {"query_id": ids, "text": text, **({} if original is None else {"original": original})}
    return pd.DataFrame(columns, columns=list(columns)).astype("str")


def no_translations() -> pd.DataFrame:
    """The table of translations of a source that has none."""
    return query_table([], [], [])


@dataclass(frozen=True)
class LeftOut:
    """Rows of a table (of one split, for judgements) that were dropped for one reason, of `total` rows that it had.

    `unanswered`: queries that lost their last relevant document with them.
    """

    rule: str
    table: str
    split: str
    reason: str
    rows: pd.DataFrame
    total: int
    unanswered: int = 0
    source: str = ""


@dataclass(frozen=True)
class RawTables:
    """A source as it was read, broken rows included: the contracts judge it, not the reader.

    documents: doc_id, title, text, metadata (a JSON object as a string). queries and unlabelled: query_id, text.
    judgements: query_id, doc_id, score (int64), split. All else is text. `notes` says what was cut or held out.
    `sources`: names of the data sets when several are mixed, the first of them the one whose ids have no name in front.
    `left_out`: rows that were dropped as the configuration asks. translated: query_id, text, original (see `Dataset`).
    """

    documents: pd.DataFrame
    queries: pd.DataFrame
    judgements: pd.DataFrame
    unlabelled: pd.DataFrame
    notes: Mapping[str, Scalar] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    translated: pd.DataFrame = field(default_factory=no_translations)


def origin_of(identifier: str, sources: Sequence[str]) -> str:
    """Which of the mixed data sets an id belongs to; "" when nothing is mixed."""
    name, slash, _ = identifier.partition("/")
    return name if slash and name in sources[1:] else next(iter(sources), "")


def document_text(title: str | None, text: str | None) -> str:
    """What an encoder reads of a document: the title, then the text, on lines of their own; empty parts are left out."""
    head, body = (title or "").strip(), (text or "").strip()
    return f"{head}\n{body}" if head and body else head or body


def normalise_text(text: str | None) -> str:
    """`text` without case, punctuation, width variants, invisible letters and repeated spaces: wordings that differ only there are equal.

    Kept is what a reader would miss: letters with their marks (the vowels of Hindi, the tones of Thai, the points of Hebrew and Arabic),
    numbers with sign, point and power, and signs such as < > = % & * / $ °; of a text that has neither letter nor number nothing is.
    Unicode's NFKC and full case folding; the dot that folding leaves over the Turkish capital İ goes with it.
    """
    folded = (text or "").casefold()
    if not folded.isascii():
        plain = _UNSEEN.sub("", (text or "").translate(_DECORATION))
        plain = unicodedata.normalize("NFKC", _FRACTION.sub(" ", _POWER.sub("^", plain)))
        folded = unicodedata.normalize("NFKC", plain.casefold()).replace("i\u0307", "i").translate(_SAME_SIGN)
    read = " ".join(_MEANT.sub(lambda found: _KEPT[found[0]], folded).translate(_READ).split())
    return read if any(map(str.isalnum, read)) else ""


def may_read_as(texts: pd.Series, wordings: Collection[str]) -> NDArray[np.bool_]:
    """Which texts have to be normalised to know whether they then equal one of `wordings`, which are: some too many, never one too few.

    Of a text in ASCII `normalise_text` keeps all letters and digits in their order, so that they have to be those of a wording.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column = _arrow(texts)
    plain = pc.replace_substring_regex(pc.ascii_lower(column), "[^0-9a-z]+", "")
    wanted = pa.array({re.sub("[^0-9a-z]", "", wording) for wording in wordings}, pa.large_string())
    found = pc.or_(pc.is_in(plain, value_set=wanted), pc.invert(pc.string_is_ascii(column)))
    return np.asarray(pc.fill_null(found, False))


def are_among(values: pd.Series, known: pd.Series) -> NDArray[np.bool_]:
    """Which ids are among the known ones, which a missing one is not; pandas' `isin` would make Python's strings of all that are known."""
    import pyarrow.compute as pc

    return np.asarray(pc.is_in(_arrow(values), value_set=_arrow(known).drop_null()))


def _arrow(column: pd.Series) -> pa.ChunkedArray:
    import pyarrow as pa

    found = pa.array(column, from_pandas=True)
    return (found if isinstance(found, pa.ChunkedArray) else pa.chunked_array([found])).cast(pa.large_string())


class _Reading(dict[int, str]):
    """What stands for each character in a normalised text, by code point; worked out when it is met for the first time."""

    def __missing__(self, point: int) -> str:
        letter, kind = chr(point), unicodedata.category(chr(point))
        if kind[0] in "LNM" or letter in "+#":
            read = letter
        else:
            read = f" {letter} " if letter in _SIGNS or (kind[0] == "S" and letter != "`") else " "
        self[point] = read
        return read


_READ = _Reading({ord(kept): {"*": " * ", "!": " !"}.get(mark, mark) for mark, kept in _KEPT.items()})


def content_hash(text: str) -> str:
    """sha256 (hex) of a document's text as encoded."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def stable_order(keys: Iterable[str], seed: int) -> list[str]:
    """The distinct `keys` in an order that depends on the keys and the seed alone, not on how they came."""
    return sorted(set(keys), key=lambda key: (hashlib.sha256(f"{seed}:{key}".encode()).digest(), key))


def document_table(blocks: Iterable[TextColumns]) -> pd.DataFrame:
    """DOCUMENT_COLUMNS of blocks of documents, none of them missing; as Python's values no more than one block is held."""
    import pyarrow as pa

    schema = _schema(DOCUMENT_COLUMNS)
    return pa.Table.from_batches([pa.RecordBatch.from_pydict(dict(block), schema=schema) for block in blocks], schema).to_pandas()


def judgement_table(rows: list[tuple[str, str, int]], split: str) -> pd.DataFrame:
    """Columns query_id, doc_id, score and split from rows of (query_id, doc_id, score)."""
    queries, documents, scores = zip(*rows, strict=True) if rows else ((), (), ())
    table = pd.DataFrame({"query_id": queries, "doc_id": documents, "score": scores, "split": split}, columns=list(JUDGEMENT_COLUMNS))
    return table.astype({"query_id": "str", "doc_id": "str", "score": "int64", "split": "str"})


# --- Queries that are documents themselves, as in duplicate questions (Quora), counterarguments (ArguAna) and citations: each finds
# --- itself.


POLICIES: tuple[IgnoreIdenticalIds, ...] = ("same_text", "always", "never")


class IdenticalIds(NamedTuple):
    """Ids that queries share with documents: those whose document reads as the query does, and those whose document says something else."""

    same_text: frozenset[str] = frozenset()
    other_text: frozenset[str] = frozenset()


class OwnDocuments(NamedTuple):
    """How the judged queries of one split stand to the documents of their own id.

    `left_out`: queries whose document is neither an answer to them nor a negative. Numbers of queries: `same_text` that are documents
    themselves, `relevant` of these that are judged relevant to themselves, `other_text` that only share a document's id.
    """

    left_out: frozenset[str] = frozenset()
    same_text: int = 0
    relevant: int = 0
    other_text: int = 0
    policy: IgnoreIdenticalIds = "same_text"

    @classmethod
    def of(cls, found: IdenticalIds, to_itself: frozenset[str], policy: IgnoreIdenticalIds) -> OwnDocuments:
        """What `policy` makes of the queries `found`; `to_itself` are those judged with their own id as relevant."""
        chosen = {"same_text": found.same_text - to_itself, "always": found.same_text | found.other_text, "never": frozenset[str]()}
        return cls(chosen[policy], len(found.same_text), len(found.same_text & to_itself), len(found.other_text), policy)


def identical_ids(documents: pd.DataFrame, queries: pd.DataFrame) -> IdenticalIds:
    """The ids that stand in both tables, told apart by their texts."""
    asked = queries.loc[are_among(queries["query_id"], documents["doc_id"]), ["query_id", "text"]].fillna("")
    if asked.empty:
        return IdenticalIds()
    texts = {str(query): str(text) for query, text in zip(asked["query_id"], asked["text"], strict=True)}
    shared = documents.loc[are_among(documents["doc_id"], asked["query_id"]), ["doc_id", "title", "text"]].fillna("")
    rows = zip(shared["doc_id"], shared["title"], shared["text"], strict=True)
    same = frozenset(str(i) for i, title, text in rows if reads_as(texts[i], title, text, document_text(title, text)))
    return IdenticalIds(same, frozenset(texts) - same)


def reads_as(query: str, *texts: str) -> bool:
    """Whether one of the texts reads as the query does; a query of punctuation alone is compared as it stands."""
    wanted = wording(query)
    return bool(wanted) and any(wanted == wording(text) for text in texts)


def wording(text: str) -> str:
    """`normalise_text`, and a text without letters and numbers, as of emoji, as it stands: all of these would be equal to each other."""
    return normalise_text(text) or text.strip()


# --- The tables of a dataset artifact, which every later step works on: read, and written one by one.


HASH = "content_hash"
_HASH_BYTES = 64
TABLES = {
    "documents": (*DOCUMENT_COLUMNS, HASH),
    "queries": QUERY_COLUMNS,
    "judgements": JUDGEMENT_COLUMNS,
    "unlabelled": QUERY_COLUMNS,
}
NAMED_SPLITS = ("train", "dev", "test")  # those that contracts speak of by name; any other is a further one
TRANSLATED = "translated"  # a table that is there only where the source has one
_COLUMNS = {**TABLES, TRANSLATED: TRANSLATION_COLUMNS}
SOURCES = "sources"
IDENTICAL = "ignore_identical_ids"
# Rows that have to be read to get at one of them: documents are read again a shard at a time, by many workers.
ROW_GROUP = 8192
# Bytes from which a row group is full whatever its rows: a page of a Parquet file cannot hold 2 GiB, and a group is held in memory.
GROUP_BYTES = 2**28
_BUFFER_BYTES = 2**20  # of a column that are read at a time


@dataclass(frozen=True)
class Dataset:
    """The tables of a dataset artifact, in their stored order.

    documents: doc_id, title, text, metadata (JSON), content_hash. queries and unlabelled: query_id, text.
    all_judgements: query_id, doc_id, score (int64), split. sources: names of the data sets when several are mixed.
    ignore_identical_ids: which documents are left out as a query's own (see `components.data.dataset`).
    query_groups: metadata field of the documents that the splits were made by; "" where the source names none.
    translated: query_id, text, original: queries in a language or in words that the teacher reads less well, each with the same in those
    that it reads well; a student learns the teacher's vector of the original for the text.
    """

    documents: pd.DataFrame
    queries: pd.DataFrame
    all_judgements: pd.DataFrame
    unlabelled: pd.DataFrame
    sources: tuple[str, ...] = ()
    ignore_identical_ids: IgnoreIdenticalIds = "same_text"
    query_groups: str = ""
    translated: pd.DataFrame = field(default_factory=no_translations)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have judgements, sorted."""
        return tuple(sorted(self.all_judgements["split"].unique()))

    def judgements(self, split: str) -> pd.DataFrame:
        """query_id, doc_id, score of one split; a score above 0 means relevant. Raises DataError for an unknown split."""
        if split not in self.splits:
            raise DataError(f"The data has no judgements for the split '{split}'; it has: {', '.join(self.splits) or 'none'}.")
        rows = self.all_judgements.loc[self.all_judgements["split"] == split, ["query_id", "doc_id", "score"]]
        return rows.reset_index(drop=True)

    def judged_queries(self, split: str) -> pd.DataFrame:
        """query_id, text of the queries that have at least one relevant document in `split`, in the order of the queries."""
        judgements = self.judgements(split)
        judged = set(judgements.loc[judgements["score"] > 0, "query_id"])
        return self.queries.loc[self.queries["query_id"].isin(judged)].reset_index(drop=True)

    def own_documents(self, split: str) -> OwnDocuments:
        """Which of the split's judged queries are documents themselves, whose own document is neither answer nor negative of theirs."""
        judged = self.judgements(split)
        judged = judged[judged["score"] > 0]
        to_itself = frozenset(judged.loc[judged["query_id"] == judged["doc_id"], "query_id"])
        asked = frozenset(judged["query_id"])
        found = IdenticalIds(*(ids & asked for ids in self._identical_ids))
        return OwnDocuments.of(found, to_itself, self.ignore_identical_ids)

    @cached_property
    def _identical_ids(self) -> IdenticalIds:
        return identical_ids(self.documents, self.queries)

    def origin_of(self, identifier: str) -> str:
        """The data set that a query's or document's id comes from; "" when nothing is mixed."""
        return origin_of(identifier, self.sources)

    def document_texts(self) -> list[str]:
        """What an encoder reads of each document, in the order of the documents."""
        return texts_of(self.documents)


def load_dataset(dataset: Artifact | Path) -> Dataset:
    """Read a dataset artifact's tables; raises ArtifactError when it is something else or incomplete."""
    artifact = open_artifact(dataset) if isinstance(dataset, Path) else dataset
    if artifact.kind != "dataset":
        raise ArtifactError(f"{artifact.path} is an artifact of kind '{artifact.kind}'; expected a dataset.")
    frames = {name: _read(artifact.path / f"{name}.parquet") for name in TABLES}
    sources = tuple(str(artifact.attributes.get(SOURCES, "")).split("/")) if SOURCES in artifact.attributes else ()
    # Data sets of before name no policy: nothing was left out of what was measured on them.
    policy: IgnoreIdenticalIds = next((name for name in POLICIES if name == artifact.attributes.get(IDENTICAL)), "never")
    groups = str(artifact.attributes.get(GROUPS, ""))
    translated = artifact.path / f"{TRANSLATED}.parquet"
    further = (sources, policy, groups, _read(translated) if translated.exists() else no_translations())
    return Dataset(frames["documents"], frames["queries"], frames["judgements"], frames["unlabelled"], *further)


def texts_of(documents: pd.DataFrame) -> list[str]:
    """What an encoder reads of each row of a table of documents."""
    columns = documents[["title", "text"]].fillna("")
    return [document_text(title, text) for title, text in zip(columns["title"].tolist(), columns["text"].tolist(), strict=True)]


def _schema(columns: tuple[str, ...]) -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(name, pa.int64() if name == "score" else pa.large_string()) for name in columns])


def wide(table: pa.Table) -> pa.Table:
    """The same table with texts that may be more than 2 GiB together: Arrow's `string` counts their bytes with 32 bits."""
    import pyarrow as pa

    fields = [field.with_type(pa.large_string()) if pa.types.is_string(field.type) else field for field in table.schema]
    return table.cast(pa.schema(fields, table.schema.metadata))


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write one of `TABLES` or translations, named by the file, as Parquet; the same rows give the same bytes.

    Documents without hashes are given them. Each group of rows is packed in another thread while the next one is hashed, and no more than
    one is held as Python's texts.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = _COLUMNS[path.stem]
    hashed = HASH not in columns or HASH in frame.columns
    given = columns if hashed else DOCUMENT_COLUMNS
    table = pa.Table.from_pandas(frame[list(given)], schema=_schema(given), preserve_index=False)
    # Without the metadata of pandas the same rows give the same bytes under every version of it.
    table = table.replace_schema_metadata(None)
    packed: Future[None] | None = None
    with pq.ParquetWriter(path, _schema(columns), compression="zstd") as writer, ThreadPoolExecutor(1) as packing:
        for start, stop in _row_groups(table, 0 if hashed else _HASH_BYTES):
            group = table.slice(start, stop - start)
            if not hashed:
                group = group.append_column(
                    HASH, pa.array([content_hash(text) for text in texts_of(frame.iloc[start:stop])], pa.large_string())
                )
            if packed:
                packed.result()
            packed = packing.submit(writer.write_table, group, row_group_size=ROW_GROUP)
        if packed:
            packed.result()


def _row_groups(table: pa.Table, further: int = 0) -> Iterator[tuple[int, int]]:
    """First row of each group and the row behind its last: at most ROW_GROUP rows, and no more than GROUP_BYTES unless it is one row.

    `further`: bytes of each row that are not in the table yet.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    ends = np.full(table.num_rows, further, np.int64)
    for column in table.columns:
        if pa.types.is_large_string(column.type):
            ends += pc.fill_null(pc.binary_length(column), 0).to_numpy()
    ends = np.cumsum(ends)
    start = 0
    while start < table.num_rows:
        before = ends[start - 1] if start else 0
        stop = min(start + ROW_GROUP, table.num_rows, max(start + 1, int(np.searchsorted(ends, before + GROUP_BYTES, side="right"))))
        yield start, stop
        start = stop


def _read(path: Path) -> pd.DataFrame:
    import pyarrow.parquet as pq

    with reading(path):
        return pq.read_table(path, schema=_schema(_COLUMNS[path.stem])).to_pandas()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What fails within, because the table `path` is missing or broken, becomes an ArtifactError that names it."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{path} cannot be read ({str(error)[:160]}). Remove its folder and run the step again.") from None


@contextmanager
def open_table(path: Path) -> Iterator[pq.ParquetFile]:
    """The Parquet table `path`; pages are read as they are needed, where pyarrow would hold all that is asked for as it is in the file.

    Raises ArtifactError that names the file when it cannot be read.
    """
    import pyarrow.parquet as pq

    with reading(path), pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
        yield file
