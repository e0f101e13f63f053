"""Sections of the reviewer's report about single queries: what got worse and better, and how far both releases agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.promotion.evidence import Dossier
from components.promotion.evidence_glance import agreements
from components.promotion.evidence_html import Safe, details, foreign, heading, paragraph, section, table
from components.promotion.evidence_numbers import against_champion, tally

_NOT_LOGGED = "No query's text was logged while serving (SCALINGNOTE_ANSWER_LOG=full keeps it), so none could be replayed; others stand in."
_OPEN = 3  # queries of each kind whose answers are shown without a click
_QUERY, _WHOLE_QUERY, _TITLE, _ID = 200, 1000, 160, 80  # characters that are shown
_MOST_RELEVANT = 10  # documents that are named; a query may have hundreds


def queries_section(dossier: Dossier) -> Safe:
    """The worst regressions and best gains, with the titles that both releases retrieved."""
    title, tables = "Worst regressions and best gains", dossier.compared.tables
    if tables is None:
        return section("queries", title, dossier.compared.missing or "There is no comparison with a champion.")
    rows = tables.side_by_side.to_dict("records")
    losses = [row for row in rows if row["difference"] < 0]
    gains = [row for row in rows if row["difference"] > 0][::-1]
    told = "Ten best documents of each release. Relevant ones stand in bold with a check mark; others may be relevant and not judged."
    return section("queries", title, _counted(dossier), told, *_listed("Regressions", losses), *_listed("Gains", gains))


def _counted(dossier: Dossier) -> str:
    """Over all queries, of which only the ends are shown."""
    rivals = against_champion(dossier)
    if rivals is None or (found := tally(rivals)) is None:
        return ""
    counts = f"{found.worse:,} worse than with the champion, {found.better:,} better, {found.equal:,} equal"
    return f"By nDCG@10, of {len(rivals.query_ids):,} judged queries: {counts}."


def _listed(title: str, rows: Sequence[Mapping[Any, Any]]) -> list[Safe]:
    if not rows:
        return [heading(title), paragraph("None: no judged query changed in this direction.")]
    blocks = [details(_titled(row), _both(row), opened=i < _OPEN) for i, row in enumerate(rows)]
    return [heading(f"{title}: {len(rows)} largest by nDCG@10"), *blocks]


def _titled(row: Mapping[Any, Any]) -> Safe:
    tone = "bad" if row["difference"] < 0 else "good"
    return Safe(f'<b class="{tone} figure">{row["difference"]:+.3f}</b> {foreign(str(row["text"]), _QUERY)}')


def _both(row: Mapping[Any, Any]) -> Safe:
    wanted = "; ".join(_named(document) for document in row["relevant"][:_MOST_RELEVANT])
    more = len(row["relevant"]) - _MOST_RELEVANT
    columns = "".join(f"<div><b>{who.title()}</b>{_ranking(row[who])}</div>" for who in ("champion", "candidate"))
    whole = f"{foreign(str(row['text']), _WHOLE_QUERY)} " if len(str(row["text"])) > _QUERY else ""
    told = f"Query {foreign(str(row['query_id']), _ID)}. Relevant: {wanted}{f' and {more:,} more' if more > 0 else ''}"
    return Safe(f'<p class="soft">{whole}{told}</p><div class="halves">{columns}</div>')


def _ranking(hits: Sequence[Mapping[str, Any]]) -> str:
    return "<ol>" + "".join(_hit(hit) for hit in hits) + "</ol>" if len(hits) else "<p>Nothing was found.</p>"


def _hit(hit: Mapping[str, Any]) -> str:
    style, mark = (' class="right"', '<span class="mark">&#10003; relevant</span> ') if hit["relevant"] else ("", "")
    return f'<li{style}>{mark}{_named(hit)} <span class="soft">{hit["score"]:.3f}</span></li>'


def _named(document: Mapping[str, Any]) -> str:
    title, doc_id = str(document["title"] or ""), foreign(str(document["doc_id"]), _ID)
    return f"{foreign(title, _TITLE)} ({doc_id})" if title else doc_id


def agreement_section(dossier: Dossier) -> Safe:
    """How many documents both releases share."""
    title, summary = "Agreement with the champion", dossier.compared.summary
    if summary is None:
        return section("agreement", title, dossier.compared.missing or "There is no comparison with a champion.")
    rows = [
        [found.source, str(found.k), f"{found.mean:.1%}", f"[{found.low:.1%}, {found.high:.1%}]", f"{found.queries:,}"]
        for found in agreements(dossier, None)
    ]
    columns = ("Queries", "k", "Agreement@k", "95 % interval", "Number of queries")
    told = (
        "Share of the champion's first k documents that the candidate has among its own. It needs no judgements, so it shows how much "
        "users will see change; it does not say which of both is right."
    )
    replayed = any(found.source.startswith("logged") for found in summary.agreement.values())
    none = "" if replayed else _NOT_LOGGED
    return section("agreement", title, told, table("Agreement of candidate and champion", columns, rows, numbers=1), none)
