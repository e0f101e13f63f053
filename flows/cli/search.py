"""Commands that use a release: search, run, export."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path
from typing import Any

from components.errors import ConfigError, DataError
from components.text import is_blank, one_line
from flows.cli.output import only_result_on_stdout, require_file, retriever_name, show, writing


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
    from components.serving.answer_log import log_answers, log_mode
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
    from components.serving.answer_log import answers_file, prune_answers, pruned_file

    name = retriever_name(options)
    done = prune_answers(name, options.days, options.gap)
    if not answers_file(name).exists():
        show(options, done._asdict(), f"No answers of '{name}' are logged here: there is no {answers_file(name)}.")
        return
    text = f"{done.removed:,} answers were older than {options.days} days and were removed; {done.kept:,} are kept."
    if done.removed:
        text += f" What was removed stands in {pruned_file(name)}."
    show(options, done._asdict(), text)


def run(options: argparse.Namespace) -> None:
    """Answer a file of queries."""
    from components.artifacts import is_stdout
    from components.data.jsonl import read_queries
    from components.evaluation.metrics import write_trec_run
    from components.serving.answer_log import log_answers, log_mode
    from components.serving.loader import open_release, own_documents

    log_mode()
    require_file(options.output, options.queries)
    queries = read_queries(Path("/dev/stdin") if str(options.queries) == "-" else options.queries)
    if queries.empty:
        raise DataError(f"{options.queries} holds no queries. Expected JSON lines with _id and text.")
    if queries["query_id"].duplicated().any():
        first = queries["query_id"][queries["query_id"].duplicated()].iloc[0]
        raise DataError(f"{options.queries}: the query id '{first}' stands there twice. Ids must be unique in a run.")
    if unwritable := [query for query in queries["query_id"] if query.split() != [query]]:
        raise DataError(
            f"{options.queries}: the query id '{one_line(unwritable[0])}' is empty or holds white space, by which a run file tells its "
            f"columns apart ({len(unwritable)} such ids). Rename it."
        )
    if blank := [query for query, text in zip(queries["query_id"], queries["text"], strict=True) if is_blank(text)]:
        raise DataError(
            f"{options.queries}: the query '{one_line(blank[0])}' is blank ({len(blank)} such queries). Remove it, or write what it asks."
        )
    opened = open_release(retriever_name(options), options.release)
    started = time.monotonic()
    own = own_documents(opened, dict(zip(queries["query_id"], queries["text"], strict=True)), options.identical_ids)
    hits = opened.retriever.search(queries["text"].tolist(), options.k + bool(own), progress="queries")
    asked = zip(queries["query_id"], hits, strict=True)
    found = [[hit for hit in row if query not in own or hit.doc_id != query][: options.k] for query, row in asked]
    ranking = {q: [(hit.doc_id, hit.score) for hit in hits] for q, hits in zip(queries["query_id"], found, strict=True)}
    with writing(options.output):
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


# --- The command export: a release's vectors for a store that a team has, its encoders as one package, or all of it signed for others.


def export(options: argparse.Namespace) -> None:
    """Write Parquet shards, or fill a Qdrant collection, or both; all that can be wrong is said before anything is written."""
    vectors = options.to is not None or options.qdrant is not None
    if (vectors, options.router is not None, options.signed is not None).count(True) > 1:
        raise ConfigError("--router writes encoders, --to and --qdrant write vectors, --signed a whole release. Give one of the three.")
    if options.collection is not None and options.qdrant is None:
        raise ConfigError(f"--collection {options.collection} names what --qdrant makes. Give --qdrant PATH|URL with it, or leave it out.")
    if options.qdrant == ":memory:":
        raise ConfigError("--qdrant :memory: is a store that ends with this command. Give the address of a server, or a folder.")
    if options.router is not None:
        _export_router(options)
        return
    if options.signed is not None:
        _export_signed(options)
        return
    if options.part is not None:
        raise ConfigError(f"--part {options.part} says which encoders --router writes; --to and --qdrant write vectors. Leave it out.")
    if not vectors:
        raise ConfigError(
            "export needs a place to write to: --to FOLDER for Parquet shards, --qdrant PATH|URL, or both; or --router FOLDER for "
            "encoders; or --signed FOLDER for the whole release, signed for others."
        )
    from components.index import export as exporting
    from components.release.open import verified_index

    if options.to is not None:
        exporting.require_empty(options.to)
    release, index = verified_index(retriever_name(options), options.release)
    source = exporting.open_source(index)
    collection = options.collection or retriever_name(options)
    client = None if options.qdrant is None else exporting.open_qdrant(options.qdrant, collection)
    started = time.monotonic()
    result: dict[str, Any] = {"release": release, "index_digest": index.digest, "space_id": index.space_id}
    if options.to is not None:
        written = exporting.export_parquet(source, options.to)
        result |= {"folder": str(options.to), "digest": written.digest, **written.counts}
    if client is not None:
        result |= {"collection": collection, "documents": exporting.export_qdrant(source, client, collection)}
        client.close()
    result["seconds"] = round(time.monotonic() - started, 2)
    show(options, result, _sentence(result))


def _export_router(options: argparse.Namespace) -> None:
    from components.distillation.router import export_router, require_new
    from components.evidence.description import Part, folders_of, model_card
    from components.release.open import open_pinned

    require_new(options.router)
    part: Part = options.part or "pair"
    release = open_pinned(retriever_name(options), options.release)
    with only_result_on_stdout(options):
        found = export_router(folders_of(release, part), options.router, lambda differences: model_card(release, part, differences))
    routes = " and ".join(f"encode_{role} (within {difference:.1g} of the release)" for role, difference in found.items())
    missing = " and ".join(f"encode_{role}" for role in ("query", "document") if role not in found)
    alone = f" {missing} is refused: there is no encoder for it in the package." if missing else ""
    result = {"release": release.title, "folder": str(options.router), "part": part, "space_id": release.index.space_id}
    text = f"{release.title} as one package of sentence-transformers in {options.router}: {routes}.{alone} README.md is its model card."
    show(options, {**result, "differences": found}, text)


def _export_signed(options: argparse.Namespace) -> None:
    import shlex

    from components.promotion.model_signing import BUNDLE, export_signed

    release, key, parts = export_signed(retriever_name(options), options.release, options.signed)
    result = {"release": release, "folder": str(options.signed), "signature": str(options.signed / BUNDLE), "key_id": key, "digests": parts}
    command = shlex.join(["model_signing", "verify", "certificate", str(options.signed), "--signature", str(options.signed / BUNDLE)])
    lines = (
        f"{release} with its parts in {options.signed}, signed for others (OpenSSF Model Signing 1.0) by {key[:16]}. They check it with",
        f"  {command} --certificate_chain CERTIFICATE",
        "where CERTIFICATE is the key's own, from `scalingnote keys certificate`. Give it to them on another way than the folder.",
    )
    show(options, result, "\n".join(lines))


def _sentence(result: dict[str, Any]) -> str:
    places = [f"{result['shards']:,} Parquet shards in {result['folder']}"] if "folder" in result else []
    places += [f"the Qdrant collection '{result['collection']}'"] if "collection" in result else []
    return (
        f"{result['documents']:,} documents of {result['release']} exported in {result['seconds']:.1f} s: {', and '.join(places)}. "
        f"Query vectors must come from the space {result['space_id'][:12]}."
    )
