"""Scaling laws of dense retrieval: how contrastive entropy falls with model size N and data size D, and whether the points say so.

Forms (Fang et al., SIGIR 2024): L(N) = (A/N)^a + d, L(D) = (B/D)^b + d, L(N, D) = [(A/N)^(a/b) + B/D]^b + d, with d the entropy that no
size removes. Fitted by least squares on log L from several starts. Intervals come from a residual bootstrap: residuals are drawn with
replacement, widened for the degrees of freedom that the fit used up, put on the fitted curve, and fitted again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
LawName = Literal["model_size", "data_size", "joint"]

EXPONENT = (1e-3, 10.0)  # bounds; an exponent that ends here was not found
SCALE = 60.0  # log A and log B lie within +- this
AT_BOUND = 1e-3  # relative distance from a bound that counts as being there
LOWEST_R2 = 0.8
CONFIDENCE = 0.95
REFITS = 200
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
    ends = [_ends(column) for column in draws.T] if refits else []
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


def predict(fit: Fit, size: float, pairs: float) -> Prediction | None:
    """The loss at a size that the fit has not seen, with its interval; None when nothing was fitted or refitted.

    The interval covers both what is not known of the curve (the refits) and how far a single run lies off it (`Fit.noise`).
    """
    if not fit.refits or fit.noise is None:
        return None
    law, point = LAWS[fit.law], Points.of([size], [pairs], [0.0])
    curves = np.array([law.curve(np.array(theta), point)[0] for theta in fit.refits])
    off = np.random.default_rng(len(curves)).normal(0, fit.noise, (RUNS_EACH, len(curves)))
    low, high = _ends((curves * np.exp(off)).ravel())
    return Prediction(fit.law, size, pairs, float(law.curve(_theta(fit), point)[0]), low, high)


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
    found = [least_squares(residuals, np.clip(start, low + 1e-9, high - 1e-9), bounds=(low, high), x_scale="jac") for start in starts]
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
    return np.log(np.maximum(law.curve(theta, points), 1e-12)) - np.log(points.loss)


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
