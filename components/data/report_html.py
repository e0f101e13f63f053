"""The validation report as one HTML page that needs nothing from outside: no script, no font, no picture."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby

from components.data.validation_report import RuleResult, ValidationReport

STYLE = """
:root { color-scheme: light dark; --ink: #1d2433; --soft: #5b6475; --paper: #f6f7f9; --card: #ffffff; --line: #dfe3ea;
  --good: #1a7f4b; --bad: #b3261e; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaf0; --soft: #a2abbb; --paper: #14171d; --card: #1d222b; --line: #343b48;
  --good: #5fcf95; --bad: #ff8a80; --warn: #f2b84b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; } p { margin: .25rem 0; }
.soft { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
.verdict { font-size: 1.15rem; font-weight: 600; margin: .75rem 0; }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0; padding: 0; list-style: none; }
.tiles li { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .6rem 1rem; min-width: 7.5rem; }
.tiles b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .5rem .8rem; vertical-align: top; }
th { color: var(--soft); font-weight: 600; font-size: .85rem; } tr + tr td, thead + tbody td { border-top: 1px solid var(--line); }
td.number { text-align: right; font-variant-numeric: tabular-nums; } td.state { font-weight: 600; white-space: nowrap; }
code { font: .88em ui-monospace, monospace; overflow-wrap: anywhere; } ul.rows { margin: .35rem 0 0; padding-left: 1.1rem; }
"""


def render(report: ValidationReport) -> str:
    """The whole page; everything that comes from the data is escaped."""
    tables = groupby(report.results, key=lambda result: f"{result.contract} {result.version}, table {result.table}")
    sections = [_section(title, list(results)) for title, results in tables]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Data validation: {escape(report.dataset)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        f"{_head(report)}\n{_problems(report)}\n{_left_out(report)}\n{''.join(sections)}\n{_contracts(report)}\n</main></body></html>\n"
    )


def contract_blocks(report: ValidationReport) -> str:
    """What a page about something else shows of the validation: broken rules, dropped rows, every rule behind a click, the contracts."""
    rules = f"<details><summary>All {len(report.results)} rules</summary>{_section('Rules', report.results, 3)}</details>"
    return f"{_problems(report, 3)}\n{_left_out(report, 3)}\n{rules}\n{_contracts(report, 3)}"


def _head(report: ValidationReport) -> str:
    errors, warnings = len(report.errors), len(report.warnings)
    verdict = ("bad", "Refused: the data must not be trained on.") if errors else ("good", "Accepted.")
    left_out = {"rows left out": report.dropped} if report.left_out else {}
    counts = {name: count for name, count in sorted(report.counts.items()) if not name.startswith("dropped_")}
    tiles = {"rules checked": len(report.results), "errors": errors, "warnings": warnings, **left_out, **counts}
    listed = "".join(f"<li><b>{value:,}</b>{escape(name.replace('_', ' '))}</li>" for name, value in tiles.items())
    return (
        f"<h1>Data validation: {escape(report.dataset)}</h1>"
        f'<p class="soft">Dataset <code>{escape(report.dataset_digest)}</code></p>'
        f'<p class="verdict {verdict[0]}">{verdict[1]}</p><ul class="tiles">{listed}</ul>'
    )


def _problems(report: ValidationReport, level: int = 2) -> str:
    broken = [*report.errors, *report.warnings]
    return _section("What to look at", broken, level) if broken else ""


def _left_out(report: ValidationReport, level: int = 2) -> str:
    if not report.left_out:
        return ""
    rows = "".join(
        f"<tr><td><code>{escape(entry.rule)}</code></td><td>{escape(entry.reason)}; first {escape(entry.first)}"
        f"{f'; {entry.lost}' if entry.lost else ''}</td><td>{escape(' '.join(filter(None, (entry.source, entry.table, entry.split))))}</td>"
        f'<td class="number">{entry.rows:,} of {entry.total:,}</td></tr>'
        for entry in report.left_out
    )
    return (
        f'<h{level}>Rows left out of the data</h{level}><p class="soft">The configuration drops them (data.on_violation); '
        f"quarantine.jsonl beside the data's tables holds every one.</p>"
        f'<div class="wide"><table><thead><tr><th scope="col">Rule</th><th scope="col">Reason</th><th scope="col">Where</th>'
        f'<th scope="col">Rows</th></tr></thead><tbody>{rows}</tbody></table></div>\n'
    )


def _section(title: str, results: Sequence[RuleResult], level: int = 2) -> str:
    rows = "".join(_row(result) for result in results)
    return (
        f'<h{level}>{escape(title)}</h{level}><div class="wide"><table><thead><tr><th scope="col">Result</th><th scope="col">Rule</th>'
        f'<th scope="col">Requirement</th><th scope="col">Rows that break it</th></tr></thead><tbody>{rows}</tbody></table></div>\n'
    )


def _row(result: RuleResult) -> str:
    state, style = ("passed", "good") if result.passed else ("error", "bad") if result.severity == "error" else ("warning", "warn")
    rows = "".join(f"<li><code>{escape(str(offender))}</code></li>" for offender in result.offenders)
    first = f'<ul class="rows">{rows}</ul>' if rows else ""
    found = f'<p class="soft">Found: {escape(result.found)}</p>' if result.found else ""
    return (
        f'<tr><td class="state {style}">{state}</td><td><code>{escape(result.rule)}</code></td>'
        f'<td>{escape(result.requirement)}{found}{first}</td><td class="number">{result.count:,} of {result.checked:,}</td></tr>'
    )


def _contracts(report: ValidationReport, level: int = 2) -> str:
    rows = "".join(
        f"<tr><td>{escape(used.name)} {escape(used.version)}</td><td><code>{escape(used.file)}</code></td>"
        f"<td><code>{escape(used.sha256)}</code></td></tr>"
        for used in report.contracts
    )
    return (
        f'<h{level}>Contracts</h{level}><div class="wide"><table><thead><tr><th scope="col">Contract</th><th scope="col">File</th>'
        f'<th scope="col">sha256</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )
