"""What lineage says of the code: the same whatever git is configured to, and never clean or known where it is neither."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from components.release.completeness import _code_gaps
from components.tracking import provenance
from components.tracking.provenance import _revision, code_digest, collect_provenance


def git(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    names = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    return subprocess.run(["git", *names, *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout


def checkout(folder: Path) -> Path:
    (folder / "components").mkdir(parents=True)
    (folder / "components" / "__init__.py").write_text("")
    (folder / "components" / "errors.py").write_text("VALUE = 1\n")
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = checkout(tmp_path / "checkout")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    return root


def change(root: Path) -> None:
    (root / "components" / "errors.py").write_text("VALUE = 2\n")


def test_a_clean_checkout_is_clean_and_a_change_is_a_patch(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD").strip()
    assert _revision(repository) == (commit, False, None, "")
    change(repository)
    found = _revision(repository)
    assert found.commit == commit and found.dirty and len(found.patch or "") == 64
    (repository / "new\nfile.py").write_text("x")
    assert _revision(repository).patch != found.patch


def test_data_in_the_checkout_is_no_change_of_the_code(repository: Path) -> None:
    """All of it was hashed at the start of every run, and the lineage named changes of the code."""
    (repository / "data" / "qrels").mkdir(parents=True)
    for name in ("corpus.jsonl", "queries.jsonl.gz", "qrels/test.tsv"):
        (repository / "data" / name).write_text("{}")
    os.mkfifo(repository / "pipe")
    assert not _revision(repository).dirty
    for name in ("data/new.py", "components/new.txt", "setup.cfg"):
        (repository / name).write_text("x")
        assert _revision(repository).dirty, name
        (repository / name).unlink()


SETTINGS = [
    ("diff.external", "true"),
    ("color.ui", "always"),
    ("diff.noprefix", "true"),
    ("diff.context", "9"),
    ("diff.algorithm", "patience"),
    ("core.quotePath", "true"),
]


@pytest.mark.parametrize("place", ["components/errors.py", "components/page.html.j2"])
def test_code_and_templates_are_the_code_of_a_folder_without_git(tmp_path: Path, place: str) -> None:
    root = checkout(tmp_path / "checkout")
    before = code_digest(root)
    (root / "components" / "README.md").write_text("words")
    assert code_digest(root) == before
    (root / place).write_text("other")
    assert code_digest(root) != before


@pytest.mark.parametrize(("key", "value"), SETTINGS)
def test_settings_of_git_change_neither_dirty_nor_the_digest(repository: Path, key: str, value: str) -> None:
    change(repository)
    plain = _revision(repository)
    git(repository, "config", key, value)
    assert _revision(repository) == plain and plain.dirty


def test_another_diff_program_or_repository_in_the_environment_changes_nothing(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(repository)
    plain = _revision(repository)
    git(checkout(tmp_path / "other"), "init", "-q")
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "true")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    assert _revision(repository) == plain
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert _revision(repository) == plain


def test_a_folder_of_a_larger_repository_is_known_and_its_neighbours_do_not_count(tmp_path: Path) -> None:
    whole = tmp_path / "monorepo"
    root = checkout(whole / "search" / "scalingnote")
    git(whole, "init", "-q")
    git(whole, "add", "-A")
    git(whole, "commit", "-qm", "all")
    (whole / "elsewhere.txt").write_text("x")
    assert _revision(root) == (git(whole, "rev-parse", "HEAD").strip(), False, None, "")
    change(root)
    assert _revision(root).dirty


def test_an_installation_inside_a_repository_of_somebody_else_has_no_revision(repository: Path) -> None:
    installed = checkout(repository / "venv" / "site-packages")
    assert _revision(installed) == ("", False, None, "")


def test_a_repository_that_git_cannot_read_is_a_gap_with_its_reason(
    repository: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (repository / ".git" / "HEAD").write_text("damaged")
    assert "git could not be asked" in _revision(repository).problem
    monkeypatch.setattr(provenance, "project_root", lambda: repository)
    monkeypatch.setenv("SCALINGNOTE_REVISION", "abc")
    found = collect_provenance()
    assert found.code_revision == "unknown" and not found.revision_claimed and "is not known" in caplog.text
    assert any("git could not be asked" in gap for gap in _code_gaps(found.model_dump()))
    monkeypatch.setenv("PATH", "")
    assert "git could not be asked" in _revision(repository).problem


@pytest.mark.parametrize(("said", "revision", "dirty"), [("image-7", "image-7", False), ("abc-dirty", "abc", True), ("", "unknown", False)])
def test_without_git_the_revision_is_what_the_image_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, revision: str, dirty: bool
) -> None:
    monkeypatch.setattr(provenance, "project_root", lambda: checkout(tmp_path / "image"))
    monkeypatch.setenv("SCALINGNOTE_REVISION", said)
    found = collect_provenance()
    assert (found.code_revision, found.dirty, found.revision_claimed, found.code_problem) == (revision, dirty, bool(said), "")
    assert any("local changes whose digest is not known" in gap for gap in _code_gaps(found.model_dump())) == dirty


def test_with_git_the_environment_claims_nothing(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "project_root", lambda: repository)
    monkeypatch.setenv("SCALINGNOTE_REVISION", "image-7")
    assert collect_provenance().code_revision == git(repository, "rev-parse", "HEAD").strip()
