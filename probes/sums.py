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
    values = np.ascontiguousarray(values, dtype)
    out = np.empty((len(weights), values.shape[1]))
    for draws in _slices(weights):
        out[draws] = weights[draws].astype(dtype) @ values
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
    for draws in _slices(weights):
        yield draws, np.ascontiguousarray(weights[draws].T, dtype)


def _slices(weights: Array) -> Iterator[slice]:
    size = max(1, _BLOCK_ELEMENTS // weights.shape[1])
    return (slice(start, start + size) for start in range(0, len(weights), size))


def sums_by_group(weights: Array, rows: Array, groups: Array, n_groups: int, values: Array | None = None) -> Array:
    """Add up the weights of the rows of each group, times their values if there are any.

    Parameters
    ----------
    weights : array [N, B], float
    rows, groups : arrays [n], integer
        Some rows, and the group of each.
    n_groups : int
        K.
    values : array [n], float, optional

    Returns
    -------
    array [K, B]
    """
    if weights.shape[1] == 1:
        own = weights[rows, 0]
        return np.bincount(groups, own if values is None else own * values, n_groups)[:, None]
    from scipy.sparse import csr_array

    values = np.ones(len(rows), weights.dtype) if values is None else values
    order = np.argsort(groups, kind="stable")
    ends = np.cumsum(np.bincount(groups, minlength=n_groups))
    # A sparse product adds whole rows of draws in the order of memory; sorting the weights was measured 7 times slower.
    member = csr_array((values[order], rows[order], np.append(0, ends)), shape=(n_groups, len(weights)))
    return np.asarray(member @ weights)


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
