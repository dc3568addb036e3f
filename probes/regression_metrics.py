"""Metrics of predicted values: R², mean squared error and Pearson's r, from one set of sums."""

import numpy as np

from .sums import Array, Floats, average, ratio, sums, totals


def regression_metrics(y: Array, scores: Array, weights: Array) -> dict[str, Floats]:
    """Judge the predicted value of each target.

    ``r2`` = 1 − Σ w (y − s)² / Σ w (y − ȳ)², ``mean_squared_error`` = Σ w (y − s)² / Σ w, and ``pearson_r`` =
    Σ w (y − ȳ)(s − s̄) / √(Σ w (y − ȳ)² Σ w (s − s̄)²), with weighted means ȳ and s̄.

    Parameters
    ----------
    y, scores : arrays [N, T], any number
    weights : array [B, N]
        Non-negative row weights of each draw.

    Returns
    -------
    dict of arrays [B, T], float64
        NaN where y, or of Pearson's r the scores, do not vary.
    """
    y, scores = y.astype(np.float64), scores.astype(np.float64)
    error = average(weights, (y - scores) ** 2)
    variance, score_variance = _covariance(weights, y, y), _covariance(weights, scores, scores)
    return {
        "r2": 1 - ratio(error, variance),
        "mean_squared_error": error,
        "pearson_r": ratio(_covariance(weights, y, scores), np.sqrt(variance * score_variance)),
    }


def _covariance(weights: Array, a: Floats, b: Floats) -> Floats:
    """Compute the weighted covariance of each column, [B, T]; 0 where it is one of rounding alone."""
    # It is a difference of sums: centring first keeps its digits.
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    total = totals(weights)
    products = ratio(sums(weights, a * b), total)
    covariance = products - ratio(sums(weights, a), total) * ratio(sums(weights, b), total)
    size = np.sqrt(ratio(sums(weights, a * a), total) * ratio(sums(weights, b * b), total))
    return np.where(np.abs(covariance) > 1e-12 * size, covariance, 0.0)
