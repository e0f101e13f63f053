"""Commands that prove: verify, keys, replay, trace."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import ConfigError
from components.text import as_json, one_line, visible
from flows.cli.output import json_here, only_result_on_stdout, require_file, retriever_name, show, writing

if TYPE_CHECKING:
    from components.lineage.graph import Trace
    from components.signing.keys import SigningKey


FORMATS = ("text", "json", "html", "openlineage", "cyclonedx")


def add_arguments(parser: argparse.ArgumentParser, path: Callable[[str], Path], given: Callable[[str], str]) -> None:
    """What may be traced, and how it is written; `path` reads a path."""
    named = "champion, previous, candidate/N, release/N, model/NAME/N, index/N, answer:ID, or the id of a document"
    parser.add_argument("ref", help=f"{named} (document:ID where that looks like one of the others)")
    about = "release to look a document id up in (default champion)"
    parser.add_argument("--release", type=given, metavar="REF", help=about)
    parser.add_argument("--format", choices=FORMATS, help="text (default); html is a graph on one page; the last two are for other tools")
    parser.add_argument("-o", "--output", type=path, metavar="FILE", help="write there instead of to the screen")


def trace(options: argparse.Namespace) -> None:
    """Back from a release, model, index, document or answer to where it came from."""
    form = _format(options)
    if options.output:
        require_file(options.output)
        if not options.output.absolute().parent.is_dir():
            raise ConfigError(f"--output {options.output} lies in a folder that does not exist. Give a file in a folder that is there.")
    content = _written(_traced(options), form, as_json if options.output else json_here)
    if options.output is None:
        print(content if form == "html" else visible(content))
        return
    from components.artifacts import is_stdout, write_named

    with writing(options.output):
        write_named(options.output, f"{content}\n".encode())
    if is_stdout(options.output):
        return
    written = {"ref": options.ref, "format": form, "output": str(options.output), "bytes": len(content.encode()) + 1}
    show(options, written, f"{one_line(options.ref)} traced, as {form}: {options.output}")


def _format(options: argparse.Namespace) -> str:
    """--json without --format is JSON; --json with --output tells in JSON what was written."""
    if options.json and not options.output and options.format not in (None, "json"):
        raise ConfigError(f"--json prints JSON, --format {options.format} something else. Leave one of them out, or give a file with -o.")
    return options.format or ("json" if options.json else "text")


def _traced(options: argparse.Namespace) -> Trace:
    if options.ref.startswith("answer:"):
        from components.serving.answer_log import trace_answer

        if options.release:
            raise ConfigError(
                f"--release says in which release a document's id is looked up, and '{options.ref}' is none. Leave it out, or write "
                f"document:{options.ref} where a document has that id."
            )
        return trace_answer(options.ref, retriever_name(options) if options.name else None)
    from components.lineage.graph import follow

    return follow(retriever_name(options), options.ref, options.release)


def _written(found: Trace, form: str, as_text: Callable[[Any, int], str]) -> str:
    if form == "text":
        return found.text()
    if form == "html":
        from components.lineage.page import html_of

        return html_of(found)
    return as_text(_values(found, form), 2)


def _values(found: Trace, form: str) -> Any:
    if form == "openlineage":
        from components.lineage.standards import openlineage_of

        return openlineage_of(found)
    if form == "cyclonedx":
        from components.lineage.standards import cyclonedx_of

        return cyclonedx_of(found)
    return found.to_json()


# --- Commands that prove: verify, keys, replay.


def verify(options: argparse.Namespace) -> int:
    """Check everything a release stands on."""
    from components.promotion.verification import verify_folder, verify_release

    name, ref = retriever_name(options), options.ref or "champion"
    checks = verify_folder(name, options.folder, options.ref) if options.folder else verify_release(name, ref)
    good = all(check.ok for check in checks)
    # Without records nothing says that the release in a folder is, or ever was, champion.
    what = ref if options.ref or not options.folder else f"The release in {one_line(options.folder)}"
    lines = [f"{'ok  ' if check.ok else 'FAIL'}  {one_line(f'{check.name}: {check.detail}')}" for check in checks]
    lines.append(f"{what}: {'verified' if good else 'NOT verified'}, {sum(c.ok for c in checks)} of {len(checks)} checks hold.")
    place = {"folder": str(options.folder)} if options.folder else {}
    show(
        options,
        {"ref": options.ref if options.folder else ref, **place, "verified": good, "checks": [asdict(check) for check in checks]},
        "\n".join(lines),
    )
    return 0 if good else 6


def keys(options: argparse.Namespace) -> None:
    """Make a key, list the keys, sign a release that was registered unsigned, change to a new key, or write its certificate."""
    used = {"new": ("to",), "certificate": ("to",), "sign": ("ref", "name")}.get(options.action, ())
    given = {"ref": options.ref, "to": options.to, "name": options.name}
    if idle := next((value for option, value in given.items() if value is not None and option not in used), None):
        raise ConfigError(
            f"keys {options.action} does nothing with '{idle}'. A release and --name are for sign, since keys are those of a home and not "
            "of a retriever; --to FILE is for new and certificate."
        )
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
    lines += [f"trusted: {name[:16]}  {one_line(key.path)}" for name, key in trusted.items()]
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
    from components.promotion.record import sign_afterwards

    done = sign_afterwards(retriever_name(options), options.ref or "champion")
    line = f"{done.model}/{done.version} signed by {done.key_id[:16]}."
    if done.sequence is not None:
        line += f" Promotion record {done.sequence}, signed too, vouches for those before it."
    show(options, {"release": f"{done.model}/{done.version}", "key_id": done.key_id, "record": done.sequence}, line)


def _rotate(options: argparse.Namespace) -> None:
    from components.promotion.record import rotate

    done = rotate()
    lines = [f"From now on {done.key_id[:16]} signs. Signed again with it: {', '.join(done.signed) or 'nothing, as nothing was signed'}."]
    lines += [f"Left as it is: {one_line(line)}" for line in done.left]
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
