"""What a release must show before it serves: smoke queries, and its times beside the champion's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import PromotionError, ScalingNoteError, lack_behind
from components.evaluation.champion_comparison import ANSWER_DEPTH, CANDIDATE, CHAMPION, ComparisonSummary, values_of_runs
from components.evaluation.config import EvaluationConfig
from components.evaluation.speed import Timed, describe_machine, measure_speeds
from components.gates.policy import recorded_policy
from components.index.rows import read_rows
from components.lineage.graph import checked_index
from components.promotion.record import DatedDecision, decide_against
from components.release.champion import release_model
from components.release.manifest import EVALUATION_FOLDER, ReleaseManifest, SmokeQuery, load_release
from components.serving.answer_log import logged_queries
from components.serving.loader import open_retriever
from components.serving.retriever import Retriever
from components.tracking import registry
from components.tracking.store import TrackingError

if TYPE_CHECKING:
    import pandas as pd

SMOKE_QUERIES = 8
DEPTH = 10
MIN_OVERLAP = 0.8  # another number format may exchange near-equal documents; a wrong encoder or index shares almost none


def record_smoke(retriever: Retriever, queries: Sequence[str], own: Sequence[str | None] = ()) -> tuple[SmokeQuery, ...]:
    """The first queries and the ids of their ten best documents; `own` names for each the document that it is itself, if it is one."""
    chosen = list(queries[:SMOKE_QUERIES])
    found = retriever.search(chosen, DEPTH + 1)
    ids = [[hit.doc_id for hit in hits if not own or hit.doc_id != own[place]] for place, hits in enumerate(found)]
    return tuple(SmokeQuery(query=query, doc_ids=tuple(kept[:DEPTH])) for query, kept in zip(chosen, ids, strict=True))


def check_smoke(manifest: ReleaseManifest) -> None:
    """Open the release and ask its smoke queries; raises PromotionError when fewer than 80 % of the recorded documents come back."""
    retriever = open_retriever(manifest)
    if not manifest.smoke:
        raise PromotionError("The release has no smoke queries, so it cannot be tried before its promotion. Retrain it.")
    # One more than was recorded: a query that is a document finds itself, and the record leaves that out.
    answers = retriever.search([smoke.query for smoke in manifest.smoke], DEPTH + 1)
    for smoke, hits in zip(manifest.smoke, answers, strict=True):
        shared = len(set(smoke.doc_ids) & {hit.doc_id for hit in hits}) / max(1, len(smoke.doc_ids))
        if shared < MIN_OVERLAP:
            raise PromotionError(
                f"The query '{smoke.query}' gets other documents than when the release was built: {shared:.0%} of them came back, "
                f"expected at least {MIN_OVERLAP:.0%}. Do not promote it; retrain."
            )


# --- Candidate and champion timed against each other at promotion, when the champion is another one than the candidate was built against.


LOGGED = 200  # the newest queries of the log that both are asked, beside their smoke queries


def compare_again(folder: Path, champion: int | None) -> DatedDecision:
    """`decide_against`, with the documents of both compared, and both opened and timed in turns here and now if the policy asks for it.

    One that cannot be opened leaves these gates undecided, with the reason: a reviewer can still let the release through.
    """
    if champion is None:
        return decide_against(folder, champion)
    manifest = load_release(folder)
    policy = recorded_policy(manifest.config)
    asked = (policy.max_p95_ratio, policy.min_qps_ratio, policy.max_removed_share)
    try:
        measured = None if all(limit is None for limit in asked) else time_both(manifest, champion)
        return decide_against(folder, champion, measured, shared=values_of_both(manifest, folder, champion))
    except ScalingNoteError as error:
        if isinstance(error, TrackingError) or lack_behind(error):  # of the server or of this machine, and no fault of either release
            raise
        return decide_against(folder, champion, problem=f"The comparison with release/{champion} failed: {error}")


def time_both(manifest: ReleaseManifest, champion: int) -> ComparisonSummary:
    """Speed of whole answers of the release and of version `champion`, asked the same queries in one run, and the documents that are gone.

    Raises ArtifactError when a part of either is missing or changed, PromotionError when there is no query to ask.
    """
    other = load_release(registry.artifact_folder(release_model(manifest.name), champion))
    queries = [smoke.query for smoke in (*manifest.smoke, *other.smoke)] + logged_queries(manifest.name, LOGGED)
    if not queries:
        raise PromotionError("Neither release has smoke queries, so they cannot be timed against each other. Build the candidate again.")
    config = EvaluationConfig.model_validate(manifest.config.get("evaluation", {}))
    ours, theirs = open_retriever(manifest), open_retriever(other)
    speeds = measure_speeds({CANDIDATE: _timed(ours), CHAMPION: _timed(theirs)}, queries, config)
    return ComparisonSummary(
        baseline_version=champion,
        judgements_digest=manifest.evaluation.judgements_digest,
        queries=manifest.evaluation.queries,
        candidate=speeds[CANDIDATE],
        champion=speeds[CHAMPION],
        sizes={name: {"documents": len(opened.index)} for name, opened in ((CANDIDATE, ours), (CHAMPION, theirs))},
        removed=len(theirs.index.rows.missing_from(ours.index.rows)),
        answer_depth=ANSWER_DEPTH,
        machine=describe_machine(),
    )


def values_of_both(manifest: ReleaseManifest, folder: Path, champion: int) -> pd.DataFrame | None:
    """`values_of_runs` of the release in `folder` and of version `champion`; raises ArtifactError when a part is missing or changed."""
    other_folder = registry.artifact_folder(release_model(manifest.name), champion)
    rows = {
        name: read_rows(checked_index(found.pins.index)) for name, found in ((CANDIDATE, manifest), (CHAMPION, load_release(other_folder)))
    }
    return values_of_runs({CANDIDATE: folder / EVALUATION_FOLDER, CHAMPION: other_folder / EVALUATION_FOLDER}, rows)


def _timed(retriever: Retriever) -> Timed:
    return Timed(lambda texts: retriever.search(texts, ANSWER_DEPTH))
