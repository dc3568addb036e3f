"""Sufficient statistics per fold, and the centred moments of any folds together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import array_api_compat
import numpy as np

from sonde.errors import InputError

from .backend import Array


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
    sxx : float64 array of shape [D, D], or None
        :math:`\sum w_i (x_i-\bar x)(x_i-\bar x)^\top`; rows and columns of constant features are exactly zero.
        None if the statistics hold no Gram matrices.
    sxy : float64 array of shape [D, T]
        :math:`\sum w_i (x_i-\bar x)(y_i-\bar y)^\top`; zero for constant features, if those are known.
    syy : float64 array of shape [T]
        :math:`\sum w_i (y_i-\bar y)^2`.
    scale : float64 array of shape [D], or None
        Standard deviation :math:`\sqrt{\mathrm{sxx}_{jj}/W}`, 1 for constant features (as scikit-learn's
        ``StandardScaler``). None if it is not known.
    live : float64 array of shape [D], or None
        1, or 0 for constant features. None if it is not known.
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
    live: Array
    dtype: Any

    def decompose(self, scale: Array) -> tuple[Array, Array]:
        r"""Return the eigenvalues and eigenvectors of :math:`D^{-1} S_{xx} D^{-1} = Q \Lambda Q^\top`.

        Parameters
        ----------
        scale : float64 array of shape [D]
            Diagonal of D.

        Returns
        -------
        values : float64 array of shape [r]
            Λ ≥ 0.
        vectors : float64 array of shape [D, r]
            Q. r is D unless the moments know that fewer suffice.

        Raises
        ------
        InputError
            If there is no Gram matrix.
        """
        if self.sxx is None:
            raise InputError("these statistics hold no Gram matrices: give the bases that were made from them")
        xp = array_api_compat.array_namespace(scale)
        values, vectors = xp.linalg.eigh(self.sxx / (scale[:, None] * scale[None, :]))
        # The matrix is positive semi-definite; below zero there is only rounding.
        return xp.where(values > 0, values, xp.zeros_like(values)), vectors


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
    gram : float64 array of shape [F, D, D], or None
        :math:`\sum w_i (x_i-s)(x_i-s)^\top`. None where known bases stand for them.
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
    gram: Array | None
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

    def parts(self) -> Iterator[Moments]:
        """Give out the moments without fold 0, …, without fold F-1, and of all rows, one at a time: they are large."""
        for fold in range(self.n_folds):
            yield self.without(fold)
        yield self.total()

    def first(self, n: int) -> FoldStatistics:
        """Return the statistics of the first n folds, without a copy."""
        per_fold = ("n", "weight", "sum_x", "sum_y", "gram", "cross", "square_y")
        return replace(self, **{name: getattr(self, name)[:n] for name in per_fold})

    def light(self) -> FoldStatistics:
        """Return the same sums without what `Moments.decompose` needs: enough where the bases are known."""
        return FoldStatistics(
            n=self.n,
            weight=self.weight,
            shift_x=self.shift_x,
            shift_y=self.shift_y,
            sum_x=self.sum_x,
            sum_y=self.sum_y,
            gram=None,
            cross=self.cross,
            square_y=self.square_y,
            dtype=self.dtype,
        )

    def _moments(self, folds: list[int]) -> Moments:
        xp = array_api_compat.array_namespace(self.sum_x)
        weight = float(self.weight[folds].sum())
        if weight <= 0:
            raise InputError(f"no rows of positive weight in fold(s) {folds}: use fewer folds")
        a, b = _added(self.sum_x, folds) / weight, _added(self.sum_y, folds) / weight
        syy = _added(self.square_y, folds) - weight * b**2
        moments = Moments(
            n=int(self.n[folds].sum()),
            weight=weight,
            mean_x=self.shift_x + a,
            mean_y=self.shift_y + b,
            sxx=None,
            sxy=_added(self.cross, folds) - weight * (a[:, None] * b[None, :]),
            syy=xp.where(syy > 0, syy, xp.zeros_like(syy)),
            scale=None,
            live=None,
            dtype=self.dtype,
        )
        return self._with_spread(moments, folds, a)

    def _with_spread(self, moments: Moments, folds: list[int], offset: Array) -> Moments:
        """Return the moments of `folds` with what is known of their spread about the mean, at shift + `offset`."""
        if self.gram is None:
            return moments
        xp = array_api_compat.array_namespace(offset)
        sxx = _added(self.gram, folds)
        step = moments.weight**0.5 * offset
        sxx -= step[:, None] * step[None, :]
        moments = with_scale(moments, xp.linalg.diagonal(sxx) / moments.weight, offset)
        if not bool(xp.all(moments.live == 1)):
            sxx *= moments.live[:, None] * moments.live[None, :]
        return replace(moments, sxx=sxx)


def with_scale(moments: Moments, variance: Array, offset: Array) -> Moments:
    """Return the moments with the scale of their columns, and nothing left of the constant ones.

    Parameters
    ----------
    moments : Moments
    variance : float64 array of shape [D]
        Of the columns.
    offset : float64 array of shape [D]
        Mean less the shift about which products were taken.
    """
    xp = array_api_compat.array_namespace(variance)
    # StandardScaler's bound on what rounding alone makes of a constant, and that of our products' dtype.
    n, tiny = moments.n, np.finfo(np.float64).eps
    eps, smallest = float(xp.finfo(moments.dtype).eps), float(xp.finfo(moments.dtype).smallest_normal)
    rounding = n * tiny * variance + (n * tiny * moments.mean_x) ** 2 + 64 * eps * (variance + offset**2)
    # Squares near the end of the dtype's range underflow: a trained LayerNorm may leave columns of 1e-33.
    live = xp.astype(variance > rounding + smallest / eps, xp.float64)
    scale = xp.sqrt(xp.where(live > 0, variance, xp.ones_like(variance)))
    return replace(moments, scale=scale, live=live, sxy=moments.sxy * live[:, None])


def _added(per_fold: Array, folds: list[int]) -> Array:
    # A sum over the folds that stay: the total minus the others, without its cancellation and its copy.
    result = array_api_compat.array_namespace(per_fold).asarray(per_fold[folds[0]], copy=True)
    for fold in folds[1:]:
        result += per_fold[fold]
    return result
