"""The validation report as one HTML page that needs nothing from outside: no script, no font, no picture."""

from __future__ import annotations

from itertools import groupby

from markupsafe import Markup

from components.data.validation_report import ValidationReport
from components.templates import page, piece


def render(report: ValidationReport) -> str:
    """The whole page; everything that comes from the data is escaped."""
    tables = groupby(report.results, key=lambda result: f"{result.contract} {result.version}, table {result.table}")
    sections = [(title, list(results)) for title, results in tables]
    return page("data/report.html.j2", report=report, tiles=_tiles(report), sections=sections)


def contract_blocks(report: ValidationReport) -> Markup:
    """What a page about something else shows of the validation: broken rules, dropped rows, every rule behind a click, the contracts."""
    return piece("data/contract_blocks.html.j2", "blocks", report)


def _tiles(report: ValidationReport) -> dict[str, int]:
    left_out = {"rows left out": report.dropped} if report.left_out else {}
    counts = {name: count for name, count in sorted(report.counts.items()) if not name.startswith("dropped_")}
    found = {"rules checked": len(report.results), "errors": len(report.errors), "warnings": len(report.warnings)}
    return {**found, **left_out, **counts}
