"""Plans and estimates of a retraining: which steps are still to be made, what they will take on this machine, and whether there is room.

The arithmetic stands in `components.planning`; here it meets the steps with their folders, and plans are kept by the digest of what they
were made from, so that the same request gives the same settings although no two measurements are equal.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components import settings
from components.artifacts import Artifact, DatasetArtifact, digest_of, open_artifact, read_json, write_json
from components.distillation.train import StudentInputs
from components.errors import ArtifactError, ConfigError, ResourceError
from components.evaluation.systems import EvaluationInputs
from flows.config import RetrainConfig
from flows.runner import Step, make_ahead
from flows.steps import (
    at_commits,
    companion_step,
    evaluation_step,
    generation_step,
    index_step,
    joined_step,
    needs_queries,
    snapshot_step,
    student_step,
    targets_step,
    towers_step,
    typed,
    validation_step,
    vectors_step,
)

if TYPE_CHECKING:
    from components.planning.calibration import Calibration
    from components.planning.facts import Facts
    from components.planning.plan import Choice, Forecast, Row

_forecast: Forecast | None = None  # of the flow that this process runs


@dataclass(frozen=True)
class Plan:
    """Proposed settings, and what they will take. `knob`: what to turn when it does not fit, empty when it does.

    `data` are lines about the data; `rows` the steps; `rates` what was measured; `pending` the steps that are still to be made, and
    `seconds` (wall) of these together: both, and whether there is room, as of now, whenever the plan was made.
    """

    config: dict[str, Any]
    choices: list[dict[str, Any]]
    data: list[str]
    rows: list[dict[str, Any]]
    device: str
    knob: str
    notes: list[str]
    rates: dict[str, dict[str, float]]
    pending: tuple[str, ...] = ()
    seconds: float = 0.0


def pending_steps(config: RetrainConfig, dataset: Artifact | None) -> list[str]:
    """Names of the steps that would be made, by their manifests alone: no file is hashed, which the steps do themselves."""
    from components.planning.cost import work_steps

    there: dict[str, Artifact | None] = {}

    def find(name: str, step: Any, *inputs: Artifact | None) -> Artifact | None:
        there[name] = None if any(artifact is None for artifact in inputs) else _finished(step(*inputs))
        return there[name]

    snapshot = dataset or find("snapshot_data", lambda: snapshot_step(config))
    there["snapshot_data"] = snapshot
    data: Any = typed(snapshot, DatasetArtifact) if snapshot else None
    find("validate_data", lambda d: validation_step(config, d), data)
    generated = find("generate_queries", lambda d: generation_step(config, d), data) if config.distillation.generated else None
    towers = find("train_towers", lambda d: towers_step(config, d), data)
    if config.towers.companion.base_model:
        beside = find("train_companion", lambda d: companion_step(config, d), data)
        towers = find("join_companion", lambda t, c: joined_step(config, t, c), towers, beside)
    query, document = (_part(towers, role) for role in ("query_tower", "document_tower"))
    vectors: Any = find("encode_corpus", lambda d, t: vectors_step(config, d, t), data, document)
    lacking = [] if generated or not config.distillation.generated else [None]
    targets = find("encode_teacher_queries", lambda d, q, t, *_: targets_step(config, d, q, generated, t), data, query, document, *lacking)
    tuned = targets if vectors is not None and needs_queries(config, vectors) else None
    index = find("build_index", lambda v, d: index_step(config, v, d, tuned), vectors, data)
    learned_from = (data, targets, index, query, vectors)
    student = find("distil_query_tower", lambda *parts: student_step(config, StudentInputs(*parts)), *learned_from)
    find("evaluate", lambda *parts: evaluation_step(config, EvaluationInputs(*parts)), data, query, student, index)
    missing = [step for step in work_steps(config) if step in there and there[step] is None]
    return [*missing, "register"] if missing else []


def _finished(step: Step) -> Artifact | None:
    try:
        return open_artifact(step.folder)
    except ArtifactError:
        return None


def _part(towers: Artifact | None, role: str) -> Artifact | None:
    try:
        return None if towers is None else open_artifact(towers.path / role)
    except ArtifactError:
        return None


def require_room_for(config: RetrainConfig, dataset: DatasetArtifact) -> None:
    """Raise ResourceError, with the sum, when memory or disk cannot hold the steps that are still to be made. Nothing is measured."""
    from components.planning.cost import needs_of
    from components.planning.plan import device_memory, free_room, require_room

    pending = pending_steps(config, dataset)
    if not pending:
        return
    facts = _facts(config, dataset, rough=True)
    needs = needs_of(config, facts, number_bytes(config), on_card=device_memory() is not None)
    require_room({step: need for step, need in needs.items() if step in pending}, free_room(settings.home()))


def number_bytes(config: RetrainConfig) -> int:
    """Bytes of a weight of the teacher as it is loaded."""
    from components.towers.device import pick_dtype

    return 4 if config.towers.training == "full" else pick_dtype(config.towers.precision).itemsize


def announce(config: RetrainConfig) -> str | None:
    """Estimate the steps that are still to be made from a few seconds of calibration, in words; None when there are none.

    The flow that follows in this process says after each step what is left. Data or models that cannot be used are left to the flow,
    which names what is wrong; ResourceError is raised here, before any server starts.
    """
    global _forecast
    from components.data.dataset import load_dataset
    from components.planning.calibration import QUICK_SECONDS, calibrate
    from components.planning.plan import busy_note, device_memory, rows_of

    _forecast = None
    # Rates are measured on a training of the towers; without one there is nothing to measure them on.
    if config.towers.training == "none" or not pending_steps(config, None):
        return None
    try:
        dataset = _snapshot(config)
        require_room_for(config, dataset)
        found = calibrate(load_dataset(dataset.path), config, QUICK_SECONDS)
        rows = rows_of(config, _facts(config, dataset), found.wall, found.cpu, number_bytes(config))
    except ResourceError:
        raise
    except Exception:
        # An estimate must not stop a run: what is wrong with the data or a model, the steps themselves say by name.
        return None
    said = _begin(config, dataset, {row.step: row.seconds or 0.0 for row in rows}, found.device)
    return "; ".join([said, note]) if said and (note := busy_note(rows)) and not device_memory() else said


def _begin(config: RetrainConfig, dataset: DatasetArtifact, seconds: Mapping[str, float], device: str) -> str | None:
    global _forecast
    from components.planning.plan import Forecast, in_words

    pending = {step: seconds[step] for step in pending_steps(config, dataset)}
    if not pending:
        return None
    _forecast = Forecast(pending)
    longest = sorted(pending.items(), key=lambda pair: -pair[1])[:3]
    parts = ", ".join(f"{step} {in_words(taken)}" for step, taken in longest)
    return f"about {in_words(sum(pending.values()))} on {device} ({parts})"


def left_after(step: str, seconds: float | None) -> str | None:
    """What is left of the flow once `step` is done (see `Forecast.after`); None where nothing was estimated, or for a cached step."""
    words = _forecast.after(step, seconds) if _forecast else None
    return None if seconds is None else words


def make_plan(config: RetrainConfig, fixed: Iterable[str], budget: float | None, card: int | None = None, again: bool = False) -> Plan:
    """The plan for `config`, of which the `fixed` settings stay; the stored one where the same was planned before on this machine.

    `budget` in seconds; `card`: bytes of a GPU that is planned for without being here. Raises DataError for data that breaks its
    contracts or cannot be trained on, ModelError for an unknown model, ConfigError where times are asked for and cannot be measured.
    """
    from components.data.validation import require_valid

    if config.towers.training == "none":
        raise ConfigError("A plan measures a training of the towers, and towers.training is none. Run `scalingnote retrain` as it is.")
    config = at_commits(config)
    dataset = _snapshot(config)
    require_valid(make_ahead(validation_step(config, dataset)))
    stored = _stored_at(config, dataset, sorted(fixed), budget, card)
    if stored.is_file() and not again:
        try:
            return _as_of_now(Plan(**read_json(stored)), dataset)
        except (ArtifactError, TypeError):
            pass  # of another version, or torn: planned again
    plan = _planned(config, dataset, sorted(fixed), budget, card)
    if not plan.knob:  # what did not fit on a busy machine may fit when it is quiet
        write_json(stored, {key: value for key, value in asdict(plan).items() if key not in ("pending", "seconds")})
    return _as_of_now(plan, dataset)


def _as_of_now(plan: Plan, dataset: DatasetArtifact) -> Plan:
    """The plan with the steps that are still to be made, and refused where there is no room for them."""
    from components.planning.plan import Row, free_room, room_problem

    pending = pending_steps(RetrainConfig.model_validate(plan.config), dataset)
    left = [Row(**row) for row in plan.rows if row["step"] in pending]
    if all(row["seconds"] is None for row in plan.rows):  # a plan for a card elsewhere: the room here says nothing of the room there
        memory = max((row.need.memory for row in left), default=0)
        notes = [*plan.notes, f"Beside the card the machine needs {memory / 1e9:.1f} GB of memory; what this one has was not looked at."]
        return replace(plan, pending=tuple(pending), seconds=0.0, notes=notes)
    problem = room_problem({row.step: row.need for row in left}, free_room(settings.home()))
    seconds = sum(row.seconds or 0.0 for row in left)
    return replace(plan, pending=tuple(pending), seconds=seconds, knob=" ".join(filter(None, (plan.knob, problem))))


def _stored_at(config: RetrainConfig, dataset: Artifact, fixed: list[str], budget: float | None, card: int | None) -> Path:
    from components.planning.plan import PLAN_VERSION
    from components.tracking.provenance import describe_host

    machine = {**describe_host(), "threads": os.environ.get("OMP_NUM_THREADS", "")}
    asked = {"config": config.model_dump(mode="json"), "fixed": fixed, "budget": budget, "card": card}
    key = digest_of({"version": PLAN_VERSION, "data": dataset.digest, "machine": machine, **asked})
    return settings.work_folder() / "plans" / f"{key[:24]}.json"


def _planned(config: RetrainConfig, dataset: DatasetArtifact, fixed: list[str], budget: float | None, card: int | None) -> Plan:
    from components.data.dataset import load_dataset
    from components.planning import plan as planning
    from components.planning.calibration import calibrate
    from components.planning.cost import card_needs, needs_of

    size = number_bytes(config)
    host, device = planning.free_room(settings.home()), planning.device_memory()
    if card is not None and device is None and budget is not None:
        raise ConfigError(
            "--budget needs measured times, and the card is not in this machine. Leave out one of the two, or plan where the card is."
        )
    memory = card or device or host.memory
    facts = _facts(planning.wanted_facts(config, fixed), dataset)
    on_card = card is not None or device is not None
    choices = planning.from_data(config, facts, fixed, planning.Room(memory, host.disk), size, on_card)
    sized = planning.changed(config, {choice.field: choice.value for choice in choices})
    notes = planning.notes_on(sized, facts, card, device)
    if card is not None and device is None:
        needs, cards = needs_of(sized, facts, size, on_card=True), card_needs(sized, facts, size)
        rows = [planning.Row(step, None, None, **asdict(need), card=cards.get(step)) for step, need in needs.items()]
        problem = planning.card_problem(sized, facts, size, card)
        return _made(sized, facts, choices, rows, f"a card of {card / 1e9:.0f} GB that is not here", problem, notes, None)
    found = calibrate(load_dataset(dataset.path), sized)
    knob = planning.card_problem(sized, facts, size, memory) if on_card else ""
    if budget is not None and not knob:
        more = planning.to_budget(sized, facts, fixed, budget, found.wall)
        knob = planning.knob(sized, facts, fixed, budget, found.wall) if more is None else ""
        choices = planning.merged(choices, more or [])
        sized = planning.changed(config, {choice.field: choice.value for choice in choices})
    rows = planning.rows_of(sized, facts, found.wall, found.cpu, size)
    notes += [f"{note[0].upper()}{note[1:]}."] if device is None and (note := planning.busy_note(rows)) else []
    return _made(sized, facts, choices, rows, found.device, knob, notes, found)


def _made(
    config: RetrainConfig,
    facts: Facts,
    choices: list[Choice],
    rows: list[Row],
    device: str,
    knob: str,
    notes: list[str],
    found: Calibration | None,
) -> Plan:
    from components.planning.plan import describe_data

    return Plan(
        config=config.model_dump(mode="json"),
        choices=[asdict(choice) for choice in choices],
        data=describe_data(facts),
        rows=[asdict(row) for row in rows],
        device=device,
        knob=knob,
        notes=notes,
        rates={"wall": dict(found.wall), "cpu": dict(found.cpu)} if found else {},
    )


def begin_planned(config: RetrainConfig, plan: Plan) -> str | None:
    """As `announce`, from the measurements of a plan."""
    return _begin(config, _snapshot(config), {row["step"]: row["seconds"] or 0.0 for row in plan.rows}, plan.device)


def _snapshot(config: RetrainConfig) -> DatasetArtifact:
    """The data, read now if it was not before, without a word: what a command says first is its estimate or its plan."""
    found: DatasetArtifact = typed(make_ahead(snapshot_step(config)), DatasetArtifact)
    return found


def _facts(config: RetrainConfig, dataset: Artifact, rough: bool = False) -> Facts:
    from components.data.dataset import load_dataset
    from components.planning.facts import gather_facts

    return gather_facts(load_dataset(dataset.path), config.towers, config.distillation, config.evaluation, rough)
