"""A home folder that was moved, copied, mounted read-only or reached through a link: all goes on, and the old place is left alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.errors import ArtifactError
from components.tracking import embedded as moved
from tests.flows.cli_world import SMALL, Built, at_home, done, scalingnote

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def promoted(built: Built, tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Path:
    """A home with two releases, one promoted after the other, at a place that the tests move it from."""
    folder = tmp_path_factory.mktemp("moved") / "the old place"
    shutil.copytree(built.home, folder)
    with at_home(folder, mlflow_template):
        assert scalingnote("approve", "1", "--as", "Ada").status == 0
        assert done("promote")["status"] == "promoted"
        done("retrain", *SMALL, "--data", built.data, "--set", "policy.margin=0.4")
        assert scalingnote("approve", "2", "--as", "Ada").status == 0
        assert done("promote")["status"] == "promoted"
    return folder


@pytest.fixture
def copied(promoted: Path, tmp_path: Path) -> Path:
    """A copy of that home at another place; the old one is still there."""
    return Path(shutil.copytree(promoted, tmp_path / "élsewhere now", symlinks=True))


@pytest.fixture
def emptied(promoted: Path) -> Iterator[dict[str, tuple[int, int]]]:
    """The old place with other content in every artifact, and what can be seen of its files before the test."""
    artifacts = promoted / "mlflow" / "artifacts"
    kept = artifacts.rename(artifacts.with_name("kept"))
    for file in kept.rglob("*"):
        if file.is_file():
            other = artifacts / file.relative_to(kept)
            other.parent.mkdir(parents=True, exist_ok=True)
            other.write_text("not what it was")
    yield _seen(promoted)
    shutil.rmtree(artifacts)
    kept.rename(artifacts)


def test_a_copied_home_works_and_nothing_of_the_old_place_is_read_or_changed(
    copied: Path, promoted: Path, emptied: dict[str, tuple[int, int]], built: Built, mlflow_template: Path
) -> None:
    with at_home(copied, mlflow_template):
        before = done("search", "heart stone")["hits"]
        assert scalingnote("verify").status == 0
        again = done("retrain", *SMALL, "--data", built.data, "--set", "policy.margin=0.4")
        assert again["cached"] and again["candidate"] == "candidate/2"
        assert scalingnote("rollback", "--as", "Ada", "--reason", "too many complaints").status == 0
        assert [entry["action"] for entry in done("history")["history"]] == ["promote", "promote", "rollback"]
        assert done("search", "heart stone")["hits"] == before  # both releases have the same parts
        assert scalingnote("verify").status == scalingnote("verify", "candidate/2").status == 0
        told = scalingnote("trace", "champion")
        assert told.status == 0 and str(promoted) not in told.out
        made = done("retrain", *SMALL, "--data", built.data, "--set", "policy.margin=0.3")
        assert Path(made["folder"]).is_relative_to(copied)
        assert not moved.former_roots(copied / "mlflow" / "mlflow.db")
    assert _seen(promoted) == emptied


def test_a_moved_home_answers_without_a_change_to_its_store(copied: Path, promoted: Path, mlflow_template: Path, tmp_path: Path) -> None:
    away = promoted.rename(promoted.with_name("away"))
    try:
        store = copied / "mlflow" / "mlflow.db"
        content = store.read_bytes()
        with at_home(copied, mlflow_template):
            assert done("search", "heart stone")["hits"]
            assert scalingnote("verify").status == scalingnote("status").status == 0
        assert store.read_bytes() == content
    finally:
        away.rename(promoted)


def test_a_home_behind_a_link_is_the_same_home(copied: Path, tmp_path: Path, mlflow_template: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(copied, target_is_directory=True)
    for place in (copied, link, copied):
        with at_home(place, mlflow_template):
            assert scalingnote("verify").status == 0
            assert done("promote")["status"] == "nothing"


def test_a_home_in_use_under_another_path_is_not_changed_beneath_its_user(copied: Path, tmp_path: Path, mlflow_template: Path) -> None:
    from components.tracking.store import client

    with at_home(copied, mlflow_template):
        client()
        held = moved._in_use.pop(copied / "mlflow" / "mlflow.db")
    with held:  # as by a server that goes on under the first path, such as a container's
        other = Path(shutil.copytree(copied, tmp_path / "mounted", symlinks=True))
        shutil.rmtree(other / "locks")
        (other / "locks").symlink_to(copied / "locks", target_is_directory=True)
        with at_home(other, mlflow_template):
            assert done("search", "heart stone")["hits"]
            with pytest.raises(ArtifactError, match="élsewhere now by a running command or server"):
                client()


def test_experiments_of_another_home_in_the_same_store_keep_their_place(home: Path, tmp_path: Path) -> None:
    from components.tracking.store import clear_caches, client

    theirs = tmp_path / "other home" / "mlflow" / "artifacts" / "theirs"
    theirs.mkdir(parents=True)
    client().create_experiment("theirs", artifact_location=theirs.as_uri())
    gone = tmp_path / "gone" / "mlflow" / "artifacts"
    client().create_experiment("ours", artifact_location=(gone / "ours").as_uri())
    clear_caches()
    assert client().get_experiment_by_name("theirs").artifact_location == theirs.as_uri()
    assert client().get_experiment_by_name("ours").artifact_location == (home / "mlflow" / "artifacts" / "ours").as_uri()


def test_a_moved_home_that_cannot_be_written_says_so_where_it_has_to_be(home: Path, tmp_path: Path) -> None:
    from components.tracking.store import clear_caches, client

    client().create_experiment("ours", artifact_location=(tmp_path / "gone" / "mlflow" / "artifacts" / "ours").as_uri())
    clear_caches()
    locks = home / "locks"
    shutil.rmtree(locks)
    locks.write_text("no folder, so no lock can be had here, as in a home that is only read")
    with pytest.raises(ArtifactError, match=r"was moved here from .*gone and cannot be written"):
        client()


def _seen(folder: Path) -> dict[str, tuple[int, int]]:
    """Path -> time of the last change and size, of everything in `folder`."""
    found = {}
    for place, _, files in os.walk(folder):
        for path in (Path(place), *(Path(place) / file for file in files)):
            found[str(path)] = (path.lstat().st_mtime_ns, path.lstat().st_size)
    return found
