"""The comparison of a candidate with the champion, both opened in one run: its figures and how they are read back.

A folder of kind `comparison` holds `comparison.json`, `side_by_side.parquet` (the queries that lost and gained most, with what both
found) and `agreement.parquet` (the overlap of every query that was asked).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.artifacts import read_versioned
from components.errors import ArtifactError
from components.evaluation.report import EncoderSpeed

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
KIND = "comparison"
COMPARISON_FILE = "comparison.json"
SIDE_BY_SIDE_FILE = "side_by_side.parquet"
AGREEMENT_FILE = "agreement.parquet"
SIDE_COLUMNS = ("query_id", "text", "difference", "candidate", "champion")
AGREEMENT_COLUMNS = ("source", "query", "k", "value")
LOGGED, TEST = "logged queries", "test queries"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Agreement(_Part):
    """Share of the champion's first `k` documents that the candidate has among its own, mean over `queries` with its 95 % interval.

    `source` says which queries were asked: those that were logged while serving, or the judged test queries.
    """

    k: int = Field(ge=1)
    mean: float
    low: float
    high: float
    queries: int = Field(ge=1)
    source: str


class ComparisonSummary(_Part):
    """Candidate and champion, measured in turns in one run on one `machine`; what was not measured is absent.

    `candidate` and `champion` are the speed of the whole answer (encode and search): milliseconds at batch 1, queries per second at
    `batch_size`. `agreement` maps "logged queries@10" and the like to its figures; `sizes` maps candidate and champion to the bytes of
    `index` and `encoder` and the number of `documents`. `queries` is the number of judged queries that stand in both evaluations, 0 when
    `judgements_digest` differs between them, so that nothing could be compared per query.
    """

    schema_version: int = SCHEMA_VERSION
    baseline_version: int = Field(ge=1)
    judgements_digest: str
    queries: int = Field(ge=0)
    candidate: EncoderSpeed
    champion: EncoderSpeed
    agreement: dict[str, Agreement] = Field(default_factory=dict)
    sizes: dict[str, dict[str, int]] = Field(default_factory=dict)
    machine: str = ""


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


def load_side_by_side(folder: Path) -> pd.DataFrame:
    """The queries that lost and gained most, worst first (columns `SIDE_COLUMNS`); raises ArtifactError when they cannot be read."""
    import pandas as pd
    import pyarrow as pa

    path = folder / SIDE_BY_SIDE_FILE
    try:
        return pd.read_parquet(path, columns=list(SIDE_COLUMNS))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ArtifactError(f"{path} cannot be read ({str(error).splitlines()[0]}). Build the candidate again.") from None
