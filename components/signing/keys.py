"""Keys that sign releases and promotion records (ed25519, RFC 8032), and the public keys whose signatures count.

The signing key is a PEM file (PKCS 8): `SCALINGNOTE_SIGNING_KEY`, else `keys/signing.pem` in the home folder. Trusted public keys are PEM
files: `SCALINGNOTE_TRUSTED_KEYS` (one file, or a folder of `*.pem`), else `keys/trusted/`. A key is named by its id, the sha256 of its
32 raw bytes, so no file name has to be believed.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components import settings
from components.artifacts import UNFINISHED, read_bounded, write_atomic
from components.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_VARIABLE = "SCALINGNOTE_SIGNING_KEY"
PASSWORD_VARIABLE = "SCALINGNOTE_SIGNING_KEY_PASSWORD"
TRUSTED_VARIABLE = "SCALINGNOTE_TRUSTED_KEYS"
NEXT_FILE = "signing.next.pem"
_MOST_BYTES = 100_000  # of a key in PEM form
# Points of small order of the curve: a signature by such a key fits texts that nobody signed.
_PRIME = 2**255 - 19
_EIGHTH = int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little")
_WEAK = frozenset({0, 1, _PRIME - 1, _EIGHTH, _PRIME - _EIGHTH})
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SigningKey:
    """A private key that was opened, and where it came from."""

    path: Path
    private: Ed25519PrivateKey

    @property
    def public(self) -> bytes:
        """The 32 raw bytes of the public key."""
        return self.private.public_key().public_bytes_raw()

    @property
    def key_id(self) -> str:
        """Name of the key: sha256 (hex) of its public bytes."""
        return key_id(self.public)

    def sign(self, message: bytes) -> bytes:
        """64 bytes; the same message and key always give the same ones."""
        return self.private.sign(message)


@dataclass(frozen=True)
class TrustedKey:
    """A public key (32 raw bytes) whose signatures count, and its file."""

    path: Path
    public: bytes


def key_id(public: bytes) -> str:
    """sha256 (hex) of the raw public key."""
    return hashlib.sha256(public).hexdigest()


def signing_key_path() -> Path | None:
    """The file of the signing key; None when no key is configured. A file that `SCALINGNOTE_SIGNING_KEY` names need not be there."""
    if named := os.environ.get(KEY_VARIABLE):
        return settings.expanded(named)
    own = settings.keys_folder() / "signing.pem"
    return own if own.exists() or own.is_symlink() else None


def load_signing_key() -> SigningKey | None:
    """The configured key, None when there is none; a file that others may read is warned of.

    Raises ConfigError for a missing file, one that holds no ed25519 private key, and a password that is wrong, missing or not needed.
    """
    path = signing_key_path()
    if path is None:
        return None
    private = _private_key(path)
    if warning := exposure(path):
        _log.warning(warning)
    return SigningKey(path, private)


def usable_key() -> SigningKey | None:
    """The configured key, whose signatures count here; None where nothing is signed and no key is trusted.

    Asked before anything is written: a record that no trusted key signs stops its release from being served. Raises ConfigError for a key
    that is not among the trusted ones, and when keys are trusted and none signs.
    """
    key, trusted = load_signing_key(), trusted_keys()
    if key is None and trusted:
        raise ConfigError(
            f"Keys are trusted here ({', '.join(name[:16] for name in sorted(trusted))}), so what is not signed would not be served, and "
            f"there is no signing key. Nothing was changed. Name it in {KEY_VARIABLE}; where it is lost, make another (scalingnote keys "
            "new), and trust its public key wherever something is served or verified."
        )
    if key is not None and trusted and key.key_id not in trusted:
        raise ConfigError(
            f"The signing key {key.key_id[:16]} is not among the trusted keys: its signatures do not count, and a champion whose promotion "
            "record carries one is not served. Nothing was signed or changed. Trust its public key first, or sign with a trusted key."
        )
    return key


def exposure(path: Path) -> str | None:
    """A warning when others than its owner may read or change a private key."""
    state = path.stat()
    mode = state.st_mode & 0o777
    if state.st_uid not in (0, os.geteuid()):
        return f"The private key {path} belongs to another user of this machine (number {state.st_uid}), who can read and change it."
    if not mode & 0o077:
        return None
    return f"The private key {path} can be used by others on this machine (mode {mode:o}). Run: chmod 600 {path}"


def trusted_keys() -> dict[str, TrustedKey]:
    """Key id -> trusted public key; empty when none is configured. Raises ConfigError for a file or folder that holds none."""
    named = os.environ.get(TRUSTED_VARIABLE)
    place = settings.expanded(named) if named else settings.keys_folder() / "trusted"
    if named and not place.exists():
        raise ConfigError(
            f"{TRUSTED_VARIABLE} names {place}, which does not exist. Give a file with a public key, or a folder of *.pem files."
        )
    if place.is_symlink() and not place.exists():
        raise ConfigError(
            f"{place} is a link that leads nowhere, as where a disk is not mounted: nobody can say which keys are trusted. Put the folder "
            "there; to go without trusted keys, remove the link."
        )
    files = sorted(place.glob("*.pem")) if place.is_dir() else [place] if place.is_file() else []
    if named and not files:
        raise ConfigError(f"{TRUSTED_VARIABLE} names {place}, which holds no *.pem file: nothing could be checked. Put a public key there.")
    if not files and place.exists():
        raise ConfigError(
            f"{place} holds no *.pem file, so no signature would count and nothing could be checked. Put a public key there. To go without "
            "trusted keys, remove the folder: then anybody's signature counts."
        )
    if place.is_dir() and (leading_out := next((path for path in files if not _lies_in(path, place)), None)):
        raise ConfigError(
            f"{leading_out} is a link out of the folder of trusted keys, so whoever owns what it leads to chooses who is trusted. Put the "
            "file itself there."
        )
    if open_to_all := next((path for path in files if path.exists() and path.stat().st_mode & 0o002), None):
        raise ConfigError(
            f"{open_to_all} can be changed by everybody on this machine, who would choose so who is trusted. Look at it, then run: "
            f"chmod o-w {open_to_all}"
        )
    if files and (folder := _open_folder(place)) is not None:
        raise ConfigError(
            f"Everybody on this machine may put files into {folder}, and would choose so who is trusted. Look at what lies there, then "
            f"run: chmod o-w {folder}"
        )
    found = (TrustedKey(path, _public_key(path)) for path in files)
    return {key_id(key.public): key for key in found}


def _open_folder(place: Path) -> Path | None:
    """The folder in which everybody may put a trusted key, or another in the place of `place`; None where nobody else may.

    In a folder with the sticky bit, as /tmp, nobody replaces what is another's. A Kubernetes secret is mounted read-only, with mode 1777.
    """
    for folder in (place, place.parent):
        mode = folder.stat().st_mode
        writable = folder.is_dir() and mode & 0o002 and not os.statvfs(folder).f_flag & os.ST_RDONLY
        if writable and (folder == place or not mode & stat.S_ISVTX):
            return folder
    return None


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether what `path` leads to lies in `folder`; links within it are how Kubernetes mounts a secret."""
    return path.resolve().is_relative_to(folder.resolve())


def make_key(path: Path) -> SigningKey:
    """Make a key pair: the private key in `path` (mode 600), the public one in `public_file`.

    The private key is encrypted when `SCALINGNOTE_SIGNING_KEY_PASSWORD` is set. Of a pair that was killed half-way the public key is
    written now. Raises ConfigError when `path` holds something else.
    """
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    with suppress(ConfigError):  # what is no key, or cannot be opened, is not replaced either
        kept = SigningKey(path, _private_key(path)) if path.exists() else None
        if kept is not None and not public_file(kept).exists():
            _publish(kept)
            return kept
    private, password = Ed25519PrivateKey.generate(), _password()
    locked = form.BestAvailableEncryption(password) if password else form.NoEncryption()
    key = SigningKey(path, private)
    try:
        _write_secret(path, private.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, locked))
    except FileExistsError:
        said = f"{path} exists; a key that signed releases is not replaced. Move it away, or give another file with --to FILE."
        raise ConfigError(said) from None
    _publish(key)
    return key


def _publish(key: SigningKey) -> None:
    from cryptography.hazmat.primitives import serialization as form

    public = key.private.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    write_atomic(public_file(key), public)


def rotation_key() -> SigningKey:
    """The key that takes over from `keys/signing.pem`, made once and trusted from then on; a rotation that was killed finds it again.

    Raises ConfigError where this home has no key of its own to rotate, trusts none, or other places say which signs and which are trusted.
    """
    own, following = settings.keys_folder() / "signing.pem", settings.keys_folder() / NEXT_FILE
    if named := next((variable for variable in (KEY_VARIABLE, TRUSTED_VARIABLE) if os.environ.get(variable)), None):
        raise ConfigError(
            f"{named} is set, and a rotation changes the key and the trusted keys of the home folder alone. By hand: make a key (keys new "
            "--to FILE), trust its public key, sign what is served with it (keys sign), then take the former public key away."
        )
    if own.exists() and not (settings.keys_folder() / "trusted").exists():
        raise ConfigError(
            f"No keys are trusted here ({settings.keys_folder() / 'trusted'} is not there), so a rotation would trust the new key alone, "
            "and what the present one has signed would not be served. Nothing was changed. `scalingnote keys new` trusts the present key; "
            "see with `scalingnote verify champion` that it is served then, and rotate after that."
        )
    if not own.exists() and not following.exists():
        raise ConfigError(f"There is no key in {settings.keys_folder()} to rotate. Make one with `scalingnote keys new`.")
    if own.exists():
        _private_key(own)  # one that cannot be opened is found before anything is signed
    if not following.exists():
        return make_key(following)
    kept = SigningKey(following, _private_key(following))
    _publish(kept)  # a kill may have come before, and what an untrusted key signs would not be served
    return kept


def take_over(following: SigningKey) -> list[Path]:
    """Make `following` the signing key of the home; the former keys go to `keys/withdrawn`. Returns the files there.

    Each step is one rename, and doing it again after a kill finishes it.
    """
    folder = settings.keys_folder()
    own, withdrawn = folder / "signing.pem", folder / "withdrawn"
    withdrawn.mkdir(mode=0o700, exist_ok=True)
    # By what it holds: somebody may have put it there under another name. Read before anything is moved: one that cannot be stops it here.
    trusted = {public: key_id(_public_key(public))[:16] for public in sorted((folder / "trusted").glob("*.pem"))}
    if own.exists() and (former := SigningKey(own, _private_key(own))).key_id != following.key_id:
        own.replace(withdrawn / f"{former.key_id[:16]}.private.pem")
    former_ids = {kept.name.partition(".")[0] for kept in withdrawn.glob("*.private.pem")} - {following.key_id[:16]}
    for public, name in trusted.items():
        if name in former_ids:
            public.replace(withdrawn / f"{name}.pem")
    if following.path.exists():
        following.path.replace(own)  # last: as long as it has the other name, the rotation is not finished
    return sorted(withdrawn.glob("*.pem"))


@contextmanager
def rotating() -> Iterator[None]:
    """One rotation of this home at a time: the second of two would take the first one's new key for the former."""
    folder = settings.keys_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / ".rotating").open("a") as handle:
        settings.locked(handle)
        yield


@contextmanager
def not_rotating() -> Iterator[None]:
    """No rotation of this home goes on as long as the block runs: what was signed with the former key in its midst would not count."""
    folder = settings.keys_folder()
    try:
        handle = (folder / ".rotating").open("a+") if folder.is_dir() else None  # NFS locks for reading only what may be read
    except OSError:  # a folder that is only read; then whoever may write it rotates
        handle = None
    with handle or nullcontext():
        if handle is not None and not settings.locked(handle, wait=False, shared=True):
            _log.warning("Waiting: the signing key is being rotated.")
            settings.locked(handle, shared=True)
        yield


def public_file(key: SigningKey) -> Path:
    """Where `make_key` puts the public half: among the trusted keys of the home folder, or beside a private key that lies elsewhere."""
    if key.path.parent == settings.keys_folder():
        return key.path.parent / "trusted" / f"{key.key_id[:16]}.pem"
    return key.path.with_suffix(".public.pem")


def _write_secret(path: Path, content: bytes) -> None:
    """Readable by its owner alone from the first moment on, and whole: raises FileExistsError for what is there, also since a moment."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = path.with_name(f".{os.getpid()}-{secrets.token_hex(8)}{UNFINISHED}")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        try:
            os.link(beside, path)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            if os.path.lexists(path):  # a file system without hard links
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
            beside.rename(path)
    finally:
        beside.unlink(missing_ok=True)


def _password() -> bytes | None:
    return os.environ.get(PASSWORD_VARIABLE, "").encode() or None


def _private_key(path: Path) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content, password = _read(path), _password()
    if b"PRIVATE KEY" not in content:
        raise ConfigError(
            f"{path} is not a private key in PEM form. Make one with `scalingnote keys new`, or name another in {KEY_VARIABLE}."
        )
    try:
        found: Any = load_pem_private_key(content, password)
    except TypeError:  # one was given and not needed, or the other way round
        needed = "is not encrypted, but a password was given; unset" if password else "is encrypted; put its password into"
        raise ConfigError(f"The key {path} {needed} {PASSWORD_VARIABLE}.") from None
    except (ValueError, UnsupportedAlgorithm):
        wrong = f"its password ({PASSWORD_VARIABLE}) is wrong or the file is damaged" if password else "the file is damaged"
        raise ConfigError(f"The key {path} cannot be opened: {wrong}.") from None
    if not isinstance(found, Ed25519PrivateKey):
        raise ConfigError(f"{path} holds a key of another kind ({type(found).__name__}); ed25519 is expected: `scalingnote keys new`.")
    return found


def _public_key(path: Path) -> bytes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = _read(path)
    try:
        found: Any = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        found = None
    if not isinstance(found, Ed25519PublicKey):
        raise ConfigError(f"{path} holds no ed25519 public key in PEM form. Remove it from the trusted keys, or put the public key there.")
    if content.count(b"-----BEGIN") > 1:
        raise ConfigError(f"{path} holds more than one key, and only the first would count. Give each a file of its own.")
    if int.from_bytes(found.public_bytes_raw(), "little") % 2**255 % _PRIME in _WEAK:
        raise ConfigError(f"{path} holds a key that anybody can sign for, as no program makes one. Remove it from the trusted keys.")
    return found.public_bytes_raw()


def _read(path: Path) -> bytes:
    try:
        return read_bounded(path, _MOST_BYTES)
    except ArtifactError as error:
        raise ConfigError(f"{error} Expected a key in PEM form there. Check {KEY_VARIABLE} and {TRUSTED_VARIABLE}.") from None
    except OSError as error:
        raise ConfigError(f"The key {path} cannot be read ({error.strerror}). Check {KEY_VARIABLE} and {TRUSTED_VARIABLE}.") from None
