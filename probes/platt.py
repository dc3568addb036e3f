"""Platt scaling of many targets, and of the rows outside each fold, at once."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .newton import Floats, minimise

_TOLERANCES: tuple[tuple[type[np.floating[Any]], float], ...] = ((np.float32, 1e-5), (np.float64, 1e-12))
"""Decrease that Newton's method lets go, beside the loss: first in the cheap dtype, then in the exact one."""

_ELEMENTS = 2**18
"""Scores of several targets that are worked on together: where two layers are, they seldom wait for each other."""


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


def platt_scaling(y: NDArray[Any], scores: Floats) -> PlattScaling:
    """Minimise the cross-entropy −Σ t ln p + (1 − t) ln(1 − p) for every target by Newton's method.

    The targets t are (N₊ + 1) / (N₊ + 2) for positives and 1 / (N₋ + 2) for negatives, so that there is a minimum even
    where scores tell the two apart, or one of them is missing.

    Parameters
    ----------
    y
        0 or 1, ``[row, target]``.
    scores
        float64 ``[row, target]`` of rows that the probe was not fitted to.

    References
    ----------
    Platt (1999), Probabilistic outputs for support vector machines, section 2.2.
    Lin, Lin and Weng (2007), A note on Platt's probabilistic outputs: the line search.
    """
    return PlattSums.of(y, scores, [0, len(y)]).fit()


@dataclass(frozen=True, slots=True, eq=False)
class PlattSums:
    """Scores of rows in parts, from which curves are fitted that leave a part out.

    Attributes
    ----------
    centre, spread
        float64 ``[target]``: on standard scores Newton's steps need no scale.
    x
        ``(scores - centre) / spread``, in each of `_TOLERANCES`' dtypes, ``[target, row]``.
    bounds
        Where each part begins, and the last one ends.
    sums, positive_sums
        float64 ``[part, target, 2]``: of x and of ones, over the rows of a part and over its positive ones.
    """

    centre: Floats
    spread: Floats
    x: tuple[NDArray[Any], ...]
    bounds: list[int]
    sums: Floats
    positive_sums: Floats

    @classmethod
    def of(cls, y: NDArray[Any], scores: Floats, bounds: list[int]) -> PlattSums:
        """Take answers, 0 or 1, and scores, ``[row, target]``, the rows of a part together."""
        truth, wide = np.ascontiguousarray(y.T > 0), np.array(scores.T, dtype=np.float64, order="C")
        centre, spread = wide.mean(axis=1), wide.std(axis=1)
        # Of scores that do not vary the slope stays 0.
        varies = spread > 1e-12 * np.abs(centre)
        spread = np.where(varies, spread, 1.0)
        wide -= centre[:, None]
        wide /= np.where(varies, spread, np.inf)[:, None]
        parts = [(wide[:, a:b], truth[:, a:b]) for a, b in itertools.pairwise(bounds)]
        sums = [np.stack([x.sum(axis=1), np.full(len(x), x.shape[1])], axis=1) for x, _ in parts]
        positive = [np.stack([np.vecdot(x, so), so.sum(axis=1)], axis=1) for x, so in parts]
        x = tuple(wide.astype(dtype, copy=False) for dtype, _ in _TOLERANCES)
        return cls(centre, spread, x, bounds, np.stack(sums), np.stack(positive))

    def fit(self, without: int | None = None, start: PlattScaling | None = None) -> PlattScaling:
        """Fit every target to the rows of all parts but one; a curve that is near saves steps."""
        kept = [part for part in range(len(self.sums)) if part != without]
        total, positive = self.sums[kept].sum(axis=0), self.positive_sums[kept].sum(axis=0)
        n_positive, n_negative = positive[:, 1], total[:, 1] - positive[:, 1]
        # Σ t x and Σ t: all that there is to know of the answers.
        of_positive, of_negative = (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2)
        answers = of_positive[:, None] * positive + of_negative[:, None] * (total - positive)
        if start is None:
            theta = np.stack([0 * n_positive, np.log((n_positive + 1) / (n_negative + 1))], axis=1)
        else:
            theta = np.stack([start.slope * self.spread, start.intercept + start.slope * self.centre], axis=1)
        size = max(1, _ELEMENTS // max(1, self.bounds[-1]))
        left_out = (0, 0) if without is None else (self.bounds[without], self.bounds[without + 1])
        for first in range(0, len(theta), size):
            some = slice(first, first + size)
            for x, (_, tolerance) in zip(self.x, _TOLERANCES, strict=True):
                derivatives = partial(_cross_entropy, x[some], answers[some], left_out)
                theta[some] = minimise(derivatives, theta[some], tolerance)
        slope = theta[:, 0] / self.spread
        return PlattScaling(slope, theta[:, 1] - slope * self.centre)


def _cross_entropy(
    x: NDArray[Any], answers: Floats, left_out: tuple[int, int], theta: Floats, which: NDArray[np.intp]
) -> tuple[Floats, Floats, Floats]:
    """Return loss [k], gradient [k, 2] and Hessian [k, 2, 2] in slope and intercept ([k, 2]) of targets ``which`` [k].

    ``x`` is ``[target, row]``, and rows between the two ``left_out`` have no part; ``answers``, ``[target, 2]``, are
    Σ t x and Σ t.
    """
    found = np.zeros((len(which), 6))
    slope, intercept = theta.astype(x.dtype).T[:, :, None]
    for rows in (slice(0, left_out[0]), slice(left_out[1], None)):
        of_rows = x[:, rows] if len(which) == len(x) else x[which, rows]
        if of_rows.size == 0:
            continue
        z = slope * of_rows + intercept
        size = np.abs(z)
        e = np.exp(-size)
        larger = 1 / (1 + e)  # of p and 1-p
        e *= larger
        chance = np.copysign(0.5 - e, z)
        chance += 0.5
        z += size
        z /= 2  # the greater of z and 0
        z -= np.log(larger)
        e *= larger  # p(1-p)
        bent = e * of_rows
        each = (z, None), (chance, of_rows), (chance, None), (bent, of_rows), (bent, None), (e, None)
        found += np.stack([a.sum(axis=1) if b is None else np.vecdot(a, b) for a, b in each], axis=1)
    gradient = found[:, 1:3] - answers[which]
    return found[:, 0] - np.vecdot(theta, answers[which]), gradient, found[:, [3, 4, 4, 5]].reshape(-1, 2, 2)
