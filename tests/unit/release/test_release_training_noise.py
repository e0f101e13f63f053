"""Training noise of a release: from its own candidates that differ in their seeds, from a study, or unknown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from components import settings
from components.release.manifest import ReleaseManifest, load_release
from components.release.training_noise import (
    TrainingNoise,
    find_noise,
    kind_of,
    load_noise,
    measured,
    short_words_on,
    words_on,
    write_noise,
)
from tests.unit.promotion_world import GOOD, NAME, MemoryTracking, World, rewrite


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / "home"))
    tracking = MemoryTracking()
    tracking.install(monkeypatch)
    return World(tracking, tmp_path)


def candidate(world: World, level: float, seeds: tuple[int, int], steps: int = 10, **changes: Any) -> ReleaseManifest:
    """A candidate whose student reaches `level`, trained with these seeds of towers and student; `changes` replace fields."""
    version = world.candidate({**GOOD, "student": level})
    folder = world.tracking.folders[f"{NAME}-candidate", version]

    def change(content: dict[str, Any]) -> None:
        content["config"] |= {"towers": {"seed": seeds[0], "steps": steps}, "distillation": {"seed": seeds[1]}}
        content.update(changes)

    rewrite(folder, change)
    return load_release(folder)


def test_without_another_training_of_its_kind_it_is_unknown(world: World) -> None:
    first = candidate(world, 0.7, (13, 13))
    assert find_noise(first) is None
    told = words_on(None, "full")
    assert told.startswith("Training noise: unknown.") and "scalingnote study baselines" in told
    assert short_words_on(None, "full") == "this is one training, and how far another seed would lead is not known"


def test_retrains_with_other_seeds_on_the_same_data_say_how_far_they_lie_apart(world: World) -> None:
    candidate(world, 0.70, (13, 13))
    candidate(world, 0.74, (14, 13))
    newest = candidate(world, 0.72, (15, 15))
    found = find_noise(newest)
    assert found is not None
    assert found.seeds == ((13, 13), (14, 13), (15, 15))
    assert found.spread["ndcg@10"] == pytest.approx(0.02)
    assert found.source == "candidate/1, candidate/2, this one"
    assert "3 trainings" in found.words and "0.0200 in nDCG@10" in found.words
    assert short_words_on(found, "full").startswith("3 trainings of the same settings with other seeds spread by 0.020 in nDCG@10")


def test_a_training_by_other_code_or_on_another_machine_is_named_as_one(world: World) -> None:
    candidate(world, 0.70, (13, 13), provenance={"code_digest": "c" * 64, "machine": {"processor": "another"}})
    found = find_noise(candidate(world, 0.72, (14, 13), provenance={"code_digest": "c" * 64, "machine": {"processor": "one"}}))
    assert found is not None and found.source == "candidate/1 by other code or another machine, this one"


def test_the_same_seeds_again_are_no_second_training(world: World) -> None:
    candidate(world, 0.70, (13, 13))
    assert find_noise(candidate(world, 0.74, (13, 13))) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 20},
        {"dataset": {"name": "toy", "digest": "e" * 64, "source_digest": "s", "contracts": {}}},
        {"release_type": "query-refresh"},
        {"base_models": {"query_tower": {"name": "acme/llm", "digest": "of another commit"}}},
    ],
)
def test_another_configuration_data_or_kind_of_release_says_nothing(world: World, changes: dict[str, Any]) -> None:
    candidate(world, 0.70, (13, 13), **changes)
    assert find_noise(candidate(world, 0.74, (14, 14))) is None


def test_a_model_beside_the_towers_that_is_none_makes_no_other_kind_of_training() -> None:
    """Configurations of before there were judges do not name one, and are trained as those that name none."""
    before = {"towers": {"steps": 5, "seed": 13}}
    now = {"towers": {"steps": 5, "seed": 14, "judge": {"base_model": "", "weight": 1.0}, "companion": {"base_model": ""}}}
    judged = {"towers": {**now["towers"], "judge": {"base_model": "a/judge", "weight": 1.0}}}
    assert kind_of(before, "d") == kind_of(now, "d") != kind_of(judged, "d")


def test_students_that_were_refreshed_are_compared_on_the_tower_that_they_kept(world: World) -> None:
    first = candidate(world, 0.70, (13, 13), release_type="query-refresh")
    kept = {"pins": first.pins.model_dump(mode="json")}
    again = candidate(world, 0.72, (99, 14), release_type="query-refresh", **kept)
    found = find_noise(again)
    assert found is not None and found.seeds == ((0, 13), (0, 14))
    assert find_noise(candidate(world, 0.74, (13, 15), release_type="query-refresh")) is None


def test_a_refreshed_index_has_none(world: World) -> None:
    candidate(world, 0.70, (13, 13), release_type="index-refresh")
    assert find_noise(candidate(world, 0.74, (14, 14), release_type="index-refresh")) is None
    assert words_on(None, "index-refresh") == "Training noise: none, since this release trained nothing."
    assert short_words_on(None, "index-refresh") == ""


def test_a_candidate_that_is_gone_or_damaged_says_nothing(world: World) -> None:
    candidate(world, 0.70, (13, 13))
    candidate(world, 0.70, (12, 12))
    (world.tracking.folders[f"{NAME}-candidate", 1] / "release.json").write_text("{")
    world.tracking.folders[f"{NAME}-candidate", 2] = world.root / "nowhere"
    assert find_noise(candidate(world, 0.74, (14, 14))) is None


def test_a_study_of_the_same_configuration_counts_when_it_has_more_trainings(world: World) -> None:
    candidate(world, 0.70, (13, 13))
    newest = candidate(world, 0.74, (14, 14))
    study = study_of(newest, world, {13: 0.70, 14: 0.72, 15: 0.71})
    assert find_noise(newest) == study
    study_of(newest.model_copy(update={"config": {**newest.config, "towers": {"steps": 99}}}), world, dict.fromkeys(range(9), 0.5))
    assert find_noise(newest) == study


def study_of(manifest: ReleaseManifest, world: World, levels: Mapping[int, float]) -> TrainingNoise:
    means = {(seed, seed): ("study baselines", {"recall@50": level, "ndcg@10": level}) for seed, level in levels.items()}
    found = measured(kind_of(manifest.config, manifest.dataset.digest), means)
    assert found is not None
    folder = settings.studies_folder() / "baselines" / f"toy-{len(levels)}"
    folder.mkdir(parents=True)
    write_noise(folder, found)
    return found


def test_what_is_kept_is_read_back_and_what_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    write_noise(tmp_path, None)
    assert load_noise(tmp_path) is None and not list(tmp_path.iterdir())
    found = measured("kind", {(1, 1): ("a", {"recall@50": 0.5, "ndcg@10": 0.4}), (2, 2): ("b", {"recall@50": 0.6, "ndcg@10": 0.4})})
    write_noise(tmp_path, found)
    assert load_noise(tmp_path) == found
    (tmp_path / "training_noise.json").write_text("[]")
    assert load_noise(tmp_path) is None


def test_a_mean_that_was_not_measured_makes_no_training() -> None:
    means = {"recall@50": 0.5, "ndcg@10": 0.4}
    assert measured("kind", {(1, 1): ("a", means), (2, 2): ("b", {"recall@50": 0.5, "ndcg@10": None})}) is None
    assert measured("kind", {(1, 1): ("a", means)}) is None
