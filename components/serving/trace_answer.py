"""The way back from one served answer: to the documents it gave, as the index held them, and to the release that gave them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from components.errors import ArtifactError
from components.lineage.graph import ANSWER, Trace
from components.lineage.release_graph import Opened, open_version, release_node
from components.lineage.trace_documents import checked_index, find_documents
from components.lineage.trace_node import Node
from components.release.champion import release_model
from components.serving.answers import Answer, find_answer
from components.tracking import promotion_records as record_store


def trace_answer(answer_id: str, name: str | None = None) -> Trace:
    """Trace an answer by its id, in the log of the retriever `name` or of any.

    Raises DataError for an unknown id, ArtifactError when the release is no longer the one that answered, else as `trace`.
    """
    answer = find_answer(answer_id.removeprefix(ANSWER), name)
    opened = open_version(answer.retriever, answer.model, answer.version)
    if opened.artifact.digest != answer.digest:
        raise ArtifactError(
            f"The answer {answer.id} was given by {answer.model}/{answer.version} with the digest {answer.digest[:12]}, which now has "
            f"{opened.artifact.digest[:12]}. It was replaced, or the log was changed."
        )
    children = (Node("documents", {}, tuple(_documents(answer, opened)), "document"), release_node(opened))
    root = Node(f"answer {answer.id}", _details(answer), children, "answer")
    return Trace(answer.retriever, f"{ANSWER}{answer.id}", answer.model, answer.version, root, opened)


def _details(answer: Answer) -> dict[str, Any]:
    return {
        "answered_at": answer.at,
        "query": answer.query if answer.query is not None else "not kept",
        "query_digest": answer.query_digest,
        "release": f"{answer.model}/{answer.version}",
        "standing": _standing(answer),
        "documents": len(answer.doc_ids),
    }


def _standing(answer: Answer) -> str:
    """What the release was when it answered, by the promotion records up to that time."""
    if answer.model != release_model(answer.retriever):
        return "a candidate"
    before = [record for record in record_store.read_records(answer.retriever) if str(record.get("recorded_at", "")) <= answer.at]
    if before and int(before[-1]["to_version"]) == answer.version:
        return f"champion by promotion record {before[-1]['sequence']}"
    return "not the champion"


def _documents(answer: Answer, opened: Opened) -> Iterator[Node]:
    found = find_documents(checked_index(opened.manifest.pins.index), answer.doc_ids)
    for rank, (doc_id, score, place) in enumerate(zip(answer.doc_ids, answer.scores, found, strict=True), start=1):
        known = place if place is not None else {"note": "the index of this release does not hold it"}
        yield Node(f"document {doc_id}", {"rank": rank, "score": round(score, 4), **known}, kind="document")
