"""Approval and promotion on a real server with sign-in: each person through REST, the flow's code as promoter, and a webhook of MLflow."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from components.errors import PromotionError
from components.promotion.approval import approve
from components.promotion.promote import promote, promotion_fingerprint, rollback
from components.promotion.status import history_of
from components.promotion.verification import verify_release
from components.tracking import registry
from components.tracking.audit_log import read_audit
from components.tracking.server.permissions import POLICY_VARIABLE
from components.tracking.store import TrackingError
from flows.webhook import Deliveries, receiving
from tests.auth_world import AuthServer, auth_server
from tests.flows.cli_world import assert_refused, scalingnote
from tests.unit.promotion_world import GOOD, NAME, POLICY, into_mlflow, make_candidate, no_smoke

pytestmark = [pytest.mark.server, pytest.mark.slow]
CANDIDATE, RELEASE = f"{NAME}-candidate", f"{NAME}-release"
BAD = {**GOOD, "student": 0.5}
SECRET = "a secret that both sides share"


def write_policy(path: Path) -> None:
    """The policy by which candidates of these tests are decided on."""
    path.write_text(yaml.safe_dump(POLICY.model_dump(mode="json")))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that the administrator named in the server's environment, and in no other."""
    path = tmp_path_factory.mktemp("administrator") / "policy.yaml"
    write_policy(path)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path, policy: Path) -> Iterator[AuthServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(POLICY_VARIABLE, str(policy))
        patch.setenv("MLFLOW_WEBHOOK_ALLOWED_SCHEMES", "http,https")
        patch.setenv("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "true")
        patch.setenv("MLFLOW_WEBHOOK_CACHE_TTL", "1")  # else a minute may pass before a server knows of a new webhook
        with auth_server(tmp_path_factory.mktemp("server"), mlflow_template) as running:
            patch.delenv(POLICY_VARIABLE)
            yield running


def build(server: AuthServer, folder: Path, levels: dict[str, float] = GOOD, user: str = "trainer") -> int:
    """A candidate of `user`, registered through the server."""
    with server.as_user(user):
        return make_candidate(folder, into_mlflow(), levels).version


def copy_in_the_ui(server: AuthServer, user: str, number: int) -> tuple[int, Any]:
    """The call that "Promote model" of the UI makes."""
    _, found = server.call("GET", f"model-versions/get?name={CANDIDATE}&version={number}", user=user)
    body = {"name": RELEASE, "source": f"models:/{CANDIDATE}/{number}", "run_id": found["model_version"]["run_id"]}
    return server.call("POST", "model-versions/create", {**body, "tags": found["model_version"]["tags"]}, user=user)


def test_story_of_three_people(server: AuthServer, tmp_path: Path) -> None:
    number = build(server, tmp_path / "1")
    assert copy_in_the_ui(server, "trainer", number)[0] == 403
    status, made = copy_in_the_ui(server, "reviewer", number)
    assert status == 200, made
    with server.as_user("promoter"):
        change = promote(NAME, no_smoke)
        assert (change.status, change.to_version) == ("promoted", 1)
        assert (registry.alias(RELEASE, "champion"), promotion_fingerprint(NAME)) == (1, None)
        (record,) = history_of(NAME)
    assert (record["approved_by"], record["role"], record["authentication"], record["promoted_by"]) == (
        "reviewer",
        "reviewer",
        "basic",
        "promoter",
    )
    entries = read_audit(server.home / "mlflow" / "audit.jsonl")
    entry = entries[record["audit_sequence"] - 1]
    assert (entry.digest, entry.user, entry.action) == (record["audit_digest"], "reviewer", "create_model_version")
    refused = [e for e in entries if e.user == "trainer" and e.action == "create_model_version" and e.outcome == "refused"]
    assert [e.subject["model"] for e in refused] == [RELEASE]
    assert any(e.user == "promoter" and e.action == "set_alias" and e.outcome == "ok" for e in entries)


def test_commands_of_the_wrong_people(server: AuthServer, tmp_path: Path) -> None:
    number = build(server, tmp_path / "2")
    with server.as_user("reviewer", "a wrong password"), mock.patch.dict(os.environ):
        assert_refused(scalingnote("approve", f"candidate/{number}"), 8, "does not accept the user name and password of 'reviewer'")
    with server.as_user("trainer"), pytest.raises(TrackingError, match="trainer"):
        approve(NAME, number, None)
    with server.as_user("reviewer"):
        assert approve(NAME, number, None).person == "reviewer"
        with mock.patch.dict(os.environ):
            said = scalingnote("approve", f"candidate/{number}")
        assert said.status == 0 and "was approved before by reviewer (reviewer, signed in)" in said.out
        with pytest.raises(PromotionError, match="signed in as 'reviewer'"):
            approve(NAME, number, "promoter")
        with pytest.raises(TrackingError, match="reviewer"):
            promote(NAME, no_smoke)  # a reviewer moves no alias and writes no record
    with server.as_user("promoter"):
        assert [entry["to_version"] for entry in history_of(NAME)] == [1]
        assert promote(NAME, no_smoke).to_version == 2


def test_own_candidate_is_refused_by_the_server_and_by_the_command(server: AuthServer, tmp_path: Path) -> None:
    number = build(server, tmp_path / "own", user="both")
    with server.as_user("both"), pytest.raises(PromotionError, match="nobody approves their own work"):
        approve(NAME, number, None)
    status, said = copy_in_the_ui(server, "both", number)
    assert status == 403 and "both" in said["message"]


def test_override_by_a_tag_wakes_the_flow_through_the_webhook(server: AuthServer, tmp_path: Path) -> None:
    number = build(server, tmp_path / "bad", BAD)
    woken = threading.Event()
    with receiving(("127.0.0.1", 0), Deliveries(NAME, SECRET), woken.set) as port:
        events = [{"entity": "MODEL_VERSION", "action": "CREATED"}, {"entity": "MODEL_VERSION_TAG", "action": "SET"}]
        hook = {"name": "promote", "url": f"http://127.0.0.1:{port}/", "events": events, "secret": SECRET}
        status, made = server.call("POST", "/api/2.0/mlflow/webhooks", hook, user="admin")
        assert status == 200, made
        with server.as_user("reviewer"):
            release = approve(NAME, number, None, override="pilot in one ward").release_version
        assert woken.wait(600), "MLflow sent no delivery that was accepted"
    with server.as_user("promoter"):
        promote(NAME, no_smoke)
        record = history_of(NAME)[-1]
        page = registry.description(RELEASE, release)
    assert (record["to_version"], record["override"], record["override_by"]) == (release, "pilot in one ward", "reviewer")
    assert "OVERRIDE" in page.splitlines()[0]


def test_rollback_is_proven_by_the_tag_that_the_log_holds(server: AuthServer) -> None:
    with server.as_user("promoter"):
        rollback(NAME, "somebody else", "worse on knees")
        record = history_of(NAME)[-1]
    assert (record["action"], record["approved_by"], record["authentication"], record["reason"]) == (
        "rollback",
        "promoter",
        "basic",
        "worse on knees",
    )
    with server.as_user("auditor"):  # what the server logs proves an override and a rollback to whoever verifies
        for ref in ("champion", f"release/{record['from_version']}"):
            assert {check.name: check.detail for check in verify_release(NAME, ref) if not check.ok} == {}


def test_the_administrators_policy_binds_whoever_works_on_the_server(server: AuthServer, tmp_path: Path, policy: Path) -> None:
    number = build(server, tmp_path / "policy")
    policy.write_text("version: another\n")  # read by the server, which runs on
    route = "/ajax-api/2.0/scalingnote/policies"
    assert server.call("GET", route)[0] == 401
    assert server.call("GET", route, user="auditor") == (200, {"policies": {policy.name: {"version": "another"}}})
    with server.as_user("reviewer"), pytest.raises(PromotionError, match="none of this installation's, by the server"):
        approve(NAME, number, None)
    assert copy_in_the_ui(server, "reviewer", number)[0] == 200
    with server.as_user("promoter"):
        with pytest.raises(PromotionError, match="none of this installation's, by the server"):
            promote(NAME, no_smoke)
        write_policy(policy)
        assert promote(NAME, no_smoke).status == "promoted"


def test_promotion_past_the_server_uses_its_log_all_the_same(server: AuthServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Somebody with the files of the store copies a candidate without the server: the log knows nothing of it."""
    from components.tracking.store import clear_caches

    store = server.home / "mlflow" / "mlflow.db"
    monkeypatch.setenv("SCALINGNOTE_HOME", str(server.home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    kept = tmp_path / "kept.db"
    shutil.copyfile(store, kept)
    clear_caches()
    try:
        with pytest.raises(PromotionError, match="through its server, signed in"):
            approve(NAME, 1, "Mallory")
        registry.copy_version(CANDIDATE, 1, RELEASE)
        time.sleep(0.01)
        with pytest.raises(PromotionError, match="written past the server"):
            promote(NAME, no_smoke)
    finally:
        clear_caches()
        shutil.copyfile(kept, store)
