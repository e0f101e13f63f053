"""Promotion as a flow: look for an approval, verify the release again, make it champion. Safe to run at any time, as often as wanted."""

from __future__ import annotations

from dataclasses import asdict
from logging import WARNING
from typing import Any, cast

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from flows.parameters import Name
from flows.reporting import AS_OURS, emit, ended, logged_lines, say, tag_run


@task(name="promote_newest_approved", cache_policy=NO_CACHE, persist_result=False, retries=0)
def promote_newest_approved(name: str, without_champion: str | None = None) -> dict[str, Any]:
    """Verify and promote the newest approved release, finish what a killed run began, or do nothing."""
    from components.promotion.promote import promote as change_champion
    from components.serving.promotion_checks import check_smoke, compare_again

    return asdict(change_champion(name, check_smoke, compare_again, without_champion))


@flow(name="promote", **AS_OURS)
def promote(name: Name = "retriever", retry: bool = True, without_champion: str | None = None) -> dict[str, Any]:
    """Promote the newest approved release of a retriever; returns what was done, with a message.

    Args:
        name: Name of the retriever
        retry: Examine an approval that was refused before although nothing changed since; schedules do not
        without_champion: Reason to promote although the champion was deleted or damaged, so that nothing is compared with it
    """
    from components.promotion.promote import note_look, refusal_remembered, refused_before
    from components.settings import activate

    activate()
    note_look(name)
    if not retry and (reason := refused_before(name)) is not None:
        message = f"Refused as before, nothing changed since: {reason}"
        with logged_lines():
            say(message, WARNING)
        # The run's page shows name and message of the state that a flow returns, and the caller gets its data.
        refused: Any = Completed(name="Refused before", message=message, data={"status": "refused", "message": message, "warnings": ()})
        return cast("dict[str, Any]", refused)
    tag_run(("scalingnote", f"retriever:{name}"))
    with logged_lines(), refusal_remembered(name):
        done = promote_newest_approved(name, without_champion)
        say(done["message"])
    if done["status"] == "promoted":
        emit("release.promoted", name, done["message"], release=done["to_version"])
    return ended(done, done["message"])
