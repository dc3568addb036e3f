"""Metrics of the order of scores: average precision and AUROC, from one sort of each target."""

from itertools import pairwise
from math import isqrt
from typing import Any

import numpy as np

from .sums import Array, Floats, blocks, exact_dtype, macro, narrowest_dtype, one_hot, ratio, sums_by_group

_FEW = 64


def ranking_metrics(y: Array, scores: Array, weights: Array) -> dict[str, Floats]:
    """Judge how well the scores of each target put its positives before its negatives.

    ``average_precision`` = Σ_k (R_k − R_{k−1}) P_k over the distinct scores, and ``auroc`` = P(score of a positive >
    score of a negative) + ½ P(equal). Both need sums at the scores of positives alone: w_k, the weight of the positives
    of the k-th highest of these scores, and their running sum TP_k with that of the negatives at or above, FP_k:

        AP = Σ_k w_k TP_k / (TP_k + FP_k) / positives
        1 − AUROC = Σ_k w_k (FP_k − ½ the negatives that equal it) / (positives · negatives)

    Parameters
    ----------
    y : array [N, T], bool
        Truth.
    scores : array [N, T], float
    weights : array [B, N]
        Non-negative row weights of each draw.

    Returns
    -------
    dict of arrays [B, T], float64
        NaN where the positives, or of AUROC the negatives, have no weight.
    """
    precision, lost = np.full((2, len(weights), y.shape[1]), np.nan)
    # Of many draws the precisions are rounded to float32, and their average is right to a ten-millionth.
    dtype = exact_dtype(weights) if len(weights) > 1 else np.dtype(np.float64)
    for draws, block in blocks(weights, narrowest_dtype(weights)):
        for t in np.flatnonzero(y.any(axis=0)):
            precision[draws, t], lost[draws, t] = _rank(y[:, t], scores[:, t], block, dtype)
    return {"average_precision": precision, "auroc": 1 - lost}


def class_ranking_metrics(y: Array, scores: Array, weights: Array) -> dict[str, Floats]:
    """Compute ``macro_auroc``, the mean AUROC of each class against the rest.

    Parameters
    ----------
    y : array [N], integer
        Class codes 0..C-1.
    scores : array [N, C], float
    weights : array [B, N]
        Non-negative row weights of each draw.

    Returns
    -------
    dict of one array [B, 1], float64
        Classes of no weight, or of all, do not count.
    """
    one_against_rest = ranking_metrics(one_hot(y, scores.shape[1]), scores, weights)["auroc"]
    return {"macro_auroc": macro(one_against_rest)[:, None]}


def _rank(y: Array, scores: Array, weights: Array, dtype: np.dtype[Any]) -> tuple[Floats, Floats]:
    """Return AP and 1 − AUROC, [B] each, of one target [N] under weights [N, B]; sums of these are exact."""
    positive, negative = np.flatnonzero(y), np.flatnonzero(~y)
    descending, level = np.unique(-scores[positive], return_inverse=True)
    lower = -scores[negative]
    # What is in order is looked up three times as quickly.
    order, above = np.argsort(lower), np.empty(len(lower), np.intp)
    above[order] = np.searchsorted(descending, lower[order])
    equal = np.append(descending, np.nan)[above] == lower
    gained = sums_by_group(weights, positive, level, len(descending))
    found = _accumulate(gained.copy())
    passed = _accumulate(sums_by_group(weights, negative, above, len(descending) + 1))
    gained, found, passed = (x.astype(dtype) for x in (gained, found, passed))
    positives, negatives, passed = found[-1].astype(np.float64), passed[-1].astype(np.float64), passed[:-1]
    worse = _total(gained * passed)
    if equal.any():
        tied = sums_by_group(weights, negative[equal], above[equal], len(descending))
        worse -= _total(gained * tied.astype(dtype)) / 2
    passed += found
    np.maximum(passed, np.finfo(dtype).tiny, out=passed)  # where there is nothing yet, precision is 0
    gained *= found
    gained /= passed
    return ratio(_total(gained), positives), ratio(worse, positives * negatives)


def _total(x: Array) -> Floats:
    """Add up the rows of x [K, B]: a few in its own dtype, and the sums of these in float64."""
    whole = len(x) // _FEW * _FEW
    few = x[:whole].reshape(-1, _FEW, x.shape[1]).sum(axis=1)
    return np.asarray(few.sum(axis=0, dtype=np.float64) + x[whole:].sum(axis=0, dtype=np.float64))


def _accumulate(x: Array) -> Array:
    """Return the running sums of the rows of x [K, B], in its place if there are several columns.

    `numpy.cumsum` goes down one column after the other and misses the cache at every step. Here whole rows are added:
    inside blocks of √K rows, all blocks at once; the last rows of blocks to each other; these to the blocks below.
    """
    if x.shape[1] == 1:
        return np.cumsum(x, axis=0, dtype=x.dtype)
    size = isqrt(len(x)) + 1
    ends = x[size - 1 :: size]
    for i in range(1, size):
        rows = x[i::size]
        rows += x[i - 1 :: size][: len(rows)]
    for before, row in pairwise(ends):
        row += before
    for i in range(size, 2 * size - 1):
        rows = x[i::size]
        rows += ends[: len(rows)]
    return x
