"""How a step runs inside a flow: found finished or made, shown in Prefect, and its lineage recorded in MLflow.

A step's folder is named by the digest of all that determines its result: configuration, inputs, the code that its making reaches, and
the versions of the libraries which that code imports. A folder whose manifest verifies is the result; any other is (re)made, and the
step itself continues from what a killed attempt left there.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from functools import cache, cached_property, partial
from logging import WARNING
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import UUID

import prefect.utilities.engine
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run as prefect_run
from prefect.runtime import task_run
from prefect.states import Cancelled, Completed, Failed
from prefect.utilities.annotations import quote

from components import settings
from components.artifacts import (
    MANIFEST,
    SIGNATURE,
    UNFINISHED,
    Artifact,
    digest_of,
    parents_of,
    read_json,
    read_manifest,
    verify,
    write_json,
)
from components.code import Reached, reached_by
from components.errors import ArtifactError, ConfigError, DataError, ResourceError, ScalingNoteError, masked
from components.progress import begin_step
from flows.reporting import say, told_again, watched
from flows.why import STEPS, at_start, keep_begin, keep_end, keep_use, last_use, made_by, named_settings, unused

if TYPE_CHECKING:
    from prefect.states import State

PRECISION = "components/towers/device.py"  # what it chooses decides the results of the steps that reach it
# Seconds before a step is tried again whose failure may pass by itself.
RETRY_DELAYS = (10, 60)
# Steps that train or encode have this tag after `prefect concurrency-limit create gpu 1`, and one of them at a time has the card. The
# evaluation and the comparison with the champion have not, as most of their time is BM25 and timing; what they encode uses the card too.
CARD = "gpu"
ON_CARD = frozenset(
    {
        "generate_queries", "train_towers", "train_companion", "join_companion", "encode_corpus", "encode_teacher_queries",
        "distil_query_tower", "encode_changes", "map_query_tower",
    }
)  # fmt: skip
# Folders of steps that this process made for its estimate, before the flow that they belong to.
_made_ahead: set[Path] = set()


Make = Callable[[Path], Artifact]


@dataclass(frozen=True)
class Step:
    """One step: its name, the function that makes it, its inputs and configuration.

    `make` is mostly a public function of a room with all arguments but the folder. What it and the functions that it is given import, and
    all that is imported from there, is the step's code (see components.code). `version` is raised by hand when results have to be made
    anew although nothing in their key has changed.
    `resumes` are the patterns of files that a killed attempt may leave for the next one; all others are removed before it begins.
    `check` raises what is wrong with a finished result: the step has then failed, though its result, such as a report, stays.
    """

    name: str
    make: Make
    inputs: Mapping[str, Artifact] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1
    resumes: tuple[str, ...] = ()
    check: Callable[[Artifact], None] | None = None

    @cached_property
    def reached(self) -> Reached:
        """Code and libraries that the making of the step reaches."""
        return reached_by(self.make)

    @property
    def key_settings(self) -> dict[str, Any]:
        """The configuration, and the precision where it is forced: what the machine chooses by itself is no setting."""
        forced = settings.forced_precision() if PRECISION in self.reached.code else None
        return {**self.config, **({"forced_precision": forced} if forced else {})}

    @cached_property
    def folder(self) -> Path:
        """The step's own folder under the working files, named by its key."""
        key = digest_of(
            {
                "config": self.key_settings,
                "inputs": parents_of(self.inputs),
                "code": self.reached.code,
                "libraries": self.reached.libraries,
                "version": self.version,
            }
        )
        return settings.work_folder() / self.name / key[:24]

    @property
    def parts(self) -> dict[str, Any]:
        """The parts of the key as people know them, by which two results are compared."""
        return {
            "settings": named_settings(self.key_settings),
            "inputs": {role: made_by(artifact) for role, artifact in self.inputs.items()},
            "code": self.reached.code,
            "libraries": self.reached.libraries,
            "version": {"the step's version": self.version},
        }


@dataclass(frozen=True)
class Timing:
    """How long the making of a step took. Of several attempts, as after a kill, only the last one's seconds are known."""

    seconds: float
    attempts: int


@dataclass(frozen=True)
class Done:
    """A finished step: its artifact, whether it was found finished, the seconds that took, and those its making took, if known.

    `task_run_id` and `state` are those of Prefect, None outside of it. `fault`: what the step's check found wrong.
    """

    artifact: Artifact
    cached: bool
    seconds: float
    timing: Timing | None
    task_run_id: str | None = None
    state: State[Any] | None = None
    fault: ScalingNoteError | None = None


def run_step(step: Step, retriever: str = "", flow_run: str = "", after: Iterable[State[Any]] = (), again: bool = False) -> Done:
    """Run `step` as a Prefect task: at once if its folder verifies (state `Cached`), else by making it; with `again` in any case.

    `retriever` and `flow_run` (in MLflow) say for whom, so that its next result can be compared with this one. `after` are the states of
    the tasks that it follows, which Prefect draws as edges. Raises what the making raises; what the check found stands in the result.
    """
    # Prefect would know an input again only where it is the very object that a task returned, and inputs are read from their folders:
    # so it is told what came before, and does not look. The state is asked for, since a task that returns a state of its own (Cached)
    # gives its caller that state.
    job = partial(_execute, step, retriever, flow_run, again)
    limited = step.name in ON_CARD and _card_is_limited(str(prefect_run.id))
    state = _as_task(step.name, limited)(quote(job), wait_for=list(after) or None, return_state=True)
    outcome = state.result(raise_on_failure=False)
    if isinstance(outcome, Done):
        return replace(outcome, state=state)
    raise outcome


@cache
def _card_is_limited(_run: str) -> bool:
    """Whether Prefect limits the steps that use the card. Asked once a run: a task with a tag asks the server, and fails without it."""
    from prefect.client.orchestration import get_client

    with suppress(Exception), get_client(sync_client=True) as client:
        return client.read_concurrency_limit_by_tag(CARD) is not None
    return False


@cache
def _as_task(name: str, limited: bool) -> Any:
    """The task of the step `name`, with a key of its own that stays the same when our code changes, for filters and automations."""

    def run(job: Callable[[], Any]) -> Any:
        return job()

    run.__name__ = run.__qualname__ = name
    # No Prefect cache or stored result: the manifest is the one place that says whether a step is done.
    made = task(
        name=name,
        description=STEPS.get(name, f"A measurement of a study: {name.replace('_', ' ')}."),
        task_run_name=name,
        tags={CARD} if limited else None,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=len(RETRY_DELAYS),
        retry_delay_seconds=list(RETRY_DELAYS),
        retry_condition_fn=_tried_again,
    )(run)
    made.task_key = f"scalingnote.{name}"
    return made


def may_pass(error: BaseException) -> bool:
    """Whether a failure may be gone in a minute: a connection that was refused, cut or silent, and not what a person has to mend."""
    if isinstance(error, (ConfigError, DataError, ResourceError)):
        return False
    seen: BaseException | None = error
    while seen is not None:
        network = {kind.__module__.partition(".")[0] + "." + kind.__name__ for kind in type(seen).__mro__}
        if isinstance(seen, (ConnectionError, TimeoutError)) or network & {"httpx.TransportError", "requests.ConnectionError"}:
            return True
        seen = seen.__cause__
    return False


def _tried_again(step_task: Any, run: Any, state: State[Any]) -> bool:
    """Prefect's question after a failure, which it asks while a retry is left."""
    error = state.data if isinstance(state.data, BaseException) else None
    if error is None or not may_pass(error):
        return False
    delay = RETRY_DELAYS[min(run.run_count, len(RETRY_DELAYS)) - 1]
    say(f"[{step_task.name}] failed ({type(error).__name__}: {masked(str(error))}); it is tried again in {delay} s", WARNING)
    return True


def make_step(step: Step) -> Artifact:
    """Run `step` without Prefect and without a record, for commands that only look."""
    return _made(step).artifact


def make_ahead(step: Step) -> Artifact:
    """As `make_step`, without a word, before the flow that has this step: that flow reports it as made and not as found finished."""
    with redirect_stdout(io.StringIO()):
        done = _made(step)
    if not done.cached:
        _made_ahead.add(step.folder)
    return done.artifact


def _execute(step: Step, retriever: str, flow_run: str, again: bool) -> State[Any] | Done:
    try:
        with watched(step.name):
            done = replace(_made(step, retriever, flow_run, again), task_run_id=task_run.id)
    except (KeyboardInterrupt, TerminationSignal) as stop:
        if was_cancelled(stop):  # else Prefect shows a crash, which it was
            return Cancelled(message="The run was cancelled.", data=stop)
        raise
    if (fault := _fault(step, done.artifact)) is not None:
        return Failed(message=str(fault), data=replace(done, fault=fault))
    return Completed(name="Cached", message="its manifest verified", data=done) if done.cached else done


def _fault(step: Step, artifact: Artifact) -> ScalingNoteError | None:
    try:
        if step.check is not None:
            step.check(artifact)
    except ScalingNoteError as fault:
        return fault
    return None


def _told_to_end(number: int, *_frame: object) -> NoReturn:
    """End the flow as Prefect's own handler of SIGTERM does, but once: `timeout` and closed terminals tell a process twice.

    A second exception in the midst of the tidying up left its work undone, and now and then a lock of Prefect's client held for good.
    """
    signal.signal(signal.SIGTERM, _told_once_more)  # not SIG_IGN, which programs that we start would inherit
    raise TerminationSignal(signal=number)


def _told_once_more(number: int, *_frame: object) -> None:
    """Nothing, but where a cancelled step goes on: what was raised first was lost within a destructor."""
    if told_again.is_set():
        told_again.clear()
        raise TerminationSignal(signal=number)


# In the place of its own: Prefect confirms a cancellation of its page only while the handler that it knows by this name is installed.
prefect.utilities.engine._prefect_sigterm_handler = _told_to_end  # type: ignore[assignment]


def was_cancelled(stop: BaseException) -> bool:
    """Whether a person ended the run, with Ctrl-C or in Prefect's page; a signal that nobody there sent has killed it."""
    if isinstance(stop, TerminationSignal):
        from prefect.client.orchestration import get_client

        with suppress(Exception), get_client(sync_client=True) as client:  # a server that is gone was not asked to cancel anything
            state = client.read_flow_run(UUID(str(prefect_run.id))).state
            return state is not None and (state.is_cancelling() or state.is_cancelled())
    return isinstance(stop, KeyboardInterrupt)


@dataclass(frozen=True)
class Removed:
    """A working folder that `remove_unused` removed, or would: its step, its key, and the bytes that are free since."""

    step: str
    key: str
    bytes: int


def remove_unused(days: int, only: str | None = None, dry_run: bool = False) -> list[Removed]:
    """Remove the results of steps that `unused` names; what a flow holds at this moment stays. `dry_run`: say what would go.

    A flow that needs one of them again makes it again. A file that other folders hold too is free with the last of them. Copies of a
    remote store's files that nothing has opened for as long go too, unless results of one retriever (`only`) are asked for.
    """
    # Schedules of two workers come at the same minute, and would count and remove the same.
    with settings.alone("prune-work", f"removing results in {settings.work_folder()}"):
        idle, links = unused(days, only), Counter[tuple[int, int]]()
        freed = {folder: _freed(folder, links) for folder in idle}
        removed = []
        for folder, at in idle.items():
            with folder.with_suffix(".lock").open("a") as handle:
                if not settings.locked(handle, wait=False) or last_use(folder) != at:  # a flow has taken it meanwhile
                    continue
                removed.append(Removed(folder.parent.name, folder.name, freed[folder]))
                if not dry_run:
                    (folder / MANIFEST).unlink(missing_ok=True)  # first: what is killed here leaves no result that looks finished
                    shutil.rmtree(folder)
        return removed + ([] if only else _remove_downloads(days, dry_run))


def _remove_downloads(days: int, dry_run: bool) -> list[Removed]:
    from components.tracking.live import scratch
    from components.tracking.packaging import unused_downloads

    removed = []
    for folder in unused_downloads(days):
        removed.append(Removed(folder.parent.name, folder.name, _freed(folder, Counter())))
        if not dry_run:
            # Away at once, so that what is killed here leaves no half of it. A service that has its files open keeps them.
            with scratch(folder.parent, ".partial-") as away:
                folder.replace(away / folder.name)
    return removed


def _freed(folder: Path, links: Counter[tuple[int, int]]) -> int:
    """Bytes that are free without the folder; `links` counts the names of files that went before."""
    freed = 0
    for path in folder.rglob("*"):
        if not path.is_symlink() and path.is_file():
            held = path.stat()
            links[held.st_dev, held.st_ino] += 1
            freed += held.st_size if links[held.st_dev, held.st_ino] == held.st_nlink else 0
    return freed


def _made(step: Step, retriever: str = "", flow_run: str = "", again: bool = False) -> Done:
    started = time.monotonic()
    with _alone(step.folder):
        artifact, damage = (None, "") if again else _finished(step)
        if artifact is not None and step.folder in _made_ahead:
            _made_ahead.discard(step.folder)
            keep_use(step.folder, step.inputs, retriever, flow_run)
            timing = _read_timing(step.folder) or Timing(0.0, 1)
            say(f"[{step.name}] started")
            say(f"[{step.name}] done in {timing.seconds:.1f} s: {_counts(artifact)}")
            return Done(artifact, False, timing.seconds, timing)
        if artifact is not None:
            keep_use(step.folder, step.inputs, retriever, flow_run)
            say(f"[{step.name}] unchanged, taken from the cache")
            return Done(artifact, True, time.monotonic() - started, _read_timing(step.folder))
        because = at_start(step.name, keep_begin(step.folder, step.parts, retriever, flow_run, damage, again))
        say(f"[{step.name}] started{f': {because}' if because else ''}")
        if again:  # nor from what an attempt left
            _remove_all_but(step.folder, lambda name: False)
        begin_step()
        artifact, timing = _timed(step)
        keep_end(step.folder)
    say(f"[{step.name}] done in {timing.seconds:.1f} s: {_counts(artifact)}")
    return Done(artifact, False, time.monotonic() - started, timing)


def _finished(step: Step) -> tuple[Artifact | None, str]:
    """The step's artifact, or None with what is wrong with it. Files that it does not name are removed: they are no part of it."""
    try:
        if not (step.folder / MANIFEST).exists():
            return None, ""
        named = {*read_manifest(step.folder).files, MANIFEST, SIGNATURE}
        for stray in _remove_all_but(step.folder, named.__contains__):
            say(f"[{step.name}] removed {os.fsencode(stray).decode(errors='replace')}, which is none of its files", WARNING)
        return verify(step.folder), ""
    except ArtifactError as error:
        return None, str(error).removeprefix(f"{step.folder}: ").partition(". ")[0]


def _remove_all_but(folder: Path, keep: Callable[[str], bool]) -> list[str]:
    """Remove the files of `folder` whose path within it is not to be kept, and return those paths; hidden ones stay.

    A link is removed as one, whatever it leads to.
    """
    removed = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if (path.is_file() or path.is_symlink()) and not path.name.startswith(".") and not keep(name):
            path.unlink()
            removed.append(name)
    return removed


def _timed(step: Step) -> tuple[Artifact, Timing]:
    """Make the step and keep how long it took beside its folder: a time within would change the artifact's digest."""
    earlier = _read_timing(step.folder) if any(step.folder.iterdir()) else None
    attempts = earlier.attempts + 1 if earlier else 1
    write_json(_timing_file(step.folder), asdict(Timing(0.0, attempts)))
    for left in step.folder.rglob(f".*{UNFINISHED}"):  # a killed attempt was writing it; a whole shard of vectors may be large
        left.unlink(missing_ok=True)
    # The seal would take in a stray file, and every later step would be made anew.
    _remove_all_but(step.folder, lambda name: any(fnmatch(name, pattern) for pattern in step.resumes))
    started = time.monotonic()
    artifact = step.make(step.folder)
    timing = Timing(time.monotonic() - started, attempts)
    write_json(_timing_file(step.folder), asdict(timing))
    return artifact, timing


def _timing_file(folder: Path) -> Path:
    return folder.with_suffix(".timing.json")


def _read_timing(folder: Path) -> Timing | None:
    """The timing of a step; None when it was not recorded or cannot be read, which is no reason to make the step again."""
    try:
        return Timing(**read_json(_timing_file(folder)))
    except (ArtifactError, TypeError):
        return None


def _counts(artifact: Artifact) -> str:
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in artifact.counts.items()) or artifact.kind


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the step's lock, which the system frees when its holder dies; a second flow waits and then finds the step finished."""
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as handle:
        if not settings.locked(handle, wait=False):
            say(f"[{folder.parent.name}] waiting: another run is making this step", WARNING)
            settings.locked(handle)
        folder.mkdir(exist_ok=True)  # who held the lock may have removed the result
        yield
