"""A release that is exported for third parties: they accept what was released, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from components import settings
from components.errors import ArtifactError, ConfigError, PromotionError
from components.promotion.approval import approve
from components.promotion.model_signing import BUNDLE, export_signed, write_certificate
from components.promotion.promote import promote
from components.promotion.record import rotate, sign_afterwards
from components.promotion.verification import verify_folder
from components.signing.keys import SigningKey, load_signing_key, make_key
from components.tracking import registry
from tests import third_party
from tests.flows.cli_world import assert_refused, done, scalingnote
from tests.unit.promotion_world import NAME, into_mlflow, make_candidate, no_smoke

ROLES = {"release", "query_tower", "document_tower", "query_encoder", "index"}


@pytest.fixture
def champion(home: Path, tmp_path: Path) -> SigningKey:
    """release/1, promoted and signed; the key that signed it."""
    key = make_key(settings.keys_folder() / "signing.pem")
    make_candidate(tmp_path / "made", into_mlflow())
    approve(NAME, 1, "Ada")
    sign_afterwards(NAME, "release/1")
    promote(NAME, no_smoke)
    return key


@pytest.fixture
def exported(champion: SigningKey, tmp_path: Path) -> tuple[Path, Path]:
    """The signed folder, and the certificate that its receiver has from elsewhere."""
    folder, certificate = tmp_path / "out" / "given away", tmp_path / "certificate.pem"
    assert export_signed(NAME, "champion", folder)[:2] == ("release/1", champion.key_id)
    write_certificate(certificate, champion)
    return folder, certificate


def accepted(folder: Path, certificate: Path) -> bool:
    """What sections 8.2 to 8.5 of the specification ask of a verifier; as `model_signing` does it, where that is installed."""
    try:
        found = _accepts(folder, x509.load_pem_x509_certificate(certificate.read_bytes()))
    except (InvalidSignature, ValueError, AssertionError, KeyError):
        found = False
    if tool := third_party.tool("model_signing"):
        command = [tool, "verify", "certificate", folder, "--signature", folder / BUNDLE, "--certificate_chain", certificate]
        assert (subprocess.run(command, capture_output=True).returncode == 0) == found
    return found


def _accepts(folder: Path, trusted: x509.Certificate) -> bool:
    bundle = json.loads((folder / BUNDLE).read_text())
    assert bundle["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    chain = [base64.b64decode(one["rawBytes"]) for one in bundle["verificationMaterial"]["x509CertificateChain"]["certificates"]]
    leaf = x509.load_der_x509_certificate(chain[0])
    leaf.verify_directly_issued_by(trusted)
    assert leaf.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    assert trusted.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert trusted.not_valid_before_utc <= leaf.not_valid_before_utc <= leaf.not_valid_after_utc <= trusted.not_valid_after_utc
    envelope = bundle["dsseEnvelope"]
    kind, payload = envelope["payloadType"].encode(), base64.b64decode(envelope["payload"])
    public = leaf.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1)
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed, ec.ECDSA(SHA256()))
    return _fits(folder, json.loads(payload))


def _fits(folder: Path, statement: dict[str, Any]) -> bool:
    assert (statement["_type"], statement["predicateType"]) == (
        "https://in-toto.io/Statement/v1",
        "https://model_signing/signature/v1.0",
    )
    resources = statement["predicate"]["resources"]
    assert [one["name"] for one in resources] == sorted(one["name"] for one in resources)
    root = hashlib.sha256(b"".join(bytes.fromhex(one["digest"]) for one in resources)).hexdigest()
    assert statement["subject"] == [{"name": folder.name, "digest": {"sha256": root}}]
    ignored = statement["predicate"]["serialization"]["ignore_paths"]
    files = [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] not in ignored]
    there = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return there == {one["name"]: one["digest"] for one in resources}


def test_a_third_party_accepts_a_release_by_the_certificate_of_its_key(exported: tuple[Path, Path], champion: SigningKey) -> None:
    folder, certificate = exported
    assert {path.name for path in folder.iterdir()} == ROLES | {BUNDLE}
    assert accepted(folder, certificate)
    again = certificate.with_name("again.pem")
    write_certificate(again, champion)
    assert again.read_bytes() == certificate.read_bytes()  # so that a third party keeps it once
    assert all(check.ok for check in verify_folder(NAME, folder))  # our own command reads it too


def _change_a_byte(folder: Path) -> None:
    path = folder / "query_encoder" / "manifest.json"
    path.write_bytes(path.read_bytes() + b" ")


def _add_code(folder: Path) -> None:
    (folder / "index" / "sitecustomize.py").write_text("print('hello')")


def _hide_code(folder: Path) -> None:
    (folder / "release" / ".hidden").write_text("print('hello')")


def _take_away(folder: Path) -> None:
    (folder / "release" / "signature.dsse.json").unlink()


def _exchange(folder: Path) -> None:
    (folder / "query_tower").rename(folder / "kept")
    (folder / "document_tower").rename(folder / "query_tower")
    (folder / "kept").rename(folder / "document_tower")


def _say_less(folder: Path) -> None:
    bundle = json.loads((folder / BUNDLE).read_text())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    statement["predicate"]["serialization"]["ignore_paths"].append("index")
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    (folder / BUNDLE).write_text(json.dumps(bundle))


CHANGES: tuple[Callable[[Path], None], ...] = (_change_a_byte, _add_code, _hide_code, _take_away, _exchange, _say_less)


def test_a_third_party_refuses_whatever_was_changed(exported: tuple[Path, Path], tmp_path: Path) -> None:
    folder, certificate = exported
    write_certificate(tmp_path / "other.pem", make_key(tmp_path / "mallory.pem"))
    assert not accepted(folder, tmp_path / "other.pem")
    for change in CHANGES:
        copy = Path(shutil.copytree(folder, tmp_path / change.__name__ / folder.name))
        assert accepted(copy, certificate)
        change(copy)
        assert not accepted(copy, certificate), change.__name__


def test_after_a_rotation_the_new_key_signs_and_its_certificate_is_another(exported: tuple[Path, Path], tmp_path: Path) -> None:
    rotate()
    key = load_signing_key()
    assert key is not None
    with pytest.raises(ConfigError, match="is not the certificate of the key"):
        write_certificate(exported[1], key)
    export_signed(NAME, "release/1", tmp_path / "second")
    write_certificate(tmp_path / "new.pem", key)
    assert accepted(tmp_path / "second", tmp_path / "new.pem")
    assert not accepted(tmp_path / "second", exported[1])
    assert accepted(*exported)  # what was given away stays what it was; its receiver drops a certificate by hand


def test_what_does_not_verify_is_not_signed_for_others(champion: SigningKey, tmp_path: Path) -> None:
    report = registry.artifact_folder(f"{NAME}-release", 1) / "report.html"
    report.write_text("all is well")
    with pytest.raises(ArtifactError, match=r"does not verify, so nobody is asked to trust it\. files: .*report\.html was changed"):
        export_signed(NAME, "champion", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_release_that_no_trusted_key_signed_is_not_signed_for_others(champion: SigningKey, tmp_path: Path) -> None:
    make_candidate(tmp_path / "unsigned", into_mlflow(), {"student": 0.71, "teacher": 0.72, "bm25": 0.40, "student_untrained": 0.30})
    with pytest.raises(ArtifactError, match="It is not signed"):
        export_signed(NAME, "candidate/2", tmp_path / "out")


def test_without_a_key_or_with_one_that_is_not_trusted_nothing_is_exported(
    champion: SigningKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALINGNOTE_SIGNING_KEY", str(make_key(tmp_path / "foreign.pem").path))
    with pytest.raises(ConfigError, match="is not among the trusted keys"):
        export_signed(NAME, "champion", tmp_path / "out")
    monkeypatch.delenv("SCALINGNOTE_SIGNING_KEY")
    shutil.rmtree(settings.keys_folder())
    with pytest.raises(ConfigError, match="no signing key to sign with"):
        export_signed(NAME, "champion", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_commands_say_what_third_parties_do_and_refuse_mistakes(champion: SigningKey, tmp_path: Path) -> None:
    out = tmp_path / "with blanks"
    said = scalingnote("export", "--signed", out)
    command = shlex.join(["model_signing", "verify", "certificate", str(out), "--signature", str(out / BUNDLE)])
    assert said.status == 0 and command in said.out, said.err
    written = Path(done("keys", "certificate")["certificate"])
    assert written.parent == settings.keys_folder() and accepted(out, written)
    assert_refused(scalingnote("export", "--signed", out), 2, "not empty")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "not empty" in scalingnote("export", "--signed", tmp_path / "link").err
    assert "one of the three" in scalingnote("export", "--signed", out, "--to", tmp_path / "vectors").err
    (tmp_path / "letter.pem").write_text("Dear Sir")
    assert_refused(scalingnote("keys", "certificate", "--to", tmp_path / "letter.pem"), 2, "is not the certificate")
    with pytest.raises(PromotionError, match="names no release"):
        export_signed(NAME, "everything", tmp_path / "other")
