"""Who promoted what, when and why: the promotion records as a story, newest last. Needs no server where the store is embedded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components.artifacts import write_json
from components.errors import ConfigError
from components.plain_text import one_line
from components.release.marks import RED
from components.tracking import promotion_records as record_store

_FIELDS = (
    "sequence",
    "action",
    "from_version",
    "to_version",
    "candidate_version",
    "approved_by",
    "claimed_by",
    "role",
    "authentication",
    "approved_at",
    "promoted_by",
    "vouched_by",
    "reason",
    "override",
    "override_by",
    "verdict",
    "foreign_policy",
    "without_champion",
    "skipped",
    "first_release",
    "evidence_digest",
    "decision_digest",
    "audit_sequence",
    "audit_digest",
    "digest",
)


def history_of(name: str) -> list[dict[str, Any]]:
    """One entry for each promotion record, oldest first, verified as a chain; fields that an older record lacks are None.

    `overridden` marks a release whose gates did not pass; `compared_again` holds the outcome against the champion it replaced, when that
    was another one than it was built against. Raises ArtifactError that names the record where the chain is broken.
    """
    return [_entry(record) for record in record_store.read_records(name)]


def compare_anchor(name: str, path: Path) -> str:
    """Hold the records against the newest one that an auditor kept in `path`, then keep today's newest there; returns a sentence.

    The file is the auditor's own: who writes the records cannot write it, so records that were cut off or replaced show. It is made when
    it is not there. Raises ConfigError for a file that is no anchor of `name`, ArtifactError when the record in it is not in the chain.
    """
    records, kept = record_store.read_records(name), _read_anchor(name, path)
    if kept is not None:
        record_store.require_head(records, kept["sequence"], kept["digest"], f"the anchor {path}")
    if not records:
        return f"Nothing of '{name}' was promoted yet, so there is no record to keep in {path}."
    newest = {"retriever": name, "sequence": records[-1]["sequence"], "digest": records[-1]["digest"]}
    try:
        write_json(path, newest)
    except OSError as error:
        raise ConfigError(f"The anchor {path} cannot be written ({error.strerror}). Give a file in a folder of your own.") from None
    held = "was made" if kept is None else f"holds: record {kept['sequence']} is where it was"
    return (
        f"The anchor {path} {held}. It now names record {newest['sequence']} ({newest['digest'][:12]}); keep it where nobody else writes."
    )


def _read_anchor(name: str, path: Path) -> dict[str, Any] | None:
    try:
        kept = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"The anchor {path} cannot be read ({error.strerror}). Give a file of your own.") from None
    except (ValueError, RecursionError):
        kept = None
    form = isinstance(kept, dict) and isinstance(kept.get("sequence"), int) and isinstance(kept.get("digest"), str)
    if not form:
        raise ConfigError(f"{path} is no anchor: expected retriever, sequence and digest as JSON, as `history --anchor` writes them.")
    if kept.get("retriever") != name:
        raise ConfigError(f"{path} is the anchor of the retriever '{kept.get('retriever')}', not of '{name}'. Give another file.")
    return dict(kept)


def render_history(name: str, entries: list[dict[str, Any]]) -> str:
    """A paragraph of lines for each entry; overrides carry a red mark. No name or reason can begin a line of its own."""
    if not entries:
        return f"Nothing of '{name}' was promoted yet."
    shown = [{key: one_line(value) if isinstance(value, str) else value for key, value in entry.items()} for entry in entries]
    return "\n".join(line for entry in shown for line in _lines(entry))


def _entry(record: dict[str, Any]) -> dict[str, Any]:
    again = (record.get("decisions") or [None])[-1]
    return {
        **{field: record.get(field) for field in _FIELDS},
        "evidence_digest": record.get("evidence_digest") or record.get("manifest_digest"),
        "when": record.get("time") or record.get("recorded_at"),
        "overridden": bool(record.get("override")),
        "compared_again": None if again is None else {"against": again["against"], "verdict": again["decision"]["verdict"]},
    }


def _lines(entry: dict[str, Any]) -> list[str]:
    before = f"release/{entry['from_version']}" if entry["from_version"] else "nothing"
    what = f"{entry['action']}: {before} -> release/{entry['to_version']} (candidate/{entry['candidate_version']})"
    if entry["action"] == "vouch":
        what = f"vouch: release/{entry['to_version']} and the records before, signed afterwards by {entry['vouched_by']}"
    lines = [f"{entry['sequence']:>3}  {str(entry['when'])[:19].replace('T', ' ')}  {what}", f"     {_who(entry)}"]
    if again := entry["compared_again"]:
        lines.append(f"     the champion had changed: compared again with release/{again['against']}, {again['verdict']}")
    if entry["without_champion"]:
        lines.append(f"     {RED} without a comparison, as the champion could not be opened: {entry['without_champion']}")
    for version, why in (entry["skipped"] or {}).items():
        lines.append(f"     {RED} past release/{version}, which could not be served: {one_line(why)}")
    if entry["overridden"]:
        although = "served although it was rejected" if entry["action"] == "rollback" else f"gates {entry['verdict']}"
        although += ", by a policy that is not the installation's" if entry["foreign_policy"] else ""
        lines.append(f"     {RED} OVERRIDE by {entry['override_by'] or entry['approved_by']}, {although}: {entry['override']}")
    if entry["reason"] and not (entry["overridden"] and entry["reason"] == entry["override"]):
        lines.append(f"     reason: {entry['reason']}")
    return lines


def _who(entry: dict[str, Any]) -> str:
    if entry["audit_digest"]:
        named = f" for {entry['claimed_by']} (as claimed)" if entry["claimed_by"] not in (None, entry["approved_by"]) else ""
        signed_in = f"by {entry['approved_by']} ({entry['role']}, signed in){named}"
        return f"{signed_in}, audit entry {entry['audit_sequence']} {entry['audit_digest'][:12]}"
    person = entry["approved_by"]
    return "by nobody known (unauthenticated)" if person == "unauthenticated" else f"by {person} (as claimed, unauthenticated)"
