"""Smoke queries: a few questions with the answers a release gave when it was built, asked again before it is promoted."""

from __future__ import annotations

from collections.abc import Sequence

from components.errors import PromotionError
from components.release.manifest import ReleaseManifest, SmokeQuery
from components.serving.loader import open_retriever
from components.serving.retriever import Retriever

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
