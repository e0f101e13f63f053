"""What the audit plugin asks of the stores of the server it runs in."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from components.tracking import audit_log as audit
from components.tracking import labels
from components.tracking.server.permissions import ADMIN


def roles_of(user: str) -> tuple[str, ...]:
    """Names of the roles of `user`, `admin` first for MLflow's administrator; those that MLflow makes for single users are left out."""
    from mlflow.exceptions import MlflowException
    from mlflow.server.auth import store

    try:
        found = store.get_user(user)
    except MlflowException:  # deleted while the call ran
        return ()
    names = sorted(role.name for role in store.list_user_roles(found.id) if not role.name.startswith("__user_"))
    return (ADMIN, *names) if found.is_admin else tuple(names)


class ServerWorld:
    """The registry and tracking store of this server, and its audit log."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def exists(self, model: str) -> bool:
        """Whether there is a registered model of this name."""
        from mlflow.exceptions import MlflowException
        from mlflow.server.handlers import _get_model_registry_store

        try:
            _get_model_registry_store().get_registered_model(model)
        except MlflowException:
            return False
        return True

    def creator(self, model: str, version: int) -> str | None:
        """Who created a version, by the verified log; None when it was not created through this server."""
        entries = audit.read_audit(self.log) if self.log.exists() else []
        entry = audit.creation_of(entries, model, version)
        return entry.user if entry else None

    def tags(self, model: str, version: int) -> Mapping[str, str]:
        """Tags of a version; empty when there is none."""
        from mlflow.exceptions import MlflowException
        from mlflow.server.handlers import _get_model_registry_store

        try:
            found = _get_model_registry_store().get_model_version(model, str(version))
        except MlflowException:
            return {}
        return dict(found.tags)

    def complete(self, subject: dict[str, str]) -> dict[str, str]:
        """`subject` with the name of its experiment; the run that holds a chain of promotion records counts as part of their experiment."""
        if "experiment" in subject:
            return subject
        name = _experiment_of_run(subject["run"]) if "run" in subject else None
        if name is None and "experiment_id" in subject:
            name = _experiment_name(subject["experiment_id"])
        return {**subject, "experiment": name} if name else subject


@functools.lru_cache(maxsize=4096)
def _experiment_of_run(run_id: str) -> str | None:
    from mlflow.exceptions import MlflowException
    from mlflow.server.handlers import _get_tracking_store

    try:
        run = _get_tracking_store().get_run(run_id)
    except MlflowException:
        return None
    chain = run.data.tags.get(labels.PREFIX + "chain")
    return str(chain) if chain else _experiment_name(run.info.experiment_id)


@functools.lru_cache(maxsize=1024)
def _experiment_name(experiment_id: str) -> str | None:
    from mlflow.exceptions import MlflowException
    from mlflow.server.handlers import _get_tracking_store

    try:
        return str(_get_tracking_store().get_experiment(experiment_id).name)
    except MlflowException:
        return None
