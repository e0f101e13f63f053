"""One flow run in MLflow: every step that runs through the recorder leaves its nested run and its lineage, so none can forget it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from logging import WARNING
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.runtime import flow_run

from components import settings
from components.artifacts import Artifact
from components.errors import masked
from components.evidence.metrics import step_metrics
from components.release.manifest import LineageNode
from components.settings import without_user
from components.signing.keys import load_signing_key
from components.tracking.live import End, LiveStep, Mark, leave_mark, left_behind, live_step, marked_as_running
from components.tracking.provenance import Provenance, collect_provenance, version_tags
from components.tracking.registry import RegisteredVersion, register
from components.tracking.runs import (
    CANCELLED,
    REPORT_KINDS,
    Measured,
    Status,
    StepRecord,
    close_flow_run,
    close_left_run,
    log_evidence,
    log_report,
    open_flow_run,
    open_step,
    record_step,
    report_link,
    run_link,
)
from components.tracking.store import TrackingError
from flows.planning import left_after
from flows.reporting import cancelled_runs, logged_lines, say, show_link, tag_run
from flows.runner import Done, Step, Timing, run_step, was_cancelled

if TYPE_CHECKING:
    from prefect.states import State


_ended: dict[str, tuple[str | None, End]] = {}  # runs of this process in MLflow -> the run in Prefect, and how it ended


class Recorder:
    """Runs steps and remembers what the lineage of the release will need."""

    def __init__(self, name: str, parameters: Mapping[str, Any], run_id: str, provenance: Provenance, again: Iterable[str] = ()) -> None:
        """`again`: names of the steps that are made anew although they are finished."""
        self.name, self.parameters, self.run_id, self.provenance = name, parameters, run_id, provenance
        self.again = frozenset(again)
        self.lineage: list[LineageNode] = []
        self.earlier_flows: dict[str, dict[str, Any]] = {}
        self.made = 0  # steps that were not found finished
        self.timings: dict[str, Timing | None] = {}  # by the artifact's digest
        self._runs: dict[str, str] = {}
        self._tasks: dict[str, str | None] = {}
        self._states: dict[str, State[Any]] = {}  # in Prefect, of the tasks that made the artifacts of this flow
        self._check: State[Any] | None = None  # of the newest task that held a result against what it has to be
        self._checked: set[str] = set()  # artifacts that were made after it
        self._reused: set[str] = set()

    @property
    def origin(self) -> dict[str, Any]:
        """Code and machine as plain values, with the run of the flow in Prefect."""
        return {**self.provenance.model_dump(mode="json"), "prefect_flow_run_id": flow_run.id}

    @property
    def flows_of_lineage(self) -> dict[str, dict[str, Any]]:
        """Those of the earlier flows that made something of the lineage."""
        made = {node.flow_run_id for node in self.lineage}
        return {run: known for run, known in self.earlier_flows.items() if run in made}

    @property
    def all_cached(self) -> bool:
        """Whether every step so far was found finished."""
        return self.made == 0

    def run(self, step: Step, metrics: Callable[[Artifact], Mapping[str, Measured]] = step_metrics) -> Artifact:
        """Run a step, record it in MLflow with the `metrics` of its artifact, and return the artifact.

        Raises what the making raises, and what the step's check finds wrong.
        """
        with live_step(partial(open_step, self.run_id, step.name)) as live:
            done = run_step(step, self.name, self.run_id, self._before(step), step.name in self.again)
        if left := left_after(step.name, None if done.cached else done.seconds):
            say(f"[{step.name}] {left}")
        self.made += not done.cached
        self.timings[done.artifact.digest] = done.timing
        artifact = self._record(step, done, metrics(done.artifact), live)
        if done.fault is not None:
            if artifact.kind in REPORT_KINDS:
                page = report_link(self._runs[artifact.digest], artifact.kind)
                show_link(f"{self.name}-report", page, f"What {step.name} found, in MLflow")
            raise done.fault
        self._follow(step, done)
        return artifact

    def _before(self, step: Step) -> list[State[Any]]:
        """The tasks that a step follows: those that made its inputs, and the check before it unless one of these follows that already."""
        digests = {artifact.digest for artifact in step.inputs.values()}
        made = {id(state): state for digest in digests if (state := self._states.get(digest)) is not None}
        if self._check is not None and not digests & self._checked:
            made[id(self._check)] = self._check
        return list(made.values())

    def _follow(self, step: Step, done: Done) -> None:
        if done.state is None:
            return
        self._states[done.artifact.digest] = done.state
        if step.check is not None:
            self._check, self._checked = done.state, {done.artifact.digest}
        elif self._check is not None:
            self._checked.add(done.artifact.digest)

    def record_part(self, whole: Artifact, part: Artifact, step: Step) -> Artifact:
        """Make a part of a finished step (such as one of two towers) an artifact of its own in the lineage."""
        self._runs[part.digest], self._tasks[part.digest] = self._runs[whole.digest], self._tasks[whole.digest]
        if whole.digest in self._states:
            self._states[part.digest] = self._states[whole.digest]
        if whole.digest in self._checked:
            self._checked.add(part.digest)
        if whole.digest in self._reused:
            self._reused.add(part.digest)
        self._remember(step, part, self._runs[whole.digest])
        return part

    def adopt_lineage(self, lineage: Iterable[LineageNode], flows: Mapping[str, dict[str, Any]]) -> None:
        """Take over artifacts that earlier flows made and registered, with the runs that made them, and what these `flows` ran on."""
        self.earlier_flows.update(flows)
        for node in lineage:
            self._runs[node.digest] = node.run_id or self.run_id
            self._keep(node)

    def log_report(self, folder: Path, text: str) -> None:
        """Keep the files of a finished report with the flow's own run, and show its text there."""
        log_report(self.run_id, folder, text)

    def log_candidate_page(self, candidate: Artifact, metrics: Mapping[str, Measured], text: str, tables: Mapping[str, Any]) -> None:
        """Put the evidence about the candidate on the page of the flow's own run, where people look first."""
        log_evidence(self.run_id, candidate.path, metrics, text, tables)

    def register(self, role: str, artifact: Artifact, inputs: Mapping[str, RegisteredVersion], data_digest: str) -> RegisteredVersion:
        """Register an artifact as a version of `<name>-<role>`; unchanged ones keep their version."""
        tags = version_tags(self.provenance, data_digest, dict(self.parameters), self.run_id)
        return register(f"{self.name}-{role}", artifact, self._runs[artifact.digest], inputs, tags)

    def _record(self, step: Step, done: Done, metrics: Mapping[str, Measured], live: LiveStep) -> Artifact:
        artifact = done.artifact
        fault = str(done.fault or "")
        record = StepRecord(
            step.name, step.config, artifact, step.inputs, metrics, done.seconds, done.cached, self.run_id, done.task_run_id, fault
        )
        self._runs[artifact.digest], self._tasks[artifact.digest] = record_step(self.run_id, record, live), done.task_run_id
        if done.cached:
            self._reused.add(artifact.digest)
        self._remember(step, artifact, self._runs[artifact.digest])
        return artifact

    def _remember(self, step: Step, artifact: Artifact, run_id: str) -> None:
        node = LineageNode(
            digest=artifact.digest,
            kind=artifact.kind,
            name=step.name,
            parents={**{role: used.digest for role, used in step.inputs.items()}, **artifact.parents},
            counts=artifact.counts,
            attributes=artifact.attributes,
            config=dict(step.config),
            run_id=run_id,
            task_run_id=self._tasks[artifact.digest],
            recorded_at=datetime.now(UTC).isoformat(timespec="seconds"),
            reused=artifact.digest in self._reused,
        )
        self._keep(node)

    def _keep(self, node: LineageNode) -> None:
        """One node an artifact. What was taken over and is only found again by a step of this flow keeps the flow that made it."""
        known = next((other for other in self.lineage if other.digest == node.digest), None)
        if known is None or not (known.flow_run_id and node.reused):
            self.lineage = [*(other for other in self.lineage if other is not known), node]


@contextmanager
def recorded_flow(name: str, flow: str, parameters: Mapping[str, Any], again: Iterable[str] = ()) -> Iterator[Recorder]:
    """Open the flow's run in MLflow and close it as finished, failed or killed, as Prefect shows it; the steps `again` are made anew.

    Runs of killed processes, and those that could not be closed, are closed first, in MLflow and in Prefect.
    """
    load_signing_key()  # a key that cannot be used is found now, not after a day of training
    provenance = collect_provenance()
    with ExitStack() as marks:
        opened: list[str] = []
        marked: list[Mark] = []

        def begin(run_id: str) -> None:
            """Whatever ends us from now on, the run is known to the next flow."""
            opened.append(run_id)
            marked.append(marks.enter_context(marked_as_running(run_id, {"prefect_flow_run_id": flow_run.id, "store": _store()})))

        try:
            run_id = open_flow_run(name, flow, parameters, provenance, {"prefect_flow_run_id": flow_run.id or "none"}, begin)
            _close_all_left(run_id)
            tag_run(("scalingnote", f"retriever:{name}"))
            show_link(f"{name}-mlflow", run_link(run_id), "This run in MLflow")
            with logged_lines():
                yield Recorder(name, parameters, run_id, provenance, again)
        except BaseException as error:
            if opened:
                _close_unfinished(opened[0], marked[0] if marked else None, error)
            raise
        _keep(run_id, marked[0], "FINISHED", "")
        try:
            close_flow_run(run_id, "FINISHED")
            marked[0].remove()
        except TrackingError as error:  # all that it made is recorded, and whoever reads that this failed would make it again
            said = str(error).partition("\n")[0]
            say(f"All is done and recorded, but MLflow still shows this run as running; the next one closes it. {said}", WARNING)


def _close_unfinished(run_id: str, mark: Mark | None, error: BaseException) -> None:
    """Close the run of a flow that `error` ends; without a mark where a disk was too full for one."""
    status, why = _ended_by(error)
    _keep(run_id, mark, status, why)
    with suppress(Exception):  # a store that cannot be written must not hide what went wrong
        close_flow_run(run_id, status, why)
        if mark is not None and status == "FAILED":  # else another signal may come before all is closed, in Prefect too
            mark.remove()


def _keep(run_id: str, mark: Mark | None, status: Status, why: str) -> None:
    """Keep with the mark how the run ended, before the store is told, which may be gone."""
    if mark is not None:
        mark.keep(end := End(status, why, int(time.time() * 1000)))
        _ended[run_id] = (flow_run.id, end)


def leave_untold() -> None:
    """Prefect's server is gone, so nothing has told it how the runs of this process ended: the next flow does."""
    while _ended:
        run_id, (in_prefect, end) = _ended.popitem()
        leave_mark(run_id, {"prefect_flow_run_id": in_prefect}, end)


def _ended_by(error: BaseException) -> tuple[Status, str]:
    """How a run ended that did not finish, and why."""
    if isinstance(error, Exception):
        return "FAILED", masked(str(error))
    if not was_cancelled(error):
        return "KILLED", "its process was told to end"
    cancelled_runs.add(str(flow_run.id))
    return "KILLED", CANCELLED


def _close_all_left(own: str) -> None:
    """Close what other flows than that of the run `own` have left.

    One of another team's, which this user may not change, is no reason to stop, and stays for them. So does one of another tracking store:
    it is closed when a flow goes there again.
    """
    for left, about, end, mark in left_behind(own):
        try:
            known = _close_left(left, about.get("prefect_flow_run_id"), end)
            if known or about.get("store") in (None, _store()):
                with suppress(OSError):  # in a folder of somebody else
                    mark.remove()
        except TrackingError as error:
            said = str(error).partition("\n")[0]
            say(f"The run {left} of a flow that has ended is still shown as running: {said}", WARNING)


def _store() -> str:
    return without_user(settings.tracking_uri())


def _close_left(run_id: str, in_prefect: str | None, end: End) -> bool:
    """Close it in MLflow and in Prefect; returns whether this store of MLflow's knows it."""
    known = close_left_run(run_id, end)
    if in_prefect is not None:
        _close_in_prefect(in_prefect, end)
    return known


def _close_in_prefect(in_prefect: str, end: End) -> None:
    with suppress(Exception):  # Prefect's database may be another one by now, and its history is not ours to keep
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

        left = UUID(in_prefect)
        with get_client(sync_client=True) as client:
            asked_to_end = client.read_flow_run(left).state_name == "Cancelling"
            state = _in_prefect(end, asked_to_end)
            if asked_to_end or client.read_flow_run(left).state_name == "Running":
                client.set_flow_run_state(left, state, force=True)
            for step in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[left]))):
                if step.state_name == "Running":
                    client.set_task_run_state(step.id, state, force=True)


def _in_prefect(end: End, asked_to_end: bool) -> State[Any]:
    """The state of a run in Prefect that ended without telling it."""
    from prefect.states import Cancelled, Completed, Crashed, Failed

    if end.status == "FINISHED":
        return Completed(message="The run finished, and its server was gone then.")
    if end.status == "FAILED":
        return Failed(message=end.why)
    if asked_to_end or end.why == CANCELLED:
        return Cancelled(message="The run was cancelled.")
    return Crashed(message="The process of this run was killed.")
