"""A study as a flow: run its cells, make table and plot, log both, and put them where people look."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from prefect import flow

from components.artifacts import Artifact, read_manifest, write_json
from flows.recorder import recorded_flow
from flows.reporting import ended, run_name, show_text, shown_as_cancelled
from flows.runner import Step
from flows.studies.config import StudySettings
from flows.studies.context import Context
from flows.studies.framework import Ran, Results, Study, run_cells
from flows.studies.registry import load_study


@flow(name="study", flow_run_name=run_name, on_crashed=[shown_as_cancelled], persist_result=False, validate_parameters=True)
def run_study(study: str, config: StudySettings, cells: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run the study named `study`; `cells` restricts it to some of its cells.

    Returns the table as rows and as text, the folder with table and plot, whether all came from the cache, and the MLflow run.
    """
    from components import settings

    settings.activate()
    module = load_study(study)
    with recorded_flow(f"{config.name}-study-{study}", f"study-{study}", config.model_dump(mode="json")) as recorder:
        context = Context(config, recorder, cells)
        ran = run_cells(study, module.cells(context), context)
        report = context.run(report_step(study, module, ran, context.config))
        folder = _publish(report, study, context)
        text = (folder / "table.md").read_text(encoding="utf-8")
        recorder.report(folder, text)
        show_text(f"{config.name}-study-{study.replace('_', '-')}", text)
        result: dict[str, Any] = {
            "study": study,
            "rows": _rows(folder),
            "text": text,
            "folder": str(folder),
            "cached": recorder.all_cached,
            "mlflow_run_id": recorder.run_id,
        }
    return ended(result, f"Study {study}: {len(result['rows'])} rows{', all from the cache' if result['cached'] else ''}.")


def report_step(name: str, study: Study, ran: Ran, config: StudySettings) -> Step:
    """Table, notes and plot from the measurements; keyed by them, by the settings, and by the code of the study."""

    def make(folder: Path) -> Artifact:
        from components.evaluation.plain_words import split_mark
        from components.release.training_noise import write_noise
        from components.studies.report import corrected, write_study_report
        from flows.studies.seeds import noise_of

        frame = corrected(study.tabulate(ran.results, config))
        notes = [*study.notes(ran.results, frame, config), *(f"{cell} collapsed: {why}" for cell, why in ran.collapsed.items())]
        notes = [note for note in (split_mark(config.evaluation.split), *notes) if note]
        write_noise(folder, noise_of(name, ran.results, config))
        parents = {cell: artifact.digest for cell, artifact in ran.results.items()}
        for file, content in getattr(study, "files", _no_files)(ran.results, config).items():
            write_json(folder / file, content)
        return write_study_report(name, frame, notes, study.plot, parents, folder)

    settings = {"study": name, "config": config.model_dump(mode="json"), "collapsed": ran.collapsed}
    return Step("study_report", make, ran.results, settings)


def _no_files(results: Results, config: StudySettings) -> dict[str, Any]:
    """What a study without files of its own adds to its report."""
    return {}


def _publish(report: Artifact, study: str, context: Context) -> Path:
    """Copy the report to `<home>/studies/<study>/<data>-<key>` with a note on the run that it comes from."""
    from components import settings

    folder = settings.studies_folder() / study / f"{context.dataset.attributes['name']}-{report.path.name[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in read_manifest(report.path).files:
        shutil.copyfile(report.path / name, folder / name)
    about = {"config": context.config.model_dump(mode="json"), "provenance": context.recorder.provenance.model_dump(mode="json")}
    write_json(folder / "about.json", {"mlflow_run_id": context.recorder.run_id, "report_digest": report.digest, **about})
    return folder


def _rows(folder: Path) -> list[dict[str, Any]]:
    import json

    import pandas as pd

    rows: list[dict[str, Any]] = json.loads(pd.read_csv(folder / "table.csv").to_json(orient="records"))
    return rows
