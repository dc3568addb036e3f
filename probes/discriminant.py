r"""Linear probes from class means and scatters: no pass over the rows beyond that of their statistics.

With W the summed weight of the training rows, p a class' share of it, and :math:`\bar x` their mean, all that is asked
of a class is :math:`s_{xy} = \sum_i w_i (x_i - \bar x)(y_i - p)` of its 0/1 column y, as

.. math:: \frac{s_{xy}}{W p (1-p)} = \mu_1 - \mu_0, \qquad \frac{s_{xy}}{W p} = \mu_1 - \bar x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np

from sonde.errors import InputError

from .backend import Array, to_numpy
from .eigenbasis import Basis
from .moments import FoldStatistics, Moments
from .ridge import check_folds, ridge_cv, to_dtype
from .tridiagonal import ridge_bases

_ROUNDING = 1e-9
"""Shares of the weight that differ by no more are equal: float64 sums of up to a billion rows are this exact."""


@dataclass(frozen=True, slots=True)
class LinearFit:
    """Probes of all rows and of every training part, in the statistics' dtype, namespace and device.

    Attributes
    ----------
    weights, bias : arrays of shape [T, D] and [T]
        Fit on all folds, in raw units of x.
    fold_weights, fold_bias : arrays of shape [F, T, D] and [F, T]
        Fits without fold f: for scores of fold f that its rows had no part in.
    """

    weights: Array
    bias: Array
    fold_weights: Array
    fold_bias: Array


@dataclass(frozen=True, slots=True)
class LdaFit(LinearFit):
    """Linear discriminants, whose scores are logits, with α chosen by cross-validation over the folds.

    Attributes
    ----------
    alphas : float64 array of shape [A], numpy
        The candidates, as given.
    alpha : float64 array of shape [T], numpy
        The choice for each target.
    cv_error : float64 array of shape [A, T], numpy
        Mean squared error on held-out folds of ridge regression with the same α.
    """

    alphas: np.ndarray[Any, Any]
    alpha: np.ndarray[Any, Any]
    cv_error: np.ndarray[Any, Any]


def mean_difference(stats: FoldStatistics, *, per_target: bool = True) -> LinearFit:
    r"""Fit probes along differences of class means: mass-mean probes.

    For a target with means :math:`\mu_1` of positives and :math:`\mu_0` of negatives, d their difference, the score is

    .. math:: \frac{d^\top (x - \mu_0)}{\lVert d \rVert^2}

    (Marks & Tegmark 2023, arXiv:2310.06824, section 5, scaled): 0 at the negatives' mean, 1 at the positives', and
    above ½ where the positives' mean is the nearer. Where both are the same point, the score is the positives' share.

    For classes of one question the scores are

    .. math:: (\mu_c - \bar x)^\top (x - \bar x) - \tfrac12 \lVert \mu_c - \bar x \rVert^2,

    greatest for the class of the nearest mean: :math:`\tfrac12 \lVert x - \bar x \rVert^2` less half the squared
    distance to it.

    Parameters
    ----------
    stats : FoldStatistics
        Of 0/1 targets, with at least two folds.
    per_target : bool
        Whether each target is a question of its own; else targets are the one-hot classes of one.

    Returns
    -------
    LinearFit

    Raises
    ------
    InputError
        If targets are not such, a training part lacks a class, or there are fewer than two folds, or an empty one.
    """
    _check_classes(stats, per_target)
    return LinearFit(*_gather([nearest_mean(part, per_target) for part in stats.parts()]))


def lda(
    stats: FoldStatistics,
    alphas: Any,
    *,
    per_target: bool = True,
    standardize: bool = True,
    bases: Sequence[Basis] | None = None,
) -> LdaFit:
    r"""Fit regularised linear discriminants as logits.

    With the covariance within classes :math:`\Sigma = (S_w + \alpha D^2) / W`, shares p and means :math:`\mu`,
    the logit of a target, for a sigmoid, is

    .. math:: (\mu_1 - \mu_0)^\top \Sigma^{-1} \left(x - \tfrac12 (\mu_1 + \mu_0)\right) + \log \frac{p}{1-p},

    and that of a class among those of one question, for a softmax,

    .. math:: (\mu_c - \bar x)^\top \Sigma^{-1} \left(x - \tfrac12 (\mu_c + \bar x)\right) + \log p_c

    (Hastie, Tibshirani & Friedman, "The Elements of Statistical Learning", 2nd ed., eq. 4.9 and 4.10), where
    :math:`S_w = S_{xx} - N N^\top`, N having the column :math:`s_{xy}/\sqrt{Wp(1-p)}` of a target, or those
    :math:`s_{xy}/\sqrt{W p_c}` of all classes. D is the diagonal of standard deviations of the training rows, or the
    identity. As α falls to zero this is scikit-learn's ``LinearDiscriminantAnalysis(solver="lsqr")``.

    Since :math:`(S_w + \alpha D^2)^{-1} N = (S_{xx} + \alpha D^2)^{-1} N (I - K)^{-1}` with
    :math:`K = N^\top (S_{xx} + \alpha D^2)^{-1} N`, by Woodbury, the discriminants of ridge regression and those of
    LDA are the same directions (ibid., exercise 4.2; Hastie, Buja & Tibshirani 1995, "Penalized discriminant
    analysis", for more classes). So α is that of `ridge_cv`, whose bases serve here too.

    Parameters
    ----------
    stats : FoldStatistics
        Of 0/1 targets, with at least two folds.
    alphas : array of shape [A]
        Positive; in the units of scikit-learn's ``Ridge(alpha)``.
    per_target : bool
        Whether each target is a question of its own, with its own α; else targets are the one-hot classes of one.
    standardize : bool
        Whether the penalty applies to standardised columns; ignored if `bases` is given.
    bases : sequence of F + 1 Basis, optional
        What `ridge_bases` or `eigenbases` gives, if it is known.

    Returns
    -------
    LdaFit

    Raises
    ------
    InputError
        If an α is not positive, targets are not such, a training part lacks a class, or there are fewer than two
        folds, or an empty one.
    """
    _check_classes(stats, per_target)
    bases = bases or ridge_bases(stats, standardize=standardize)
    ridge = ridge_cv(stats, alphas, per_target=per_target, bases=bases)
    probes = [
        _discriminant(part, basis, ridge.alpha, per_target) for part, basis in zip(stats.parts(), bases, strict=True)
    ]
    return LdaFit(*_gather(probes), ridge.alphas, ridge.alpha, ridge.cv_error)


def nearest_mean(moments: Moments, per_target: bool) -> tuple[Array, Array]:
    """Return the weights [T, D] and bias [T] of `mean_difference` for one set of rows, every class in them."""
    xp = array_api_compat.array_namespace(moments.sxy)
    difference = moments.sxy / _count(moments, per_target)
    squared = xp.sum(difference**2, axis=0)
    if not per_target:
        return _round(difference.T, -squared / 2, moments)
    return _round((difference / xp.where(squared > 0, squared, xp.ones_like(squared))).T, moments.mean_y, moments)


def _discriminant(moments: Moments, basis: Basis, alpha: np.ndarray[Any, Any], per_target: bool) -> tuple[Array, Array]:
    xp, device = array_api_compat.array_namespace(moments.sxy), array_api_compat.device(moments.sxy)
    share, root = moments.mean_y, xp.sqrt(_count(moments, per_target))
    ridge = xp.asarray(alpha, dtype=xp.float64, device=device)
    between = basis.project(moments.sxy) / root[:, None]  # NᵀD⁻¹Q
    # Classes of one question are turned to the eigenvectors of K; the K of a separate target is a number.
    if per_target:
        turn = xp.eye(share.shape[0], dtype=xp.float64, device=device)
    else:
        _, turn = xp.linalg.eigh(xp.matmul(between, basis.shrink(between, alpha[None, :])[0, ...].T))
    turned = xp.matmul(turn.T, between)
    solved = basis.shrink(turned, alpha[None, :])[0, ...]
    # What 1 - K is at least, as S_xx ≥ NNᵀ: all that rounding leaves of it where classes are separable.
    least = ridge * xp.sum(solved**2, axis=1)
    solved = solved / xp.maximum(1 - xp.sum(turned * solved, axis=1), least)[:, None]
    solved = moments.weight * xp.matmul(turn, solved) / root[:, None]
    distance = xp.sum(between * solved, axis=1) / root  # Mahalanobis', squared, of the means that a target compares
    at_mean = xp.log(share) - distance / 2
    if per_target:  # less the same of the negatives
        at_mean += share * distance - xp.log(1 - share)
    return _round(basis.expand(solved), at_mean, moments)


def _count(moments: Moments, per_target: bool) -> Array:
    """Return what sxy is divided by: Wp(1-p), or Wp of one-hot classes ([T])."""
    return moments.weight * moments.mean_y * (1 - moments.mean_y if per_target else 1.0)


def _round(weights: Array, at_mean: Array, moments: Moments) -> tuple[Array, Array]:
    """Return probes of the moments' dtype from float64 weights [T, D] and scores [T] at the mean of x."""
    xp = array_api_compat.array_namespace(weights)
    return to_dtype(weights, at_mean - xp.matmul(weights, moments.mean_x), moments.mean_x, moments.dtype)


def _gather(probes: list[tuple[Array, Array]]) -> tuple[Array, Array, Array, Array]:
    """Return the fields of a `LinearFit` from the probes of all training parts."""
    xp = array_api_compat.array_namespace(*probes[0])
    weights, bias = (xp.stack(arrays) for arrays in zip(*probes, strict=True))
    return weights[-1, ...], bias[-1, ...], weights[:-1, ...], bias[:-1, ...]


def _check_classes(stats: FoldStatistics, per_target: bool) -> None:
    """Raise InputError unless targets are 0/1, or one-hot, and no training part lacks a class."""
    check_folds(stats)
    sum_y, square_y, shift = (to_numpy(a) for a in (stats.sum_y, stats.square_y, stats.shift_y))
    trains = np.concatenate([np.ones((1, stats.n_folds)), 1 - np.eye(stats.n_folds)])
    offset = trains @ sum_y / (trains @ stats.weight)[:, None]
    share, variance = shift + offset, square_y.sum(axis=0) / stats.weight.sum() - offset[0] ** 2
    other = np.flatnonzero(np.abs(variance - share[0] * (1 - share[0])) > _ROUNDING * np.maximum(1.0, variance))
    if other.size:
        raise InputError(
            f"target {other[0]} of mean {share[0, other[0]]:.6g} and variance {variance[other[0]]:.6g} is not all "
            "zeros and ones: give one such column per class, or use ridge"
        )
    if not per_target and abs(share[0].sum() - 1) > _ROUNDING:
        raise InputError(
            f"the {share.shape[1]} classes have {share[0].sum():.6g} of the weight, not 1: give each row exactly one, "
            "or use per_target"
        )
    lacking = np.argwhere((share <= _ROUNDING) | (share >= 1 - _ROUNDING))
    if lacking.size:
        part, target = lacking[0].tolist()
        where = f"the rows outside fold {part - 1}" if part else "the training rows"
        raise InputError(f"target {target} is the same in all of {where}: drop it, or use fewer or stratified folds")
