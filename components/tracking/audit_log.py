"""The audit log of a tracking server: one JSON line for every mutating call, each with the digest of the line before it.

An entry that is edited, left out or moved breaks the chain at its place. The head file beside the log (number and digest of the newest
entry) shows that the end was cut off. Who may write both files can write a new chain: promotion records therefore carry the digest of
the entry they rest on, and a signed record cannot follow.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components import settings
from components.artifacts import canonical_json, digest_of, open_plain, open_private, read_bounded
from components.errors import ArtifactError
from components.settings import without_user
from components.text import one_line
from components.tracking.store import TrackingError, is_server, translated

SCHEMA_VERSION = 1
ENDPOINT = "/ajax-api/2.0/scalingnote/audit"
STATE_ENDPOINT = ENDPOINT + "/state"
_BLOCK = 16_384
_FIELDS = re.compile(rb'"digest":"([0-9a-f]{64})",.*?"previous":(?:"([0-9a-f]{64})"|null),.*?"sequence":([0-9]{1,18}),', re.DOTALL)
Outcome = Literal["ok", "refused", "failed"]


class AuditEntry(BaseModel):
    """One mutating call: who asked for what, from where, and what came of it. `user` is None for one who was not authenticated."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = SCHEMA_VERSION
    sequence: int = Field(ge=1)
    at: str
    user: str | None
    roles: tuple[str, ...] = ()
    method: str
    path: str
    action: str
    subject: dict[str, str] = Field(default_factory=dict)
    address: str | None = None
    user_agent: str | None = None
    status: int
    outcome: Outcome
    previous: str | None
    digest: str

    def is_of(self, model: str, version: int | None = None) -> bool:
        """Whether the call was about `model`, and about its `version` when one is given."""
        return self.subject.get("model") == model and (version is None or self.subject.get("version") == str(version))


class Head(BaseModel):
    """Number and digest of the newest entry."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sequence: int = Field(ge=1)
    digest: str


def append_entry(path: Path, fields: Mapping[str, Any]) -> AuditEntry:
    """Append one entry; `sequence`, `at`, `previous` and `digest` are set here. Reads the last line alone, whatever the log's length.

    Processes wait for each other. An entry is on the disk when this returns; one that a kill tore is taken back by the next call.
    Raises ArtifactError when the end of the log is not the head that was written with it: nothing is appended to a damaged log.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path), open_private(path) as log:
        last = _tail(path, log)
        entry = _next(last, fields)
        log.seek(0, os.SEEK_END)
        log.write(canonical_json(entry.model_dump()) + b"\n")
        log.flush()
        os.fsync(log.fileno())
        _write_head(path, Head(sequence=entry.sequence, digest=entry.digest))
    return entry


def check_end(path: Path) -> None:
    """Raise ArtifactError when `append_entry` would refuse, OSError when the log cannot be written. Removes a torn last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path), open_private(path) as log:
        _tail(path, log)


def read_audit(path: Path) -> list[AuditEntry]:
    """All entries, oldest first; raises ArtifactError that names the entry where the log was edited, reordered or cut."""
    head = read_head(path)  # first: a writer only adds, so the log is never older than this
    try:
        with open_plain(path) as log:
            content = log.read()
    except FileNotFoundError:
        raise ArtifactError(f"The audit log {path} is missing; restore it from a backup.") from None
    return verified(content.split(b"\n")[:-1], head, str(path))


class LogState(NamedTuple):
    """What is wrong with a log (empty: nothing), and the digest of the entry that was asked for; None where it holds no such entry."""

    fault: str
    digest: str | None


def state_of(path: Path, place: str, entry: int = 0) -> LogState:
    """Whether the log at `path` is whole, and the digest of its `entry`, in a tenth of the time of `read_audit`; never raises.

    Every line is hashed and held against the line before it. Only a log in which something does not fit is read in full, to name it;
    `place` is how the sentence calls it.
    """
    try:
        head = read_head(path)  # before the log, which only grows
        digests = _chained(path)
        if digests is None or head is None or digests[head.sequence - 1 : head.sequence] != [head.digest]:
            lines = _content(path).split(b"\n")[:-1]
            digests = [found.digest for found in verified(lines, head, place)]
    except ArtifactError as error:
        return LogState(str(error), None)
    except OSError as error:
        return LogState(f"{place}: the log cannot be read ({error.strerror}). See who may read it.", None)
    return LogState("", digests[entry - 1] if 0 < entry <= len(digests) else None)


def _chained(path: Path) -> list[str] | None:
    """Digest of each line, where every one fits its line and names the one before; None where one does not, or the log is not there."""
    digests: list[str] = []
    try:
        log = open_plain(path)
    except FileNotFoundError:
        return None
    with log:
        for line in log:
            if not line.endswith(b"\n"):
                break  # torn by a kill
            found = _FIELDS.search(line)
            if found is None or (found[2] or b"").decode() != (digests[-1] if digests else "") or int(found[3]) != len(digests) + 1:
                return None
            digest = found[1].decode()
            if hashlib.sha256(line[: found.start()] + line[found.end(1) + 2 : -1]).hexdigest() != digest:
                return None
            digests.append(digest)
    return digests


def _content(path: Path) -> bytes:
    """All of a log; empty where it is not there."""
    try:
        with open_plain(path) as log:
            return log.read()
    except FileNotFoundError:
        return b""


def require_ended(path: Path) -> None:
    """Raise ArtifactError for bytes after the last line: what a killed server left, which its next start removes, or somebody wrote."""
    rest = _content(path).rpartition(b"\n")[2]
    if rest:
        raise ArtifactError(
            f"{path}: after the last entry stand {len(rest):,} bytes that are none. A server that is killed leaves such; its next start "
            "(scalingnote ui --auth) removes them. Keep a copy first: somebody may have written there."
        )


def verified(lines: Iterable[bytes], head: Head | None, place: str) -> list[AuditEntry]:
    """The entries of `lines`, if they are one unbroken chain that reaches `head`; raises ArtifactError otherwise."""
    entries: list[AuditEntry] = []
    for number, line in enumerate(lines, 1):
        entries.append(_linked(line, number, entries[-1].digest if entries else None, place))
    if head is None:
        raise ArtifactError(f"{place}: the head file is missing, so entries may have been cut off. Restore it from a backup.")
    if head.sequence > len(entries):
        raise ArtifactError(f"{place}: entries {len(entries) + 1} to {head.sequence} were cut off. Restore the log from a backup.")
    if head.sequence and entries[head.sequence - 1].digest != head.digest:
        raise ArtifactError(f"{place}: entry {head.sequence} is not the one that the head file names. Restore the log from a backup.")
    return entries


def creation_of(entries: Sequence[AuditEntry], model: str, version: int) -> AuditEntry | None:
    """The call that made a version, a copy of the UI's "Promote model" too; None when the log does not know it.

    The newest one counts: a number is used again when the newest version was deleted.
    """
    made = (entry for entry in reversed(entries) if entry.action == "create_model_version" and entry.outcome == "ok")
    return next((entry for entry in made if entry.is_of(model, version)), None)


def actions_on(entries: Sequence[AuditEntry], model: str, version: int) -> list[AuditEntry]:
    """All calls about one version, refused ones too, oldest first."""
    return [entry for entry in entries if entry.is_of(model, version)]


def head_file(path: Path) -> Path:
    """The file beside a log that names its newest entry."""
    return path.with_name(path.name + ".head")


def read_head(path: Path) -> Head | None:
    """The head of the log at `path`, None when there is none; raises ArtifactError for one that was edited."""
    try:
        content = read_bounded(head_file(path), _BLOCK)
    except FileNotFoundError:
        return None
    if (head := _parse_head(content)) is None:
        raise ArtifactError(f"{head_file(path)} was edited: it does not hold the head of an audit log. Restore it from a backup.")
    return head


def head_bytes(head: Head) -> bytes:
    """The content of a head file, in one line."""
    return canonical_json(head.model_dump())


def _parse_head(content: bytes) -> Head | None:
    try:
        head = Head.model_validate_json(content)
    except ValidationError:
        return None
    return head if head_bytes(head) == content else None


def _next(last: AuditEntry | None, fields: Mapping[str, Any]) -> AuditEntry:
    chained = {
        "sequence": last.sequence + 1 if last else 1,
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "previous": last.digest if last else None,
    }
    open_entry = AuditEntry.model_validate({**_as_written(fields), **chained, "digest": ""})
    return open_entry.model_copy(update={"digest": digest_of(open_entry.model_dump(exclude={"digest"}))})


def _as_written(value: Any) -> Any:
    """A value with half characters, which JSON can spell and no file takes, as their escapes: they keep no act out of the log."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {_as_written(key): _as_written(inner) for key, inner in value.items()}
    return tuple(map(_as_written, value)) if isinstance(value, list | tuple) else value


def _linked(line: bytes, number: int, previous: str | None, place: str) -> AuditEntry:
    """The entry in `line`, if it is number `number`, whole, and follows `previous`."""
    entry = _parse(line)
    if entry is None:
        raise ArtifactError(f"{place}: entry {number} was edited. Restore the log from a backup.")
    if entry.sequence != number or entry.previous != previous:
        raise ArtifactError(
            f"{place}: in place of entry {number} stands entry {entry.sequence}: entries were cut out or reordered. Restore the log."
        )
    return entry


def _parse(line: bytes) -> AuditEntry | None:
    """The entry in `line`, None when a byte of it was changed: its digest is that of the line as it is written, without the digest."""
    try:
        entry = AuditEntry.model_validate_json(line)
    except ValidationError:
        _refuse_newer(line)
        return None
    if entry.schema_version > SCHEMA_VERSION:
        _refuse_newer(line)
    plain = line.replace(b'"digest":"%b",' % entry.digest.encode(), b"", 1)  # keys are sorted, and none before it holds an object
    return entry if hashlib.sha256(plain).hexdigest() == entry.digest else None


def _refuse_newer(line: bytes) -> None:
    """Raise ArtifactError for an entry of a later version of this program, whose fields are not known."""
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError):
        return
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ArtifactError(f"The audit log has entries of schema version {version}; this program reads up to {SCHEMA_VERSION}. Update it.")


def _tail(path: Path, log: Any) -> AuditEntry | None:
    """The last entry, which must be the head's or follow it; bytes after the last line end are what a kill left, and are removed."""
    size = log.seek(0, os.SEEK_END)
    line, end = _last_line(log, size)
    if end < size:
        log.truncate(end)
    head, entry = read_head(path), _parse(line) if line else None
    if not _meets(entry, head) or (line and entry is None):
        raise ArtifactError(f"The audit log {path} was cut or edited; nothing is added to it. Restore it from a backup.")
    return entry


def _meets(last: AuditEntry | None, head: Head | None) -> bool:
    """Whether the log's last entry is the head's, or was written after it by a process that was killed before it wrote the head."""
    if last is None or head is None:
        return (last is None and head is None) or (last is not None and last.sequence == 1)
    before = {last.sequence: last.digest, last.sequence - 1: last.previous}
    return last.sequence >= head.sequence and before.get(head.sequence, head.digest) == head.digest


def _last_line(log: Any, size: int) -> tuple[bytes, int]:
    """The last complete line without its end, and the offset behind it."""
    start, content = size, b""
    while start > 0 and content.count(b"\n") < 2:
        step = min(_BLOCK, start)
        start -= step
        log.seek(start)
        content = log.read(step) + content
    end = content.rfind(b"\n") + 1
    return content[:end].rstrip(b"\n").rpartition(b"\n")[2], start + end


def _write_head(path: Path, head: Head) -> None:
    """Without fsync: after a power cut the head may be older than the log, never newer, and the log was synced."""
    beside = path.with_name(path.name + ".head.tmp")
    with open_private(beside) as file:
        file.truncate(0)
        file.write(head_bytes(head))
    os.replace(beside, head_file(path))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open_private(path.with_name(path.name + ".lock")) as lock:
        settings.locked(lock)
        yield


def trail() -> list[AuditEntry] | None:
    """The verified audit of the current tracking store; None when there is none, as with the embedded store that no server ever showed.

    A server is asked for its own log, which only some roles may read (TrackingError otherwise); `SCALINGNOTE_AUDIT_LOG` names a file
    that is read instead. Raises ArtifactError for a damaged log.
    """
    uri, path = settings.tracking_uri(), settings.audit_log()
    if kept_by_server():
        return _from_server(uri)
    return read_audit(path) if path.exists() or head_file(path).exists() else None


def kept_by_server() -> bool:
    """Whether a server is asked for the log, not a file on this machine."""
    return is_server(settings.tracking_uri()) and not os.environ.get("SCALINGNOTE_AUDIT_LOG")


def current_state(entry: int = 0) -> LogState | None:
    """`state_of` the log of the current tracking store, which a server gives to everybody who signs in; None where there is no log.

    Also None where a server does not say: one of before it could, or one without sign-in. Raises TrackingError for one that is gone.
    """
    uri, path = settings.tracking_uri(), settings.audit_log()
    if kept_by_server():
        return _state_from_server(uri, entry)
    return state_of(path, str(path), entry) if path.exists() or head_file(path).exists() else None


@translated("ask for the state of the audit log")
def _state_from_server(uri: str, entry: int) -> LogState | None:
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    answer = http_request(get_default_host_creds(uri), STATE_ENDPOINT, "GET", params={"entry": entry}, raise_on_status=False)
    try:
        found = json.loads(answer.text) if answer.status_code == 200 else None
        return None if found is None else LogState(str(found["fault"]), found["digest"])
    except (ValueError, KeyError, TypeError):
        return None


@translated("read the audit log")
def _from_server(uri: str) -> list[AuditEntry] | None:
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    answer = http_request(get_default_host_creds(uri), ENDPOINT, "GET")
    if answer.status_code == 404:
        return None
    if answer.status_code in (401, 403):
        raise TrackingError(f"The server {uri} does not show its audit log to this user: {_message(answer.text)}")
    if answer.status_code != 200:
        raise TrackingError(f"The server {uri} could not give its audit log (status {answer.status_code}): {_message(answer.text)}")
    first, _, rest = answer.content.partition(b"\n")
    head = _parse_head(first)
    if head is None and answer.content.strip() and not rest.startswith(b"{"):
        raise TrackingError(
            f"What answered for the server {without_user(uri)} gave something else than its audit log, such as the page of a proxy "
            f"that asks to sign in: {one_line(answer.text[:80])!r}. Let calls to {ENDPOINT} through, or name the server itself."
        )
    return verified(rest.split(b"\n")[:-1], head, f"{uri} (audit log)")


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, TypeError, KeyError):
        return text[:300]
