"""Scaling laws of dense retrieval: how contrastive entropy falls with model size N and data size D, and whether the points say so.

Forms (Fang et al., SIGIR 2024): L(N) = (A/N)^a + d, L(D) = (B/D)^b + d, L(N, D) = [(A/N)^(a/b) + B/D]^b + d, with d the entropy that no
size removes. Fitted by least squares on log L from several starts. Intervals come from a residual bootstrap: residuals are drawn with
replacement, widened for the degrees of freedom that the fit used up, put on the fitted curve, and fitted again; their ends lie as much
further out as Student's t says for the few points that tell the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from components.studies.report import HIGH, LOW, number

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


Floats = NDArray[np.float64]
LawName = Literal["model_size", "data_size", "joint"]

EXPONENT = (1e-3, 10.0)  # bounds; an exponent that ends here was not found
SCALE = 60.0  # log A and log B lie within +- this
AT_BOUND = 1e-3  # relative distance from a bound that counts as being there
LOWEST_R2 = 0.8
NOTHING = 1e-12  # nats, below which an entropy is 0: texts are told apart as well as numbers can say
CONFIDENCE = 0.95
REFITS = 200
FAR = 50.0  # of a logarithm: beyond it a prediction says nothing, and would be no number
RUNS_EACH = 20  # runs drawn around each refitted curve for the interval of a prediction


@dataclass(frozen=True)
class Points:
    """Measured entropies: `sizes` N (parameters), `pairs` D (training pairs) and `loss` L in nats, float64 (n,) each."""

    sizes: Floats
    pairs: Floats
    loss: Floats

    @classmethod
    def of(cls, sizes: ArrayLike, pairs: ArrayLike, loss: ArrayLike) -> Points:
        """Points from anything that is like an array."""
        return cls(*(np.asarray(values, np.float64) for values in (sizes, pairs, loss)))

    def where(self, keep: NDArray[np.bool_]) -> Points:
        """The points marked in `keep`."""
        return Points(self.sizes[keep], self.pairs[keep], self.loss[keep])


@dataclass(frozen=True)
class Fit:
    """A fitted law. `supported` is False when the points do not carry it, and `reasons` then says why.

    `parameters` (empty when nothing was fitted) and their `intervals` (empty without refits) by name; `r2` is that of log L, `noise`
    the standard deviation of what log L lies off the curve.
    """

    law: LawName
    formula: str
    points: int
    supported: bool
    reasons: tuple[str, ...]
    parameters: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    r2: float | None
    noise: float | None = None
    refits: tuple[tuple[float, ...], ...] = ()

    def describe(self) -> dict[str, Any]:
        """All but the refits, for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "refits"}


@dataclass(frozen=True)
class Prediction:
    """A loss that a law foretells, with the ends of the interval that one run should fall into."""

    law: LawName
    size: float
    pairs: float
    loss: float
    low: float
    high: float


@dataclass(frozen=True)
class _Law:
    """A law: parameter names, its formula, its curve (parameters, points) -> L, and which size it falls with."""

    name: LawName
    names: tuple[str, ...]
    formula: str
    curve: Callable[[Floats, Points], Floats]


def _one_size(pick: Literal["sizes", "pairs"], theta: Floats, points: Points) -> Floats:
    log_scale, exponent, floor = theta
    return np.exp(np.clip(exponent * (log_scale - np.log(getattr(points, pick))), -700, 700)) + floor


def _joint(theta: Floats, points: Points) -> Floats:
    log_a, a, log_b, b, floor = theta
    of_size = (a / b) * (log_a - np.log(points.sizes))
    return np.exp(np.clip(b * np.logaddexp(of_size, log_b - np.log(points.pairs)), -700, 700)) + floor


LAWS: dict[LawName, _Law] = {
    "model_size": _Law("model_size", ("A", "a", "d"), "L(N) = (A/N)^a + d", partial(_one_size, "sizes")),
    "data_size": _Law("data_size", ("B", "b", "d"), "L(D) = (B/D)^b + d", partial(_one_size, "pairs")),
    "joint": _Law("joint", ("A", "a", "B", "b", "d"), "L(N, D) = [(A/N)^(a/b) + B/D]^b + d", _joint),
}


def fit_law(name: LawName, points: Points, seed: int = 13, refits: int = REFITS) -> Fit:
    """Fit one law to the points, say how sure its parameters are, and whether the points support it at all."""
    law = LAWS[name]
    count, needed = len(points.loss), len(law.names) + 1
    if refusal := _unfit(law, points, needed):
        return Fit(name, law.formula, count, False, refusal, {}, {}, None)
    best = _best(law, points, _starts(law, points))
    draws = _refit(law, points, best, seed, refits)
    ends = _parameter_ends(law, points, best, draws) if refits else []
    r2 = _r2(law, points, best)
    reasons = _doubts(law, points, ends, r2)
    return Fit(
        law=name,
        formula=law.formula,
        points=count,
        supported=not reasons,
        reasons=reasons,
        parameters=_named(law, best),
        intervals={p: (_plain(p, low), _plain(p, high)) for p, (low, high) in zip(law.names, ends, strict=False)},
        r2=r2,
        noise=float(np.sqrt((_residuals(law, points, best) ** 2).sum() / (count - len(law.names)))),
        refits=tuple(tuple(map(float, draw)) for draw in draws),
    )


def _parameter_ends(law: _Law, points: Points, best: Floats, draws: Floats) -> list[tuple[float, float]]:
    """The ends of each parameter's interval, within the search; wider by Student's t, since a few points tell their own noise badly."""
    from scipy.special import ndtri, stdtrit

    level, limits = (1 + CONFIDENCE) / 2, _limits(points)
    wider = float(stdtrit(len(points.loss) - len(law.names), level) / ndtri(level))
    found = []
    for name, value, column in zip(law.names, best, draws.T, strict=True):
        low, high = (float(np.clip(value + wider * (end - value), *limits[name])) for end in _ends(column))
        found.append((low, high))
    return found


def predict(fit: Fit, size: float, pairs: float) -> Prediction | None:
    """The loss at a size that the fit has not seen, with its interval; None when nothing was fitted or refitted.

    The interval covers both what is not known of the curve (the refits) and how far a single run lies off it (`Fit.noise`).
    """
    if not fit.refits or fit.noise is None:
        return None
    law, point = LAWS[fit.law], Points.of([size], [pairs], [0.0])
    curves = np.array([law.curve(np.array(theta), point)[0] for theta in fit.refits])
    rng, best, free = np.random.default_rng(len(curves)), float(law.curve(_theta(fit), point)[0]), fit.points - len(fit.parameters)
    off = np.log(curves / best) + rng.normal(0, fit.noise, (RUNS_EACH, len(curves)))
    # The noise is known from a few points itself, so what is drawn by it follows Student's t.
    low, high = _ends((off * np.sqrt(free / rng.chisquare(free, off.shape))).ravel())
    return Prediction(fit.law, size, pairs, best, best * math.exp(max(low, -FAR)), best * math.exp(min(high, FAR)))


def curve(fit: Fit, points: Points) -> Floats:
    """The fitted L at the sizes of `points`."""
    return LAWS[fit.law].curve(_theta(fit), points)


def _unfit(law: _Law, points: Points, needed: int) -> tuple[str, ...]:
    """Why a fit is not even tried."""
    if len(points.loss) < needed:
        return (f"{len(points.loss)} points for {len(law.names)} parameters; at least {needed} are needed",)
    reasons = [
        f"all points have the same {words}"
        for values, words in _axes(law, points)
        if len(np.unique(values)) < 2
    ]  # fmt: skip
    if points.loss.min() < NOTHING:
        reasons.append("an entropy is 0, which has no logarithm; a higher towers.temperature or more study.scaling_negatives raise it")
    return tuple(reasons)


def _axes(law: _Law, points: Points) -> list[tuple[Floats, str]]:
    axes = {"model_size": points.sizes, "data_size": points.pairs}
    words = {"model_size": "model size", "data_size": "number of training pairs"}
    return [(values, words[name]) for name, values in axes.items() if law.name in (name, "joint")]


def _doubts(law: _Law, points: Points, ends: Sequence[tuple[float, float]], r2: float) -> tuple[str, ...]:
    """Why a fit is not to be believed."""
    reasons = [f"the loss does not fall with the {words}" for values, words in _axes(law, points) if not _falls(values, points.loss)]
    for name, (low, high) in zip(law.names, ends, strict=False):
        bottom, top = _limits(points)[name]
        # A floor of 0 is an answer, an exponent or a scale at the edge of the search is none.
        if name != "d" and (_near(low, bottom) or _near(high, top)):
            reasons.append(f"the interval of {name} has no end within the search, so {name} is not determined")
    if r2 < LOWEST_R2:
        reasons.append(f"the law explains {max(r2, 0):.0%} of the variance of log L; at least {LOWEST_R2:.0%} are asked for")
    return tuple(reasons)


def _falls(values: Floats, loss: Floats) -> bool:
    """Whether the mean loss at the largest size lies below that at the smallest."""
    return float(loss[values == values.max()].mean()) < float(loss[values == values.min()].mean())


def _near(value: float, bound: float) -> bool:
    return abs(value - bound) <= AT_BOUND * max(1.0, abs(bound))


def _starts(law: _Law, points: Points) -> list[Floats]:
    """Starting points: several exponents and floors, the scales set so that the curve passes the first point."""
    starts = []
    for share in (0.0, 0.5, 0.9, 0.99):
        floor = share * float(points.loss.min())
        above = np.log(max(float(points.loss[0]) - floor, 1e-6))
        for exponent in (0.1, 0.3, 0.6, 1.2):
            log_a, log_b = (float(np.log(values[0])) + above / exponent for values in (points.sizes, points.pairs))
            one = [log_a if law.name == "model_size" else log_b, exponent, floor]
            starts.append(np.array([log_a, exponent, log_b, exponent, floor] if law.name == "joint" else one))
    return starts


def _best(law: _Law, points: Points, starts: Sequence[Floats]) -> Floats:
    """The parameters (scales as logarithms) with the least squared error of log L over all starts."""
    from scipy.optimize import least_squares

    def residuals(theta: Floats) -> Floats:
        return _residuals(law, points, theta)

    low, high = _bounds(law, points)
    inside = np.minimum(1e-9, (high - low) / 4)  # of resampled entropies near 0 the bounds of d lie nearer to each other than that
    found = [least_squares(residuals, np.clip(start, low + inside, high - inside), bounds=(low, high), x_scale="jac") for start in starts]
    return np.asarray(min(found, key=lambda result: result.cost).x, np.float64)


def _bounds(law: _Law, points: Points) -> tuple[Floats, Floats]:
    low, high = zip(*(_limits(points)[name] for name in law.names), strict=True)
    return np.array(low), np.array(high)


def _limits(points: Points) -> dict[str, tuple[float, float]]:
    """Bounds of the search by parameter; those of A and B are of their logarithms."""
    return {"A": (-SCALE, SCALE), "B": (-SCALE, SCALE), "a": EXPONENT, "b": EXPONENT, "d": (0.0, float(points.loss.max()))}


def _refit(law: _Law, points: Points, best: Floats, seed: int, count: int) -> Floats:
    """Parameters (count, p) of fits to curves with resampled residuals."""
    fitted = np.log(law.curve(best, points))
    residuals = -_residuals(law, points, best)
    free = len(points.loss) - len(law.names)
    residuals = (residuals - residuals.mean()) * np.sqrt(len(points.loss) / free)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(count):
        noisy = np.exp(fitted + rng.choice(residuals, len(residuals)))
        draws.append(_best(law, Points(points.sizes, points.pairs, noisy), [best]))
    return np.array(draws)


def _residuals(law: _Law, points: Points, theta: Floats) -> Floats:
    """log of the curve minus log L."""
    return np.log(np.maximum(law.curve(theta, points), NOTHING)) - np.log(points.loss)


def _r2(law: _Law, points: Points, theta: Floats) -> float:
    logs = np.log(points.loss)
    total = float(((logs - logs.mean()) ** 2).sum())
    error = float((_residuals(law, points, theta) ** 2).sum())
    return 1 - error / total if total > 0 else 0.0


def _ends(draws: Floats) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2 * 100
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def _named(law: _Law, theta: Floats) -> dict[str, float]:
    return {name: _plain(name, value) for name, value in zip(law.names, theta, strict=True)}


def _plain(name: str, value: float) -> float:
    """A parameter as it stands in the formula: the search works on logarithms of A and B, and never quite reaches a floor of 0."""
    return float(np.exp(value)) if name in "AB" else round(float(value), 9)


def _theta(fit: Fit) -> Floats:
    return np.array([np.log(value) if name in "AB" else value for name, value in fit.parameters.items()])


# --- Table, sentences and figure of the scaling study.


MODEL, SHARE, SIZE, PAIRS, ENTROPY, FORETOLD = "model", "share", "N", "D", "entropy", "predicted"
WORDS = {"model_size": "Model size", "data_size": "Data size", "joint": "Both"}
ON = {"model_size": "on the most pairs", "data_size": "of the largest model", "joint": "over all cells"}


def scaling_table(cells: Sequence[Mapping[str, Any]], foretold: Mapping[str, Any]) -> pd.DataFrame:
    """One row a cell; `predicted` is the joint law's value where it gave one, else that of the law of model size."""
    import pandas as pd

    rows = []
    for cell in cells:
        row = {MODEL: cell["model"], SHARE: cell["share"], SIZE: cell["parameters"], PAIRS: cell["pairs"], "steps": cell["steps"]}
        row |= {ENTROPY: cell["entropy"], ENTROPY + LOW: cell["entropy_low"], ENTROPY + HIGH: cell["entropy_high"]}
        row |= {"R@50": cell["R@50"], "nDCG@10": cell["nDCG@10"]}
        for law in ("model_size", "joint"):
            for found in (p for p in foretold["predictions"] if p["law"] == law):
                if (found["size"], found["pairs"]) == (cell["parameters"], cell["pairs"]):
                    row |= {FORETOLD: found["loss"], FORETOLD + LOW: found["low"], FORETOLD + HIGH: found["high"]}
        rows.append(row)
    frame = pd.DataFrame(rows)
    # Of queries in a single unit there are no ends, and None is no number to draw.
    return frame.astype({column: float for column in (ENTROPY + LOW, ENTROPY + HIGH) if column in frame})


def fit_notes(fits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One sentence a law: parameters, intervals and R2, or why the points do not support it."""
    return [f"{words}, {ON[law]}: {_fit_sentence(fits[law])}" for law, words in WORDS.items() if law in fits]


def _fit_sentence(fit: Mapping[str, Any]) -> str:
    if not fit["parameters"]:
        return f"{fit['formula']} was not fitted: {'; '.join(fit['reasons'])}."
    ends = {name: " ".join(map(number, interval)) for name, interval in fit["intervals"].items()}
    values = ", ".join(f"{name} = {number(value)} [{ends[name]}]" for name, value in fit["parameters"].items())
    head = f"{fit['formula']} with {values}; R2 of log L {fit['r2']:.3f} on {fit['points']} points"
    return f"{head}." if fit["supported"] else f"{head}. The points do not support this fit: {'; '.join(fit['reasons'])}."


def prediction_notes(frame: pd.DataFrame, foretold: Mapping[str, Any]) -> list[str]:
    """How far off each prediction of the largest size was; a law that could not be fitted without that size predicted nothing."""
    lines = []
    for found in foretold["predictions"]:
        rows = frame[(frame[SIZE] == found["size"]) & (frame[PAIRS] == found["pairs"])]
        if not len(rows):
            continue
        measured = float(rows[ENTROPY].iloc[0])
        off = f" ({found['loss'] / measured - 1:+.1%})" if measured else ""
        doubt = "" if foretold["fits"][found["law"]]["supported"] else "; a law that its points do not support"
        lines.append(
            f"Predicted by {foretold['fits'][found['law']]['formula'].split(' =')[0]} from the smaller sizes before it was run: "
            f"{rows[MODEL].iloc[0]} on {found['pairs']:,.0f} pairs {number(found['loss'])} [{number(found['low'])} "
            f"{number(found['high'])}], measured {number(measured)}{off}{doubt}."
        )
    missing = [fit for fit in foretold["fits"].values() if not fit["parameters"]]
    return lines + [f"No prediction by {fit['formula']}: {'; '.join(fit['reasons'])}." for fit in missing]


def draw_scaling(frame: pd.DataFrame, path: Path) -> None:
    """Two panels with logarithmic axes: entropy over N, a series for each share; over D, a series for each model; curves where fitted."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    figure.suptitle("Contrastive entropy over model and data size")
    over_size, over_pairs = figure.subplots(1, 2)
    joint = fit_law("joint", _points(frame), refits=0)
    for share, rows in frame.groupby(SHARE):
        _series(over_size, rows, SIZE, f"{share:g} of the pairs", _law(joint, "model_size", rows))
    for model, rows in frame.groupby(MODEL, sort=False):
        _series(over_pairs, rows, PAIRS, str(model), _law(joint, "data_size", rows))
    if FORETOLD in frame:
        rows = frame.dropna(subset=[FORETOLD])
        over_size.plot(rows[SIZE], rows[FORETOLD], "x", color="black", label="predicted before it was run")
    for axes, label in ((over_size, "N, parameters without embeddings"), (over_pairs, "D, training pairs seen")):
        axes.set(xlabel=label, ylabel="contrastive entropy, nats", xscale="log", yscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _law(joint: Fit, alone: Any, rows: pd.DataFrame) -> Fit:
    """The joint law where it could be fitted, else the one of a single size on these points."""
    return joint if joint.parameters else fit_law(alone, _points(rows), refits=0)


def _points(rows: pd.DataFrame) -> Points:
    return Points.of(rows[SIZE], rows[PAIRS], rows[ENTROPY])


def _series(axes: Axes, rows: pd.DataFrame, x: str, label: str, fit: Fit) -> None:
    rows = rows.sort_values(x)
    arms = [(rows[ENTROPY] - rows[ENTROPY + LOW]).clip(lower=0), (rows[ENTROPY + HIGH] - rows[ENTROPY]).clip(lower=0)]
    drawn = axes.errorbar(rows[x], rows[ENTROPY], yerr=arms, fmt="o", capsize=3, label=label)
    if not fit.parameters or len(rows) < 2:
        return
    along = np.geomspace(rows[x].min(), rows[x].max(), 60)
    fixed = np.full(60, float(rows[PAIRS if x == SIZE else SIZE].iloc[0]))
    points = Points.of(along, fixed, fixed) if x == SIZE else Points.of(fixed, along, fixed)
    axes.plot(along, curve(fit, points), color=drawn[0].get_color(), linewidth=1)
