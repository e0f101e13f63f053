"""Links to the pages of MLflow's own interface, relative to wherever the server is reached."""

from __future__ import annotations

from components.tracking import labels
from components.tracking.runs import PAGE
from components.tracking.store import client, translated


@translated("find the pages of a model version")
def evidence_links(model: str, version: int) -> dict[str, str]:
    """Title -> link for the files of a version, and for the report that the run which made it keeps a copy of."""
    found = client().get_model_version(model, str(version))
    run = client().get_run(found.run_id)
    experiment = run.info.experiment_id
    holder = run.data.tags.get(labels.FILES_RUN, found.run_id)  # a run that found its step finished keeps no copy
    model_id = (found.source or "").removeprefix("models:/")
    return {
        "Full report": f"#/experiments/{experiment}/runs/{holder}/artifacts/release/{PAGE}",
        "Files of this version": f"#/experiments/{experiment}/models/{model_id}/artifacts",
        "Run": f"#/experiments/{experiment}/runs/{found.run_id}",
    }


@translated("find the page of a run")
def run_link(run_id: str) -> str:
    """The page of a run."""
    return f"#/experiments/{client().get_run(run_id).info.experiment_id}/runs/{run_id}"


def version_link(model: str, version: int) -> str:
    """The page of a registered version."""
    return f"#/models/{model}/versions/{version}"
