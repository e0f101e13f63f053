"""The reviewer's report: one HTML page that holds everything, opens from disk and in MLflow's artifact viewer, and runs no script."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup

from components.artifacts import digest_of, write_atomic
from components.evidence.dossier import Dossier, require_measured
from components.evidence.labels import PIECES, details, foreign, held_out_titles, release_words, section, standalone, table
from components.evidence.operation_sections import (
    contracts_section,
    cost_section,
    index_section,
    latency_plot,
    retention_section,
    speed_section,
    student_plot,
    towers_plot,
)
from components.evidence.quality_sections import (
    agreement_section,
    banner,
    baseline_plot,
    champion_plot,
    changes_section,
    gates_section,
    glance_section,
    override_words,
    quality_section,
    queries_section,
    slices_plot,
    slices_section,
)
from components.release.completeness import other_models
from components.release.manifest import REPORT_PAGE, ReleaseManifest
from components.templates import page, piece
from components.tracking.runs import PLOTS

_OVERRIDE = 1000  # characters of its reason
_SECTIONS = (
    glance_section,
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
    """Write `report.html` and its plots as pictures into `folder`; raises PromotionError for an evaluation over no query."""
    page_text = render_report(dossier)
    shutil.rmtree(folder / PLOTS, ignore_errors=True)  # a killed attempt may have left others there
    (folder / PLOTS).mkdir(parents=True)
    for name, plot in plots_of(dossier).items():
        write_atomic(folder / PLOTS / f"{name}.svg", standalone(plot).encode())
    write_atomic(folder / REPORT_PAGE, page_text.encode())


def plots_of(dossier: Dossier) -> dict[str, Markup]:
    """Name -> plot, those that can be drawn."""
    made = {
        "1_differences_from_champion": champion_plot(dossier),
        "2_differences_from_baselines": baseline_plot(dossier),
        "3_slices": slices_plot(dossier),
        "4_recall_over_latency": latency_plot(dossier),
        "5_training_of_towers": towers_plot(dossier),
        "6_training_of_student": student_plot(dossier),
    }
    return {name: plot for name, plot in made.items() if plot}


def render_report(dossier: Dossier) -> str:
    """The whole page, everything from outside escaped; raises PromotionError for an evaluation over no query."""
    require_measured(dossier)
    overridden = override_words(dossier)
    return page(
        "evidence/report.html.j2",
        name=dossier.manifest.name,
        told=_head(dossier),
        override=foreign(overridden, _OVERRIDE) if overridden else "",
        banner=banner(dossier),
        sections=[*(make(dossier) for make in _SECTIONS), _origin(dossier)],
    )


def _head(dossier: Dossier) -> str:
    manifest, summary = dossier.manifest, dossier.evaluation.summary
    champion = f"held against the champion release/{dossier.champion.version}" if dossier.champion else "with no champion before it"
    made = max((node.recorded_at for node in manifest.lineage if node.recorded_at), default="")
    when = f"Built until {made[:16].replace('T', ' ')} UTC" if made else "Built at an unrecorded time"
    local = " with uncommitted changes" if manifest.provenance.get("dirty") else ""
    code = f"from code {str(manifest.provenance.get('code_revision') or 'of unknown revision')[:12]}{local}"
    own = f" {summary.own_documents.words}" if summary.own_documents else ""
    own += f" {titles}" if (titles := held_out_titles(manifest)) else ""
    return (
        f"{release_words(manifest.release_type)}, {champion}. {when} {code}. "
        f"{summary.queries:,} judged queries ({summary.split}), {summary.documents:,} documents.{own}"
    )


def _origin(dossier: Dossier) -> Markup:
    """Digests to compare with the registry, and the whole configuration."""
    manifest, summary = dossier.manifest, dossier.evaluation.summary
    rows = [[role.replace("_", " "), f"{pin.model}/{pin.version}", pin.digest] for role, pin in manifest.pins.items()]
    rows += [["data set", manifest.dataset.name, manifest.dataset.digest], ["evaluation", summary.split, manifest.evaluation.digest]]
    started = {(base.name, base.digest): f"base of the {role.replace('_', ' ')}" for role, base in reversed(manifest.base_models.items())}
    others = {(model.name, model.digest): what for node in manifest.lineage for what, model in other_models(node)}
    rows += [[what, foreign(name, 120), digest] for used in (started, others) for (name, digest), what in used.items()]
    rows += [["vector space", "", manifest.space_id], ["configuration", "", digest_of(manifest.config)]]
    origin = manifest.provenance
    told = (
        f"Code revision {origin.get('code_revision', 'unknown')}{', with uncommitted changes' if origin.get('dirty') else ''}; flow run "
        f"{manifest.flow_run_id or 'unknown'} in MLflow; made by {origin.get('user') or 'nobody named'} (as the machine says)."
    )
    told += "".join(f" {kept}" for kept in _kept_parts(manifest))
    config = piece(PIECES, "preformatted", json.dumps(manifest.config, indent=2, sort_keys=True))
    parts = table("What this candidate is made of", ("Part", "Version", "Digest"), rows)
    return section("origin", "Origin", parts, told, details("The whole configuration", config))


def _kept_parts(manifest: ReleaseManifest) -> Iterator[str]:
    """Of a refresh what earlier flows made, with their code and the person, in sentences."""
    flows = {node.digest: node.flow_run_id for node in manifest.lineage}
    for flow in dict.fromkeys(flows.get(pin.digest) for _, pin in manifest.pins.items()):
        if flow is None:
            continue
        parts = " and ".join(role.replace("_", " ") for role, pin in manifest.pins.items() if flows.get(pin.digest) == flow)
        known = manifest.earlier_flows.get(flow, {})
        code, person = known.get("code_revision") or "not known", known.get("user") or "nobody named"
        yield f"Kept from the earlier flow {flow}: {parts}; code revision {code}, made by {person}."
