"""What the reviewer's report is made of, gathered once: its numbers, and what the candidate changes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from components.errors import PromotionError
from components.evaluation.champion_comparison import CANDIDATE, CHAMPION, SERVED
from components.evaluation.config import EvaluationConfig
from components.evaluation.metrics import METRICS
from components.evaluation.summarize import COMPARED, CONFIDENCE, scores_of
from components.evaluation.units import (
    Interval,
    design_effect,
    effective_queries,
    grouped,
    min_detectable,
    paired_bootstrap,
    power,
    too_few_alike,
)
from components.gates.config import PolicyConfig
from components.release.completeness import other_models
from components.release.manifest import BaseModelPin, LineageNode, ReleaseManifest
from components.tracking.labels import flatten

if TYPE_CHECKING:
    import pandas as pd

    from components.data.validation_report import ValidationReport
    from components.evaluation.champion_comparison import ComparisonSummary, ComparisonTables
    from components.evaluation.report import Evaluation
    from components.evaluation.units import Numbers
    from components.release.champion import Override
    from components.release.training_noise import TrainingNoise


SHORT = 12  # digits of a digest that a person compares
ATTRIBUTES = ("base_model", "companion", "judge", "layers", "dimension", "index_key")  # what tells models of one role apart
_DECIDED_ELSEWHERE = ("policy.",)  # the policy judges a candidate and does not make it; it is listed last


@dataclass(frozen=True)
class ChangesSinceChampion:
    """One list of sentences for each subject; an empty list means that nothing changed."""

    data: tuple[str, ...]
    code: tuple[str, ...]
    configuration: tuple[str, ...]
    models: tuple[str, ...]

    def subjects(self) -> dict[str, tuple[str, ...]]:
        """The four lists with their names, in a fixed order."""
        return {"Data": self.data, "Code": self.code, "Configuration": self.configuration, "Models": self.models}


def changes_between(new: ReleaseManifest, old: ReleaseManifest) -> ChangesSinceChampion:
    """What is different in `new`."""
    return ChangesSinceChampion(tuple(_data(new, old)), tuple(_code(new, old)), tuple(_configuration(new, old)), tuple(_models(new, old)))


def _data(new: ReleaseManifest, old: ReleaseManifest) -> list[str]:
    found = _differing({"data set": new.dataset.name}, {"data set": old.dataset.name})
    if new.dataset.digest != old.dataset.digest:
        found.append(f"other rows: digest {old.dataset.digest[:SHORT]} became {new.dataset.digest[:SHORT]}")
    found += _differing(_counts(new), _counts(old))
    found += [f"contract {change}" for change in _differing(new.dataset.contracts, old.dataset.contracts)]
    if new.evaluation.judgements_digest != old.evaluation.judgements_digest:
        found.append("the judgements of the evaluation are others")
    return found


def _counts(manifest: ReleaseManifest) -> dict[str, int]:
    node = _node(manifest, manifest.dataset.digest)
    return {name.replace("_", " "): count for name, count in node.counts.items()} if node else {}


def _code(new: ReleaseManifest, old: ReleaseManifest) -> list[str]:
    ours, theirs = new.provenance, old.provenance
    named = {"code_revision": "revision", "patch_digest": "uncommitted changes", "lock_digest": "lock file", "python": "Python"}
    found = _differing({text: _short(ours.get(key)) for key, text in named.items()}, {t: _short(theirs.get(k)) for k, t in named.items()})
    if ours.get("code_digest") != theirs.get("code_digest") and not found:
        found.append("the project's Python files are others")
    return found + _differing(_mapping(ours.get("packages")), _mapping(theirs.get("packages")))


def _configuration(new: ReleaseManifest, old: ReleaseManifest) -> list[str]:
    found = _differing(_settings(new), _settings(old))
    return sorted(found, key=lambda line: (line.startswith(_DECIDED_ELSEWHERE), line))


def _settings(manifest: ReleaseManifest) -> dict[str, str]:
    """Flat settings. One that was just made and one that was read back hold the same lists of fields in other orders."""
    return flatten(json.loads(json.dumps(manifest.config, sort_keys=True)))


def _models(new: ReleaseManifest, old: ReleaseManifest) -> list[str]:
    former = dict(old.pins.items())
    found = []
    for role, pin in new.pins.items():
        if pin.digest != former[role].digest:
            found.append(f"new {role.replace('_', ' ')}: {former[role].model}/{former[role].version} became {pin.model}/{pin.version}")
            found += [f"{role.replace('_', ' ')}, {change}" for change in _differing(_attributes(new, role), _attributes(old, role))]
    ours, theirs = _origins(new), _origins(old)
    found += [
        f"{role}: {model.name} has other weights, digest {was.digest[:SHORT]} became {model.digest[:SHORT]}"
        for role, model in ours.items()
        if (was := theirs.get(role)) is not None and was.name == model.name and was.digest != model.digest
    ]
    if new.space_id != old.space_id:
        found.append(f"a new vector space: {old.space_id[:SHORT]} became {new.space_id[:SHORT]}")
    return found


def _origins(manifest: ReleaseManifest) -> dict[str, BaseModelPin]:
    """What was started from or took part, by its role: a setting names it, but not which weights it had that day."""
    bases = {f"base of the {role.replace('_', ' ')}": base for role, base in manifest.base_models.items()}
    return {**bases, **{what: model for node in manifest.lineage for what, model in other_models(node)}}


def _attributes(manifest: ReleaseManifest, role: str) -> dict[str, Any]:
    """What tells models of one role apart: base model, layers, dimension, kind of index, number of documents."""
    node = _node(manifest, getattr(manifest.pins, role).digest)
    if node is None:
        return {}
    told = {key: node.attributes[key] for key in ATTRIBUTES if key in node.attributes}
    return {**{key.replace("_", " "): value for key, value in told.items()}, **{k: v for k, v in node.counts.items() if k == "documents"}}


def _node(manifest: ReleaseManifest, digest: str) -> LineageNode | None:
    return next((node for node in manifest.lineage if node.digest == digest), None)


def _differing(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """`name: before -> after` for everything that is not equal."""
    names = [*new, *(name for name in old if name not in new)]
    return [f"{name}: {_told(old.get(name))} -> {_told(new.get(name))}" for name in names if _told(old.get(name)) != _told(new.get(name))]


def _told(value: Any) -> str:
    # Flattened settings are texts: a field that is null and one that an older version did not have are both "none".
    if value in (None, "", "None", "[]", "{}"):
        return "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _short(value: Any) -> Any:
    return value[:SHORT] if isinstance(value, str) else value


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


# --- What the reviewer's report is made of, gathered once, with its numbers.


METRIC = "ndcg@10"
Tone = Literal["better", "worse", "open"]
_ROUNDING = 1e-9  # of means of values between 0 and 1
BASELINES = ("bm25", "student_untrained")  # whose margin is policy.baseline_margin
FEWEST = 10  # queries below which an interval over queries means nothing
Scores = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]


@dataclass(frozen=True)
class Delta:
    """Mean of one system minus another's over the same queries, with its two-sided interval.

    Without one (None) there are too few queries, a single unit, or few units that all say the same.
    `power` is the chance to show an equal system to be equal at the policy's margin (in a slice, or against a baseline: at that for these),
    `detectable` the smallest margin that could be shown with a chance of 80 %; both at the policy's one-sided confidence, and None for too
    few queries.
    `means` are those of both systems. `effective` is how many queries drawn one by one would say as much, None where these were.
    """

    name: str
    metric: str
    queries: int
    difference: float
    means: tuple[float, float]
    low: float | None = None
    high: float | None = None
    power: float | None = None
    detectable: float | None = None
    effective: int | None = None

    @property
    def tone(self) -> Tone:
        """Whether the interval lies above 0 (better), below it (worse), or holds it or is missing (open)."""
        return tone_of(self.low, self.high)


def tone_of(low: float | None, high: float | None) -> Tone:
    """What an interval says; an end that only rounding keeps from 0 holds 0."""
    if low is None or high is None or (low <= _ROUNDING and high >= -_ROUNDING):
        return "open"
    return "better" if low > 0 else "worse"


@dataclass(frozen=True)
class Rivals:
    """Two systems with their values per query, by metric and in the order of `query_ids`, and in words where they come from."""

    first: str
    second: str
    query_ids: tuple[str, ...]
    scores: Scores
    source: str


def against_champion(dossier: Dossier) -> Rivals | None:
    """Candidate and champion on the same queries: from the run that asked both, else from both evaluations; None where neither can say."""
    if dossier.champion is None:
        return None
    summary, tables = dossier.compared.summary, dossier.compared.tables
    if summary is not None and tables is not None:
        return _rivals(tables.per_query, (CANDIDATE, CHAMPION), "both were asked in one run")
    ours, theirs = dossier.evaluation, dossier.champion.evaluation
    if not ours.summary.judgements_digest or ours.summary.judgements_digest != theirs.summary.judgements_digest:
        return None
    import pandas as pd

    both = pd.concat([_student(ours.per_query, CANDIDATE), _student(theirs.per_query, CHAMPION)], ignore_index=True)
    return _rivals(both, (CANDIDATE, CHAMPION), "from the two evaluations, made at different times on the same judgements")


def documents_words(dossier: Dossier) -> str:
    """Where candidate and champion hold other documents, whom that helps; empty where they hold the same, or nobody looked."""
    summary, tables = dossier.compared.summary, dossier.compared.tables
    gone = summary.removed if summary is not None else None
    told = [f"The candidate lacks {gone:,} of the champion's documents, which makes every query easier for it."] if gone else []
    if tables is not None:
        rows = tables.per_query[(tables.per_query["system"] == CHAMPION) & (tables.per_query["metric"] == SERVED)]
        lacking = int((rows["value"] < 1).sum())
        told += [f"For {lacking:,} of the queries the champion lacks a relevant document, which counts against it."] if lacking else []
    return " ".join([*told, "The gates judge apart what both can find."]) if told else ""


@dataclass(frozen=True)
class Tally:
    """How many queries the first of two systems answers better, worse and equally well."""

    better: int
    worse: int
    equal: int


def tally(rivals: Rivals, metric: str = METRIC) -> Tally | None:
    """Queries that gained, lost and kept their value; None when the metric was not measured on all."""
    if metric not in rivals.scores:
        return None
    first, second = rivals.scores[metric]
    better, worse = int((first > second).sum()), int((first < second).sum())
    return Tally(better, worse, len(first) - better - worse)


def baseline_rivals(dossier: Dossier) -> list[Rivals]:
    """The pairs of systems of the candidate's own evaluation."""
    return list(dossier.own_rivals)


def deltas(rivals: Rivals, dossier: Dossier, metrics: Sequence[str] = METRICS) -> list[Delta]:
    """The difference in each metric; against a baseline with the power at the margin that is asked there."""
    name, ids = f"{rivals.first} - {rivals.second}", rivals.query_ids
    margin = dossier.policy.baseline_margin if rivals.second in BASELINES else None
    return [delta(name, metric, rivals.scores[metric], ids, dossier, margin) for metric in metrics if metric in rivals.scores]


def slice_deltas(rivals: Rivals, slices: pd.DataFrame, dossier: Dossier) -> list[Delta]:
    """The difference in nDCG@10 on each slice, named "dimension=slice"; `slices` has query_id, dimension, slice."""
    first, second = rivals.scores[METRIC]
    place = {query_id: i for i, query_id in enumerate(rivals.query_ids)}
    found = []
    members = dict(list(slices.groupby(["dimension", "slice"], sort=False)["query_id"]))
    for dimension, label in _in_order(slices):
        chosen = [place[str(query_id)] for query_id in members[dimension, label] if str(query_id) in place]
        if chosen:
            ids, values = [rivals.query_ids[i] for i in chosen], (first[chosen], second[chosen])
            found.append(delta(f"{dimension}={label}", METRIC, values, ids, dossier, dossier.policy.slice_margin))
    return found


def _in_order(slices: pd.DataFrame) -> list[tuple[str, str]]:
    """Dimension and slice: dimensions as they are defined, slices of numbers from low to high."""
    pairs = slices[["dimension", "slice"]].drop_duplicates().itertuples(index=False, name=None)
    place = {dimension: i for i, dimension in enumerate(slices["dimension"].unique())}
    return sorted(pairs, key=lambda pair: (place[pair[0]], _lower_end(pair[1]), pair[1]))


def _lower_end(label: str) -> float:
    """The lower end that a slice's name states, such as `4 and above` or `4 to under 8`; `under 4` comes first, words last."""
    first = label.partition(" ")[0]
    try:
        return -math.inf if first == "under" else float(first)
    except ValueError:
        return math.inf


def delta(
    name: str,
    metric: str,
    pair: tuple[NDArray[np.float64], NDArray[np.float64]],
    query_ids: Sequence[str],
    dossier: Dossier,
    margin: float | None = None,
) -> Delta:
    """One difference, with interval and power where there are enough queries; `margin` instead of the policy's for all queries."""
    first, second = pair
    gaps, policy, means = first - second, dossier.policy, (float(first.mean()), float(second.mean()))
    units = grouped(dossier.units_of(query_ids), len(gaps))
    count = len(gaps) if units is None else int(units.max()) + 1
    if len(gaps) < FEWEST or count < 2 or (not np.ptp(gaps) and too_few_alike(count, policy.confidence)):
        return Delta(name, metric, len(gaps), float(gaps.mean()), means)
    samples, seed = dossier.resampling
    found = _interval(gaps.tobytes(), None if units is None else units.tobytes(), samples, seed)
    strength = power(gaps, margin or policy.margin, policy.confidence, units)
    needed = min_detectable(gaps, policy.confidence, units=units)
    effective = None if units is None else effective_queries(len(gaps), design_effect(gaps, units))
    return Delta(name, metric, len(gaps), found.difference, means, found.low, found.high, strength, needed, effective)


@lru_cache(maxsize=1024)  # plots, tables and words ask for the same differences
def _interval(gaps: bytes, units: bytes | None, samples: int, seed: int) -> Interval:
    """Of differences per query, float64, and of their units, int64."""
    values = np.frombuffer(gaps, dtype=np.float64)
    numbers = None if units is None else np.frombuffer(units, dtype=np.int64)
    return paired_bootstrap(values, np.zeros_like(values), samples, CONFIDENCE, seed, numbers)


def _student(per_query: pd.DataFrame, name: str) -> pd.DataFrame:
    return per_query[per_query["system"] == "student"].assign(system=name)


def _rivals(per_query: pd.DataFrame, pair: tuple[str, str], source: str) -> Rivals:
    rows = per_query[per_query["system"].isin(pair)]
    ids = sorted(str(i) for i in rows["query_id"].unique())
    scores = scores_of(rows, ids)
    both = {m: (scores[pair[0], m], scores[pair[1], m]) for m in METRICS if (pair[0], m) in scores and (pair[1], m) in scores}
    # A query that one of them lacks would make every mean nan: such a metric cannot be compared in pairs.
    whole = {m: values for m, values in both.items() if np.isfinite(values[0]).all() and np.isfinite(values[1]).all()}
    return Rivals(pair[0], pair[1], tuple(ids), whole, source)


# --- All that the reviewer's report and description are made from, as one object; what is missing is said in words, never left out.


@dataclass(frozen=True)
class Champion:
    """The release that the candidate is held against, the evaluation it was released with, and how it came past gates that did not pass."""

    version: int
    manifest: ReleaseManifest
    evaluation: Evaluation
    override: Override | None = None


@dataclass(frozen=True)
class Compared:
    """The comparison of both in one run; without one, `missing` says why."""

    summary: ComparisonSummary | None = None
    tables: ComparisonTables | None = None
    missing: str = ""


@dataclass(frozen=True)
class StepCost:
    """Seconds that the last attempt to make a step took; None when they were not recorded."""

    step: str
    seconds: float | None
    attempts: int = 1


@dataclass(frozen=True)
class Making:
    """How the candidate was made.

    `tower_losses` is the loss of every step of stage 1 and `student_epochs` the student's log, None where the training lies with an
    earlier release; `costs` are the steps of this run, `adopted` the names of artifacts that were taken over; `sizes` as in a comparison.
    """

    tower_losses: tuple[float, ...] | None = None
    student_epochs: tuple[Mapping[str, Any], ...] | None = None
    costs: tuple[StepCost, ...] = ()
    adopted: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Dossier:
    """Everything about one candidate. `notes` are sentences about a refresh, `noise` is that of its training, None where it is unknown."""

    manifest: ReleaseManifest
    evaluation: Evaluation
    validation: ValidationReport
    champion: Champion | None = None
    compared: Compared = Compared()
    making: Making = Making()
    notes: tuple[str, ...] = ()
    noise: TrainingNoise | None = None

    @property
    def policy(self) -> PolicyConfig:
        """The policy that the gates decided by."""
        return PolicyConfig.model_validate(self.manifest.config.get("policy", {}))

    @cached_property  # asked for by every section and plot
    def own_rivals(self) -> tuple[Rivals, ...]:
        """The pairs of systems of the candidate's own evaluation."""
        table = self.evaluation.per_query
        systems = set(table["system"])
        return tuple(_rivals(table, pair, "the candidate's evaluation") for pair in COMPARED if set(pair) <= systems)

    @property
    def resampling(self) -> tuple[int, int]:
        """Draws and seed of the evaluation's intervals: the same differences then have the same intervals wherever they stand."""
        config = EvaluationConfig.model_validate(self.manifest.config.get("evaluation", {}))
        return config.bootstrap_samples, config.seed

    def units_of(self, query_ids: Iterable[object]) -> Numbers | None:
        """The units of judged queries of the decisive split, in their order; None where each counts by itself."""
        units = self.evaluation.units_of()
        return None if units is None else units.of(query_ids)


def require_measured(dossier: Dossier) -> None:
    """Raise PromotionError for an evaluation over no query: its report would show means of nothing."""
    if dossier.evaluation.summary.queries < 1 or not len(dossier.evaluation.per_query):
        raise PromotionError("The evaluation holds no judged query, so there is nothing to report. Name a split with judgements.")
