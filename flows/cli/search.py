"""Commands that use a release: search, run."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from typing import Any

from components.errors import DataError
from components.plain_text import one_line
from components.visible import is_blank
from flows.cli.output import retriever_name, show


def search(options: argparse.Namespace) -> None:
    """Find documents for one query."""
    if is_blank(options.query):
        raise DataError("The query is empty: it holds nothing that can be seen. Give a text to look for.")
    hits, answer_id = answered(retriever_name(options), options.release, options.query, options.k)
    said = f"\nanswer:{answer_id}" if answer_id else ""
    result = {"query": options.query, "release": options.release, "answer_id": answer_id, "hits": hits}
    show(options, result, render_hits(hits) + said)


def hits_of(name: str, ref: str, query: str, k: int) -> list[dict[str, Any]]:
    """The k best documents as rank, id, score and title."""
    return answered(name, ref, query, k)[0]


def answered(name: str, ref: str, query: str, k: int) -> tuple[list[dict[str, Any]], str | None]:
    """The k best documents as rank, id, score and title, and the id of the answer in the log; None when the log is off."""
    from components.serving.answers import log_answers, log_mode
    from components.serving.loader import open_release

    log_mode()  # a wrong setting is refused before the release is opened
    opened = open_release(name, ref)
    found = opened.retriever.search([query], k)[0]
    ids = log_answers(opened.served, [query], [found])
    titles = opened.titles
    hits = [{"rank": i, "doc_id": h.doc_id, "score": round(h.score, 4), "title": titles.get(h.doc_id, "")} for i, h in enumerate(found, 1)]
    return hits, ids[0] if ids else None


def render_hits(hits: list[dict[str, Any]]) -> str:
    """One line a document."""
    shown = [(hit["rank"], hit["score"], one_line(hit["doc_id"]), one_line(hit["title"])) for hit in hits]
    width = max((len(doc_id) for _, _, doc_id, _ in shown), default=0)
    return "\n".join(f"{rank:>3}  {score:.3f}  {doc_id:<{width}}  {title}" for rank, score, doc_id, title in shown)


def answers(options: argparse.Namespace) -> None:
    """Remove answers that are older than the retention from the log."""
    from components.serving.answers import prune_answers, pruned_file

    name = retriever_name(options)
    done = prune_answers(name, options.days)
    text = f"{done.removed:,} answers were older than {options.days} days and were removed; {done.kept:,} are kept."
    if done.removed:
        text += f" What was removed stands in {pruned_file(name)}."
    show(options, done._asdict(), text)


def run(options: argparse.Namespace) -> None:
    """Answer a file of queries."""
    from components.artifacts import is_stdout
    from components.data.jsonl import read_queries
    from components.evaluation.trec import write_trec_run
    from components.serving.answers import log_answers, log_mode
    from components.serving.loader import open_release, own_documents

    log_mode()
    queries = read_queries(options.queries)
    if queries.empty:
        raise DataError(f"{options.queries} holds no queries. Expected JSON lines with _id and text.")
    if queries["query_id"].duplicated().any():
        first = queries["query_id"][queries["query_id"].duplicated()].iloc[0]
        raise DataError(f"{options.queries}: the query id '{first}' stands there twice. Ids must be unique in a run.")
    if blank := [query for query, text in zip(queries["query_id"], queries["text"], strict=True) if is_blank(text)]:
        raise DataError(
            f"{options.queries}: {len(blank)} queries are blank, the first is '{blank[0]}'. Remove them, or write what they ask."
        )
    opened = open_release(retriever_name(options), options.release)
    started = time.monotonic()
    own = own_documents(opened, dict(zip(queries["query_id"], queries["text"], strict=True)), options.identical_ids)
    hits = opened.retriever.search(queries["text"].tolist(), options.k + bool(own), progress="queries")
    asked = zip(queries["query_id"], hits, strict=True)
    found = [[hit for hit in row if query not in own or hit.doc_id != query][: options.k] for query, row in asked]
    ranking = {q: [(hit.doc_id, hit.score) for hit in hits] for q, hits in zip(queries["query_id"], found, strict=True)}
    write_trec_run(options.output, ranking, f"{opened.model}-{opened.version}")
    ids = log_answers(opened.served, queries["text"].tolist(), found)
    seconds = time.monotonic() - started
    result = {
        "queries": len(queries),
        "release": f"{opened.model}/{opened.version}",
        "output": str(options.output),
        "seconds": round(seconds, 2),
        "own_documents_left_out": len(own),
        "first_answer_id": ids[0] if ids else None,
    }
    logged = f"\nIds of the answers, in the order of the queries: answer:{ids[0]} to answer:{ids[-1]}" if ids else ""
    left_out = f"\n{len(own):,} of them are documents themselves: that document is left out of their answers." if own else ""
    answered_by = f"{len(queries):,} queries answered by {opened.model}/{opened.version} in {seconds:.1f} s: {options.output}"
    with contextlib.redirect_stdout(sys.stderr) if is_stdout(options.output) else contextlib.nullcontext():
        show(options, result, answered_by + left_out + logged)
