"""The same path once over the embedded MLflow store: candidate, approval, promotion, alarm, rollback."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.lineage.graph import trace, trace_document
from components.promotion.approval import approve
from components.promotion.promote import promote, rollback
from components.promotion.verification import verify_release
from components.release.champion import servable_release
from components.release.manifest import ReleaseManifest
from components.tracking import registry
from tests.unit.promotion_world import GOOD, NAME, Register, into_mlflow, make_candidate

RELEASE = f"{NAME}-release"


@pytest.fixture
def register(home: Path) -> Register:
    return into_mlflow()


def test_release_approved_promoted_and_rolled_back(register: Register, tmp_path: Path) -> None:
    seen: list[ReleaseManifest] = []
    for number in (1, 2):
        candidate = make_candidate(tmp_path / str(number), register, {**GOOD, "student": 0.70 + number / 1000})
        assert candidate.version == number
        assert approve(NAME, number, "Ada").created
        assert not approve(NAME, number, "Bob").created
        assert promote(NAME, seen.append).to_version == number
        assert promote(NAME, seen.append).status == "nothing"
    assert [len(manifest.smoke) for manifest in seen] == [1, 1]
    assert seen[1].baseline_version == 1
    assert (registry.alias(RELEASE, "champion"), registry.alias(RELEASE, "previous")) == (2, 1)
    assert [check for check in verify_release(NAME, "champion") if not check.ok] == []
    assert "approved_by: Ada" in trace(NAME, "champion").text()
    assert trace_document(NAME, "champion", "d1").root.details["row"] == 0

    registry.set_alias(RELEASE, "champion", 1)
    assert servable_release(NAME).version == 2
    assert servable_release(NAME).alarm is not None
    assert rollback(NAME, "Ada", "a trial").to_version == 1
    assert (registry.alias(RELEASE, "champion"), registry.alias(RELEASE, "previous")) == (1, None)
    assert servable_release(NAME) == (1, None)
