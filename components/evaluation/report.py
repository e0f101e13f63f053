"""The report of an evaluation: its summary (`report.json`) and every metric of every query (`per_query.parquet`).

Extra splits have their values in `per_query_extra.parquet`, and the index's recall against exact search lies in `ann.parquet`, so that
whoever reads the main split never mixes them up. `slices.parquet` says which slices every judged query is in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.artifacts import read_versioned, write_atomic, write_json
from components.data.config import IgnoreIdenticalIds
from components.errors import ArtifactError

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
REPORT_FILE = "report.json"
PER_QUERY_FILE = "per_query.parquet"
EXTRA_FILE = "per_query_extra.parquet"
ANN_FILE = "ann.parquet"
SLICES_FILE = "slices.parquet"
_VALUES = ["query_id", "system", "metric", "value"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SystemSummary(_Section):
    """Means over all judged queries, by metric, with the ends of their intervals."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]


class Comparison(_Section):
    """Mean of `system` minus mean of `baseline`, paired by query; `low` and `high` are the ends of the two-sided interval."""

    system: str
    baseline: str
    metric: str
    difference: float
    low: float
    high: float
    confidence: float
    queries: int


class EncoderSpeed(_Section):
    """Milliseconds per query at batch 1 over `queries` queries, and queries per second at `batch_size`; encoding only."""

    p50_ms: float
    p95_ms: float
    qps: float
    batch_size: int
    queries: int


class SpeedSummary(_Section):
    """Both encoders, measured in turns on one machine; `speed_up` is the student's queries per second over the teacher's.

    A teacher of stored vectors or behind an endpoint is not timed: there both are None.
    """

    teacher: EncoderSpeed | None
    student: EncoderSpeed
    speed_up: float | None
    search_p50_ms: float


class OwnSummary(_Section):
    """Numbers of judged queries that have the id of a document (see `components.data.own_documents`), and what was made of them."""

    policy: IgnoreIdenticalIds
    left_out: int
    same_text: int
    relevant: int
    other_text: int

    @property
    def words(self) -> str:
        """One to three sentences."""
        if self.policy == "never":
            told = (
                [f"{self.same_text:,} queries are documents themselves: that document stays in what they find."] if self.same_text else []
            )
        elif self.policy == "always":
            told = [f"{self.left_out:,} queries have the id of a document, which is left out of what they find."] if self.left_out else []
        else:
            told = (
                [f"{self.left_out:,} queries are documents themselves: that document is left out of what they find."]
                if self.left_out
                else []
            )
            told += [f"{self.relevant:,} are documents judged relevant to themselves, which stay."] if self.relevant else []
        return " ".join(
            [*told, *([f"{self.other_text:,} queries have the id of a document that reads otherwise."] if self.other_text else [])]
        )


class ExtraSummary(_Section):
    """A further judged query set on the same documents: how the systems do off the training distribution. `retention` as in Summary."""

    queries: int
    judgements_digest: str
    systems: dict[str, SystemSummary]
    retention: dict[str, float]
    retention_intervals: dict[str, tuple[float, float]]
    own_documents: OwnSummary | None = None


class HealthSummary(_Section):
    """How widely one encoder's vectors of `queries` judged queries spread; a student far from its teacher here has collapsed."""

    mean_cosine: float
    effective_rank: float
    queries: int


class AnnSummary(_Section):
    """The index against exact search on the same stored vectors, over `queries` of the student's query vectors.

    `recall` and `intervals` by recall@10 and recall@100; `ndcg_lost` is the student's nDCG@10 by exact search minus that through the
    index. It says nothing about the models: see `components.evaluation.ann`.
    """

    queries: int
    documents: int
    recall: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    ndcg_lost: float
    ndcg_lost_interval: tuple[float, float]


class Summary(_Section):
    """What was measured. Two summaries are comparable only when their `judgements_digest` is equal.

    `retention` is the student's mean over the teacher's; a metric in which the teacher has 0 is absent. `confidence` is that of every
    two-sided interval. `extra` maps a split to its figures, `health` teacher and student to theirs, `ann` is the index's recall; reports of
    older versions have none of these. `own_documents` is there when queries have ids of documents. `absent` says why a system is not
    among `systems`.
    """

    schema_version: int = SCHEMA_VERSION
    split: str
    queries: int
    documents: int
    depth: int
    confidence: float
    judgements_digest: str
    systems: dict[str, SystemSummary]
    comparisons: tuple[Comparison, ...]
    retention: dict[str, float]
    retention_intervals: dict[str, tuple[float, float]]
    speed: SpeedSummary | None
    extra: dict[str, ExtraSummary] = Field(default_factory=dict)
    health: dict[str, HealthSummary] = Field(default_factory=dict)
    ann: AnnSummary | None = None
    own_documents: OwnSummary | None = None
    absent: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """A report that was read back. `per_query` has the columns query_id, system, metric, value; `ann` query_id, metric, value.

    `extra` has those of `per_query` and split, `slices` query_id, dimension, slice; None when the report has none.
    """

    summary: Summary
    per_query: pd.DataFrame
    ann: pd.DataFrame | None = None
    slices: pd.DataFrame | None = None
    extra: pd.DataFrame | None = None


def write_report(folder: Path, report: Evaluation) -> None:
    """Write all files of the report into `folder`, each atomically and the summary last; tables that are None are left out."""
    tables = {PER_QUERY_FILE: report.per_query, EXTRA_FILE: report.extra, ANN_FILE: report.ann, SLICES_FILE: report.slices}
    for name, table in tables.items():
        if table is not None:
            write_atomic(folder / name, table.to_parquet(index=False))
    write_json(folder / REPORT_FILE, report.summary.model_dump(mode="json"))


def load_summary(folder: Path) -> Summary:
    """The summary in `folder`; raises ArtifactError when it is missing, broken or of a newer schema."""
    raw = read_versioned(folder / REPORT_FILE, SCHEMA_VERSION)
    try:
        return Summary.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{folder / REPORT_FILE} is not an evaluation report ({where}: {first['msg']}). Evaluate again.") from None


def load_evaluation(folder: Path) -> Evaluation:
    """Summary and values per query in `folder`; raises ArtifactError when one of them cannot be read. Does not verify digests."""
    summary = load_summary(folder)
    per_query = read_table(folder / PER_QUERY_FILE, _VALUES)
    ann = None if summary.ann is None else read_table(folder / ANN_FILE, ["query_id", "metric", "value"])
    # Reports of older versions have no slices, and the summary does not say whether there are any.
    slices = read_table(folder / SLICES_FILE, ["query_id", "dimension", "slice"]) if (folder / SLICES_FILE).exists() else None
    extra = read_table(folder / EXTRA_FILE, [*_VALUES, "split"]) if summary.extra else None
    return Evaluation(summary, per_query, ann, slices, extra)


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Columns of a table of measurements; raises ArtifactError when it cannot be read."""
    import pandas as pd
    import pyarrow as pa

    try:
        return pd.read_parquet(path, columns=list(columns))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ArtifactError(f"{path} cannot be read ({str(error).splitlines()[0]}). Evaluate again.") from None
