"""Replay: evaluate a release again from its record, and on demand build it again, to see whether its numbers can be had twice.

The encoders and the index come from the registry by the digests in the record, the data by its digest from the working files or, when
these are gone, from where the release took it. Nothing of a replay is registered or kept.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components import settings
from components.artifacts import Artifact, DatasetArtifact, open_artifact, verify
from components.errors import ArtifactError, DataError, PromotionError
from components.promotion.reproduction import Comparison, Difference, Outcome, compare_evaluations, compare_lineage
from components.promotion.verification import decide_on
from components.release.manifest import EVALUATION_FOLDER, load_release
from components.release.open import PinnedRelease, open_pinned
from flows.config import RetrainConfig, amend_config
from flows.steps import evaluation_step, typed


@dataclass(frozen=True)
class Rebuilt:
    """A build that was run again: how many artifacts have the recorded digest, the first that has not, and its own evaluation."""

    equal: int
    first: Difference | None
    evaluation: Comparison

    def text(self) -> str:
        """Two sentences."""
        parts = f"{self.equal} artifacts with the recorded digest; " + (f"the first other one: {self.first}" if self.first else "no other")
        return f"{parts}. Its evaluation: {self.evaluation.text()}"


@dataclass(frozen=True)
class Replayed:
    """What a replay found. `verdict` is that of the gates on the repeated numbers; times are new in it, so it may differ by them."""

    release: str
    evaluation: Comparison
    verdict: str
    recorded_verdict: str
    build: Rebuilt | None

    @property
    def outcome(self) -> Outcome:
        """Of the evaluation, and of the build's evaluation when there is one: the worse of both."""
        order: tuple[Outcome, ...] = ("equal", "within tolerance", "different")
        found = [self.evaluation.outcome] + ([self.build.evaluation.outcome] if self.build else [])
        return max(found, key=order.index)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "outcome": self.outcome}

    def text(self) -> str:
        """A few lines for people."""
        lines = [f"{self.release}: {self.outcome}", f"  evaluation: {self.evaluation.text()}"]
        lines.append(f"  gates on the repeated numbers: {self.verdict} (recorded: {self.recorded_verdict}); times are not compared")
        return "\n".join([*lines, f"  build: {self.build.text()}"] if self.build else lines)


def replay(name: str, ref: str, data: str | None = None, build: bool = False) -> Replayed:
    """Evaluate what `ref` names again and compare; `build` also builds it again from its data. `data` is where the data lies now.

    Raises PromotionError for a reference that names nothing or a build that cannot be repeated, ArtifactError for changed artifacts,
    DataError when the data is not that of the release any more.
    """
    base = open_pinned(name, ref)
    config = amend_config(base.manifest.config, {"data.source": data} if data else {}, base.title)
    if data:
        _require_source(config)
    if build:
        _require_full(base)
    settings.work_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.work_folder(), prefix="replay-") as folder:
        evaluation, verdict = _evaluate(config, base, Path(folder))
        rebuilt = _build(config, base, Path(folder) / "home") if build else None
    return Replayed(f"{base.model}/{base.version}", evaluation, verdict, base.manifest.decision.verdict, rebuilt)


def _require_source(config: RetrainConfig) -> None:
    """Raise DataError when the data is not there, also where the working files still hold the tables."""
    from components.data.sources import source_digest

    source_digest(config.data)


def _evaluate(config: RetrainConfig, base: PinnedRelease, folder: Path) -> tuple[Comparison, str]:
    dataset = _dataset(config, base, folder / "data")
    again = folder / "release"
    # The rest of the release as it is, so that the gates decide on the repeated numbers with all else equal.
    shutil.copytree(base.artifact.path, again, ignore=shutil.ignore_patterns(EVALUATION_FOLDER))
    (again / EVALUATION_FOLDER).mkdir()
    inputs = {"dataset": dataset, "query_tower": base.query_tower, "query_encoder": base.query_encoder, "index": base.index}
    evaluation_step(config, inputs).make(again / EVALUATION_FOLDER)
    compared = compare_evaluations(base.artifact.path / EVALUATION_FOLDER, again / EVALUATION_FOLDER)
    return compared, decide_on(base.manifest.name, base.manifest, again).verdict


def _dataset(config: RetrainConfig, base: PinnedRelease, folder: Path) -> DatasetArtifact:
    """The tables with the digest of the record: from the working files, else read again."""
    from components.data.snapshot import snapshot

    wanted = base.manifest.dataset.digest
    if kept := next(_kept(wanted), None):
        found: DatasetArtifact = typed(kept, DatasetArtifact)
        return found
    folder.mkdir()
    made = snapshot(config.data, folder)
    if made.digest != wanted:
        raise DataError(
            f"The data of {base.title} had the digest {wanted[:12]}; {config.data.source} gives {made.digest[:12]} now: it was changed "
            "since. Give the folder with the data as it was: --data DIR."
        )
    return made


def _kept(digest: str) -> Iterator[Artifact]:
    for manifest in settings.work_folder().glob("snapshot_data/*/manifest.json"):
        try:
            if open_artifact(manifest.parent).digest == digest:
                yield verify(manifest.parent, digest)
        except ArtifactError:  # a working file that was changed is no loss: the data is read again
            continue


def _require_full(base: PinnedRelease) -> None:
    if base.manifest.release_type != "full":
        raise PromotionError(
            f"{base.title} is of the type {base.manifest.release_type}: it was made from an earlier release, so --build cannot make it "
            "from its data alone. Replay its evaluation without --build, or build again the full release it came from."
        )


def _build(config: RetrainConfig, base: PinnedRelease, home: Path) -> Rebuilt:
    """Run the whole flow in an empty home, where no step is found finished, and compare with the record."""
    from flows.servers import run_flow

    with _other_home(home):
        made = Path(run_flow("flows.retrain:retrain", config=config)["folder"])
    equal, first = compare_lineage(base.manifest.lineage, load_release(made).lineage)
    return Rebuilt(equal, first, compare_evaluations(base.artifact.path / EVALUATION_FOLDER, made / EVALUATION_FOLDER))


@contextmanager
def _other_home(home: Path) -> Iterator[None]:
    """A home and a tracking store of their own for this process; base models that were converted once are shared."""
    from components.tracking.store import clear_caches

    models = settings.models_folder()
    home.mkdir(parents=True)
    if models.is_dir():
        (home / models.name).symlink_to(models, target_is_directory=True)
    places = {"SCALINGNOTE_HOME": str(home), "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow' / 'mlflow.db'}"}
    before = dict(os.environ)
    os.environ.update(places)
    try:
        settings.activate()
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        clear_caches()
