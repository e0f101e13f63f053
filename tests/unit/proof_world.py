"""A home with two signed releases of small parts, their promotion records and an audit log, for the tests of `verify` and `replay`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from components import settings
from components.artifacts import Artifact
from components.promotion.approval import approve
from components.promotion.promote import promote
from components.signing.keys import make_key
from components.signing.statements import record_signer, sign_release
from components.tracking import promotion_records as records
from components.tracking import registry
from components.tracking.audit_log import append_entry
from components.tracking.provenance import version_tags
from components.tracking.registry import RegisteredVersion
from components.tracking.runs import StepRecord, open_flow_run, record_step
from tests.unit.promotion_world import GOOD, NAME, PROVENANCE, make_candidate


@dataclass(frozen=True)
class Proven:
    """The home, and a folder for what a test makes. release/2 is champion, and was compared with release/1."""

    home: Path
    made: Path


def call(number: int) -> dict[str, Any]:
    """The fields of one audit entry."""
    return {
        "user": "ada",
        "roles": ("reviewer",),
        "method": "POST",
        "path": "/api/2.0/mlflow/model-versions/create",
        "action": "create_model_version",
        "subject": {"model": f"{NAME}-release", "version": str(number)},
        "status": 200,
        "outcome": "ok",
    }


@contextmanager
def proven_home(folder: Path, mlflow_template: Path, variables: Mapping[str, str] | None = None) -> Iterator[Proven]:
    """Make a home below `folder` and work in it."""
    from components.tracking.store import clear_caches

    home = folder / "home"
    store = home / "mlflow" / "mlflow.db"
    store.parent.mkdir(parents=True)
    shutil.copyfile(mlflow_template, store)
    places = {"SCALINGNOTE_HOME": str(home), "MLFLOW_TRACKING_URI": f"sqlite:///{store}"}
    with mock.patch.dict(os.environ, {**places, **(variables or {})}):
        clear_caches()
        make_key(settings.keys_folder() / "signing.pem")
        _release_twice(folder)
        yield Proven(home, folder)
        clear_caches()


def register(model: str, artifact: Artifact) -> RegisteredVersion:
    """Into MLflow, a candidate with its signature."""
    if artifact.kind == "release":
        sign_release(artifact.path)
    run = record_step(open_flow_run(NAME, "retrain", {}, PROVENANCE, {}), StepRecord(model, {}, artifact))
    return registry.register(model, artifact, run, {}, version_tags(PROVENANCE, "d" * 64, {}, "flow-1"))


def _release_twice(folder: Path) -> None:
    """The audit log comes after the promotions, and a record that rests on it: made without a server, the log names nobody's approval."""
    for number in (1, 2):
        make_candidate(folder / str(number), register, {**GOOD, "student": 0.70 + number / 1000})
        approve(NAME, number, "Ada")
        promote(NAME, lambda manifest: None)
    entries = [append_entry(settings.audit_log(), call(number)) for number in (4, 5, 2, 6, 7)]
    last = records.read_records(NAME)[-1]
    again = {
        key: value for key, value in last.items() if key not in ("sequence", "previous", "recorded_at", "retriever", "signature", "digest")
    }
    rest = {"audit_sequence": 3, "audit_digest": entries[2].digest, "approved_by": "ada", "role": "reviewer"}
    records.append_record(NAME, {**again, "from_version": 2, **rest}, record_signer())
