"""A candidate against the champion in one run: all judged queries asked of both, logged ones replayed, speed measured in turns.

A folder of kind `comparison` holds `comparison.json`, `per_query.parquet` (every metric of every judged query for both, and the share of
its relevant documents that each has in its index), `side_by_side.parquet` (the queries that lost and gained most, with what both found)
and `agreement.parquet` (the overlap of every query that was replayed). The text of a logged query stays in its log: here it has a digest.

Both are asked here and now, so neither another machine nor other judgements stand between them. Where they hold other documents, as after
an index refresh, the champion is judged by the documents that it has: one that is new counts against it. How many of the relevant ones
each has is kept beside the metrics.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.artifacts import Artifact, digest_of, read_versioned, seal, write_atomic, write_json
from components.errors import ArtifactError
from components.evaluation.metrics import METRICS, QRELS, JudgedSplit, Ranking, per_query_metrics, read_trec_qrels, read_trec_run
from components.evaluation.report import PER_QUERY_FILE, Comparison, EncoderSpeed, load_summary, read_table
from components.evaluation.speed import Answer, Timed, describe_machine, measure_speeds
from components.evaluation.summarize import CONFIDENCE, compare_scores, scores_of
from components.evaluation.units import Units, mean_interval
from components.index.build import recall_against_exact

if TYPE_CHECKING:
    import pandas as pd

    from components.evaluation.config import EvaluationConfig
    from components.evaluation.rankers import DenseRanker
    from components.index.rows import Rows


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


# --- A candidate against the champion in one run: every judged query asked of both, logged queries replayed, speed measured in turns.


ANSWER_DEPTH = 10  # documents of an answer whose time is taken; what a search returns unless more are asked for
AGREEMENT_DEPTHS = (1, 10, 100)
STUDENT_RUN = "student.trec"  # of an evaluation: what the encoder of the release found in its index
SHARED_BATCH, SHARED_DEPTH = 64, 10_000  # queries at once, and how deep they are ranked, where most documents of one side are gone
SHOWN = 20  # worst regressions, and as many best gains
SHOWN_METRIC = "ndcg@10"
Hits = list[dict[str, Any]]


@dataclass(frozen=True)
class Side:
    """A release that is ready to answer, the titles of its documents, and its sizes (see ComparisonSummary)."""

    ranker: DenseRanker
    titles: Mapping[str, str]
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class ComparisonPlan:
    """Who stands against whom (`champion` is the version `baseline_version`), and what they are asked.

    `replayed` are queries without judgements, from `source`; there may be none. `units` are those of the judged queries.
    """

    candidate: Side
    champion: Side
    baseline_version: int
    judged: JudgedSplit
    replayed: Sequence[str] = ()
    source: str = LOGGED
    units: Units | None = None

    @property
    def contenders(self) -> dict[str, Side]:
        return {CANDIDATE: self.candidate, CHAMPION: self.champion}


def compare_in_one_run(contest: ComparisonPlan, config: EvaluationConfig, parents: Mapping[str, str], folder: Path) -> Artifact:
    """Ask both, write the comparison into `folder` and seal it. A ranking takes `config.depth` documents."""
    judged, depth = contest.judged, config.depth
    rankings = {n: judged.rankings(c.ranker.rank(judged.texts, judged.asked(depth)), depth) for n, c in contest.contenders.items()}
    removed = contest.champion.ranker.index.rows.missing_from(contest.candidate.ranker.index.rows)
    per_query = _per_query(contest, rankings, bool(removed))
    agreement = _agreement(contest, rankings, depth)
    speeds = measure_speeds({n: Timed(_answering(c.ranker)) for n, c in contest.contenders.items()}, contest.judged.texts, config)
    summary = ComparisonSummary(
        baseline_version=contest.baseline_version,
        judgements_digest=contest.judged.digest,
        queries=len(contest.judged.query_ids),
        candidate=speeds[CANDIDATE],
        champion=speeds[CHAMPION],
        metrics=_differences(per_query, contest, config),
        agreement=_means(agreement, contest, config),
        sizes={name: dict(contender.sizes) for name, contender in contest.contenders.items()},
        removed=len(removed),
        answer_depth=ANSWER_DEPTH,
        machine=describe_machine(),
    )
    write_comparison(folder, summary, ComparisonTables(per_query, _side_by_side(contest, rankings, per_query), agreement))
    counts = {"queries": summary.queries, "replayed": len(contest.replayed)}
    return seal(folder, KIND, counts=counts, parents=parents, attributes={"baseline_version": contest.baseline_version})


def _answering(ranker: DenseRanker) -> Answer:
    """The whole answer: encoding, tokenisation included, and the search."""
    return lambda texts: ranker.rank_vectors(ranker.encoder.encode(texts, batch_size=len(texts)), ANSWER_DEPTH)


def _per_query(contest: ComparisonPlan, rankings: Mapping[str, Mapping[str, Ranking]], removed: bool) -> pd.DataFrame:
    import pandas as pd

    tables = [per_query_metrics(contest.judged.judgements, ranking).assign(system=name) for name, ranking in rankings.items()]
    tables += [_served(contest.judged.judgements, side.ranker.index.rows).assign(system=name) for name, side in contest.contenders.items()]
    tables += _among_shared(contest) if removed else []
    return pd.concat(tables, ignore_index=True)[list(PER_QUERY_COLUMNS)]


def _among_shared(contest: ComparisonPlan) -> list[pd.DataFrame]:
    """nDCG@10 of both when each ranks the documents that both hold and no others, of the queries that ask for one of these."""
    judged, sides = contest.judged, contest.contenders
    rows = {name: contender.ranker.index.rows for name, contender in sides.items()}
    judgements, alone = _of_shared(judged.judgements, rows), _held_alone(rows)
    if judgements.empty:
        return []
    found = {n: judged.rankings(_without(side.ranker, judged, alone[n]), ANSWER_DEPTH) for n, side in sides.items()}
    return [_reached(judgements, found[name], name) for name in sides]


def _held_alone(rows: Mapping[str, Rows]) -> dict[str, frozenset[str]]:
    """The documents that each side holds and the other does not."""
    return {CANDIDATE: rows[CANDIDATE].missing_from(rows[CHAMPION]), CHAMPION: rows[CHAMPION].missing_from(rows[CANDIDATE])}


def _of_shared(judgements: pd.DataFrame, rows: Mapping[str, Rows]) -> pd.DataFrame:
    """The judgements of documents that both hold, of the queries that have a relevant one among these."""
    shared = judgements[[all(found.row_of(str(doc_id)) is not None for found in rows.values()) for doc_id in judgements["doc_id"]]]
    return shared[shared["query_id"].isin(shared.loc[shared["score"] > 0, "query_id"])]


def _reached(judgements: pd.DataFrame, rankings: Mapping[str, Ranking], name: str) -> pd.DataFrame:
    values = per_query_metrics(judgements, rankings)
    return values[values["metric"] == SHOWN_METRIC].assign(metric=SHARED, system=name)


def values_of_runs(folders: Mapping[str, Path], rows: Mapping[str, Rows]) -> pd.DataFrame | None:
    """What a run of both would say about the documents that they hold, from the rankings that their evaluations wrote down.

    `folders` and `rows` map candidate and champion to the evaluation and to the documents of the index; both were evaluated on the same
    judgements. Gives `PER_QUERY_COLUMNS` with the metrics SERVED and, where the candidate lacks documents, SHARED; a query of which too few
    documents were written down to say is in none of the latter. For evaluations of before rankings and judgements lay with them a table
    without a row where the candidate lacks documents, else None.
    """
    import pandas as pd

    runs = {name: folder / STUDENT_RUN for name, folder in folders.items()}
    alone = _held_alone(rows)
    if not all(path.is_file() for path in (folders[CANDIDATE] / QRELS, *runs.values())):
        return pd.DataFrame(columns=list(PER_QUERY_COLUMNS)) if alone[CHAMPION] else None
    judgements = read_trec_qrels(folders[CANDIDATE] / QRELS)
    tables = [_served(judgements, rows[name]).assign(system=name) for name in folders]
    of_both = _of_shared(judgements, rows)
    if alone[CHAMPION] and not of_both.empty:
        found = {name: _kept(read_trec_run(path), alone[name], load_summary(folders[name]).depth) for name, path in runs.items()}
        told = of_both[of_both["query_id"].isin(found[CANDIDATE].keys() & found[CHAMPION].keys())]
        tables += [_reached(told, found[name], name) for name in folders]
    return pd.concat(tables, ignore_index=True)[list(PER_QUERY_COLUMNS)]


def _kept(rankings: Mapping[str, Ranking], left_out: Container[str], depth: int) -> dict[str, Ranking]:
    """The first of each ranking without some documents; a query is left out where more may have come after the `depth` that there are."""
    kept = {query: [hit for hit in ranking if hit[0] not in left_out][:ANSWER_DEPTH] for query, ranking in rankings.items()}
    return {query: found for query, found in kept.items() if len(found) == ANSWER_DEPTH or len(rankings[query]) < depth}


def _without(ranker: DenseRanker, judged: JudgedSplit, left_out: Container[str]) -> list[Ranking]:
    """Rankings of the judged queries without some documents: the first ANSWER_DEPTH that are left of each, as far as they are found.

    Some queries at a time, each asked for more documents until enough are left, at most SHARED_DEPTH.
    """
    vectors, wanted, found = ranker.encode(judged.texts), judged.asked(ANSWER_DEPTH), list[Ranking]()
    for start in range(0, len(vectors), SHARED_BATCH):
        batch, asked = vectors[start : start + SHARED_BATCH], AGREEMENT_DEPTHS[-1]
        while True:
            kept = [[hit for hit in ranking if hit[0] not in left_out][:wanted] for ranking in ranker.rank_vectors(batch, asked)]
            if asked >= min(SHARED_DEPTH, len(ranker.index)) or min(map(len, kept)) >= wanted:
                break
            asked *= 4
        found += kept
    return found


def _served(judgements: pd.DataFrame, rows: Rows) -> pd.DataFrame:
    """The share of each query's relevant documents that the index holds, as one more metric."""
    relevant = judgements[judgements["score"] > 0]
    held = [rows.row_of(str(doc_id)) is not None for doc_id in relevant["doc_id"]]
    shares = relevant.assign(value=held).groupby("query_id", as_index=False)["value"].mean()
    return shares.assign(query_id=shares["query_id"].astype(str), metric=SERVED)


def _differences(per_query: pd.DataFrame, contest: ComparisonPlan, config: EvaluationConfig) -> tuple[Comparison, ...]:
    query_ids = contest.judged.query_ids
    scores, numbers = scores_of(per_query, query_ids), contest.units.of(query_ids) if contest.units else None
    return tuple(compare_scores(scores, (CANDIDATE, CHAMPION), metric, config, numbers) for metric in METRICS)


def _agreement(contest: ComparisonPlan, rankings: Mapping[str, Mapping[str, Ranking]], depth: int) -> pd.DataFrame:
    import pandas as pd

    pairs = [([d for d, _ in rankings[CANDIDATE][q]], [d for d, _ in rankings[CHAMPION][q]]) for q in contest.judged.query_ids]
    tables = [_overlaps(JUDGED, contest.judged.query_ids, pairs, depth)]
    if contest.replayed:
        found = [[[d for d, _ in row] for row in c.ranker.rank(contest.replayed, depth)] for c in contest.contenders.values()]
        names = [digest_of(text)[:16] for text in contest.replayed]
        tables.insert(0, _overlaps(contest.source, names, list(zip(*found, strict=True)), depth))
    return pd.concat(tables, ignore_index=True)


def _overlaps(source: str, names: Sequence[str], pairs: Sequence[tuple[list[str], list[str]]], depth: int) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for k in (k for k in AGREEMENT_DEPTHS if k <= depth):
        values = recall_against_exact([a[:k] for a, _ in pairs], [b[:k] for _, b in pairs])
        rows += [(source, name, k, float(value)) for name, value in zip(names, values, strict=True)]
    return pd.DataFrame(rows, columns=list(AGREEMENT_COLUMNS))


def _means(agreement: pd.DataFrame, contest: ComparisonPlan, config: EvaluationConfig) -> dict[str, Agreement]:
    """Nothing groups the queries that are replayed, so each of them counts by itself; of one unit alone there is no interval."""
    found = {}
    for (source, k), rows in agreement.groupby(["source", "k"], sort=False):
        numbers = contest.units.of(rows["query"]) if contest.units and source == JUDGED else None
        mean = mean_interval(rows["value"].to_numpy(), config.bootstrap_samples, CONFIDENCE, config.seed, numbers).share
        low, high = mean.ends if mean.known else (0.0, 1.0)
        figures = Agreement(k=int(k), mean=mean.difference, low=low, high=high, queries=len(rows), source=str(source))
        found[f"{source}@{k}"] = figures
    return found


def _side_by_side(contest: ComparisonPlan, rankings: Mapping[str, Mapping[str, Ranking]], per_query: pd.DataFrame) -> pd.DataFrame:
    """The queries that lost most, worst first, then those that gained most, the best last; a query that kept its value is not shown."""
    import pandas as pd

    judged = contest.judged
    relevant = judged.judgements[judged.judgements["score"] > 0].groupby("query_id")["doc_id"].agg(list).to_dict()
    texts = dict(zip(judged.query_ids, judged.texts, strict=True))
    rows: list[tuple[Any, ...]] = []
    for query_id, difference in _largest(per_query):
        wanted = [str(doc_id) for doc_id in relevant[query_id]]
        found = [_hits(c, rankings[name][query_id], set(wanted)) for name, c in contest.contenders.items()]
        named = [{"doc_id": d, "title": contest.candidate.titles.get(d) or contest.champion.titles.get(d, "")} for d in wanted]
        rows.append((query_id, texts[query_id], difference, named, *found))
    return pd.DataFrame(rows, columns=list(SIDE_COLUMNS))


def _largest(per_query: pd.DataFrame) -> list[tuple[str, float]]:
    """(query id, candidate minus champion), rising; equal differences in the order of the ids."""
    rows = per_query[per_query["metric"] == SHOWN_METRIC].pivot(index="query_id", columns="system", values="value")
    gaps = sorted((float(gap), str(query_id)) for query_id, gap in (rows[CANDIDATE] - rows[CHAMPION]).items())
    losses, gains = [gap for gap in gaps if gap[0] < 0][:SHOWN], [gap for gap in gaps if gap[0] > 0][-SHOWN:]
    return [(query_id, gap) for gap, query_id in (*losses, *gains)]


def _hits(contender: Side, ranking: Ranking, relevant: set[str]) -> Hits:
    return [
        {"doc_id": doc_id, "title": contender.titles.get(doc_id, ""), "score": round(score, 4), "relevant": doc_id in relevant}
        for doc_id, score in ranking[:ANSWER_DEPTH]
    ]
