"""A retriever whose keys are trusted from the first day: built, promoted, searched, rotated, rolled back, and given to a third party."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.test_signed_export import accepted
from tests.flows.cli_world import SMALL, Built, assert_refused, at_home, done, require_valid_exports, scalingnote

NAME = ("--name", "signed")
pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture
def home(built: Built, mlflow_template: Path, tmp_path: Path) -> Iterator[Path]:
    """A home of its own: a rotation asks for the records of every retriever, and other tests promote without keys."""
    own = tmp_path / "home"
    shutil.copytree(built.home / "work", own / "work")
    with at_home(own, mlflow_template) as folder:
        done("keys", "new")
        yield folder


def served() -> int:
    assert done("verify", *NAME)["verified"]
    found = done("search", "kidney stone", "-k", "3", *NAME)
    assert len(found["hits"]) == 3
    status = done("status", *NAME)
    assert status["alarm"] is None
    return int(status["champion"])


def test_what_a_trusted_key_signed_is_promoted_served_rotated_rolled_back_and_given_away(home: Path, built: Built, tmp_path: Path) -> None:
    for number, more in enumerate(((), ("--set", "distillation.epochs=2")), start=1):
        done("retrain", *SMALL, *NAME, "--data", built.data, *more)
        done("approve", f"candidate/{number}", "--as", "Ada", "--override", "a test has few queries", *NAME)
        done("promote", *NAME)
        assert served() == number
    before = done("keys", "list")["signing"]["key_id"]
    assert done("keys", "rotate")["key_id"] != before
    assert served() == 2
    done("rollback", "--as", "Bob", "--reason", "slow", *NAME)
    assert served() == 1
    checks = {check["name"]: check["detail"] for check in done("verify", *NAME)["checks"]}
    assert checks["signed records"].startswith("4 of 4 records signed") and "a trusted key" in checks["signature"]
    # Signed and overridden, promoted, vouched for again by the rotation, and rolled back to: each act is an event.
    acts = [event["job"]["name"] for event in require_valid_exports("champion", tmp_path / "exports", *NAME)[1::2]]
    assert acts[-3:] == ["approve", "promote", "rollback"]
    folder, certificate = tmp_path / "given away", tmp_path / "certificate.pem"
    done("export", "--signed", folder, *NAME)
    done("keys", "certificate", "--to", certificate)
    assert accepted(folder, certificate)
    assert done("verify", "--folder", folder, *NAME)["verified"]
    (home / "keys" / "signing.pem").rename(tmp_path / "signing.pem")  # a machine that serves holds no private key
    assert served() == 1
    assert_refused(scalingnote("rollback", "--as", "Bob", "--reason", "slow", *NAME), 2, "there is no signing key")
