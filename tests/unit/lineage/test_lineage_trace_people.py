"""People and comparisons in a trace: by the audit log where there is one, by claims where there is none or it may not be read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.errors import ArtifactError
from components.lineage.graph import trace
from components.lineage.release_graph import Node, release_node
from components.lineage.standards import openlineage_of
from components.promotion.promote import promote
from components.release.manifest import LineageNode
from components.tracking.store import TrackingError
from tests.unit.promotion_world import NAME, MemoryTracking, World
from tests.unit.trace_world import champion_trace

CANDIDATE, RELEASE = f"{NAME}-candidate", f"{NAME}-release"


def part(root: Node, title: str) -> Node:
    return next(child for child in root.children if child.title == title)


def approval_in(root: Node) -> Any:
    return part(root, "approval").children[0].details


def test_with_an_audit_log_the_trace_names_who_was_signed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = MemoryTracking(log=tmp_path / "audit.jsonl")
    tracking.install(monkeypatch)
    tracking.sign_in("tom", "trainer")
    number = World(tracking, tmp_path).candidate()
    tracking.sign_in("rita", "reviewer")
    tracking.copy_version(CANDIDATE, number, RELEASE)
    tracking.sign_in("flow", "promoter")
    promote(NAME, lambda manifest: None)
    approval = approval_in(trace(NAME, "champion").root)
    assert (approval["approved_by"], approval["role"], approval["authentication"]) == ("rita", "reviewer", "basic")
    assert len(approval["audit_digest"]) == 64
    assert str(trace(NAME, "candidate/1").root.details["registered_by"]).startswith("tom at ")
    assert str(trace(NAME, "champion").root.details["registered_by"]).startswith("rita at ")
    log = tmp_path / "audit.jsonl"
    log.write_text(log.read_text().replace("rita", "mora"))
    with pytest.raises(ArtifactError):
        trace(NAME, "champion")


def test_without_a_log_names_are_as_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = champion_trace(tmp_path, monkeypatch)[0].root
    assert root.details["registered_by"] is None
    assert approval_in(root)["authentication"].startswith("unauthenticated")


def test_a_log_that_this_user_may_not_read_is_said_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    champion_trace(tmp_path, monkeypatch)

    def refused() -> None:
        raise TrackingError("The server does not show its audit log to this user.")

    monkeypatch.setattr("components.tracking.audit_log.trail", refused)
    approval = approval_in(trace(NAME, "champion").root)
    assert approval["authentication"] == "as claimed: The server does not show its audit log to this user."


def test_the_comparison_names_the_champion_it_was_held_against(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = champion_trace(tmp_path, monkeypatch)[0]
    release = found.release
    assert release is not None
    pin = release.manifest.pins.index
    compared = LineageNode(
        digest="c" * 64, kind="comparison", name="compare", parents={"index": pin.digest, "champion": "f" * 64}, run_id="run-compare"
    )
    manifest = release.manifest.model_copy(update={"lineage": (*release.manifest.lineage, compared), "baseline_version": 7})
    later = replace(release, manifest=manifest)
    comparison = part(release_node(later), "comparison: compare")
    assert [child.title for child in comparison.children] == ["champion: release/7", f"index: {pin.model}/1"]
    event = next(event for event in openlineage_of(replace(found, release=later)) if event["job"]["name"] == "compare")
    assert [dataset["name"] for dataset in event["inputs"]] == [f"{NAME}-index", RELEASE]
