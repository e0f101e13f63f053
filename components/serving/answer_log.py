"""The log of answers: what was asked of which release and what it answered; and an answer followed back.

One JSON line an answer in `home/answers/<retriever>.jsonl`, which is appended to, and written anew by `prune_answers` alone. Queries can be
private (a patient's words), so their text is kept on request only: SCALINGNOTE_ANSWER_LOG is `off`, `ids` (the default) or `full`. With
`ids` a digest stands in the place of the text: whoever has the query can show that this answer was to it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import re
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from components import settings
from components.artifacts import digest_of, open_plain, open_private, read_json, strict_json, write_atomic
from components.errors import ArtifactError, ConfigError, DataError
from components.lineage.graph import ANSWER, Trace, checked_index, find_documents
from components.lineage.release_graph import Node, Opened, open_version, release_node
from components.release.champion import release_model, standing
from components.tracking import promotion_records as record_store

if TYPE_CHECKING:
    from components.serving.retriever import Hit


SCHEMA_VERSION = 1
SETTING = "SCALINGNOTE_ANSWER_LOG"
MODES = ("off", "ids", "full")
Mode = Literal["off", "ids", "full"]
RETENTION_DAYS = 183
SHORTEST_GAP = 90  # days without an answer that make a pruning doubt the clock
LONGEST_PAUSE = 45  # days between two prunings of a schedule, which runs once a month at least; more may be a leap of the clock
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
BLOCK = 1 << 20  # bytes read at once from the end of the log
_ID = re.compile(r"[0-9a-f]{16}(\.[0-9]{1,18})?")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


class Served(NamedTuple):
    """The release that answers: the retriever's name, the registered version, and the digest of its manifest."""

    retriever: str
    model: str
    version: int
    digest: str


class Answer(BaseModel):
    """One answer as it was given; `query` is None where its text was not kept, `query_digest` proves it all the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    schema_version: int = SCHEMA_VERSION
    at: str
    retriever: str
    model: str
    version: int
    digest: str
    query: str | None
    query_digest: str
    doc_ids: tuple[str, ...]
    scores: tuple[float, ...]


def log_mode() -> Mode:
    """What is kept of answers; raises ConfigError for an unknown setting."""
    mode = os.environ.get(SETTING) or "ids"
    if mode not in MODES:
        raise ConfigError(f"{SETTING} is '{mode}'. Expected off (no log), ids (documents without the query's text) or full.")
    return mode  # type: ignore[return-value]


def log_answers(served: Served, queries: Sequence[str], found: Sequence[Sequence[Hit]]) -> list[str]:
    """Append one answer a query and return their ids, in order; an empty list when the log is off.

    Whoever may only read the home folder gets the answers too: what is not logged is said on stderr, and the list is empty.

    The answers of one call share the start of their ids: `<16 hex digits>` of one alone, `<16 hex digits>.<number>` of several.
    """
    mode = log_mode()
    if mode == "off":
        return []
    start, now = secrets.token_hex(8), datetime.now(UTC).isoformat(timespec="milliseconds")
    ids = [start] if len(queries) == 1 else [f"{start}.{number}" for number in range(1, len(queries) + 1)]
    answers = [
        Answer(
            id=answer_id,
            at=now,
            **served._asdict(),
            query=query if mode == "full" else None,
            query_digest=query_digest(answer_id, query),
            doc_ids=tuple(hit.doc_id for hit in hits),
            scores=tuple(hit.score for hit in hits),
        )
        for answer_id, query, hits in zip(ids, queries, found, strict=True)
    ]
    try:
        _append(answers_file(served.retriever), "".join(answer.model_dump_json() + "\n" for answer in answers))
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        print(f"Not logged, since {error.filename} cannot be written ({error.strerror}). {SETTING}=off asks for no log.", file=sys.stderr)
        return []
    return ids


class Pruned(NamedTuple):
    """What a pruning removed: answers, the time of the first and the last one, and how many stay."""

    removed: int
    first: str | None
    last: str | None
    kept: int


def _days_ago(days: int) -> str:
    """The time so many days ago as the answers state theirs; before every answer where no calendar goes back so far."""
    try:
        return (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="milliseconds")
    except OverflowError:
        return ""


def prune_answers(name: str, days: int = RETENTION_DAYS, gap: bool = False) -> Pruned:
    """Remove the answers of `name` that are older than `days`, and append to `pruned_file` what was removed; an open log waits meanwhile.

    183 days is what providers and deployers of high-risk systems keep at least (EU AI Act, articles 19 and 26). The record holds no
    query: number and times of the answers, and the sha256 of their lines. Raises ConfigError for less than one day, and, without `gap`,
    where the newest that would go is far older than what comes after it: a clock that jumped ahead would remove what has to be kept.
    Prunings that saw the clock go on since then, as those of a schedule, need no `gap`. Raises ArtifactError for a line that is no answer.
    """
    if days < 1:
        raise ConfigError(f"Answers are kept for at least one day; got {days}.")
    path, oldest = answers_file(name), _days_ago(days)
    if not path.exists():
        return Pruned(0, None, None, 0)
    with open_private(path) as log:
        settings.locked(log)
        since = _watched_since(name)
        log.seek(0)
        lines = [line for line in log.read().split(b"\n") if line.endswith(b"}")]
        times = [_parsed(path, line).at for line in lines]
        old = [line for line, at in zip(lines, times, strict=True) if at < oldest]
        gone = sorted(at for at in times if at < oldest)
        if not old:
            return Pruned(0, None, None, len(lines))
        found = Pruned(len(old), gone[0], gone[-1], len(lines) - len(old))
        if not gap:
            _require_no_gap(name, found, min((at for at in times if at >= oldest), default=""), (max(days, SHORTEST_GAP), since))
        digest = hashlib.sha256(b"".join(line + b"\n" for line in old)).hexdigest()
        record = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "days": days, **found._asdict(), "sha256": digest}
        _append(pruned_file(name), json.dumps(record) + "\n")
        write_atomic(path, b"".join(line + b"\n" for line, at in zip(lines, times, strict=True) if at >= oldest), 0o600)
    return found


def _require_no_gap(name: str, found: Pruned, following: str, watched: tuple[int, datetime]) -> None:
    """Raise ConfigError where between the last answer that would go and the one `following`, or now, lie more than so many days.

    `watched`: the days, and since when the clock was seen to go on. Where that began before the last answer, or more than so many days
    ago, no leap of the clock makes it look older than it is. One that began since may have begun with a leap.
    """
    (most, since), now, last = watched, datetime.now(UTC), found.last or ""
    try:
        left = datetime.fromisoformat(last)
        days = ((datetime.fromisoformat(following) if following else now) - left).days
        seen = since <= left or (now - since).days > most
    except (ValueError, TypeError):  # a time that this program does not write
        return
    if days > most and not seen:
        after = f"the next is of {following[:10]}" if following else f"none came after it, and this machine's clock says {now:%Y-%m-%d}"
        raise ConfigError(
            f"{found.removed:,} answers of '{name}' would be removed, and {found.kept:,} stay. The newest that would go is of {last[:10]}, "
            f"{after}: {days:,} days without an answer, or a clock that jumped ahead. Nothing was removed. Where that clock was right, add "
            f"--gap. A schedule needs none: it removes them once it has seen the clock go on for more than {most} days, or since before "
            "the last of them was given."
        )


def _watched_since(name: str) -> datetime:
    """Since when the prunings have seen this machine's clock go on without a leap of more than `LONGEST_PAUSE` days; this one is noted.

    After a leap, ahead or back, that begins anew.
    """
    now, file = datetime.now(UTC), clock_file(name)
    since = now
    with suppress(ArtifactError, OSError, KeyError, TypeError, ValueError):  # none, or a torn one: then it begins now
        known = read_json(file)
        began, seen = datetime.fromisoformat(known["since"]), datetime.fromisoformat(known["seen"])
        if began <= seen <= now + settings.CLOCK_SLACK and now - seen <= timedelta(days=LONGEST_PAUSE):
            since = began
    with suppress(OSError):  # what is not noted makes the next pruning doubt, no more
        write_atomic(file, json.dumps({"since": since.isoformat(), "seen": now.isoformat()}).encode(), 0o600)
    return since


def clock_file(name: str) -> Path:
    """Since when, and until when, the prunings of the retriever `name` saw the clock go on."""
    return settings.home() / "answers" / f"{name}.clock"


def pruned_file(name: str) -> Path:
    """What was removed from the log of the retriever `name`, one JSON line for each pruning."""
    return settings.home() / "answers" / f"{name}.pruned"


def query_digest(answer_id: str, query: str) -> str:
    """sha256 over the query together with the answer's id, so that equal queries of two answers cannot be told by it."""
    return digest_of([answer_id, query])


def answers_file(name: str) -> Path:
    """The log of the retriever `name`, JSON lines, oldest first."""
    return settings.home() / "answers" / f"{name}.jsonl"


def find_answer(answer_id: str, name: str | None = None) -> Answer:
    """The answer in the log of the retriever `name`, or of any; raises DataError when there is none, ArtifactError for a broken line."""
    if not _ID.fullmatch(answer_id):
        raise DataError(f"'{answer_id}' is not the id of an answer: expected 16 hex digits, for a run followed by a point and a number.")
    folder = answers_file("any").parent
    logs = [answers_file(name)] if name else sorted(folder.glob("*.jsonl"))
    for log in logs:
        line = _line_with(log, f'{{"id":"{answer_id}",')
        if line is not None:
            answer = _parsed(log, line)
            if answer.retriever != log.stem or answer.id != answer_id:
                raise ArtifactError(f"{log}: the answer {answer_id} names the retriever '{answer.retriever}': the log was changed.")
            return answer
    raise DataError(
        f"No answer {answer_id} is logged in {folder}.{_pruned_before(folder)} Logs of other machines lie in their own home folders; with "
        f"{SETTING}=off none is written."
    )


def _pruned_before(folder: Path) -> str:
    """A sentence about the newest answer that a pruning removed."""
    last = [found for file in folder.glob("*.pruned") for line in _lines_from_end(file) if (found := _last_removed(line))]
    return f" Answers up to {max(last)[:10]} were removed by a pruning." if last else ""


def _last_removed(line: bytes) -> str | None:
    """The time of the last answer that a pruning removed; None in a line that no pruning wrote."""
    try:
        found = strict_json(line)
    except (ValueError, RecursionError):
        return None
    last = found.get("last") if isinstance(found, dict) else None
    return last if isinstance(last, str) and _DAY.match(last) else None


def logged_queries(name: str, limit: int) -> list[str]:
    """The newest `limit` different queries whose text was logged, newest first; empty when none was."""
    found: dict[str, None] = {}
    for line in _lines_from_end(answers_file(name)):
        if len(found) >= limit:
            break
        if text := _parsed(answers_file(name), line).query:
            found[text] = None
    return list(found)


def _append(path: Path, lines: str) -> None:
    """One write under a lock: lines of two processes never mix. A line that a killed writer left half is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_private(path) as log:
        settings.locked(log)
        if not path.exists() or os.fstat(log.fileno()).st_ino != path.stat().st_ino:
            _append(path, lines)  # a pruning put another file there while this one was waited for
            return
        if log.seek(0, os.SEEK_END) > 0:
            log.seek(-1, os.SEEK_END)
            lines = lines if log.read(1) == b"\n" else "\n" + lines
        log.write(lines.encode())
        log.flush()
        os.fsync(log.fileno())


def _line_with(path: Path, start: str) -> bytes | None:
    """The last line that begins with `start`; the file is searched as bytes, a gigabyte takes about a second."""
    if not path.exists() or not path.stat().st_size:
        return None
    with open_plain(path) as log, mmap.mmap(log.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = content.rfind(b"\n" + start.encode()) + 1
        if place == 0 and content[: len(start)] != start.encode():
            return None
        end = content.find(b"\n", place)
        return content[place : end if end >= 0 else len(content)]


def _lines_from_end(path: Path) -> Iterator[bytes]:
    """Complete lines that are not empty, newest first, read block by block."""
    if not path.exists():
        return
    with open_plain(path) as log:
        place, rest = log.seek(0, os.SEEK_END), b""
        while place:
            start = max(0, place - BLOCK)
            log.seek(start)
            lines = (log.read(place - start) + rest).split(b"\n")
            place, rest = start, lines[0] if start else b""
            yield from (line for line in reversed(lines[1:] if start else lines) if line.endswith(b"}"))


def _parsed(path: Path, line: bytes) -> Answer:
    try:
        content = json.loads(line)
        version = content.get("schema_version") if isinstance(content, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise ArtifactError(f"{path}: an answer has the schema version {version}, this program knows {SCHEMA_VERSION}. Update it.")
        return Answer.model_validate(content)
    except (ValueError, ValidationError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"{path}: a line is not an answer as this program writes it ({reason}). Restore the log.") from None


# --- The way back from one served answer: to the documents it gave, as the index held them, and to the release that gave them.


def trace_answer(answer_id: str, name: str | None = None) -> Trace:
    """Trace an answer by its id, in the log of the retriever `name` or of any.

    Raises DataError for an unknown id, ArtifactError when the release is no longer the one that answered, else as `trace`.
    """
    answer = find_answer(answer_id.removeprefix(ANSWER), name)
    opened = open_version(answer.retriever, answer.model, answer.version)
    if opened.artifact.digest != answer.digest:
        raise ArtifactError(
            f"The answer {answer.id} was given by {answer.model}/{answer.version} with the digest {answer.digest[:12]}, which now has "
            f"{opened.artifact.digest[:12]}. It was replaced, or the log was changed."
        )
    children = (Node("documents", {}, tuple(_documents(answer, opened)), "document"), release_node(opened))
    root = Node(f"answer {answer.id}", _details(answer), children, "answer")
    return Trace(answer.retriever, f"{ANSWER}{answer.id}", answer.model, answer.version, root, opened)


def _details(answer: Answer) -> dict[str, Any]:
    return {
        "answered_at": answer.at,
        "query": answer.query if answer.query is not None else "not kept",
        "query_digest": answer.query_digest,
        "release": f"{answer.model}/{answer.version}",
        "standing": _standing(answer),
        "documents": len(answer.doc_ids),
    }


def _standing(answer: Answer) -> str:
    """What the release was when it answered, by the promotion records up to that time."""
    if answer.model != release_model(answer.retriever):
        return "a candidate"
    records = record_store.read_records(answer.retriever)
    # All up to the last of that time, whatever date one between them bears: a strike is of no use without the records that it names.
    came = max((place for place, record in enumerate(records, 1) if "" < str(record.get("recorded_at") or "") <= answer.at), default=0)
    if (decided := standing(records[:came])) and decided[-1].get("to_version") == answer.version:
        return f"champion by promotion record {decided[-1]['sequence']}"
    return "not the champion"


def _documents(answer: Answer, opened: Opened) -> Iterator[Node]:
    found = find_documents(checked_index(opened.manifest.pins.index), answer.doc_ids)
    for rank, (doc_id, score, place) in enumerate(zip(answer.doc_ids, answer.scores, found, strict=True), start=1):
        known = place if place is not None else {"note": "the index of this release does not hold it"}
        yield Node(f"document {doc_id}", {"rank": rank, "score": round(score, 4), **known}, kind="document")
