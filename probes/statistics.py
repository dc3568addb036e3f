"""The sums of one (site, tokens, layer) from which every linear probe is solved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sonde.errors import InputError

from .backend import Array, Backend, gram, to_numpy
from .moments import FoldStatistics, Moments
from .rows import Rows, fold_array, runs, target_array, used_chunks, weight_array

__all__ = ["FoldStatistics", "Moments", "StatisticsFitter", "accumulate", "with_targets"]

_BLOCK_ROWS = 2048
"""Rows of a fold per Gram product: enough that adding D² products in float64 costs a tenth of computing them."""

_FAR = 4.0
"""Means further than this many standard deviations from the shift move the shift."""


class StatisticsFitter:
    """Adds rows to the sums of their folds; `finish` freezes them.

    Products of up to 2,048 rows of a fold at a time are computed in the dtype of the rows and added in float64. They
    are taken about a shift that follows the data: a column whose mean so far is more than four standard deviations
    from the shift has it moved to that mean, and the sums so far are carried over in float64.
    (Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance", on why shifted data suffice.)

    Memory is O(F·D²) and does not grow with the number of rows.

    Parameters
    ----------
    backend : Backend
    hidden_size : int
        D.
    shift_y : float64 array of shape [T]
    n_folds : int
        F.
    dtype : dtype
        Of the products: float32 or float64 of the backend's namespace.
    """

    def __init__(self, backend: Backend, hidden_size: int, shift_y: Array, n_folds: int, dtype: Any) -> None:
        n_targets = int(shift_y.shape[0])
        self._backend, self._dtype, self._shift_y = backend, dtype, shift_y
        self._n = np.zeros(n_folds, dtype=np.int64)
        self._weight = np.zeros(n_folds)
        self._shift = backend.zeros(hidden_size)
        self._sum_x = backend.zeros(n_folds, hidden_size)
        self._sum_y = backend.zeros(n_folds, n_targets)
        self._gram = backend.zeros(n_folds, hidden_size, hidden_size)
        self._cross = backend.zeros(n_folds, hidden_size, n_targets)
        self._square_y = backend.zeros(n_folds, n_targets)
        self._block_x = backend.zeros(n_folds, _BLOCK_ROWS, hidden_size, dtype=dtype)
        self._block_y = backend.zeros(n_folds, _BLOCK_ROWS, n_targets, dtype=dtype)
        self._fill = [0] * n_folds
        # What is known of every column so far, about the shift, unweighted: decides when the shift moves.
        self._column_sum, self._column_square = backend.zeros(hidden_size), backend.zeros(hidden_size)
        self._moved = False

    def update(
        self, positions: np.ndarray[Any, Any], x: Array, y: Array, fold: np.ndarray[Any, Any], weight: Array | None
    ) -> None:
        """Add rows.

        Parameters
        ----------
        positions : int array of shape [n], numpy
            Sample rows, for error messages.
        x : array of shape [n, D], the fitter's dtype
        y : float64 array of shape [n, T]
        fold : int array of shape [n], numpy, each in [0, F)
            Best with equal ones together.
        weight : float64 array of shape [n], or None for ones

        Raises
        ------
        InputError
            If a value of `x` is not finite, or its square is not.
        """
        xp = self._backend.xp
        if self._moved:
            x = x - xp.astype(self._shift, self._dtype)
        # First, so that a pilot of the first chunk shifts that chunk too.
        moved_by = self._follow(positions, x)
        if moved_by is not None:
            x = x - xp.astype(moved_by, self._dtype)
        y = y - self._shift_y
        for f, mine in runs(fold):
            y_f, w_f = y[mine, :], None if weight is None else weight[mine]
            self._n[f] += y_f.shape[0]
            self._weight[f] += y_f.shape[0] if w_f is None else float(xp.sum(w_f))
            wide = y_f if w_f is None else y_f * w_f[:, None]
            self._sum_y[f, ...] += xp.sum(wide, axis=0)
            self._square_y[f, ...] += xp.sum(wide * y_f, axis=0)
            self._buffer(f, x[mine, :], xp.astype(y_f, self._dtype), w_f)

    def finish(self) -> FoldStatistics:
        """Return the sums of all rows added so far."""
        for fold in range(len(self._fill)):
            self._flush(fold)
        return FoldStatistics(
            n=self._n,
            weight=self._weight,
            shift_x=self._shift,
            shift_y=self._shift_y,
            sum_x=self._sum_x,
            sum_y=self._sum_y,
            gram=self._gram,
            cross=self._cross,
            square_y=self._square_y,
            dtype=self._dtype,
        )

    def _follow(self, positions: np.ndarray[Any, Any], x: Array) -> Array | None:
        """Check that `x` is finite, move the shift if a column's mean is far from it, and return by how much."""
        xp = self._backend.xp
        ones = xp.ones_like(x[:, 0])
        with np.errstate(over="ignore", invalid="ignore"):
            total, square = xp.matmul(ones, x), xp.matmul(ones, x * x)
        if not bool(xp.all(xp.isfinite(square))):
            raise_not_finite(positions, x, xp)
        self._column_sum += xp.astype(total, xp.float64)
        self._column_square += xp.astype(square, xp.float64)
        n = int(self._n.sum()) + x.shape[0]
        mean = self._column_sum / n
        # Cancellation here errs by a few epsilon of the squared mean: far too little to hide a far column.
        variance = self._column_square / n - mean**2
        far = (mean**2 > _FAR**2 * variance) & (mean != 0)
        if not bool(xp.any(far)):
            return None
        for fold in range(len(self._fill)):
            self._flush(fold)
        # Rounded, so that rows are shifted by exactly what the sums say.
        moved = xp.astype(xp.astype(self._shift + xp.where(far, mean, 0 * mean), self._dtype), xp.float64)
        step = moved - self._shift
        for fold in range(len(self._fill)):
            if self._n[fold] == 0:
                continue
            weight, a = float(self._weight[fold]), self._sum_x[fold, ...]
            outer = step[:, None] * a[None, :]
            self._gram[fold, ...] += weight * (step[:, None] * step[None, :]) - outer - outer.T
            self._cross[fold, ...] -= step[:, None] * self._sum_y[fold, ...][None, :]
            self._sum_x[fold, ...] -= weight * step
        self._column_square += n * step**2 - 2 * step * self._column_sum
        self._column_sum -= n * step
        self._shift, self._moved = moved, True
        return step

    def _buffer(self, fold: int, x: Array, y: Array, weight: Array | None) -> None:
        xp = self._backend.xp
        if weight is not None:
            root = xp.astype(xp.sqrt(weight), self._dtype)[:, None]
            # The plain sum needs w where the products need √w on either side.
            self._sum_x[fold, ...] += xp.matmul(weight, xp.astype(x, xp.float64))
            x, y = x * root, y * root
        else:
            self._sum_x[fold, ...] += xp.sum(x, axis=0, dtype=xp.float64)
        start = 0
        while start < x.shape[0]:
            fill = self._fill[fold]
            n = min(_BLOCK_ROWS - fill, x.shape[0] - start)
            self._block_x[fold, fill : fill + n, :] = x[start : start + n, :]
            self._block_y[fold, fill : fill + n, :] = y[start : start + n, :]
            self._fill[fold] = fill + n
            start += n
            if self._fill[fold] == _BLOCK_ROWS:
                self._flush(fold)

    def _flush(self, fold: int) -> None:
        if self._fill[fold] == 0:
            return
        xp = self._backend.xp
        x = self._block_x[fold, : self._fill[fold], :]
        self._gram[fold, ...] += gram(x)
        self._cross[fold, ...] += xp.matmul(x.T, self._block_y[fold, : self._fill[fold], :])
        self._fill[fold] = 0


def accumulate(
    rows: Rows,
    y: Any,
    folds: Any,
    *,
    n_folds: int | None = None,
    sample_weight: Any = None,
    device: str | None = None,
) -> FoldStatistics:
    """Compute the sums of every fold in one pass over the rows.

    Parameters
    ----------
    rows : Rows
        Activations of shape [N, D], streamed.
    y : array of shape [N, T] or [N], or None
        Targets; None for statistics of the activations alone (T = 0).
    folds : int array of shape [N]
        Fold of every row in [0, F); -1 leaves a row out: nothing is computed with it.
    n_folds : int, optional
        F; left out, one more than the greatest fold.
    sample_weight : array of shape [N], optional
        Weights, not negative; left out, ones.
    device : str, optional
        Torch device to compute on; left out, the chunks' own namespace and device.

    Returns
    -------
    FoldStatistics
        In the chunks' namespace and device, or torch on `device`.

    Raises
    ------
    InputError
        If shapes disagree, no row is in use, or a value in use is not finite; the message names the row.
    """
    fold = fold_array(folds, n_folds)
    used = fold >= 0
    n_folds = n_folds or int(fold.max()) + 1
    y_all = np.zeros((fold.shape[0], 0)) if y is None else target_array(y, used)
    weight_all = weight_array(sample_weight, used)
    shift_y = _weighted_mean(y_all[used], None if weight_all is None else weight_all[used])
    fitter: StatisticsFitter | None = None
    for backend, positions, x in used_chunks(rows, fold, device):
        if fitter is None:
            shift = backend.asarray(shift_y, backend.xp.float64)
            fitter = StatisticsFitter(backend, rows.hidden_size, shift, n_folds, x.dtype)
        y_chunk = backend.asarray(y_all[positions], backend.xp.float64)
        weight = None if weight_all is None else backend.asarray(weight_all[positions], backend.xp.float64)
        fitter.update(positions, x, y_chunk, fold[positions], weight)
    assert fitter is not None, "used_chunks raises if rows in use never come"
    return fitter.finish()


def with_targets(
    stats: FoldStatistics,
    rows: Rows,
    y: Any,
    folds: Any,
    *,
    sample_weight: Any = None,
    device: str | None = None,
) -> FoldStatistics:
    """Put the sums of targets beside those of the activations, in one pass over the rows.

    Parameters
    ----------
    stats : FoldStatistics
        Of the same rows, folds and weights; its own targets are replaced.
    rows, y, folds, sample_weight, device
        As of `accumulate`.

    Returns
    -------
    FoldStatistics
        With `sum_y`, `shift_y`, `cross` and `square_y` of y; all else is that of `stats`.

    Raises
    ------
    InputError
        As `accumulate`, or if the statistics are of other folds.
    """
    fold = fold_array(folds, stats.n_folds)
    used = fold >= 0
    if not np.array_equal(np.bincount(fold[used], minlength=stats.n_folds), stats.n):
        raise InputError(
            f"statistics of {stats.n.tolist()} rows per fold are not of these folds: accumulate them from the same rows"
        )
    target, weight = target_array(y, used), weight_array(sample_weight, used)
    shift = _weighted_mean(target[used], None if weight is None else weight[used])
    target -= shift
    target[~used] = 0.0
    weighted = target if weight is None else target * weight[:, None]
    y_all: Any = None
    member = (fold == np.arange(stats.n_folds)[:, None]).astype(np.float64)
    backend = Backend.of(stats.shift_x)
    cross = backend.zeros(stats.n_folds, rows.hidden_size, target.shape[1])
    moved = bool(backend.xp.any(stats.shift_x != 0))
    for _, positions, x in used_chunks(rows, fold, device):
        x = x - backend.xp.astype(stats.shift_x, x.dtype) if moved else x
        y_all = backend.asarray(weighted, x.dtype) if y_all is None else y_all
        y_chunk = backend.xp.take(y_all, backend.indices(positions), axis=0)
        for f, mine in runs(fold[positions]):
            cross[f, ...] += backend.xp.matmul(x[mine, :].T, y_chunk[mine, :])
    return replace(
        stats,
        shift_y=backend.asarray(shift, backend.xp.float64),
        sum_y=backend.asarray(member @ weighted),
        square_y=backend.asarray(member @ (weighted * target)),
        cross=cross,
    )


def _weighted_mean(y: np.ndarray[Any, Any], weight: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any]:
    if weight is None or weight.sum() <= 0:
        return np.asarray(y.mean(axis=0))
    return np.asarray(weight @ y / weight.sum())


def raise_not_finite(positions: np.ndarray[Any, Any], x: Array, xp: Any) -> None:
    """Raise InputError for the first value of x ([n, D]), of sample rows `positions`, that is not finite."""
    order = np.argsort(positions)
    bad = np.argwhere(~to_numpy(xp.isfinite(x))[order])
    positions = positions[order]
    if bad.size == 0:
        raise InputError(
            f"activations of rows {positions[0]} to {positions[-1]} are too large for products in {x.dtype}: "
            "give them as float64, or scale them down"
        )
    row, column = bad[0].tolist()
    raise InputError(
        f"the activation of row {positions[row]}, column {column}, is not finite: "
        "extract it again in a wider dtype, or give the row the fold -1"
    )
