"""Calibration is Platt's and Guo's, fitted to training rows that the probe did not see, and never to a test row."""

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax
from sklearn.calibration import CalibratedClassifierCV, _SigmoidCalibration
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from sonde.probes import Problem, Split
from sonde.probes.calibration import calibrate, temperature_scaling
from sonde.probes.metrics import score_probabilities
from sonde.probes.platt import PlattSums, platt_scaling

Floats = np.ndarray[Any, Any]
N = 600


def make_scores(scale: float = 1.0, shift: float = 0.0) -> tuple[Floats, Floats]:
    """Answers of four targets, from frequent to rare, and scores that know something of them."""
    rng = np.random.default_rng(0)
    y = (rng.random((N, 4)) < [0.6, 0.3, 0.1, 0.01]).astype(float)
    return y, shift + scale * (rng.normal(size=y.shape) + [0.5, 2.0, 1.0, 3.0] * y)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.02, 0.3), (-50.0, 1e4)])
def test_platt_scaling_equals_scikit_learns(scale: float, shift: float) -> None:
    y, scores = make_scores(scale, shift)
    found = platt_scaling(y, scores)(scores)
    for t in range(4):
        reference = _SigmoidCalibration().fit(scores[:, t], y[:, t])
        np.testing.assert_allclose(found[:, t], reference.predict(scores[:, t]), rtol=1e-4, atol=1e-6)


def test_platt_scaling_equals_a_calibrated_classifier_of_a_fitted_one() -> None:
    y, scores = make_scores()
    rng = np.random.default_rng(1)
    x = scores + rng.normal(size=scores.shape)
    classifier = LogisticRegression(C=1e-3).fit(x[: N // 2], y[: N // 2, 0])
    calibrated = CalibratedClassifierCV(FrozenEstimator(classifier), method="sigmoid").fit(x[N // 2 :], y[N // 2 :, 0])
    decisions = classifier.decision_function(x)[:, None]
    found = platt_scaling(y[N // 2 :, :1], decisions[N // 2 :])(decisions)
    np.testing.assert_allclose(found[:, 0], calibrated.predict_proba(x)[:, 1], rtol=1e-4)


def test_platt_scaling_is_the_minimum_of_his_smoothed_loss() -> None:
    y, scores = make_scores()
    found = platt_scaling(y, scores)
    for t in range(4):
        positives = y[:, t].sum()
        smoothed = np.where(y[:, t] > 0, (positives + 1) / (positives + 2), 1 / (N - positives + 2))
        error = expit(found.slope[t] * scores[:, t] + found.intercept[t]) - smoothed
        np.testing.assert_allclose([error.sum(), error @ scores[:, t]], 0, atol=1e-4)


@pytest.mark.parametrize(
    ("y", "scores", "expected"),
    [
        ([1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0], [4 / 5] * 3 + [1 / 6] * 4),  # told apart
        ([0, 0, 0, 0], [0.1, 0.2, 0.9, 0.4], [1 / 6] * 4),  # no positive
        ([1, 0, 0, 0], [0.3, 0.3, 0.3, 0.3], [(2 / 3 + 3 / 5) / 4] * 4),  # no difference
    ],
)
def test_platt_scaling_has_an_answer_where_unsmoothed_targets_have_none(
    y: list[int], scores: list[float], expected: list[float]
) -> None:
    truth, column = np.array(y, dtype=float)[:, None], np.array(scores, dtype=float)[:, None]
    np.testing.assert_allclose(platt_scaling(truth, column)(column)[:, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
def test_temperature_scaling_is_the_minimum_of_the_log_loss(temperature: float) -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(N, 5)) * 2
    y = np.array([rng.choice(5, p=softmax(row)) for row in true])
    found = temperature_scaling(y, true * temperature)
    reference = minimize_scalar(
        lambda log_t: -log_softmax(true * temperature / np.exp(log_t), axis=1)[np.arange(N), y].mean(),
        bounds=(-5, 5),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert found.temperature == pytest.approx(np.exp(reference.x), rel=1e-5)
    np.testing.assert_allclose(found(true), softmax(true / found.temperature, axis=1))


def test_scores_that_are_worse_than_nothing_get_a_uniform_answer() -> None:
    codes = np.arange(30) % 3
    found = temperature_scaling(codes, -np.eye(3)[codes])
    assert np.isinf(found.temperature)
    np.testing.assert_allclose(found(np.eye(3)), 1 / 3)


def make_problem(kind: Any) -> tuple[Problem, Floats]:
    """A problem whose first third is tested and whose last rows are not used, and overconfident scores."""
    rng = np.random.default_rng(2)
    test = np.arange(N) < N // 3
    folds = np.where(test | (np.arange(N) >= N - 20), -1, np.arange(N) % 4).astype(np.int16)
    y = np.eye(3)[rng.integers(3, size=N)] if kind == "multiclass" else (rng.random((N, 3)) < 0.3).astype(float)
    scores = 6 * (y + rng.normal(size=y.shape)) - 6
    scores[(folds < 0) & ~test] = np.nan
    groups = np.arange(N).astype(str)
    return Problem("asked", kind, ("a", "b", "c"), y, Split(test, folds, "hash", 4), groups, {}), scores


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_every_row_is_calibrated_by_training_rows_of_other_folds(kind: Any) -> None:
    problem, scores = make_problem(kind)
    test, folds = problem.split.test, problem.split.folds
    found = calibrate(problem, scores, probabilities=False)
    fit: Any = platt_scaling if kind == "multilabel" else temperature_scaling
    for rows, fitted in [(test, folds >= 0)] + [(folds == k, (folds >= 0) & (folds != k)) for k in range(4)]:
        expected = fit(problem.truth(fitted), scores[fitted])(scores[rows])
        np.testing.assert_allclose(found[rows], expected, rtol=1e-11)
    np.testing.assert_array_equal(np.isnan(found).all(axis=1), ~test & (folds < 0))


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_no_test_row_has_a_part_in_its_calibration(kind: Any) -> None:
    problem, scores = make_problem(kind)
    other, changed = make_problem(kind)
    test = problem.split.test
    other.y[test] = np.roll(other.y[test], 1, axis=1)
    changed[test] = np.where(np.arange(test.sum())[:, None] < 5, changed[test], 0.0)
    before = calibrate(problem, scores, probabilities=False)
    after = calibrate(other, changed, probabilities=False)
    np.testing.assert_array_equal(before[~test], after[~test])
    np.testing.assert_array_equal(before[:5], after[:5])


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_probabilities_are_calibrated_as_what_made_them(kind: Any) -> None:
    problem, scores = make_problem(kind)
    chance = expit(scores) if kind == "multilabel" else softmax(scores, axis=1)
    expected = calibrate(problem, scores, probabilities=False)
    np.testing.assert_allclose(calibrate(problem, chance, probabilities=True), expected, rtol=1e-5)
    certain = np.where(np.isnan(chance), chance, chance > 0.5)
    assert np.isfinite(calibrate(problem, certain, probabilities=True)[problem.split.test]).all()


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_calibration_mends_scores_that_are_too_sure(kind: Any) -> None:
    problem, scores = make_problem(kind)
    test = problem.split.test
    chance = expit(scores) if kind == "multilabel" else softmax(scores, axis=1)
    before = score_probabilities(kind, problem.truth(test), chance[test])
    after = score_probabilities(kind, problem.truth(test), calibrate(problem, scores, probabilities=False)[test])
    for name, value in after.items():
        assert (value < before[name]).all(), name


def test_a_curve_without_an_outlier_does_not_know_it() -> None:
    y, scores = make_scores()
    scores[:100] *= 1e6
    without = PlattSums.of(y, scores, [0, 100, N]).fit(0)
    alone = platt_scaling(y[100:], scores[100:])
    np.testing.assert_allclose(without(scores[100:]), alone(scores[100:]), rtol=1e-6)
