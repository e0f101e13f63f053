"""The report of an evaluation: its summary (`report.json`) and every metric of every query (`per_query.parquet`).

Extra splits have their values in `per_query_extra.parquet`, and the index's recall against exact search lies in `ann.parquet`, so that
whoever reads the main split never mixes them up. `slices.parquet` says which slices every judged query is in, `units.parquet` which
queries of a split were drawn together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.artifacts import read_versioned, write_atomic, write_json
from components.data.config import IgnoreIdenticalIds
from components.errors import ArtifactError
from components.evaluation.units import COLUMNS, Ends, Spread, Units, units_in

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
REPORT_FILE = "report.json"
PER_QUERY_FILE = "per_query.parquet"
EXTRA_FILE = "per_query_extra.parquet"
ANN_FILE = "ann.parquet"
SLICES_FILE = "slices.parquet"
UNITS_FILE = "units.parquet"
_VALUES = ["query_id", "system", "metric", "value"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class UnitsSummary(_Section):
    """Which of a split's judged queries were drawn together: `units` units of at most `largest` queries, by the `rule`.

    `design_effects`, by metric: variance of the student's mean over that of as many queries drawn one by one, by the `spread` over the
    units (see `components.evaluation.units`; reports of before it was kept have that of residuals). `words` says it all. `taken_apart`: how
    many units the data itself gives, where the rule takes some of these apart; 0 where it takes none, and in reports of before.
    """

    rule: str
    units: int
    largest: int
    design_effects: dict[str, float] = Field(default_factory=dict)
    words: str
    spread: Spread = "residuals"
    taken_apart: int = 0


class SystemSummary(_Section):
    """Means over all judged queries, by metric, with the ends of their intervals; of a single unit there is none."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]


class Comparison(_Section):
    """Mean of `system` minus mean of `baseline`, paired by query; `low` and `high` are the ends of the two-sided interval.

    They are None where all queries are one unit. `units` is how many units were drawn, None where each query was drawn by itself.
    """

    system: str
    baseline: str
    metric: str
    difference: float
    low: float | None
    high: float | None
    confidence: float
    queries: int
    units: int | None = None


class EncoderSpeed(_Section):
    """Milliseconds per query at batch 1 over `queries` queries, and queries per second at `batch_size`; encoding only.

    The work behind them, where it is known: tokens per second at `batch_size` without padding, and floating-point operations of a query.
    """

    p50_ms: float
    p95_ms: float
    qps: float
    batch_size: int
    queries: int
    tokens_per_second: float | None = None
    flops_per_query: float | None = None


class SpeedSummary(_Section):
    """Both encoders, measured in turns on one machine; `speed_up` is the student's queries per second over the teacher's.

    `threads`: how many both could use. `answers` are whole answers by system (encoding, search, and BM25's part where it has one).

    A teacher of stored vectors or behind an endpoint is not timed: there both are None.
    """

    teacher: EncoderSpeed | None
    student: EncoderSpeed
    speed_up: float | None
    search_p50_ms: float
    threads: int | None = None
    answers: dict[str, EncoderSpeed] = Field(default_factory=dict)


class OwnSummary(_Section):
    """Numbers of judged queries that have the id of a document (see `components.data.dataset`), and what was made of them."""

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
    units: UnitsSummary | None = None


class Bm25Setup(_Section):
    """Which BM25 was measured: Lucene's variant with these values.

    `stemmer`: Snowball's name, or none; `told`: it follows from the documents, not from a setting. `dev_queries`: on how many dev queries
    k1 and b were chosen; 0: they are Lucene's.
    """

    stemmer: str = "none"
    told: bool = False
    k1: float = 1.2
    b: float = 0.75
    dev_queries: int = 0

    @property
    def words(self) -> str:
        """One sentence without its full stop."""
        if self.stemmer == "none":
            why = ": the documents' language is not clear or has none" if self.told else ""
            stemmed = f"no stemmer{why}"
        else:
            stemmed = f"Snowball's stemmer {self.stemmer}{' (the documents tell the language)' if self.told else ''}"
        chosen = f"chosen on {self.dev_queries:,} dev queries" if self.dev_queries else "as Lucene has them"
        return f"BM25: Lucene's variant, {stemmed}, k1 {self.k1:g} and b {self.b:g} {chosen}, no stop words removed, short words kept"


class FusionSetup(_Section):
    """How a dense ranking and BM25's were made one (see `components.evaluation.rankers`); `weight` is that of the dense one.

    `k` is the constant of the reciprocal ranks, without a meaning where scores are summed. `dev_queries`: on how many dev queries all of it
    was chosen; 0: it was not chosen, and k is Cormack's.
    """

    method: Literal["reciprocal_rank", "scores"] = "reciprocal_rank"
    k: float = 60.0
    weight: float = 0.5
    dev_queries: int = 0

    @property
    def words(self) -> str:
        """One sentence without its full stop."""
        how = f"reciprocal ranks with k {self.k:g}" if self.method == "reciprocal_rank" else "scores on one scale"
        chosen = f"chosen on {self.dev_queries:,} dev queries" if self.dev_queries else "not chosen, since no dev query is judged"
        return f"Fused with BM25: {how}, weight {self.weight:g} for the encoder and {1 - self.weight:g} for BM25, {chosen}"


class UntrainedSetup(_Section):
    """Which untrained encoder was measured; `published`: with all its layers and its own pooling, else in the student's form.

    `layers` is 0 for a static one, `max_length` in tokens.
    """

    encoder: str
    published: bool
    layers: int
    pooling: str
    query_prompt: str
    document_prompt: str
    max_length: int

    @property
    def words(self) -> str:
        """One sentence without its full stop."""
        form = f"{self.layers} layers, pooling {self.pooling}" if self.layers else "the mean of one vector a token"
        both = f"prompts '{self.query_prompt}' and '{self.document_prompt}'"
        prompts = both if self.query_prompt or self.document_prompt else "no prompts"
        how = "as published" if self.published else "in the student's form"
        return f"{self.encoder} untrained, {how}: {form}, {prompts}, at most {self.max_length} tokens"


class HealthSummary(_Section):
    """How widely one encoder's vectors of `queries` judged queries spread; a student far from its teacher here has collapsed."""

    mean_cosine: float
    effective_rank: float
    queries: int


class AnnSummary(_Section):
    """The index against exact search on the same stored vectors, over `queries` of the student's query vectors.

    `recall` and `intervals` by recall@10 and recall@100; `ndcg_lost` is the student's nDCG@10 by exact search minus that through the
    index. It says nothing about the models: see `components.evaluation.evaluate`.
    """

    queries: int
    documents: int
    recall: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    ndcg_lost: float
    ndcg_lost_interval: tuple[float, float] | None


class Summary(_Section):
    """What was measured. Two summaries are comparable only when their `judgements_digest` is equal.

    `retention` is the student's mean over the teacher's; a metric in which the teacher has 0 is absent. `confidence` is that of every
    two-sided interval. `extra` maps a split to its figures, `health` teacher and student to theirs, `ann` is the index's recall; reports of
    older versions have none of these. `own_documents` is there when queries have ids of documents. Without `units`, as in older reports,
    every query counts as drawn by itself. `bm25` says which BM25 was measured, `untrained` by system which untrained encoders, `fusion` how
    student and BM25 were fused, `absent` why a system is not among `systems`, `ends` how intervals over single queries end.
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
    units: UnitsSummary | None = None
    bm25: Bm25Setup | None = None
    untrained: dict[str, UntrainedSetup] = Field(default_factory=dict)
    fusion: FusionSetup | None = None
    absent: dict[str, str] = Field(default_factory=dict)
    ends: Ends = "percentile"


@dataclass(frozen=True)
class Evaluation:
    """A report that was read back. `per_query` has the columns query_id, system, metric, value; `ann` query_id, metric, value.

    `extra` has those of `per_query` and split, `slices` query_id, dimension, slice, `units` split, query_id, unit; None when the report has
    none.
    """

    summary: Summary
    per_query: pd.DataFrame
    ann: pd.DataFrame | None = None
    slices: pd.DataFrame | None = None
    extra: pd.DataFrame | None = None
    units: pd.DataFrame | None = None

    def units_of(self, split: str | None = None) -> Units | None:
        """The units of the split, by default the one that was decided on; None where queries count one by one."""
        return units_in(self.units, split or self.summary.split)


def write_report(folder: Path, report: Evaluation) -> None:
    """Write all files of the report into `folder`, each atomically and the summary last; tables that are None are left out."""
    tables = {
        PER_QUERY_FILE: report.per_query,
        EXTRA_FILE: report.extra,
        ANN_FILE: report.ann,
        SLICES_FILE: report.slices,
        UNITS_FILE: report.units,
    }
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
    units = read_table(folder / UNITS_FILE, COLUMNS) if summary.units else None
    return Evaluation(summary, per_query, ann, slices, extra, units)


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Columns of a table of measurements; raises ArtifactError when it cannot be read."""
    import pandas as pd
    import pyarrow as pa

    try:
        return pd.read_parquet(path, columns=list(columns))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ArtifactError(f"{path} cannot be read ({str(error).splitlines()[0]}). Evaluate again.") from None
