"""Whatever somebody deletes, restores or renames in MLflow's page, and sweeps with `mlflow gc`: search goes on, or says what is gone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components.artifacts import open_artifact, verify
from components.errors import ArtifactError, ModelError, PromotionError, ScalingNoteError
from components.lineage.graph import trace
from components.promotion.approval import approve
from components.promotion.promote import promote, rollback
from components.promotion.status import history_of, render_status, status_of
from components.promotion.verification import verify_release
from components.release.champion import servable_release
from components.release.open import open_pinned
from components.tracking import labels, registry
from components.tracking.registry import artifact_folder, find_version
from components.tracking.store import clear_caches, client
from tests.unit.promotion_world import GOOD, NAME, into_mlflow, make_candidate, make_part, no_smoke

CHAIN, CANDIDATE, RELEASE = f"{NAME}-promotions", f"{NAME}-candidate", f"{NAME}-release"
PARTS = ("query-tower", "document-tower", "query-encoder", "index")
Act = Callable[[], Any]
pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Path:
    """A home with two releases, the second of which is champion, and a third candidate. It is no longer where it was made."""
    folder = tmp_path_factory.mktemp("deletions")
    store = folder / "made" / "mlflow" / "mlflow.db"
    store.parent.mkdir(parents=True)
    shutil.copyfile(mlflow_template, store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALINGNOTE_HOME", str(folder / "made"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
        clear_caches()
        register = into_mlflow()
        for number in (1, 2, 3):
            make_candidate(folder / str(number), register, {**GOOD, "student": 0.70 + number / 1000})
            if number < 3:
                approve(NAME, number, "Ada")
                promote(NAME, no_smoke)
        clear_caches()
    return (folder / "made").rename(folder / "kept")


@pytest.fixture
def home(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "home"
    shutil.copytree(kept, folder)
    monkeypatch.setenv("SCALINGNOTE_HOME", str(folder))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}")
    clear_caches()
    client()  # which puts the locations of the files right
    yield folder
    clear_caches()


def sweep() -> None:
    """The command `mlflow gc`, over the store of the home. In a process of its own: it leaves settings of MLflow behind."""
    clear_caches()
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", os.environ["MLFLOW_TRACKING_URI"]]
    subprocess.run(command, check=True, capture_output=True)


def experiment(name: str) -> str:
    found = client().get_experiment_by_name(name)
    assert found is not None
    return str(found.experiment_id)


def runs(name: str) -> list[str]:
    """Oldest first."""
    return [run.info.run_id for run in client().search_runs([experiment(name)], order_by=["start_time ASC"])]


def record_run(number: int) -> str:
    return next(run for run in runs(CHAIN) if client().get_run(run).data.tags.get("scalingnote.sequence") == str(number))


def chain_run() -> str:
    return str(client().get_experiment(experiment(CHAIN)).tags["scalingnote.chain_run_id"])


def delete_runs() -> None:
    for run in runs(NAME):
        if run != chain_run():
            client().delete_run(run)


def logged_model(model: str) -> str:
    return str(client().get_model_version(model, "1").source).removeprefix("models:/")


def test_deletions_that_the_champion_does_not_need_stop_nothing(home: Path) -> None:
    client().delete_model_version(f"{NAME}-candidate", "2")  # the champion's own
    delete_runs()
    require_served()
    client().delete_registered_model(f"{NAME}-candidate")
    require_served()
    sweep()
    require_served()


def require_served() -> None:
    clear_caches()
    assert servable_release(NAME) == (2, None)
    assert open_pinned(NAME, "champion").version == 2
    assert [check for check in verify_release(NAME, "champion") if not check.ok] == []
    assert "champion release/2" in render_status(status_of(NAME)) and len(history_of(NAME)) == 2
    assert trace(NAME, "champion").text()


def test_an_earlier_release_that_was_deleted_is_missed_by_verify_and_search_goes_on(home: Path) -> None:
    client().delete_model_version(f"{NAME}-release", "1")
    assert servable_release(NAME).version == open_pinned(NAME, "champion").version == 2
    (failed,) = (check for check in verify_release(NAME, "champion") if not check.ok)
    assert failed.name == "decision" and f"no version 1 of '{NAME}-release'" in failed.detail
    with pytest.raises(PromotionError, match=f"no version 1 of '{NAME}-release'"):
        rollback(NAME, "Ada", "slow")


@pytest.mark.parametrize("part", PARTS)
def test_a_part_whose_model_was_deleted_or_renamed_is_named_and_its_name_brings_it_back(home: Path, part: str) -> None:
    client().rename_registered_model(f"{NAME}-{part}", f"elsewhere-{part}")
    with pytest.raises(ScalingNoteError, match=f"no registered model '{NAME}-{part}'.*renamed or deleted"):
        open_pinned(NAME, "champion")
    assert "champion release/2" in render_status(status_of(NAME))
    client().rename_registered_model(f"elsewhere-{part}", f"{NAME}-{part}")
    assert open_pinned(NAME, "champion").version == 2
    client().delete_registered_model(f"{NAME}-{part}")
    with pytest.raises(ScalingNoteError, match=f"no registered model '{NAME}-{part}'"):
        open_pinned(NAME, "champion")
    failed = [check.detail for check in verify_release(NAME, "champion") if not check.ok]
    assert any(f"{NAME}-{part}" in detail for detail in failed)


RECORDS: dict[str, tuple[Act, Act, str]] = {
    "their experiment": (
        lambda: client().delete_experiment(experiment(CHAIN)),
        lambda: client().restore_experiment(experiment(CHAIN)),
        f"{CHAIN} with the promotion records was deleted; restore it",
    ),
    "the newest": (lambda: client().delete_run(record_run(2)), lambda: None, "promotion record 2 was deleted"),
    "the oldest": (lambda: client().delete_run(record_run(1)), lambda: None, "promotion record 1 was deleted"),
    "their chain": (lambda: client().delete_run(chain_run()), lambda: None, "chain of promotion records was deleted"),
}


@pytest.mark.parametrize("what", RECORDS)
def test_records_that_were_deleted_are_missed_by_name_and_restored_they_serve_again(home: Path, what: str) -> None:
    delete, restore, words = RECORDS[what]
    gone = [chain_run(), record_run(1), record_run(2)]
    delete()
    for ask in (
        lambda: servable_release(NAME),
        lambda: promote(NAME, no_smoke),
        lambda: rollback(NAME, "Ada", "slow"),
        lambda: history_of(NAME),
    ):
        with pytest.raises(ArtifactError, match=words):
            ask()
    restore()
    for run in gone:
        if client().get_run(run).info.lifecycle_stage == "deleted":
            client().restore_run(run)
    clear_caches()
    assert servable_release(NAME) == (2, None)
    assert [check for check in verify_release(NAME, "champion") if not check.ok] == []


@pytest.mark.parametrize("what", ["their experiment", "the newest"])
def test_records_that_were_swept_away_serve_nothing_and_are_never_an_empty_chain(home: Path, what: str) -> None:
    RECORDS[what][0]()
    sweep()
    for ask in (lambda: servable_release(NAME), lambda: promote(NAME, no_smoke), lambda: rollback(NAME, "Ada", "slow")):
        with pytest.raises((ArtifactError, PromotionError), match="record"):
            ask()
    assert [info.version for info in registry.versions(f"{NAME}-release")] == [1, 2]  # nothing was written meanwhile


def test_the_experiment_of_a_retriever_that_was_deleted_is_missed_and_restored_it_serves_again(home: Path) -> None:
    number = experiment(NAME)
    client().delete_experiment(number)
    clear_caches()
    with pytest.raises(ArtifactError, match=r"restore it in MLflow"):  # the run that holds the chain lies there
        servable_release(NAME)
    client().restore_experiment(number)
    clear_caches()
    assert servable_release(NAME) == (2, None) and open_pinned(NAME, "champion").version == 2


def test_a_rejected_candidate_that_was_deleted_stays_rejected_under_its_number_and_any_other(home: Path) -> None:
    approve(NAME, 3, "Ada")
    registry.set_review_tag(CANDIDATE, 3, "review", "rejected: trained on patients' letters")
    client().delete_model_version(CANDIDATE, "3")
    change = promote(NAME, no_smoke)
    assert change.status == "nothing" and "trained on patients' letters" in change.warnings[0]
    again = into_mlflow()(CANDIDATE, open_artifact(artifact_folder(RELEASE, 3)))
    assert again.version == 4
    with pytest.raises(PromotionError, match=r"candidate/3, the same files, was: trained on patients' letters \(it was deleted since"):
        approve(NAME, 4, "Ada", override="good figures")
    registry.set_review_tag(CANDIDATE, 4, "review", "approved: the letters were taken out")
    approve(NAME, 4, "Ada")
    assert promote(NAME, no_smoke).to_version == 4


def test_a_candidate_that_is_given_the_number_of_another_is_approved_and_rejected_for_itself(home: Path, tmp_path: Path) -> None:
    """The candidates' model was deleted and made again, so it counts from 1 once more; release/2 is a copy of the former candidate/2."""
    client().delete_registered_model(CANDIDATE)
    register = into_mlflow()
    for number in (1, 2):
        assert make_candidate(tmp_path / str(number), register, {**GOOD, "student": 0.74 + number / 1000}).version == number
    assert "not approved" in trace(NAME, "candidate/2").text()  # though release/2 names its number
    again = approve(NAME, 2, "Ada")
    assert (again.created, again.release_version) == (True, 3)
    assert "not approved" not in trace(NAME, "candidate/2").text()
    assert promote(NAME, no_smoke).to_version == 3
    registry.set_review_tag(CANDIDATE, 2, "review", "rejected: slow")
    assert rollback(NAME, "Ada", "slow").to_version == 2  # which nobody rejected
    assert [check for check in verify_release(NAME, "champion") if not check.ok] == []


def test_another_release_under_the_number_and_digest_of_the_deleted_champion_is_never_served(home: Path) -> None:
    champion = next(info for info in registry.versions(RELEASE) if info.version == 2)
    client().delete_registered_model(RELEASE)
    for _ in range(2):
        registry.copy_version(CANDIDATE, 3, RELEASE)
    registry.set_version_tag(RELEASE, 2, labels.DIGEST, champion.tags[labels.DIGEST])
    client().set_registered_model_alias(RELEASE, "champion", "2")
    with pytest.raises(ScalingNoteError, match="It was replaced"):
        open_pinned(NAME, "champion")
    assert {check.name for check in verify_release(NAME, "champion") if not check.ok} >= {"files"}
    assert approve(NAME, 3, "Ada").release_version == 3  # what stands under the champion's number is no approval of it
    with pytest.raises(PromotionError, match="--without-champion"):
        promote(NAME, no_smoke)
    assert promote(NAME, no_smoke, without_champion="its model was deleted").to_version == 3
    assert open_pinned(NAME, "champion").version == 3


def test_records_that_were_deleted_and_restored_one_by_one_never_serve_a_shorter_chain(home: Path) -> None:
    """Between the restorations the newest record is missing, then the oldest: each is missed, whichever is back."""
    gone = [record_run(1), record_run(2)]
    for run in gone:
        client().delete_run(run)
    client().delete_experiment(experiment(CHAIN))
    client().restore_experiment(experiment(CHAIN))  # which restores every run of it
    for run in gone:
        if client().get_run(run).info.lifecycle_stage == "active":
            client().delete_run(run)
    for run in gone:
        clear_caches()
        with pytest.raises(ArtifactError, match=r"promotion record [12] was deleted"):
            servable_release(NAME)
        client().restore_run(run)
    clear_caches()
    assert servable_release(NAME) == (2, None) and len(history_of(NAME)) == 2


def test_files_that_were_swept_are_named_and_what_is_built_again_is_registered_again(home: Path, tmp_path: Path) -> None:
    """A logged model is deleted in the page of its experiment, and the sweep takes its files."""
    model, pinned = f"{NAME}-index", open_pinned(NAME, "champion").index
    client().delete_logged_model(logged_model(model))
    sweep()
    assert registry.are_lost(model, 1) and find_version(model, pinned.digest) is None
    with pytest.raises((ArtifactError, ModelError), match=f"files of {model}/1 are not at"):
        open_pinned(NAME, "champion")
    made = into_mlflow()(model, make_part(tmp_path / "again", "index"))
    assert (made.digest, made.version) == (pinned.digest, 2) and verify(artifact_folder(model, 2), made.digest)
