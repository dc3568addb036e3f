"""Metrics of probabilities: log-loss, Brier score and expected calibration error."""

import numpy as np

from .sums import Array, Floats, average, blocks, one_hot, ratio, sums_by_group, totals

N_BINS = 15


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
    return {
        "log_loss": average(weights, -np.log(np.where(y, clipped, 1 - clipped))),
        "brier": average(weights, (y - chance.astype(np.float64)) ** 2),
        "ece": _calibration_error(y, chance, weights),
    }


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
    correct = chance.argmax(axis=1) == y
    return {
        "log_loss": average(weights, -np.log(of_class)[:, None]),
        "brier": average(weights, squares.sum(axis=1, keepdims=True)),
        "ece": _calibration_error(correct[:, None], chance.max(axis=1, keepdims=True), weights),
    }


def bin_of(chance: Array) -> Array:
    """Number of the bin of each probability among `N_BINS` equal ones, closed above."""
    return np.searchsorted(np.linspace(0, 1, N_BINS + 1)[1:-1], chance)


def _clip(chance: Array) -> Floats:
    eps = float(np.finfo(chance.dtype).eps)
    return np.clip(chance.astype(np.float64), eps, 1 - eps)


def _calibration_error(y: Array, chance: Array, weights: Array) -> Floats:
    bins = bin_of(chance)
    excess = y - chance.astype(np.float64)
    gaps = np.empty((len(weights), y.shape[1]))
    rows = np.arange(len(y))
    for draws, block in blocks(weights, np.dtype(np.float64)):
        for t in range(y.shape[1]):
            gaps[draws, t] = np.abs(sums_by_group(block, rows, bins[:, t], N_BINS, excess[:, t])).sum(axis=0)
    return ratio(gaps, totals(weights))
