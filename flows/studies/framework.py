"""How a study looks and runs: cells, each one cached measurement, with several seeds, and what makes a table and a plot of them.

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
(`context.scores` for rankings, `context.measure` for any other numbers). Every step is keyed by all that determines it, so a killed study
continues and a repeated one only reads. A cell whose encoder collapses is a finding, not the end of the study: it is left out of
`results` and named below the table.

A cell of a trained system is named `system@seed`; what is not trained has a cell without a seed.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from prefect import flow

from components.artifacts import Artifact, parents_of, read_manifest, write_json
from components.errors import CollapseError, ConfigError, DataError, ModelError
from flows.recorder import recorded_flow
from flows.reporting import AS_OURS, ended, say, show_text
from flows.runner import Step
from flows.steps import at_commits
from flows.studies.context import Context, StudySettings
from flows.studies.registry import load_study

if TYPE_CHECKING:
    import pandas as pd

    from components.release.training_noise import TrainingNoise
    from components.studies.scores import Scores


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


def require_any(measured: Collection[object]) -> None:
    """Raise CollapseError when every cell of a study collapsed, so that there is no row to show."""
    if not measured:
        raise CollapseError(
            "Every cell collapsed, for the reasons above, so there is no table. Change the settings and run the study again."
        )


def about_queries(scores: Artifact, config: StudySettings, chances: bool = True) -> str:
    """The note that says on how many queries the table stands, in which units these were drawn, and what its brackets are.

    `chances`: whether the table has chances (p), which are corrected for their number; its intervals are not.
    """
    from components.studies.report import told_worth
    from components.studies.scores import TAKEN_APART, load_scores

    splits = ", ".join(dict.fromkeys((config.evaluation.split, *config.evaluation.extra_splits)))
    queries = f"{scores.counts['queries']:,} judged queries ({splits})"
    apart = scores.attributes.get(TAKEN_APART)
    narrow = f" The data makes {apart:,} units of them, so intervals and p are narrower than it allows." if apart else ""
    return (
        f"{queries}. In brackets: 95% intervals, paired by query where two systems are compared"
        f"{'. p: by Holm over the whole table. ' if chances else ', not corrected for their number. '}"
        f"{told_worth(load_scores(scores.path), config.evaluation)}{narrow}"
    )


# --- Seeds of the studies: every training is repeated, since one alone could have come out otherwise by more than what is compared.


TEACHER = "teacher"  # a part of the names of its systems
STUDENTS = ("student", "clean@student")  # systems of the studies that train towers and student as a release does
SEEDS = 3  # unless study.seeds says otherwise: the section's own seed, which a release has trained with, and those after it
MARK = "@"


def seeds_of(config: StudySettings, section: Literal["towers", "distillation"]) -> tuple[int, ...]:
    """The seeds that a section is trained with."""
    first: int = getattr(config, section).seed
    return config.study.seeds or tuple(range(first, first + SEEDS))


def whole_trainings(context: Context) -> dict[int, StudySettings]:
    """Seed -> the study's configuration in which towers and student are trained with it; refused before anything is trained."""
    pairs = zip(seeds_of(context.config, "towers"), seeds_of(context.config, "distillation"), strict=True)
    found = {seed: context.changed(towers={"seed": seed}, distillation={"seed": other}) for seed, other in pairs}
    for config in found.values():
        context.check(config)
    return found


def seeded(name: str, seed: int) -> str:
    """The name of a system's cell with one seed."""
    return f"{name}{MARK}{seed}"


def by_system(results: Results) -> dict[str, list[Scores]]:
    """The scores of each system, one for each of its seeds; one for a system that is not trained."""
    from components.studies.scores import SCORES_FILE, load_scores

    runs: dict[str, list[Scores]] = {}
    for cell, artifact in results.items():
        name, mark, _ = cell.rpartition(MARK)
        if (artifact.path / SCORES_FILE).is_file():
            runs.setdefault(name if mark else cell, []).append(load_scores(artifact.path))
    return runs


def is_taken_as_it_is(config: StudySettings) -> bool:
    """Whether no part of the teacher is trained, so that it is the same with every seed."""
    return config.towers.training == "none" and not config.towers.companion.base_model


def about_seeds(cells: Results, config: StudySettings, section: Literal["towers", "distillation"] = "towers") -> str:
    """The note that says with how many seeds the systems of a table were trained, and what the intervals make of them.

    `section` is the one whose seeds stand in the names of the cells; of some no training may be left.
    """
    trained: dict[str, list[int]] = {}
    for name, mark, seed in (cell.rpartition(MARK) for cell in cells):
        if mark:
            trained.setdefault(name, []).append(int(seed))
    if not trained:
        return "No system of this table was trained, so none needs seeds."
    seeds = sorted({*seeds_of(config, section), *(seed for found in trained.values() for seed in found)})
    fewer = [f"{name} ({', '.join(map(str, sorted(found)))})" for name, found in trained.items() if len(found) < len(seeds)]
    untrained = is_taken_as_it_is(config)
    taken = " The teacher is no training but taken as it is (towers.training none), the same with every seed."
    taken = taken if untrained and any(TEACHER in name for name in trained) else ""
    if len(seeds) < 2:
        return (
            "Every system was trained with one seed alone: another seed may move it by more than what is compared, so nothing is claimed. "
            f"study.seeds names more.{taken}"
        )
    return (
        f"Every system was trained with the seeds {', '.join(map(str, seeds))}; values are means over them. Intervals hold the noise of "
        f"training and of the queries (seeds and units of queries are drawn together).{taken}"
        + (f" Where a training collapsed the mean is over the others, and so too good: {', '.join(fewer)}." if fewer else "")
    )


def about_untimed(names: Collection[str], timed: Collection[str]) -> list[str]:
    """The note that says of which systems no time was taken, and why."""
    untimed = [name for name in names if name not in timed]
    why = "stored vectors compute nothing, and an endpoint's times are those of its network"
    return [f"Not timed, and so without a cost: {', '.join(untimed)} ({why})."] if untimed else []


def noise_of(study: str, results: Results, config: StudySettings) -> TrainingNoise | None:
    """How far the student's trainings lie apart, for releases of the same configuration; None where it had one seed or is no whole one."""
    from components.release.training_noise import kind_of, measured
    from components.studies.scores import read_result

    towers, students = seeds_of(config, "towers"), seeds_of(config, "distillation")
    pairs, split = {seed: (seed, other) for seed, other in zip(towers, students, strict=True)}, f"{config.evaluation.split}."
    found, kind = {}, ""
    for cell, artifact in results.items():
        name, _, seed = cell.rpartition(MARK)
        if name in STUDENTS and int(seed) in pairs:
            means = {key.removeprefix(split): value for key, value in read_result(artifact.path).items() if key.startswith(split)}
            found[pairs[int(seed)]] = (f"study {study}", means)
            kind = kind_of(config.model_dump(mode="json"), artifact.parents["dataset"])
    return measured(kind, found)


# --- A study as a flow: run its cells, make table and plot, log both, and put them where people look.


@flow(name="study", **AS_OURS)
def run_study(study: str, config: StudySettings, cells: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run the study named `study`; `cells` restricts it to some of its cells.

    Returns the table as rows and as text, the folder with table and plot, whether all came from the cache, and the MLflow run.
    """
    from components import settings

    settings.activate()
    module, config = load_study(study), at_commits(config)
    with recorded_flow(f"{config.name}-study-{study}", f"study-{study}", config.model_dump(mode="json")) as recorder:
        context = Context(config, recorder, cells)
        ran = run_cells(study, module.cells(context), context)
        report = context.run(report_step(study, module, ran, context.config))
        folder = _publish(report, study, context)
        text = (folder / "table.md").read_text(encoding="utf-8")
        recorder.log_report(folder, text)
        show_text(f"{config.name}-study-{study.replace('_', '-')}", text)
        result: dict[str, Any] = {
            "study": study,
            "rows": _rows(folder),
            "text": text,
            "folder": str(folder),
            "cached": recorder.all_cached,
            "mlflow_run_id": recorder.run_id,
        }
    return ended(result, f"Study {study}: {len(result['rows'])} rows{', all from the cache' if result['cached'] else ''}.")


def report_step(name: str, study: Study, ran: Ran, config: StudySettings) -> Step:
    """Table, notes and plot from the measurements; keyed by them, by the settings, and by the code of the study."""
    settings = {"study": name, "config": config.model_dump(mode="json"), "collapsed": ran.collapsed}
    return Step("study_report", partial(write_report, name, study, ran, config), ran.results, settings)


def write_report(name: str, study: Study, ran: Ran, config: StudySettings, folder: Path) -> Artifact:
    """The step study_report: the study's table, its notes, plot and further files, and how far its trainings lie apart."""
    from components.evaluation.table import split_mark
    from components.release.training_noise import write_noise
    from components.studies.report import corrected, write_study_report

    frame = corrected(study.tabulate(ran.results, config))
    notes = [*study.notes(ran.results, frame, config), *(f"{cell} collapsed: {why}" for cell, why in ran.collapsed.items())]
    notes = [note for note in (split_mark(config.evaluation.split), *notes) if note]
    write_noise(folder, noise_of(name, ran.results, config))
    for file, content in getattr(study, "files", _no_files)(ran.results, config).items():
        write_json(folder / file, content)
    return write_study_report(name, frame, notes, study.plot, parents_of(ran.results), folder)


def _no_files(results: Results, config: StudySettings) -> dict[str, Any]:
    """What a study without files of its own adds to its report."""
    return {}


_LONGEST = 120  # bytes of the data's name in that of a folder


def _publish(report: Artifact, study: str, context: Context) -> Path:
    """Copy the report to `<home>/studies/<study>/<data>-<key>` with a note on the run that it comes from."""
    from components import settings

    # Several data sets have one name of all their names, which may be longer than a file's may be.
    data = str(context.dataset.attributes["name"]).encode()[:_LONGEST].decode("utf-8", "ignore")
    folder = settings.studies_folder() / study / f"{data}-{report.path.name[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in read_manifest(report.path).files:
        shutil.copyfile(report.path / name, folder / name)
    about = {"config": context.config.model_dump(mode="json"), "provenance": context.recorder.provenance.model_dump(mode="json")}
    write_json(folder / "about.json", {"mlflow_run_id": context.recorder.run_id, "report_digest": report.digest, **about})
    return folder


def _rows(folder: Path) -> list[dict[str, Any]]:
    import json

    import pandas as pd

    rows: list[dict[str, Any]] = json.loads(pd.read_csv(folder / "table.csv").to_json(orient="records"))
    return rows


# --- What ablations share: a base, cells that each change some fields of one section, with each seed, and how they are compared.


Changes = dict[str, dict[str, Any]]
BASE = "base"
SHOWN = ("over base R@50", "over base nDCG@10")


def cells_of(context: Context, section: Literal["towers", "distillation"], variants: Changes) -> dict[str, StudySettings]:
    """Cell name -> configuration: the base and every variant that is wanted, each with each seed; refused before anything is trained."""
    wanted = {BASE: None, **dict.fromkeys(context.chosen(list(variants)))}
    settings = {}
    for name in wanted:
        try:
            for seed in seeds_of(context.config, section):
                settings[seeded(name, seed)] = context.changed(**{section: {**variants[name], "seed": seed}})
                context.check(settings[seeded(name, seed)])
        except (ConfigError, ModelError, DataError) as error:
            if name == BASE:
                raise
            # The settings that it names are the cell's: whoever asked for all cells has never written them.
            others = ",".join(other for other in wanted if other not in (BASE, name))
            without = f"leave it out: --cells {others}" if others else "name another cell"
            raise type(error)(f"The cell '{name}' cannot be trained with this configuration; {without}. {error}") from None
    return settings


def variants_of(results: Results, *others: str) -> dict[str, list[Scores]]:
    """The scores of each variant's seeds without the cells `others`; raises CollapseError when the base is not among them."""
    runs = {name: found for name, found in by_system(results).items() if name not in others}
    if BASE not in runs:
        require({}, BASE)
    return runs


def over_base(name: str, runs: Mapping[str, Sequence[Scores]], config: StudySettings) -> Mapping[str, Any]:
    """Columns of what a variant gains over the base, and whether that may be claimed; none for the base itself."""
    from components.studies.report import claim_of, gained

    if name == BASE:
        return {}
    return {**gained(runs[name], runs[BASE], config.evaluation, "over base "), **claim_of(len(runs[name]), len(runs[BASE]))}


def plot_changes(frame: pd.DataFrame, path: Path, title: str) -> None:
    """What each change gains or loses."""
    from components.studies.report import bars

    shown = [column for column in SHOWN if column in frame] or ["R@50", "nDCG@10"]
    bars(frame, "system", shown, path, title)


def decided_note(frame: pd.DataFrame) -> str:
    """Which differences are apart from zero, of those that may be claimed, in both metrics: a gain in one may be a loss in the other."""
    from components.studies.report import CLAIM, LEVEL, NO_CLAIM, apart

    rows = frame.to_dict("records")
    compared = [row for row in rows if row["system"] != BASE and row.get(CLAIM) != NO_CLAIM]
    silent = f" {NO_CLAIM[0].upper()}{NO_CLAIM[1:]} ({len(rows) - 1 - len(compared)} cells)." if len(compared) < len(rows) - 1 else ""
    found = []
    for column in SHOWN:
        signs = [f"{row['system']} ({'above' if row[column] > 0 else 'below'})" for row in compared if apart(row, column)]
        found.append(f"in {column.removeprefix('over base ')} {', '.join(signs) or 'none'}")
    return f"Apart from the base (p below {LEVEL:g} by Holm over the whole table): {'; '.join(found)}.{silent}"
