"""A training by MLflow's plain client, and a list of what it sent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

CANDIDATE = "retriever-candidate"


def record_requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """Every request that leaves this process through `requests`: user, method, path."""
    import requests

    sent: list[tuple[str, str, str]] = []
    inner = requests.Session.send

    def send(session: Any, request: Any, **options: Any) -> Any:
        sent.append((os.environ["MLFLOW_TRACKING_USERNAME"], request.method, urlparse(request.url).path))
        return inner(session, request, **options)

    monkeypatch.setattr(requests.Session, "send", send)
    return sent


def session(folder: Path, url: str) -> str:
    """What a training does, by MLflow's own client; the number of the candidate."""
    import mlflow
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModelInput, Metric

    client = MlflowClient(url)
    found = client.get_experiment_by_name("retriever")
    run = client.create_run(found.experiment_id, tags={"a": "b"})
    number = run.info.run_id
    client.log_param(number, "p", "1")
    client.log_metric(number, "m", 1.0)
    client.log_batch(number, metrics=[Metric("n", 2.0, 1, 0)])
    client.set_tag(number, "t", "1")
    client.delete_tag(number, "t")
    client.log_dict(number, {"a": 1}, "a.json")
    model = client.create_logged_model(found.experiment_id, "encoder", number, params={"x": "1"}, tags={"t": "1"})
    client.set_logged_model_tags(model.model_id, {"u": "1"})
    client.finalize_logged_model(model.model_id, "READY")
    client.log_inputs(number, models=[LoggedModelInput(model.model_id)])
    client.log_inputs(number, datasets=[mlflow.entities.DatasetInput(mlflow.entities.Dataset("d", "1", "local", "{}"), [])])
    client.set_experiment_tag(found.experiment_id, "e", "1")
    client.search_runs([found.experiment_id])
    for _ in range(2):
        with pytest.raises(mlflow.exceptions.MlflowException, match="already exists"):
            client.create_registered_model(CANDIDATE)
    version = client.create_model_version(CANDIDATE, f"{run.info.artifact_uri}/x", number, tags={"scalingnote.digest": "d"})
    client.set_model_version_tag(CANDIDATE, version.version, "note", "1")
    client.set_model_version_tag(CANDIDATE, version.version, "note", "2")
    client.update_model_version(CANDIDATE, version.version, "text")
    client.set_terminated(number)
    other = client.create_run(found.experiment_id).info.run_id
    client.update_run(other, "FAILED", "name")
    return str(version.version)
