"""A release as a folder that others can check: OpenSSF Model Signing 1.0, made for the tool `model_signing`.

https://github.com/ossf/model-signing-spec/blob/main/spec/v1.0.md. The folder holds the release and the four parts that it pins, as whole
artifacts, so `scalingnote verify --folder` reads it too (but for a decision against a champion, whose files are not there), and
`model.sig`: a Sigstore bundle with a DSSE envelope over the sha256 of every file. That specification knows elliptic curves P-256 to P-521
alone and our keys are ed25519, so the bundle is signed with a P-256 key that is made for it and thrown away, and the signing key
certifies that one (X.509, RFC 5280 and 8410). A third party trusts the certificate of the signing key, which is always the same bytes,
and gets it on another way than the folder.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import MANIFEST, SIGNATURE, canonical_json, file_sha256, read_manifest, verify, write_atomic, write_json
from components.errors import ArtifactError, ConfigError
from components.promotion.verification import verify_release
from components.release.open import open_pinned, resolve
from components.signing.keys import KEY_VARIABLE, SigningKey, usable_key
from components.signing.statements import PAYLOAD_TYPE, STATEMENT_TYPE, pae

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.x509 import Certificate, CertificateBuilder

BUNDLE = "model.sig"
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
# What the specification leaves out by itself is named as well, with the bundle.
IGNORED = (".git", ".gitattributes", ".github", ".gitignore", BUNDLE)
_SINCE = datetime(2020, 1, 1, tzinfo=UTC)
_FOR_EVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)  # RFC 5280, 4.1.2.5: no date of expiry; a key ends by being withdrawn


def export_signed(name: str, ref: str, target: Path) -> tuple[str, str, dict[str, str]]:
    """Write the release `ref` and its parts into the new or empty folder `target` and sign them.

    Returns its name, the id of the key, and its folders with their digests.

    The bundle is written last: a folder without it is not finished. Raises ConfigError without a signing key, with one that is not
    trusted and for a folder that holds something, ArtifactError for a release that `verify` does not find right, PromotionError for a
    reference that names nothing.
    """
    key = usable_key()
    if key is None:
        raise ConfigError(f"There is no signing key to sign with. Make one with `scalingnote keys new`, or name one in {KEY_VARIABLE}.")
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise ConfigError(f"{target} is there already and not empty. Give a new or empty folder for the signed release.")
    model, version = resolve(name, ref)  # once: another promotion may come before the copy
    place = f"{model.rpartition('-')[2]}/{version}"
    if failed := [check for check in verify_release(name, place) if not check.ok]:
        findings = "; ".join(f"{check.name}: {check.detail}" for check in failed)
        raise ArtifactError(f"{place} of '{name}' does not verify, so nobody is asked to trust it. {findings}")
    release = open_pinned(name, place)
    parts = {"release": release.artifact} | {role: getattr(release, role) for role, _ in release.manifest.pins.items()}
    for role, artifact in parts.items():
        _copy(artifact.path, target / role, artifact.digest)
    write_json(target / BUNDLE, _bundle(target, key))
    return release.title, key.key_id, {role: artifact.digest for role, artifact in parts.items()}


def write_certificate(path: Path, key: SigningKey) -> None:
    """Write the certificate of the signing key (PEM), which third parties trust. Raises ConfigError when `path` holds something else."""
    from cryptography.hazmat.primitives.serialization import Encoding

    content = _certificate(key).public_bytes(Encoding.PEM)
    if path.exists() and path.read_bytes() != content:
        raise ConfigError(f"{path} is there already and is not the certificate of the key {key.key_id[:16]}. Give another file.")
    write_atomic(path, content)


def _copy(source: Path, target: Path, digest: str) -> None:
    """Exactly the files of the manifest, with it and its signature, checked where they are now."""
    for entry in (*read_manifest(source).files, MANIFEST, SIGNATURE):
        if (source / entry).is_file():
            (target / entry).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / entry, target / entry)
    verify(target, digest)


def _bundle(folder: Path, key: SigningKey) -> dict[str, Any]:
    """The Sigstore bundle (v0.3) over all files below `folder`, signed with a key of its own that `key` certifies."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding

    once = ec.generate_private_key(ec.SECP256R1())
    payload = canonical_json(_statement(folder))
    signature = once.sign(pae(payload), ec.ECDSA(SHA256()))
    chain = (_certified(once.public_key(), key), _certificate(key))
    certificates = [{"rawBytes": _text(certificate.public_bytes(Encoding.DER))} for certificate in chain]
    envelope = {"payload": _text(payload), "payloadType": PAYLOAD_TYPE, "signatures": [{"sig": _text(signature), "keyid": ""}]}
    material = {"x509CertificateChain": {"certificates": certificates}, "tlogEntries": []}
    return {"mediaType": MEDIA_TYPE, "verificationMaterial": material, "dsseEnvelope": envelope}


def _statement(folder: Path) -> dict[str, Any]:
    """The in-toto statement: every file with its sha256, and one digest over all of them in order (section 6.5.1)."""
    resources = sorted(_resources(folder), key=lambda resource: resource["name"])
    root = hashlib.sha256(b"".join(bytes.fromhex(resource["digest"]) for resource in resources)).hexdigest()
    serialization = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": list(IGNORED)}
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": folder.resolve().name or "release", "digest": {"sha256": root}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {"resources": resources, "serialization": serialization},
    }


def _resources(folder: Path) -> Iterator[dict[str, str]]:
    """What the manifests say of files that were verified just now, and manifests and signatures themselves."""
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        listed = {name: entry.sha256 for name, entry in read_manifest(part).files.items()}
        own = {name: file_sha256(part / name) for name in (MANIFEST, SIGNATURE) if (part / name).is_file()}
        for name, digest in {**listed, **own}.items():
            yield {"name": f"{part.name}/{name}", "digest": digest, "algorithm": "sha256"}


def _certificate(key: SigningKey) -> Certificate:
    """The key's certificate of itself. The same key gives the same bytes, so it need not be kept."""
    from cryptography import x509

    usage = _usage(certifies=True)
    builder = _builder(f"scalingnote signing key {key.key_id[:16]}", key.private.public_key(), _SINCE, int(key.key_id[:30], 16) + 1, key)
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.private.public_key()), critical=False)
        .sign(key.private, None)
    )


def _certified(public: EllipticCurvePublicKey, key: SigningKey) -> Certificate:
    """The certificate by `key` that the key of one bundle may sign code and models, and nothing else."""
    from cryptography import x509

    builder = _builder("scalingnote release", public, datetime.now(UTC).replace(microsecond=0), x509.random_serial_number(), key)
    own = key.private.public_key()
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certifies=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(own), critical=False)
        .sign(key.private, None)
    )


def _builder(subject: str, public: Any, since: datetime, serial: int, key: SigningKey) -> CertificateBuilder:
    from cryptography import x509

    issuer = _named(f"scalingnote signing key {key.key_id[:16]}")
    builder = x509.CertificateBuilder().subject_name(_named(subject)).issuer_name(issuer).public_key(public)
    return builder.serial_number(serial).not_valid_before(since).not_valid_after(_FOR_EVER)


def _named(text: str) -> Any:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _usage(certifies: bool) -> Any:
    from cryptography import x509

    names = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(digital_signature=not certifies, key_cert_sign=certifies, **dict.fromkeys(names, False))


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
