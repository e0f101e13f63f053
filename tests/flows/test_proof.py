"""Keys, verify, replay and their mistakes, through the commands that a person types."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.artifacts import SIGNATURE
from components.tracking import registry
from tests.flows.cli_world import SMALL, Built, assert_refused, at_home, done, scalingnote

NAME = ("--name", "proof")
pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(scope="module")
def home(built: Built, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of the first build, with a retriever of this module's own, promoted without a key."""
    with at_home(built.home, mlflow_template) as folder:
        done("retrain", *SMALL, *NAME, "--data", built.data)
        done("approve", "candidate/1", "--as", "Ada", *NAME)
        done("promote", *NAME)
        yield folder
        shutil.rmtree(folder / "keys", ignore_errors=True)


@pytest.fixture
def key(home: Path) -> Iterator[dict[str, Any]]:
    """A signing key for one test."""
    yield done("keys", "new")
    shutil.rmtree(home / "keys")


def failed(*arguments: str | Path) -> dict[str, str]:
    """Findings of a `verify` that has to fail."""
    outcome = scalingnote("verify", *arguments, *NAME, "--json")
    assert outcome.status == 6, outcome.out + outcome.err
    return {check["name"]: check["detail"] for check in outcome.result["checks"] if not check["ok"]}


def test_without_a_key_a_release_is_verified_and_said_to_be_unsigned(home: Path) -> None:
    checks = {check["name"]: check["detail"] for check in done("verify", *NAME)["checks"]}
    assert checks["signature"] == "unsigned: no signing key was configured"
    assert checks["signed records"].startswith("unsigned")
    assert "nobody was authenticated" in checks["audit log"]
    assert "signing: none" in scalingnote("keys", "list").out


def test_once_keys_are_trusted_an_unsigned_release_fails_until_it_is_signed(home: Path, key: dict[str, Any]) -> None:
    findings = failed()
    assert "keys sign" in findings["signature"] and "not signed" in findings["signed records"]
    signed = done("keys", "sign", "champion", *NAME)
    assert signed["key_id"] == key["key_id"] and signed["record"] == 2
    checks = {check["name"]: check["detail"] for check in done("verify", *NAME)["checks"]}
    assert checks["signed records"].startswith("1 of 2 records signed")
    assert (registry.artifact_folder("proof-candidate", 1) / SIGNATURE).is_file()
    assert f"trusted: {key['key_id'][:16]}" in scalingnote("keys", "list").out


def test_a_signature_by_another_key_fails_by_name(home: Path, key: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = done("keys", "new", "--to", tmp_path / "mallory.pem")
    monkeypatch.setenv("SCALINGNOTE_SIGNING_KEY", other["private"])
    before = failed()
    assert_refused(scalingnote("keys", "sign", "champion", *NAME), 2, other["key_id"][:16], "Nothing was signed")
    assert failed() == before
    monkeypatch.setenv("SCALINGNOTE_TRUSTED_KEYS", other["public"])  # who signs trusts the own key, nobody else does
    done("keys", "sign", "champion", *NAME)
    monkeypatch.delenv("SCALINGNOTE_TRUSTED_KEYS")
    assert f"signed by the key {other['key_id'][:16]}, which is not trusted" in failed()["signature"]
    monkeypatch.setenv("SCALINGNOTE_TRUSTED_KEYS", other["public"])
    assert done("verify", *NAME)["verified"]  # the former key's signatures count as none, and the newest covers all records


def test_a_copy_of_the_store_is_verified_without_store_and_server(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(home / "mlflow" / "artifacts", copied)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    checks = done("verify", "--folder", copied, *NAME)["checks"]
    assert {"files", "index", "query encoder", "decision", "promotion record"} <= {check["name"] for check in checks}
    for weights in [*copied.rglob("sealed/*.faiss")] or [*copied.rglob("sealed/part-*")]:  # several versions may lie there
        weights.write_bytes(weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 1]))
    assert f"{weights.name} was changed" in failed("--folder", copied)["index"]


def test_bad_keys_are_refused_before_anything_starts(home: Path, built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    letter = tmp_path / "letter.pem"
    letter.write_text("Dear Sir")
    monkeypatch.setenv("SCALINGNOTE_SIGNING_KEY", str(letter))
    assert_refused(scalingnote("keys", "list"), 2, "letter.pem", "not a private key")
    assert_refused(scalingnote("retrain", *SMALL, "--data", built.data), 2, "letter.pem", "not a private key")
    monkeypatch.delenv("SCALINGNOTE_SIGNING_KEY")
    monkeypatch.setenv("SCALINGNOTE_TRUSTED_KEYS", str(letter))
    assert_refused(scalingnote("verify", *NAME), 2, "letter.pem", "public key")
    monkeypatch.delenv("SCALINGNOTE_TRUSTED_KEYS")
    assert_refused(scalingnote("keys", "sign", "champion", *NAME), 2, "no signing key", "keys new")
    assert_refused(scalingnote("verify", "--folder", tmp_path / "nowhere"), 7, "not a folder")


def test_replay_gives_the_recorded_values_again(home: Path) -> None:
    found = done("replay", "champion", *NAME)
    assert (found["outcome"], found["evaluation"]["differing"], found["verdict"]) == ("equal", 0, "pass")
    assert found["evaluation"]["values"] > 300
    assert list((home / "work").glob("replay-*")) == []


def test_replay_refuses_a_folder_that_is_not_there_though_it_has_the_tables(home: Path) -> None:
    assert_refused(scalingnote("replay", "champion", *NAME, "--data", "/nowhere"), 3, "/nowhere does not exist")


def test_replay_refuses_data_that_is_not_that_of_the_release(home: Path, built: Built, tmp_path: Path) -> None:
    other = shutil.copytree(built.data, tmp_path / "clinic")
    lines = (other / "corpus.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (other / "corpus.jsonl").write_text("".join([lines[0].replace("patient", "person"), *lines[1:]]), encoding="utf-8")
    # Also while the working files hold the tables that it had: other data was given, and nothing was read of it.
    assert_refused(scalingnote("replay", "champion", *NAME, "--data", other), 3, "was changed since")
    moved = (home / "work" / "snapshot_data").rename(tmp_path / "snapshots")
    assert_refused(scalingnote("replay", "champion", *NAME, "--data", other), 3, "was changed since")
    assert done("replay", "champion", *NAME)["outcome"] == "equal"  # read again from where the release took it
    moved.rename(home / "work" / "snapshot_data")


def test_replay_builds_again(home: Path) -> None:
    found = done("replay", "champion", *NAME, "--build")
    assert found["build"]["first"] is None, found["build"]
    assert (found["outcome"], found["build"]["evaluation"]["outcome"]) == ("equal", "equal")
    assert done("status", *NAME)["champion"] == 1


def test_only_signing_signs_in(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("flows.cli.main.sign_in", asked.append)
    scalingnote("keys", "list")
    scalingnote("keys", "new", "--to", home / "other.pem")
    assert asked == []
    scalingnote("keys", "sign", "champion", *NAME)
    assert asked == ["promoter"]
