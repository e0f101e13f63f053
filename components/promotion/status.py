"""What serves, what waits, and how it came about."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from components import settings
from components.artifacts import read_bounded, strict_json, write_json
from components.errors import ArtifactError, ConfigError, ModelError, PromotionError, ScalingNoteError
from components.promotion.approval import moment_of, rejection_of_files
from components.promotion.promote import last_look, waiting_for_promotion
from components.release.champion import RED, Override, Record, candidate_model, expected_aliases, override_of, settled_release, standing
from components.release.manifest import load_release
from components.release.open import champion_index
from components.release.reviewers import proof_of
from components.signing.statements import require_vouched, signed_by
from components.studies.growth_law import tuning_warning
from components.text import one_line, reads_like
from components.tracking import audit_log as audit
from components.tracking import labels, registry
from components.tracking import promotion_records as record_store
from components.tracking.promotion_records import STRIKE, UNREADABLE, struck_out
from components.tracking.runs import last_flow_run
from components.tracking.store import TrackingError

_MOST_BYTES = 10_000  # of an anchor
UNLOOKED = 3900.0  # seconds: an hour, and what a schedule needs to start
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
    "struck",
    "keeps",
    "digest",
)


def history_of(name: str) -> list[dict[str, Any]]:
    """One entry for each promotion record, oldest first, verified as a chain; fields that an older record lacks are None.

    `overridden` marks a release whose gates did not pass; `compared_again` holds the outcome against the champion it replaced, when that
    was another one than it was built against; `dated_back` is True where the clock of the machine was set back since the record before,
    `dated_ahead` where the record's time is still to come.
    Raises ArtifactError that names the record where the chain is broken.
    """
    records = record_store.read_records(name)
    try:
        struck = struck_out(records)
    except ArtifactError:  # a strike that somebody forged: all is shown, so that it can be looked at
        struck = {}
    entries = [{**_entry(record), "struck_by": (struck.get(record["sequence"]) or {}).get("sequence")} for record in records]
    latest: datetime | None = None
    spelled: dict[str, str] = {}
    for entry in entries:
        people = [str(entry[field]) for field in ("approved_by", "override_by") if entry[field]]
        pairs = [(who, spelled.setdefault(reads_like(who), who)) for who in people]
        entry["look_alikes"] = {who: first for who, first in pairs if who.casefold().split() != first.casefold().split()}
        moment = moment_of(str(entry["when"]))
        entry["dated_back"] = moment is not None and latest is not None and latest - moment > settings.CLOCK_SLACK
        entry["dated_ahead"] = moment is not None and moment > datetime.now(UTC) + settings.CLOCK_SLACK
        latest = max((found for found in (moment, latest) if found is not None), default=None)
    return entries


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
    if path.is_symlink():
        raise ConfigError(f"The anchor {path} is a link, and whoever may change it chooses what is compared. Give the file itself.")
    try:
        kept = strict_json(read_bounded(path, _MOST_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"The anchor {path} cannot be read ({error.strerror}). Give a file of your own.") from None
    except ArtifactError as error:
        raise ConfigError(f"{path} is no anchor and cannot be read: {error}") from None
    except (ValueError, RecursionError):
        kept = None
    form = isinstance(kept, dict) and type(kept.get("sequence")) is int and isinstance(kept.get("digest"), str)
    if not form or kept["sequence"] < 1:
        raise ConfigError(f"{path} is no anchor: expected retriever, sequence and digest as JSON, as `history --anchor` writes them.")
    if kept.get("retriever") != name:
        raise ConfigError(f"{path} is the anchor of the retriever '{kept.get('retriever')}', not of '{name}'. Give another file.")
    return dict(kept)


def render_history(name: str, entries: list[dict[str, Any]], alarm: str | None = None) -> str:
    """A paragraph of lines for each entry; overrides carry a red mark. No name or reason can begin a line of its own.

    `alarm` (see `damaged_log`) stands at the end: the names of who was signed in are proven by the log alone.
    """
    shown = [{key: one_line(value) if isinstance(value, str) else value for key, value in entry.items()} for entry in entries]
    lines = [line for entry in shown for line in _lines(entry)] or [f"Nothing of '{name}' was promoted yet."]
    return "\n".join([*lines, f"ALARM: {one_line(alarm)}"] if alarm else lines)


def _entry(record: dict[str, Any]) -> dict[str, Any]:
    return {
        **{field: record.get(field) for field in _FIELDS},
        "evidence_digest": record.get("evidence_digest") or record.get("manifest_digest"),
        "when": record.get("time") or record.get("recorded_at"),
        "overridden": bool(record.get("override")),
        "signed_by": [name[:16] for name in signed_by(record)],
        "compared_again": _compared_again(record.get("decisions")),
    }


def _compared_again(decisions: Any) -> dict[str, Any] | None:
    """The decision that was made again; whoever forges a record may write anything there."""
    last = decisions[-1] if isinstance(decisions, list) and decisions else None
    if not isinstance(last, dict) or not isinstance(last.get("decision"), dict):
        return None
    against = last.get("against")  # a number, unless somebody forged it
    return {"against": against if isinstance(against, int) else one_line(against), "verdict": one_line(last["decision"].get("verdict"))}


def _lines(entry: dict[str, Any]) -> list[str]:
    when = one_line(entry["when"])[:19].replace("T", " ")
    lines = [f"{entry['sequence']:>3}  {when}  {_what(entry)}", f"     {_who(entry)}", *_marked_lines(entry)]
    if entry["dated_back"]:
        lines.append("     dated before a record that stands above it: the clock of one of the machines was wrong; the order here is true")
    if entry["dated_ahead"]:
        lines.append("     dated ahead: that time is still to come, so the clock of its machine was wrong, or this one's is")
    if again := entry["compared_again"]:
        lines.append(f"     the champion had changed: compared again with release/{again['against']}, {again['verdict']}")
    if entry["without_champion"]:
        lines.append(f"     {RED} without a comparison, as the champion could not be opened: {entry['without_champion']}")
    for version, why in entry["skipped"].items() if isinstance(entry["skipped"], dict) else ():
        lines.append(f"     {RED} past release/{one_line(version)}, which could not be served: {one_line(why)}")
    if entry["overridden"]:
        although = "served although it was rejected" if entry["action"] == "rollback" else f"gates {entry['verdict']}"
        although += ", by a policy that is not the installation's" if entry["foreign_policy"] else ""
        lines.append(f"     {RED} OVERRIDE by {entry['override_by'] or entry['approved_by']}, {although}: {entry['override']}")
    if entry["reason"] and not (entry["overridden"] and entry["reason"] == entry["override"]):
        lines.append(f"     reason: {entry['reason']}")
    return lines


def _what(entry: dict[str, Any]) -> str:
    """What a record did, in a few words."""
    before, after = (f"release/{entry[place]}" if entry[place] else "nothing" for place in ("from_version", "to_version"))
    if entry["action"] == "vouch":
        return f"vouch: {after} and the records before, signed afterwards by {entry['vouched_by']}"
    if entry["action"] == STRIKE:
        return f"strike: {before} -> {after}"
    if entry["action"] == UNREADABLE:
        return "unreadable: its file is gone or was changed"
    return f"{entry['action']}: {before} -> {after} (candidate/{entry['candidate_version']})"


def _marked_lines(entry: dict[str, Any]) -> list[str]:
    """In red ever after: what was struck out, what struck it out, and names that pass for those of others."""
    lines = []
    for who, first in entry.get("look_alikes", {}).items():
        lines.append(f"     {RED} '{one_line(who)}' reads like '{one_line(first)}' of an earlier record, and is written in another way")
    if entry["action"] == STRIKE and not entry["struck_by"]:
        keys = ", ".join(entry["signed_by"]) or "nobody"
        lines.append(f"     {RED} STRIKES OUT {_numbers(entry['struck'])} as forged; signed by {keys}")
    if entry["struck_by"]:
        lines.append(f"     {RED} STRUCK OUT by record {entry['struck_by']}: this record counts no more")
    return lines


def _numbers(struck: Any) -> str:
    """The records that a strike names; whoever forges one may write anything there."""
    numbers = [one_line(number)[:12] for number in struck] if isinstance(struck, dict) else []
    return f"record {numbers[0]}" if len(numbers) == 1 else f"records {', '.join(numbers) or 'none'}"


def _who(entry: dict[str, Any]) -> str:
    if entry["audit_digest"]:
        named = f" for {entry['claimed_by']} (as claimed)" if entry["claimed_by"] not in (None, entry["approved_by"]) else ""
        signed_in = f"by {entry['approved_by']} ({entry['role']}, signed in){named}"
        return f"{signed_in}, audit entry {one_line(entry['audit_sequence'])} {one_line(entry['audit_digest'])[:12]}"
    person = entry["approved_by"]
    return "by nobody known (unauthenticated)" if person in (None, "unauthenticated") else f"by {person} (as claimed, unauthenticated)"


# --- What is served, what waits for a reviewer, and whether aliases and records agree.


def status_of(name: str) -> dict[str, Any]:
    """Champion, previous, the newest candidates and records of the retriever `name`.

    `alarm` is None when all agrees, `warning` when the champion's index still fits its documents.
    """
    records = record_store.read_records(name)
    places = expected_aliases(records)
    candidates = registry.versions(candidate_model(name))
    override = override_of(records, places.champion) if places.champion else None
    waiting = waiting_for_promotion(name, records).versions
    return {
        "name": name,
        "champion": places.champion,
        "previous": places.previous,
        "alarm": _alarm(name, records, waiting),
        "warning": _warning(name),
        "candidates": [_candidate(name, info, candidates) for info in candidates[-5:]],
        "waiting_for_promotion": [info.version for info in waiting],
        "override": override.reason if override else None,
        "override_of": _overridden(override) if override else None,
        "last_record": dict(records[-1]) if records else None,
        "last_run": last_flow_run(name),
    }


def render_status(state: dict[str, Any]) -> str:
    """The status in a few lines."""
    champion = f"release/{state['champion']}" if state["champion"] else "none"
    previous = f"release/{state['previous']}" if state["previous"] else "none"
    state = {key: one_line(value) if isinstance(value, str) else value for key, value in state.items()}
    lines = [f"Retriever {state['name']}: champion {champion}, previous {previous}"]
    lines += [f"  candidate/{c['version']}: {one_line(c['verdict'])}{' (rejected)' if c['rejected'] else ''}" for c in state["candidates"]]
    if not state["candidates"]:
        lines.append("  no candidates yet: scalingnote demo, or scalingnote retrain")
    lines += [f"  release/{v} is approved and waits: scalingnote promote" for v in state["waiting_for_promotion"]]
    if record := state["last_record"]:
        target = f"release/{record['to_version']}" if record["to_version"] else "no release"
        lines.append(f"Last change: {one_line(record.get('action'))} to {target}, {one_line(record.get('recorded_at'))}")
    if run := state["last_run"]:
        why = f": {one_line(run['why'])}" if run["state"] in ("failed", "killed") and run["why"] else ""
        lines.append(f"Last run: {one_line(run['flow'])} of {run['started']} UTC, {run['state']}{why}")
        if run["ahead"]:
            lines.append(
                f"Warning: a run is dated {run['ahead']} UTC, which is still to come: its machine's clock was wrong, or this one's is."
            )
    if state["override"]:
        lines.append(f"{RED} OVERRIDE: the champion was released {state['override_of']}: {state['override']}")
    if state["warning"]:
        lines.append(f"Warning: {state['warning']}")
    if state["alarm"]:
        lines.append(f"ALARM: {state['alarm']}")
    return "\n".join(lines)


def _overridden(override: Override) -> str:
    """What the reason let pass: the gates, the policy that they were decided by, or both."""
    gates = [] if override.verdict == "pass" else ["although its gates did not pass"]
    return ", ".join([*gates, *(["by a policy that is not the installation's"] if override.foreign else [])])


def _alarm(name: str, records: Sequence[Record], waiting: Sequence[registry.VersionInfo]) -> str | None:
    """All that somebody has to look at, the alias first; None when there is nothing."""
    try:
        found = [settled_release(name).alarm]
    except PromotionError:
        found = []  # nothing was promoted yet
    found.insert(0, _unserved(records))
    found.append(damaged_log(records))
    if foreign := record_store.foreign_runs(name):
        many = "a run or a claim" if len(foreign) == 1 else f"{len(foreign)} runs or claims"
        found.append(
            f"In the experiment {name}-promotions there is {many} beside the promotion records ({foreign[0]}). That changes nothing, but "
            "somebody writes there who should not; find out who, and delete such runs."
        )
    found.append(_unlooked(waiting))
    return " ".join(alarm for alarm in found if alarm) or None


def damaged_log(records: Sequence[Record]) -> str | None:
    """A sentence when the audit log was cut or edited, or does not hold what the newest record rests on; None when all is well."""
    resting = next((record for record in reversed(standing(records)) if record.get("audit_digest")), None)
    number = proof_of(resting)[0] if resting else 0
    try:
        state = audit.current_state(number)
    except TrackingError as error:
        return str(error)
    fault = "" if state is None else state.fault
    if resting is not None and not fault:
        subject = f"promotion record {resting['sequence']} rests on"
        if state is None:  # a server of before it could say tells nothing
            fault = "" if audit.kept_by_server() else f"{subject} it, and it is not here."
        elif state.digest != resting["audit_digest"]:
            fault = f"it does not hold the entry {number} that {subject}: it was replaced or cut."
    if not fault:
        return None
    return (
        f"The audit log was damaged or is gone: {fault} Nothing is approved, promoted or rolled back meanwhile, and what serves goes on "
        "serving. Keep the damaged file for whoever looks into it, and put the log and its head file back from a backup."
    )


def _unserved(records: Sequence[Record]) -> str | None:
    """A sentence when serving refuses the champion, because the keys that are trusted here do not vouch for the records."""
    try:
        if records:
            require_vouched(records)
    except (ArtifactError, ConfigError) as error:
        return f"The champion is not served here: {error}"
    return None


def _unlooked(waiting: Sequence[registry.VersionInfo]) -> str | None:
    """A sentence when an approved release waits and nobody who promotes has looked for an hour; a schedule may look once in an hour."""
    since = time.time() - last_look(waiting)
    if not waiting or since < UNLOOKED:
        return None
    hours = "an hour" if since < 2 * 3600 else f"{since / 3600:.0f} hours"
    return (
        f"Nobody has looked for approvals for {hours}, and release/{waiting[-1].version} waits: see why `scalingnote promote --watch` or "
        "the deployment `promote` does not run, or run `scalingnote promote`."
    )


def _warning(name: str) -> str | None:
    try:
        index = champion_index(name)
    except ScalingNoteError as error:  # a status that cannot be shown would hide all the rest
        return str(error)
    if index is None or index["documents"] is None:
        return None
    due = "The index no longer fits its documents, its last refresh says: build it anew with `scalingnote retrain`."
    return tuning_warning(index["documents"], index["tuned_documents"]) or (due if index["guard"] == "retrain_due" else None)


def _candidate(name: str, info: registry.VersionInfo, candidates: Sequence[registry.VersionInfo]) -> dict[str, Any]:
    return {"version": info.version, "verdict": _verdict(info), "rejected": bool(rejection_of_files(name, info, candidates))}


def _verdict(info: registry.VersionInfo) -> str:
    """What the gates said, by the manifest where its files lie here: the tag is a claim that whoever trains may change."""
    stated = info.tags.get(f"{labels.ATTRIBUTE}verdict", "unknown")
    try:
        folder = registry.local_files(info.name, info.version)
        verdict = stated if folder is None else str(load_release(folder).decision.verdict)
    except (ArtifactError, ModelError, OSError):
        return f"{stated}, by its tag alone, as its files cannot be read"
    return verdict if stated in (verdict, "unknown") else f"{verdict}, though its tag says {stated}"
