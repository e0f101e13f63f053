"""What changed between two releases in data, code, configuration and models, as sentences."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.release.manifest import LineageNode, ReleaseManifest
from components.tracking.labels import flatten

SHORT = 12  # digits of a digest that a person compares
_DECIDED_ELSEWHERE = ("policy.",)  # the policy judges a candidate and does not make it; it is listed last


@dataclass(frozen=True)
class Changes:
    """One list of sentences for each subject; an empty list means that nothing changed."""

    data: tuple[str, ...]
    code: tuple[str, ...]
    configuration: tuple[str, ...]
    models: tuple[str, ...]

    def subjects(self) -> dict[str, tuple[str, ...]]:
        """The four lists with their names, in a fixed order."""
        return {"Data": self.data, "Code": self.code, "Configuration": self.configuration, "Models": self.models}


def changes_between(new: ReleaseManifest, old: ReleaseManifest) -> Changes:
    """What is different in `new`."""
    return Changes(tuple(_data(new, old)), tuple(_code(new, old)), tuple(_configuration(new, old)), tuple(_models(new, old)))


def _data(new: ReleaseManifest, old: ReleaseManifest) -> list[str]:
    found = _differing({"data set": new.dataset.name}, {"data set": old.dataset.name})
    if new.dataset.digest != old.dataset.digest:
        found.append(f"other rows: digest {old.dataset.digest[:SHORT]} became {new.dataset.digest[:SHORT]}")
    found += _differing(_counts(new), _counts(old))
    found += [f"contract {change}" for change in _differing(new.dataset.contracts, old.dataset.contracts)]
    if new.evaluation.judgements_digest != old.evaluation.judgements_digest:
        found.append("the judgements of the evaluation are others")
    return found


def _counts(manifest: ReleaseManifest) -> dict[str, int]:
    node = _node(manifest, manifest.dataset.digest)
    return {name.replace("_", " "): count for name, count in node.counts.items()} if node else {}


def _code(new: ReleaseManifest, old: ReleaseManifest) -> list[str]:
    ours, theirs = new.provenance, old.provenance
    named = {"code_revision": "revision", "patch_digest": "uncommitted changes", "lock_digest": "lock file", "python": "Python"}
    found = _differing({text: _short(ours.get(key)) for key, text in named.items()}, {t: _short(theirs.get(k)) for k, t in named.items()})
    if ours.get("code_digest") != theirs.get("code_digest") and not found:
        found.append("the project's Python files are others")
    return found + _differing(_mapping(ours.get("packages")), _mapping(theirs.get("packages")))


def _configuration(new: ReleaseManifest, old: ReleaseManifest) -> list[str]:
    found = _differing(_settings(new), _settings(old))
    return sorted(found, key=lambda line: (line.startswith(_DECIDED_ELSEWHERE), line))


def _settings(manifest: ReleaseManifest) -> dict[str, str]:
    """Flat settings. One that was just made and one that was read back hold the same lists of fields in other orders."""
    return flatten(json.loads(json.dumps(manifest.config, sort_keys=True)))


def _models(new: ReleaseManifest, old: ReleaseManifest) -> list[str]:
    former = dict(old.pins.items())
    found = []
    for role, pin in new.pins.items():
        if pin.digest != former[role].digest:
            found.append(f"new {role.replace('_', ' ')}: {former[role].model}/{former[role].version} became {pin.model}/{pin.version}")
            found += [f"{role.replace('_', ' ')}, {change}" for change in _differing(_attributes(new, role), _attributes(old, role))]
    if new.space_id != old.space_id:
        found.append(f"a new vector space: {old.space_id[:SHORT]} became {new.space_id[:SHORT]}")
    return found


def _attributes(manifest: ReleaseManifest, role: str) -> dict[str, Any]:
    """What tells models of one role apart: base model, layers, dimension, kind of index, number of documents."""
    node = _node(manifest, getattr(manifest.pins, role).digest)
    if node is None:
        return {}
    told = {key: node.attributes[key] for key in ("base_model", "layers", "dimension", "index_key") if key in node.attributes}
    return {**{key.replace("_", " "): value for key, value in told.items()}, **{k: v for k, v in node.counts.items() if k == "documents"}}


def _node(manifest: ReleaseManifest, digest: str) -> LineageNode | None:
    return next((node for node in manifest.lineage if node.digest == digest), None)


def _differing(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """`name: before -> after` for everything that is not equal."""
    names = [*new, *(name for name in old if name not in new)]
    return [f"{name}: {_told(old.get(name))} -> {_told(new.get(name))}" for name in names if _told(old.get(name)) != _told(new.get(name))]


def _told(value: Any) -> str:
    # Flattened settings are texts: a field that is null and one that an older version did not have are both "none".
    if value in (None, "", "None", "[]", "{}"):
        return "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _short(value: Any) -> Any:
    return value[:SHORT] if isinstance(value, str) else value


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}
