"""What is served, what waits for a reviewer, and whether aliases and records agree."""

from __future__ import annotations

from typing import Any

from components.errors import PromotionError, ScalingNoteError
from components.plain_text import one_line
from components.promotion.approval import rejection
from components.promotion.waiting import waiting_for_promotion
from components.release.champion import candidate_model, expected_aliases, trusted
from components.release.marks import RED, override_of
from components.release.release_index import champion_index
from components.studies.growth_law import tuning_warning
from components.tracking import labels, registry
from components.tracking import promotion_records as record_store
from components.tracking.runs import last_flow_run


def status_of(name: str) -> dict[str, Any]:
    """Champion, previous, the newest candidates and records of the retriever `name`.

    `alarm` is None when all agrees, `warning` when the champion's index still fits its documents.
    """
    records = record_store.read_records(name)
    places = expected_aliases(records)
    candidates = registry.versions(candidate_model(name))
    override = override_of(records, places.champion) if places.champion else None
    return {
        "name": name,
        "champion": places.champion,
        "previous": places.previous,
        "alarm": _alarm(name),
        "warning": _warning(name),
        "candidates": [_candidate(info) for info in candidates[-5:]],
        "waiting_for_promotion": [info.version for info in waiting_for_promotion(name, records).versions],
        "override": override.reason if override else None,
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
        lines.append(f"Last change: {record['action']} to release/{record['to_version']}, {record['recorded_at']}")
    if run := state["last_run"]:
        why = f": {one_line(run['why'])}" if run["state"] in ("failed", "killed") and run["why"] else ""
        lines.append(f"Last run: {run['flow']} of {run['started']} UTC, {run['state']}{why}")
    if state["override"]:
        lines.append(f"{RED} OVERRIDE: the champion was released although its gates did not pass: {state['override']}")
    if state["warning"]:
        lines.append(f"Warning: {state['warning']}")
    if state["alarm"]:
        lines.append(f"ALARM: {state['alarm']}")
    return "\n".join(lines)


def _alarm(name: str) -> str | None:
    """All that somebody has to look at, the alias first; None when there is nothing."""
    try:
        found = [trusted(name).alarm]
    except PromotionError:
        found = []  # nothing was promoted yet
    if foreign := record_store.foreign_runs(name):
        many = "a run or a claim" if len(foreign) == 1 else f"{len(foreign)} runs or claims"
        found.append(
            f"In the experiment {name}-promotions there is {many} beside the promotion records ({foreign[0]}). That changes nothing, but "
            "somebody writes there who should not; find out who, and delete such runs."
        )
    return " ".join(alarm for alarm in found if alarm) or None


def _warning(name: str) -> str | None:
    try:
        index = champion_index(name)
    except ScalingNoteError as error:  # a status that cannot be shown would hide all the rest
        return str(error)
    if index is None or index["documents"] is None:
        return None
    due = "The index no longer fits its documents, its last refresh says: build it anew with `scalingnote retrain`."
    return tuning_warning(index["documents"], index["tuned_documents"]) or (due if index["guard"] == "retrain_due" else None)


def _candidate(info: registry.VersionInfo) -> dict[str, Any]:
    verdict = info.tags.get(f"{labels.ATTRIBUTE}verdict", "unknown")
    return {"version": info.version, "verdict": verdict, "rejected": bool(rejection(info))}
