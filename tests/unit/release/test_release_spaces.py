"""The facts about a candidate: parts of another vector space, gaps, broken contracts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from components.artifacts import Artifact, open_artifact, seal
from components.errors import ArtifactError
from components.release.completeness import space_mismatches
from components.release.manifest import Pins
from components.towers.contract import save_contract
from tests.unit.promotion_world import CONTRACT, SPACE, MemoryTracking, World


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Artifact]:
    tracking = MemoryTracking()
    tracking.install(monkeypatch)
    World(tracking, tmp_path).candidate()
    return {role: open_artifact(tmp_path / "1" / role) for role in Pins.model_fields}


def sealed_again(part: Artifact, attributes: Mapping[str, str]) -> Artifact:
    return seal(part.path, part.kind, parents=part.parents, attributes=attributes)


def test_parts_of_one_space_have_no_mismatch(parts: dict[str, Artifact]) -> None:
    assert space_mismatches(parts) == ()


def test_an_encoder_of_another_space_is_named(parts: dict[str, Artifact]) -> None:
    other = "f" * 64
    parts["query_encoder"] = sealed_again(parts["query_encoder"], {"space_id": other})
    assert space_mismatches(parts) == (f"The query encoder belongs to the space {other[:12]}, the index {SPACE[:12]}.",)


def test_a_contract_that_says_otherwise_than_the_artifact_is_named(parts: dict[str, Artifact]) -> None:
    save_contract(parts["query_tower"].path, CONTRACT.model_copy(update={"role": "query"}), "e" * 64)
    (found,) = space_mismatches(parts)
    assert found.startswith("The query tower has a contract for the space eeee")


def test_a_document_tower_whose_contract_gives_another_name_is_named(parts: dict[str, Artifact]) -> None:
    save_contract(parts["document_tower"].path, CONTRACT.model_copy(update={"pooling": "mean"}), SPACE)
    (found,) = space_mismatches(parts)
    assert found.startswith("The document tower has a contract that gives the space")


def test_an_index_without_a_space_is_refused(parts: dict[str, Artifact]) -> None:
    parts["index"] = sealed_again(parts["index"], {})
    with pytest.raises(ArtifactError, match="carries no space_id"):
        space_mismatches(parts)
