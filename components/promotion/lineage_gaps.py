"""What is missing on the way from a release back to its data, code, configuration and base models; nothing missing is a gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from components.promotion.release import DatasetPin, LineageNode, ReleaseManifest


@dataclass(frozen=True)
class Origins:
    """All that a release says about where it came from; known before its manifest is written.

    `pins` maps a role to the digest of the artifact, `base_models` the role of an encoder to the digest of the weights it started from.
    """

    lineage: tuple[LineageNode, ...]
    pins: Mapping[str, str]
    dataset: DatasetPin
    evaluation: str
    provenance: Mapping[str, Any]
    config: Mapping[str, Any]
    flow_run_id: str | None
    base_models: Mapping[str, str] = field(default_factory=dict)


def lineage_gaps(manifest: ReleaseManifest) -> tuple[str, ...]:
    """The gaps of a written release, as sentences; empty when every parent is known."""
    return gaps_of(origins_of(manifest))


def origins_of(manifest: ReleaseManifest) -> Origins:
    """The origins that a manifest states."""
    return Origins(
        lineage=manifest.lineage,
        pins={role: pin.digest for role, pin in manifest.pins.items()},
        dataset=manifest.dataset,
        evaluation=manifest.evaluation.digest,
        provenance=manifest.provenance,
        config=manifest.config,
        flow_run_id=manifest.flow_run_id,
    )


def gaps_of(origins: Origins) -> tuple[str, ...]:
    """The gaps as sentences; empty when every parent is known."""
    known = {node.digest for node in origins.lineage}
    return tuple(f"The {role.replace('_', ' ')} is not described in the lineage." for role, pin in origins.pins.items() if pin not in known)
