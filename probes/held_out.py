"""Errors of ridge probes on rows that they were not fitted to, from sums alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .backend import Array, Backend, gram
from .eigenbasis import Basis
from .moments import Moments

_BLOCK_ELEMENTS = 2**22
"""Numbers of the float64 arrays that hold several penalties' solutions: 32 MB."""

_GRID = 256
"""Eigenvalues that penalties are compared at."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """Sums of the solutions of all penalties that matter less and less.

    Many penalties, most of them far from an eigenvalue λ, have (λ + α₀) / (λ + α) of nearly a common span, α₀ being the
    least. Its singular vectors turn the solutions to such as are ever smaller beside that of α₀.

    Attributes
    ----------
    of_alphas : float64 array of shape [A, A], numpy
        Orthogonal; column k says how much of each penalty's solution is in sum k.
    n_main : int
        Sums that matter: products of two others are below the rounding of the dtype.
    """

    of_alphas: np.ndarray[Any, Any]
    n_main: int

    @classmethod
    def of(cls, alphas: np.ndarray[Any, Any], greatest: float, eps: float) -> Mixture:
        """Mix the penalties for eigenvalues up to `greatest` and numbers rounded to `eps`."""
        weakest = float(alphas.min())
        values = np.append(np.geomspace(weakest / 100, max(greatest, weakest), _GRID), 0.0) + weakest
        left, sizes, _ = np.linalg.svd(values / (alphas[:, None] - weakest + values), full_matrices=False)
        return cls(left, int((sizes > eps**0.5 * sizes[0]).sum()))


def held_out_error(
    basis: Basis,
    training: Moments,
    projected: Array,
    held_out: Moments,
    root: Array,
    alphas: np.ndarray[Any, Any],
    mixture: Mixture,
) -> Array:
    """Compute the squared errors, summed over a fold, of the solutions of its training part: SSE of `ridge_cv`.

    Parameters
    ----------
    basis, training : Basis and Moments
        Of the training part.
    projected : float64 array of shape [T, r]
        The part's sxy in its basis.
    held_out : Moments
        Of the fold.
    root : float64 array of shape [D, r]
        Times its transpose it is the Gram matrix of all rows.
    alphas : float64 array of shape [A], numpy
    mixture : Mixture
        Of these penalties.

    Returns
    -------
    float64 array of shape [A, T]
    """
    backend = Backend.of(root)
    xp, n_targets, rank = backend.xp, int(training.mean_y.shape[0]), int(projected.shape[1])
    step_x, step_y = held_out.mean_x - training.mean_x, held_out.mean_y - training.mean_y
    shifted = held_out.sxy + held_out.weight * step_x[:, None] * step_y
    turned = basis.project(xp.concat([shifted, step_x[:, None]], axis=1))
    cross, drift = turned[:n_targets, :], turned[n_targets, :]
    drift_weight = held_out.weight**2 / (held_out.weight + training.weight)
    # In the dtype of the rows' products, whose rounding the Gram matrices have in them already.
    dtype, n_main = training.dtype, mixture.n_main
    root = xp.astype((basis.live / basis.scale)[:, None] * root, dtype)
    vectors = xp.astype(basis.vectors, dtype)
    # Of a product of matrices, many solutions are worth having it multiplied; few are not.
    whole = gram(xp.matmul(root.T, vectors)) if n_main * n_targets > rank else None
    mix = backend.asarray(mixture.of_alphas, xp.float64)
    narrow, main = xp.astype(mix.T, dtype), mix[:, :n_main]
    # Products of a main and another sum come once of two times.
    twice = mix * backend.asarray(np.where(np.arange(alphas.size) < n_main, 1.0, 2.0))
    penalty = backend.asarray(alphas)[:, None]
    errors = []
    for start in range(0, n_targets, block := max(1, _BLOCK_ELEMENTS // (rank * alphas.size))):
        some = slice(start, start + block)
        solutions = basis.shrink(projected[some, :], alphas[:, None])
        error = held_out.syy[some] + held_out.weight * step_y[some] ** 2
        error = error - xp.vecdot(solutions, 2 * cross[some, :] + projected[some, :])
        error += penalty * xp.vecdot(solutions, solutions) + drift_weight * xp.matmul(solutions, drift) ** 2
        mixed = xp.matmul(narrow, xp.reshape(xp.astype(solutions, dtype), (alphas.size, -1)))
        mixed = xp.reshape(mixed, solutions.shape)
        fitted = xp.reshape(mixed[:n_main, ...], (-1, rank))
        if whole is None:
            fitted = xp.matmul(xp.matmul(xp.matmul(xp.matmul(fitted, vectors.T), root), root.T), vectors)
        else:
            fitted = xp.matmul(fitted, whole)
        fitted = xp.permute_dims(xp.reshape(fitted, (n_main, -1, rank)), (1, 0, 2))
        products = xp.astype(xp.matmul(fitted, xp.permute_dims(mixed, (1, 2, 0))), xp.float64)
        errors.append(error + xp.sum(xp.matmul(products, twice.T) * main.T, axis=1).T)
    error = xp.concat(errors, axis=1)
    return xp.where(error > 0, error, xp.zeros_like(error))
