"""Which values of candidate and champion the gates compare: those of the run that asked both, else those of their two evaluations.

The champion is asked again rather than remembered, also where its own evaluation is about the same judgements: within one run there is
one machine, one set of libraries and one set of judgements, and nothing but the two releases can make a difference. So new data needs no
exception: a champion that was evaluated on older judgements answers today's.

It answers with the documents that it serves, and one that is new counts against it. So that new documents hide no loss on the others, the
queries whose documents it serves as well (`known_queries`) are a part of their own, with the margin of all queries; the other slices, and
the power, which asks how far equal candidates differ by chance, stand on them alone.

The registered evaluation stands in for a champion that was not asked, if it is about the same judgements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from components.evaluation.comparison import CANDIDATE, CHAMPION, SERVED, SHARED
from components.gates.decision import Evidence
from components.gates.measures import NotDecidable, require_paired, scores, values_per_query

if TYPE_CHECKING:
    import pandas as pd

    from components.evaluation.comparison import ComparisonSummary

METRIC = "ndcg@10"
RUN_TOLERANCE = 1e-3  # absolute, of a mean; another batch may turn a tie in a ranking, but not make another candidate
_ASK = "Build the candidate again by the same command: finished steps come from the cache, and both are asked the same queries."


@dataclass(frozen=True)
class Rivals:
    """nDCG@10 of both by query_id, in the same order, and in a sentence where the values come from."""

    candidate: pd.Series
    champion: pd.Series
    source: str


def rivals(evidence: Evidence) -> Rivals:
    """The values to compare; NotDecidable, with what to do, when there are none that can be compared in pairs."""
    return _of_evaluations(evidence) if evidence.values is None else _of_one_run(evidence, evidence.values)


def compared(evidence: Evidence, missing: str) -> ComparisonSummary:
    """The comparison, which has to be with this champion and on these judgements; `missing` says what is lost without one."""
    found, summary = evidence.comparison, evidence.report.summary
    if found is None:
        raise NotDecidable(f"{missing} {_why(evidence)}")
    if (found.judgements_digest, found.queries) != (summary.judgements_digest, summary.queries):
        raise NotDecidable(f"Candidate and champion were compared on other judgements than those of this evaluation. {_ASK}")
    if found.baseline_version != evidence.champion:
        raise NotDecidable(f"The candidate was compared with release/{found.baseline_version}, which is not the champion here. {_ASK}")
    return found


def known_queries(evidence: Evidence) -> frozenset[str] | None:
    """The queries whose relevant documents the champion serves as well; None where these are all, or nobody looked."""
    shares = None if evidence.values is None else _served(evidence.values)
    if shares is None or not len(shares):
        return None
    known = frozenset(shares[shares >= 1].index)
    return None if known == set(evidence.report.per_query["query_id"]) else known


def among_shared(evidence: Evidence) -> Rivals | None:
    """Values of both among the documents that both hold, where the champion has some that the candidate lacks; None where it has none.

    With fewer documents every query is easier, so a candidate that lost some is also compared on equal terms.
    """
    import numpy as np

    table = evidence.values
    if table is None or not len(rows := table[table["metric"] == SHARED]):
        return None
    rows = rows[np.isfinite(rows["value"].astype(float))]
    ours, theirs = (rows[rows["system"] == who].set_index("query_id")["value"].astype(float).sort_index() for who in (CANDIDATE, CHAMPION))
    return Rivals(ours, theirs, "Both rank the documents alone that both hold.")


def _of_one_run(evidence: Evidence, table: pd.DataFrame) -> Rivals:
    comparison = compared(evidence, "The values of candidate and champion come without the comparison that they belong to.")
    candidate, queries = scores(evidence.report, "student", METRIC), evidence.report.summary.queries
    asked, champion = (
        values_per_query(table, (who, METRIC), queries, f"{METRIC} of the {who} in one run") for who in (CANDIDATE, CHAMPION)
    )
    require_paired(candidate, asked)
    require_paired(candidate, champion)
    if not abs(asked.mean() - candidate.mean()) <= RUN_TOLERANCE:
        raise NotDecidable(
            f"In the comparison the candidate has a mean {METRIC} of {asked.mean():.4f}, in its evaluation {candidate.mean():.4f}: one of "
            f"both measured something else. {_ASK}"
        )
    return Rivals(candidate, champion, f"Both were asked in one run{_documents(comparison)}.{_lacking(_served(table))}")


def _of_evaluations(evidence: Evidence) -> Rivals:
    report, baseline = evidence.report, evidence.baseline
    if baseline is None:
        raise NotDecidable("There is no evaluation of the champion.")
    ours, theirs = report.summary.judgements_digest, baseline.summary.judgements_digest
    if not ours or ours != theirs:
        raise NotDecidable(
            f"The champion was evaluated on other judgements ({str(theirs)[:12]}, the candidate on {str(ours)[:12]}), and it was not asked "
            f"these. {_why(evidence)}"
        )
    champion = scores(baseline, "student", METRIC, "champion's ")
    candidate = scores(report, "student", METRIC)
    require_paired(candidate, champion)
    return Rivals(candidate, champion, "From the evaluations of both, which are about the same judgements.")


def _why(evidence: Evidence) -> str:
    return (evidence.facts.uncompared if evidence.facts else "") or _ASK


def _documents(comparison: ComparisonSummary) -> str:
    """That each searches its own documents, with their numbers where the comparison has them."""
    ours, theirs = (comparison.sizes.get(who, {}).get("documents") for who in (CANDIDATE, CHAMPION))
    numbers = "" if ours is None or theirs is None else f" (candidate {ours:,}, champion {theirs:,})"
    return f", each with the documents that it serves{numbers}"


def _lacking(shares: pd.Series) -> str:
    if len(shares) and not (shares > 0).any():
        raise NotDecidable(
            "The champion serves none of the documents that these queries ask for, so it says nothing about this candidate. Where the "
            "documents were exchanged on purpose, a reviewer decides with --override REASON, or the retriever gets a name of its own."
        )
    lacking = int((~(shares >= 1)).sum())
    return f" For {lacking:,} of the queries the champion lacks a relevant document, which counts against it." if lacking else ""


def _served(table: pd.DataFrame) -> pd.Series:
    """By query_id the share of the relevant documents that the champion serves; empty for comparisons of older versions."""
    rows = table[(table["system"] == CHAMPION) & (table["metric"] == SERVED)]
    return rows.set_index("query_id")["value"].astype(float)
