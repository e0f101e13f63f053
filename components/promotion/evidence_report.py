"""The reviewer's report: one HTML page that holds everything, opens from disk and in MLflow's artifact viewer, and runs no script."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from components.artifacts import digest_of, write_atomic
from components.promotion.evidence import Dossier, require_measured
from components.promotion.evidence_html import Safe, details, page, paragraph, section
from components.promotion.evidence_queries import agreement_section, queries_section
from components.promotion.evidence_running import contracts_section, cost_section, index_section, retention_section, speed_section
from components.promotion.evidence_sections import banner, changes_section, gates_section, override_banner, quality_section, slices_section
from components.promotion.release import REPORT_PAGE

_SECTIONS = (
    gates_section,
    changes_section,
    quality_section,
    slices_section,
    queries_section,
    agreement_section,
    speed_section,
    index_section,
    contracts_section,
    retention_section,
    cost_section,
)


def write_report_page(dossier: Dossier, folder: Path) -> None:
    """Write `report.html` into `folder`; raises PromotionError for an evaluation over no query."""
    write_atomic(folder / REPORT_PAGE, render_report(dossier).encode())


def render_report(dossier: Dossier) -> str:
    """The whole page, everything from outside escaped; raises PromotionError for an evaluation over no query."""
    require_measured(dossier)
    told = paragraph("A click on a heading folds its section.")
    body = [
        _head(dossier),
        banner(dossier.manifest.decision),
        override_banner(dossier),
        told,
        *(make(dossier) for make in _SECTIONS),
        _origin(dossier),
    ]
    return page(f"Candidate of {dossier.manifest.name}", body)


def _head(dossier: Dossier) -> Safe:
    manifest, summary = dossier.manifest, dossier.evaluation.summary
    champion = f"against the champion release/{dossier.champion.version}" if dossier.champion else "with no champion before it"
    return Safe(
        f"<h1>Candidate of the retriever {escape(manifest.name)}</h1>"
        f'<p class="soft">{escape(manifest.release_type)} release, {escape(champion)}. {summary.queries:,} judged queries '
        f"({escape(summary.split)}), {summary.documents:,} documents. Space <code>{escape(manifest.space_id[:12])}</code>, evaluation "
        f"<code>{escape(manifest.evaluation.digest[:12])}</code>.</p>"
    )


def _origin(dossier: Dossier) -> Safe:
    """Digests to compare with the registry, and the whole configuration."""
    manifest = dossier.manifest
    pins = "".join(
        f'<tr><th scope="row">{escape(role.replace("_", " "))}</th><td>{escape(pin.model)}/{pin.version}</td>'
        f"<td><code>{escape(pin.digest)}</code></td></tr>"
        for role, pin in manifest.pins.items()
    )
    head = '<thead><tr><th scope="col">Part</th><th scope="col">Version</th><th scope="col">Digest</th></tr></thead>'
    parts = Safe(f'<div class="wide"><table><caption>What this candidate pins</caption>{head}<tbody>{pins}</tbody></table></div>')
    revision = manifest.provenance.get("code_revision", "unknown")
    local = ", with uncommitted changes" if manifest.provenance.get("dirty") else ""
    told = (
        f"Code revision {revision}{local}; configuration digest {digest_of(manifest.config)}; flow run {manifest.flow_run_id or 'unknown'}."
    )
    config = Safe(f"<pre>{escape(json.dumps(manifest.config, indent=2, sort_keys=True))}</pre>")
    return section("origin", "Origin", parts, told, details("The whole configuration", config))
