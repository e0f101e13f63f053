"""Replay: evaluate a release again from its record, and on demand build it again, to see whether its numbers can be had twice.

Compared are all figures of `report.json` and every value of the tables beside it. Not compared are times, which no run repeats. Figures
and systems that a later version of the program adds are left out; one that it does not give any more is a difference.

The encoders and the index come from the registry by the digests in the record, the data by its digest from the working files or, when
these are gone, from where the release took it. Nothing of a replay is registered or kept.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from components import settings
from components.artifacts import Artifact, DatasetArtifact, open_artifact, read_json, seal, verify
from components.errors import ArtifactError, DataError, PromotionError
from components.evaluation.report import REPORT_FILE
from components.evaluation.systems import EvaluationInputs
from components.promotion.verification import decide_on
from components.release.champion import lost
from components.release.manifest import EVALUATION_FOLDER, load_release
from components.release.open import PinnedRelease, open_pinned
from components.tracking.live import scratch
from flows.adopt import with_vectors_at_home
from flows.config import RetrainConfig, amend_config
from flows.steps import evaluation_step, typed

if TYPE_CHECKING:
    import pandas as pd

    from components.release.manifest import LineageNode, ReleaseManifest


Outcome = Literal["equal", "within tolerance", "different"]
TOLERANCE = 1e-3
_TIMED_KINDS = ("evaluation", "comparison")
_ENDS = ("units", "intervals", "retention_intervals", "ndcg_lost_interval", "low", "high")
_TIMED = ("speed", "schema_version")  # figures of the report that are times, and its form


@dataclass(frozen=True)
class OtherValue:
    """One value that came out otherwise."""

    where: str
    recorded: Any
    found: Any

    def __str__(self) -> str:
        return f"{self.where}: recorded {_text(self.recorded)}, found {_text(self.found)}"


@dataclass(frozen=True)
class RepeatedValues:
    """How many values were compared and how many differ. `first` is the first that is out of tolerance, else the first at all."""

    outcome: Outcome
    values: int
    differing: int
    first: OtherValue | None
    tolerance: float

    def text(self) -> str:
        """One sentence, and the first difference."""
        said = f"{self.outcome}: {self.values:,} values compared, {self.differing:,} differ"
        return f"{said} (tolerance {self.tolerance:g}). First: {self.first}" if self.first else f"{said}."


def compare_evaluations(recorded: Path, again: Path, tolerance: float = TOLERANCE) -> RepeatedValues:
    """Compare two evaluation folders.

    `within tolerance` means that no figure of the report differs by more than `tolerance`, absolutely and relatively; single queries may.
    Raises ArtifactError for a folder without a readable report.
    """
    before, now = _report(recorded), _report(again)
    figures = list(_figures(_without_ends(before) if now.get("units") and not before.get("units") else before, now))
    singles = [pair for name in _tables(recorded) for pair in _values(recorded / name, again / name)]
    different = [pair for pair in (*figures, *singles) if not _same(pair, 0.0)]
    beyond = [pair for pair in figures if not _same(pair, tolerance)]
    beyond += [pair for pair in singles if not _numbers(pair) and not _same(pair, 0.0)]  # a query or a table that is not there
    outcome: Outcome = "different" if beyond else "within tolerance" if different else "equal"
    return RepeatedValues(outcome, len(figures) + len(singles), len(different), next(iter(beyond or different), None), tolerance)


def compare_lineage(
    recorded: Sequence[LineageNode],
    again: Sequence[LineageNode],
    roles: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {}),
) -> tuple[int, OtherValue | None]:
    """How many artifacts of a build came out with the recorded digest, and the first that did not, parents first.

    A part of the release is held against the part in its role, `roles` (digest -> role, of both builds), whatever step made it; anything
    else against what the same step made of the same kind. What holds times is never the same and is left out; `compare_evaluations` is for
    an evaluation.
    """
    before, now = (_placed(lineage, known) for lineage, known in zip((recorded, again), roles, strict=True))
    equal = sum(place in now and now[place] == digest for place, digest in before.items())
    for place in [*before, *(place for place in now if place not in before)]:
        if before.get(place) != now.get(place):
            old, new = (found[place][:12] if place in found else None for found in (before, now))
            return equal, OtherValue(f"{place[0]} ({place[1]})", old, new)
    return equal, None


def _placed(lineage: Sequence[LineageNode], roles: Mapping[str, str]) -> dict[tuple[str, str, int], str]:
    """(role or step, kind, how many of these stand before it) -> digest."""
    found: dict[tuple[str, str, int], str] = {}
    for node in lineage:
        if node.kind in _TIMED_KINDS:
            continue
        about = roles.get(node.digest, node.name)
        found[about, node.kind, sum(place[:2] == (about, node.kind) for place in found)] = node.digest
    return found


def _roles(manifest: ReleaseManifest) -> dict[str, str]:
    """Digest -> role of what a release pins; the first of two roles that one artifact has."""
    return {pin.digest: role.replace("_", " ") for role, pin in reversed(manifest.pins.items())}


def _report(folder: Path) -> dict[str, Any]:
    found = read_json(folder / REPORT_FILE)
    if not isinstance(found, dict):
        raise ArtifactError(f"{folder / REPORT_FILE} is not an evaluation report.")
    figures = {key: value for key, value in found.items() if key not in _TIMED}
    for part in (figures, *(figures.get("extra") or {}).values()):
        units = part.get("units")
        if units and units.get("spread") != "left_out":  # by another arithmetic, which nobody computes any more
            part["units"] = {key: value for key, value in units.items() if key not in ("design_effects", "words")}
    if isinstance(compared := figures.get("comparisons"), list):
        # By what they compare: a later version may compare more, and its list is longer then.
        figures["comparisons"] = {f"{c.get('system')} - {c.get('baseline')}, {c.get('metric')}": c for c in compared}
    return figures


def _without_ends(figures: Any) -> Any:
    """A report of before units were kept has intervals over single queries, which nobody computes any more; its values are compared."""
    if isinstance(figures, Mapping):
        return {key: _without_ends(value) for key, value in figures.items() if key not in _ENDS}
    return [_without_ends(value) for value in figures] if isinstance(figures, list) else figures


def _figures(recorded: Any, found: Any, where: str = "") -> Iterator[OtherValue]:
    """Every leaf of the recorded report, with what stands at its place now."""
    if isinstance(recorded, Mapping):
        for key, value in recorded.items():
            yield from _figures(value, found.get(key) if isinstance(found, Mapping) else None, f"{where}.{key}".lstrip("."))
    elif isinstance(recorded, list):
        others = found if isinstance(found, list) and len(found) == len(recorded) else [None] * len(recorded)
        for number, (value, other) in enumerate(zip(recorded, others, strict=True)):
            yield from _figures(value, other, f"{where}[{number}]")
    else:
        yield OtherValue(where, recorded, found)


def _tables(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.parquet"))


def _values(recorded: Path, again: Path) -> Iterator[OtherValue]:
    """Every row of a table by its key, which is all columns but the last; the last is its value."""
    old, new = _keyed(recorded), _keyed(again, _systems(recorded)) if again.is_file() else {}
    for key, value in old.items():
        yield OtherValue(f"query {' '.join(key)} ({recorded.name})", value, new.get(key))
    for key in new.keys() - old.keys():
        yield OtherValue(f"query {' '.join(key)} ({recorded.name})", None, new[key])


def _systems(path: Path) -> frozenset[str] | None:
    """The systems of a table; None for one that names none."""
    import pyarrow.parquet as pq

    return frozenset(pq.read_table(path, columns=["system"])["system"].to_pylist()) if "system" in pq.read_schema(path).names else None


def _keyed(path: Path, systems: frozenset[str] | None = None) -> dict[tuple[str, ...], Any]:
    """Value by key, of the rows of `systems` where they are given."""
    import pandas as pd

    table: pd.DataFrame = pd.read_parquet(path)
    table = table if systems is None else table[table["system"].isin(systems)]
    value = "value" if "value" in table else table.columns[-1]
    names = [name for name in table.columns if name != value]
    keys = zip(*(table[name].astype(str).tolist() for name in names), strict=True)
    return dict(zip(keys, table[value].tolist(), strict=True))


def _same(pair: OtherValue, tolerance: float) -> bool:
    if not _numbers(pair):
        return bool(pair.recorded == pair.found)
    near = math.isclose(pair.recorded, pair.found, rel_tol=tolerance, abs_tol=tolerance)
    return near or (math.isnan(pair.recorded) and math.isnan(pair.found))


def _numbers(pair: OtherValue) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (pair.recorded, pair.found))


def _text(value: Any) -> str:
    return "nothing" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


# --- Replay: evaluate a release again from its record, and on demand build it again, to see whether its numbers can be had twice.


@dataclass(frozen=True)
class Rebuilt:
    """A build that was run again: how many artifacts have the recorded digest, the first that has not, and its own evaluation."""

    equal: int
    first: OtherValue | None
    evaluation: RepeatedValues

    def text(self) -> str:
        """Two sentences."""
        parts = f"{self.equal} artifacts with the recorded digest; " + (f"the first other one: {self.first}" if self.first else "no other")
        return f"{parts}. Its evaluation: {self.evaluation.text()}"


@dataclass(frozen=True)
class Replayed:
    """What a replay found. `verdict` is that of the gates on the repeated numbers; times are new in it, so it may differ by them.

    `lost`: why the champion that it was compared with cannot be opened any more, so that its gates are not decided; empty when it can.
    """

    release: str
    evaluation: RepeatedValues
    verdict: str
    recorded_verdict: str
    build: Rebuilt | None
    lost: str = ""

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
        if self.lost:
            lines.append(f"  the gates against the champion cannot be decided again: {self.lost}")
        return "\n".join([*lines, f"  build: {self.build.text()}"] if self.build else lines)


def replay(name: str, ref: str, data: str | None = None, build: bool = False) -> Replayed:
    """Evaluate what `ref` names again and compare; `build` also builds it again from its data. `data` is where the data lies now.

    Raises PromotionError for a reference that names nothing or a build that cannot be repeated, ArtifactError for changed artifacts,
    DataError when the data is not that of the release any more.
    """
    base = open_pinned(name, ref)
    config = amend_config(with_vectors_at_home(base.manifest.config), {"data.source": data} if data else {}, base.title)
    given = _source_digest(config) if data else None
    if build:
        from flows.servers import require_prefect

        _require_full(base)
        require_prefect()  # before minutes of measuring
    with scratch(settings.work_folder(), "replay-") as folder:
        evaluation, verdict, gone = _evaluate(config, base, folder, given)
        rebuilt = _build(config, base, folder / "home") if build else None
    return Replayed(f"{base.model}/{base.version}", evaluation, verdict, base.manifest.decision.verdict, rebuilt, gone)


def _source_digest(config: RetrainConfig) -> str:
    """Of the files of the data; raises DataError when they are not there, also where the working files still hold the tables."""
    from components.data.sources import source_digest

    return source_digest(config.data)


def _evaluate(config: RetrainConfig, base: PinnedRelease, folder: Path, given: str | None) -> tuple[RepeatedValues, str, str]:
    """What came out, the verdict on it, and why the champion of that time is lost."""
    dataset = _dataset(config, base, folder / "data", given)
    again = folder / "release"
    # The rest of the release as it is, so that the gates decide on the repeated numbers with all else equal.
    shutil.copytree(base.artifact.path, again, ignore=shutil.ignore_patterns(EVALUATION_FOLDER))
    (again / EVALUATION_FOLDER).mkdir()
    inputs = EvaluationInputs(dataset, base.query_tower, base.query_encoder, base.index)
    evaluation_step(config, inputs).make(again / EVALUATION_FOLDER)
    compared = compare_evaluations(base.artifact.path / EVALUATION_FOLDER, again / EVALUATION_FOLDER)
    name, before = base.manifest.name, base.manifest.baseline_version
    gone = "" if before is None else lost(name, before)  # as where it was deleted: what was measured is compared all the same
    return compared, decide_on(name, base.manifest, again, lost=gone).verdict, gone


def _dataset(config: RetrainConfig, base: PinnedRelease, folder: Path, given: str | None) -> DatasetArtifact:
    """The tables with the digest of the record: from the working files, else read again, as from files that are `given` and others."""
    from components.data.snapshot import snapshot

    wanted = base.manifest.dataset.digest
    if given in (None, base.manifest.dataset.source_digest) and (kept := next(_kept(wanted), None)):
        found: DatasetArtifact = typed(kept, DatasetArtifact)
        return found
    folder.mkdir()
    made = snapshot(config.data, folder)
    if made.digest == wanted:
        return made
    # The same tables are the same data, whatever the folder is called that they are read from now, and in whatever form they lie there.
    named = {"name": base.manifest.dataset.name, "source_digest": base.manifest.dataset.source_digest}
    told = ((node.counts, node.attributes) for node in base.manifest.lineage if node.digest == wanted)
    counts, attributes = next(told, (made.counts, {**made.attributes, **named}))
    again = seal(folder, made.kind, counts=counts, attributes=attributes)
    if again.digest != wanted:
        raise DataError(
            f"The data of {base.title} had the digest {wanted[:12]}; {config.data.source} gives {made.digest[:12]} now: it was changed "
            "since. Give the folder with the data as it was: --data DIR."
        )
    return typed(again, DatasetArtifact)


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
    from flows.reporting import unannounced
    from flows.servers import run_flow

    with _other_home(home), unannounced("replay"):
        made = Path(run_flow("flows.retrain:retrain", config=config).folder)
    built = load_release(made)
    equal, first = compare_lineage(base.manifest.lineage, built.lineage, (_roles(base.manifest), _roles(built)))
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
    os.environ.pop("MLFLOW_REGISTRY_URI", None)  # of the store that the release lies in
    try:
        settings.activate()
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        clear_caches()
