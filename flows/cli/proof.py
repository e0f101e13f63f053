"""Commands that prove: verify, keys, replay."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flows.cli.output import only_result_on_stdout, retriever_name, show

if TYPE_CHECKING:
    from components.signing.keys import SigningKey


def verify(options: argparse.Namespace) -> int:
    """Check everything a release stands on."""
    from components.promotion.verification import verify_folder, verify_release

    name = retriever_name(options)
    checks = verify_folder(name, options.folder, options.ref) if options.folder else verify_release(name, options.ref)
    good = all(check.ok for check in checks)
    lines = [f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}" for check in checks]
    lines.append(f"{options.ref}: {'verified' if good else 'NOT verified'}, {sum(c.ok for c in checks)} of {len(checks)} checks hold.")
    show(options, {"ref": options.ref, "verified": good, "checks": [asdict(check) for check in checks]}, "\n".join(lines))
    return 0 if good else 6


def keys(options: argparse.Namespace) -> None:
    """Make a key, list the keys, sign a release that was registered unsigned, change to a new key, or write its certificate."""
    {"new": _new_key, "list": _list_keys, "sign": _sign, "rotate": _rotate, "certificate": _certificate}[options.action](options)


def _new_key(options: argparse.Namespace) -> None:
    from components import settings
    from components.signing.keys import KEY_VARIABLE, PASSWORD_VARIABLE, make_key, public_file

    key = make_key(options.to or settings.keys_folder() / "signing.pem")
    lines = [f"Private key: {key.path} (readable by you alone)", f"Public key:  {public_file(key)}", f"Key id:      {key.key_id}"]
    if options.to:
        lines.append(
            f"To sign with it: {KEY_VARIABLE}={key.path}; to trust it, copy the public key to {settings.keys_folder() / 'trusted'}."
        )
    else:
        lines.append("From now on releases and promotion records are signed, and `verify` here counts signatures by trusted keys alone.")
        lines.append("A champion that was promoted before is not served until it is signed as well: scalingnote keys sign champion")
    lines.append(f"Give the public key to whoever verifies. {PASSWORD_VARIABLE}, set when a key is made, encrypts it.")
    show(options, {"private": key.path, "public": public_file(key), "key_id": key.key_id}, "\n".join(lines))


def _list_keys(options: argparse.Namespace) -> None:
    from components.signing.keys import exposure, load_signing_key, trusted_keys

    own, trusted = load_signing_key(), trusted_keys()
    lines = [_own_line(own)]
    if own and (warning := exposure(own.path)):
        lines.append(f"Warning: {warning}")
    lines += [f"trusted: {name[:16]}  {key.path}" for name, key in trusted.items()]
    if not trusted:
        lines.append("trusted: none; `verify` says who signed, but anybody's signature counts. `scalingnote keys new` makes a key.")
    if own and trusted and own.key_id not in trusted:
        lines.append("Warning: the signing key is not among the trusted keys, so what it signs does not verify here.")
    signing: dict[str, Any] | None = {"key_id": own.key_id, "file": own.path} if own else None
    found = {"signing": signing, "trusted": {name: key.path for name, key in trusted.items()}}
    show(options, found, "\n".join(lines))


def _own_line(own: SigningKey | None) -> str:
    return f"signing: {own.key_id[:16]}  {own.path}" if own else "signing: none; releases and records stay unsigned"


def _sign(options: argparse.Namespace) -> None:
    from components.promotion.vouch import vouch

    done = vouch(retriever_name(options), options.ref)
    line = f"{done.model}/{done.version} signed by {done.key_id[:16]}."
    if done.sequence is not None:
        line += f" Promotion record {done.sequence}, signed too, vouches for those before it."
    show(options, {"release": f"{done.model}/{done.version}", "key_id": done.key_id, "record": done.sequence}, line)


def _rotate(options: argparse.Namespace) -> None:
    from components.promotion.vouch import rotate

    done = rotate()
    lines = [f"From now on {done.key_id[:16]} signs. Signed again with it: {', '.join(done.signed) or 'nothing, as nothing was signed'}."]
    lines += [f"Left as it is: {line}" for line in done.left]
    lines.append("The former keys are withdrawn, and their signatures count no more here. Take their public keys away from all who verify,")
    lines.append("give them the new one, and destroy the former private key when nobody needs it:")
    lines += [f"  {path}" for path in done.withdrawn]
    show(options, {"key_id": done.key_id, "signed": done.signed, "left": done.left, "withdrawn": done.withdrawn}, "\n".join(lines))


def _certificate(options: argparse.Namespace) -> None:
    from components import settings
    from components.errors import ConfigError
    from components.promotion.model_signing import write_certificate
    from components.signing.keys import usable_key

    if (key := usable_key()) is None:
        raise ConfigError("There is no signing key yet, so there is nothing to certify. Make one with `scalingnote keys new`.")
    path = options.to or settings.keys_folder() / f"{key.key_id[:16]}.certificate.pem"
    write_certificate(path, key)
    lines = (
        f"Certificate of the key {key.key_id[:16]}: {path}",
        "Whoever trusts it accepts what `scalingnote export --signed` wrote with this key. Ask them to drop it when the key is withdrawn.",
    )
    show(options, {"certificate": path, "key_id": key.key_id}, "\n".join(lines))


def replay(options: argparse.Namespace) -> int:
    """Measure a release again, and on demand build it again."""
    from flows.replay import replay as run_again

    with only_result_on_stdout(options):
        found = run_again(retriever_name(options), options.ref, options.data, options.build)
    show(options, found.to_json(), found.text())
    return 0 if found.outcome != "different" else 1
