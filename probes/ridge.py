r"""Ridge regression for every λ, target and fold from sufficient statistics.

For each target y the objective, in the units of the data, is

.. math:: \min_{w,b} \sum_i s_i (y_i - x_i^\top w - b)^2 + \alpha \lVert D w \rVert^2

with weights :math:`s_i`, unpenalised b, and D the identity (``standardize=False``: scikit-learn's ``Ridge(alpha)``)
or the diagonal of standard deviations of the training rows (``standardize=True``:
``make_pipeline(StandardScaler(), Ridge(alpha))``, folded back to raw units).
One eigendecomposition of the training Gram matrix serves every α and target
(Hoerl & Kennard 1970; Hastie, Tibshirani & Friedman, "The Elements of Statistical Learning", eq. 3.47).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np

from sonde.errors import InputError

from .backend import Array, to_numpy
from .eigenbasis import Basis, eigenbasis
from .held_out import Mixture, held_out_error
from .moments import FoldStatistics, Moments
from .tridiagonal import ridge_bases


@dataclass(frozen=True, slots=True)
class RidgePath:
    """Ridge solutions of one training part, one for each α.

    Attributes
    ----------
    alphas : float64 array of shape [A], numpy
    weights : array of shape [A, T, D], the moments' dtype, in raw units of x
    bias : array of shape [A, T], the same dtype
    """

    alphas: np.ndarray[Any, Any]
    weights: Array
    bias: Array


@dataclass(frozen=True, slots=True)
class RidgeFit:
    """Ridge with α chosen by cross-validation over the folds.

    Attributes
    ----------
    alphas : float64 array of shape [A], numpy
        The candidates, as given.
    alpha : float64 array of shape [T], numpy
        The choice for each target.
    cv_error : float64 array of shape [A, T], numpy
        Mean squared error on held-out folds.
    weights, bias : arrays of shape [T, D] and [T]
        Fit on all folds at the chosen α, in raw units of x.
    fold_weights, fold_bias : arrays of shape [F, T, D] and [F, T]
        Fits without fold f at the chosen α: for scores of fold f that its rows had no part in, but for the choice of α.
    """

    alphas: np.ndarray[Any, Any]
    alpha: np.ndarray[Any, Any]
    cv_error: np.ndarray[Any, Any]
    weights: Array
    bias: Array
    fold_weights: Array
    fold_bias: Array


def ridge_path(moments: Moments, alphas: Any, *, standardize: bool = True, basis: Basis | None = None) -> RidgePath:
    """Solve ridge regression for every α and target.

    Parameters
    ----------
    moments : Moments
        Of the training rows.
    alphas : array of shape [A]
        Positive; scikit-learn's ``alpha``.
    standardize : bool
        Whether the penalty applies to standardised columns; ignored if `basis` is given.
    basis : Basis, optional
        Of these moments, if it is known.

    Returns
    -------
    RidgePath

    Raises
    ------
    InputError
        If an α is not positive.
    """
    checked = alpha_array(alphas)
    basis = basis or eigenbasis(moments, standardize=standardize)
    return RidgePath(checked, *solve(basis, moments, checked[:, None]))


def ridge_cv(
    stats: FoldStatistics,
    alphas: Any,
    *,
    per_target: bool = True,
    standardize: bool = True,
    bases: Sequence[Basis] | None = None,
) -> RidgeFit:
    r"""Choose α by the error on held-out folds and fit, without a pass over the data.

    For weights w trained without fold f, and :math:`\delta`, :math:`\epsilon` the means of x and y in the fold less
    those in its training part, the held-out error follows from sums, each about its own rows' means:

    .. math:: \mathrm{SSE} = s_{yy,f} + W_f \epsilon^2 - 2 w^\top (s_{xy,f} + W_f \epsilon \delta) + w^\top G w, \quad
        G = S_{xx} - S_{xx,-f} + \frac{W_f^2}{W} \delta\delta^\top

    G, the fold's Gram matrix about the training mean, is never formed: the bases of all rows and of the training part
    have both terms in them. Centring and scaling come from the training part alone.

    Parameters
    ----------
    stats : FoldStatistics
        With at least two folds.
    alphas : array of shape [A]
        Positive; scikit-learn's ``alpha``.
    per_target : bool
        Whether each target has its own α (least held-out squared error, that is, greatest R²);
        else the one with the greatest R², averaged over targets, serves all. Ties go to the greater α.
    standardize : bool
        Whether the penalty applies to standardised columns; ignored if `bases` is given.
    bases : sequence of F + 1 Basis, optional
        What `ridge_bases` or `eigenbases` gives, if it is known; `stats` then need no Gram matrices. With what
        `ridge_bases` gives the result has the same bits.

    Returns
    -------
    RidgeFit

    Raises
    ------
    InputError
        If an α is not positive, or there are fewer than two folds, or an empty one.
    """
    checked = alpha_array(alphas)
    check_folds(stats)
    bases = bases or ridge_bases(stats, standardize=standardize)
    stats = stats.light()
    xp = array_api_compat.array_namespace(stats.sum_x)
    total, training = stats.total(), [stats.without(fold) for fold in range(stats.n_folds)]
    projected = [basis.project(part.sxy) for basis, part in zip(bases, [*training, total], strict=True)]
    root, mixture = bases[-1].root(), Mixture.of(checked, bases[-1].greatest, float(xp.finfo(stats.dtype).eps))
    squared = sum(
        to_numpy(held_out_error(bases[fold], part, projected[fold], stats.only(fold), root, checked, mixture))
        for fold, part in enumerate(training)
    )
    cv_error = np.asarray(squared / total.weight)
    alpha = choose_alpha(checked, cv_error, to_numpy(total.syy) / total.weight, per_target=per_target)
    parts = [
        solve(basis, part, alpha[None, :], p)
        for basis, part, p in zip(bases, [*training, total], projected, strict=True)
    ]
    weights, bias = (xp.concat(arrays, axis=0) for arrays in zip(*parts, strict=True))
    return RidgeFit(
        alphas=checked,
        alpha=alpha,
        cv_error=cv_error,
        weights=weights[-1, ...],
        bias=bias[-1, ...],
        fold_weights=weights[:-1, ...],
        fold_bias=bias[:-1, ...],
    )


def alpha_array(alphas: Any) -> np.ndarray[Any, Any]:
    """Return checked α as a float64 numpy array of shape [A]; raise InputError if one is not positive."""
    checked = np.atleast_1d(to_numpy(alphas)).astype(np.float64)
    if checked.ndim != 1 or checked.size == 0:
        raise InputError(f"alphas of shape {checked.shape}: give a list of at least one positive number")
    bad = checked[~((checked > 0) & np.isfinite(checked))]
    if bad.size:
        raise InputError(
            f"alpha {bad[0]} is not positive and finite: for hardly any penalty give a small one, such as 1e-6"
        )
    return checked


def best_alpha(alphas: np.ndarray[Any, Any], criterion: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return, per column of `criterion` ([A, T]), the α of its least value ([T]); ties go to the greatest α."""
    order = np.argsort(-alphas, kind="stable")
    return np.asarray(alphas[order][np.argmin(criterion[order], axis=0)])


def choose_alpha(
    alphas: np.ndarray[Any, Any], error: np.ndarray[Any, Any], variance: np.ndarray[Any, Any], *, per_target: bool
) -> np.ndarray[Any, Any]:
    """Return the α of each target ([T]), by mean squared errors ([A, T]) and the targets' variances ([T]).

    Each target's own least error decides, or the least of 1 - R², averaged over targets, for all.
    """
    criterion = error if per_target else _mean_unexplained(error, variance)[:, None]
    return np.broadcast_to(best_alpha(alphas, criterion), variance.shape).copy()


def check_folds(stats: FoldStatistics) -> None:
    """Raise InputError unless cross-validation over the folds is possible."""
    if stats.n_folds < 2:
        raise InputError(f"cross-validation over {stats.n_folds} fold: give at least two")
    empty = np.flatnonzero(stats.weight <= 0)
    if empty.size:
        raise InputError(
            f"fold {empty[0]} has no rows of positive weight: use fewer folds, or number them without gaps"
        )


def check_rows(
    stats: FoldStatistics, folds: np.ndarray[Any, Any], weight: np.ndarray[Any, Any] | None, hidden_size: int
) -> None:
    """Raise InputError unless the statistics can be those of rows with these folds and weights ([N]) and columns."""
    used = folds >= 0
    counted = np.bincount(folds[used], minlength=stats.n_folds)
    if not np.array_equal(counted, stats.n) or int(stats.shift_x.shape[0]) != hidden_size:
        raise InputError(
            f"statistics of {stats.n.tolist()} rows per fold and {stats.shift_x.shape[0]} columns do not belong to "
            f"{counted.tolist()} rows and {hidden_size} columns: accumulate them from the same rows and folds"
        )
    weighed = counted if weight is None else np.bincount(folds[used], weight[used], minlength=stats.n_folds)
    if not np.allclose(weighed, stats.weight):
        raise InputError("statistics were accumulated with other sample weights: give both the same sample_weight")


def to_dtype(weights: Array, bias: Array, mean_x: Array, dtype: Any) -> tuple[Array, Array]:
    """Round a float64 probe to `dtype`, with the bias that keeps its prediction at `mean_x`.

    Without it, rounding the weight of a column of large mean would move every prediction.
    """
    xp = array_api_compat.array_namespace(weights)
    rounded = xp.astype(weights, dtype)
    lost = weights - xp.astype(rounded, xp.float64)
    return rounded, xp.astype(bias + xp.matmul(lost, mean_x), dtype)


def solve(
    basis: Basis, moments: Moments, alphas: np.ndarray[Any, Any], projected: Array | None = None
) -> tuple[Array, Array]:
    """Return weights [A, T, D] and bias [A, T] in the moments' dtype, for α as in `Basis.shrink`.

    `projected` is sxy in the basis, if it is known.
    """
    xp = array_api_compat.array_namespace(moments.mean_x)
    weights = basis.expand(basis.shrink(basis.project(moments.sxy) if projected is None else projected, alphas))
    return to_dtype(weights, moments.mean_y - xp.matmul(weights, moments.mean_x), moments.mean_x, moments.dtype)


def _mean_unexplained(error: np.ndarray[Any, Any], variance: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return 1 - R² averaged over the targets that vary, shape [A]."""
    varying = variance > 0
    if not varying.any():
        return np.asarray(error.mean(axis=1))
    return np.asarray((error[:, varying] / variance[varying]).mean(axis=1))
