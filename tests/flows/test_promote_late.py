"""An approval that comes late, over real encoders and a real index: both releases are timed here and now, and the gates decide again."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.tracking import registry
from components.tracking.promotion_records import read_records
from tests.flows.cli_world import SMALL, Built, at_home, done, scalingnote

pytestmark = [pytest.mark.server, pytest.mark.slow]
NAME = ("--name", "late")


def test_late_approval_is_compared_with_the_champion_of_today(built: Built, mlflow_template: Path) -> None:
    with at_home(built.home, mlflow_template):
        done("retrain", *SMALL, "--data", built.data, *NAME)
        done("approve", "1", "--as", "Ada", *NAME)
        assert done("promote", *NAME)["to_version"] == 1
        registry.copy_version("late-candidate", 1, "late-release")  # Promote model in the UI, of a candidate that was held against nothing
        change = done("promote", *NAME)
        assert change["to_version"] == 2 and "Compared again: pass" in change["warnings"][-1]
        entry = done("history", *NAME)["history"][-1]
        assert entry["compared_again"] == {"against": 1, "verdict": "pass"}
        again = read_records("late")[-1]["decisions"][-1]
        gates = {gate["name"]: gate for gate in again["decision"]["gates"]}
        assert gates["champion_p95"]["status"] == "pass" and gates["champion_p95"]["value"] > 0
        assert again["comparison"]["champion"]["p95_ms"] > 0
        assert "compared again with release/1, pass" in scalingnote("history", *NAME).out
