"""How a study looks: cells, each one cached measurement, and what makes a table and a plot of them.

A study is a module of this package, named in `registry.STUDIES`, with the four functions of the protocol `Study`:

    def cells(context: Context) -> list[Cell]
        # names = context.chosen([...]) restricts to what --cells asks for and refuses unknown names, before anything is trained
        # Cell("2 layers", lambda: context.scores("2 layers", context.student(config), context.index()))
    def tabulate(results: Results, config: StudySettings) -> pd.DataFrame
        # results: cell name -> artifact; components.studies.scores.load_scores(path) or read_result(path) gives its numbers.
        # A column `x` with `x low` and `x high` beside it is shown as one with its interval. Columns `x p` are chances; all of a table
        # are corrected together, by Holm, but those of rows whose column `claim` says that nothing is claimed (one seed).
    def plot(frame: pd.DataFrame, path: Path) -> None
    def notes(results: Results, frame: pd.DataFrame, config: StudySettings) -> list[str]
        # sentences below the table: formulas, what was left out, whether the points support the conclusion
    def files(results: Results, config: StudySettings) -> dict[str, Any]
        # optional: further files of the report, file name -> JSON

Nothing heavy is imported at a study's top. A cell's `run` builds on the release's steps through the context (`context.towers(config)`,
`.vectors`, `.index`, `.targets`, `.student`), each found finished or made once for every configuration, and ends with a measuring step
(`context.scores` for rankings, `context.measure` for any other numbers). Every step is keyed by all that determines it, so a killed
study continues and a repeated one only reads. A cell whose encoder collapses is a finding, not the end of the study: it is left out
of `results` and named below the table.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from components.artifacts import Artifact
from components.errors import CollapseError
from flows.reporting import say
from flows.studies.config import StudySettings
from flows.studies.context import Context

if TYPE_CHECKING:
    import pandas as pd

Results = Mapping[str, Artifact]


@dataclass(frozen=True)
class Cell:
    """One measurement: its name, unique in the study, and what finds or makes its sealed artifact."""

    name: str
    run: Callable[[], Artifact]


class Study(Protocol):
    """What a study's module holds (see the module's docstring)."""

    def cells(self, context: Context) -> Sequence[Cell]:
        """The cells in the order they are run; raises for a wrong configuration before anything is trained."""
        ...

    def tabulate(self, results: Results, config: StudySettings) -> pd.DataFrame:
        """One row for each system or setting."""
        ...

    def plot(self, frame: pd.DataFrame, path: Path) -> None:
        """Draw the table's figure into the PNG file `path`."""
        ...

    def notes(self, results: Results, frame: pd.DataFrame, config: StudySettings) -> list[str]:
        """Sentences that belong below the table."""
        ...


@dataclass(frozen=True)
class Ran:
    """What the cells gave: artifacts by cell, and the message of each cell that collapsed."""

    results: dict[str, Artifact]
    collapsed: dict[str, str]


def run_cells(name: str, cells: Sequence[Cell], context: Context) -> Ran:
    """Run all cells in order and print each with the time it took."""
    ran = Ran({}, {})
    for number, cell in enumerate(cells, start=1):
        started, made = time.monotonic(), context.recorder.made
        try:
            ran.results[cell.name] = cell.run()
            how = "from the cache" if context.recorder.made == made else "done"
        except CollapseError as error:
            ran.collapsed[cell.name] = str(error)
            how = f"collapsed: {error}"
        say(f"[{name}] cell {number} of {len(cells)}, {cell.name}: {how} in {time.monotonic() - started:.1f} s")
    return ran


def require(results: Results, name: str) -> Artifact:
    """The artifact of a cell that the others are compared with; raises CollapseError when that one collapsed."""
    if name not in results:
        raise CollapseError(
            f"The cell '{name}' collapsed, and the others are compared with it. Change its settings and run the study again."
        )
    return results[name]


def about_queries(scores: Artifact, config: StudySettings) -> str:
    """The note that says on how many queries the table stands, in which units these were drawn, and what its brackets are."""
    from components.studies.comparisons import told_worth
    from components.studies.scores import load_scores

    splits = ", ".join(dict.fromkeys((config.evaluation.split, *config.evaluation.extra_splits)))
    queries = f"{scores.counts['queries']:,} judged queries ({splits})"
    return (
        f"{queries}. In brackets: 95% intervals, paired by query where two systems are compared. p: by Holm over the whole table. "
        f"{told_worth(load_scores(scores.path), config.evaluation)}"
    )
