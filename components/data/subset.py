"""Cut a source down, and hold out dev queries where it has none: both depend on ids, texts and the seed alone."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from components.data.tables import RawTables, normalise_text, origin_of, stable_order


def keep_documents(tables: RawTables, maximum: int, seed: int) -> RawTables:
    """At most `maximum` documents, judged ones first; a query stays only when all its relevant documents stay.

    Rows that point to an id that does not exist are kept: a subset must not hide them from the contracts.
    """
    known = set(tables.documents["doc_id"])
    if len(known) <= maximum:
        return tables
    kept = _chosen_documents(tables, known, maximum, seed)
    judgements = tables.judgements
    cut = judgements["doc_id"].isin(known - kept)
    lost = set(judgements.loc[cut & (judgements["score"] > 0), "query_id"])
    return replace(
        tables,
        documents=_rows(tables.documents, tables.documents["doc_id"].isin(kept)),
        queries=_rows(tables.queries, ~tables.queries["query_id"].isin(lost)),
        judgements=_rows(judgements, ~cut & ~judgements["query_id"].isin(lost)),
    )


def hold_out_dev(tables: RawTables, share: float, seed: int) -> RawTables:
    """Move `share` of the train queries to the split dev when it has no relevant judgement; says how many in the notes.

    Of several mixed data sets it is those without a dev judgement of their own that give. Queries that are equal after normalisation
    move together, or the held-out ones would have been seen in training.
    """
    judgements = tables.judgements
    train, dev = (_relevant_queries(judgements, split) for split in ("train", "dev"))
    complete = {origin_of(query, tables.sources) for query in dev}
    if complete.issuperset(tables.sources or [""]):
        return tables
    texts = tables.queries.loc[tables.queries["query_id"].isin(train)].drop_duplicates("query_id").fillna("")
    wording = {query: normalise_text(text) for query, text in zip(texts["query_id"], texts["text"], strict=True)}
    order = stable_order((text for query, text in wording.items() if origin_of(query, tables.sources) not in complete), seed)
    chosen = set(order[: max(1, round(share * len(order)))] if len(order) > 1 else [])
    held_out = {query for query, text in wording.items() if text in chosen}
    moved = judgements["query_id"].isin(held_out) & (judgements["split"] == "train")
    split = judgements["split"].mask(moved, "dev")
    return replace(tables, judgements=judgements.assign(split=split), notes={**tables.notes, "dev_held_out_of_train": len(held_out)})


def _chosen_documents(tables: RawTables, known: set[str], maximum: int, seed: int) -> set[str]:
    """Whole queries in the seed's order as long as their documents fit, then other documents up to `maximum`."""
    judgements = tables.judgements
    relevant = judgements.loc[(judgements["score"] > 0) & judgements["doc_id"].isin(known)]
    wanted: dict[str, set[str]] = {}
    for query, document in zip(relevant["query_id"], relevant["doc_id"], strict=True):
        wanted.setdefault(query, set()).add(document)
    kept: set[str] = set()
    for query in stable_order(wanted, seed):
        if len(kept) + len(wanted[query] - kept) <= maximum:
            kept |= wanted[query]
    others = stable_order(known - kept, seed)
    return kept | set(others[: maximum - len(kept)])


def _relevant_queries(judgements: pd.DataFrame, split: str) -> set[str]:
    return set(judgements.loc[(judgements["score"] > 0) & (judgements["split"] == split), "query_id"])


def _rows(table: pd.DataFrame, keep: pd.Series) -> pd.DataFrame:
    return table.loc[keep].reset_index(drop=True)
