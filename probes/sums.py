"""Weighted sums over rows for all bootstrap draws at once: what every metric is made of.

A draw is a vector of row weights. Shape suffixes: B draws, N rows, T targets, C classes.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

# As many weights are held as floating point numbers at a time: 32 or 64 MiB.
_BLOCK_ELEMENTS = 1 << 23


def sums(weights: Array, values: Array) -> Floats:
    """Compute W V.

    Parameters
    ----------
    weights : array [B, N]
    values : array [N, T], bool or float

    Returns
    -------
    array [B, T], float64
    """
    dtype = exact_dtype(weights) if values.dtype == bool else np.dtype(np.float64)
    columns = np.ascontiguousarray(values.T, dtype)
    out = np.empty((len(weights), len(columns)))
    for draws, block in blocks(weights, dtype):
        out[draws] = (columns @ block).T
    return out


def average(weights: Array, values: Array) -> Floats:
    """Compute the weighted mean of each column: float64 [B, T] of weights [B, N] and values [N, T]."""
    return ratio(sums(weights, values), totals(weights))


def totals(weights: Array) -> Floats:
    """Compute the weight of every draw: float64 [B, 1]."""
    return np.asarray(weights.sum(axis=1, dtype=np.float64)[:, None])


def exact_dtype(weights: Array) -> np.dtype[Any]:
    """Choose float32 where it adds up the weights [B, N] without rounding, else float64."""
    counts = weights.dtype.kind in "bui" and weights.sum(axis=1, dtype=np.int64).max() < 2**24
    return np.dtype(np.float32 if counts else np.float64)


def blocks(weights: Array, dtype: np.dtype[Any]) -> Iterator[tuple[slice, Array]]:
    """Iterate over some draws at a time, as a slice and their weights [N, b] with the draws side by side in memory."""
    size = max(1, _BLOCK_ELEMENTS // weights.shape[1])
    for start in range(0, len(weights), size):
        draws = slice(start, start + size)
        yield draws, np.ascontiguousarray(weights[draws].T, dtype)


def ratio(numerator: Array, denominator: Array) -> Floats:
    """Divide, with NaN instead of a division by zero."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    out: Floats = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=out, where=denominator != 0)
    return out


def macro(values: Array) -> Floats:
    """Average over the last axis without targets that have no value (NaN); NaN only where nothing is left."""
    valid = ~np.isnan(values)
    return ratio(np.where(valid, values, 0.0).sum(axis=-1), valid.sum(axis=-1))


def one_hot(codes: Array, n_classes: int) -> npt.NDArray[np.bool_]:
    """Write class codes [N] as bool [N, C]."""
    return np.asarray(codes[:, None] == np.arange(n_classes))
