"""Calibration: scores become probabilities by a curve that is fitted to training rows alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .problem import Problem

Floats = NDArray[np.float64]

_MAX_STEPS, _TOLERANCE = 100, 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class PlattScaling:
    """p = 1 / (1 + exp(−(a s + b))) of every target.

    Attributes
    ----------
    slope, intercept
        float64 ``[target]``: a and b.
    """

    slope: Floats
    intercept: Floats

    def __call__(self, scores: Floats) -> Floats:
        """Turn scores ``[row, target]`` into probabilities of the same shape."""
        from scipy.special import expit

        return np.asarray(expit(scores * self.slope + self.intercept))


@dataclass(frozen=True, slots=True, eq=False)
class TemperatureScaling:
    """p = softmax(s / T).

    Attributes
    ----------
    temperature
        T > 0, infinite where the scores know nothing of the classes.
    """

    temperature: float

    def __call__(self, scores: Floats) -> Floats:
        """Turn scores ``[row, class]`` into probabilities of the same shape."""
        from scipy.special import softmax

        return np.asarray(softmax(scores / self.temperature, axis=1))


def platt_scaling(y: NDArray[Any], scores: Floats, start: PlattScaling | None = None) -> PlattScaling:
    """Minimise the cross-entropy −Σ t ln p + (1 − t) ln(1 − p) for every target by Newton's method.

    The targets t are (N₊ + 1) / (N₊ + 2) for positives and 1 / (N₋ + 2) for negatives, so that there is a minimum even
    where scores tell the two apart, or one of them is missing.

    Parameters
    ----------
    y
        0 or 1, ``[row, target]``.
    scores
        float64 ``[row, target]`` of rows that the probe was not fitted to.
    start
        A curve that is near, of most of these rows: steps are saved, the minimum is the same.

    References
    ----------
    Platt (1999), Probabilistic outputs for support vector machines, section 2.2.
    Lin, Lin and Weng (2007), A note on Platt's probabilistic outputs: the line search.
    """
    near = [None] * y.shape[1] if start is None else zip(start.slope, start.intercept, strict=True)
    fitted = [_platt(y[:, t] > 0, scores[:, t], at) for t, at in enumerate(near)]
    slope, intercept = np.array(fitted).reshape(-1, 2).T
    return PlattScaling(slope, intercept)


def temperature_scaling(y: NDArray[Any], scores: Floats) -> TemperatureScaling:
    """Minimise the mean of −ln softmax(s / T) at the class of each row over T, by Newton's method on 1 / T.

    Parameters
    ----------
    y
        Class codes ``[row]``.
    scores
        float64 ``[row, class]`` of rows that the probe was not fitted to.

    References
    ----------
    Guo et al. (2017), On calibration of modern neural networks, section 4.2.
    """
    from scipy.special import logsumexp, softmax

    spread = scores.std() or 1.0
    x = (scores - scores.max(axis=1, keepdims=True)) / spread
    own = x[np.arange(len(y)), y]

    def derivatives(theta: Floats) -> tuple[float, Floats, Floats]:
        linear = theta * x
        chance = softmax(linear, axis=1)
        mean = (chance * x).sum(axis=1)
        loss = float(logsumexp(linear, axis=1).sum() - theta[0] * own.sum())
        curvature = ((chance * x * x).sum(axis=1) - mean**2).sum()
        return loss, np.array([(mean - own).sum()]), np.array([[curvature]])

    # The loss is convex in 1 / T: a minimum below 0 means that none above is better than 0.
    inverse = max(float(_newton(derivatives, np.zeros(1))[0]), 0.0)
    return TemperatureScaling(float(spread / inverse) if inverse else np.inf)


def calibrate(problem: Problem, scores: Floats, *, probabilities: bool) -> Floats:
    """Calibrate the scores of one layer: Platt scaling of each target, temperature scaling of classes.

    Test rows are calibrated by the curve of all training rows, whose scores are out of fold; the training rows of a
    fold by the curve of the other folds'. No row's answer has a part in its own probability.

    Parameters
    ----------
    problem
        Targets, test rows and folds; not of regression.
    scores
        ``[sample, target]``, as `Fit.scores`.
    probabilities
        Whether scores are probabilities: their logarithms or log-odds are calibrated, which scaling can leave as they
        are.

    Returns
    -------
    array
        float64 ``[sample, target]``; NaN where the sample is not used.
    """
    from scipy.special import logit

    if probabilities:
        eps = np.finfo(np.float64).eps
        clipped = np.clip(scores, eps, 1 - eps)
        scores = logit(clipped) if problem.per_target else np.log(clipped)
    folds, test = problem.split.folds, problem.split.test
    chance = np.full(scores.shape, np.nan)
    whole: PlattScaling | None = None
    for fold in (-1, *range(problem.split.n_folds)):
        fitted = (folds >= 0) & (folds != fold)
        applied = test if fold < 0 else folds == fold
        curve: PlattScaling | TemperatureScaling
        if problem.per_target:
            curve = platt_scaling(problem.truth(fitted), scores[fitted], whole)
            whole = whole or curve
        else:
            curve = temperature_scaling(problem.truth(fitted), scores[fitted])
        chance[applied] = curve(scores[applied])
    return chance


def _platt(y: NDArray[np.bool_], scores: Floats, near: tuple[float, float] | None) -> tuple[float, float]:
    """Return slope and intercept of one target, of truth and scores ``[row]``; `near` ones, if known."""
    n_positive = int(y.sum())
    n_negative = len(y) - n_positive
    smoothed = np.where(y, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))
    # On standard scores Newton's steps need no scale; of constant ones the slope stays 0.
    centre, spread = float(scores.mean()), float(scores.std())
    x = (scores - centre) / spread if spread > 1e-12 * abs(centre) else np.zeros(len(scores))

    def derivatives(theta: Floats) -> tuple[float, Floats, Floats]:
        linear = theta[0] * x + theta[1]
        small = np.exp(-np.abs(linear))
        chance = np.where(linear > 0, 1.0, small) / (1 + small)
        loss = float((np.log(1 + small) + np.maximum(linear, 0)).sum() - smoothed @ linear)
        error, curvature = chance - smoothed, chance * (1 - chance)
        bent = curvature * x
        hessian = np.array([[bent @ x, bent.sum()], [bent.sum(), curvature.sum()]])
        return loss, np.array([error @ x, error.sum()]), hessian

    start = [0.0, np.log((n_positive + 1) / (n_negative + 1))]
    if near is not None:
        start = [near[0] * spread, near[1] + near[0] * centre]
    slope, intercept = _newton(derivatives, np.array(start))
    slope /= spread or 1.0
    return float(slope), float(intercept - slope * centre)


def _newton(derivatives: Callable[[Floats], tuple[float, Floats, Floats]], theta: Floats) -> Floats:
    """Minimise a convex function of theta [k] by Newton's method, damped where a step does not fall (Levenberg).

    ``derivatives`` gives loss, gradient [k] and Hessian [k, k].
    """
    from scipy.linalg.lapack import dposv

    loss, gradient, hessian = derivatives(theta)
    identity = np.eye(len(theta))
    # A little is always needed: far from the minimum, or of constant scores, the Hessian may be singular.
    least = damping = 1e-12 * (1 + abs(loss))
    for _ in range(_MAX_STEPS):
        # numpy's solver takes as long to call as the derivatives to compute.
        _, step, singular = dposv(hessian + damping * identity, gradient)
        if singular:
            damping *= 100
            continue
        decrease = float(gradient @ step)
        if decrease <= _TOLERANCE * (1 + abs(loss)):
            # The error squares with every step: this is the last that shows.
            return np.asarray(theta - step)
        found = derivatives(theta - step)
        if found[0] <= loss - 1e-4 * decrease:
            theta = theta - step
            loss, gradient, hessian = found
            damping = max(damping / 100, least)
        else:
            damping *= 100
    return theta
