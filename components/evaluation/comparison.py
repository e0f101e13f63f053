"""The comparison of a candidate with the champion, both opened in one run: its figures and how they are read back.

A folder of kind `comparison` holds `comparison.json`, `per_query.parquet` (every metric of every judged query for both, and the share
of its relevant documents that each has in its index), `side_by_side.parquet` (the queries that lost and gained most, with what both
found) and `agreement.parquet` (the overlap of every query that was replayed). The text of a logged query stays in its log: here it has a
digest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.artifacts import read_versioned, write_atomic, write_json
from components.errors import ArtifactError
from components.evaluation.report import PER_QUERY_FILE, Comparison, EncoderSpeed, read_table

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
KIND = "comparison"
COMPARISON_FILE = "comparison.json"
SIDE_BY_SIDE_FILE = "side_by_side.parquet"
AGREEMENT_FILE = "agreement.parquet"
CANDIDATE, CHAMPION = "candidate", "champion"
SIDE_COLUMNS = ("query_id", "text", "difference", "relevant", CANDIDATE, CHAMPION)
AGREEMENT_COLUMNS = ("source", "query", "k", "value")
PER_QUERY_COLUMNS = ("query_id", "system", "metric", "value")
SERVED = "relevant_served"  # beside the metrics: share of a query's relevant documents that the index of the system holds
# nDCG@10 among the documents that both hold, of the queries that ask for one of these; there where the candidate lacks some.
SHARED = "ndcg@10_of_shared_documents"
LOGGED, UNLABELLED, JUDGED = "logged queries", "unlabelled queries", "judged queries"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Agreement(_Part):
    """Share of the champion's first `k` documents that the candidate has among its own: mean over `queries`, with its 95 % interval.

    `source` says which queries were replayed: logged ones, unlabelled ones of the data set, or the judged ones.
    """

    k: int = Field(ge=1)
    mean: float
    low: float
    high: float
    queries: int = Field(ge=1)
    source: str


class ComparisonSummary(_Part):
    """Candidate and champion, asked in turns in one run on one `machine`; what was not measured is absent.

    `candidate` and `champion` are the speed of the whole answer (encode and search `answer_depth` documents): milliseconds at batch 1,
    queries per second at `batch_size`. `metrics` holds candidate minus champion for every metric, paired over all `queries` judged queries
    of the candidate's evaluation, whatever the champion was evaluated on in its own time. `agreement` maps "logged queries@10" and the like
    to its figures; `sizes` maps candidate and champion to the bytes of `index` and `encoder` and the number of `documents`; `removed`
    counts the champion's documents that the candidate lacks, None where nobody looked.
    """

    schema_version: int = SCHEMA_VERSION
    baseline_version: int = Field(ge=1)
    judgements_digest: str
    queries: int = Field(ge=1)
    candidate: EncoderSpeed
    champion: EncoderSpeed
    metrics: tuple[Comparison, ...] = ()
    agreement: dict[str, Agreement] = Field(default_factory=dict)
    sizes: dict[str, dict[str, int]] = Field(default_factory=dict)
    removed: int | None = Field(None, ge=0)
    answer_depth: int = Field(10, ge=1)
    machine: str = ""


@dataclass(frozen=True)
class ComparisonTables:
    """What lies beside the figures, with the columns `PER_QUERY_COLUMNS`, `SIDE_COLUMNS` and `AGREEMENT_COLUMNS`.

    `side_by_side` stands worst first; `relevant`, `candidate` and `champion` are lists of documents: doc_id and title, of the last two with
    score and relevant.
    """

    per_query: pd.DataFrame
    side_by_side: pd.DataFrame
    agreement: pd.DataFrame


def write_comparison(folder: Path, summary: ComparisonSummary, tables: ComparisonTables) -> None:
    """Write all files, each atomically."""
    for name, table in ((PER_QUERY_FILE, tables.per_query), (SIDE_BY_SIDE_FILE, tables.side_by_side), (AGREEMENT_FILE, tables.agreement)):
        write_atomic(folder / name, table.to_parquet(index=False))
    write_json(folder / COMPARISON_FILE, summary.model_dump(mode="json"))


def load_comparison(folder: Path) -> ComparisonSummary | None:
    """The figures in `folder`; None when there is no comparison (a first release, or a candidate from before there were any).

    Raises ArtifactError when the file is broken or of a newer schema.
    """
    path = folder / COMPARISON_FILE
    if not path.exists():
        return None
    raw = read_versioned(path, SCHEMA_VERSION)
    try:
        return ComparisonSummary.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path} is not a comparison ({where}: {first['msg']}). Build the candidate again.") from None


def load_values(folder: Path) -> pd.DataFrame:
    """What both reached on every judged query, with `PER_QUERY_COLUMNS`; raises ArtifactError when the file cannot be read."""
    return read_table(folder / PER_QUERY_FILE, PER_QUERY_COLUMNS)


def load_tables(folder: Path) -> ComparisonTables:
    """The tables beside the figures; raises ArtifactError when one cannot be read."""
    return ComparisonTables(
        per_query=load_values(folder),
        side_by_side=read_table(folder / SIDE_BY_SIDE_FILE, SIDE_COLUMNS),
        agreement=read_table(folder / AGREEMENT_FILE, AGREEMENT_COLUMNS),
    )
