"""What a refresh starts from: the parts that a release pins, out of the registry, every file verified."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from components.errors import ArtifactError, PromotionError
from components.promotion.approval import approve
from components.promotion.promote import promote
from components.release.manifest import LineageNode
from components.release.open import UNKNOWN_FLOW, ancestors, open_pinned
from tests.unit.promotion_world import NAME, SPACE, MemoryTracking, World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """One candidate."""
    tracking = MemoryTracking()
    tracking.install(monkeypatch)
    made = World(tracking, tmp_path)
    made.candidate()
    return made


def test_the_champions_parts_are_those_it_pins(world: World) -> None:
    approve(NAME, "candidate/1", "Ada")
    promote(NAME, lambda _: None)
    base = open_pinned(NAME, "champion")
    assert (base.title, base.model, base.version) == ("release/1", f"{NAME}-release", 1)
    assert base.index.digest == base.manifest.pins.index.digest
    assert {part.space_id for part in (base.query_tower, base.document_tower, base.query_encoder, base.index)} == {SPACE}
    assert open_pinned(NAME, "candidate/1").title == "candidate/1"


def test_without_a_champion_and_for_unknown_references_it_says_what_there_is(world: World) -> None:
    with pytest.raises(PromotionError, match=r"No release of 'retriever' was promoted yet.*scalingnote promote"):
        open_pinned(NAME, "champion")
    with pytest.raises(PromotionError, match=r"candidate/9 does not exist.*candidate/1"):
        open_pinned(NAME, "candidate/9")


def test_a_tower_that_is_gone_or_changed_is_named_with_its_release(world: World) -> None:
    pin = open_pinned(NAME, "candidate/1").manifest.pins.document_tower
    path = world.tracking.artifact_folder(pin.model, pin.version) / "weights.bin"
    path.write_bytes(b"other weights")
    with pytest.raises(ArtifactError, match=rf"candidate/1 cannot be used: its document tower, {pin.model}/1, is not.*was changed"):
        open_pinned(NAME, "candidate/1")
    path.unlink()
    with pytest.raises(ArtifactError, match=r"document tower.*weights\.bin is missing"):
        open_pinned(NAME, "candidate/1")


def test_the_lineage_that_is_taken_over_ends_at_the_pinned_parts(world: World) -> None:
    base = open_pinned(NAME, "candidate/1")
    assert [node.name for node in base.ancestry()] == ["toy", "corpus", "query_tower", "document_tower", "query_encoder", "index"]


def test_what_is_taken_over_names_the_flow_that_made_it(world: World) -> None:
    base = open_pinned(NAME, "candidate/1")
    assert {node.flow_run_id for node in base.ancestry()} == {"flow-1"}
    assert base.flows() == {"flow-1": base.manifest.provenance}
    earlier = {"flow-0": {"code_revision": "older"}}
    towers = [node.model_copy(update={"flow_run_id": "flow-0"}) if "tower" in node.name else node for node in base.manifest.lineage]
    kept = {"lineage": tuple(towers), "earlier_flows": earlier, "release_type": "query-refresh"}
    again = replace(base, manifest=base.manifest.model_copy(update=kept))
    assert {node.name: node.flow_run_id for node in again.ancestry()}["query_tower"] == "flow-0"
    assert again.flows() == {**earlier, "flow-1": base.manifest.provenance}


def test_a_refresh_of_an_older_version_does_not_say_which_flow_made_its_parts(world: World) -> None:
    base = open_pinned(NAME, "candidate/1")
    old = replace(base, manifest=base.manifest.model_copy(update={"schema_version": 3, "release_type": "index-refresh"}))
    assert {node.flow_run_id for node in old.ancestry()} == {UNKNOWN_FLOW} and old.flows() == {}


def test_ancestors_of_a_chain_with_an_unknown_parent() -> None:
    nodes = [LineageNode(digest=d, kind="index", name=d, parents=p) for d, p in (("a", {}), ("b", {"x": "a", "y": "?"}), ("c", {}))]
    assert [node.digest for node in ancestors(nodes, ["b"])] == ["a", "b"]
