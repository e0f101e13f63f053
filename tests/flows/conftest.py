"""What the tests of this ring share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flows.cli_world import SMALL, Built, at_home, done, write_collection


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Built:
    """The first build of the small collection: training it once is enough for all."""
    folder = tmp_path_factory.mktemp("built")
    data = write_collection(folder / "clinic")
    with at_home(folder / "home", mlflow_template) as home:
        return Built(home, data, done("retrain", *SMALL, "--data", data))
