"""A registry and promotion records in memory, which can be killed before any change, with or without an audit log."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from components.errors import ModelError, PromotionError
from components.tracking import labels
from components.tracking.audit_log import LogState, append_entry, read_audit, state_of
from components.tracking.registry import VersionInfo


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test may catch it."""


@dataclass
class MemoryTracking:
    """Registry and records in memory. `kill_at` raises Killed right before the n-th change (from 0); None never does.

    With a `log` it behaves like a server with sign-in: each change is an entry of `user`, written as the server writes it.
    """

    models: dict[str, list[VersionInfo]] = field(default_factory=dict)
    folders: dict[tuple[str, int], Path] = field(default_factory=dict)
    aliases: dict[tuple[str, str], int] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    descriptions: dict[tuple[str, int], str] = field(default_factory=dict)
    deleted: dict[str, dict[int, dict[str, str]]] = field(default_factory=dict)
    kill_at: int | None = None
    changes: int = 0
    log: Path | None = None
    user: str | None = None
    roles: tuple[str, ...] = ()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("versions", "artifact_folder", "copy_version", "alias", "set_alias", "delete_alias", "set_version_tag"):
            monkeypatch.setattr(f"components.tracking.registry.{name}", getattr(self, name))
        for name in ("set_review_tag", "description", "set_description"):
            monkeypatch.setattr(f"components.tracking.registry.{name}", getattr(self, name))
        monkeypatch.setattr("components.tracking.registry.local_files", lambda model, version: self.folders.get((model, version)))
        monkeypatch.setattr("components.tracking.registry.tags_of_deleted", lambda model_name: self.deleted.get(model_name, {}))
        monkeypatch.setattr("components.tracking.audit_log.trail", lambda: read_audit(self.log) if self.log else None)
        monkeypatch.setattr("components.tracking.audit_log.current_state", self.log_state)
        monkeypatch.setattr("components.tracking.store.signed_in_as", lambda: self.user)
        for name in ("append_record", "read_records", "foreign_runs"):
            monkeypatch.setattr(f"components.tracking.promotion_records.{name}", getattr(self, name))

    def log_state(self, entry: int = 0) -> LogState | None:
        return state_of(self.log, "the log", entry) if self.log else None

    def sign_in(self, user: str, *roles: str) -> None:
        """From now on changes are those of `user`."""
        self.user, self.roles = user, roles

    def note(self, action: str, outcome: str = "ok", **subject: str | int) -> None:
        """One entry of the audit log; nothing where there is no log."""
        if self.log is None:
            return
        fields = {"user": self.user, "roles": self.roles, "method": "POST", "path": f"/{action}", "action": action}
        status = 200 if outcome == "ok" else 403
        append_entry(self.log, {**fields, "subject": {k: str(v) for k, v in subject.items()}, "status": status, "outcome": outcome})

    def state(self) -> tuple[Any, ...]:
        """All that can be seen, times left out."""
        plain = [
            {key: value for key, value in record.items() if key not in ("time", "recorded_at", "approved_at")} for record in self.records
        ]
        names = {model: [info.source for info in infos] for model, infos in self.models.items()}
        return names, dict(self.aliases), plain

    def add(self, model: str, folder: Path, digest: str, source: str = "", tags: Mapping[str, str] | None = None) -> int:
        infos = self.models.setdefault(model, [])
        version = 1 + max((number for name, number in self.folders if name == model), default=0)  # as MLflow, never one that was deleted
        own = {**(tags or {}), labels.DIGEST: digest}
        infos.append(
            VersionInfo(
                name=model,
                version=version,
                tags=own,
                source=source,
                run_id="r",
                created_ms=1_000 + sum(map(len, self.models.values())),
                aliases=(),
            )
        )
        self.folders[model, version] = folder
        self.note("create_model_version", model=model, version=version, source=source)
        return version

    def delete_version(self, model: str, version: int) -> None:
        gone = {info.version: dict(info.tags) for info in self.models[model] if info.version == version}
        self.deleted.setdefault(model, {}).update(gone)
        self.models[model] = [info for info in self.models[model] if info.version != version]
        self.aliases = {key: target for key, target in self.aliases.items() if (key[0], target) != (model, version)}

    def versions(self, model_name: str) -> list[VersionInfo]:
        return copy.deepcopy(self.models.get(model_name, []))

    def artifact_folder(self, model_name: str, version: int, fresh: bool = False) -> Path:
        if not any(info.version == version for info in self.models.get(model_name, [])):
            raise ModelError(f"There is no version {version} of '{model_name}'.")
        return self.folders[model_name, version]

    def copy_version(self, source_name: str, source_version: int, target_name: str) -> int:
        self._change()
        info = next(info for info in self.models[source_name] if info.version == source_version)
        folder = self.folders[source_name, source_version]
        return self.add(target_name, folder, info.tags[labels.DIGEST], f"models:/{source_name}/{source_version}", info.tags)

    def alias(self, model_name: str, alias_name: str) -> int | None:
        return self.aliases.get((model_name, alias_name))

    def set_alias(self, model_name: str, alias_name: str, version: int) -> None:
        self._change()
        self.aliases[model_name, alias_name] = version
        self.note("set_alias", model=model_name, version=version, alias=alias_name)

    def delete_alias(self, model_name: str, alias_name: str) -> None:
        self._change()
        self.aliases.pop((model_name, alias_name), None)

    def set_version_tag(self, model_name: str, version: int, key: str, value: str) -> None:
        self._change()
        info = next(info for info in self.models[model_name] if info.version == version)
        info.tags.update(labels.prefixed({key: value}))
        self.note("set_version_tag", model=model_name, version=version, key=next(iter(labels.prefixed({key: value}))), value=value)

    def set_review_tag(self, model_name: str, version: int, key: str, value: str) -> None:
        self._change()
        next(info for info in self.models[model_name] if info.version == version).tags[key] = value
        self.note("set_version_tag", model=model_name, version=version, key=key, value=value)

    def description(self, model_name: str, version: int) -> str:
        return self.descriptions.get((model_name, version), "")

    def set_description(self, model_name: str, version: int, markdown: str) -> None:
        self._change()
        self.descriptions[model_name, version] = markdown

    def append_record(self, retriever_name: str, record: Mapping[str, Any], sign: Any = None, after: int | None = None) -> dict[str, Any]:
        if after not in (None, len(self.records)):
            raise PromotionError("Another promotion or rollback was recorded at the same time.")
        self._change()
        number = len(self.records) + 1
        own = {"sequence": number, "digest": f"{number:064x}", "retriever": retriever_name}
        self.records.append({"recorded_at": record["time"], **record, **own})
        return dict(self.records[-1])

    def read_records(self, retriever_name: str, unread: bool = False) -> list[dict[str, Any]]:
        return copy.deepcopy(self.records)

    def foreign_runs(self, retriever_name: str) -> list[str]:
        return []

    def _change(self) -> None:
        if self.kill_at == self.changes:
            raise Killed
        self.changes += 1
