"""Keys and signatures: what is signed, by whom, and every way in which a key or a signature can be wrong."""

from __future__ import annotations

import base64
import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from components.artifacts import SIGNATURE, file_sha256, open_artifact, read_json, verify, write_json
from components.errors import ArtifactError, ConfigError
from components.signing.keys import (
    TRUSTED_VARIABLE,
    exposure,
    load_signing_key,
    make_key,
    not_rotating,
    public_file,
    rotating,
    rotation_key,
    take_over,
    trusted_keys,
)
from components.signing.statements import check_records, check_release, pae, record_signer, sign_release, signed_by
from components.tracking.registry import RegisteredVersion
from tests.unit.promotion_world import MemoryTracking, make_candidate, rewrite

KEY = "SCALINGNOTE_SIGNING_KEY"
PASSWORD = "SCALINGNOTE_SIGNING_KEY_PASSWORD"


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The keys folder of a home of the test's own, empty."""
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / "home"))
    for variable in (KEY, PASSWORD, TRUSTED_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / "home" / "keys"


@pytest.fixture
def candidate(tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an unsigned candidate."""
    tracking = MemoryTracking()
    tracking.install(monkeypatch)

    def register(model: str, artifact: Any) -> RegisteredVersion:
        return RegisteredVersion(name=model, version=tracking.add(model, artifact.path, artifact.digest), digest=artifact.digest)

    make_candidate(tmp_path / "1", register)
    return tmp_path / "1" / "candidate"


def test_without_a_key_nothing_is_signed_and_nothing_trusted(candidate: Path) -> None:
    assert (load_signing_key(), trusted_keys(), record_signer()) == (None, {}, None)
    assert sign_release(candidate) is None
    assert not (candidate / SIGNATURE).exists()
    assert check_release(candidate, {}) is None


def test_a_new_key_is_private_trusted_and_not_replaced(keys: Path) -> None:
    key = make_key(keys / "signing.pem")
    assert (keys / "signing.pem").stat().st_mode & 0o777 == 0o600
    assert exposure(key.path) is None
    assert list(trusted_keys()) == [key.key_id]
    opened = load_signing_key()
    assert opened is not None and opened.public == key.public
    with pytest.raises(ConfigError, match="is not replaced"):
        make_key(keys / "signing.pem")


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_key_that_was_killed_between_its_two_files_is_finished_by_the_next_call(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its public half was nowhere, no key was trusted, and `keys new` refused the file that was there."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("components.signing.keys.write_atomic", killed)
        make_key(keys / "signing.pem")
    assert trusted_keys() == {}
    key = make_key(keys / "signing.pem")
    assert list(trusted_keys()) == [key.key_id]
    with pytest.raises(ConfigError, match="is not replaced"):
        make_key(keys / "signing.pem")


def test_a_rotation_that_was_killed_while_it_made_its_key_trusts_it_all_the_same(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key that was left signed everything, and no signature of it counted."""
    make_key(keys / "signing.pem")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("components.signing.keys.write_atomic", killed)
        rotation_key()
    assert rotation_key().key_id in trusted_keys()


def test_a_rotation_that_two_finish_leaves_its_key_where_it_signs(keys: Path) -> None:
    """The second one put the new key among the withdrawn ones, and no key signed any more."""
    former = make_key(keys / "signing.pem")
    with rotating():
        following = rotation_key()
        assert take_over(following) == take_over(following)
    signing = load_signing_key()
    assert signing is not None and signing.key_id == following.key_id != former.key_id
    assert list(trusted_keys()) == [following.key_id]


def test_a_lock_for_reading_is_taken_of_a_file_that_may_be_read(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS refuses it of one that is open for writing alone, and nothing could be promoted on such a home."""
    make_key(keys / "signing.pem")
    monkeypatch.setattr("components.settings.locked", lambda handle, **_: handle.readable() or pytest.fail("NFS refuses it"))
    with not_rotating():
        assert (keys / ".rotating").is_file()


@pytest.mark.parametrize("number", [None, errno.EPERM, errno.ENOTSUP])
def test_of_two_that_make_a_key_at_once_one_is_refused_and_nothing_half_is_left(
    number: int | None, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, real = make_key(keys / "other.pem").path.read_bytes(), os.link

    def link(source: Path, target: Path) -> None:
        Path(target).write_bytes(written)  # the other one comes first
        if number is not None:
            raise OSError(number, os.strerror(number))
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(ConfigError, match=r"signing\.pem exists; a key that signed releases is not replaced"):
        make_key(keys / "signing.pem")
    assert (keys / "signing.pem").read_bytes() == written
    assert [path.name for path in keys.iterdir() if path.name.startswith(".")] == []
    if number is None:
        return
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(number, os.strerror(number))))  # a disk without hard links
    assert exposure(make_key(keys / "third.pem").path) is None


def test_a_signed_release_keeps_its_digest_and_names_what_it_vouches_for(candidate: Path, keys: Path) -> None:
    before = open_artifact(candidate).digest
    key = make_key(keys / "signing.pem")
    assert sign_release(candidate) == key.key_id
    assert verify(candidate, before).digest == before
    written = (candidate / SIGNATURE).read_bytes()
    sign_release(candidate)
    assert (candidate / SIGNATURE).read_bytes() == written
    signed = check_release(candidate, trusted_keys())
    assert signed is not None and (signed.key_id, signed.trusted) == (key.key_id, True)
    statement = json.loads(base64.b64decode(read_json(candidate / SIGNATURE)["payload"]))
    subjects = {subject["name"]: subject["digest"]["sha256"] for subject in statement["subject"]}
    assert subjects["manifest.json"] == file_sha256(candidate / "manifest.json")
    assert subjects["retriever release"] == before
    assert subjects["retriever-index/1"] == open_artifact(candidate.parent / "index").digest
    assert statement["predicate"]["buildDefinition"]["resolvedDependencies"][0] == {"name": "toy", "digest": {"sha256": "d" * 64}}


def test_the_provenance_names_every_model_that_a_release_was_made_with(candidate: Path, keys: Path) -> None:
    make_key(keys / "signing.pem")

    def with_models(content: dict[str, Any]) -> None:
        content["base_models"] = {"query_tower": {"name": "acme/llm", "digest": "hub", "revision": "c0ffee"}}
        judge = {"judge": "acme/cross-encoder", "judge_digest": "1" * 64}
        content["lineage"][0]["attributes"] = {**judge, "generator": "writer"}
        content["lineage"].append({**content["lineage"][0], "digest": "8" * 64, "name": "older", "attributes": {}})
        content["earlier_flows"] = {"flow-0": {"code_revision": "unknown", "code_digest": "4" * 64}, "flow-1": {}}

    rewrite(candidate, with_models)
    sign_release(candidate)
    statement = json.loads(base64.b64decode(read_json(candidate / SIGNATURE)["payload"]))
    used = {entry["name"]: entry for entry in statement["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert used["acme/llm"]["digest"] == {"gitCommit": "c0ffee"} and used["acme/cross-encoder"]["digest"] == {"sha256": "1" * 64}
    assert used["writer"] == {"name": "writer", "uri": "urn:scalingnote:model:writer"}  # a resource has a digest or an address
    assert used["toy: files"]["digest"] == {"sha256": "s" * 64}
    assert used["older"]["digest"] == {"sha256": "8" * 64}
    assert used["code of the earlier flow flow-0"]["digest"] == {"sha256": "4" * 64} and "code of the earlier flow flow-1" not in used


def test_the_envelope_is_that_of_dsse(candidate: Path, keys: Path) -> None:
    """Checked by hand as the specification says, not with the code that made it."""
    make_key(keys / "signing.pem")
    sign_release(candidate)
    envelope = read_json(candidate / SIGNATURE)
    kind, payload = envelope["payloadType"].encode(), base64.b64decode(envelope["payload"])
    message = b" ".join([b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload])
    public = form.load_pem_public_key(next((keys / "trusted").glob("*.pem")).read_bytes())
    assert isinstance(public, Ed25519PublicKey)
    public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), message)
    assert json.loads(payload)["_type"] == "https://in-toto.io/Statement/v1"


def test_a_signature_by_another_key_is_refused_by_name(
    candidate: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = make_key(keys / "signing.pem"), make_key(tmp_path / "mallory" / "signing.pem")
    monkeypatch.setenv(KEY, str(other.path))
    sign_release(candidate)
    with pytest.raises(ArtifactError, match=f"by the key {other.key_id[:16]}, which is not trusted. Trusted keys: {own.key_id[:16]}"):
        check_release(candidate, trusted_keys())
    untold = check_release(candidate, {})
    assert untold is not None and not untold.trusted and "nothing here says whether to trust" in str(untold)
    monkeypatch.setenv(TRUSTED_VARIABLE, str(public_file(other)))
    assert str(check_release(candidate, trusted_keys())).endswith("a trusted key")


def test_an_unsigned_release_fails_where_keys_are_trusted(candidate: Path, keys: Path) -> None:
    make_key(keys / "signing.pem")
    with pytest.raises(ArtifactError, match="keys sign"):
        check_release(candidate, trusted_keys())


def test_a_signature_does_not_move_to_another_release(candidate: Path, keys: Path) -> None:
    make_key(keys / "signing.pem")
    sign_release(candidate)
    manifest = read_json(candidate / "manifest.json")
    manifest["counts"]["queries"] += 1
    write_json(candidate / "manifest.json", manifest)
    with pytest.raises(ArtifactError, match="about other content than is there now"):
        check_release(candidate, trusted_keys())


def test_a_changed_byte_of_a_signature_is_found_without_any_trusted_key(candidate: Path, keys: Path) -> None:
    make_key(keys / "signing.pem")
    sign_release(candidate)
    path = candidate / SIGNATURE
    whole = path.read_bytes()
    for position in range(0, len(whole), 11):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(ArtifactError):
            check_release(candidate, {})


def test_half_a_character_in_a_signature_is_refused_in_a_sentence(candidate: Path) -> None:
    """Whoever writes the files could stop every rotation of the keys so: it ended in an unexpected failure at that release."""
    (candidate / SIGNATURE).write_bytes(b'{"payloadType": "\\ud800"}')
    with pytest.raises(ArtifactError, match="it holds half a character"):
        check_release(candidate, {})


@pytest.mark.parametrize(
    "change",
    [
        lambda envelope: envelope.update(payloadType="text/plain"),
        lambda envelope: envelope.pop("payloadType"),
        lambda envelope: envelope.update(signatures=[]),
        lambda envelope: envelope.update(signatures={}),
        lambda envelope: envelope.update(signatures=["sig"]),
        lambda envelope: envelope.update(signatures=envelope["signatures"] * 33),
        lambda envelope: envelope["signatures"][0].pop("sig"),
        lambda envelope: envelope["signatures"][0].pop("keyid"),
        lambda envelope: envelope["signatures"][0].update(public_key=None),
        lambda envelope: envelope["signatures"][0].update(sig=base64.b64encode(b"short").decode()),
        lambda envelope: envelope.update(payload=7),
    ],
)
def test_a_malformed_envelope_is_refused(candidate: Path, keys: Path, change: Callable[[dict[str, Any]], object]) -> None:
    make_key(keys / "signing.pem")
    sign_release(candidate)
    envelope = read_json(candidate / SIGNATURE)
    change(envelope)
    write_json(candidate / SIGNATURE, envelope)
    with pytest.raises(ArtifactError):
        check_release(candidate, trusted_keys())


def test_what_dsse_allows_is_accepted(candidate: Path, keys: Path, tmp_path: Path) -> None:
    """Further signatures, of kinds that are not known here too, fields that are not known, and key ids of other tools."""
    own, other = make_key(keys / "signing.pem"), make_key(tmp_path / "other" / "signing.pem")
    sign_release(candidate)
    envelope = read_json(candidate / SIGNATURE)
    payload, (entry,) = base64.b64decode(envelope["payload"]), envelope["signatures"]
    another = {"keyid": "of-another-tool", "sig": base64.urlsafe_b64encode(other.sign(pae(payload))).decode()}
    unknown = {"sig": base64.b64encode(b"some ECDSA signature").decode(), "cert": "-----BEGIN CERTIFICATE-----"}
    plain = {"sig": entry["sig"]}
    accepted = (
        {**envelope, "note": "x", "signatures": [entry, another, unknown]},
        {**envelope, "signatures": [unknown, another, {**entry, "extension": {"kind": "x"}}]},
        {**envelope, "signatures": [another, plain]},
        {**envelope, "payload": base64.urlsafe_b64encode(payload).decode(), "signatures": [{**plain, "keyid": "of-another-tool"}]},
    )
    for changed in accepted:
        write_json(candidate / SIGNATURE, changed)
        signed = check_release(candidate, trusted_keys())
        assert signed is not None and (signed.key_id, signed.trusted) == (own.key_id, True)


def test_signatures_that_do_not_count_do_not_count_together(candidate: Path, keys: Path, tmp_path: Path) -> None:
    own, other = make_key(keys / "signing.pem"), make_key(tmp_path / "other" / "signing.pem")
    sign_release(candidate)
    envelope = read_json(candidate / SIGNATURE)
    (entry,) = envelope["signatures"]
    foreign = base64.b64encode(other.sign(pae(base64.b64decode(envelope["payload"])))).decode()
    public = base64.b64encode(other.public).decode()
    refused: dict[str, list[dict[str, Any]]] = {
        "which is not trusted": [{"keyid": other.key_id, "public_key": public, "sig": foreign}, {"keyid": own.key_id, "sig": foreign}],
        "does not fit": [{**entry, "sig": foreign}, {"keyid": own.key_id, "sig": foreign}],
        "fits no trusted key": [{"keyid": own.key_id, "sig": foreign}],
        "carries another": [{**entry, "public_key": public}],
    }
    for reason, signatures in refused.items():
        write_json(candidate / SIGNATURE, {**envelope, "signatures": signatures})
        with pytest.raises(ArtifactError, match=reason):
            check_release(candidate, trusted_keys())
    write_json(candidate / SIGNATURE, {**envelope, "signatures": [{"sig": entry["sig"]}]})
    with pytest.raises(ArtifactError, match="fits no trusted key"):
        check_release(candidate, {})  # nothing here says by whom


def test_a_record_is_not_shown_as_signed_by_a_key_that_is_only_named_there(keys: Path, tmp_path: Path) -> None:
    own, other = make_key(keys / "signing.pem"), make_key(tmp_path / "other" / "signing.pem")
    (record,) = chain((True,))
    named = {"keyid": other.key_id, "sig": record["signature"]["signatures"][0]["sig"]}
    with_name = {**record, "signature": {**record["signature"], "signatures": [*record["signature"]["signatures"], named]}}
    assert signed_by(record) == signed_by(with_name) == [own.key_id]
    assert signed_by({**record, "to_version": 9}) == ["nobody: the signature does not fit"]
    assert signed_by({"sequence": 1}) == []
    both = {**record, "signature": {**record["signature"], "signatures": [named, *record["signature"]["signatures"]]}}
    assert check_records([both], trusted_keys()).startswith("1 of 1 records signed")


def test_a_wrong_missing_or_needless_password_is_told_apart(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD, "right")
    make_key(keys / "signing.pem")
    assert b"ENCRYPTED" in (keys / "signing.pem").read_bytes()
    assert load_signing_key() is not None
    monkeypatch.setenv(PASSWORD, "wrong")
    with pytest.raises(ConfigError, match="is wrong or the file is damaged"):
        load_signing_key()
    monkeypatch.delenv(PASSWORD)
    with pytest.raises(ConfigError, match="is encrypted; put its password into"):
        load_signing_key()
    make_key(keys / "plain.pem")
    monkeypatch.setenv(KEY, str(keys / "plain.pem"))
    monkeypatch.setenv(PASSWORD, "right")
    with pytest.raises(ConfigError, match="is not encrypted, but a password was given"):
        load_signing_key()


def test_a_file_that_is_no_key_is_refused(keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = make_key(keys / "signing.pem")
    letter, torn, foreign = tmp_path / "letter.pem", tmp_path / "torn.pem", tmp_path / "rsa.pem"
    letter.write_text("Dear Sir")
    torn.write_bytes(key.path.read_bytes()[:60] + b"!" + key.path.read_bytes()[61:])
    kinds = (form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    foreign.write_bytes(rsa.generate_private_key(65537, 2048).private_bytes(*kinds))
    wrong = {letter: "not a private key", torn: "the file is damaged", foreign: "another kind", tmp_path / "none.pem": "cannot be read"}
    for path, message in wrong.items():
        monkeypatch.setenv(KEY, str(path))
        with pytest.raises(ConfigError, match=message):
            load_signing_key()


def test_trusted_keys_that_are_none_are_refused(keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = make_key(keys / "signing.pem")
    (keys / "trusted" / "private.pem").write_bytes(key.path.read_bytes())
    with pytest.raises(ConfigError, match=r"private\.pem holds no ed25519 public key"):
        trusted_keys()
    monkeypatch.setenv(TRUSTED_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="does not exist"):
        trusted_keys()
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv(TRUSTED_VARIABLE, str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match=r"holds no \*\.pem file"):
        trusted_keys()


def test_a_key_that_others_may_read_is_warned_of(keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_key(keys / "signing.pem").path.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        assert load_signing_key() is not None
    assert "chmod 600" in caplog.text and "mode 644" in caplog.text


def chain(signed: tuple[bool, ...]) -> list[dict[str, Any]]:
    """Records as the store makes them, some of them signed with the configured key."""
    made, sign = [], record_signer()
    assert sign is not None
    for number, with_key in enumerate(signed, 1):
        record: dict[str, Any] = {"retriever": "retriever", "sequence": number, "action": "promote", "to_version": number}
        made.append({**record, **({"signature": sign(record)} if with_key else {}), "digest": f"d{number}"})
    return made


def test_a_signed_record_vouches_for_those_before_it(keys: Path) -> None:
    make_key(keys / "signing.pem")
    assert check_records(chain((False, True, True)), trusted_keys()).startswith("2 of 3 records signed")
    assert check_records([], trusted_keys()).startswith("unsigned")
    for signed in ((True, False), (False,)):
        with pytest.raises(ArtifactError, match=f"record {len(signed)} is not signed"):
            check_records(chain(signed), trusted_keys())
        check_records(chain(signed), {})


def test_a_changed_or_foreign_record_is_refused_by_number(keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_key(keys / "signing.pem")
    records = chain((True, True))
    records[1]["to_version"] = 9
    with pytest.raises(ArtifactError, match="record 2: The signature is about other content"):
        check_records(records, trusted_keys())
    other = make_key(tmp_path / "other.pem")
    monkeypatch.setenv(KEY, str(other.path))
    monkeypatch.setenv(TRUSTED_VARIABLE, str(public_file(other)))
    foreign = chain((True,))
    monkeypatch.delenv(TRUSTED_VARIABLE)
    with pytest.raises(ArtifactError, match=r"record 1: It is signed by the key .* not trusted"):
        check_records(foreign, trusted_keys())
    with pytest.raises(ConfigError, match="is not among the trusted keys"):
        record_signer()  # found before anything is written
    monkeypatch.delenv(KEY)
    assert check_records([*foreign, *chain((False, True))[1:]], trusted_keys()).startswith("2 of 2 records signed")
