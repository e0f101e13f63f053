"""Artifacts and their manifests: written data first, manifest last, each atomically.

A folder is an artifact if and only if its `manifest.json` verifies. The manifest lists every file with its sha256, so its own
digest identifies the whole artifact: equal inputs give equal digests, and no time or machine name enters it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.errors import ArtifactError
from components.text import visible

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
SIGNATURE = "signature.dsse.json"  # of the manifest, so it cannot be listed in it: an artifact keeps its digest when it is signed
Scalar = str | int | float | bool | None
MOST_JSON = 64_000_000  # bytes: the manifest of an artifact of 400,000 files
UNFINISHED = ".tmp"  # ends the hidden name that a file has as long as it is written
_CLOCK_TICK = 10**8  # nanoseconds: of two changes that are closer than this, a file system may give both the same time


class FileEntry(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sha256: str
    bytes: int


class Manifest(BaseModel):
    """What an artifact folder holds, and the artifacts it was made from (`parents`: role -> digest)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = SCHEMA_VERSION
    kind: str
    files: dict[str, FileEntry]
    counts: dict[str, int] = Field(default_factory=dict)
    parents: dict[str, str] = Field(default_factory=dict)
    attributes: dict[str, Scalar] = Field(default_factory=dict)

    @property
    def digest(self) -> str:
        """sha256 (hex) of the canonical JSON of this manifest."""
        return digest_of(self.model_dump())


class Artifact(BaseModel):
    """A finished artifact: where it lies, what it is, and its digest. Small enough to pass between steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: str
    path: Path
    digest: str
    counts: dict[str, int] = Field(default_factory=dict)
    parents: dict[str, str] = Field(default_factory=dict)
    attributes: dict[str, Scalar] = Field(default_factory=dict)

    @property
    def space_id(self) -> str:
        """Identity of the vector space; raises ArtifactError for kinds that have none."""
        value = self.attributes.get("space_id")
        if not isinstance(value, str):
            raise ArtifactError(f"{self.path}: an artifact of kind '{self.kind}' carries no space_id.")
        return value


class DatasetArtifact(Artifact):
    """Documents, queries and judgements as Parquet tables."""

    kind: Literal["dataset"] = "dataset"


class EncoderArtifact(Artifact):
    """A tower (adapter plus digest of its base) or a student, with its encoding contract and probes."""

    kind: Literal["encoder"] = "encoder"


class VectorShards(Artifact):
    """Vectors in Parquet shards: (doc_id, content_hash, vector fp16)."""

    kind: Literal["vectors"] = "vectors"


class IndexArtifact(Artifact):
    """A FAISS index with the document ids of its rows."""

    kind: Literal["index"] = "index"


class EvalReport(Artifact):
    """Metrics per query and in the mean, latency, and the systems compared."""

    kind: Literal["evaluation"] = "evaluation"


class Release(Artifact):
    """The manifest that pins query encoder, document encoder and index as one release."""

    kind: Literal["release"] = "release"


def by_role(inputs: Any) -> dict[str, Artifact]:
    """The artifacts in a dataclass by the names of its fields, without those that are None: what a step was made from."""
    found = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    return {role: artifact for role, artifact in found.items() if artifact is not None}


def parents_of(inputs: Mapping[str, Artifact]) -> dict[str, str]:
    """The digest of each artifact by its role, as a manifest names its parents."""
    return {role: artifact.digest for role, artifact in inputs.items()}


_KINDS: dict[str, type[Artifact]] = {
    "dataset": DatasetArtifact,
    "encoder": EncoderArtifact,
    "vectors": VectorShards,
    "index": IndexArtifact,
    "evaluation": EvalReport,
    "release": Release,
}


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: the same value always gives the same bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str).encode()


def digest_of(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_atomic(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write beside, fsync, rename: a reader sees the old file or the new one, never a part. `mode` is narrowed by the umask."""
    with written_atomically(path, mode) as handle:
        handle.write(content)


def remove_files(folder: Path) -> None:
    """Remove the files at the top of `folder`, which a killed attempt left there."""
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()


@contextmanager
def written_atomically(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """`write_atomic` for what is too large to hold: the block writes into the file, which takes its name when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Containers that share a folder have the same process ids, and a name may be as long as names can be already.
    beside = path.with_name(f".{os.getpid()}-{secrets.token_hex(8)}{UNFINISHED}")
    try:
        try:
            opened = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except OSError as error:  # nobody has asked for the hidden name
            raise OSError(error.errno, error.strerror, str(path)) from None
        with os.fdopen(opened, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def open_private(path: Path) -> BinaryIO:
    """A file to append to and read, which its owner alone may read. The wider mode of an older version is closed.

    Raises ArtifactError for a link, which would have another file written to, and for a pipe, a folder or a device.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise ArtifactError(f"{path} is no plain file, and nothing is written into what stands in its place. Move it away.") from None
    state = os.fstat(handle)
    if not stat.S_ISREG(state.st_mode):
        os.close(handle)
        raise ArtifactError(f"{path} is no plain file, and nothing is written into what stands in its place. Move it away.")
    if state.st_mode & 0o077 and state.st_uid == os.geteuid():
        os.fchmod(handle, 0o600)
    return os.fdopen(handle, "a+b")


def is_stdout(path: Path) -> bool:
    """Whether a user who names `path` means standard output."""
    return str(path) in ("-", "/dev/stdout")


def write_named(path: Path, content: bytes) -> None:
    """Write where a user asked: to standard output for `-`, into a device or pipe, to the file behind a link, else atomically."""
    if is_stdout(path):
        print(content.decode(), end="", flush=True)
    elif path.exists() and not path.is_file():
        with path.open("wb") as handle:
            handle.write(content)
    else:
        write_atomic(path.resolve() if path.is_symlink() else path, content)


def open_plain(path: Path) -> BinaryIO:
    """A plain file to read, however large; raises ArtifactError for a folder, a pipe or a device, for which a reader would wait."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a path from a database may hold a zero byte
        raise ArtifactError(f"'{visible(str(path))}' names no file: {error}.") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ArtifactError(f"{path} is no plain file. Put the file itself there.")
    return os.fdopen(handle, "rb")


def read_bounded(path: Path, most: int) -> bytes:
    """Content of a plain file of at most `most` bytes, so that no file of others fills the memory or is waited for.

    Raises ArtifactError for a larger one, a folder, a pipe or a device, and OSError as opening does.
    """
    with open_plain(path) as file:
        stated = os.fstat(file.fileno()).st_size
        content = file.read(most + 1) if stated <= most else b""
    if max(stated, len(content)) > most:
        size = max(stated, len(content))
        raise ArtifactError(f"{path} has {size:,} bytes; at most {most:,} are read, as no command writes more. Restore it from a backup.")
    return content


def strict_json(content: bytes) -> Any:
    """The value in JSON bytes; raises ValueError for what is none, for a field that stands there twice, and for halves of characters."""
    return json.loads(content.decode("utf-8"), object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the field '{name[:60]}' stands there twice")
        found[name] = value
    return found


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically."""
    write_atomic(path, readable_json(value))


def readable_json(value: Any) -> bytes:
    """UTF-8 JSON for people, the one form in which `write_json` writes a value."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, default=str) + "\n").encode()


def read_json(path: Path, most: int = MOST_JSON) -> Any:
    """Read a JSON file of at most `most` bytes; raises ArtifactError when it is missing, broken, larger, or names a field twice."""
    try:
        return strict_json(read_bounded(path, most))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing; run the step that makes it again.") from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not valid JSON ({error}); remove its folder and run the step again.") from None


def read_versioned(path: Path, newest: int) -> Any:
    """Read a JSON file that states its `schema_version`; raises ArtifactError when that is above `newest`, as `read_json` besides.

    An older version, or none, is left to the reader: its fields have defaults for what was added since.
    """
    raw = read_json(path)
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > newest:
        raise ArtifactError(f"{path} has schema version {version}; this program reads up to {newest}. Update scalingnote.")
    return raw


def seal(
    folder: Path,
    kind: str,
    *,
    counts: Mapping[str, int] | None = None,
    parents: Mapping[str, str] | None = None,
    attributes: Mapping[str, Scalar] | None = None,
    known: Mapping[str, FileEntry] | None = None,
) -> Artifact:
    """Hash every file of `folder` and write its manifest last; the folder is an artifact from then on.

    `known`: files that were hashed just now under another name, as those that are linked from an artifact that was verified.
    """
    files = {}
    for path in _members(folder):
        name = path.relative_to(folder).as_posix()
        _fsync(path)
        files[name] = (known or {}).get(name) or FileEntry(sha256=file_sha256(path), bytes=path.stat().st_size)
    manifest = Manifest(
        kind=kind,
        files=files,
        counts=dict(counts or {}),
        parents=dict(parents or {}),
        attributes=dict(attributes or {}),
    )
    write_json(folder / MANIFEST, manifest.model_dump())
    return _artifact(folder, manifest)


def linked(source: str | Path, target: str | Path) -> str | Path:
    """A second name for a file of an artifact, into which nothing writes; a copy where the file system has no links. Returns `target`."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`; raises ArtifactError when it is missing, broken or of a newer schema."""
    raw = read_versioned(folder / MANIFEST, SCHEMA_VERSION)
    try:
        return Manifest.model_validate(raw, strict=True)  # a number as text would give the same digest
    except ValidationError as error:
        raise ArtifactError(f"{folder / MANIFEST} is not a manifest: {error.errors()[0]['msg']}.") from None


def open_artifact(folder: Path) -> Artifact:
    """Read an artifact's manifest without hashing its files (see `verify`)."""
    return _artifact(folder, read_manifest(folder))


def verify(folder: Path, expected_digest: str | None = None) -> Artifact:
    """Hash every file against the manifest; raises ArtifactError that names the first difference."""
    manifest = _expected_manifest(folder, expected_digest)
    require_written(folder / MANIFEST)
    for name, entry in manifest.files.items():
        actual = file_sha256(folder / name)
        if actual != entry.sha256:
            raise ArtifactError(
                f"{folder}: the file {name} was changed (expected sha256 {entry.sha256[:12]}, found {actual[:12]}). "
                "Restore it or run the step again."
            )
    return _artifact(folder, manifest)


def require_written(path: Path) -> None:
    """Raise ArtifactError unless a JSON file holds the very bytes that `write_json` makes of its value.

    A digest over the value cannot see a changed space, an escaped letter or a key that stands there twice.
    """
    content = read_bounded(path, MOST_JSON)
    if content != readable_json(read_json(path)):
        raise ArtifactError(f"{path} was changed: it does not read as it was written. Restore it or run the step again.")


def verify_sizes(folder: Path, expected_digest: str | None = None) -> Artifact:
    """`verify` by the files' sizes alone, which takes no time for large files that were hashed when they came. Raises ArtifactError."""
    manifest = _expected_manifest(folder, expected_digest)
    for name, entry in manifest.files.items():
        actual = (folder / name).stat().st_size
        if actual != entry.bytes:
            raise ArtifactError(
                f"{folder}: the file {name} was changed (expected {entry.bytes:,} bytes, found {actual:,}). "
                "Restore it or run the step again."
            )
    return _artifact(folder, manifest)


def verify_noted(folder: Path, expected_digest: str | None, note: Path, whole: bool = False) -> Artifact:
    """`verify`, which hashes the files only when they are not as the last time: then their state decides, at no cost for large files.

    The file `note` keeps what was hashed and found right: digest of the manifest; device, inode, size, mtime and ctime of each file. A
    file that is written to, replaced or copied has another state and is hashed. Not seen are bytes that went bad on the disk, and a
    forged note: `whole` hashes whatever the note says. Where no note can be written, every call hashes.
    """
    manifest = _expected_manifest(folder, expected_digest)
    state = _state(folder, manifest)
    if not whole and _read_note(note) == state:
        return _artifact(folder, manifest)
    artifact = verify(folder, expected_digest)
    settled = max(times[-1] for times in state["files"].values()) < time.time_ns() - _CLOCK_TICK
    if settled and _state(folder, manifest) == state:
        with suppress(OSError):
            write_json(note, {"state": state, "digest": digest_of(state)})
    return artifact


def _state(folder: Path, manifest: Manifest) -> dict[str, Any]:
    found = {name: (folder / name).stat() for name in (MANIFEST, *manifest.files)}
    files = {name: [of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns, of.st_ctime_ns] for name, of in found.items()}
    return {"folder": str(folder), "manifest": manifest.digest, "files": files}


def _read_note(note: Path) -> Any:
    """The state that a note keeps; None where there is none, or not as it was written."""
    try:
        found = read_json(note)
        return found["state"] if found["digest"] == digest_of(found["state"]) else None
    except (ArtifactError, OSError, KeyError, TypeError):
        return None


def _expected_manifest(folder: Path, expected_digest: str | None) -> Manifest:
    """The manifest, if it is the expected one and names exactly the files that are there."""
    manifest = read_manifest(folder)
    if expected_digest is not None and manifest.digest != expected_digest:
        raise ArtifactError(
            f"{folder}: expected the artifact {expected_digest[:12]}, found {manifest.digest[:12]}. "
            "It was replaced after it was registered; restore it or retrain."
        )
    for path in (folder, *folder.rglob("*")):
        _require_plain(path)
    present = {path.relative_to(folder).as_posix() for path in _members(folder)}
    if missing := [name for name in manifest.files if name not in present]:
        raise ArtifactError(f"{folder}: the file {missing[0]} is missing. Restore it or run the step again.")
    if extra := sorted(present - set(manifest.files)):
        raise ArtifactError(f"{folder}: the file {extra[0]} is not in the manifest. Remove it or run the step again.")
    return manifest


def _require_plain(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:  # the hidden name of a file that was being written
        return
    if stat.S_ISLNK(mode):
        raise ArtifactError(f"{path} is a link, and what it leads to can change. Put the file itself there.")
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ArtifactError(f"{path} is no plain file: a pipe or device, for which a reader would wait. Remove it.")


def is_complete(folder: Path) -> bool:
    """Whether `folder` is a finished, unchanged artifact."""
    try:
        verify(folder)
    except ArtifactError:
        return False
    return True


def _artifact(folder: Path, manifest: Manifest) -> Artifact:
    return _KINDS.get(manifest.kind, Artifact)(
        kind=manifest.kind,
        path=folder,
        digest=manifest.digest,
        counts=manifest.counts,
        parents=manifest.parents,
        attributes=manifest.attributes,
    )


def _members(folder: Path) -> list[Path]:
    """Files of an artifact in a fixed order; hidden files, the manifest itself and its signature do not belong to it."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(p for p in paths if p not in (folder / MANIFEST, folder / SIGNATURE) and not p.name.startswith("."))


def _fsync(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
