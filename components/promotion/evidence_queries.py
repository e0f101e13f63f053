"""Sections of the reviewer's report about single queries: what got worse and better, and how far both releases agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from components.promotion.evidence import Dossier
from components.promotion.evidence_html import Safe, details, heading, paragraph, section, table

_OPEN = 3  # queries of each kind whose answers are shown without a click


def queries_section(dossier: Dossier) -> Safe:
    """The worst regressions and best gains, with the titles that both releases retrieved."""
    title, tables = "Worst regressions and best gains", dossier.compared.tables
    if tables is None:
        return section("queries", title, dossier.compared.missing or "There is no comparison with a champion.")
    rows = tables.side_by_side.to_dict("records")
    losses = [row for row in rows if row["difference"] < 0]
    gains = [row for row in rows if row["difference"] > 0][::-1]
    told = "Ten best documents of each release. Relevant ones stand in bold with a check mark; others may be relevant and not judged."
    return section("queries", title, told, *_listed("Regressions", losses), *_listed("Gains", gains))


def _listed(title: str, rows: Sequence[Mapping[Any, Any]]) -> list[Safe]:
    if not rows:
        return [heading(title), paragraph("None: no judged query changed in this direction.")]
    blocks = [details(f"{row['difference']:+.3f}  {row['text']}", _both(row), opened=i < _OPEN) for i, row in enumerate(rows)]
    return [heading(f"{title}: {len(rows)} largest by nDCG@10"), *blocks]


def _both(row: Mapping[Any, Any]) -> Safe:
    wanted = "; ".join(_named(document) for document in row["relevant"])
    columns = "".join(f"<div><b>{who.title()}</b>{_ranking(row[who])}</div>" for who in ("champion", "candidate"))
    return Safe(f'<p class="soft">Query {escape(str(row["query_id"]))}. Relevant: {escape(wanted)}</p><div class="pair">{columns}</div>')


def _ranking(hits: Sequence[Mapping[str, Any]]) -> str:
    return "<ol>" + "".join(_hit(hit) for hit in hits) + "</ol>"


def _hit(hit: Mapping[str, Any]) -> str:
    style, mark = (' class="right"', '<span class="mark">&#10003; relevant</span> ') if hit["relevant"] else ("", "")
    return f'<li{style}>{mark}{escape(_named(hit))} <span class="soft">{hit["score"]:.3f}</span></li>'


def _named(document: Mapping[str, Any]) -> str:
    title = str(document["title"] or "")
    return f"{title} ({document['doc_id']})" if title else str(document["doc_id"])


def agreement_section(dossier: Dossier) -> Safe:
    """How many documents both releases share."""
    title, summary = "Agreement with the champion", dossier.compared.summary
    if summary is None:
        return section("agreement", title, dossier.compared.missing or "There is no comparison with a champion.")
    rows = [
        [found.source, str(found.k), f"{found.mean:.1%}", f"[{found.low:.1%}, {found.high:.1%}]", f"{found.queries:,}"]
        for found in summary.agreement.values()
    ]
    columns = ("Queries", "k", "Agreement@k", "95 % interval", "Number of queries")
    told = (
        "Share of the champion's first k documents that the candidate has among its own. It needs no judgements, so it shows how much "
        "users will see change; it does not say which of both is right."
    )
    replayed = any(found.source.startswith("logged") for found in summary.agreement.values())
    none = "" if replayed else "No query was logged while serving (or only its id), so none could be replayed; other queries stand in."
    return section("agreement", title, told, table("Agreement of candidate and champion", columns, rows, numbers=1), none)
