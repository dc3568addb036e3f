r"""Ridge and logistic regression of fewer rows than columns, without a D x D matrix.

n centred rows R span at most n dimensions. With an orthonormal basis Z of these, :math:`R^\top = Z T`, the Gram matrix
is :math:`S_{xx} = R^\top R = Z (T T^\top) Z^\top`, and the decomposition of the n x n matrix
:math:`T T^\top = P \Lambda P^\top` gives its eigenvectors, Z P. So rows stand for the Gram matrices of all folds.

The usual dual form, by :math:`R R^\top` (Saunders, Gammerman & Vovk 1998, "Ridge regression learning algorithm in dual
variables"), saves the QR decomposition, but its eigenvectors :math:`R^\top u / \sqrt\lambda` are orthogonal only to
:math:`\epsilon \sqrt{\lambda_{\max} / \lambda}`: too little for ridge of ill-conditioned rows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import array_api_compat
import numpy as np

from .backend import Array, Backend
from .moments import FoldStatistics, Moments, with_scale
from .rows import Rows, fold_array, target_array, used_chunks, weight_array
from .statistics import accumulate, raise_not_finite


@dataclass(frozen=True, slots=True)
class RowMoments(Moments):
    r"""Centred sums of one set of rows, and the rows instead of their Gram matrix.

    Attributes
    ----------
    centred : float64 array of shape [n, D]
        :math:`R = \sqrt{w_i} (x_i-\bar x)`; zero for constant features. ``sxx``, which is None, would be
        :math:`R^\top R`.
    """

    centred: Array

    def decompose(self, scale: Array) -> tuple[Array, Array]:
        """Return the r = min(n, D) eigenvalues and eigenvectors beside which there are only zeros."""
        xp = array_api_compat.array_namespace(scale)
        basis, coordinates = xp.linalg.qr((self.centred / scale).T)
        values, vectors = xp.linalg.eigh(xp.matmul(coordinates, coordinates.T))
        return xp.where(values > 0, values, xp.zeros_like(values)), xp.matmul(basis, vectors)


@dataclass(frozen=True, slots=True)
class RowStatistics(FoldStatistics):
    """Sums per fold, and the rows instead of the folds' Gram matrices; ``gram`` is None.

    Attributes
    ----------
    shift_x : float64 array of shape [D]
        s: the mean of x, rounded to ``dtype``.
    rows : array of shape [N, D], ``dtype``
        x - s of the rows in use.
    row_fold : int64 array of shape [N], numpy
    row_weight : float64 array of shape [N], numpy
    """

    rows: Array
    row_fold: np.ndarray[Any, Any]
    row_weight: np.ndarray[Any, Any]

    def _with_spread(self, moments: Moments, folds: list[int], offset: Array) -> Moments:
        backend = Backend.of(offset)
        xp = backend.xp
        mine = np.flatnonzero(np.isin(self.row_fold, folds))
        centred = xp.astype(xp.take(self.rows, backend.indices(mine), axis=0), xp.float64) - offset
        centred *= backend.asarray(np.sqrt(self.row_weight[mine]))[:, None]
        moments = with_scale(moments, xp.sum(centred**2, axis=0) / moments.weight, offset)
        known = {field.name: getattr(moments, field.name) for field in fields(moments)}
        return RowMoments(**known, centred=centred * moments.live)


def accumulate_rows(
    rows: Rows,
    y: Any,
    folds: Any,
    *,
    n_folds: int | None = None,
    sample_weight: Any = None,
    device: str | None = None,
) -> RowStatistics:
    """Hold the rows in use, read in one pass, and compute the sums of every fold.

    Memory is O(N·D): less than `sonde.probes.accumulate` takes for fewer rows than columns, and more for many.

    Parameters
    ----------
    rows, y, folds, n_folds, sample_weight, device
        As in `sonde.probes.accumulate`.

    Returns
    -------
    RowStatistics
        In the chunks' namespace and device, or torch on `device`. Rows are held as float32, or float64 if they are;
        all products are computed in float64.

    Raises
    ------
    InputError
        If shapes disagree, no row is in use, or a value in use is not finite; the message names the row.
    """
    fold = fold_array(folds, n_folds)
    used = fold >= 0
    n_folds = n_folds or int(fold.max()) + 1
    targets = (np.zeros((fold.size, 0)) if y is None else target_array(y, used))[used]
    weight_all = weight_array(sample_weight, used)
    weight = np.ones(int(used.sum())) if weight_all is None else weight_all[used]
    held: Array = None
    rank = np.cumsum(used) - 1
    for backend, positions, x in used_chunks(rows, fold, device):
        if not bool(backend.xp.all(backend.xp.isfinite(x))):
            raise_not_finite(positions, x, backend.xp)
        if held is None:
            held = backend.zeros(weight.size, rows.hidden_size, dtype=x.dtype)
        held[backend.indices(rank[positions]), :] = x
    backend = Backend.of(held)
    xp = backend.xp
    # Rounded, so that rows are shifted by exactly what the sums say.
    shift_x = xp.astype(xp.sum(held, axis=0, dtype=xp.float64) / weight.size, held.dtype)
    held -= shift_x
    shift_y = targets.mean(axis=0)
    x, y_used = xp.astype(held, xp.float64), backend.asarray(targets - shift_y, xp.float64)
    fold = fold[used]
    member = np.where(fold == np.arange(n_folds)[:, None], weight, 0.0)
    counted = backend.asarray(member)
    return RowStatistics(
        n=np.bincount(fold, minlength=n_folds),
        weight=member.sum(axis=1),
        shift_x=xp.astype(shift_x, xp.float64),
        shift_y=backend.asarray(shift_y, xp.float64),
        sum_x=xp.matmul(counted, x),
        sum_y=xp.matmul(counted, y_used),
        gram=None,
        cross=xp.stack([xp.matmul(x.T, counted[f, :][:, None] * y_used) for f in range(n_folds)]),
        square_y=xp.matmul(counted, y_used**2),
        dtype=held.dtype,
        rows=held,
        row_fold=fold,
        row_weight=weight,
    )


def statistics_for(
    rows: Rows,
    y: Any,
    folds: Any,
    *,
    n_folds: int | None = None,
    sample_weight: Any = None,
    device: str | None = None,
) -> FoldStatistics:
    """Compute the sums of every fold in the form that suits the number of rows: `accumulate_rows` below D rows.

    Parameters, result and errors are those of `sonde.probes.accumulate`.
    """
    # An N x N decomposition is then the smaller one, and so are the bases and what is held.
    few = int((fold_array(folds, n_folds) >= 0).sum()) < rows.hidden_size
    make = accumulate_rows if few else accumulate
    return make(rows, y, folds, n_folds=n_folds, sample_weight=sample_weight, device=device)
