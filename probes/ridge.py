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
from .moments import FoldStatistics, Moments


@dataclass(frozen=True, slots=True)
class Eigenbasis:
    r"""Eigendecomposition of the (standardised) Gram matrix of one training part.

    Attributes
    ----------
    vectors : float64 array of shape [D, D]
        Q, eigenvectors as columns, of :math:`D^{-1} S_{xx} D^{-1} = Q \Lambda Q^\top`.
    values : float64 array of shape [D]
        Λ ≥ 0, ascending.
    scale : float64 array of shape [D]
        Diagonal of D: standard deviations, or ones.
    mean_x : float64 array of shape [D]
        What is subtracted from x.
    weight : float
        Sum of the sample weights.
    """

    vectors: Array
    values: Array
    scale: Array
    mean_x: Array
    weight: float


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


def eigenbasis(moments: Moments, *, standardize: bool = True) -> Eigenbasis:
    """Decompose the Gram matrix of one training part.

    Parameters
    ----------
    moments : Moments
    standardize : bool
        Whether columns are divided by their standard deviation in these rows.
    """
    xp = array_api_compat.array_namespace(moments.sxx)
    scale = moments.scale if standardize else xp.ones_like(moments.scale)
    values, vectors = xp.linalg.eigh(moments.sxx / (scale[:, None] * scale[None, :]))
    # The matrix is positive semi-definite; below zero there is only rounding.
    values = xp.where(values > 0, values, xp.zeros_like(values))
    return Eigenbasis(vectors, values, scale, moments.mean_x, moments.weight)


def eigenbases(stats: FoldStatistics, *, standardize: bool = True) -> tuple[Eigenbasis, ...]:
    """Decompose every training part: without fold 0, …, without fold F-1, and all folds.

    The result depends on the activations and folds alone, not on targets, and serves `ridge_cv` and `logistic_cv`.
    """
    parts = [stats.without(fold) for fold in range(stats.n_folds)] + [stats.total()]
    return tuple(eigenbasis(part, standardize=standardize) for part in parts)


def ridge_path(
    moments: Moments, alphas: Any, *, standardize: bool = True, basis: Eigenbasis | None = None
) -> RidgePath:
    """Solve ridge regression for every α and target.

    Parameters
    ----------
    moments : Moments
        Of the training rows.
    alphas : array of shape [A]
        Positive; scikit-learn's ``alpha``.
    standardize : bool
        Whether the penalty applies to standardised columns; ignored if `basis` is given.
    basis : Eigenbasis, optional
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
    xp = array_api_compat.array_namespace(moments.sxx)
    basis = basis or eigenbasis(moments, standardize=standardize)
    projected = _project(moments, basis)
    solutions = [_finish(_solve(basis, projected, float(alpha)), moments) for alpha in checked]
    return RidgePath(checked, xp.stack([w for w, _ in solutions]), xp.stack([b for _, b in solutions]))


def ridge_cv(
    stats: FoldStatistics,
    alphas: Any,
    *,
    per_target: bool = True,
    standardize: bool = True,
    bases: Sequence[Eigenbasis] | None = None,
) -> RidgeFit:
    r"""Choose α by the error on held-out folds and fit, without a pass over the data.

    For weights w, b trained without fold f, the held-out error follows from the fold's own centred moments:

    .. math:: \mathrm{SSE} = s_{yy} - 2 w^\top s_{xy} + w^\top S_{xx} w + W (\bar y - w^\top \bar x - b)^2

    Centring and scaling come from the training part alone.

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
    bases : sequence of F + 1 Eigenbasis, optional
        What `eigenbases` gives, if it is known.

    Returns
    -------
    RidgeFit

    Raises
    ------
    InputError
        If an α is not positive, or there are fewer than two folds, or an empty one.
    """
    checked = alpha_array(alphas)
    n_folds = stats.n_folds
    check_folds(stats)
    xp = array_api_compat.array_namespace(stats.gram)
    total = stats.total()
    n_targets = int(total.mean_y.shape[0])
    squared = xp.zeros((checked.size, n_targets), dtype=xp.float64, device=array_api_compat.device(stats.gram))
    training: list[tuple[Moments, Eigenbasis, Array]] = []
    for fold in range(n_folds):
        moments, held_out = stats.without(fold), stats.only(fold)
        basis = bases[fold] if bases else eigenbasis(moments, standardize=standardize)
        projected = _project(moments, basis)
        for i, alpha in enumerate(checked.tolist()):
            squared[i, ...] += _held_out_error(_solve(basis, projected, alpha), moments, held_out)
        training.append((moments, basis, projected))
    cv_error = to_numpy(squared) / total.weight
    variance = to_numpy(total.syy) / total.weight
    criterion = cv_error if per_target else _mean_unexplained(cv_error, variance)[:, None]
    alpha = np.broadcast_to(best_alpha(checked, criterion), (n_targets,)).copy()
    folds = [_finish(_solve(basis, projected, alpha), moments) for moments, basis, projected in training]
    basis = bases[-1] if bases else eigenbasis(total, standardize=standardize)
    weights, bias = _finish(_solve(basis, _project(total, basis), alpha), total)
    return RidgeFit(
        alphas=checked,
        alpha=alpha,
        cv_error=cv_error,
        weights=weights,
        bias=bias,
        fold_weights=xp.stack([w for w, _ in folds]),
        fold_bias=xp.stack([b for _, b in folds]),
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


def check_folds(stats: FoldStatistics) -> None:
    """Raise InputError unless cross-validation over the folds is possible."""
    if stats.n_folds < 2:
        raise InputError(f"cross-validation over {stats.n_folds} fold: give at least two")
    empty = np.flatnonzero(stats.weight <= 0)
    if empty.size:
        raise InputError(
            f"fold {empty[0]} has no rows of positive weight: use fewer folds, or number them without gaps"
        )


def to_dtype(weights: Array, bias: Array, mean_x: Array, dtype: Any) -> tuple[Array, Array]:
    """Round a float64 probe to `dtype`, with the bias that keeps its prediction at `mean_x`.

    Without it, rounding the weight of a column of large mean would move every prediction.
    """
    xp = array_api_compat.array_namespace(weights)
    rounded = xp.astype(weights, dtype)
    lost = weights - xp.astype(rounded, xp.float64)
    return rounded, xp.astype(bias + xp.matmul(lost, mean_x), dtype)


def _project(moments: Moments, basis: Eigenbasis) -> Array:
    """Return QᵀD⁻¹sxy, float64 of shape [D, T]."""
    xp = array_api_compat.array_namespace(basis.vectors)
    return xp.matmul(basis.vectors.T, moments.sxy / basis.scale[:, None])


def _solve(basis: Eigenbasis, projected: Array, alpha: float | np.ndarray[Any, Any]) -> Array:
    """Return raw-unit weights D⁻¹Q(Λ+α)⁻¹QᵀD⁻¹sxy, float64 of shape [D, T], for one α or one per target."""
    xp = array_api_compat.array_namespace(basis.vectors)
    ridge = xp.asarray(alpha, dtype=xp.float64, device=array_api_compat.device(projected))
    return xp.matmul(basis.vectors, projected / (basis.values[:, None] + ridge)) / basis.scale[:, None]


def _held_out_error(weights: Array, training: Moments, held_out: Moments) -> Array:
    """Return the summed squared error ([T]) on `held_out` of `weights` ([D, T]) from `training`."""
    xp = array_api_compat.array_namespace(weights)
    quadratic = xp.sum(weights * (xp.matmul(held_out.sxx, weights) - 2 * held_out.sxy), axis=0)
    bias_error = held_out.mean_y - training.mean_y - xp.matmul(held_out.mean_x - training.mean_x, weights)
    error = held_out.syy + quadratic + held_out.weight * bias_error**2
    return xp.where(error > 0, error, xp.zeros_like(error))


def _finish(weights: Array, moments: Moments) -> tuple[Array, Array]:
    """Return weights [T, D] and bias [T] in the moments' dtype from float64 weights [D, T]."""
    xp = array_api_compat.array_namespace(weights)
    bias = moments.mean_y - xp.matmul(moments.mean_x, weights)
    return to_dtype(weights.T, bias, moments.mean_x, moments.dtype)


def _mean_unexplained(cv_error: np.ndarray[Any, Any], variance: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return 1 - R² averaged over the targets that vary, shape [A]."""
    varying = variance > 0
    if not varying.any():
        return np.asarray(cv_error.mean(axis=1))
    return np.asarray((cv_error[:, varying] / variance[varying]).mean(axis=1))
