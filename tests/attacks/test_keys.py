"""Attacks on signatures: a key that is not trusted, a record that nobody signed, a key that was withdrawn."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components import settings
from components.errors import ArtifactError, ConfigError, PromotionError
from components.promotion.approval import approve
from components.promotion.promote import promote, rollback
from components.promotion.record import rotate, sign_afterwards
from components.promotion.status import render_status, status_of
from components.promotion.verification import verify_release
from components.release.champion import servable_release
from components.serving.loader import require_signed
from components.signing.keys import KEY_VARIABLE, SigningKey, load_signing_key, make_key, public_file, trusted_keys
from components.tracking import embedded, registry
from components.tracking import promotion_records as record_store
from components.tracking.store import client
from tests.unit.promotion_world import GOOD, NAME, Killed, into_mlflow, make_candidate, no_smoke


@pytest.fixture
def champion(home: Path, tmp_path: Path) -> int:
    """release/1, promoted with a key that is trusted; candidate/2 is approved."""
    make_key(settings.keys_folder() / "signing.pem")
    register = into_mlflow()
    for number in (1, 2):
        make_candidate(tmp_path / str(number), register, {**GOOD, "student": 0.70 + number / 1000})
        approve(NAME, number, "Ada")
        sign_afterwards(NAME, f"release/{number}")
        if number == 1:
            promote(NAME, no_smoke)
    return 1


def served() -> int:
    require_signed(record_store.read_records(NAME), "champion")
    return servable_release(NAME).version


def test_a_promotion_with_a_key_that_is_not_trusted_changes_nothing(champion: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, str(make_key(tmp_path / "foreign.pem").path))
    with pytest.raises(ConfigError, match="is not among the trusted keys"):
        promote(NAME, no_smoke)
    assert len(record_store.read_records(NAME)) == 1 and served() == 1


def test_a_promotion_without_a_key_where_keys_are_trusted_changes_nothing(champion: int, tmp_path: Path) -> None:
    key = settings.keys_folder() / "signing.pem"
    key.rename(tmp_path / "away.pem")
    for change in (lambda: promote(NAME, no_smoke), lambda: rollback(NAME, "Bob", "slow")):
        with pytest.raises(ConfigError, match="there is no signing key"):
            change()
    assert len(record_store.read_records(NAME)) == 1 and served() == 1


def test_an_approval_of_what_was_built_without_a_key_waits_for_the_promoters_signature(champion: int, tmp_path: Path) -> None:
    signing = settings.keys_folder() / "signing.pem"
    signing.rename(tmp_path / "elsewhere.pem")  # of a worker, which holds no key
    make_candidate(tmp_path / "3", into_mlflow(), {**GOOD, "student": 0.703})
    (tmp_path / "elsewhere.pem").rename(signing)
    approve(NAME, 3, "Ada")
    with pytest.raises(PromotionError, match=r"signature: It is not signed, .* Sign it: scalingnote keys sign REF"):
        promote(NAME, no_smoke)
    sign_afterwards(NAME, "release/3")
    assert promote(NAME, no_smoke).to_version == 3


def test_a_forged_record_is_not_signed_over_by_the_next_promotion(champion: int) -> None:
    record_store.append_record(NAME, {"action": "promote", "from_version": 1, "to_version": 2, "candidate_version": 2})
    for change in (lambda: promote(NAME, no_smoke), lambda: rollback(NAME, "Bob", "slow")):
        with pytest.raises(PromotionError, match="record 2 is not signed"):
            change()
    assert len(record_store.read_records(NAME)) == 2
    assert not all(check.ok for check in verify_release(NAME, "champion"))


def test_a_key_that_was_withdrawn_leaves_without_stopping_what_is_served(champion: int) -> None:
    former = settings.keys_folder() / "signing.pem"
    public = next((settings.keys_folder() / "trusted").glob("*.pem"))
    former.rename(former.with_name("former.pem"))
    make_key(settings.keys_folder() / "signing.pem")
    sign_afterwards(NAME, "release/2")
    promote(NAME, no_smoke)  # the former key is still trusted, so what it signed is built on
    public.unlink()
    assert served() == 2
    sign_afterwards(NAME, "release/1")
    assert rollback(NAME, "Bob", "slow").to_version == 1
    assert served() == 1 and all(check.ok for check in verify_release(NAME, "champion"))


def test_the_way_back_from_a_record_of_a_foreign_key_is_an_open_vouch(
    champion: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an earlier version could leave it: the newest record is signed by a key that was never trusted."""
    from components.signing.statements import record_signer

    foreign = make_key(tmp_path / "foreign.pem")
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv(KEY_VARIABLE, str(foreign.path))
        elsewhere.setenv("SCALINGNOTE_TRUSTED_KEYS", str(public_file(foreign)))
        sign = record_signer()
    newest = record_store.read_records(NAME)[-1]
    kept = {key: newest[key] for key in ("action", "to_version", "candidate_version", "manifest_digest", "packages", "evidence_digest")}
    record_store.append_record(NAME, {**kept, "from_version": 1, "action": "vouch", "time": newest["time"]}, sign)
    with pytest.raises(PromotionError, match="record 2: It is signed by the key"):
        promote(NAME, no_smoke)
    assert sign_afterwards(NAME, "champion").sequence == 3
    assert promote(NAME, no_smoke).to_version == 2 and served() == 2


def own_key() -> SigningKey:
    key = load_signing_key()
    assert key is not None
    return key


def holds() -> bool:
    return all(check.ok for check in verify_release(NAME, "champion"))


def test_a_rotation_signs_again_what_is_served_and_withdraws_the_former_key(champion: int) -> None:
    former = own_key()
    client().create_registered_model("webapp-release")
    client().create_model_version("webapp-release", source="https://example.org/of-another-team")
    done = rotate()
    assert not done.left, "a model of others whose name ends like ours is passed over"
    assert done.key_id == own_key().key_id != former.key_id and set(trusted_keys()) == {done.key_id}
    assert {path.name for path in done.withdrawn} == {f"{former.key_id[:16]}{end}.pem" for end in ("", ".private")}
    assert f"{NAME}-release/1" in done.signed and f"{NAME}-promotions/2" in done.signed
    assert served() == 1 and holds()
    assert promote(NAME, no_smoke).to_version == 2  # approved before the rotation
    assert rollback(NAME, "Bob", "slow").to_version == 1 and served() == 1 and holds()
    again = rotate()
    assert again.key_id not in (done.key_id, former.key_id) and served() == 1 and holds()


def test_a_rotation_withdraws_a_key_that_is_trusted_under_another_name(champion: int) -> None:
    former = own_key()
    public_file(former).rename(public_file(former).with_name("of-ada.pem"))
    assert set(trusted_keys()) == {former.key_id}
    done = rotate()
    assert set(trusted_keys()) == {done.key_id} != {former.key_id} and served() == 1 and holds()


def test_a_first_promotion_that_began_before_a_rotation_is_signed_by_the_new_key(home: Path, tmp_path: Path) -> None:
    """There was no record yet that the rotation could sign, the old key signed the first one, and the champion was not served."""
    former = make_key(settings.keys_folder() / "signing.pem")
    make_candidate(tmp_path / "1", into_mlflow())
    approve(NAME, 1, "Ada")
    sign_afterwards(NAME, "release/1")
    assert promote(NAME, lambda _: bool(rotate())).to_version == 1
    assert former.key_id not in trusted_keys() and served() == 1


def test_a_key_that_comes_in_the_midst_of_a_promotion_does_not_sign_over_what_nobody_vouched_for(home: Path, tmp_path: Path) -> None:
    """The record had no signature then, although keys counted, and the champion was not served."""
    register = into_mlflow()
    for number in (1, 2):
        make_candidate(tmp_path / str(number), register, {**GOOD, "student": 0.70 + number / 1000})
        approve(NAME, number, "Ada")
        if number == 1:
            promote(NAME, no_smoke)
    with pytest.raises(PromotionError, match="other keys count since this command began"):
        promote(NAME, lambda _: bool(make_key(settings.keys_folder() / "signing.pem")))
    assert len(record_store.read_records(NAME)) == 1
    sign_afterwards(NAME, "champion")
    sign_afterwards(NAME, "release/2")
    assert promote(NAME, no_smoke).to_version == 2 and served() == 2


def test_a_record_waits_until_a_rotation_is_over(champion: int) -> None:
    from components.signing.keys import not_rotating, rotating

    with not_rotating(), not_rotating():
        pass
    entered = threading.Event()
    with rotating():
        thread = threading.Thread(target=lambda: not_rotating()(entered.set)(), daemon=True)
        thread.start()
        assert not entered.wait(0.2)
    assert entered.wait(60)


def test_a_rotation_that_a_file_among_the_trusted_keys_stops_leaves_a_key_to_sign_with(home: Path) -> None:
    """It had moved the former key away by then, and what was built next was not signed, without a word."""
    former = make_key(home / "keys" / "signing.pem")
    public_file(former).with_name("of-ada.pem").write_text("no key")
    with pytest.raises(ConfigError, match=r"of-ada\.pem"):
        rotate()
    assert own_key().key_id == former.key_id
    public_file(former).with_name("of-ada.pem").unlink()
    assert rotate().key_id == own_key().key_id != former.key_id


@pytest.mark.parametrize("step", range(7))
def test_a_rotation_that_is_killed_serves_on_and_is_finished_by_the_next(champion: int, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before its n-th change of a file or record: a signature, a vouching record, a rename of a key."""
    from components.promotion import record as room

    done = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            nonlocal done
            if done == step:
                raise Killed
            done += 1
            return call(*arguments, **named)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(room, "sign_release", counted(room.sign_release))
        patch.setattr(room, "append", counted(room.append))
        patch.setattr(Path, "replace", counted(Path.replace))
        try:
            rotate()
        except Killed:
            assert served() == 1
    former = set(trusted_keys())
    final = rotate()
    assert set(trusted_keys()) == {final.key_id} and former and served() == 1 and holds()
    assert not (settings.keys_folder() / "signing.next.pem").exists()


def test_a_rotation_does_not_sign_over_records_that_nobody_vouched_for(champion: int) -> None:
    record_store.append_record(NAME, {"action": "promote", "from_version": 1, "to_version": 2, "candidate_version": 2})
    with pytest.raises(ArtifactError, match="record 2 is not signed"):
        rotate()
    assert len(record_store.read_records(NAME)) == 2


def test_a_release_that_was_changed_is_left_as_it_is_and_named(champion: int) -> None:
    from components.tracking import registry

    (registry.artifact_folder(f"{NAME}-release", 2) / "report.html").write_text("changed")
    done = rotate()
    assert any(line.startswith(f"{NAME}-release/2: ") and "was changed" in line for line in done.left)
    assert served() == 1


def test_a_rotation_where_others_say_which_keys_count_is_refused(champion: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALINGNOTE_TRUSTED_KEYS", str(settings.keys_folder() / "trusted"))
    with pytest.raises(ConfigError, match="SCALINGNOTE_TRUSTED_KEYS is set"):
        rotate()
    monkeypatch.delenv("SCALINGNOTE_TRUSTED_KEYS")
    (settings.keys_folder() / "signing.pem").rename(tmp_path / "away.pem")
    with pytest.raises(ConfigError, match="There is no key"):
        rotate()


def test_a_folder_of_trusted_keys_that_was_emptied_serves_and_verifies_nothing(champion: int) -> None:
    """Without keys anybody's signature counts, so taking the last one out must not be the way there."""
    for key in (settings.keys_folder() / "trusted").glob("*.pem"):
        key.unlink()
    for use in (served, lambda: promote(NAME, no_smoke), lambda: verify_release(NAME, "champion")):
        with pytest.raises(ConfigError, match=r"holds no \*\.pem file.*remove the folder"):
            use()
    assert len(record_store.read_records(NAME)) == 1


def test_the_status_says_that_keys_keep_the_champion_from_being_served(champion: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert status_of(NAME)["alarm"] is None
    forged = {"action": "promote", "from_version": 1, "to_version": 2, "candidate_version": 2}
    record_store.append_record(NAME, forged)
    assert "The champion is not served here: Promotion record 2 is not signed" in str(status_of(NAME)["alarm"])
    for key in (settings.keys_folder() / "trusted").glob("*.pem"):
        key.write_bytes(key.read_bytes()[:40])
    assert "The champion is not served here" in str(status_of(NAME)["alarm"]) and "no ed25519 public key" in str(status_of(NAME)["alarm"])
    for key in (settings.keys_folder() / "trusted").glob("*.pem"):
        key.unlink()
    told = render_status(status_of(NAME))
    assert "ALARM: " in told and "holds no *.pem file, so no signature would count" in told


def test_half_a_key_is_refused_and_changes_nothing(champion: int) -> None:
    place = settings.keys_folder() / "signing.pem"
    place.write_bytes(place.read_bytes()[:60])
    for change in (lambda: promote(NAME, no_smoke), rotate):
        with pytest.raises(ConfigError, match="cannot be opened: the file is damaged"):
            change()
    assert len(record_store.read_records(NAME)) == 1


def test_a_rotation_where_no_key_is_trusted_is_refused_before_only_the_new_one_would_be(champion: int) -> None:
    trusted = settings.keys_folder() / "trusted"
    (public,) = trusted.glob("*.pem")
    public.unlink()
    trusted.rmdir()  # to go without trusted keys
    with pytest.raises(ConfigError, match=r"No keys are trusted here .* `scalingnote keys new` trusts the present key"):
        rotate()
    assert served() == 1 and not trusted.exists()
    make_key(settings.keys_folder() / "signing.pem")
    assert served() == 1
    rotate()
    assert served() == 1


def test_a_model_whose_name_no_retriever_can_have_does_not_stop_a_rotation(champion: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a server a quote in its name broke the search for its versions, so that a key which leaked could not be withdrawn."""
    client().create_registered_model("o'brien-release")
    client().create_registered_model("a b-release")
    assert registry.retrievers() == [NAME]
    monkeypatch.setattr(embedded, "reader", lambda: None)  # as on a server
    rotate()
    assert served() == 1
