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
    """Looks every `seconds`, or at once when `wake` is set; `stop` ends it. `tell` gets each change and each refusal once."""

    name: str
    seconds: float
    tell: Tell
    wake: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    _said: str | None = None

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

        if pending(self.name) is None:
            self._said = None
            return
        if refused_before(self.name) is None:
            from flows.servers import run_flow  # with Prefect, which a process that only looks does without

            self.tell(run_flow("flows.promote:promote", self.name))

    def _tell_once(self, message: str) -> None:
        if message != self._said:
            self._said = message
            self.tell({"status": "refused", "message": message, "warnings": ()})
