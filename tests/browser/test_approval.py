"""A candidate's way through the browser: a reviewer reads its evidence and promotes it, its trainer may not, the audit log names both."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from components.release.manifest import load_release
from components.tracking import registry
from tests.auth_world import PASSWORD, AuthServer, auth_server
from tests.browser.chromium import chromium, missing
from tests.browser.pages import Person
from tests.flows.cli_world import SMALL, Built, at_home, done

pytestmark = [pytest.mark.server, pytest.mark.slow]
if reason := missing():
    pytest.skip(f"The browser tests did not run: {reason}", allow_module_level=True)

CANDIDATE, RELEASE = "retriever-candidate", "retriever-release"
Story = dict[str, Any]


@pytest.fixture(scope="module")
def story(built: Built, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """What was seen in the pages and said by the commands, in the order in which it happened. `both` is trainer and reviewer."""
    folder = tmp_path_factory.mktemp("approval")
    with auth_server(folder, mlflow_template) as server, at_home(server.home, mlflow_template):
        with server.as_user("both"):
            told: Story = {"home": server.home, "built": _built_again(server, built)}
        for user in ("trainer", "both"):
            told[user] = _tries(user, folder / user, server)
        with server.as_user("auditor"):
            told["before"] = registry.versions(RELEASE)
        told["reviewer"] = _reviews(folder / "reviewer", server)
        with server.as_user("promoter"):
            told["promoted"] = done("promote")
        yield told


def _built_again(server: AuthServer, built: Built) -> Any:
    """The candidate, registered on the server; its steps come from the cache of the session's one build."""
    for name in ("work", "models"):
        shutil.copytree(built.home / name, server.home / name, dirs_exist_ok=True)
    return done("retrain", *SMALL, "--data", built.data)


def _tries(user: str, profile: Path, server: AuthServer) -> str:
    """What MLflow says when `user` presses the button."""
    with _browser(profile, server) as person:
        person.sign_in(user, PASSWORD)
        person.open_version(CANDIDATE, 1)
        person.promote(RELEASE)
        return person.notice()


def _reviews(profile: Path, server: AuthServer) -> Story:
    """The reviewer mistypes the password once, reads description and report, goes back to the candidate, and presses the button."""
    with _browser(profile, server) as reviewer:
        seen = {"mistyped": reviewer.sign_in("reviewer", "not the password"), "signed in": reviewer.sign_in("reviewer", PASSWORD)}
        reviewer.open_version(CANDIDATE, 1)
        seen |= {"description": reviewer.see("Verdict", "Full report")}
        reviewer.follow("Full report")
        seen["report"] = reviewer.read_framed("Gates", "Data contracts", "Origin")
        reviewer.open_version(CANDIDATE, 1)
        reviewer.promote(RELEASE)
        return {**seen, "copy": reviewer.see("Copied from", "(Version 1)"), "address": reviewer.browser.current_url}


@contextmanager
def _browser(profile: Path, server: AuthServer) -> Iterator[Person]:
    with chromium(profile) as browser:
        yield Person(browser, server.url)


def test_wrong_password_shows_nothing(story: Story) -> None:
    assert story["reviewer"]["mistyped"] == ""
    assert story["reviewer"]["signed in"].endswith("MLflow")


def test_trainer_is_refused_and_sees_why(story: Story) -> None:
    assert "trainer" in story["trainer"] and RELEASE in story["trainer"]


def test_nobody_approves_their_own_work_and_sees_why(story: Story) -> None:
    assert "both" in story["both"] and f"{CANDIDATE}/1" in story["both"]


def test_refused_tries_approve_nothing(story: Story) -> None:
    assert story["before"] == []


def test_reviewer_reads_the_verdict_and_the_report(story: Story) -> None:
    queries = load_release(Path(story["built"]["folder"])).evaluation.queries
    for page in ("description", "report"):
        assert f"{queries} judged queries" in story["reviewer"][page]
    assert "Verdict: " in story["reviewer"]["description"]
    assert "Candidate of the retriever retriever" in story["reviewer"]["report"]


def test_button_of_mlflow_makes_the_release_version_that_the_flow_promotes(story: Story) -> None:
    assert story["reviewer"]["address"].endswith(f"/models/{RELEASE}/versions/1")
    assert CANDIDATE in story["reviewer"]["copy"]
    assert (story["promoted"]["status"], story["promoted"]["to_version"]) == ("promoted", 1)


def test_record_names_the_reviewer_as_signed_in(story: Story) -> None:
    from components.tracking.promotion_records import read_records

    (record,) = read_records("retriever")
    assert (record["approved_by"], record["role"], record["authentication"]) == ("reviewer", "reviewer", "basic")


def test_audit_log_names_who_was_refused_and_who_approved(story: Story) -> None:
    from components.tracking.audit_log import read_audit

    created = [entry for entry in read_audit(story["home"] / "mlflow" / "audit.jsonl") if entry.action == "create_model_version"]
    tried = [(entry.user, entry.outcome) for entry in created if entry.subject.get("model") == RELEASE]
    assert tried == [("trainer", "refused"), ("both", "refused"), ("reviewer", "ok")]
    assert [entry.user for entry in created if entry.subject.get("model") == CANDIDATE] == ["both"]
