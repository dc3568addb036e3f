r"""Ridge regression with λ chosen without folds: by leave-one-out errors, or by their generalised approximation.

Leaving row i out of a ridge fit makes its residual :math:`e_i / (1 - h_i)`
(Cook & Weisberg, "Residuals and Influence in Regression", section 2.2), where e is the residual of the fit to all rows
and, for standardised and centred :math:`\tilde x`, the leverage that an intercept adds to included,

.. math:: h_i = s_i \left( \tfrac1W + \tilde x_i^\top (\tilde S_{xx} + \alpha)^{-1} \tilde x_i \right)

Columns are standardised once, by all rows. Where rows come in groups, such as prompts about one image, these errors
are those of a probe that has seen the group: use `sonde.probes.ridge_cv` then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sonde.errors import InputError

from .backend import Array, Backend, is_torch, to_numpy
from .eigenbasis import Eigenbasis, eigenbasis
from .moments import FoldStatistics, Moments
from .ridge import alpha_array, check_rows, choose_alpha, solve
from .rows import Rows, fold_array, target_array, used_chunks, weight_array

_BLOCK_ELEMENTS = 2**22
"""Predictions computed at a time, for all α and targets: 32 MB."""


@dataclass(frozen=True, slots=True)
class RidgeChoice:
    """Ridge with α chosen without folds.

    Attributes
    ----------
    alphas : float64 array of shape [A], numpy
        The candidates, as given.
    alpha : float64 array of shape [T], numpy
        The choice for each target.
    cv_error : float64 array of shape [A, T], numpy
        Mean squared error of rows left out, exact or generalised.
    weights, bias : arrays of shape [T, D] and [T]
        Fit on all rows at the chosen α, in raw units of x.
    """

    alphas: np.ndarray[Any, Any]
    alpha: np.ndarray[Any, Any]
    cv_error: np.ndarray[Any, Any]
    weights: Array
    bias: Array


def ridge_loo(
    rows: Rows,
    y: Any,
    folds: Any,
    stats: FoldStatistics,
    alphas: Any,
    *,
    per_target: bool = True,
    sample_weight: Any = None,
    standardize: bool = True,
    basis: Eigenbasis | None = None,
) -> RidgeChoice:
    r"""Choose α by the leave-one-out error and fit, in one pass over the rows.

    As scikit-learn's ``make_pipeline(StandardScaler(), RidgeCV(alphas))``:

    .. math:: \mathrm{error} = \tfrac1W \sum_i s_i \left( \frac{e_i}{1 - h_i} \right)^2

    Predictions and leverages are computed in float64 whatever the rows' dtype: 1 - h is small where α is.

    Parameters
    ----------
    rows : Rows
        Activations of shape [N, D].
    y : array of shape [N, T] or [N]
    folds : int array of shape [N]
        -1 leaves a row out; the other folds are taken together.
    stats : FoldStatistics
        Of the same rows, targets, folds and weights; they also say where to compute.
    alphas : array of shape [A]
        Positive; scikit-learn's ``alpha``.
    per_target : bool
        Whether each target has its own α; else the one with the greatest R², averaged over targets, serves all.
        Ties go to the greater α.
    sample_weight : array of shape [N], optional
    standardize : bool
        Whether the penalty applies to standardised columns; ignored if `basis` is given.
    basis : Eigenbasis, optional
        Of all folds (the last that `sonde.probes.eigenbases` gives), if it is known.

    Returns
    -------
    RidgeChoice

    Raises
    ------
    InputError
        If data are not usable, or `stats` are not those of the rows.

    References
    ----------
    Golub, Heath & Wahba 1979, "Generalized cross-validation as a method for choosing a good ridge parameter".
    """
    checked, fold = alpha_array(alphas), fold_array(folds, stats.n_folds)
    target, weight = target_array(y, fold >= 0), weight_array(sample_weight, fold >= 0)
    check_rows(stats, fold, weight, rows.hidden_size)
    total = stats.total()
    if target.shape[1] != total.mean_y.shape[0]:
        raise InputError(
            f"statistics of {total.mean_y.shape[0]} targets do not belong to {target.shape[1]}: give both the same y"
        )
    basis = basis or eigenbasis(total, standardize=standardize)
    backend = Backend.of(total.mean_x)
    xp, n_alphas, n_targets = backend.xp, checked.size, target.shape[1]
    coordinates = xp.reshape(basis.shrink(basis.project(total.sxy), checked[:, None]), (n_alphas * n_targets, -1)).T
    inverse = 1 / (basis.values[:, None] + backend.asarray(checked, xp.float64))
    squared = backend.zeros(n_alphas, n_targets)
    block = max(1, _BLOCK_ELEMENTS // (n_alphas * n_targets))
    device = str(backend.device) if is_torch(total.mean_x) else None
    for _, positions, chunk in used_chunks(rows, fold, device):
        for start in range(0, positions.size, block):
            at = positions[start : start + block]
            x = backend.asarray(chunk[start : start + block, :], xp.float64) - basis.mean_x
            s = backend.asarray(np.ones(at.size) if weight is None else weight[at], xp.float64)[:, None]
            turned = basis.project(x.T)
            fitted = xp.reshape(xp.matmul(turned, coordinates), (at.size, n_alphas, n_targets))
            leverage = s * (1 / total.weight + xp.matmul(turned**2, inverse))
            residual = (backend.asarray(target[at], xp.float64) - total.mean_y)[:, None, :] - fitted
            squared += xp.sum((residual / (1 - leverage)[:, :, None]) ** 2 * s[:, :, None], axis=0)
    return _choice(basis, total, checked, to_numpy(squared) / total.weight, per_target)


def ridge_gcv(
    stats: FoldStatistics,
    alphas: Any,
    *,
    per_target: bool = True,
    standardize: bool = True,
    basis: Eigenbasis | None = None,
) -> RidgeChoice:
    r"""Choose α by generalised cross-validation and fit, without a pass over the data.

    Every leverage is replaced by the mean one (Golub, Heath & Wahba 1979, eq. 1.4):

    .. math:: \mathrm{error} = \frac{\tfrac1W \sum_i s_i e_i^2}{(1 - \mathrm{tr} H / n)^2}, \quad
        \mathrm{tr} H = 1 + \sum_j \frac{\lambda_j}{\lambda_j + \alpha}

    Parameters
    ----------
    stats : FoldStatistics
        Of all folds together; n counts rows.
    alphas, per_target, standardize, basis
        As in `ridge_loo`.

    Returns
    -------
    RidgeChoice

    Raises
    ------
    InputError
        If an α is not positive.
    """
    checked, total = alpha_array(alphas), stats.total()
    basis = basis or eigenbasis(total, standardize=standardize)
    backend = Backend.of(total.mean_x)
    xp = backend.xp
    inverse = 1 / (basis.values + backend.asarray(checked, xp.float64)[:, None])
    leverage = basis.values * inverse
    squared = total.syy - xp.matmul((2 - leverage) * inverse, basis.project(total.sxy).T ** 2)
    squared = xp.where(squared > 0, squared, xp.zeros_like(squared))
    left = 1 - (1 + xp.sum(leverage, axis=1)) / total.n
    return _choice(basis, total, checked, to_numpy(squared / left[:, None] ** 2) / total.weight, per_target)


def _choice(
    basis: Eigenbasis, total: Moments, alphas: np.ndarray[Any, Any], error: np.ndarray[Any, Any], per_target: bool
) -> RidgeChoice:
    alpha = choose_alpha(alphas, error, to_numpy(total.syy) / total.weight, per_target=per_target)
    weights, bias = solve(basis, total, alpha[None, :])
    return RidgeChoice(alphas, alpha, error, weights[0, ...], bias[0, ...])
