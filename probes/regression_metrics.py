"""Metrics of predicted values: R², mean squared error and Pearson's r, from one set of sums."""

import numpy as np

from .sums import Array, Floats, averages, ratio


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
    error = (y - scores) ** 2
    # Variances are differences of sums: centring first keeps their digits.
    y, scores = y - y.mean(axis=0), scores - scores.mean(axis=0)
    error, mean, mean_score, square, square_score, product = averages(
        weights, error, y, scores, y * y, scores * scores, y * scores
    )
    variance = _beyond_rounding(square - mean**2, square)
    score_variance = _beyond_rounding(square_score - mean_score**2, square_score)
    covariance = _beyond_rounding(product - mean * mean_score, np.sqrt(square * square_score))
    return {
        "r2": 1 - ratio(error, variance),
        "mean_squared_error": error,
        "pearson_r": ratio(covariance, np.sqrt(variance * score_variance)),
    }


def _beyond_rounding(difference: Floats, size: Floats) -> Floats:
    """Return the difference of sums of this size; 0 where it is one of rounding alone."""
    return np.where(np.abs(difference) > 1e-12 * size, difference, 0.0)
