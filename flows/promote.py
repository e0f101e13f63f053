"""Promotion as a flow: look for an approval, verify the release again, make it champion. Safe to run at any time, as often as wanted.

Its loop looks cheaply at the registry, and runs the whole flow only when there is something to do.

Looking is the truth and a webhook only makes it sooner, so a delivery that was lost costs a moment, not a promotion. The loop keeps no
state that matters: killed at any point, it is started again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from logging import WARNING
from typing import Any, cast

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from components.errors import ScalingNoteError
from flows.parameters import Name
from flows.reporting import emit, ended, logged_lines, run_name, say, shown_as_cancelled, tag_run


@task(name="promote_newest_approved", cache_policy=NO_CACHE, persist_result=False)
def promote_newest_approved(name: str, without_champion: str | None = None) -> dict[str, Any]:
    """Verify and promote the newest approved release, finish what a killed run began, or do nothing."""
    from components.promotion.promote import promote as change_champion
    from components.serving.promotion_checks import check_smoke, compare_again

    return asdict(change_champion(name, check_smoke, compare_again, without_champion))


@flow(name="promote", flow_run_name=run_name, on_crashed=[shown_as_cancelled], persist_result=False, validate_parameters=True)
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


# --- Promotion that keeps looking: cheaply at the registry, and with the whole flow only when there is something to do.


Tell = Callable[[dict[str, Any]], None]


@dataclass
class Watch:
    """Looks every `seconds`, or at once when `wake` is set; `stop` ends it. `tell` gets each change and each refusal once.

    With `emit` it promotes nothing itself: it tells Prefect once of what waits (see `flows.reporting.tell_approved`), whose automation
    starts the deployment `promote` where the promoter's account and keys are.
    """

    name: str
    seconds: float
    tell: Tell
    emit: bool = False
    wake: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    _said: str | None = None
    _emitted: str | None = None  # the state that Prefect was told of

    def run(self) -> None:
        """Look until `stop` is set. An error that the user can act on is told, and looked at again; any other one ends the loop."""
        while not self.stop.is_set():
            self.wake.clear()  # before looking: what comes meanwhile is looked at next
            try:
                self.look()
            except ScalingNoteError as error:
                self._tell_once(str(error))
            self.wake.wait(self.seconds)

    def look(self) -> None:
        """Promote when something waits that was not refused in this state before (see `refused_before`)."""
        from components.promotion.promote import note_look, pending, refused_before

        state = pending(self.name)
        if state is None:
            self._said = None
            return
        if self.emit:
            self._emit(state)
            return
        note_look(self.name)
        if refused_before(self.name) is None:
            from flows.servers import run_flow  # with Prefect, which a process that only looks does without

            self.tell(run_flow("flows.promote:promote", self.name))

    def _emit(self, state: str) -> None:
        from flows.reporting import tell_approved

        if state != self._emitted and tell_approved(self.name):
            self._emitted = state
            self.tell({"status": "told", "message": f"Prefect was told that an approved release of '{self.name}' waits.", "warnings": ()})

    def _tell_once(self, message: str) -> None:
        if message != self._said:
            self._said = message
            self.tell({"status": "refused", "message": message, "warnings": ()})
