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


def sums(weights: Array, *values: Array, dtype: Any = None) -> tuple[Floats, ...]:
    """Compute W V.

    Parameters
    ----------
    weights : array [B, N]
    values : arrays [N, T], all bool or all float
    dtype
        In which it is computed; left out, float64, or what gives the same of counts.

    Returns
    -------
    tuple of arrays [B, T], float64
    """
    if dtype is None:
        dtype = exact_dtype(weights) if all(x.dtype == bool for x in values) else np.float64
    together = np.concatenate(values, axis=1).astype(dtype)
    out = np.empty((len(weights), together.shape[1]))
    for draws in _slices(weights):
        out[draws] = weights[draws].astype(dtype) @ together
    return tuple(np.split(out, np.cumsum([x.shape[1] for x in values])[:-1], axis=1))


def averages(weights: Array, *values: Array) -> tuple[Floats, ...]:
    """Compute the weighted mean of each column: float64 [B, T] of weights [B, N] and values [N, T]."""
    total = totals(weights)
    return tuple(ratio(x, total) for x in sums(weights, *values))


def totals(weights: Array) -> Floats:
    """Compute the weight of every draw: float64 [B, 1]."""
    return np.asarray(weights.sum(axis=1, dtype=np.float64)[:, None])


def exact_dtype(weights: Array) -> np.dtype[Any]:
    """Choose float32 where it adds up the weights [B, N] without rounding, else float64."""
    return np.dtype(np.float32 if _most(weights) < 2**24 else np.float64)


def narrowest_dtype(weights: Array) -> np.dtype[Any]:
    """Choose the narrowest dtype that adds up the weights [B, N] without rounding: memory bounds such sums."""
    return np.dtype(np.uint16) if _most(weights) < 2**16 else exact_dtype(weights)


def _most(weights: Array) -> float:
    """Return the greatest sum of a draw's weights; infinity if they are not counts."""
    return float(weights.sum(axis=1, dtype=np.int64).max()) if weights.dtype.kind in "bui" else np.inf


def blocks(weights: Array, dtype: np.dtype[Any]) -> Iterator[tuple[slice, Array]]:
    """Iterate over some draws at a time, as a slice and their weights [N, b] with the draws side by side in memory."""
    for draws in _slices(weights):
        yield draws, np.ascontiguousarray(weights[draws].T, dtype)


def _slices(weights: Array) -> Iterator[slice]:
    size = max(1, _BLOCK_ELEMENTS // weights.shape[1])
    return (slice(start, start + size) for start in range(0, len(weights), size))


def sums_by_group(weights: Array, rows: Array, groups: Array, n_groups: int) -> Array:
    """Add up the weights of the rows of each group.

    Parameters
    ----------
    weights : array [N, B]
    rows, groups : arrays [n], integer
        Some rows, and the group of each.
    n_groups : int
        K.

    Returns
    -------
    array [K, B], the dtype of the weights
    """
    if weights.shape[1] == 1:
        return np.bincount(groups, weights[rows, 0], n_groups)[:, None].astype(weights.dtype)
    from scipy.sparse import csr_array

    order = np.argsort(groups, kind="stable")
    ends = np.cumsum(np.bincount(groups, minlength=n_groups))
    ones = np.ones(len(rows), weights.dtype)
    # A sparse product adds whole rows of draws in the order of memory; sorting the weights was measured 7 times slower.
    member = csr_array((ones, rows[order], np.append(0, ends)), shape=(n_groups, len(weights)))
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
