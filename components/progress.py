"""Progress of long work on stderr: a bar where a terminal shows it, elsewhere a line every ten seconds that a log can keep."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tqdm import tqdm

LINE_SECONDS = 10.0  # between two lines, where there is no terminal
BAR_SECONDS = 1.0  # between two states of a bar

# Who shows the progress of a call: nobody (None), a bar of this name, or the caller, who is told how many more are done.
Progress = str | Callable[[int], object] | None


class Observer(Protocol):
    """Who is told how the making of a step goes on."""

    def started(self) -> None:
        """It begins."""

    def measured(self, values: Mapping[str, float], step: int) -> None:
        """Name -> value, at the `step` of a training, counted from 1."""


_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Let `observer` be told what is made in this block."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def begin_step() -> None:
    """Tell whoever observes that the making of a step begins."""
    if (observer := _observer.get()) is not None:
        observer.started()


def measured(step: int, values: Mapping[str, float]) -> None:
    """Tell whoever observes what was measured at a step of a training; nobody has to."""
    if (observer := _observer.get()) is not None:
        observer.measured(values, step)


def progress_bar(total: int, label: str | None, unit: str, *, initial: int = 0, shown: bool = True, **options: Any) -> tqdm[Any]:
    """A `tqdm` over `total` units, of which `initial` are done; `options` are tqdm's. Work of less than ten seconds prints one line."""
    from tqdm import tqdm

    terminal = _is_terminal()
    kind, seconds = (tqdm, BAR_SECONDS) if terminal else (_lines(), LINE_SECONDS)
    wait = {} if terminal else {"delay": LINE_SECONDS, "maxinterval": LINE_SECONDS}
    return kind(total=total, initial=initial, desc=label, unit=unit, mininterval=seconds, disable=not shown, **wait, **options)


@contextmanager
def counting(progress: Progress, total: int, unit: str) -> Iterator[Callable[[int], object]]:
    """What to call with the number of units that were just done, whoever shows them."""
    if callable(progress):
        yield progress
        return
    with progress_bar(total, progress, unit, shown=progress is not None) as bar:
        yield bar.update


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # there is none, or it was closed
        return False


@cache
def _lines() -> Any:
    """`tqdm` for a file: each state is a line of its own, instead of a carriage return that writes over the last one."""
    from tqdm import tqdm

    class Lines(tqdm):
        _ended = False

        @staticmethod
        def status_printer(file: Any) -> Callable[[str], None]:
            def write(text: str) -> None:
                if text.strip():
                    file.write(f"{text.strip()}\n")
                    file.flush()

            return write

        def moveto(self, n: int) -> None:
            """Lines below each other need no cursor."""

        def close(self) -> None:
            """Print the last state, over which tqdm would go back."""
            if self.disable or self._ended:
                return
            self._ended = True
            self._decr_instances(self)
            unsaid = self.n != self.last_print_n or self.last_print_t == self.start_t
            if self.leave and unsaid:
                self._ema_dt = lambda: None  # the rate of the whole work
                self.display()

    return Lines
