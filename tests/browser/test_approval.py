"""A candidate's way through the browser: a reviewer reads its evidence and promotes it, its trainer may not, the audit log names both."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.auth_world import PASSWORD, AuthServer, auth_server
from tests.browser.chromium import chromium, missing
from tests.browser.pages import Person
from tests.flows.cli_world import SMALL, Built, at_home, done, scalingnote

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(600)]
if reason := missing():
    pytest.skip(f"The browser tests did not run: {reason}", allow_module_level=True)

CANDIDATE, RELEASE = "retriever-candidate", "retriever-release"
Story = dict[str, Any]


@pytest.fixture(scope="module")
def story(built: Built, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """What was seen in the pages and said by the commands, in the order in which it happened."""
    folder = tmp_path_factory.mktemp("approval")
    with auth_server(folder, mlflow_template) as server, at_home(server.home, mlflow_template):
        told: Story = {"home": server.home, "candidate": _train(server, built)}
        with _at_the_browser(folder / "stranger", server) as stranger:
            told["wrong password"] = stranger.sign_in("reviewer", "not the password")
        told["trainer"] = _trainer_tries(folder / "trainer", server)
        with server.as_user("promoter"):
            told["too early"] = done("promote")
        told["reviewer"] = _reviewer_promotes(folder / "reviewer", server)
        with server.as_user("promoter"):
            told["promoted"] = done("promote")
        with server.as_user("auditor"):
            told["trace"] = done("trace", "champion")
            told["status"] = scalingnote("status").out
        yield told


def _train(server: AuthServer, built: Built) -> Any:
    """The trainer registers the candidate on the server; its steps come from the cache of the session's one build."""
    for name in ("work", "models"):
        shutil.copytree(built.home / name, server.home / name, dirs_exist_ok=True)
    with server.as_user("trainer"):
        return done("retrain", *SMALL, "--data", built.data)


def _trainer_tries(profile: Path, server: AuthServer) -> str:
    with _at_the_browser(profile, server) as trainer:
        trainer.sign_in("trainer", PASSWORD)
        trainer.open_version(CANDIDATE, 1)
        trainer.promote(RELEASE)
        return trainer.notice()


def _reviewer_promotes(profile: Path, server: AuthServer) -> Story:
    with _at_the_browser(profile, server) as reviewer:
        reviewer.sign_in("reviewer", PASSWORD)
        reviewer.open_version(CANDIDATE, 1)
        seen = {"description": reviewer.see("Verdict", RELEASE)}
        reviewer.promote(RELEASE)
        return {**seen, "copy": reviewer.see("Copied from", f"{CANDIDATE} (Version 1)"), "address": reviewer.browser.current_url}


@contextmanager
def _at_the_browser(profile: Path, server: AuthServer) -> Iterator[Person]:
    with chromium(profile) as browser:
        yield Person(browser, server.url)


def test_wrong_password_shows_nothing(story: Story) -> None:
    assert "You are not authenticated" in story["wrong password"]
    assert CANDIDATE not in story["wrong password"]


def test_trainer_is_refused_and_sees_why(story: Story) -> None:
    assert "trainer" in story["trainer"]
    assert story["too early"]["status"] == "nothing"


def test_reviewer_sees_the_evidence_and_promotes_with_the_button_of_mlflow(story: Story) -> None:
    assert "champion_non_inferior" in story["reviewer"]["description"]
    assert story["reviewer"]["address"].endswith(f"/models/{RELEASE}/versions/1")


def test_flow_promotes_what_the_reviewer_approved(story: Story) -> None:
    assert (story["promoted"]["status"], story["promoted"]["to_version"]) == ("promoted", 1)
    assert "champion release/1" in story["status"]


def test_audit_log_names_trainer_and_reviewer(story: Story) -> None:
    from components.tracking.audit import read_audit

    entries = [entry for entry in read_audit(story["home"] / "mlflow" / "audit.jsonl") if entry.action == "create_model_version"]
    tried = [(entry.user, entry.outcome) for entry in entries if entry.subject.get("model") == RELEASE]
    assert tried == [("trainer", "refused"), ("reviewer", "ok")]
