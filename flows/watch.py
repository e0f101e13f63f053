"""Promotion that keeps looking: cheaply at the registry, and with the whole flow only when there is something to do.

Looking is the truth and a webhook only makes it sooner, so a delivery that was lost costs a moment, not a promotion. The loop keeps no
state that matters: killed at any point, it is started again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from components.errors import ScalingNoteError

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
        from components.promotion.waiting import pending, refused_before

        state = pending(self.name)
        if state is None:
            self._said = None
            return
        if self.emit:
            self._emit(state)
        elif refused_before(self.name) is None:
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
