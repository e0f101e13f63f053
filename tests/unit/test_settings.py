"""The home folder and the environment of the libraries."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest

from components import settings
from components.errors import ConfigError


@pytest.mark.parametrize("name", ["a?b", "a\udcffb"])
def test_a_home_that_no_database_can_lie_in_is_refused_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / name))
    with pytest.raises(ConfigError, match="Choose another folder with SCALINGNOTE_HOME"):
        settings.activate()
    assert not list(tmp_path.iterdir())


def test_a_home_of_a_user_who_does_not_exist_is_refused_and_such_data_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", "~nosuchuser/home")
    with pytest.raises(ConfigError, match="'~nosuchuser/home', but there is no such user"):
        settings.home()
    assert settings.expanded("~nosuchuser/data") == Path("~nosuchuser/data")


def test_without_a_home_folder_and_a_temporary_one_those_of_the_installation_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    def nowhere() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    with mock.patch.dict(os.environ, {"SCALINGNOTE_HOME": str(tmp_path)}):
        os.environ.pop("HOME", None)
        monkeypatch.setattr(Path, "home", unknown)
        monkeypatch.setattr(settings.tempfile, "gettempdir", nowhere)
        settings.activate()
        assert os.environ["HOME"] == str(tmp_path)
        assert Path(os.environ["TMPDIR"]).is_dir() and Path(os.environ["TMPDIR"]).is_relative_to(tmp_path)
