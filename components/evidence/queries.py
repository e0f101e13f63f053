"""Sections of the reviewer's report about single queries: what got worse and better, and how far both releases agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from components.evidence.dossier import Dossier
from components.evidence.glance import agreements
from components.evidence.html import PIECES, details, heading, paragraph, section, table
from components.evidence.numbers import against_champion, tally
from components.templates import piece

_NOT_LOGGED = "No query's text was logged while serving (SCALINGNOTE_ANSWER_LOG=full keeps it), so none could be replayed; others stand in."
_OPEN = 3  # queries of each kind whose answers are shown without a click


def queries_section(dossier: Dossier) -> Markup:
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


def _listed(title: str, rows: Sequence[Mapping[Any, Any]]) -> list[Markup]:
    if not rows:
        return [heading(title), paragraph("None: no judged query changed in this direction.")]
    blocks = [details(piece(PIECES, "query", row), piece(PIECES, "answers", row), opened=i < _OPEN) for i, row in enumerate(rows)]
    return [heading(f"{title}: {len(rows)} largest by nDCG@10"), *blocks]


def agreement_section(dossier: Dossier) -> Markup:
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
