"""Attacks on what records, packages and copies claim: compared with the facts, with the real store of MLflow."""

from __future__ import annotations

import json
import py_compile
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components.artifacts import SIGNATURE, digest_of, verify
from components.errors import ArtifactError
from components.promotion.verification import Check, verify_release
from components.release.manifest import load_release
from components.release.reviewers import require_entry
from components.serving.loader import require_as_registered
from components.tracking import packaging as files
from components.tracking import promotion_records as records
from components.tracking import registry
from components.tracking.audit_log import AuditEntry
from components.tracking.packaging import packaged_digest
from components.tracking.store import client
from tests.unit.promotion_world import NAME, rewrite
from tests.unit.proof_world import Proven, proven_home

RELEASE = f"{NAME}-release"


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[Proven]:
    with proven_home(tmp_path_factory.mktemp("claims"), mlflow_template) as world:
        yield world


def failed(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.detail for check in checks if not check.ok}


LIES = {
    "decision_digest": "0" * 64,
    "candidate_version": 77,
    "verdict": "fail",
    "first_release": True,
    "evidence_digest": "0" * 64,
    "decisions": [{"against": 1, "digest": "0" * 64, "decision": {}, "comparison": None}],
}


@pytest.mark.parametrize("field", LIES)
def test_a_record_that_says_something_else_than_its_release_is_found(proven: Proven, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    true = records.read_records(NAME)
    changed = [{**record, field: LIES[field]} if record["action"] == "promote" and record["to_version"] == 2 else record for record in true]
    monkeypatch.setattr(records, "read_records", lambda name: changed)
    monkeypatch.setattr("components.promotion.verification._decision", lambda *_: "not decided again")
    assert "claims" in failed(verify_release(NAME, "release/2"))


def test_a_failed_release_whose_record_names_no_override_is_found(proven: Proven, monkeypatch: pytest.MonkeyPatch) -> None:
    from components.promotion import verification

    manifest = load_release(registry.artifact_folder(RELEASE, 2))
    bad = manifest.model_copy(update={"decision": manifest.decision.model_copy(update={"verdict": "fail"})})
    record = {"action": "promote", "sequence": 2, "verdict": "fail", "override": " "}
    with pytest.raises(ArtifactError, match="names no reason for it"):
        verification._require_true_decision(record, bad, registry.artifact_folder(RELEASE, 2))


def entry(**changes: Any) -> AuditEntry:
    fields: dict[str, Any] = {
        "sequence": 1,
        "at": "2026-11-28T00:00:00+00:00",
        "user": "rita",
        "roles": ("reviewer",),
        "method": "POST",
        "path": "/x",
        "action": "create_model_version",
        "subject": {"model": RELEASE, "version": "5"},
        "status": 200,
        "outcome": "ok",
        "previous": None,
        "digest": "d" * 64,
    }
    return AuditEntry.model_validate({**fields, **changes})


RECORD = {
    "sequence": 5,
    "action": "promote",
    "retriever": NAME,
    "from_version": 4,
    "to_version": 5,
    "approved_by": "rita",
    "role": "reviewer",
    "audit_sequence": 1,
    "audit_digest": "d" * 64,
}
LEFT = {"action": "set_version_tag", "subject": {"model": RELEASE, "version": "4", "key": "scalingnote.rolled_back", "value": "slow"}}


@pytest.mark.parametrize(
    "changes",
    [
        {"user": "tom", "roles": ("trainer",)},
        {"outcome": "refused", "status": 403},
        {"action": "set_run_tag"},
        {"subject": {"model": RELEASE, "version": "6"}},
        {"subject": {"model": "other-release", "version": "5"}},
        {"roles": ("promoter",)},
        {"user": None},
        LEFT,
    ],
)
def test_an_audit_entry_that_is_no_approval_proves_none(changes: dict[str, Any]) -> None:
    require_entry(RECORD, [entry()])
    with pytest.raises(ArtifactError, match="does not prove it"):
        require_entry(RECORD, [entry(**changes)])


def test_a_rollback_is_proven_by_the_tag_on_the_release_that_was_left() -> None:
    record = {**RECORD, "action": "rollback", "from_version": 4, "to_version": 3}
    require_entry(record, [entry(**LEFT)])
    for wrong in (entry(), entry(**{**LEFT, "subject": {**LEFT["subject"], "key": "scalingnote.other"}})):
        with pytest.raises(ArtifactError, match="does not prove it"):
            require_entry(record, [wrong])


@pytest.fixture
def package(proven: Proven, tmp_path: Path) -> Path:
    """The sealed folder in a copy of the package of release/2, as MLflow downloads it."""
    sealed = registry.artifact_folder(RELEASE, 2)
    copied = Path(shutil.copytree(sealed.parents[1], tmp_path / "package"))
    return copied / "artifacts" / "sealed"


def test_mlflow_loads_no_release_that_was_changed_and_sealed_again(proven: Proven, package: Path) -> None:
    assert require_as_registered(package).digest == packaged_digest(package)
    true = packaged_digest(package)

    def loosen(content: dict[str, Any]) -> None:
        content["config"]["index"] = {"probe_tolerance": 0.5}

    rewrite(package, loosen)
    with pytest.raises(ArtifactError, match="expected the artifact"):
        require_as_registered(package)
    place = package.parents[1] / "MLmodel"
    place.write_text(place.read_text().replace(true, verify(package).digest))  # and MLmodel changed with it
    with pytest.raises(ArtifactError, match="no candidate or release of 'retriever' is registered with the digest"):
        require_as_registered(package)


@pytest.mark.parametrize("content", [None, "", "flavors: 7", "flavors: {python_function: {artifacts: {sealed: {uri: x}}}}", "{"])
def test_a_package_that_names_no_digest_is_refused(package: Path, content: str | None) -> None:
    place = package.parents[1] / "MLmodel"
    place.unlink() if content is None else place.write_text(content)
    with pytest.raises(ArtifactError, match="does not name the digest"):
        packaged_digest(package)


def test_mlflow_loads_nothing_by_an_alias_that_was_moved_by_hand(proven: Proven, tmp_path: Path) -> None:
    second, first = registry.artifact_folder(RELEASE, 2), registry.artifact_folder(RELEASE, 1)
    assert require_as_registered(second) and require_as_registered(first)
    client().set_registered_model_alias(RELEASE, "champion", "1")
    try:
        with pytest.raises(ArtifactError, match="points at release/1, but by the promotion records release/2 is champion"):
            require_as_registered(first)
        assert require_as_registered(second)
        digest = next(info for info in registry.versions(RELEASE) if info.version == 1).tags["scalingnote.digest"]
        for disguise in ("", "0" * 64):  # the tag that says which files they are, changed too
            client().set_model_version_tag(RELEASE, "1", "scalingnote.digest", disguise)
            with pytest.raises(ArtifactError, match="points at release/1, but by the promotion records release/2 is champion"):
                require_as_registered(first)
        client().set_model_version_tag(RELEASE, "1", "scalingnote.digest", digest)
    finally:
        client().set_registered_model_alias(RELEASE, "champion", "2")


def test_byte_code_is_found_and_mlflow_leaves_none_when_it_loads_an_encoder(proven: Proven, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.pyfunc import load_model

    root = registry.artifact_folder(f"{NAME}-query-encoder", 2).parents[1]
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    with pytest.raises(Exception, match=r"."):  # its weights are none; the file of the model was executed all the same
        load_model(f"models:/{NAME}-query-encoder/2")
    assert not list(root.rglob("*.pyc"))
    source = root / "code" / "components" / "errors.py"
    py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    monkeypatch.setattr("components.promotion.verification._decision", lambda *_: "not decided again")
    assert "is byte code" in failed(verify_release(NAME, "release/2"))["packages"]
    shutil.rmtree(source.parent / "__pycache__")


@pytest.fixture
def store(proven: Proven) -> Path:
    """Where the store itself keeps release/2."""
    return files.artifact_folder(RELEASE, 2)


@pytest.fixture
def remote(store: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """The store behaves like a remote one: what is read of it is a copy."""
    monkeypatch.setattr(files, "local_path", lambda location: None)
    return lambda: files.artifact_folder(RELEASE, 2)


def test_a_copy_follows_the_store_and_is_fetched_again_when_damaged(remote: Callable[[], Path], store: Path) -> None:
    copied = remote()
    assert copied != store and remote() == copied
    signature = (store / SIGNATURE).read_bytes()
    try:
        (store / SIGNATURE).write_bytes(signature + b" ")
        assert (remote() / SIGNATURE).read_bytes() == signature + b" "  # came later
        other = (signature + b" ").swapcase()
        (store / SIGNATURE).write_bytes(other)
        assert (remote() / SIGNATURE).read_bytes() != other  # of the same size: the copy is kept, and does not verify
        assert (files.artifact_folder(RELEASE, 2, fresh=True) / SIGNATURE).read_bytes() == other
    finally:
        (store / SIGNATURE).write_bytes(signature)
    (remote() / "release.json").write_text("{}")
    assert json.loads((remote() / "release.json").read_text())["name"] == NAME
    assert files.forget_download(RELEASE, 2) and not files.forget_download(RELEASE, 2)


def test_verify_looks_at_the_store_and_not_at_its_copy(remote: Callable[[], Path], store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote()
    page = store / "report.html"
    whole = page.read_bytes()
    monkeypatch.setattr("components.promotion.verification._decision", lambda *_: "not decided again")
    try:
        page.write_bytes(whole.swapcase())
        assert "report.html was changed" in failed(verify_release(NAME, "release/2"))["files"]
    finally:
        page.write_bytes(whole)
    assert failed(verify_release(NAME, "release/2")) == {}


def test_a_rewritten_claim_is_digested_like_any_other(proven: Proven) -> None:
    """The digest in the record is that of the decision as it stands in the file."""
    record = next(r for r in records.read_records(NAME) if r["action"] == "promote" and r["to_version"] == 2)
    content = json.loads((registry.artifact_folder(RELEASE, 2) / "release.json").read_text())
    assert record["decision_digest"] == digest_of(content["decision"])
