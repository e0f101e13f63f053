"""Serving follows the promotion records, and those only as far as the trusted keys vouch for them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from components import settings
from components.errors import ArtifactError, ConfigError, PromotionError
from components.promotion.approval import approve
from components.promotion.promote import promote, rollback
from components.promotion.record import sign_afterwards
from components.promotion.status import history_of, render_history
from components.promotion.verification import verify_release
from components.serving import loader
from components.signing.keys import KEY_VARIABLE, TRUSTED_VARIABLE, make_key, public_file
from components.signing.statements import sign_release
from components.tracking import registry
from tests.unit.promotion_world import NAME, into_mlflow, make_candidate, no_smoke


def test_champion_that_no_trusted_key_vouches_for_is_not_served(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "open_retriever", lambda manifest: SimpleNamespace(index=SimpleNamespace(rows=[])))
    monkeypatch.setattr(loader, "read_titles", lambda folder, rows: {})
    ours, other = (make_key(tmp_path / f"{name}.pem") for name in ("ours", "other"))
    make_candidate(tmp_path / "1", into_mlflow())
    approve(NAME, 1, "Ada")
    promote(NAME, no_smoke)
    assert loader.open_release(NAME, "champion").version == 1  # without trusted keys the records alone decide

    monkeypatch.setenv(TRUSTED_VARIABLE, str(public_file(ours)))
    with pytest.raises(ArtifactError, match=r"'champion' is not served.*record 1 is not signed"):
        loader.open_release(NAME, "champion")
    assert loader.open_release(NAME, "release/1").version == 1  # chosen by the caller, and checked by its digest

    monkeypatch.setenv(KEY_VARIABLE, str(ours.path))
    registry.copy_version(f"{NAME}-candidate", 1, f"{NAME}-release")
    sign_release(registry.artifact_folder(f"{NAME}-release", 2))
    with pytest.raises(PromotionError, match="keys sign champion"):  # a signed promotion would vouch for what nobody looked at
        promote(NAME, no_smoke)
    sign_afterwards(NAME, "champion")
    promote(NAME, no_smoke)
    assert [loader.open_release(NAME, ref).version for ref in ("champion", "previous")] == [2, 1]

    monkeypatch.setenv(TRUSTED_VARIABLE, str(public_file(other)))
    for ref in ("champion", "previous"):
        with pytest.raises(ArtifactError, match=f"'{ref}' is not served.*which is not trusted"):
            loader.open_release(NAME, ref)

    monkeypatch.delenv(TRUSTED_VARIABLE)
    assert loader.open_release(NAME, "champion").version == 2
    make_key(settings.keys_folder() / "signing.pem")  # its public half is trusted from then on
    with pytest.raises(ArtifactError, match="'champion' is not served"):
        loader.open_release(NAME, "champion")


def test_a_champion_from_before_the_key_is_served_once_vouched_for(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "open_retriever", lambda manifest: SimpleNamespace(index=SimpleNamespace(rows=[])))
    monkeypatch.setattr(loader, "read_titles", lambda folder, rows: {})
    make_candidate(tmp_path / "1", into_mlflow())
    approve(NAME, 1, "Ada")
    promote(NAME, no_smoke)
    with pytest.raises(ConfigError, match="no signing key"):
        sign_afterwards(NAME, "champion")
    monkeypatch.setenv(KEY_VARIABLE, str(make_key(tmp_path / "other.pem").path))
    make_key(settings.keys_folder() / "signing.pem")
    with pytest.raises(ConfigError, match="not among the trusted keys"):
        sign_afterwards(NAME, "champion")
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(ArtifactError, match="keys sign champion"):
        loader.open_release(NAME, "champion")
    assert sign_afterwards(NAME, "candidate/1").sequence is None
    assert sign_afterwards(NAME, "champion").sequence == 2
    assert loader.open_release(NAME, "champion").version == 1
    assert sign_afterwards(NAME, "champion").sequence is None  # doing it again adds nothing
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "other.pem"))
    for ref in ("champion", "candidate/1"):  # it would replace the signature that counts
        with pytest.raises(ConfigError, match="Nothing was signed"):
            sign_afterwards(NAME, ref)
    monkeypatch.delenv(KEY_VARIABLE)
    first, second = history_of(NAME)
    assert (second["action"], second["from_version"], second["to_version"]) == ("vouch", 1, 1)
    assert (second["approved_by"], second["decision_digest"]) == (first["approved_by"], first["decision_digest"])
    assert "signed afterwards by" in render_history(NAME, [first, second])
    assert all(check.ok for check in verify_release(NAME, "champion"))
    with pytest.raises(PromotionError, match="first release"):
        rollback(NAME, "Ada", "slow")


def test_a_changed_record_is_not_vouched_for(home: Path, tmp_path: Path) -> None:
    make_candidate(tmp_path / "1", into_mlflow())
    approve(NAME, 1, "Ada")
    promote(NAME, no_smoke)
    make_key(settings.keys_folder() / "signing.pem")
    (path,) = (home / "mlflow").rglob("record.json")
    path.write_text(path.read_text().replace("Ada", "Eve"))
    with pytest.raises(ArtifactError, match="was changed"):
        sign_afterwards(NAME, "champion")
