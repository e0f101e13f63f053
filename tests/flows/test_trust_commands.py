"""Commands about keys, records and logs as a person types them, over releases of next to nothing."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from components import settings
from components.promotion.approval import approve
from components.promotion.promote import promote
from components.promotion.record import sign_afterwards
from components.tracking import promotion_records as records
from components.tracking.store import client
from tests.flows.cli_world import done, scalingnote
from tests.unit.promotion_world import NAME, into_mlflow, make_candidate, no_smoke


def refused(status: int, words: str, *arguments: str | Path) -> None:
    outcome = scalingnote(*arguments)
    assert outcome.status == status and words in outcome.err and "Traceback" not in outcome.err, outcome.err


@pytest.fixture
def champion(home: Path, tmp_path: Path) -> Path:
    """release/1, promoted and signed."""
    done("keys", "new")
    make_candidate(tmp_path / "1", into_mlflow())
    approve(NAME, 1, "Ada")
    sign_afterwards(NAME, "release/1")
    promote(NAME, no_smoke)
    return home


def test_a_key_is_rotated_and_the_former_ones_are_named(champion: Path) -> None:
    before = done("keys", "list")["signing"]["key_id"]
    rotated = done("keys", "rotate")
    assert rotated["key_id"] != before and rotated["left"] == []
    assert [Path(path).name for path in rotated["withdrawn"]] == [f"{before[:16]}.pem", f"{before[:16]}.private.pem"]
    assert set(done("keys", "list")["trusted"]) == {rotated["key_id"]}
    assert done("verify", "champion")["verified"]


def test_an_auditor_keeps_an_anchor_and_sees_what_was_cut(champion: Path, tmp_path: Path) -> None:
    anchor = tmp_path / "mine" / "anchor.json"
    assert "was made" in done("history", "--anchor", anchor)["anchor"]
    assert json.loads(anchor.read_text())["sequence"] == 1
    done("keys", "rotate")  # one more record
    assert "record 1 is where it was" in done("history", "--anchor", anchor)["anchor"]
    experiment = client().get_experiment_by_name(f"{NAME}-promotions")
    assert experiment is not None
    chain = client().get_run(experiment.tags["scalingnote.chain_run_id"])
    shorter = client().create_run(experiment.experiment_id)
    client().log_param(shorter.info.run_id, "record-000001", chain.data.params["record-000001"])
    client().set_tag(chain.data.params["record-000002"].split(":")[0], "scalingnote.sequence", "1")
    client().set_terminated(chain.data.params["record-000002"].split(":")[0], "KILLED")
    client().set_experiment_tag(experiment.experiment_id, "scalingnote.chain_run_id", shorter.info.run_id)
    client().delete_model_version_tag(f"{NAME}-release", "1", records.HEAD)
    assert len(records.read_records(NAME)) == 1
    refused(6, "names record 2", "history", "--anchor", anchor)
    anchor.write_text("{}")
    refused(2, "is no anchor", "history", "--anchor", anchor)


def test_answers_are_pruned_by_days(home: Path) -> None:
    log = settings.home() / "answers" / "retriever.jsonl"
    log.parent.mkdir(parents=True)
    answer = {"id": "0" * 16, "at": "2020-01-01T00:00:00.000+00:00", "retriever": "retriever", "model": "m", "version": 1, "digest": "d"}
    log.write_text(json.dumps({**answer, "schema_version": 1, "query": None, "query_digest": "q", "doc_ids": [], "scores": []}) + "\n")
    refused(2, "jumped ahead", "prune-answers")
    assert done("prune-answers", "--gap")["removed"] == 1
    assert log.read_text() == "" and stat.S_IMODE(log.stat().st_mode) == 0o600
    assert done("prune-answers", "--days", "10000")["removed"] == 0
    assert "No answers of 'nobody' are logged here" in scalingnote("prune-answers", "--name", "nobody").out
    for days in ("0", "-1", "many"):
        refused(2, "--days", "prune-answers", "--days", days)


def test_wrong_uses_are_answered_in_words(home: Path) -> None:
    refused(2, "keeps its promotions", "search", "heart", "--name", "mine-promotions")
    refused(2, "without --watch", "promote", "--watch", "60", "--without-champion", "lost")
    refused(2, "There is no key", "keys", "rotate")
    refused(2, "split 'train'", "retrain", "--preset", "smoke", "--set", "evaluation.split=train")
