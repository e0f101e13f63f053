"""Scaling laws: known parameters are found again, and points that carry no law are refused."""

from __future__ import annotations

import numpy as np
import pytest

from components.studies.scaling_law import Points, curve, fit_law, predict

SIZES = np.array([1e6, 2e6, 4e6, 8e6, 16e6, 32e6, 64e6])


def noisy(loss: np.ndarray, share: float = 0.002) -> np.ndarray:
    return loss * np.exp(share * np.random.default_rng(3).normal(size=len(loss)))


def of_size(sizes: np.ndarray) -> np.ndarray:
    return (2e5 / sizes) ** 0.55 + 0.3


def test_the_law_of_model_size_finds_its_parameters_again() -> None:
    fit = fit_law("model_size", Points.of(SIZES, np.full(7, 1e4), noisy(of_size(SIZES))), refits=60)
    assert fit.supported, fit.reasons
    assert fit.parameters["a"] == pytest.approx(0.55, rel=0.1)
    assert fit.parameters["A"] == pytest.approx(2e5, rel=0.2)
    assert fit.parameters["d"] == pytest.approx(0.3, rel=0.05)
    assert fit.r2 is not None and fit.r2 > 0.99
    for name, truth in {"A": 2e5, "a": 0.55, "d": 0.3}.items():
        low, high = fit.intervals[name]
        assert low <= truth <= high


def test_the_law_of_data_size_is_the_same_form_over_pairs() -> None:
    pairs = np.array([500, 1000, 2000, 4000, 8000, 16000])
    loss = (300 / pairs) ** 1.3 + 0.2
    fit = fit_law("data_size", Points.of(np.full(6, 1e6), pairs, loss), refits=5)
    assert fit.parameters == pytest.approx({"B": 300.0, "b": 1.3, "d": 0.2}, rel=1e-2)


def test_the_joint_law_finds_its_parameters_again() -> None:
    sizes, pairs = (grid.ravel() for grid in np.meshgrid(SIZES, [1e3, 4e3, 16e3, 64e3]))
    loss = ((2e5 / sizes) ** (0.5 / 1.2) + 800 / pairs) ** 1.2 + 0.25
    fit = fit_law("joint", Points.of(sizes, pairs, noisy(loss)), refits=30)
    assert fit.supported, fit.reasons
    assert fit.parameters["a"] == pytest.approx(0.5, rel=0.15)
    assert fit.parameters["b"] == pytest.approx(1.2, rel=0.15)
    assert fit.parameters["d"] == pytest.approx(0.25, rel=0.1)


def test_the_next_size_is_predicted_from_the_smaller_ones() -> None:
    all_sizes = Points.of(SIZES, np.full(7, 1e4), noisy(of_size(SIZES)))
    fit = fit_law("model_size", all_sizes.where(SIZES.max() > SIZES), refits=60)
    predicted = predict(fit, SIZES[-1], 1e4)
    assert predicted is not None
    assert predicted.loss == pytest.approx(float(all_sizes.loss[-1]), rel=0.02)
    assert predicted.low < predicted.loss < predicted.high
    np.testing.assert_allclose(curve(fit, all_sizes), all_sizes.loss, rtol=0.02)


def test_intervals_from_few_points_hold_what_is_measured_as_often_as_they_say() -> None:
    """Four points leave one degree of freedom: taken for sure, their noise gave intervals that held seven of ten runs."""
    rng, sizes, held = np.random.default_rng(0), SIZES[-5:], 0
    for seed in range(24):
        runs = of_size(sizes) * np.exp(rng.normal(0, 0.02, 5))
        found = predict(fit_law("model_size", Points.of(sizes[:4], np.full(4, 1e4), runs[:4]), seed, 20), sizes[-1], 1e4)
        held += found is not None and found.low <= runs[-1] <= found.high
    assert held >= 22


def test_too_few_points_are_not_fitted() -> None:
    fit = fit_law("model_size", Points.of(SIZES[:3], np.full(3, 1e4), of_size(SIZES[:3])))
    assert not fit.supported and fit.parameters == {} and fit.r2 is None
    assert fit.reasons == ("3 points for 3 parameters; at least 4 are needed",)
    assert predict(fit, 1e8, 1e4) is None


def test_points_of_one_size_are_not_fitted() -> None:
    fit = fit_law("joint", Points.of(np.full(7, 1e6), SIZES, of_size(SIZES)))
    assert fit.reasons == ("all points have the same model size",)


def test_a_loss_that_does_not_fall_is_said_to() -> None:
    fit = fit_law("model_size", Points.of(SIZES, np.full(7, 1e4), of_size(SIZES)[::-1]), refits=20)
    assert not fit.supported
    assert "the loss does not fall with the model size" in fit.reasons


def test_noise_without_a_law_is_not_supported() -> None:
    loss = 1.0 + 0.05 * np.random.default_rng(1).normal(size=7)
    fit = fit_law("model_size", Points.of(SIZES, np.full(7, 1e4), loss), refits=40)
    assert not fit.supported
    assert any("not determined" in reason or "of the variance" in reason for reason in fit.reasons)


def test_an_entropy_of_nothing_is_said_and_ends_no_study() -> None:
    """Where every query is told apart from all its negatives, rounding leaves an entropy of exactly 0."""
    for least in (0.0, 1e-22):
        fit = fit_law("model_size", Points.of([1, 2, 4, 8], [1] * 4, [0.3, 0.2, 0.1, least]), refits=20)
        assert not fit.parameters and "an entropy is 0" in fit.reasons[0]
    assert fit_law("model_size", Points.of([1, 2, 4, 8], [1] * 4, [3e-10, 2e-10, 1.5e-10, 1e-10]), refits=20).parameters
