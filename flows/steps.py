"""How a step runs inside a flow: found finished or made, shown in Prefect, and its lineage recorded in MLflow.

A step's folder is named by the digest of all that determines its result: configuration, inputs, the code of the rooms that make it,
and the versions of the libraries beneath. A folder whose manifest verifies is the result; any other is (re)made, and the step itself
continues from what a killed attempt left there.
"""

from __future__ import annotations

import fcntl
import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run
from prefect.states import Completed

from components import settings
from components.artifacts import Artifact, digest_of, file_sha256, is_complete, read_json, verify, write_json
from components.errors import ArtifactError

if TYPE_CHECKING:
    from prefect.states import State

COMPONENTS = Path(__file__).resolve().parents[1] / "components"
STUDIES_ROOM = "flows/studies"
# Folders of steps that this process made for its estimate, before the flow that they belong to.
_made_ahead: set[Path] = set()
LIBRARIES = ("torch", "transformers", "peft", "sentence-transformers", "faiss-cpu", "great-expectations", "bm25s", "numpy")


@dataclass(frozen=True)
class Step:
    """One step: its name, the rooms whose code makes it, its configuration and inputs, and the function that makes it."""

    name: str
    rooms: tuple[str, ...]
    make: Callable[[Path], Artifact]
    inputs: Mapping[str, Artifact] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The step's own folder under the working files, named by its key."""
        key = digest_of(
            {
                "config": dict(self.config),
                "inputs": {role: artifact.digest for role, artifact in self.inputs.items()},
                "code": {room: code_digest(room) for room in self.rooms},
                "libraries": library_versions(),
                # Only where it is forced: what the machine chooses by itself is no setting.
                **({"precision": forced} if (forced := settings.forced_precision()) else {}),
            }
        )
        return settings.work_folder() / self.name / key[:24]


@dataclass(frozen=True)
class Timing:
    """How long the making of a step took. Of several attempts, as after a kill, only the last one's seconds are known."""

    seconds: float
    attempts: int


@dataclass(frozen=True)
class Done:
    """A finished step: its artifact, whether it was found finished, the seconds that took, and those its making took, if known.

    `task_run_id` is that of Prefect, None outside of it.
    """

    artifact: Artifact
    cached: bool
    seconds: float
    timing: Timing | None
    task_run_id: str | None = None


@cache
def code_digest(room: str) -> str:
    """Digest of the Python files of a room of `components/`, or of the studies for `STUDIES_ROOM`."""
    root = COMPONENTS.parent if room == STUDIES_ROOM else COMPONENTS
    files = sorted((root / room).rglob("*.py"))
    return digest_of({f.relative_to(root).as_posix(): file_sha256(f) for f in files})


@cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that a result depends on; 'absent' where one is not installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def run_step(step: Step) -> Done:
    """Run `step` as a Prefect task: at once if its folder verifies (state `Cached`), else by making it."""
    # The state is asked for, since a task that returns a state of its own (Cached) gives its caller that state.
    done: Done = _as_task(step.name)(step, return_state=True).result()
    return done


@cache
def _as_task(name: str) -> Any:
    # No Prefect cache or stored result: the manifest is the one place that says whether a step is done.
    return task(name=name, task_run_name=name, cache_policy=NO_CACHE, persist_result=False)(_execute)


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


def _execute(step: Step) -> State[Done] | Done:
    done = replace(_made(step), task_run_id=task_run.id)
    return Completed(name="Cached", message="its manifest verified", data=done) if done.cached else done


def _made(step: Step) -> Done:
    started = time.monotonic()
    with _alone(step.folder):
        if step.folder in _made_ahead and is_complete(step.folder):
            _made_ahead.discard(step.folder)
            artifact, timing = verify(step.folder), _read_timing(step.folder) or Timing(0.0, 1)
            print(f"[{step.name}] started\n[{step.name}] done in {timing.seconds:.1f} s: {_counts(artifact)}", flush=True)
            return Done(artifact, False, timing.seconds, timing)
        if is_complete(step.folder):
            print(f"[{step.name}] unchanged, taken from the cache", flush=True)
            return Done(verify(step.folder), True, time.monotonic() - started, _read_timing(step.folder))
        print(f"[{step.name}] started", flush=True)
        artifact, timing = _timed(step)
    print(f"[{step.name}] done in {timing.seconds:.1f} s: {_counts(artifact)}", flush=True)
    return Done(artifact, False, time.monotonic() - started, timing)


def _timed(step: Step) -> tuple[Artifact, Timing]:
    """Make the step and keep how long it took beside its folder: a time within would change the artifact's digest."""
    earlier = _read_timing(step.folder) if any(step.folder.iterdir()) else None
    attempts = earlier.attempts + 1 if earlier else 1
    write_json(_timing_file(step.folder), asdict(Timing(0.0, attempts)))
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
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"[{folder.parent.name}] waiting: another run is making this step", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
