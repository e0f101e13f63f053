"""How a step runs inside a flow: found finished or made, shown in Prefect, and its lineage recorded in MLflow.

A step's folder is named by the digest of all that determines its result: configuration, inputs, the code that its making reaches, and
the versions of the libraries which that code imports. A folder whose manifest verifies is the result; any other is (re)made, and the
step itself continues from what a killed attempt left there.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run
from prefect.states import Completed

from components import settings
from components.artifacts import MANIFEST, SIGNATURE, UNFINISHED, Artifact, digest_of, read_json, read_manifest, verify, write_json
from components.code import Reached, reached_by
from components.errors import ArtifactError
from flows.why import at_start, keep_begin, keep_end, keep_use, made_by, named_settings

if TYPE_CHECKING:
    from prefect.states import State

PRECISION = "components/towers/precision.py"  # what it chooses decides the results of the steps that reach it
# Folders of steps that this process made for its estimate, before the flow that they belong to.
_made_ahead: set[Path] = set()


@dataclass(frozen=True)
class Step:
    """One step: its name, the function that makes it, its inputs and configuration.

    What `make` and the functions it is closed over import, and all that is imported from there, is the step's code (see
    components.code). `version` is raised by hand when results have to be made anew although nothing in their key has changed.
    `resumes` are the patterns of files that a killed attempt may leave for the next one; all others are removed before it begins.
    """

    name: str
    make: Callable[[Path], Artifact]
    inputs: Mapping[str, Artifact] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1
    resumes: tuple[str, ...] = ()

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
                "inputs": {role: artifact.digest for role, artifact in self.inputs.items()},
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

    `task_run_id` is that of Prefect, None outside of it.
    """

    artifact: Artifact
    cached: bool
    seconds: float
    timing: Timing | None
    task_run_id: str | None = None


def run_step(step: Step, retriever: str = "", flow_run: str = "") -> Done:
    """Run `step` as a Prefect task: at once if its folder verifies (state `Cached`), else by making it.

    `retriever` and `flow_run` (in MLflow) say for whom, so that its next result can be compared with this one.
    """
    # The state is asked for, since a task that returns a state of its own (Cached) gives its caller that state.
    done: Done = _as_task(step.name)(step, retriever, flow_run, return_state=True).result()
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


def _execute(step: Step, retriever: str, flow_run: str) -> State[Done] | Done:
    done = replace(_made(step, retriever, flow_run), task_run_id=task_run.id)
    return Completed(name="Cached", message="its manifest verified", data=done) if done.cached else done


def _made(step: Step, retriever: str = "", flow_run: str = "") -> Done:
    started = time.monotonic()
    with _alone(step.folder):
        artifact, damage = _finished(step)
        if artifact is not None and step.folder in _made_ahead:
            _made_ahead.discard(step.folder)
            keep_use(step.folder, step.inputs, retriever, flow_run)
            timing = _read_timing(step.folder) or Timing(0.0, 1)
            print(f"[{step.name}] started\n[{step.name}] done in {timing.seconds:.1f} s: {_counts(artifact)}", flush=True)
            return Done(artifact, False, timing.seconds, timing)
        if artifact is not None:
            keep_use(step.folder, step.inputs, retriever, flow_run)
            print(f"[{step.name}] unchanged, taken from the cache", flush=True)
            return Done(artifact, True, time.monotonic() - started, _read_timing(step.folder))
        because = at_start(step.name, keep_begin(step.folder, step.parts, retriever, flow_run, damage))
        print(f"[{step.name}] started{f': {because}' if because else ''}", flush=True)
        artifact, timing = _timed(step)
        keep_end(step.folder)
    print(f"[{step.name}] done in {timing.seconds:.1f} s: {_counts(artifact)}", flush=True)
    return Done(artifact, False, time.monotonic() - started, timing)


def _finished(step: Step) -> tuple[Artifact | None, str]:
    """The step's artifact, or None with what is wrong with it. Files that it does not name are removed: they are no part of it."""
    try:
        if not (step.folder / MANIFEST).exists():
            return None, ""
        named = {*read_manifest(step.folder).files, MANIFEST, SIGNATURE}
        for stray in _remove_all_but(step.folder, named.__contains__):
            print(f"[{step.name}] removed {os.fsencode(stray).decode(errors='replace')}, which is none of its files", flush=True)
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
            print(f"[{folder.parent.name}] waiting: another run is making this step", flush=True)
            settings.locked(handle)
        yield
