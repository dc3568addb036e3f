"""Sufficient statistics per fold, and the centred moments of any folds together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np

from sonde.errors import InputError

from .backend import Array, mirror


@dataclass(frozen=True, slots=True)
class Moments:
    r"""Centred sums of one set of rows.

    With weights :math:`w_i` (1 unless given), :math:`W=\sum w_i` and :math:`\bar x=\sum w_i x_i / W`:

    Attributes
    ----------
    n : int
        Number of rows.
    weight : float
        W.
    mean_x : float64 array of shape [D]
    mean_y : float64 array of shape [T]
    sxx : float64 array of shape [D, D]
        :math:`\sum w_i (x_i-\bar x)(x_i-\bar x)^\top`; rows and columns of constant features are exactly zero.
    sxy : float64 array of shape [D, T]
        :math:`\sum w_i (x_i-\bar x)(y_i-\bar y)^\top`; zero for constant features.
    syy : float64 array of shape [T]
        :math:`\sum w_i (y_i-\bar y)^2`.
    scale : float64 array of shape [D]
        Standard deviation :math:`\sqrt{\mathrm{sxx}_{jj}/W}`, 1 for constant features (as scikit-learn's
        ``StandardScaler``).
    dtype : dtype
        In which the products were computed, and in which probes are returned: float32 or float64.
    """

    n: int
    weight: float
    mean_x: Array
    mean_y: Array
    sxx: Array
    sxy: Array
    syy: Array
    scale: Array
    dtype: Any


@dataclass(frozen=True, slots=True)
class FoldStatistics:
    r"""Sums per fold of rows x and targets y, about the shifts s and t.

    Any set of folds has its `Moments` from these without another pass over the data.

    Attributes
    ----------
    n : int64 array of shape [F], numpy
        Rows per fold.
    weight : float64 array of shape [F], numpy
        :math:`\sum w_i`.
    shift_x : float64 array of shape [D]
        s: zero, but near the mean on columns whose mean is many standard deviations from zero.
    shift_y : float64 array of shape [T]
        t: the mean of y.
    sum_x : float64 array of shape [F, D]
        :math:`\sum w_i (x_i-s)`.
    sum_y : float64 array of shape [F, T]
        :math:`\sum w_i (y_i-t)`.
    gram : float64 array of shape [F, D, D]
        Upper triangles of :math:`\sum w_i (x_i-s)(x_i-s)^\top`; undefined below the diagonal.
    cross : float64 array of shape [F, D, T]
        :math:`\sum w_i (x_i-s)(y_i-t)^\top`.
    square_y : float64 array of shape [F, T]
        :math:`\sum w_i (y_i-t)^2`.
    dtype : dtype
        In which the products were computed: float32 or float64.
    """

    n: np.ndarray[Any, Any]
    weight: np.ndarray[Any, Any]
    shift_x: Array
    shift_y: Array
    sum_x: Array
    sum_y: Array
    gram: Array
    cross: Array
    square_y: Array
    dtype: Any

    @property
    def n_folds(self) -> int:
        """Number of folds, F."""
        return int(self.n.shape[0])

    def total(self) -> Moments:
        """Return the moments of all rows."""
        return self._moments(list(range(self.n_folds)))

    def only(self, fold: int) -> Moments:
        """Return the moments of the rows of `fold`: what is held out."""
        return self._moments([fold])

    def without(self, fold: int) -> Moments:
        """Return the moments of all rows but those of `fold`: its training part."""
        return self._moments([f for f in range(self.n_folds) if f != fold])

    def _moments(self, folds: list[int]) -> Moments:
        xp = array_api_compat.array_namespace(self.sum_x)
        n, weight = int(self.n[folds].sum()), float(self.weight[folds].sum())
        if weight <= 0:
            raise InputError(f"no rows of positive weight in fold(s) {folds}: use fewer folds")

        def added(per_fold: Array) -> Array:
            # A sum over the folds that stay: the total minus the others, without its cancellation and its copy.
            result = xp.asarray(per_fold[folds[0]], copy=True) if folds else 0.0 * per_fold[0]
            for fold in folds[1:]:
                result += per_fold[fold]
            return result

        a, b = added(self.sum_x) / weight, added(self.sum_y) / weight
        sxx = mirror(added(self.gram))
        second = xp.linalg.diagonal(sxx) / weight
        sxx -= weight * (a[:, None] * a[None, :])
        sxy = added(self.cross) - weight * (a[:, None] * b[None, :])
        variance = xp.linalg.diagonal(sxx) / weight
        mean_x = self.shift_x + a
        # StandardScaler's bound on what rounding alone makes of a constant, and that of our products' dtype.
        tiny = np.finfo(np.float64).eps
        eps, smallest = float(xp.finfo(self.dtype).eps), float(xp.finfo(self.dtype).smallest_normal)
        # Squares near the end of the dtype's range underflow: a trained LayerNorm may leave columns of 1e-33.
        bound = n * tiny * variance + (n * tiny * mean_x) ** 2 + 64 * eps * second + smallest / eps
        live = xp.astype(variance > bound, xp.float64)
        sxx *= live[:, None] * live[None, :]
        syy = added(self.square_y) - weight * b**2
        return Moments(
            n=n,
            weight=weight,
            mean_x=mean_x,
            mean_y=self.shift_y + b,
            sxx=sxx,
            sxy=sxy * live[:, None],
            syy=xp.where(syy > 0, syy, xp.zeros_like(syy)),
            scale=xp.sqrt(xp.where(live > 0, variance, xp.ones_like(variance))),
            dtype=self.dtype,
        )
