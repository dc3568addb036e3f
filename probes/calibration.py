"""Calibration: scores become probabilities by a curve that is fitted to training rows alone."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .newton import Floats, minimise
from .platt import PlattSums
from .problem import Problem

_TOLERANCE = 1e-12
"""Decrease that Newton's method lets go, beside the loss."""


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

    def derivatives(theta: Floats, _: NDArray[np.intp]) -> tuple[Floats, Floats, Floats]:
        linear = theta[0] * x
        chance = softmax(linear, axis=1)
        mean = (chance * x).sum(axis=1)
        loss = logsumexp(linear, axis=1).sum() - theta[0] * own.sum()
        curvature = ((chance * x * x).sum(axis=1) - mean**2).sum()
        return loss, np.array([[(mean - own).sum()]]), np.array([[[curvature]]])

    # The loss is convex in 1 / T: a minimum below 0 means that none above is better than 0.
    inverse = max(float(minimise(derivatives, np.zeros((1, 1)), _TOLERANCE)[0, 0]), 0.0)
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
    split = problem.split
    chance = np.full(scores.shape, np.nan)
    if not problem.per_target:
        for fold in (-1, *range(split.n_folds)):
            fitted = (split.folds >= 0) & (split.folds != fold)
            applied = split.test if fold < 0 else split.folds == fold
            chance[applied] = temperature_scaling(problem.truth(fitted), scores[fitted])(scores[applied])
        return chance
    order = np.argsort(split.folds, kind="stable")[int((split.folds < 0).sum()) :]
    bounds = np.searchsorted(split.folds[order], np.arange(split.n_folds + 1)).tolist()
    sums = PlattSums.of(problem.y[order], scores[order], bounds)
    whole = sums.fit()
    chance[split.test] = whole(scores[split.test])
    for fold, (begin, end) in enumerate(itertools.pairwise(bounds)):
        mine = order[begin:end]
        chance[mine] = sums.fit(fold, whole)(scores[mine])
    return chance
