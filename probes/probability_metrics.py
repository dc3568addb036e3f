"""Metrics of probabilities: log-loss, Brier score and expected calibration error."""

import numpy as np

from .sums import Array, Floats, averages, exact_dtype, one_hot, ratio, sums, totals

N_BINS = 15

_ELEMENTS = 2**22
"""Numbers by row, target and bin that are in memory at a time."""


def probability_metrics(y: Array, chance: Array, weights: Array) -> dict[str, Floats]:
    """Judge the probability of each target.

    ``log_loss``: the mean of −y ln p − (1 − y) ln(1 − p) in nats, p clipped to [ε, 1 − ε] with the ε of its dtype;
    ``brier``: the mean of (y − p)²; ``ece``: Σ_m |Σ_{i∈m} w_i (y_i − p_i)| / Σ_i w_i over 15 equal bins m of p.

    Parameters
    ----------
    y : array [N, T], bool
        Truth.
    chance : array [N, T], float
        p, in [0, 1].
    weights : array [B, N]
        Non-negative row weights of each draw.

    Returns
    -------
    dict of arrays [B, T], float64

    References
    ----------
    Brier (1950), Verification of forecasts expressed in terms of probability.
    Guo et al. (2017), On calibration of modern neural networks, equations 2 and 3: bins are closed above.
    """
    clipped = _clip(chance)
    surprise, square = -np.log(np.where(y, clipped, 1 - clipped)), (y - chance.astype(np.float64)) ** 2
    log_loss, brier = averages(weights, surprise, square)
    return {"log_loss": log_loss, "brier": brier, "ece": _calibration_error(y, chance, weights)}


def class_probability_metrics(y: Array, chance: Array, weights: Array) -> dict[str, Floats]:
    """Judge the probabilities of the classes.

    ``log_loss``: the mean of −ln p(class of the row) in nats, clipped as in `probability_metrics`; ``brier``: the mean
    of Σ_c (y_c − p_c)², from 0 to 2; ``ece``: that of the highest probability, y being whether its class is the row's.

    Parameters
    ----------
    y : array [N], integer
        Class codes 0..C-1.
    chance : array [N, C], float
        p, in [0, 1].
    weights : array [B, N]
        Non-negative row weights of each draw.

    Returns
    -------
    dict of arrays [B, 1], float64
    """
    of_class = _clip(chance)[np.arange(len(y)), y]
    squares = (one_hot(y, chance.shape[1]) - chance.astype(np.float64)) ** 2
    log_loss, brier = averages(weights, -np.log(of_class)[:, None], squares.sum(axis=1, keepdims=True))
    correct, highest = chance.argmax(axis=1) == y, chance.max(axis=1, keepdims=True)
    return {"log_loss": log_loss, "brier": brier, "ece": _calibration_error(correct[:, None], highest, weights)}


def bin_of(chance: Array) -> Array:
    """Number of the bin of each probability among `N_BINS` equal ones, closed above."""
    return np.searchsorted(np.linspace(0, 1, N_BINS + 1)[1:-1], chance)


def _clip(chance: Array) -> Floats:
    eps = float(np.finfo(chance.dtype).eps)
    return np.clip(chance.astype(np.float64), eps, 1 - eps)


def _calibration_error(y: Array, chance: Array, weights: Array) -> Floats:
    n_rows, n_targets = y.shape
    bins, excess = bin_of(chance), y - chance.astype(np.float64)
    gaps = np.empty((len(weights), n_targets))
    if len(weights) == 1:
        own = weights[0] * excess.T
        gaps[0] = [np.abs(np.bincount(bins[:, t], own[t])).sum() for t in range(n_targets)]
        return ratio(gaps, totals(weights))
    size = max(1, _ELEMENTS // (n_rows * N_BINS))
    for start in range(0, n_targets, size):
        some = slice(start, start + size)
        # The excess of every row in its bin's column, and zeros: of many draws a product is quicker than sums by bins.
        # Float32 leaves seven digits.
        spread = np.zeros((n_rows, bins[:, some].shape[1], N_BINS))
        np.put_along_axis(spread, bins[:, some, None], excess[:, some, None], axis=2)
        (summed,) = sums(weights, spread.reshape(n_rows, -1), dtype=exact_dtype(weights))
        gaps[:, some] = np.abs(summed.reshape(len(weights), -1, N_BINS)).sum(axis=2)
    return ratio(gaps, totals(weights))
